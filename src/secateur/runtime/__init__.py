"""Running a compressed model fast: kernels that skip zeros, chosen per layer by measurement.

fast = secateur.runtime.compile(small, x)
y = fast(x)
secateur.runtime.save("small.engine", fast, (x,));  again = secateur.runtime.load("small.engine")
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from secateur.native.library import missing
from secateur.runtime.capture import capture
from secateur.runtime.coding import ranges_of, require_finite
from secateur.runtime.compiled import CompiledModel, known_precision
from secateur.runtime.file import load, save
from secateur.runtime.fuse import fuse

__all__ = ["CompiledModel", "compile", "load", "missing", "prepare", "save"]


def compile(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    *,
    threads: int = 0,
    precision: str = "float32",
    calibration: Iterable[Tensor | Sequence[Tensor]] | None = None,
    others: bool = True,
) -> CompiledModel:
    """A callable with the outputs of `model` in evaluation mode, which skips the zeros in its weights.

    `example`: a tensor, or one for each positional argument; other sizes are planned when they come, if the model takes them.
    Weights are read now: what changes in `model` later is not seen. `threads`: 0 takes PyTorch's number.
    `precision` "bf16": values and weights are rounded to bf16, sums are float32; about 1e-2 off, and up to twice as fast on
    CPUs with instructions for it. "int8": both are rounded to 8 bits and sums are exact; what the 8 bits of a value stand for
    reaches from the least to the largest seen in `calibration`, an iterable of inputs (the example, where it is None): give
    some real ones. Where bf16 or float32 turns out faster it is taken. `others`: where few weights are zero, and ONNX Runtime
    or OpenVINO are installed, these are tried too, in float32, and run the whole model if they are the fastest. Without
    kernels (`missing` says why) the result computes dense, and its `note` says so.
    Raises `SecateurError` where `torch.export` cannot follow the model, for an unknown precision, or int8 of infinite values.
    """
    compiled = prepare(model, example, threads=threads, precision=precision, calibration=calibration, others=others)
    if not compiled.note:
        compiled.plan(*_several(example))
    return compiled


def prepare(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    *,
    threads: int = 0,
    precision: str = "float32",
    calibration: Iterable[Tensor | Sequence[Tensor]] | None = None,
    others: bool = True,
) -> CompiledModel:
    """The same, before anything is measured: kernels are chosen when it is first called."""
    known_precision(precision)
    graph = fuse(capture(model, _several(example)))
    if precision != "int8":
        return CompiledModel(graph, threads, precision, others=others)
    require_finite(graph)
    batches = [example] if calibration is None else calibration
    return CompiledModel(graph, threads, precision, ranges_of(graph, map(_several, batches)), others=others)


def _several(example: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (example,) if isinstance(example, Tensor) else tuple(example)
