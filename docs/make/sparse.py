"""Write docs/results/sparse.md from the run files of bench/sparse_training.py and bench/rank_overhead.py.

python docs/make/sparse.py
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "src")]

from sparse_training import METHODS  # noqa: E402

RUNS = ROOT / "bench" / "results" / "sparse"
OVERHEAD = ROOT / "bench" / "results" / "rank_overhead.json"
PAGE = ROOT / "docs" / "results" / "sparse.md"
NAMES = {
    "digits": "Handwritten digits, a residual network of 78 thousand weights",
    "resnet20": "ResNet-20",
    "resnet56": "ResNet-56",
    "cifar_resnet20_a": "ResNet-20",
    "cifar_resnet56_a": "ResNet-56",
    "vgg19_bn_cifar": "VGG-19",
}
HEAD = """# Sparse training, method against method

Written by `python docs/make/sparse.py` from [run files](../../bench/results/sparse); by hand nothing.

Pretrained networks, one short schedule for all methods of a table: {schedule}. Gradual methods share one cubic ramp to
half of training. So short a schedule tells methods apart and says nothing of what they reach in the end: entries for
full schedules are in `bench/device_queue.toml`. Accuracy is of all test images (10,000 of CIFAR-10, 359 digits), once,
after the last step. Rank: mean numerical rank of the weight matrices (outputs by inputs times kernel); energy rank:
mean number of singular values that hold 80 % of the energy. Empty: outputs and input channels of a weight without any
entry, summed over all weights. Numbers are means over seeds.
"""
LENGTHS = """## Regrowing on short schedules

{name}, {keep:g} % of the weights gone, on a schedule of half the steps and on the one above ([short
runs](../../bench/results/sparse/short)). A weight that grows begins at zero and has the steps until the next change of masks to
matter; what was dropped for it had been trained. The published share of 0.3 per change is made for tens of thousands of steps.
Two rows above tell growth and rank term apart: "GMP with growth (lambda = 0)" grows as RPG B does without the rank term, and "a
fiftieth regrown" has the rank term with next to no growth. The lines below each table say what either has over GMP.

"""


def runs() -> list[dict[str, Any]]:
    """Every run file; those of the folder "short" say so."""
    files = sorted(RUNS.glob("*.json")), sorted((RUNS / "short").glob("*.json"))
    return [{"short": short, **json.loads(path.read_text())} for short in (False, True) for path in files[short]]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, the first column to the left."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows]) + "\n"


def mean(rows: list[dict[str, Any]], key: str) -> float:
    """The mean over seeds."""
    return statistics.mean(row[key] for row in rows)


def accuracy(rows: list[dict[str, Any]], dense: float | None) -> tuple[str, str]:
    """Mean and, with several seeds, range of the accuracy in per cent; the difference to the dense control."""
    values = [100 * row["accuracy"] for row in rows]
    spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}", "-" if dense is None else f"{statistics.mean(values) - 100 * dense:+.2f}"


def section(model: str, keep: float, found: list[dict[str, Any]]) -> str:
    """One network at one share."""
    controls = [row for row in found if row["model"] == model and row["method"] == "dense"]
    dense = mean(controls, "accuracy") if controls else None
    head = ["method", "seeds", "accuracy %", "to dense", "rank", "energy rank", "empty rows", "empty columns"]
    rows = []
    for method, (said, _) in METHODS.items():
        own = [row for row in found if (row["model"], row["keep"], row["method"]) == (model, keep, method)]
        if own:
            numbers = [f"{mean(own, 'mean_rank'):.1f}", f"{mean(own, 'mean_energy_rank'):.1f}"]
            empty = [f"{mean(own, key):.0f}" for key in ("empty_rows", "empty_columns")]
            rows.append([said, str(len(own)), *accuracy(own, dense), *numbers, *empty])
    title = f"## {NAMES[model]}, {100 * (1 - keep):g} % of the weights gone\n\n"
    return title + markdown(head, rows) + beside(model, keep, found)


GENTLE = """
With a fiftieth regrown in place of 0.3 the rank is above GMP's wherever it was run, and accuracy is GMP's or above it, to
{noise} points, the standard error of the test images. For short schedules:
`secateur.RPG(..., growth=Growth(drop=0.02, skip_step=False))`.
"""
NOISE = 0.5
"""Points: the standard error of an accuracy of 50 to 85 % on 10,000 images."""
BASES = {
    **dict.fromkeys(("rpg_b", "rpg_b_gentle", "rpg_0", "rpg_a", "occupancy", "gmp_occupancy"), "gmp"),
    **dict.fromkeys(("rpg_st3", "rpg_st3_mild"), "st3"),
    **dict.fromkeys(("rpg_acdc", "rpg_acdc_mild"), "acdc"),
}
"""What a rank-aware method adds to."""


def over(method: str, model: str, keep: float, found: list[dict[str, Any]]) -> tuple[float, float] | None:
    """Points of accuracy and ranks that `method` has over its base, mean over the seeds both were run with."""
    at = {(row["method"], row["seed"]): row for row in found if (row["model"], row["keep"]) == (model, keep)}
    base = BASES[method]
    pairs = [(row, at[base, seed]) for (own, seed), row in at.items() if own == method and (base, seed) in at]
    if not pairs:
        return None
    points = statistics.mean(100 * (row["accuracy"] - other["accuracy"]) for row, other in pairs)
    return points, statistics.mean(row["mean_rank"] - other["mean_rank"] for row, other in pairs)


def beside(model: str, keep: float, found: list[dict[str, Any]]) -> str:
    """Accuracy and rank of the methods that look at rank or occupancy less those of the method they build on, seed by seed."""
    known = [(method, over(method, model, keep, found)) for method in BASES]
    lines = [
        f"* {METHODS[method][0]} less {METHODS[BASES[method]][0]}: {gap[0]:+.2f} points of accuracy, {gap[1]:+.1f} of rank.\n"
        for method, gap in known
        if gap
    ]
    return "\n" + "".join(lines) if lines else ""


def lengths(short: list[dict[str, Any]], found: list[dict[str, Any]]) -> str:
    """What each method loses to GMP on a schedule of half the length."""
    both = []
    for row in short:
        same = [other for other in found if all(other[key] == row[key] for key in ("model", "method", "keep", "seed"))]
        both += [(row, same[0])] if same else []
    base = {row["keep"]: (row, other) for row, other in both if row["method"] == "gmp"}
    if not base:
        return ""
    rows = []
    for method, (said, _) in METHODS.items():
        for row, other in both:
            if row["method"] == method and row["keep"] in base:
                gaps = [
                    100 * (one["accuracy"] - gmp["accuracy"]) for one, gmp in zip((row, other), base[row["keep"]], strict=True)
                ]
                values = [f"{100 * one['accuracy']:.2f}" for one in (row, other)]
                rows.append(
                    [said, *(part for pair in zip(values, (f"{gap:+.2f}" for gap in gaps), strict=True) for part in pair)]
                )
    one, other = next(iter(base.values()))
    head = ["method", f"{one['steps']} steps", "to GMP", f"{other['steps']} steps", "to GMP"]
    text = LENGTHS.format(keep=100 * (1 - one["keep"]), name=NAMES[one["model"]]) + markdown(head, rows)
    gentle = [
        (row["model"], row["keep"], gap)
        for row in found
        if row["method"] == "rpg_b_gentle" and (gap := over("rpg_b_gentle", row["model"], row["keep"], found))
    ]
    if gentle and all(points >= -NOISE and rank > 0 for _, _, (points, rank) in gentle):
        text += GENTLE.format(noise=NOISE)
    return text


def schedule(found: list[dict[str, Any]]) -> str:
    """What the runs of each network share."""
    parts = []
    for model in sorted({row["model"] for row in found if row["method"] != "dense"}):
        row = next(row for row in found if row["model"] == model and row["method"] != "dense")
        parts.append(f"{NAMES[model]} {row['steps']} steps of {row['batch']} images at rate {row['lr']}, {row['precision']}")
    return "; ".join(parts)


def controls(found: list[dict[str, Any]]) -> str:
    """The dense networks after the same steps, means over seeds."""
    told = []
    for model in sorted({row["model"] for row in found if row["method"] == "dense"}):
        rows = [row for row in found if (row["model"], row["method"]) == (model, "dense")]
        told.append(f"{NAMES[model]} {100 * mean(rows, 'accuracy'):.2f} % (rank {mean(rows, 'mean_rank'):.1f})")
    return f"Dense networks trained for the same steps: {'; '.join(told)}.\n" if told else ""


def overhead() -> str:
    """What the rank term costs."""
    if not OVERHEAD.exists():
        return ""
    table = json.loads(OVERHEAD.read_text())
    head = [
        "network",
        "batch",
        "in growth, every 100 steps",
        "in each step, decomposed every 10",
        "in each step, held for 25",
        "in each step, decomposed each time",
    ]
    keys = ("share_in_growth", "share_in_each_step", "share_in_each_step_held", "share_in_each_step_decomposed_each_time")
    rows = [
        [
            NAMES.get(row["model"], row["model"]),
            str(row["batch"]),
            *(f"{100 * row[key]:.3g} %" if key in row else "-" for key in keys),
        ]
        for row in table["rows"]
    ]
    words = "Share of training time ([result](../../bench/results/rank_overhead.json), one thread):\n\n"
    return "## What the rank term costs over GMP\n\n" + words + markdown(head, rows)


def machines(found: list[dict[str, Any]]) -> str:
    """Where it ran."""
    kinds = sorted(
        {f"{r['hardware']['cpu']}, {r['hardware']['threads']} thread, torch {r['versions']['torch']}" for r in found}
    )
    return f"\nRan on: {'; '.join(kinds)}; {sum(row['seconds'] for row in found) / 3600:.1f} hours in all.\n"


def page(every: list[dict[str, Any]]) -> str:
    """The page of these runs."""
    found, short = ([row for row in every if row.get("short", False) == wanted] for wanted in (False, True))
    parts = [HEAD.format(schedule=schedule(found)), controls(found)]
    for model in sorted({row["model"] for row in found}):
        shares = sorted({row["keep"] for row in found if row["model"] == model and row["method"] != "dense"}, reverse=True)
        parts += [section(model, keep, found) for keep in shares]
    return "\n".join(part for part in [*parts, lengths(short, found), overhead()] if part) + machines(every)


def main() -> None:
    """Write the page."""
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(runs()))


if __name__ == "__main__":
    main()
