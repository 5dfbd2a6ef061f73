"""A folder of good files and, beside them, what a hostile or an unlucky user brings. Every maker returns the folder's files."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from secateur.core.codec import dumps, to_json
from secateur.graph import trace
from secateur.io import build, save, write_plan

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width * 16, 5)
    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).flatten(1))

def build(width=8):
    torch.manual_seed(0)
    return Net(width)
def wider():
    return Net(9)
def other():
    return nn.Sequential(nn.Linear(4, 4))
def tied():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    return net
def fails():
    raise RuntimeError("no such thing\\nsecond line")
def number():
    return 3
def nan():
    net = build()
    net.conv.weight.data[0] = float("nan")
    return net
def scalar_data():
    return 3
def data():
    x, y = torch.randn(16, 3, 4, 4), torch.arange(16) % 5
    return [(x, y)], [(x, y)]
def sick_data():
    x, y = torch.full((16, 3, 4, 4), float("nan")), torch.arange(16) % 5
    return [(x, y)], [(x, y)]
def wide_labels():
    x, y = torch.randn(16, 3, 4, 4), torch.arange(16) + 5
    return [(x, y)], [(x, y)]
def empty_data():
    return [], []
VALUE = 3
"""
FILES = {
    "syntax.py": "def build(:\n",
    "raises.py": "x = 1\nraise ValueError('at import')\n",
    "leaves.py": "import sys\nsys.exit('usage: script')\n",
    "needs.py": "import a_module_nobody_has\n",
    "page.pt": "<!DOCTYPE html><html>404</html>",
    "pointer.safetensors": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "numbers.json": "[1, 2, 3]",
    "deep.json": "[" * 100_000,
    "twice.json": '{"format": 1, "format": 1, "model": {}, "steps": []}',
    "empty.json": "",
    "empty.safetensors": "",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    make(folder)
    return folder


@pytest.fixture(autouse=True)
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, full of bad files; afterwards it has to be as it was."""
    place = tmp_path / "world"
    shutil.copytree(made, place, symlinks=True, ignore=shutil.ignore_patterns("pipe", "__pycache__"))
    os.mkfifo(place / "pipe")
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = contents(place)
    yield place
    after = contents(place)
    assert sorted(after) == sorted(before), "a file was left behind, lost, or a bomb went off"
    assert after == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


def check(sentence: str, says: str) -> None:
    assert says in sentence, sentence
    assert sentence.endswith((".", "?")), sentence
    assert "\n" not in sentence, sentence
    assert len(sentence) < 600, sentence
    assert not re.search(r"Traceback|<lambda>|object at 0x", sentence), sentence


class Bomb:
    """Makes a file when it is unpickled the careless way."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def make(folder: Path) -> None:
    """Fill `folder`: net.py, plan.json, small.safetensors, weights.pt and recipe.toml are good, all else is bad."""
    (folder / "net.py").write_text(NET)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    net = build(f"{folder / 'net.py'}:build")
    axes = trace(net, torch.zeros(1, 3, 4, 4))
    plan = axes.plan({axes.free[0].name: [0, 1, 5]})
    write_plan(folder / "plan.json", plan)
    save(folder / "small.safetensors", plan.apply(net), plan)
    save(folder / "dense.safetensors", net)
    torch.save(net.state_dict(), folder / "weights.pt")
    _plans(folder, to_json(plan))
    _artefacts(folder, dumps(plan))
    _pickles(folder, net)
    _recipes(folder)
    (folder / "full").mkdir()
    (folder / "full" / "diary.txt").write_text("precious")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")


def _plans(folder: Path, good: dict[str, Any]) -> None:
    def cut(**parts: Any) -> Callable[[dict[str, Any]], Any]:
        return lambda plan: plan["steps"][0]["cuts"][0].update(parts)

    changes: dict[str, Callable[[dict[str, Any]], Any]] = {
        "newer.json": lambda plan: plan.update(format=2),
        "negative.json": cut(kept="-1 2"),
        "duplicate.json": cut(kept="1 1 2"),
        "huge.json": cut(kept="0-99999999999"),
        "outside.json": cut(kept="0 8"),
        "nothing.json": cut(kept=""),
        "elsewhere.json": cut(slots=[["conv.weight", 1, "write"]]),
        "attribute.json": cut(slots=[["conv.weight", 0, "write"], ["conv.depth", -1, "count"]]),
        "text attribute.json": cut(slots=[["conv.weight", 0, "write"], ["conv.padding_mode", -1, "count"]]),
        "long attribute.json": cut(slots=[["conv.weight", 0, "write"], ["conv.in_channels", -1, "count"]]),
        "class.json": cut(slots=[["conv.weight", 0, "write"], ["conv.__class__.groups", -1, "count"]]),
        "import.json": lambda plan: plan.update(module="os"),
        "step.json": lambda plan: plan["steps"][0].update(do="exec"),
    }
    for name, change in changes.items():
        value = json.loads(json.dumps(good))
        change(value)
        (folder / name).write_text(json.dumps(value))
    (folder / "cut short.json").write_text(json.dumps(good)[:-30])


def _artefacts(folder: Path, plan: str) -> None:
    good = (folder / "small.safetensors").read_bytes()
    length = int.from_bytes(good[:8], "little")
    header, body = json.loads(good[8 : 8 + length]), good[8 + length :]
    spoiled = {
        "cut in header": good[: length // 2],
        "cut in body": good[:-10],
        "longer": good + b"\0",
        "flipped body": _flip(good, len(good) - 9),
        "flipped plan": good.replace(b"0-1 5", b"0-1 6"),
        "oversized": b"\xff" * 7 + b"\x7f" + good[8:],
        "two hundred megabytes": (200 << 20).to_bytes(8, "little") + good[8:],
        "deep header": _packed(b"{" + b'"a":{' * 50_000, body),
        "list header": _packed(b'{"__metadata__":[]}', b""),
        "no header": b"\0" * 64,
    }
    for name, data in spoiled.items():
        (folder / f"{name}.safetensors").write_bytes(data)
    forged: dict[str, dict[str, str]] = {
        "newer": {"secateur": "3"},
        "another format": {"secateur": "2"},
        "odd": {"secateur": "one"},
        "newer plan": {"plan": plan.replace('"format": 1', '"format": 2')},
        "forged plan": {"plan": plan.replace('"conv.weight", 0', '"conv.weight", 1')},
        "forged ties": {"aliases": '{"x": "y"}'},
        "no ties": {"aliases": "[]"},
    }
    for name, metadata in forged.items():
        _stamped(folder / f"{name}.safetensors", header, body, metadata)
    turned = {name: value for name, value in header.items() if name != "head.bias"} | {
        "head.bias": {**header["head.bias"], "dtype": "I32"}
    }
    _stamped(folder / "whole numbers.safetensors", turned, body, {})
    save(folder / "untied.safetensors", nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))


def _stamped(path: Path, header: dict[str, Any], body: bytes, metadata: dict[str, str]) -> None:
    """A forged file whose checksum is right."""
    zeros = "0" * 64
    table = {**header, "__metadata__": {**header["__metadata__"], **metadata, "sha256": zeros}}
    head = _packed(json.dumps(table, separators=(",", ":")).encode(), b"")
    digest = hashlib.sha256(head + body).hexdigest()
    path.write_bytes(head.replace(f'"sha256":"{zeros}"'.encode(), f'"sha256":"{digest}"'.encode()) + body)


def _packed(header: bytes, body: bytes) -> bytes:
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + body


def _flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


def _pickles(folder: Path, net: nn.Module) -> None:
    state = net.state_dict()
    bomb = Bomb(folder / "exploded")
    (folder / "bomb.pkl").write_bytes(pickle.dumps({"state_dict": bomb}))
    torch.save({"state_dict": state, "extra": bomb}, folder / "bomb.pt")
    torch.save({"state_dict": state, "extra": bomb}, folder / "old bomb.pt", _use_new_zipfile_serialization=False)
    torch.save(nn.Linear(2, 2), folder / "whole.pt")
    torch.save({**state, "conv.weight": torch.full((8, 3, 3, 3), float("nan"))}, folder / "nan.pt")
    torch.save({**state, "conv.weight": torch.ones(8, 3, 5, 5)}, folder / "shape.pt")
    torch.save({**state, "conv.weight": 3}, folder / "number.pt")
    torch.save({**state, "conv.weight": torch.ones(8, 27).to_sparse()}, folder / "sparse.pt")
    torch.save({**state, "conv.weight": torch.empty(8, 3, 3, 3, device="meta")}, folder / "meta.pt")
    torch.save([1, 2], folder / "list.pt")
    torch.save({}, folder / "nothing.pt")
    np.savez(folder / "arrays.npz", x=np.ones(3))
    whole = (folder / "weights.pt").read_bytes()
    (folder / "half.pt").write_bytes(whole[: len(whole) // 2])


def _recipes(folder: Path) -> None:
    good = (
        '[model]\nbuild = "net.py:build"\n[data]\nname = "net.py:data"\n[prune]\ncriterion = "l2"\nkeep = { macs = 0.6 }\n'
        "[finetune]\nepochs = 1\nlr = 0.01\n[repair]\nbatches = 1\n[measure]\nrepeats = 1\nwarmup = 0\n"
    )
    changes = {
        "recipe": ("", ""),
        "wrong key": ("[prune]", "[prnue]"),
        "wrong name": ("criterion", "criteria"),
        "wrong value": ("0.6", "1.6"),
        "wrong type": ("epochs = 1", 'epochs = "many"'),
        "wrong toml": ("[prune]", "[prune"),
        "impossible": ("0.6", "0.0001"),
        "sick data": ("net.py:data", "net.py:sick_data"),
        "wide labels": ("net.py:data", "net.py:wide_labels"),
        "no data": ("net.py:data", "net.py:empty_data"),
        "scalar data": ("net.py:data", "net.py:scalar_data"),
        "nan model": ("net.py:build", "net.py:nan"),
        "number model": ("net.py:build", "net.py:number"),
        "infinite rate": ("0.01", "1e38"),
        "no rate": ("0.01", "nan"),
        "missing weights": ('"net.py:build"', '"net.py:build"\nweights = "wieghts.pt"'),
        "bomb": ('"net.py:build"', '"net.py:build"\nweights = "bomb.pt"'),
    }
    for name, (old, new) in changes.items():
        (folder / f"{name}.toml").write_text(good.replace(old, new, 1) if old else good)
