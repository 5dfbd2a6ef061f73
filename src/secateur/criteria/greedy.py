"""One unit after another, the best offer first."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def greedy(units: int, offers: Callable[[Tensor], Tensor], take: Callable[[int], None]) -> tuple[list[int], Tensor]:
    """Units in the order they are taken, and what each offered then; (N,).

    `offers` gives a number for each of the units that are left, whose positions it gets; the highest is handed to `take`.
    """
    left, order, offered = list(range(units)), [], torch.zeros(units, dtype=torch.float64)
    for place in range(units):
        found = offers(torch.tensor(left))
        best = int(found.argmax())
        offered[place] = found[best]
        order.append(left.pop(best))
        take(order[-1])
    return order, offered
