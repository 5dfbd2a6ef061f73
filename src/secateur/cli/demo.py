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
    show_channel_rows(folder, seed, threads, as_json)


def show_channel_rows(folder: Path, seed: int, threads: int, as_json: bool) -> None:
    """Print what the published systems of channel pruning make of the dense network, from channel.json once it is there."""
    from secateur.io.files import read_json, write_json
    from secateur.recipes.demo_channel import rows
    from secateur.recipes.run import threads as on_threads

    path = folder / "channel.json"
    if not path.exists():
        with on_threads(threads):
            write_json(path, {"stages": rows(folder, seed=seed, threads=threads)})
    if not as_json:
        screen.say("\nchannel pruning of the same network to half of its MACs, without retraining but where it says so")
        screen.show_facts(read_json(path), as_json)
