"""Prints the share of training time that `fit` spends outside forward, backward and optimizer step.

    python bench/loop_overhead.py [--steps 40] [--threads 1] [--data FOLDER] [--out FILE]

ResNet-20, batch 128, on the CPU, with and without bf16 and channels_last, augmentation on. Without a data folder the
images are random. Three clocks are set from outside, around the network's forward, the backward and the optimizer's step;
the loss counts as outside.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.optim import optimizer as optimizers

from secateur import data
from secateur.io import write_json
from secateur.measure import machine
from secateur.recipes import zoo
from secateur.train import FitSettings, fit


class Clock:
    """Seconds spent between `start` and `stop`, summed."""

    def __init__(self) -> None:
        self.seconds, self.begun = 0.0, 0.0

    def start(self, *_: Any) -> None:
        """Begin a stretch."""
        self.begun = time.perf_counter()

    def stop(self, *_: Any) -> None:
        """End it."""
        self.seconds += time.perf_counter() - self.begun


def measure(batches: data.Batches, settings: FitSettings) -> dict[str, float]:
    """Seconds in "forward", "backward" and "step", in "all", and the share outside the three."""
    torch.manual_seed(0)
    model = zoo.build("cifar_resnet20_a")
    fit(model, batches.first(batches.batch * 2), settings)  # warm up
    clocks = {"forward": Clock(), "backward": Clock(), "step": Clock()}
    handles = [
        model.register_forward_pre_hook(clocks["forward"].start),
        model.register_forward_hook(clocks["forward"].stop),
        optimizers.register_optimizer_step_pre_hook(clocks["step"].start),
        optimizers.register_optimizer_step_post_hook(clocks["step"].stop),
    ]
    plain: Callable[..., None] = torch.autograd.backward

    def timed(*args: Any, **named: Any) -> None:
        clocks["backward"].start()
        plain(*args, **named)
        clocks["backward"].stop()

    torch.autograd.backward = timed
    try:
        start = time.perf_counter()
        fit(model, batches, settings)
        whole = time.perf_counter() - start
    finally:
        torch.autograd.backward = plain
        for handle in handles:
            handle.remove()
    seconds = {name: clock.seconds for name, clock in clocks.items()}
    return {**seconds, "all": whole, "outside": 1 - sum(seconds.values()) / whole}


def main() -> None:
    """Measure and print one JSON object per setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", help="folder with CIFAR-10; random images without it")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    count = options.steps * 128
    if options.data:
        images, labels = data.cifar10(options.data).train
        images, labels = images[:count], labels[:count]
    else:
        images, labels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 10, (count,))
    rows = []
    for precision, channels_last in (("float32", False), ("bf16", True)):
        augment = data.Augment(crop=4, flip=True)
        batches = data.Batches(images, labels, augment=augment, shuffle=True, drop_last=True, channels_last=channels_last)
        found = measure(batches, FitSettings(epochs=1, precision=precision, channels_last=channels_last))  # type: ignore[arg-type]
        told = {name: round(value, 4) for name, value in found.items()}
        told["images_per_second"] = round(count / found["all"], 1)
        rows.append({"precision": precision, "channels_last": channels_last, "threads": options.threads, **told})
        print(json.dumps(rows[-1]), flush=True)
    if options.out:
        record = {**machine.record(), "model": "ResNet-20, batch 128", "rows": rows}
        write_json(options.out, record)


if __name__ == "__main__":
    main()
