"""Candidates timed in turns, so that a busy machine slows all alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from time import perf_counter, sleep
from typing import Any

import torch

Run = Callable[[], Any]
REST = 0.02
"""Seconds between two turns: threads of the one before that wait for more work in a loop have gone to sleep then."""
LEAST_SECONDS = 0.03
"""A turn repeats a run until it should have lasted so long."""


def in_turns(
    runs: Mapping[str, Run], rounds: int, clock: Callable[[], float] = perf_counter, *, least: float = LEAST_SECONDS
) -> dict[str, list[float]]:
    """Milliseconds of one run of each candidate, in each of `rounds`; every round starts with the next one.

    A turn is a rest, one run that warms the caches, and then the mean of as many as fill `least` seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    repeats: dict[str, int] = {}
    with torch.inference_mode():
        for name, run in runs.items():
            run()
            begin = perf_counter()
            run()
            repeats[name] = max(1, round(least / max(perf_counter() - begin, 1e-6)))
        for name in turns(list(runs), rounds):
            sleep(REST)
            runs[name]()
            begin = clock()
            for _ in range(repeats[name]):
                runs[name]()
            times[name].append((clock() - begin) * 1000 / repeats[name])
    return times


def turns(names: Sequence[str], rounds: int) -> Iterator[str]:
    """Every name once in each of `rounds`, each round beginning with the next one.

    >>> "".join(turns("abc", 2))
    'abcbca'
    """
    for turn in range(rounds):
        yield from (names[(turn + place) % len(names)] for place in range(len(names)))
