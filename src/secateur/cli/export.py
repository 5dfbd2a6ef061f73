"""secateur export: a model for a runtime, in one file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli import options, screen


class Target(StrEnum):
    """What can be exported to."""

    sparse = "sparse"


class Precision(StrEnum):
    """What the engine holds values and weights in."""

    float32 = "float32"
    bf16 = "bf16"
    int8 = "int8"


def export(
    model: options.Build,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the file goes.")],
    to: Annotated[Target, typer.Option(help="sparse: the engine that skips zeros, on a CPU.")] = Target.sparse,
    weights: options.AnyWeights = None,
    plan: Annotated[Path | None, typer.Option("--plan", help="Export the model after this plan.")] = None,
    shapes: options.Input = None,
    precision: Annotated[
        Precision,
        typer.Option(help="bf16: about 1e-2 off, faster on CPUs with instructions for it; int8: more of both, give --data."),
    ] = Precision.float32,
    data: options.AnyData = None,
    folder: options.Folder = None,
    batches: Annotated[int, typer.Option(min=1, help="Of training data, which int8 takes its ranges from.")] = 4,
    as_json: options.Json = False,
) -> None:
    """Write a model to one file that runs without its code: secateur measure FILE runs it.

    int8 needs to know how large values become: --data names inputs to see it from; without, random numbers stand for them.
    """
    from secateur import runtime
    from secateur.cli.inputs import example, network_of
    from secateur.cli.outputs import require_free

    require_free(output, "exported model", model, weights, plan, data)
    given = example(shapes)
    inputs = given if isinstance(given, tuple) else (given,)
    network = network_of(model, weights, plan)
    seen = calibration(data, folder, batches) if precision == Precision.int8 and data else None
    runtime.save(output, runtime.prepare(network, inputs, precision=precision.value, calibration=seen), inputs)
    found = {"file": str(output), "bytes": output.stat().st_size, "precision": precision.value}
    if precision == Precision.int8:
        found["calibrated_on"] = len(seen or ())
    if as_json:
        screen.show_json(found)
    else:
        screen.say(f"{output}: {found['bytes']:,} bytes; secateur measure {output} runs it")
        if precision == Precision.int8 and not seen:
            screen.say("note: its ranges are those of random inputs; give --data for real ones")


def calibration(data: str, folder: str | None, batches: int) -> list[Any]:
    """Inputs of some batches of training data, without augmentation."""
    from secateur.cli.inputs import source
    from secateur.recipes import parts, schema

    recipe = schema.from_dict({"model": {"build": "none"}, "data": source(data, folder)})
    return [x for x, _ in parts.limited(parts.scoring_batches(recipe, parts.cpu()), batches, parts.cpu())]
