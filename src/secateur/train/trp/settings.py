"""What trained rank pruning can be told, the two published settings among it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from secateur.core.errors import SecateurError, nearest
from secateur.core.numeric import is_number

Deploy = Mapping[str, Any]
"""One of {"energy": share kept}, {"value": smallest singular value}, {"rank": number, or one per layer's name},
{"macs": share of the dense model} and {"params": share}."""
DEPLOY = ("energy", "value", "rank", "macs", "params")


@dataclass(frozen=True)
class TRPSettings:
    """Settings of `TRP`; the defaults are those of the paper (Xu et al., 2020).

    `energy` is the share that a truncation keeps, 1 - e in the paper. `every` is m, in optimizer steps over the whole
    training. `nuclear` is lambda; `nuclear_on` "step" adds lambda * U V^T to every gradient, "truncation" only to those of
    steps that begin at truncated weights. `stem` is the first convolution wider than 1 x 1, `pointwise` are those of
    1 x 1, `strided` those that stride; `linear` layers are left out in paper and code. `deploy` says how
    `plan()` chooses ranks, and `deploy_strided` whether layers that stride become products.

    What follows is in neither of the two, and off. `project_momentum` removes from the optimizer's momentum what a
    truncation removes from the weights. `nuclear_by` says how the nuclear norm acts: "gradient" as in the paper; "decay" after
    each step, W <- W - lr * lambda * U V^T by Newton-Schulz, past momentum and weight decay (Spectral Weight Decay,
    Andriianov et al.); "proximal" at each truncation, all singular values shrunk by lr * lambda * (steps since the last), which
    with `energy` 1 replaces the hard cut. `adaptive` gives each layer a period of its own, see `Periods`; `every` is the
    first. `ranks` (layer to rank) are the most a truncation leaves, reached over `descent` steps from the full ones.
    """

    format: Literal["spatial", "channel", "decouple"] = "spatial"
    energy: float = 0.98
    every: int = 20
    nuclear: float = 3e-4
    nuclear_on: Literal["step", "truncation"] = "step"
    stem: bool = False
    pointwise: bool = True
    strided: bool = True
    linear: bool = False
    project_momentum: bool = False
    nuclear_by: Literal["gradient", "decay", "proximal"] = "gradient"
    adaptive: bool = False
    ranks: Mapping[str, int] | None = None
    descent: int = 0
    deploy: Deploy = field(default_factory=lambda: {"value": 0.05})
    deploy_strided: bool = True

    def __post_init__(self) -> None:
        if self.format not in ("spatial", "channel", "decouple"):
            found = f"format {self.format!r}"
            raise SecateurError("TRP", found, 'give "spatial", "channel" or "decouple": those are one matrix per layer')
        if not is_number(self.energy) or not 0 < self.energy <= 1:
            raise SecateurError(f"TRP with energy={self.energy!r}", "no share that can be kept", "give one above 0, at most 1")
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise SecateurError(f"TRP with every={self.every!r}", "no number of steps", "give a whole number from 1")
        if not is_number(self.nuclear) or not 0 <= self.nuclear < float("inf"):
            raise SecateurError(f"TRP with nuclear={self.nuclear!r}", "no strength", "give a number from 0")
        for name in SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise SecateurError(f"TRP with {name}={getattr(self, name)!r}", "neither yes nor no", "give true or false")
        if self.nuclear_on not in ("step", "truncation"):
            raise SecateurError(f"TRP with nuclear_on={self.nuclear_on!r}", "no such moment", 'give "step" or "truncation"')
        if self.nuclear_by not in ("gradient", "decay", "proximal"):
            raise SecateurError(f"TRP with nuclear_by={self.nuclear_by!r}", "no such way", nearest(self.nuclear_by, list(WAYS)))
        if self.adaptive and self.energy == 1:
            raise SecateurError("TRP with adaptive periods", "energy=1, which bounds nothing", "give an energy below 1")
        if self.ranks is not None:
            if not isinstance(self.ranks, Mapping):
                raise SecateurError(f"TRP with ranks={self.ranks!r}", "no ranks by layer", 'give them as {"conv2": 8}')
            deployment({"rank": dict(self.ranks)})
        if isinstance(self.descent, bool) or not isinstance(self.descent, int) or self.descent < 0:
            raise SecateurError(f"TRP with descent={self.descent!r}", "no number of steps", "give a whole number from 0")
        deployment(self.deploy)

    @property
    def needs_optimizer(self) -> bool:
        """Does a step read the optimizer's momentum or learning rate?"""
        return self.project_momentum or (self.nuclear > 0 and self.nuclear_by != "gradient")


SWITCHES = ("stem", "pointwise", "strided", "linear", "project_momentum", "adaptive", "deploy_strided")
WAYS = ("gradient", "decay", "proximal")

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {},
    "code": {
        "energy": 0.9,
        "every": 1,
        "nuclear_on": "truncation",
        "pointwise": False,
        "deploy": {"value": 0.05},
        "deploy_strided": False,
    },
}
"""What the paper says, and what the released code does (its `every` is the default of the script; the shell file says 5).

The paper does not say how ranks are read off at the end; both take the code's threshold.
"""


def settings_of(preset: TRPSettings | str, changes: Mapping[str, Any]) -> TRPSettings:
    """The preset, or the given settings, with `changes`. Raises `SecateurError` for names that are none."""
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise SecateurError(f"TRP with the preset {preset!r}", "no such preset", nearest(preset, list(PRESETS)))
        preset = TRPSettings(**PRESETS[preset])
    if not isinstance(preset, TRPSettings):
        do = f"give a TRPSettings, or one of {', '.join(map(repr, PRESETS))}"
        raise SecateurError(f"TRP with the settings {preset!r}", "neither settings nor a preset", do)
    known = [entry.name for entry in fields(TRPSettings)]
    for name in changes:
        if name not in known:
            raise SecateurError(f"TRP with {name}={changes[name]!r}", "no such setting", nearest(name, known))
    return replace(preset, **changes)


def deployment(deploy: Deploy) -> tuple[str, Any]:
    """The one way of choosing ranks in `deploy`, and its number. Raises `SecateurError` where it says none, or two."""
    if not isinstance(deploy, Mapping) or len(deploy) != 1 or next(iter(deploy)) not in DEPLOY:
        raise SecateurError(f"ranks by {deploy!r}", "not one way to choose them", f"give one of {', '.join(DEPLOY)}")
    way, number = next(iter(deploy.items()))
    numbers = list(number.values()) if way == "rank" and isinstance(number, Mapping) else [number]
    for value in numbers:
        whole = isinstance(value, int) and value >= 1
        share = isinstance(value, (int, float)) and 0 < value <= 1
        fits = {"rank": whole, "value": isinstance(value, (int, float)) and value >= 0}.get(way, share)
        if isinstance(value, bool) or not fits:
            do = {"rank": "give whole numbers from 1", "value": "give a number from 0"}.get(way, "give a share from 0 to 1")
            raise SecateurError(f"ranks by {way}={value!r}", "a number that is none of that", do)
    return way, number
