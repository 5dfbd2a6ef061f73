"""How good a model is on batches it was not trained on.

Shape legend: B images of a batch, K classes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.core.errors import NotFinite, SecateurError
from secateur.core.protocols import Batches, Loss
from secateur.core.running import call, device_of, evaluating, fits, size_of, to_device


def evaluate(model: nn.Module, batches: Batches, *, loss: Loss | None = None, precision: str = "float32") -> dict[str, float]:
    """{"accuracy", "loss"} over all of `batches`: the share of images whose label comes first, and the mean loss.

    Without "accuracy" where outputs are no logits (B, K) or targets no labels (B,). `loss` is cross-entropy unless given.
    The model stays as it is, its mode included. Raises `SecateurError` for no batches, and for outputs that are not numbers.
    """
    loss = loss or F.cross_entropy
    device = device_of(model)
    count, total, correct = 0, torch.zeros((), device=device), torch.zeros((), device=device)
    labelled = True
    with evaluating(model), torch.no_grad():
        for x, target in batches:
            x, target = to_device(x, device), to_device(target, device)
            n = size_of(target)
            with fits(x, target):
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
                    output = call(model, x)
                total += loss(as_float(output), target).float() * n
                hits = hits_of(output, target)
            labelled = labelled and hits is not None
            correct += hits if hits is not None else 0
            count += n
    if not count:
        raise SecateurError("an evaluation", "no batches", "give at least one (input, target) pair")
    mean = float(total) / count
    if math.isnan(mean):
        raise NotFinite("an evaluation", "outputs that are not numbers (nan)", "check the weights and the inputs")
    return {"accuracy": float(correct) / count, "loss": mean} if labelled else {"loss": mean}


def hits_of(output: Any, target: Any) -> Tensor | None:
    """How many labels (B,) come first among the logits (B, K); None where these are no logits and labels."""
    labels = target[0] if isinstance(target, (tuple, list)) else target
    if not (isinstance(output, Tensor) and isinstance(labels, Tensor) and output.dim() == 2 and labels.dim() == 1):
        return None
    if labels.is_floating_point() or len(labels) != len(output):
        return None
    return (output.argmax(1) == labels).sum()


def as_float(output: Any) -> Any:
    """Half-precision outputs as float32, so that the loss is exact."""
    half = isinstance(output, Tensor) and output.dtype in (torch.bfloat16, torch.float16)
    return output.float() if half else output
