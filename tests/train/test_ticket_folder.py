"""The folder of secateur tickets: seeds that are done stay, and what is something else is refused and left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from secateur.recipes import tickets as grids
from secateur.recipes.folder import alone

NET = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))

def data():
    draw = torch.Generator().manual_seed(0)
    made = [(torch.randn(16, 1, 8, 8, generator=draw), torch.randint(10, (16,), generator=draw)) for _ in range(2)]
    return made, made[:1]
"""
WORDS = ("tickets", "net.py:build", "--data", "net.py:data", "--epochs", "1", "--variant", "rewind", "--seeds", "3", "-q")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "tickets.json").read_text())


def stopped_after(trainings: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stops the grid before one more training; how many there were, in a list of one."""
    real, count = grids.fit, [0]

    def fit(*args: Any, **more: Any) -> Any:
        if count[0] == trainings:
            raise KeyboardInterrupt
        count[0] += 1
        return real(*args, **more)

    monkeypatch.setattr(grids, "fit", fit)
    return count


@pytest.mark.parametrize("trainings", [0, 1, 3, 5, 8])
def test_stopped_anywhere_it_goes_on_after_the_last_whole_seed(
    trainings: int, here: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each seed trains three networks: the dense one and a ticket of each kind."""
    assert call(*WORDS, "-o", "whole")[0] == 0
    with monkeypatch.context() as patch:
        stopped_after(trainings, patch)
        assert call(*WORDS, "-o", "out")[0] == 130
    assert (here / "out").exists() == (trainings > 0), "nothing is there before the first network is trained"
    count = stopped_after(99, monkeypatch)
    code, _, err = call(*WORDS, "-o", "out")
    assert (code, err) == (0, "")
    assert count == [9 - trainings // 3 * 3], "whole seeds are not repeated"
    assert table(here / "out")["found"] == table(here / "whole")["found"]
    for file in (here / "whole").rglob("*"):
        if file.suffix in (".safetensors", ".svg") or file.name == "structured.json":
            assert (here / "out" / file.relative_to(here / "whole")).read_bytes() == file.read_bytes()
    before = (here / "out" / "tickets.json").read_bytes()
    (here / "out" / "tickets.svg").unlink()
    assert call(*WORDS, "-o", "out")[0] == 0
    assert count == [9 - trainings // 3 * 3], "a grid that is done is shown again"
    assert (here / "out" / "tickets.json").read_bytes() == before
    assert (here / "out" / "tickets.svg").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--lr", "0.2"), "settings.fit.lr"),
        (("--seeds", "2"), "settings.seeds"),
        (("--batch", "32"), "batch"),
        (("--no-weights",), "weights"),
        (("--kind", "structured"), "settings.kinds"),
    ],
)
def test_other_settings_are_refused_once_a_seed_is_done(
    more: tuple[str, ...], says: str, here: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for trainings, code in ((2, 0), (3, 2)):
        with monkeypatch.context() as patch:
            stopped_after(trainings, patch)
            call(*WORDS, "-o", f"out{code}")
        before = (here / f"out{code}" / "tickets.json").read_bytes()
        found, _, err = call(*WORDS, *more, "-o", f"out{code}")
        assert found == code, err
        assert ((here / f"out{code}" / "tickets.json").read_bytes() == before) == (code == 2)
    assert f"a grid of other settings ({says} differ)" in err


OTHERS = {
    "precious": "tickets.json",
    "[]": "tickets.json",
    "{}": "tickets.json",
    '{"dense": [0.9], "structured": {}}': "tickets.json",
    '{"found": {"dense": [0.9]}}': "tickets.json",
    '{"found": 3}': "tickets.json",
    'model = "x"': "recipe.toml",
    "anything": "notes.txt",
}


@pytest.mark.parametrize("text", OTHERS)
def test_folders_of_something_else_are_refused_and_left_alone(text: str, here: Path, call: Any) -> None:
    (here / "old").mkdir()
    (here / "old" / OTHERS[text]).write_text(text)
    code, out, err = call(*WORDS, "-o", "old")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert [path.name for path in (here / "old").iterdir() if path.name != ".lock"] == [OTHERS[text]]
    assert (here / "old" / OTHERS[text]).read_text() == text


def test_what_is_damaged_is_named(here: Path, call: Any) -> None:
    assert call(*WORDS, "-o", "out")[0] == 0
    found = table(here / "out")
    for broken in ({}, {"structured": {"rewind": [0.5]}}, {"structured": 3}):
        (here / "out" / "tickets.json").write_text(json.dumps(found | {"found": {"dense": [0.5, 0.5], **broken}}))
        code, _, err = call(*WORDS, "-o", "out")
        assert code == 2
        assert "a tickets.json of something else" in err


def test_a_folder_another_process_works_in_is_refused(here: Path, call: Any) -> None:
    (here / "out").mkdir()
    with alone(here / "out"):
        assert "another process" in call(*WORDS, "-o", "out")[2]
