"""secateur demo: the whole path on data that is in the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli import screen
from secateur.cli.run import carried_out


def demo(
    folder: Annotated[Path, typer.Option("-o", "--output", help="The run folder.")] = Path("runs/demo"),
    seed: int = 0,
    threads: Annotated[int, typer.Option(help="More do not help a network this small.")] = 1,
    as_json: screen.Json = False,
    quiet: screen.Quiet = False,
) -> None:
    """Train a small network on handwritten digits, cut it to a third, repair, fine-tune, measure, report; and once by low rank.

    The last row of the table is the same network trained to low rank (TRP) and taken apart, without fine-tuning.
    """
    from secateur.recipes.demo import low_rank, recipe

    facts = carried_out(recipe(seed=seed, threads=threads), folder, quiet=quiet or as_json)
    other = carried_out(low_rank(folder, seed=seed, threads=threads), folder / "low_rank", quiet=quiet or as_json)
    rows = [*facts["stages"], other["stages"][-1] | {"stage": "low rank (TRP)"}]
    screen.show_facts(facts | {"stages": rows}, as_json)
    if not as_json:
        screen.say(f"report: {folder / 'report.html'}")
        screen.say(f"report of the last row: {folder / 'low_rank' / 'report.html'}")
