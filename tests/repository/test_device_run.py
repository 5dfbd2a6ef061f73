"""The queue of long experiments, proved with entries that take seconds on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from scripts import ROOT, module
from secateur.core.errors import SecateurError
from secateur.recipes import schema, zoo
from secateur.train import FitSettings

BENCH = ROOT / "bench"
QUEUE = """
[[entry]]
name = "base"
kind = "train"
minutes = 0.2
model = "digits_resnet"
data = "digits"
batch = 300
goal = 0.99
fit = { epochs = 3, lr = 0.1 }

[[entry]]
name = "half"
kind = "compress"
base = "base"
minutes = 0.2
recipe.model = { build = "zoo:digits_resnet" }
recipe.data = { name = "digits", batch = 300 }
recipe.prune = { keep = { macs = 0.5 }, criterion = "l2", batches = 1 }
recipe.repair = { batches = 2 }
recipe.finetune = { epochs = 2, lr = 0.02 }
recipe.measure = { latency = false }
"""


@pytest.fixture
def device_run() -> Iterator[ModuleType]:
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    torch.set_num_threads(1)
    yield module("bench/device_run.py")
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = benchmark


@pytest.fixture
def call(device_run: ModuleType, tmp_path: Path) -> Any:
    (tmp_path / "queue.toml").write_text(QUEUE)

    def called(name: str, *arguments: str) -> int:
        places = ["--out", str(tmp_path / name / "out"), "--work", str(tmp_path / name / "work")]
        return device_run.main(["--queue", str(tmp_path / "queue.toml"), *places, *arguments])

    return called


def test_a_queue_runs_once_and_writes_small_results(call: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("a") == 1  # the goal of "base" is out of reach in three epochs
    told = capsys.readouterr().out
    assert "base: missed" in told
    assert "half: done" in told
    out = tmp_path / "a" / "out"
    assert sorted(p.name for p in out.iterdir()) == ["base.json", "base.safetensors", "half.json", "half.safetensors"]
    base, half = (json.loads((out / f"{name}.json").read_text()) for name in ("base", "half"))
    assert base["reached"] is False
    assert len(base["history"]) == 3
    assert base["facts"]["stages"][0]["params"] == 77754
    assert half["facts"]["stages"][0]["accuracy"] == base["accuracy"]
    assert half["facts"]["stages"][-1]["macs"] <= 0.5 * half["facts"]["stages"][0]["macs"]
    assert str(tmp_path) not in (out / "half.json").read_text()
    assert [p.name for p in (tmp_path / "a" / "work").iterdir()] == ["base.safetensors"]
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert call("a") == 0
    assert capsys.readouterr().out.count("was done") == 2
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_an_entry_whose_text_changed_is_run_again(call: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("a", "--only", "base") == 1
    (tmp_path / "queue.toml").write_text(QUEUE.replace("goal = 0.99", "goal = 0.01"))
    assert call("a", "--only", "base") == 0
    assert "base: done" in capsys.readouterr().out


def test_what_the_time_cut_short_goes_on_and_ends_the_same(
    call: Any, device_run: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call("whole")
    capsys.readouterr()
    for ticks in (6, 14):  # inside the base's second epoch, then inside the compression
        left = [ticks]

        def tick(self: Any, *_: Any, left: list[int] = left, **__: Any) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise device_run.OutOfTimeError

        with monkeypatch.context() as patch:
            patch.setattr(device_run.Place, "tick", tick)
            call("parts")
        told = capsys.readouterr().out
        assert "stopped, goes on next time" in told
        assert ("epoch 1 of 3" in told) == (ticks == 6)  # the second call goes on with epoch 2
    call("parts")
    for name in ("base", "half"):
        whole, parts = (load_file(tmp_path / run / "out" / f"{name}.safetensors") for run in ("whole", "parts"))
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
        found = [json.loads((tmp_path / run / "out" / f"{name}.json").read_text()) for run in ("whole", "parts")]
        assert [r["loss"] for r in found[0]["history"]] == [r["loss"] for r in found[1]["history"]]


def test_without_time_nothing_is_begun(call: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("a", "--minutes", "0.4") == 0
    assert capsys.readouterr().out.count("no time") == 2
    assert not list((tmp_path / "a" / "out").iterdir())


def test_large_weights_come_in_pieces(call: Any, tmp_path: Path) -> None:
    call("a", "--only", "base", "--piece-mib", "0.1")
    out = tmp_path / "a" / "out"
    pieces = sorted(out.glob("base.safetensors.?of?"))
    assert len(pieces) == 4
    assert all(piece.stat().st_size <= 0.1 * 2**20 for piece in pieces)
    (tmp_path / "joined").write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    zoo.build("digits_resnet").load_state_dict(load_file(tmp_path / "joined"))
    assert [entry["name"] for entry in json.loads((out / "base.json").read_text())["files"]] == [p.name for p in pieces]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('kind = "train"', 'kind = "tain"', "entry 'base' .* kind 'tain'"),
        ("batch = 300\ngoal", "bach = 300\ngoal", "did you mean 'batch'"),
        ('model = "digits_resnet"\n', "", "no 'model'"),
        ('name = "half"', 'name = "base"', "the name twice"),
        ("[[entry]]", "[[entry", "queue.toml"),
    ],
)
def test_a_malformed_queue_is_one_sentence(
    call: Any, device_run: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, told: str
) -> None:
    (tmp_path / "queue.toml").write_text(QUEUE.replace(old, new))
    with pytest.raises(SecateurError, match=told):
        device_run.read_queue(tmp_path / "queue.toml")
    assert call("a") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_failing_entry_leaves_the_others_their_turn(call: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "queue.toml").write_text(QUEUE.replace('model = "digits_resnet"', 'model = "digits_resnett"'))
    assert call("a") == 1
    told = capsys.readouterr().out
    assert "did you mean 'digits_resnet'" in told
    assert "run the entry 'base' first" in told
    assert call("a", "--only", "bas") == 2
    assert "did you mean 'base'" in capsys.readouterr().err


def test_the_real_queue_is_well_formed(device_run: ModuleType) -> None:
    entries = device_run.read_queue(BENCH / "device_queue.toml")
    assert all(0 < entry.minutes < 10 for entry in entries)
    for entry in entries:
        if entry.kind == "train":
            assert FitSettings(**entry.table["fit"]).epochs > 0
            assert entry.table["model"] in zoo.BUILDERS
        else:
            assert schema.from_dict(entry.table["recipe"]).model.build.removeprefix("zoo:") in zoo.BUILDERS
    names = [entry.name for entry in entries]
    assert names.index("vgg16_bn_base") < names.index("resnet20_base") < names.index("resnet56_2.57x")


BARE = """
import runpy, sys
for name in ("pydantic", "typer", "rich", "accelerate", "jinja2", "matplotlib", "torchvision", "timm"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
sys.path = [p for p in sys.path if not p.endswith("/src")]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_plain_checkout_with_few_packages_is_enough(tmp_path: Path) -> None:
    (tmp_path / "queue.toml").write_text(QUEUE.replace("goal = 0.99", ""))
    places = ["--queue", "queue.toml", "--out", "out", "--work", "work"]
    command = [sys.executable, "-c", BARE, str(BENCH / "device_run.py"), *places]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": done, accuracy") == 2
