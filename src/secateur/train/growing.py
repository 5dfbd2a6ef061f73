"""Growing regularisation: a penalty on the units that shall go, raised until nothing is left of them.

lambda is the weight of an L2 penalty: lambda * w is added to the gradient of w.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.core.codec import dumps, loads
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.train.slimming import Decide
from secateur.train.units import cuts_of, written


@dataclass(frozen=True)
class GrowingSettings:
    """How the penalty grows; the defaults are those of the authors' code for ImageNet (CIFAR: every=10, settle=10000).

    lambda grows by `grow` every `every` steps up to `most`, where it stays for `settle` steps. `pick`: GReg-2, in which
    all units are penalised up to this lambda before `decide` picks; 0: GReg-1, in which it picks at the start.
    `kept`: lambda of the units that stay, once picked in GReg-2. `ratio`: the penalty of an axis stops growing where the
    mean size of the weights that stay is that many times the mean size of those that go. `scales`: biases and norms of
    a unit are penalised with its weights; the code penalises weights alone, which a batch norm behind them undoes.
    """

    grow: float = 1e-4
    every: int = 5
    most: float = 1.0
    settle: int = 40_000
    pick: float = 0.0
    kept: float = -1e-4
    ratio: float = 1000.0
    scales: bool = False

    def __post_init__(self) -> None:
        if self.grow <= 0 or self.every < 1 or self.most <= 0 or self.settle < 0 or self.pick < 0 or self.ratio <= 1:
            found = f"grow={self.grow}, every={self.every}, most={self.most}, settle={self.settle}, pick={self.pick}"
            raise SecateurError("growing regularisation", found, "give positive numbers, and a ratio above 1")


class GrowingPenalty:
    """The hook of GReg-1 and GReg-2: `decide` picks what goes, and a growing penalty empties it before it is cut.

    `done` says when the penalty has reached its end and has stood there. `decide` of the paper is L1 at given rates,
    ``lambda model: allocate.uniform(axes, score(axes, criteria.l1(model, group=False)), 0.5)``.
    `axes_plan` is a plan that names every axis which may be cut (its widths do not matter): GReg-2 needs it before it picks.

    Source: Wang et al., 2021 (Neural Pruning via Growing Regularization), algorithm 1, and the authors' code. The ratio is
    taken per axis with momentum 0.9, as there.
    """

    def __init__(
        self, model: nn.Module, decide: Decide, settings: GrowingSettings | None = None, *, axes_plan: Plan | None = None
    ) -> None:
        self.model, self.decide, self.settings = model, decide, settings or GrowingSettings()
        self.step, self.reached, self.ratios = 0, -1, dict[str, float]()
        self.strength = 0.0
        self.picked: Plan | None = None
        self.stopped: dict[str, float] = {}
        if self.settings.pick and axes_plan is None:
            raise SecateurError("GReg-2", "no axes to penalise before it picks", "give axes_plan, a plan that cuts them all")
        self.every_cut = cuts_of(axes_plan, "GReg-2") if axes_plan is not None else ()
        if not self.settings.pick:
            self._pick()

    @property
    def done(self) -> bool:
        """Has the penalty stood at its end for as long as it shall?"""
        return self.reached >= 0 and self.step - self.reached >= self.settings.settle

    def loss(self) -> float:
        """0: the penalty acts in `after_backward`."""
        return 0.0

    @torch.no_grad()
    def after_backward(self) -> None:
        """Add lambda * w to the gradients of what shall go, and of all units before it is picked."""
        if self.picked is None:
            for cut in self.every_cut:
                self._push(cut, tuple(range(cut.units)), self.strength)
            return
        for cut in cuts_of(self.picked, "growing regularisation"):
            self._push(cut, cut.dropped, self.stopped.get(cut.axis, self.strength))
            if self.settings.pick and self.settings.kept:
                self._push(cut, cut.kept, self.settings.kept)

    def after_step(self) -> None:
        """Count the step; let the penalty grow, pick, or stand."""
        self.step += 1
        if self.step % self.settings.every or self.reached >= 0:
            return
        limit = self.settings.pick if self.picked is None else self.settings.most
        self.strength = min(self.strength + self.settings.grow, limit)
        if self.picked is None:
            if self.strength >= limit:
                self._pick()
            return
        self._compare()
        if self.strength >= limit or len(self.stopped) == len(cuts_of(self.picked, "growing regularisation")):
            self.reached = self.step

    def plan(self) -> Plan:
        """What was picked; before that, what `decide` says now."""
        return self.picked if self.picked is not None else self.decide(self.model)

    def state_dict(self) -> dict[str, Any]:
        """Steps, penalties, what was picked, and the settings they belong to."""
        return {
            "step": self.step,
            "reached": self.reached,
            "strength": self.strength,
            "stopped": dict(self.stopped),
            "ratios": dict(self.ratios),
            "picked": None if self.picked is None else dumps(self.picked),
            "settings": asdict(self.settings),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`. Raises `SecateurError` where it belongs to other settings."""
        mine: Mapping[str, Any] = asdict(self.settings)
        if wrong := [name for name in mine if state["settings"].get(name) != mine[name]]:
            found = f"{wrong[0]} {state['settings'].get(wrong[0])!r} where the hook has {mine[wrong[0]]!r}"
            raise SecateurError("going on with growing regularisation", found, "make the hook as it was when it was saved")
        self.step, self.reached = int(state["step"]), int(state["reached"])
        self.strength, self.stopped, self.ratios = state["strength"], dict(state["stopped"]), dict(state["ratios"])
        self.picked = None if state["picked"] is None else loads(state["picked"])

    def _pick(self) -> None:
        self.picked = self.decide(self.model)
        self.strength = 0.0 if not self.settings.pick else self.strength
        cuts_of(self.picked, "growing regularisation")

    def _push(self, cut: Any, units: tuple[int, ...], strength: float) -> None:
        for parameter, dim, entries in written(self.model, cut, units, scales=self.settings.scales):
            if parameter.grad is not None:
                part = parameter.index_select(dim, entries)
                parameter.grad.index_add_(dim, entries, part, alpha=strength)

    @torch.no_grad()
    def _compare(self) -> None:
        """Where what goes is small enough beside what stays, its penalty stands."""
        assert self.picked is not None
        for cut in cuts_of(self.picked, "growing regularisation"):
            if cut.axis in self.stopped:
                continue
            stays, goes = (self._size(cut, units) for units in (cut.kept, cut.dropped))
            now = float(stays / goes.clamp_min(1e-30))
            self.ratios[cut.axis] = 0.9 * self.ratios.get(cut.axis, now) + 0.1 * now
            if self.ratios[cut.axis] > self.settings.ratio:
                self.stopped[cut.axis] = self.strength

    def _size(self, cut: Any, units: tuple[int, ...]) -> Tensor:
        """Mean absolute weight of `units`."""
        parts = [p.index_select(dim, at).abs().flatten() for p, dim, at in written(self.model, cut, units, scales=False)]
        return torch.cat(parts).mean() if parts else torch.zeros(())
