"""Other dense runtimes may run the whole of a network where few weights are zero; see docs/decisions.md."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from secateur import runtime
from secateur.native import library
from secateur.runtime import elsewhere as module
from secateur.runtime import plan
from secateur.runtime.elsewhere import elsewhere, installed

pytestmark = pytest.mark.skipif(bool(library.missing()), reason=library.missing() or "the engine is there")
HERE = [name for name, needs in module.RUNTIMES.items() if all(importlib.util.find_spec(need) for need in needs)]
needs_others = pytest.mark.skipif(not HERE, reason="needs ONNX Runtime or OpenVINO, with onnx and onnxscript")


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user, who has not switched it off."""
    monkeypatch.delenv("SECATEUR_ENGINE_OTHERS", raising=False)


class Several(nn.Module):
    """Two inputs, and nested outputs of which one comes twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, object]:
        maps = torch.relu(self.norm(self.first(x) + y))
        pooled = maps.mean((2, 3))
        return {"maps": maps, "both": (self.last(pooled), maps), "pooled": [pooled * 2]}


def given(batch: int = 2) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    net = Several().train()
    x, y = torch.randn(batch, 3, 9, 11), torch.randn(batch, 8, 9, 11)
    net(x, y)
    return net.eval(), (x, y)


def flat(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [tensor for item in items for tensor in flat(item)]


@needs_others
def test_every_installed_runtime_gives_the_outputs_of_the_model_for_any_values():
    net, inputs = given()
    graph = runtime.prepare(net, inputs).graph
    found = elsewhere(graph, inputs, threads=1)
    assert list(found) == HERE == list(installed())
    for name, run in found.items():
        first = run(inputs)
        for values in (inputs, tuple(torch.randn_like(x) for x in inputs)):
            wanted, mine = net(*values), run(values)
            assert list(mine) == list(wanted)
            assert type(mine["both"]) is tuple
            for a, b in zip(flat(mine), flat(wanted), strict=True):
                assert (a - b).abs().max() < 1e-5, name
        again = flat(net(*inputs))
        assert all((a - b).abs().max() < 1e-5 for a, b in zip(flat(first), again, strict=True)), "outputs are not overwritten"
        strided = tuple(x.transpose(2, 3).contiguous().transpose(2, 3).requires_grad_() for x in inputs)
        assert all((a - b).abs().max() < 1e-5 for a, b in zip(flat(run(strided)), again, strict=True)), (
            "as an engine takes them"
        )


def stand_in(monkeypatch: pytest.MonkeyPatch, seconds: float, asked: list[str] | None = None) -> None:
    """A runtime that gives zeros after a while."""

    def made(graph: object, inputs: Sequence[Tensor], threads: int) -> dict[str, module.Run]:
        def run(inputs: Sequence[Tensor]) -> Tensor:
            end = plan.time.process_time() + seconds
            while plan.time.process_time() < end:
                pass
            return torch.zeros(inputs[0].shape[0], 10)

        if asked is not None:
            asked.append("yes")
        return {"stand-in": run}

    monkeypatch.setattr(plan, "elsewhere", made)


def dense() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval(), torch.randn(8, 3, 48, 48)


def test_the_faster_one_runs_the_whole_and_is_named(few_kernels, monkeypatch):
    net, x = dense()
    stand_in(monkeypatch, 0.0)
    fast = runtime.compile(net, x, threads=1)
    assert not fast(x).any()
    assert {row["runs"] for row in fast.choices(x)} == {"stand-in"}
    stand_in(monkeypatch, 0.1)
    slow = runtime.compile(net, x, threads=1)
    with torch.no_grad():
        assert (slow(x) - net(x)).abs().max() < 1e-4
    assert "stand-in" not in {row["runs"] for row in slow.choices(x)}


def test_others_are_tried_only_where_they_can_win_and_may(few_kernels, monkeypatch, tmp_path):
    asked: list[str] = []
    stand_in(monkeypatch, 0.0, asked)
    net, x = dense()
    assert runtime.compile(net, x, threads=1, others=False)(x).any()
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            layer.weight.data[torch.rand_like(layer.weight) < 0.99] = 0
    sparse = runtime.compile(net, x, threads=1)
    sparse(x)
    sparse(x[:1])
    assert not asked, "no dense kernel is as fast as this, and small inputs are not worth a call"
    runtime.save(tmp_path / "a.engine", runtime.prepare(dense()[0], x), (x,))
    assert runtime.load(tmp_path / "a.engine", 1, others=False)(x).any()
    assert not asked
    assert not runtime.load(tmp_path / "a.engine", 1)(x).any()
    assert asked


def test_a_runtime_that_fails_or_is_wrong_is_left_out(monkeypatch):
    net, inputs = given()
    graph = runtime.prepare(net, inputs).graph

    def failing(given: object) -> object:
        raise RuntimeError("no such operation")

    monkeypatch.setattr(module, "RUNTIMES", {"fails": (), "wrong": ()})
    wrong = lambda given: lambda inputs: [x.numpy() for x in (torch.zeros(2, 8, 9, 11), torch.zeros(2, 5), torch.zeros(2, 8))]  # noqa: E731
    monkeypatch.setattr(module, "SERVERS", {"fails": failing, "wrong": wrong})
    assert elsewhere(graph, inputs, threads=1) == {}
    monkeypatch.setattr(module, "RUNTIMES", {"absent": ("no_such_package_at_all",), "here": ("torch",)})
    assert installed() == ("here",)
    monkeypatch.setenv("SECATEUR_ENGINE_OTHERS", "off")
    assert installed() == ()
