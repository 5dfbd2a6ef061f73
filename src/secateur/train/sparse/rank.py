"""The rank term of RPG: push weight matrices away from their low-rank approximations, in closed form.

Chen et al., 2023, "Towards Higher Ranks via Adversarial Weight Pruning". Shape legend: B matrices, M <= N their sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.linalg import Subspace, normalised, repulsion, stack, tail_space, unstack
from secateur.train.sparse.weights import Weight


@dataclass(frozen=True)
class Rank:
    """The rank term: `strength` lambda, `tail` delta, the energy the low-rank approximation leaves out.

    `acts` "growth": on which entries grow, when masks change (what the released code does); "step": on the weights, in
    each step (what the abstract says). `every`: steps between two eigendecompositions where it acts in each step; between
    them the distance is to the subspace of the last one, or, with `hold`, the push of the last one serves as it is and costs
    nothing, which wide layers on few pixels need. `linear`: on linear layers too, which the code leaves out.
    `normalise`: per layer, the term has `strength` times the root mean square of the task's gradient, so that lambda
    needs no tuning for another network.
    """

    strength: float
    tail: float = 0.2
    acts: Literal["growth", "step"] = "growth"
    every: int = 1
    linear: bool = False
    normalise: bool = False
    hold: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.strength < float("inf") or not 0 < self.tail < 1:
            found = f"strength {self.strength!r} and tail {self.tail!r}"
            raise SecateurError("a rank term", found, "give a strength from 0 and a tail between 0 and 1")
        if self.acts not in ("growth", "step"):
            raise SecateurError("a rank term", f"acts={self.acts!r}", 'give "growth" or "step"')
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise SecateurError("a rank term", f"every={self.every!r}", "give a whole number from 1")


class RankTerm:
    """Holds the subspaces of the last eigendecomposition of every stack of weights of one shape."""

    def __init__(self, settings: Rank, weights: Sequence[Weight]) -> None:
        chosen = [weight for weight in weights if weight.convolution or settings.linear]
        if not chosen:
            found, do = "no convolution", "give Rank(..., linear=True) to act on linear layers"
            raise SecateurError("a rank term", found, do)
        self.settings, self.weights = settings, chosen
        self._spaces: list[Subspace] = []
        self._held: dict[str, Tensor] = {}

    @torch.no_grad()
    def gradients(self, *, fresh: bool = True) -> dict[str, Tensor]:
        """Name to strength * dL/dw, where L is the mean over layers of -||n - A||^2 (zero layers do not count).

        `fresh` decomposes the weights anew; otherwise the last subspaces serve, or the last push where the settings hold
        it. Nothing waits for the device but `torch.linalg.eigh` itself.
        """
        if not fresh and self._held:
            return dict(self._held)
        groups = stack({weight.name: weight.tensor.detach().flatten(1)[None] for weight in self.weights})
        units = [normalised(group.matrices) for group in groups]
        if fresh or not self._spaces:
            try:
                self._spaces = [tail_space(unit, self.settings.tail) for unit, _ in units]
            except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
                do = "lower the learning rate or clip gradients; the checkpoint before, where there is one, is kept"
                raise SecateurError("the rank term", "weights that are not finite numbers", do) from error
        pushed = [repulsion(unit, norms, space) for (unit, norms), space in zip(units, self._spaces, strict=True)]
        layers = torch.stack([(distances > 0).sum() for _, distances in pushed]).sum().clamp(min=1)
        found: dict[str, Tensor] = {}
        for group, (push, _) in zip(groups, pushed, strict=True):
            found |= {name: value[0] for name, value in unstack(group.parts, push * self.settings.strength / layers).items()}
        made = {weight.name: found[weight.name].view(weight.tensor.shape).to(weight.tensor.dtype) for weight in self.weights}
        self._held = dict(made) if self.settings.hold else {}
        return made

    @torch.no_grad()
    def beside(self, push: Tensor, gradient: Tensor) -> Tensor:
        """`push` as it is added to the task's `gradient`: as computed, or scaled to strength times its root mean square."""
        if not self.settings.normalise:
            return push
        size = push.square().mean().sqrt()
        return push * (self.settings.strength * gradient.square().mean().sqrt() / torch.where(size > 0, size, 1))

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The subspaces and what is held, so that a resumed run goes on with the same ones."""
        kinds = {True: "outside", False: "inside"}
        spaces = {f"{kinds[space.outside]} {number}": space.vectors.clone() for number, space in enumerate(self._spaces)}
        return {"spaces": spaces, "held": {name: push.clone() for name, push in self._held.items()}}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Go on with the subspaces of `state`."""
        device = self.weights[0].tensor.device
        self._spaces = [Subspace(vectors.to(device), kind.startswith("outside")) for kind, vectors in state["spaces"].items()]
        self._held = {name: push.to(device) for name, push in state["held"].items()}
