"""How many judgements a search makes, and what it ends with: plain and predicted, on ResNet-20 and CIFAR-10.

    python bench/search_ablation.py --data FOLDER [--model cifar_resnet20_a] [--images 512] [--out FILE]

Every search is judged by cross-entropy on held-out images after batch norm was re-estimated, under one running limit. A
judgement is one pass over `--settle` and one over `--images` images. Predicted searches run once under that limit, and once
down to the parameters the plain search ended at. Test accuracy is of the network as cut, with batch norm re-estimated.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import secateur
from secateur import criteria, measure, repair, score, trace
from secateur.core.plan import Plan
from secateur.core.protocols import Searcher
from secateur.data import BatchSettings, cifar10, loaders
from secateur.io.weights import load_weights
from secateur.recipes import zoo
from secateur.recipes.predictions import prediction
from secateur.search import AdaptiveSettings, PredictedSettings, Trial, adaptive, bisect, drive, predicted, previewing

ROOT = Path(__file__).resolve().parents[1]
RUNNING, TRIAL = 0.5, 0.1
"""Cross-entropy above the dense network's, in all and per step of the plain search."""


def mean_loss(model: nn.Module, batches: list[Any]) -> float:
    """Cross-entropy."""
    with torch.no_grad():
        return sum(float(F.cross_entropy(model(x), y, reduction="sum")) for x, y in batches) / sum(len(y) for _, y in batches)


def accuracy(model: nn.Module, batches: list[Any]) -> float:
    """The share of images whose label comes first."""
    with torch.no_grad():
        return sum(int((model(x).argmax(1) == y).sum()) for x, y in batches) / sum(len(y) for _, y in batches)


def main() -> None:
    """Run every search; write the file after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("SECATEUR_DATA"))
    parser.add_argument("--model", default="cifar_resnet20_a")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--settle", type=int, default=256)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "channel" / "search_ablation.json")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    path = Path(arguments.data) / "weights" / f"{arguments.model.replace('cifar_', 'cifar10_')}.safetensors"
    model = load_weights(path, zoo.build(arguments.model)).eval()
    made = loaders(
        cifar10(arguments.data).normalised("imagenet"),
        BatchSettings(batch=128, test_batch=250, holdout=arguments.images + arguments.settle),
    )
    x, y = torch.cat([x for x, _ in made.holdout]), torch.cat([y for _, y in made.holdout])  # type: ignore[union-attr]
    images = list(zip(x[: arguments.images].split(128), y[: arguments.images].split(128), strict=True))
    settle = list(zip(x[arguments.images :].split(128), y[arguments.images :].split(128), strict=True))
    test = [pair for _, pair in zip(range(arguments.test // 250), made.test, strict=False)]
    axes = trace(model, x[:1])
    scores = score(axes, criteria.l1(model, group=False))
    judge = previewing(model, lambda trial: mean_loss(trial, images), lambda trial: repair.batchnorm(model, trial, settle))
    plain = AdaptiveSettings(step=0.1, trial=TRIAL, running=RUNNING)
    predictions = {
        name: prediction(name, model, axes, settle, F.cross_entropy) for name in ("reconstruction", "taylor", "group_fisher")
    }
    value: dict[str, Any] = {
        "command": "python bench/search_ablation.py "
        + " ".join(sys.argv[1:]).replace(str(arguments.data), "FOLDER").replace(str(arguments.out), "FILE"),
        "model": arguments.model,
        "seed": 0,
        "images": {"judged": arguments.images, "settled": arguments.settle, "test": 250 * len(test)},
        "limits": {"running": RUNNING, "trial": TRIAL},
        "versions": {"secateur": secateur.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "hardware": {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "dense": {"loss": mean_loss(model, images), "test": accuracy(model, test)},
        "rows": [],
    }

    def run(name: str, search: Searcher) -> dict[str, Any]:
        trials: list[Trial] = []
        start = time.perf_counter()
        plan: Plan = drive(search, judge, record=trials.append)
        seconds = time.perf_counter() - start
        small = plan.apply(model)
        repair.batchnorm(model, small, settle)
        counted = measure.facts(small, x[:1])
        row = {
            "search": name,
            "judgements": len(trials),
            "params": counted.params,
            "macs": counted.macs,
            "loss": round(judge(plan), 5),
            "test": round(accuracy(small.eval(), test), 5),
            "seconds": round(seconds, 1),
        }
        value["rows"].append(row)
        print(json.dumps(row), flush=True)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.with_suffix(".part").write_text(json.dumps(value, indent=1) + "\n")
        os.replace(arguments.out.with_suffix(".part"), arguments.out)
        return row

    first = run("plain", adaptive(axes, scores, plain))
    share = first["params"] / axes.count("params")
    changes: dict[str, Callable[[], Searcher]] = {
        "plain, sequential": lambda: adaptive(
            axes, scores, AdaptiveSettings(step=0.1, trial=TRIAL, running=RUNNING, schedule="sequential", order="forward")
        ),
        "plain, forward order": lambda: adaptive(
            axes, scores, AdaptiveSettings(step=0.1, trial=TRIAL, running=RUNNING, order="forward")
        ),
        "binary": lambda: bisect(axes, scores, fall=RUNNING, tries=6),
    }
    for name, make in changes.items():
        run(name, make())
    for name, predict in predictions.items():
        for keep in ({}, {"params": share}):
            told = f"predicted by {name}" + (", to the plain search's parameters" if keep else "")
            settings = AdaptiveSettings(step=0.1, running=RUNNING, keep=keep)
            run(told, predicted(axes, scores, predict, settings, PredictedSettings()))
    settings = AdaptiveSettings(step=0.1, running=RUNNING)
    run("predicted by reconstruction, no skipping", predicted(
        axes, scores, predictions["reconstruction"], settings, PredictedSettings(doubt=0)))  # fmt: skip
    run("predicted by reconstruction, room 1", predicted(
        axes, scores, predictions["reconstruction"], settings, PredictedSettings(room=1.0)))  # fmt: skip


if __name__ == "__main__":
    main()
