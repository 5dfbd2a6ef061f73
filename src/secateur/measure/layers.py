"""Linear layers and convolutions as one matrix: outputs = rows @ matrix.T + bias.

Shape legend: O outputs, D inputs of one output (channels times kernel, channel-major), M rows (samples times positions),
L channels of the input, N units, E channels per unit, K kernel positions.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear


def is_turned(module: nn.Module) -> bool:
    """Is it the linear layer of GPT-2, transformers' Conv1D, whose weight is (D, O)? Known by its name, to need no install."""
    return any(
        kind.__name__ == "Conv1D" and kind.__module__.partition(".")[0] == "transformers" for kind in type(module).__mro__
    )


def is_matrix(module: nn.Module) -> bool:
    """Is `module` a linear layer, of torch (that at the end of its attention too) or of GPT-2, or a 1d or 2d convolution
    without groups?
    """
    plain = type(module) in (nn.Conv1d, nn.Conv2d) and cast(nn.Conv2d, module).groups == 1
    return type(module) in (nn.Linear, NonDynamicallyQuantizableLinear) or plain or is_turned(module)


def matrix(module: nn.Module) -> Tensor:
    """The weight as (O, D), a view without gradient."""
    weight = cast(Tensor, module.weight).detach()
    return weight.T if is_turned(module) else weight.flatten(1)


def as_weight(module: nn.Module, flat: Tensor) -> Tensor:
    """`flat` (O, D), such as `matrix` gives, in the shape the layer holds it in."""
    return flat.T if is_turned(module) else flat.view_as(cast(Tensor, module.weight))


def input_dim(module: nn.Module) -> int:
    """The dimension of the weight that the channels of the input are in; outputs are in the other of the first two."""
    return 0 if is_turned(module) else 1


def rows(module: nn.Module, x: Tensor, pick: Tensor | None = None) -> Tensor:
    """What each output of `module` on `x` is computed from; (M, D), padding and stride respected. `pick`: these rows alone."""
    if not isinstance(module, nn.modules.conv._ConvNd):
        flat = x.reshape(-1, matrix(module).shape[1])
        return flat if pick is None else flat[pick.to(x.device)]
    conv = cast(Any, module)
    x = x if x.dim() == conv.weight.dim() else x.unsqueeze(0)
    if any(conv._reversed_padding_repeated_twice):
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        x = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    kernel, dilation, stride = conv.kernel_size, conv.dilation, conv.stride
    if x.dim() == 3:
        x, kernel, dilation, stride = x.unsqueeze(2), (1, *kernel), (1, *dilation), (1, *stride)
    if pick is None:
        return F.unfold(x, kernel, dilation, 0, stride).transpose(1, 2).flatten(0, 1)
    return _patches(x, pick.to(x.device), kernel, dilation, stride)


def _patches(x: Tensor, pick: Tensor, kernel: tuple[int, int], dilation: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Rows `pick` of the unfolded, padded `x` (B, L, height, width), without the others; (M, L * K)."""
    high, wide = ((n - d * (k - 1) - 1) // s + 1 for n, k, d, s in zip(x.shape[2:], kernel, dilation, stride, strict=True))
    taps = [torch.arange(k, device=x.device) * d for k, d in zip(kernel, dilation, strict=True)]
    image, position = pick // (high * wide), pick % (high * wide)
    down, right = (position // wide * stride[0])[:, None, None], (position % wide * stride[1])[:, None, None]
    return (
        x[image[:, None, None], :, down + taps[0][:, None], right + taps[1]].movedim(-1, 1).flatten(1)
    )  # (M, *kernel, L) -> (M, L, *kernel)


def row_count(module: nn.Module, y: Tensor) -> int:
    """How many rows the output `y` of `module` has."""
    return y.numel() // len(matrix(module))


def outputs(module: nn.Module, y: Tensor, pick: Tensor | None = None) -> Tensor:
    """The output of `module` in the order of its rows; (M, O). `pick`: these rows alone."""
    if not isinstance(module, nn.modules.conv._ConvNd):
        flat = y.reshape(-1, len(matrix(module)))
        return flat if pick is None else flat[pick.to(y.device)]
    y = y if y.dim() == module.weight.dim() else y.unsqueeze(0)
    y = y.flatten(2)  # (B, O, positions)
    if pick is None:
        return y.transpose(1, 2).flatten(0, 1)
    pick = pick.to(y.device)
    return y[pick // y.shape[2], :, pick % y.shape[2]]


def columns(module: nn.Module, channels: Tensor) -> Tensor:
    """Columns of the matrix that read `channels` (..., E) of the input; (..., E * K)."""
    taps = cast(Tensor, module.weight)[0, 0].numel()  # 1 for a linear layer
    return (channels.unsqueeze(-1) * taps + torch.arange(taps)).flatten(-2)
