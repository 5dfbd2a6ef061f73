"""secateur demo: the whole path on data that is in the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli import options, screen
from secateur.cli.run import carried_out
from secateur.core.errors import SecateurError


def demo(
    folder: Annotated[Path, typer.Option("-o", "--output", help="The run folder.")] = Path("runs/demo"),
    seed: int = 0,
    threads: Annotated[int, typer.Option(help="More do not help a network this small.")] = 1,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a small network on handwritten digits, cut it to a third, repair, fine-tune, measure, report; and two other ways.

    The last rows of the table are the same network trained to low rank (TRP) and taken apart, without fine-tuning, and
    trained sparse at high rank (RPG): a twentieth of the weights is left. Then come the systems of channel pruning, and a
    picture of lottery tickets. Stopped, the same command goes on.
    """
    from secateur.recipes.demo import low_rank, recipe, sparse
    from secateur.report import table

    facts = carried_out(recipe(seed=seed, threads=threads), folder, quiet=quiet or as_json)
    other = carried_out(low_rank(folder, seed=seed, threads=threads), folder / "low_rank", quiet=quiet or as_json)
    zeros = carried_out(sparse(folder, seed=seed, threads=threads), folder / "sparse", quiet=quiet or as_json)
    last = [(other, "low rank (TRP)"), (zeros, "sparse (RPG)")]
    rows = [*facts["stages"], *(found["stages"][-1] | {"stage": name} for found, name in last)]
    channel = channel_rows(folder, seed, threads, quiet=quiet or as_json)
    drawn = ticket_picture(folder, seed, threads, quiet=quiet or as_json)
    if as_json:
        both = {"channel": table.to_json(table.headline(channel))}
        screen.show_json(table.to_json(table.headline(facts | {"stages": rows})) | both)
    else:
        screen.show_facts(facts | {"stages": rows}, as_json)
        screen.say("\nchannel pruning of the same network to half of its MACs, without retraining but where it says so")
        screen.show_facts(channel, as_json)
        screen.say(f"report: {folder / 'report.html'}")
        screen.say(f"reports of the last rows: {folder / 'low_rank' / 'report.html'}, {folder / 'sparse' / 'report.html'}")
        screen.say(f"lottery tickets, one seed: {drawn}")


def channel_rows(folder: Path, seed: int, threads: int, *, quiet: bool = True) -> dict[str, Any]:
    """What the published systems of channel pruning make of the dense network; channel.json, once it is there."""
    from secateur.io.files import read_json, write_json
    from secateur.recipes.demo_channel import rows
    from secateur.recipes.progress import silent
    from secateur.recipes.run import threads as on_threads

    path = folder / "channel.json"
    if not path.exists():
        with on_threads(threads), screen.bars(quiet) as progress:
            write_json(path, {"stages": rows(folder, seed=seed, threads=threads, progress=progress or silent)})
    return kept(path, "stages", read_json(path))


def ticket_picture(folder: Path, seed: int, threads: int, *, quiet: bool = True) -> Path:
    """tickets.svg, drawn from tickets.json, which is made where it is not there."""
    from secateur.io.files import read_json, write_json, write_text
    from secateur.recipes.demo_tickets import tickets
    from secateur.recipes.progress import silent
    from secateur.recipes.run import threads as on_threads
    from secateur.report.tickets import picture

    numbers, drawn = folder / "tickets.json", folder / "tickets.svg"
    if not numbers.exists():
        with on_threads(threads), screen.bars(quiet) as progress:
            write_json(numbers, tickets(seed, progress=progress or silent))
    write_text(drawn, picture(kept(numbers, "dense", read_json(numbers))))
    return drawn


def kept(path: Path, key: str, found: Any) -> dict[str, Any]:
    """`found` as an earlier demo left it in `path`. Raises `SecateurError` for what no demo writes."""
    if not isinstance(found, dict) or not found.get(key):
        raise SecateurError(f"{str(path)!r}", "not what the demo writes there", "remove the file; the demo makes it again")
    return found
