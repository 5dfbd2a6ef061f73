"""secateur inspect: what can be cut, and what cannot and why."""

from __future__ import annotations

from secateur.cli import screen


def inspect(
    model: screen.Build,
    shapes: screen.Input = None,
    ignore: screen.Ignore = None,
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
    rows = [[axis.name, axis.kind, axis.units, axis.fixed or ("yes" if axis.exact else "yes, renormalises")] for axis in axes]
    screen.show_table(["axis", "kind", "units", "can be cut"], rows)
    counts = ", ".join(f"{found[what]:,} {'MACs' if what == 'macs' else what}" for what in axes.terms)
    reach = f"{axes.free_share():.1%} of the parameters"
    screen.say(f"{len(axes.free)} of {len(axes)} axes can be cut; they reach {reach} ({counts}).")
    for note in axes.notes:
        screen.say(f"note: {note}")
