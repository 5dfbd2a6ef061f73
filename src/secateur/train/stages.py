"""A training in named stages, each with a loss, an optimizer, a learning rate and a duration of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from secateur.core.errors import SecateurError, nearest
from secateur.core.protocols import Batches, Hook, Loss
from secateur.train.loop import Evaluate, Record, fit
from secateur.train.losses import taught
from secateur.train.objectives import LOSSES, TAUGHT, FeatureMatching, objective
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
        object.__setattr__(self, "layers", tuple(self.layers))
        if self.loss not in LOSSES:
            raise SecateurError(f"loss {self.loss!r} of stage {self.name!r}", "no such loss", nearest(self.loss, LOSSES))
        if not self.name.isprintable() or not self.name:
            raise SecateurError(f"a stage named {self.name!r}", "no name", "give it a name that can be printed")
        if self.loss == "features" and not self.layers:
            raise SecateurError(f"stage {self.name!r}", "feature matching without layers", "name the layers")
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
    Raises `SecateurError` where a stage needs a teacher and there is none, where two stages have one name, and as `fit` does.
    """
    told_apart(stages)
    for stage in stages:
        if stage.needs_teacher and teacher is None:
            lacking = f"loss {stage.loss!r} and no teacher"
            raise SecateurError(f"stage {stage.name!r}", lacking, "give the dense network as the teacher, or another loss")
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
    """Raise `SecateurError` where two stages have one name."""
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
