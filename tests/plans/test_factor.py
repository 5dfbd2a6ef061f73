"""Factor steps: every product equals the layer with its projected weight, in any precision and with its optimizer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from projections import RANKS, low, projection
from secateur import Factor, Plan, Product
from secateur.core.codec import dumps, loads
from secateur.core.factor import full_ranks
from secateur.core.plan import factor
from secateur.surgery import expand, fingerprint, fold, pieces, shapes_after, unfold

LAYERS: dict[str, dict] = {
    "plain": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "padding": 1, "stride": 2},
    "dilated, no bias": {"kernel_size": 3, "padding": 2, "dilation": 2, "bias": False},
    "oblong": {"kernel_size": (3, 5), "padding": (1, 2), "stride": (2, 1)},
    "reflecting": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "same": {"kernel_size": (3, 5), "padding": "same"},
    "pointwise": {"kernel_size": 1, "stride": 2},
}


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


def test_an_optimizer_that_knows_names_gets_those_of_the_product():
    made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(made.named_parameters(), 0.1, momentum=0.9)
    factor(fingerprint(made), [Product("0", "tucker2", (2, 3))]).apply_(made, optimizer=optimizer)
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in made.named_parameters()]


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
