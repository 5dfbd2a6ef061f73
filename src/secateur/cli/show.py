"""secateur show: what a file or a run folder holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from secateur.cli import options, screen


def show(
    path: Annotated[Path, typer.Argument(help="a run folder, plan.json, or a saved model")], as_json: options.Json = False
) -> None:
    """Print the headline table of a run, or the plan in a file."""
    from secateur.cli.inputs import plan_of
    from secateur.core import codec
    from secateur.io import read_json

    if path.is_dir() and (path / "facts.json").exists():
        screen.show_facts(read_json(path / "facts.json", "facts"), as_json)
        return
    plan = plan_of(path)
    if as_json:
        screen.show_json(json.loads(codec.dumps(plan)))
    else:
        screen.say(str(plan))
