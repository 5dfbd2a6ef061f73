"""The command line as a user types it: what it prints, what it writes, and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import secateur
import small_run
from secateur.cli.main import COMMANDS
from secateur.io import read_plan

NET = """
from torch import nn

def build(width=8):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(width * 4, 5))

def two_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.a, self.b = nn.Embedding(7, 6), nn.Linear(6, 8), nn.Linear(8, 2)
        def forward(self, x, words):
            return self.b(self.a(x + self.table(words)).relu())
    return Two()
"""
INPUT = ["--input", "1,3,4,4"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(before)


@pytest.fixture
def plan(here, call) -> Path:
    assert call("plan", "net.py:build", "--keep", "macs=0.5", *INPUT, "-o", "plan.json")[0] == 0
    return here / "plan.json"


def test_inspect_says_what_can_be_cut_and_why_not(here, call):
    code, out, _ = call("inspect", "net.py:build", *INPUT)
    assert code == 0
    assert "1 of 5 axes can be cut" in out
    assert "output" in out
    code, out, _ = call("inspect", "net.py:build", *INPUT, "--ignore", "0", "--json")
    table = json.loads(out)
    assert all(axis["fixed"] for axis in table["axes"])
    assert table["params"] == sum(p.numel() for p in secateur.recipes.parts.build_model("net.py:build", {}).parameters())


def test_inputs_of_several_kinds(here, call):
    code, out, _ = call("inspect", "net.py:two_inputs", "--input", "1,6", "--input", "1:int64", "--json")
    assert code == 0
    assert [axis["units"] for axis in json.loads(out)["axes"] if not axis["fixed"]] == [8]


def test_plan_keeps_what_was_asked(here, call):
    code, out, _ = call("plan", "net.py:build", "--keep", "macs=0.5", "--keep", "params=0.9", *INPUT, "--json")
    assert code == 0
    counts = json.loads(out)["counts"]
    assert counts["macs"]["kept"] <= 0.5 * counts["macs"]["dense"]
    assert read_plan(here / "plan.json").widths() == {"0": (8, 4)}
    code, out, _ = call("plan", "net.py:build", "--keep", "macs=0.5", *INPUT, "--set", "multiple=8", "--set", "floor=1.0")
    assert code == 2


def test_plan_on_data(here, call):
    words = (
        "plan",
        "zoo:digits_resnet",
        "--keep",
        "macs=0.4",
        "--data",
        "digits",
        "--set",
        "batches=2",
        "--criterion",
        "taylor",
    )
    code, out, _ = call(*words, "--json")
    assert code == 0
    assert json.loads(out)["counts"]["macs"]["kept"] <= 0.4 * json.loads(out)["counts"]["macs"]["dense"]


def test_the_same_seed_gives_the_same_plan(here, call):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        call(
            "plan", "net.py:build", "--keep", "macs=0.5", *INPUT, "--criterion", "random", "--seed", seed, "-o", f"{name}.json"
        )
    assert call("diff", "a.json", "b.json")[:2] == (0, "")
    code, out, _ = call("diff", "a.json", "c.json")
    assert code == 1
    assert out.startswith("step 1: 0:")
    assert json.loads(call("diff", "a.json", "c.json", "--json")[1])["equal"] is False


def test_apply_load_measure_show(plan, here, call):
    code, out, _ = call("apply", plan, "net.py:build", "-o", "small.safetensors", "--json")
    assert code == 0
    assert json.loads(out)["bytes"] == (here / "small.safetensors").stat().st_size
    code, out, _ = call("measure", "net.py:build", *INPUT, "--weights", "small.safetensors", "--repeats", 2, "--json")
    dense, small = json.loads(out)["stages"]
    assert code == 0
    assert small["macs"]["value"] <= 0.5 * dense["macs"]["value"]
    assert small["macs"]["ratio"] == pytest.approx(small["macs"]["value"] / dense["macs"]["value"], abs=1e-6)
    again = json.loads(call("measure", "net.py:build", *INPUT, "--plan", plan, "--repeats", 2, "--json")[1])["stages"][1]
    assert (again["params"], again["macs"]) == (small["params"], small["macs"])
    assert call("show", plan)[1] == call("show", "small.safetensors")[1]
    assert json.loads(call("show", "small.safetensors", "--json")[1]) == json.loads(plan.read_text())
    assert len(call("measure", "net.py:build", *INPUT, "--repeats", 2)[1].splitlines()) >= 5


def test_weights_of_a_state_dict(plan, here, call):
    torch.manual_seed(5)
    net = secateur.recipes.parts.build_model("net.py:build", {})
    torch.save(net.state_dict(), "net.pt")
    call("apply", plan, "net.py:build", "--weights", "net.pt", "-o", "small.safetensors")
    x = torch.randn(2, 3, 4, 4)
    again = secateur.load("small.safetensors", into=secateur.recipes.parts.build_model("net.py:build", {}))
    assert torch.equal(again.eval()(x), read_plan(plan).apply(net).eval()(x))


def test_run_again_report_show_and_limits(here, call):
    recipe = small_run.write(here)
    quick = ["--set", "train.epochs=1", "--set", "finetune.epochs=1", "--set", "measure.repeats=2"]
    code, out, err = call("run", recipe, "-o", "out", *quick)
    assert (code, err) == (0, "")
    assert "after fine-tuning" in out
    assert "report.html" in out
    code, out, _ = call("run", recipe, "-o", "out", *quick, "--json", "--max-drop", "1.0")
    assert code == 0
    assert len(json.loads(out)["stages"]) == 4
    assert call("run", recipe, "-o", "out", *quick, "--max-drop", "-1.0")[0] == 1
    assert json.loads(call("show", "out", "--json")[1]) == json.loads(out)
    page = (here / "out" / "report.html").read_bytes()
    (here / "out" / "report.html").unlink()
    assert call("report", "out") == (0, "out/report.html\n", "")
    assert (here / "out" / "report.html").read_bytes() == page
    assert call("diff", "out", "out/small.safetensors")[0] == 0
    code, _, err = call("run", recipe, "-o", "out", *quick, "--set", "seed=4")
    assert code == 2
    assert "seed" in err
    assert json.loads((here / "out" / "run.json").read_text())["command"].startswith("secateur ")


def test_the_data_folder_may_come_from_the_environment(here, call, monkeypatch):
    (here / "recipe.toml").write_text('[model]\nbuild = "zoo:cifar_resnet20_a"\n[data]\nname = "cifar10"\n')
    code, _, err = call("run", "recipe.toml", "-o", "out")
    assert code == 2
    assert "SECATEUR_DATA" in err
    monkeypatch.setenv("SECATEUR_DATA", str(here / "nowhere"))
    assert "nowhere" in call("run", "recipe.toml", "-o", "out")[2]
    assert "elsewhere" in call("run", "recipe.toml", "-o", "out", "--data", here / "elsewhere")[2]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["inspcet"], "Did you mean 'inspect'"),
        (["plan", "net.py:build"], "Missing option '--keep'"),
        (["plan", "net.py:build", "--keep", "half"], "--keep half"),
        (["plan", "net.py:build", "--keep", "macs=half", *INPUT], "no number"),
        (["run", "x.toml", "--set", "seed"], "no such file"),
        (["inspect", "net.py:build", "--input", "1,3,4,4:floot32"], "did you mean 'float32'"),
    ],
)
def test_wrong_words_give_one_sentence_and_two(here, call, words, says):
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert says in err
    assert len(err.splitlines()) == 1


def test_a_fault_is_no_limit(here, call, monkeypatch):
    """Exit 1 means a limit was not met; a fault of ours must not look like it."""

    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("secateur.cli.inputs.example", broken)
    code, _, err = call("inspect", "net.py:build", *INPUT)
    assert code == 70
    assert "ZeroDivisionError" in err


def test_help_version_and_completion(call, monkeypatch):
    code, out, _ = call("--help")
    assert code == 0
    assert all(command.__name__ in out for command in COMMANDS)
    assert call("--version")[1] == f"secateur {secateur.__version__}\n"
    assert call()[0] == 2
    environment = {**os.environ, "_SECATEUR_COMPLETE": "complete_bash", "COMP_WORDS": "secateur in", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "secateur.cli.main"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["inspect"]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_every_command_explains_itself(call, command):
    code, out, _ = call(command.__name__, "--help")
    assert code == 0
    assert command.__doc__.split(".")[0].split(";")[0].split(",")[0] in " ".join(out.split())
