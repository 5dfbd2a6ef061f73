"""Plans with factor steps obey the laws, compose with cuts and with each other, and have ranks that budgets trade."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from networks import VARIED, ZOO, builder
from projections import RANKS
from secateur import Plan, Product, SecateurError, allocate, criteria, score, trace
from secateur.core.codec import dumps, loads
from secateur.core.factor import full_ranks
from secateur.core.plan import factor
from secateur.measure import facts
from secateur.surgery import fingerprint, shapes_after
from secateur.testing import (
    distance,
    file_round_trip,
    input_is_untouched,
    json_round_trip,
    optimizer_fits,
    plans_compose,
    preview_equals_apply,
    random_plan,
    wrong_model_is_refused,
)


def factor_plan(model: nn.Module, form: str, share: float = 0.5) -> Plan:
    """A product for every layer that can become one."""
    products = []
    for name, module in model.named_modules():
        if type(module) is nn.Linear:
            kind = "linear"
        elif type(module) is nn.Conv2d and (module.groups == 1 or form in ("channel", "spatial")):
            kind = form
        else:
            continue
        groups = getattr(module, "groups", 1)
        full = full_ranks(kind, tuple(module.weight.shape), groups=groups)
        product = Product(name, kind, tuple(max(1, int(rank * share)) for rank in full), groups)
        try:
            plan = factor(fingerprint(model), [*products, product])
            plan.apply(model)
        except SecateurError:  # tied, or read by another module
            continue
        products.append(product)
    return factor(fingerprint(model), products)


LAWS = (
    preview_equals_apply,
    plans_compose,
    json_round_trip,
    file_round_trip,
    input_is_untouched,
    wrong_model_is_refused,
    optimizer_fits,
)
CASES = [("residual", form) for form in RANKS] + [(name, "spatial") for name in VARIED[1:]]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize(("name", "form"), CASES)
def test_laws(name, form, law):
    build, example = builder(ZOO[name][0]), ZOO[name][1]()
    axes = trace(build(), example)
    plan = factor_plan(build(), form)
    assert plan
    law(build, example, axes, plan)
    small = random_plan(axes, seed=3)
    both = small.then(factor_plan(small.apply(build()), form))
    assert [type(step).__name__ for step in both.steps] == ["Keep", "Factor"]
    law(build, example, axes, both)


@pytest.mark.parametrize("name", VARIED)
def test_keep_and_factor_compose_in_both_orders(name):
    model, example = builder(ZOO[name][0])().eval(), ZOO[name][1]()
    axes = trace(model, example)
    narrow = random_plan(axes, seed=5)
    first = narrow.then(factor_plan(narrow.apply(model), "spatial"))
    assert distance(first.apply(model), factor_plan(narrow.apply(model), "spatial").apply(narrow.apply(model)), example) == 0
    products = factor_plan(model, "spatial")
    thin = random_plan(trace(products.apply(model), example), seed=5)
    second = products.then(thin)
    assert [type(step).__name__ for step in second.steps] == ["Factor", "Keep"]
    assert distance(second.apply(model), thin.apply(products.apply(model)), example) == 0
    assert distance(second.preview(model).eval(), second.apply(model), example) < 1e-5
    assert loads(dumps(second)) == second
    assert second.diff(first)


def test_products_of_products_compose_associatively():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    a = factor(fingerprint(model), [Product("0", "linear", (6,))])
    b = factor(shapes_after(a), [Product("1", "linear", (4,))])
    c = factor(shapes_after(a.then(b)), [Product("0.1", "linear", (3,))])
    one, two = a.then(b).then(c), a.then(b.then(c))
    assert one == two
    assert not one.diff(two)
    assert [len(step.products) for step in one.steps] == [2, 1]
    assert fingerprint(one.apply(model)) == shapes_after(one)


@pytest.mark.parametrize("form", RANKS)
def test_a_rank_is_an_axis_and_budgets_trade_it(form):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 10, 3, padding=1), nn.Flatten(), nn.Linear(160, 4)
    )
    x = torch.randn(2, 3, 4, 4)
    ranks = (4, 5) if form == "tucker2" else (4,)
    plan = factor(fingerprint(model), [Product("2", form, ranks)])
    small = plan.apply(model)
    axes = trace(small, x)
    free = {axis.name: axis.units for axis in axes.free}
    assert free["2.0"] == ranks[0]
    assert form != "tucker2" or free["2.1"] == ranks[1]
    assert axes.count("macs") == facts(small, x).macs
    cut = allocate.budget(axes, score(axes, criteria.l2(small)), {"macs": 0.4})
    widths = cut.widths()
    assert widths["2.0"][1] < ranks[0]
    again = plan.then(cut)
    assert facts(again.apply(model), x).macs <= 0.4 * facts(small, x).macs
    assert distance(cut.preview(small), cut.apply(small), x) < 1e-5
