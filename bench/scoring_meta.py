"""Meta-training: one Scoring Net on a family of small networks and data sets, judged on networks it has not seen.

python bench/scoring_meta.py [--epochs 15] [--dense 6] [--seeds 2] [--out bench/results]

Learns on residual networks and a perceptron for the digits and on perceptrons for two tables of scikit-learn, all at once.
Judged, without retraining, on a plain network, a deeper residual one and a transformer for the digits. Writes
scoring_net_meta.json and scoring_net_meta.safetensors; the net is fit to be shipped only where "beats_l1" is true.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import allocate, criteria, repair, score, trace
from secateur.core.axes import Axes
from secateur.core.plan import Plan
from secateur.criteria.scoring import ScorerSettings, ScorerStage, ScoringNet, Task, fit_
from secateur.data import Batches, DataSet, digits
from secateur.io import save_scorer, write_json
from secateur.measure import machine
from secateur.recipes import zoo
from secateur.train import FitSettings, evaluate, fit

SHARES = (0.5, 0.3)


class Patches(nn.Module):
    """A transformer of two layers on 16 patches of 2 x 2 pixels."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 2, 2)
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 8, 8) to (B, 10)."""
        return self.head(self.encoder(self.embed(x).flatten(2).transpose(1, 2)).mean(1))


def plain(widths: tuple[int, ...] = (24, 24, 48, 48)) -> nn.Module:
    """Convolutions without shortcuts."""
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(zip((1, *widths), widths, strict=False)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2 if number % 2 else 1, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


def perceptron(inputs: int, classes: int, hidden: int = 64) -> nn.Module:
    """Two hidden layers."""
    layers = [nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, classes))


def tabular(name: str) -> DataSet:
    """A table of scikit-learn, columns standardised by its training part; every fifth row is test."""
    from sklearn import datasets

    values, labels = getattr(datasets, f"load_{name}")(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x, y = torch.from_numpy(values).float()[order], torch.from_numpy(labels).long()[order]
    held = torch.arange(len(y)) % 5 == 0
    x = (x - x[~held].mean(0)) / x[~held].std(0)
    names = tuple(str(label) for label in range(int(y.max()) + 1))
    return DataSet(name, (x[~held], y[~held]), (x[held], y[held]), names, (0.0,), (1.0,))


Made = tuple[str, Callable[[], nn.Module], Callable[[], DataSet], FitSettings]
SGD = FitSettings(lr=0.1)
ADAM = FitSettings(optimizer="adamw", lr=3e-3)
FAMILY: tuple[Made, ...] = (
    ("resnet", lambda: zoo.digits_resnet(1, (16, 32, 64)), digits, SGD),
    ("narrow resnet", lambda: zoo.digits_resnet(1, (12, 24, 32)), digits, SGD),
    ("perceptron", lambda: perceptron(64, 10), digits, ADAM),
    ("perceptron, breast cancer", lambda: perceptron(30, 2), lambda: tabular("breast_cancer"), ADAM),
    ("perceptron, wine", lambda: perceptron(13, 3), lambda: tabular("wine"), ADAM),
)
UNSEEN: tuple[Made, ...] = (
    ("plain", plain, digits, SGD),
    ("deeper resnet", lambda: zoo.digits_resnet(2, (12, 24, 48)), digits, SGD),
    ("transformer", Patches, digits, ADAM),
)


def ranked(axes: Axes, scores: Any, share: float, normalise: Any = "none") -> Plan:
    """Scores across the network."""
    return allocate.budget(axes, scores, {"macs": share}, normalise=normalise, floor=0.05)


class Network:
    """One trained member of the family."""

    def __init__(self, made: Made, seed: int, epochs: int) -> None:
        self.name, build, source, settings = made
        data = source()
        how = {"batch": 64, "mean": data.mean, "std": data.std, "seed": seed}
        train = Batches(*data.train, shuffle=True, drop_last=len(data.train[1]) > 64, **how)
        self.plain, self.test = list(train.plain()), Batches(*data.test, **how)
        torch.manual_seed(seed)
        self.model = build()
        fit(self.model, train, FitSettings(**{**settings.__dict__, "epochs": epochs, "seed": seed}))
        self.axes = trace(self.model.eval(), self.plain[0][0][:1])

    def task(self) -> Task:
        """What a Scoring Net learns on."""
        return Task(self.model, self.axes, self.plain, F.cross_entropy, ranked)

    def accuracy(self, plan: Plan) -> float:
        """After the cut, batch norms re-estimated."""
        small = plan.apply(self.model)
        repair.batchnorm(self.model, small, self.plain)
        return evaluate(small, self.test)["accuracy"]

    def rows(self, net: ScoringNet) -> dict[str, Any]:
        """The net against L1 and random scores at every share."""
        learned = score(self.axes, net.criterion(self.model, self.axes))
        hand = {"l1": criteria.l1(self.model), "random": criteria.random(self.model)}
        found: dict[str, Any] = {"dense": evaluate(self.model, self.test)["accuracy"]}
        for share in SHARES:
            rows = {name: self.accuracy(ranked(self.axes, score(self.axes, c), share, "mean")) for name, c in hand.items()}
            found[str(share)] = rows | {"scoring net": self.accuracy(ranked(self.axes, learned, share))}
        return found


def main() -> None:
    """Train the family, the net on it, and judge on what it has not seen."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--dense", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.perf_counter()
    family = [Network(made, seed, asked.dense) for made in FAMILY for seed in range(asked.seeds)]
    torch.manual_seed(0)
    net = ScoringNet()
    settings = ScorerSettings(stages=(ScorerStage(epochs=asked.epochs),), keeps=SHARES)
    history = fit_(net, [network.task() for network in family], settings)
    unseen = [Network(made, 100 + seed, asked.dense) for made in UNSEEN for seed in range(asked.seeds)]
    rows = [{"network": network.name, **network.rows(net)} for network in unseen]
    gains = [row[str(share)]["scoring net"] - row[str(share)]["l1"] for row in rows for share in SHARES]
    found = {**machine.record(), "seconds": round(time.perf_counter() - begun, 1), "unseen": rows, "history": history}
    found |= {"mean_gain_over_l1": sum(gains) / len(gains), "beats_l1": min(_by_network(rows).values()) > 0}
    write_json(asked.out / "scoring_net_meta.json", found)
    save_scorer(asked.out / "scoring_net_meta.safetensors", net)
    for row in rows:
        print(row)
    print("beats L1 on every kind of network it has not seen:", found["beats_l1"])


def _by_network(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean gain over L1 of each kind of network."""
    gains: dict[str, list[float]] = {}
    for row in rows:
        for share in SHARES:
            gains.setdefault(row["network"], []).append(row[str(share)]["scoring net"] - row[str(share)]["l1"])
    return {name: sum(values) / len(values) for name, values in gains.items()}


if __name__ == "__main__":
    main()
