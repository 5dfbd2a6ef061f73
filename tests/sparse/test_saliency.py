"""Scores of entries and one-shot pruning against explicit gradients, Hessians and least squares."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from secateur import SecateurError
from secateur.surgery import masks_after
from secateur.testing import distance
from secateur.train.sparse import Layout, grasp, iterative, magnitude, obs, one_shot, snip, synflow
from secateur.train.sparse.obs import second_moments, sparsify
from secateur.train.sparse.saliency import flow
from sparse_cases import batches, net


def mlp(widths=(6, 9, 7, 3), seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for one, two in pairwise(widths):
        layers += [nn.Linear(one, two, bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


def data(count: int = 2, inputs: int = 6, seed: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(5, inputs, generator=g, dtype=torch.float64), torch.randint(0, 3, (5,), generator=g)) for _ in range(count)
    ]


def test_synflow_conserves_flow():
    """Tanaka et al., 2020, theorem 1: without biases the scores of every layer sum to R; units pass on what they get."""
    model = mlp()
    scores = flow(model, torch.zeros(1, 6))
    ones = torch.ones(6, dtype=torch.float64)
    for layer in range(0, 5, 2):
        ones = model[layer].weight.detach().abs() @ ones
    sums = [float(value.sum()) for value in scores.values()]
    assert sums == pytest.approx([float(ones.sum())] * 3, rel=1e-12)
    for before, after in (("0.weight", "2.weight"), ("2.weight", "4.weight")):
        assert torch.allclose(scores[before].sum(1), scores[after].sum(0)), "in equals out for every hidden unit"
    conv = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 3, 1, bias=False), nn.AvgPool2d(3)).double()
    sums = [float(value.sum()) for value in flow(conv, torch.zeros(1, 2, 5, 5)).values()]
    assert sums[0] == pytest.approx(sums[1], rel=1e-12)


def test_synflow_leaves_every_layer_alive_where_one_round_does_not():
    model = mlp((20, 60, 60, 60, 60, 4))
    for round_ in (100, 1):
        masks = masks_after(synflow(model, torch.zeros(1, 20), 0.005, rounds=round_))
        alive = [kept.sum() for kept in masks.values()]
        assert sum(alive) == round(0.005 * sum(kept.size for kept in masks.values()))
        if round_ == 100:
            assert min(alive) > 0
            x, path = torch.ones(20, dtype=torch.float64), model
            for layer, kept in zip(range(0, 9, 2), masks.values(), strict=True):
                x = (path[layer].weight.detach().abs() * torch.from_numpy(kept)) @ x
            assert x.sum() > 0, "something flows through"


def test_snip_is_the_sensitivity_to_a_gate():
    """|d loss / d c| at c = 1 where every weight is c w, by finite differences."""
    model, pairs = mlp(), data()
    scores = snip(model, pairs, functional.cross_entropy)
    for name in scores:
        for place in ((0, 0), (1, 2), (2, 4)):
            values = []
            for gate in (1 + 1e-6, 1 - 1e-6):
                work = copy.deepcopy(model)
                work.get_parameter(name).data[place] *= gate
                values.append(sum(float(functional.cross_entropy(work(x), y).detach()) for x, y in pairs))
            assert float(scores[name][place]) == pytest.approx(abs(values[0] - values[1]) / 2e-6, rel=1e-4, abs=1e-9)


def test_grasp_is_the_weight_times_the_hessian_times_the_gradient():
    model, pairs = mlp((4, 3, 3)), data(inputs=4)
    shapes = [p.shape for p in model.parameters()]
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])

    def loss(w: torch.Tensor) -> torch.Tensor:
        first, second = (part.view(shape) for part, shape in zip(w.split([s.numel() for s in shapes]), shapes, strict=True))
        return sum(functional.cross_entropy(functional.relu(x @ first.T) @ second.T / 200, y) for x, y in pairs)

    gradient = torch.autograd.functional.jacobian(loss, flat)
    hessian = torch.autograd.functional.hessian(loss, flat)
    found = torch.cat([value.flatten() for value in grasp(model, pairs, functional.cross_entropy).values()])
    assert torch.allclose(found, flat * (hessian @ gradient), rtol=1e-8, atol=1e-16)


def test_scores_leave_the_model_as_it_was_and_prune():
    model = net()
    before = copy.deepcopy(model.state_dict())
    pairs = batches(2)
    for scores in (
        magnitude(model),
        snip(model, pairs, functional.cross_entropy),
        grasp(model, pairs, functional.cross_entropy),
        flow(model, pairs[0][0]),
    ):
        plan = one_shot(model, 0.2, scores)
        assert sum(mask.sum() for mask in masks_after(plan).values()) == round(0.2 * sum(s.numel() for s in scores.values()))
    synflow(model, pairs[0][0], 0.1, rounds=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(p.grad is not None for p in model.parameters())
    with pytest.raises(SecateurError, match="no batch"):
        snip(model, [], functional.cross_entropy)
    with pytest.raises(SecateurError, match="no share"):
        one_shot(model, 0)


# optimal brain surgery ---------------------------------------------------------------------------------------------


def moments(columns: int, seed: int = 0) -> tuple[np.ndarray, torch.Tensor]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((200, columns)) @ rng.standard_normal((columns, columns))
    return x, torch.from_numpy(x.T @ x)


def test_one_removed_weight_is_made_up_for_as_least_squares_does():
    """The first column goes, all others are free: what stays is the least-squares fit of the layer's output."""
    x, hessian = moments(6)
    weight = torch.randn(1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight[0, 0] = 1e-3
    new, mask = sparsify(weight, hessian, 5 / 6, damp=1e-12)
    assert mask.tolist() == [[False, True, True, True, True, True]]
    fit = np.linalg.lstsq(x[:, 1:], x @ weight[0].numpy(), rcond=None)[0]
    assert np.abs(new[0, 1:].numpy() - fit).max() < 1e-8
    assert new[0, 0] == 0


def slow_sparse_gpt(weight: np.ndarray, hessian: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Column after column, each time the OBS rule with the inverse Hessian of the columns that are left."""
    w = weight.copy()
    for q in range(w.shape[1]):
        inverse = np.linalg.inv(hessian[q:, q:])
        for row in range(w.shape[0]):
            if not mask[row, q]:
                w[row, q:] -= w[row, q] / inverse[0, 0] * inverse[0]
                w[row, q] = 0
    return w


@pytest.mark.parametrize("block", [2, 5, 128])
def test_blocks_of_columns_give_the_same_as_column_by_column(block):
    _, hessian = moments(12)
    weight = torch.randn(7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    new, mask = sparsify(weight, hessian, 0.4, block=block, damp=0.01)
    damped = hessian.numpy() + 0.01 * np.diag(hessian.numpy()).mean() * np.eye(12)
    assert np.abs(new.numpy() - slow_sparse_gpt(weight.numpy(), damped, mask.numpy())).max() < 1e-8
    assert int(mask.sum()) == round(0.4 * 84)


def test_groups_hold_and_columns_come_back_in_their_order():
    _, hessian = moments(16)
    weight = torch.randn(5, 16, dtype=torch.float64)
    order = torch.arange(16).view(4, 4).T.flatten()
    new, mask = sparsify(weight, hessian, 0.5, order=order, group=(2, 4))
    assert (mask[:, order].view(5, 4, 4).sum(2) == 2).all()
    damped = hessian.numpy() + 0.01 * np.diag(hessian.numpy()).mean() * np.eye(16)
    turned = slow_sparse_gpt(weight.numpy()[:, order], damped[order][:, order], mask.numpy()[:, order])
    assert np.abs(new.numpy()[:, order] - turned).max() < 1e-8


@pytest.mark.parametrize("layout", [Layout("uniform"), Layout("erk"), Layout(pattern="1:2")])
def test_obs_beats_magnitude_on_the_output_of_the_network(layout):
    torch.manual_seed(0)
    model = net().eval()
    g = torch.Generator().manual_seed(4)
    mix = torch.randn(3, 3, generator=g, dtype=torch.float64)
    pairs = [(torch.einsum("bchw,cd->bdhw", x, mix), y) for x, y in batches(4)]
    plan, small = obs(model, pairs, 0.5, layout=layout)
    masks = masks_after(plan)
    plain = plan.apply(model)
    for name, value in small.named_parameters():
        if name in masks:
            assert not value.detach().numpy()[~masks[name]].any()
    assert all(torch.equal(small.get_parameter(n), model.get_parameter(n)) for n in ("norm.weight", "head.bias"))
    cut = one_shot(model, 0.5, layout=Layout("uniform")).apply(model) if layout.of_group is None else plain
    x = pairs[0][0]
    assert distance(model, small, x) < 0.8 * min(distance(model, cut, x), distance(model, plain, x))
    if not layout.of_group:  # the stem's three inputs make no groups
        sizes = {name: value.numel() for name, value in magnitude(model).items()}
        kept = sum(masks[name].sum() if name in masks else size for name, size in sizes.items())
        assert kept == pytest.approx(0.5 * sum(sizes.values()), abs=len(sizes))


def test_obs_reads_what_pruned_layers_put_out():
    model, pairs = mlp((8, 16, 16, 3)), data(inputs=8)
    _, small = obs(model, pairs, 0.5)
    hidden = (
        functional.relu(pairs[0][0] @ small[0].weight.detach().T),
        functional.relu(pairs[1][0] @ small[0].weight.detach().T),
    )
    expected = sum(part.T @ part for part in hidden)
    assert torch.allclose(second_moments(small, "2", pairs), expected)
    again, _ = sparsify(model[2].weight, expected, 0.5)
    assert torch.allclose(small[2].weight, again)
    with pytest.raises(SecateurError, match="OBS"):
        obs(model, pairs, 0.5, layout=Layout("global"))
    with pytest.raises(SecateurError, match="no linear layer"):
        obs(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), [(torch.zeros(1, 4, 5, 5), 0)], 0.5)


def test_grasp_has_a_second_derivative_of_attention():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    data = [(torch.randn(3, 5, 16), torch.randn(3, 5, 16))]
    found = grasp(encoder, data, functional.mse_loss)
    assert all(value.isfinite().all() for value in found.values())
    assert found["self_attn.in_proj_weight"].any()


def test_rounds_before_the_last_go_without_an_n_to_m_pattern():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    layout = Layout(pattern="2:4")
    plans = [
        synflow(model, torch.randn(2, 8), 0.5, rounds=3, layout=layout),
        iterative(copy.deepcopy(model), lambda model, hook: None, 0.5, rounds=2, layout=layout),
    ]
    for plan in plans:
        for step in plan.steps:
            for support in step.supports:
                assert (torch.from_numpy(support.mask()).unflatten(1, (-1, 4)).sum(-1) == 2).all()
