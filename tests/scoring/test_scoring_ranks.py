"""Ranks of products are axes like others: a Scoring Net reads, scores, learns on and cuts them."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from networks import ZOO
from secateur import allocate, criteria, score, trace
from secateur.core.plan import Product, factor
from secateur.criteria.scoring import NetSettings, ScorerSettings, ScorerStage, ScoringNet, Task, fit_
from secateur.criteria.scoring.units import KINDS, units_of
from secateur.measure import facts
from secateur.surgery import fingerprint

FACTORED = {
    "residual": (Product("stem", "spatial", (4,)), Product("a", "tucker2", (4, 5))),
    "vision transformer": (
        Product("up", "linear", (6,)),
        Product("down", "linear", (5,)),
        Product("attention.qkv", "linear", (7,)),
    ),
}


def factored(name):
    """The network with products in it, an input, its axes and the plan that made it."""
    torch.manual_seed(0)
    build, example = ZOO[name]
    model, x = build().eval(), example()
    plan = factor(fingerprint(model), FACTORED[name])
    small = plan.apply(model)
    return model, plan, small, x, trace(small, x)


def budget(axes, scores, share):
    return allocate.budget(axes, scores, {"macs": share}, normalise="none", floor=0.0)


@pytest.mark.parametrize("name", FACTORED)
def test_ranks_are_axes_of_their_own_kind(name):
    *_, axes = factored(name)
    ranks = Counter(rank for product in FACTORED[name] for rank in product.ranks)
    assert Counter(axis.units for axis in axes if axis.kind == "rank") == ranks
    assert all(axis.fixed is None for axis in axes if axis.kind == "rank")


def test_layers_with_something_between_have_no_rank():
    x = torch.zeros(1, 4)
    for between in (nn.ReLU(), nn.Identity(), nn.BatchNorm1d(4)):
        model = nn.Sequential(nn.Linear(4, 4, bias=False), between, nn.Linear(4, 2)).eval()
        assert [axis.kind for axis in trace(model, x).free] == ["channel"]
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    assert [axis.kind for axis in trace(model, x).free] == ["channel"], "a bias between: no product of two matrices"


class Wired(nn.Module):
    """`layers` (and a norm and a head beside them), run by `path`, which sees this module and the input."""

    def __init__(self, layers, path):
        super().__init__()
        self.layers, self.path = layers, path
        self.norm, self.head = nn.BatchNorm1d(4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))

    def forward(self, x):
        return self.path(self, x)


def three(kind=nn.Sequential):
    layers = [nn.Linear(4, 4, bias=False), nn.Linear(4, 2), nn.Linear(4, 2)]
    return kind(layers) if kind is nn.ModuleList else kind(*layers)


NO_RANK = {
    "a norm beside": (three, lambda m, x: m.layers[1](m.norm(m.layers[0](x)))),
    "two readers": (three, lambda m, x: (m.layers[1](m.layers[0](x)), m.layers[2](m.layers[0](x)))),
    "two rows": (three, lambda m, x: (m.head[1](m.layers[0](x)), m.head[0](x))),
    "not in a row": (three, lambda m, x: (m.layers[2](m.layers[0](x)), m.layers[1](x))),
    "a list": (lambda: three(nn.ModuleList), lambda m, x: m.layers[1](m.layers[0](x))),
    "other names": (
        lambda: nn.ModuleDict({"one": nn.Linear(4, 4, bias=False), "two": nn.Linear(4, 2)}),
        lambda m, x: m.layers["two"](m.layers["one"](x)),
    ),
    "no matrices": (
        lambda: nn.Sequential(nn.Conv1d(4, 4, 1, bias=False), nn.Conv1d(4, 2, 1)),
        lambda m, x: m.layers(x[:, :, None]),
    ),
}


@pytest.mark.parametrize("name", NO_RANK)
def test_what_only_looks_like_a_product_has_no_rank(name):
    build, path = NO_RANK[name]
    model = Wired(build(), path).eval()
    free = trace(model, torch.zeros(2, 4)).free
    assert "rank" not in [axis.kind for axis in free]
    assert any(slot.tensor.startswith("layers") for axis in free for slot in axis.slots), "there is what looks like one"


def test_a_product_may_be_followed_by_anything():
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    assert [(axis.units, axis.kind) for axis in trace(model, torch.zeros(1, 4)).free] == [(3, "rank"), (6, "channel")]


@pytest.mark.parametrize("name", FACTORED)
@pytest.mark.parametrize("settings", [NetSettings(), NetSettings(encoder="raw"), NetSettings(gradients=True)], ids=str)
def test_ranks_are_read_learned_on_and_cut(name, settings):
    model, plan, small, x, axes = factored(name)
    units = units_of(small, axes, NetSettings())
    kinds = dict(zip(units.names, units.context[:, -len(KINDS) :], strict=True))
    ranks = [axis for axis in axes.free if axis.kind == "rank"]
    assert all(kinds[axis.name].tolist() == [float(kind == "rank") for kind in KINDS] for axis in ranks)
    with torch.no_grad():
        batches = [(x, small(x).argmax(1)), (-x, small(-x).argmax(1))]
    how = ScorerSettings(stages=(ScorerStage(epochs=2),), keeps=(0.5,))
    net = ScoringNet(settings)
    fit_(net, [Task(small, axes, batches, F.cross_entropy, budget)], how)
    criterion = criteria.scoring_net(small, batches, F.cross_entropy, axes=axes, allocate=budget, net=net)
    scores = score(axes, criterion)
    assert all(len(scores[axis.name]) == axis.units for axis in ranks)
    cut = budget(axes, {**scores, **{axis.name: 1e-3 * scores[axis.name] for axis in ranks}}, 0.6)
    widths = cut.widths()
    assert any(axis.name in widths and widths[axis.name][1] < axis.units for axis in ranks)
    whole = plan.then(cut).apply(model)
    assert facts(whole, x).macs <= 0.6 * facts(small, x).macs
    torch.testing.assert_close(whole(x), cut.preview(small)(x), rtol=1e-4, atol=1e-5)


def test_an_untrained_net_ranks_ranks_by_their_singular_values_however_factors_share_them():
    """A factor may be multiplied by what the other is divided by: the product stays, and so must the order."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3)).double()
    small = factor(fingerprint(model), [Product("0", "linear", (8,))]).apply(model)
    (axis,) = [axis for axis in trace(small, torch.zeros(1, 12).double()).free if axis.kind == "rank"]
    sizes = torch.linalg.svdvals(model[0].weight.detach())[:8]
    by = torch.logspace(-2, 2, 8, dtype=torch.float64)[torch.randperm(8)]
    with torch.no_grad():
        small[0][0].weight *= by[:, None]
        small[0][1].weight /= by
    axes = trace(small, torch.zeros(1, 12).double())
    for settings in (NetSettings(), NetSettings(relative=True)):
        net = ScoringNet(settings)
        nn.init.constant_(net.twin.bias, -30)  # likeness aside
        found = net.criterion(small, axes)(axis)
        assert found.argsort(descending=True).tolist() == sizes.argsort(descending=True).tolist()
    by_norm = criteria.l1(small, group=False)(axis).argsort(descending=True)
    assert by_norm.tolist() != sizes.argsort(descending=True).tolist(), "the norm of one factor says nothing"
