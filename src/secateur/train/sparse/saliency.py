"""Scores of single entries, for pruning at once: magnitudes, and the scores of pruning at initialisation.

All return name to scores of the weight's shape, higher is dearer, and leave the model as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateur.core.errors import SecateurError
from secateur.core.plan import Plan, mask
from secateur.core.protocols import Batches, Loss
from secateur.core.running import call, device_of, to_device
from secateur.surgery import fingerprint
from secateur.train.sparse.select import Layout, choose, counts_of, to_entries, to_units
from secateur.train.sparse.weights import weights_of

EntryScores = Mapping[str, Tensor]


def one_shot(model: nn.Module, keep: float, scores: EntryScores | None = None, *, layout: Layout | None = None) -> Plan:
    """The plan that keeps the share `keep` of the entries in `scores` (magnitudes without any), spread as `layout` says.

    >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    >>> [support.count for support in one_shot(net, 0.5, layout=Layout("uniform")).steps[0].supports]
    [8, 4]
    """
    layout = layout or Layout()
    if not 0 < keep <= 1:
        raise SecateurError(f"pruning to keep={keep!r}", "no share that can be kept", "give one above 0 and at most 1")
    layout.require(keep)
    fitting = {name: value for name, value in (scores or magnitude(model)).items() if layout.fits(value)}
    units = {name: to_units(value.detach(), layout.block) for name, value in fitting.items()}
    counts = counts_of(units, keep, layout.allocation, least=layout.occupancy)
    masks = {name: choose(value, counts[name], layout) for name, value in units.items()}
    entries = {name: to_entries(value, fitting[name].shape, layout.block) for name, value in masks.items()}
    return mask(fingerprint(model), entries)


def of_round(layout: Layout | None, last: bool) -> Layout | None:
    """The layout of a round of several: n:m patterns leave one share alone, so rounds before the last go without."""
    return Layout() if layout is not None and layout.of_group and not last else layout


def magnitude(model: nn.Module, *, dense: Sequence[str] = ()) -> dict[str, Tensor]:
    """|w|."""
    return {weight.name: weight.tensor.detach().abs() for weight in weights_of(model, dense)}


def snip(model: nn.Module, batches: Batches, loss: Loss, *, dense: Sequence[str] = ()) -> dict[str, Tensor]:
    """|w dL/dw|, the gradient summed over `batches` (Lee et al., 2019, eq. 6, without the common factor)."""
    work, weights = _working(model, dense)
    grads = [torch.zeros_like(tensor) for tensor in weights.values()]
    for x, target in _on(batches, model):
        for total, one in zip(grads, torch.autograd.grad(loss(call(work, x), target), list(weights.values())), strict=True):
            total += one
    return {name: (w.detach() * g).abs() for (name, w), g in zip(weights.items(), grads, strict=True)}


def grasp(
    model: nn.Module, batches: Batches, loss: Loss, *, temperature: float = 200.0, dense: Sequence[str] = ()
) -> dict[str, Tensor]:
    """w (H g): how much the norm of the gradient falls where an entry goes (Wang et al., 2020, eq. 8; theirs is the negative).

    Outputs are divided by `temperature`, as in the released code. The sum of g over `batches` is taken first, so that the
    product with H is that of the whole data. Attention is computed by matrix products: fused kernels have no second derivative.
    """
    with sdpa_kernel(SDPBackend.MATH):
        return _grasp(model, batches, loss, temperature, dense)


def _grasp(model: nn.Module, batches: Batches, loss: Loss, temperature: float, dense: Sequence[str]) -> dict[str, Tensor]:
    work, weights = _working(model, dense)
    tensors, data = list(weights.values()), list(_on(batches, model))
    total = [torch.zeros_like(tensor) for tensor in tensors]
    for x, target in data:
        for part, one in zip(total, torch.autograd.grad(loss(call(work, x) / temperature, target), tensors), strict=True):
            part += one
    product = [torch.zeros_like(tensor) for tensor in tensors]
    for x, target in data:
        again = torch.autograd.grad(loss(call(work, x) / temperature, target), tensors, create_graph=True)
        flow = sum(((g * held).sum() for g, held in zip(again, total, strict=True)), torch.zeros((), device=total[0].device))
        for part, one in zip(product, torch.autograd.grad(flow, tensors), strict=True):
            part += one
    return {name: w.detach() * hg for (name, w), hg in zip(weights.items(), product, strict=True)}


def flow(
    model: nn.Module, example: Any, masks: Mapping[str, Tensor] | None = None, *, dense: Sequence[str] = ()
) -> dict[str, Tensor]:
    """|w| dR/d|w| with R the sum of outputs where all weights are |w| and all inputs 1 (Tanaka et al., 2020, SynFlow).

    In float64 and evaluation mode; running means of batch norms count as 0, so that no flow turns negative.
    """
    work, weights = _working(model, dense)
    work.eval().double()
    with torch.no_grad():
        for name, value in [*work.named_parameters(), *work.named_buffers()]:
            value.zero_() if name.endswith("running_mean") else value.abs_() if value.is_floating_point() else None
        for name, kept in (masks or {}).items():
            weights[name].mul_(kept)
    ones = [torch.ones_like(x, dtype=torch.float64) for x in (example if isinstance(example, tuple) else (example,))]
    total = call(work, tuple(to_device(ones, device_of(work))))
    grads = torch.autograd.grad(total.sum(), list(weights.values()))
    return {name: (w * g).detach() for (name, w), g in zip(weights.items(), grads, strict=True)}


def synflow(
    model: nn.Module, example: Any, keep: float, *, rounds: int = 100, layout: Layout | None = None, dense: Sequence[str] = ()
) -> Plan:
    """The plan after `rounds` rounds of scoring by `flow` and pruning to keep^(r / rounds): no layer dies.

    Tanaka et al., 2020, algorithm 1. An n:m pattern is that of the last round; those before prune single entries.
    """
    plan = Plan(fingerprint(model))
    masks: dict[str, Tensor] = {}
    for number in range(1, rounds + 1):
        scores = flow(model, example, masks, dense=dense)
        # entries without flow that are gone already rank below those that are still there
        ranked = {name: value.masked_fill(~masks[name], -1) if name in masks else value for name, value in scores.items()}
        plan = one_shot(model, keep ** (number / rounds), ranked, layout=of_round(layout, number == rounds))
        known = {support.tensor: torch.from_numpy(support.mask()) for step in plan.steps for support in step.supports}  # type: ignore[union-attr]
        masks = {
            name: known.get(name, torch.ones_like(value, dtype=torch.bool)).to(value.device) for name, value in scores.items()
        }
    return plan


def _working(model: nn.Module, dense: Sequence[str]) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy in training mode, so that batch norms of a fresh network use their batches, and its weights by name."""
    work = copy.deepcopy(model).train().requires_grad_(True)
    return work, {weight.name: weight.tensor for weight in weights_of(work, dense)}


def _on(batches: Batches, model: nn.Module) -> list[tuple[Any, Any]]:
    device = device_of(model)
    found = [(to_device(x, device), to_device(target, device)) for x, target in batches]
    if not found:
        raise SecateurError("scores from data", "no batch", "give at least one (input, target) pair")
    return found
