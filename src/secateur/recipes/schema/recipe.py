"""The recipe: one frozen value that says everything a run does, with the names of the Python arguments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from secateur.recipes.schema.kinds import (
    Count,
    Criterion,
    Device,
    Field,
    Flag,
    Fraction,
    Keep,
    Positive,
    Repairs,
    Table,
    Text,
    Whole,
    Words,
)  # fmt: skip
from secateur.recipes.schema.lowrank import LowRank
from secateur.recipes.schema.search import Search
from secateur.recipes.schema.sparse import Sparsity
from secateur.recipes.schema.training import Fit, Stage


@dataclass(frozen=True)
class Model:
    """[model]: `build` is "file.py:function", "package.module:function", "torchvision:NAME", "timm:NAME" or "zoo:NAME"."""

    build: Text
    args: Table = field(default_factory=dict)
    weights: Annotated[str | None, Field(description="a path")] = None


@dataclass(frozen=True)
class Data:
    """[data]: `name` is a built-in set or "file.py:function". Selection uses `holdout` images of the training set only.

    `normalise` None takes the set's own mean and deviation; pretrained weights want those they were trained with.
    """

    name: Text = "digits"
    folder: Annotated[str | None, Field(description="a path")] = None
    args: Table = field(default_factory=dict)
    batch: Count = 128
    test_batch: Count = 500
    holdout: Whole = 0
    augment: Flag = True
    normalise: Literal["imagenet", "cifar10", "half", "none"] | None = None


@dataclass(frozen=True)
class Metric:
    """[metric]: "accuracy" or "file.py:function", called as function(model, batches); higher is better."""

    name: Text = "accuracy"


@dataclass(frozen=True)
class Prune:
    """[prune]: what remains and who decides. `rounds` cuts in that many equal ratios and scores anew before each.

    `keep` names "macs", "params", "bytes" of the saved tensors, "memory" of activations, "latency"; the last by the file
    `table` that `secateur measure --table` wrote, or measured here and now, where it holds for the cut network by the clock.
    `normalise` "auto" is "energy" for norms, distances and first-order scores, "none" for "cap" and
    "elimination", "mean" for the others.
    `isomorphic` ranks units only among axes of like layers; `normalise` is then of no effect. On "scoring_net" and "three_sp",
    whose scores compare across axes, it would be of none, and is refused but for "auto" and "none".
    With `reselect` the units of the widths so found are selected once more, axis after axis by backward elimination, each axis
    fitted in the way that it names before the next.
    """

    keep: Keep = field(default_factory=lambda: {"macs": 0.5})
    criterion: Criterion = "taylor"
    args: Table = field(default_factory=dict)
    allocator: Literal["budget", "uniform"] = "budget"
    normalise: Literal["auto", "mean", "max", "sum", "l2", "energy", "rank", "none"] = "auto"
    floor: Fraction = 0.1
    multiple: Count = 1
    isomorphic: Flag = False
    ignore: Words = ()
    rounds: Count = 1
    batches: Count = 10
    reselect: Literal["none", "least_squares", "two_sided"] = "none"
    table: Annotated[str | None, Field(description="a path")] = None


@dataclass(frozen=True)
class Repair:
    """[repair]: what `batches` training batches mend, by functions of `secateur.repair`; "+" does one after the other.

    Batch norms take their statistics of batches as in training, all else looks at them without augmentation. `steps` and
    `lr` are those of "distil".
    """

    name: Repairs = "batchnorm"
    batches: Count = 50
    steps: Count = 300
    lr: Positive = 3e-3


@dataclass(frozen=True)
class Measure:
    """[measure]: latency is the median of `repeats` interleaved rounds over dense and small, on `batch` inputs."""

    latency: Flag = True
    repeats: Count = 30
    warmup: Whole = 5
    batch: Count = 1


@dataclass(frozen=True)
class Recipe:
    """Everything a run does. `threads` 0 leaves the choice to torch; 1 makes a run repeat bit for bit."""

    model: Model
    title: Text = ""
    seed: Whole = 0
    threads: Whole = 0
    loss: Annotated[str, Field(description='"cross_entropy" or "file.py:function"')] = "cross_entropy"
    device: Device = "auto"
    data: Data = field(default_factory=Data)
    metric: Metric = field(default_factory=Metric)
    train: Fit = field(default_factory=Fit)
    prune: Prune = field(default_factory=Prune)
    search: Search = field(default_factory=Search)
    lowrank: LowRank = field(default_factory=LowRank)
    lowtrain: Fit = field(default_factory=Fit)
    sparse: Sparsity = field(default_factory=Sparsity)
    repair: Repair = field(default_factory=Repair)
    finetune: Fit = field(default_factory=Fit)
    stage: Annotated[tuple[Stage, ...], Field(description="tables [[stage]]")] = ()
    measure: Measure = field(default_factory=Measure)
