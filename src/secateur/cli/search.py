"""secateur search: trials on held-out images decide the width of every axis."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli import screen

Holdout = Annotated[int, typer.Option(help="Images taken from the training set to judge trials by.")]
Data = Annotated[str, typer.Option(help="file.py:function, or the name of a built-in set.")]
Folder = Annotated[str | None, typer.Option("--folder", envvar="SECATEUR_DATA", help="Where a built-in set lies.")]


def search(
    model: screen.Build,
    data: Data,
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder for plan.json and search.jsonl.")] = Path("search"),
    method: Annotated[str, typer.Option(help="adaptive, predicted or bisect.")] = "adaptive",
    keep: Annotated[
        list[str] | None, typer.Option("--keep", metavar="params=SHARE", help="Stop where no more than that remains.")
    ] = None,
    criterion: Annotated[str, typer.Option(help="The name of a function of secateur.criteria.")] = "l1",
    weights: screen.Weights = None,
    folder: Folder = None,
    holdout: Holdout = 1000,
    settings: screen.Set = None,
    ignore: screen.Ignore = None,
    threads: screen.Threads = 0,
    seed: int = 0,
    as_json: screen.Json = False,
    quiet: screen.Quiet = False,
) -> None:
    """Search the rate of every axis. Stopped, the same command goes on; under torchrun, processes share the trials.

    --set takes names of a recipe: --set search.args.step=0.2 --set search.images=500
    """
    from secateur.io import write_plan
    from secateur.recipes.run import threads as on_threads
    from secateur.recipes.searching import searched

    network, recipe, parts = prepared(
        {"build": model, "weights": str(weights) if weights else None},
        {"name": data, "folder": folder, "holdout": holdout, "augment": False},
        {
            "seed": seed,
            "prune": {"criterion": criterion, "ignore": list(ignore or ())},
            "search": {"method": method, "args": {"keep": screen.shares(keep)} if keep else {}},
        },
        settings,
    )
    output.mkdir(parents=True, exist_ok=True)
    with screen.bars(quiet or as_json) as progress, on_threads(threads):
        axes, plan, source = searched(network, recipe, parts, folder=output, **({"progress": progress} if progress else {}))
    if int(os.environ.get("RANK", "0")):
        return
    write_plan(output / "plan.json", plan)
    if source is not network:
        from secateur.io import save

        save(output / "recovered.safetensors", source)
    screen.show_plan(axes, plan, output / "plan.json", as_json)


def prepared(model: dict[str, Any], data: dict[str, Any], rest: dict[str, Any], settings: list[str] | None) -> Any:
    """(network, recipe, parts) of what a command was told; `settings` are words like "search.images=500"."""
    import torch

    from secateur.recipes import parts, schema

    table = {"model": model, "data": data} | rest
    table = screen.assign(table, settings or ())
    for section in ("model", "data"):
        table[section] = {key: value for key, value in table[section].items() if value is not None}
    recipe = schema.from_dict(table)
    known = parts.parts(recipe, parts.cpu())
    torch.manual_seed(recipe.seed)
    network = known.model()
    if recipe.model.weights:
        network = parts.with_weights(network, recipe.model.weights, recipe.data.folder)
    return network.eval(), recipe, known
