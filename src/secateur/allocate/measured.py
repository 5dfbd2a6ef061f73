"""A budget on milliseconds that holds by the clock: what is asked of a table is corrected by what the cut network takes."""

from __future__ import annotations

from collections.abc import Callable

from secateur.core.errors import SecateurError
from secateur.core.plan import Plan

ROUNDS = 6
SLACK = 0.04
"""A plan this close below the share is as good as the clock is."""


def measured(plan_of: Callable[[float], Plan], share: float, real: Callable[[Plan], float]) -> Plan:
    """The largest plan that was seen to take at most `share` of the dense network's milliseconds.

    `plan_of` makes a plan by a table, for a share of it; `real` says what share the cut network takes. A table adds up layers
    that were timed alone, at some widths: its plan is tried first, then what is asked of the table moves along the line through the
    last two shares found, at most `ROUNDS` plans in all. Raises `SecateurError` where none of them is fast enough.
    """
    asked, least = share, float("inf")
    best: tuple[float, Plan] | None = None
    before = (0.0, 0.0)
    for _ in range(ROUNDS):
        try:
            plan = plan_of(asked)
        except SecateurError:
            if least == float("inf"):
                raise
            break  # the table knows of nothing faster
        found = real(plan)
        least = min(least, found)
        if found <= share and (best is None or found > best[0]):
            best = found, plan
        if share - SLACK <= found <= share or (found < share and asked == 1.0):
            break
        steep = (found - before[1]) / (asked - before[0]) if asked != before[0] else 0.0
        before, step = (asked, found), (share - SLACK / 2 - found) / max(steep, 0.25)
        asked = min(1.0, max(asked + step, asked / 4))
    if best is None:
        do = "ask for more to remain, lower the floor, or take multiple=8 or 16: odd widths are slow"
        raise SecateurError(f"keep={{'latency': {share!r}}}", f"no plan below {least:.3f} of the dense network's time", do)
    return best[1]
