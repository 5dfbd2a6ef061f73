"""secateur bench: one model in every runtime at hand, dense and by the sparse engine, in one run."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from secateur.cli import options, screen

ENGINES = {"sparse engine": "float32", "sparse engine bf16": "bf16", "sparse engine int8": "int8"}


def bench(
    model: options.Build,
    weights: options.AnyWeights = None,
    plan: Annotated[Path | None, typer.Option("--plan", help="Time the model after this plan.")] = None,
    shapes: options.Input = None,
    runtimes: Annotated[list[str] | None, typer.Option("--runtime", help="Only these; once per runtime.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Each times every runtime once; medians count.")] = 15,
    threads: options.Threads = 0,
    as_json: options.Json = False,
) -> None:
    """Time a model in PyTorch (eager, compiled), ONNX Runtime, OpenVINO and the sparse engine, in turns.

    Ratios are to the fastest dense float32 runtime; bf16 and int8 compute something else and stand beside.
    """
    from tempfile import TemporaryDirectory

    import torch

    from secateur import runtime
    from secateur.cli.inputs import example, network_of
    from secateur.core.errors import SecateurError, nearest
    from secateur.measure import machine
    from secateur.measure.turns import in_turns
    from secateur.recipes.run import threads as on_threads
    from secateur.runtime.rivals import LOWER_PRECISION, RIVALS, Dense, rivals

    known = [*RIVALS, *ENGINES]
    for name in runtimes or ():
        if name not in known:
            raise SecateurError(f"--runtime {name}", "no such runtime", nearest(name, known))
    given = example(shapes)
    inputs = given if isinstance(given, tuple) else (given,)
    network = network_of(model, weights, plan).eval()
    wanted = runtimes or known
    with on_threads(threads), TemporaryDirectory() as folder:
        dense = Dense(network, inputs, torch.get_num_threads(), Path(folder))
        runs, absent = rivals(dense, [name for name in wanted if name in RIVALS])
        for name, precision in ENGINES.items():
            if name in wanted:
                fast = runtime.compile(network, inputs, precision=precision)
                if fast.note:
                    absent[name] = fast.note
                else:
                    runs[name] = lambda fast=fast: fast(*inputs)  # type: ignore[misc]
        times = {name: median(taken) for name, taken in in_turns(runs, rounds).items()}
    exact = {name: ms for name, ms in times.items() if name not in (*LOWER_PRECISION, *ENGINES)}
    best = min(exact, key=lambda name: exact[name]) if exact else None
    speedups = {name: exact[best] / ms if best else None for name, ms in times.items()}
    if as_json:
        rows = [{"runtime": name, "ms": ms, "speedup": speedups[name]} for name, ms in times.items()]
        screen.show_json({**machine.record(), "fastest_dense": best, "rows": rows, "absent": absent})
        return
    order = sorted(times, key=lambda name: times[name])
    screen.show_table(
        ["runtime", "ms", "speed-up"],
        [[name, f"{times[name]:.3f}", f"{speedups[name]:.2f}x" if best else "-"] for name in order],
    )
    screen.say(f"\nspeed-up over {best}, the fastest dense float32 runtime" if best else "\nno dense runtime to compare with")
    for name, why in absent.items():
        screen.say(f"not timed: {name}: {why}")
