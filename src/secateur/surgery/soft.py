"""Gates of real value: the weights that read each unit are scaled by a number that gradients reach.

At zeros and ones a gated model computes what the preview and the cut model compute. Between, a unit matters in part.
Shape legend: N units of an axis, L length of one dimension of a tensor.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from secateur.core.axis import Axis
from secateur.core.errors import SecateurError
from secateur.surgery.fingerprint import tensors
from secateur.surgery.norms import KeptNorms, watch_norms

Gates = Mapping[str, Tensor]
"""Axis name to one number per unit (N,); an axis that is not named is whole."""
_Owners = dict[tuple[str, int], list[tuple[str, Tensor]]]


class Gated(nn.Module):
    """`model` as a function of one gate per unit of `axes`.

    Shares the parameters of `model` and owns copies of its buffers: batch norms may run on batch statistics and the model
    stays as it was. Where a normalisation reduces over units it becomes a weighted one, the gates being the weights.
    Raises `SecateurError` for axes of another model.
    """

    def __init__(self, axes: Sequence[Axis], model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model, {id(p): p for p in model.parameters()})
        self.axes = tuple(axes)
        lengths = {(name, dim): n for name, tensor in tensors(model) for dim, n in enumerate(tensor.shape)}
        self._read = _owners(self.axes, lengths, silence=True)
        inexact = {s.tensor for a in self.axes if not a.exact for s in a.slots if (s.tensor, 1) not in lengths and s.dim == 0}
        every = _owners(self.axes, lengths, silence=False)
        self._norms = {name: owners for (name, dim), owners in every.items() if name in inexact and dim == 0}

    def forward(self, gates: Gates, inputs: Any, weights: Mapping[str, Tensor] | None = None) -> Any:
        """The model's output on `inputs` (a tensor, a tuple of positional or a dict of named arguments).

        `weights` stand in for parameters of those names. Gradients reach the gates and `weights`, not the model's own.
        """
        named = {name: tensor.detach() for name, tensor in tensors(self.model)} | dict(weights or {})
        vectors: dict[str, list[Tensor]] = {}
        gated = dict(named)
        for (name, dim), owners in self._read.items():
            vector = _product(owners, gates, named[name])
            if vector is not None:
                vectors.setdefault(name, []).append(vector.reshape([-1 if i == dim else 1 for i in range(named[name].dim())]))
                gated[name] = gated[name] * vectors[name][-1]
        found = {name: _product(owners, gates, named[name]) for name, owners in self._norms.items()}
        norms = {name: vector for name, vector in found.items() if vector is not None}
        args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else (inputs, {})
        args = tuple(args) if isinstance(args, (tuple, list)) else (args,)
        with ExitStack() as stack:
            if any(axis.name in gates and not axis.exact for axis in self.axes):
                for handle in watch_norms(self.model, norms):
                    stack.callback(handle.remove)
                stack.enter_context(KeptNorms(norms, named, gated, {name: vectors[name] for name in vectors}))
            return functional_call(self.model, gated, args, kwargs, tie_weights=False)


def on_batch_statistics(model: nn.Module) -> nn.Module:
    """`model` in evaluation mode, its batch norms on the statistics of the batch at hand."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    return model


def _owners(axes: Sequence[Axis], lengths: Mapping[tuple[str, int], int], *, silence: bool) -> _Owners:
    """(tensor, dim) to the axes that own entries there: name, and for each entry its unit plus one, or 0 (L,).

    With `silence` only where a gate acts: the readers of a unit, or all its tensors where two activations contract it.
    """
    found: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    for axis in axes:
        units = np.arange(axis.units)
        for slot in axis.slots:
            if slot.dim < 0 or (silence and axis.gate == "read" and slot.role != "read"):
                continue
            place = (slot.tensor, slot.dim)
            entries = slot.of(units)
            if entries.max() >= lengths.get(place, 0):
                found_shape = f"no entry {entries.max()} in dim {slot.dim} of {slot.tensor!r}"
                raise SecateurError(f"gates on axis {axis.name!r}", found_shape, "trace this model, after its last cut")
            owner = found.setdefault(place, {}).setdefault(axis.name, np.zeros(lengths[place], dtype=np.int64))
            owner[entries] = units[:, None] + 1
    return {place: [(name, torch.from_numpy(index)) for name, index in owners.items()] for place, owners in found.items()}


def _product(owners: Sequence[tuple[str, Tensor]], gates: Gates, like: Tensor) -> Tensor | None:
    """The factor (L,) of each entry: the product of the gates that own it; None where no gate does."""
    vector = None
    for name, index in owners:
        if name in gates:
            gate = gates[name].to(like)
            factor = torch.cat([gate.new_ones(1), gate])[index.to(like.device)]
            vector = factor if vector is None else vector * factor
    return vector
