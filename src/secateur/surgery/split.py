"""Carry out a split step: a layer keeps the weights inside the blocks of its workers.

Shape legend: B batch, O out, I in, W workers, M rows (all dims before the channels).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

from secateur.core.errors import SecateurError
from secateur.core.split import Blocks, Split, split_shapes
from secateur.surgery.fingerprint import fingerprint, tensors
from secateur.surgery.replace import replace_module

_CONVOLUTIONS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d}


class BlockDiagonal(nn.Module):
    """A linear layer or convolution of W blocks, between any channels.

    `weight` (O, I / W, ...): the rows of worker 0, then those of worker 1... `reads` (I,): the input channels in the order
    of the workers; `writes` (O,): where each output channel lies among the rows. `bias` (O,) is in the order of the
    channels.
    """

    def __init__(self, layer: nn.Module, blocks: Blocks) -> None:
        super().__init__()
        held: Any = layer
        self.blocks = blocks
        self.weight = nn.Parameter(gathered(held.weight.detach(), blocks), requires_grad=held.weight.requires_grad)
        self.bias = held.bias
        device = held.weight.device
        reads = torch.tensor([channel for group in blocks.inputs for channel in group])
        rows = torch.tensor([channel for group in blocks.outputs for channel in group])
        self.in_order, self.out_order = bool((reads.diff() == 1).all()), bool((rows.diff() == 1).all())
        self.register_buffer("reads", reads.to(device), persistent=False)
        self.register_buffer("writes", rows.argsort().to(device), persistent=False)
        self.convolution = type(layer) if type(layer) in _CONVOLUTIONS else None
        if self.convolution:
            self.stride, self.dilation, self.padding_mode = held.stride, held.dilation, held.padding_mode
            self.padding, self.around = held.padding, list(held._reversed_padding_repeated_twice)
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O), or (B, I, positions) to (B, O, positions)."""
        return self._convolved(x) if self.convolution else self._multiplied(x)

    def _multiplied(self, x: Tensor) -> Tensor:
        workers = self.blocks.workers
        x = x if self.in_order else x.index_select(-1, self.reads)  # type: ignore[arg-type]
        rows = x.reshape(-1, workers, x.shape[-1] // workers).transpose(0, 1)  # (W, M, I / W)
        weight = self.weight.unflatten(0, (workers, -1)).transpose(1, 2)  # (W, I / W, O / W)
        y = torch.bmm(rows, weight).transpose(0, 1).reshape(*x.shape[:-1], self.weight.shape[0])
        y = y if self.out_order else y.index_select(-1, self.writes)  # type: ignore[arg-type]
        return y if self.bias is None else y + self.bias

    def _convolved(self, x: Tensor) -> Tensor:
        kernel = self.weight.dim() - 2
        dim = x.dim() - kernel - 1
        x = x if self.in_order else x.index_select(dim, self.reads)  # type: ignore[arg-type]
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self.around, mode=self.padding_mode), 0
        run: Any = _CONVOLUTIONS[self.convolution]  # type: ignore[index]
        y = run(x, self.weight, None, self.stride, padding, self.dilation, self.blocks.workers)
        y = y if self.out_order else y.index_select(dim, self.writes)  # type: ignore[arg-type]
        return y if self.bias is None else y + self.bias.reshape(-1, *[1] * kernel)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return str(self.blocks)


def gathered(weight: Tensor, blocks: Blocks) -> Tensor:
    """The weights inside the blocks, worker after worker; (O, I, ...) to (O, I / W, ...)."""
    parts = []
    for inputs, outputs in zip(blocks.inputs, blocks.outputs, strict=True):
        rows, columns = (torch.tensor(group, device=weight.device) for group in (outputs, inputs))
        parts.append(weight.index_select(0, rows).index_select(1, columns))
    return torch.cat(parts)


def inside(blocks: Blocks) -> Tensor:
    """1 for the weights inside the blocks, 0 for those between workers; (O, I)."""
    owners = []
    for groups in (blocks.outputs, blocks.inputs):
        owner = torch.empty(sum(map(len, groups)), dtype=torch.int64)
        for worker, group in enumerate(groups):
            owner[list(group)] = worker
        owners.append(owner)
    return (owners[0][:, None] == owners[1]).float()


def masks_of(step: Split, model: nn.Module) -> dict[str, Tensor]:
    """Name of each weight of `step` to its mask, broadcast over the kernel."""
    found = {}
    for blocks, layer in _layers(step, model):
        found[f"{blocks.module}.weight"] = inside(blocks).reshape(*layer.weight.shape[:2], *[1] * (layer.weight.dim() - 2))
    return found


def split_(step: Split, model: nn.Module, optimizer: optim.Optimizer | None = None) -> None:
    """Replace every layer of `step` by its blocks. Biases stay the same parameters; momentum follows the weights.

    Raises `SecateurError`, before anything changes, for a layer that is no plain linear layer or convolution without groups,
    and for a tied weight.
    """
    made = [(blocks, layer.weight, BlockDiagonal(layer, blocks)) for blocks, layer in _layers(step, model)]
    for blocks, old, layer in made:
        replace_module(model, blocks.module, layer)
        if optimizer is not None:
            _carry(optimizer, old, layer.weight, blocks)


def unsplit(step: Split, model: nn.Module) -> dict[int, Tensor]:
    """For a copy of `model` about to be split: every tensor with its own copy, the weights that go with themselves."""
    going = {f"{blocks.module}.weight" for blocks in step.layers}
    memo: dict[int, Tensor] = {}
    for name, tensor in tensors(model):
        if id(tensor) not in memo:
            copy = tensor.detach() if name in going else tensor.detach().clone()
            memo[id(tensor)] = nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy
    return memo


def _carry(optimizer: optim.Optimizer, old: Tensor, new: Tensor, blocks: Blocks) -> None:
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    state = optimizer.state.pop(old, None)
    if state and all(not isinstance(v, Tensor) or v.dim() == 0 or v.shape == old.shape for v in state.values()):
        moved = {k: gathered(v, blocks) if isinstance(v, Tensor) and v.dim() else v for k, v in state.items()}
        optimizer.state[new] = moved


def _layers(step: Split, model: nn.Module) -> Iterator[tuple[Blocks, Any]]:
    """Every block structure with the layer it replaces, all of them looked at first."""
    split_shapes(fingerprint(model), step)
    owners, found = _owners(model), []
    for blocks in step.layers:
        if reason := _unfit(model, blocks.module, owners):
            raise SecateurError(f"blocks for the layer {blocks.module!r}", reason, "leave it whole")
        found.append((blocks, model.get_submodule(blocks.module)))
    yield from found


def splittable(model: nn.Module) -> list[str]:
    """Names of the layers that a split step can replace, in the order of the model."""
    owners = _owners(model)
    return [name for name, _ in model.named_modules() if name and not _unfit(model, name, owners)]


def _owners(model: nn.Module) -> dict[int, list[str]]:
    owners: dict[int, list[str]] = {}
    for name, tensor in tensors(model):
        owners.setdefault(id(tensor), []).append(name)
    return owners


def _unfit(model: nn.Module, name: str, owners: dict[int, list[str]]) -> str | None:
    """Why the layer of that name cannot become blocks, or None."""
    layer: Any = model.get_submodule(name)
    parent = model.get_submodule(name.rpartition(".")[0])
    if type(layer) is not nn.Linear and not (type(layer) in _CONVOLUTIONS and layer.groups == 1):
        return f"a {type(layer).__name__} where a linear layer or a convolution without groups is needed"
    if isinstance(parent, (nn.TransformerEncoderLayer, nn.MultiheadAttention)):
        return f"a weight that nn.{type(parent).__name__} reads itself"
    tied = [other for p in layer.parameters() for other in owners[id(p)] if other.rpartition(".")[0] != name]
    return f"a tensor shared with {tied[0]!r}" if tied else None
