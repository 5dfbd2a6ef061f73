"""Judges: a plan to a loss, without touching the model."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from secateur.core.plan import Plan
from secateur.core.protocols import Judge


def previewing(
    model: nn.Module, evaluate: Callable[[nn.Module], float], prepare: Callable[[nn.Module], None] | None = None
) -> Judge:
    """A judge of the gated preview of a plan: ``evaluate(preview)`` after ``prepare(preview)``; lower is better.

    `prepare` may re-estimate the preview's batch norms (it owns copies of them), as
    ``lambda trial: repair.batchnorm(model, trial, batches)``. Nothing of `model` changes, so a rejected trial needs no undoing.
    Give `evaluate` images that are in no training and no test set: on images it was trained on a model loses too little.
    """

    def judge(plan: Plan) -> float:
        trial = plan.preview(model).eval()
        if prepare is not None:
            prepare(trial)
        return float(evaluate(trial))

    return judge
