"""What an adaptive search is told, and what it tells while it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from secateur.core.errors import SecateurError, nearest
from secateur.core.numeric import is_number


@dataclass(frozen=True)
class AdaptiveSettings:
    """How `adaptive` goes about it.

    `step`: the first step, in `unit`: a share of the axis' "original" or "current" width, a number of "units", or a share of
    the dense model's "params" or "macs". A step that fails is multiplied by `shrink`; an axis settles where it falls below
    `least` units (`shrink=0`: at its first failure, "skip only"). `skip="sweep"` tries it again in the next sweep instead.
    A trial may raise the loss by `trial` above that of its `reference`, and by `running` above the dense model's: a
    "difference", or a share of its size where `compare="ratio"`. `reference`: what is "current"ly accepted, what was last
    "recovered" (the dense model before the first recovery), or the "dense" model. `guard`: "running" allows the whole of
    `running` at once, "linear" a part that grows with the axes settled, "none" all. An axis loses at most `max_rate` of its
    units, and keeps one.
    `schedule`: "sweeps" tries one step of every axis in turn, "sequential" exhausts one axis before the next, "greedy" takes
    the one step that harms least, then measures all anew. `order` of a sweep: "forward", "backward", or by "sensitivity",
    the rise of the loss when the axis alone takes its step, measured at the start of each sweep, equal ones by parameters
    saved; "greedy" knows no other. The search ends after `sweeps`, where what remains is within every share of `keep`, or
    where two recoveries in a row leave the loss more than `collapse` above the dense model's.
    """

    step: float = 0.1
    unit: Literal["original", "current", "units", "params", "macs"] = "original"
    shrink: float = 0.5
    least: int = 1
    skip: Literal["settle", "sweep"] = "settle"
    trial: float = 0.005
    running: float = 0.03
    reference: Literal["current", "recovered", "dense"] = "current"
    compare: Literal["difference", "ratio"] = "difference"
    guard: Literal["running", "linear", "none"] = "running"
    max_rate: float = 0.95
    schedule: Literal["sweeps", "sequential", "greedy"] = "sweeps"
    order: Literal["sensitivity", "forward", "backward"] = "sensitivity"
    sweeps: int = 60
    keep: Mapping[str, float] = field(default_factory=dict)
    collapse: float = 0.01

    def __post_init__(self) -> None:
        require_kinds(self, "an adaptive search")
        bad = None
        if not 0 < self.step < math.inf or not 0 <= self.shrink < 1 or self.least < 1:
            bad = f"step={self.step}, shrink={self.shrink}, least={self.least}"
        elif not 0 <= self.max_rate < 1 or min(self.trial, self.running, self.collapse) < 0 or self.sweeps < 1:
            limits = f"trial={self.trial}, running={self.running}, collapse={self.collapse}"
            bad = f"max_rate={self.max_rate}, {limits}, sweeps={self.sweeps}"
        if bad:
            do = "give step above 0, shrink and max_rate from 0 and below 1, least and sweeps from 1, limits from 0"
            raise SecateurError("an adaptive search", bad, do)
        if not isinstance(self.keep, Mapping):
            raise SecateurError("an adaptive search", f"keep={self.keep!r}", 'give shares by name, as in keep={"params": 0.2}')
        for what, share in self.keep.items():
            if not is_number(share) or not 0 < share <= 1:
                raise SecateurError(f"keep={{{what!r}: {share!r}}}", "no share", "give a number above 0 and at most 1")


def require_kinds(settings: Any, asked: str) -> None:
    """Raises `SecateurError`, beginning with `asked`, where a field is no number, or none of the words its type allows."""
    for name, kind in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if get_origin(kind) is Literal and value not in get_args(kind):
            raise SecateurError(f"{asked} with {name}={value!r}", "no such choice", nearest(str(value), list(get_args(kind))))
        if (kind is int and type(value) is not int) or (kind is float and not is_number(value)):
            do = f"give {'a whole number' if kind is int else 'a number'}"
            raise SecateurError(asked, f"{name}={value!r}", do)


@dataclass(frozen=True)
class Status:
    """How far a search is: its sweep, axes settled of all, the loss of what is accepted, and what remains of the parameters."""

    sweep: int
    settled: int
    axes: int
    loss: float
    params: float
