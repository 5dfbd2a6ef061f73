"""secateur report: the page of a run, made anew from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli import options, screen


def report(folder: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder")], as_json: options.Json = False) -> None:
    """Make report.html of a run again, from the run folder alone."""
    from secateur.report.build import build

    path = build(folder)
    if as_json:
        screen.show_json({"report": str(path)})
    else:
        screen.say(str(path))
