"""Compiled models in bf16: outputs within its rounding, what each layer runs in, and the precision in files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from engine_networks import (
    MISSING,
    NETWORKS,
    needs_kernels,
    network,
    spoiled,
)
from secateur import runtime
from secateur.core.errors import SecateurError
from secateur.native import library
from secateur.runtime.capture import capture
from secateur.runtime.fuse import fuse

pytestmark = pytest.mark.usefixtures("few_kernels")


def close(found: Any, wanted: Any) -> None:
    """Equal structure, values within 2e-2 of the largest: what rounding every value and weight to 8 bits may cost."""
    if isinstance(wanted, dict):
        assert set(found) == set(wanted)
        wanted, found = list(wanted.values()), [found[key] for key in wanted]
    if isinstance(wanted, (tuple, list)):
        for a, b in zip(found, wanted, strict=True):
            close(a, b)
        return
    assert found.shape == wanted.shape
    assert found.dtype == torch.float32
    assert float((found - wanted).abs().max()) <= 2e-2 * max(float(wanted.abs().max()), 1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_in_bf16_are_those_of_the_model_within_its_rounding(name: str) -> None:
    model, inputs = network(name)
    with torch.no_grad():
        wanted = model(*inputs)
    fast = runtime.compile(model, inputs, threads=2, precision="bf16")
    found = fast(*inputs)
    close(found, wanted)
    close(fast(*inputs), found)


@needs_kernels
@pytest.mark.parametrize("isa", library.usable() if not MISSING else ())
def test_every_instruction_set_runs_whole_networks_in_bf16(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_ENGINE_ISA", isa)
    model, inputs = network("plain")
    fast = runtime.compile(model, inputs, precision="bf16")
    for batch in (1, 16):
        x = torch.randn(batch, *inputs[0].shape[1:])
        close(fast(x), model(x).detach())


@needs_kernels
def test_choices_tell_in_what_values_a_layer_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.runtime import plan

    model, inputs = network("bottleneck")
    rows = runtime.compile(model, inputs, precision="bf16").choices(*inputs)
    assert {(row["runs"], row["values"], row["tile"] % 32) for row in rows} == {("engine", "bf16", 0)}
    assert {row["values"] for row in runtime.compile(model, inputs).choices(*inputs)} == {"float32"}
    monkeypatch.setattr(plan, "HARDWARE", "")  # as if the CPU had instructions for bf16
    monkeypatch.setattr(plan, "layer_floor", lambda *_: 0.0)
    monkeypatch.setattr(plan, "dense_floor", lambda *_: 1e18)
    monkeypatch.setattr(plan, "dense_nanoseconds", lambda node, *_: 0 if plan.is_half(node) else 10**12)
    monkeypatch.setattr(plan, "COPY_RATE", 1e18)
    fast = runtime.compile(model, inputs, precision="bf16")
    assert {(row["runs"], row["values"]) for row in fast.choices(*inputs)} == {("dense", "bf16")}
    close(fast(*inputs), model(*inputs).detach())


@pytest.mark.parametrize("name", ["plain", "attention", "several"])
def test_a_network_dense_in_bf16_gives_its_outputs(name: str) -> None:
    from secateur.runtime.dense import halved_graph, is_half, run_dense

    model, inputs = network(name)
    graph = halved_graph(fuse(capture(model, inputs)))
    assert any(is_half(node) for node in graph.nodes)
    with torch.inference_mode():
        close(run_dense(graph, inputs), model(*inputs))


@pytest.mark.parametrize("name", ["plain", "attention"])
def test_layers_in_float32_follow_layers_in_bf16(name: str) -> None:
    from secateur.runtime.dense import halved, run_dense

    model, inputs = network(name)
    graph = fuse(capture(model, inputs))
    layers = [node.name for node in graph.nodes if node.op in ("conv", "linear")]
    mixed = replace(graph, nodes=tuple(halved(node) if node.name in layers[::2] else node for node in graph.nodes))
    with torch.inference_mode():
        close(run_dense(mixed, inputs), model(*inputs))


def test_one_slow_run_does_not_decide_between_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.runtime import plan

    taken: dict[Any, list[int]] = {"quick": [5, 5, 100], "slow": [8, 8, 8]}
    monkeypatch.setattr(plan, "_time", lambda which, *_: taken[which].pop())
    assert plan._faster(["slow", "quick"], ()) == "quick"  # type: ignore[list-item,comparison-overlap]


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(SecateurError, match="no such precision"):
        runtime.compile(nn.Linear(3, 3), torch.randn(2, 3), precision="bf15")


def test_a_file_keeps_the_precision(tmp_path: Path) -> None:
    model, inputs = network("plain")
    for precision in ("float32", "bf16"):
        runtime.save(tmp_path / "m.engine", runtime.prepare(model, inputs, precision=precision), inputs)
        again = runtime.load(tmp_path / "m.engine")
        assert again.precision == precision
        close(again(*inputs), model(*inputs).detach())
    older = spoiled((tmp_path / "m.engine").read_bytes(), lambda table: table.pop("precision"))
    (tmp_path / "m.engine").write_bytes(older)
    assert runtime.load(tmp_path / "m.engine").precision == "float32"
