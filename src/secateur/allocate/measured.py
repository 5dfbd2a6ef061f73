"""A budget on milliseconds that holds by the clock: what is asked of a table is corrected by what the cut network takes."""

from __future__ import annotations

from collections.abc import Callable

from secateur.core.errors import SecateurError
from secateur.core.plan import Plan

ROUNDS = 8
SLACK = 0.04
"""A plan this close below the share is as good as the clock is."""


def measured(plan_of: Callable[[float], Plan], share: float, real: Callable[[Plan], float]) -> Plan:
    """The largest plan that was seen to take at most `share` of the dense network's milliseconds.

    `plan_of` makes a plan by a table, for a share of it; `real` says what share the cut network takes. A table adds up layers
    that were timed alone, at some widths: its plan is tried first, then what is asked of the table moves along the line
    through the last two shares found; where the table knows of no plan, more is asked for. At most `ROUNDS` plans in all.
    Raises `SecateurError` where none is fast enough.
    """
    asked, refused = share, 0.0
    best: tuple[float, Plan] | None = None
    refusal: SecateurError | None = None
    found: list[tuple[float, float]] = [(0.0, 0.0)]
    for _ in range(ROUNDS):
        try:
            plan = plan_of(asked)
        except SecateurError as error:
            refused, refusal = asked, error
            asked = (asked + min([a for a, _ in found[1:]], default=1.0)) / 2
            continue
        now = real(plan)
        if now <= share and (best is None or now > best[0]):
            best = now, plan
        if share - SLACK <= now <= share or (now < share and asked == 1.0):
            break
        steep = (now - found[-1][1]) / (asked - found[-1][0]) if asked != found[-1][0] else 0.0
        found.append((asked, now))
        following = asked + (share - SLACK / 2 - now) / max(steep, 0.25)
        asked = min(1.0, max(following, asked / 4))
        if asked <= refused:
            asked = (refused + found[-1][0]) / 2
    if best is not None:
        return best[1]
    if len(found) == 1 and refusal is not None:
        raise refusal
    least = min(now for _, now in found[1:])
    do = "ask for more to remain, lower the floor, or take multiple=8 or 16: odd widths are slow"
    raise SecateurError(
        f"keep={{'latency': {share!r}}}", f"{least:.3f} of the dense network's time with the fastest plan that was tried", do
    )
