"""Repair by gradient steps towards what the original network computes, without labels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn, optim
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from secateur.core.errors import SecateurError
from secateur.core.protocols import Batches
from secateur.core.running import call, device_of, evaluating, fits, to_device

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
    old = {name: value.clone() for name, value in after.state_dict().items()}
    weights = [p for p in after.parameters() if p.requires_grad and p.is_floating_point()]
    zeros = [(p, p.detach() == 0) for p in weights if p.dim() > 1]
    optimizer = optim.Adam(weights, lr=lr)
    schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    device, losses = device_of(after), []
    try:
        with evaluating(before), evaluating(after), _watched(before) as told, _watched(after) as found:
            for module in after.modules():
                module.training = isinstance(module, _BatchNorm)
            for inputs in islice(_endless(batches, limit), steps):
                x = to_device(inputs, device)
                with fits(inputs), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    with torch.no_grad():
                        target = call(before, x)
                    output = call(after, x)
                loss = _distance(output, target) + _apart(found, told)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                with torch.no_grad():
                    for weight, zero in zeros:
                        weight.masked_fill_(zero, 0)
                losses.append(loss.detach())
        if not losses and steps > 0:
            raise SecateurError("a repair by distillation", "no batch", "give data that can be iterated anew for every pass")
        if losses and not torch.isfinite(torch.stack(losses)).all():
            do = "lower its learning rate, or look for inputs on which the original network is not finite"
            raise SecateurError("a repair by distillation", "a loss that is not finite", do)
    except BaseException:
        after.load_state_dict(old)
        raise
    finally:
        for weight in weights:
            weight.grad = None


def _endless(batches: Batches, limit: int | None) -> Iterator[Any]:
    """Inputs, pass after pass."""
    while True:
        number = -1
        for number, (inputs, _) in enumerate(islice(batches, limit)):  # noqa: B007
            yield inputs
        if number < 0:
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
    pairs = [(found[path], told[path]) for path in found if path in told and found[path].shape == told[path].shape]
    return sum((_relative(mine, theirs) for mine, theirs in pairs), start=torch.zeros(())) / len(pairs) if pairs else 0.0


def _distance(output: Any, target: Any) -> Tensor:
    """The summed relative error of all tensors of two outputs."""
    pairs = zip(tree_leaves(output), tree_leaves(target), strict=True)
    errors = [_relative(mine, theirs) for mine, theirs in pairs if isinstance(mine, Tensor) and mine.is_floating_point()]
    return torch.stack(errors).sum()


def _relative(mine: Tensor, theirs: Tensor) -> Tensor:
    exact = torch.promote_types(mine.dtype, torch.float32)
    mine, theirs = mine.to(exact), theirs.to(exact)
    return (mine - theirs).square().sum() / theirs.square().sum().clamp_min(torch.finfo(torch.float32).tiny)
