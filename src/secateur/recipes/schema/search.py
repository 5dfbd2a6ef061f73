"""The section of a recipe that hands the widths to a search."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from secateur.recipes.schema.kinds import Count, Positive, Repairs, Table, Whole


@dataclass(frozen=True)
class Search:
    """[search]: trials on `data.holdout` decide the width of every axis, in place of `prune.allocator`.

    `method` "adaptive", "predicted" and "bisect" are functions of `secateur.search`; `args` are fields of their settings, and
    "predicted" takes those of `PredictedSettings` beside them. Units go by `prune.criterion`. `prune.keep` is of no effect;
    ``args = { keep = { params = 0.2 } }`` ends the search there.
    A trial is repaired by `repair` on `batches` training batches and judged on `images` held-out ones (0: all) by `metric`.
    `recover` epochs at rate `recover_lr` follow each sweep of "adaptive". `predict`: what "predicted" predicts with.
    """

    method: Literal["none", "adaptive", "predicted", "bisect"] = "none"
    args: Table = field(default_factory=dict)
    metric: Literal["accuracy", "loss"] = "accuracy"
    images: Whole = 0
    repair: Repairs = "batchnorm"
    batches: Count = 10
    recover: Whole = 0
    recover_lr: Positive = 0.01
    predict: Literal["reconstruction", "taylor", "group_fisher"] = "reconstruction"
