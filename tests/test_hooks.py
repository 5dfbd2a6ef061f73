"""Hooks of the channel-pruning papers against hand arithmetic, and the same run in two halves; NISP against slow loops."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import handmade
from secateur import allocate, criteria, repair, score, trace
from secateur.core.axes import Axes
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.recipes import zoo
from secateur.testing import awake
from secateur.train import (
    Compactors,
    CompactorSettings,
    FitSettings,
    GrowingPenalty,
    GrowingSettings,
    Slimming,
    SoftPruning,
    fit,
)


def network(seed: int = 0) -> tuple[nn.Module, Axes]:
    torch.manual_seed(seed)
    model = awake(zoo.digits_resnet(widths=(4, 6, 8))).double()
    return model, trace(model, torch.zeros(1, 1, 8, 8, dtype=torch.float64))


def data(count: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(2)
    return [(torch.randn(10, 1, 8, 8, generator=draw).double(), torch.randint(10, (10,), generator=draw)) for _ in range(count)]


def smallest(axes: Axes, keep: float = 0.5) -> Callable[[nn.Module], Plan]:
    return lambda model: allocate.uniform(axes, score(axes, criteria.l1(model, group=False)), keep)


def backward(model: nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    x, y = data(1)[0]
    F.cross_entropy(model(x), y).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def cut_of(plan: Plan, axis: str):  # type: ignore[no-untyped-def]
    return next(cut for cut in plan.steps[0].cuts if cut.axis == axis)


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


def compactors(model: nn.Module, axes: Axes, **changes: object) -> Compactors:
    named = {"keep": {"macs": 0.6}, "start": 0, "every": 1, "more": 2, "lr": 0.1, "penalty": 0.5} | changes
    return Compactors(model, axes, CompactorSettings(**named))  # type: ignore[arg-type]


def test_compactors_start_as_nothing_and_reset_gradients() -> None:
    model, axes = network()
    x = data(1)[0][0]
    model.eval()
    before = model(x)
    method = compactors(model, axes)
    torch.testing.assert_close(model(x), before)
    inner = {c.axis.name for c in method.compactors}
    assert "layer1.0.conv1" in inner
    assert all(len({s.tensor for s in c.axis.writers() if s.tensor.endswith("weight")}) == 1 for c in method.compactors)
    backward(model)
    c = method.compactors[0]
    c.chosen[1] = True
    with torch.no_grad():
        c.matrix.mul_(3)
    objective = c.matrix.grad.clone()
    method.after_backward()
    expected = objective + 0.5 * c.matrix.detach() / c.matrix.detach().norm(dim=1, keepdim=True)
    expected[1] = 0.5 * c.matrix.detach()[1] / c.matrix.detach()[1].norm()
    torch.testing.assert_close(c.matrix.grad, expected)


def test_compactors_fold_into_their_layers_and_the_cut_loses_nothing() -> None:
    model, axes = network()
    method = compactors(model, axes, more=3, lr=0.01, momentum=0.9, penalty=0.1)
    fit(model, data(), FitSettings(25, lr=0.02, schedule="constant", nesterov=False), hooks=[method])
    assert method.met()
    model.eval()
    x = data(1)[0][0]
    with torch.no_grad():
        hooked = model(x)
        goes = torch.cat([c.matrix.norm(dim=1)[c.chosen] for c in method.compactors])
        stays = torch.cat([c.matrix.norm(dim=1)[~c.chosen] for c in method.compactors])
        assert goes.max() < stays.min()
        for c in method.compactors:
            c.matrix[c.chosen] = 0
        hooked = model(x)
        method.merge_()
        torch.testing.assert_close(model(x), hooked)
        torch.testing.assert_close(method.plan().apply(model)(x), hooked)
    widths = {name: after for name, (_, after) in method.plan().widths().items()}
    assert axes.count("macs", widths) <= 0.6 * axes.count("macs")
    assert not any(m._forward_hooks for m in model.modules())


def test_compactors_refuse_norms_that_stand_elsewhere() -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.norm(self.a(x).relu()))

    model = Apart()
    method = Compactors(model, trace(model, torch.zeros(2, 3)), CompactorSettings({"params": 0.5}))
    with pytest.raises(SecateurError, match="not stand right behind"):
        model(torch.randn(4, 3))
    plain = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    axes = trace(plain, torch.zeros(2, 3))
    with pytest.raises(SecateurError, match="no axis with one writer"):
        Compactors(plain, axes, CompactorSettings({"params": 0.5}))
    assert method.compactors


MADE = {
    "slimming": lambda model, axes: Slimming(model, smallest(axes), strength=0.01),
    "soft": lambda model, axes: SoftPruning(model, smallest(axes, 0.8), every=3),
    "greg1": lambda model, axes: GrowingPenalty(model, smallest(axes), GrowingSettings(grow=0.01, every=2, settle=2)),
    "greg2": lambda model, axes: GrowingPenalty(
        model,
        smallest(axes),
        GrowingSettings(grow=0.01, every=2, pick=0.02),
        axes_plan=axes.plan({axis.name: [0] for axis in axes.free}),
    ),
    "compactors": lambda model, axes: compactors(model, axes, penalty=0.01),
}


@pytest.mark.parametrize("name", MADE)
def test_a_run_in_two_halves_is_the_run(name: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    ends = []
    for stops in ((4,), (2, 4)):
        for epochs in stops:
            model, axes = network()
            method = MADE[name](model, axes)
            settings = FitSettings(4, lr=0.02, schedule="constant")
            batches = data()[:3]

            def stop(record: dict, epochs: int = epochs) -> None:  # type: ignore[type-arg]
                if record["epoch"] == epochs and epochs < 4:
                    raise KeyboardInterrupt

            path = tmp_path / f"{name}{len(stops)}.checkpoint"
            try:
                fit(model, batches, settings, hooks=[method], checkpoint=path, on_epoch=stop)
            except KeyboardInterrupt:
                assert epochs == 2
        ends.append((copy.deepcopy(model.state_dict()), method.plan(), method))
    assert all(torch.equal(ends[0][0][key], ends[1][0][key]) for key in ends[0][0])
    assert ends[0][1] == ends[1][1]
    if name == "compactors":
        for one, two in zip(ends[0][2].compactors, ends[1][2].compactors, strict=True):
            assert torch.equal(one.matrix, two.matrix)


@pytest.mark.parametrize("name", ["slimming", "soft", "greg1", "compactors"])
def test_state_of_other_settings_is_refused(name: str) -> None:
    model, axes = network()
    others = {
        "slimming": Slimming(model, smallest(axes), strength=0.5),
        "soft": SoftPruning(model, smallest(axes), every=9),
        "greg1": GrowingPenalty(model, smallest(axes)),
        "compactors": compactors(model, axes, more=1),
    }
    with pytest.raises(SecateurError, match="going on with"):
        MADE[name](model, axes).load_state_dict(others[name].state_dict())


def test_nisp_hands_back_through_weights() -> None:
    model = handmade.small()
    axes = trace(model, torch.zeros(1, 3, 4, 4, dtype=torch.float64))
    found = score(axes, criteria.nisp(model, axes))
    head = model.head.weight.detach().abs().numpy()
    stream = np.array([head[:, c * 16 : (c + 1) * 16].sum() for c in range(6)])
    one = np.zeros(8)
    for layer in (model.two, model.three):
        weight = layer.weight.detach().abs().numpy()
        for o in range(6):
            for i in range(8):
                one[i] += weight[o, i].sum() * stream[o]
    units = {axis.units: axis.name for axis in axes.free}
    np.testing.assert_allclose(found[units[6]], stream / stream.max())
    np.testing.assert_allclose(found[units[8]], one / one.max())


def test_nisp_through_a_residual_stream_and_given_answers() -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.head(x + self.down(self.up(x).relu()))

    torch.manual_seed(0)
    model = Stream().double()
    axes = trace(model, torch.zeros(1, 3, dtype=torch.float64))
    answers = next(axis.name for axis in axes if axis.units == 2)
    w = {name: p.detach().abs() for name, p in model.named_parameters()}
    final = torch.tensor([5.0, 0.5], dtype=torch.float64)
    late = w["head.weight"].T @ final
    inner = w["down.weight"].T @ late
    stream = late + w["up.weight"].T @ inner
    found = score(axes, criteria.nisp(model, axes, final={answers: final}))
    units = {axis.units: axis.name for axis in axes.free}
    torch.testing.assert_close(found[units[5]], inner / inner.max())
    torch.testing.assert_close(found[units[4]], stream / stream.max())


def test_nisp_goes_through_transposed_convolutions() -> None:
    """Their weights are (I, O, ...)."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(6, 5, 2, stride=2), nn.ReLU(), nn.Conv2d(5, 2, 1)
    model = nn.Sequential(*layers).double()
    axes = trace(model, torch.zeros(1, 3, 6, 6, dtype=torch.float64))
    found = score(axes, criteria.nisp(model, axes))
    late = np.abs(model[4].weight.detach().numpy()).sum((2, 3)).T @ np.ones(2)
    early = np.abs(model[2].weight.detach().numpy()).sum((2, 3)) @ late
    np.testing.assert_allclose(found["2"], late / late.max())
    np.testing.assert_allclose(found["0"], early / early.max())


def test_nisp_of_a_deep_network_stays_finite() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[layer for _ in range(60) for layer in (nn.Linear(8, 8), nn.ReLU())]).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e4)
    axes = trace(model, torch.zeros(1, 8, dtype=torch.float64))
    scores = score(axes, criteria.nisp(model, axes))
    assert all(float(value.max()) == 1 and float(value.min()) > 0 for value in scores.values())
