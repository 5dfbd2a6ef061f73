"""secateur inspect: what can be cut, and what cannot and why."""

from __future__ import annotations

from typing import Annotated

import typer

from secateur.cli import screen


def inspect(
    model: screen.Build,
    shapes: screen.Input = None,
    ignore: Annotated[list[str] | None, typer.Option("--ignore", help="Leave axes whole whose name matches, as in 'head*'.")] = None,
    as_json: screen.Json = False,
) -> None:
    """List what can be cut in a model; and what cannot, and why."""
    from secateur.cli.inputs import dense_of, example
    from secateur.graph import trace
    from secateur.recipes.phases import axes_json

    network = dense_of(model, None)
    axes = trace(network, example(shapes)).ignore(*(ignore or ()))
    found = axes_json(axes) | {what: axes.count(what) for what in axes.terms}
    if as_json:
        screen.show_json(found)
        return
    rows = [[a["name"], a["kind"], a["units"], a["fixed"] or ("free" if a["exact"] else "free, renormalises")] for a in found["axes"]]
    screen.show_table(["axis", "kind", "units", "can be cut"], rows)
    counts = ", ".join(f"{found[what]:,} {'MACs' if what == 'macs' else what}" for what in axes.terms)
    screen.say(f"{len(axes.free)} of {len(axes)} axes are free; they reach {found['free_share']:.1%} of the parameters ({counts}).")
    for note in axes.notes:
        screen.say(f"note: {note}")
