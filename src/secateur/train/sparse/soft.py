"""ST-3's weights: dense ones that the optimizer moves, and soft-thresholded, rescaled ones that the model computes with.

Vanderschueren and De Vleeschouwer, 2023, "Are Straight-Through Gradients and Soft-Thresholding All You Need for Sparse
Training?", and its released code. Shape legend: O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from secateur.train.sparse.weights import Weight


class Soft:
    """The dense weights of every layer, its threshold and its scales (O, 1, ...).

    w~ = s (w - sign(w) t) where |w| > t, else 0; s = 1.01 / (share + 0.01) per output, share = sum of the kept |w| over the
    sum of all. The threshold is the largest pruned |w|: the released code interpolates between it and the next.
    """

    def __init__(self, weights: Sequence[Weight], allocation: str = "global") -> None:
        self.weights, self.one = weights, allocation == "global"
        self.dense = {w.name: w.tensor.detach().clone() for w in weights}
        self.masks = {w.name: torch.ones_like(w.tensor, dtype=torch.bool) for w in weights}
        self.thresholds = {w.name: torch.zeros((), device=w.tensor.device) for w in weights}
        self.scales = {w.name: torch.ones_like(w.tensor.detach().flatten(1)[:, :1]) for w in weights}

    def restore(self) -> None:
        """Put the dense weights into the model: the optimizer moves them by the gradient at the thresholded ones."""
        for weight in self.weights:
            weight.tensor.copy_(self.dense[weight.name])

    def keep(self) -> None:
        """Take the moved dense weights from the model."""
        for weight in self.weights:
            self.dense[weight.name].copy_(weight.tensor)

    def threshold(self, masks: Mapping[str, Tensor]) -> None:
        """Take thresholds and scales from the dense weights, for `masks` of their largest entries."""
        self.masks = dict(masks)
        pruned = {name: self.dense[name].abs().masked_fill(mask, 0).amax() for name, mask in masks.items()}
        highest = torch.stack(list(pruned.values())).amax()
        for name, mask in masks.items():
            size = self.dense[name].abs()
            self.thresholds[name] = highest if self.one else pruned[name]
            kept, whole = ((part.flatten(1).mean(1, keepdim=True) + 1e-6) for part in (size * mask, size))
            self.scales[name] = 1.01 / (kept / whole + 0.01)

    def show(self) -> None:
        """Put the thresholded weights into the model."""
        for weight in self.weights:
            dense, mask = self.dense[weight.name], self.masks[weight.name]
            scale = self.scales[weight.name].view(-1, *[1] * (dense.dim() - 1))
            weight.tensor.copy_((dense - dense.sign() * self.thresholds[weight.name]) * mask * scale)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """All four by layer."""
        held = {"dense": self.dense, "masks": self.masks, "thresholds": self.thresholds, "scales": self.scales}
        return {key: {name: value.clone() for name, value in values.items()} for key, values in held.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on from `state`; the model holds the thresholded weights already."""
        for key in ("dense", "masks", "thresholds", "scales"):
            held = getattr(self, key)
            setattr(self, key, {name: state[key][name].to(held[name].device) for name in held})
