"""A run killed with -9 at any moment and started again finishes, with the plan and the weights of one left alone.

Ctrl-C is told in one sentence.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import small_run
from secateur.cli import main

if not hasattr(os, "fork"):
    pytest.skip("needs fork and SIGKILL", allow_module_level=True)

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MPLBACKEND": "agg"}

DRIVER = """
import json, os, signal, sys
import secateur.report.build
from secateur.recipes.run import run

recipe, root = sys.argv[1:]


def start(name):
    run(recipe, os.path.join(root, name), report=secateur.report.build.build, command="test")


def killed(name, allowed):
    # a child of its own, killed before or after its rename number `allowed`; the exit status, 0 where it finished
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    real, count = os.replace, 0

    def replace(*names):
        nonlocal count
        count += 1
        if name == "after":
            real(*names)
        if count == allowed:
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "before":
            real(*names)

    os.replace = replace
    start(name)
    os._exit(0)


start("whole")
kills = {}
for name in ("before", "after"):
    for allowed in range(1, 200):
        status = killed(name, allowed)
        if status == 0:
            break
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    kills[name] = allowed - 1
print(json.dumps(kills))
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run.write(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def runs(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders "whole", "before" and "after", of a run left alone and of two that were killed again and again."""
    root = tmp_path_factory.mktemp("runs")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DRIVER, str(recipe), str(root)],
        env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(count >= 5 for count in json.loads(done.stdout).values()), done.stdout
    return root


def agree(folder: Path, whole: Path) -> None:
    """The same plan and the same weights, bit for bit, and the same figures but for times."""
    for name in ("dense.safetensors", "plan.json", "axes.json", "small.safetensors", "recipe.toml"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    assert history(folder) == history(whole)
    assert figures(folder) == figures(whole)
    assert (folder / "report.html").exists()
    assert json.loads((folder / "run.json").read_text())["finished"]
    assert not [path for path in folder.rglob("*") if path.name.endswith((".part", ".checkpoint"))]
    assert not (folder / "work").exists()


def history(folder: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def figures(folder: Path) -> dict[str, object]:
    facts = json.loads((folder / "facts.json").read_text())
    facts["stages"] = [{key: value for key, value in stage.items() if key != "latency_ms"} for stage in facts["stages"]]
    return facts


@pytest.mark.parametrize("mode", ["before", "after"])
def test_killed_at_every_write(runs: Path, mode: str) -> None:
    """The first start died at its first rename, the second at its second, and so on until one finished."""
    agree(runs / mode, runs / "whole")


def test_killed_at_random_moments(recipe: Path, runs: Path, tmp_path: Path) -> None:
    """The command itself, killed while it trains, cuts and measures; finished phases are not repeated."""
    folder, dice = tmp_path / "run", random.Random(0)
    command = [sys.executable, "-m", "secateur.cli.main", "run", str(recipe), "-o", str(folder), "-q", "--json"]
    marked: dict[str, object] = {}
    for _ in range(3):
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = time.monotonic()
        while not (folder / "run.json").exists() and time.monotonic() - before < 60 and process.poll() is None:
            time.sleep(0.02)
        time.sleep(dice.uniform(0.0, 1.5))
        process.kill()
        process.wait()
        phases = json.loads((folder / "run.json").read_text())["phases"]
        assert {name: phases[name] for name in marked} == marked, "a finished phase was done again"
        marked = phases
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stages"][0]["stage"] == "dense"
    agree(folder, runs / "whole")


INTERRUPTED = """
import os, signal, time

def build():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""


def listening() -> None:
    """In a child: Ctrl-C ends it, also where the tests run in the background of a shell that ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


GOES_ON, ENDS = "stopped; the same command goes on from here.\n", "stopped.\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("tickets", "net.py:build", "--seeds", "1"), GOES_ON),
        (("plan", "net.py:build", "--keep", "macs=0.5", "--input", "1,3,4,4"), ENDS),
    ],
)
def test_an_interrupt_of_the_command_itself(words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(INTERRUPTED)
    command = [sys.executable, "-m", "secateur.cli.main", *words]
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)}
    how: dict[str, Any] = {"cwd": tmp_path, "env": environment, "preexec_fn": listening}
    done = subprocess.run(command, **how, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", says)


def test_an_interrupted_run_goes_on(recipe: Path, runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "secateur.cli.main", "run", str(recipe), "-o", str(folder), "-q", "--json"]
    how: dict[str, Any] = {"env": ENVIRONMENT, "preexec_fn": listening, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **how, text=True)
    before = time.monotonic()
    while not (folder / "run.json").exists() and time.monotonic() - before < 60 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.communicate() == ("", GOES_ON)
    assert process.returncode == 130
    assert subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=False).returncode == 0
    agree(folder, runs / "whole")


@pytest.mark.parametrize("name", [command.__name__ for command in main.COMMANDS])
def test_an_interrupt_is_one_true_sentence(name: str, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands whose help says that they go on say so, and no others."""

    def stop() -> None:
        raise KeyboardInterrupt

    command = next(command for command in main.COMMANDS if command.__name__ == name)
    stop.__name__ = name
    monkeypatch.setattr(main, "COMMANDS", (stop,))
    says = GOES_ON if "same command" in (command.__doc__ or "") else ENDS
    assert call(name) == (130, "", says)
