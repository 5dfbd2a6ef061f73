"""Budgets on milliseconds: what the table of layers says, and what the cut network takes.

    python bench/latency_budget.py [--networks resnet20,vgg16,mobilenet_v2,vit] [--shares 0.7,0.5] [--batch 1]

Each network is cut by L2 to each share of its milliseconds, by the table alone and by the clock (`allocate.measured`), which
asks the table for other shares until the cut network is fast enough; then it is timed afresh, in turns with the dense one. A
last row per network asks for milliseconds, parameters and memory of activations together. Random weights, one thread. Written
to bench/results/latency_budget.json; run it on a machine that does nothing else. The page is made by docs/make/channel.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import command
from secateur import allocate, criteria, score, trace
from secateur.core.axes import Axes
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.io import write_json
from secateur.io.vision import torchvision
from secateur.measure import compare, facts, machine, measure_table, peak_memory
from secateur.recipes import zoo

RESULT = Path(__file__).parent / "results" / "latency_budget.json"
TOGETHER = {"latency": 0.7, "params": 0.6, "memory": 0.9}


def vit() -> nn.Module:
    """A vision transformer for 32 x 32 images: 4 layers, 4 heads, width 128."""
    return torchvision().models.VisionTransformer(
        image_size=32, patch_size=4, num_layers=4, num_heads=4, hidden_dim=128, mlp_dim=512, num_classes=10
    )


NETWORKS: dict[str, Any] = {
    "resnet20": lambda: zoo.build("cifar_resnet20_a"),
    "vgg16": lambda: zoo.build("vgg16_bn_cifar"),
    "mobilenet_v2": lambda: torchvision().models.mobilenet_v2(num_classes=10),
    "vit": vit,
}


def budgets(model: nn.Module, example: torch.Tensor, shares: list[float], repeats: int) -> list[dict[str, Any]]:
    """The rows of one network."""
    axes, table = trace(model, example[:1]), measure_table(model, example)
    scores = score(axes, criteria.l2(model))
    costs = {
        "latency": allocate.latency_ms(model, axes, example, table),
        "memory": allocate.activation_bytes(model, axes, example),
    }

    def planned(keep: Mapping[str, float]) -> Plan:
        return allocate.budget(axes, scores, keep, costs={k: v for k, v in costs.items() if k in keep}, normalise="energy")

    def timed(plan: Plan, rounds: int = repeats) -> float:
        taken = compare({"dense": model, "small": plan.apply(model)}, example, repeats=rounds, pick=min)
        return taken["small"] / taken["dense"]

    rows = []
    for keep in ({"latency": share} for share in shares):
        rows += [told(model, axes, (keep, "table"), lambda keep=keep: planned(keep), (costs, timed), example)]
        by_clock = lambda keep=keep: allocate.measured(lambda s: planned({"latency": s}), keep["latency"], timed)  # noqa: E731
        rows += [told(model, axes, (keep, "clock"), by_clock, (costs, timed), example)]
    together = lambda: allocate.measured(lambda s: planned(TOGETHER | {"latency": s}), TOGETHER["latency"], timed)  # noqa: E731
    return [*rows, told(model, axes, (TOGETHER, "clock"), together, (costs, timed), example)]


def told(
    model: nn.Module, axes: Axes, asked: tuple[Mapping[str, float], str], make: Any, known: Any, example: torch.Tensor
) -> dict[str, Any]:
    """What was asked for, what the table says and what came of it."""
    start, (costs, timed) = time.perf_counter(), known
    row: dict[str, Any] = {"keep": dict(asked[0]), "by": asked[1]}
    try:
        plan = make()
    except SecateurError as error:
        return row | {"refused": str(error)}
    row["seconds"] = round(time.perf_counter() - start, 2)
    widths, small = {axis: after for axis, (_, after) in plan.widths().items()}, plan.apply(model)
    dense, cut = facts(model, example[:1]), facts(small, example[:1])
    memory = peak_memory(small, example) / peak_memory(model, example)
    row |= {"table": costs["latency"](widths) / costs["latency"]({}), "measured": timed(plan)}
    return row | {"macs": cut.macs / dense.macs, "params": cut.params / dense.params, "memory": memory}


def main() -> None:
    """Time everything and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--shares", default="0.7,0.5")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    start, found = time.perf_counter(), {}
    for name in options.networks.split(","):
        torch.manual_seed(options.seed)
        model, example = NETWORKS[name]().eval(), torch.randn(options.batch, 3, 32, 32)
        found[name] = budgets(model, example, [float(word) for word in options.shares.split(",")], options.repeats)
        for row in found[name]:
            print(name, row, flush=True)
    value = {
        "command": command("latency_budget.py", FILE=options.out if options.out != RESULT else None),
        "networks": found,
        "batch": options.batch,
        "seed": options.seed,
        "seconds": round(time.perf_counter() - start, 1),
        "versions": machine.versions(),
        "hardware": machine.hardware("cpu", 1),
    }
    write_json(options.out, value)


if __name__ == "__main__":
    main()
