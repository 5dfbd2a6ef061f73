"""The Scoring Net on the embedded digits: against hand-made criteria, evolution, and itself on other networks.

python bench/scoring_net.py [--seeds 5] [--part criteria|transfer|effort]

Writes bench/results/scoring_net_digits.json after every seed and goes on from there; `docs/make/scoring_net.py` makes the page.
Accuracy is on 359 test images that nothing was chosen by. Scores, evolution and fine-tuning see training images only.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from common import command
from secateur import allocate, criteria, repair, score, trace
from secateur.core.axes import Axes
from secateur.core.plan import Plan
from secateur.criteria.scoring import NetSettings, ScorerSettings, ScoringNet, Task, fit_, weighed
from secateur.criteria.scoring.units import units_of
from secateur.data import BatchSettings, digits, loaders
from secateur.io import load_scorer, read_json, write_json
from secateur.measure import machine
from secateur.recipes import zoo
from secateur.search import EvolutionSettings, drive, evolve, gaussian, inner, legr
from secateur.surgery import on_batch_statistics
from secateur.train import FitSettings, evaluate, fit

OUT = Path(__file__).parent / "results" / "scoring_net_digits.json"
KEEPS = (0.5, 0.3, 0.1)
FLOOR = 0.05
X = torch.zeros(1, 1, 8, 8)
DENSE = FitSettings(epochs=6, lr=0.1)
TUNE = FitSettings(epochs=3, lr=0.05)
TRIALS = 200
LONG = 1000
CORRECTION = {"prior": "l1", "bound": 0.5}
FLOWING = {"prior": "flows", "relative": True, "bound": 0.25}
TRAVELLING = (0.5, 0.3, 0.2)
"""Shares that nets which go to other networks are trained at."""


class Plain(nn.Module):
    """A network without shortcuts, of another shape than those a net was trained on."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((1, 24, 1), (24, 24, 1), (24, 48, 2), (48, 48, 1), (48, 64, 2)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, 8, 8) to (B, 10)."""
        return self.head(self.features(x))


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: zoo.digits_resnet(1, (16, 32, 64)),
    "deeper, narrower resnet": lambda: zoo.digits_resnet(2, (12, 24, 48)),
    "plain": Plain,
}


def ranked(axes: Axes, scores: Any, share: float) -> Plan:
    """Scores as they are, across the network."""
    return allocate.budget(axes, scores, {"macs": share}, normalise="none", floor=FLOOR)


def by_mean(axes: Axes, scores: Any, share: float) -> Plan:
    """Scores over the mean of their axis: what hand-made criteria need."""
    return allocate.budget(axes, scores, {"macs": share}, normalise="mean", floor=FLOOR)


def even(axes: Axes, scores: Any, share: float) -> Plan:
    """The same share of every axis."""
    return allocate.uniform(axes, scores, {"macs": share})


class Bench:
    """One trained network with its data."""

    def __init__(self, name: str, seed: int, *, streams: bool = True) -> None:
        """Without `streams`, channels of residual streams are not to be cut."""
        self.data = loaders(digits(), BatchSettings(batch=64, holdout=0, seed=seed))
        self.plain = list(self.data.train.plain())
        torch.manual_seed(seed)
        self.model = BUILDERS[name]()
        fit(self.model, self.data.train, FitSettings(**{**DENSE.__dict__, "seed": seed}))
        self.model.eval()
        self.axes, self.seed = trace(self.model, X), seed
        if not streams:
            self.axes = inner(self.axes)
        self.accuracy = evaluate(self.model, self.data.test)["accuracy"]

    def judge(self, plan: Plan) -> float:
        """Loss on four training batches with batch statistics: what every rival is judged by."""
        twin = on_batch_statistics(plan.preview(self.model))
        with torch.no_grad():
            return float(np.mean([F.cross_entropy(twin(x), y).item() for x, y in self.plain[:4]]))

    def row(self, plan: Plan, tune: bool = True) -> dict[str, float]:
        """Test accuracy after the cut and batch-norm re-estimation, and after fine-tuning."""
        small = plan.apply(self.model)
        repair.batchnorm(self.model, small, self.plain)
        found = {"cut": evaluate(small, self.data.test)["accuracy"], "judged": self.judge(plan)}
        if tune:
            fit(small, self.data.train, FitSettings(**{**TUNE.__dict__, "seed": self.seed}))
            found["tuned"] = evaluate(small, self.data.test)["accuracy"]
        return found

    def trained(
        self, *shares: float, on_epoch: Callable[[ScoringNet, dict[str, Any]], None] | None = None, **net: Any
    ) -> tuple[ScoringNet, dict[str, float]]:
        """A Scoring Net trained here, and what that took, `on_epoch` included."""
        torch.manual_seed(self.seed)
        scorer = ScoringNet(NetSettings(**net))
        task = Task(self.model, self.axes, self.plain, F.cross_entropy, ranked)
        begun = time.process_time()
        told = None if on_epoch is None else lambda record: on_epoch(scorer, record)
        last = fit_(scorer, [task], ScorerSettings(keeps=shares, seed=self.seed), on_epoch=told)[-1]
        return scorer, {
            "forwards": last["forwards"],
            "backwards": last["forwards"] - len(self.plain),
            "cpu_s": time.process_time() - begun,
        }

    def scores(self, scorer: ScoringNet) -> dict[str, torch.Tensor]:
        """In one pass."""
        return score(self.axes, scorer.on(self.model, self.axes, self.plain, F.cross_entropy))

    def weighed(self, scorer: ScoringNet) -> Plan:
        """By a net that was trained elsewhere, followed as far as the training data bear out."""
        task = Task(self.model, self.axes, self.plain, F.cross_entropy, ranked)
        found = weighed(scorer.on(self.model, self.axes, self.plain, F.cross_entropy), task, 0.3)
        return ranked(self.axes, score(self.axes, found.criterion), 0.3)


def compare(seed: int, *, searches: bool = True) -> dict[str, Any]:
    """Every criterion at every share on one network, and the cost of the learned ones; `searches` evolve their rivals."""
    bench = Bench("resnet", seed)
    hand = {
        "random": criteria.random(bench.model, seed),
        "l1": criteria.l1(bench.model),
        "fpgm": criteria.fpgm(bench.model),
        "taylor": criteria.taylor(bench.model, bench.plain, F.cross_entropy),
    }
    rows: dict[str, Any] = {name: {} for name in hand} | {"l1, same share of every layer": {}}
    costs: dict[str, Any] = {}
    for share in KEEPS:
        for name, criterion in hand.items():
            rows[name][str(share)] = bench.row(by_mean(bench.axes, score(bench.axes, criterion), share))
        rows["l1, same share of every layer"][str(share)] = bench.row(even(bench.axes, score(bench.axes, hand["l1"]), share))
        for name, net in (
            ("scoring net", {}),
            ("scoring net, gradients", {"gradients": True}),
        ):
            scorer, cost = bench.trained(share, **net)
            rows.setdefault(name, {})[str(share)] = bench.row(ranked(bench.axes, bench.scores(scorer), share))
            costs.setdefault(name, {})[str(share)] = cost
    for name, search in RIVALS.items() if searches else ():
        begun = time.process_time()
        found = drive(search(bench, 0.3), bench.judge)
        spent = time.process_time() - begun
        rows[name] = {"0.3": bench.row(found.plan)}
        goal = rows["scoring net"]["0.3"]["judged"]
        reached = next((number + 1 for number, loss in enumerate(found.best) if loss <= goal), None)
        costs[name] = {"0.3": {"forwards": 4 * TRIALS, "backwards": 0, "cpu_s": spent, "trials": TRIALS, "reached": reached}}
    return {"dense": bench.accuracy, "rows": rows, "costs": costs}


def by_legr(bench: Bench, share: float, trials: int = TRIALS) -> Any:
    """LeGR without tuning of candidates."""
    norms = {name: value.square() for name, value in score(bench.axes, criteria.l2(bench.model, group=False)).items()}
    settings = EvolutionSettings(trials=trials, seed=bench.seed)
    return legr(bench.axes, norms, lambda axes, scores: ranked(axes, scores, share), settings)


def by_evolution(bench: Bench, share: float, trials: int = TRIALS) -> Any:
    """The weights of a Scoring Net, mutated in place of trained."""
    torch.manual_seed(bench.seed)
    net = ScoringNet().eval()
    units = units_of(bench.model, bench.axes, net.settings)

    def plan_of(genome: np.ndarray) -> Plan:
        nn.utils.vector_to_parameters(torch.from_numpy(genome).float(), net.parameters())
        with torch.no_grad():
            return ranked(bench.axes, net.scores(units), share)

    start = nn.utils.parameters_to_vector(net.parameters()).detach().double().numpy()
    return evolve(start, gaussian(0.05), plan_of, EvolutionSettings(trials=trials, seed=bench.seed))


RIVALS: dict[str, Callable[..., Any]] = {"legr": by_legr, "evolution of the net": by_evolution}


def effort(seed: int) -> dict[str, Any]:
    """What the net takes to reach the lowest loss of each rival; and each rival, with five times as many trials, the net's.

    Passes are forwards and backwards together. Both are judged by the loss on four training batches; the net's own
    judging, once per epoch, counts as passes and as time.
    """
    bench, curve = Bench("resnet", seed), []
    begun = time.process_time()

    def look(scorer: ScoringNet, record: dict[str, Any]) -> None:
        scorer.eval()
        loss = bench.judge(ranked(bench.axes, bench.scores(scorer), 0.3))
        scorer.train()
        passes = 2 * record["forwards"] - len(bench.plain) + 4 * (len(curve) + 1)
        curve.append({"loss": loss, "passes": passes, "cpu_s": time.process_time() - begun})

    bench.trained(0.3, on_epoch=look)
    goal = curve[-1]["loss"]
    rivals = {}
    for name, search in RIVALS.items():
        begun = time.process_time()
        rival = race(search(bench, 0.3, LONG), bench.judge, goal)
        rival |= {"passes": 4 * rival["trials"], "cpu_s": time.process_time() - begun}
        rivals[name] = rival | {"net": next((point for point in curve if point["loss"] <= rival["loss"]), curve[-1])}
    return {"net": curve[-1], "rivals": rivals, "limit": LONG}


def race(search: Any, judge: Callable[[Plan], float], goal: float) -> dict[str, Any]:
    """How many trials a search takes to `goal`, the lowest loss, and whether it got there before it ended."""
    plan, trials, lowest = next(search), 0, float("inf")
    while True:
        loss, trials = judge(plan), trials + 1
        lowest = min(lowest, loss)
        if lowest <= goal:
            return {"trials": trials, "loss": lowest, "reached": True}
        try:
            plan = search.send(loss)
        except StopIteration:
            return {"trials": trials, "loss": lowest, "reached": False}


def transfer(seed: int) -> dict[str, Any]:
    """A net trained on one network scores others, untouched; beside it L1, Taylor and a net trained there."""
    source = Bench("resnet", seed, streams=False)
    scorer, _ = source.trained(*TRAVELLING)
    corrected, _ = source.trained(*TRAVELLING, **CORRECTION)
    flowing, _ = source.trained(*TRAVELLING, **FLOWING)
    shipped = load_scorer("pretrained")
    found = {}
    for name in ("deeper, narrower resnet", "plain"):
        target = Bench(name, seed + 100, streams=False)
        own, _ = target.trained(0.3)
        plans = {
            "scoring net, transferred": ranked(target.axes, target.scores(scorer), 0.3),
            "scoring net, transferred, weighed": target.weighed(scorer),
            "scoring net on L1, transferred": ranked(target.axes, target.scores(corrected), 0.3),
            "scoring net on L1, transferred, weighed": target.weighed(corrected),
            "scoring net on activations, transferred": ranked(target.axes, target.scores(flowing), 0.3),
            "scoring net on activations, transferred, weighed": target.weighed(flowing),
            "scoring net of the package": ranked(target.axes, target.scores(shipped), 0.3),
            "scoring net of the package, weighed": target.weighed(shipped),
            "scoring net, trained here": ranked(target.axes, target.scores(own), 0.3),
            "scoring net, untrained": ranked(target.axes, target.scores(ScoringNet().eval()), 0.3),
            "l1": by_mean(target.axes, score(target.axes, criteria.l1(target.model)), 0.3),
            "taylor": by_mean(
                target.axes, score(target.axes, criteria.taylor(target.model, target.plain, F.cross_entropy)), 0.3
            ),
            "random": by_mean(target.axes, score(target.axes, criteria.random(target.model, seed)), 0.3),
        }
        found[name] = {"dense": target.accuracy, "rows": {key: target.row(plan) for key, plan in plans.items()}}
    return found


PARTS: dict[str, Callable[[int], dict[str, Any]]] = {"criteria": compare, "transfer": transfer, "effort": effort}


def main() -> None:
    """Seed after seed, part after part, what is known left alone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--part", choices=PARTS, action="append")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    known = read_json(OUT) if OUT.exists() else {}
    for seed in range(asked.seeds):
        for part in asked.part or PARTS:
            if str(seed) in known.get(part, {}):
                continue
            begun = time.perf_counter()
            found = PARTS[part](seed)
            known.setdefault(part, {})[str(seed)] = found | {"seconds": round(time.perf_counter() - begun, 1)}
            known |= {
                "command": command("scoring_net.py"),
                "commands": {**known.get("commands", {}), part: command("scoring_net.py")},
                "versions": machine.versions(),
                "hardware": machine.hardware(torch.device("cpu"), 1),
                "settings": {"dense": DENSE.__dict__, "tune": TUNE.__dict__, "floor": FLOOR, "trials": TRIALS},
            }
            write_json(OUT, json.loads(json.dumps(known)))
            print(part, seed, known[part][str(seed)]["seconds"], flush=True)


if __name__ == "__main__":
    main()
