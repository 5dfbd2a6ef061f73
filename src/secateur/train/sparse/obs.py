"""Layer-wise optimal brain surgery from calibration data, without labels: weights that stay make up for those that go.

Frantar and Alistarh, 2023, "SparseGPT", algorithm 1. Shape legend: O outputs, D inputs of one output (channel-major), B a
block of columns.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.core.plan import Plan, mask
from secateur.core.protocols import Batches
from secateur.measure.layers import as_weight, input_dim, is_matrix, matrix, rows
from secateur.measure.observe import call_order, observe
from secateur.surgery import fingerprint
from secateur.train.sparse.select import Layout, erk, largest
from secateur.train.sparse.weights import weights_of


def obs(
    model: nn.Module,
    batches: Batches,
    keep: float,
    *,
    layout: Layout | None = None,
    block: int = 128,
    damp: float = 0.01,
    dense: Sequence[str] = (),
) -> tuple[Plan, nn.Module]:
    """(plan, pruned copy): every linear layer and ungrouped convolution keeps `keep` of its entries.

    Layer after layer in the order of the forward, each on what the pruned layers before it put out (`batches` runs once
    per layer; targets are not looked at). In every block of columns the entries of the least w^2 / [H^-1]^2 go, and columns
    behind them move by the OBS rule. `layout`: "uniform" (default) or "erk", and n:m patterns. Layers without values in
    the data keep what they have; attention with packed weights and grouped convolutions stay dense.
    Raises `SecateurError` where no layer fits, or the layout is another.
    """
    layout = layout or Layout("uniform")
    if layout.allocation == "global" or layout.block != (1, 1) or layout.occupancy or not 0 < keep <= 1:
        found = f"keep={keep!r} with {layout}"
        raise SecateurError("pruning by OBS", found, 'give a share and Layout("uniform" or "erk", pattern=None or "2:4")')
    layout.require(keep)
    work, data = copy.deepcopy(model), list(batches)
    sparse = {weight.name.removesuffix(".weight") for weight in weights_of(work, dense, layout.fits)}
    layers = {name: module for name, module in work.named_modules() if name in sparse and is_matrix(module)}
    if not layers:
        raise SecateurError("pruning by OBS", "no linear layer or ungrouped convolution", "take patterns out of dense=")
    order, _ = call_order(work, layers, data)
    shapes = {name: tuple(layers[name].weight.shape) for name in order}  # type: ignore[arg-type]
    shares = erk(shapes, keep) if layout.allocation == "erk" else dict.fromkeys(order, keep)
    masks: dict[str, Tensor] = {}
    for name in order:
        weight = layers[name].weight
        hessian = second_moments(work, name, data)
        taps = matrix(layers[name]).shape[1] // weight.shape[input_dim(layers[name])]  # type: ignore[operator, index]
        order_of = torch.arange(len(hessian)).view(-1, taps).T.flatten() if layout.of_group else torch.arange(len(hessian))
        pruned = sparsify(
            matrix(layers[name]), hessian, shares[name], order=order_of, block=block, damp=damp, group=layout.of_group
        )
        with torch.no_grad():
            weight.copy_(as_weight(layers[name], pruned[0]))  # type: ignore[operator]
        masks[f"{name}.weight"] = as_weight(layers[name], pruned[1]).contiguous()
    return mask(fingerprint(model), masks), work


def second_moments(model: nn.Module, name: str, batches: Batches) -> Tensor:
    """X' X (D, D) of what the layer reads, summed over all rows, in float64 (float32 where the device has no other)."""
    total: list[Tensor] = []

    def look(x: Tensor, _: Tensor) -> None:
        read = rows(model.get_submodule(name), x)
        part = read.to(torch.float32 if read.device.type == "mps" else torch.float64)
        total[:] = [total[0] + part.T @ part if total else part.T @ part]

    observe(model, {name: look}, batches)
    return total[0]


def sparsify(
    weight: Tensor,
    hessian: Tensor,
    keep: float,
    *,
    order: Tensor | None = None,
    block: int = 128,
    damp: float = 0.01,
    group: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """(new weights, mask), both (O, D), for `weight` (O, D) read with second moments `hessian` (D, D).

    Columns are taken in `order`; with `group` (n, m) the best n of every m in that order stay.
    """
    columns = (torch.arange(len(hessian)) if order is None else order).to(hessian.device)
    w, h = weight.detach().to(hessian.dtype)[:, columns].clone(), hessian[columns][:, columns].clone()
    dead = h.diagonal() == 0
    h[dead, dead] = 1
    h.diagonal().add_(damp * h.diagonal().mean())
    root = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)  # U' U = H^-1
    kept = torch.zeros_like(w, dtype=torch.bool)
    size = block if group is None else max(block // group[1], 1) * group[1]
    done = 0
    for start in range(0, w.shape[1], size):
        stop = min(start + size, w.shape[1])
        part, inner = w[:, start:stop], root[start:stop, start:stop]
        if group is None:
            due = round(keep * w.shape[0] * stop)  # rounded on the running total, so that the sum is exact
            kept[:, start:stop] = largest((part / inner.diagonal()).square(), due - done)
            done = due
        errors = torch.zeros_like(part)
        for at in range(stop - start):
            if group is not None and at % group[1] == 0:
                near = slice(at, at + group[1])
                scores = (part[:, near] / inner.diagonal()[near]).square()
                best = scores.topk(group[0], dim=1).indices
                kept[:, start + at : start + at + group[1]] = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, True)
            gone = part[:, at].masked_fill(kept[:, start + at], 0)
            errors[:, at] = gone / inner[at, at]
            part[:, at:] -= errors[:, at : at + 1] * inner[at, at:]
        w[:, stop:] -= errors @ root[start:stop, stop:]
    back = torch.empty_like(columns)
    back[columns] = torch.arange(len(columns), device=columns.device)
    return (w * kept)[:, back].to(weight.dtype), kept[:, back]
