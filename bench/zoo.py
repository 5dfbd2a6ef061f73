"""Every row of tests/helpers/zoo.toml: laws 4, 6, 7, 10 and 13, training and a second trace, each row in a process of its own.

    python bench/zoo.py                      all rows that have no result yet, then docs/zoo.md
    python bench/zoo.py --deploy             the same rows again for export and compile, as far as that has no result
    python bench/zoo.py --again --match "timm/swin*" "torchvision/swin*"
    python bench/zoo.py --minutes 8          stop after eight minutes; the next call goes on

A row ends "ok", "refused" (a `SecateurError` says why) or "broken".
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import platform
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))
VERDICTS = ("ok", "refused", "broken")
SOURCES = {
    "torchvision": "torchvision, classification",
    "segmentation": "torchvision, segmentation",
    "detection": "torchvision, detection: backbone, pyramid and heads",
    "video": "torchvision, video",
    "timm": "timm, one of every family",
    "transformers": "transformers, tiny configurations",
}


def one(entry: Any, *, deploy: bool) -> dict[str, Any]:
    """One row in this process."""
    import torch

    import zoo
    from secateur.core.errors import SecateurError

    torch.set_num_threads(1)
    if deploy:
        return zoo.deploy(entry)
    try:
        facts = zoo.check(entry)
    except SecateurError as error:
        return {"verdict": "refused", "why": str(error)}
    except Exception as error:
        where = traceback.format_exc().splitlines()[-12:]
        return {"verdict": "broken", "why": f"{type(error).__name__}: {error}"[:1500], "where": where}
    return {"verdict": "ok", **facts, "note": zoo.unexpected(entry, facts)}


def child(entry: Any, limit: float, *, deploy: bool) -> dict[str, Any]:
    """One row in a fork of this process, which has loaded the libraries, with a time limit."""
    failed = ["export", "compile"] if deploy else ["verdict"]
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=lambda: theirs.send(one(entry, deploy=deploy)))
    process.start()
    theirs.close()
    why = f"not done in {limit:.0f} s"
    try:
        if ours.poll(limit):
            found: dict[str, Any] = ours.recv()
            return found
    except EOFError:
        process.join()
        why = f"exit {process.exitcode}"
    finally:
        process.kill()
        process.join()
    return dict.fromkeys(failed, why) if deploy else {"verdict": "broken", "why": why}


def line(name: str, row: dict[str, Any]) -> str:
    """One row for the screen."""
    if row["verdict"] != "ok":
        return f"{name:40s} {row['verdict']}: {row['why'][:300]}"
    return (
        f"{name:40s} ok  {many(row['params']):>8s}  free {row['share']:6.1%}  left {row['left']:6.1%}  "
        f"law 4 {row['error']:.0e}  {row['seconds']:.2f} s  {row['note']}"
    )


def setting() -> dict[str, str]:
    """What the figures depend on."""
    found = {"python": platform.python_version(), "machine": f"{platform.machine()}, {os.cpu_count()} cores, 1 used"}
    for name in ("torch", "torchvision", "timm", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def many(params: int) -> str:
    """A count of parameters for people."""
    return f"{params / 1e6:.1f} M" if params >= 1e6 else f"{params / 1e3:.0f} k"


def page(entries: Sequence[Any], results: dict[str, Any]) -> str:
    """docs/zoo.md."""
    rows = [(e, results[f"{e.source}/{e.name}"]) for e in entries if f"{e.source}/{e.name}" in results]
    used = ", ".join(f"{k} {v}" for k, v in results["setting"].items())
    lines = [
        "# The zoo",
        "",
        "Written by `make zoo` (`bench/zoo.py`; figures in [`bench/results/zoo.json`](../bench/results/zoo.json));",
        f"{used}.",
        "",
        "Every model has random weights and is held to laws 4, 6, 7, 10 and 13, cut at random and with half of the units of",
        "every axis by L2; the cut model runs forward and backward and is traced again. Export and compile are tried in",
        "a second pass (`--deploy`).",
        "",
        *summary(rows),
        "",
        "* *free*: share of the entries of all kernels and matrices that some free axis can cut.",
        "* *left*: parameters left when every free axis keeps half of its units.",
        "* *law 4*: largest difference of masked and cut model, relative to the largest output (float64; above "
        "100 M parameters, and where the forward casts, float32).",
        "* *trace*: seconds on one core.",
        "* *export*, *compile*: `torch.export` and `torch.compile` (backend `aot_eager`) of the model with half of its units; "
        "empty where it was not tried.",
        "* *why not all*: the reasons that hold most, with the share of entries that stand still on one side because of it.",
        "",
    ]
    for source, title in SOURCES.items():
        here = [cells(e, r) for e, r in rows if e.source == source]
        if here:
            lines += [
                f"## {title}",
                "",
                "| model | params | free | left | law 4 | trace | export | compile | why not all |",
                "|---|---|---|---|---|---|---|---|---|",
                *here,
                "",
            ]
    return "\n".join(lines).rstrip() + "\n"


def summary(rows: Sequence[Any]) -> list[str]:
    """Counts per library."""
    lines = [
        "| library | models | valid smaller model | refused, with a reason | broken | free above 85 % | exported | compiled |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for source, title in SOURCES.items():
        here = [r for e, r in rows if e.source == source]
        if not here:
            continue
        count = Counter(r["verdict"] for r in here)
        free = sum(r.get("share", 0) > 0.85 for r in here)
        tried = [[r[key] for r in here if key in r] for key in ("export", "compile")]
        left = [f"{sum(t == 'yes' for t in each)} of {len(each)}" if each else "" for each in tried]
        cells = [title, len(here), *(count[v] for v in VERDICTS), free, *left]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def cells(entry: Any, row: dict[str, Any]) -> str:
    """One line of the table."""
    name = f"{entry.name} ({entry.family})" if entry.family and entry.family != entry.name else entry.name
    if row["verdict"] != "ok":
        return f"| {name} | | | | | | | | {row['verdict']}: {row['why'].splitlines()[0][:160].replace('|', '/')} |"
    why = "; ".join(f"{reason} {share:.1%}" for reason, share in list(row["reasons"].items())[:2]).replace("|", "/")
    leaves = [row.get(key, "").split(":")[0].replace("|", "/") for key in ("export", "compile")]
    return (
        f"| {name} | {many(row['params'])} | {row['share']:.1%} | {row['left']:.1%} "
        f"| {row['error']:.0e} | {row['seconds']:.2f} s | {' | '.join(leaves)} | {why} |"
    )


def wanted(entry: Any, done: dict[str, Any] | None, options: argparse.Namespace) -> bool:
    """Is this row to be run now?"""
    if not any(fnmatchcase(f"{entry.source}/{entry.name}", pattern) for pattern in options.match):
        return False
    if options.deploy:
        return bool(done and done["verdict"] == "ok" and ("export" not in done or options.again))
    return not done or options.again or (options.failed and (done["verdict"] != "ok" or bool(done["note"])))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deploy", action="store_true", help="export and compile")
    parser.add_argument("--match", nargs="+", default=["*"], help="shell patterns of source/name, in the order to run them")
    parser.add_argument("--again", action="store_true", help="also rows that have a result")
    parser.add_argument("--failed", action="store_true", help="also rows whose result is not what was expected")
    parser.add_argument("--limit", type=int, default=600, help="seconds for one row")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no further row after so many")
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/zoo.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/zoo.md")
    options = parser.parse_args()
    import zoo
    from secateur.io import write_json
    from secateur.io.vision import torchvision

    torchvision()
    for library in ("timm", "transformers"):
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    begun = time.monotonic()
    entries = list(zoo.entries())
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    results = {"command": "python bench/zoo.py", **results, "setting": setting()}

    def turn(entry: Any) -> int:
        name = f"{entry.source}/{entry.name}"
        return next((i for i, pattern in enumerate(options.match) if fnmatchcase(name, pattern)), 0)

    for entry in sorted(entries, key=turn):
        key = f"{entry.source}/{entry.name}"
        if not wanted(entry, results.get(key), options):
            continue
        if time.monotonic() - begun > 60 * options.minutes:
            break
        found = child(entry, options.limit, deploy=options.deploy)
        results[key] = {**results[key], **found} if options.deploy else found
        print(line(key, results[key]), found if options.deploy else "", flush=True)
        write_json(options.results, results)
    options.page.write_text(page(entries, results))


if __name__ == "__main__":
    main()
