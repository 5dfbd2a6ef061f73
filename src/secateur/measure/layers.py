"""Linear layers and convolutions as one matrix: outputs = rows @ matrix.T + bias.

Shape legend: O outputs, D inputs of one output (channels times kernel, channel-major), M rows (samples times positions),
L channels of the input, N units, E channels per unit, K kernel positions.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def is_matrix(module: nn.Module) -> bool:
    """Is `module` a linear layer, or a 1d or 2d convolution without groups?"""
    return type(module) is nn.Linear or (type(module) in (nn.Conv1d, nn.Conv2d) and cast(nn.Conv2d, module).groups == 1)


def matrix(module: nn.Module) -> Tensor:
    """The weight as (O, D), a view without gradient."""
    return cast(Tensor, module.weight).detach().flatten(1)


def rows(module: nn.Module, x: Tensor) -> Tensor:
    """What each output of `module` on `x` is computed from; (M, D), padding and stride respected."""
    if isinstance(module, nn.Linear):
        return x.reshape(-1, module.in_features)
    conv = cast(Any, module)
    x = x if x.dim() == conv.weight.dim() else x.unsqueeze(0)
    if any(conv._reversed_padding_repeated_twice):
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        x = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    kernel, dilation, stride = conv.kernel_size, conv.dilation, conv.stride
    if x.dim() == 3:
        x, kernel, dilation, stride = x.unsqueeze(2), (1, *kernel), (1, *dilation), (1, *stride)
    return F.unfold(x, kernel, dilation, 0, stride).transpose(1, 2).flatten(0, 1)


def outputs(module: nn.Module, y: Tensor) -> Tensor:
    """The output of `module` in the order of its rows; (M, O)."""
    if isinstance(module, nn.Linear):
        return y.reshape(-1, module.out_features)
    y = y if y.dim() == cast(Tensor, module.weight).dim() else y.unsqueeze(0)
    return y.flatten(2).transpose(1, 2).flatten(0, 1)


def columns(module: nn.Module, channels: Tensor) -> Tensor:
    """Columns of the matrix that read `channels` (..., E) of the input; (..., E * K)."""
    taps = cast(Tensor, module.weight)[0, 0].numel()
    return (channels.unsqueeze(-1) * taps + torch.arange(taps)).flatten(-2)
