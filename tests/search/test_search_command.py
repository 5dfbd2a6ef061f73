"""Searches and curves of sensitivity by command: history, processes, judges, and what is wrong in a sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import secateur
from secateur.core.errors import NotFinite
from secateur.io import read_plan
from secateur.search import read_history


@pytest.fixture
def call(call, monkeypatch, tmp_path):  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    return call


SMALL = ("zoo:digits_resnet", "--data", "digits", "--holdout", "100", "--threads", "1", "--set", "model.args={widths=[4,6,8]}")


QUICK = (
    "--set",
    "search.args.step=0.5",
    "--set",
    "search.args.sweeps=2",
    "--set",
    "search.args.trial=0.2",
    "--set",
    "search.batches=1",
)


@pytest.mark.parametrize("method", ["adaptive", "predicted", "bisect"])
def test_the_command_searches_and_goes_on(method, call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    how = QUICK if method != "bisect" else ("--set", "search.args.tries=1", "--set", "search.batches=1")
    words = ("search", *SMALL, "--method", method, *how, "-o", "out", "--json")
    code, out, err = call(*words)
    assert code == 0, err
    plan = read_plan(tmp_path / "out" / "plan.json")
    lines = (tmp_path / "out" / "search.jsonl").read_text().splitlines()
    assert json.loads(out)["widths"] == {name: list(pair) for name, pair in plan.widths().items()}
    (tmp_path / "out" / "search.jsonl").write_text("".join(f"{line}\n" for line in lines[:2]) + lines[2][:9])
    assert call(*words)[0] == 0
    assert (tmp_path / "out" / "search.jsonl").read_text().splitlines() == lines
    assert read_plan(tmp_path / "out" / "plan.json") == plan


def test_the_command_says_what_is_wrong_and_has_written_nothing(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for words, told in (
        (("--set", "search.args.stride=1"), "set args to what the search takes"),
        (("--set", "search.args.step='a'"), "found step='a'; give a number"),
        (("--set", "search.args.schedule='spiral'"), "schedule='spiral'"),
        (("--set", "search.args.unit='bananas'"), "unit='bananas'"),
        (("--set", "search.args.sweeps=1.5"), "give a whole number"),
        (("--set", "search.args.trial=nan"), "trial=nan"),
        (("--set", "search.args.keep=0.5"), "give shares by name"),
        (("--keep", "params=1.5"), "above 0 and at most 1"),
        (("--keep", "latency=0.5"), "no table of latencies"),
        (("--method", "bisect", "--set", "search.args.tries=1.5"), "a binary search"),
        (("--method", "bisect", "--set", "search.args.order=['nope']"), "no axis of that name"),
        (("--method", "bisect", "--keep", "params=0.5"), "of which a binary search knows nothing"),
        (("--method", "predicted", "--set", "search.args.cost='gold'"), "no such count"),
        (("--set", "search.args.step=0"), "an adaptive search"),
        (("--method", "random"), "search.method"),
        (("--method", "none"), "found no search; give adaptive, predicted or bisect"),
        (("--set", "search.args.stepp=1"), "did you mean 'step'?"),
        (("--method", "predicted", "--set", "search.args.rooom=1"), "did you mean 'room'?"),
        (("--method", "bisect", "--set", "search.args.order=3"), "found order=3"),
        (("--method", "bisect", "--set", "search.args.order=['fc']"), "a binary search over axis 'fc'"),
        (("--set", "search.repair=whitened"), "a repair of products"),
        (("--ignore", "*"), "a search: found no axis that can be cut; ignore less, set search.coupled=true"),
        (("--set", "data.holdout=0"), "no held-out images"),
    ):
        code, _, err = call("search", *SMALL, *words)
        assert (code, told in err, err.count("\n")) == (2, True, 1), err
        assert not list(tmp_path.iterdir()), words
    for words in (("--rates", "1.5"), ("--ignore", "*"), ("--set", "search.repair=whitened")):
        code, _, err = call("sensitivity", *SMALL, *words)
        assert (code, err.count("\n")) == (2, 1), err
        assert not list(tmp_path.iterdir())


def test_a_target_that_the_limits_do_not_let_the_search_reach_is_told(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    words = ("search", *SMALL, "--set", "search.recover=0", "--set", "search.batches=1", "--set", "search.args.max_rate=0.5")
    everything = ("--set", "search.args.trial=2", "--set", "search.args.running=2", "--set", "search.args.step=0.5")
    code, out, err = call(
        *words, *everything, "--keep", "params=0.01", "--keep", "macs=0.9", "--keep", "bytes=0.02", "-o", "far"
    )
    assert code == 0, err
    assert [line.split(" of ")[0] for line in out.splitlines() if "not reached" in line] == [
        "not reached: params=0.01",
        "not reached: bytes=0.02",
    ]
    code, out, err = call(*words, *everything, "--keep", "params=0.9", "-o", "near")
    assert (code, "not reached" in out) == (0, False), err


@pytest.mark.slow
def test_processes_of_torchrun_decide_and_recover_as_one_does(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Same trials, same plan, same trained weights; the one that trains hands them to the other."""
    words = ["search", *SMALL, *QUICK, "--set", "search.images=50", "--json", "-o"]
    assert call(*words, "one")[0] == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "secateur", *words, "two"]
    path = os.pathsep.join([str(Path(secateur.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    found = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}
    )
    assert found.returncode == 0, found.stderr[-3000:]
    for name in ("search.jsonl", "plan.json", "recovered.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_candidates_of_a_recipe_judged_at_once_decide_the_same(metric: str, call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    words = [
        "search",
        *SMALL,
        *QUICK,
        "--set",
        f"search.metric={metric}",
        "--set",
        "search.recover=0",
        "--set",
        "data.test_batch=30",
    ]
    assert call(*words, "-o", "one")[0] == 0
    assert call(*words, "-o", "many", "--set", "search.at_once=3")[0] == 0
    assert read_plan(tmp_path / "one" / "plan.json") == read_plan(tmp_path / "many" / "plan.json")
    one, many = (read_history(tmp_path / name / "search.jsonl") for name in ("one", "many"))
    assert [trial.plan for trial in one] == [trial.plan for trial in many]
    assert [trial.loss for trial in one] == pytest.approx([trial.loss for trial in many], rel=1e-4)
    assert metric == "loss" or [trial.loss for trial in one] == [trial.loss for trial in many], "ties stay ties"
    code, _, err = call(*words, "-o", "new", "--set", "search.at_once=3", "--set", "search.repair='compensation'")
    assert (code, "search.at_once" in err, err.count("\n")) == (2, True, 1)
    assert not (tmp_path / "new").exists()


def test_the_command_draws_sensitivity(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, err = call("sensitivity", *SMALL, "--rates", "0.5", "-o", "here", "--set", "search.batches=1")
    assert code == 0, err
    table = json.loads((tmp_path / "here" / "sensitivity.json").read_text())["axes"]
    assert all([rate for rate, _ in curve] == [0, 0.5] for curve in table.values())
    assert len({curve[0][1] for curve in table.values()}) == 1
    picture = (tmp_path / "here" / "sensitivity.svg").read_text()
    assert all(name in picture for name in table)
    assert all(name in out for name in table)
    again = call("sensitivity", *SMALL, "--rates", "0.5", "-o", "here", "--set", "search.batches=1")[1]
    assert again == out
    assert (tmp_path / "here" / "sensitivity.svg").read_text() == picture
    assert call("sensitivity", *SMALL, "--rates", "half")[0] == 2


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ("search.metric=loss", "search.metric"),
        ("search.images=20", "search.images"),
        ("search.repair=none", "search.repair"),
        ("data.batch=64", "data.batch"),
        ("model.args={widths=[4,6,8],blocks=1}", None),
        ("search.at_once=3", None),
        ("seed=1", "model.weights"),
    ],
)
def test_trials_of_another_judge_are_not_taken_for_this_ones(other, told, call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The plans of a curve are the same whatever judges them: their losses are not."""
    words = ("sensitivity", *SMALL, "--rates", "0.5", "-o", "here", "--set", "search.batches=1")
    code, out, err = call(*words)
    assert code == 0, err
    before = (tmp_path / "here" / "search.jsonl").read_text()
    code, again, err = call(*words, "--set", other)
    assert (tmp_path / "here" / "search.jsonl").read_text() == before
    if told is None:
        assert (code, again) == (0, out), err
    else:
        assert (code, err.count("\n"), told in err, "another judge" in err) == (2, 1, True, True), err


@pytest.mark.parametrize(("metric", "worst"), [("accuracy", 0.0), ("loss", None)])
def test_a_cut_whose_numbers_overflow_is_the_worst_point_of_its_curve(
    metric: str, worst: float | None, call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    from secateur.recipes import judging

    def overflowing(*_: Any) -> Any:
        def judge(plan: Any) -> float:
            if plan:
                raise NotFinite("an evaluation", "outputs that are not numbers (nan)", "check the weights")
            return 0.25

        return judge

    monkeypatch.setattr(judging, "previewing", overflowing)
    asked = (*SMALL, "--rates", "0.5", "-o", "here", "--set", "search.batches=1", "--set", f"search.metric={metric}")
    code, out, err = call("sensitivity", *asked)
    assert code == 0, err
    assert ("inf" in out) == (worst is None)
    for curve in json.loads((tmp_path / "here" / "sensitivity.json").read_text())["axes"].values():
        assert [rate for rate, _ in curve] == [0, 0.5]
        assert curve[1][1] == worst
    assert "inf" not in (tmp_path / "here" / "sensitivity.svg").read_text()
    assert call("sensitivity", *asked)[1] == out, "a history of overflowing trials is read again"
