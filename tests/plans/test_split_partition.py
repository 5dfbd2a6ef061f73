"""Layers divided among workers: planted blocks are found, and layers that follow share the division."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from cut_networks import X, network, planted
from networks import ZOO
from secateur import allocate, trace
from secateur.allocate.partition import balanced, shares
from secateur.core.codec import dumps, loads
from secateur.core.errors import SecateurError
from secateur.testing import distance


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("workers", [2, 3, 5])
def test_planted_blocks_are_found(workers: int, noise: float) -> None:
    model, owners = planted(workers, noise=noise)
    axes = trace(model, torch.zeros(1, 5, dtype=torch.float64))
    plan = allocate.partition(model, axes, workers)
    assert [b.module for b in plan.steps[0].layers] == ["2", "4"]
    for blocks in plan.steps[0].layers:
        reads = owners[str(int(blocks.module) - 2)]
        for inputs, outputs in zip(blocks.inputs, blocks.outputs, strict=True):
            assert len({*reads[list(inputs)], *owners[blocks.module][list(outputs)]}) == 1
    if not noise:
        assert shares(plan, model) == pytest.approx({"2": 1.0, "4": 1.0})
        torch.testing.assert_close(plan.apply(model)(torch.ones(1, 5).double()), model(torch.ones(1, 5).double()))


def test_weights_that_are_no_numbers_and_half_a_worker_are_told() -> None:
    model, _ = planted(2, noise=0.1)
    axes = trace(model, torch.zeros(1, 5, dtype=torch.float64))
    with pytest.raises(SecateurError, match="whole number of two workers"):
        allocate.partition(model, axes, 2.0)  # type: ignore[arg-type]
    model[2].weight.data[1, 1] = torch.nan
    with pytest.raises(SecateurError, match="infinite or not a number"):
        allocate.partition(model, axes, 2)


def test_layers_that_follow_share_the_division_and_ends_are_left_whole() -> None:
    model = network()
    axes = trace(model, X)
    plan = allocate.partition(model, axes, 4, kernels=True)
    by_name = {b.module: b for b in plan.steps[0].layers}
    assert set(by_name) == {"two", "three", "four", "five"}
    assert by_name["two"].outputs == by_name["three"].inputs
    assert by_name["four"].outputs == by_name["five"].inputs
    channels = [tuple(sorted({c // 4 for c in group})) for group in by_name["four"].inputs]
    assert tuple(channels) == by_name["three"].outputs, "a channel's plane stays together through flattening"
    points = {b.module for b in allocate.partition(model, axes, 2).steps[0].layers}
    assert points == {"two", "four", "five"}
    with pytest.raises(SecateurError, match="no layer between"):
        allocate.partition(model, axes, 7)
    ends = allocate.partition(
        nn.Sequential(nn.Linear(4, 6)), trace(nn.Sequential(nn.Linear(4, 6)), torch.zeros(1, 4)), 2, ends=True
    )
    assert [b.module for b in ends.steps[0].layers] == ["0"]


def test_the_assignment_is_the_best_of_all() -> None:
    draw = np.random.default_rng(0)
    for _ in range(5):
        gain = draw.normal(size=(6, 3))
        options = set(itertools.permutations([0, 0, 1, 1, 2, 2]))
        best = max(sum(gain[u, w] for u, w in enumerate(option)) for option in options)
        assert gain[np.arange(6), balanced(gain)].sum() == pytest.approx(best)


@pytest.mark.parametrize("net", ZOO)
def test_the_zoo_divides_or_says_why_not(net: str) -> None:
    torch.manual_seed(0)
    build, example = ZOO[net]
    model, x = build().eval(), example()
    axes = trace(model, x)
    if net in ("dense", "padded shortcut", "transformer encoder", "lstm", "gru", "1-D and 3-D", "hard-coded"):
        with pytest.raises(SecateurError, match="no layer between two axes"):
            allocate.partition(model, axes, 2, kernels=True, tries=1)
        return
    plan = allocate.partition(model, axes, 2, kernels=True, tries=1)
    assert distance(plan.preview(model).eval(), plan.apply(model), x) < 1e-4
    assert loads(dumps(plan)) == plan
    assert all(0 < share <= 1 for share in shares(plan, model).values())
