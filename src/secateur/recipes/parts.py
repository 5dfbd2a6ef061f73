"""A recipe's words turned into what a run works on: model, batches, metric, loss.

Shape legend: B batch; an example is one input of batch 1 as the model takes it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import data as datasets
from secateur.core.errors import SecateurError
from secateur.core.protocols import Batches, Loss
from secateur.core.running import evaluating, to_device
from secateur.data import BatchSettings, DataSet
from secateur.io.objects import build as build_user
from secateur.io.objects import call as call_user
from secateur.io.objects import resolve
from secateur.io.weights import load_weights
from secateur.recipes import zoo
from secateur.recipes.schema import Recipe
from secateur.train.evaluate import evaluate

CHOSEN = ", by which the search chose the widths"
Judge = Callable[[nn.Module, Batches], dict[str, float]]
"""(model, batches) to {"accuracy": ..., "loss": ...}."""


@dataclass(frozen=True, eq=False)
class Parts:
    """What a run works on, on its device. `plain` are training batches without augmentation, for scores and repairs.

    Statistics of batch norms are taken of `train`, the same at every pass that asks for no epoch: a network that has been
    trained on augmented images does worse with those of plain ones.
    """

    model: Callable[[], nn.Module]
    train: Batches
    plain: Batches
    holdout: Batches | None
    test: Batches
    judge: Judge
    loss: Loss
    device: torch.device
    example: Any
    accuracy_on: str
    plain_loss: bool = True


def parts(recipe: Recipe, device: torch.device) -> Parts:
    """The parts of `recipe`; building the model is put off. Raises `SecateurError` for whatever cannot be had."""
    loaded = load_data(recipe, device)
    train, plain, holdout, test = loaded
    return Parts(
        model=lambda: build_model(recipe.model.build, recipe.model.args),
        train=train,
        plain=plain,
        holdout=holdout,
        test=test,
        judge=load_judge(recipe),
        loss=load_loss(recipe.loss),
        device=device,
        example=first_input(test, 1),
        accuracy_on=_test_words(test) + (CHOSEN if recipe.search.select_on == "test" else ""),
        plain_loss=recipe.loss == "cross_entropy",
    )


def build_model(build: str, args: Mapping[str, Any]) -> nn.Module:
    """The model that "zoo:NAME", "file.py:function", "torchvision:NAME" or "timm:NAME" builds, freshly initialised.

    Raises `SecateurError` where the name is unknown, the call fails, or what comes back is no module.
    """
    if build.startswith("zoo:"):
        return call_user(partial(zoo.build, build.removeprefix("zoo:")), build, **args)
    return build_user(build, **args)


def with_weights(model: nn.Module, weights: str, folder: str | None = None) -> nn.Module:
    """A copy of `model` with `weights`; a relative path that is not there is looked up below the data folder."""
    path = Path(weights)
    if not path.exists() and folder and (Path(folder) / path).exists():
        path = Path(folder) / path
    if not path.exists():
        below = f", nor below {folder!r}" if folder else ""
        raise SecateurError(f"weights {weights!r}", f"no such file{below}", "give the path of the weights, or --data FOLDER")
    return load_weights(path, model)


def load_data(recipe: Recipe, device: torch.device) -> tuple[Batches, Batches, Batches | None, Batches]:
    """(training, plain training, holdout, test) batches. A user's function returns a `DataSet` or a pair (train, test)."""
    section, found = recipe.data, load_source(recipe)
    if isinstance(found, DataSet):
        found = found.normalised(section.normalise) if section.normalise else found
        layout = recipe.finetune.channels_last or recipe.train.channels_last
        settings = BatchSettings(section.batch, section.test_batch, section.holdout, section.augment, layout, recipe.seed)
        made = datasets.loaders(found, settings, device=device)
        return made.train, made.train.plain(), made.holdout, made.test
    if _is_pair(found):
        if section.holdout:
            raise SecateurError("data.holdout", "batches of your own", "set holdout = 0, or return a secateur.data.DataSet")
        train, test = found
        return train, train, None, test
    do = "return a secateur.data.DataSet or (train, test) batches"
    raise SecateurError(f"data {section.name!r}", f"{type(found).__name__}", do)


def scoring_batches(recipe: Recipe, device: torch.device) -> Batches:
    """Training batches without augmentation; here a user's function may also return nothing but training batches."""
    found = load_source(recipe)
    if isinstance(found, Iterable) and not isinstance(found, DataSet) and not _is_pair(found):
        return found
    return load_data(recipe, device)[1]


def load_source(recipe: Recipe) -> Any:
    """What the data's name stands for: a `DataSet`, or whatever the user's function returns."""
    section = recipe.data
    folder = section.folder or os.environ.get("SECATEUR_DATA")
    if ":" in section.name:
        return call_user(resolve(section.name), section.name, **section.args)
    if section.name == "image_folder" and folder:
        return call_user(datasets.image_folder, section.name, folder, **section.args)
    return call_user(datasets.named, section.name, section.name, folder, **section.args)


def _is_pair(found: Any) -> bool:
    """Two collections of batches? Two batches (input, target) in a list are none."""
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        return False
    return all(isinstance(p, Iterable) and not isinstance(p, (Tensor, Mapping)) and not _is_batch(p) for p in found)


def _is_batch(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and isinstance(value[0], (Tensor, Mapping))


def load_judge(recipe: Recipe) -> Judge:
    """The function that measures accuracy and loss, or the user's metric under the name "accuracy"."""
    loss = load_loss(recipe.loss)
    if recipe.metric.name == "accuracy":
        return lambda model, batches: evaluate(model, batches, loss=loss)
    metric = resolve(recipe.metric.name)

    def judge(model: nn.Module, batches: Batches) -> dict[str, float]:
        with torch.no_grad(), evaluating(model):
            value = call_user(metric, recipe.metric.name, model, batches)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise SecateurError(f"metric {recipe.metric.name!r}", repr(value)[:80], "return one finite number")
        return {"accuracy": number}

    return judge


def load_loss(name: str) -> Loss:
    """Cross-entropy, or the user's own (output, target) -> scalar."""
    return guarded(F.cross_entropy if name == "cross_entropy" else resolve(name), f"loss {name!r}")


def guarded(loss: Loss, asked: str) -> Loss:
    """`loss`, where targets that do not fit the output become one sentence that begins with `asked`."""

    def guard(output: Any, target: Any) -> Tensor:
        return call_user(loss, asked, output, target)

    return guard


def first_input(batches: Batches, size: int | None = None) -> Any:
    """The first input of `batches`, cut to `size` samples. Raises `SecateurError` where there is none."""
    pair = next(iter(batches), None)
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        found = "nothing" if pair is None else type(pair).__name__
        raise SecateurError("the first batch", found, "yield pairs (input, target)")
    return _cut(pair[0], size)


def limited(batches: Batches, count: int, device: torch.device) -> list[tuple[Any, Any]]:
    """The first `count` batches on `device`, held in memory so that every pass sees the same."""
    return [(to_device(x, device), to_device(y, device)) for x, y in islice(iter(batches), count)]


Held = list[tuple[Any, Any]]


def fitting(parts: Parts, name: str, count: int) -> tuple[Held, Held | None]:
    """What the repair `name` looks at: `count` plain batches, and for batch norms as many of training, None without any."""
    usual = limited(parts.train, count, parts.device) if "batchnorm" in name.split("+") else None
    return limited(parts.plain, count, parts.device), usual


def cpu() -> torch.device:
    """The CPU."""
    return torch.device("cpu")


def _cut(value: Any, size: int | None) -> Any:
    if isinstance(value, Tensor):
        return value[:size]
    if isinstance(value, Mapping):
        return {key: _cut(part, size) for key, part in value.items()}
    return type(value)(_cut(part, size) for part in value) if isinstance(value, (tuple, list)) else value


def _test_words(test: Batches) -> str:
    images = getattr(test, "images", None)
    return f"test, {images:,} images" if images else "test"
