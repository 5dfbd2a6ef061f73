"""Calling a model: batches to its device and arguments, evaluation mode that leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.core.protocols import Batches


def to_device(batch: Any, device: torch.device | str) -> Any:
    """`batch` (tensor, or list, tuple or dict of tensors) on `device`."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def call(model: nn.Module, batch: Any) -> Any:
    """`model` on one input: a tensor, a tuple of positional or a dict of named arguments."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def flat(value: Any) -> Iterator[Any]:
    """Leaves of nested lists, tuples, dicts and the attribute containers libraries return."""
    if isinstance(value, dict) or hasattr(value, "items"):
        for item in value.values():
            yield from flat(item)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from flat(item)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from flat(getattr(value, name))
    else:
        yield value


def pairs(batches: Batches, limit: int | None = None) -> Iterator[tuple[Any, Any]]:
    """The (input, target) pairs of `batches`, at most `limit`. Raises `SecateurError` at what is no pair."""
    do = "give an iterable of (input, target) pairs; a target that is not needed may be None"
    try:
        chosen = islice(batches, limit)
    except (TypeError, ValueError):
        number = "" if limit is None else f", at most {limit!r}"
        raise SecateurError(f"batches of type {type(batches).__name__}{number}", "nothing to iterate over so", do) from None
    for batch in chosen:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise SecateurError("a batch", f"{_shapes(batch)}, which is no pair", do)
        yield batch[0], batch[1]


def repeatable(batches: Batches, limit: int | None = None) -> Batches:
    """`batches`, or a list of them (at most `limit`) where they give each but once, as a generator does."""
    return list(pairs(batches, limit)) if isinstance(batches, Iterator) else batches


def size_of(target: Any) -> int:
    """How many samples a target has."""
    while isinstance(target, (tuple, list, dict)):
        target = next(iter(target.values())) if isinstance(target, dict) else target[0]
    return len(target) if isinstance(target, Tensor) and target.dim() else 1


@contextmanager
def fits(batch: Any, target: Any = None, what: str = "a batch with inputs") -> Iterator[None]:
    """Around a forward, and a loss, on data of the user; `what` says what `batch` is.

    Raises `SecateurError` with the shapes of the batch and the model's or the loss's own words where they do not go together.
    """
    try:
        yield
    except (RuntimeError, ValueError, IndexError, TypeError, KeyError, AttributeError) as error:
        if "backward" in str(error) or "inference tensor" in str(error).lower():
            raise  # a fault of the program and not of the data
        words = str(error).strip().splitlines() or ["no message"]
        against = "" if target is None else f" with targets of {_shapes(target)}"
        asked = f"{what} of {_shapes(batch)}{against}"
        do = "give (input, target) pairs that the model and the loss take"
        raise SecateurError(asked, f"{type(error).__name__}: {words[0].rstrip('. ')}", do) from error


def _shapes(value: Any) -> str:
    """What the data is, for a sentence: "shape [2, 3]" or "type str"."""
    if isinstance(value, Tensor):
        return f"shape {list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shapes(item)}" for key, item in value.items()) + "}"
    return "(" + ", ".join(map(_shapes, value)) + ")" if isinstance(value, (tuple, list)) else f"type {type(value).__name__}"


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """`model` in evaluation mode; on leaving, every module is back in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """Where the first parameter or buffer lies; the CPU for a model without any."""
    tensors = [*model.parameters(), *model.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")
