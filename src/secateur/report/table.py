"""The headline table: params, MACs, bytes, latency and accuracy per stage, each with its ratio to dense.

One value, `Headline`, is shown three ways: on the page, in the terminal (`to_rich`), as JSON (`to_json`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from secateur.core.errors import SecateurError
from secateur.report import words

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = (
    ("params", "Parameters", ""),
    ("nonzeros", "Not zero", ""),
    ("macs", "MACs", ""),
    ("sparse_macs", "Sparse MACs", ""),
    ("bytes", "File size", "B"),
    ("peak_memory", "Peak memory", "B"),
    ("latency_ms", "Latency", "ms"),
    ("accuracy", "Accuracy", "%"),
)
ALWAYS = {"params", "macs", "bytes", "latency_ms", "accuracy"}
WHERE_SPARSE = {"nonzeros", "sparse_macs"}
"""Shown where a tenth of a model's parameters are zeros: any network has a few."""


@dataclass(frozen=True)
class Cell:
    """One figure. `text` is in the unit of its column; `ratio` is to dense, None where either is unknown."""

    value: float | int | None
    text: str
    ratio: float | None
    change: str = ""

    @property
    def times(self) -> str:
        """The ratio as text; empty where the figure itself is unknown."""
        return "" if self.value is None else words.times(self.ratio)


@dataclass(frozen=True)
class Column:
    """A quantity: its name in facts.json, its title, the unit that all its cells share, and how much one unit is."""

    key: str
    title: str
    unit: str
    factor: float = 1.0

    @property
    def head(self) -> str:
        """Title and unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


@dataclass(frozen=True)
class Row:
    """One stage, a cell per column."""

    stage: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Headline:
    """The table. `share` says whether accuracy is a share between 0 and 1, so that its difference is in points."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    share: bool
    metric: str
    accuracy_on: str

    def cell(self, row: int, key: str) -> Cell:
        """The figure `key` of stage number `row` (-1: the last); an unknown one where the table has no such column."""
        keys = [column.key for column in self.columns]
        return self.rows[row].cells[keys.index(key)] if key in keys and self.rows else Cell(None, words.UNKNOWN, None)

    def column(self, key: str) -> Column:
        """The column of that name."""
        return next(column for column in self.columns if column.key == key)


def headline(facts: Mapping[str, Any]) -> Headline:
    """The table of a parsed facts.json. Ratios are to the stage called "dense".

    A figure that is missing, or is no finite number, is shown as unknown. Raises `SecateurError` where `stages` is not
    a list of tables.
    """
    stages = facts.get("stages", [])
    if not isinstance(stages, Sequence) or not all(isinstance(stage, Mapping) for stage in stages):
        raise SecateurError("the headline table", "facts whose 'stages' are no list of tables", "run the recipe again")
    metric = words.clean(facts.get("metric") or "accuracy").rpartition(":")[2]  # a user's own is "file.py:function"
    share = "accuracy" in metric.lower() and all(0 <= a <= 1 for a in _known(stages, "accuracy"))
    dense: Mapping[str, Any] = next((stage for stage in stages if stage.get("stage") == "dense"), {})
    hidden = set() if any(_is_sparse(stage) for stage in stages) else WHERE_SPARSE
    shown = [spec for spec in COLUMNS if spec[0] in ALWAYS or (spec[0] not in hidden and _known(stages, spec[0]))]
    columns, filled = [], []
    for key, title, unit in shown:
        if key == "accuracy":
            column, cells = _accuracy(stages, dense, metric, share)
        else:
            column, cells = _quantity(stages, dense, Column(key, title, unit))
        columns.append(column)
        filled.append(cells)
    names = [words.clean(stage.get("stage", f"stage {i}")) for i, stage in enumerate(stages, 1)]
    rows = tuple(Row(name, tuple(cells[i] for cells in filled)) for i, name in enumerate(names))
    return Headline(tuple(columns), rows, share, metric, words.clean(facts.get("accuracy_on") or ""))


def to_rich(table: Headline) -> Table:
    """The table for a terminal of 80 columns: the ratio to dense stands below its figure. ASCII, whatever the terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    def plain(*lines: str, under: str = "") -> Text:
        return Text("\n".join(filter(None, lines)).translate(words.ASCII), under)

    on = f"{table.metric} on {table.accuracy_on}; " if table.accuracy_on else ""
    caption = plain(f"{on}ratios are to dense, - is not measured")
    out = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", show_edge=False, collapse_padding=True)
    out.add_column("", overflow="fold")
    for column in table.columns:
        out.add_column(plain(*column.title.split(), column.unit), justify="right", overflow="fold")
    for row in table.rows:
        cells = []
        for cell in row.cells:
            below = plain(cell.times, cell.change, under="dim")
            cells.append(plain(cell.text) + Text("\n") + below if below.plain else plain(cell.text))
        out.add_row(plain(row.stage), *cells)
    return out


def to_json(table: Headline) -> dict[str, Any]:
    """{"metric", "accuracy_on", "stages": [{"stage", "params": {"value", "ratio"}, ...}]}; only what is known."""

    def figure(cell: Cell) -> dict[str, Any]:
        return {"value": cell.value} | ({} if cell.ratio is None else {"ratio": round(cell.ratio, 6)})

    stages = []
    for row in table.rows:
        pairs = zip(table.columns, row.cells, strict=True)
        stages.append({"stage": row.stage} | {column.key: figure(cell) for column, cell in pairs if cell.value is not None})
    return {"metric": table.metric, "accuracy_on": table.accuracy_on, "stages": stages}


def _is_sparse(stage: Mapping[str, Any]) -> bool:
    filled, params = words.number(stage.get("nonzeros")), words.number(stage.get("params"))
    return filled is not None and params is not None and filled < 0.9 * params


def _known(stages: Sequence[Mapping[str, Any]], key: str) -> list[float | int]:
    return [value for value in (words.number(stage.get(key)) for stage in stages) if value is not None]


def _quantity(stages: Sequence[Mapping[str, Any]], dense: Mapping[str, Any], column: Column) -> tuple[Column, list[Cell]]:
    """The column in one unit, and its cells. Parameters are written in full: people compare them digit by digit."""
    known = _known(stages, column.key)
    factor, prefix = words.unit_for(known) if column.key not in ("params", "latency_ms") else (1.0, "")
    largest = max(map(abs, known), default=0) / factor
    decimals = words.places(largest) if column.key == "latency_ms" else 2 if prefix else 0
    cells = []
    for stage in stages:
        value = words.number(stage.get(column.key))
        text = words.UNKNOWN if value is None else words.fixed(value / factor, decimals)
        cells.append(Cell(value, text, words.ratio(value, dense.get(column.key))))
    return Column(column.key, column.title, prefix + column.unit, factor), cells


def _accuracy(
    stages: Sequence[Mapping[str, Any]], dense: Mapping[str, Any], metric: str, share: bool
) -> tuple[Column, list[Cell]]:
    """Accuracy as percent with its difference in points; any other metric as the number it is."""
    known = _known(stages, "accuracy")
    scale, decimals = (100, 2) if share else (1, words.places(max(map(abs, known), default=0)))
    before = words.number(dense.get("accuracy"))
    cells = []
    for stage in stages:
        value = words.number(stage.get("accuracy"))
        text = words.UNKNOWN if value is None else words.fixed(scale * value, decimals)
        change = ""
        if value is not None and before is not None and stage is not dense:
            change = words.signed(scale * (value - before), decimals) + (" pt" if share else "")
        cells.append(Cell(value, text, words.ratio(value, before), change))
    return Column("accuracy", metric[:1].upper() + metric[1:], "%" if share else "", 1 / scale), cells
