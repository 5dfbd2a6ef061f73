"""secateur plan: decide what to cut, and write it down."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli import options, screen


def plan(
    model: options.Build,
    keep: Annotated[list[str], typer.Option("--keep", metavar="macs=SHARE", help="What remains; once per quantity.")],
    output: options.PlanFile = Path("plan.json"),
    criterion: options.Criterion = "l2",
    weights: options.Weights = None,
    data: options.AnyData = None,
    folder: options.Folder = None,
    shapes: options.Input = None,
    table: Annotated[Path | None, typer.Option("--table", help="Latencies that secateur measure --table wrote.")] = None,
    settings: options.Set = None,
    ignore: options.Ignore = None,
    seed: int = 0,
    as_json: options.Json = False,
) -> None:
    """Trace, score and allocate; write the plan as JSON, and beside it a Scoring Net trained for it."""
    from secateur.cli.inputs import scoring_inputs, source
    from secateur.cli.outputs import require_free
    from secateur.io import write_plan
    from secateur.recipes import parts, schema
    from secateur.recipes.choose import choose, require_normalise
    from secateur.recipes.scoring import scorer_kept

    prune: dict[str, Any] = {"keep": screen.shares(keep), "criterion": criterion, "ignore": list(ignore or ())}
    prune |= {"table": str(table)} if table else {}
    prune = screen.assign(prune, settings or ())
    given = source(data, folder)
    recipe = schema.from_dict({"model": {"build": model}, "seed": seed, "prune": prune, "data": given})
    require_normalise(recipe.prune)
    require_free(output, "plan", model, weights, data, recipe.prune.table, recipe.prune.args.get("file"))
    network, inputs, batches = scoring_inputs(recipe, weights, shapes, with_data=bool(data))
    kept = scorer_kept(output.parent, recipe, f"{output.stem}.")
    loss = parts.load_loss(recipe.loss)
    axes, chosen = choose(network, inputs, recipe.prune, batches=batches, loss=loss, seed=seed, on_trained=kept)
    write_plan(output, chosen)
    screen.show_plan(axes, chosen, output, as_json)
