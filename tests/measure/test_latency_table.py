"""Tables of the milliseconds of layers: what they add up to, how they are measured, and damaged ones."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from cost_networks import Depthwise, X, network, synthetic
from secateur import trace
from secateur.allocate.costs import latency_ms
from secateur.core.errors import SecateurError
from secateur.measure.table import Entry, from_json, layer_calls, measure_table


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


def test_between_two_measured_widths_a_depthwise_layer_lies_on_their_line() -> None:
    model = Depthwise().eval()
    table = measure_table(model, X, repeats=1)
    key, entry = next((key, entry) for key, entry in table.entries.items() if "depthwise" in key)
    ends = entry.inputs[-2:]
    middle = sum(ends) / 2
    line = sum(entry.at(end, end) for end in ends) / 2
    assert entry.at(middle, middle) == pytest.approx(line, abs=1e-6)  # type: ignore[arg-type]  # a table holds nanoseconds
    assert "depthwise" in key


def test_an_example_that_the_model_does_not_take_and_no_table_at_all_are_one_sentence() -> None:
    with pytest.raises(SecateurError, match=r"a forward of .* on the example: found .*; give an example input"):
        measure_table(network()[0], torch.zeros(1, 2, 3, 4, 5), repeats=1)
    for value in ([], {}, {"format": 1, "steps": []}, "table"):
        with pytest.raises(SecateurError, match=r"reading a latency table: found .*; give a file that secateur measure"):
            from_json(value)


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
