"""Products whose values are chosen by what flows through the layer, and not by the weight alone.

Shape legend: O out, I in, H x W kernel, D = I * H * W inputs of one output, R rank.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.core.errors import SecateurError
from secateur.core.factor import Factor, Product
from secateur.core.plan import Plan
from secateur.core.protocols import Batches
from secateur.core.restore import restoring
from secateur.core.running import repeatable
from secateur.linalg import least_squares, patch_covariance, responses, through
from secateur.measure.layers import is_matrix, matrix
from secateur.measure.moments import Moments, moments_of_each
from secateur.measure.observe import outlets
from secateur.surgery import shapes_after, unfold
from secateur.surgery.fingerprint import mismatches


def whitened(
    before: nn.Module,
    after: nn.Module,
    batches: Batches,
    *,
    plan: Plan,
    limit: int | None = None,
    sample: int | None = None,
) -> None:
    """Set the values of every product of `after` so that the layer's responses change least, over `batches` (at most `limit`).

    "channel" and "linear" products become the principal components of the responses, the optimum (Zhang et al., 2016,
    section 3.1: eq. 4 to 7, without the nonlinearity). "spatial" and "tucker2" take their first layers from the weight
    times the root of the covariance of the input patches, and their last one by least squares given those. Decoupled and
    grouped layers stay as they are. Means go into the bias, or into the running mean of a batch norm behind; with neither,
    raw second moments stand for covariances. `sample`: rows that are taken of each batch. Few passes over `batches`, of
    `before`, from which `plan` led to `after`. Layers they never reach stay, as all do by a plan without steps.

    Raises `SecateurError` for a plan that is not one factor step: other cuts have repairs of their own; and for a network
    that was not made by it.
    """
    if not plan.steps:
        return
    if len(plan.steps) != 1 or not isinstance(plan.steps[0], Factor):
        do = "repair before and after the step with a plan of its own for each"
        raise SecateurError("products fitted to data", "a plan that is not one factor step", do)
    plan.check(before)
    if wrong := mismatches(shapes_after(plan), after):
        do = "give the network that was made by this plan"
        raise SecateurError("products fitted to data", "; ".join(wrong[:3]), do)
    products = [p for p in plan.steps[0].products if p.format != "decouple" and is_matrix(before.get_submodule(p.module))]
    batches = repeatable(batches, limit)
    norms = _norms(before, after, products, batches)
    by_name = {product.module: product for product in products}
    with restoring(after):
        for name, known in moments_of_each(before, list(by_name), batches, limit, sample=sample):
            product, source = by_name[name], before.get_submodule(name)
            last = after.get_submodule(product.module)
            bias, norm = cast(nn.Sequential, last)[-1].bias, norms.get(product.module)
            constant = isinstance(bias, Tensor) or norm is not None
            covariance = known.centred().xx if constant else known.xx
            pieces = fitted(cast(Tensor, source.weight).detach().double().cpu(), product, covariance)
            if not all(bool(piece.isfinite().all()) for piece in pieces):
                continue
            with torch.no_grad():
                for layer, piece in zip(cast(Any, last), pieces, strict=True):
                    layer.weight.copy_(piece)
                shift = _lost(matrix(source).double().cpu(), pieces, product, known)
                if isinstance(bias, Tensor):
                    bias.copy_(cast(Tensor, source.bias) + shift.to(bias))
                elif norm is not None:
                    old, new = (cast(Tensor, each.running_mean) for each in norm)
                    new.copy_(old - shift.to(old))


def fitted(weight: Tensor, product: Product, covariance: Tensor) -> list[Tensor]:
    """The pieces of `product` for a weight (O, I, H, W) or (O, D), in forward order, given the covariance of its inputs."""
    flat = weight.flatten(1)
    kernel = (weight.shape[2], weight.shape[3]) if weight.dim() == 4 else (1, 1)
    rank = product.ranks[0]
    if product.format == "spatial":
        found = through(unfold(weight, "spatial")[0], patch_covariance(covariance, kernel, "column"))
        first = found.rows[:rank].reshape(rank, -1, kernel[0], 1)
    elif product.format == "tucker2":
        found = through(weight.transpose(0, 1).flatten(1), patch_covariance(covariance, kernel, "point"))
        first = found.rows[:rank].reshape(rank, -1, 1, 1)
    else:
        first = responses(flat, covariance).rows[:rank].reshape(rank, *weight.shape[1:])
    features = _features([first], product, kernel)
    last = least_squares(flat, features, covariance)
    if product.format == "tucker2":
        core = responses(last, features @ covariance @ features.T).rows[: product.ranks[1]]
        middle = core.reshape(len(core), rank, *kernel)
        last = least_squares(flat, _features([first, middle], product, kernel), covariance)
        return _balanced([first, middle, last[:, :, None, None]])
    if product.format == "spatial":
        return _balanced([first, last.reshape(len(flat), rank, 1, kernel[1])])
    return _balanced([first, last.reshape(len(flat), rank, *((1, 1) if weight.dim() == 4 else ()))])


def _features(parts: list[Tensor], product: Product, kernel: tuple[int, int]) -> Tensor:
    """What the last layer reads, as rows over the inputs (., D): paths, and for "spatial" also the columns of the kernel."""
    first = parts[0]
    if product.format == "spatial":
        taps = torch.eye(kernel[1], dtype=first.dtype)
        return torch.einsum("raho,jw->rjahw", first, taps).flatten(2).flatten(0, 1)
    if product.format != "tucker2":
        return first.flatten(1)
    if len(parts) == 1:  # the patches of the middle layer
        taps = torch.eye(kernel[0] * kernel[1], dtype=first.dtype)
        return torch.einsum("ra,pq->rpaq", first.flatten(1), taps).flatten(2).flatten(0, 1)
    return torch.einsum("brhw,ra->bahw", parts[1], first.flatten(1)).flatten(1)


def _balanced(parts: list[Tensor]) -> list[Tensor]:
    """The same map, with every path of the same norm in the layer that writes and the layer that reads it."""
    parts = [part.clone() for part in parts]
    for writer, reader in pairwise(parts):
        wrote = writer.flatten(1).norm(dim=1)
        read = reader.transpose(0, 1).flatten(1).norm(dim=1)
        scale = torch.where((wrote > 0) & (read > 0), (read / wrote.clamp(min=1e-30)).sqrt(), 1.0)
        writer.mul_(scale.reshape(-1, *[1] * (writer.dim() - 1)))
        reader.div_(scale.reshape(1, -1, *[1] * (reader.dim() - 2)))
    return parts


def _lost(flat: Tensor, pieces: list[Tensor], product: Product, known: Moments) -> Tensor:
    """What the responses have lost on average (O,): (W - W') times the mean input."""
    features = _features(pieces[:-1], product, _kernel(pieces, product))
    return (flat - pieces[-1].flatten(1) @ features) @ known.x


def _kernel(pieces: list[Tensor], product: Product) -> tuple[int, int]:
    if product.format == "spatial":
        return pieces[0].shape[2], pieces[1].shape[3]
    wide = pieces[1] if product.format == "tucker2" else pieces[0]
    return (wide.shape[2], wide.shape[3]) if wide.dim() == 4 else (1, 1)


def _norms(
    before: nn.Module, after: nn.Module, products: list[Product], batches: Batches
) -> dict[str, tuple[_BatchNorm, _BatchNorm]]:
    """Layer to the batch norms with running statistics, before and after, that read its output and its product first."""
    ends = {f"{p.module}.{len(cast(Any, after.get_submodule(p.module))) - 1}": p.module for p in products}
    behind = outlets(after, {name: after.get_submodule(name) for name in ends}, batches)
    return {
        ends[writer]: (cast(_BatchNorm, before.get_submodule(norm)), cast(_BatchNorm, after.get_submodule(norm)))
        for writer, norm in behind.items()
        if norm != writer
    }
