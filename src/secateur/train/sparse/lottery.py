"""Iterative magnitude pruning with rewinding: train, prune, go back to early weights, again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.surgery import fingerprint, masks_after
from secateur.train.sparse.hook import Sparse
from secateur.train.sparse.methods import fixed
from secateur.train.sparse.saliency import magnitude, of_round, one_shot
from secateur.train.sparse.select import Layout

Train = Callable[[nn.Module, Sparse], None]
"""Trains the model in place with the hook."""


def iterative(
    model: nn.Module,
    train: Train,
    keep: float,
    *,
    rounds: int,
    rewind: Mapping[str, Tensor] | None = None,
    layout: Layout | None = None,
    dense: Sequence[str] = (),
) -> Plan:
    """The plan after `rounds` rounds of training and pruning to keep^(r / rounds); `model` ends trained with its masks.

    After each pruning weights go back to `rewind`, a state dict of early training (Frankle et al., 2020; of the
    initialisation: Frankle and Carbin, 2019), or stay as they are without one (Han et al., 2015). Momentum begins anew,
    since every round is a training of its own. Raises `SecateurError` where `rewind` is of another model.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise SecateurError(f"iterative pruning in rounds={rounds!r}", "no number of rounds", "give a whole number from 1")
    early = None if rewind is None else {name: value.detach().clone() for name, value in rewind.items()}
    plan = Plan(fingerprint(model))
    for number in range(1, rounds + 1):
        train(model, fixed(model, plan, dense=dense))
        alive = masks_after(plan)
        scores = {
            name: size.masked_fill(~torch.from_numpy(alive[name]).to(size.device), -1) if name in alive else size
            for name, size in magnitude(model, dense=dense).items()
        }
        plan = one_shot(model, keep ** (number / rounds), scores, layout=of_round(layout, number == rounds))
        if early is not None:
            try:
                model.load_state_dict(early)
            except RuntimeError as error:
                do = "give model.state_dict() as it was early in training"
                raise SecateurError("rewinding", str(error).strip().splitlines()[-1].strip(), do) from error
    train(model, fixed(model, plan, dense=dense))
    return plan
