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
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import Pairs, command, parted, pretrained
from secateur import criteria, measure, repair, score, trace
from secateur.core.axes import Axes
from secateur.core.plan import Plan
from secateur.core.protocols import Judge, Searcher
from secateur.data import BatchSettings, cifar10, loaders
from secateur.io import write_json
from secateur.measure import machine
from secateur.recipes.predictions import prediction
from secateur.search import AdaptiveSettings, PredictedSettings, Trial, adaptive, bisect, drive, predicted, previewing

ROOT = Path(__file__).resolve().parents[1]
RUNNING, TRIAL = 0.5, 0.1
"""Cross-entropy above the dense network's, in all and per step of the plain search."""
PLAIN = AdaptiveSettings(step=0.1, trial=TRIAL, running=RUNNING)
PREDICTIONS = ("reconstruction", "taylor", "group_fisher")


def mean_loss(model: nn.Module, batches: list[Any]) -> float:
    """Cross-entropy."""
    with torch.no_grad():
        return sum(float(F.cross_entropy(model(x), y, reduction="sum")) for x, y in batches) / sum(len(y) for _, y in batches)


def accuracy(model: nn.Module, batches: list[Any]) -> float:
    """The share of images whose label comes first."""
    with torch.no_grad():
        return sum(int((model(x).argmax(1) == y).sum()) for x, y in batches) / sum(len(y) for _, y in batches)


@dataclass(frozen=True, eq=False)
class Setting:
    """The network, its axes and scores, and images: to judge by, to re-estimate batch norm on, and to test on."""

    model: nn.Module
    axes: Axes
    scores: dict[str, Tensor]
    judged: Pairs
    settled: Pairs
    test: Pairs

    @property
    def judge(self) -> Judge:
        """The loss of a plan after batch norm was re-estimated."""
        return previewing(
            self.model,
            lambda trial: mean_loss(trial, self.judged),
            lambda trial: repair.batchnorm(self.model, trial, self.settled),
        )


def setting_of(arguments: argparse.Namespace) -> Setting:
    """Network and images of the command line."""
    model = pretrained(arguments.model, arguments.data)
    made = loaders(
        cifar10(arguments.data).normalised("imagenet"),
        BatchSettings(batch=128, test_batch=250, holdout=arguments.images + arguments.settle),
    )
    judged, settled = parted(made.holdout or [], [arguments.images, arguments.settle])
    test = [pair for _, pair in zip(range(arguments.test // 250), made.test, strict=False)]
    axes = trace(model, judged[0][0][:1])
    return Setting(model, axes, score(axes, criteria.l1(model, group=False)), judged, settled, test)


def changes(setting: Setting) -> Iterator[tuple[str, Searcher]]:
    """The plain search with one thing changed, and the binary one."""
    axes, scores = setting.axes, setting.scores
    forward = replace(PLAIN, order="forward")
    yield "plain, sequential", adaptive(axes, scores, replace(forward, schedule="sequential"))
    yield "plain, forward order", adaptive(axes, scores, forward)
    yield "binary", bisect(axes, scores, fall=RUNNING, tries=6)


def predictions(setting: Setting, share: float) -> Iterator[tuple[str, Searcher]]:
    """Predicted searches: under the limit and down to `share` of the parameters, and without parts of the method."""
    axes, scores = setting.axes, setting.scores
    known = {name: prediction(name, setting.model, axes, setting.settled, F.cross_entropy) for name in PREDICTIONS}
    settings = AdaptiveSettings(step=0.1, running=RUNNING)
    for name, predict in known.items():
        yield f"predicted by {name}", predicted(axes, scores, predict, settings, PredictedSettings())
        smaller = replace(settings, keep={"params": share})
        told = f"predicted by {name}, to the plain search's parameters"
        yield told, predicted(axes, scores, predict, smaller, PredictedSettings())
    for told, how in (("no skipping", PredictedSettings(doubt=0)), ("room 1", PredictedSettings(room=1.0))):
        yield f"predicted by reconstruction, {told}", predicted(axes, scores, known["reconstruction"], settings, how)


def row_of(setting: Setting, name: str, search: Searcher) -> dict[str, Any]:
    """What one search took and what it ends with."""
    trials: list[Trial] = []
    start = time.perf_counter()
    plan: Plan = drive(search, setting.judge, record=trials.append)
    seconds = time.perf_counter() - start
    small = plan.apply(setting.model)
    repair.batchnorm(setting.model, small, setting.settled)
    counted = measure.facts(small, setting.judged[0][0][:1])
    return {
        "search": name,
        "judgements": len(trials),
        "params": counted.params,
        "macs": counted.macs,
        "loss": round(setting.judge(plan), 5),
        "test": round(accuracy(small.eval(), setting.test), 5),
        "seconds": round(seconds, 1),
    }


def head_of(arguments: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    """What all rows share."""
    return {
        "command": command("search_ablation.py", FOLDER=arguments.data, FILE=arguments.out),
        "model": arguments.model,
        "seed": 0,
        "images": {"judged": arguments.images, "settled": arguments.settle, "test": 250 * len(setting.test)},
        "limits": {"running": RUNNING, "trial": TRIAL},
        "versions": machine.versions(),
        "hardware": machine.hardware(),
        "dense": {"loss": mean_loss(setting.model, setting.judged), "test": accuracy(setting.model, setting.test)},
    }


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
    setting = setting_of(arguments)
    head, rows = head_of(arguments, setting), []
    arguments.out.parent.mkdir(parents=True, exist_ok=True)

    def run(name: str, search: Searcher) -> dict[str, Any]:
        rows.append(row_of(setting, name, search))
        print(json.dumps(rows[-1]), flush=True)
        write_json(arguments.out, head | {"rows": rows})
        return rows[-1]

    share = run("plain", adaptive(setting.axes, setting.scores, PLAIN))["params"] / setting.axes.count("params")
    for name, search in (*changes(setting), *predictions(setting, share)):
        run(name, search)


if __name__ == "__main__":
    main()
