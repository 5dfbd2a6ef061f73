"""secateur score: one number per unit, by a trained Scoring Net or another criterion."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli import options, screen
from secateur.core.errors import SecateurError

if TYPE_CHECKING:
    from torch import nn

    from secateur.core.axes import Axes
    from secateur.recipes.schema import Recipe

NOTHING = "no axis can be cut; secateur inspect tells why."


def score(
    model: options.Build,
    net: Annotated[Path | None, typer.Option("--with", metavar="FILE", help="A trained Scoring Net; pretrained: ours.")] = None,
    criterion: Annotated[str | None, typer.Option(help="Without --with: a function of secateur.criteria; l2.")] = None,
    weigh: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Follow the net of --with as far as --data bear out at this share of the MACs."),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where all scores go, as JSON.")] = None,
    weights: options.Weights = None,
    data: options.AnyData = None,
    folder: options.Folder = None,
    shapes: options.Input = None,
    ignore: options.Ignore = None,
    seed: int = 0,
    as_json: options.Json = False,
) -> None:
    """Score every unit that can be cut, in one pass and without training; higher is dearer.

    A Scoring Net is trained, and kept, by secateur plan --criterion scoring_net. --with scores by the net alone, reading --data
    where the net reads gradients or activations; --weigh mixes its order with that of L1 and tells how far it is trusted, from
    0 to 1.
    """
    from secateur.cli.inputs import scoring_inputs, source
    from secateur.cli.outputs import require_free
    from secateur.graph import trace
    from secateur.io import write_json
    from secateur.recipes import schema

    if output:
        require_free(output, "file of scores", model, net, weights, data)
    prune = _prune(net, criterion, weigh, data)
    given = source(data, folder)
    recipe = schema.from_dict({"model": {"build": model}, "seed": seed, "prune": prune, "data": given})
    network, inputs, batches = scoring_inputs(recipe, weights, shapes, with_data=bool(data))
    axes = trace(network, inputs).ignore(*(ignore or ()))
    table = _scored(network, recipe, inputs, axes=axes, batches=batches)
    if output:
        write_json(output, table)
    if as_json:
        screen.show_json(table)
    else:
        _show(table, output)


def _prune(net: Path | None, criterion: str | None, weigh: float | None, data: str | None) -> dict[str, Any]:
    """The [prune] section of a recipe for these options. Raises `SecateurError` where they do not go together."""
    if net and criterion:
        raise SecateurError(f"--with {net}", f"--criterion {criterion} beside it", "give one or the other")
    if criterion == "scoring_net":
        do = "train and keep one by secateur plan --criterion scoring_net, and give its file to --with"
        raise SecateurError("--criterion scoring_net", "a net that is not trained yet", do)
    if weigh is not None and not (net and data):
        do = "give --with FILE, the net, and --data, which decide"
        raise SecateurError(f"--weigh {weigh:g}", "no data" if net else "no net to weigh", do)
    if net:
        weighs = weigh is not None
        budget = {"keep": {"macs": weigh}} if weighs else {}
        return {"criterion": "scoring_net", "args": {"file": str(net), "weigh": weighs}, **budget}
    return {"criterion": criterion or "l2"}


def _scored(
    network: nn.Module, recipe: Recipe, inputs: Any, *, axes: Axes, batches: list[tuple[Any, Any]] | None
) -> dict[str, Any]:
    """What a file of scores holds: "scores" by axis, beside them how a net was "weighed", or a "note" that there are none."""
    from secateur.criteria.score import score as score_all
    from secateur.recipes import parts
    from secateur.recipes.choose import criterion, weighing

    if not axes.free:
        return {"note": NOTHING, "scores": {}}
    prune, loss = recipe.prune, parts.load_loss(recipe.loss)
    told: dict[str, Any] = {}
    if batches is not None and prune.args.get("weigh"):
        found = weighing(network, prune, axes=axes, batches=batches, loss=loss)
        judged, told = found.criterion, {"weighed": {**prune.keep, "trust": found.trust}}
    else:
        judged = criterion(network, prune, inputs, axes=axes, batches=batches, loss=loss, seed=recipe.seed)
    scores = score_all(axes, judged)
    return {**told, "scores": {name: [float(value) for value in values] for name, values in scores.items()}}


def _show(table: dict[str, Any], output: Path | None) -> None:
    """One row per axis, how far the net is trusted, and where all scores are; or that there are none."""
    rows = [
        [name, len(v), f"{min(v):.4g}", f"{sorted(v)[len(v) // 2]:.4g}", f"{max(v):.4g}"] for name, v in table["scores"].items()
    ]
    if rows:
        screen.show_table(["axis", "units", "lowest", "median", "highest"], rows)
    else:
        screen.say(table["note"])
    if weighed := table.get("weighed"):
        screen.say(f"\nweighed against L1 at {weighed['macs']:g} of the MACs: trust {weighed['trust']:g}")
    if output:
        screen.say(f"\nscores: {output}")
