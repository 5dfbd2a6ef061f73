"""RPG: the rank term against autograd, the growth set against full decompositions, the method against a slow loop."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import loops
import secateur
from loops import train
from secateur import SecateurError
from secateur.linalg import normalised, repulsion, tail_mask, tail_space
from secateur.measure import rank_facts
from secateur.train.sparse import Growth, Layout, Ramp, Rank, Sparse, gmp, rpg
from secateur.train.sparse.methods import RPG_PUBLISHED
from secateur.train.sparse.rank import RankTerm
from secateur.train.sparse.weights import weights_of


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.wide = nn.Conv2d(6, 10, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(10)
        self.twin = nn.Conv2d(10, 10, 1)
        self.twin2 = nn.Conv2d(10, 10, 1)
        self.head = nn.Linear(10, 4)

    def forward(self, x):
        x = functional.relu(self.norm(self.wide(functional.relu(self.stem(x)))))
        return self.head(self.twin2(functional.relu(self.twin(x))).mean((2, 3)))


def net(seed: int = 0, dtype: torch.dtype = torch.float64) -> Net:
    torch.manual_seed(seed)
    return Net().to(dtype)


def batches(count: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return loops.batches(count, seed, dtype=dtype)


# the rank term -----------------------------------------------------------------------------------------------------


def find_k(energies: np.ndarray, delta: float) -> int:
    """How many singular values the approximation keeps, by trying each number of left-out ones (at least one)."""
    tails = [abs(sum(energies[-left:]) - delta) for left in range(1, len(energies) + 1)]
    return len(energies) - 1 - int(np.argmin(tails))


def slow_loss(weights: list[torch.Tensor], delta: float) -> torch.Tensor:
    """The loss as the released code writes it: decompositions are constants, layers of zero loss do not count."""
    losses = []
    for w in weights:
        if not w.any():
            continue
        n = w.flatten(1) / w.norm()
        u, s, v = np.linalg.svd(n.detach().numpy(), full_matrices=False)
        k = find_k(s**2, delta)
        losses.append(-(n - torch.from_numpy((u[:, :k] * s[:k]) @ v[:k])).square().sum())
    return sum(losses) / len(losses)


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


# the method --------------------------------------------------------------------------------------------------------


def slow_rpg(model, data, keep, steps, *, every, strength, delta, lr, momentum, decay, acts="growth"):
    """The released code's procedure with the exact number of entries, layer by layer; masks after every step."""
    names = [n for n, p in model.named_parameters() if p.dim() > 1]
    params = dict(model.named_parameters())
    convs = [n for n in names if params[n].dim() == 4]
    masks = {n: np.ones(params[n].shape, bool) for n in names}
    held = {n: np.zeros(p.shape) for n, p in params.items()}
    n_up, history = min(int(0.9 * steps) // every, (steps - 1 - every) // every), []
    for t, (x, y) in enumerate(data, 1):
        model.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        grads = {n: p.grad.double().numpy().copy() for n, p in params.items()}
        w = {n: p.detach().numpy() for n, p in params.items()}

        def rank_gradients(w=w):
            tensors = [torch.from_numpy(w[n].copy()).requires_grad_() for n in convs]
            alive = [tensor for tensor in tensors if tensor.any()]
            found = torch.autograd.grad(slow_loss(alive, delta), alive)
            pairs = iter(found)
            return {n: next(pairs).numpy() if w[n].any() else 0 for n in convs}

        if acts == "step" and strength:
            for n, push in rank_gradients().items():
                grads[n] = grads[n] + strength * push
        update = t % every == 0 and t <= max(0.901 * steps, every * (n_up + 1))
        if update:
            c = t // every - 1
            density = keep ** (c / n_up) if c < n_up else keep
            f = 0.3 / 2 * (1 + math.cos(math.pi * t / (0.901 * steps))) if t < 0.901 * steps else 0.0
            score = dict(grads)
            if acts == "growth" and strength:
                for n, push in rank_gradients().items():
                    score[n] = score[n] + strength * push
            flat = np.concatenate([np.abs(w[n]).reshape(-1) for n in names])
            order = np.argsort(-flat, kind="stable")[: round(density * flat.size)]
            chosen = np.zeros(flat.size, bool)
            chosen[order] = True
            at = 0
            for n in names:
                whole = chosen[at : at + w[n].size].reshape(-1)
                at += w[n].size
                params[n].data.mul_(torch.from_numpy(whole.reshape(w[n].shape)))
                count = int(whole.sum())
                moved = min(int(f * count), whole.size - count)
                size = np.where(whole, np.abs(w[n]).reshape(-1), -1)
                kept = np.zeros(whole.size, bool)
                kept[np.argsort(-size, kind="stable")[: count - moved]] = True
                candidates = np.where(kept, -1, np.abs(score[n]).reshape(-1))
                kept[np.argsort(-candidates, kind="stable")[:moved]] = True
                masks[n] = kept.reshape(w[n].shape)
        else:
            for n, p in params.items():
                g = grads[n] * masks[n] if n in masks else grads[n]
                g = g + decay * p.detach().numpy()
                held[n] = momentum * held[n] + g if t > 1 else g
                p.data.sub_(torch.from_numpy(lr * held[n]))
        for n in names:
            params[n].data.mul_(torch.from_numpy(masks[n]))
            held[n] = held[n] * masks[n]
        history.append({n: masks[n].copy() for n in names})
    return history


SGD = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}


@pytest.mark.parametrize(("strength", "acts", "keep"), [(0.0, "growth", 0.05), (4.0, "growth", 0.05), (0.5, "step", 0.15)])
def test_rpg_is_the_released_procedure_step_by_step(strength, acts, keep):
    """With strength 0 this is gradual magnitude pruning with RigL's growth."""
    steps, every, model = 40, 3, net()
    slow = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    rank = Rank(strength, 0.2, acts)
    hook = Sparse(model, Ramp(keep, steps, "exponential", every), growth=Growth(), rank=rank, optimizer=optimizer)
    seen = []
    train(model, hook, batches(steps), optimizer, lambda: seen.append({n: m.numpy().copy() for n, m in hook.masks.items()}))
    expected = slow_rpg(
        slow, batches(steps), keep, steps, every=every, strength=strength, delta=0.2, acts=acts,
        lr=SGD["lr"], momentum=SGD["momentum"], decay=SGD["weight_decay"],
    )  # fmt: skip
    for step, (one, two) in enumerate(zip(seen, expected, strict=True), 1):
        for name in two:
            assert np.array_equal(one[name], two[name]), f"{name} after step {step}"
    for (name, one), two in zip(model.named_parameters(), slow.parameters(), strict=True):
        assert (one - two).abs().max() < 1e-10, name
    assert hook.density == pytest.approx(keep, abs=1e-3)


def test_no_strength_is_growth_by_gradients_alone():
    runs = []
    for make in (
        lambda m: rpg(m, 0.1, 30, every=4, rank=Rank(0.0)),
        lambda m: Sparse(m, Ramp(0.1, 30, "exponential", 4), growth=Growth()),
    ):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), **SGD)
        hook = make(model)
        hook.optimizer = optimizer
        train(model, hook, batches(30), optimizer)
        runs.append(model)
    assert all(torch.equal(one, two) for one, two in zip(runs[0].parameters(), runs[1].parameters(), strict=True))


def test_no_growth_and_a_cubic_ramp_is_gradual_magnitude_pruning():
    model, steps = net(), 30
    slow, optimizer = copy.deepcopy(model), torch.optim.SGD(model.parameters(), 0.05)
    hook = gmp(model, 0.1, steps, every=4)
    other, names = torch.optim.SGD(slow.parameters(), 0.05), [n for n, p in slow.named_parameters() if p.dim() > 1]
    train(model, hook, batches(steps), optimizer)
    masks = {n: torch.ones(p.shape) for n, p in slow.named_parameters() if n in names}
    params = dict(slow.named_parameters())
    for t, (x, y) in enumerate(batches(steps), 1):
        slow.zero_grad()
        functional.cross_entropy(slow(x), y).backward()
        if t % 4 == 0 and t <= 28:
            p = min((t // 4 - 1) / 6, 1)
            flat = torch.cat([params[n].detach().abs().flatten() for n in names])
            count = round((0.1 + 0.9 * (1 - p) ** 3) * len(flat))
            least = flat.sort(descending=True).values[count - 1]
            masks = {n: (params[n].detach().abs() >= least).double() for n in names}
        for n in names:
            params[n].grad.mul_(masks[n])
        other.step()
        for n in names:
            params[n].data.mul_(masks[n])
    assert all(torch.equal(hook.masks[n], masks[n].bool()) for n in names)
    assert all((one - two).abs().max() < 1e-12 for one, two in zip(model.parameters(), slow.parameters(), strict=True))


def test_the_schedule_is_that_of_the_released_script():
    ramp = Ramp(0.02, 125_100, "exponential")
    due = [step for step in range(1, 125_101) if ramp.due(step)]
    assert ramp.changes == 1125
    assert len(due) == 1127
    assert due[0] == 100
    assert due[-2:] == [112_600, 112_700]
    assert [ramp.density(step) == pytest.approx(0.02 ** (c / 1125)) for c, step in enumerate(due[:1126])] == [True] * 1126
    assert ramp.density(due[-3]) > 0.02
    assert ramp.density(due[-2]) == ramp.density(due[-1]) == 0.02


def test_presets_are_the_published_numbers_and_the_nearest_ones():
    model = net()
    for keep, (strength, tail) in RPG_PUBLISHED.items():
        rank = rpg(model, keep, 1000, every=50).rank
        assert (rank.strength, rank.tail, rank.acts) == (strength, tail, "growth")
    assert rpg(model, 0.01, 1000, every=50).rank.strength == 4.0
    assert rpg(model, 0.02, 1000, every=50, reading="abstract").rank.acts == "step"
    assert rpg(model, 0.02, 1000, reading="st3").rank.normalise
    assert secateur.RPG is rpg
    hook = rpg(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), 0.5, 100, every=10)
    assert hook.rank.linear, "without convolutions it acts on linear layers"


@pytest.mark.parametrize("reading", ["released", "abstract", "st3", "acdc"])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_masked_weights_gradients_and_momentum_are_exact_zeros_after_every_step(reading, kind):
    model = net(dtype=torch.float32)
    sgd = kind == "sgd"
    optimizer = torch.optim.SGD(model.parameters(), **SGD) if sgd else torch.optim.AdamW(model.parameters(), 1e-2)
    hook = rpg(
        model, 0.05, 60, reading=reading, optimizer=optimizer, **({"every": 4} if reading in ("released", "abstract") else {})
    )

    def look() -> None:
        for name, mask in hook.masks.items():
            weight = model.get_parameter(name)
            assert not weight.detach()[~mask].any()
            if reading != "st3":  # whose pruned weights go on learning
                for value in optimizer.state[weight].values():
                    assert value.dim() == 0 or not value[~mask].any()

    train(model, hook, batches(60, dtype=torch.float32), optimizer, look)
    assert hook.density == pytest.approx(0.05, abs=2e-3)
    small = hook.plan().apply(net(3, torch.float32))
    assert all(not small.get_parameter(name).detach()[~mask].any() for name, mask in hook.masks.items())


def test_gradients_outside_the_masks_are_zeros_before_the_step():
    """Else they would count in the norm that gradients are clipped to."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    hook = gmp(model, 0.1, 30, every=3, optimizer=optimizer)
    for x, y in batches(30):
        functional.cross_entropy(model(x), y).backward()
        hook.after_backward()
        assert not any(model.get_parameter(name).grad[~mask].any() for name, mask in hook.masks.items())
        optimizer.step()
        hook.after_step()
        optimizer.zero_grad()


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


def test_rank_facts_against_numpy():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Linear(9, 5))
    with torch.no_grad():
        model[0].weight[2] = 0
        model[0].weight[:, 1] = 0
        model[0].weight[4] = model[0].weight[3] * 2
        model[1].weight.zero_()
    found = rank_facts(model)
    weight = model[0].weight.detach().flatten(1).double().numpy()
    assert found["0.weight"].rank == np.linalg.matrix_rank(weight, tol=1e-5) == 4
    values = np.linalg.svd(weight, compute_uv=False) ** 2
    assert found["0.weight"].energy_rank == next(k for k in range(7) if values[k:].sum() <= 0.2 * values.sum())
    assert (found["0.weight"].empty_rows, found["0.weight"].empty_columns, found["0.weight"].full) == (1, 1, 6)
    assert (found["1.weight"].rank, found["1.weight"].energy_rank, found["1.weight"].empty_rows) == (0, 0, 5)
    assert list(rank_facts(model, names=["1.weight"])) == ["1.weight"]


WRONG = {
    "keep 0": (lambda: rpg(net(), 0, 100), "no share"),
    "keep 2": (lambda: gmp(net(), 2, 100), "no share"),
    "reading": (lambda: rpg(net(), 0.1, 100, reading="paper"), "no such reading"),
    "steps": (lambda: gmp(net(), 0.1, 0.5), "steps=0.5"),
    "too few steps": (lambda: rpg(net(), 0.1, 150), "change masks more often"),
    "a shape": (lambda: Ramp(0.1, 100, "cubical"), "did you mean 'cubic'"),
    "an order": (lambda: Ramp(0.1, 100, begin=0.9, end=0.5), "begin"),
    "delta": (lambda: Rank(1.0, 1.0), "between 0 and 1"),
    "lambda": (lambda: Rank(-1.0), "strength"),
    "a moment": (lambda: Rank(1.0, acts="epoch"), "growth"),
    "decompositions": (lambda: Rank(1.0, every=0), "whole number"),
    "a drop": (lambda: Growth(2.0), "share"),
    "no convolution": (lambda: Sparse(nn.Linear(3, 3), Ramp(0.5, 100, every=10), rank=Rank(1.0)), "linear=True"),
    "nothing": (lambda: gmp(nn.BatchNorm1d(3), 0.1, 100, every=10), "no weight"),
    "a pattern that hits nothing": (lambda: gmp(net(), 0.1, 100, every=10, dense=["fc*"]), "no layer"),
    "a layout": (lambda: Layout("globally"), "did you mean 'global'"),
    "a group": (lambda: Layout(pattern="4:2"), "2:4"),
    "both": (lambda: Layout(pattern="2:4", occupancy=1), "one of them"),
    "2:4 of another share": (lambda: gmp(net(), 0.1, 100, every=10, layout=Layout(pattern="2:4")), "keep=0.5"),
    "growth in groups": (lambda: rpg(net(), 0.5, 100, every=10, layout=Layout(pattern="2:4")), "blocks"),
    "soft growth": (lambda: Sparse(net(), Ramp(0.5, 100, every=10), growth=Growth(), soft=True), "leave growth out"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_makes_no_sense_is_one_sentence(case):
    ask, words = WRONG[case]
    with pytest.raises(SecateurError, match=words):
        ask()
