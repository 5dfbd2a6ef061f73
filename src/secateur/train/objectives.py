"""Losses by name, for the stages of a training.

Shape legend: B images of a batch, K classes, C channels, P positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.core.errors import SecateurError, nearest
from secateur.core.plan import Plan
from secateur.core.protocols import Loss
from secateur.core.running import call, evaluating, fits
from secateur.linalg.attention import feature_distance
from secateur.train.losses import answered, cross_entropy, distillation

LOSSES = ("cross_entropy", "label_smoothing", "kl", "logits", "features")
TAUGHT = ("kl", "logits")
"""Losses whose target is the pair `taught` makes."""


def objective(name: str, *, alpha: float = 0.5, temperature: float = 4.0, smoothing: float = 0.0) -> Loss:
    """The loss of that name.

    "cross_entropy"; "label_smoothing", the same with a smoothing of 0.1 unless another is given; "kl", `distillation` with
    the weight `alpha`; "logits", alpha times the mean squared difference of logits (Ba and Caruana, 2014) plus (1 - alpha)
    cross-entropy; "features", cross-entropy beside which a `FeatureMatching` hook goes.
    Raises `SecateurError` for another name, and for an `alpha` that is no share.
    """
    if name not in LOSSES:
        raise SecateurError(f"loss {name!r}", "no such loss", nearest(name, LOSSES))
    if name == "kl":
        return distillation(alpha, temperature, smoothing)
    if name == "logits":
        if not isinstance(alpha, (int, float)) or not 0 <= alpha <= 1:
            raise SecateurError(f"loss 'logits' with alpha={alpha!r}", "no share", "give a number from 0 to 1")
        return _logits(alpha, smoothing)
    return cross_entropy(smoothing or 0.1 if name == "label_smoothing" else smoothing)


def _logits(alpha: float, smoothing: float) -> Loss:
    def loss(output: Any, target: Any) -> Tensor:
        labels, logits = answered(output, target)
        plain = F.cross_entropy(output, labels, label_smoothing=smoothing)
        return alpha * F.mse_loss(output, logits.to(output.dtype)) + (1 - alpha) * plain

    return loss


class FeatureMatching:
    """A hook whose loss draws the features of `model` towards those of `teacher` on the same input.

    Of each named layer's output (B, C, ...) the mean square over channels is taken, (B, P), and normalised: maps of networks
    of different widths compare. An output of three dims is taken as tokens (B, N, C) where both networks have as many, as
    (B, C, P) otherwise. The loss is `weight` times the mean squared distance of these maps, summed over `layers`; one
    `SecateurError` where positions differ. Outputs of two dims (B, C) compare by the cosine where widths agree. `remove()`
    ends it.

    Source: Zagoruyko and Komodakis, 2017, eq. 2 (attention transfer, p = 2).
    """

    def __init__(self, model: nn.Module, teacher: nn.Module, layers: Sequence[str], weight: float = 1.0) -> None:
        if not layers:
            raise SecateurError("feature matching", "no layer", "name at least one layer of the network")
        require_teacher(model, teacher, layers)
        if not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
            raise SecateurError(f"feature matching with weight={weight!r}", "no weight", "give a number of at least 0")
        self.weight, self.layers, self._teacher, self._ran = weight, tuple(layers), teacher, False
        self._ours: dict[str, Tensor] = {}
        self._theirs: dict[str, Tensor] = {}
        self._handles = [model.register_forward_pre_hook(self._ask, with_kwargs=True)]
        for network, held in ((model, self._ours), (teacher, self._theirs)):
            for layer in layers:
                self._handles.append(network.get_submodule(layer).register_forward_hook(_keep(layer, held)))

    def loss(self) -> Tensor | float:
        """The distance at the last forward. Raises `SecateurError` where a layer put out no tensor then."""
        for layer in self.layers if self._ran else ():
            if layer not in self._ours or layer not in self._theirs:
                do = "name a layer that runs and puts out a tensor"
                raise SecateurError(f"features of layer {layer!r}", "no output of one tensor on this input", do)
        distances = [feature_distance(self._ours[layer], self._theirs[layer]) for layer in self._ours if layer in self._theirs]
        return self.weight * torch.stack(distances).sum() if distances else 0.0

    def remove(self) -> None:
        """Take the hooks off both networks."""
        for handle in self._handles:
            handle.remove()

    def after_backward(self) -> None:
        """Nothing."""

    def after_step(self) -> None:
        """Features of before the step are forgotten."""
        self._ran = False
        self._ours.clear()
        self._theirs.clear()

    def plan(self) -> Plan:
        """Nothing is decided."""
        return Plan({})

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to do."""

    def _ask(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module.training:
            self._ran = True
            with torch.no_grad(), evaluating(self._teacher), fits(kwargs or args, what="the teacher on inputs"):
                call(self._teacher, kwargs or args)


def require_teacher(model: nn.Module, teacher: nn.Module, layers: Sequence[str]) -> None:
    """Raise `SecateurError` where the teacher is no other model, or one of `layers` is not in both."""
    if teacher is model or not isinstance(teacher, nn.Module):
        found = "the network that is trained" if teacher is model else f"a {type(teacher).__name__}"
        raise SecateurError("the teacher of a training", found, "give another model, as a copy of it before the training")
    for network, whose in ((model, ""), (teacher, " of the teacher")):
        known = [name for name, _ in network.named_modules()]
        for layer in layers:
            if layer not in known:
                raise SecateurError(f"features of layer {layer!r}{whose}", "no such layer", nearest(layer, known[1:]))


def _keep(layer: str, held: dict[str, Tensor]):  # type: ignore[no-untyped-def]
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            held[layer] = output

    return hook
