"""Budgets on bytes, activation memory and latency: what was promised is what is measured, alone and several at once."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from secateur import allocate, criteria, measure, save, score, trace
from secateur.allocate.costs import activation_bytes, file_bytes, latency_ms
from secateur.core.axes import Axes
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.io import read_plan
from secateur.measure.table import Entry, LatencyTable, from_json, layer_calls, measure_table
from secateur.recipes import choose as chooser
from secateur.recipes import schema, zoo
from secateur.recipes.choose import choose
from secateur.recipes.schema import Prune

X = torch.zeros(2, 1, 8, 8)


def network() -> tuple[nn.Module, Axes]:
    torch.manual_seed(0)
    model = zoo.digits_resnet(widths=(8, 12, 16)).eval()
    return model, trace(model, X)


class Depthwise(nn.Module):
    """A depthwise and a grouped convolution between pointwise ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.c, self.d = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 6, 3, groups=3)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.d(self.c(self.b(self.a(x)).relu()).relu()).relu()
        return self.head(x.mean((2, 3)))


def synthetic(model: nn.Module, example: torch.Tensor = X, rest: float = 0.5) -> LatencyTable:
    """A table in which a layer takes inputs * outputs / 1000 ms, with two points a side."""
    entries = {}
    for key, _, _, inputs, outputs in layer_calls(model, example):
        known = entries.get(key)
        inputs, outputs = max(inputs, known.inputs[1] if known else 2), max(outputs, known.outputs[1] if known else 2)
        sides = ((1, inputs), (1, outputs))
        entries[key] = Entry(*sides, tuple(tuple(i * o / 1000 for o in sides[1]) for i in sides[0]))
    return LatencyTable(entries, rest)


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


def test_a_table_adds_up_layers_and_interpolates() -> None:
    model, axes = network()
    table = synthetic(model, rest=0.25)
    expected = 0.25 + sum(inputs * outputs for _, _, _, inputs, outputs in layer_calls(model, X)) / 1000
    assert latency_ms(model, axes, X, table)({}) == pytest.approx(expected)
    plan = axes.plan({axis.name: range(axis.units // 2) for axis in axes.free})
    small = plan.apply(model)
    expected = 0.25 + sum(inputs * outputs for _, _, _, inputs, outputs in layer_calls(small, X)) / 1000
    widths = {name: after for name, (_, after) in plan.widths().items()}
    assert latency_ms(model, axes, X, table)(widths) == pytest.approx(expected), "the product of widths is bilinear"
    entry = Entry((2, 4), (3, 9), ((1.0, 2.0), (3.0, 8.0)))
    assert entry.at(4, 9) == 8
    assert entry.at(3, 3) == 2
    assert entry.at(2, 6) == 1.5
    assert entry.at(3, 6) == pytest.approx((1 + 2 + 3 + 8) / 4)
    assert entry.at(1, 1) == 1
    assert entry.at(8, 9) == 16


def test_grouped_layers_have_entries() -> None:
    model = Depthwise().eval()
    axes = trace(model, X)
    table = measure_table(model, X, repeats=1)
    cost = latency_ms(model, axes, X, table)
    assert cost({}) >= table.rest_ms
    narrow = cost({axis.name: 1 for axis in axes.free if axis.kind != "group"})
    assert 0 < narrow <= cost({}) + 1e-9


def test_a_measured_table_is_monotone_and_survives_a_file() -> None:
    model, _ = network()
    table = measure_table(model, X, repeats=1)
    assert set(table.entries) == {key for key, *_ in layer_calls(model, X)}
    for entry in table.entries.values():
        rows = [list(row) for row in entry.ms]
        assert all(a <= b for row in rows for a, b in itertools.pairwise(row))
        assert all(a <= b for one, two in itertools.pairwise(rows) for a, b in zip(one, two, strict=True))
    assert from_json(json.loads(json.dumps(table.to_json()))) == table


def test_an_example_that_the_model_does_not_take_and_no_table_at_all_are_one_sentence() -> None:
    with pytest.raises(SecateurError, match=r"a forward of .* on the example: found .*; give an example input"):
        measure_table(network()[0], torch.zeros(1, 2, 3, 4, 5), repeats=1)
    for value in ([], {}, {"format": 1, "steps": []}, "table"):
        with pytest.raises(SecateurError, match=r"reading a latency table: found .*; give a file that secateur measure"):
            from_json(value)


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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("rest_ms"), "without 'rest_ms'"),
        (lambda t: t.update(rest_ms=-1), "for milliseconds"),
        (lambda t: t.update(format=9), "format"),
        (lambda t: next(iter(t["entries"].values())).update(inputs=[4, 2]), "no grid"),
        (lambda t: next(iter(t["entries"].values()))["ms"].pop(), "no grid"),
        (lambda t: t.update(entries=[]), "entries"),
    ],
)
def test_damaged_tables_are_one_sentence(change, words: str) -> None:  # type: ignore[no-untyped-def]
    value = synthetic(network()[0]).to_json()
    change(value)
    with pytest.raises(SecateurError, match=words):
        from_json(value)


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


@pytest.mark.parametrize(
    "machine", [lambda s: s, lambda s: 0.3 + 0.7 * s, lambda s: s**0.5, lambda s: s * s, lambda s: -(-s // 0.1) * 0.1]
)
@pytest.mark.parametrize("share", [0.45, 0.7, 0.95])
def test_a_share_of_milliseconds_holds_by_the_clock_whatever_the_table_says(machine, share: float) -> None:  # type: ignore[no-untyped-def]
    plan = allocate.measured(lambda asked: asked, share, machine)  # the plan being the share that was asked for
    assert machine(plan) <= share
    assert machine(plan) > share - 0.13, "and is not much faster than it has to be"


def test_what_no_plan_reaches_by_the_clock_is_one_sentence() -> None:
    def plan_of(asked: float) -> float:
        if asked < 0.2:
            raise SecateurError("keep", "that 0.2 is the least possible share", "ask for more")
        return asked

    with pytest.raises(SecateurError, match=r"0\.790 of the dense network's time"):
        allocate.measured(plan_of, 0.75, lambda asked: 0.7 + 0.1 * asked if asked > 0.9 else 0.79)  # type: ignore[arg-type]
    with pytest.raises(SecateurError, match=r"found 0\.2\d\d of the dense"):
        allocate.measured(plan_of, 0.1, lambda asked: asked)  # type: ignore[arg-type]

    def never(asked: float) -> float:
        raise SecateurError("keep", "no axis that can be cut", "ignore less")

    with pytest.raises(SecateurError, match="no axis that can be cut"):
        allocate.measured(never, 0.5, lambda asked: asked)  # type: ignore[arg-type]


def test_a_table_that_knows_of_no_plan_fast_enough_may_be_wrong() -> None:
    def plan_of(asked: float) -> float:
        if asked < 0.9:
            raise SecateurError("keep", "that 0.9 is the least possible share", "ask for more")
        return asked

    found = allocate.measured(plan_of, 0.6, lambda asked: asked - 0.35)  # type: ignore[arg-type]
    assert 0.9 <= found <= 0.95


@pytest.mark.parametrize(
    ("machine", "share", "least", "plans"),
    [
        (lambda s: 0.5 * s, 0.6, 0.0, 2),  # faster than the table throughout: all of it is asked for, once
        (lambda s: 0.3 + 0.25 * s, 0.5, 0.0, 3),  # a straight line takes two points
        (lambda s: 0.5 + 0.5 * s, 0.1, 0.0, 8),  # out of reach, and found out in as many plans as there may be
        (lambda s: s + 0.2, 0.45, 0.3, 8),  # the table knows of no plan below 0.3, the clock wants 0.25
    ],
)
def test_each_plan_is_asked_for_once_within_what_there_is(machine, share: float, least: float, plans: int) -> None:  # type: ignore[no-untyped-def]
    tried: list[float] = []
    refused = [0.0]

    def plan_of(asked: float) -> float:
        assert max(refused) < asked <= 1, "nothing below what was refused, nothing above all there is"
        assert asked not in tried
        assert not tried or asked >= tried[-1] / 4, "no leap on one steep line"
        tried.append(asked)
        if asked < least:
            refused.append(asked)
            raise SecateurError("keep", "less than the least possible share", "ask for more")
        return asked

    with contextlib.suppress(SecateurError):
        allocate.measured(plan_of, share, machine)  # type: ignore[arg-type]
    assert len(tried) == plans


def test_a_budget_measured_here_holds_beside_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    model, axes = network()
    monkeypatch.setattr(chooser, "measure_table", lambda *given: synthetic(model))

    def clock(model: nn.Module, plan: Plan, example: torch.Tensor) -> float:  # slower than the table says
        widths = {name: after for name, (_, after) in plan.widths().items()}
        return 0.2 + 0.8 * axes.count("macs", widths) / axes.count("macs")

    monkeypatch.setattr(chooser, "measured_share", clock)
    prune = Prune(keep={"latency": 0.6, "params": 0.9}, criterion="l2")
    _, plan = chooser.choose(model, X, prune)
    widths = {name: after for name, (_, after) in plan.widths().items()}
    assert 0.5 < clock(model, plan, X) <= 0.6
    assert axes.count("params", widths) <= 0.9 * axes.count("params")


def test_between_two_measured_widths_a_depthwise_layer_lies_on_their_line() -> None:
    model = Depthwise().eval()
    table = measure_table(model, X, repeats=1)
    key, entry = next((key, entry) for key, entry in table.entries.items() if "depthwise" in key)
    ends = entry.inputs[-2:]
    middle = sum(ends) / 2
    line = sum(entry.at(end, end) for end in ends) / 2
    assert entry.at(middle, middle) == pytest.approx(line, abs=1e-6)  # type: ignore[arg-type]  # a table holds nanoseconds
    assert "depthwise" in key
