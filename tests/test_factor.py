"""Factor steps: every product equals the layer with its projected weight, and plans with them obey the laws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from networks import VARIED, ZOO, TiedPair, builder
from secateur import Factor, Plan, Product, SecateurError, allocate, criteria, score, trace
from secateur.core.codec import dumps, from_json, loads, to_json
from secateur.core.factor import full_ranks
from secateur.core.plan import factor
from secateur.measure import facts
from secateur.surgery import expand, fingerprint, fold, pieces, shapes_after, unfold
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

LAYERS: dict[str, dict] = {
    "plain": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "padding": 1, "stride": 2},
    "dilated, no bias": {"kernel_size": 3, "padding": 2, "dilation": 2, "bias": False},
    "oblong": {"kernel_size": (3, 5), "padding": (1, 2), "stride": (2, 1)},
    "reflecting": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "same": {"kernel_size": (3, 5), "padding": "same"},
    "pointwise": {"kernel_size": 1, "stride": 2},
}
RANKS = {"channel": (3,), "spatial": (3,), "tucker2": (3, 3), "decouple": (1,)}


def low(matrix: np.ndarray, rank: int) -> np.ndarray:
    """The nearest matrix of that rank, by numpy."""
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def projection(weight: np.ndarray, form: str, ranks: tuple[int, ...]) -> np.ndarray:
    """The weight (O, I, H, W) a product stands for, written out with loops."""
    outputs, inputs, height, width = weight.shape
    out = np.zeros_like(weight)
    if form == "channel":
        return low(weight.reshape(outputs, -1), ranks[0]).reshape(weight.shape)
    if form == "spatial":
        matrix = np.zeros((inputs * height, outputs * width))
        places = list(itertools.product(range(outputs), range(inputs), range(height), range(width)))
        for o, i, y, x in places:
            matrix[i * height + y, o * width + x] = weight[o, i, y, x]
        matrix = low(matrix, ranks[0])
        for o, i, y, x in places:
            out[o, i, y, x] = matrix[i * height + y, o * width + x]
        return out
    if form == "decouple":
        for o in range(outputs):
            out[o] = low(weight[o].reshape(inputs, -1), ranks[0]).reshape(weight.shape[1:])
        return out
    inward = np.linalg.svd(np.moveaxis(weight, 1, 0).reshape(inputs, -1))[0][:, : ranks[0]]
    core = np.einsum("oihw,ia,ja->ojhw", weight, inward, inward)
    outward = np.linalg.svd(core.reshape(outputs, -1))[0][:, : ranks[1]]
    return np.einsum("oihw,ob,pb->pihw", core, outward, outward)


@pytest.mark.parametrize("form", RANKS)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_product_is_the_convolution_with_the_projected_weight(form, layer):
    torch.manual_seed(1)
    conv = nn.Conv2d(5, 7, **LAYERS[layer])
    model = nn.Sequential(conv)
    limits = full_ranks(form, tuple(conv.weight.shape))
    ranks = tuple(min(pair) for pair in zip(RANKS[form], limits, strict=True))
    plan = factor(fingerprint(model), [Product("0", form, ranks)])
    x = torch.randn(2, 5, 9, 8)
    small = plan.apply(model)
    twin = nn.Conv2d(5, 7, **LAYERS[layer])
    with torch.no_grad():
        twin.weight.copy_(torch.from_numpy(projection(conv.weight.double().numpy(), form, ranks)))
        twin.bias.copy_(conv.bias) if conv.bias is not None else None
        assert (small(x) - twin(x)).abs().max() < 1e-5
        assert (plan.preview(model)(x) - twin(x)).abs().max() < 1e-5
        whole = factor(fingerprint(model), [Product("0", form, limits)]).apply(model)
        assert (whole(x) - model(x)).abs().max() < 1e-5, "at full rank nothing is lost"
    assert shapes_after(plan) == fingerprint(small)
    assert all(type(part) is nn.Conv2d for part in small[0])


@pytest.mark.parametrize("form", ["channel", "spatial"])
def test_grouped_convolutions(form):
    torch.manual_seed(2)
    conv = nn.Conv2d(6, 8, 3, padding=1, stride=(1, 2), groups=2)
    model, x = nn.Sequential(conv), torch.randn(2, 6, 7, 6)
    plan = factor(fingerprint(model), [Product("0", form, (2,), groups=2)])
    weight = conv.weight.detach().double().numpy()
    halves = [projection(half, form, (2,)) for half in np.split(weight, 2)]
    with torch.no_grad():
        expected = functional.conv2d(x, torch.from_numpy(np.concatenate(halves)).float(), conv.bias, (1, 2), 1, groups=2)
        assert (plan.apply(model)(x) - expected).abs().max() < 1e-5
    assert shapes_after(plan) == fingerprint(plan.apply(model))
    assert loads(dumps(plan)) == plan


def test_linear_layers():
    torch.manual_seed(3)
    model, x = nn.Sequential(nn.Linear(6, 9)), torch.randn(4, 6)
    plan = factor(fingerprint(model), [Product("0", "linear", (2,))])
    expected = low(model[0].weight.detach().double().numpy(), 2) @ x.double().numpy().T
    found = plan.apply(model)(x).detach().numpy() - model[0].bias.detach().numpy()
    assert np.abs(found - expected.T).max() < 1e-5


@pytest.mark.parametrize("form", ["channel", "spatial", "decouple"])
def test_unfold_and_fold_are_inverse(form):
    weight = torch.randn(6, 4, 2, 3)
    groups = 1 if form == "decouple" else 2
    assert torch.equal(fold(unfold(weight, form, groups=groups), weight.shape, form, groups=groups), weight)


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


def test_a_factor_follows_bf16_meta_mode_and_frozen_weights():
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).to(torch.bfloat16).eval()
    model[0].weight.requires_grad_(False)
    plan = factor(fingerprint(model), [Product("0", "spatial", (2,))])
    small = plan.apply(model)
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert not small[0].training
    assert not small[0][0].weight.requires_grad
    assert small[0][1].bias.requires_grad
    assert plan.apply(nn.Sequential(nn.Conv2d(3, 4, 3, device="meta")))[0][0].weight.is_meta


def test_a_plan_with_products_prints_and_differs():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4))
    one = factor(fingerprint(model), [Product("0", "tucker2", (2, 3)), Product("1", "linear", (2,))])
    two = factor(fingerprint(model), [Product("0", "spatial", (2,)), Product("1", "linear", (2,))])
    assert str(one) == "0  -> tucker2 of rank 2, 3\n1  -> linear of rank 2"
    assert one.diff(two) == ["step 1: 0: tucker2 of rank 2, 3 | spatial of rank 2"]
    assert not Plan(one.fingerprint, (Factor(()),))


REFUSED = {
    "of the model itself": (lambda: nn.Linear(3, 3), lambda: Product("", "linear", (1,)), "the model itself"),
    "unknown format": (lambda: nn.Linear(3, 3), lambda: Product("0", "cp", (1,)), "format 'cp'"),
    "a rank without a list": (lambda: nn.Linear(3, 3), lambda: Product("0", "linear", 2), "ranks 2"),
    "half a rank": (lambda: nn.Linear(3, 3), lambda: Product("0", "linear", (2.5,)), "ranks"),
    "a rank as text": (lambda: nn.Linear(3, 3), lambda: Product("0", "linear", ("2",)), "ranks"),
    "a rank as truth": (lambda: nn.Linear(3, 3), lambda: Product("0", "linear", (True,)), "ranks"),
    "groups as text": (lambda: nn.Linear(3, 3), lambda: Product("0", "channel", (2,), "2"), "groups '2'"),
    "a layer's number": (lambda: nn.Linear(3, 3), lambda: Product(3, "linear", (2,)), "name"),
    "one rank for two": (lambda: nn.Linear(3, 3), lambda: Product("0", "tucker2", (1,)), r"ranks \[1\]"),
    "no layer": (lambda: nn.Sequential(nn.Linear(3, 3)), lambda: Product("1", "linear", (1,)), "no tensor '1.weight'"),
    "rank too high": (lambda: nn.Sequential(nn.Linear(3, 3)), lambda: Product("0", "linear", (4,)), r"ranks \[4\]"),
    "wrong dims": (lambda: nn.Sequential(nn.Linear(3, 3)), lambda: Product("0", "spatial", (1,)), "shape"),
    "groups": (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), lambda: Product("0", "channel", (1,)), "2 groups"),
    "groups of tucker": (lambda: nn.Linear(3, 3), lambda: Product("0", "tucker2", (1, 1), groups=2), "2 groups"),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 4, 3)),
        lambda: Product("0", "channel", (1,)),
        "ConvTranspose2d",
    ),
    "tied": (TiedPair, lambda: Product("a", "linear", (1,)), "shared with 'b.weight'"),
    "read by its parent": (
        lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8)),
        lambda: Product("0.linear1", "linear", (1,)),
        "TransformerEncoderLayer",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_become_a_product_is_refused_before_anything_changes(case):
    build, product, words = REFUSED[case]
    model = build()
    before = fingerprint(model)
    with pytest.raises(SecateurError, match=words):
        factor(before, [product()]).apply_(model)
    assert fingerprint(model) == before


class Own(nn.Conv2d):
    """A convolution of a class of its own, which becomes no product."""


@pytest.mark.parametrize("wrong", ["class", "values"])
def test_a_later_step_that_cannot_be_done_is_refused_before_anything_changes(wrong):
    made = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    cut = trace(made, torch.zeros(1, 3, 8, 8)).plan({"0": range(5)})
    plan = cut.then(factor(fingerprint(cut.apply(made)), [Product("2", "channel", (2,))]))
    assert len(plan.steps) == 2
    if wrong == "class":
        made[2] = Own(8, 8, 3)
    else:
        nn.init.constant_(made[2].weight, float("inf"))
    optimizer = torch.optim.SGD(made.parameters(), 0.1)
    before, held = fingerprint(made), [id(p) for p in made.parameters()]
    with pytest.raises(SecateurError, match="a product for the layer '2'"):
        plan.apply_(made, optimizer=optimizer)
    assert fingerprint(made) == before
    assert [id(p) for p in made.parameters()] == [id(p) for p in optimizer.param_groups[0]["params"]] == held


def test_what_a_cut_takes_away_need_not_be_finite():
    made = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    cut = trace(made, torch.zeros(1, 3, 8, 8)).plan({"0": range(5)})
    plan = cut.then(factor(fingerprint(cut.apply(made)), [Product("2", "channel", (2,))]))
    with torch.no_grad():
        made[2].weight[:, 6] = float("nan")
    assert bool(plan.apply_(made)(torch.randn(1, 3, 8, 8)).isfinite().all())


def test_numbers_of_numpy_are_ranks():
    plan = factor({"0.weight": (4, 3, 3, 3)}, [Product("0", "channel", (np.int64(2),), np.int64(1))])
    assert from_json(to_json(plan)) == plan
    assert loads(dumps(plan)) == plan


def test_an_optimizer_that_knows_names_gets_those_of_the_product():
    made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(made.named_parameters(), 0.1, momentum=0.9)
    factor(fingerprint(made), [Product("0", "tucker2", (2, 3))]).apply_(made, optimizer=optimizer)
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in made.named_parameters()]


def test_weights_without_finite_numbers_are_refused():
    model = nn.Sequential(nn.Linear(3, 3))
    plan = factor(fingerprint(model), [Product("0", "linear", (1,))])
    nn.init.constant_(model[0].weight, float("nan"))
    with pytest.raises(SecateurError, match="finite"):
        plan.apply(model)


def test_biases_keep_their_momentum_and_the_optimizer_the_order_of_parameters():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.randn(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    bias, held = model[0].bias, optimizer.state[model[0].bias]["momentum_buffer"]
    factor(fingerprint(model), [Product("0", "channel", (2,))]).apply_(model, optimizer=optimizer)
    assert model[0][1].bias is bias
    assert optimizer.state[bias]["momentum_buffer"] is held
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.parameters()]


GOOD = {"layer": "0", "format": "spatial", "ranks": [2]}
BAD = {
    "a rank of 0": {**GOOD, "ranks": [0]},
    "a rank beyond the full one": {**GOOD, "ranks": [40]},
    "two ranks": {**GOOD, "ranks": [1, 1]},
    "text for a rank": {**GOOD, "ranks": ["2"]},
    "an unknown format": {**GOOD, "format": "cp"},
    "a list for a format": {**GOOD, "format": []},
    "an unknown key": {**GOOD, "class": "os.system"},
    "a missing key": {"layer": "0", "ranks": [2]},
    "another layer": {**GOOD, "layer": "7"},
    "groups that do not divide": {**GOOD, "groups": 3},
    "true for groups": {**GOOD, "groups": True},
    "a control character": {**GOOD, "layer": "0\x1b"},
    "no object": 3,
}


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_product_is_one_sentence(case):
    value = to_json(factor({"0.weight": (4, 3, 3, 3), "0.bias": (4,)}, [Product("0", "spatial", (2,))]))
    assert from_json(value)
    value["steps"][0]["products"] = [BAD[case]]
    with pytest.raises(SecateurError, match="reading a plan"):
        from_json(value)


def test_a_layer_twice_and_unknown_keys_of_a_step_are_refused():
    value = to_json(factor({"0.weight": (4, 3, 3, 3)}, [Product("0", "spatial", (2,))]))
    value["steps"][0]["products"] *= 2
    with pytest.raises(SecateurError, match="twice"):
        from_json(value)
    value["steps"] = [{"do": "factor", "cuts": []}]
    with pytest.raises(SecateurError, match="products"):
        from_json(value)


def test_pieces_multiply_to_the_projection_of_higher_rank_less_error():
    weight = torch.randn(6, 5, 3, 3)
    for form in ("channel", "spatial", "decouple"):
        full = full_ranks(form, tuple(weight.shape))[0]
        errors = [
            float((expand(pieces(weight, p), p) - weight).norm())
            for p in (Product("x", form, (r,)) for r in range(1, full + 1))
        ]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 1e-5
