"""A run folder as `secateur run` leaves it, made by hand, and a reader of the page made from it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from secateur.core import codec
from secateur.core.axis import Slot
from secateur.core.plan import Cut, keep

KEPT = [9, 7, 5, 6, 8, 9, 10, 8, 11, 24, 13, 11, 12, 14, 10, 13, 17, 20, 46, 22, 17, 14, 12, 10, 9, 8, 31]
STAGES = [
    {"stage": "dense", "params": 853018, "macs": 125485706, "bytes": 3489124, "latency_ms": 11.842, "peak_memory": 786432,
     "accuracy": 0.9437, "loss": 0.2291},
    {"stage": "after the cut", "params": 414937, "macs": 59474176, "bytes": 1736244, "latency_ms": 7.316, "peak_memory": 589824,
     "accuracy": 0.2718, "loss": 4.0113},
    {"stage": "after repair", "params": 414937, "macs": 59474176, "bytes": 1736244, "latency_ms": 7.291, "peak_memory": 589824,
     "accuracy": 0.7106, "loss": 0.9875},
    {"stage": "after fine-tuning", "params": 414937, "macs": 59474176, "bytes": 1736244, "latency_ms": 7.304,
     "peak_memory": 589824, "accuracy": 0.9306, "loss": 0.2544},
]  # fmt: skip
RECIPE = """title = "ResNet-56 on CIFAR-10"
seed = 0
threads = 2

[model]
build = "zoo:cifar_resnet56_a"
weights = "resnet56.safetensors"

[data]
name = "cifar10"
holdout = 5000

[prune]
criterion = "taylor"
keep = { macs = 0.474 }

[repair]
name = "batchnorm"

[finetune]
epochs = 40
lr = 0.02
schedule = "cosine"

[measure]
repeats = 30
batch = 1
"""


def write(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value, indent=1), "utf-8")


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text("utf-8"))


def axis(name: str, units: int, fixed: str | None, kind: str = "channel") -> dict[str, Any]:
    return {"name": name, "kind": kind, "units": units, "fixed": fixed, "exact": True}


def make_run(folder: Path, *, finished: bool = True, epochs: int = 40) -> Path:
    """A run folder as `secateur run` leaves it: ResNet-56 on CIFAR-10 at 2.11 times fewer MACs; or one killed after repair."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(9)]
    units = [16 * 2**stage for stage in (0, 1, 2) for _ in range(9)]
    shapes = {f"{name}.weight": (n, n, 3, 3) for name, n in zip(names, units, strict=True)}
    cuts = [
        Cut(name, n, tuple(range(kept)), (Slot(f"{name}.weight", 0, role="write"),))
        for name, n, kept in zip(names, units, KEPT, strict=True)
    ]
    axes = [axis("conv1", 16, "a slice of step 2 (the option-A shortcut) moves its entries")]
    axes += [axis(name, n, None) for name, n in zip(names, units, strict=True)]
    axes += [axis("fc", 10, "it is an output of the model", "width")]
    phases = {"dense": 14.2, "plan": 21.9, "repair": 12.7, "finetune": 4312.6, "measure": 18.4}
    run = {
        "format": 1, "command": "secateur run recipes/cifar10_resnet56.toml --data cifar-10-batches-py", "seed": 0,
        "started": "2026-10-03T09:14:05+00:00", "finished": "2026-10-03T10:27:31+00:00" if finished else None,
        "seconds": 4406.1,
        "versions": {"secateur": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6", "python": "3.11.7"},
        "hardware": {"cpu": "Intel Xeon Platinum 8481C", "threads": 2, "device": "cpu"},
        "phases": {name: {"seconds": s} for name, s in phases.items() if finished or name in ("dense", "plan")},
        "model": "zoo:cifar_resnet56_a", "data": "cifar10", "title": "ResNet-56 on CIFAR-10",
    }  # fmt: skip
    history = [
        {"phase": "finetune", "epoch": e, "loss": 0.18 + 0.55 / e, "lr": 0.02, "train_accuracy": 0.985 - 0.16 / e**0.7,
         "holdout_accuracy": 0.933 - 0.11 / e**0.8 + 0.004 * (-1) ** e / e**0.5, "seconds": 107.8}
        for e in range(1, epochs + 1)
    ]  # fmt: skip
    facts = {"stages": STAGES if finished else STAGES[:3], "accuracy_on": "test, 10,000 images", "metric": "accuracy"}
    write(folder, "run.json", run)
    write(folder, "axes.json", {"axes": axes, "free_share": 0.9283, "notes": []})
    write(folder, "plan.json", codec.dumps(keep(shapes, cuts)))
    write(folder, "recipe.toml", RECIPE)
    if finished:
        write(folder, "facts.json", facts | {"best": {"epoch": 38, "accuracy": 0.9297, "holdout_accuracy": 0.9324}})
        write(folder, "history.jsonl", "".join(json.dumps(row) + "\n" for row in history))
        (folder / "small.safetensors").write_bytes(bytes(1736244))
    else:
        write(folder, "facts.json", facts)
        write(folder, "history.jsonl", "".join(json.dumps(row) + "\n" for row in history[:7]) + '{"phase": "finetu')
    return folder


class Page(HTMLParser):
    """Tags, attributes, table cells and text of an HTML page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.skip = self.cell = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.skip += tag == "style"
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.cell += 1
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.skip -= tag == "style"
        self.cell -= tag in ("td", "th")
        self.words += [] if tag in ("strong", "span", "code") else [" "]

    def handle_data(self, data: str) -> None:
        if not self.skip:
            self.words.append(data)
            if self.cell:
                self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())
