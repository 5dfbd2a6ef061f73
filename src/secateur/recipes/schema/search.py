"""The section of a recipe that hands the widths to a search."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from secateur.recipes.schema.kinds import Count, Flag, Positive, Repairs, Table, Whole


@dataclass(frozen=True)
class Search:
    """[search]: trials on images held out of the training set decide the width of every axis, in place of `prune.allocator`.

    `method` "adaptive", "predicted" and "bisect" are functions of `secateur.search`; `args` are fields of their settings, and
    "predicted" takes those of `PredictedSettings` beside them. Units go by `prune.criterion`. `prune.keep` is of no effect;
    ``args = { keep = { params = 0.2 } }`` ends the search there; a share of milliseconds goes by the file `prune.table`.
    A trial is repaired by `repair` on `batches` training batches and judged on `images` (0: all) by `metric`. `select_on`:
    the "holdout" of `data.holdout`, the "train" images, or the "test" images, to imitate papers that did so; an accuracy
    on test images is then none of images nobody chose by, and the report says so.
    Each sweep of "adaptive" is followed by `recover` epochs at rate `recover_lr`; 0 trains nothing. It scores units anew
    before every "step", or after each recovery ("sweep"); "auto" is "step" for criteria of weights alone. Axes that a
    residual sum couples are searched where `coupled` says so. `at_once` candidates are judged in one forward of stacked gates,
    where they do not depend on each other; under `torchrun` processes take turns. `predict`: what "predicted" predicts with.
    """

    method: Literal["none", "adaptive", "predicted", "bisect"] = "none"
    args: Table = field(default_factory=dict)
    metric: Literal["accuracy", "loss"] = "accuracy"
    images: Whole = 0
    repair: Repairs = "batchnorm"
    batches: Count = 10
    recover: Whole = 1
    recover_lr: Positive = 0.01
    select_on: Literal["holdout", "train", "test"] = "holdout"
    rescore: Literal["auto", "step", "sweep"] = "auto"
    coupled: Flag = False
    at_once: Count = 1
    predict: Literal["reconstruction", "taylor", "group_fisher"] = "reconstruction"
