"""Scoring Nets on CIFAR-10 networks, without retraining: trained on ResNet-20, applied to others untouched.

    python bench/scoring_cifar.py --data FOLDER [--images 4000] [--networks resnet20 resnet56 resnet20_fashion vgg16] [--again]

2.1 times fewer MACs, batch norms re-estimated on training images, which also say how far a "weighed" net is followed. As in
bench/channel.py, channels of residual streams stay: those are for cuts that are trained again.
Nets that go to other networks are trained at three shares, which travels better; compared on training images, see decisions.
ResNets for CIFAR-10 come with published weights; VGG-16 and the network for Fashion-MNIST are trained first, for few epochs,
and kept in --work. Networks that have rows are not done again; with --again they get the rows they lack.
Writes bench/results/scoring_net_cifar.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from common import command, pretrained
from secateur import allocate, criteria, data, repair, score, trace
from secateur.core.axes import Axes
from secateur.core.plan import Plan
from secateur.criteria.scoring import NetSettings, ScorerSettings, ScorerStage, ScoringNet, Task, fit_, weighed
from secateur.criteria.scoring.units import units_of
from secateur.data import BatchSettings, DataSet, loaders
from secateur.io import load, load_scorer, read_json, save, save_scorer, write_json
from secateur.io.scorer import PRETRAINED
from secateur.measure import machine
from secateur.recipes import zoo
from secateur.search import inner
from secateur.train import FitSettings, evaluate, fit

OUT = Path(__file__).parent / "results" / "scoring_net_cifar.json"
FIRST = OUT.with_name("scoring_net_cifar.safetensors")
FIRST_ON_L1 = OUT.with_name("scoring_net_cifar_l1.safetensors")
FIRST_ON_FLOWS = OUT.with_name("scoring_net_cifar_flows.safetensors")
CORRECTION = NetSettings(prior="l1", bound=0.5)
FLOWING = NetSettings(prior="flows", relative=True, bound=0.25)
"""As in bench/scoring_net.py."""
SHARE = 1 / 2.1
SHARES = (0.7, SHARE, 0.35)
"""That nets which go to other networks are trained at."""


def ranked(axes: Axes, scores: Any, share: float) -> Plan:
    """Scores as they are, across the network."""
    return allocate.budget(axes, scores, {"macs": share}, normalise="none", floor=0.1)


def by_mean(axes: Axes, scores: Any, share: float) -> Plan:
    """Scores over the mean of their axis."""
    return allocate.budget(axes, scores, {"macs": share}, normalise="mean", floor=0.1)


@dataclass(frozen=True)
class Target:
    """A network and its data; `epochs` of training before, None where there are published weights."""

    said: str
    build: Callable[[], nn.Module]
    data: str = "cifar10"
    epochs: int | None = None
    lr: float = 0.1


TARGETS = {
    "resnet20": Target("ResNet-20", lambda: zoo.build("cifar_resnet20_a")),
    "resnet56": Target("ResNet-56", lambda: zoo.build("cifar_resnet56_a")),
    "resnet20_fashion": Target("ResNet-20 on Fashion-MNIST", lambda: zoo.SmallResNet(3, "a", colours=1), "fashion_mnist", 2),
    "vgg16": Target("VGG-16", lambda: zoo.build("vgg16_bn_cifar"), "cifar10", 2, 0.05),
}


def based(name: str, source: DataSet, asked: argparse.Namespace) -> nn.Module:
    """The network to be cut."""
    target = TARGETS[name]
    if target.epochs is None:
        return pretrained(f"cifar_{name}_a", asked.data)
    path = asked.work / f"{name}.safetensors"
    torch.manual_seed(0)
    model = target.build()
    if not path.exists():
        train = loaders(source, BatchSettings(batch=128, holdout=0, channels_last=True, seed=0)).train
        fit(model, train, FitSettings(epochs=target.epochs, lr=target.lr, precision="bf16", channels_last=True))
        asked.work.mkdir(parents=True, exist_ok=True)
        save(path, model)
    return load(path, into=model).eval()


def main() -> None:
    """Network after network; the net trained on the first scores the rest."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=10000, help="of the test set")
    parser.add_argument("--batches", type=int, default=20, help="of 64 training images each")
    parser.add_argument("--epochs", type=int, default=15, help="of a Scoring Net's training")
    parser.add_argument("--networks", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--again", action="store_true", help="add the rows that networks with rows lack")
    parser.add_argument("--work", type=Path, default=Path("runs/bench"), help="folder for networks trained here")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    known = read_json(OUT) if OUT.exists() else {"networks": {}}
    for name in asked.networks:
        if name not in known["networks"] or asked.again:
            ran = command("scoring_cifar.py", FOLDER=asked.data, WORK=asked.work)
            known["networks"][name] = network(name, asked, known["networks"].get(name)) | {"command": ran}
            known |= {
                "command": known.get("command", ran),
                "versions": machine.versions(),
                "hardware": machine.hardware(torch.device("cpu"), 1),
                "seed": 0,
                "words": [
                    f"{SHARE:.3f} of the MACs stay, no training of weights after the cut; channels of residual streams are",
                    f"not cut. Batch norms re-estimated on {64 * asked.batches:,} training images, which scores see too.",
                    f"Accuracy in %, {asked.images:,} test images. Spread: deviation of the logarithms of relative L1 norms.",
                ],
            }
            write_json(OUT, json.loads(json.dumps(known)))
            print(name, known["networks"][name], flush=True)


def network(name: str, asked: argparse.Namespace, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """Accuracies of one network, cut by every criterion that has no row in what is `known`."""
    begun = time.perf_counter()
    source = data.named(TARGETS[name].data, asked.data)
    source = source.normalised("imagenet") if source.name == "cifar10" else source
    model = based(name, source, asked)
    made = loaders(source, BatchSettings(batch=64, test_batch=250, holdout=0, augment=False, seed=0))
    plain = [batch for batch, _ in zip(made.train.epoch(0), range(asked.batches), strict=False)]
    test = made.test.first(asked.images)
    axes = inner(trace(model, plain[0][0][:1]))
    dense = evaluate(model, test)["accuracy"]
    known = known if known and abs(known["dense"] - dense) < 1e-9 else None  # else trained anew, and another network
    rows = dict((known or {}).get("rows", {}))
    for key, plan_of in plans(name, model, axes, plain, asked).items():
        if key not in rows:
            rows[key] = accuracy(model, plan_of(), plain, test)
    seconds = (known or {}).get("seconds", 0) + round(time.perf_counter() - begun, 1)
    spread = round(units_of(model, axes, CORRECTION).spread, 4)
    facts = {"said": TARGETS[name].said, "dense": dense, "epochs": TARGETS[name].epochs, "spread": spread}
    return {**facts, "rows": rows, "seconds": seconds}


def plans(
    name: str, model: nn.Module, axes: Axes, plain: list[Any], asked: argparse.Namespace
) -> dict[str, Callable[[], Plan]]:
    """By criterion, how to make its plan; nets trained on the first network are saved, and the others ask them."""

    def by_hand(make: Callable[[], Any]) -> Callable[[], Plan]:
        return lambda: by_mean(axes, score(axes, make()), SHARE)

    def asking(path: Path) -> Callable[[], Plan]:
        return lambda: ranked(axes, score(axes, load_scorer(path).on(model, axes, plain, F.cross_entropy)), SHARE)

    def weighing(path: Path) -> Callable[[], Plan]:
        def plan() -> Plan:
            task = Task(model, axes, plain, F.cross_entropy, ranked)
            found = weighed(load_scorer(path).on(model, axes, plain, F.cross_entropy), task, SHARE)
            print(f"{name}, {path.stem}: followed to {found.trust:g}; losses {dict(found.losses)}", flush=True)
            return ranked(axes, score(axes, found.criterion), SHARE)

        return plan

    def training(settings: NetSettings, keeps: tuple[float, ...] = (SHARE,), path: Path | None = None) -> Callable[[], Plan]:
        def plan() -> Plan:
            torch.manual_seed(0)
            net = ScoringNet(settings)
            how = ScorerSettings(stages=(ScorerStage(epochs=asked.epochs),), keeps=keeps)
            fit_(net, [Task(model, axes, plain, F.cross_entropy, ranked)], how)
            if path:
                save_scorer(path, net)
            return ranked(axes, score(axes, net.on(model, axes, plain, F.cross_entropy)), SHARE)

        return plan

    found = {
        "random": by_hand(lambda: criteria.random(model)),
        "l1": by_hand(lambda: criteria.l1(model)),
        "fpgm": by_hand(lambda: criteria.fpgm(model)),
        "taylor": by_hand(lambda: criteria.taylor(model, plain, F.cross_entropy)),
        "flows": lambda: ranked(axes, score(axes, criteria.flows(model, axes, plain)), SHARE),
    }
    others = {
        "scoring net of ResNet-20": (NetSettings(), FIRST),
        "scoring net on L1, of ResNet-20": (CORRECTION, FIRST_ON_L1),
        "scoring net on activations, of ResNet-20": (FLOWING, FIRST_ON_FLOWS),
    }
    if name == "resnet20":
        found |= {f"{key}, at three shares": training(settings, SHARES, path) for key, (settings, path) in others.items()}
    known = {} if name == "resnet20" else {key: path for key, (_, path) in others.items()}
    for key, path in {**known, "scoring net of the package": PRETRAINED}.items():
        if path.exists():
            found[key] = asking(path)
            found[f"{key}, weighed"] = weighing(path)
    found["scoring net, trained here"] = training(NetSettings())
    found["scoring net on L1, trained here"] = training(CORRECTION)
    return found


def accuracy(model: nn.Module, plan: Plan, plain: Any, test: Any) -> float:
    """Of the cut network."""
    small = plan.apply(model)
    repair.batchnorm(model, small, plain)
    return evaluate(small, test)["accuracy"]


if __name__ == "__main__":
    main()
