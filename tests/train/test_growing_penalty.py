"""Growing penalties, GReg-1 and GReg-2, against hand arithmetic."""

from __future__ import annotations

import pytest
import torch

from hooked import backward, cut_of, data, network, smallest
from secateur import repair
from secateur.core.errors import SecateurError
from secateur.train import GrowingPenalty, GrowingSettings


def test_growing_penalty_pushes_what_was_picked() -> None:
    model, axes = network()
    method = GrowingPenalty(model, smallest(axes), GrowingSettings(grow=0.5, every=2, most=1.0, settle=3))
    plan = smallest(axes)(model)
    strengths = []
    for _ in range(8):
        before = backward(model)
        method.after_backward()
        strength = float((model.conv1.weight.grad - before["conv1.weight"]).abs().sum())
        cut = cut_of(plan, "layer1.0.conv1")
        weight = model.layer1[0].conv1.weight
        mask = torch.zeros(cut.units).index_fill_(0, torch.tensor(cut.dropped), 1.0)[:, None, None, None]
        torch.testing.assert_close(weight.grad - before["layer1.0.conv1.weight"], method.strength * weight * mask)
        torch.testing.assert_close(model.layer1[0].conv2.weight.grad[cut_of(plan, "conv1").kept[0]],
                                   before["layer1.0.conv2.weight"][cut_of(plan, "conv1").kept[0]])  # fmt: skip
        strengths.append(strength)
        assert not method.done
        method.after_step()
        if method.done:
            break
    assert method.strength == 1.0
    assert strengths[:2] == [0.0, 0.0]
    assert method.step == 4 + 3
    assert method.plan() == plan


def test_greg_1_empties_what_it_cuts() -> None:
    model, axes = network()
    settings = GrowingSettings(grow=1.0, every=1, most=100.0, settle=20, ratio=1e9, scales=True)
    method = GrowingPenalty(model, smallest(axes), settings)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    while not method.done:
        backward(model)
        method.after_backward()
        optimizer.step()
        method.after_step()
    repair.batchnorm(model, model, data())
    small = method.plan().apply(model).eval()
    x = data(1)[0][0]
    with torch.no_grad():
        wrong = float((small(x) - model.eval()(x)).abs().max() / model(x).abs().max())
    assert wrong < 0.01


def test_greg_2_penalises_all_and_picks_later() -> None:
    model, axes = network()
    every = axes.plan({axis.name: [0] for axis in axes.free})
    settings = GrowingSettings(grow=0.01, every=1, most=1.0, pick=0.03, kept=-0.5)
    method = GrowingPenalty(model, smallest(axes), settings, axes_plan=every)
    for _ in range(2):
        method.after_step()
    before = backward(model)
    method.after_backward()
    weight = model.layer1[0].conv1.weight
    torch.testing.assert_close(weight.grad - before["layer1.0.conv1.weight"], 0.02 * weight.detach())
    assert method.picked is None
    method.after_step()
    assert method.picked == smallest(axes)(model)
    before = backward(model)
    method.after_backward()
    cut = cut_of(method.plan(), "layer1.0.conv1")
    pushed = weight.grad - before["layer1.0.conv1.weight"]
    torch.testing.assert_close(pushed[list(cut.kept)], -0.5 * weight.detach()[list(cut.kept)])
    torch.testing.assert_close(pushed[list(cut.dropped)], 0.03 * weight.detach()[list(cut.dropped)])
    with pytest.raises(SecateurError, match="give axes_plan"):
        GrowingPenalty(model, smallest(axes), settings)
