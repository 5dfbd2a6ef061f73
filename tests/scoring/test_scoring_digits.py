"""The Scoring Net and lottery tickets on the embedded digits, over seeds, in minutes; the arithmetic is that of the benches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import scripts
from secateur import criteria, score
from secateur.criteria.scoring import ScorerSettings, ScoringNet, Task, fit_
from secateur.data import BatchSettings, digits, loaders
from secateur.recipes import zoo
from secateur.recipes.tickets import GridSettings, grid
from secateur.report.tickets import mean_and_error
from secateur.train import FitSettings

SEEDS = (0, 1, 2, 3, 4)
RIVALS = ("l1", "fpgm", "taylor", "random")

pytestmark = pytest.mark.slow
bench = scripts.module("bench/scoring_net.py")


def gain(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Mean difference over seeds and its standard error."""
    return mean_and_error([one - two for one, two in zip(ours, theirs, strict=True)])


def over_seeds(found: Sequence[dict[str, Any]], name: str, *keys: str) -> list[float]:
    """One number per seed: that of criterion `name` under `keys`."""
    values = [known["rows"][name] for known in found]
    for key in keys:
        values = [value[key] for value in values]
    return values


def told(what: str, found: Sequence[dict[str, Any]], names: Sequence[str], *keys: str) -> None:
    """Mean and standard error of each name, for whoever reads the test's output."""
    for name in names:
        mean, error = mean_and_error(over_seeds(found, name, *keys))
        print(f"{what}: {name} {mean:.1%} ± {error:.1%}")


def test_a_trained_net_is_the_best_criterion_before_fine_tuning_and_not_below_any_after_it() -> None:
    """At home, at shares of 0.5, 0.3 and 0.1 of the MACs: above each rival by its standard error; tuned, within a point."""
    found = [bench.compare(seed, searches=False) for seed in SEEDS]
    for share in map(str, bench.KEEPS):
        for moment in ("cut", "tuned"):
            told(f"{share} of the MACs, {moment}", found, ("scoring net", *RIVALS), share, moment)
        for rival in RIVALS:
            ours, theirs = (over_seeds(found, name, share, "cut") for name in ("scoring net", rival))
            mean, error = gain(ours, theirs)
            assert mean > error, (share, rival)
            mean, error = gain(*(over_seeds(found, name, share, "tuned") for name in ("scoring net", rival)))
            assert mean > -0.01 - error, (share, rival)


def test_nets_score_networks_they_have_not_seen() -> None:
    """Nets of one network, on a deeper one and on one without shortcuts, and the net of the package on both: a correction of L1
    as it is, and each followed as far as training data bear out, are not below L1. Trained there, above."""
    found = [bench.transfer(seed) for seed in SEEDS]
    nets = ("scoring net, transferred", "scoring net on L1, transferred", "scoring net of the package")
    elsewhere = ("scoring net on L1, transferred", *(f"{name}, weighed" for name in nets))
    for place in ("plain", "deeper, narrower resnet"):
        here = [known[place] for known in found]
        told(place, here, (*elsewhere, "scoring net, trained here", "l1", "random"), "cut")
        l1 = over_seeds(here, "l1", "cut")
        mean, error = gain(over_seeds(here, "scoring net, trained here", "cut"), l1)
        assert mean > error, place
        for name in elsewhere:
            mean, error = gain(over_seeds(here, name, "cut"), l1)
            assert mean > -error, (place, name)


def test_signs_are_what_makes_an_unstructured_ticket() -> None:
    """Zhou et al., 2019, figure 5, as far as digits show it: with initial signs above a fresh draw, with other signs below."""
    found = tickets(FitSettings(epochs=4, lr=0.1), SEEDS)
    for kind in ("structured", "unstructured"):
        for variant, values in found[kind].items():
            mean, error = mean_and_error(values)
            print(f"{kind}, {variant}: {mean:.1%} ± {error:.1%}")
            assert mean > 0.5
    loose = found["unstructured"]
    for variant in ("rewind", "late rewind", "sign"):
        mean, error = gain(loose[variant], loose["random"])
        assert mean > error, variant
    for variant in ("absolute", "distribution"):
        mean, error = gain(loose["random"], loose[variant])
        assert mean > error, variant


def tickets(fit: FitSettings, seeds: Sequence[int]) -> dict[str, Any]:
    """The grid on the digits, at a fifth of the units or of the weights."""

    def data(seed: int) -> tuple[Any, Any]:
        made = loaders(digits(), BatchSettings(batch=64, holdout=0, seed=seed))
        return made.train, made.test

    build: Callable[[], torch.nn.Module] = zoo.digits_resnet
    variants = ("rewind", "late rewind", "random", "sign", "distribution", "absolute")
    return grid(build, data, torch.zeros(1, 1, 8, 8), GridSettings(variants, seeds=tuple(seeds), keep=0.2, fit=fit))


def test_distillation_of_an_untrained_network_is_not_needed() -> None:
    """Pruning at initialisation: a net trained for what the cut network can learn is not below a random choice."""
    rows = []
    for seed in SEEDS:
        home = bench.Bench("resnet", seed)
        torch.manual_seed(seed)
        home.model = bench.BUILDERS["resnet"]().eval()  # as it is built
        home.axes = bench.trace(home.model, bench.X)
        net = ScoringNet()
        task = Task(home.model, home.axes, home.plain, F.cross_entropy, bench.ranked)
        fit_(net, [task], ScorerSettings(keeps=(0.3,), mode="init", seed=seed))
        plans = {
            "net": bench.ranked(home.axes, home.scores(net), 0.3),
            "random": bench.by_mean(home.axes, score(home.axes, criteria.random(home.model, seed)), 0.3),
        }
        rows.append({"rows": {name: home.row(plan) for name, plan in plans.items()}})
    told("at initialisation", rows, ("net", "random"), "tuned")
    mean, error = gain(*(over_seeds(rows, name, "tuned") for name in ("net", "random")))
    assert mean > -error
