"""secateur bench: runtimes side by side, each computing what PyTorch computes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from secateur.measure.turns import in_turns
from secateur.runtime.rivals import RIVALS, Dense, rivals


class Two(nn.Module):
    """An image and a row of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(5, 4)

    def forward(self, image: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return self.conv(image).mean((2, 3)) + self.linear(row)


def test_every_runtime_computes_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = Two().eval(), (torch.randn(2, 3, 6, 6), torch.randn(2, 5))
    names = [name for name in RIVALS if name != "torch.compile"]  # it needs a compiler and a minute
    runs, absent = rivals(Dense(model, inputs, 1, tmp_path), names)
    assert {"PyTorch eager", "PyTorch eager, channels_last", "PyTorch bf16"} <= set(runs)
    assert set(runs) | set(absent) == set(names)
    expected = model(*inputs).detach()
    for name, run in runs.items():
        with torch.inference_mode():
            found = run()
        found = torch.as_tensor(np.asarray(found[0])) if isinstance(found, list) else found.float()
        exact = name not in ("PyTorch bf16", "ONNX Runtime int8")
        assert (found - expected).abs().max() < (1e-5 if exact else 0.1), name
    assert next(model.parameters()).dtype == torch.float32
    assert model.conv.weight.is_contiguous()


def test_a_runtime_that_fails_is_named(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("on purpose\nmore")

    runs, absent = rivals(Dense(Broken(), (torch.zeros(1),), 1, tmp_path), ["PyTorch eager"])
    assert runs == {}
    assert absent == {"PyTorch eager": "RuntimeError: on purpose"}


def test_turns_rotate_and_all_are_timed() -> None:
    order: list[str] = []
    ticks = iter(range(10_000))
    runs = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = in_turns(runs, 3, lambda: next(ticks) / 1000, least=0.0)
    assert {name: len(taken) for name, taken in times.items()} == dict.fromkeys("abc", 3)
    assert all(t == pytest.approx(1.0) for taken in times.values() for t in taken)
    first = [order[6:][2 * 3 * turn] for turn in range(3)]
    assert first == ["a", "b", "c"]


def test_the_command(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    words = ["bench", "zoo:digits_resnet", "--input", "1,1,8,8", "--rounds", "1", "--runtime", "PyTorch eager", "--json"]
    code, out, _ = call(*words)
    assert code == 0
    found = json.loads(out)
    assert found["fastest_dense"] == "PyTorch eager"
    assert [row["speedup"] for row in found["rows"]] == [1.0]
    code, _, err = call("bench", "zoo:digits_resnet", "--input", "1,1,8,8", "--runtime", "onnx runtime")
    assert code == 2
    assert "ONNX Runtime" in err
