"""What a few batches tell of the loss, weight by weight, for a Scoring Net that reads gradients.

Shape legend: B batches, N units.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.core.protocols import Batches, Loss
from secateur.core.running import evaluating
from secateur.criteria.places import Place, parameters, plain
from secateur.criteria.taylor import differentiable, each_gradient


class Slopes:
    """Mean gradient and mean squared gradient of every parameter over at most `limit` batches, in evaluation mode.

    `batches` is how many there were: one forward and one backward pass each.
    """

    def __init__(self, model: nn.Module, batches: Batches, loss: Loss, *, limit: int = 10) -> None:
        weights = list(dict.fromkeys(parameters(model).values()))
        self._mean = {weight: torch.zeros_like(plain(weight)) for weight in weights}
        self._square = {weight: torch.zeros_like(plain(weight)) for weight in weights}
        count = 0
        with evaluating(model), differentiable(weights):
            for slopes in each_gradient(model, weights, batches, loss, limit):
                for weight, gradient in zip(weights, slopes, strict=True):
                    self._mean[weight] += plain(gradient)
                    self._square[weight] += plain(gradient).square()
                count += 1
        if not count:
            raise SecateurError("gradients for a Scoring Net", "no batch", "give data that can be iterated anew for every pass")
        self.batches = count
        for weight in weights:
            self._mean[weight] /= count
            self._square[weight] /= count

    def mean(self, place: Place) -> Tensor:
        """The mean gradient of the whole parameter of `place`. Raises `SecateurError` for a parameter of another model."""
        if place.parameter not in self._mean:
            raise SecateurError(
                "gradients for a Scoring Net", "those of another model", "make the Slopes of the model it scores"
            )
        return self._mean[place.parameter]

    def of(self, writers: Sequence[Place], readers: Sequence[Place]) -> Tensor:
        """(N, 5): |sum of weight times gradient|, norm of the gradient, its cosine with the weights, sum of squares, and the
        slope of the loss by a gate on the readers."""
        w, g, square = (
            torch.cat([_rows(place, what(place)) for place in writers], 1) for what in (_values, self.mean, self._of)
        )
        product = (w * g).sum(1)
        norm = g.square().sum(1).sqrt()
        cosine = product / (norm * w.square().sum(1).sqrt()).clamp_min(1e-24)
        gates = [(_rows(place, _values(place)) * _rows(place, self.mean(place))).sum(1) for place in readers]
        gate = torch.stack(gates).sum(0).abs() if gates else torch.zeros_like(norm)
        return torch.stack([product.abs(), norm, cosine, square.sum(1), gate], 1)

    def _of(self, place: Place) -> Tensor:
        return self._square[place.parameter]


def _values(place: Place) -> Tensor:
    return plain(place.parameter)


def _rows(place: Place, tensor: Tensor) -> Tensor:
    return tensor.movedim(place.dim, 0)[place.entries.to(tensor.device)].flatten(1).double().cpu()
