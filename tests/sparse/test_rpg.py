"""RPG: the method against a slow loop, its schedule and presets against what was published, and exact zeros."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import secateur
from loops import train
from secateur.train.sparse import Growth, Ramp, Rank, Sparse, gmp, rpg
from secateur.train.sparse.methods import RPG_PUBLISHED
from sparse_cases import SGD, batches, net, slow_loss


def slow_rank_gradients(w, convs, delta):
    """The rank loss's gradient for each of `convs`, by autograd; 0 for those of zeros, which the loss leaves out."""
    tensors = [torch.from_numpy(w[n].copy()).requires_grad_() for n in convs]
    alive = [tensor for tensor in tensors if tensor.any()]
    found = torch.autograd.grad(slow_loss(alive, delta), alive)
    pairs = iter(found)
    return {n: next(pairs).numpy() if w[n].any() else 0 for n in convs}


def slow_regrowth(whole, w, score, f):
    """A layer's mask: of the entries in `whole` the share `f` that is smallest goes, and as many of the largest score come."""
    count = int(whole.sum())
    moved = min(int(f * count), whole.size - count)
    size = np.where(whole, np.abs(w).reshape(-1), -1)
    kept = np.zeros(whole.size, bool)
    kept[np.argsort(-size, kind="stable")[: count - moved]] = True
    candidates = np.where(kept, -1, np.abs(score).reshape(-1))
    kept[np.argsort(-candidates, kind="stable")[:moved]] = True
    return kept.reshape(w.shape)


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
        if acts == "step" and strength:
            for n, push in slow_rank_gradients(w, convs, delta).items():
                grads[n] = grads[n] + strength * push
        update = t % every == 0 and t <= max(0.901 * steps, every * (n_up + 1))
        if update:
            c = t // every - 1
            density = keep ** (c / n_up) if c < n_up else keep
            f = 0.3 / 2 * (1 + math.cos(math.pi * t / (0.901 * steps))) if t < 0.901 * steps else 0.0
            score = dict(grads)
            if acts == "growth" and strength:
                for n, push in slow_rank_gradients(w, convs, delta).items():
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
                masks[n] = slow_regrowth(whole, w[n], score[n], f)
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
