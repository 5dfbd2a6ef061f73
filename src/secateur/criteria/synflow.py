"""SynFlow: the flow through a network of absolute weights, by units, without data."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.core.protocols import Criterion
from secateur.core.running import call, device_of, fits
from secateur.criteria.at_start import by_readers
from secateur.criteria.places import parameters, totals


def synflow(model: nn.Module, example: Any, *, default: Criterion | None = None) -> Criterion:
    """Scores: ``sum of |w| * dR/d|w|`` over all that reads a unit, R being the sum of the outputs of the network of absolute
    weights on an input of ones.

    `example` gives the shape of the input: a tensor, or a tuple or dict of them; whole numbers stay as they are. In evaluation
    mode and double precision; the model does not change. The method prunes in rounds, 100 in the paper, on an exponential
    schedule: `rounds` of a recipe's [prune] do that. Every axis passes the same flow on, so scores as they are leave all axes
    equally wide, as they leave all layers of the paper equally many weights: right for a budget on parameters; for one on MACs
    divide them by `per_cost`, or by the mean of the axis. An axis that no parameter reads is scored by `default`.

    Source: Tanaka et al., 2020, eq. 2 and algorithm 1, for single weights. As in its code every number of the state loses its
    sign, buffers among them.
    """
    twin = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for value in [*twin.parameters(), *twin.buffers()]:
            if value.is_floating_point():
                value.abs_()
    device = device_of(model)
    weights = list(dict.fromkeys(parameters(twin).values()))
    for weight in weights:
        weight.requires_grad_(True)
    with torch.enable_grad(), fits(example):
        flow = _sum(call(twin, _ones(example, device)))
    if not bool(torch.isfinite(flow)) or not flow or not flow.requires_grad:
        found = f"a flow of {float(flow.detach())}" if flow.requires_grad else "outputs that do not depend on the weights"
        raise SecateurError("SynFlow scores", found, "take snip, or rounds after a first cut by a norm")
    slopes = torch.autograd.grad(flow, weights, allow_unused=True, materialize_grads=True)
    by_twin = {w: totals(w.detach() * g) for w, g in zip(weights, slopes, strict=True)}
    named, ours = parameters(twin), parameters(model)
    return by_readers(model, {ours[name]: by_twin[weight] for name, weight in named.items()}, "synflow", default)


def _ones(example: Any, device: torch.device) -> Any:
    """`example` with a batch of one and ones for all real numbers."""
    if isinstance(example, Mapping):
        return {name: _ones(part, device) for name, part in example.items()}
    if isinstance(example, (tuple, list)):
        return tuple(_ones(part, device) for part in example)
    if not isinstance(example, Tensor) or not example.dim() or not len(example):
        found = f"an example of shape {list(example.shape)}" if isinstance(example, Tensor) else f"a {type(example).__name__}"
        raise SecateurError("SynFlow scores", found, "give the input as tensors whose first dim is the batch")
    one = example[:1].to(device)
    return torch.ones_like(one, dtype=torch.float64) if one.is_floating_point() else one


def _sum(output: Any) -> Tensor:
    """The sum of every tensor of real numbers in an output."""
    if isinstance(output, Tensor):
        return output.sum() if output.is_floating_point() else torch.zeros((), dtype=torch.float64)
    parts = list(output.values()) if hasattr(output, "values") else list(output) if isinstance(output, (list, tuple)) else []
    return sum((_sum(part) for part in parts), torch.zeros((), dtype=torch.float64))
