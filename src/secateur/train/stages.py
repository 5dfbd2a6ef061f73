"""A training in named stages, each with a loss, an optimizer, a learning rate and a duration of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from secateur.core.errors import SecateurError, nearest
from secateur.core.protocols import Batches, Hook, Loss
from secateur.train.loop import Evaluate, Record, fit
from secateur.train.losses import taught
from secateur.train.objectives import LOSSES, TAUGHT, FeatureMatching, objective, require_teacher
from secateur.train.settings import FitSettings


@dataclass(frozen=True)
class Stage:
    """One stage: `fit` says how long, by which optimizer and at which rate; `loss` is a name of `objectives.LOSSES`.

    `alpha` is the teacher's share of the losses "kl" and "logits" and the weight of "features", which match at `layers`.
    """

    name: str = "train"
    fit: FitSettings = field(default_factory=FitSettings)
    loss: str = "cross_entropy"
    alpha: float = 0.5
    temperature: float = 4.0
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isprintable() or not self.name:
            raise SecateurError(f"a stage named {self.name!r}", "no name", "give it a name that can be printed")
        if self.loss not in LOSSES:
            raise SecateurError(f"loss {self.loss!r} of stage {self.name!r}", "no such loss", nearest(self.loss, LOSSES))
        if not isinstance(self.fit, FitSettings):
            raise SecateurError(f"stage {self.name!r}", f"a fit of type {type(self.fit).__name__}", "give FitSettings")
        if not isinstance(self.layers, (list, tuple)) or not all(isinstance(layer, str) for layer in self.layers):
            found = f"layers={self.layers!r}, no list of names"
            raise SecateurError(f"stage {self.name!r}", found, 'give names of layers, as ["layer1", "layer2"]')
        object.__setattr__(self, "layers", tuple(self.layers))
        if (self.loss == "features") != bool(self.layers):
            found = f"layers beside loss {self.loss!r}" if self.layers else "feature matching without layers"
            raise SecateurError(f"stage {self.name!r}", found, "name the layers of the loss 'features', and of no other")
        if not isinstance(self.alpha, (int, float)) or not 0 <= self.alpha < math.inf:
            raise SecateurError(f"alpha={self.alpha!r} of stage {self.name!r}", "no weight", "give a number of at least 0")
        objective(self.loss, alpha=self.alpha, temperature=self.temperature)

    @property
    def needs_teacher(self) -> bool:
        """Does the loss compare with another network?"""
        return self.loss in TAUGHT or self.loss == "features"


def fit_stages(
    model: nn.Module,
    batches: Batches,
    stages: Sequence[Stage],
    *,
    teacher: nn.Module | None = None,
    loss: Loss | None = None,
    hooks: Sequence[Hook] = (),
    evaluate: Evaluate | None = None,
    checkpoint: Path | None = None,
    on_step: Callable[[Stage, int, int, int | None], None] | None = None,
    on_epoch: Callable[[Record], None] | None = None,
) -> list[Record]:
    """Train `model` in place, stage after stage; one record per epoch, as of `fit`, with "stage" its name.

    Each stage starts a fresh optimizer on the weights the one before left, and counts its epochs from 1. `teacher` answers in
    the stages that need one. `loss` stands in for "cross_entropy", where the task has one of its own. With `checkpoint` every
    stage has a file of that name and its number; called again with the same arguments, `fit_stages` goes on where it stopped.
    Raises `SecateurError` before anything is trained where a stage needs a teacher and there is none, or layers that are not
    there, and where two stages have one name; and as `fit` does. The teacher stays as it is.
    """
    told_apart(stages)
    for stage in stages:
        if stage.needs_teacher and teacher is None:
            lacking = f"loss {stage.loss!r} and no teacher"
            raise SecateurError(f"stage {stage.name!r}", lacking, "give the dense network as the teacher, or another loss")
        if stage.needs_teacher and teacher is not None:
            require_teacher(model, teacher, stage.layers)
    records: list[Record] = []
    for number, stage in enumerate(stages):
        match = _matching(stage, model, teacher)
        given = batches
        if teacher is not None and stage.loss in TAUGHT:
            given = taught(batches, teacher, precision=stage.fit.precision)
        try:
            found = fit(
                model,
                given,
                stage.fit,
                loss=_loss(stage, loss),
                hooks=[*hooks, *match],
                evaluate=evaluate,
                checkpoint=checkpoint and checkpoint.with_name(f"{checkpoint.name}.{number + 1}"),
                on_step=_step(stage, on_step),
                on_epoch=_told(stage, on_epoch),
            )
        finally:
            for hook in match:
                hook.remove()
        records += [{"stage": stage.name, **record} for record in found]
    return records


def told_apart(stages: Sequence[Stage]) -> None:
    """Raise `SecateurError` for what is no list of stages, and where two have one name."""
    if not isinstance(stages, (list, tuple)) or not all(isinstance(stage, Stage) for stage in stages):
        raise SecateurError("a training in stages", f"stages of type {type(stages).__name__}", "give a list of Stage")
    names = [stage.name for stage in stages]
    for name in names:
        if names.count(name) > 1:
            raise SecateurError(f"stage {name!r}", "another stage of that name", "give each stage a name of its own")


def _loss(stage: Stage, own: Loss | None) -> Loss:
    if own is not None and stage.loss in ("cross_entropy", "features"):
        return own
    return objective(stage.loss, alpha=stage.alpha, temperature=stage.temperature, smoothing=stage.fit.label_smoothing)


def _matching(stage: Stage, model: nn.Module, teacher: nn.Module | None) -> list[FeatureMatching]:
    return (
        [FeatureMatching(model, teacher, stage.layers, stage.alpha)] if stage.loss == "features" and teacher is not None else []
    )


def _step(stage: Stage, tell: Any) -> Any:
    return None if tell is None else lambda epoch, step, steps: tell(stage, epoch, step, steps)


def _told(stage: Stage, tell: Callable[[Record], None] | None) -> Callable[[Record], None] | None:
    return None if tell is None else lambda record: tell({"stage": stage.name, **record})
