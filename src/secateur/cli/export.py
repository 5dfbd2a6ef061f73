"""secateur export: a model for a runtime, in one file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from secateur.cli import options, screen


class Target(StrEnum):
    """What can be exported to."""

    sparse = "sparse"


class Precision(StrEnum):
    """What the engine holds values and weights in."""

    float32 = "float32"
    bf16 = "bf16"


def export(
    model: options.Build,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the file goes.")],
    to: Annotated[Target, typer.Option(help="sparse: the engine that skips zeros, on a CPU.")] = Target.sparse,
    weights: options.AnyWeights = None,
    plan: Annotated[Path | None, typer.Option("--plan", help="Export the model after this plan.")] = None,
    shapes: options.Input = None,
    precision: Annotated[
        Precision, typer.Option(help="bf16: about 1e-2 off, faster on CPUs with instructions for it; sums stay float32.")
    ] = Precision.float32,
    as_json: options.Json = False,
) -> None:
    """Write a model to one file that runs without its code: secateur measure FILE runs it."""
    from secateur import runtime
    from secateur.cli.inputs import example, network_of

    given = example(shapes)
    inputs = given if isinstance(given, tuple) else (given,)
    network = network_of(model, weights, plan)
    runtime.save(output, runtime.prepare(network, inputs, precision=precision.value), inputs)
    found = {"file": str(output), "bytes": output.stat().st_size, "precision": precision.value}
    if as_json:
        screen.show_json(found)
    else:
        screen.say(f"{output}: {found['bytes']:,} bytes; secateur measure {output} runs it")
