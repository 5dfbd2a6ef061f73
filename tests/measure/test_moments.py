"""Second moments of what layers read, and the rows and matrices they are made of, against numpy and single passes."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import handmade
from cut_networks import data
from secateur.measure import moments
from secateur.measure.layers import is_matrix, matrix, outputs, rows
from secateur.measure.moments import input_moments, paired_moments

LAYERS = [
    (nn.Linear(5, 3), (4, 5)),
    (nn.Linear(5, 3), (4, 7, 5)),
    (nn.Conv1d(2, 3, 3, stride=2, padding=1, dilation=2), (4, 2, 9)),
    (nn.Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(1, 0), bias=False), (4, 2, 5, 6)),
    (nn.Conv2d(2, 3, 3, padding="same", padding_mode="reflect"), (4, 2, 5, 6)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_a_layer_is_its_rows_times_its_matrix(layer: nn.Module, shape: tuple[int, ...]) -> None:
    layer, x = layer.double(), torch.randn(shape, dtype=torch.float64)
    expected = rows(layer, x) @ matrix(layer).T + (layer.bias if layer.bias is not None else 0)
    torch.testing.assert_close(outputs(layer, layer(x)), expected)
    assert is_matrix(layer)


def test_moments_of_own_outputs_are_those_of_a_pass() -> None:
    model = handmade.small()
    model.two.bias = nn.Parameter(torch.randn(6, dtype=torch.float64))
    names = ["one", "two", "head"]
    one, two = input_moments(model, names, data()), paired_moments(model, deepcopy(model), names, data())
    for name in names:
        for part in ("x", "y", "xx", "xy"):
            torch.testing.assert_close(getattr(one[name], part), getattr(two[name], part))
    x = np.concatenate([rows(model.one, x).numpy() for x, _ in data()])
    np.testing.assert_allclose(one["one"].centred().xx, np.cov(x.T, bias=True), atol=1e-12)


@pytest.mark.parametrize("room", [1, 50_000, 1 << 28])
def test_moments_layer_by_layer_are_those_of_one_pass_in_as_many_passes_as_there_is_room_for(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, names, passes = handmade.small(), ["one", "two", "head"], []
    monkeypatch.setattr(moments, "AT_ONCE", room)
    whole = moments.input_moments

    def counted(model: nn.Module, group: list[str], *args: Any, **options: Any) -> dict[str, moments.Moments]:
        passes.append(group)
        return whole(model, group, *args, **options)

    monkeypatch.setattr(moments, "input_moments", counted)
    found = dict(moments.moments_of_each(model, names, data(), sample=50))
    assert list(found) == names
    assert [len(group) for group in passes] == {1: [1, 1, 1], 50_000: [2, 1], 1 << 28: [3]}[room]
    for name, known in whole(model, names, data(), sample=50).items():
        torch.testing.assert_close(found[name].xx, known.xx)
