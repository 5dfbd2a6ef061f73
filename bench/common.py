"""What benchmarks share: networks by name, batches that were held out, the command as a result file says it, memory, ONNX."""

from __future__ import annotations

import io
import shlex
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.io import load_weights
from secateur.io.vision import torchvision
from secateur.recipes import zoo

Pairs = list[tuple[Tensor, Tensor]]


def network(name: str) -> nn.Module:
    """A network of the zoo, or of torchvision, with random weights."""
    if name in zoo.BUILDERS:
        return zoo.build(name)
    return torchvision().models.get_model(name, weights=None)


def weights_file(name: str) -> Path:
    """Where the published CIFAR-10 weights of a network of the zoo lie, below the data folder."""
    return Path("weights") / f"cifar10_{name.removeprefix('cifar_')}.safetensors"


def pretrained(name: str, folder: str | Path) -> nn.Module:
    """A network of the zoo with its published CIFAR-10 weights, in evaluation mode."""
    return load_weights(Path(folder) / weights_file(name), zoo.build(name)).eval()


def parted(batches: Iterable[tuple[Tensor, Tensor]], sizes: Sequence[int], batch: int = 128) -> list[Pairs]:
    """The images of `batches` divided into parts of so many, each in batches again."""
    pairs = list(batches)
    images, labels = (torch.cat([pair[side] for pair in pairs]).split(list(sizes)) for side in (0, 1))
    return [list(zip(x.split(batch), y.split(batch), strict=True)) for x, y in zip(images, labels, strict=True)]


def seconds(work: Callable[[], Any], device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """Of one call, the device's share included."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    wait(device)
    start = clock()
    work()
    wait(device)
    return clock() - start


def command(script: str, **places: object) -> str:
    """The command line of this run; paths are named by the word they are given, as in ``FOLDER=options.data``."""
    words = shlex.join(["python", f"bench/{script}", *sys.argv[1:]])
    for word, path in places.items():
        words = words.replace(str(path), word) if path else words
    return words


def resident(line: str) -> int:
    """A line of this process's memory, bytes: "VmRSS" now, "VmHWM" at most so far."""
    text = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(line))
    return int(text.split()[1]) * 1024


def onnx_milliseconds(models: dict[str, nn.Module], example: torch.Tensor, repeats: int) -> dict[str, float]:
    """Median milliseconds in ONNX Runtime on one thread, the models in turns."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    sessions = {}
    for name, model in models.items():
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(model.eval(), (example,), file, dynamo=False, input_names=["x"])
        sessions[name] = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    feed, times = {"x": example.numpy()}, {name: [] for name in models}
    for turn in range(repeats + 3):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(None, feed)
            if turn >= 3:
                times[name].append((time.perf_counter() - start) * 1000)
    return {name: statistics.median(taken) for name, taken in times.items()}
