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
    from secateur.recipes.parts import Parts
    from secateur.recipes.schema import Recipe
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


def network_of(build: str, weights: Path | None, plan: Path | None) -> nn.Module:
    """The model `build` names as its weights have it: dense, or cut as their file says; or after `plan`."""
    from secateur.io import load

    if weights is not None and has_plan(weights):
        return load(weights, into=dense_of(build, None))
    dense = dense_of(build, weights)
    return plan_of(plan).apply(dense) if plan else dense


def weighted(build: str, weights: Path | None) -> dict[str, Any]:
    """The [model] section of a recipe: what builds the model, and its weights where there are any."""
    return {"build": build} | ({"weights": str(weights)} if weights else {})


def holding_out(table: dict[str, Any]) -> dict[str, Any]:
    """The table of a recipe that judges trials: without a number of held-out images, a tenth of them, at most 5000."""
    from secateur.data import DataSet
    from secateur.recipes import parts, schema

    if "holdout" not in table["data"]:
        found = parts.load_source(schema.from_dict(table))
        table["data"]["holdout"] = min(5000, len(found.train[0]) // 10) if isinstance(found, DataSet) else 0
    return table


def source(data: str | None, folder: str | None, **more: Any) -> dict[str, Any]:
    """The [data] section of a recipe for --data and --folder, without augmentation unless `more` says so; {} without data."""
    if data is None:
        return {}
    return {"name": data, "augment": False} | ({"folder": folder} if folder else {}) | more


def scoring_inputs(
    recipe: Recipe, weights: Path | None, shapes: Sequence[str] | None, *, with_data: bool
) -> tuple[nn.Module, Any, list[tuple[Any, Any]] | None]:
    """(dense model, example input, training batches or None) of a command that scores one.

    The example has the given shapes, or is one input of the data.
    """
    from secateur.recipes import parts

    network = dense_of(recipe.model.build, weights, recipe.seed)
    if not with_data:
        return network, example(shapes), None
    batches = parts.limited(parts.scoring_batches(recipe, parts.cpu()), recipe.prune.batches, parts.cpu())
    return network, example(shapes) if shapes else parts.first_input(batches, 1), batches


def prepared(table: dict[str, Any]) -> tuple[nn.Module, Recipe, Parts]:
    """(model with its weights, recipe, parts of a run) for the table of a recipe."""
    import torch

    from secateur.recipes import parts, schema

    recipe = schema.from_dict(table)
    known = parts.parts(recipe, parts.cpu())
    torch.manual_seed(recipe.seed)
    network = known.model()
    if recipe.model.weights:
        network = parts.with_weights(network, recipe.model.weights, recipe.data.folder)
    return network.eval(), recipe, known


def plan_of(path: Path) -> Plan:
    """The plan in a JSON file, in a saved model, or in a run folder."""
    from secateur.io import read_plan

    return read_plan(path / "plan.json" if path.is_dir() else path)


def has_plan(weights: Path) -> bool:
    """Are these the weights of a cut model, saved with its plan?"""
    from secateur.io.container import has_metadata

    return has_metadata(weights, "plan")


def engine_of(model: str) -> tuple[CompiledModel, tuple[Tensor, ...]] | None:
    """The compiled model in the file `model` names, with inputs of its size; None where it names something else."""
    if ":" in model or not Path(model).is_file():
        return None
    from secateur.runtime import file

    return file.read(model) if file.is_engine_file(model) else None
