"""What an adaptive search is told, and what it tells while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from secateur.core.errors import SecateurError


@dataclass(frozen=True)
class AdaptiveSettings:
    """How `adaptive` goes about it.

    `step`: the first step, in `unit`: a share of the axis' "original" or "current" width, a number of "units", or a share of
    the dense model's "params" or "macs". A step that fails is multiplied by `shrink`; an axis settles where it falls below
    `least` units (`shrink=0`: at its first failure, "skip only"). `skip="sweep"` tries it again in the next sweep instead.
    A trial may raise the loss by `trial` above that before it, and by `running` above the dense model's: a "difference", or
    a share of it where `compare="ratio"`. `guard`: "running" allows the whole of `running` at once, "linear" a part that grows
    with the axes settled, "none" all. An axis loses at most `max_rate` of its units, and keeps one.
    `schedule`: "sweeps" tries one step of every axis in turn, "sequential" exhausts one axis before the next. `order` of a
    sweep: "forward", "backward", or by "sensitivity", the rise of the loss when the axis alone takes its step, measured at
    the start of each sweep, equal ones by parameters saved. The search ends after `sweeps`, where what remains is within
    every share of `keep`, or where two recoveries in a row leave the loss more than `collapse` above the dense model's.
    """

    step: float = 0.1
    unit: Literal["original", "current", "units", "params", "macs"] = "original"
    shrink: float = 0.5
    least: int = 1
    skip: Literal["settle", "sweep"] = "settle"
    trial: float = 0.005
    running: float = 0.03
    compare: Literal["difference", "ratio"] = "difference"
    guard: Literal["running", "linear", "none"] = "running"
    max_rate: float = 0.95
    schedule: Literal["sweeps", "sequential"] = "sweeps"
    order: Literal["sensitivity", "forward", "backward"] = "sensitivity"
    sweeps: int = 60
    keep: Mapping[str, float] = field(default_factory=dict)
    collapse: float = 0.01

    def __post_init__(self) -> None:
        bad = None
        if not self.step > 0 or not 0 <= self.shrink < 1 or self.least < 1:
            bad = f"step={self.step}, shrink={self.shrink}, least={self.least}"
        elif not 0 <= self.max_rate < 1 or self.trial < 0 or self.running < 0 or self.sweeps < 1:
            bad = f"max_rate={self.max_rate}, trial={self.trial}, running={self.running}, sweeps={self.sweeps}"
        if bad:
            do = "give step above 0, shrink and max_rate from 0 and below 1, least and sweeps from 1, limits from 0"
            raise SecateurError("an adaptive search", bad, do)


@dataclass(frozen=True)
class Status:
    """How far a search is: its sweep, axes settled of all, the loss of what is accepted, and what remains of the parameters."""

    sweep: int
    settled: int
    axes: int
    loss: float
    params: float
