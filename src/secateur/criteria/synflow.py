"""SynFlow: the flow through a network of absolute weights, by units, without data."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.core.protocols import Criterion
from secateur.core.running import call, device_of
from secateur.criteria.at_start import by_readers
from secateur.criteria.places import parameters, totals


def synflow(model: nn.Module, example: Any, *, default: Criterion | None = None) -> Criterion:
    """Scores: ``sum of |w| * dR/d|w|`` over all that reads a unit, R being the sum of the outputs of the network of absolute
    weights on an input of ones.

    `example` gives the shape of the input: a tensor, or a tuple of tensors; whole numbers stay as they are. In evaluation mode
    and double precision; the model does not change. The method prunes in rounds, 100 in the paper, on an exponential schedule:
    `rounds` of a recipe's [prune] do that. Every axis passes the same flow on, so scores as they are leave all axes equally
    wide, as they leave all layers of the paper equally many weights: right for a budget on parameters; for one on MACs divide
    them by `per_cost`, or by the mean of the axis. An axis that no parameter reads is scored by `default`.

    Source: Tanaka et al., 2020, eq. 2 and algorithm 1, for single weights. As in its code every number of the state loses its
    sign, buffers among them.
    """
    twin = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for value in [*twin.parameters(), *twin.buffers()]:
            if value.is_floating_point():
                value.abs_()
    device = device_of(model)
    inputs = example if isinstance(example, (tuple, list)) else (example,)
    ones = tuple(torch.ones_like(x[:1], dtype=torch.float64, device=device) if x.is_floating_point() else x[:1] for x in inputs)
    weights = list(dict.fromkeys(parameters(twin).values()))
    for weight in weights:
        weight.requires_grad_(True)
    with torch.enable_grad():
        flow = _sum(call(twin, ones))
    if not bool(torch.isfinite(flow)) or not flow.requires_grad:
        found = f"a flow of {float(flow.detach())}" if flow.requires_grad else "outputs that do not depend on the weights"
        raise SecateurError("SynFlow scores", found, "take snip, or rounds after a first cut by a norm")
    slopes = torch.autograd.grad(flow, weights, allow_unused=True, materialize_grads=True)
    by_twin = {w: totals(w.detach() * g) for w, g in zip(weights, slopes, strict=True)}
    named, ours = parameters(twin), parameters(model)
    return by_readers(model, {ours[name]: by_twin[weight] for name, weight in named.items()}, "synflow", default)


def _sum(output: Any) -> Tensor:
    """The sum of every tensor of real numbers in an output."""
    if isinstance(output, Tensor):
        return output.sum() if output.is_floating_point() else torch.zeros((), dtype=torch.float64)
    parts = list(output.values()) if hasattr(output, "values") else list(output) if isinstance(output, (list, tuple)) else []
    return sum((_sum(part) for part in parts), torch.zeros((), dtype=torch.float64))
