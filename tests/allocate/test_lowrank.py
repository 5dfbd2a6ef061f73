"""Formats and ranks by budget: the dynamic program against brute force, counts against the cut network, times as given."""

from __future__ import annotations

import itertools
import json
import sys

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from secateur import SecateurError, lowrank, trace
from secateur.cli.main import application
from secateur.core.factor import Product
from secateur.core.plan import factor
from secateur.io import read_plan
from secateur.lowrank.cost import counted, timed
from secateur.lowrank.energy import candidates, kept_by
from secateur.measure import facts
from secateur.recipes import zoo
from secateur.surgery import fingerprint, unfold


@pytest.mark.parametrize("seed", range(5))
def test_the_knapsack_is_the_best_of_all_choices(seed):
    random = np.random.default_rng(seed)
    options = [[(float(random.integers(1, 20)), -float(random.random())) for _ in range(3)] for _ in range(5)]
    least = sum(min(cost for cost, _ in row) for row in options)
    for limit in (least, least + 7, least + 30, 1000):
        found = lowrank.knapsack(options, limit, bins=int(limit))  # whole costs: nothing is rounded
        best = max(
            sum(worth for _, worth in pick) for pick in itertools.product(*options) if sum(cost for cost, _ in pick) <= limit
        )
        assert found is not None
        pick = [row[place] for row, place in zip(options, found, strict=True)]
        assert sum(cost for cost, _ in pick) <= limit
        assert sum(worth for _, worth in pick) == pytest.approx(best)
    assert lowrank.knapsack(options, least - 1) is None
    assert lowrank.knapsack([], 3) == []


def net() -> nn.Module:
    torch.manual_seed(0)
    return zoo.digits_resnet().eval()


X = torch.zeros(1, 1, 8, 8)


@pytest.mark.parametrize("what", ["macs", "params"])
@pytest.mark.parametrize("share", [0.5, 0.75])
def test_budgets_hold_and_are_spent(what, share):
    model = net()
    plan = lowrank.choose(model, X, {what: share}, multiple=4)
    left = getattr(facts(plan.apply(model), X), what) / getattr(facts(model, X), what)
    assert share - 0.06 < left <= share
    assert all(rank % 4 == 0 for product in plan.steps[0].products for rank in product.ranks)
    assert "conv1" not in {product.module for product in plan.steps[0].products}, "the stem stays"


def test_only_what_is_faster_becomes_a_product(monkeypatch):
    """Times as a table that makes one format slow everywhere, and one layer slow in any."""

    def table(groups, **_):
        def cost(place, product):
            if product is None:
                return 10.0
            return 20.0 if product.format == "spatial" or place.name == "layer2.0.conv2" else 2.0 + 0.01 * sum(product.ranks)

        return {place: {p: cost(place, p) for p in [None, *products]} for place, products in groups.items()}

    model = net()
    count = len(lowrank.places(model, X))
    module = sys.modules["secateur.lowrank.choose"]
    monkeypatch.setattr(module, "timed", table)
    monkeypatch.setattr(module, "latency", lambda *_, **__: 10.0 * count + 5)
    plan = lowrank.choose(model, X, {"latency": 0.6}, multiple=8)
    chosen = {product.module: product for product in plan.steps[0].products}
    assert chosen
    assert "layer2.0.conv2" not in chosen
    assert "spatial" not in {product.format for product in chosen.values()}
    total = sum(2.0 + 0.01 * sum(chosen[p.name].ranks) if p.name in chosen else 10.0 for p in lowrank.places(model, X)) + 5
    assert total <= 0.6 * (10.0 * count + 5)
    with pytest.raises(SecateurError, match="least possible share"):
        lowrank.choose(model, X, {"latency": 0.1})


def test_measured_times_make_a_plan_that_runs():
    model = net()
    plan = lowrank.choose(model, torch.zeros(16, 1, 8, 8), {"latency": 1.0}, repeats=2, formats=["channel"])
    assert plan.apply(model)(X).shape == (1, 10)
    found = timed({place: candidates(place, "channel", 8) for place in lowrank.places(model, X)}, repeats=2)
    assert all(cost > 0 for costs in found.values() for cost in costs.values())
    assert all(None in costs and len(costs) > 1 for costs in found.values())


@pytest.mark.parametrize("form", ["channel", "spatial", "decouple", "tucker2"])
@pytest.mark.parametrize("changes", [{"padding": 1}, {"stride": 2, "bias": False}, {"kernel_size": (3, 1), "stride": (1, 2)}])
def test_counts_are_those_of_the_factored_layer(form, changes):
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 6, **{"kernel_size": 3, **changes}))
    x = torch.zeros(2, 2, 9, 8)
    place = lowrank.places(model, x)[0]
    for product in candidates(place, form, 1):
        small = factor(fingerprint(model), [product]).apply(model)
        for what in ("macs", "params"):
            costs = counted(place, [product], what)
            lost = getattr(facts(model, x), what) - getattr(facts(small, x), what)
            assert costs[None] - costs[product] == lost


@pytest.mark.parametrize("form", ["channel", "spatial", "decouple", "tucker2"])
def test_energy_is_that_of_the_projection(form):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3))
    place = lowrank.places(model, torch.zeros(1, 3, 8, 8))[0]
    kept = kept_by(place, form)
    if form != "tucker2":
        s = np.linalg.svd(unfold(place.weight, form).double().numpy(), compute_uv=False)
        assert kept((2,)) == pytest.approx((s[:, :2] ** 2).sum() / (s**2).sum())
    full = (4, 6) if form == "tucker2" else (99,)
    assert kept(full) == pytest.approx(1)
    eye = torch.eye(36, dtype=torch.float64)
    if form != "decouple":
        ranks = (2, 3) if form == "tucker2" else (3,)
        assert kept_by(place, form, eye)(ranks) == pytest.approx(kept(ranks)), "white inputs weigh all directions alike"


def test_data_decide_where_energy_is():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 6, 1, bias=False))
    place = lowrank.places(model, torch.zeros(1, 2, 8, 8))[0]
    flat = torch.diag(torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    assert kept_by(place, "channel", flat)((1,)) == pytest.approx(1, abs=1e-6)
    assert kept_by(place, "channel")((1,)) < 0.9


def test_batches_weigh_layers_by_what_they_answer():
    model = net()
    data = [(torch.randn(8, 1, 8, 8), None)]
    one = lowrank.choose(model, X, {"macs": 0.5}, multiple=4)
    two = lowrank.choose(model, X, {"macs": 0.5}, multiple=4, batches=data)
    assert facts(two.apply(model), X).macs <= 0.5 * facts(model, X).macs
    assert one != two


WRONG = {
    "two quantities": (lambda: lowrank.choose(net(), X, {"macs": 0.5, "params": 0.5}), "not one quantity"),
    "another quantity": (lambda: lowrank.choose(net(), X, {"mac": 0.5}), "did you mean 'macs'"),
    "no share": (lambda: lowrank.choose(net(), X, {"macs": 2}), "what remains"),
    "no format": (lambda: lowrank.choose(net(), X, {"macs": 0.5}, formats=["chanel"]), "did you mean 'channel'"),
    "nothing left": (lambda: lowrank.choose(net(), X, {"macs": 0.5}, ignore=["*"]), "no plain convolution"),
    "too little": (lambda: lowrank.choose(net(), X, {"macs": 0.01}), "least possible share"),
    "a number alone": (lambda: lowrank.choose(net(), X, 0.5), "not one quantity"),
    "ranks of no multiple": (lambda: lowrank.choose(net(), X, {"macs": 0.5}, multiple=0), "multiple=0"),
    "a multiple as text": (lambda: lowrank.choose(net(), X, {"macs": 0.5}, multiple="8"), "multiple='8'"),
    "a multiple below 1": (lambda: lowrank.choose(net(), X, {"macs": 0.5}, multiple=-8), "multiple=-8"),
    "one format as text": (lambda: lowrank.choose(net(), X, {"macs": 0.5}, formats="channel"), "list"),
    "formats that are none": (lambda: lowrank.choose(net(), X, {"macs": 0.5}, formats=()), "at least one"),
    "one pattern as text": (lambda: lowrank.choose(net(), X, {"macs": 0.5}, ignore="layer1"), "list"),
    "no weights yet": (lambda: lowrank.choose(net().to("meta"), X.to("meta"), {"macs": 0.5}), "no values"),
    "weights that are no numbers": (lambda: lowrank.choose(broken(), X, {"macs": 0.5}), r"'layer2.0.conv1'.*not finite"),
    "rows of none": (lambda: lowrank.choose(net(), X, {"macs": 0.5}, batches=[(X, None)], sample=0), "sample=0"),
    "fewer rows": (lambda: lowrank.choose(net(), X, {"macs": 0.5}, batches=[(X, None)], sample=-1), "sample=-1"),
    "empty batches": (lambda: lowrank.choose(net(), X, {"macs": 0.5}, batches=[(X[:0], None)]), "no rows"),
    "linear on a convolution": (lambda: lowrank.offers(lowrank.places(net(), X)[0], ["linear"]), "'linear'"),
}


def broken() -> nn.Module:
    model = net()
    with torch.no_grad():
        model.layer2[0].conv1.weight[0, 0, 0, 0] = float("nan")
    return model


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_met_is_one_sentence(case):
    ask, words = WRONG[case]
    with pytest.raises(SecateurError, match=words):
        ask()


class Twice(nn.Module):
    """A layer that a forward calls four times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.last = nn.Conv2d(3, 16, 3, padding=1), *(nn.Conv2d(16, 16, 3, padding=1) for _ in "12")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for _ in range(4):
            x = self.again(x)
        return self.last(x)


class ByName(nn.Module):
    """A layer that is called by the name of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(input=self.stem(x))


def wide() -> list[nn.Module]:
    return [nn.Conv2d(9, 64, 3, padding=1), nn.Conv2d(64, 9, 3, padding=1)]


SHAPES = {
    "called again": (Twice, (1, 3, 8, 8)),
    "called by name": (ByName, (1, 3, 8, 8)),
    "one image": (lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3), nn.Conv2d(32, 32, 3)), (3, 12, 12)),
    "channels last": (lambda: nn.Sequential(nn.Conv2d(9, 9, 1), *wide(), nn.Linear(8, 64), nn.Linear(64, 64)), (2, 9, 7, 8)),
}


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("share", [0.4, 0.6, 0.9])
def test_counts_are_those_of_the_whole_network(case, share):
    made, shape = SHAPES[case]
    torch.manual_seed(0)
    model, x = made(), torch.zeros(shape)
    for what in ("macs", "params"):
        plan = lowrank.choose(model, x, {what: share}, linear=True, multiple=2)
        assert share - 0.2 < getattr(facts(plan.apply(model), x), what) / getattr(facts(model, x), what) <= share


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_networks_of_other_precision(dtype):
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3), nn.Flatten(), nn.Linear(512, 16)).to(dtype)
    x = torch.randn(2, 3, 8, 8, dtype=dtype)
    plan = lowrank.choose(model, x, {"macs": 0.5}, linear=True, batches=[(x, None)])
    assert plan.steps[0].products
    assert bool(plan.apply(model)(x).isfinite().all())


@pytest.mark.parametrize("what", ["macs", "params"])
def test_all_of_the_budget_changes_nothing(what):
    assert not lowrank.choose(net(), X, {what: 1.0}, multiple=4)


def test_a_layer_of_zeros_loses_nothing():
    model = nn.Sequential(*(nn.Conv2d(3 if number == 0 else 16, 16, 3, padding=1) for number in range(3)))
    nn.init.zeros_(model[1].weight)
    plan = lowrank.choose(model, torch.randn(2, 3, 8, 8), {"macs": 0.7})
    assert [product.module for product in plan.steps[0].products] == ["1"]


def test_linear_layers_join_where_asked():
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    plan = lowrank.choose(model, torch.zeros(1, 32), {"macs": 0.6}, linear=True)
    assert {product.format for product in plan.steps[0].products} == {"linear"}
    assert Product("0", "linear", (8,)) in plan.steps[0].products


def test_the_command_lists_layers_and_writes_a_plan(tmp_path):
    run = CliRunner()
    app = application()
    listed = run.invoke(app, ["ranks", "zoo:digits_resnet", "--input", "1,1,8,8", "--formats", "spatial,tucker2", "--json"])
    rows = json.loads(listed.stdout)
    assert {row["format"] for row in rows if row["weight"].endswith("3x3")} == {"spatial", "tucker2"}
    assert {row["format"] for row in rows if row["weight"].endswith("1x1")} == {"channel"}
    row = next(row for row in rows if row["layer"] == "layer2.0.conv2" and row["format"] == "spatial")
    assert (row["full"], row["pays"]) == ("96", "47"), "R (32 * 3 + 32 * 3) < 32 * 32 * 9 up to 47"
    path = tmp_path / "plan.json"
    words = ["ranks", "zoo:digits_resnet", "--input", "1,1,8,8", "--keep", "macs=0.6", "-o", str(path)]
    assert run.invoke(app, words).exit_code == 0
    plan = read_plan(path)
    assert facts(plan.apply(net()), X).macs <= 0.6 * facts(net(), X).macs
    found = json.loads(run.invoke(app, [*words, "--data", "digits", "--json"]).stdout)
    assert found["counts"]["macs"]["kept"] <= 0.6 * found["counts"]["macs"]["dense"]
    assert all(after <= before for before, after in found["widths"].values())
    assert run.invoke(app, [*words[:-4], "--keep", "flops=0.5"]).exception is not None
    assert run.invoke(app, [*words, "--formats", "channel, spatial"]).exit_code == 0
    with pytest.raises(SecateurError, match="did you mean 'spatial'"):
        lowrank.offers(lowrank.places(net(), X)[0], ["spatiel"])


def test_a_rank_counts_as_a_width():
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3))
    plan = factor(fingerprint(model), [Product("0", "tucker2", (2, 3)), Product("2", "spatial", (5,))])
    assert plan.widths() == {"0.0": (4, 2), "0.1": (6, 3), "2.0": (18, 5)}
    small = plan.apply(model)
    cut = trace(small, torch.zeros(1, 4, 8, 8)).plan({"2.0": [0, 3]})
    assert plan.then(cut).widths()["2.0"] == (18, 2)
