"""docs/results/channel.md and its picture, from the run files below bench/results/channel and channel_tune.

python docs/make/channel.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "bench" / "results" / "channel", ROOT / "docs" / "results"
HEADS = {
    "none": "no repair",
    "batchnorm": "batch norm",
    "compensation": "compensation",
    "least_squares": "least squares",
    "least_squares+batchnorm": "least squares, batch norm",
    "two_sided": "both sides",
    "own": "its own",
    "distil": "distilled",
}
PAINT = {
    "none": "#b9b9b3",
    "batchnorm": "#7fa8c9",
    "compensation": "#d98c3f",
    "least_squares": "#1f6f54",
    "least_squares+batchnorm": "#8fbfa9",
    "two_sided": "#12312a",
    "own": "#7d3f98",
    "distil": "#b3202c",
}
INSTANT = 0.5
"""Seconds: a repair below them was made by the selection, on its way."""
NAMES = {"cifar_resnet20_a": "ResNet-20", "cifar_resnet56_a": "ResNet-56"}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, numbers to the right."""
    ruled = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (head, ruled, *rows)]


def percent(value: float) -> str:
    """93.39"""
    return f"{100 * value:.2f}"


def network(value: dict[str, Any]) -> list[str]:
    """The section of one network."""
    name, dense, images = NAMES[value["model"]], value["dense"], value["images"]
    lines = [f"## {name}, no retraining at all"]
    lines += [
        f"Dense: {percent(dense['test'])} % on {images['test']:,} test images, {dense['params']:,} parameters, "
        f"{dense['macs'] / 1e6:.2f} M MACs. {images['calibration']} training images for scores and repairs, "
        f"{images['holdout']} others to choose by; test accuracy in %, difference to dense in points. Bold: the row that is "
        f"best on the held-out images. {settled(value)}Only what is called distilled trains weights by gradient steps, "
        f"without labels. [Run file](../../bench/results/channel/{value['model']}.json), "
        f"{value['seconds'] / 60:.0f} minutes on one thread; `{value['command']}`.",
        "",
    ]
    for speedup in sorted({row["speedup"] for row in value["rows"]}):
        rows = [row for row in value["rows"] if row["speedup"] == speedup]
        best = max(rows, key=lambda row: row["holdout"])
        criteria = sorted(
            sorted({row["criterion"] for row in rows}), key=lambda c: -max(r["test"] for r in rows if r["criterion"] == c)
        )
        used = [r for r in HEADS if any(row["repair"] == r for row in rows)]
        body = []
        for criterion in criteria:
            cells = [shown(criterion)]
            for repair in used:
                alike = [r for r in rows if (r["criterion"], r["repair"]) == (criterion, repair)]
                row = max(alike, key=lambda r: r.get("steps", 0), default=None)  # of distilled rows the longest
                told = "" if row is None else f"{percent(row['test'])} ({100 * (row['test'] - dense['test']):+.2f})"
                cells.append(f"**{told}**" if row is best else told)
            params = next(r["params"] for r in rows if r["criterion"] == criterion)
            body.append([*cells, f"{params / dense['params']:.3f}"])
        lines += [f"### {speedup}x fewer MACs", ""]
        lines += table(["criterion", *[HEADS[r] for r in used], "parameters left"], body)
        lines.append("")
        lines += [peer_sentence(rows), "", *two_sided(rows, dense), *distilled(rows)]
    return lines


def settled(value: dict[str, Any]) -> str:
    """What statistics of plain images do to a network that was trained on augmented ones."""
    found = value.get("dense_batchnorm")
    return (
        f"Batch norms are re-estimated on these plain images; on {found['images']:,} that takes the dense network itself to "
        f"{percent(found['plain'])} %, and on as many that are augmented as in training to {percent(found['augmented'])} %. "
        if found
        else ""
    )


def two_sided(rows: list[dict[str, Any]], dense: dict[str, Any]) -> list[str]:
    """What the rows fitted on both sides were given, and what they reach on all test images."""
    told = [
        f"* Both sides: {shown(row['criterion'])}, each cut layer and the one that writes for it fitted by linear "
        f"least squares{rounds(row)}{at_once(row)} on {row['images']:,} training images without labels, no gradient step, "
        f"{duration(row['seconds'])} on one thread. On all 10,000 test images {percent(row['test_all'])} %, "
        f"dense {percent(dense['test_all'])} % ({100 * (row['test_all'] - dense['test_all']):+.2f})."
        for row in rows
        if row["repair"] == "two_sided"
    ]
    return [*told, ""] if told else []


def distilled(rows: list[dict[str, Any]]) -> list[str]:
    """What the rows trained without labels were given."""
    told = [
        f"* Distilled: {shown(row['criterion'])} after {row['after']}, {row['steps']:,} steps towards the original's outputs "
        f"on {row['images']:,} training images without labels, {duration(row['seconds'])} on one thread: "
        f"{percent(row['test'])} %."
        for row in sorted((r for r in rows if r["repair"] == "distil"), key=lambda r: r["steps"])
    ]
    return [*told, ""] if told else []


def duration(seconds: dict[str, float]) -> str:
    """How long a repair took; the selection too, where it makes the repair on its way."""
    value = seconds["repair"] if seconds["repair"] > INSTANT else sum(seconds.values())
    return f"{value:.0f} seconds" if value < 90 else f"{value / 60:.0f} minutes"


def at_once(row: dict[str, Any]) -> str:
    """Where selection and fit take turns."""
    return ", before the next is selected," if row["seconds"]["repair"] <= INSTANT else ""


def rounds(row: dict[str, Any]) -> str:
    """In how many rounds, where there is more than one."""
    return f" in {row['rounds']} rounds" if row.get("rounds", 1) > 1 else ""


def shown(criterion: str) -> str:
    """How the page names a row."""
    return f"Torch-Pruning {criterion.removeprefix('tp ')}" if criterion.startswith("tp ") else criterion


def peer_sentence(rows: list[dict[str, Any]]) -> str:
    """Ours beside the peer's criterion of the same name, after the same repair."""
    kinds = {"bn_scale": "bn scale", "obd": "hessian"}
    alike = ("l1", "l2", "bn_scale", "fpgm", "lamp", "taylor", "obd", "random")
    alike += tuple(f"{name} energy" for name in ("l1", "l2", "fpgm", "taylor"))
    alike += ("l1 default", "l2 default", "fpgm default", "fpgm squares", "taylor default")
    pairs = {ours: f"tp {kinds.get(name := ours.split()[0], name)}" for ours in alike}
    found = {(row["criterion"], row["repair"]): row["test"] for row in rows}
    both = {
        pair: [r for r in ("least_squares", "least_squares+batchnorm") if {(p, r) for p in pair} <= set(found)]
        for pair in pairs.items()
    }
    told = [f"{ours} {100 * (found[ours, how[0]] - found[peer, how[0]]):+.2f}" for (ours, peer), how in both.items() if how]
    return f"Ours less Torch-Pruning's of the same kind, after least squares, in points: {', '.join(told)}." if told else ""


def picture(values: list[dict[str, Any]]) -> str:
    """Accuracy of every criterion after every repair, one panel per network, at 2.1 times fewer MACs."""
    panels = [(v, [r for r in v["rows"] if r["speedup"] == 2.1]) for v in values]
    panels = [(v, rows) for v, rows in panels if rows]
    tall = max((len({r["criterion"] for r in rows}) for _, rows in panels), default=1)
    with matplotlib.rc_context({"svg.hashsalt": "channel", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(4.6 * max(len(panels), 1), 1.2 + 0.19 * tall), layout="constrained")
        plots = figure.subplots(1, max(len(panels), 1), squeeze=False)[0]
        for plot, (value, rows) in zip(plots, panels, strict=True):
            order = sorted(
                sorted({r["criterion"] for r in rows}), key=lambda c: max(r["test"] for r in rows if r["criterion"] == c)
            )
            for repair in HEADS:
                points = [(100 * r["test"], order.index(r["criterion"])) for r in rows if r["repair"] == repair]
                if points:
                    xs, ys = zip(*points, strict=True)
                    plot.plot(xs, ys, "o", ms=5, color=PAINT[repair], label=HEADS[repair], mec="white", mew=0.5)
            plot.axvline(100 * value["dense"]["test"], color="#1d1d1b", lw=0.8, dashes=(3, 3))
            plot.set_yticks(range(len(order)), [shown(c) for c in order])
            plot.set_title(f"{NAMES[value['model']]}, 2.1x fewer MACs, no retraining", fontsize=9)
            plot.set_xlabel("test accuracy (%); dashed: dense")
            plot.grid(axis="x", color="#d9d9d4", lw=0.6)
            plot.set_axisbelow(True)
            for side in plot.spines.values():
                side.set_visible(False)
            plot.tick_params(length=0)
        if len(plots):
            plots[0].legend(frameon=False, fontsize=7, loc="lower right")
        stream = StringIO()
        FigureCanvasSVG(figure).print_figure(stream, format="svg", facecolor="white", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def tuned(rows: list[dict[str, Any]]) -> list[str]:
    """The section of one network after a short fine-tune, for run files of one model; one table per length of training."""
    one = rows[0]
    images = sorted({row["images"].get("two_sided", 0) for row in rows} - {0})
    counts = " or ".join(f"{count:,}" for count in images)
    both = f"What is fitted on both sides as it is selected sees {counts} images, and no other repair. " if images else ""
    lines = [
        f"## {NAMES[one['model']]}, with a short fine-tune",
        f"Base: {percent(one['dense'])} %, {one['dense_params']:,} parameters, {one['dense_macs'] / 1e6:.2f} M MACs; judged "
        f"on {one['judged_on']}. Every method is cut to {one['speedup']}x fewer MACs, repaired by least squares and batch "
        "norm, and trained along a cosine towards labels, the base's answers and its block outputs, as others of its table. "
        f"Accuracy is that of the last epoch; the best is the epoch that is best on {one['images']['holdout']:,} held-out "
        f"training images. {both}Milliseconds of one image, dense in brackets. "
        f"[Run files](../../bench/results/channel_tune/{one['model']}).",
        "",
    ]
    alike: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["training"]["epochs"]):
        alike.setdefault(json.dumps(row["training"], sort_keys=True), []).append(row)
    return lines + [line for group in alike.values() for line in tuned_alike(group)]


def tuned_alike(rows: list[dict[str, Any]]) -> list[str]:
    """The table of `rows` whose training was the same."""
    told, minutes = rows[0]["training"], sorted(round(row["seconds"]["training"] / 60) for row in rows)
    took = f"{minutes[0]}" if minutes[0] == minutes[-1] else f"{minutes[0]} to {minutes[-1]}"
    before = f"{told['distil']:,} steps of distillation without labels, then " if told.get("distil") else ""
    lines = [
        f"{before}{told['epochs']} epochs, rate {told['lr']}, the base's answers with weight {told['alpha']}, its block "
        f"outputs with {told['blocks']}; {took} minutes on one thread:",
        "",
    ]
    head = ["method", "before", "after", "to the base", "best epoch", "M MACs", "parameters", "eager ms", "ONNX Runtime ms"]
    body = []
    for row in sorted(rows, key=lambda row: -row["last"]):
        best, ms = row["best_epoch"], row["latency_ms"]
        tested = f" ({percent(best['test_bf16'])})" if best["test_bf16"] is not None else ""
        body.append([
            shown(row["method"]) + (f", seed {row['seed']}" if row["seed"] else ""),
            percent(row["before"]),
            percent(row["last"]),
            f"{100 * row['difference']:+.2f}",
            f"{best['epoch']}{tested}",
            f"{row['macs'] / 1e6:.2f}",
            f"{row['params']:,}",
            f"{ms['eager']:.2f} ({ms['dense_eager']:.2f})",
            f"{ms['onnx']:.2f} ({ms['dense_onnx']:.2f})",
        ])  # fmt: skip
    commands = sorted({row["command"] for row in rows})
    return [*lines, *table(head, body), "", *[f"`{each}`" for each in commands], ""]


def ablation(value: dict[str, Any]) -> list[str]:
    """The section of searches."""
    plain = value["rows"][0]
    body = [
        [
            row["search"],
            str(row["judgements"]),
            f"{plain['judgements'] / row['judgements']:.1f}x",
            f"{row['params']:,}",
            f"{row['macs'] / 1e6:.2f}",
            f"{row['loss']:.4f}",
            percent(row["test"]),
        ]
        for row in value["rows"]
    ]
    head = ["search", "judgements", "fewer", "parameters", "M MACs", "held-out loss", "test accuracy"]
    return [
        "## Searches: how many judgements",
        f"{NAMES[value['model']]}, judged by cross-entropy on {value['images']['judged']} held-out images after batch norm was "
        f"re-estimated on {value['images']['settled']}; the loss may rise by {value['limits']['running']} in all, and by "
        f"{value['limits']['trial']} per step of a plain search. Dense: loss {value['dense']['loss']:.4f}, test accuracy "
        f"{percent(value['dense']['test'])} % ({value['images']['test']:,} images). No training. "
        "[Run file](../../bench/results/channel/search_ablation.json).",
        "",
        *table(head, body),
        "",
    ]


def partition(value: dict[str, Any]) -> list[str]:
    """The section of partition pruning."""
    dense = value["dense"]
    lines = [
        "## Partition pruning",
        f"Fashion-MNIST, four hidden layers; dense {percent(dense['accuracy'])} %, {dense['params']:,} parameters; as many "
        f"further epochs of training leave the dense network at {percent(value['rows'][0]['same_training_dense'])} %. "
        f"Batches of {value['batch']}; {value['hardware']['cores']} cores, one thread per process. "
        "[Run file](../../bench/results/channel/partition.json); what is counted and how is in `bench/partition.py`.",
        "",
    ]
    head = ["", *[f"{row['workers']} workers" for row in value["rows"]]]
    body = [
        ["accuracy as divided (%)", *[percent(row["before"]) for row in value["rows"]]],
        ["accuracy after fine-tuning (%)", *[percent(row["after"]) for row in value["rows"]]],
        ["parameters", *[f"{row['params']:,}" for row in value["rows"]]],
        ["weight kept, least layer", *[f"{min(row['kept'].values()):.3f}" for row in value["rows"]]],
    ]
    for key, told in (("dense", "dense"), ("blocks", "blocks"), ("tensor_parallel", "tensor parallelism")):
        body.append([f"critical path, {told} (k MACs)", *[f"{r['critical_path_macs'][key] / 1e3:.0f}" for r in value["rows"]]])
    for key, told in (("blocks", "blocks"), ("tensor_parallel", "tensor parallelism")):
        body.append([f"bytes sent per image, {told}", *[f"{row['bytes_per_image'][key]:.0f}" for row in value["rows"]]])
    for key in value["rows"][0]["ms"]:
        body.append([f"ms, {key}", *[f"{row['ms'][key]:.3f}" for row in value["rows"]]])
    return [*lines, *table(head, body), ""]


def milliseconds(value: dict[str, Any]) -> list[str]:
    """The section of budgets on milliseconds."""
    body = []
    for name, rows in value["networks"].items():
        for row in rows:
            asked = ", ".join(f"{what} {share:g}" for what, share in row["keep"].items())
            if "refused" in row:
                body.append([name, asked, row["by"], *["refused"] * 2, "", "", "", ""])
                continue
            cells = [f"{row[key]:.3f}" for key in ("table", "measured")]
            error = f"{100 * (row['measured'] / row['table'] - 1):+.1f} %"
            body.append([name, asked, row["by"], *cells, error, *[f"{row[key]:.3f}" for key in ("macs", "params", "memory")]])
    head = ["network", "asked", "by", "by the table", "measured", "error of the table", "MACs", "parameters", "memory"]
    return [
        "## Budgets on milliseconds",
        f"Shares of the dense network's milliseconds, {value['batch']} image{'s' if value['batch'] > 1 else ''} of 32 x 32 on "
        "one thread, random weights cut by L2. By the table of single layers alone, and by the clock, which corrects what is "
        "asked of it. [Run file](../../bench/results/latency_budget.json), "
        f"`{value['command']}`.",
        "",
        *table(head, body),
        "",
    ]


def page(read: dict[str, Any]) -> str:
    """The page for run files by name."""
    networks = [read[name] for name in NAMES if name in read]
    lines = ["# Channel pruning", "", "Made by `docs/make/channel.py` from the run files it links to.", ""]
    if networks:
        lines += ["![Every criterion after every repair, at 2.1 times fewer MACs](channel.svg)", ""]
    for value in networks:
        lines += network(value)
        rows = [row for row in read.get("tune", []) if row["model"] == value["model"]]
        lines += tuned(rows) if rows else []
    for name, section in (("search_ablation", ablation), ("partition", partition), ("latency", milliseconds)):
        lines += section(read[name]) if name in read else []
    return "\n".join(lines).rstrip() + "\n"


def runs() -> dict[str, Any]:
    """The run files by name; those of bench/channel_tune.py as one list, "tune"."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    tune = [json.loads(path.read_text()) for path in sorted((RESULTS.parent / "channel_tune").glob("*/*.json"))]
    timed = RESULTS.parent / "latency_budget.json"
    found |= {"latency": json.loads(timed.read_text())} if timed.exists() else {}
    return found | ({"tune": tune} if tune else {})


def main() -> None:
    """Write page and picture."""
    read = runs()
    PAGE.mkdir(exist_ok=True)
    (PAGE / "channel.md").write_text(page(read))
    (PAGE / "channel.svg").write_text(picture([read[name] for name in NAMES if name in read]))


if __name__ == "__main__":
    main()
