"""The report: one HTML file made from a run folder alone. No network, no scripts, light and dark, print and phone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from secateur.io import files
from secateur.report import charts, summary, words
from secateur.report.folder import Record, read, table
from secateur.report.table import Headline, headline

NAME = "report.html"
FIGURE = rf"[+{words.MINUS}]?\d[\d,.]*(?:{words.TIMES}| %| points)"
WHOLE = r"\b[A-Za-z]{1,12}-\d{1,4}\b"
NAMES = {"cores": "Cores", "cpu": "CPU", "gpu": "GPU", "threads": "Threads", "device": "Device"}


def build(run_folder: str | Path, path: str | Path | None = None) -> Path:
    """The path of the report written: `path`, or report.html in the run folder. The same folder gives the same bytes.

    A run that is not finished gets a report that says what is missing. Raises `SecateurError` where the folder holds no
    run, one of its files is damaged, or the report cannot be written.
    """
    path = Path(path) if path is not None else Path(run_folder) / NAME
    files.write_text(path, page(read(run_folder)))
    return path


def page(record: Record) -> str:
    """The HTML of one run."""
    rows = headline(record.facts)
    loader = PackageLoader("secateur.report", ".")
    jinja = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    jinja.globals |= {"w": words}
    return jinja.get_template("page.html.j2").render(
        title=summary.title(record.run),
        sentence=_figures_strong(summary.sentence(record.run, rows)),
        conditions=summary.conditions(record.run, rows),
        finished=bool(record.run.get("finished")),
        missing=summary.missing(record, rows),
        remains=summary.remains(rows),
        table=rows,
        has_memory=any(column.key == "peak_memory" for column in rows.columns),
        best=_best(record, rows),
        raw=_raw(record.facts),
        latency=_latency(record.settings, rows),
        trade_offs=[chart for key in ("macs", "latency_ms") if (chart := charts.trade_off(rows, key, f"by-{key}"))],
        **_structure(record),
        **_training(record, rows),
        **_origin(record),
    )


def _figures_strong(text: str) -> Markup:
    """`text`, escaped, with its figures in bold and names such as CIFAR-10 kept on one line."""
    bold = re.sub(FIGURE, r"<strong>\g<0></strong>", str(escape(text)))
    return Markup(re.sub(WHOLE, r'<span class="whole">\g<0></span>', bold))


def _structure(record: Record) -> dict[str, Any]:
    """What was cut and what was not."""
    free = [width for width in record.widths if not width.fixed]
    cut = [width for width in free if width.after < width.before]
    reasons = summary.reasons(record.widths)
    whole = tuple(width for width in free if width.after == width.before)
    reasons += [summary.Reason("could be cut, and the plan keeps every unit", whole)] if record.planned and whole else []
    notes = record.traced.get("notes")
    return {
        "planned": record.planned,
        "free": free,
        "most": sorted(cut, key=lambda width: width.after / width.before)[:3],
        "units": (sum(width.before for width in free), sum(width.after for width in free)),
        "widths_charts": charts.widths(free, "widths") if record.planned else [],
        "reasons": reasons,
        "traced": bool(record.traced),
        "free_share": words.number(record.traced.get("free_share")),
        "notes": [words.clean(note) for note in notes] if isinstance(notes, list) else [],
    }


def _training(record: Record, rows: Headline) -> dict[str, Any]:
    """Loss and accuracy over epochs. Accuracies above 1 are a user's own metric and stay as they are."""
    keys = {"train_accuracy": "training", "holdout_accuracy": "held out"}
    values = [epoch[key] for epoch in record.epochs for key in keys if key in epoch]
    percent = rows.share and all(0 <= value <= 1 for value in values)
    losses = charts.curve(record.epochs, {"loss": "training"}, "loss", title="loss", percent=False)
    scores = charts.curve(record.epochs, keys, "score", title=rows.metric, percent=percent)
    phases = [epoch["phase"] for epoch in record.epochs]
    counts = {charts.PHASES.get(phase, phase): phases.count(phase) for phase in dict.fromkeys(phases)}
    held_out = any("holdout_accuracy" in epoch for epoch in record.epochs)
    seconds = sum(epoch.get("seconds", 0) for epoch in record.epochs)
    curves = [chart for chart in (losses, scores) if chart]
    return {"curves": curves, "phases": counts, "training_seconds": seconds, "held_out": held_out}


def _origin(record: Record) -> dict[str, Any]:
    """Everything needed to do it again."""
    run = record.run
    spent = {words.clean(name): table(phase).get("seconds") for name, phase in table(run.get("phases")).items()}
    facts = {key: words.clean(run[key]) for key in ("model", "data", "seed") if run.get(key) is not None}
    facts |= {key: words.moment(run[key]) for key in ("started", "finished") if run.get(key)}
    return {
        "command": words.clean(run.get("command") or ""),
        "origin": {key.capitalize(): value for key, value in facts.items()},
        "seconds": words.number(run.get("seconds")),
        "spent": spent,
        "hardware": {NAMES.get(key, key): value for key, value in _flat(run.get("hardware")).items()},
        "versions": (versions := _flat(run.get("versions"))),
        "made_by": version if re.match(r"\d", version := versions.get("secateur", "")) else "",
        "recipe": words.printable(record.recipe).strip(),
        "files": record.files,
        "has_weights": any(file.name == "small.safetensors" for file in record.files),
    }


def _flat(value: Any) -> dict[str, str]:
    """A table with text for values; empty where it is none."""
    return {words.clean(key): words.clean(part) for key, part in table(value).items() if part is not None}


def _best(record: Record, rows: Headline) -> str:
    """A sentence on the epoch that was best on the holdout, or "" where the run recorded none."""
    best = table(record.facts.get("best"))
    epoch, value = words.number(best.get("epoch")), words.number(best.get("accuracy"))
    if epoch is None or value is None:
        return ""
    score = words.share(value, 2) if rows.share else words.fixed(value, words.places(abs(value)))
    return f"The table has the last epoch; epoch {epoch:g}, the best on held-out images, scores {score}."


def _raw(facts: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Every number of every stage, digit for digit."""

    def figures(stage: Mapping[str, Any]) -> list[tuple[str, str]]:
        return [(words.clean(key), repr(value)) for key, value in stage.items() if words.number(value) is not None]

    return [(words.clean(stage.get("stage", "")), figures(stage)) for stage in facts.get("stages", [])]


def _latency(settings: Mapping[str, Any], rows: Headline) -> str:
    """Sentences on how latency was taken, from the recipe; "" where it does not say or there is none."""
    measure = table(settings.get("measure"))
    batch, repeats = words.number(measure.get("batch")), words.number(measure.get("repeats"))
    times = [rows.cell(i, "latency_ms").value for i in range(len(rows.rows))]
    if not batch or not repeats or not any(times):
        return ""
    once = " The cut networks have one shape and were timed as one." if len(times) > 2 and len(set(times[1:])) == 1 else ""
    return f"Latency is the median of {words.plural(int(repeats), 'run')} at batch size {int(batch):,}.{once}"
