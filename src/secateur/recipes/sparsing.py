"""From a recipe's [sparse] section to the hook that trains with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from torch import nn

from secateur.core.errors import SecateurError, nearest
from secateur.core.plan import Plan
from secateur.recipes.arguments import call_with
from secateur.recipes.parts import Parts, limited
from secateur.recipes.schema import Recipe
from secateur.train import Sparse, sparse
from secateur.train.sparse import Growth, Layout, Rank
from secateur.train.sparse.select import Allocation

GRADUAL = ("rpg", "gmp", "granet", "rigl", "st3", "acdc")
"""Methods that act while training goes on."""
_LAYOUT = ("allocation", "pattern", "occupancy")
_ALLOCATION: Mapping[str, Allocation] = {"rigl": "erk", "obs": "uniform"}
"""Method to the allocation it has where nothing else is said; "global" otherwise."""
_KINDS: Mapping[type, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (float, int), str: (str,), type(None): (str,)}
"""Kind of a default to the kinds that may stand in its place."""
Value = TypeVar("Value", Rank, Growth, Layout)


def sparse_hook(model: nn.Module, recipe: Recipe, parts: Parts) -> Sparse | None:
    """The hook of `recipe.sparse` on `model`, whose weights one-shot methods set to zero here; None where none is asked for.

    Raises `SecateurError` for arguments the method does not take, and where training is too short for its schedule.
    """
    section = recipe.sparse
    if section.method == "none":
        return None
    given = _values(model, recipe)
    if section.method not in GRADUAL:
        return sparse.fixed(model, _at_once(model, recipe, parts, given), dense=section.dense)
    steps = (recipe.finetune.epochs + sum(stage.epochs for stage in recipe.stage)) * _length(parts.train)
    if not steps:
        do = "set finetune.epochs or add [[stage]], and give batches with a length"
        raise SecateurError(f"sparse.method = {section.method!r}", "no training in which it could act", do)
    make = getattr(sparse, section.method)
    return call_with("sparse", section.args, make, model, section.keep, steps, dense=section.dense, **given)


def _values(model: nn.Module, recipe: Recipe) -> dict[str, Any]:
    """The `args` as Python takes them: "rank", "growth" and "layout" are values, which begin as the method has them."""
    section, given = recipe.sparse, dict(recipe.sparse.args)
    if unfit := [name for name in ("optimizer", "plan", "dense") if name in given]:
        do = "set sparse.dense" if unfit[0] == "dense" else "leave it out"
        raise SecateurError(f"sparse.args.{unfit[0]} = {given[unfit[0]]!r}", "no argument for a recipe", do)
    flat = {name: given.pop(name) for name in _LAYOUT if name in given}
    if flat:
        given["layout"] = {**_table("layout", given.get("layout", {})), **flat}
    if "rank" in given:
        known = {name: given[name] for name in ("reading",) if name in given}
        term = Rank(0.0, acts="step")
        if section.method == "rpg":
            term = call_with("sparse", section.args, sparse.rank_of, model, section.keep, dense=section.dense, **known)
        elif "strength" not in _table("rank", given["rank"]):
            raise SecateurError(f"sparse.args.rank with {section.method!r}", "no strength", "give rank = { strength = ... }")
        given["rank"] = _changed("rank", term, given["rank"])
    if "growth" in given:
        given["growth"] = _changed("growth", Growth(), given["growth"])
    if "layout" in given:
        given["layout"] = _changed("layout", Layout(_ALLOCATION.get(section.method, "global")), given["layout"])
    return given


def _table(name: str, table: Any) -> Mapping[str, Any]:
    if not isinstance(table, Mapping):
        raise SecateurError(f"sparse.args.{name} = {table!r}", "no table", f"write {name} = {{ key = value }}")
    return table


def _changed(name: str, value: Value, table: Any) -> Value:
    """`value` with what `table` says. Raises `SecateurError` for a key it does not have, and for a value of another kind."""
    held = {part.name: getattr(value, part.name) for part in fields(value)}
    for key, wanted in _table(name, table).items():
        if key not in held:
            raise SecateurError(f"sparse.args.{name}.{key}", "no such key", nearest(key, list(held)))
        kinds = _KINDS[type(held[key])]
        if type(wanted) not in kinds:
            what = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kinds[0]]
            raise SecateurError(f"sparse.args.{name}.{key} = {wanted!r}", type(wanted).__name__, f"give {what}")
    return replace(value, **table)


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
