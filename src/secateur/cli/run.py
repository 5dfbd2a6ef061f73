"""secateur run: carry out a recipe, or go on with it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli import options, screen

if TYPE_CHECKING:
    from secateur.recipes.schema import Recipe


def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="a TOML file")],
    folder: Annotated[Path | None, typer.Option("-o", "--output", help="The run folder; runs/NAME unless given.")] = None,
    data: Annotated[str | None, typer.Option("--data", envvar="SECATEUR_DATA", help="Where the data set lies.")] = None,
    settings: options.Set = None,
    max_drop: Annotated[float | None, typer.Option(help="Exit 1 if accuracy ends more than this below dense.")] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Plan, apply, repair, fine-tune, measure, report. The same command again goes on where it stopped."""
    from secateur.recipes import schema

    value = schema.read(recipe, lambda table: screen.assign(table, settings or ()))
    carry_out(value, folder or Path("runs") / recipe.stem, data=data, as_json=as_json, quiet=quiet, max_drop=max_drop)


def carry_out(
    recipe: Recipe,
    folder: Path,
    *,
    data: str | None = None,
    as_json: bool = False,
    quiet: bool = False,
    max_drop: float | None = None,
) -> None:
    """Run `recipe` in `folder` with bars and print the headline table; leave with 1 where the limit was not met."""
    facts = carried_out(recipe, folder, data=data, quiet=quiet or as_json)
    screen.show_facts(facts, as_json)
    if not as_json:
        screen.say(f"report: {folder / 'report.html'}")
    drop = _drop(facts)
    if max_drop is not None and (drop is None or drop > max_drop):
        told = "is unknown" if drop is None else f"fell by {drop:.4f}"
        print(f"accuracy {told}; the limit is {max_drop}.", file=sys.stderr)
        raise typer.Exit(1)


def carried_out(recipe: Recipe, folder: Path, *, data: str | None = None, quiet: bool = False) -> dict[str, Any]:
    """The facts of `recipe`, run in `folder` with bars."""
    from secateur.recipes.run import run as run_recipe
    from secateur.report.build import build

    with screen.bars(quiet) as progress:
        command = shlex.join(["secateur", *sys.argv[1:]])
        return run_recipe(recipe, folder, data=data, progress=progress, report=build, command=command)


def _drop(facts: dict[str, Any]) -> float | None:
    """How far accuracy ends below that of the dense model."""
    known = [stage.get("accuracy") for stage in facts["stages"]]
    return known[0] - known[-1] if known[0] is not None and known[-1] is not None else None
