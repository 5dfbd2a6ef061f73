"""Counts, and budgets on bytes, activation memory and latency: what was promised is what is measured, alone and together."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from cost_networks import X, network, synthetic
from secateur import allocate, criteria, measure, save, score, trace
from secateur.allocate.costs import activation_bytes, file_bytes, latency_ms
from secateur.core.errors import SecateurError
from secateur.io import read_plan
from secateur.recipes import schema, zoo
from secateur.recipes.choose import choose


def test_counts_of_the_papers_vgg() -> None:
    """PFEC's configuration A and CHIP's widths, on VGG-16 with one hidden layer."""
    model = zoo.vgg16_bn_cifar()
    axes = trace(model, torch.zeros(1, 3, 32, 32))
    convs = [axis for axis in axes.free if any(slot.tensor.startswith("features") for slot in axis.writers())]
    assert len(convs) == 13
    widths = [axis.units for axis in convs]
    configurations = {
        (5_399_690, 206_279_680): [32, *widths[1:7], *[256] * 6],
        (1_901_836, 66_521_088): [*[int(n * 0.55) for n in widths[:7]], *[int(512 * 0.22)] * 5, 512],
    }
    for (params, macs), kept in configurations.items():
        plan = axes.plan({axis.name: range(n) for axis, n in zip(convs, kept, strict=True)})
        small = plan.apply(model)
        assert sum(p.numel() for p in small.parameters()) == params
        counted = {axis.name: n for axis, n in zip(convs, kept, strict=True)}
        assert axes.count("params", counted) == params
        assert axes.count("macs", counted) == macs
        assert plan.facts(model, torch.zeros(1, 3, 32, 32)).macs == macs


@pytest.mark.parametrize("share", [0.4, 0.7])
def test_the_file_is_as_small_as_was_promised(share: float, tmp_path: Path) -> None:
    model, axes = network()
    cost = file_bytes(model, axes)
    plan = allocate.budget(axes, score(axes, criteria.l2(model)), {"bytes": share}, costs={"bytes": cost})
    small = plan.apply(model)
    widths = {name: after for name, (_, after) in plan.widths().items()}
    held = sum(value.numel() * value.element_size() for value in small.state_dict().values())
    assert cost(widths) == held == measure.facts(small, X).bytes
    assert held <= share * cost({})
    save(tmp_path / "a.safetensors", small)
    assert (tmp_path / "a.safetensors").stat().st_size - held < 12_000, "the header is all that is beside"
    for axis in axes.free:
        if widths.get(axis.name, axis.units) < axis.units:
            assert cost({**widths, axis.name: widths[axis.name] + 1}) > share * cost({})


def test_tied_tensors_and_halves_are_counted_once() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)).half()
    model.add_module("again", model[0])
    axes = trace(model.float(), torch.zeros(1, 4))
    assert file_bytes(model.half(), axes)({}) == 2 * (24 + 6 + 24 + 4)


def test_activation_memory_is_what_is_measured() -> None:
    model, axes = network()
    cost = activation_bytes(model, axes, X)
    assert cost({}) == measure.peak_memory(model, X)
    plan = allocate.budget(axes, score(axes, criteria.l2(model)), {"memory": 0.8}, costs={"memory": cost})
    small = plan.apply(model)
    assert measure.peak_memory(small, X) <= 0.8 * measure.peak_memory(model, X)
    assert cost({name: after for name, (_, after) in plan.widths().items()}) == measure.peak_memory(small, X)


def test_several_budgets_at_once() -> None:
    model, axes = network()
    costs = {"bytes": file_bytes(model, axes), "memory": activation_bytes(model, axes, X)}
    costs["latency"] = latency_ms(model, axes, X, synthetic(model))
    keep = {"macs": 0.7, "bytes": 0.6, "memory": 0.9, "latency": 0.8}
    plan = allocate.budget(axes, score(axes, criteria.l2(model)), keep, costs=costs)
    widths = {name: after for name, (_, after) in plan.widths().items()}
    used = {what: cost(widths) / cost({}) for what, cost in costs.items()}
    used["macs"] = axes.count("macs", widths) / axes.count("macs")
    assert all(used[what] <= share for what, share in keep.items())
    assert any(used[what] > share - 0.06 for what, share in keep.items())
    with pytest.raises(SecateurError, match="the least possible share"):
        allocate.budget(axes, score(axes, criteria.l2(model)), {"latency": 0.01}, costs=costs)
    with pytest.raises(SecateurError, match="no such count"):
        allocate.budget(axes, score(axes, criteria.l2(model)), {"latency": 0.5})


def test_the_least_share_of_milliseconds_is_told_to_four_digits() -> None:
    """Of a small network they are tenths: the share that is told must be possible, and no less must be."""
    model, _ = network()
    axes = trace(model, X)
    scores = score(axes, criteria.l1(model))
    cost = lambda widths: 0.1 + 0.0123 * sum(widths.get(axis.name, axis.units) for axis in axes.free)  # noqa: E731
    with pytest.raises(SecateurError, match="least possible share") as told:
        allocate.budget(axes, scores, {"ms": 0.001}, costs={"ms": cost}, floor=0.0)
    share = float(re.search(r"that (\S+) is the least", str(told.value))[1])  # type: ignore[index]
    assert allocate.budget(axes, scores, {"ms": share}, costs={"ms": cost}, floor=0.0)
    with pytest.raises(SecateurError, match="least possible share"):
        allocate.budget(axes, scores, {"ms": share - 2e-4}, costs={"ms": cost}, floor=0.0)
    with pytest.raises(SecateurError, match=r"that 1\.0000 is the least possible share"):
        allocate.budget(axes, scores, {"ms": 0.999}, costs={"ms": lambda widths: 0.1079})


def test_a_recipe_and_the_command_line_take_them(tmp_path: Path, call) -> None:  # type: ignore[no-untyped-def]
    table, plan = tmp_path / "table.json", tmp_path / "plan.json"
    assert call("measure", "zoo:digits_resnet", "--input", "1,1,8,8", "--table", table, "--threads", 1)[0] == 0
    words = ("plan", "zoo:digits_resnet", "--input", "1,1,8,8", "-o", plan)
    code, _, told = call(*words, "--keep", "latency=0.95", "--keep", "bytes=0.7", "--keep", "macs=0.8", "--table", table)
    assert code == 0, told
    assert read_plan(plan)
    code, _, told = call(*words, "--keep", "latency=0.9", "--table", tmp_path / "none.json")
    assert (code, told.count("\n")) == (2, 1)
    code, _, told = call(
        "plan", "zoo:digits_resnet", "--input", "3,1,8,8", "--keep", "latency=0.9", "--table", table, "-o", plan
    )
    assert (code, "no layer" in told) == (2, True)
    code, _, told = call(*words, "--keep", "energy=0.5")
    assert (code, "no quantity 'energy'" in told) == (2, True)


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("allocator", ["budget", "uniform"])
def test_rounds_and_allocators_meet_them(rounds: int, allocator: str) -> None:
    model, _ = network()
    prune = schema.Prune(keep={"bytes": 0.6, "memory": 0.9}, criterion="l2", rounds=rounds, allocator=allocator)  # type: ignore
    _, plan = choose(model, X, prune)
    small = plan.apply(model)
    assert measure.facts(small, X).bytes <= 0.6 * measure.facts(model, X).bytes + 1e-6
    assert measure.peak_memory(small, X) <= 0.9 * measure.peak_memory(model, X)
