"""The command `secateur`. Exit 0 done, 1 a limit was not met, 2 impossible or malformed, told in one sentence."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, NoReturn

import click
import typer

from secateur.cli import apply, demo, diff, inspect, measure, plan, report, run, show
from secateur.core.errors import SecateurError

app = typer.Typer(
    name="secateur",
    help="From a trained network to a smaller, faster one: a plan says what goes, and only a plan cuts.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (demo.demo, inspect.inspect, plan.plan, diff.diff, apply.apply, run.run, measure.measure, report.report, show.show):
    app.command()(_command)


def _version(asked: bool) -> None:
    if asked:
        try:
            typer.echo(f"secateur {version('secateur')}")
        except PackageNotFoundError:
            typer.echo("secateur, not installed")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and leave with its exit code."""
    try:
        code = app(args=arguments, prog_name="secateur", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except SecateurError as error:
        _leave(str(error), 2)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.ctx.get_help())
        sys.exit(2)
    except click.ClickException as error:
        _leave(f"{error.format_message().rstrip('.')}; secateur {'--help says what there is'}.", 2)
    except (click.Abort, KeyboardInterrupt):
        _leave("stopped; the same command goes on from here.", 130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        _leave(f"{error.filename or 'a file'}: found {error.strerror or error}; free space or give another place.", 2)


def _leave(sentence: str, code: int) -> NoReturn:
    print(" ".join(sentence.split()), file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
