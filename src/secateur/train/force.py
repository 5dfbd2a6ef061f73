"""Force regularisation: filters that attract each other end in a space of low rank, without a decomposition in training.

Wen et al., 2017, "Coordinating filters for faster deep neural networks", section 3.
Shape legend: O filters of D weights each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.core.numeric import is_number
from secateur.core.plan import Plan
from secateur.train.trp.layers import Layer, current, layers_of
from secateur.train.trp.plan import plan_of
from secateur.train.trp.settings import Deploy, TRPSettings

NEAR = 1e-6
"""Squared distance of unit filters below which rounding decides the direction: those are together already."""


class Force:
    """The hook: every filter is pulled towards the others of its layer, along the sphere it lies on.

    With w the filters scaled to unit length, filter i moves by strength * ||W_i|| * sum over j of f_ji less its part along w_i,
    added to the negative gradient. `law` "l2": f_ji = w_j - w_i, the pull grows with distance; "l1": its unit vector, the
    same pull at all distances. Pulls have no part along the filter: lengths are left to the loss. `every` counts steps.
    `settings` are those of `TRP.plan` and say which layers; the format is "channel", whose rows are the filters.

    The sums are taken in closed form: for "l2" the pull is the sum of all unit filters less its part along w_i; for "l1"
    the same with each weighted by 1 / distance. The formula is taken from the authors' code by description only.
    Raises `SecateurError` for a strength or a law that is none.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    >>> [product.ranks for product in Force(net, 1e-3).plan({"rank": 2}).steps[0].products]
    [(2,)]
    """

    def __init__(
        self,
        model: nn.Module,
        strength: float = 1e-3,
        *,
        law: Literal["l1", "l2"] = "l2",
        every: int = 1,
        ignore: Sequence[str] = (),
        settings: TRPSettings | None = None,
    ) -> None:
        if not is_number(strength) or not 0 <= strength < float("inf"):
            raise SecateurError(f"Force with strength={strength!r}", "no strength", "give a number from 0")
        if law not in ("l1", "l2"):
            raise SecateurError(f"Force with law={law!r}", "no such law", 'give "l1" or "l2"')
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise SecateurError(f"Force with every={every!r}", "no number of steps", "give a whole number from 1")
        if settings is not None and not isinstance(settings, TRPSettings):
            raise SecateurError(f"Force with settings={settings!r}", "no settings", "give a TRPSettings")
        self.model, self.strength, self.law, self.every = model, strength, law, every
        self.settings = settings or TRPSettings(format="channel", deploy={"energy": 0.95})
        self.layers: tuple[Layer, ...] = layers_of(model, self.settings, ignore)
        self.step = 0

    def loss(self) -> float:
        """0: forces act on gradients."""
        return 0.0

    def after_backward(self) -> None:
        """Subtract the pulls from the gradients."""
        if self.step % self.every:
            return
        self.layers = current(self.model, self.layers)
        with torch.no_grad():
            for layer in self.layers:
                gradient = layer.weight.grad
                if gradient is not None:
                    pull = pulls(layer.weight.detach().flatten(1), self.law)
                    gradient.sub_(pull.reshape(gradient.shape), alpha=self.strength)

    def after_step(self) -> None:
        """Count the step."""
        self.step += 1

    def plan(self, deploy: Deploy | None = None, *, example: Any = None) -> Plan:
        """As `TRP.plan`."""
        self.layers = current(self.model, self.layers)
        deploy = self.settings.deploy if deploy is None else deploy
        return plan_of(self.model, self.layers, self.settings, deploy, example=example)

    def state_dict(self) -> dict[str, Any]:
        """The number of steps."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`. Raises `SecateurError` where it is that of another hook."""
        if not isinstance(state, dict) or set(state) != {"step"}:
            found = "a state that is not a number of steps alone"
            raise SecateurError("going on with Force", found, "give one of Force.state_dict")
        self.step = int(state["step"])


def pulls(filters: Tensor, law: str) -> Tensor:
    """||W_i|| * sum over j of (f_ji - (f_ji . w_i) w_i) for every row (O, D); zero rows are pulled nowhere."""
    with torch.autocast(filters.device.type, enabled=False):
        wide = filters if filters.dtype == torch.float64 else filters.float()
        lengths = wide.norm(dim=1, keepdim=True)
        unit = wide / lengths.clamp(min=torch.finfo(wide.dtype).tiny)
        if law == "l2":
            towards = unit.sum(0, keepdim=True).expand_as(unit)
        else:
            squares = (2 - 2 * unit @ unit.T).clamp(min=0)  # distances of unit vectors
            near = squares < NEAR
            towards = torch.where(near, 0, squares.clamp(min=NEAR).rsqrt()).fill_diagonal_(0) @ unit
        # what points along w_i falls away, -w_i of every f_ji with it
        return (lengths * (towards - (towards * unit).sum(1, keepdim=True) * unit)).to(filters.dtype)
