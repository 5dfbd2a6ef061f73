"""Write docs/results/sparse_engine.md from the files of bench/sparse_engine.py.

python docs/make/sparse_engine.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "sparse_engine"
PAGE = ROOT / "docs" / "results" / "sparse_engine.md"

SPARSITIES = (0.8, 0.9, 0.95, 0.98)
GOALS = {"resnet50": (2.0, 3.5, 5.5, 8.0), "vgg19": (3.2, 6.0, 10.0, 18.0), "resnet20": (2.5, 3.5, 5.0, 8.0)}
RIVAL = (0.7, 1.4, 1.7, 2.5)
"""MNN 3.6.1, ResNet-50, batch 1, one thread, as this project recorded it before; it is not run here."""
DENSE = ("PyTorch eager", "PyTorch eager, channels_last", "torch.compile", "ONNX Runtime", "OpenVINO")
LOWER = ("PyTorch bf16", "ONNX Runtime int8")
LAYERS_OF = ("resnet50-b1-t1", "resnet50-b16-t1", "vgg19-b16-t1", "resnet20-b16-t1")
Record = Mapping[str, Any]


def page(parts: Mapping[str, Record]) -> str:
    """The results as Markdown; `parts`: records by name."""
    order = [f"{net}-b{batch}-t{threads}" for net in GOALS for threads in (1, 2) for batch in (1, 16)]
    if not parts:
        raise SystemExit("no results yet: run some parts first")
    known = [parts[name] for name in order if name in parts]
    others = [record for name, record in parts.items() if record["network"] not in GOALS]
    machine = next(iter(parts.values()))["machine"]
    blocks = [
        "# The sparse engine, measured",
        "Written by `python docs/make/sparse_engine.py` from the files in `bench/results/sparse_engine/`.\n"
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['instruction_set']}; torch {machine['torch']}, "
        f"ONNX Runtime {machine['onnxruntime']}, OpenVINO {machine['openvino']}. Random weights.",
        "Times faster than the *fastest* dense float32 runtime of PyTorch eager, `torch.compile`, ONNX Runtime and OpenVINO.\n"
        "All run in turns; medians of the turns' ratios, in brackets the least and the largest. One thread: CPU time; two:\n"
        "wall time. Load: running processes on the machine before and after; above the threads, others were at work.",
        "## The same sparsity in every layer",
        _speeds(known, "uniform", goals=True),
        "## The smallest weights of the whole network zero",
        _speeds(known, "global", goals=False),
        "## Values and weights of bf16",
        'The same networks with `precision="bf16"`, the same sparsity in every\n'
        "layer. Times faster than the fastest dense float32 runtime, than dense bf16 (PyTorch, channels last), than the\n"
        "engine in float32. Error: the largest of any output, relative to the largest output of the float32 model.",
        _lower(known, "bf16"),
        *_bytes(known),
        "## Goals",
        "What is reached, over the fastest dense float32 runtime, by the most exact values that reach it: 80, 90, 95 and 98 %\n"
        "zeros in every layer. A dash: by none that was measured.",
        _goals(known),
        *_others(others),
        "## All runtimes, milliseconds",
        _runtimes([*known, *others]),
    ]
    if "curve" in parts:
        blocks += ["## Speed against sparsity: ResNet-50, batch 1, one thread", *_curve(parts["curve"])]
    for name in LAYERS_OF:
        if name in parts:
            blocks += [f"## Layers of {name} at 90 %", *_layers(parts[name])]
    return "\n\n".join(blocks) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _speeds(records: Sequence[Record], spread: str, *, goals: bool) -> str:
    rows = []
    for record in records:
        found = {row["sparsity"]: row for row in _engines(record) if row["spread"] == spread}
        best = f"{record['best_dense']}, {record['dense_ms'][record['best_dense']]:.3g} ms"
        link = f"[{record['network']}, {record['size']}](../../bench/results/sparse_engine/{record['part']}.json)"
        load = "-".join(f"{value:.1f}" for value in record["load"])
        cells = [_speed(found[s]) if s in found else "" for s in SPARSITIES]
        rows.append([link, str(record["batch"]), str(record["threads"]), load, best, *cells])
    if goals:
        rows += [[f"goal: {name}", "", "", "", "", *(f"{value:g}" for value in goal)] for name, goal in GOALS.items()]
        rows.append(["recorded before: MNN 3.6.1, ResNet-50", "1", "1", "", "", *(f"{value:g}" for value in RIVAL)])
    heads = [f"{sparsity:.0%}" for sparsity in SPARSITIES]
    return _table(["network, input", "batch", "threads", "load", "fastest dense", *heads], rows)


def _engines(record: Record, precision: str = "float32") -> list[Record]:
    """The engine's rows in one precision; older results name none, and are float32."""
    return [row for row in record["engine"].values() if row.get("precision", "float32") == precision]


def _bytes(records: Sequence[Record]) -> list[str]:
    """The section on int8, where something was measured."""
    measured = [record for record in records if _engines(record, "int8")]
    if not measured:
        return []
    text = (
        'Likewise with `precision="int8"`, ranges taken from the input itself: times faster than the fastest dense float32\n'
        "runtime, than dense int8 (ONNX Runtime), than the engine in float32, than the engine in bf16. The engine takes bf16\n"
        "where that is measured to be faster."
    )
    return ["## Values and weights of int8", text, _lower(measured, "int8")]


def _others(records: Sequence[Record]) -> list[str]:
    """The section on networks without a goal, where one was measured."""
    if not records:
        return []
    text = (
        "The same sparsity in every layer; depthwise convolutions stay dense. `bert` is two layers of BERT-base on 128 tokens."
    )
    return ["## Other networks", text, _speeds(records, "uniform", goals=False), "In bf16:", _lower(records, "bf16")]


def _lower(records: Sequence[Record], precision: str) -> str:
    """The engine in bf16 or int8, beside dense in the same and the engine in more exact values."""
    rows = []
    rival = {"bf16": "PyTorch bf16", "int8": "ONNX Runtime int8"}[precision]
    for record in records:
        single = {row["sparsity"]: row for row in _engines(record) if row["spread"] == "uniform"}
        others = [single]
        if precision == "int8":
            others.append({row["sparsity"]: row for row in _engines(record, "bf16")})
        lower = {row["sparsity"]: row for row in _engines(record, precision)}
        dense = record["lower_precision_ms"].get(rival)
        over_single = record["dense_ms"][record["best_dense"]] / dense if dense else None
        cells = []
        for sparsity in SPARSITIES:
            row = lower.get(sparsity)
            if row is None:
                cells.append("-")
                continue
            key = f"over_dense_{precision}"
            over = f"{row[key]:.2f}" if key in row else "-"
            own = [f"{other[sparsity]['ms'] / row['ms']:.2f}" if sparsity in other else "-" for other in others]
            cells.append(", ".join([f"**{row['speedup']:.2f}**", over, *own]))
        error = f"{max(row['relative_error'] for row in lower.values()):.1e}" if lower else "-"
        first = [f"{record['network']}, {record['size']}", str(record["batch"]), str(record["threads"])]
        rows.append([*first, f"{over_single:.2f}" if over_single else "-", *cells, error])
    heads = [f"engine {precision}, {sparsity:.0%}" for sparsity in SPARSITIES]
    return _table(["network, input", "batch", "threads", f"dense {precision}", *heads, "error"], rows)


def _goals(records: Sequence[Record]) -> str:
    rows = []
    for record in records:
        cells = []
        for sparsity, goal in zip(SPARSITIES, GOALS[record["network"]], strict=True):
            fast = [
                f"{goal:g} by {row.get('precision', 'float32')}"
                for row in record["engine"].values()
                if row["sparsity"] == sparsity and row["spread"] == "uniform" and row["speedup"] >= goal
            ]
            cells.append(fast[0] if fast else f"{goal:g}: -")
        rows.append([record["network"], str(record["batch"]), str(record["threads"]), *cells])
    return _table(["network", "batch", "threads", *(f"{sparsity:.0%}" for sparsity in SPARSITIES)], rows)


def _speed(row: Record) -> str:
    return f"**{row['speedup']:.2f}** ({row['speedup_low']:.2f}-{row['speedup_high']:.2f})"


def _runtimes(records: Sequence[Record]) -> str:
    rows = []
    precisions = ["bf16"] + ["int8"] * any(_engines(record, "int8") for record in records)
    for record in records:
        known = {**record["dense_ms"], **record["lower_precision_ms"]}
        engine = [f"{record['engine'][f'engine {s:g}']['ms']:.3g}" for s in SPARSITIES]
        lower = [{row["sparsity"]: f"{row['ms']:.3g}" for row in _engines(record, precision)} for precision in precisions]
        dense = [f"{known[n]:.3g}" if n in known else "-" for n in (*DENSE, *LOWER)]
        rows.append([record["part"], *dense, *engine, *(times.get(s, "-") for times in lower for s in SPARSITIES)])
    words = ["engine", *(f"engine {precision}" for precision in precisions)]
    engines = [f"{word}, {s:.0%}" for word in words for s in SPARSITIES]
    return _table(["part", *DENSE, *LOWER, *engines], rows)


def _curve(record: Record) -> list[str]:
    rows = _engines(record)
    precisions = ["bf16"] + ["int8"] * bool(_engines(record, "int8"))
    lower = {word: {row["sparsity"]: row["speedup"] for row in _engines(record, word)} for word in precisions}
    shares = [row["sparsity"] for row in rows]
    kernels = [str(sum(layer["runs"] == "engine" for layer in row["layers"])) for row in rows]
    eager = min(taken for name, taken in record["dense_ms"].items() if name.startswith("PyTorch eager"))
    table = _table(
        ["zeros", *(f"{row['sparsity']:.0%}" for row in rows)],
        [
            ["times faster", *(f"{row['speedup']:.2f}" for row in rows)],
            *(
                [f"times faster, engine {word}", *(f"{known[s]:.2f}" if s in known else "-" for s in shares)]
                for word, known in lower.items()
            ),
            ["times faster than PyTorch eager", *(f"{eager / row['ms']:.2f}" for row in rows)],
            ["layers on the engine's kernels", *kernels],
            ["the whole runs in", *(row.get("whole_in") or "the engine" for row in rows)],
        ],
    )
    own = [row["sparsity"] for row in rows if not row.get("whole_in")]
    text = f"`compile` measured that its own kernels are the fastest from {min(own):.0%} zeros on." if own else ""
    if others := sorted({row["whole_in"] for row in rows if row.get("whole_in")}):
        text += f" Below, the whole runs dense in {' or '.join(others)}."
    if control := record.get("control"):
        text += f" A second instance of {control['rival']}, timed in the same turns, is {_speed(control)} times as fast."
    best = record["dense_ms"][record["best_dense"]]
    beside = [f"{name} {best / taken:.2f}" for name, taken in record["lower_precision_ms"].items()]
    least = min(eager / row["ms"] for row in rows)
    text += f" Layers that PyTorch runs faster dense are left to it: never less than {least:.2f} times PyTorch eager."
    return [
        "![Speed against sparsity](sparse_engine.svg)",
        table,
        text + (f" Dense in lower precision on the same scale: {'; '.join(beside)}." if beside else ""),
    ]


def picture(record: Record) -> str:
    """The curve as SVG: times faster than the fastest dense float32 runtime against the share of zeros."""
    rows = [row for row in _engines(record) if row["spread"] == "uniform"]
    lower = [("bf16", "s--", "#c06014"), ("int8", "^:", "#1f4f8f")]
    shares = [100 * row["sparsity"] for row in rows]
    best = record["dense_ms"][record["best_dense"]]
    with matplotlib.rc_context({"svg.hashsalt": "sparse engine", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(6, 3.2), layout="constrained")
        plot = figure.subplots()
        plot.fill_between(
            shares, [r["speedup_low"] for r in rows], [r["speedup_high"] for r in rows], color="#1f6f54", alpha=0.2
        )
        plot.plot(shares, [row["speedup"] for row in rows], "o-", ms=4, color="#1f6f54", label="sparse engine, float32")
        for word, style, color in lower:
            if found := _engines(record, word):
                across, up = [100 * row["sparsity"] for row in found], [row["speedup"] for row in found]
                plot.plot(across, up, style, ms=3, color=color, label=f"sparse engine, {word}")
        plot.axhline(1, color="#1d1d1b", lw=0.8, label=f"{record['best_dense']}, dense float32")
        for (name, taken), style in zip(record["lower_precision_ms"].items(), ((0, (4, 3)), (0, (1, 2))), strict=False):
            plot.axhline(best / taken, color="#7d3f98", lw=0.9, ls=style, label=f"{name}, dense")
        plot.set_yscale("log", base=2)
        plot.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
        plot.set_xlabel("zeros in every layer (%)")
        plot.set_ylabel("times faster")
        plot.set_title(f"{record['network']}, batch {record['batch']}, one thread", fontsize=9, loc="left")
        plot.grid(color="#d9d9d4", lw=0.6)
        plot.legend(frameon=False, fontsize=8)
        for side in plot.spines.values():
            side.set_visible(False)
        stream = StringIO()
        FigureCanvasSVG(figure).print_figure(stream, format="svg", facecolor="white", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _layers(record: Record) -> list[str]:
    rows = []
    for row in record["engine"]["engine 0.9"]["layers"]:
        first = [row["layer"], "x".join(map(str, row["weight"])), f"{row['sparsity']:.1%}"]
        if "share" in row:
            kernel = f"{row['rows']} x {row['tile']}" + (f", {row['parts']} parts" if row["parts"] > 1 else "")
            times = [f"{row[key]:.3f}" for key in ("ms", "peak_ms", "bytes_ms")]
            rows.append([*first, str(row["pixels"]), kernel, *times, f"{row['share']:.0%}"])
        else:
            rows.append([*first, "", row["runs"], "", "", "", ""])
    heads = ["layer", "weight", "zeros", "pixels", "rows x floats", "ms", "at peak, ms", "by bytes, ms", "share"]
    text = (
        "Bounds: non-zeros at the machine's multiply-add peak, bytes at its bandwidth; share: the larger over the time.\n"
        "Times are of a layer run again and again, its tensors in the caches."
    )
    return [text, _table(heads, rows)]


def runs() -> dict[str, Record]:
    """The records by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}


def main() -> None:
    """Write the page."""
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    found = runs()
    PAGE.write_text(page(found))
    if "curve" in found:
        PAGE.with_suffix(".svg").write_text(picture(found["curve"]))


if __name__ == "__main__":
    main()
