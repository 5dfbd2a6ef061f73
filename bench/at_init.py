"""Pruning at initialisation on the embedded digits: criteria that see untrained weights, then training from those weights.

    python bench/at_init.py [--seeds 5]

Units are cut from a residual network that was not trained; what is left is trained as the dense one is. Scores see training
images only; nothing is chosen by the test images that accuracies are on. Writes bench/results/at_init_digits.json after every
row of a seed and goes on from there: rows that are there stay, rows of criteria that are gone from here go.
`docs/make/scoring_net.py` makes the page.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from common import command
from secateur import allocate, criteria, score, trace
from secateur.core.axes import Axes
from secateur.core.plan import Plan
from secateur.core.protocols import Criterion
from secateur.criteria.scoring import ScorerSettings, ScorerStage
from secateur.data import BatchSettings, digits, loaders
from secateur.io import read_json, write_json
from secateur.measure import machine
from secateur.recipes import zoo
from secateur.train import FitSettings, evaluate, fit

OUT = Path(__file__).parent / "results" / "at_init_digits.json"
KEEPS = (0.5, 0.3, 0.1)
FLOOR = 0.05
ROUNDS = 100
"""As in Tanaka et al., 2020."""
SCORER_EPOCHS = 5
X = torch.zeros(1, 1, 8, 8)
FIT = FitSettings(epochs=4, lr=0.1)


def ranked(axes: Axes, scores: Any, share: float, floor: float | dict[str, float] = FLOOR) -> Plan:
    """Scores as they are, across the network, as all papers compared here have it."""
    return allocate.budget(axes, scores, {"macs": share}, normalise="none", floor=floor)


def once(make: Callable[[nn.Module, Axes, Any, float], Criterion]) -> Callable[[nn.Module, Any, float], Plan]:
    """Scored and cut in one round."""

    def plan(model: nn.Module, batches: Any, share: float) -> Plan:
        axes = trace(model, X)
        return ranked(axes, score(axes, make(model, axes, batches, share)), share)

    return plan


def synflow(model: nn.Module, batches: Any, share: float, *, cost: str | None = None) -> Plan:
    """In rounds of equal ratio, scored anew before each; the floor is that of the whole network. `cost` divides the scores."""
    dense, small = trace(model, X), model
    plan = Plan({})
    for number in range(ROUNDS):
        axes = trace(small, X)
        flow = criteria.synflow(small, X)
        goal = share ** ((number + 1) / ROUNDS) * dense.count("macs") / axes.count("macs")
        floor = {axis.name: min(1.0, FLOOR * dense[axis.name].units / axis.units) for axis in axes}
        step = ranked(axes, score(axes, criteria.per_cost(axes, flow, cost) if cost else flow), min(goal, 1.0), floor)
        plan, small = (step if number == 0 else plan.then(step)), step.apply(small)
    return plan


def learned(model: nn.Module, axes: Axes, batches: Any, share: float) -> Criterion:
    """A Scoring Net trained on what the network does after one step of training."""
    settings = ScorerSettings(stages=(ScorerStage(epochs=SCORER_EPOCHS),), mode="init", keeps=(share,))
    return criteria.scoring_net(model, batches, F.cross_entropy, axes=axes, allocate=ranked, settings=settings)


PLANS: dict[str, Callable[[nn.Module, Any, float], Plan]] = {
    "random": once(lambda model, axes, batches, share: criteria.random(model)),
    "snip": once(lambda model, axes, batches, share: criteria.snip(model, batches, F.cross_entropy, limit=10)),
    "grasp": once(lambda model, axes, batches, share: criteria.grasp(model, batches, F.cross_entropy, limit=10)),
    f"synflow, {ROUNDS} rounds": synflow,
    f"synflow per MAC, {ROUNDS} rounds": partial(synflow, cost="macs"),
    "3sp": once(lambda model, axes, batches, share: criteria.three_sp(model, axes, batches, F.cross_entropy, limit=10)),
    "scoring net": once(learned),
}


def one(seed: int, known: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Accuracies of the dense network and of all cuts of it, each trained from the same initial weights; after every row of a
    criterion that `known` has not."""
    data = loaders(digits(), BatchSettings(batch=64, holdout=0, seed=seed))
    plain = list(data.train.plain())
    torch.manual_seed(seed)
    initial = zoo.digits_resnet(1, (16, 32, 64))
    how = FitSettings(**{**FIT.__dict__, "seed": seed})

    def trained(model: nn.Module) -> float:
        fit(model, data.train, how)
        return evaluate(model, data.test)["accuracy"]

    dense = known["dense"] if known else trained(copy.deepcopy(initial))
    rows = {name: row for name, row in known.get("rows", {}).items() if name in PLANS}
    for name in [name for name in PLANS if name not in rows]:
        row = {}
        for share in KEEPS:
            torch.manual_seed(seed)
            row[str(share)] = trained(PLANS[name](initial, plain, share).apply(initial))
        rows[name] = row
        yield {"dense": dense, "rows": {name: rows[name] for name in PLANS if name in rows}}


def main() -> None:
    """Seed after seed, row after row; what is known is left alone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    known = read_json(OUT) if OUT.exists() else {"at_init": {}}
    for seed in range(asked.seeds):
        before = known["at_init"].get(str(seed), {})
        begun = time.perf_counter() - before.get("seconds", 0.0)
        for found in one(seed, before):
            known["at_init"][str(seed)] = found | {"seconds": round(time.perf_counter() - begun, 1)}
            known |= {
                "command": command("at_init.py"),
                "versions": machine.versions(),
                "hardware": machine.hardware(torch.device("cpu"), 1),
                "epochs": FIT.epochs,
                "settings": {"fit": FIT.__dict__, "floor": FLOOR, "scorer_epochs": SCORER_EPOCHS, "rounds": ROUNDS},
            }
            write_json(OUT, json.loads(json.dumps(known)))
            print(seed, known["at_init"][str(seed)], flush=True)


if __name__ == "__main__":
    main()
