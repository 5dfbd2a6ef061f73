"""Repair by gradient steps towards what the original network computes, without labels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn, optim
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.core.errors import SecateurError, nearest
from secateur.core.numeric import is_number
from secateur.core.protocols import Batches
from secateur.core.restore import restoring
from secateur.core.running import call, device_of, evaluating, fits, flat, pairs, repeatable, to_device

Precision = Literal["float32", "bf16"]


def distil(
    before: nn.Module,
    after: nn.Module,
    batches: Batches,
    *,
    steps: int = 300,
    lr: float = 3e-3,
    precision: Precision = "float32",
    limit: int | None = None,
) -> None:
    """Train all weights of `after` for `steps` batches so that its blocks and its output follow those of `before`.

    Targets of `batches` (at most `limit`, begun anew as often as needed) are not read. The loss is the squared error
    relative to the target's square, of the output, plus its mean over the blocks: modules with children whose outputs kept
    their shape. Adam, from `lr` down to 0 along a cosine. Batch norms see batch statistics, dropout stays off; weights that
    are exactly zero stay so, so masks hold. "bf16" runs the forwards in that precision. Works for any plan.

    Raises `SecateurError`, with the weights as they were, where there is no batch or the loss is no longer finite.

    Source: the objective is FitNets' (Romero et al., 2015) with the whole network trained at once; blocks as the unit of
    reconstruction, relative to their own size, after Li et al., 2021 (BRECQ).
    """
    batches = repeatable(batches, limit)
    weights = _trained(after, steps, lr, precision)
    zeros = [(p, p.detach() == 0) for p in weights if p.dim() > 1]
    optimizer = optim.Adam(weights, lr=lr)
    schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    device, losses = device_of(after), []
    try:
        with restoring(after), evaluating(before), evaluating(after), _watched(before) as told, _watched(after) as found:
            for module in after.modules():
                module.training = isinstance(module, _BatchNorm)
            for inputs in islice(_endless(batches, limit), steps):
                x = to_device(inputs, device)
                with fits(inputs), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    with torch.no_grad():
                        target = call(before, x)
                    output = call(after, x)
                loss = _distance(output, target) + _apart(found, told)
                if not loss.requires_grad:
                    do = "give a model whose forward keeps the gradients of its weights"
                    raise SecateurError("a repair by distillation", "an output without a gradient", do)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                with torch.no_grad():
                    for weight, zero in zeros:
                        weight.masked_fill_(zero, 0)
                losses.append(loss.detach())
            _judge(losses, steps)
    finally:
        for weight in weights:
            weight.grad = None


def _trained(after: nn.Module, steps: int, lr: float, precision: str) -> list[nn.Parameter]:
    """The weights to train. Raises `SecateurError` where there are none, and for settings out of range."""
    if not isinstance(steps, int) or steps < 0 or not is_number(lr) or not 0 <= lr < math.inf:
        do = "give a whole number of steps and a learning rate, neither below 0"
        raise SecateurError("a repair by distillation", f"steps={steps!r} and lr={lr!r}", do)
    if precision not in get_args(Precision):
        raise SecateurError("a repair by distillation", f"precision={precision!r}", nearest(precision, get_args(Precision)))
    weights = [p for p in after.parameters() if p.requires_grad and p.is_floating_point()]
    if not weights:
        raise SecateurError("a repair by distillation", "no weight that is trained", "let some parameters require a gradient")
    return weights


def _judge(losses: list[Tensor], steps: int) -> None:
    """Raise `SecateurError` for too few batches, or a loss that was not finite at some step."""
    if len(losses) < steps:
        seen = f"only {len(losses)} for {steps} steps" if losses else "no batch"
        raise SecateurError("a repair by distillation", seen, "give data that can be iterated anew for every pass")
    if losses and not torch.isfinite(torch.stack(losses)).all():
        do = "lower its learning rate, or look for inputs on which the original network is not finite"
        raise SecateurError("a repair by distillation", "a loss that is not finite", do)


def _endless(batches: Batches, limit: int | None) -> Iterator[Any]:
    """Inputs, pass after pass."""
    while True:
        none = True
        for inputs, _ in pairs(batches, limit):
            none = False
            yield inputs
        if none:
            return


@contextmanager
def _watched(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Path of every module with children, the model itself left out, to the tensor it put out last."""
    outputs: dict[str, Tensor] = {}

    def hook(path: str):  # type: ignore[no-untyped-def]
        def note(module: nn.Module, args: Any, output: Any) -> None:
            outputs.pop(path, None)
            if isinstance(output, Tensor) and all(output is not other for other in outputs.values()):
                outputs[path] = output

        return note

    blocks = [(path, module) for path, module in model.named_modules() if path and any(True for _ in module.children())]
    handles = [module.register_forward_hook(hook(path)) for path, module in blocks]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _apart(found: dict[str, Tensor], told: dict[str, Tensor]) -> Tensor | float:
    """The mean relative error of the blocks whose outputs kept their shape."""
    both = [(found[path], told[path]) for path in found if path in told and found[path].shape == told[path].shape]
    return sum((_relative(mine, theirs) for mine, theirs in both), start=torch.zeros(())) / len(both) if both else 0.0


def _distance(output: Any, target: Any) -> Tensor:
    """The summed relative error of all tensors of two outputs that kept their shape."""
    mine, theirs = ([leaf for leaf in flat(value) if isinstance(leaf, Tensor)] for value in (output, target))
    if len(mine) == len(theirs):
        both = zip(mine, theirs, strict=True)
        errors = [_relative(a, b) for a, b in both if a.shape == b.shape and (a.is_floating_point() or a.is_complex())]
        if errors:
            return torch.stack(errors).sum()
    shapes = [[list(tensor.shape) for tensor in tensors] for tensors in (mine, theirs)]
    found = f"no number in the output that compares with the original's: shapes {shapes[0]} and {shapes[1]}"
    raise SecateurError("a repair by distillation", found, "give a model that puts out the same real numbers after the cut")


def _relative(mine: Tensor, theirs: Tensor) -> Tensor:
    exact = torch.promote_types(mine.dtype, torch.float32)
    mine, theirs = mine.to(exact), theirs.to(exact)
    return (mine - theirs).abs().square().sum() / theirs.abs().square().sum().clamp_min(torch.finfo(torch.float32).tiny)
