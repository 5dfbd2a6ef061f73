"""secateur diff: where two plans differ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli import options, screen


def diff(
    first: Annotated[Path, typer.Argument(help="plan.json, a saved model, or a run folder")],
    second: Annotated[Path, typer.Argument(help="the same")],
    as_json: options.Json = False,
) -> None:
    """Print where two plans differ. Exit 0 if they are equal, 1 if not."""
    from secateur.cli.inputs import plan_of

    lines = plan_of(first).diff(plan_of(second))
    if as_json:
        screen.show_json({"equal": not lines, "lines": lines})
    else:
        for line in lines:
            screen.say(line)
    raise typer.Exit(1 if lines else 0)
