"""Weights as stacks of matrices whose rank counts, and the pieces of a product from them.

Shape legend: O out, I in (per group), H x W kernel, R rank, G groups, M x N one matrix of a stack of B.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.factor import Format, Product


def unfold(weight: Tensor, format: Format, *, groups: int = 1) -> Tensor:
    """The matrices (B, M, N) that a product of `format` makes low in rank; `fold` puts them back.

    "channel" (G, O/G, IHW), "spatial" (G, IH, OW/G), "decouple" (O, I, HW), "linear" (1, O, I). A Tucker-2 product has
    two unfoldings and none here.
    """
    if format == "spatial":
        return weight.unflatten(0, (groups, -1)).permute(0, 2, 3, 1, 4).flatten(1, 2).flatten(2)
    if format == "decouple":
        return weight.flatten(2)
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def fold(matrices: Tensor, shape: torch.Size | tuple[int, ...], format: Format, *, groups: int = 1) -> Tensor:
    """The weight of `shape` (O, I, H, W) that `unfold` took apart."""
    if format == "spatial":
        outputs, inputs, height, width = shape
        whole = matrices.reshape(groups, inputs, height, outputs // groups, width)
        return whole.permute(0, 3, 1, 2, 4).reshape(shape)
    return matrices.reshape(shape)


def pieces(weight: Tensor, product: Product) -> list[Tensor]:
    """The weights of the product's layers, in forward order: truncated singular vectors, scaled by the root of the values.

    Computed in float64 where the device has it. The paper's spatial product puts the singular values into its second
    layer; here both layers take their root, which is the same function and trains better.
    Raises `SecateurError` where the weight holds numbers that are not finite.
    """
    if weight.is_meta:
        raise ValueError("a weight without values has no singular vectors")
    wide = weight.detach().to(torch.float32 if weight.device.type == "mps" else torch.float64)
    if not bool(wide.isfinite().all()):
        asked = f"a product for the layer {product.module!r}"
        raise SecateurError(asked, "weights that are not finite numbers", "give trained weights")
    made = _tucker(wide, product) if product.format == "tucker2" else _pair(wide, product)
    return [piece.to(weight.dtype).contiguous() for piece in made]


def expand(parts: list[Tensor], product: Product) -> Tensor:
    """The weight (O, I, H, W) that the product's layers stand for."""
    first, second = parts[0], parts[1]
    groups = product.groups
    if product.format == "linear":
        return second @ first
    if product.format == "tucker2":
        return torch.einsum("aiyx,bahw,obzv->oihw", first, second, parts[2])
    if product.format == "decouple":
        return torch.einsum("oriyx,orhw->oihw", first.unflatten(0, (second.shape[0], -1)), second)
    grouped = second.unflatten(0, (groups, -1))  # G, O/G, R, 1, W
    return torch.einsum("grihv,goryw->goihvyw", first.unflatten(0, (groups, -1)), grouped).reshape(
        second.shape[0], first.shape[1], first.shape[2], -1
    )


def project(weight: Tensor, product: Product) -> Tensor:
    """`weight` as its product represents it: of its shape, of the product's rank."""
    return expand(pieces(weight, product), product).to(weight.dtype)


def _pair(weight: Tensor, product: Product) -> list[Tensor]:
    rank, groups = product.ranks[0], product.groups
    outputs, kernel = weight.shape[0], tuple(weight.shape[2:])
    left, values, right = torch.linalg.svd(unfold(weight, product.format, groups=groups), full_matrices=False)
    root = values[:, :rank].sqrt()
    left = left[:, :, :rank] * root[:, None, :]  # B, M, R
    right = root[:, :, None] * right[:, :rank]  # B, R, N
    if product.format == "spatial":
        inputs, (height, width) = weight.shape[1], kernel
        column = left.reshape(groups, inputs, height, rank).permute(0, 3, 1, 2).reshape(groups * rank, inputs, height, 1)
        row = right.reshape(groups, rank, outputs // groups, width).permute(0, 2, 1, 3).reshape(outputs, rank, 1, width)
        return [column, row]
    if product.format == "decouple":
        return [left.transpose(1, 2).reshape(outputs * rank, -1, 1, 1), right.reshape(outputs, rank, *kernel)]
    ones = (1,) * len(kernel)
    return [right.reshape(groups * rank, -1, *kernel), left.reshape(outputs, rank, *ones)]


def _tucker(weight: Tensor, product: Product) -> list[Tensor]:
    """Sequentially truncated higher-order SVD (Vannieuwenhoven et al., 2012) over the input, then the output channels."""
    first, second = product.ranks
    inward = torch.linalg.svd(weight.transpose(0, 1).flatten(1), full_matrices=False)[0][:, :first]  # I, R1
    core = torch.einsum("oihw,ia->oahw", weight, inward)
    outward = torch.linalg.svd(core.flatten(1), full_matrices=False)[0][:, :second]  # O, R2
    core = torch.einsum("oahw,ob->bahw", core, outward)
    return [inward.T[:, :, None, None], core, outward[:, :, None, None]]
