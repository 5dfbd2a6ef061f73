"""What every command shares: tables and JSON on the screen, progress bars, and words parsed into values."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from secateur.core.errors import SecateurError, nearest

if TYPE_CHECKING:
    from secateur.core.axes import Axes
    from secateur.core.plan import Plan
    from secateur.recipes.progress import Progress


def say(text: str) -> None:
    """Print one line as it is."""
    typer.echo(text)


def show_json(value: Any) -> None:
    """Print `value` as JSON."""
    typer.echo(json.dumps(value, indent=1, allow_nan=False))


def show_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> None:
    """Print a table; numbers stand right, text left."""
    table = Table(box=None, pad_edge=False, caption=escape(caption) or None, caption_justify="left")
    for position, column in enumerate(columns):
        number = any(isinstance(row[position], (int, float)) for row in rows)
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*[f"{cell:,}" if isinstance(cell, (int, float)) else escape(str(cell)) for cell in row])
    console().print(table)


def console() -> Console:
    """Where tables go: the terminal's width there, and wide enough for any table in a file or a pipe."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=160)


def show_plan(axes: Axes, plan: Plan, path: Path, as_json: bool) -> None:
    """Print a plan, what it leaves of every count, and where it was written."""
    widths = {name: after for name, (_, after) in plan.widths().items()}
    counts = {what: {"dense": axes.count(what), "kept": axes.count(what, widths)} for what in axes.terms}
    if as_json:
        show_json({"plan": str(path), "counts": counts, "widths": plan.widths()})
        return
    rows = [[what, c["dense"], c["kept"], f"{c['kept'] / max(c['dense'], 1):.3f}"] for what, c in counts.items()]
    say(f"{plan}\n")
    show_table(["", "dense", "kept", "share"], rows)
    say(f"\nplan: {path}")


def show_facts(facts: Mapping[str, Any], as_json: bool) -> None:
    """Print the headline table of a parsed facts.json."""
    from secateur.report import table

    headline = table.headline(facts)
    if as_json:
        show_json(table.to_json(headline))
    else:
        console().print(table.to_rich(headline))


@contextmanager
def bars(quiet: bool) -> Iterator[Progress | None]:
    """A function that moves progress bars on a terminal; None, for silence, where there is none or `quiet` is set."""
    terminal = Console(stderr=True)
    if quiet or not terminal.is_terminal:
        yield None
        return
    from rich import progress as rich

    told = (rich.TextColumn("{task.description:<10}"), rich.BarColumn(), rich.MofNCompleteColumn(), rich.TimeElapsedColumn())
    with rich.Progress(*told, rich.TextColumn("{task.fields[note]}"), console=terminal) as shown:
        tasks: dict[str, rich.TaskID] = {}

        def move(phase: str, done: int, total: int, note: str = "") -> None:
            if phase not in tasks:
                tasks[phase] = shown.add_task(phase, total=total, note=note)
            shown.update(tasks[phase], completed=done, total=total, note=note)

        yield move


QUANTITIES = ("macs", "params", "bytes", "memory", "latency")


def shares(words: Sequence[str], known: Sequence[str] = QUANTITIES) -> dict[str, float]:
    """{"macs": 0.5} from ["macs=0.5"]. Raises `SecateurError` for a word of another form."""
    keep = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in known:
            raise SecateurError(f"--keep {word}", f"no quantity {name!r}", nearest(name, list(known)))
        try:
            keep[name] = float(value)
        except ValueError:
            do = "give a share, as in --keep macs=0.5"
            raise SecateurError(f"--keep {word}", f"{value!r}, which is no number", do) from None
    return keep


def assign(table: dict[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """`table` with "finetune.epochs=2" and the like set; the right side is read as TOML, and else as text."""
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise SecateurError(f"--set {word}", "no '='", "give section.key=value")
        try:
            parsed = tomllib.loads(f"x = {value}")["x"]
        except tomllib.TOMLDecodeError:
            parsed = value
        section = table
        *path, key = name.split(".")
        for part in path:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                raise SecateurError(f"--set {word}", f"{part!r}, which is no section", "give section.key=value")
        section[key] = parsed
    return table
