"""Channel pruning without any retraining, on CIFAR-10 from published weights: every criterion with every repair.

    python bench/channel.py cifar_resnet20_a --data FOLDER [--speedups 1.5,2.1,2.55] [--criteria l1,cap] [--test 10000]

FOLDER holds CIFAR-10 and weights/. Rows that bench/results/channel/MODEL.json has already are not done again. Scores and
repairs see `--calibration` training images, without augmentation; `--holdout` other training images tell which row is best
(the networks were trained on all of them); test images are for reporting alone. Only channels
inside blocks are cut: those of the residual stream cost most without retraining, and the peer's pruner is given the same ones.
Torch-Pruning's criteria run through its own pruner, global ranks, on the same images; what it prunes is read off and repaired
like ours.

`--distil STEPS` adds to each speedup one row, unless one of as many steps is there: that which is best on the held-out
images, trained without labels towards the original's block outputs (`repair.distil`) on `--distil-images` further training
images.

`--repairs two_sided` fits both sides of every cut, on `--two-sided-images` further training images, as they are, in
`--rounds`; its rows are judged on all test images too, for report alone. "elimination of both sides" is always repaired so.

The methods are in channel_methods.py. Evaluation runs in bfloat16, the dense network too. docs/results/channel.md is made by
docs/make/channel.py.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from channel_methods import BOTH, EVERY, SAMPLE, WHOLE, Bench, plans
from common import command, parted, pretrained
from secateur import measure, trace
from secateur.core.axes import Axes
from secateur.core.plan import Plan
from secateur.core.protocols import Batches
from secateur.data import BatchSettings, cifar10, loaders
from secateur.io import write_json
from secateur.measure import machine
from secateur.recipes.reconstruct import repair_by_name
from secateur.repair import batchnorm, distil, two_sided

ROOT = Path(__file__).resolve().parents[1]
REPAIRS = ("none", "batchnorm", "compensation", "least_squares", "least_squares+batchnorm")
FURTHER = ("two_sided",)
"""Repairs that take more images than the others, and are asked for by name."""


def accuracy(model: nn.Module, batches: Batches) -> float:
    """The share of images whose label comes first, in bfloat16."""
    network = copy.deepcopy(model).eval().to(memory_format=torch.channels_last).bfloat16()  # type: ignore[call-overload]
    hits = total = 0
    with torch.inference_mode():
        for x, y in batches:
            output = network(x.bfloat16().to(memory_format=torch.channels_last))
            hits, total = hits + int((output.argmax(1) == y).sum()), total + len(y)
    return hits / total


def bench_of(arguments: argparse.Namespace) -> Bench:
    """Network and images."""
    model = pretrained(arguments.model, arguments.data)
    held = arguments.calibration + arguments.holdout
    made = loaders(
        cifar10(arguments.data).normalised("imagenet"),
        BatchSettings(batch=128, test_batch=250, holdout=held, seed=arguments.seed),
    )
    calibration, holdout = parted(made.holdout or [], [arguments.calibration, arguments.holdout])
    test = [pair for _, pair in zip(range(arguments.test // 250), made.test, strict=False)]
    plain = BatchSettings(batch=128, holdout=held, augment=False, seed=arguments.seed)
    source = loaders(cifar10(arguments.data).normalised("imagenet"), plain).train
    further = [pair for _, pair in zip(range(getattr(arguments, "two_sided_images", 0) // 128), source, strict=False)]
    axes = trace(model, test[0][0][:1])
    inside = [axis if axis.name.endswith(".conv1") else axis.freeze("a residual stream, left whole here") for axis in axes]
    axes = Axes(tuple(inside), axes.fingerprint, axes.terms, axes.notes)
    return Bench(model, axes, calibration, holdout, test, further, made.test, getattr(arguments, "rounds", 1))


def row_of(bench: Bench, plan: Plan, small: nn.Module) -> dict[str, Any]:
    """What is counted and judged."""
    counted = measure.facts(small, bench.test[0][0][:1])
    return {
        "macs": counted.macs,
        "params": counted.params,
        "holdout": round(accuracy(small, bench.holdout), 5),
        "test": round(accuracy(small, bench.test), 5),
    }


def settled(bench: Bench, arguments: argparse.Namespace, count: int = 16) -> dict[str, Any]:
    """Test accuracy of the dense network with statistics of batch norms anew, of plain and of augmented training images."""
    found: dict[str, Any] = {"images": 128 * count}
    for name, augment in (("plain", False), ("augmented", True)):
        how = BatchSettings(batch=128, holdout=arguments.calibration + arguments.holdout, augment=augment, seed=arguments.seed)
        model = copy.deepcopy(bench.model)
        batchnorm(bench.model, model, loaders(cifar10(arguments.data).normalised("imagenet"), how).train, limit=count)
        found[name] = round(accuracy(model, bench.test), 5)
    return found


def fast(value: Any) -> Any:
    """A network or images with channels innermost, as oneDNN has its kernels for."""
    return value.to(memory_format=torch.channels_last)


def distilled(bench: Bench, arguments: argparse.Namespace, known: list[dict[str, Any]], done: Callable[[], None]) -> None:
    """For each speedup, the repaired row that is best on held-out images, distilled; appended to `known`."""
    plain = BatchSettings(batch=128, holdout=arguments.calibration + arguments.holdout, augment=False, seed=arguments.seed)
    source = loaders(cifar10(arguments.data).normalised("imagenet"), plain).train
    images = [(fast(x), y) for _, (x, y) in zip(range(arguments.distil_images // 128), source, strict=False)]
    for speedup in map(float, arguments.speedups.split(",")):
        choice = [r for r in known if r["speedup"] == speedup and r["repair"] in REPAIRS[1:]]
        best = max(choice, key=lambda row: row["holdout"], default=None)
        if best is None or ("distil", speedup, best["criterion"], arguments.distil) in {
            (r["repair"], r["speedup"], r["criterion"], r.get("steps")) for r in known
        }:
            continue
        _, plan, _ = next(plans(best["criterion"], bench, [1 / speedup], arguments.seed))
        small, start = plan.apply(bench.model), time.perf_counter()
        repair_by_name(best["repair"], plan, sample=SAMPLE)(bench.model, small, bench.calibration)
        small = fast(small)
        distil(fast(copy.deepcopy(bench.model)), small, images, steps=arguments.distil, precision="bf16")
        row = {"criterion": best["criterion"], "repair": "distil", "speedup": speedup} | row_of(bench, plan, small)
        how = {"after": best["repair"], "steps": arguments.distil, "images": 128 * len(images)}
        known.append(row | how | {"seconds": {"repair": round(time.perf_counter() - start, 2)}})
        print(json.dumps(known[-1]), flush=True)
        done()


def rows(bench: Bench, arguments: argparse.Namespace, known: list[dict[str, Any]], done: Callable[[], None]) -> None:
    """Every row that is not known yet, appended to `known`."""
    speedups = [float(word) for word in arguments.speedups.split(",")]
    for name in arguments.criteria.split(",") if arguments.criteria else EVERY:
        have = {(row["speedup"], row["repair"]) for row in known if row["criterion"] == name}
        own = ["own"] if name in WHOLE and name.startswith("whole") else ["two_sided"] if name in BOTH else []
        repairs = own or arguments.repairs.split(",")
        missing = [s for s in speedups if any((s, repair) not in have for repair in repairs)]
        if not missing:
            continue
        start = time.perf_counter()
        for (_, plan, made), speedup in zip(plans(name, bench, [1 / s for s in missing], arguments.seed), missing, strict=True):
            chosen = time.perf_counter() - start
            for repair in repairs:
                begun = time.perf_counter()
                small = made if made is not None else plan.apply(bench.model)
                if repair != "none" and not own:
                    batches = bench.further if repair in FURTHER else bench.calibration
                    how = partial(two_sided, plan=plan, sample=SAMPLE, rounds=bench.rounds) if repair in FURTHER else None
                    (how or repair_by_name(repair, plan, sample=SAMPLE))(bench.model, small, batches)
                seconds = {"select": round(chosen, 2), "repair": round(time.perf_counter() - begun, 2)}
                row = {"criterion": name, "repair": repair, "speedup": speedup} | row_of(bench, plan, small)
                if repair in FURTHER:
                    images = sum(len(x) for x, _ in bench.further)
                    row |= {"images": images, "rounds": bench.rounds, "test_all": round(accuracy(small, bench.every), 5)}
                known.append(row | {"seconds": seconds})
                print(json.dumps(known[-1]), flush=True)
                done()
            start = time.perf_counter()


def main() -> None:
    """Fill the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", default=os.environ.get("SECATEUR_DATA"))
    parser.add_argument("--speedups", default="1.5,2.1,2.55")
    parser.add_argument("--criteria", default="")
    parser.add_argument("--repairs", default=",".join(REPAIRS))
    parser.add_argument("--calibration", type=int, default=1024)
    parser.add_argument("--holdout", type=int, default=1024)
    parser.add_argument("--test", type=int, default=10000)
    parser.add_argument("--two-sided-images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--distil", type=int, default=0, metavar="STEPS")
    parser.add_argument("--distil-images", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    path = arguments.out or ROOT / "bench" / "results" / "channel" / f"{arguments.model}.json"
    value = json.loads(path.read_text()) if path.exists() else {"rows": [], "seconds": 0.0}
    torch.manual_seed(arguments.seed)
    bench, start, before = bench_of(arguments), time.perf_counter(), value["seconds"]
    value |= {
        "command": command("channel.py", FOLDER=arguments.data, FILE=arguments.out),
        "model": arguments.model,
        "seed": arguments.seed,
        "images": {"calibration": arguments.calibration, "holdout": arguments.holdout, "test": 250 * len(bench.test)},
        "versions": machine.versions(),
        "hardware": machine.hardware(),
    }
    if "dense" not in value:
        value["dense"] = row_of(bench, bench.axes.plan({}), bench.model)
    asked = {*arguments.repairs.split(","), *(arguments.criteria or ",".join(EVERY)).split(",")}
    if asked & set(FURTHER + BOTH) and "test_all" not in value["dense"]:
        value["dense"]["test_all"] = round(accuracy(bench.model, bench.every), 5)
    if "dense_batchnorm" not in value:
        value["dense_batchnorm"] = settled(bench, arguments)

    def done() -> None:
        value["seconds"] = round(before + time.perf_counter() - start, 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)

    done()
    rows(bench, arguments, value["rows"], done)
    if arguments.distil:
        distilled(bench, arguments, value["rows"], done)
    done()


if __name__ == "__main__":
    main()
