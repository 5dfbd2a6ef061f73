"""secateur apply: cut a model as a plan says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli import options, screen


def apply(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="plan.json, a saved model, or a run folder")],
    model: options.Build,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the small model goes.")],
    weights: options.Weights = None,
    as_json: options.Json = False,
) -> None:
    """Cut a model as a plan says; write one safetensors file with the plan in it."""
    from secateur.cli.inputs import dense_of, plan_of
    from secateur.cli.outputs import require_free
    from secateur.io import save
    from secateur.measure import facts

    require_free(output, "model file of secateur", plan, model, weights)
    chosen = plan_of(plan)
    dense = dense_of(model, weights)
    small = chosen.apply(dense)
    save(output, small, chosen)
    before, after = facts(dense).params or 0, facts(small).params or 0
    found = {"file": str(output), "bytes": output.stat().st_size, "params": {"dense": before, "kept": after}}
    if as_json:
        screen.show_json(found)
    else:
        screen.say(f"{output}: {after:,} of {before:,} parameters, {found['bytes']:,} bytes")
