"""secateur demo: the whole path on data that is in the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli import screen
from secateur.cli.run import carry_out


def demo(
    folder: Annotated[Path, typer.Option("-o", "--output", help="The run folder.")] = Path("runs/demo"),
    seed: int = 0,
    threads: Annotated[int, typer.Option(help="More do not help a network this small.")] = 1,
    as_json: screen.Json = False,
    quiet: screen.Quiet = False,
) -> None:
    """Train a small network on handwritten digits, cut it to a third, repair, fine-tune, measure, report."""
    from secateur.recipes.demo import recipe

    carry_out(recipe(seed=seed, threads=threads), folder, as_json=as_json, quiet=quiet)
