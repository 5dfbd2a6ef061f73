"""RPG's rank term: against autograd, its growth set against full decompositions, and the ranks of what is left."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from loops import train
from secateur.linalg import normalised, repulsion, tail_mask, tail_space
from secateur.measure import rank_facts
from secateur.train.sparse import Ramp, Rank, Sparse, rpg
from secateur.train.sparse.rank import RankTerm
from secateur.train.sparse.weights import weights_of
from sparse_cases import batches, find_k, net, slow_loss


@pytest.mark.parametrize("delta", [0.05, 0.1, 0.2, 0.5])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_the_closed_form_is_autograds_gradient_to_1e_10(delta, share):
    model = net()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(torch.rand_like(weight) < share)
        model.twin2.weight.zero_()
    weights = weights_of(model)
    tensors = [w.tensor for w in weights if w.convolution]
    expected = torch.autograd.grad(slow_loss(tensors, delta), [t for t in tensors if t.any()])
    found = RankTerm(Rank(0.7, delta), weights).gradients()
    assert set(found) == {"stem.weight", "wide.weight", "twin.weight", "twin2.weight"}, "the code leaves linear layers out"
    for name, one in zip(("stem.weight", "wide.weight", "twin.weight"), expected, strict=True):
        assert (found[name] - 0.7 * one).abs().max() < 1e-10
    assert not found["twin2.weight"].any()
    assert "head.weight" in RankTerm(Rank(0.7, delta, linear=True), weights).gradients()


def test_on_zeros_the_gradient_is_that_of_the_low_rank_approximation():
    """+2 A / ||w|| for one layer."""
    torch.manual_seed(0)
    w = torch.randn(1, 8, 20, dtype=torch.float64) * (torch.rand(1, 8, 20) < 0.3)
    unit, norms = normalised(w)
    push, distance = repulsion(unit, norms, tail_space(unit, 0.2))
    u, s, v = np.linalg.svd(unit[0].numpy(), full_matrices=False)
    k = find_k(s**2, 0.2)
    low = (u[:, :k] * s[:k]) @ v[:k]
    zeros = w[0].numpy() == 0
    assert np.abs(push[0].numpy() - 2 * low / float(w.norm()))[zeros].max() < 1e-12
    assert float(distance) == pytest.approx((s[k:] ** 2).sum())


@pytest.mark.parametrize("tail", [0.001, 0.05, 0.2, 0.6, 0.99])
def test_either_side_of_an_approximation_gives_the_same_push(tail):
    """The vectors that are kept, or those that are not: whichever are fewer."""
    generator = torch.Generator().manual_seed(2)
    unit, norms = normalised(torch.randn(3, 9, 30, generator=generator, dtype=torch.float64))
    space = tail_space(unit, tail)
    pushed = repulsion(unit, norms, space)
    for number, one in enumerate(unit):
        u, s, v = np.linalg.svd(one.numpy(), full_matrices=False)
        k = find_k(s**2, tail)
        rest = one.numpy() - (u[:, :k] * s[:k]) @ v[:k]
        error = (rest**2).sum()
        assert np.abs(pushed[0][number].numpy() + 2 * (rest - error * one.numpy()) / float(norms[number])).max() < 1e-12
        assert space.vectors.shape[2] <= max(k, len(s) - k) + 1
        assert float(pushed[1][number]) == pytest.approx(error)


def test_the_nearest_tail_may_lie_on_either_side_and_leaves_out_one_at_least():
    energies = torch.tensor([[0.05, 0.1, 0.25, 0.6]])
    for delta, kept in ((0.01, 3), (0.09, 3), (0.11, 2), (0.2, 2), (0.35, 1), (0.99, 0)):
        assert int(tail_mask(energies, delta).sum()) == kept == find_k(energies[0].flip(0).numpy(), delta)


@pytest.mark.parametrize("sides", [(16, 27), (32, 144), (64, 576), (144, 16)])
def test_the_growth_set_equals_the_exact_one(sides):
    """float32 Gram matrices against float64 decompositions: the same entries grow."""
    g = torch.Generator().manual_seed(sides[0])
    layer = nn.Conv2d(sides[1], sides[0], 1, bias=False)
    with torch.no_grad():
        low = torch.randn(sides[0], 6, generator=g) @ torch.randn(6, sides[1], generator=g) / 6
        value = (low + 0.5 * torch.randn(sides, generator=g)) * (torch.rand(sides, generator=g) < 0.1)
        layer.weight.copy_(value.view_as(layer.weight))
    gradient = 1e-5 * torch.randn(sides, generator=g)
    push = RankTerm(Rank(4.0, 0.2), weights_of(layer)).gradients()["weight"].view(sides)
    w = value.double().numpy()
    n = w / np.linalg.norm(w)
    u, s, v = np.linalg.svd(n, full_matrices=False)
    k = find_k(s**2, 0.2)
    rest = n - (u[:, :k] * s[:k]) @ v[:k]
    exact = -4 * 2 / np.linalg.norm(w) * (rest - (rest**2).sum() * n)
    candidates = w == 0
    count = int(0.03 * candidates.sum())

    def grown(score: np.ndarray) -> set[int]:
        return set(np.argsort(np.where(candidates, score, -1).reshape(-1))[-count:].tolist())

    assert grown((gradient + push).abs().numpy()) == grown(np.abs(gradient.double().numpy() + exact))


def test_a_normalised_term_is_that_share_of_the_tasks_gradient_in_every_layer():
    model = net()
    term = RankTerm(Rank(0.25, normalise=True), weights_of(model))
    found = term.gradients()
    for weight in term.weights:
        gradient = torch.randn_like(weight.tensor) * 7
        push = term.beside(found[weight.name], gradient)
        assert float(push.square().mean().sqrt()) == pytest.approx(0.25 * float(gradient.square().mean().sqrt()))
        assert functional.cosine_similarity(push.flatten(), found[weight.name].flatten(), dim=0) > 1 - 1e-12


def test_a_held_push_costs_nothing_and_is_that_of_the_last_decomposition():
    model = net()
    term = RankTerm(Rank(0.1, 0.2, "step", every=4, hold=True), weights_of(model))
    first = {name: value.clone() for name, value in term.gradients().items()}
    with torch.no_grad():
        model.wide.weight.add_(0.3 * torch.randn_like(model.wide.weight))
    assert all(torch.equal(first[name], value) for name, value in term.gradients(fresh=False).items())
    again = RankTerm(Rank(0.1, 0.2, "step", every=4, hold=True), weights_of(model))
    again.load_state_dict(term.state_dict())
    assert all(torch.equal(first[name], value) for name, value in again.gradients(fresh=False).items())
    assert not torch.equal(first["wide.weight"], term.gradients()["wide.weight"])


def test_between_decompositions_the_distance_is_to_the_last_subspace(monkeypatch):
    from secateur.train.sparse import rank as module

    calls = []
    monkeypatch.setattr(module, "tail_space", lambda unit, tail: calls.append(1) or tail_space(unit, tail))
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    hook = Sparse(model, Ramp(0.5, 100, every=10), rank=Rank(0.1, 0.2, "step", every=4), optimizer=optimizer)
    train(model, hook, batches(9), optimizer)
    assert len(calls) == 3 * 3, "three shapes of convolutions, in steps 1, 5 and 9"
    term = hook._term
    before = {name: value.clone() for name, value in term.gradients(fresh=True).items()}
    old, _ = normalised(model.wide.weight.detach().flatten(1)[None])
    u, s, _ = np.linalg.svd(old[0].numpy(), full_matrices=False)
    u = torch.from_numpy(u[:, : find_k(s**2, 0.2)])
    with torch.no_grad():
        model.wide.weight.add_(0.3 * torch.randn_like(model.wide.weight))
    unit, norms = normalised(model.wide.weight.detach().flatten(1)[None])
    stale = term.gradients(fresh=False)["wide.weight"]
    rest = unit - u @ (u.mT @ unit)
    expected = 0.1 / 4 * -2 / norms * (rest - rest.square().sum() * unit)
    assert (stale - expected.view_as(stale)).abs().max() < 1e-12
    assert (stale - term.gradients(fresh=True)["wide.weight"]).abs().max() > 1e-6
    assert torch.equal(before["stem.weight"], term.gradients()["stem.weight"])


def test_the_term_raises_the_rank_of_what_is_left():
    """One network, one schedule, few entries: with the term in every step matrices end at higher energy rank."""
    ranks = {}
    for strength in (0.0, 2.0):
        model = net(dtype=torch.float32)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        rank = Rank(strength, 0.2, "step", normalise=True)
        train(
            model, rpg(model, 0.2, 120, every=5, rank=rank, optimizer=optimizer), batches(120, dtype=torch.float32), optimizer
        )
        ranks[strength] = sum(found.energy_rank for found in rank_facts(model).values())
    assert ranks[2.0] > ranks[0.0]
