"""Run one operation where it is cheap: on real values while they do not depend on weights, on the meta device after.

Masks, positions and flags that a forward looks at (`if mask.all():`) come from small tensors that no weight has touched.
They keep their values; what meets a weight, which has a shape and no memory, becomes a shape too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

SMALL = 1 << 20
"""Entries up to which a tensor keeps its values."""
META = torch.device("meta")


def execute(func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of `func`, an ATen overload called `name` without its name space."""
    meta, real = devices(args)
    if kwargs.get("device") == META and not meta:
        if real or _entries(args) <= SMALL:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        return func(*args, **kwargs)
    if meta and kwargs.get("device") is not None and name == "_to_copy":
        kwargs = {**kwargs, "device": META}
    if meta and real:
        if isinstance(args[0], Tensor) and not args[0].is_meta and name.endswith("_"):
            return args[0]  # its values are unknown from here on; its shape stays
        args, kwargs = all_meta(args, kwargs)
    return func(*args, **kwargs)


def convolved(args: tuple[Any, ...]) -> Tensor | None:
    """What a convolution over plain meta tensors puts out, without PyTorch's own shape function, which is far slower.

    None where that function has to judge: transposed, other layouts in memory, sizes that do not fit.
    """
    x, weight, bias, stride, padding, dilation, transposed, _, groups = args
    if transposed or not (x.is_meta and weight.is_meta and x.is_contiguous() and weight.is_contiguous()):
        return None
    (outputs, inputs, *kernel), room = weight.shape, x.dim() - 2
    if len(kernel) != room or x.dtype != weight.dtype or x.shape[1] != inputs * groups or outputs % groups or not outputs:
        return None
    if bias is not None and bias.shape != (outputs,):
        return None
    one, two, three = (list(way) * room if len(way) == 1 else way for way in (stride, padding, dilation))
    sides = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(x.shape[2:], kernel, one, two, three, strict=True)]
    return x.new_empty([x.shape[0], outputs, *sides]) if min(sides) > 0 else None


def packed(name: str, args: tuple[Any, ...]) -> tuple[Tensor, Tensor] | None:
    """What packing a padded sequence, or padding a packed one, puts out; None where the lengths are not known.

    PyTorch has no shape function for either. Lengths are values that no weight has touched, and stay on the CPU.
    """
    data, counts = args[:2]
    if counts.is_meta:
        return None
    if name == "_pack_padded_sequence":
        sizes = [int((counts > step).sum()) for step in range(int(counts.max()))]
        return data.new_empty([int(counts.sum()), *data.shape[2:]], device=META), torch.tensor(sizes)
    batch, steps = int(counts[0]), max(len(counts), int(args[4]))
    lengths = torch.tensor([int((counts > place).sum()) for place in range(batch)])
    lead = [batch, steps] if args[2] else [steps, batch]
    return data.new_empty([*lead, *data.shape[1:]], device=META), lengths


def recurrent(args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """What a recurrent layer over a packed sequence puts out: all steps, then the states as they came in."""
    states = list(args[2]) if isinstance(args[2], (list, tuple)) else [args[2]]
    width = states[0].shape[-1] * (2 if args[8] else 1)
    return args[0].new_empty([args[0].shape[0], width]), *[torch.empty_like(state) for state in states]


def all_meta(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with every tensor on the meta device."""
    moved: tuple[tuple[Any, ...], dict[str, Any]] = tree_map_only(
        Tensor, lambda t: t if t.is_meta else t.to(META), (args, kwargs)
    )
    return moved


def devices(args: Iterable[Any]) -> tuple[bool, bool]:
    """Are there tensors on the meta device among the arguments, and others?"""
    meta = real = False
    for arg in args:
        for item in arg if isinstance(arg, (list, tuple)) else (arg,):
            if isinstance(item, Tensor):
                meta, real = meta or item.is_meta, real or not item.is_meta
    return meta, real


def _entries(args: tuple[Any, ...]) -> int:
    """How large a tensor the sizes in a factory's arguments ask for."""
    entries = 1
    for size in args[0] if args and isinstance(args[0], (list, tuple)) else args[:2]:
        entries *= max(int(size), 1) if isinstance(size, (int, float)) else 1
    return entries
