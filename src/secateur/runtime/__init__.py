"""Running a compressed model fast: kernels that skip zeros, chosen per layer by measurement.

fast = secateur.runtime.compile(small, x)
y = fast(x)
secateur.runtime.save("small.engine", fast, (x,));  again = secateur.runtime.load("small.engine")
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from secateur.runtime.capture import capture
from secateur.runtime.compiled import CompiledModel, known_precision
from secateur.runtime.file import load, save
from secateur.runtime.fuse import fuse
from secateur.runtime.library import missing

__all__ = ["CompiledModel", "compile", "load", "missing", "prepare", "save"]


def compile(
    model: nn.Module, example: Tensor | Sequence[Tensor], *, threads: int = 0, precision: str = "float32"
) -> CompiledModel:
    """A callable with the outputs of `model` in evaluation mode, which skips the zeros in its weights.

    `example`: a tensor, or one for each positional argument; other sizes are planned when they come, if the model takes them.
    Weights are read now: what changes in `model` later is not seen. `threads`: 0 takes PyTorch's number.
    `precision` "bf16": values and weights are rounded to bf16, sums are float32; about 1e-2 off, and up to twice as fast on
    CPUs with instructions for it. Without kernels (`missing` says why) the result computes dense, and its `note` says so.
    Raises `SecateurError` where `torch.export` cannot follow the model, or for an unknown precision.
    """
    compiled = prepare(model, example, threads=threads, precision=precision)
    if not compiled.note:
        compiled.plan(*_several(example))
    return compiled


def prepare(
    model: nn.Module, example: Tensor | Sequence[Tensor], *, threads: int = 0, precision: str = "float32"
) -> CompiledModel:
    """The same, before anything is measured: kernels are chosen when it is first called."""
    known_precision(precision)
    return CompiledModel(fuse(capture(model, _several(example))), threads, precision)


def _several(example: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (example,) if isinstance(example, Tensor) else tuple(example)
