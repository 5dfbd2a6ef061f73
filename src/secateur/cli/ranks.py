"""secateur ranks: which layers can become products, and a plan that makes some of them so."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli import options, screen


def ranks(
    model: options.Build,
    keep: Annotated[
        str | None, typer.Option("--keep", metavar="macs=SHARE", help="What remains of macs, params or latency; lists without.")
    ] = None,
    output: options.PlanFile = Path("plan.json"),
    formats: Annotated[str, typer.Option(help="channel, spatial, tucker2 and decouple, by comma.")] = "channel,spatial,tucker2",
    multiple: Annotated[int, typer.Option(min=1, help="Ranks are multiples of this.")] = 8,
    stem: Annotated[bool, typer.Option("--stem", help="The first convolution too.")] = False,
    linear: Annotated[bool, typer.Option("--linear", help="Linear layers too.")] = False,
    weights: options.Weights = None,
    data: Annotated[str | None, typer.Option(help="Weigh by what layers answer: file.py:function, or a built-in set.")] = None,
    folder: options.Folder = None,
    shapes: options.Input = None,
    ignore: options.Ignore = None,
    seed: int = 0,
    as_json: options.Json = False,
) -> None:
    """List the layers that can become products of low rank; with --keep, choose formats and ranks and write the plan."""
    from secateur import lowrank
    from secateur.cli.inputs import scoring_inputs, source
    from secateur.cli.outputs import require_free
    from secateur.io import write_plan
    from secateur.measure import facts
    from secateur.recipes import schema

    if keep is not None:
        require_free(output, "plan", model, weights, data)
    recipe = schema.from_dict({"model": {"build": model}, "seed": seed, "data": source(data, folder)})
    network, inputs, batches = scoring_inputs(recipe, weights, shapes, with_data=bool(data))
    which: dict[str, Any] = {"stem": stem, "linear": linear, "ignore": tuple(ignore or ())}
    names: Any = tuple(form.strip() for form in formats.split(","))
    if keep is None:
        found = [row for place in lowrank.places(network, inputs, **which) for row in lowrank.offers(place, names)]
        if as_json:
            screen.show_json(found)
        else:
            screen.show_table(["layer", "weight", "format", "full rank", "pays up to"], [list(row.values()) for row in found])
        return
    share = screen.shares([keep], ("macs", "params", "latency"))
    plan = lowrank.choose(network, inputs, share, formats=names, multiple=multiple, batches=batches, **which)
    write_plan(output, plan)
    dense, small = facts(network, inputs), facts(plan.apply(network), inputs)
    counts = {what: {"dense": getattr(dense, what), "kept": getattr(small, what)} for what in ("params", "macs")}
    if as_json:
        screen.show_json({"plan": str(output), "counts": counts, "widths": plan.widths()})
        return
    screen.say(f"{plan}\n")
    rows = [
        [what, count["dense"], count["kept"], f"{count['kept'] / max(count['dense'], 1):.3f}"] for what, count in counts.items()
    ]
    screen.show_table(["", "dense", "kept", "share"], rows)
    screen.say(f"\nplan: {output}")
