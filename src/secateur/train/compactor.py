"""Compactors: a square matrix behind each batch norm learns which channels the network can do without (ResRep).

Shape legend: C channels of an axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.core.axes import Axes
from secateur.core.axis import Axis
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan


@dataclass(frozen=True)
class CompactorSettings:
    """How compactors are trained; defaults of the paper.

    `keep`: the share of a count ("macs", "params") at which no more channels are chosen. `penalty`: the group lasso on rows.
    After `start` steps, every `every` steps the `more` rows of smallest norm are chosen besides those chosen before.
    `lr` and `momentum` of the compactors' own optimizer. `least`: channels that every axis keeps.
    """

    keep: Mapping[str, float]
    penalty: float = 1e-4
    start: int = 2000
    every: int = 200
    more: int = 4
    lr: float = 0.01
    momentum: float = 0.99
    least: int = 1

    def __post_init__(self) -> None:
        if not self.keep or not all(0 < share <= 1 for share in self.keep.values()):
            raise SecateurError(f"compactors with keep={dict(self.keep)!r}", "no share", 'give for instance {"macs": 0.5}')
        if min(self.every, self.more, self.least) < 1 or self.start < 0 or self.lr <= 0:
            found = f"every={self.every}, more={self.more}, least={self.least}, start={self.start}, lr={self.lr}"
            raise SecateurError("compactors", found, "give whole numbers from 1, start from 0, lr above 0")


@dataclass(frozen=True, eq=False)
class Compactor:
    """The matrix of one axis: behind `norm`, whose input is the output of `writer`."""

    axis: Axis
    writer: nn.Module
    norm: _BatchNorm
    matrix: nn.Parameter  # (C, C)
    chosen: Tensor  # (C,) bool


class Compactors:
    """The hook: y = Q batchnorm(conv(x)) with Q of its own per axis; the rows of Q that a penalty empties are cut.

    An axis takes part where one layer writes it and one batch norm follows; the others stay. The gradient of a row is
    ``m * dL/dq + penalty * q / |q|``: for the rows chosen to go m is 0, so that the loss no longer holds them ("gradient
    resetting"). Q has an optimizer of its own here, run in `after_step`.

    `merge_()` folds every Q into its convolution and norm, which then put out the same in evaluation mode; cut by `plan()`
    afterwards. Raises `SecateurError` where no axis can take part.

    Source: Ding et al., 2021 (ResRep), eq. 4 to 8 and algorithm 1. There the plan takes rows of norm below 1e-5; here those
    that were chosen. The compactor of the paper is a 1 x 1 convolution, which is this matrix.
    """

    def __init__(self, model: nn.Module, axes: Axes, settings: CompactorSettings) -> None:
        self.model, self.axes, self.settings, self.step = model, axes, settings, 0
        self.compactors = [found for axis in axes.free if (found := _compactor(model, axis)) is not None]
        if not self.compactors:
            do = "give a network with batch norms behind its convolutions"
            raise SecateurError("compactors", "no axis with one writer and one batch norm behind it", do)
        for what in settings.keep:
            axes.count(what)
        self.optimizer = torch.optim.SGD([c.matrix for c in self.compactors], settings.lr, momentum=settings.momentum)
        self.handles = [handle for c in self.compactors for handle in _hooks(c)]

    def loss(self) -> float:
        """0: the penalty acts in `after_backward`."""
        return 0.0

    @torch.no_grad()
    def after_backward(self) -> None:
        """Reset the gradients of chosen rows, and add the penalty's to all."""
        for c in self.compactors:
            if c.matrix.grad is not None:
                norms = c.matrix.norm(dim=1, keepdim=True)
                c.matrix.grad.masked_fill_(c.chosen[:, None], 0)
                c.matrix.grad.add_(c.matrix / norms.clamp_min(1e-12), alpha=self.settings.penalty)

    def after_step(self) -> None:
        """Move the matrices; choose more rows where it is time."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        past = self.step - self.settings.start
        if past >= 0 and past % self.settings.every == 0 and not self.met():
            self._choose()

    def met(self) -> bool:
        """Are the chosen rows enough?"""
        widths = {c.axis.name: int((~c.chosen).sum()) for c in self.compactors}
        return all(self.axes.count(w, widths) <= share * self.axes.count(w) for w, share in self.settings.keep.items())

    def plan(self) -> Plan:
        """The plan that drops the chosen rows, for the model after `merge_`."""
        return self.axes.plan({c.axis.name: (~c.chosen).nonzero().flatten().tolist() for c in self.compactors})

    @torch.no_grad()
    def merge_(self) -> None:
        """Fold every matrix into the layer and the norm before it, and take the hooks away."""
        for handle in self.handles:
            handle.remove()
        self.handles = []
        for c in self.compactors:
            writer: Any = c.writer
            norm: Any = c.norm
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            constant = norm.bias - norm.running_mean * scale
            if writer.bias is not None:
                constant = constant + scale * writer.bias
                writer.bias.zero_()
            weight = writer.weight.flatten(1)
            writer.weight.copy_((c.matrix @ (scale[:, None] * weight)).reshape(writer.weight.shape))
            norm.running_mean.zero_()
            norm.running_var.fill_(1)
            norm.weight.fill_((1 + norm.eps) ** 0.5)
            norm.bias.copy_(c.matrix @ constant)
            c.matrix.copy_(torch.eye(len(c.matrix)))

    def state_dict(self) -> dict[str, Any]:
        """Steps, matrices, chosen rows, their optimizer, and the settings they belong to."""
        return {
            "step": self.step,
            "matrices": {c.axis.name: c.matrix.detach().clone() for c in self.compactors},
            "chosen": {c.axis.name: c.chosen.clone() for c in self.compactors},
            "optimizer": self.optimizer.state_dict(),
            "settings": {**asdict(self.settings), "keep": dict(self.settings.keep)},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`. Raises `SecateurError` where it belongs to other axes or settings."""
        do = "make the hook with the model and the settings it was saved with"
        mine = {**asdict(self.settings), "keep": dict(self.settings.keep)}
        if state["settings"] != mine:
            raise SecateurError("going on with compactors", "other settings", do)
        if {n: v.shape for n, v in state["matrices"].items()} != {c.axis.name: c.matrix.shape for c in self.compactors}:
            raise SecateurError("going on with compactors", "other axes", do)
        self.step = int(state["step"])
        with torch.no_grad():
            for c in self.compactors:
                c.matrix.copy_(state["matrices"][c.axis.name])
                c.chosen.copy_(state["chosen"][c.axis.name])
        self.optimizer.load_state_dict(state["optimizer"])

    @torch.no_grad()
    def _choose(self) -> None:
        """The `more` rows of smallest norm that are not chosen yet, of all axes together."""
        offers = []
        for number, c in enumerate(self.compactors):
            norms = c.matrix.norm(dim=1)
            open_ = (~c.chosen).nonzero().flatten().tolist()
            offers += sorted((float(norms[unit]), number, unit) for unit in open_)[: max(len(open_) - self.settings.least, 0)]
        for _, number, unit in sorted(offers)[: self.settings.more]:
            self.compactors[number].chosen[unit] = True
            if self.met():
                return


def _compactor(model: nn.Module, axis: Axis) -> Compactor | None:
    """The compactor of an axis; None where it has several writers or norms, or norms elsewhere."""
    writers = {slot.tensor.rpartition(".")[0] for slot in axis.writers() if slot.tensor.endswith("weight")}
    scales = {slot.tensor.rpartition(".")[0] for slot in axis.slots if slot.role == "scale" and slot.dim == 0}
    if len(writers) != 1 or len(scales) != 1 or axis.gate != "read":
        return None
    writer, norm = (model.get_submodule(names.pop()) for names in (writers, scales))
    held: Any = writer
    usable = isinstance(writer, (nn.Conv1d, nn.Conv2d, nn.Linear)) and getattr(writer, "groups", 1) == 1
    if not usable or not isinstance(norm, _BatchNorm) or norm.weight is None or norm.running_mean is None:
        return None
    if len(held.weight) != axis.units or norm.num_features != axis.units:
        return None
    matrix = nn.Parameter(torch.eye(axis.units, dtype=held.weight.dtype, device=held.weight.device))
    return Compactor(axis, writer, norm, matrix, torch.zeros(axis.units, dtype=torch.bool, device=held.weight.device))


def _hooks(compactor: Compactor) -> list[Any]:
    """The matrix behind the norm, and a look whether the norm does take the output of the writer."""
    last: list[Tensor] = []

    def note(module: nn.Module, args: Any, output: Tensor) -> None:
        last[:] = [output]

    def multiply(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if not last or args[0] is not last.pop():
            found = "a batch norm that does not stand right behind its layer"
            raise SecateurError(f"a compactor for axis {compactor.axis.name!r}", found, "ignore that axis, axes.ignore(...)")
        return torch.einsum("oc,bc...->bo...", compactor.matrix, output)

    return [compactor.writer.register_forward_hook(note), compactor.norm.register_forward_hook(multiply)]
