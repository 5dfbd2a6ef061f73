"""secateur tickets: the grid of lottery tickets, with seeds and a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli import options, screen


def tickets(
    model: Annotated[str, typer.Argument(metavar="[MODEL]", help="As for the other commands.")] = "zoo:digits_resnet",
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder for picture and numbers.")] = Path("tickets"),
    data: options.Data = "digits",
    folder: options.Folder = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many.")] = 5,
    keep: Annotated[float, typer.Option(help="The share of units, or of weights, that stays.")] = 0.2,
    epochs: Annotated[int, typer.Option(min=1, help="Of the dense network and of every ticket.")] = 5,
    lr: Annotated[float, typer.Option(help="Of the dense network and of every ticket.")] = 0.1,
    late: Annotated[int, typer.Option(min=1, help="The epoch of late rewinding.")] = 1,
    variants: Annotated[list[str] | None, typer.Option("--variant", help="Only these; once per variant.")] = None,
    kinds: Annotated[list[str] | None, typer.Option("--kind", help="structured or unstructured; both unless given.")] = None,
    batch: Annotated[int, typer.Option(min=1)] = 64,
    keep_weights: Annotated[bool, typer.Option("--weights/--no-weights", help="Keep plans and weights of every seed.")] = True,
    threads: options.Threads = 1,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train tickets by every reinitialisation, structured and unstructured; write tickets.svg and tickets.json.

    Masks and initial weights of every seed stay beside them. Stopped, the same command goes on after the last whole seed.
    """
    from secateur.cli.inputs import source
    from secateur.io.files import write_text
    from secateur.recipes import parts
    from secateur.recipes.run import threads as on_threads
    from secateur.recipes.ticket_folder import carried_out
    from secateur.recipes.tickets import GridSettings
    from secateur.report.tickets import picture
    from secateur.train import FitSettings

    chosen: dict[str, Any] = {"variants": tuple(variants)} if variants else {}
    chosen |= {"kinds": tuple(kinds)} if kinds else {}
    how = GridSettings(seeds=tuple(range(seeds)), keep=keep, late=late, fit=FitSettings(epochs=epochs, lr=lr), **chosen)
    batches = _data(model, source(data, folder, augment=True, batch=batch))
    example = parts.first_input(batches(0)[1], 1)
    about = {"model": model, "data": data, "batch": batch}
    with screen.bars(quiet or as_json) as progress, on_threads(threads):
        told: dict[str, Any] = {"folder": output, "about": about, "weights": keep_weights}
        told |= {"progress": progress} if progress else {}
        table = carried_out(lambda: parts.build_model(model, {}), batches, example, how, **told)
    found = table["found"]
    write_text(output / "tickets.svg", picture(found))
    if as_json:
        screen.show_json(table)
    else:
        _show(found, how.kinds, how.variants, output)


def _data(model: str, given: dict[str, Any]) -> Callable[[int], tuple[Any, Any]]:
    """Training and test batches by seed."""
    from secateur.recipes import parts, schema

    def batches(seed: int) -> tuple[Any, Any]:
        train, _, _, test = parts.load_data(
            schema.from_dict({"model": {"build": model}, "seed": seed, "data": given}), parts.cpu()
        )
        return train, test

    return batches


def _show(found: dict[str, Any], kinds: Sequence[str], variants: Sequence[str], output: Path) -> None:
    """The table of all tickets."""
    from secateur.report.tickets import mean_and_error

    def cell(values: list[float]) -> str:
        mean, error = mean_and_error(values)
        return f"{mean:.1%} ± {error:.1%}"

    rows = [[variant, *(cell(found[kind][variant]) for kind in kinds)] for variant in variants]
    screen.show_table(["ticket", *kinds], [["dense", *[cell(found["dense"])] * len(kinds)], *rows])
    screen.say(f"\npicture: {output / 'tickets.svg'}")
