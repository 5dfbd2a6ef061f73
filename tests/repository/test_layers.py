"""A file imports only from smaller layers, and folders of one number do not know each other."""

import ast
from pathlib import Path

import pytest

from scripts import ROOT

SOURCE = ROOT / "src" / "secateur"
LAYER = {
    "core": 0, "surgery": 1, "measure": 1, "linalg": 1, "native": 1, "graph": 2, "criteria": 2, "allocate": 2, "repair": 2,
    "train": 2, "search": 2, "lowrank": 2, "data": 3, "io": 3, "runtime": 4, "report": 4, "recipes": 5, "cli": 6, "testing": 6,
}  # fmt: skip
DOORS = {"core/plan.py": {"surgery", "measure"}}
"""Methods of a plan that act on a model import what does the work when they are called; see docs/decisions.md."""


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("secateur"):
            names = (node.module or "").split(".")[1:2] or [alias.name for alias in node.names]
            found |= set(names)
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("secateur.")}
    return found


FILES = sorted(p for p in SOURCE.rglob("*.py") if p.parent != SOURCE or p.name == "testing.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_down(path):
    name = str(path.relative_to(SOURCE))
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    for other in imports(path) - DOORS.get(name, set()) - {own}:
        assert LAYER[other] < LAYER[own], f"{name} (layer {LAYER[own]}) imports {other} (layer {LAYER[other]})"


def test_files_stay_small():
    long = {str(p): n for p in FILES if (n := len(p.read_text().splitlines())) > 300}
    assert not long
