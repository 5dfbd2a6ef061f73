"""The user's own models, data and functions, by name."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from secateur.io import (
    build,
    call,
    resolve,
)


@pytest.fixture
def user(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("WIDTH = 4\n")
    (tmp_path / "net.py").write_text(
        "import torch\nfrom helper import WIDTH\nCOUNT = []\n"
        "def build(width=WIDTH, bias=True):\n    import late\n    return torch.nn.Linear(width, late.OUT, bias=bias)\n"
        "class Net(torch.nn.Linear):\n    def __init__(self):\n        super().__init__(2, 2)\n"
        "model = Net()\n"
    )
    (tmp_path / "late.py").write_text("OUT = 3\n")
    return tmp_path


def test_objects_of_a_file(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = f"{user / 'net.py'}:build"
    assert build(spec).weight.shape == (3, 4)
    assert build(spec, width=5, bias=False).bias is None
    assert build(f"{user / 'net.py'}:Net").weight.shape == (2, 2)
    assert build(f"{user / 'net.py'}:model") is resolve(f"{user / 'net.py'}:model"), "the file is run once"
    assert resolve(f"{user / 'net.py'}:Net.forward") is torch.nn.Linear.forward
    monkeypatch.chdir(user)
    assert resolve("net.py:build") is resolve(spec)
    assert resolve("helper:WIDTH") == 4
    assert call(resolve(spec), spec, 7).in_features == 7
    (user / "net.py").write_text("def build():\n    return 1\n")
    assert resolve(spec)() == 1, "a changed file is run again"


def test_two_files_of_one_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "net.py").write_text(f"def name():\n    return {name!r}\n")
    assert [resolve(f"{tmp_path / name / 'net.py'}:name")() for name in ("a", "b")] == ["a", "b"]


def test_objects_of_modules() -> None:
    assert resolve("torch.nn:Linear") is nn.Linear
    assert resolve("torch.nn.functional:relu") is torch.nn.functional.relu


def test_networks_of_torchvision_and_timm() -> None:
    if find_spec("torchvision") is None or find_spec("timm") is None:
        pytest.skip("the extra 'vision' is not installed")
    net = build("torchvision:squeezenet1_1", num_classes=7)
    with torch.no_grad():
        assert net.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    small = build("timm:mobilenetv3_small_050", num_classes=3)
    with torch.no_grad():
        assert small.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_importing_the_package_imports_no_network_library() -> None:
    code = "import secateur.io, sys; sys.exit(any(n in sys.modules for n in ('torchvision', 'timm', 'matplotlib')))"
    env = {**os.environ, "PYTHONPATH": "src"}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=env).returncode == 0
