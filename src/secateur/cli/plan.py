"""secateur plan: decide what to cut, and write it down."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli import screen


def plan(
    model: screen.Build,
    keep: Annotated[list[str], typer.Option("--keep", metavar="macs=SHARE", help="What remains; once per quantity.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the plan goes.")] = Path("plan.json"),
    criterion: Annotated[str, typer.Option(help="The name of a function of secateur.criteria.")] = "l2",
    weights: screen.Weights = None,
    data: Annotated[str | None, typer.Option(help="file.py:function, or the name of a built-in set.")] = None,
    folder: Annotated[str | None, typer.Option("--folder", envvar="SECATEUR_DATA", help="Where a built-in set lies.")] = None,
    shapes: screen.Input = None,
    table: Annotated[Path | None, typer.Option("--table", help="Latencies that secateur measure --table wrote.")] = None,
    settings: screen.Set = None,
    ignore: screen.Ignore = None,
    seed: int = 0,
    as_json: screen.Json = False,
) -> None:
    """Trace, score and allocate; write the plan as JSON."""
    from secateur.cli.inputs import dense_of, example
    from secateur.io import write_plan
    from secateur.recipes import parts, schema
    from secateur.recipes.choose import choose

    prune: dict[str, Any] = {"keep": screen.shares(keep), "criterion": criterion, "ignore": list(ignore or ())}
    prune |= {"table": str(table)} if table else {}
    prune = screen.assign(prune, settings or ())
    source = {"name": data, "augment": False} | ({"folder": folder} if folder else {}) if data else {}
    recipe = schema.from_dict({"model": {"build": model}, "seed": seed, "prune": prune, "data": source})
    network = dense_of(model, weights, seed)
    batches = None
    if data:
        batches = parts.limited(parts.scoring_batches(recipe, parts.cpu()), recipe.prune.batches, parts.cpu())
    inputs = example(shapes) if shapes or batches is None else parts.first_input(batches, 1)
    axes, chosen = choose(network, inputs, recipe.prune, batches=batches, loss=parts.load_loss(recipe.loss), seed=seed)
    write_plan(output, chosen)
    screen.show_plan(axes, chosen, output, as_json)
