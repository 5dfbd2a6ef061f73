"""Evolution of what makes a plan: genomes that are mutated, judged by their plan, and grow old."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from math import inf, isnan
from typing import Generic, TypeVar

import numpy as np

from secateur.core.errors import SecateurError
from secateur.core.plan import Plan

Genome = TypeVar("Genome")
Mutate = Callable[[Genome, np.random.Generator, float], Genome]
"""(genome, generator, progress from 0 to 1) to a new genome."""


@dataclass(frozen=True)
class EvolutionSettings:
    """`population` genomes live; each child has the best of `tournament` drawn ones as parent; `trials` are judged in all."""

    population: int = 64
    tournament: int = 16
    trials: int = 400
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("population", "tournament", "trials"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise SecateurError(f"{name}={value!r}", "a value out of range", "give a whole number of at least 1")
        if self.tournament > self.population:
            found = f"more than the population of {self.population}"
            raise SecateurError(f"tournament={self.tournament}", found, "draw at most as many as there are")


@dataclass(frozen=True, eq=False)
class Evolved(Generic[Genome]):
    """The best genome that was judged, its plan and loss; `best` the lowest loss after each trial."""

    genome: Genome
    plan: Plan
    loss: float
    best: tuple[float, ...]


def evolve(
    first: Genome, mutate: Mutate[Genome], plan_of: Callable[[Genome], Plan], settings: EvolutionSettings | None = None
) -> Generator[Plan, float, Evolved[Genome]]:
    """A search over genomes: yields their plans, is sent losses (lower is better), returns the best.

    The first trial is `first` itself, the rest of the first population its mutants. Then a child takes the place of the oldest.
    A loss that is no number counts as infinite.

    Source: Real et al., 2019 (regularised evolution), algorithm 1.
    """
    settings = settings or EvolutionSettings()
    draw = np.random.default_rng(settings.seed)
    alive: deque[tuple[Genome, float]] = deque(maxlen=settings.population)
    found: Evolved[Genome] | None = None
    history: list[float] = []
    for trial in range(settings.trials):
        genome = first
        if 0 < trial < settings.population:
            genome = mutate(first, draw, 0.0)
        elif trial:
            rivals = draw.choice(len(alive), min(settings.tournament, len(alive)), replace=False)
            parent = min((alive[int(i)] for i in rivals), key=lambda member: member[1])[0]
            genome = mutate(parent, draw, trial / settings.trials)
        plan = plan_of(genome)
        loss = yield plan
        loss = inf if isnan(loss) else loss  # nothing is lower than what is no number
        alive.append((genome, loss))
        history.append(min(loss, history[-1]) if history else loss)
        if found is None or loss < found.loss:
            found = Evolved(genome, plan, loss, ())
    assert found is not None
    return Evolved(found.genome, found.plan, found.loss, tuple(history))


def gaussian(size: float, share: float = 1.0) -> Mutate[np.ndarray]:
    """A mutation of vectors: normal noise of deviation `size` on a random `share` of the entries."""

    def mutate(genome: np.ndarray, draw: np.random.Generator, _: float) -> np.ndarray:
        touched = draw.random(genome.shape) < share
        return genome + size * draw.standard_normal(genome.shape) * touched

    return mutate
