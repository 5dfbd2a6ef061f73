"""Models and example inputs as the command line names them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.core.errors import SecateurError, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from secateur.core.plan import Plan
    from secateur.runtime import CompiledModel

DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "bool")


def example(shapes: Sequence[str] | None) -> Any:
    """Random tensors (zeros for whole numbers) of the given shapes: one tensor, or a tuple where there are several.

    >>> example(["1,16:int64"])
    tensor([[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
    """
    if not shapes:
        raise SecateurError("an example input", "no shape", "give --input, as in --input 1,3,224,224")
    made = tuple(_tensor(text) for text in shapes)
    return made[0] if len(made) == 1 else made


def _tensor(text: str) -> Any:
    import torch

    shape, _, dtype = text.partition(":")
    dtype = dtype or "float32"
    if dtype not in DTYPES:
        raise SecateurError(f"--input {text}", f"no dtype {dtype!r}", nearest(dtype, list(DTYPES)))
    if not re.fullmatch(r"[1-9]\d{0,8}(,[1-9]\d{0,8})*", shape):
        raise SecateurError(f"--input {text}", "no shape", "give whole numbers above 0, as in --input 1,3,224,224")
    sizes = [int(size) for size in shape.split(",")]
    kind = getattr(torch, dtype)
    try:
        if not kind.is_floating_point:
            return torch.zeros(sizes, dtype=kind)
        return torch.randn(sizes, dtype=kind, generator=torch.Generator().manual_seed(0))
    except RuntimeError as error:
        raise SecateurError(f"--input {text}", str(error).splitlines()[0], "give a smaller shape") from None


def dense_of(build: str, weights: Path | None, seed: int = 0) -> nn.Module:
    """The model `build` names, freshly initialised from `seed`, with `weights` of the same architecture."""
    import torch

    from secateur.recipes.parts import build_model, with_weights

    torch.manual_seed(seed)
    model = build_model(build, {})
    return with_weights(model, str(weights)) if weights else model


def plan_of(path: Path) -> Plan:
    """The plan in a JSON file, in a saved model, or in a run folder."""
    from secateur.io import read_plan

    return read_plan(path / "plan.json" if path.is_dir() else path)


def has_plan(weights: Path) -> bool:
    """Are these the weights of a cut model, saved with its plan?"""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, "pt") as file:
            return "plan" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def engine_of(model: str) -> tuple[CompiledModel, tuple[Tensor, ...]] | None:
    """The compiled model in the file `model` names, with inputs of its size; None where it names something else."""
    if ":" in model or not Path(model).is_file():
        return None
    from secateur.runtime import file

    return file.read(model) if file.is_engine_file(model) else None
