"""Trained rank pruning: a network that is trained at low rank, and becomes products at the end without a loss.

Xu et al., 2020, "TRP: Trained Rank Pruning for Efficient Deep Neural Networks", eq. 2 to 6.
Shape legend: O out, I in, K kernel; B matrices of sides M <= N in a stack.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, cast

import torch
from torch import Tensor, nn, optim

from secateur.core.errors import SecateurError, nearest
from secateur.core.factor import full_ranks
from secateur.core.plan import Plan
from secateur.linalg import Stack, newton_schulz, stack, truncate, unstack
from secateur.surgery import fold, unfold
from secateur.train.trp.kernels import Kernels
from secateur.train.trp.layers import Layer, current, layers_of, require_numbers
from secateur.train.trp.momentum import project_momentum_
from secateur.train.trp.period import Periods
from secateur.train.trp.plan import plan_of
from secateur.train.trp.settings import Deploy, TRPSettings, settings_of


class TRP:
    """The hook: weights are truncated every `every` steps, gradients get lambda * U V^T, and `plan()` reads off ranks.

    Eq. 2 has a step whose number divides by m run at truncated weights, the first one included: making the hook
    truncates the weights of `model` in place, and `after_step` does so where the next step is such a one. The numbers of
    steps are global. No step reads a number from an accelerator; on CUDA the eigenvectors of a truncation wait for it
    themselves.

    `settings` is "paper", "code" or a `TRPSettings`; its fields can be given by name. `ignore` takes shell patterns of
    layer names. `optimizer` is needed where steps read its momentum or learning rate; `fit` and the callbacks attach
    theirs. Grouped convolutions, weights that are shared and subclasses of a convolution stay as they are. To resume, make
    the hook first and load weights and state afterwards.

    Raises `SecateurError` for settings that are none, where no layer is left, for weights that are not finite, and, later,
    where a layer is not in the model any more. Weights put in the place of others (``load_state_dict(assign=True)``) count.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    >>> method = TRP(net, energy=0.9, every=2, stem=True)
    >>> method.loss(), [product.format for step in method.plan({"rank": 2}).steps for product in step.products]
    (0.0, ['spatial', 'spatial'])
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TRPSettings | str = "paper",
        *,
        optimizer: optim.Optimizer | None = None,
        ignore: Sequence[str] = (),
        **changes: Any,
    ) -> None:
        self.model: nn.Module = model
        self.optimizer: optim.Optimizer | None = None
        self.settings = settings_of(settings, changes)
        self.layers: tuple[Layer, ...] = layers_of(model, self.settings, ignore)
        self.step = 0
        if optimizer is not None:
            self.attach(optimizer)
        self.periods = Periods(self.settings, [layer.name for layer in self.layers])
        self._by_name = {layer.name: layer for layer in self.layers}
        for name in self.settings.ranks or {}:
            if name not in self._by_name:
                raise SecateurError(
                    f"a rank for the layer {name!r}", "no layer TRP acts on", nearest(name, list(self._by_name))
                )
        self._polar: dict[str, Tensor] = {}
        self._kernels = Kernels()
        self._held: dict[str, Tensor] = {}  # weights as the last truncation left them, for adaptive periods
        self._last: dict[str, int] = {}
        require_numbers(self.layers)
        self._truncate(self.layers)

    def attach(self, optimizer: optim.Optimizer) -> None:
        """Take the optimizer whose momentum and learning rate the settings need.

        Raises `SecateurError` where they need one, and this one holds none of the layers: nothing would ever happen.
        """
        groups = getattr(optimizer, "param_groups", None)
        if groups is None:
            found = f"a value of type {type(optimizer).__name__}"
            raise SecateurError("an optimizer for TRP", found, "give one of torch.optim")
        self._follow()
        held = {id(p) for group in groups for p in group["params"]}
        trained = {id(layer.weight) for layer in self.layers if layer.weight.requires_grad}
        if self.settings.needs_optimizer and trained and held.isdisjoint(trained):
            do = "give the optimizer that trains this model"
            raise SecateurError("an optimizer for TRP", "one that holds none of the layers TRP acts on", do)
        self.optimizer = optimizer

    def loss(self) -> float:
        """0: the nuclear norm acts through its sub-gradient, in `after_backward`."""
        return 0.0

    def after_backward(self) -> None:
        """Add lambda * U V^T to the gradients of this step, where the settings say so."""
        settings = self.settings
        if not settings.nuclear or settings.nuclear_by != "gradient":
            return
        self._follow()
        pairs = [
            (layer.weight.grad, self._polar_of(layer))
            for layer in self.layers
            if layer.weight.grad is not None and (settings.nuclear_on == "step" or self.step == self._last[layer.name])
        ]
        if pairs:
            with torch.no_grad():
                torch._foreach_add_([gradient for gradient, _ in pairs], [push for _, push in pairs], alpha=settings.nuclear)

    def after_step(self) -> None:
        """Count the step; truncate where the next one is to run at truncated weights.

        Raises `SecateurError` where the settings need an optimizer and none is known.
        """
        if self.settings.needs_optimizer and self.optimizer is None:
            found = "no optimizer, whose momentum or learning rate these settings need"
            raise SecateurError("a step of TRP", found, "give TRP(..., optimizer=optimizer)")
        self._follow()
        self.step += 1
        if self.settings.nuclear and self.settings.nuclear_by == "decay":
            self._decay()
        due = [layer for layer in self.layers if self.periods.due(layer.name, self.step)]
        if due:
            self._truncate(due)

    def plan(self, deploy: Deploy | None = None, *, example: Any = None) -> Plan:
        """The plan that turns every layer into a product of the rank it has, where that takes fewer operations.

        `deploy` overrides that of the settings: {"energy": 0.98} keeps that share of each layer's energy, {"value": 0.05}
        singular values from there on, {"rank": 8} that many, {"macs": 0.5} or {"params": 0.5} as much energy as the
        budget allows, the same share in all layers. `example` is an input, needed for "macs"; with it, layers that its
        forward never calls stay whole. Of several matrices in a layer (network decoupling), the largest rank serves all.
        """
        self._follow()
        deploy = self.settings.deploy if deploy is None else deploy
        return plan_of(self.model, self.layers, self.settings, deploy, example=example)

    def state_dict(self) -> dict[str, Any]:
        """Steps and periods, the last truncation's polar factors and vectors, and the settings they belong to."""
        values = {entry.name: getattr(self.settings, entry.name) for entry in fields(self.settings)}
        settings = {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
        return {
            "step": self.step,
            "last": dict(self._last),
            "periods": self.periods.state(),
            "polar": {name: value.clone() for name, value in self._polar.items()},
            "held": {name: value.clone() for name, value in self._held.items()},
            "bases": self._kernels.state(),
            "settings": settings,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`. Raises `SecateurError` where it belongs to other layers or settings."""
        mine = self.state_dict()
        do = "make the hook with the settings and the model it was saved with"
        if missing := [name for name in mine if not isinstance(state, dict) or name not in state]:
            raise SecateurError("going on with TRP", f"a {type(state).__name__} without {missing[0]!r}", do)
        for name, value in mine["settings"].items():
            if state["settings"].get(name) != value:
                found = f"{name} {state['settings'].get(name)!r} where the hook has {value!r}"
                raise SecateurError("going on with TRP", found, do)
        shapes = [
            {name: tuple(value.shape) for part in ("polar", "held") for name, value in of[part].items()}
            | dict.fromkeys(of["last"])
            for of in (mine, state)
        ]
        if shapes[0] != shapes[1]:
            names = sorted(name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name, 0) != shapes[1].get(name, 0))
            raise SecateurError("going on with TRP", f"layer {names[0]!r} that does not fit", do)
        self.step, self._last = int(state["step"]), dict(state["last"])
        self.periods.load(state["periods"])
        for part, held in (("polar", self._polar), ("held", self._held)):
            for name, value in state[part].items():
                held[name].copy_(value)
        self._kernels.load(state["bases"], self._by_name)

    def _follow(self) -> None:
        """Act on the weights the model holds now."""
        layers = current(self.model, self.layers)
        if layers is not self.layers:
            self.layers, self._by_name = layers, {layer.name: layer for layer in layers}

    def _polar_of(self, layer: Layer) -> Tensor:
        """The push on `layer`, on the device the layer has moved to since."""
        if self._polar[layer.name].device != layer.weight.device:
            self._polar[layer.name] = self._polar[layer.name].to(layer.weight.device)
        return self._polar[layer.name]

    @torch.no_grad()
    def _truncate(self, layers: Sequence[Layer]) -> None:
        """T^z = TSVD(W; e) in place, for all of `layers` of one shape at once, and the polar factors of what is kept."""
        settings, discarded = self.settings, 1 - self.settings.energy
        if settings.adaptive and self.step:
            self.periods.adapt({layer.name: (layer.weight, self._held[layer.name]) for layer in layers}, self.step, self._last)
        pushes = settings.nuclear > 0 and settings.nuclear_by == "gradient"
        left = layers
        if discarded > 0 and not settings.project_momentum and settings.nuclear_by != "proximal":
            left = self._kernels.truncate(layers, discarded, self._highest, self._polar if pushes else None)
        for group, names in self._stacks(left):
            with _solvable([self._by_name[name] for name in names]):
                found = truncate(
                    group.matrices,
                    discarded,
                    most=self._most(group),
                    shrink=self._shrink(group),
                    polar=pushes or settings.project_momentum,
                    basis=self._kernels.stacked.get(names),
                )
            if found.basis is not None and discarded > 0:
                self._kernels.keep(group, [self._by_name[name] for name in names], found.basis)
            if found.polar is not None:
                self._use_polar(group, found.polar, pushes)
            if found.kept is not group.matrices:
                pairs = list(self._parts(group, found.kept))
                kept = [fold(matrices, layer.weight.shape, layer.format) for layer, matrices in pairs]
                torch._foreach_copy_([layer.weight for layer, _ in pairs], kept)
        for layer in layers:
            self._last[layer.name] = self.step
            if settings.adaptive:
                self._held[layer.name] = layer.weight.detach().clone()

    def _use_polar(self, group: Stack, polar: Tensor, pushes: bool) -> None:
        for layer, factors in self._parts(group, polar):
            if self.settings.project_momentum and self.optimizer is not None:
                project_momentum_(self.optimizer, layer, factors)
            if pushes:
                self._polar[layer.name] = fold(factors, layer.weight.shape, layer.format).contiguous()

    @torch.no_grad()
    def _decay(self) -> None:
        """W <- W - lr * lambda * U V^T by Newton-Schulz, after the step and past the optimizer."""
        for group, _ in self._stacks(self.layers):
            push = newton_schulz(group.matrices, quintic=5, cubic=2)
            for layer, factors in self._parts(group, push):
                strength = self._lr(layer) * self.settings.nuclear
                layer.weight.sub_(fold(factors, layer.weight.shape, layer.format), alpha=strength)

    def _stacks(self, layers: Sequence[Layer]) -> Iterator[tuple[Stack, tuple[str, ...]]]:
        """Stacks of the layers' matrices, each with the names of its layers."""
        for group in stack({layer.name: unfold(layer.weight.detach(), layer.format) for layer in layers}):
            yield group, tuple(part.name for part in group.parts)

    def _parts(self, group: Stack, matrices: Tensor) -> Iterator[tuple[Layer, Tensor]]:
        for name, part in unstack(group.parts, matrices).items():
            yield self._by_name[name], part

    def _most(self, group: Stack) -> Tensor | None:
        """The highest rank (B,) of each matrix at this step."""
        ranks = [(self._highest(part.name), part.rows) for part in group.parts]
        rows = [rank for rank, number in ranks if rank is not None for _ in range(number)]
        return torch.tensor(rows, device=group.matrices.device) if rows else None

    def _highest(self, name: str) -> int | None:
        """The highest rank of a layer at this step, from its full one down to that of the settings, by a cube."""
        wanted, descent = self.settings.ranks, self.settings.descent
        if wanted is None:
            return None
        left = max(0.0, 1 - self.step / descent) ** 3 if descent else 0.0
        layer = self._by_name[name]
        full = full_ranks(layer.format, tuple(layer.weight.shape))[0]
        least = min(wanted.get(name, full), full)
        return least + round((full - least) * left)

    def _shrink(self, group: Stack) -> Tensor | None:
        """What each singular value (B,) loses to the proximal nuclear norm."""
        settings = self.settings
        if not settings.nuclear or settings.nuclear_by != "proximal" or self.step == 0:
            return None
        rows = [
            self._lr(self._by_name[part.name]) * settings.nuclear * (self.step - self._last[part.name])
            for part in group.parts
            for _ in range(part.rows)
        ]
        return torch.tensor(rows, device=group.matrices.device)

    def _lr(self, layer: Layer) -> float:
        """The learning rate of the layer's weight; 0 for one that is frozen or the optimizer does not hold."""
        groups: list[Mapping[str, Any]] = cast(Any, self.optimizer).param_groups
        if not layer.weight.requires_grad:
            return 0.0
        return next((float(g["lr"]) for g in groups if any(p is layer.weight for p in g["params"])), 0.0)


@contextmanager
def _solvable(layers: Sequence[Layer]) -> Iterator[None]:
    """Around an eigenproblem, which has no answer where training has diverged: `SecateurError` says so."""
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        require_numbers(layers)
        asked, do = f"a truncation of {', '.join(layer.name for layer in layers)}", "lower the learning rate"
        raise SecateurError(asked, "weights too large to be squared", do) from error
