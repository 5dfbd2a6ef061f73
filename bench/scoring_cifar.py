"""Scoring Nets on pretrained CIFAR-10 networks, without retraining: trained on ResNet-20, applied to others untouched.

python bench/scoring_cifar.py --data FOLDER [--images 4000] [--networks cifar_resnet20_a cifar_resnet56_a]

2.1 times fewer MACs, batch norms re-estimated on training images. Writes bench/results/scoring_net_cifar.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from common import command, pretrained
from secateur import allocate, criteria, data, repair, score, trace
from secateur.core.axes import Axes
from secateur.core.plan import Plan
from secateur.criteria.scoring import ScorerSettings, ScorerStage, ScoringNet, Task, fit_
from secateur.data import BatchSettings, loaders
from secateur.io import read_json, save_scorer, write_json
from secateur.measure import machine
from secateur.train import evaluate

OUT = Path(__file__).parent / "results" / "scoring_net_cifar.json"
SHARE = 1 / 2.1


def ranked(axes: Axes, scores: Any, share: float) -> Plan:
    """Scores as they are, across the network."""
    return allocate.budget(axes, scores, {"macs": share}, normalise="none", floor=0.1)


def by_mean(axes: Axes, scores: Any, share: float) -> Plan:
    """Scores over the mean of their axis."""
    return allocate.budget(axes, scores, {"macs": share}, normalise="mean", floor=0.1)


def main() -> None:
    """Network after network; the net trained on the first scores the rest."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=10000, help="of the test set")
    parser.add_argument("--batches", type=int, default=20, help="of 64 training images each")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--networks", nargs="+", default=["cifar_resnet20_a", "cifar_resnet56_a"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    whole = data.named("cifar10", asked.data).normalised("imagenet")
    made = loaders(whole, BatchSettings(batch=64, test_batch=250, holdout=0, augment=False, seed=0))
    plain = [batch for batch, _ in zip(made.train.epoch(0), range(asked.batches), strict=False)]
    test = made.test.first(asked.images)
    known = read_json(OUT) if OUT.exists() else {"networks": {}}
    shared: ScoringNet | None = None
    for name in asked.networks:
        begun = time.perf_counter()
        model = pretrained(name, asked.data)
        axes = trace(model, torch.zeros(1, 3, 32, 32))
        plans = {
            "random": by_mean(axes, score(axes, criteria.random(model)), SHARE),
            "l1": by_mean(axes, score(axes, criteria.l1(model)), SHARE),
            "fpgm": by_mean(axes, score(axes, criteria.fpgm(model)), SHARE),
            "taylor": by_mean(axes, score(axes, criteria.taylor(model, plain, F.cross_entropy)), SHARE),
        }
        if shared is not None:
            plans[f"scoring net of {asked.networks[0]}"] = ranked(axes, score(axes, shared.criterion(model, axes)), SHARE)
        torch.manual_seed(0)
        net = ScoringNet()
        settings = ScorerSettings(stages=(ScorerStage(epochs=asked.epochs),), keeps=(SHARE,))
        fit_(net, [Task(model, axes, plain, F.cross_entropy, ranked)], settings)
        plans["scoring net, trained here"] = ranked(axes, score(axes, net.criterion(model, axes)), SHARE)
        if shared is None:
            shared = net
            save_scorer(OUT.with_name("scoring_net_cifar.safetensors"), net)
        rows = {key: accuracy(model, plan, plain, test) for key, plan in plans.items()}
        known["networks"][name] = {"dense": evaluate(model, test)["accuracy"], "rows": rows}
        known["networks"][name]["seconds"] = round(time.perf_counter() - begun, 1)
        known |= {
            "command": command("scoring_cifar.py", FOLDER=asked.data),
            "versions": machine.versions(),
            "hardware": machine.hardware(torch.device("cpu"), 1),
            "words": [
                f"{SHARE:.3f} of the MACs stay, no training of weights after the cut, batch norms re-estimated on",
                f"{64 * asked.batches:,} training images, which scores see too. Accuracy (%) on {asked.images:,} test images.",
            ],
        }
        write_json(OUT, json.loads(json.dumps(known)))
        print(name, known["networks"][name], flush=True)


def accuracy(model: nn.Module, plan: Plan, plain: Any, test: Any) -> float:
    """Of the cut network."""
    small = plan.apply(model)
    repair.batchnorm(model, small, plain)
    return evaluate(small, test)["accuracy"]


if __name__ == "__main__":
    main()
