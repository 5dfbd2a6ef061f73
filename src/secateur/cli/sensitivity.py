"""secateur sensitivity: how accuracy falls with the rate of each axis alone."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli import options, screen


def sensitivity(
    model: options.Build,
    data: options.Data,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The folder for the picture, the numbers and the trials.")
    ] = Path("sensitivity"),
    rates: Annotated[str, typer.Option(help="Shares that are cut.")] = "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9",
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
    """Cut each axis alone at each rate and judge it on held-out images; write sensitivity.svg and sensitivity.json.

    Stopped, the same command goes on.
    """
    from secateur.cli.inputs import holding_out, prepared, source, weighted
    from secateur.core.errors import SecateurError
    from secateur.io.files import write_json, write_text
    from secateur.recipes.run import threads as on_threads
    from secateur.recipes.searching import sensitivities
    from secateur.report.sensitivity import picture

    held = {} if holdout is None else {"holdout": holdout}
    table = {"model": weighted(model, weights), "data": source(data, folder, **held), "seed": seed}
    table |= {"prune": {"criterion": criterion, "ignore": list(ignore or ())}}
    network, recipe, parts = prepared(holding_out(screen.assign(table, settings or ())))
    try:
        shares = tuple(float(word) for word in rates.split(","))
    except ValueError:
        raise SecateurError(f"--rates {rates}", "no numbers", "give shares with commas, as in --rates 0.25,0.5") from None
    with screen.bars(quiet or as_json) as progress, on_threads(threads):
        told: dict[str, Any] = {"progress": progress} if progress else {}
        curves = sensitivities(network, recipe, parts, shares, folder=output, **told)
    points = {name: [[rate, value if isfinite(value) else None] for rate, value in curve] for name, curve in curves.items()}
    table = {"metric": recipe.search.metric, "axes": points}
    write_json(output / "sensitivity.json", table)
    write_text(output / "sensitivity.svg", picture(curves, recipe.search.metric))
    if as_json:
        screen.show_json(table)
        return
    head = [f"{rate:.0%}" for rate, _ in next(iter(curves.values()), ())]
    form = "{:.1%}" if recipe.search.metric == "accuracy" else "{:.3g}"
    shown = [[name, *(form.format(value) for _, value in curve)] for name, curve in curves.items()]
    screen.show_table(["cut of one axis", *head], shown)
    screen.say(f"\npicture: {output / 'sensitivity.svg'}")
