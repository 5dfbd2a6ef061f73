"""Products that cannot be, of networks, in steps and in files: one sentence, and nothing changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from networks import TiedPair
from secateur import Product, SecateurError, trace
from secateur.core.codec import dumps, from_json, loads, to_json
from secateur.core.plan import factor
from secateur.surgery import fingerprint

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


def test_weights_without_finite_numbers_are_refused():
    model = nn.Sequential(nn.Linear(3, 3))
    plan = factor(fingerprint(model), [Product("0", "linear", (1,))])
    nn.init.constant_(model[0].weight, float("nan"))
    with pytest.raises(SecateurError, match="finite"):
        plan.apply(model)


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
