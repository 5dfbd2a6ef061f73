"""secateur search: trials on held-out images decide the width of every axis."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from secateur.cli import options, screen
from secateur.core.errors import SecateurError


def search(
    model: options.Build,
    data: options.Data,
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder for plan.json and search.jsonl.")] = Path("search"),
    method: Annotated[str, typer.Option(help="adaptive, predicted or bisect.")] = "adaptive",
    keep: Annotated[
        list[str] | None, typer.Option("--keep", metavar="params=SHARE", help="Stop where no more than that remains.")
    ] = None,
    criterion: options.Criterion = "l1",
    weights: options.Weights = None,
    folder: options.Folder = None,
    holdout: options.Holdout = None,
    settings: options.Set = None,
    ignore: options.Ignore = None,
    threads: options.Threads = 0,
    seed: int = 0,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Search the rate of every axis. Stopped, the same command goes on; under torchrun, processes share the trials.

    --set takes names of a recipe: --set search.args.step=0.2 --set search.images=500. The adaptive search trains an epoch after
    each sweep, and writes the weights to cut to recovered.safetensors; --set search.recover=0 trains nothing.
    """
    from secateur.cli.inputs import holding_out, prepared, source, weighted
    from secateur.cli.outputs import require_unread
    from secateur.io import write_plan
    from secateur.recipes.run import threads as on_threads
    from secateur.recipes.searching import searched, unmet

    for name in ("plan.json", "recovered.safetensors"):
        require_unread(output / name, model, weights, data)
    held = {} if holdout is None else {"holdout": holdout}
    table = {"model": weighted(model, weights), "data": source(data, folder, **held), "seed": seed}
    table |= {"prune": {"criterion": criterion, "ignore": list(ignore or ())}}
    table |= {"search": {"method": method, "args": {"keep": screen.shares(keep)} if keep else {}}}
    network, recipe, parts = prepared(holding_out(screen.assign(table, settings or ())))
    if recipe.search.method == "none":
        raise SecateurError("--method none", "no search", "give adaptive, predicted or bisect")
    with screen.bars(quiet or as_json) as progress, on_threads(threads):
        axes, plan, cut = searched(network, recipe, parts, folder=output, **({"progress": progress} if progress else {}))
    if int(os.environ.get("RANK", "0")):
        return
    output.mkdir(parents=True, exist_ok=True)
    write_plan(output / "plan.json", plan)
    if cut is not network:
        from secateur.io import save

        save(output / "recovered.safetensors", cut)
    screen.show_plan(axes, plan, output / "plan.json", as_json)
    if not as_json:
        for what, (asked, left) in unmet(cut, axes, plan, recipe, parts).items():
            screen.say(f"not reached: {what}={asked:g} of the target; {left:.3f} is what the limits of the search leave")
    if cut is not network and not as_json:
        screen.say(f"weights to cut: {output / 'recovered.safetensors'}")
