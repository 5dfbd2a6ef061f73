"""What one training run is told, and what follows from it: the optimizer and the learning rate of every step."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import nn, optim

from secateur.core.errors import SecateurError, nearest
from secateur.linalg.muon import Muon

SCHEDULES = ("cosine", "step", "constant")
PRECISIONS = ("float32", "bf16")


@dataclass(frozen=True)
class FitSettings:
    """Settings of `fit`.

    `optimizer`: a name in `torch.optim`, upper and lower case alike ("muon" trains matrices by Muon, the rest by
    AdamW); it is given those of lr, momentum, weight_decay and
    nesterov that it knows. `lr` is reached after `warmup` epochs of linear increase; then "cosine" falls to 0 at the end
    (Loshchilov and Hutter, 2017, without restarts), "step" multiplies by `gamma` at each share of training in
    `milestones`, "constant" stays. `precision` "bf16" runs forward in bfloat16 by autocast, weights stay float32.
    `grad_clip` limits the norm of the gradient. `seed` decides dropout and the shuffling of a plain DataLoader.
    """

    epochs: int = 10
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = True
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    warmup: float = 0
    label_smoothing: float = 0.0
    precision: Literal["float32", "bf16"] = "float32"
    channels_last: bool = False
    compile: bool = False
    grad_clip: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.milestones, (list, tuple)) or not all(_number(share) for share in self.milestones):
            raise SecateurError(
                f"milestones={self.milestones!r}", "no list of numbers", "give shares of training, as (0.5, 0.75)"
            )
        object.__setattr__(self, "milestones", tuple(self.milestones))
        _require("epochs", self.epochs, type(self.epochs) is int and self.epochs >= 0, "a whole number of at least 0")
        _require("seed", self.seed, type(self.seed) is int, "a whole number")
        for name in ("warmup", "weight_decay"):
            value = getattr(self, name)
            _require(name, value, _number(value) and value >= 0, "a number of at least 0")
        for name in ("lr", "gamma", *(["grad_clip"] if self.grad_clip is not None else [])):
            value = getattr(self, name)
            _require(name, value, _number(value) and value > 0, "a number above 0")
        for name in ("momentum", "label_smoothing"):
            value = getattr(self, name)
            _require(name, value, _number(value) and 0 <= value < 1, "a number from 0 up to, not including, 1")
        for name, known in (("schedule", SCHEDULES), ("precision", PRECISIONS), ("optimizer", tuple(_optimizers()))):
            value = getattr(self, name)
            if value not in known and not (name == "optimizer" and str(value).lower() in known):
                raise SecateurError(f"{name}={value!r}", "no such choice", nearest(str(value).lower(), known))


def _number(value: Any) -> bool:
    """Is it a number that a float can hold?"""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _require(name: str, value: Any, fits: bool, do: str) -> None:
    if not fits:
        raise SecateurError(f"{name}={value}"[:80], "a value out of range", f"give {do}")


def _optimizers() -> dict[str, type[optim.Optimizer]]:
    """Lower-case name to class, of every optimizer in `torch.optim` that a plain loop can drive."""
    kinds = [kind for kind in vars(optim).values() if isinstance(kind, type) and issubclass(kind, optim.Optimizer)]
    driven = [kind for kind in kinds if kind not in (optim.Optimizer, optim.LBFGS, optim.SparseAdam)]
    return {kind.__name__.lower(): kind for kind in driven}


def optimizer_for(model: nn.Module, settings: FitSettings) -> optim.Optimizer:
    """A fresh optimizer over the parameters of `model` that want gradients.

    Raises `SecateurError` where none does.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise SecateurError("training", "no parameter that wants a gradient", "call model.requires_grad_(True) first")
    if settings.optimizer.lower() == "muon":
        return Muon(parameters, settings.lr, settings.momentum, settings.weight_decay, settings.nesterov)
    kind = _optimizers()[settings.optimizer.lower()]
    takes = kind.__init__.__code__.co_varnames[: kind.__init__.__code__.co_argcount + kind.__init__.__code__.co_kwonlyargcount]
    wanted: dict[str, Any] = {name: getattr(settings, name) for name in ("lr", "momentum", "weight_decay")}
    wanted["nesterov"] = settings.nesterov and settings.momentum > 0
    if "fused" in takes and all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters):
        wanted["fused"] = True  # one pass over memory instead of one per operation and tensor
    return kind(parameters, **{name: value for name, value in wanted.items() if name in takes})


def lr_at(settings: FitSettings, progress: float) -> float:
    """The learning rate after `progress` epochs (a fraction inside an epoch).

    >>> [round(lr_at(FitSettings(epochs=4, lr=1.0), p), 2) for p in (0, 2, 4)]
    [1.0, 0.5, 0.0]
    """
    if progress < settings.warmup:
        return settings.lr * (progress + 1e-2) / (settings.warmup + 1e-2)
    if settings.schedule == "cosine":
        done = (progress - settings.warmup) / max(settings.epochs - settings.warmup, 1e-9)
        return settings.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    if settings.schedule == "step":
        return settings.lr * settings.gamma ** sum(progress >= share * settings.epochs for share in settings.milestones)
    return settings.lr


def same(settings: FitSettings, stored: dict[str, Any]) -> list[str]:
    """Names of the settings in which `stored` (as `asdict` wrote them) differs."""
    now = {f.name: getattr(settings, f.name) for f in fields(settings)}
    return [name for name, value in now.items() if _plain(stored.get(name)) != _plain(value)]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, list)) else value


def autocast(settings: FitSettings, device: torch.device) -> torch.autocast:
    """The context a forward runs in."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16")
