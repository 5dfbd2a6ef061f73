"""Re-estimation of batch-norm statistics, the cheapest repair after a cut."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.core.errors import NotFinite, SecateurError
from secateur.core.protocols import Batches
from secateur.core.running import call, device_of, evaluating, fits, pairs, to_device


def batchnorm(before: nn.Module, after: nn.Module, batches: Batches, limit: int | None = None) -> None:
    """Set the running statistics of every batch norm of `after` to their mean over `batches` (at most `limit` of them).

    The mean is cumulative: each batch counts the same, whatever the layer's momentum. Only batch norms see batch
    statistics; dropout and all else stay in evaluation mode, as they will be used. Weights, momenta and modes come out
    as they went in, and a model without running statistics is left alone. `before` is not read; every repair takes it.
    Give batches as the network was trained on, with their augmentation: statistics of plain images cost even a network that
    nothing was cut from. After `least_squares`, which fits the statistics there are, it does more harm than good.

    Raises `SecateurError`, with the old statistics put back, where there is no batch, a batch is too small to have a
    variance, or statistics come out infinite or not a number.

    Source: Li et al., 2020 (EagleEye), section 3.3, "adaptive batch normalization"; the paper averages by momentum.
    """
    norms = {name: module for name, module in after.named_modules() if _has_statistics(module)}
    if not norms:
        return
    old = {name: {key: value.clone() for key, value in module.named_buffers(recurse=False)} for name, module in norms.items()}
    momenta = {name: module.momentum for name, module in norms.items()}
    try:
        with torch.no_grad(), evaluating(after):
            for module in norms.values():
                module.reset_running_stats()
                module.momentum = None  # cumulative
                module.training = True
            _pass(after, batches, limit)
        _check(norms)
    except BaseException:
        for name, module in norms.items():
            for key, value in module.named_buffers(recurse=False):
                value.copy_(old[name][key])
        raise
    finally:
        for name, module in norms.items():
            module.momentum = momenta[name]


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and isinstance(module.running_mean, Tensor)


def _pass(model: nn.Module, batches: Batches, limit: int | None) -> None:
    device, seen = device_of(model), 0
    for inputs, _ in pairs(batches, limit):
        try:
            with fits(inputs):
                call(model, to_device(inputs, device))
        except SecateurError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            found = f"one value per channel in batch {seen}"
            raise SecateurError("batch norm re-estimated", found, "give larger batches, or drop the last small one") from error
        seen += 1
    if not seen:
        raise SecateurError("batch norm re-estimated", "no batch", "give data that can be iterated anew for every pass")


def _check(norms: dict[str, nn.Module]) -> None:
    for name, module in norms.items():
        if not all(torch.isfinite(value).all() for value in module.buffers(recurse=False)):
            found = f"statistics of {name!r} that are infinite or not a number"
            raise NotFinite("batch norm re-estimated", found, "check the inputs and the weights for such values")
