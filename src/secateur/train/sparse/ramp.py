"""When masks change, and how much then stays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from secateur.core.errors import SecateurError, nearest

Shape = Literal["cubic", "exponential", "linear", "constant", "alternating"]


@dataclass(frozen=True)
class Ramp:
    """From all weights to the share `keep`, in a training of `steps` optimizer steps.

    Masks change in step t0 = begin * steps + every and every `every` steps after it, until the share `end` of training has
    brought the last density, and on to the share `freeze` where weights move between places; then masks stay. At the
    c-th change of n = (end - begin) * steps // every (counted from 0; fewer where a training is short, so that the last comes
    before its last step) p = c / n and the density is

    | shape | density |
    |---|---|
    | "cubic" | keep + (1 - keep) (1 - p)^3 (Zhu and Gupta, 2017) |
    | "exponential" | keep^p (RPG's released code) |
    | "linear" | 1 - (1 - keep) p |
    | "constant" | keep, from the first step on (RigL) |
    | "alternating" | keep and 1 in turn, `every` steps each, between `begin` and `end`, keep afterwards (AC/DC) |

    >>> [round(Ramp(0.1, 100, every=10, end=0.5).density(t), 3) for t in (10, 30, 60)]
    [1.0, 0.294, 0.1]
    """

    keep: float
    steps: int
    shape: Shape = "cubic"
    every: int = 100
    begin: float = 0.0
    end: float = 0.9
    freeze: float = 0.901

    def __post_init__(self) -> None:
        asked = f"a ramp to keep={self.keep!r} in steps={self.steps!r}"
        if isinstance(self.keep, bool) or not 0 < self.keep <= 1:
            raise SecateurError(asked, "no share that can be kept", "give keep above 0 and at most 1")
        for name in ("steps", "every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SecateurError(asked, f"{name}={value!r}", "give a whole number from 1")
        if self.shape not in get_args(Shape):
            raise SecateurError(asked, f"shape {self.shape!r}", nearest(str(self.shape), get_args(Shape)))
        if not 0 <= self.begin < self.end <= 1 or not 0 < self.freeze <= 1:
            found = f"begin={self.begin}, end={self.end}, freeze={self.freeze}"
            raise SecateurError(asked, found, "give shares of training with 0 <= begin < end <= 1 and 0 < freeze <= 1")
        if self.shape != "constant" and self.changes < 1:
            raise SecateurError(asked, f"no change that fits, one every {self.every} steps", "change masks more often")

    @property
    def changes(self) -> int:
        """n: changes of the mask until the last density."""
        fitting = (self.steps - 1 - self.first) // self.every
        return min(int((self.end - self.begin) * self.steps + 1e-9) // self.every, fitting)

    @property
    def first(self) -> int:
        """The step of the first change."""
        return int(self.begin * self.steps + 1e-9) + (0 if self.shape == "alternating" else self.every)

    @property
    def last(self) -> int:
        """The step that brings the last density."""
        return self.first + self.changes * self.every

    def due(self, step: int) -> bool:
        """Do masks change in this step (the first is 1)?"""
        if self.shape == "alternating":
            return self.first < step <= self.last + 1 and self.density(step) != self.density(step - 1)
        since = step - self.first
        until = self.freeze * self.steps
        return since >= 0 and since % self.every == 0 and (step <= until or (self.shape != "constant" and step <= self.last))

    def density(self, step: int) -> float:
        """The share that is kept after the last change up to `step`."""
        if self.shape == "constant":
            return self.keep
        change = (step - self.first) // self.every
        if self.shape == "alternating":
            phase = (step - self.first - 1) // self.every
            return 1.0 if step <= self.first or (phase < self.changes and phase % 2) else self.keep
        if change < 0 or change >= self.changes:
            return 1.0 if change < 0 else self.keep
        p = change / self.changes
        if self.shape == "cubic":
            return self.keep + (1 - self.keep) * (1 - p) ** 3
        return float(self.keep**p) if self.shape == "exponential" else 1 - (1 - self.keep) * p

    def dropped(self, share: float, step: int) -> float:
        """The share of a layer's weights that move to another place in `step`: `share`, falling to 0 as a cosine."""
        return share / 2 * (1 + math.cos(math.pi * min(step / (self.freeze * self.steps), 1.0)))
