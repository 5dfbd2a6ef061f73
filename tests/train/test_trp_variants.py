"""What is not in the paper: shrinkage instead of a cut, decoupled decay, ranks to reach, periods that follow the weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from loops import batches
from secateur import TRP, SecateurError
from secateur.surgery import unfold
from secateur.train import FitSettings, TRPSettings, fit
from secateur.train.trp.period import Periods

LR, STRENGTH = 0.1, 3.0


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 1), nn.Flatten())


def values(weight: torch.Tensor, form: str = "spatial") -> np.ndarray:
    return np.linalg.svd(unfold(weight.detach(), form)[0].double().numpy(), compute_uv=False)


def rank(weight: torch.Tensor) -> int:
    return int((values(weight) > 1e-4).sum())


@pytest.mark.parametrize("every", [1, 3])
def test_the_proximal_step_shrinks_every_singular_value(every):
    """Cai et al., 2010: the proximal operator of t times the nuclear norm takes t from all singular values, at least 0."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), LR)
    method = TRP(model, energy=1.0, every=every, nuclear=STRENGTH, nuclear_by="proximal", optimizer=optimizer)
    before = copy.deepcopy(model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), net().parameters(), strict=True)), "not before a step"
    for layer in method.layers:
        layer.weight.grad = torch.zeros_like(layer.weight)
    for _ in range(every):
        method.after_backward()
        assert not any(layer.weight.grad.any() for layer in method.layers), "the gradient is left alone"
        method.after_step()
    for layer in method.layers:
        old = unfold(before.get_submodule(layer.name).weight.detach(), "spatial")[0].double().numpy()
        u, s, v = np.linalg.svd(old, full_matrices=False)
        expected = (u * np.maximum(s - LR * STRENGTH * every, 0)) @ v
        assert np.abs(unfold(layer.weight.detach(), "spatial")[0].numpy() - expected).max() < 1e-5
        assert rank(layer.weight) < len(s)


def test_decay_moves_along_the_polar_factor_in_every_step_and_past_the_gradient():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9)
    method = TRP(model, energy=1.0, every=20, nuclear=0.2, nuclear_by="decay", optimizer=optimizer)
    for layer in method.layers:
        layer.weight.grad = torch.zeros_like(layer.weight)
    for _ in range(2):
        before = {layer.name: layer.weight.detach().clone() for layer in method.layers}
        method.after_backward()
        assert not any(layer.weight.grad.any() for layer in method.layers)
        method.after_step()
        for layer in method.layers:
            old = unfold(before[layer.name], "spatial")[0].double().numpy()
            u, _, v = np.linalg.svd(old, full_matrices=False)
            moved = old - unfold(layer.weight.detach(), "spatial")[0].double().numpy()
            assert np.linalg.norm(moved - LR * 0.2 * u @ v, 2) < 0.05 * LR * 0.2


def test_ranks_fall_to_those_asked_for_and_stay():
    model = net()
    wanted = {"2": 3, "4": 2}
    method = TRP(model, energy=1.0, every=2, nuclear=0.0, ranks=wanted, descent=8)
    assert rank(model[2].weight) == 24, "full at first"
    seen = []
    for _ in range(12):
        with torch.no_grad():
            model[2].weight.add_(0.1 * torch.randn_like(model[2].weight))
        method.after_step()
        seen.append(rank(model[2].weight))
    assert [seen[at] for at in (1, 3, 5, 7, 9, 11)] == [3 + round(21 * left**3) for left in (0.75, 0.5, 0.25, 0, 0, 0)]
    assert {p.module: p.ranks[0] for p in method.plan({"value": 1e-4}).steps[0].products} == wanted
    at_once = TRP(net(), energy=1.0, ranks=wanted)
    assert [rank(layer.weight) for layer in at_once.layers] == [3, 2]
    with pytest.raises(SecateurError, match="no layer TRP acts on"):
        TRP(net(), ranks={"7": 2})


def test_adaptive_periods_follow_theorem_2():
    """A layer that hardly moves waits longer; one that moves too far in a step is truncated at every one."""
    model = net()
    e = 0.05
    method = TRP(model, energy=1 - e, every=4, nuclear=0.0, adaptive=True)
    generator = torch.Generator().manual_seed(3)
    pace = {"2": 1e-3, "4": 0.5}
    for _ in range(64):
        before = {name: rank(model.get_submodule(name).weight) for name in pace}
        steps = dict(method.periods.steps)
        with torch.no_grad():
            for name, share in pace.items():
                weight = model.get_submodule(name).weight.detach()
                push = torch.randn(weight.shape, generator=generator)
                weight.add_(push * share * weight.norm() / push.norm())
        held = {name: value.clone() for name, value in method._held.items()}
        now = {name: model.get_submodule(name).weight.detach() for name in pace}
        moved = {name: float((now[name] - held[name]).norm() / now[name].norm()) for name in pace}
        method.after_step()
        for name in pace:
            if method.step % steps[name] == 0 and moved[name] < e**0.5:
                assert rank(model.get_submodule(name).weight) <= before[name], "the rank does not grow"
    assert method.periods.steps["2"] >= 16
    assert method.periods.steps["4"] == 1
    with pytest.raises(SecateurError, match="bounds nothing"):
        TRP(net(), energy=1.0, adaptive=True)


@pytest.mark.parametrize(("moved", "period"), [(0.05, 16), (0.3, 2), (0.0, 256), (5.0, 1)])
def test_the_next_period_is_the_longest_that_stays_below_the_bound(moved, period):
    """e = 0.04, so sqrt(e) = 0.2 of a weight of norm 1: at 0.05 in 4 steps there are 16 to go, at 0.3 there are 2."""
    periods = Periods(TRPSettings(energy=0.96, every=4, adaptive=True), ["a"])
    now = torch.zeros(5)
    now[0] = 1.0
    then = now.clone()
    then[1] = moved
    periods.adapt({"a": (now, then)}, 4, {"a": 0})
    assert periods.steps["a"] == period
    assert periods.due("a", 256)


@pytest.mark.parametrize(
    "changes",
    [
        {"nuclear_by": "proximal", "energy": 1.0, "every": 2},
        {"nuclear_by": "decay", "every": 2},
        {"adaptive": True, "every": 2, "energy": 0.9},
        {"ranks": {"2": 4}, "descent": 4, "every": 1, "energy": 0.9, "project_momentum": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_variant_resumes_bit_for_bit_in_the_loop(changes, tmp_path):
    def run(epochs: int, path) -> nn.Module:
        model = net()
        hook = TRP(model, **{"nuclear": 0.01, **changes})
        fit(
            model,
            batches(3, size=5, classes=8),
            FitSettings(epochs=3, lr=0.05, schedule="constant"),
            hooks=[hook],
            checkpoint=path,
            on_epoch=stop(epochs),
        )
        return model

    def stop(epochs: int):
        def on_epoch(record):
            if record["epoch"] == epochs and epochs < 3:
                raise KeyboardInterrupt

        return on_epoch

    whole = run(3, tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        run(2, tmp_path / "part.pt")
    again = run(3, tmp_path / "part.pt")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_a_variant_without_an_optimizer_says_so():
    with pytest.raises(SecateurError, match="no optimizer"):
        TRP(net(), nuclear_by="decay").after_step()
    with pytest.raises(SecateurError, match="proximal"):
        TRP(net(), nuclear_by="proximl")
