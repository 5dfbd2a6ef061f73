"""Prints what trained rank pruning adds to a training step, beside the reference arithmetic (full SVD, layer by layer).

    python bench/trp_overhead.py [--model cifar_resnet20_a] [--format channel] [--batch 128] [--device cpu] [--out FILE]

Both truncate copies of one network, turn by turn in one run, and the weights they leave are compared. A step is forward,
backward and optimizer step on random images. Overhead at m is (seconds of the nuclear term in every step + seconds of a
truncation / m) / seconds of a step, medians all. Models: those of the zoo, or any of torchvision by name (resnet50).
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur import TRP
from secateur.recipes import zoo
from secateur.surgery import fold, unfold


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
    """Of one call, the device's share included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def build(name: str) -> nn.Module:
    """A network of the zoo, or of torchvision."""
    if name in zoo.BUILDERS:
        return zoo.build(name)
    import torchvision

    return torchvision.models.get_model(name, weights=None)


def step_of(model: nn.Module, images: Tensor, labels: Tensor, bf16: bool) -> Callable[[], None]:
    """One training step as a function of nothing."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            loss = functional.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Medians of seconds, overheads, and how far the two truncations are apart."""
    torch.manual_seed(0)
    device = torch.device(options.device)
    model = build(options.model).to(device).train()
    images = torch.randn(options.batch, options.colours, options.size, options.size, device=device)
    labels = torch.randint(0, 10, (options.batch,), device=device)
    step = step_of(model, images, labels, options.bf16)
    step()
    steps = [seconds(step, device) for _ in range(options.steps)]
    twin = copy.deepcopy(model)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    discarded = 1 - options.energy
    method = TRP(model, format=options.format, energy=options.energy, every=1)
    other = TRP(twin, format=options.format, energy=1.0, every=1)  # knows the layers and changes nothing
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    times: dict[str, list[float]] = {"truncate": [], "nuclear": [], "reference": []}
    slow: dict[str, tuple[int, Tensor]] = {}
    for _ in range(options.rounds):
        model.load_state_dict(start)
        twin.load_state_dict(start)
        times["truncate"].append(seconds(method.after_step, device))
        times["nuclear"].append(seconds(method.after_backward, device))
        times["reference"].append(seconds(lambda: slow.update(reference(other, discarded)), device))
    medians = {name: statistics.median(values) for name, values in times.items()}
    one = statistics.median(steps)
    pairs = [(a.detach(), b.detach()) for a, b in zip(model.parameters(), twin.parameters(), strict=True)]
    products = {layer.name: layer for layer in method.layers}
    ranks = {
        name: int(torch.linalg.matrix_rank(unfold(layer.weight.detach(), layer.format).double(), rtol=1e-4).max())
        for name, layer in products.items()
    }
    return {
        "step_seconds": one,
        **{f"{name}_seconds": value for name, value in medians.items()},
        **{f"overhead_m{m}": (medians["nuclear"] + medians["truncate"] / m) / one for m in (1, 20)},
        **{f"reference_overhead_m{m}": (medians["nuclear"] + medians["reference"] / m) / one for m in (1, 20)},
        "largest_difference": max(float((a - b).abs().max()) for a, b in pairs),
        "largest_weight": max(float(b.abs().max()) for _, b in pairs),
        "ranks_equal": all(rank == slow[name][0] for name, rank in ranks.items()),
    }


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="cifar_resnet20_a")
    parser.add_argument("--format", default="channel", choices=("channel", "spatial", "decouple"))
    parser.add_argument("--energy", type=float, default=0.98)
    for name, default in (("batch", 128), ("size", 32), ("colours", 3), ("steps", 10), ("rounds", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="forward under autocast")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    row = {**settings, **{name: float(f"{v:.4g}") if type(v) is float else v for name, v in measure(options).items()}}
    print(json.dumps(row), flush=True)
    if options.out:
        machine = {"python": platform.python_version(), "torch": torch.__version__, "cpu": platform.machine()}
        record = {"command": "python bench/trp_overhead.py", "machine": machine, "rows": [row]}
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
