"""A grid of runs from one recipe: every combination of its variants, over seeds, and what is read off them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from secateur.core.errors import SecateurError
from secateur.io.files import read_json, read_text
from secateur.recipes import schema
from secateur.recipes.progress import Progress, silent
from secateur.recipes.run import check, run
from secateur.recipes.schema import Recipe

NEAR = 0.005
"""Half a point: how near to its final accuracy a training has to come to count as there."""
BEFORE = ("model", "data", "train", "seed", "threads", "device", "loss", "metric")
"""What makes the dense model; cells that differ in none of it share one."""


@dataclass(frozen=True, eq=False)
class Grid:
    """`cells`: a variant of each of the `sides`, as ("CE, SGD", "CE + KL, Adam"), to the recipe of that cell."""

    sides: tuple[str, ...]
    cells: Mapping[tuple[str, ...], Recipe]
    seeds: tuple[int, ...]


def read(path: str | Path, change: Callable[[dict[str, Any]], Any] | None = None) -> Grid:
    """The grid a recipe with a table [grid] describes.

    Each table in [grid] but the number `seeds` is a side; the tables in it are its variants, each a piece of a recipe that
    is laid over the rest: tables are merged, anything else is replaced. `change` may alter the whole table first.
    Raises `SecateurError` where there is no grid, and for a cell that is no recipe, naming it.
    """
    path, table = Path(path), schema.plain(path, change)
    asked, found = f"a grid of {str(path)!r}", table.pop("grid", None)
    if not isinstance(found, Mapping):
        raise SecateurError(asked, "no table [grid]", "carry the recipe out with `secateur run`, or add one")
    seeds = found.get("seeds", 3)
    if type(seeds) is not int or seeds < 1:
        raise SecateurError("grid.seeds", f"{seeds!r}", "give a whole number of at least 1")
    sides = {name: value for name, value in found.items() if name != "seeds"}
    for name, value in sides.items():
        if not isinstance(value, Mapping) or not value or not all(isinstance(piece, Mapping) for piece in value.values()):
            raise SecateurError(f"[grid.{name}]", "no tables of variants", f"write [grid.{name}.first] and its keys below")
    if not sides:
        raise SecateurError(asked, "no side of it", "write [grid.scorer.first] and the keys that variant sets below")
    cells = {}
    for cell in itertools.product(*sides.values()):
        whole: dict[str, Any] = table
        for side, name in zip(sides.values(), cell, strict=True):
            whole = merged(whole, side[name])
        with _named(cell):
            cells[cell] = schema.from_dict(schema.beside(whole, path.absolute().parent))
    first = cells[next(iter(cells))]
    return Grid(tuple(sides), cells, tuple(first.seed + number for number in range(seeds)))


@contextmanager
def _named(cell: tuple[str, ...]) -> Iterator[None]:
    """What is wrong with a cell, said with its name."""
    try:
        yield
    except SecateurError as error:
        raise SecateurError(f"cell {' / '.join(cell)!r}: {error.asked}", error.found, error.do) from None


def merged(table: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`table` with `over` laid on it, table in table; anything else is replaced."""
    found = dict(table)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = merged(found[key], value) if both else value
    return found


def carry_out(
    grid: Grid, folder: Path, *, data: str | None = None, command: str = "", progress: Progress = silent
) -> dict[str, dict[str, dict[str, Any]]]:
    """{cell: {seed: row}}; every cell is an ordinary run, in ``folder/seed-0/cell-1`` and so on, and goes on where it stopped.

    A row holds the test accuracy "dense", "cut" (after the repair, where there is one) and "final", the "curve" of
    accuracies after each epoch, and "epochs_to_half_a_point": the first epoch at which the curve is at most
    0.005 below its last value. The curve is that of the holdout; of the test set only the three accuracies are taken.
    Cells that begin alike share the dense model of the first of them.
    Raises `SecateurError` where there is no holdout, nothing is trained after the cut, or a cell has a wrong word, before
    anything is run.
    """
    for cell, recipe in grid.cells.items():
        if not recipe.data.holdout or not sum(stage.epochs for stage in recipe.stage) + recipe.finetune.epochs:
            lacks = "no epoch after the cut" if recipe.data.holdout else "no holdout to follow the training on"
            do = "add [[stage]] or [finetune]" if recipe.data.holdout else "set data.holdout, as 100 images"
            raise SecateurError(f"cell {' / '.join(cell)!r}", lacks, do)
        with _named(cell):
            check(recipe)
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    total = len(grid.seeds) * len(grid.cells)
    for done, (seed, (number, (cell, recipe))) in enumerate(itertools.product(grid.seeds, enumerate(grid.cells.items(), 1))):
        name = " / ".join(cell)
        progress("grid", done, total, f"seed {seed}, {name}")
        place = folder / f"seed-{seed}" / f"cell-{number}"
        run(_begun(grid, recipe, seed, place), place, data=data, command=command)
        rows.setdefault(name, {})[str(seed)] = row(place)
    progress("grid", total, total, "")
    return rows


def row(place: Path) -> dict[str, Any]:
    """What a finished run says of a cell, from its facts and its history."""
    stages = read_json(place / "facts.json", "facts")["stages"]
    history = [json.loads(line) for line in read_text(place / "history.jsonl", "history").splitlines()]
    curve = [record["holdout_accuracy"] for record in history if record["phase"] != "train"]
    by_name = {stage["stage"]: stage.get("accuracy") for stage in stages}
    found = {"dense": by_name["dense"], "cut": by_name.get("after repair", by_name.get("after the cut")), "curve": curve}
    return found | {"final": stages[-1].get("accuracy"), "epochs_to_half_a_point": reached(curve)}


def reached(curve: list[float]) -> int:
    """The first epoch, counted from 1, that is at most half a point below the last one."""
    return next(epoch for epoch, value in enumerate(curve, 1) if value >= curve[-1] - NEAR - 1e-9)


def _begun(grid: Grid, recipe: Recipe, seed: int, place: Path) -> Recipe:
    """`recipe` for this seed, on the dense model of the first cell that begins as it does."""
    alike = [asdict(other) for other in grid.cells.values()]
    own = asdict(recipe)
    first = next(n for n, other in enumerate(alike, 1) if all(other[key] == own[key] for key in BEFORE))
    known = place.parent / f"cell-{first}"
    recipe = replace(recipe, seed=seed)
    if known == place:
        return recipe
    dense = str((known / "dense.safetensors").absolute())
    return replace(recipe, model=replace(recipe.model, weights=dense), train=replace(recipe.train, epochs=0))
