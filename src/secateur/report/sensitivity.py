"""The picture of a sensitivity study: accuracy against the rate that is cut, one small plot per axis, one scale for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from math import isfinite
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED, LINE, ACCENT = "#1d1d1b", "#6b6b68", "#d9d9d4", "#1f6f54"
SIDE = 1.55
"""Inches of one plot."""


def picture(curves: Mapping[str, Sequence[tuple[float, float]]], metric: str = "accuracy") -> str:
    """An SVG of `curves`: axis name to (rate cut, accuracy or loss); the same curves give the same text.

    The dashed line is the dense network, which stands at rate 0 of every curve. An infinite loss is not drawn.
    """
    count = max(len(curves), 1)
    columns = min(count, 6)
    rows = -(-count // columns)
    scale = 100 if metric == "accuracy" else 1
    values = [scale * value for curve in curves.values() for _, value in curve if isfinite(value)] or [0.0]
    low, high = min(values), max(values)
    air = 0.06 * ((high - low) or 1.0)
    settings: Any = {"svg.hashsalt": "sensitivity", "svg.fonttype": "none", "font.size": 8, "font.family": "DejaVu Sans"}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(SIDE * columns + 0.6, SIDE * rows + 0.7), layout="constrained")
        plots = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for place, plot in enumerate(plots.flat):
            plot.set_axis_off() if place >= len(curves) else None
        for plot, (name, curve) in zip(plots.flat, curves.items(), strict=False):
            plot.axhline(scale * curve[0][1], color=MUTED, lw=0.7, dashes=(3, 3))
            plot.plot([100 * rate for rate, _ in curve], [scale * value for _, value in curve], color=ACCENT, lw=1.6)
            plot.set_title(name if len(name) <= 22 else "…" + name[-21:], fontsize=8, color=INK)
            plot.grid(axis="y", color=LINE, lw=0.6)
            plot.tick_params(length=0, labelcolor=MUTED, labelsize=7)
            for side in plot.spines.values():
                side.set_visible(False)
        plots.flat[0].set_xlim(0, 100)
        plots.flat[0].set_ylim(low - air, high + air)
        figure.supxlabel("units cut of this axis alone (%)", fontsize=8, color=MUTED)
        figure.supylabel("accuracy on held-out images (%)" if scale == 100 else "loss", fontsize=8, color=MUTED)
        stream = StringIO()
        FigureCanvasSVG(figure).print_figure(stream, format="svg", facecolor="white", metadata={"Date": None})
    return stream.getvalue()
