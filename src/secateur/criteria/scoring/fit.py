"""Training a Scoring Net: stages, steps, and the three variants."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn, optim

from secateur.core.errors import SecateurError
from secateur.criteria.scoring.gates import gates_of
from secateur.criteria.scoring.network import ScoringNet
from secateur.criteria.scoring.regress import measured, regression_loss
from secateur.criteria.scoring.reinforce import Baseline, reinforce_loss
from secateur.criteria.scoring.settings import ScorerSettings, ScorerStage
from secateur.criteria.scoring.task import Prepared, Task, objective, prepare
from secateur.criteria.scoring.unroll import trained
from secateur.linalg.muon import Muon

Record = dict[str, Any]
HUGE = 1e6
"""Weights of a net beyond this are no longer trained: what they multiply is of the size of 1."""
LEAST = -600.0
"""Raw scores below this are all the same to `ScoringNet.positive`."""
OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "adam": optim.Adam,
    "adamw": optim.AdamW,
    "sgd": lambda parameters, lr: optim.SGD(parameters, lr, momentum=0.9),
    "lbfgs": lambda parameters, lr: optim.LBFGS(parameters, lr, line_search_fn="strong_wolfe"),
    "muon": lambda parameters, lr: Muon(parameters, lr, momentum=0.95, weight_decay=0.0, nesterov=True),
}


@dataclass(frozen=True)
class _Step:
    """Which batch of which task, at which share and slope."""

    prepared: Prepared
    batch: int
    share: float
    temperature: float


def fit_(
    net: ScoringNet,
    tasks: Sequence[Task],
    settings: ScorerSettings | None = None,
    *,
    on_epoch: Callable[[Record], None] | None = None,
) -> list[Record]:
    """Train `net` in place on one network or on several at once; one record per epoch.

    An epoch shows every batch of every task once, in an order drawn from `settings.seed`; one of LBFGS is a single step on all
    of them. A record holds "stage", "epoch",
    "loss", "seconds" since the start, and "forwards": passes of the pruned networks over a batch so far, those of the full
    networks and of unrolled steps among them. The networks do not change.
    Raises `SecateurError` where there is no task, no batch, nothing to cut, a loss that is not finite, or a net that runs away.
    Whatever stops a training, `net` is then as it was.
    """
    settings = settings or ScorerSettings()
    _require(net, tasks, settings)
    begun = time.perf_counter()
    records: list[Record] = []
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad(), _whole_or_not(net):
        torch.manual_seed(settings.seed)
        generator = torch.Generator().manual_seed(settings.seed)
        layers = tuple(dict.fromkeys(layer for stage in settings.stages for layer in stage.objective.layers))
        ready = [prepare(task, net.settings, settings.limit, settings.mode, layers) for task in tasks]
        samples = [measured(p, settings, generator) for p in ready] if settings.variant == "regress" else []
        if net.settings.prior == "l1":
            spreads = [spread for spread in (net.settings.spread, *(p.units.spread for p in ready)) if spread > 0]
            net.settings = replace(net.settings, spread=min(spreads, default=0.0))
        run = _Training(net, ready, settings, samples, generator)
        net.train()
        for stage in settings.stages:
            for value in run.epochs(stage):
                record: Record = {"stage": stage.name, "epoch": len(records) + 1, "loss": value}
                record |= {"seconds": round(time.perf_counter() - begun, 4), "forwards": sum(p.forwards for p in ready)}
                _require_small(net, stage)
                _require_scores(net, ready, stage)
                records.append(record)
                if on_epoch:
                    on_epoch(record)
    net.eval()
    return records


def _require(net: ScoringNet, tasks: Sequence[Task], settings: ScorerSettings) -> None:
    """Raise `SecateurError` for what is no net, no tasks and no settings, and for a net that cannot learn."""
    asked = "training a Scoring Net"
    if not isinstance(net, ScoringNet) or not isinstance(settings, ScorerSettings):
        found = f"a {type(net).__name__} and settings of type {type(settings).__name__}"
        raise SecateurError(asked, found, "give a ScoringNet and ScorerSettings")
    if not isinstance(tasks, (list, tuple)) or not all(isinstance(task, Task) and callable(task.allocate) for task in tasks):
        raise SecateurError(asked, f"tasks of type {type(tasks).__name__}", "give a list of Task, each with an allocator")
    if not tasks:
        raise SecateurError(asked, "no task", "give at least one network with its data")
    if any(parameter.is_inference() or not parameter.requires_grad for parameter in net.parameters()):
        raise SecateurError(asked, "a net that is frozen", "call net.requires_grad_(True), outside of inference mode")


@contextmanager
def _whole_or_not(net: ScoringNet) -> Iterator[None]:
    """Where what is done inside does not come to its end, `net` is as it was."""
    settings, state, mode = net.settings, copy.deepcopy(net.state_dict()), net.training
    try:
        yield
    except BaseException:
        net.settings = settings
        net.load_state_dict(state)
        net.zero_grad()
        net.train(mode)
        raise


def _require_small(net: ScoringNet, stage: ScorerStage) -> None:
    """Raise `SecateurError` where weights of the net are huge, or no numbers."""
    most = float(torch.stack([parameter.detach().abs().amax() for parameter in net.parameters()]).amax())
    if not most <= HUGE:
        do = f"lower the learning rate of stage {stage.name!r}, {stage.lr:g}, or the weights of its losses"
        raise SecateurError("training a Scoring Net", f"a net that ran away, to weights of {most:.2g}", do)


def _require_scores(net: ScoringNet, ready: Sequence[Prepared], stage: ScorerStage) -> None:
    """Raise `SecateurError` where all units that have weights score 0."""
    with torch.no_grad():
        raw = torch.cat([net(prepared.units)[~prepared.units.dead] for prepared in ready])
    if len(raw) and not bool((raw > LEAST).any()):
        do = f"lower the learning rate of stage {stage.name!r}, {stage.lr:g}, or take another loss"
        raise SecateurError("training a Scoring Net", "a net whose scores are all 0", do)


class _Training:
    """State between steps: the generator, and the baseline of the policy gradient."""

    def __init__(
        self,
        net: ScoringNet,
        ready: list[Prepared],
        settings: ScorerSettings,
        samples: list[tuple[Tensor, Tensor]],
        generator: torch.Generator,
    ) -> None:
        self.net, self.ready, self.settings, self.samples, self.generator = net, ready, settings, samples, generator
        self.baseline = Baseline()
        self.order = [(prepared, batch) for prepared in ready for batch in range(len(prepared.batches))]
        self.total, self.taken = max(len(self.order) * sum(stage.epochs for stage in settings.stages), 1), 0

    def epochs(self, stage: ScorerStage) -> Iterator[float]:
        """The mean loss of each epoch of `stage`; its learning rate falls to 0 as half a cosine, but for LBFGS."""
        optimizer = OPTIMIZERS[stage.optimizer](list(self.net.parameters()), lr=stage.lr)
        steps = max(stage.epochs * len(self.order), 1)
        for epoch in range(stage.epochs):
            if stage.optimizer == "lbfgs":
                yield self._together(optimizer, stage)
                continue
            total = 0.0
            for number, place in enumerate(torch.randperm(len(self.order), generator=self.generator).tolist()):
                done = (epoch * len(self.order) + number) / steps
                optimizer.param_groups[0]["lr"] = stage.lr * 0.5 * (1 + math.cos(math.pi * done))
                total += self._step(optimizer, stage, self._at(*self.order[place]))
                self.taken += 1
            yield total / len(self.order)

    def _together(self, optimizer: optim.Optimizer, stage: ScorerStage) -> float:
        """One step of LBFGS: a line search wants one function, so all batches, one share and one temperature."""
        if self.settings.variant == "gates":
            optimizer.state.clear()  # differences of gradients across temperatures are no curvature
        now = self._at(*self.order[0])
        order = [(prepared, 0) for prepared in self.ready] if self.settings.variant == "regress" else self.order
        steps = [replace(now, prepared=prepared, batch=batch) for prepared, batch in order]
        self.taken += len(self.order)

        def closure() -> float:
            optimizer.zero_grad()
            return sum(self._slope(stage, step, 1 / len(steps)) for step in steps)

        return float(optimizer.step(closure))  # type: ignore[arg-type]

    def _at(self, prepared: Prepared, batch: int) -> _Step:
        done, (start, end) = self.taken / self.total, self.settings.soft
        drawn = self.settings.keeps[int(torch.randint(len(self.settings.keeps), (1,), generator=self.generator))]
        share = drawn ** min(1.0, done / self.settings.ramp) if self.settings.ramp else drawn
        return _Step(prepared, batch, share, start * (end / start) ** done)

    def _step(self, optimizer: optim.Optimizer, stage: ScorerStage, step: _Step) -> float:
        optimizer.zero_grad()
        value = self._slope(stage, step)
        nn.utils.clip_grad_norm_(self.net.parameters(), self.settings.clip)
        optimizer.step()
        return value

    def _slope(self, stage: ScorerStage, step: _Step, weight: float = 1.0) -> float:
        """`weight` times the loss; its gradient is added to the net's."""
        _require_small(self.net, stage)
        value = self._loss(stage, step) * weight
        if not torch.isfinite(value):
            do = "lower the learning rate, or look for weights and inputs that are infinite or not a number"
            raise SecateurError("training a Scoring Net", f"a loss of {float(value.detach())}", do)
        value.backward()
        return float(value.detach())

    def _loss(self, stage: ScorerStage, step: _Step) -> Tensor:
        if self.settings.variant == "regress":
            return regression_loss(self.net, step.prepared, *self.samples[self.ready.index(step.prepared)])
        if self.settings.variant == "reinforce":
            return reinforce_loss(
                self.net, step.prepared, step.batch, step.share, stage.objective, self.settings, self.baseline
            )
        return gates_loss(self.net, step.prepared, step.batch, step.share, step.temperature, stage, self.settings)


def gates_loss(
    net: ScoringNet,
    prepared: Prepared,
    batch: int,
    share: float,
    temperature: float,
    stage: ScorerStage,
    settings: ScorerSettings,
) -> Tensor:
    """The loss of the network as the allocator would cut it at this `share`, with slopes by the net's parameters."""
    task, units = prepared.task, prepared.units
    raw = net(units)
    with torch.no_grad():
        scores = net.positive(units, raw)
    plan = task.allocate(task.axes, scores, share)
    how = {"temperature": temperature, "share": share, "spend": settings.spend, "count": prepared.count}
    gates = gates_of(task.axes, units, raw, plan, **how)  # type: ignore[arg-type]
    output = trained(prepared, gates.hard, batch, settings.mode, settings.unrolled, settings.inner_lr)
    _, target, answer = prepared.batches[batch]
    features = prepared.features(stage.objective, gates.hard, batch)
    return objective(prepared, stage.objective, output, target, answer, gates.excess, features)
