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
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur import TRP
from secateur.io.files import write_json
from secateur.measure.machine import hardware, versions
from secateur.recipes import zoo
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
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    if device.type == "cpu":
        torch.ones(FLUSH).add_(1)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def build(name: str) -> nn.Module:
    """A network of the zoo, or of torchvision."""
    if name in zoo.BUILDERS:
        return zoo.build(name)
    import torchvision

    return torchvision.models.get_model(name, weights=None)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Medians of seconds, overheads, and how far the truncations are apart."""
    torch.manual_seed(0)
    device = torch.device(options.device)
    model = build(options.model).to(device).train()
    images = torch.randn(options.batch, options.colours, options.size, options.size, device=device)
    labels = torch.randint(0, 10, (options.batch,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), options.lr, momentum=0.9)
    settings = {"format": options.format, "energy": options.energy, "every": 1}
    methods = {"warm": TRP(model, **settings), "cold": TRP(copy.deepcopy(model), **settings)}
    other = TRP(copy.deepcopy(model), **settings | {"energy": 1.0})  # knows the layers and changes nothing
    names = [layer.name for layer in other.layers]
    times: dict[str, list[float]] = {name: [] for name in ("step", "nuclear", "warm", "cold", "reference")}
    apart = dict.fromkeys(methods, 0.0)
    equal = True

    def gradients() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
            loss = functional.cross_entropy(model(images).float(), labels)
        loss.backward()

    for number in range(options.settle + options.rounds):
        first = seconds(gradients, device)
        nuclear = seconds(methods["warm"].after_backward, device)
        second = seconds(optimizer.step, device)
        optimizer.zero_grad()
        start = {layer.name: layer.weight.detach().clone() for layer in methods["warm"].layers}
        if number < options.settle:
            methods["warm"].after_step()
            continue
        methods["cold"]._bases.clear()
        for hook in (methods["cold"], other):
            with torch.no_grad():
                for layer in hook.layers:
                    layer.weight.copy_(start[layer.name])
        slow: dict[str, tuple[int, Tensor]] = {}
        calls: list[tuple[str, Callable[[], Any]]] = [(name, method.after_step) for name, method in methods.items()]
        calls.append(("reference", lambda slow=slow: slow.update(reference(other, 1 - options.energy))))
        turn = number % len(calls)  # who comes first finds the least of its code in the caches
        took = {name: seconds(call, device) for name, call in calls[turn:] + calls[:turn]}
        for name, taken in {"step": first + second, "nuclear": nuclear, **took}.items():
            times[name].append(taken)
        for name, method in methods.items():
            pairs = zip(method.layers, other.layers, strict=True)
            apart[name] = max(apart[name], *(float((a.weight - b.weight).detach().abs().max()) for a, b in pairs))
            equal &= all(rank_of(layer) == slow[layer.name][0] for layer in method.layers)
    medians = {name: statistics.median(values) for name, values in times.items()}
    one = medians["step"]
    ours = {m: (medians["nuclear"] + medians[which] / m) / one for m, which in ((1, "warm"), (20, "cold"))}
    theirs = {m: (medians["nuclear"] + medians["reference"] / m) / one for m in ours}
    full = {layer.name: min(unfold(layer.weight.detach(), layer.format).shape[1:]) for layer in other.layers}
    return {
        **{f"{name}_seconds": value for name, value in medians.items()},
        **{f"overhead_m{m}": value for m, value in ours.items()},
        **{f"reference_overhead_m{m}": value for m, value in theirs.items()},
        **{f"share_of_reference_m{m}": ours[m] / theirs[m] for m in ours},
        **{f"largest_difference_{name}": value for name, value in apart.items()},
        "largest_weight": max(float(layer.weight.detach().abs().max()) for layer in other.layers),
        "ranks_equal": equal,
        "mean_rank_share": statistics.mean(slow[name][0] / full[name] for name in names),
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
            "command": shlex.join(["python", "bench/trp_overhead.py", *sys.argv[1:]]),
            "versions": versions(),
            "hardware": hardware(options.device, options.threads),
            "seed": 0,
            "seconds": round(time.perf_counter() - begun, 1),
            **row,
        }
        write_json(options.out, record)


if __name__ == "__main__":
    main()
