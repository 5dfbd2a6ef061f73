"""What the run says in words: the sentence a manager can quote, what remains, what was left whole, what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secateur.report import words
from secateur.report.folder import Record, Width, table
from secateur.report.table import Headline

STAGES = ("dense", "after the cut", "after repair", "after fine-tuning")
NEEDS = {"macs": "multiply-accumulates", "params": "parameters"}
SAME = 0.005
SAME_TIME = 0.02


@dataclass(frozen=True)
class Remains:
    """One quantity before and after: the `share` of dense that remains, and whether it is a cost that grew."""

    title: str
    before: str
    after: str
    share: float
    verdict: str
    grew: bool = False


@dataclass(frozen=True)
class Reason:
    """Why some axes cannot be cut, and which, with their units."""

    text: str
    axes: tuple[Width, ...]

    @property
    def units(self) -> int:
        """Units of all these axes."""
        return sum(axis.before for axis in self.axes)


def title(run: Mapping[str, Any]) -> str:
    """What was compressed: the run's title, else its model and data, else the little that is known."""
    model, data = words.clean(run.get("model") or ""), words.clean(run.get("data") or "")
    return words.clean(run.get("title") or "") or " on ".join(part for part in (model, data) if part) or "A network"


def sentence(run: Mapping[str, Any], rows: Headline) -> str:
    """The run in one sentence, dense against the last stage there is; says so where there is nothing to compare yet."""
    name = title(run)
    colon = " \N{EN DASH} " if ":" in name else ": "
    if len(rows.rows) < 2 or rows.rows[0].stage != "dense":
        params = rows.cell(0, "params")
        known = f" the dense network has {params.text} parameters;" if params.value else ""
        return f"{name}{colon.rstrip(' ')}{known} the run has not reached the cut yet."
    last = rows.rows[-1].stage
    small = "the compressed network" if run.get("finished") or last == STAGES[-1] else f"the network {last}"
    needs = [_than(rows.cell(-1, key).ratio, noun) for key, noun in NEEDS.items()]
    space = _than(rows.cell(-1, "bytes").ratio, "disk space", less="less")
    says = [f"needs {' and '.join(filter(None, needs))}"] if any(needs) else []
    says += [part for part in (space and f"takes {space}", _speed(rows), _score(rows)) if part]
    return f"{name}{colon}{small} {_list(says) or 'was not measured against the dense one'}."


def conditions(run: Mapping[str, Any], rows: Headline) -> str:
    """What accuracy and latency were measured on, as a sentence; "" where neither is known."""
    hardware = table(run.get("hardware"))
    device, chip = (words.clean(hardware.get(key) or "") for key in ("device", "cpu"))
    threads = words.number(hardware.get("threads"))
    parts = []
    if rows.accuracy_on and rows.rows and rows.cell(-1, "accuracy").value is not None:
        parts.append(f"{rows.metric} on {rows.accuracy_on}")
    if rows.rows and rows.cell(-1, "latency_ms").value is not None and (device or chip):
        on_cpu = device in ("", "cpu")
        where = (chip or device) + (f" with {words.plural(int(threads), 'thread')}" if on_cpu and threads else "")
        parts.append(f"latency on {where if on_cpu else device}")
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def remains(rows: Headline) -> list[Remains]:
    """Every counted or timed quantity known both dense and at the last stage."""
    out: list[Remains] = []
    if len(rows.rows) < 2 or rows.rows[0].stage != "dense":
        return out
    for column in rows.columns:
        before, after = rows.cell(0, column.key), rows.cell(-1, column.key)
        if after.ratio is None:
            continue
        unit = f" {column.unit}" if column.unit else ""
        if column.key == "accuracy":
            out.append(Remains(column.title, f"{before.text}{unit}", f"{after.text}{unit}", after.ratio, after.change))
            continue
        verdict = f"{words.factor(after.ratio)} {_better(column.key)}" if after.ratio else ""
        if abs(after.ratio - 1) < (SAME_TIME if column.key == "latency_ms" else SAME):
            verdict = "unchanged"
        elif after.ratio > 1:
            verdict = f"{after.ratio:.2f}{words.TIMES} {'slower' if column.key == 'latency_ms' else 'more'}"
        grew = verdict != "unchanged" and after.ratio > 1
        out.append(Remains(column.title, f"{before.text}{unit}", f"{after.text}{unit}", after.ratio, verdict, grew))
    return out


def reasons(widths: Sequence[Width]) -> list[Reason]:
    """Fixed axes by reason, the reason that holds most units first."""
    groups: dict[str, list[Width]] = {}
    for width in widths:
        if width.fixed:
            groups.setdefault(width.fixed, []).append(width)
    found = [Reason(text, tuple(axes)) for text, axes in groups.items()]
    return sorted(found, key=lambda reason: -reason.units)


def missing(record: Record, rows: Headline) -> list[str]:
    """What a finished run would have and this folder has not, one sentence each."""
    stages, recipe = {row.stage for row in rows.rows}, record.settings
    needless = {STAGES[2]} if table(recipe.get("repair")).get("name") == "none" else set()
    needless |= {STAGES[3]} if table(recipe.get("finetune")).get("epochs") == 0 else set()
    left = [stage for stage in STAGES if stage not in stages | needless]
    out = [f"Not measured: the network {_list(left, 'or')}."] if left else []
    for key in ("latency_ms", "accuracy"):
        if rows.rows and all(rows.cell(i, key).value is None for i in range(len(rows.rows))):
            out.append(f"{rows.column(key).title} was not measured.")
    have = {file.name for file in record.files}
    wanted = {"axes.json": "which axes the network has", "plan.json": "what was cut", "small.safetensors": "the small network"}
    return out + [f"Not in the folder: {name} ({what})." for name, what in wanted.items() if name not in have]


def _list(parts: Sequence[str], word: str = "and") -> str:
    """Parts in a row; three or more get a comma before the last too, for a part may hold an "and" itself."""
    if len(parts) < 3:
        return f" {word} ".join(parts)
    return f"{', '.join(parts[:-1])}, {word} {parts[-1]}"


def _than(share: float | None, noun: str, less: str = "fewer") -> str:
    """ "2.12× fewer parameters" for a ratio to dense of 0.471; "" where it is unknown or 0."""
    if not share:
        return ""
    if abs(share - 1) < SAME:
        return f"as {'much' if less == 'less' else 'many'} {noun} as before"
    return f"{words.factor(share)} {less} {noun}" if share < 1 else f"{share:.2f}{words.TIMES} more {noun}"


def _better(key: str) -> str:
    return {"params": "fewer", "macs": "fewer", "latency_ms": "faster"}.get(key, "smaller")


def _speed(rows: Headline) -> str:
    """Words such as "runs 1.62× faster", "" where latency is unknown."""
    share = rows.cell(-1, "latency_ms").ratio
    if not share:
        return ""
    if abs(share - 1) < SAME_TIME:
        return "runs as fast as before"
    return f"runs {words.factor(share)} faster" if share < 1 else f"runs {share:.2f}{words.TIMES} slower"


def _score(rows: Headline) -> str:
    """Words such as "scores 93.06 % accuracy instead of 94.37 % (−1.31 points)", or what of it is known."""
    before, after = rows.cell(0, "accuracy"), rows.cell(-1, "accuracy")
    if after.value is None:
        return ""
    percent = " %" if rows.share else ""
    unit = f"{percent} {rows.metric}"
    if before.value is None:
        return f"scores {after.text}{unit}"
    change = after.change.replace(" pt", " points")
    return f"scores {after.text}{unit} instead of {before.text}{percent} ({change})"
