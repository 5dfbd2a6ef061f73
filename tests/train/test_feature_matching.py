"""Feature matching against arithmetic: maps of any width, tokens and lines, and a stage that leaves no hook."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.core.errors import SecateurError
from secateur.train import FeatureMatching, FitSettings, Stage, fit_stages
from small_digits import batches, network, weights


def test_feature_matching_compares_maps_whatever_the_width():
    model, teacher = network(0, (4, 6, 8)), network(1, (6, 8, 10)).eval()
    twins = {"ours": copy.deepcopy(model).train(), "theirs": copy.deepcopy(teacher)}
    match = FeatureMatching(model, teacher, ["layer1", "layer2"], weight=2.0)
    x = batches(1)[0][0]
    model.train()(x)
    held = {}
    for name, twin in twins.items():
        h = F.relu(twin.bn1(twin.conv1(x)))
        held[name] = [(h := twin.layer1(h)), twin.layer2(h)]
    total = 0.0
    for ours, theirs in zip(held["ours"], held["theirs"], strict=True):
        one, two = ours.detach().numpy(), theirs.detach().numpy()
        for a, b in zip(one, two, strict=True):
            a, b = ((part**2).mean(0).ravel() for part in (a, b))
            total += ((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2).sum() / len(one)
    assert float(match.loss().detach()) == pytest.approx(2 * total, rel=1e-4)
    match.loss().backward()
    assert model.conv1.weight.grad.abs().sum() > 0
    assert teacher.conv1.weight.grad is None
    match.remove()
    assert not model._forward_pre_hooks
    same = FeatureMatching(teacher, copy.deepcopy(teacher), ["layer3"])
    teacher.train()
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    teacher(x)
    assert float(same.loss().detach()) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(SecateurError, match=r"'layer9'"):
        FeatureMatching(model, teacher, ["layer9"])
    assert not model._forward_pre_hooks


class Features(nn.Module):
    """A layer that hands on what it is given, so that a test chooses the features."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, x):
        return self.layer(x)


def distance(ours, theirs):
    model, teacher = Features().train(), Features()
    match = FeatureMatching(model, teacher, ["layer"])
    teacher(theirs)
    held = dict(match._theirs)
    model(ours)
    match._theirs.update(held)  # the teacher was asked about `ours` as well
    return float(match.loss())


def test_features_of_tokens_compare_tokens():
    """Maps (B, C, H, W), tokens (B, N, C) and lines (B, C, P) of the same values are equally far apart."""
    draw = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, 5, 1, 6, generator=draw), torch.randn(2, 3, 1, 6, generator=draw)
    expected = distance(ours, theirs)
    assert distance(ours[:, :, 0].transpose(1, 2), theirs[:, :, 0].transpose(1, 2)) == pytest.approx(expected, rel=1e-5)
    assert distance(ours[:, :, 0], theirs[:, :, 0]) == pytest.approx(expected, rel=1e-5)
    for one, two in ((ours, theirs[..., :4]), (ours[:, :, 0], theirs[:, :, 0, :4])):
        with pytest.raises(SecateurError, match="the same positions"):
            distance(one, two)


def test_a_stage_of_features_trains_and_leaves_no_hook():
    model, teacher = network(), network(1, (6, 6, 6))
    before = weights(teacher)
    fit_stages(model, batches(), [Stage("match", FitSettings(epochs=1), "features", layers=("layer1",))], teacher=teacher)
    assert not model._forward_pre_hooks
    assert not teacher.layer1._forward_hooks
    assert torch.equal(weights(teacher), before)
