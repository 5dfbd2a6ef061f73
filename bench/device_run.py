"""Runs as many entries of bench/device_queue.toml as the time allows, in order, and goes on where an earlier call stopped.

    python bench/device_run.py --data FOLDER --minutes 25
    python bench/device_run.py --data FOLDER --only vgg16_bn_base --piece-mib 15 --out OUT

From a plain checkout, with torch, numpy, pillow and safetensors. For each finished entry OUT gets NAME.json (entry, facts,
history, versions, hardware) and NAME.safetensors; `--piece-mib` writes large weights as NAME.safetensors.1of4 ..., which
`cat NAME.safetensors.?of? > NAME.safetensors` puts together again. Unfinished entries stay in WORK and go on from their
last whole epoch. Exit 0: nothing failed; 1: an entry failed or missed its goal; 2: the request was malformed.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import platform
import shutil
import sys
import time
import tomllib
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT / "src") not in sys.path:
    sys.path.insert(0, str(ROOT / "src"))  # a plain checkout: nothing is installed

import torch  # noqa: E402

from secateur import data as datasets  # noqa: E402
from secateur.core.errors import SecateurError, nearest  # noqa: E402
from secateur.io import artefact  # noqa: E402
from secateur.io.files import atomic, read_json, write_json  # noqa: E402
from secateur.measure import facts  # noqa: E402
from secateur.recipes import schema, zoo  # noqa: E402
from secateur.recipes.folder import read_history  # noqa: E402
from secateur.recipes.run import run  # noqa: E402
from secateur.train import FitSettings, evaluate, fit  # noqa: E402

RESERVE_SECONDS = 20  # kept at the end for the test and for writing
FORMAT = 1
REQUIRED = {"train": ("model", "data", "fit"), "compress": ("recipe",)}
OPTIONAL = {"train": ("batch", "goal", "normalise", "seed"), "compress": ("base", "goal")}


class OutOfTimeError(Exception):
    """The time is up; what was trained is in the checkpoint."""


@dataclass(frozen=True)
class Entry:
    """One experiment of the queue. `table` is its text, compared with that of a result to see whether it is done."""

    name: str
    kind: str
    minutes: float
    table: Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a call reads and writes, and until when. `known` are folders with results of earlier calls."""

    data: Path | None
    out: Path
    work: Path
    known: tuple[Path, ...]
    deadline: float
    device: torch.device
    compile: bool
    piece_mib: float

    def left(self) -> float:
        """Minutes until the reserve."""
        return (self.deadline - RESERVE_SECONDS - time.monotonic()) / 60

    def tick(self, *_: Any, **__: Any) -> None:
        """Raise `OutOfTimeError` when only the reserve is left; given to training as its progress."""
        if self.left() <= 0:
            raise OutOfTimeError

    def find(self, name: str) -> Path | None:
        """A file that this or an earlier call wrote."""
        return next((folder / name for folder in (self.work, self.out, *self.known) if (folder / name).is_file()), None)


def read_queue(path: Path) -> list[Entry]:
    """The entries of a queue file. Raises `SecateurError` naming the entry and the key that is wrong."""
    try:
        tables = tomllib.loads(path.read_text("utf-8")).get("entry", [])
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SecateurError(f"the queue {path}", str(error), "give a TOML file of [[entry]] tables") from error
    entries: list[Entry] = []
    for number, table in enumerate(tables, 1):
        name, kind = table.get("name", f"number {number}"), table.get("kind")
        asked = f"entry {name!r} of {path.name}"
        if kind not in REQUIRED:
            raise SecateurError(asked, f"kind {kind!r}", 'use kind = "train" or "compress"')
        allowed = ("name", "kind", "minutes", *REQUIRED[kind], *OPTIONAL[kind])
        for key in table:
            if key not in allowed:
                raise SecateurError(asked, f"the key {key!r}", nearest(key, allowed))
        missing = [key for key in ("name", "minutes", *REQUIRED[kind]) if key not in table]
        if missing or name in [entry.name for entry in entries]:
            raise SecateurError(asked, f"no {missing[0]!r}" if missing else "the name twice", "complete the entry")
        entries.append(Entry(name, kind, float(table["minutes"]), table))
    return entries


def is_done(entry: Entry, place: Place) -> bool:
    """Is there a result of this very text?"""
    path = place.find(f"{entry.name}.json")
    return path is not None and read_json(path).get("entry") == json.loads(json.dumps(entry.table))


@functools.lru_cache(maxsize=1)
def load(name: str, folder: Path | None) -> datasets.DataSet:
    """The data set, kept from one entry to the next."""
    return datasets.named(name, folder)


def train_entry(entry: Entry, place: Place) -> tuple[dict[str, Any], Path]:
    """(what the result says, weights file) of a network trained from scratch on all training images."""
    table, seed = entry.table, int(entry.table.get("seed", 0))
    told = dict(table["fit"], seed=seed)
    told["compile"] = bool(told.get("compile")) and place.compile
    try:
        settings = FitSettings(**told)
    except TypeError as error:
        raise SecateurError(f"[entry.fit] of {entry.name!r}", str(error), "use the names of FitSettings") from error
    source = load(table["data"], place.data)
    source = source.normalised(table["normalise"]) if "normalise" in table else source
    cut = datasets.BatchSettings(table.get("batch", 128), holdout=0, channels_last=settings.channels_last, seed=seed)
    loaders = datasets.loaders(source, cut, device=place.device)
    torch.manual_seed(seed)
    model = zoo.build(table["model"]).to(place.device)
    folder = place.work / entry.name
    folder.mkdir(parents=True, exist_ok=True)

    def on_epoch(record: Mapping[str, Any]) -> None:
        if record["epoch"] % max(settings.epochs // 10, 1) == 0:
            done = f"epoch {record['epoch']} of {settings.epochs}"
            print(f"  {done}: loss {record['loss']:.4f}, {record['seconds']} s", flush=True)

    history = fit(model, loaders.train, settings, checkpoint=folder / "checkpoint", on_step=place.tick, on_epoch=on_epoch)
    found = evaluate(model, loaders.test)
    weights = place.work / f"{entry.name}.safetensors"
    artefact.save(weights, model)
    example = next(iter(loaders.test.first(1)))[0]
    stage = facts(model, example).to_json()
    stage |= {"stage": "dense", **found, "bytes": weights.stat().st_size}
    accuracy_on = f"test, {loaders.test.images:,} images"
    return {"facts": {"stages": [stage], "accuracy_on": accuracy_on, "metric": "accuracy"}, "history": history}, weights


def compress_entry(entry: Entry, place: Place) -> tuple[dict[str, Any], Path]:
    """(what the result says, weights file with its plan) of a recipe carried out as `secateur run` does."""
    table = json.loads(json.dumps(entry.table["recipe"]))
    base = entry.table.get("base")
    weights = place.find(f"{base}.safetensors") if base else None
    if base and not weights:
        raise SecateurError(f"entry {entry.name!r}", f"no {base}.safetensors", f"run the entry {base!r} first")
    if weights:
        table["model"]["weights"] = str(weights)
    for section in ("train", "finetune"):
        if not place.compile and table.get(section, {}).get("compile"):
            table[section]["compile"] = False
    folder = place.work / entry.name
    recipe = schema.from_dict(table)
    images = str(place.data) if place.data else None
    found = run(recipe, folder, data=images, progress=place.tick, command="python bench/device_run.py")
    text = schema.text(recipe)
    text = text.replace(str(weights), f"{base}.safetensors") if base else text  # a result names no folder of its machine
    told = {"facts": found, "history": read_history(folder), "recipe": text, "run": read_json(folder / "run.json")}
    return told, folder / "small.safetensors"


KINDS: dict[str, Callable[[Entry, Place], tuple[dict[str, Any], Path]]] = {"train": train_entry, "compress": compress_entry}


def run_entry(entry: Entry, place: Place) -> dict[str, Any]:
    """The result of one entry, its files written and its work folder gone."""
    start = time.perf_counter()
    told, weights = KINDS[entry.kind](entry, place)
    accuracy, goal = told["facts"]["stages"][-1].get("accuracy"), entry.table.get("goal")
    name = torch.cuda.get_device_name() if place.device.type == "cuda" else platform.processor() or platform.machine()
    result = {
        "format": FORMAT,
        "entry": entry.table,
        "accuracy": accuracy,
        "reached": None if goal is None or accuracy is None else accuracy >= goal,
        "seconds_of_last_call": round(time.perf_counter() - start, 1),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "hardware": {"device": name, "compile": place.compile},
        "files": export(weights, place.out / f"{entry.name}.safetensors", place.piece_mib),
        **told,
    }
    write_json(place.out / f"{entry.name}.json", result)
    shutil.rmtree(place.work / entry.name, ignore_errors=True)
    return result


def export(source: Path, target: Path, piece_mib: float) -> list[dict[str, Any]]:
    """Copy `source` to `target`, in pieces of at most `piece_mib` MiB unless 0; name, bytes and SHA-256 of each."""
    body = source.read_bytes()
    size = int(piece_mib * 2**20) or max(len(body), 1)
    pieces = [body[first : first + size] for first in range(0, len(body), size)]
    written = []
    for number, piece in enumerate(pieces, 1):
        path = target if len(pieces) == 1 else target.with_name(f"{target.name}.{number}of{len(pieces)}")
        with atomic(path) as file:
            file.write(piece)
        written.append({"name": path.name, "bytes": len(piece), "sha256": hashlib.sha256(piece).hexdigest()})
    return written


def run_queue(entries: list[Entry], place: Place) -> dict[str, str]:
    """Entry name to what became of it: "done ...", "missed ...", "failed ...", "stopped ...", "no time" or "was done"."""
    outcome: dict[str, str] = {}
    for entry in entries:
        begun = (place.work / entry.name).exists()
        if is_done(entry, place):
            outcome[entry.name] = "was done"
        elif place.left() < (min(entry.minutes, 1) if begun else entry.minutes):
            outcome[entry.name] = "no time"
        else:
            print(f"{entry.name} ({place.left():.1f} minutes left)", flush=True)
            outcome[entry.name] = _attempt(entry, place)
        print(f"{entry.name}: {outcome[entry.name]}", flush=True)
    return outcome


def _attempt(entry: Entry, place: Place) -> str:
    try:
        result = run_entry(entry, place)
    except OutOfTimeError:
        return "stopped, goes on next time"
    except Exception as error:  # one broken entry does not cost the others their turn
        if not isinstance(error, SecateurError):
            traceback.print_exc()
        return f"failed: {error}"
    word = "missed" if result["reached"] is False else "done"
    return f"{word}, accuracy {result['accuracy']} in {result['seconds_of_last_call']} s"


def compiles(device: torch.device) -> bool:
    """Does torch.compile work here? It needs a C or GPU compiler that not every machine has."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # whatever a missing tool chain raises
        print(f"no compiled steps: {str(error).splitlines()[0]}", flush=True)
        return False
    return True


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, print the outcome; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queue", type=Path, default=ROOT / "bench" / "device_queue.toml")
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10 and weights/")
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--only", action="append", default=[], help="an entry's name; may be repeated")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "device")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "device")
    parser.add_argument("--piece-mib", type=float, default=0.0, help="write weights in pieces of at most this many MiB")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    try:
        entries = read_queue(options.queue)
        for name in options.only:
            if name not in [entry.name for entry in entries]:
                raise SecateurError(f"--only {name}", "no such entry", nearest(name, [entry.name for entry in entries]))
        entries = [entry for entry in entries if not options.only or entry.name in options.only]
        out, work = options.out.resolve(), options.work.resolve()
        for folder in (out, work):
            folder.mkdir(parents=True, exist_ok=True)
        known, deadline = (ROOT / "bench" / "results" / "device",), time.monotonic() + 60 * options.minutes
        wanted = any("compile" in json.dumps(entry.table) for entry in entries)
        able = wanted and compiles(device)
        place = Place(options.data, out, work, known, deadline, device, able, options.piece_mib)
        outcome = run_queue(entries, place)
    except (SecateurError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 1 if any(text.startswith(("failed", "missed")) for text in outcome.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
