"""Prints what trained rank pruning adds to a training step, beside the reference arithmetic (full SVD, layer by layer).

    python bench/trp_overhead.py [--model cifar_resnet20_a] [--format channel] [--batch 128] [--device cpu] [--out FILE]

A network trains on random images with a truncation after every step. In each round, after `--settle` steps: a step
(forward, backward, optimizer); the truncation that follows it, started from the vectors of the last one; the same weights
truncated from scratch, as after 20 steps; and again by the reference. What the three leave is compared. Overhead at m = 1 takes
the first, at m = 20 the second: (seconds of the nuclear term + seconds of a truncation / m) / seconds of a step, medians
all. Models: those of the zoo, or any of torchvision by name (resnet50).
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import common
from secateur import TRP
from secateur.io.files import write_json
from secateur.measure.machine import hardware, versions
from secateur.surgery import fold, unfold
from secateur.train.trp.layers import Layer

FLUSH = 1 << 24
"""Numbers written to make the processor forget: more than its caches hold."""


def reference(method: TRP, strength: float) -> dict[str, tuple[int, Tensor]]:
    """The released code's truncation: one SVD per layer, the rank by a loop over prefixes. Layer to (rank, U V^T)."""
    found = {}
    for layer in method.layers:
        weight = layer.weight.detach()
        matrices, largest = [], 0
        pushes = []
        for matrix in unfold(weight, layer.format):
            u, s, v = torch.linalg.svd(matrix, full_matrices=False)
            rank = next(k for k in range(len(s) + 1) if bool((s[:k] ** 2).sum() >= (1 - strength) * (s**2).sum()))
            matrices.append(u[:, :rank] * s[:rank] @ v[:rank])
            pushes.append(u[:, :rank] @ v[:rank])
            largest = max(largest, rank)
        with torch.no_grad():
            layer.weight.copy_(fold(torch.stack(matrices), weight.shape, layer.format))
        found[layer.name] = (largest, torch.stack(pushes))
    return found


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Of one call, the device's share included; caches hold other things before it, as they do after a step.

    On one thread of a processor its own time counts: what other programs take meanwhile does not.
    """
    if device.type == "cpu":
        torch.ones(FLUSH).add_(1)
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return common.seconds(work, device, time.process_time if alone else time.perf_counter)


class Step:
    """Forward, backward and optimizer of a network on random images."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self.model = common.network(options.model).to(device).train()
        self.images = torch.randn(options.batch, options.colours, options.size, options.size, device=device)
        self.labels = torch.randint(0, 10, (options.batch,), device=device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), options.lr, momentum=0.9)
        self.device, self.bf16 = device, options.bf16

    def gradients(self) -> None:
        """Forward and backward."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss = functional.cross_entropy(self.model(self.images).float(), self.labels)
        loss.backward()

    def timed(self, method: TRP) -> dict[str, float]:
        """Seconds of a step, and of the nuclear term in it."""
        first = seconds(self.gradients, self.device)
        nuclear = seconds(method.after_backward, self.device)
        second = seconds(self.optimizer.step, self.device)
        self.optimizer.zero_grad()
        return {"step": first + second, "nuclear": nuclear}


class Truncations:
    """The same weights truncated three ways: "warm" from the vectors of the last time, "cold", and by the reference.

    The network of "warm" is the one that trains. `apart` is how far ours are from the reference at most.
    """

    def __init__(self, model: nn.Module, options: argparse.Namespace) -> None:
        settings = {"format": options.format, "energy": options.energy, "every": 1}
        self.methods = {"warm": TRP(model, **settings), "cold": TRP(copy.deepcopy(model), **settings)}
        self.other = TRP(copy.deepcopy(model), **settings | {"energy": 1.0})  # knows the layers and changes nothing
        self.discarded = 1 - options.energy
        self.found: dict[str, tuple[int, Tensor]] = {}
        self.apart, self.equal = dict.fromkeys(self.methods, 0.0), True

    def timed(self, turn: int, device: torch.device) -> dict[str, float]:
        """Seconds of each, who comes first going by `turn`."""
        start = {layer.name: layer.weight.detach().clone() for layer in self.methods["warm"].layers}
        self.methods["cold"]._kernels.forget()
        for hook in (self.methods["cold"], self.other):
            with torch.no_grad():
                for layer in hook.layers:
                    layer.weight.copy_(start[layer.name])
        calls: list[tuple[str, Callable[[], Any]]] = [(name, method.after_step) for name, method in self.methods.items()]
        calls.append(("reference", self._refer))
        first = turn % len(calls)  # who comes first finds the least of its code in the caches
        took = {name: seconds(call, device) for name, call in calls[first:] + calls[:first]}
        self._compare()
        return took

    def mean_rank_share(self) -> float:
        """Of the full ranks, after the last truncation."""
        full = {layer.name: min(unfold(layer.weight.detach(), layer.format).shape[1:]) for layer in self.other.layers}
        return statistics.mean(self.found[name][0] / most for name, most in full.items())

    def _refer(self) -> None:
        self.found = reference(self.other, self.discarded)

    def _compare(self) -> None:
        for name, method in self.methods.items():
            pairs = zip(method.layers, self.other.layers, strict=True)
            self.apart[name] = max(self.apart[name], *(float((a.weight - b.weight).detach().abs().max()) for a, b in pairs))
            self.equal &= all(rank_of(layer) == self.found[layer.name][0] for layer in method.layers)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Medians of seconds, overheads, and how far the truncations are apart."""
    torch.manual_seed(0)
    device = torch.device(options.device)
    step = Step(options, device)
    ways = Truncations(step.model, options)
    rounds: list[dict[str, float]] = []
    for number in range(options.settle + options.rounds):
        times = step.timed(ways.methods["warm"])
        if number < options.settle:
            ways.methods["warm"].after_step()
        else:
            rounds.append(times | ways.timed(number, device))
    medians = {
        name: statistics.median(row[name] for row in rounds) for name in ("step", "nuclear", "warm", "cold", "reference")
    }
    return {
        **{f"{name}_seconds": value for name, value in medians.items()},
        **overheads(medians),
        **{f"largest_difference_{name}": value for name, value in ways.apart.items()},
        "largest_weight": max(float(layer.weight.detach().abs().max()) for layer in ways.other.layers),
        "ranks_equal": ways.equal,
        "mean_rank_share": ways.mean_rank_share(),
    }


def overheads(medians: dict[str, float]) -> dict[str, float]:
    """What a truncation every step, and one every 20, adds to a step: ours, the reference, their ratio."""
    one = medians["step"]
    ours = {m: (medians["nuclear"] + medians[which] / m) / one for m, which in ((1, "warm"), (20, "cold"))}
    theirs = {m: (medians["nuclear"] + medians["reference"] / m) / one for m in ours}
    return {
        **{f"overhead_m{m}": value for m, value in ours.items()},
        **{f"reference_overhead_m{m}": value for m, value in theirs.items()},
        **{f"share_of_reference_m{m}": ours[m] / theirs[m] for m in ours},
    }


def rank_of(layer: Layer) -> int:
    """The rank a truncated weight has, over all its matrices."""
    return int(torch.linalg.matrix_rank(unfold(layer.weight.detach(), layer.format).double(), rtol=1e-4).max())


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="cifar_resnet20_a")
    parser.add_argument("--format", default="channel", choices=("channel", "spatial", "decouple"))
    parser.add_argument("--energy", type=float, default=0.98)
    for name, default in (("batch", 128), ("size", 32), ("colours", 3), ("settle", 10), ("rounds", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="forward under autocast")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    begun = time.perf_counter()
    row = {**settings, **{name: float(f"{v:.4g}") if type(v) is float else v for name, v in measure(options).items()}}
    print(json.dumps(row), flush=True)
    if options.out:
        record = {
            "command": common.command("trp_overhead.py"),
            "versions": versions(),
            "hardware": hardware(options.device, options.threads),
            "seed": 0,
            "seconds": round(time.perf_counter() - begun, 1),
            **row,
        }
        write_json(options.out, record)


if __name__ == "__main__":
    main()
