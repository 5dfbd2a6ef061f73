"""The picture of a ticket grid: one line per reinitialisation, one dot per seed, a bar at the mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from secateur.report.sensitivity import ACCENT, INK, LINE, MUTED

WORDS = {
    "rewind": "initial weights",
    "late rewind": "weights of a later epoch",
    "random": "drawn anew",
    "sign": "sign preserved",
    "distribution": "distribution preserved",
    "absolute": "absolute value preserved",
    "normal": "mean and deviation preserved",
    "sign_distribution": "sign and sizes preserved, shuffled",
    "shuffled": "whole layer shuffled",
    "sign_shuffled": "sign preserved, whole layer shuffled",
    "sign_constant": "sign preserved, one size",
    "random_constant": "signs shuffled, one size",
}


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; the error of one value is 0.

    >>> mean_and_error([1.0, 3.0])
    (2.0, 1.0)
    """
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, 0.0
    return mean, (sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)) ** 0.5


def picture(found: Mapping[str, Any]) -> str:
    """An SVG of what `recipes.tickets.grid` returns; the same numbers give the same text.

    The dashed line is the mean of the dense networks.
    """
    kinds = [kind for kind in ("structured", "unstructured") if kind in found]
    variants = list(found[kinds[0]])
    dense = 100 * mean_and_error(found["dense"])[0]
    every = [100 * value for kind in kinds for values in found[kind].values() for value in values] + [dense]
    air = 0.05 * ((max(every) - min(every)) or 1.0)
    settings = {"svg.hashsalt": "tickets", "svg.fonttype": "none", "font.size": 9, "font.family": "DejaVu Sans"}
    with matplotlib.rc_context(settings):  # type: ignore[arg-type]
        figure = Figure(figsize=(2.6 + 3.0 * len(kinds), 0.9 + 0.3 * len(variants)), layout="constrained")
        plots = figure.subplots(1, len(kinds), sharex=True, sharey=True, squeeze=False)[0]
        for plot, kind in zip(plots, kinds, strict=True):
            plot.axvline(dense, color=MUTED, lw=0.8, dashes=(3, 3))
            for row, variant in enumerate(variants):
                values = [100 * value for value in found[kind][variant]]
                plot.plot(values, [row] * len(values), "o", ms=4, color=ACCENT, alpha=0.45, mew=0)
                plot.plot([sum(values) / len(values)] * 2, [row - 0.3, row + 0.3], color=INK, lw=1.6)
            plot.set_title(kind, fontsize=9, color=INK, loc="left")
            plot.grid(axis="x", color=LINE, lw=0.6)
            plot.tick_params(length=0, labelcolor=MUTED, labelsize=8)
            for side in plot.spines.values():
                side.set_visible(False)
        plots[0].set_yticks(range(len(variants)), [WORDS.get(variant, variant) for variant in variants])
        plots[0].set_ylim(len(variants) - 0.5, -0.5)
        plots[0].set_xlim(min(every) - air, max(every) + air)
        figure.supxlabel("test accuracy after training (%)", fontsize=8, color=MUTED)
        stream = StringIO()
        FigureCanvasSVG(figure).print_figure(stream, format="svg", facecolor="white", metadata={"Date": None})
    return stream.getvalue()
