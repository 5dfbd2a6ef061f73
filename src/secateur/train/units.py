"""The entries that produce the units a plan drops: what penalties push to zero."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.core.plan import Cut, Keep, Plan


def cuts_of(plan: Plan, asked: str) -> tuple[Cut, ...]:
    """The cuts of a plan of one keep step. Raises `SecateurError` beginning with `asked` for any other plan."""
    if not plan.steps:
        return ()
    step = plan.steps[0]
    if len(plan.steps) > 1 or not isinstance(step, Keep):
        raise SecateurError(asked, "a plan that does more than drop units", "give the plan of an allocator")
    return tuple(cut for cut in step.cuts if len(cut.kept) < cut.units)


def written(model: nn.Module, cut: Cut, units: tuple[int, ...], *, scales: bool) -> Iterator[tuple[Tensor, int, Tensor]]:
    """(parameter, dim, entries) of `units` in the weights that write them; with `scales` in biases and norms too."""
    named = dict(model.named_parameters(remove_duplicate=False))
    places = torch.tensor(units, dtype=torch.int64).numpy()
    for slot in cut.slots:
        parameter = named.get(slot.tensor)
        if parameter is None or slot.dim < 0 or slot.role == "read":
            continue
        if scales or (slot.role == "write" and parameter.dim() > 1):
            yield parameter, slot.dim, torch.from_numpy(slot.of(places).reshape(-1)).to(parameter.device)
