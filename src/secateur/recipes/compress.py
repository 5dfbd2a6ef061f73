"""The whole path in one call, in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from io import StringIO
from typing import Any

from torch import nn
from torch.nn import functional as F

from secateur.core.axes import Axes
from secateur.core.facts import Facts
from secateur.core.plan import Plan
from secateur.core.protocols import Batches, Loss
from secateur.core.running import device_of, evaluating
from secateur.measure import compare, facts, peak_memory
from secateur.recipes.choose import choose
from secateur.recipes.parts import limited
from secateur.recipes.phases import CUT, DENSE, REPAIRED, TUNED
from secateur.recipes.reconstruct import repair_of
from secateur.recipes.schema import Measure, Prune, Repair
from secateur.train import FitSettings, fit

Metric = Callable[[nn.Module], float]
KEEP = {"macs": 0.5}


@dataclass(frozen=True, eq=False)
class Settings:
    """How `compress` goes about it; the parts are those of a recipe. Without `finetune` no weight is trained.

    `prune.keep` gives way to the argument `keep`.
    """

    prune: Prune = field(default_factory=Prune)
    repair: Repair = field(default_factory=Repair)
    finetune: FitSettings | None = None
    measure: Measure = field(default_factory=Measure)
    loss: Loss = F.cross_entropy
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Report:
    """What became of a model: its axes, the plan, and facts per stage in order; prints as the headline table."""

    axes: Axes
    plan: Plan
    stages: Mapping[str, Facts]

    def to_json(self) -> dict[str, Any]:
        """The stages as in facts.json."""
        return {"stages": [{"stage": name} | known.to_json() for name, known in self.stages.items()]}

    def __str__(self) -> str:
        from rich.console import Console

        from secateur.report.table import headline, to_rich

        with Console(width=100, file=StringIO(), color_system=None) as console, console.capture() as text:
            console.print(to_rich(headline(self.to_json())))
        return text.get().rstrip()


def compress(
    model: nn.Module,
    example: Any,
    data: Batches | None = None,
    *,
    evaluate: Metric | None = None,
    keep: Mapping[str, float] = KEEP,
    settings: Settings | None = None,
) -> tuple[nn.Module, Report]:
    """(small, report): a smaller copy of `model` that keeps the shares `keep` of its MACs or parameters; `model` stays.

    `example`: one input, a tuple of positional or a dict of named arguments. `data`: training batches, iterated anew for
    every pass; they score the units, re-estimate batch norms and, where `settings.finetune` is given, train. Without
    them units are scored by L2 over coupled groups, and nothing is repaired. `evaluate(model)` gives the accuracy told
    in the report; give it data that is not in `data`.
    Raises `SecateurError` for a budget that cannot be met, saying the least that can.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> small, report = compress(net, torch.zeros(1, 4), keep={"params": 0.5})
    >>> small
    Sequential(
      (0): Linear(in_features=4, out_features=3, bias=True)
      (1): ReLU()
      (2): Linear(in_features=3, out_features=2, bias=True)
    )
    """
    settings = settings or Settings()
    prune = replace(settings.prune, keep=dict(keep))  # type: ignore[arg-type]
    device = device_of(model)
    batches = None if data is None else limited(data, prune.batches, device)
    if batches is None and prune.criterion == Prune().criterion:
        prune = replace(prune, criterion="l2")
    axes, plan = choose(model, example, prune, batches=batches, loss=settings.loss, seed=settings.seed)
    small = plan.apply(model)
    stages = {DENSE: _facts(model, example, evaluate), CUT: _facts(small, example, evaluate)}
    if data is not None and settings.repair.name != "none":
        repair_of(settings.repair, plan)(model, small, limited(data, settings.repair.batches, device))
        stages[REPAIRED] = _facts(small, example, evaluate)
    if data is not None and settings.finetune is not None:
        fit(small, data, settings.finetune, loss=settings.loss)
        stages[TUNED] = _facts(small, example, evaluate)
    if settings.measure.latency:
        stages = _timed(model, small, example, stages, settings.measure)
    return small, Report(axes, plan, stages)


def _facts(model: nn.Module, example: Any, evaluate: Metric | None) -> Facts:
    """Counted and judged; the user's metric may change the mode, which is put back."""
    known = replace(facts(model, example), peak_memory=peak_memory(model, example))
    if evaluate is None:
        return known
    with evaluating(model):
        return replace(known, accuracy=float(evaluate(model)))


def _timed(model: nn.Module, small: nn.Module, example: Any, stages: dict[str, Facts], how: Measure) -> dict[str, Facts]:
    """`stages` with latencies from interleaved rounds; all stages after the cut are one architecture and share a time."""
    times = compare({"dense": model, "small": small}, example, repeats=how.repeats, warmup=how.warmup)
    return {name: replace(known, latency_ms=times["dense" if name == DENSE else "small"]) for name, known in stages.items()}
