"""The sections of a recipe that train: [train], [lowtrain], [finetune] and, in their place, [[stage]]."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Annotated, Literal

from secateur.recipes.schema.kinds import Field, Flag, Fraction, NonNegative, Positive, Share, Text, Whole, Words
from secateur.train import FitSettings
from secateur.train import Stage as Trained


@dataclass(frozen=True)
class Training:
    """What all of them say: names as in `train.FitSettings`."""

    epochs: Whole = 0
    optimizer: Text = "sgd"
    lr: Positive = 0.1
    momentum: Fraction = 0.9
    weight_decay: NonNegative = 5e-4
    nesterov: Flag = True
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: Annotated[tuple[Share, ...], Field(description="a list of shares of training")] = (0.5, 0.75)
    gamma: Positive = 0.1
    warmup: NonNegative = 0
    label_smoothing: Fraction = 0.0
    precision: Literal["float32", "bf16"] = "float32"
    channels_last: Flag = False
    compile: Flag = False
    grad_clip: Annotated[float | None, Field(gt=0, description="a number above 0")] = None


@dataclass(frozen=True)
class Fit(Training):
    """[train], [lowtrain], [finetune]: names as in `train.FitSettings`; `teacher` above 0 adds that share of distillation."""

    teacher: Annotated[float, Field(ge=0, le=1, description="a share from 0 to 1")] = 0.0
    temperature: Positive = 4.0


@dataclass(frozen=True)
class Aim:
    """What a stage trains for: names as in `train.Stage`."""

    name: Text = "train"
    loss: Literal["cross_entropy", "label_smoothing", "kl", "logits", "features"] = "cross_entropy"
    alpha: Annotated[float, Field(ge=0, le=1, description="a share from 0 to 1")] = 0.5
    temperature: Positive = 4.0
    layers: Words = ()


@dataclass(frozen=True)
class Stage(Training, Aim):
    """[[stage]], once per stage and in order, in place of [finetune]: names as in `train.Stage` and `train.FitSettings`.

    The teacher of "kl", "logits" and "features" is the dense network. Keys of the aim come first, as the last base's do.
    """

    epochs: Whole = 1
    lr: Positive = 0.05


def trained(stage: Stage, seed: int) -> Trained:
    """`stage` as the training takes it. Raises `SecateurError` for an optimizer torch does not have."""
    named = asdict(stage)
    return Trained(**{part.name: named.pop(part.name) for part in fields(Aim)}, fit=FitSettings(**named, seed=seed))
