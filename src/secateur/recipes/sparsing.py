"""From a recipe's [sparse] section to the hook that trains with it."""

from __future__ import annotations

from typing import Any

from torch import nn

from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.recipes.arguments import call_with
from secateur.recipes.parts import Parts, limited
from secateur.recipes.schema import Recipe
from secateur.train import Sparse, sparse

GRADUAL = ("rpg", "gmp", "granet", "rigl", "st3", "acdc")
"""Methods that act while training goes on."""
_LAYOUT = ("allocation", "pattern", "occupancy")


def sparse_hook(model: nn.Module, recipe: Recipe, parts: Parts) -> Sparse | None:
    """The hook of `recipe.sparse` on `model`, whose weights one-shot methods set to zero here; None where none is asked for.

    Raises `SecateurError` for arguments the method does not take, and where training is too short for its schedule.
    """
    section = recipe.sparse
    if section.method == "none":
        return None
    given = dict(section.args)
    layout = {name: given.pop(name) for name in _LAYOUT if name in given}
    if layout:
        given["layout"] = call_with("sparse", section.args, sparse.Layout, **layout)
    if section.method not in GRADUAL:
        return sparse.fixed(model, _at_once(model, recipe, parts, given), dense=section.dense)
    steps = recipe.finetune.epochs * _length(parts.train)
    if not steps:
        do = "set finetune.epochs, and give batches with a length"
        raise SecateurError(f"sparse.method = {section.method!r}", "no training in which it could act", do)
    make = getattr(sparse, section.method)
    return call_with("sparse", section.args, make, model, section.keep, steps, dense=section.dense, **given)


def _at_once(model: nn.Module, recipe: Recipe, parts: Parts, given: dict[str, Any]) -> Plan:
    """The plan of a one-shot method; OBS writes the weights that make up for it into `model`."""
    section, method = recipe.sparse, recipe.sparse.method
    make = getattr(sparse, method)
    if method == "synflow":
        return call_with("sparse", section.args, make, model, parts.example, section.keep, dense=section.dense, **given)
    batches = [] if method == "magnitude" else limited(parts.plain, recipe.prune.batches, parts.device)
    if method == "obs":
        plan, pruned = call_with("sparse", section.args, make, model, batches, section.keep, dense=section.dense, **given)
        model.load_state_dict(pruned.state_dict())
        return plan
    layout = given.pop("layout", None)
    inputs = () if method == "magnitude" else (batches, parts.loss)
    scores = call_with("sparse", section.args, make, model, *inputs, dense=section.dense, **given)
    return sparse.one_shot(model, section.keep, scores, layout=layout)


def _length(batches: Any) -> int:
    try:
        return len(batches)
    except TypeError:
        return 0
