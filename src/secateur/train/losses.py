"""Losses, and batches that carry a teacher's answers.

Shape legend: B images of a batch, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.core.errors import SecateurError
from secateur.core.protocols import Batches, Loss
from secateur.core.running import call, device_of, evaluating, fits, pairs


def cross_entropy(smoothing: float = 0.0) -> Loss:
    """Mean cross-entropy of logits (B, K, ...) against labels (B, ...), with label smoothing (Szegedy et al., 2016)."""

    def loss(output: Any, target: Any) -> Tensor:
        return F.cross_entropy(output, target, label_smoothing=smoothing)

    return loss


def distillation(alpha: float = 0.9, temperature: float = 4.0, smoothing: float = 0.0) -> Loss:
    """alpha T^2 KL(teacher || student), both softened by T, plus (1 - alpha) cross-entropy.

    The target is the pair `taught` makes: labels (B,) and the teacher's logits (B, K).
    Hinton, Vinyals and Dean, 2015, section 2; there the two terms are weighted by hand, here they share one `alpha`.
    """
    numbers = isinstance(alpha, (int, float)) and isinstance(temperature, (int, float))
    if not numbers or not 0 <= alpha <= 1 or not 0 < temperature < math.inf:
        found = f"alpha {alpha!r}, temperature {temperature!r}"
        raise SecateurError("distillation", found, "give alpha between 0 and 1 and a temperature above 0")

    def loss(output: Any, target: Any) -> Tensor:
        labels, logits = answered(output, target)
        soft = F.log_softmax(output / temperature, 1)
        wanted = F.log_softmax(logits.to(output.dtype) / temperature, 1)
        divergence = F.kl_div(soft, wanted, reduction="batchmean", log_target=True)
        return alpha * temperature**2 * divergence + (1 - alpha) * F.cross_entropy(output, labels, label_smoothing=smoothing)

    return loss


def answered(output: Any, target: Any) -> tuple[Any, Tensor]:
    """(target, the teacher's logits) of what `taught` makes.

    Raises `SecateurError` where the network or its teacher returns more than logits, and where they differ in shape.
    """
    labels, logits = target
    if not isinstance(output, Tensor) or not isinstance(logits, Tensor) or output.shape != logits.shape:
        one, two = (list(x.shape) if isinstance(x, Tensor) else f"a {type(x).__name__}" for x in (output, logits))
        do = "give a network and a teacher that return logits of the same classes"
        raise SecateurError("distillation", f"outputs of {one} and a teacher's of {two}", do)
    return labels, logits


def taught(batches: Batches, teacher: nn.Module, *, precision: str = "float32") -> Taught:
    """`batches` whose target is (target, the teacher's output): what `distillation` wants.

    The teacher answers in evaluation mode, on the very images the student sees, and stays in the mode it is in; `precision` as
    in `FitSettings`. Raises `SecateurError` where the teacher is no model.
    """
    if not isinstance(teacher, nn.Module):
        raise SecateurError("the teacher of a training", f"a {type(teacher).__name__}", "give a torch.nn.Module, built")
    return Taught(batches, teacher, precision)


@dataclass(frozen=True, eq=False)
class Taught:
    """Batches with a teacher's answers in their targets."""

    batches: Batches
    teacher: nn.Module
    precision: str

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return self._answered(self.batches)

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        """The pass of that number, where the batches know numbered passes."""
        numbered = getattr(self.batches, "epoch", None)
        return self._answered(numbered(number) if numbered else self.batches)

    def _answered(self, batches: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        teacher, device = self.teacher, device_of(self.teacher)
        for x, target in pairs(batches):
            cast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")
            with torch.no_grad(), evaluating(teacher), cast, fits(x, what="the teacher on inputs"):
                answer = call(teacher, x)
            yield x, (target, answer)
