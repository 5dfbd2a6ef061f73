"""The frame all charts share: a plot with hairlines, horizontal titles, and labels that do not overlap.

Lengths are CSS pixels at the width a phone shows (W = 340); a desktop enlarges the whole chart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes as Plot
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from secateur.report.svg import PAINT

W = 340
TEXT = 10.5


def frame(height: float, *, left: float, right: float, top: float, bottom: float) -> tuple[Figure, Plot]:
    """A figure W by `height` with one plot inside those margins: horizontal hairlines, no box, no ticks."""
    figure = Figure(figsize=(W / 72, height / 72), facecolor="none")
    box = (left / W, bottom / height, (W - left - right) / W, (height - top - bottom) / height)
    plot = figure.add_axes(box, facecolor="none")
    for side in ("left", "right", "top", "bottom"):
        plot.spines[side].set_visible(False)
    plot.tick_params(length=0, pad=6, labelsize=TEXT, labelcolor=PAINT["muted"])
    plot.grid(axis="y", color=PAINT["line"], lw=0.8)
    plot.set_axisbelow(True)
    plot.yaxis.set_major_locator(MaxNLocator(5))
    plot.xaxis.set_major_locator(MaxNLocator(5))
    return figure, plot


def ranges(plot: Plot, x: tuple[float, float], y: tuple[float, float]) -> None:
    """Fix what the plot shows, before anything is placed in pixels."""
    plot.set_xlim(*x)
    plot.set_ylim(*y)


def titles(plot: Plot, x: str, y: str) -> None:
    """Axis titles; that of the vertical axis stands upright above it, at the left edge of the figure."""
    plot.set_xlabel(x, color=PAINT["muted"], fontsize=TEXT, labelpad=6)
    plot.figure.text(6 / W, 1, y, color=PAINT["muted"], fontsize=TEXT, va="top")


def say(
    plot: Plot, at: tuple[float, float], text: str, *, paint: str, shift: tuple[float, float] = (0, 0), end: bool = False
) -> None:
    """`text` that starts, or with `end` ends, at a point of the data moved by `shift` pixels."""
    look: Any = {"color": PAINT[paint], "fontsize": TEXT, "ha": "right" if end else "left", "va": "center"}
    plot.annotate(text, at, shift, textcoords="offset points", annotation_clip=False, **look)


def padded(values: Sequence[float], ceiling: float | None = None) -> tuple[float, float]:
    """A range that holds `values` with air around them, not above `ceiling` by more than the air a label needs."""
    low, high = min(values), max(values)
    span = (high - low) or abs(high) * 0.1 or 1.0
    top = high + 0.12 * span
    return low - 0.12 * span, top if ceiling is None else min(top, ceiling + 0.02 * span) if high <= ceiling else top


def beside(plot: Plot, values: Sequence[float], gap: float, line: float | None = None) -> list[float]:
    """Data heights for labels of `values`, at least `gap` pixels apart, inside the plot if they fit.

    With a `line` across the plot, labels of values above it stand above, and the others below.
    """
    low, high = plot.get_ylim()
    pixel = (high - low) / plot.get_window_extent().height
    heights = [(value - low) / pixel for value in values]
    if line is None:
        return [low + pixel * height for height in spread(heights, 4, (high - low) / pixel, gap)]
    middle, half = (line - low) / pixel, gap / 2 + 2
    placed = [0.0] * len(values)
    sides = ((True, middle + half, (high - low) / pixel + gap), (False, 0.0, middle - half))
    for above, bottom, top in sides:
        members = [i for i, value in enumerate(values) if (value > line) == above]
        for i, height in zip(members, spread([heights[i] for i in members], bottom, top, gap), strict=True):
            placed[i] = low + pixel * height
    return placed


def spread(wanted: Sequence[float], low: float, high: float, gap: float) -> list[float]:
    """Positions near `wanted`, in the same order, at least `gap` apart and between `low` and `high` if they fit.

    >>> spread([10, 11, 40], 0, 100, 5)
    [8.0, 13.0, 40.0]
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    groups: list[tuple[float, list[int]]] = []  # (centre, members), lowest first; groups that touch become one
    for i in order:
        centre, members = float(wanted[i]), [i]
        while True:
            half = gap * (len(members) - 1) / 2
            centre = max(min(centre, high - half), low + half)
            if not groups or groups[-1][0] + gap * (len(groups[-1][1]) - 1) / 2 + gap <= centre - half:
                break
            before = groups.pop()
            together = before[1] + members
            centre = (before[0] * len(before[1]) + centre * len(members)) / len(together)
            members = together
        groups.append((centre, members))
    placed = {i: centre + gap * (k - (len(members) - 1) / 2) for centre, members in groups for k, i in enumerate(members)}
    return [placed[i] for i in range(len(wanted))]
