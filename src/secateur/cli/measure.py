"""secateur measure: params, MACs, bytes, memory and latency, of one model or of dense and small side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli import options, screen

if TYPE_CHECKING:
    from torch import nn


def measure(
    model: options.Build,
    weights: options.AnyWeights = None,
    plan: Annotated[Path | None, typer.Option("--plan", help="Measure the model after this plan too.")] = None,
    shapes: options.Input = None,
    table: Annotated[
        Path | None, typer.Option("--table", help="Write the latencies of all kinds of layers there, for --keep latency=SHARE.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Rounds of the latency; the median counts.")] = 30,
    threads: options.Threads = 0,
    as_json: options.Json = False,
) -> None:
    """Count and time a model; with a plan or a cut model's weights, dense and small in the same rounds."""
    from secateur.cli.inputs import dense_of, engine_of, example, has_plan, plan_of
    from secateur.cli.outputs import require_free
    from secateur.io import load

    if table is not None:
        require_free(table, "latency table", model)
        write_table(table, dense_of(model, None), example(shapes), threads=threads, as_json=as_json)
        return
    if engine := engine_of(model):
        from secateur.measure import latency

        given = example(shapes) if shapes else engine[1]
        engine[0].threads = threads
        taken = latency(engine[0], *(given if isinstance(given, tuple) else (given,)), repeats=repeats, threads=threads or None)
        found = {"latency_ms": taken, "bytes": Path(model).stat().st_size, "precision": engine[0].precision}
        found["note"] = engine[0].note
        screen.show_json(found) if as_json else screen.say(
            f"{taken:.3f} ms in {found['precision']}, {found['bytes']:,} bytes {engine[0].note}".rstrip()
        )
        return
    cut = weights is not None and has_plan(weights)
    models = {"dense": dense_of(model, None if cut else weights)}
    if cut:
        models["small"] = load(weights, into=models["dense"])  # type: ignore[arg-type]
    elif plan:
        models["small"] = plan_of(plan).apply(models["dense"])
    stages = facts_of(models, example(shapes), repeats, threads)
    screen.show_facts({"stages": stages}, as_json)


def write_table(path: Path, model: nn.Module, inputs: Any, *, threads: int, as_json: bool) -> None:
    """Measure the layers of `model` and write the table."""
    from secateur.io.files import write_json
    from secateur.measure.table import measure_table

    found = measure_table(model, inputs, threads=threads or None)
    write_json(path, found.to_json())
    if as_json:
        screen.show_json(found.to_json())
        return
    rows = [
        [key, f"{entry.outputs[-1]} x {entry.inputs[-1]}", f"{entry.ms[-1][-1]:.4f}"] for key, entry in found.entries.items()
    ]
    screen.show_table(["layer", "outputs x inputs", "ms"], rows)
    screen.say(f"\nthe rest: {found.rest_ms:.4f} ms\ntable: {path}")


def facts_of(models: dict[str, nn.Module], inputs: Any, repeats: int, threads: int) -> list[dict[str, Any]]:
    """One row of facts per model, timed in interleaved rounds. Bytes are those of the state's tensors."""
    from secateur.measure import compare, facts, peak_memory

    times = compare(models, inputs, repeats=repeats, threads=threads or None)
    stages = []
    for name, model in models.items():
        known = replace(facts(model, inputs), latency_ms=times[name], peak_memory=peak_memory(model, inputs))
        stages.append({"stage": name} | known.to_json())
    return stages
