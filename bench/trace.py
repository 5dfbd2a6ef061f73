"""Trace, plan and apply at half the MACs: secateur against Torch-Pruning 1.6.1, wall time, peak memory and law-4 error.

Every measurement is a process of its own; the tools take turns; figures are medians of `--repeats` rounds. Torch-Pruning
is given a uniform ratio found beforehand that leaves half the MACs, its fastest use: one step, no search.

    python bench/trace.py --out bench/results/trace.json
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import resident
from secateur.io import write_json
from secateur.measure import machine

FIVE = ("resnet50", "vgg16_bn", "mobilenet_v2", "densenet121", "vit_b_16")
MORE = (
    "resnet18", "resnet101", "wide_resnet50_2", "resnext50_32x4d", "vgg11_bn", "vgg19_bn", "alexnet", "squeezenet1_1",
    "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet1_0", "efficientnet_b0", "regnet_x_400mf", "regnet_y_400mf",
    "densenet169", "googlenet",
)  # fmt: skip
RATIO = {"mobilenet_v2": 0.32, "vit_b_16": 0.8}
"""Torch-Pruning's channel ratio that leaves about half the MACs (0.3 unless given); the share reached is printed."""


TOOLS = ("secateur", "torch-pruning")
ALONE = ("trace alone", "torch.export alone")


def build(name: str) -> nn.Module:
    """A torchvision classifier with random weights."""
    from secateur.io.vision import torchvision
    from secateur.testing import awake

    torch.manual_seed(0)
    return awake(torchvision().models.get_model(name, weights=None).eval())


def ours(model: nn.Module, x: torch.Tensor) -> tuple[nn.Module, Any]:
    """The path a user types; in place, as Torch-Pruning does it."""
    import secateur

    axes = secateur.trace(model, x)
    scores = secateur.score(axes, secateur.criteria.l2(model))
    plan = secateur.allocate.budget(axes, scores, {"macs": 0.5})
    return plan.apply_(model), plan


def theirs(model: nn.Module, x: torch.Tensor, ratio: float) -> tuple[nn.Module, object]:
    """Torch-Pruning as its README uses it; it prunes the model it is given."""
    import torch_pruning as tp

    heads = {m: m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    last = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    importance = tp.importance.MagnitudeImportance(p=2)
    pruner = tp.pruner.MagnitudePruner(model, x, importance, pruning_ratio=ratio, ignored_layers=last, num_heads=heads)
    read: list[tuple[nn.Module, list[int]]] = []
    for group in pruner.step(interactive=True):
        read += [(d.target.module, list(i)) for d, i in group if d.handler.__name__ == "prune_in_channels"]
        group.prune()
    return model, read


def one(tool: str, name: str) -> dict[str, float | None]:
    """One measurement in this process."""
    from secateur.measure.count import macs

    model, x = build(name), torch.randn(1, 3, 224, 224)
    warm = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    run = ours if tool == "secateur" else (lambda m, e: theirs(m, e, RATIO.get(name, 0.3)))
    run(warm.eval(), torch.randn(1, 3, 16, 16))
    dense = macs(model, x)
    Path("/proc/self/clear_refs").write_text("5")
    before, start = resident("VmHWM"), time.perf_counter()
    small, _ = run(model, x)
    seconds, memory = time.perf_counter() - start, resident("VmHWM") - before
    return {"seconds": seconds, "memory": memory, "macs_share": macs(small, x) / dense, "law4": law4(tool, name)}


def law4(tool: str, name: str) -> float | None:
    """Masked against cut, in float64, so that what is left is not the order in which float32 adds; None where there is none."""
    from secateur.testing import distance

    x = torch.randn(1, 3, 224, 224, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if tool == "secateur":
        small, plan = ours(build(name).double(), x)
        return distance(plan.preview(build(name).double()).eval(), small, x)
    error = masked_error(name, x)
    return error if error is not None and isfinite(error) else None  # a masked model whose output is zero


def alone(tool: str, name: str) -> dict[str, float | None]:
    """The second of two calls of a whole trace, or of `torch.export` (non-strict), on which a trace might have stood."""
    import secateur

    model, x = build(name), torch.randn(1, 3, 224, 224)
    torch.backends.mha.set_fastpath_enabled(False)
    for _ in range(2):
        start = time.perf_counter()
        if tool == "trace alone":
            secateur.trace(model, x)
        else:
            torch.export.export(model, (x,), strict=False)
        seconds = time.perf_counter() - start
    return {"seconds": seconds}


def masked_error(name: str, x: torch.Tensor) -> float | None:
    """Torch-Pruning's cut model against the original with the weights that read pruned channels zeroed.

    None for transformers: it prunes through LayerNorm, where no masked model equals the cut one; and for grouped
    convolutions, whose indices it counts within a group.
    """
    from secateur.testing import distance

    model = build(name).to(x.dtype)
    grouped = [m for m in model.modules() if isinstance(m, nn.Conv2d) and 1 < m.groups < m.in_channels]
    if grouped or any(isinstance(m, nn.LayerNorm) for m in model.modules()):
        return None
    masked = copy.deepcopy(model)
    twin = dict(zip(model.modules(), masked.modules(), strict=True))
    width = {m: torch.arange(m.weight.shape[1]) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    small, read = theirs(model, x, RATIO.get(name, 0.3))
    with torch.no_grad():
        for module, gone in read:
            entries = width[module]
            twin[module].weight[:, entries[gone]] = 0
            keep = torch.ones(len(entries), dtype=torch.bool)
            keep[gone] = False
            width[module] = entries[keep]
    return distance(masked, small, x)


def measure(names: Sequence[str], repeats: int, out: Path | None) -> dict[str, dict[str, dict[str, float | None]]]:
    """Medians by model and tool; what `out` holds already is not measured again."""
    head = {**machine.record(), "repeats": repeats}
    table = json.loads(out.read_text())["models"] if out and out.exists() else {}
    for name in names:
        if name in table:
            print(line(name, table[name]), flush=True)
            continue
        rows: dict[str, list[dict]] = {tool: [] for tool in (TOOLS + ALONE if name in FIVE else TOOLS)}
        for _ in range(repeats):
            for tool in rows:
                command = [sys.executable, __file__, "--one", tool, name]
                printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                rows[tool].append(json.loads(printed.splitlines()[-1]))
        table[name] = {tool: _median(found) for tool, found in rows.items()}
        print(line(name, table[name]), flush=True)
        if out:
            write_json(out, {**head, "models": table})
    return table


def _median(rows: list[dict]) -> dict[str, float | None]:
    return {k: None if rows[0][k] is None else statistics.median(r[k] for r in rows) for k in rows[0]}


def line(name: str, row: dict[str, dict[str, float | None]]) -> str:
    """One row of the printed table."""
    a, b = row["secateur"], row["torch-pruning"]
    errors = " ".join("-" if t["law4"] is None else f"{t['law4']:.0e}" for t in (a, b))
    ratio = f"{a['seconds'] / b['seconds']:6.2f} {a['memory'] / max(b['memory'], 1):6.2f}"
    macs = f"{a['macs_share']:.3f} {b['macs_share']:.3f}"
    times = f"{a['seconds']:6.3f} s {b['seconds']:6.3f} s  ratio {ratio}"
    export = f"  export / trace {row[ALONE[1]]['seconds'] / row[ALONE[0]]['seconds']:.1f}" if ALONE[0] in row else ""
    return f"{name:18s} {times}  MACs {macs}  law 4: {errors}{export}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2, metavar=("TOOL", "MODEL"))
    parser.add_argument("--law4", nargs="+", metavar="MODEL", help="measure that column of --out again, and nothing else")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--all", action="store_true", help="21 networks in place of five")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if options.one:
        run = alone if options.one[0] in ALONE else one
        print(json.dumps(run(*options.one)))
        return
    if options.law4:
        record = json.loads(options.out.read_text())
        for name in options.law4:
            for tool in TOOLS:
                record["models"][name][tool]["law4"] = law4(tool, name)
            print(line(name, record["models"][name]), flush=True)
        write_json(options.out, record)
        return
    print("model               ours     theirs   time, memory (ours / theirs)")
    table = measure(FIVE + MORE if options.all else FIVE, options.repeats, options.out)
    for what in ("seconds", "memory"):
        ratios = [row["secateur"][what] / max(row["torch-pruning"][what], 1e-9) for row in table.values()]
        print(f"geometric mean of {what}, ours / theirs: {statistics.geometric_mean(ratios):.2f}; worst {max(ratios):.2f}")


if __name__ == "__main__":
    main()
