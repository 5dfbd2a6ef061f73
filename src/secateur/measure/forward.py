"""One forward of a model, without gradients, in evaluation mode, leaving no trace on the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from secateur.core.errors import SecateurError
from secateur.core.running import call, device_of, evaluating, to_device


@contextmanager
def without_fastpath() -> Iterator[None]:
    """Attention layers run operation by operation: their fused path hides every product from a counter."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def prepare(model: nn.Module, example: tuple[Any, ...]) -> Any:
    """`example` as `call` takes it, on the device of `model`: one tensor or dict alone, several as positional arguments."""
    return to_device(example[0] if len(example) == 1 else example, device_of(model))


def forward(model: nn.Module, batch: Any) -> Any:
    """The output of `model`. Raises `SecateurError` with the model's own words where the forward fails."""
    try:
        with torch.no_grad(), evaluating(model):
            return call(model, batch)
    except Exception as error:
        found = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
        do = "give an example input that the model accepts"
        raise SecateurError(f"a forward of {type(model).__name__} on the example", found.rstrip("."), do) from error
