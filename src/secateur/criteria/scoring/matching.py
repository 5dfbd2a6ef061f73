"""Feature matching for a Scoring Net: layers of the gated network against the same layers of the full one.

Shape legend: B images of a batch, C channels, N units of an axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateur.core.axes import Axes
from secateur.core.errors import SecateurError, nearest
from secateur.core.running import call, evaluating
from secateur.linalg.attention import feature_distance

Held = dict[str, Tensor]


class Matching:
    """What `layers` of the full network put out on each batch, and how far those of the gated one are from it.

    Gates act where a unit is read, so a gated layer still puts out what the cut one would not: each channel is multiplied by
    the gate of its unit before maps are compared, as if the layer had been cut.
    """

    def __init__(self, model: nn.Module, axes: Axes, layers: Sequence[str], example: Any) -> None:
        modules = dict(model.named_modules())
        for layer in layers:
            if layer not in modules:
                raise SecateurError(f"features of layer {layer!r}", "no such layer", nearest(layer, list(modules)[1:]))
        self.layers = tuple(layers)
        self.full: list[Held] = []  # filled by `prepare`, batch after batch
        with evaluating(model), torch.no_grad(), watching(model, self.layers) as held:
            call(model, example)
        for layer in layers:
            if layer not in held:
                found = "no output of one tensor on this input"
                raise SecateurError(f"features of layer {layer!r}", found, "name a layer that runs and puts out a tensor")
        self.passes, self.where = 1, dict[str, tuple[str | None, int]]()
        for layer in layers:
            self.where[layer], tried = _where(model, axes, layer, held[layer], example)
            self.passes += tried

    def distance(self, held: Mapping[str, Tensor], gates: Mapping[str, Tensor], batch: int, layers: Sequence[str]) -> Tensor:
        """The distances of `layers` on batch number `batch`, added up; `held` is what the gated network put out."""
        total = []
        for layer in layers:
            ours, (axis, dim) = held[layer], self.where[layer]
            if axis is not None and axis in gates:
                ours = ours * gates[axis].to(ours).reshape([-1 if d == dim else 1 for d in range(ours.dim())])
            total.append(feature_distance(ours, self.full[batch][layer], dim if axis else None).float())
        return torch.stack(total).sum()


@contextmanager
def watching(model: nn.Module, layers: Sequence[str]) -> Iterator[Held]:
    """A table that holds what each of `layers` of `model` put out last, as long as the context lasts."""
    held: Held = {}
    modules, handles = dict(model.named_modules()), []
    for layer in layers:
        handles.append(modules[layer].register_forward_hook(_keep(layer, held)))
    try:
        yield held
    finally:
        for handle in handles:
            handle.remove()


def _keep(layer: str, held: Held) -> Callable[..., None]:
    def hook(module: nn.Module, args: object, output: object) -> None:
        if isinstance(output, Tensor):
            held[layer] = output

    return hook


def _where(model: nn.Module, axes: Axes, layer: str, features: Tensor, example: Any) -> tuple[tuple[str | None, int], int]:
    """The free axis whose units are channels of that layer's output and the dim they are in, and how many passes that took.

    Found by cutting one unit of each axis that fits. Where there is none, the output is of fixed width.
    """
    tried = 0
    for axis in axes.free:
        if axis.units not in features.shape[1:] or axis.units <= max(axis.fewest, 1):
            continue
        small = axes.plan({axis.name: tuple(range(axis.units - 1))}).apply(model)
        with evaluating(small), torch.no_grad(), watching(small, (layer,)) as held:
            call(small, example)
        tried += 1
        for dim, (whole, left) in enumerate(zip(features.shape, held[layer].shape, strict=True)):
            if whole == axis.units and left == whole - 1:
                return (axis.name, dim), tried
    return (None, 1), tried
