"""secateur grid: every combination of a recipe's variants, over seeds, as one table."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli import options, screen

HEAD = ("dense", "after the cut", "final", "epochs to half a point")


def grid(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file with a table named grid.")],
    folder: Annotated[Path | None, typer.Option("-o", "--output", help="Where all runs go; runs/NAME unless given.")] = None,
    data: Annotated[str | None, typer.Option("--data", envvar="SECATEUR_DATA", help="Where the data set lies.")] = None,
    settings: options.Set = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Run every combination of the variants of a recipe; print and write final accuracies and how soon they are reached.

    The same command again goes on where it stopped. grid.json in the folder holds the table and the curves behind it.
    """
    from dataclasses import asdict

    from secateur.io.files import write_json
    from secateur.measure import machine
    from secateur.recipes import grid as grids
    from secateur.report import words

    found = grids.read(recipe, lambda table: screen.assign(table, settings or ()))
    place = folder or Path("runs") / recipe.stem
    with screen.bars(quiet or as_json) as progress:
        told: dict[str, Any] = {"progress": progress} if progress else {}
        cells = grids.carry_out(found, place, data=data, command=shlex.join(["secateur", *sys.argv[1:]]), **told)
    recipes = {" / ".join(cell): asdict(value) for cell, value in found.cells.items()}
    table = {**machine.record(), "sides": found.sides, "seeds": found.seeds, "cells": cells, "recipes": recipes}
    write_json(place / "grid.json", table)
    if as_json:
        screen.show_json(table)
        return
    screen.show_table([" / ".join(found.sides), *HEAD], [[name, *_cells(list(rows.values()))] for name, rows in cells.items()])
    seeds = words.plural(len(found.seeds), "seed")
    screen.say(f"\nmean ± standard error over {seeds}; {place / 'grid.json'} holds the curves")


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line of the table, from the rows of all seeds."""
    from secateur.report.tickets import mean_and_error

    def accuracy(key: str) -> str:
        known = [row[key] for row in rows if row[key] is not None]
        mean, error = mean_and_error(known) if known else (float("nan"), 0.0)
        return f"{mean:.1%} ± {error:.1%}" if known else "-"

    near = mean_and_error([row["epochs_to_half_a_point"] for row in rows])[0]
    return [*(accuracy(key) for key in ("dense", "cut", "final")), f"{near:.1f}"]
