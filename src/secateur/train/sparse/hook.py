"""Sparse training: masks that change on a schedule while weights train, as one hook for a whole family of methods.

What differs between methods is said by values: when and how far (`Ramp`), where (`Layout`), what grows (`Growth`), the rank
term (`Rank`), and whether pruned weights go on learning (`soft`). `secateur.train.sparse.methods` names the published
combinations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn, optim

from secateur.core.errors import SecateurError
from secateur.core.plan import Plan, mask
from secateur.surgery import fingerprint, masks_after
from secateur.train.sparse.agree import agree
from secateur.train.sparse.ramp import Ramp
from secateur.train.sparse.rank import Rank, RankTerm
from secateur.train.sparse.select import Layout, choose, counts_of, largest, to_entries, to_units
from secateur.train.sparse.soft import Soft
from secateur.train.sparse.weights import Weight, weights_of


@dataclass(frozen=True)
class Growth:
    """In each change of the masks a share of every layer's entries, the smallest, is dropped and as many grow elsewhere.

    `drop` is that share at the start of training, and falls as a cosine. The largest |score| grows: the task's gradient,
    with the rank term where there is one, or a random number. New entries begin at 0. `skip_step`: a step that changes
    masks does not move weights (RigL's and RPG's code; not together with a gradient scaler, which wants gradients).
    """

    drop: float = 0.3
    score: Literal["gradient", "random"] = "gradient"
    skip_step: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.drop <= 1 or self.score not in ("gradient", "random"):
            found = f"drop={self.drop!r}, score={self.score!r}"
            raise SecateurError("growth", found, 'give a share from 0 to 1, and "gradient" or "random"')


class Sparse:
    """The hook. Weights outside the masks, their gradients and their momentum are exact zeros after every step.

    Masks change in `after_backward`, where gradients of all entries are at hand; with `soft` in `after_step`. Give
    `optimizer` to have its momentum masked (`secateur.train.fit` attaches its own). `ramp` None never changes the masks of
    `plan`, with which training starts (all entries without one). `start` says where a constant ramp begins: with the
    "largest" weights, or "random" ones. `dense` names what stays dense.

    With `soft` (ST-3) the model holds thresholded weights between steps, so it can be tested at any time, and the hook the
    dense ones, which the optimizer moves: gradients pass straight through. Under data parallelism masks follow rank 0. To
    resume, make the hook first and load weights and state afterwards.
    """

    def __init__(
        self,
        model: nn.Module,
        ramp: Ramp | None,
        *,
        optimizer: optim.Optimizer | None = None,
        layout: Layout | None = None,
        growth: Growth | None = None,
        rank: Rank | None = None,
        soft: bool = False,
        plan: Plan | None = None,
        start: Literal["largest", "random"] = "largest",
        dense: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        self.model, self.optimizer, self.ramp = model, optimizer, ramp
        self.layout, self.growth = layout or Layout(), growth
        if ramp is not None:
            self.layout.require(ramp.keep)
        if self.layout.of_group and (growth or soft):
            do = "use blocks, or leave growth and soft thresholds out"
            raise SecateurError(f"sparse training with the pattern {self.layout.pattern!r}", "growth or soft thresholds", do)
        if soft and (self.layout.block != (1, 1) or self.layout.occupancy):
            found = f"the pattern {self.layout.pattern!r}" if self.layout.pattern else f"occupancy {self.layout.occupancy}"
            do = "leave it out: a threshold keeps the largest entries, wherever they are"
            raise SecateurError("soft thresholds", found, do)
        if soft and (growth or (rank and rank.acts == "growth")):
            do = 'leave growth out, and let the rank term act in each "step"'
            raise SecateurError("soft thresholds", "growth, which they do themselves", do)
        self.weights: tuple[Weight, ...] = weights_of(model, dense, self.layout.fits)
        self._term = RankTerm(rank, self.weights) if rank is not None and rank.strength else None
        self._random = torch.Generator().manual_seed(seed)
        self.step, self.masks = 0, {w.name: torch.ones_like(w.tensor, dtype=torch.bool) for w in self.weights}
        self.rank, self.seed, self.start = rank, seed, start
        self.soft, self._soft = soft, Soft(self.weights, self.layout.allocation) if soft else None
        if plan is not None:
            self._take(plan)
        elif ramp is not None and ramp.shape == "constant":
            self.masks = self._chosen(ramp.keep, {w.name: self._score(w, start) for w in self.weights})
        self._settle()

    def attach(self, optimizer: optim.Optimizer) -> None:
        """Mask the momentum of this optimizer from here on."""
        self.optimizer = optimizer

    @property
    def density(self) -> float:
        """The share of all entries it acts on that the masks keep."""
        kept = sum(int(mask.sum()) for mask in self.masks.values())
        return kept / sum(mask.numel() for mask in self.masks.values())

    def loss(self) -> float:
        """0: the rank term acts through its gradient, in closed form."""
        return 0.0

    @torch.no_grad()
    def after_backward(self) -> None:
        """The rank term, a change of masks where one is due, and masked gradients."""
        step, term = self.step + 1, self._term
        if not self.step:
            self.masks = agree(self.masks)  # processes may have drawn other random numbers, or read other plans
            self._settle()
        if term is not None and term.settings.acts == "step":
            for weight, push in self._pushes(fresh=self.step % term.settings.every == 0).items():
                weight.tensor.grad.add_(push)  # type: ignore[union-attr]
        if self._soft is not None:
            self._soft.restore()
            return
        if self.ramp is not None and self.ramp.due(step):
            self._change(step, self.ramp.density(step), self.ramp.dropped(self.growth.drop, step) if self.growth else 0.0)
            self._settle()
            if self.growth is not None and self.growth.skip_step:
                for parameter in self.model.parameters():
                    parameter.grad = None
        for weight in self.weights:
            if weight.tensor.grad is not None:
                weight.tensor.grad.mul_(self.masks[weight.name])

    @torch.no_grad()
    def after_step(self) -> None:
        """Weights and momentum outside the masks are zero again; soft thresholds are taken anew."""
        self.step += 1
        if self._soft is None:
            self._settle()
            return
        self._soft.keep()
        ramp = self.ramp
        if ramp is not None and ramp.due(self.step):
            self.masks = agree(self._chosen(ramp.density(self.step), {w.name: w.tensor.abs() for w in self.weights}))
            self._soft.threshold(self.masks)
        self._soft.show()
        if ramp is not None and self.step >= max(ramp.freeze * ramp.steps, ramp.last):
            self._soft = None  # what the model computes with is what trains from here on
            self._settle()

    def plan(self) -> Plan:
        """The plan that sets what the masks leave out to zero."""
        return mask(fingerprint(self.model), self.masks)

    def state_dict(self) -> dict[str, Any]:
        """Steps, masks, dense weights behind soft thresholds, subspaces, random numbers, and the settings of all that."""
        return {
            "step": self.step,
            "settings": self._settings(),
            "masks": {name: value.clone() for name, value in self.masks.items()},
            "soft": self._soft.state_dict() if self._soft else {},
            "rank": self._term.state_dict() if self._term else {},
            "random": self._random.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`. Raises `SecateurError` where it belongs to other layers or settings."""
        mine, do = self._settings(), "make the hook with the settings and the model it was saved with"
        for name, value in mine.items():
            if state["settings"].get(name) != value:
                found = f"{name} {state['settings'].get(name)!r} where the hook has {value!r}"
                raise SecateurError("going on with sparse training", found, do)
        shapes = [{name: tuple(value.shape) for name, value in of.items()} for of in (self.masks, state["masks"])]
        if shapes[0] != shapes[1]:
            names = sorted(name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name))
            raise SecateurError("going on with sparse training", f"layer {names[0]!r} that does not fit", do)
        self.step = int(state["step"])
        self.masks = {name: state["masks"][name].to(value.device) for name, value in self.masks.items()}
        self._random.set_state(state["random"].cpu())
        if self._soft is not None:
            self._soft.load_state_dict(state["soft"]) if state["soft"] else None
            self._soft = self._soft if state["soft"] else None
        if self._term is not None:
            self._term.load_state_dict(state["rank"])

    def _pushes(self, *, fresh: bool = True) -> dict[Weight, Tensor]:
        """What the rank term adds to the gradient of each weight that has one."""
        if (term := self._term) is None:
            return {}
        found = term.gradients(fresh=fresh)
        pairs = ((weight, weight.tensor.grad) for weight in term.weights)
        return {weight: term.beside(found[weight.name], grad) for weight, grad in pairs if grad is not None}

    def _change(self, step: int, keep: float, drop: float) -> None:
        """New masks: the largest weights in the number `keep` asks for, less the dropped ones, and what grows."""
        layout, growth = self.layout, self.growth
        units = {w.name: to_units(w.tensor.abs(), layout.block) for w in self.weights}
        counts = counts_of(units, keep, layout.allocation, least=layout.occupancy)
        acts = growth is not None and self.rank is not None and self.rank.acts == "growth"
        pushes = {weight.name: push for weight, push in self._pushes().items()} if acts else {}
        masks: dict[str, Tensor] = {}
        for weight in self.weights:
            size, count = units[weight.name], counts[weight.name]
            moved = min(int(drop * count), size.numel() - count)
            best = choose(size, count, layout)
            if moved:
                weight.tensor.mul_(to_entries(best, weight.tensor.shape, layout.block))
                best = choose(size.masked_fill(~best, -1), count - moved, layout)
                score = self._score(weight, growth.score if growth else "random", pushes.get(weight.name))
                grown = to_units(score, layout.block)
                best |= largest(grown.masked_fill(best, -1), moved)
            masks[weight.name] = to_entries(best, weight.tensor.shape, layout.block)
        self.masks = agree(masks)

    def _chosen(self, keep: float, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Masks of the best scores."""
        units = {name: to_units(value, self.layout.block) for name, value in scores.items()}
        counts = counts_of(units, keep, self.layout.allocation, least=self.layout.occupancy)
        return {
            name: to_entries(choose(value, counts[name], self.layout), scores[name].shape, self.layout.block)
            for name, value in units.items()
        }

    def _score(self, weight: Weight, by: str, push: Tensor | None = None) -> Tensor:
        """Scores of entries: |weight|, |gradient + push| or random numbers, the same on every device and process."""
        if by == "random":
            return torch.rand(weight.tensor.shape, generator=self._random).to(weight.tensor.device)
        if by == "gradient":
            gradient = weight.tensor.grad
            gradient = torch.zeros_like(weight.tensor) if gradient is None else gradient.detach()
            return (gradient if push is None else gradient + push).abs()
        return weight.tensor.detach().abs()

    @torch.no_grad()
    def _settle(self) -> None:
        """Zeros outside the masks, in weights and in the optimizer's state."""
        if self._soft is not None:
            return
        for weight in self.weights:
            mask = self.masks[weight.name]
            weight.tensor.mul_(mask)
            for value in self.optimizer.state.get(weight.tensor, {}).values() if self.optimizer is not None else ():
                if isinstance(value, Tensor) and value.shape == mask.shape:
                    value.mul_(mask)

    def _take(self, plan: Plan) -> None:
        """Begin with the masks of `plan`, which leaves shapes as they are."""
        plan.check(self.model)
        known = masks_after(plan)
        for weight in self.weights:
            if weight.name in known:
                self.masks[weight.name] = torch.from_numpy(known[weight.name]).to(weight.tensor.device)

    def _settings(self) -> dict[str, Any]:
        """What a resumed run must share, as plain values."""
        values = {"ramp": self.ramp, "layout": self.layout, "growth": self.growth, "rank": self.rank}
        plain = {name: None if value is None else asdict(value) for name, value in values.items()}
        return {**plain, "soft": self.soft, "start": self.start, "seed": self.seed}
