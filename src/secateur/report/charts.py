"""The charts of the report: accuracy against a cost, widths, training curves. Each returns an <svg> element."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import FixedLocator, MaxNLocator

from secateur.report import words
from secateur.report.folder import Width
from secateur.report.frame import TEXT, beside, frame, padded, ranges, say, titles
from secateur.report.svg import PAINT, style, to_html
from secateur.report.table import Headline

NAMED = 96
ONE_COLUMN = 16
PITCH = 17.0
LETTER = 5.6
LONGEST_NAME = 22
PHASES = {"train": "training", "finetune": "fine-tuning"}


def trade_off(table: Headline, key: str, name: str) -> str:
    """Accuracy (up) against the quantity `key` (across, from zero), one labelled point per stage; "" below two points."""
    rows = [(row.stage, table.cell(i, key), table.cell(i, "accuracy")) for i, row in enumerate(table.rows)]
    rows = [(stage, cost, accuracy) for stage, cost, accuracy in rows if cost.value is not None and accuracy.value is not None]
    if len(rows) < 2:
        return ""
    column, score, percent = table.column(key), table.column("accuracy"), " %" if table.share else ""
    xs = [float(cost.value or 0) / column.factor for _, cost, _ in rows]
    ys = [float(accuracy.value or 0) / score.factor for _, _, accuracy in rows]
    right = max(xs) * 1.06 or 1.0
    with style():
        figure, plot = frame(250, left=40, right=12, top=32, bottom=38)
        ranges(plot, (0, right), padded(ys, 100 if table.share else None))
        titles(plot, column.head, score.head)
        dense = next((i for i, row in enumerate(rows) if row[0] == "dense"), None)
        if dense is not None:
            plot.axhline(ys[dense], color=PAINT["muted"], lw=0.8, dashes=(3, 3), zorder=1)
        later = [i for i in range(len(rows)) if i != dense]
        plot.plot([xs[i] for i in later], [ys[i] for i in later], color=PAINT["muted"], lw=1, zorder=2)
        line = None if dense is None else ys[dense]
        above = line is not None and max(ys) <= line  # then the label of the dense point may stand above its line
        heights = beside(plot, [y + 1e-9 * abs(y) if above and i == dense else y for i, y in enumerate(ys)], 14, line)
        for i, (stage, _, accuracy) in enumerate(rows):
            paint = "ink" if i == dense else "accent" if i == len(rows) - 1 else "warm"
            plot.plot([xs[i]], [ys[i]], "o", ms=7, color=PAINT[paint], mec=PAINT["paper"], mew=1.2, zorder=4)
            left = xs[i] > 0.55 * right
            label = f"{stage} {accuracy.text}{percent}"
            say(plot, (xs[i], heights[i]), label, paint=paint, shift=(-9 if left else 9, 0), end=left)
        told = "; ".join(f"{stage} {accuracy.text}{percent} at {cost.text} {column.unit}" for stage, cost, accuracy in rows)
        return to_html(figure, name, f"{score.title} against {column.title}: {told}")


def widths(rows: Sequence[Width], name: str) -> list[str]:
    """Units of every axis of `rows`, before (the track) and after (the bar), in forward order; no chart for no rows.

    Up to `NAMED` axes are named and numbered, in two charts of one scale when they are many; above that the chart is a
    silhouette of the network.
    """
    if len(rows) > NAMED:
        return [_silhouette(rows, name)]
    half = len(rows) if len(rows) <= ONE_COLUMN else -(-len(rows) // 2)
    return [_bars(rows[i : i + half], rows, f"{name}-{i}") for i in range(0, len(rows), max(half, 1))]


def _bars(rows: Sequence[Width], every: Sequence[Width], name: str) -> str:
    """One named bar per row, on the scale and with the margins of `every` row."""
    labels, names = [f"{row.after:,} of {row.before:,}" for row in rows], [_short(row.name) for row in rows]
    widest = max(row.before for row in every)
    left = 14 + LETTER * max(len(_short(row.name)) for row in every)
    right = 10 + LETTER * max(len(f"{row.after:,} of {row.before:,}") for row in every)
    with style():
        figure, plot = frame(8 + PITCH * len(rows), left=left, right=right, top=4, bottom=4)
        ranges(plot, (0, widest), (len(rows) - 0.5, -0.5))
        plot.grid(False)
        for paint, lengths in (("track", [row.before for row in rows]), ("accent", [row.after for row in rows])):
            plot.barh(range(len(rows)), lengths, height=9 / PITCH, color=PAINT[paint], lw=0, zorder=2)
        plot.set_xticks([])
        plot.set_yticks(range(len(rows)), [])
        for place, (label, axis) in enumerate(zip(labels, names, strict=True)):
            say(plot, (0, place), axis, paint="muted", shift=(-8, 0), end=True)
            say(plot, (widest, place), label, paint="ink", shift=(right, 0), end=True)
        return to_html(figure, name, _units_kept(rows))


def _silhouette(rows: Sequence[Width], name: str) -> str:
    """Rows too many to name, as one shape inside another."""
    with style():
        pitch = max(3.0, 640 / len(rows))
        figure, plot = frame(42 + pitch * len(rows), left=40, right=12, top=4, bottom=38)
        ranges(plot, (0, max(row.before for row in rows)), (len(rows) - 0.5, -0.5))
        plot.grid(False)
        for paint, lengths in (("track", [row.before for row in rows]), ("accent", [row.after for row in rows])):
            plot.barh(range(len(rows)), lengths, height=0.9, color=PAINT[paint], lw=0, zorder=2)
        plot.set_yticks([0, len(rows) - 1], ["first", "last"])
        plot.set_xlabel("units", color=PAINT["muted"], fontsize=TEXT, labelpad=6)
        return to_html(figure, name, _units_kept(rows))


def _units_kept(rows: Sequence[Width]) -> str:
    before, after = sum(row.before for row in rows), sum(row.after for row in rows)
    return f"{words.plural(len(rows), 'axis')} before and after: {after:,} of {before:,} units kept"


def curve(epochs: Sequence[Mapping[str, Any]], series: Mapping[str, str], name: str, *, title: str, percent: bool) -> str:
    """Values over epochs, phases in a row. `series` maps a key of the history to its label; "" where nothing was recorded.

    The last of `series` is the one that matters and has the accent.
    """
    scale = 100 if percent else 1
    lines = {label: [(i, scale * e[key]) for i, e in enumerate(epochs, 1) if key in e] for key, label in series.items()}
    lines = {label: points for label, points in lines.items() if points}
    if not lines:
        return ""
    low, high = padded([y for points in lines.values() for _, y in points], 100 if percent else None)
    with style():
        phased = len({epoch["phase"] for epoch in epochs}) > 1
        figure, plot = frame(240, left=40, right=58, top=46 if phased else 32, bottom=38)
        ranges(plot, (1, len(epochs)) if len(epochs) > 1 else (0.5, 1.5), (low if percent or low < -0.01 * high else 0, high))
        titles(plot, "epoch", f"{title[:1].upper()}{title[1:]}{' (%)' * percent}")
        plot.xaxis.set_major_locator(MaxNLocator(5, integer=True) if len(epochs) > 1 else FixedLocator([1]))
        _phases(plot, epochs)
        ends = beside(plot, [points[-1][1] for points in lines.values()], 25)
        for order, ((label, points), end) in enumerate(zip(lines.items(), ends, strict=True), 1):
            paint = "accent" if order == len(lines) else "muted"
            xs, ys = zip(*points, strict=True)
            plot.plot(xs, ys, color=PAINT[paint], lw=1.6, clip_on=False, marker="o" if len(xs) == 1 else None, ms=5)
            text = words.fixed(ys[-1], 1 if percent else words.places(max(abs(ys[-1]), 0.1)))
            say(plot, (len(epochs), end), f"{label}\n{text}", paint=paint, shift=(7, 0))
        told = "; ".join(f"{label} from {p[0][1]:.4g} to {p[-1][1]:.4g}{' %' * percent}" for label, p in lines.items())
        return to_html(figure, name, f"{title} over {words.plural(len(epochs), 'epoch')}: {told}")


def _phases(plot: Any, epochs: Sequence[Mapping[str, Any]]) -> None:
    """A hairline where one phase of training ends and the next begins, and their names above."""
    starts = [i for i in range(len(epochs)) if i == 0 or epochs[i]["phase"] != epochs[i - 1]["phase"]]
    if len(starts) < 2:
        return
    top = plot.get_ylim()[1]
    for i in starts:
        phase = str(epochs[i]["phase"])
        say(plot, (max(i + 0.5, 1), top), PHASES.get(phase, phase), paint="muted", shift=(3 if i else 0, 5))
        if i:
            plot.axvline(i + 0.5, color=PAINT["muted"], lw=0.8, dashes=(3, 3), zorder=1)


def _short(name: str) -> str:
    """The end of a long name: the end is what tells layers apart."""
    return name if len(name) <= LONGEST_NAME else "…" + name[1 - LONGEST_NAME :]
