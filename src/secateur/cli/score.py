"""secateur score: one number per unit, by a trained Scoring Net or a criterion of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli import options, screen


def score(
    model: options.Build,
    net: Annotated[Path | None, typer.Option("--with", metavar="FILE", help="A trained Scoring Net; pretrained: ours.")] = None,
    criterion: Annotated[str | None, typer.Option(help="Without --with: a function of secateur.criteria; l2.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where all scores go, as JSON.")] = None,
    weights: options.Weights = None,
    data: options.AnyData = None,
    folder: options.Folder = None,
    shapes: options.Input = None,
    ignore: options.Ignore = None,
    seed: int = 0,
    as_json: options.Json = False,
) -> None:
    """Score every unit that can be cut, in one pass and without training; higher is dearer."""
    from secateur.cli.inputs import scoring_inputs, source
    from secateur.core.errors import SecateurError
    from secateur.criteria.score import score as score_all
    from secateur.graph import trace
    from secateur.io import write_json
    from secateur.recipes import parts, schema
    from secateur.recipes.choose import criterion as named

    if net and criterion:
        raise SecateurError(f"--with {net}", f"--criterion {criterion} beside it", "give one or the other")
    prune = {"criterion": "scoring_net", "args": {"file": str(net)}} if net else {"criterion": criterion or "l2"}
    given = source(data, folder)
    recipe = schema.from_dict({"model": {"build": model}, "seed": seed, "prune": prune, "data": given})
    network, inputs, batches = scoring_inputs(recipe, weights, shapes, with_data=bool(data))
    axes = trace(network, inputs).ignore(*(ignore or ()))
    loss = parts.load_loss(recipe.loss)
    scores = score_all(axes, named(network, recipe.prune, inputs, axes=axes, batches=batches, loss=loss, seed=seed))
    found = {name: [float(value) for value in values] for name, values in scores.items()}
    if output:
        write_json(output, found)
    if as_json:
        screen.show_json(found)
        return
    rows = [[name, len(v), f"{min(v):.4g}", f"{sorted(v)[len(v) // 2]:.4g}", f"{max(v):.4g}"] for name, v in found.items()]
    screen.show_table(["axis", "units", "lowest", "median", "highest"], rows)
    if output:
        screen.say(f"\nscores: {output}")
