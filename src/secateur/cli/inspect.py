"""secateur inspect: what can be cut, and what cannot and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secateur.cli import options, screen

if TYPE_CHECKING:
    from torch import Tensor

    from secateur.runtime import CompiledModel


def inspect(
    model: options.Build,
    shapes: options.Input = None,
    ignore: options.Ignore = None,
    as_json: options.Json = False,
) -> None:
    """List what can be cut in a model, and what cannot and why; of an exported sparse model, how each layer runs."""
    from secateur.cli.inputs import dense_of, engine_of, example
    from secateur.graph import trace
    from secateur.recipes.phases import axes_json

    if engine := engine_of(model):
        given = example(shapes) if shapes else engine[1]
        _show_choices(engine[0], given if isinstance(given, tuple) else (given,), as_json)
        return
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


def _show_choices(model: CompiledModel, inputs: tuple[Tensor, ...], as_json: bool) -> None:
    """One row per layer: its sparsity, and the kernel measured to be the fastest for these inputs."""
    rows = model.choices(*inputs)
    if as_json:
        screen.show_json({"layers": rows, "precision": model.precision, "note": model.note})
        return
    shown = [
        [row["layer"], row["kind"], "x".join(map(str, row["weight"])), f"{row['sparsity']:.1%}", row["runs"],
         row.get("values", "float32"), f"{row['rows']} x {row['tile']}" if "tile" in row else "",
         f"{row['ms']:.3f}" if "ms" in row else ""]
        for row in rows
    ]  # fmt: skip
    screen.show_table(["layer", "kind", "weight", "zeros", "runs", "values", "rows x pixels", "ms"], shown, model.note)
