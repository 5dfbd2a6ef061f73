"""What commands write over: no file they read, and no file of another kind; a file of their own kind is replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import handmade
from secateur.criteria.scoring import NetSettings, ScoringNet
from secateur.io import save, save_scorer

NET = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5))
"""
INPUT = ("--input", "1,3,4,4")
WRITERS = {
    "plan": ("plan", "net.py:build", *INPUT, "--keep", "macs=0.5", "-o"),
    "ranks": ("ranks", "net.py:build", *INPUT, "--keep", "macs=0.9", "--formats", "spatial", "--multiple", "1", "--stem", "-o"),
    "apply": ("apply", "given.json", "net.py:build", "-o"),
    "export": ("export", "net.py:build", *INPUT, "-o"),
    "measure": ("measure", "net.py:build", *INPUT, "--table"),
    "score": ("score", "net.py:build", *INPUT, "-o"),
}
READS = {
    "score --with": ("score", "net.py:build", *INPUT, "--with", "{0}", "-o", "{1}"),
    "score --weights": ("score", "net.py:build", *INPUT, "--weights", "{0}", "-o", "{1}"),
    "plan --weights": ("plan", "net.py:build", *INPUT, "--keep", "macs=0.5", "--weights", "{0}", "-o", "{1}"),
    "plan --table": ("plan", "net.py:build", *INPUT, "--keep", "latency=0.5", "--table", "{0}", "-o", "{1}"),
    "plan of a net": (
        "plan", "net.py:build", *INPUT, "--keep", "macs=0.5", "--criterion", "scoring_net",
        "--set", "args.file='{0}'", "-o", "{1}",
    ),
    "ranks --weights": ("ranks", "net.py:build", *INPUT, "--keep", "macs=0.9", "--weights", "{0}", "-o", "{1}"),
    "apply": ("apply", "{0}", "net.py:build", "-o", "{1}"),
    "apply --weights": ("apply", "given.json", "net.py:build", "--weights", "{0}", "-o", "{1}"),
    "export --weights": ("export", "net.py:build", *INPUT, "--weights", "{0}", "-o", "{1}"),
    "export --plan": ("export", "net.py:build", *INPUT, "--plan", "{0}", "-o", "{1}"),
    "score of a file": ("score", "{0}:build", *INPUT, "-o", "{1}"),
    "measure of a file": ("measure", "{0}:build", *INPUT, "--table", "{1}"),
}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_kernels: None, call: Any) -> Path:
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    assert call(*WRITERS["plan"], "given.json")[0] == 0
    return tmp_path


@pytest.mark.parametrize("command", WRITERS)
def test_a_file_of_another_kind_stays_and_one_of_its_own_is_replaced(command: str, here: Path, call: Any) -> None:
    (here / "precious.txt").write_text("precious")
    code, out, err = call(*WRITERS[command], "precious.txt")
    assert (code, out) == (2, "")
    assert "a file there that is no" in err
    assert (here / "precious.txt").read_text() == "precious"
    for _ in range(2):
        code, _, err = call(*WRITERS[command], "new")
        assert code == 0, err


@pytest.mark.parametrize("case", READS)
@pytest.mark.parametrize("name", ["same", "link"])
def test_no_command_writes_over_what_it_reads(case: str, name: str, here: Path, call: Any) -> None:
    """Whatever the file holds, and whatever other name leads to it."""
    file = here / "same.py"
    file.write_text("anything")
    (here / "link").symlink_to(file)
    code, out, err = call(*(word.format("same.py", "same.py" if name == "same" else "link") for word in READS[case]))
    assert (code, out) == (2, "")
    assert "a file that this command reads; give another name" in err
    assert file.read_text() == "anything"


def test_scores_spare_the_net_and_the_weights_they_are_made_from(here: Path, call: Any) -> None:
    save_scorer("net.safetensors", ScoringNet(NetSettings()))
    save("weights.safetensors", handmade.small())
    for option, name in (("--with", "net.safetensors"), ("--weights", "weights.safetensors")):
        before = (here / name).read_bytes()
        assert call("score", "net.py:build", *INPUT, option, name, "-o", name)[0] == 2
        assert (here / name).read_bytes() == before


def test_a_search_spares_the_weights_it_starts_from(here: Path, call: Any) -> None:
    (here / "search").mkdir()
    torch.save({}, here / "search" / "recovered.safetensors")
    words = ("search", "net.py:build", "--data", "digits", "--weights", "search/recovered.safetensors", "-o", "search")
    assert "a file that this command reads" in call(*words)[2]
