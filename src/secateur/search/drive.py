"""Running a search: judge what it yields, write the losses down, and replay them.

A search depends on nothing but what it is sent, so its history is all that a stopped search needs to go on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from secateur.core.codec import dumps
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.core.protocols import Judge, JudgeMany
from secateur.core.replacing import reason, replacing

Result = TypeVar("Result")


@dataclass(frozen=True)
class Trial:
    """One judged candidate: its place in the search, a digest of the plan, what each cut axis keeps, and the loss."""

    number: int
    plan: str
    widths: Mapping[str, int]
    loss: float


def drive(
    search: Generator[Plan | tuple[Plan, ...], Any, Result],
    judge: Judge,
    *,
    history: Iterable[Trial] = (),
    record: Callable[[Trial], None] | None = None,
    many: JudgeMany | None = None,
) -> Result:
    """What `search` returns, after each plan it yields was judged (lower is better) and told to `record`.

    The losses of `history` are sent first, without judging and without being recorded again: a search that was stopped
    goes on, a finished one returns the same result (law 12). Plans that the search yields together are judged by `many`
    at once, where it is given; the history is the same either way. Raises `SecateurError` where the history is of another
    search, naming the first trial that differs, and where a judge returns no number; what it raises itself comes through.
    """
    known = list(history)
    number, answer = 0, None
    while True:
        try:
            asked = next(search) if answer is None else search.send(answer)
        except StopIteration as stop:
            return stop.value
        plans = (asked,) if isinstance(asked, Plan) else asked
        losses = [_replayed(known[number + place], plan) for place, plan in enumerate(plans) if number + place < len(known)]
        rest = plans[len(losses) :]
        for some in [rest] if many is not None and len(rest) > 1 else [(plan,) for plan in rest]:
            found = many(some) if many is not None and len(some) > 1 else [judge(some[0])]
            for plan, loss in zip(some, _numbers(found, len(some)), strict=True):
                if record is not None:
                    record(Trial(number + len(losses), digest(plan), _widths(plan), loss))
                losses.append(loss)
        number += len(plans)
        answer = losses[0] if isinstance(asked, Plan) else tuple(losses)


def _numbers(found: Any, count: int) -> list[float]:
    """The losses a judge returned. Raises `SecateurError` where they are not one number per plan."""
    try:
        losses = [float(loss) for loss in found]
    except (TypeError, ValueError, RuntimeError) as error:
        words = str(error).strip().splitlines()[0].rstrip(". ")
        raise SecateurError(
            "a loss from a judge", f"no number: {words}", "return one number per plan, lower is better"
        ) from None
    if len(losses) != count:
        raise SecateurError(
            "losses from a judge", f"{len(losses)} for {count} plans", "return one number per plan, in their order"
        )
    return losses


def _replayed(trial: Trial, plan: Plan) -> float:
    if trial.plan != digest(plan):
        found = f"a history whose trial {trial.number} is another plan"
        raise SecateurError("a search replayed", found, "give the same model, scores and settings, or start anew")
    return trial.loss


def _widths(plan: Plan) -> dict[str, int]:
    return {name: after for name, (_, after) in plan.widths().items()}


def digest(plan: Plan) -> str:
    """A name for the plan's contents."""
    return sha256(dumps(plan).encode()).hexdigest()[:16]


def recorder(path: Path) -> Callable[[Trial], None]:
    """A function that adds a trial as one line to the file at `path`; a line that was cut off before is dropped.

    Raises `SecateurError` where the file cannot be written.
    """
    whole = [json.dumps(asdict(trial)) for trial in read_history(path)]

    def explain(error: Exception) -> SecateurError:
        return SecateurError(f"the history {str(path)!r}", reason(error), "choose a folder that can be written and has room")

    with replacing(path, "w", explain=explain) as file:
        file.writelines(f"{line}\n" for line in whole)

    def record(trial: Trial) -> None:
        with path.open("a") as file:
            file.write(json.dumps(asdict(trial)) + "\n")

    return record


def read_history(path: Path) -> list[Trial]:
    """Trials as `recorder` wrote them; none where there is no file. The last line may have been cut off by a stop.

    Raises `SecateurError` for any other line that is no trial.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    trials = []
    for number, line in enumerate(lines):
        try:
            trials.append(Trial(**json.loads(line)))
        except (ValueError, TypeError):
            if number + 1 < len(lines):
                found = f"line {number + 1} that is no trial"
                raise SecateurError(f"a history from {str(path)!r}", found, "remove the file to start anew") from None
    return trials
