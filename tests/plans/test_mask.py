"""Mask steps: exact zeros, few bytes, and plans with them obey the laws."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import secateur
from masked import random_masks
from networks import VARIED, ZOO, TiedPair, builder
from secateur import Mask, Plan, SecateurError, support, trace
from secateur.core.codec import dumps, from_json, loads, to_json
from secateur.core.factor import Product
from secateur.core.plan import factor, mask
from secateur.core.sparse_code import code_length, decode, encode
from secateur.measure import facts
from secateur.surgery import fingerprint, masks_after, shapes_after
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

# the code ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100, 4608, 100_003])
def test_codes_round_trip_and_their_length_is_known(size):
    generator = np.random.default_rng(size)
    counts = {0, 1, 2, size // 100, size // 50, size // 3, size // 2, size - 1, size} & set(range(size + 1))
    for count in counts:
        for places in (generator.permutation(size)[:count], np.arange(count), np.arange(size - count, size)):
            places = np.sort(places)
            code = encode(places, size)
            assert len(code) == code_length(count, size)
            assert decode(code, count, size).tolist() == places.tolist()


@pytest.mark.parametrize("share", [0.001, 0.01, 0.02, 0.05, 0.1, 0.3, 0.5, 0.9])
def test_codes_are_near_entropy_and_never_above_a_bitmap(share):
    size = 200_000
    places = np.flatnonzero(np.random.default_rng(0).random(size) < share)
    bits, p = 8 * len(encode(places, size)) / size, len(places) / size
    entropy = -p * math.log2(p) - (1 - p) * math.log2(1 - p)
    assert entropy <= bits <= 1.0001
    if share <= 0.1:
        assert bits <= 1.15 * entropy


@pytest.mark.parametrize(
    ("size", "places"), [(1000, [3, 70, 71, 400, 401, 999]), (700, [0, 1, 64, 65, 699]), (11, [1, 2, 5, 8])]
)
def test_every_flipped_bit_of_a_code_is_refused_or_another_set(size, places):
    code, refused = encode(np.array(places), size), 0
    for at in range(8 * len(code)):
        damaged = bytearray(code)
        damaged[at // 8] ^= 1 << at % 8
        try:
            found = decode(bytes(damaged), len(places), size).tolist()
        except ValueError:
            refused += 1
            continue
        assert found != places
        assert found == sorted(set(found)), "ascending, none twice"
        assert 0 <= found[0] <= found[-1] < size
        assert encode(np.array(found), size) == bytes(damaged), "what is accepted is what would have been written"
    assert refused
    for wrong in (code[:-1], code + b"\0", b""):
        with pytest.raises(ValueError, match="another number"):
            decode(wrong, len(places), size)


# the step ----------------------------------------------------------------------------------------------------------

LAWS = (
    preview_equals_apply,
    plans_compose,
    json_round_trip,
    file_round_trip,
    input_is_untouched,
    optimizer_fits,
)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", VARIED)
def test_laws(name, law):
    build, example = builder(ZOO[name][0]), ZOO[name][1]()
    axes = trace(build(), example)
    sparse = mask(fingerprint(build()), random_masks(build(), 0.4))
    law(build, example, axes, sparse)
    small = random_plan(axes, seed=3)
    both = small.then(mask(shapes_after(small), random_masks(small.apply(build()), 0.4)))
    assert [type(step).__name__ for step in both.steps] == ["Keep", "Mask"]
    law(build, example, axes, both)
    wrong_model_is_refused(build, example, axes, both)


@pytest.mark.parametrize("name", VARIED)
def test_masked_entries_are_exact_zeros_and_others_untouched(name):
    model = builder(ZOO[name][0])()
    masks = random_masks(model, 0.3)
    small = mask(fingerprint(model), masks).apply(model)
    for (key, before), after in zip(model.named_parameters(), small.parameters(), strict=True):
        expected = before.detach().numpy() * masks[key].numpy() if key in masks else before.detach().numpy()
        assert np.array_equal(after.detach().numpy(), expected)
        assert not np.signbit(after.detach().numpy()[after.detach().numpy() == 0]).any()


def test_nan_and_infinity_become_zero_too():
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[math.nan, 1.0], [math.inf, 2.0]]))
    plan = mask(fingerprint(model), {"0.weight": [[0, 1], [0, 1]]})
    assert plan.apply(model)[0].weight.tolist() == [[0, 1], [0, 2]]
    assert plan.preview(model)(torch.ones(1, 2)).tolist() == [[1, 2]]


@pytest.mark.parametrize("name", VARIED)
def test_masks_compose_with_cuts_and_products_in_every_order(name):
    model, example = builder(ZOO[name][0])().eval(), ZOO[name][1]()
    sparse = mask(fingerprint(model), random_masks(model, 0.5, seed=1))
    thin = random_plan(trace(model, example), seed=5)
    first = sparse.then(thin)
    assert [type(step).__name__ for step in first.steps] == ["Mask", "Keep"]
    assert distance(first.apply(model), thin.apply(sparse.apply(model)), example) == 0
    assert distance(first.preview(model).eval(), first.apply(model), example) < 1e-5
    for key, kept in masks_after(first).items():
        value = dict(first.apply(model).named_parameters())[key].detach().numpy()
        assert kept.shape == value.shape
        assert not value[~kept].any(), "masks follow a later cut"
    again = first.then(mask(shapes_after(first), random_masks(first.apply(model), 0.5, seed=2)))
    assert loads(dumps(again)) == again
    assert again.diff(first)


def test_masks_in_a_row_become_one_and_compose_associatively():
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    a, b, c = (mask(fingerprint(model), random_masks(model, 0.6, seed)) for seed in range(3))
    one, two = a.then(b).then(c), a.then(b.then(c))
    assert one == two
    assert not one.diff(two)
    assert len(one.steps) == 1
    expected = c.apply(b.apply(a.apply(model)))
    assert all(torch.equal(x, y) for x, y in zip(one.apply(model).parameters(), expected.parameters(), strict=True))


def test_a_mask_before_and_after_a_product():
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    sparse = mask(fingerprint(model), {"0.weight": np.eye(5, 6), "0.bias": [1, 0, 1, 0, 1]})
    product = sparse.then(factor(shapes_after(sparse), [Product("0", "linear", (3,))]))
    assert list(masks_after(product)) == ["0.1.bias"]
    assert masks_after(product)["0.1.bias"].tolist() == [True, False, True, False, True]
    final = product.then(mask(shapes_after(product), {"0.0.weight": np.tri(3, 6)}))
    x = torch.randn(3, 6)
    assert distance(final.apply(model), final.preview(model), x) < 1e-6
    assert sorted(masks_after(final)) == ["0.0.weight", "0.1.bias"]


def test_momentum_is_masked_in_place_with_the_weights():
    model = nn.Sequential(nn.Linear(4, 3))
    for optimizer in (torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), torch.optim.AdamW(model.parameters())):
        model(torch.randn(5, 4)).sum().backward()
        optimizer.step()
        masks = {"0.weight": np.tri(3, 4)}
        weight = model[0].weight
        mask(fingerprint(model), masks).apply_(model, optimizer=optimizer)
        assert model[0].weight is weight
        gone = masks["0.weight"] == 0
        held = [value.numpy() for value in optimizer.state[weight].values() if value.dim()]
        for value in [weight.detach().numpy(), *held]:
            assert not value[gone].any()
            assert value[~gone].all()


def test_tied_tensors_are_masked_under_each_of_their_names(tmp_path):
    torch.manual_seed(0)
    model, x = TiedPair(), torch.randn(2, 4)
    plan = mask(fingerprint(model), {"a.weight": np.tri(4), "b.weight": 1 - np.eye(4)})
    small = plan.apply(model)
    assert small.a.weight is small.b.weight
    assert torch.equal(small.a.weight != 0, torch.from_numpy(np.tri(4, k=-1)) != 0)
    assert distance(plan.preview(model), small, x) == 0
    secateur.save(tmp_path / "tied.safetensors", small, plan)
    assert torch.equal(secateur.load(tmp_path / "tied.safetensors", into=TiedPair()).b.weight, small.b.weight)


def test_a_plan_with_masks_prints_differs_and_drops_what_says_nothing():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    one = mask(fingerprint(model), {"0.weight": [[1, 0], [0, 0]], "1.weight": np.ones((2, 2))})
    two = mask(fingerprint(model), {"0.weight": [[0, 1], [0, 0]]})
    assert str(one) == "0.weight  -> 1 of 4 entries (25.00 %, code a505df1b)"
    assert [line.partition(":")[0] for line in one.diff(two)] == ["step 1"]
    assert not mask(fingerprint(model), {"1.weight": np.ones((2, 2))})
    assert not mask(fingerprint(model), {"0.weight": np.zeros((2, 2))}).apply(model)[0].weight.any()


REFUSED = {
    "no tensor": lambda shapes: mask(shapes, {"7.weight": np.eye(2)}),
    "shape": lambda shapes: mask(shapes, {"0.weight": np.eye(2)}),
    "named twice": lambda shapes: Mask((support("0.weight", np.eye(3)),) * 2),
    "shape ": lambda shapes: Plan(shapes, (Mask((support("0.weight", np.eye(2)),)),)).apply(nn.Sequential(nn.Linear(3, 3))),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_masked_is_refused(words):
    with pytest.raises(SecateurError, match=words):
        REFUSED[words]({"0.weight": (3, 3), "0.bias": (3,)})


# facts -------------------------------------------------------------------------------------------------------------


def test_sparse_macs_equal_a_count_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, groups=8), nn.Flatten(), nn.Linear(72, 5)
    )
    x = torch.randn(2, 3, 8, 8)
    plan = mask(fingerprint(model), random_masks(model, 0.2))
    small, counts = plan.apply(model), {}
    for layer, places in ((0, 2 * 8 * 8), (2, 2 * 3 * 3), (4, 2)):
        counts[layer] = int(torch.count_nonzero(small[layer].weight)) * places
    found = plan.facts(model, x)
    assert found.sparse_macs == sum(counts.values())
    assert found.macs == facts(model, x).macs == facts(model, x).sparse_macs
    assert found.nonzeros == sum(int(torch.count_nonzero(p)) for p in small.parameters())
    assert facts(nn.Linear(2, 2, device="meta"), torch.zeros(1, 2)).nonzeros is None


def test_sparse_macs_of_attention_count_projections_sparse_and_products_whole():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(1, 5, 8)
    small = mask(fingerprint(model), random_masks(model, 0.5)).apply(model)
    weights = [value for value in small.parameters() if value.dim() > 1]
    attention = 2 * 5 * 5 * 8
    assert facts(small, x).sparse_macs == attention + 5 * sum(int(torch.count_nonzero(w)) for w in weights)
    assert facts(small, x).macs == attention + 5 * sum(w.numel() for w in weights)


# plans that are damaged -------------------------------------------------------------------------------------------


GOOD = {"tensor": "0.weight", "kept": 3}
BAD = {
    "no code": GOOD,
    "no base64": {**GOOD, "code": "%%%"},
    "a number for a code": {**GOOD, "code": 3},
    "another length": {**GOOD, "code": "AAAA"},
    "all kept": {**GOOD, "kept": 9, "code": ""},
    "less than none": {**GOOD, "kept": -1, "code": ""},
    "true": {**GOOD, "kept": True, "code": ""},
    "another tensor": {**GOOD, "tensor": "7", "code": ""},
    "a control character": {**GOOD, "tensor": "0\x1b", "code": ""},
    "an unknown key": {**GOOD, "code": "", "class": "os.system"},
    "no object": 3,
}


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_plan_is_one_sentence(case):
    value = to_json(mask({"0.weight": (3, 3), "0.bias": (3,)}, {"0.weight": np.eye(3)}))
    assert from_json(value)
    assert json.loads(dumps(from_json(value))) == value
    value["steps"][0]["supports"] = [BAD[case]]
    with pytest.raises(SecateurError, match="reading a plan"):
        from_json(value)


def test_a_support_twice_and_unknown_keys_of_a_step_are_refused():
    value = to_json(mask({"0.weight": (3, 3)}, {"0.weight": np.eye(3)}))
    value["steps"][0]["supports"] *= 2
    with pytest.raises(SecateurError, match="twice"):
        from_json(value)
    value["steps"] = [{"do": "mask", "cuts": []}]
    with pytest.raises(SecateurError, match="supports"):
        from_json(value)
