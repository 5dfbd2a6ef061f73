"""Trained rank pruning: the paper's rule and arithmetic, on networks small enough to follow by hand."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from loops import batches, train
from scripts import module
from secateur import TRP, SecateurError
from secateur.surgery import unfold
from secateur.train import TRPSettings
from trp_network import low, net


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("on", ["step", "truncation"])
def test_training_follows_equation_2_and_6(every, on):
    """Against the released code's arithmetic, layer by layer in float64, on the paper's rule; momentum stays."""
    model, strength, e = net(), 0.01, 0.1
    twin = copy.deepcopy(model)
    sgd = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}
    method = TRP(model, format="channel", energy=1 - e, every=every, nuclear=strength, nuclear_on=on)
    train(model, method, batches(5), torch.optim.SGD(model.parameters(), **sgd))
    optimizer, names, pushes = torch.optim.SGD(twin.parameters(), **sgd), ("wide", "down", "point"), {}
    for number, (x, y) in enumerate(batches(5)):
        if number % every == 0:
            _truncate(twin, names, e, pushes)
        functional.cross_entropy(twin(x), y).backward()
        if on == "step" or number % every == 0:
            for name in names:
                getattr(twin, name).weight.grad += strength * pushes[name]
        optimizer.step()
        optimizer.zero_grad()
    if 5 % every == 0:
        _truncate(twin, names, e, pushes)
    for (name, one), two in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (one - two).abs().max() < 1e-5, name


def _truncate(model: nn.Module, names, e: float, pushes: dict) -> None:
    for name in names:
        weight = getattr(model, name).weight
        kept, push = low(weight.detach().double().flatten(1).numpy(), e)
        weight.data.copy_(torch.from_numpy(kept).view_as(weight))
        pushes[name] = torch.from_numpy(push).view_as(weight).float()


@pytest.mark.parametrize("form", ["spatial", "channel", "decouple"])
def test_weights_are_truncated_when_the_hook_is_made(form):
    model = net()
    before = copy.deepcopy(model)
    method = TRP(model, format=form, energy=0.9)
    assert [layer.name for layer in method.layers] == ["wide", "down", "point"]
    for layer in method.layers:
        old = unfold(before.get_submodule(layer.name).weight.detach(), layer.format)
        new = unfold(layer.weight.detach(), layer.format)
        for one, two in zip(old, new, strict=True):
            assert np.abs(low(one.double().numpy(), 0.1)[0] - two.numpy()).max() < 1e-5
    assert torch.equal(before.stem.weight, model.stem.weight)
    assert torch.equal(before.deep.weight, model.deep.weight)


def test_no_discarded_energy_and_no_nuclear_norm_is_plain_training():
    model, plain = net(), net()
    method = TRP(model, energy=1.0, every=1, nuclear=0.0)
    train(model, method, batches(3), torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
    optimizer = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9)
    for x, y in batches(3):
        functional.cross_entropy(plain(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), plain.parameters(), strict=True))


def test_which_layers():
    names = {
        "paper": ["wide", "down", "point"],
        "code": ["wide", "down"],
    }
    for preset, expected in names.items():
        assert [layer.name for layer in TRP(net(), preset).layers] == expected
    chosen = TRP(net(), stem=True, linear=True, strided=False, ignore=["po*"]).layers
    assert [(layer.name, layer.format) for layer in chosen] == [("stem", "spatial"), ("wide", "spatial"), ("head", "linear")]
    formats = {layer.name: layer.format for layer in TRP(net(), format="decouple").layers}
    assert formats == {"wide": "decouple", "down": "decouple", "point": "channel"}
    code = TRP(net(), "code").settings
    assert (code.energy, code.every, code.nuclear, code.nuclear_on) == (0.9, 1, 0.0003, "truncation")
    paper = TRP(net()).settings
    assert (paper.energy, paper.every, paper.nuclear, paper.nuclear_on) == (0.98, 20, 0.0003, "step")
    assert [p.module for p in TRP(net(), "code").plan({"rank": 2}).steps[0].products] == ["wide"], "strided layers stay dense"


def test_tied_weights_and_subclasses_stay():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    model[2].weight = model[1].weight
    assert [layer.name for layer in TRP(model).layers] == ["3"]


def test_theorem_2_the_rank_does_not_grow_while_steps_are_short():
    """Xu et al., 2020: G < sqrt(e) / m * ||W^{t+m}|| bounds rank(T^{z+1}) by rank(T^z)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(8, 12, 3))
    e, m, checked = 0.05, 4, 0
    method = TRP(model, format="channel", energy=1 - e, every=m, nuclear=0.0, stem=True)
    weight = model[1].weight
    generator = torch.Generator().manual_seed(5)
    for _ in range(20):
        before, most = np.linalg.matrix_rank(weight.detach().flatten(1).numpy(), tol=1e-4), 0.0
        for step in range(m):
            size = 0.9 * e**0.5 / m * float(weight.detach().norm()) * torch.rand((), generator=generator)
            push = torch.randn(weight.shape, generator=generator)
            moved = push * size / push.norm()
            most = max(most, float(moved.norm()))
            weight.data.add_(moved)
            if step == m - 1:
                norm = float(weight.detach().norm())
            method.after_step()
        if most < e**0.5 / m * norm:
            checked += 1
            assert np.linalg.matrix_rank(weight.detach().flatten(1).numpy(), tol=1e-4) <= before
    assert checked > 10


def test_projected_momentum_stays_with_matrices_of_the_kept_rank():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    method = TRP(model, optimizer=optimizer, project_momentum=True, format="channel", energy=0.8, every=2)
    train(model, method, batches(2), optimizer)
    held = optimizer.state[model.wide.weight]["momentum_buffer"].flatten(1).double().numpy()
    kept = model.wide.weight.detach().flatten(1).double().numpy()
    u, s, v = np.linalg.svd(kept, full_matrices=False)
    k = int((s > 1e-4).sum())
    assert k < len(s)
    left, right = u[:, :k] @ u[:, :k].T, v[:k].T @ v[:k]
    outside = held - left @ held - held @ right + left @ held @ right
    assert np.abs(outside).max() < 1e-5
    assert np.abs(held - left @ held @ right).max() > 1e-4, "kept vectors may turn"
    small = 1e-3 * s[k - 1] / np.linalg.norm(held)
    assert np.linalg.svd(kept + small * held)[1][k] < 10 * small**2 * np.linalg.norm(held) ** 2 / s[k - 1]
    with pytest.raises(SecateurError, match="no optimizer"):
        TRP(net(), project_momentum=True).after_step()


def test_a_resumed_run_is_the_uninterrupted_one():
    whole, data = net(), batches(7)
    optimizer = torch.optim.SGD(whole.parameters(), 0.1, momentum=0.9)
    method = TRP(whole, every=3, energy=0.9)
    train(whole, method, data[:4], optimizer)
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict(), method.state_dict()))
    train(whole, method, data[4:], optimizer)
    again = net(9)
    second = torch.optim.SGD(again.parameters(), 0.1, momentum=0.9)
    resumed = TRP(again, every=3, energy=0.9)
    again.load_state_dict(saved[0])
    second.load_state_dict(saved[1])
    resumed.load_state_dict(saved[2])
    train(again, resumed, data[4:], second)
    assert all(torch.equal(one, two) for one, two in zip(whole.parameters(), again.parameters(), strict=True))
    with pytest.raises(SecateurError, match="every"):
        TRP(net(), every=4, energy=0.9).load_state_dict(saved[2])
    with pytest.raises(SecateurError, match="layer 'point'"):
        TRP(net(), every=3, energy=0.9, ignore=["point"]).load_state_dict(saved[2])


WRONG = {
    "no preset": (lambda: TRP(net(), "papers"), "did you mean 'paper'"),
    "no setting": (lambda: TRP(net(), evry=3), "did you mean 'every'"),
    "energy above 1": (lambda: TRP(net(), energy=1.5), "no share"),
    "energy of 0": (lambda: TRP(net(), energy=0), "no share"),
    "half a step": (lambda: TRP(net(), every=0.5), "number of steps"),
    "negative": (lambda: TRP(net(), nuclear=-1.0), "strength"),
    "moment": (lambda: TRP(net(), nuclear_on="epoch"), "moment"),
    "tucker": (lambda: TRP(net(), format="tucker2"), "one matrix per layer"),
    "no layers": (lambda: TRP(nn.Sequential(nn.Linear(3, 3))), "no plain convolution"),
    "two ways": (lambda: TRP(net()).plan({"rank": 2, "value": 1.0}), "not one way"),
    "no way": (lambda: TRPSettings(deploy={"flops": 0.5}), "not one way"),
    "rank 0": (lambda: TRP(net()).plan({"rank": 0}), "whole numbers"),
    "a share of 2": (lambda: TRP(net()).plan({"energy": 2}), "share"),
    "a layer": (lambda: TRP(net()).plan({"rank": {"wde": 3}}), "did you mean 'wide'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_makes_no_sense_is_one_sentence(case):
    ask, words = WRONG[case]
    with pytest.raises(SecateurError, match=words):
        ask()


def test_the_benchmark_runs(tmp_path, monkeypatch):
    bench = module("bench/trp_overhead.py")
    out = tmp_path / "out.json"
    words = ["x", "--model", "digits_resnet", "--colours", "1", "--size", "8", "--batch", "4", "--settle", "2", "--rounds", "1"]
    monkeypatch.setattr("sys.argv", [*words, "--out", str(out)])
    bench.main()
    row = json.loads(out.read_text())
    assert row["largest_difference_warm"] < 1e-4
    assert row["largest_difference_cold"] < 1e-5
    assert row["ranks_equal"]
    assert row["reference_seconds"] > 0
