"""Every row of tests/zoo.toml: laws 4, 6, 7, 10 and 13, training, a second trace and export, each row a process of its own.

    python bench/zoo.py                      all rows that have no result yet, then docs/zoo.md
    python bench/zoo.py --source timm --again --match "swin*"

A row ends "ok", "refused" (a `SecateurError` says why) or "broken".
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import traceback
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
COMPILED = {"resnet18", "mobilenet_v2", "vit_b_32", "convnext_tiny"}
"""Rows small enough to compile as well."""


def one(source: str, name: str) -> dict:
    """One row in this process."""
    import torch

    import zoo
    from secateur.core.errors import SecateurError

    torch.set_num_threads(1)
    entry = next(e for e in zoo.entries() if (e.source, e.name) == (source, name))
    try:
        facts = zoo.check(entry, compiled=name in COMPILED)
    except SecateurError as error:
        return {"verdict": "refused", "why": str(error)}
    except Exception as error:
        where = traceback.format_exc().splitlines()[-12:]
        return {"verdict": "broken", "why": f"{type(error).__name__}: {error}"[:1500], "where": where}
    return {"verdict": "ok", **facts, "note": zoo.unexpected(entry, facts)}


def child(source: str, name: str, limit: int) -> dict:
    """One row in a process with a time limit."""
    command = [sys.executable, __file__, "--one", source, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"verdict": "broken", "why": f"not done in {limit} s"}
    if done.returncode:
        return {"verdict": "broken", "why": f"exit {done.returncode}", "where": done.stderr.splitlines()[-8:]}
    return json.loads(done.stdout.splitlines()[-1])


def line(name: str, row: dict) -> str:
    """One row for the screen."""
    if row["verdict"] != "ok":
        return f"{name:40s} {row['verdict']}: {row['why'][:300]}"
    return (
        f"{name:40s} ok  {row['params'] / 1e6:7.1f} M  free {row['share']:6.1%}  left {row['left']:6.1%}  "
        f"law 4 {row['error']:.0e}  {row['seconds']:.2f} s  {row['note']}"
    )


def page(entries: list, results: dict) -> str:
    """docs/zoo.md."""
    rows = [(e, results.get(f"{e.source}/{e.name}")) for e in entries]
    count = {v: sum(r is not None and r["verdict"] == v for _, r in rows) for v in ("ok", "refused", "broken")}
    lines = [
        "# The zoo",
        "",
        "Written by `make zoo` (`bench/zoo.py`; figures in `bench/results/zoo.json`). Every model has random weights and is",
        "held to laws 4, 6, 7, 10 and 13, at random and with half of the units of every axis; the cut model trains, is traced",
        "again and is exported.",
        "",
        "* *free*: share of the entries of all kernels and matrices that some free axis can cut.",
        "* *left*: parameters left when every free axis keeps half of its units.",
        "* *law 4*: largest difference of masked and cut model, relative to the largest output.",
        "* *trace*: seconds on one core.",
        "* *why not all*: the reasons that hold most, with the share of entries that stand still on one side because of it.",
        "",
        f"{count['ok']} models give a valid smaller model, {count['refused']} are refused with a reason, "
        f"{count['broken']} are broken.",
        "",
    ]
    for source in dict.fromkeys(e.source for e in entries):
        lines += [
            f"## {source}",
            "",
            "| model | params | free | left | law 4 | trace | why not all |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [cells(e, r) for e, r in rows if e.source == source and r]
        lines.append("")
    return "\n".join(lines)


def cells(entry, row: dict) -> str:  # type: ignore[no-untyped-def]
    """One line of the table."""
    name = f"{entry.name} ({entry.family})" if entry.family and entry.family != entry.name else entry.name
    if row["verdict"] != "ok":
        return f"| {name} | | | | | | {row['verdict']}: {row['why'].splitlines()[0][:160].replace('|', '/')} |"
    why = "; ".join(f"{reason} {share:.1%}" for reason, share in list(row["reasons"].items())[:2]).replace("|", "/")
    return (
        f"| {name} | {row['params'] / 1e6:.1f} M | {row['share']:.1%} | {row['left']:.1%} "
        f"| {row['error']:.0e} | {row['seconds']:.2f} s | {why} |"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2, metavar=("SOURCE", "NAME"))
    parser.add_argument("--source")
    parser.add_argument("--match", default="*")
    parser.add_argument("--again", action="store_true", help="also rows that have a result")
    parser.add_argument("--failed", action="store_true", help="also rows whose result is not ok")
    parser.add_argument("--limit", type=int, default=600)
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/zoo.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/zoo.md")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(*options.one)))
        return
    import zoo

    entries = list(zoo.entries())
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    for entry in entries:
        key = f"{entry.source}/{entry.name}"
        if options.source not in (None, entry.source) or not fnmatchcase(entry.name, options.match):
            continue
        done = results.get(key)
        if done and not options.again and not (options.failed and done["verdict"] != "ok"):
            continue
        results[key] = child(entry.source, entry.name, options.limit)
        print(line(key, results[key]), flush=True)
        options.results.write_text(json.dumps(results, indent=1))
        options.page.write_text(page(entries, results) + "\n")
    options.page.write_text(page(entries, results) + "\n")


if __name__ == "__main__":
    main()
