"""What a Scoring Net is, and what its training is told."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from torch import optim

from secateur.core.errors import SecateurError, nearest

CHOICES = {
    "encoder": ("stats", "raw"),
    "context": ("deepsets", "attention", "none"),
    "prior": ("none", "l1", "flows"),
    "mode": ("post", "init"),
    "variant": ("gates", "regress", "reinforce"),
    "spend": ("network", "axis"),
    "optimizer": ("adam", "adamw", "sgd", "lbfgs", *(["muon"] if hasattr(optim, "Muon") else [])),
}


@dataclass(frozen=True)
class NetSettings:
    """The architecture. `encoder` "stats" reads statistics of each unit's weights, "raw" the weights themselves.

    `gradients` adds what a few batches tell of the loss. `context` lets the units of an axis see each other: by their mean
    ("deepsets"), by attention, or not. `scale` False leaves out all that changes when a layer's weights are multiplied by
    one number. `relative` adds the size of each unit over the mean of its axis, which training then starts from, in place of
    the standardised size: how unequal the units of an axis are stays visible, which helps on networks the net has not seen.
    `prior` "l1" makes the net a correction of a criterion, for networks it has not seen: a score is the logarithm of a unit's
    L1 norm, as in `criteria.l1`, over the mean of its axis, divided by the deviation of all units of the network, plus what is
    learned, which starts at 0 and stays within plus and minus `bound` deviations. Such a net reads nothing of an axis' depth,
    width and cost. `spread` is that deviation, the least of the networks the net was trained on, written by training (0:
    not known). Where norms differ less than that, what the net reads of them is noise, and the bound shrinks: at half of it
    and below, as in a network that is hardly trained, the net is L1.
    `prior` "flows" corrects a criterion of activations in the same way, and reads them: `flows.columns`, of `Flows` on a few
    batches without labels. Where there is none, the net is L1. It reads nothing of an axis beyond those columns.
    `width` of the hidden layers.
    """

    encoder: Literal["stats", "raw"] = "stats"
    gradients: bool = False
    context: Literal["deepsets", "attention", "none"] = "deepsets"
    scale: bool = True
    relative: bool = False
    prior: Literal["none", "l1", "flows"] = "none"
    bound: float = 0.5
    spread: float = 0.0
    width: int = 64

    def __post_init__(self) -> None:
        _known(self, "encoder", "context", "prior")
        _number("bound", self.bound, 1e-6)
        _number("spread", self.spread, 0)
        if self.prior == "l1" and not self.scale:
            found = "norms, which change when a layer's weights are multiplied"
            raise SecateurError("prior='l1' with scale=False", found, "leave one of them out")
        for name in ("gradients", "scale", "relative"):
            if not isinstance(getattr(self, name), bool):
                raise SecateurError(f"{name}={getattr(self, name)!r}", "neither true nor false", "give true or false")
        if type(self.width) is not int or not 4 <= self.width <= 1024 or self.width % 4:
            raise SecateurError(f"width={self.width!r}", "no width", "give a multiple of 4 from 4 to 1024")


@dataclass(frozen=True)
class Objective:
    """What one stage of training minimises, as weights.

    Of the `task`'s loss, of `kl` = `temperature`^2 KL(full || gated), of `logits`, the mean squared difference of outputs, of
    `features`, the distance of what `layers` put out from what they put out in the full network (attention transfer,
    Zagoruyko and Komodakis, 2017), and of the `budget`'s excess (max(0, count / budget - 1))^2 in soft widths. A `kl` of None
    is 1, and 0 in mode "init": what an untrained network answers teaches nothing. `smoothing` is the share of the task's loss
    that goes to the mean of -log p over all classes: label smoothing, where that loss is cross-entropy (Szegedy et al., 2016).
    """

    task: float = 1.0
    kl: float | None = None
    logits: float = 0.0
    budget: float = 1.0
    temperature: float = 1.0
    smoothing: float = 0.0
    features: float = 0.0
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.layers, (list, tuple)) or not all(isinstance(layer, str) for layer in self.layers):
            raise SecateurError(f"layers={self.layers!r}", "no list of names", 'give names of layers, as ["layer1", "layer2"]')
        object.__setattr__(self, "layers", tuple(self.layers))
        if bool(self.features) != bool(self.layers):
            found = "feature matching without layers" if self.features else "layers without a weight on features"
            raise SecateurError("an objective", found, "give both features, a weight, and layers, their names")
        for name in ("task", "logits", "budget", "smoothing", "features", *(["kl"] if self.kl is not None else [])):
            _number(name, getattr(self, name), 0)
        _number("temperature", self.temperature, 1e-3, 1e3)
        if self.smoothing >= 1:
            raise SecateurError(f"smoothing={self.smoothing}", "a value out of range", "give a share below 1")
        if not self.task + (1.0 if self.kl is None else self.kl) + self.logits + self.features > 0:
            raise SecateurError("an objective", "no weight on task, kl, logits or features", "give one of them a weight")

    def of(self, mode: str) -> Objective:
        """With the `kl` that None stands for. Raises `SecateurError` where nothing is left to minimise."""
        return replace(self, kl=0.0 if mode == "init" else 1.0) if self.kl is None else self


@dataclass(frozen=True)
class ScorerStage:
    """A stretch of a Scoring Net's training: `epochs` passes with an objective, an optimizer and a learning rate of its own.

    An epoch of "lbfgs" is one step on the loss of all batches together, at one share and temperature, which looks at it up to
    25 times; its gradient is not clipped. Its line search suits the smooth loss of variant "regress"; through gates the loss is
    a step function, where a search that finds nothing lower leaves the net as it is. "muon" is there where torch has it.
    """

    name: str = "score"
    epochs: int = 15
    objective: Objective = field(default_factory=Objective)
    optimizer: Literal["adam", "adamw", "sgd", "lbfgs", "muon"] = "adam"
    lr: float = 3e-3

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not isinstance(self.objective, Objective):
            found = f"name={self.name!r}, objective={self.objective!r}"[:80]
            raise SecateurError("a stage of a Scoring Net", found, "give a text and an Objective")
        _known(self, "optimizer")
        _number("lr", self.lr, 1e-12)
        _count("epochs", self.epochs, 0)


@dataclass(frozen=True)
class ScorerSettings:
    """How a Scoring Net is trained.

    `mode` "post" asks for a network that works as it is cut; "init" for one that works after `unrolled` steps of SGD at
    `inner_lr` from where it is cut (first-order MAML, Finn et al., 2017); the full network then answers with the statistics of
    the batch, as running ones mean nothing before training. `variant`: "gates" trains through gates by a
    straight-through estimate; "regress" fits measured changes of the loss under `masks` random masks that drop shares in
    the range `drop` of every axis; "reinforce" samples gates and follows the policy gradient.

    `keeps` are the shares the allocator is asked for, one drawn per step; the share falls to the one drawn during the first
    `ramp` of training. `spend` says where a unit's place can go to: another unit of the "network" or of the same "axis".
    `soft` is the temperature of the gates' slope at the start and at the end; `clip` bounds the norm of a step's gradient.
    `limit` batches are held in memory with the full model's answers.
    """

    stages: tuple[ScorerStage, ...] = field(default_factory=lambda: (ScorerStage(),))
    mode: Literal["post", "init"] = "post"
    variant: Literal["gates", "regress", "reinforce"] = "gates"
    spend: Literal["network", "axis"] = "network"
    keeps: tuple[float, ...] = (0.5,)
    soft: tuple[float, float] = (1.0, 0.1)
    ramp: float = 0.3
    clip: float = 1.0
    unrolled: int = 1
    inner_lr: float = 0.1
    masks: int = 500
    drop: tuple[float, float] = (0.1, 0.3)
    limit: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in (("stages", ScorerStage), ("keeps", float), ("soft", float), ("drop", float)):
            object.__setattr__(self, name, _listed(name, getattr(self, name), kind))
        if not self.stages:
            raise SecateurError("stages=()", "no stage", "give one at least; with epochs=0 nothing is trained")
        _known(self, "mode", "variant", "spend")
        for name, low in (("unrolled", 1), ("masks", 1), ("limit", 1), ("seed", 0)):
            _count(name, getattr(self, name), low)
        if self.seed >= 1 << 63:
            raise SecateurError(f"seed={self.seed}", "more than 63 bits", "give a smaller one")
        _number("inner_lr", self.inner_lr, 1e-12)
        _number("clip", self.clip, 1e-12)
        _number("ramp", self.ramp, 0)
        if not self.keeps or not all(0 < share <= 1 for share in self.keeps):
            raise SecateurError(f"keeps={self.keeps}", "no share", "say what remains, as shares above 0 and at most 1")
        if len(self.soft) != 2 or not all(1e-3 <= value <= 1e3 for value in self.soft):
            raise SecateurError(f"soft={self.soft}", "no pair of temperatures", "give two from 0.001 to 1000, as (1.0, 0.1)")
        if len(self.drop) != 2 or not 0 < self.drop[0] <= self.drop[1] < 1:
            raise SecateurError(f"drop={self.drop}", "no range of shares", "give two shares between 0 and 1, as (0.1, 0.3)")
        object.__setattr__(self, "stages", tuple(replace(s, objective=s.objective.of(self.mode)) for s in self.stages))
        if any(stage.optimizer == "lbfgs" for stage in self.stages):
            if self.variant == "reinforce":
                found = "variant 'reinforce', whose loss is another one at every look"
                raise SecateurError("optimizer='lbfgs'", found, "give another optimizer or another variant")
            if self.variant == "gates" and len(self.keeps) > 1:
                found = f"a loss that changes with the share drawn from keeps={self.keeps}"
                raise SecateurError("optimizer='lbfgs'", found, "give one share, or another optimizer")


def net_to_json(settings: NetSettings) -> dict[str, Any]:
    """What the header of a saved Scoring Net holds."""
    return asdict(settings)


def net_from_json(value: Mapping[str, Any], asked: str) -> NetSettings:
    """The inverse; what an older file does not say is as it was before one could say it, the default.

    Raises `SecateurError` beginning with `asked` for keys and values that are none of ours.
    """
    unknown = (
        sorted(set(value) - {f.name for f in fields(NetSettings)}) if type(value) is dict else ["a value that is no table"]
    )
    if unknown:
        raise SecateurError(asked, f"settings with {unknown[0][:60]!r}, which is none", "train and save it again")
    try:
        return NetSettings(**value)
    except (SecateurError, TypeError) as error:
        raise SecateurError(asked, f"settings that are none ({error})", "train and save it again") from None


def _known(settings: Any, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value not in CHOICES[name]:
            raise SecateurError(f"{name}={value!r}", "no such choice", nearest(str(value), CHOICES[name]))


def _number(name: str, value: Any, low: float, high: float = sys.float_info.max) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        most = f" and at most {high:g}" if high < sys.float_info.max else ""
        raise SecateurError(f"{name}={value!r}"[:80], "a value out of range", f"give a number of at least {low:g}{most}")


def _listed(name: str, values: Any, kind: type) -> tuple[Any, ...]:
    """`values` as a tuple of `kind`; whole numbers are real ones."""
    fits = (int, float) if kind is float else kind
    listed = isinstance(values, (list, tuple))
    if not listed or any(isinstance(value, bool) or not isinstance(value, fits) for value in values):
        of = "numbers, as [0.5]" if kind is float else f"{kind.__name__}"
        raise SecateurError(f"{name}={values!r}"[:80], "something else than a list of that", f"give a list of {of}")
    return tuple(values)


def _count(name: str, value: Any, low: int) -> None:
    if type(value) is not int or value < low:
        raise SecateurError(f"{name}={value!r}", "a value out of range", f"give a whole number of at least {low}")
