"""Slimming and soft pruning against hand arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hooked import backward, cut_of, data, network, smallest
from secateur.core.errors import SecateurError
from secateur.train import FitSettings, Slimming, SoftPruning, fit


def test_slimming_adds_the_sign_of_scales() -> None:
    model, axes = network()
    method = Slimming(model, smallest(axes), strength=0.25)
    before = backward(model)
    method.after_backward()
    norms = {name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name, parameter in model.named_parameters():
        path, _, last = name.rpartition(".")
        push = 0.25 * parameter.sign() if path in norms and last == "weight" else 0.0
        torch.testing.assert_close(parameter.grad, before[name] + push)
    assert method.loss() == 0
    assert method.plan() == smallest(axes)(model)
    with pytest.raises(SecateurError, match="no norm with a scale"):
        Slimming(nn.Linear(2, 2), smallest(axes))


def test_slimming_thins_scales_and_plain_training_does_not() -> None:
    ends = []
    for strength in (0.0, 0.05):
        model, axes = network()
        fit(
            model,
            data(),
            FitSettings(20, lr=0.02, weight_decay=0.0),
            hooks=[Slimming(model, smallest(axes), strength=strength)],
        )
        ends.append(sum(float(m.weight.detach().abs().sum()) for m in model.modules() if isinstance(m, nn.BatchNorm2d)))
    assert ends[1] < 0.7 * ends[0]


@pytest.mark.parametrize("scales", [False, True])
def test_soft_pruning_zeroes_what_is_lowest_and_lets_it_grow(scales: bool) -> None:
    model, axes = network()
    decide = smallest(axes)
    method = SoftPruning(model, decide, every=2, scales=scales)
    plan = decide(model)
    method.after_step()
    assert all((p != 0).any() for p in model.parameters())
    weight = model.layer1[0].conv1.weight
    before = weight.detach().clone()
    method.after_step()
    cut = cut_of(plan, "layer1.0.conv1")
    assert not weight[list(cut.dropped)].any()
    assert torch.equal(weight[list(cut.kept)], before[list(cut.kept)])
    norm = model.layer1[0].bn1
    assert bool(norm.bias[list(cut.dropped)].any()) is not scales
    assert model.layer1[0].conv2.weight[:, list(cut.dropped)].any(), "readers stay"
    assert method.plan() == plan
    backward(model)
    torch.optim.SGD(model.parameters(), 0.1).step()
    if not scales:
        grown = [
            model.get_submodule(c.axis).weight[list(c.dropped)].any() for c in plan.steps[0].cuts if c.axis.endswith("conv1")
        ]
        assert any(grown), "it grows back"
