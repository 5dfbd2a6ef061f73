"""The sections of a recipe that train in stages."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from secateur.recipes.kinds import Field, Flag, Fraction, NonNegative, Positive, Share, Text, Whole, Words
from secateur.train import FitSettings
from secateur.train import Stage as Trained

OWN = ("name", "loss", "alpha", "temperature", "layers")


@dataclass(frozen=True)
class Stage:
    """[[stage]], once per stage and in order, in place of [finetune]: names as in `train.Stage` and `train.FitSettings`.

    The teacher of "kl", "logits" and "features" is the dense network.
    """

    name: Text = "train"
    loss: Literal["cross_entropy", "label_smoothing", "kl", "logits", "features"] = "cross_entropy"
    alpha: Annotated[float, Field(ge=0, le=1, description="a share from 0 to 1")] = 0.5
    temperature: Positive = 4.0
    layers: Words = ()
    epochs: Whole = 1
    optimizer: Text = "sgd"
    lr: Positive = 0.05
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


def trained(stage: Stage, seed: int) -> Trained:
    """`stage` as the training takes it. Raises `SecateurError` for an optimizer torch does not have."""
    named = asdict(stage)
    return Trained(**{name: named.pop(name) for name in OWN}, fit=FitSettings(**named, seed=seed))
