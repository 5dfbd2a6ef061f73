"""Searches by recipe: recovery and resumption, units scored anew, and which images judge."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur import trace
from secateur.core.errors import NotFinite, SecateurError
from secateur.io import read_plan
from secateur.search import read_history
from secateur.train import evaluate


def test_a_recipe_searches_recovers_and_resumes(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from secateur.recipes import schema
    from secateur.recipes import searching as module
    from secateur.recipes.run import run

    table = {
        "model": {"build": "zoo:digits_resnet", "args": {"widths": [4, 6, 8]}},
        "data": {"name": "digits", "holdout": 100, "batch": 300},
        "threads": 1,
        "search": {
            "method": "adaptive",
            "recover": 1,
            "batches": 1,
            "args": {"step": 0.4, "sweeps": 2, "trial": 0.5, "running": 0.5},
        },
        "prune": {"criterion": "l1"},
        "repair": {"batches": 2},
        "measure": {"latency": False},
    }
    recipe = schema.from_dict(table)
    assert schema.from_dict({**table, "search": {}}).search.method == "none"
    whole = run(recipe, tmp_path / "whole")
    plan = read_plan(tmp_path / "whole" / "plan.json")
    assert plan
    assert (tmp_path / "whole" / "search.jsonl").exists()

    fits: list[int] = []
    fit = module.fit

    def stopping(*args, **kwargs):  # type: ignore[no-untyped-def]
        fits.append(1)
        if len(fits) == 2:
            raise KeyboardInterrupt
        return fit(*args, **kwargs)

    monkeypatch.setattr(module, "fit", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "stopped")
    again = run(recipe, tmp_path / "stopped")
    assert len(fits) == 3, "the first recovery is read from disk"
    assert read_plan(tmp_path / "stopped" / "plan.json") == plan
    drop = [{k: v for k, v in stage.items() if k != "latency_ms"} for stage in whole["stages"]]
    assert drop == [{k: v for k, v in stage.items() if k != "latency_ms"} for stage in again["stages"]]


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"search": {"repair": "whitened"}}, "a repair of products"),
        ({"search": {"at_once": 2, "repair": "compensation"}}, "search.at_once = 2"),
        ({"search": {"args": {"keep": {"latency": 0.5}}}}, "no table of latencies"),
        ({"search": {"args": {"keep": {"parms": 0.5}}}}, "did you mean 'params'"),
        ({"search": {"method": "predicted", "args": {"keep": {"gold": 0.5}}}}, "no such count"),
        ({"data": {"holdout": 0}}, "no held-out images"),
    ],
)
def test_a_recipe_whose_search_cannot_be_is_told_before_it_trains(section, told: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from secateur.recipes import schema
    from secateur.recipes.run import run

    table: dict[str, Any] = {
        "model": {"build": "zoo:digits_resnet", "args": {"widths": [4, 6, 8]}},
        "data": {"name": "digits", "holdout": 100, "batch": 300, **section.get("data", {})},
        "train": {"epochs": 1},
        "search": {"method": "adaptive", "recover": 0, "batches": 1, **section.get("search", {})},
    }
    with pytest.raises(SecateurError, match=told):
        run(schema.from_dict(table), tmp_path / "run")
    assert not (tmp_path / "run" / "dense.safetensors").exists()


EVERYTHING_GOES = {"step": 0.3, "sweeps": 2, "trial": 1.0, "running": 1.0}


def test_units_are_scored_anew_before_every_step_or_after_a_recovery(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from secateur.recipes import parts, schema
    from secateur.recipes import searching as module

    told: list[nn.Module] = []
    judged = module.criterion

    def counting(network, *rest, **named):  # type: ignore[no-untyped-def]
        told.append(network)
        return judged(network, *rest, **named)

    monkeypatch.setattr(module, "criterion", counting)
    asked: dict[str, int] = {}
    for rescore, criterion in (("auto", "l1"), ("step", "taylor"), ("sweep", "l1"), ("auto", "taylor")):
        torch.manual_seed(0)
        table = {
            "model": {"build": "zoo:digits_resnet", "args": {"widths": [4, 6, 8]}},
            "data": {"name": "digits", "holdout": 100, "batch": 300},
            "search": {"method": "adaptive", "recover": 0, "batches": 1, "rescore": rescore, "args": dict(EVERYTHING_GOES)},
            "prune": {"criterion": criterion, "batches": 1},
        }
        recipe = schema.from_dict(table)
        known = parts.parts(recipe, parts.cpu())
        told.clear()
        model = known.model()
        axes, _, source = module.searched(model, recipe, known)
        asked[f"{rescore} {criterion}"] = len(told)
        assert source is model
        assert all(axis.name in {"layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"} for axis in axes.free)
        if rescore == "step":
            named = dict(told[-1].named_parameters())
            silent = {n for n, p in named.items() if p.dim() == 4 and bool((p == 0).all(0).flatten(1).all(1).any())}
            assert silent, "what reads a unit that went is zero where the rest is scored"
    assert asked["auto l1"] > 2
    assert asked["step taylor"] > 2
    assert asked["sweep l1"] == asked["auto taylor"] == 1


def test_a_candidate_whose_numbers_overflow_is_refused_and_the_search_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.recipes import judging, parts, schema

    def overflowing(*_: Any) -> Any:
        return lambda plan: evaluate(torch.nn.Linear(2, 2), [(torch.full((1, 2), math.nan), torch.zeros(1, dtype=torch.long))])

    monkeypatch.setattr(judging, "previewing", overflowing)
    recipe = schema.from_dict(
        {"model": {"build": "zoo:digits_resnet"}, "data": {"name": "digits", "holdout": 100}, "search": {"method": "adaptive"}}
    )
    known = parts.parts(recipe, parts.cpu())
    model = known.model()
    judge = judging.judge_of(model, recipe, known)
    axes = trace(model, known.example)
    assert judge(axes.plan({axes.free[0].name: [0, 1]})) == math.inf
    with pytest.raises(NotFinite, match="not numbers"):
        judge(axes.plan({}))


@pytest.mark.parametrize("where", ["holdout", "train", "test"])
def test_trials_are_judged_where_the_recipe_says(where: str) -> None:
    from secateur.recipes import parts, schema
    from secateur.recipes.judging import judge_of

    table = {
        "model": {"build": "zoo:digits_resnet", "args": {"widths": [4, 6, 8]}},
        "data": {"name": "digits", "holdout": 100, "batch": 300},
        "search": {"method": "adaptive", "select_on": where, "metric": "loss", "images": 90, "repair": "none"},
    }
    recipe = schema.from_dict(table)
    known = parts.parts(recipe, parts.cpu())
    model = known.model()
    images = {"holdout": known.holdout, "train": known.plain, "test": known.test}[where]
    x, y = next(iter(images))
    with torch.no_grad():
        expected = float(F.cross_entropy(model.eval()(x[:90]), y[:90]))
    assert judge_of(model, recipe, known)(trace(model, x[:1]).plan({})) == pytest.approx(expected, rel=1e-4)
    assert known.accuracy_on.endswith("by which the search chose the widths") == (where == "test")
    assert schema.from_dict({**table, "search": {}}).search.select_on == "holdout"


def test_trials_judged_at_once_are_counted(tmp_path: Path) -> None:
    from secateur.recipes import parts, schema, searching

    table = {
        "model": {"build": "zoo:digits_resnet", "args": {"widths": [4, 6, 8]}},
        "data": {"name": "digits", "holdout": 100},
        "search": {"method": "adaptive", "recover": 0, "at_once": 3, "images": 30, "args": {"sweeps": 1}},
    }
    recipe = schema.from_dict(table)
    known, told = parts.parts(recipe, parts.cpu()), []
    searching.searched(known.model(), recipe, known, folder=tmp_path, progress=lambda *words: told.append(words[-1]))
    assert told[-1] == f"{len(read_history(tmp_path / 'search.jsonl'))} trials"
