"""Trained rank pruning: a network that is trained at low rank, and becomes products at the end without a loss.

Xu et al., 2020, "TRP: Trained Rank Pruning for Efficient Deep Neural Networks", eq. 2 to 6.
Shape legend: O out, I in, K kernel; B matrices of sides M <= N in a stack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn, optim

from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.linalg import stack, truncate, unstack
from secateur.surgery import fold, unfold
from secateur.train.trp_layers import Layer, layers_of
from secateur.train.trp_plan import plan_of
from secateur.train.trp_settings import Deploy, TRPSettings, settings_of

_MOMENTA = ("momentum_buffer", "exp_avg")


class TRP:
    """The hook: weights are truncated every `every` steps, gradients get lambda * U V^T, and `plan()` reads off ranks.

    Eq. 2 has a step whose number divides by m run at truncated weights, the first one included: making the hook
    truncates the weights of `model` in place, and `after_step` does so where the next step is such a one. The numbers of
    steps are global. No step reads a number from the device; on CUDA the eigenvectors of a truncation wait for it themselves.

    `settings` is "paper", "code" or a `TRPSettings`; its fields can be given by name. `ignore` takes shell patterns of
    layer names. `optimizer` is needed for `project_momentum` alone. Grouped convolutions, weights that are shared and
    subclasses of a convolution stay as they are. To resume, make the hook first and load weights and state afterwards.

    Raises `SecateurError` for settings that are none and where no layer is left.

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
        self.model, self.optimizer = model, optimizer
        self.settings = settings_of(settings, changes)
        if self.settings.project_momentum and optimizer is None:
            raise SecateurError("TRP with project_momentum", "no optimizer", "give TRP(..., optimizer=optimizer)")
        self.layers: tuple[Layer, ...] = layers_of(model, self.settings, ignore)
        self.step = 0
        self._polar: dict[str, Tensor] = {}
        self._truncate()

    def loss(self) -> float:
        """0: the nuclear norm acts through its sub-gradient, in `after_backward`."""
        return 0.0

    def after_backward(self) -> None:
        """Add lambda * U V^T to the gradients of this step, where the settings say so."""
        if not self.settings.nuclear or (self.settings.nuclear_on == "truncation" and self.step % self.settings.every):
            return
        with torch.no_grad():
            for layer in self.layers:
                gradient = layer.weight.grad
                if gradient is not None:
                    gradient.add_(self._polar[layer.name], alpha=self.settings.nuclear)

    def after_step(self) -> None:
        """Count the step; truncate where the next one is to run at truncated weights."""
        self.step += 1
        if self.step % self.settings.every == 0:
            self._truncate()

    def plan(self, deploy: Deploy | None = None, *, example: Any = None) -> Plan:
        """The plan that turns every layer into a product of the rank it has, where that takes fewer operations.

        `deploy` overrides that of the settings: {"energy": 0.98} keeps that share of each layer's energy, {"value": 0.05}
        singular values from there on, {"rank": 8} that many, {"macs": 0.5} or {"params": 0.5} as much energy as the
        budget allows, the same share in all layers. `example` is an input, needed for "macs". Where a layer has several
        matrices (network decoupling), the largest rank serves all.
        """
        return plan_of(self.model, self.layers, self.settings, deploy or self.settings.deploy, example=example)

    def state_dict(self) -> dict[str, Any]:
        """The number of steps, the polar factors of the last truncation, and the settings they belong to."""
        polar = {name: value.clone() for name, value in self._polar.items()}
        return {"step": self.step, "polar": polar, "settings": {**asdict(self.settings), "deploy": dict(self.settings.deploy)}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`. Raises `SecateurError` where it belongs to other layers or settings."""
        mine = self.state_dict()
        do = "make the hook with the settings and the model it was saved with"
        for name, value in mine["settings"].items():
            if state["settings"].get(name) != value:
                found = f"{name} {state['settings'].get(name)!r} where the hook has {value!r}"
                raise SecateurError("going on with TRP", found, do)
        shapes = [{name: tuple(value.shape) for name, value in of["polar"].items()} for of in (mine, state)]
        if shapes[0] != shapes[1]:
            names = sorted(name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name))
            raise SecateurError("going on with TRP", f"layer {names[0]!r} that does not fit", do)
        self.step = int(state["step"])
        for name, value in state["polar"].items():
            self._polar[name].copy_(value)

    @torch.no_grad()
    def _truncate(self) -> None:
        """T^z = TSVD(W; e) in place, for all layers of one shape at once, and the polar factors of what is kept."""
        discarded = 1 - self.settings.energy
        by_name = {layer.name: layer for layer in self.layers}
        for group in stack({layer.name: unfold(layer.weight, layer.format) for layer in self.layers}):
            kept, polar = truncate(group.matrices, discarded)
            for name, factors in unstack(group.parts, polar).items():
                layer = by_name[name]
                if self.settings.project_momentum:
                    self._project_momentum(layer, factors)
                self._polar[name] = fold(factors, layer.weight.shape, layer.format).contiguous()
            if discarded > 0:
                for name, matrices in unstack(group.parts, kept).items():
                    layer = by_name[name]
                    layer.weight.copy_(fold(matrices, layer.weight.shape, layer.format))

    def _project_momentum(self, layer: Layer, polar: Tensor) -> None:
        """Momentum without what lies outside the kept left and right singular vectors: P P^T V P^T P."""
        state: Mapping[str, Any] = self.optimizer.state.get(layer.weight, {}) if self.optimizer else {}
        for name in _MOMENTA:
            momentum = state.get(name)
            if isinstance(momentum, Tensor) and momentum.shape == layer.weight.shape:
                wide, factor = unfold(momentum, layer.format).to(polar.dtype), polar
                inside = factor @ (factor.mT @ wide @ factor.mT) @ factor
                momentum.copy_(fold(inside, momentum.shape, layer.format))
