"""One worker's part of a split network, and its run beside the others on processes of their own.

Shape legend: B batch, W workers.
"""

from __future__ import annotations

import copy
from numbers import Integral
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from secateur.core.axes import Axes
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.core.running import call, evaluating, fits
from secateur.core.split import Blocks, Split
from secateur.surgery.fingerprint import tensors
from secateur.surgery.split import BlockDiagonal


def worker(model: nn.Module, axes: Axes, plan: Plan, rank: int, example: Any = None) -> nn.Module:
    """The part of worker `rank`: `model` with every divided axis cut to the units that are its own.

    `model`: the network the `plan` of one split step was made for, or what the plan made of it, trained further.
    The sum over all workers of what they put out is what the split network puts out: layers that read a divided axis and
    write one that is whole keep their bias on worker 0 alone. With an `example` that is checked. No worker holds a
    weight of another.
    Raises `SecateurError` where the plan is no split, or not the one the model was split by, where a divided axis is normalised
    over, or sums do not add up.
    """
    step = plan.steps[0] if len(plan.steps) == 1 else None
    if not isinstance(step, Split):
        raise SecateurError("a worker's part", "a plan that is not one split step", "give the plan of allocate.partition")
    divided = {name: module.blocks for name, module in model.named_modules() if isinstance(module, BlockDiagonal)}
    if divided and (other := next((b.module for b in step.layers if divided.get(b.module) != b), None)):
        found, do = f"a layer {other!r} that is divided otherwise", "give the plan that the model was split by"
        raise SecateurError("a worker's part", found, do)
    whole = expanded(model if divided else plan.apply(model))
    parts = groups(axes, step)
    if bad := next((name for name in parts if not axes[name].exact), None):
        raise SecateurError(f"a worker's part of axis {bad!r}", "a norm over all of its units", "leave that axis whole")
    count = step.layers[0].workers
    if not isinstance(rank, Integral) or not 0 <= rank < count:
        raise SecateurError(f"worker {rank!r}", f"a plan of {count} workers", f"give a number from 0 to {count - 1}")
    if example is not None:
        _check(whole, [_part(whole, axes, parts, number) for number in range(count)], example)
    return _part(whole, axes, parts, rank)


def summed(part: nn.Module, *inputs: Any) -> Tensor:
    """The output of the split network on `inputs`, from this process' part: one sum over all processes, at the end."""
    with torch.no_grad():
        output = part(*inputs)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(output)
    return output


def groups(axes: Axes, step: Split) -> dict[str, list[list[int]]]:
    """Axis name to the units of each worker, for every axis that can be cut and that the layers of `step` divide.

    Raises `SecateurError` where two layers divide an axis differently.
    """
    found: dict[str, list[list[int]]] = {}
    by_name = {blocks.module: blocks for blocks in step.layers}
    for axis in axes.free:
        for slot in axis.slots:
            path, _, last = slot.tensor.rpartition(".")
            blocks = by_name.get(path)
            if blocks is None or last != "weight" or slot.dim not in (0, 1):
                continue
            owner = _owners(blocks, slot.dim)[slot.of(np.arange(axis.units))]  # (N, E)
            parts = [np.flatnonzero((owner == w).all(1)).tolist() for w in range(blocks.workers)]
            if sum(map(len, parts)) < axis.units or found.get(axis.name, parts) != parts:
                do = "give the plan of allocate.partition, made for these axes"
                raise SecateurError(f"the parts of axis {axis.name!r}", f"layer {path!r} divides it otherwise", do)
            found[axis.name] = parts
    return found


def expanded(model: nn.Module) -> nn.Module:
    """A copy of `model` with plain layers in place of blocks: zeros stand where no weight is."""
    whole = copy.deepcopy(model)
    for name, module in list(whole.named_modules()):
        if isinstance(module, BlockDiagonal):
            whole.set_submodule(name, _plain(module))
    return whole


def _plain(module: BlockDiagonal) -> nn.Module:
    blocks, rows = module.blocks, module.weight.shape[0]
    weight = module.weight.new_zeros(rows, module.weight.shape[1] * blocks.workers, *module.weight.shape[2:])
    start = 0
    with torch.no_grad():
        for inputs, outputs in zip(blocks.inputs, blocks.outputs, strict=True):
            at = torch.tensor(outputs)[:, None], torch.tensor(inputs)
            weight[at] = module.weight[start : start + len(outputs)]
            start += len(outputs)
    layer: Any
    if module.convolution is None:
        layer = nn.Linear(weight.shape[1], rows, bias=False, device="meta")
    else:
        held: Any = module
        layer = module.convolution(
            weight.shape[1], rows, tuple(weight.shape[2:]), held.stride, held.padding, held.dilation,
            bias=False, padding_mode=held.padding_mode, device="meta",
        )  # fmt: skip
    layer.weight, layer.bias = nn.Parameter(weight, module.weight.requires_grad), module.bias
    return layer.train(module.training)


def _owners(blocks: Blocks, dim: int) -> np.ndarray:
    """The worker of each channel along a dim of the weight."""
    sides = (blocks.outputs, blocks.inputs)[dim]
    owner = np.empty(sum(map(len, sides)), dtype=np.int64)
    for number, group in enumerate(sides):
        owner[list(group)] = number
    return owner


def _part(whole: nn.Module, axes: Axes, parts: dict[str, list[list[int]]], rank: int) -> nn.Module:
    free = {name: units for name, units in parts.items() if axes[name].fixed is None}
    part = axes.plan({name: units[rank] for name, units in free.items()}).apply(whole)
    if rank:
        read = {slot.tensor for name in free for slot in axes[name].readers() if slot.dim == 1}
        written = {slot.tensor for name in free for slot in axes[name].slots if slot.dim == 0}
        named = dict(tensors(part))
        with torch.no_grad():
            for tensor in read - written:
                bias = named.get(tensor.removesuffix("weight") + "bias")
                if bias is not None:
                    bias.zero_()
    return part


def _check(whole: nn.Module, parts: list[nn.Module], example: Any) -> None:
    outputs = []
    for network in (whole, *parts):
        with torch.no_grad(), evaluating(network), fits(example):
            outputs.append(call(network, example))
        if not isinstance(outputs[-1], Tensor):
            found = f"an output of type {type(outputs[-1]).__name__}"
            raise SecateurError("a worker's part", found, "divide a network that puts out one tensor")
    total = torch.stack(outputs[1:]).sum(0)
    error = float((total - outputs[0]).abs().max() / outputs[0].abs().max().clamp_min(1e-12))
    if error > 1e-3:
        found = f"parts whose outputs do not add up to the network's (relative error {error:.1e})"
        do = "divide a network whose only whole layers are the first and the last, or run it in one process"
        raise SecateurError("a worker's part", found, do)
