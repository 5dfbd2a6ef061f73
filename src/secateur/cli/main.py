"""The command `secateur`. Exit 0 done, 1 a limit was not met, 2 impossible or malformed, told in one sentence."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

import secateur
from secateur.cli import (
    apply,
    bench,
    demo,
    diff,
    export,
    grid,
    inspect,
    measure,
    plan,
    ranks,
    report,
    run,
    score,
    search,
    sensitivity,
    show,
    tickets,
)
from secateur.core.errors import SecateurError

COMMANDS = (
    demo.demo, inspect.inspect, plan.plan, ranks.ranks, diff.diff, apply.apply, run.run, score.score, search.search,
    sensitivity.sensitivity, measure.measure, bench.bench, export.export, report.report, show.show, tickets.tickets,
    grid.grid,
)  # fmt: skip
GO_ON = ("demo", "run", "search", "sensitivity", "tickets", "grid")
"""Commands that keep what is done, so that the same command goes on from it."""
STOPPED = 130
"""The exit code after Ctrl-C; no command leaves with it of itself."""


def application() -> typer.Typer:
    """The command with all its subcommands."""
    app = typer.Typer(
        name="secateur",
        help="From a trained network to a smaller, faster one: a plan says what goes, and only a plan cuts.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for command in COMMANDS:
        app.command()(command)
    return app


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"secateur {secateur.__version__}")
        raise typer.Exit


def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and leave with its exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        code = application()(args=given, prog_name="secateur", standalone_mode=False)
        if code == STOPPED:  # what newer typers make of an interrupt; older ones raise
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except SecateurError as error:
        _leave(str(error), 2)
    except (typer.Abort, KeyboardInterrupt):
        _leave("stopped; the same command goes on from here." if given and given[0] in GO_ON else "stopped.", STOPPED)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        _leave(f"{error.filename or 'a file'}: found {error.strerror or error}; free space or give another place.", 2)
    except Exception as error:
        # a wrong word on the command line: typer brings its own copy of click or uses an installed one, by version
        words = getattr(error, "format_message", None)
        if words is None:
            traceback.print_exc()
            _leave("a fault of secateur or of code it was given; the lines above say where.", 70)
        _leave(f"{words().rstrip('.')}; secateur COMMAND --help says what there is." if words() else "", 2)


def _leave(sentence: str, code: int) -> NoReturn:
    if sentence:
        print(" ".join(sentence.split()), file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
