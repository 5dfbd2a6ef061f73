"""Wall time of a forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn

from secateur.core.errors import SecateurError
from secateur.core.running import call, device_of, evaluating
from secateur.measure.forward import forward, prepare
from secateur.measure.turns import turns


def latency(model: nn.Module, *example: Any, repeats: int = 20, warmup: int = 5, threads: int | None = None) -> float:
    """Median milliseconds of one forward in evaluation mode.

    `example`: as in `facts`. To say how much faster one model is than another use `compare`: two medians taken one after
    the other also differ by what else the machine did meanwhile.
    """
    batch = example[0] if len(example) == 1 else example
    return compare({"model": model}, batch, repeats=repeats, warmup=warmup, threads=threads)["model"]


def compare(
    models: Mapping[str, nn.Module],
    example: Any,
    *,
    repeats: int = 20,
    warmup: int = 5,
    threads: int | None = None,
    pick: Callable[[list[float]], float] = median,
) -> dict[str, float]:
    """Median milliseconds of one forward of each model, timed in turns so that a busy machine slows all alike.

    `example`: a tensor, a tuple of positional or a dict of named arguments. Each of `repeats` rounds times every model
    once and starts with the next one. `pick` makes one number of a model's times: ``min`` leaves out what else the machine
    did, which hits long forwards more often than short ones. `threads` holds for this call only. Raises `SecateurError`
    where a forward fails.
    """
    if repeats < 1 or warmup < 0:
        do = "give repeats of 1 or more, warmup of 0 or more"
        raise SecateurError(f"repeats={repeats}, warmup={warmup}", "nothing to time", do)
    batches = {name: prepare(model, (example,)) for name, model in models.items()}
    devices = {name: device_of(model) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    with ExitStack() as stack:
        stack.enter_context(_threads(threads))
        for name, model in models.items():
            for _ in range(max(warmup, 1)):  # the first forward also tells whether the example fits
                forward(model, batches[name])
            stack.enter_context(evaluating(model))
        stack.enter_context(torch.inference_mode())
        for name in turns(list(models), repeats):
            times[name].append(_milliseconds(models[name], batches[name], devices[name]))
    return {name: pick(taken) for name, taken in times.items()}


def _milliseconds(model: nn.Module, batch: Any, device: torch.device) -> float:
    _wait(device)
    start = perf_counter()
    call(model, batch)
    _wait(device)
    return (perf_counter() - start) * 1000


def _wait(device: torch.device) -> None:
    """Let an accelerator finish: its calls return before the work is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
