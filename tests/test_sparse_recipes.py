"""[sparse] in recipes: every method carries out, files shrink, a stopped run goes on, and our recipes are sound."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import small_run
from secateur import SecateurError
from secateur.core.mask import Mask
from secateur.io import load, read_json, read_plan
from secateur.recipes import run, schema, zoo
from secateur.recipes.parts import cpu, parts
from secateur.recipes.schema import Sparsity
from secateur.recipes.sparsing import GRADUAL, sparse_hook

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> schema.Recipe:
    value = schema.read(small_run.write(tmp_path_factory.mktemp("recipe")))
    repair = replace(value.repair, name="none")
    return replace(
        value, prune=schema.Prune(keep={"macs": 1.0}, batches=2), repair=repair, measure=schema.Measure(latency=False)
    )


CASES = {
    "rpg": {"every": 2},
    "st3": {},
    "rigl": {"every": 2, "allocation": "uniform"},
    "synflow": {"rounds": 5},
    "snip": {},
    "magnitude": {"occupancy": 1},
    "obs": {"allocation": "uniform"},
}


@pytest.mark.parametrize("method", CASES)
def test_a_run_ends_in_a_sparse_model_and_a_plan_with_masks(method, recipe, tmp_path):
    section = Sparsity(method, keep=0.2, args=CASES[method], dense=("conv1",))
    facts = run(replace(recipe, sparse=section, finetune=replace(recipe.finetune, epochs=2)), tmp_path / "run")
    plan = read_plan(tmp_path / "run" / "plan.json")
    assert [type(step) for step in plan.steps] == [Mask]
    assert "conv1.weight" not in {support.tensor for support in plan.steps[0].supports}
    assert read_plan(tmp_path / "run" / "small.safetensors") == plan
    model = load(tmp_path / "run" / "small.safetensors", into=zoo.digits_resnet(widths=(4, 8, 8)))
    kept, sizes = 0, 0
    for support in plan.steps[0].supports:
        weight = model.get_parameter(support.tensor).detach().numpy()
        assert not weight[~support.mask()].any()
        kept, sizes = kept + support.count, sizes + support.size
    assert kept == pytest.approx(0.2 * sizes, abs=5)
    dense, last = facts["stages"][0], facts["stages"][-1]
    assert last["nonzeros"] < dense["nonzeros"]
    assert last["sparse_macs"] < 0.5 * dense["macs"] < last["macs"]
    assert "best" not in facts


def test_channels_are_cut_first_and_the_rest_made_sparse(recipe, tmp_path):
    both = replace(recipe, prune=schema.Prune(keep={"macs": 0.6}, criterion="l2"), sparse=Sparsity("magnitude", keep=0.3))
    facts = run(replace(both, finetune=schema.Fit()), tmp_path / "run")
    plan = read_plan(tmp_path / "run" / "plan.json")
    assert [type(step).__name__ for step in plan.steps] == ["Keep", "Mask"]
    assert facts["stages"][-1]["stage"] == "after sparsification"
    assert facts["stages"][-1]["macs"] <= 0.6 * facts["stages"][0]["macs"]


def test_a_stopped_run_goes_on_to_the_same_masks(recipe, tmp_path):
    section = Sparsity("rpg", keep=0.1, args={"every": 2})
    whole = replace(recipe, sparse=section, finetune=replace(recipe.finetune, epochs=3))
    run(whole, tmp_path / "one")

    def stop(phase: str, done: int, of: int, _: str) -> None:
        if phase == "finetune" and done > of // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(whole, tmp_path / "two", progress=stop)
    run(whole, tmp_path / "two")
    assert read_plan(tmp_path / "one" / "plan.json") == read_plan(tmp_path / "two" / "plan.json")
    accuracies = [read_json(tmp_path / name / "facts.json")["stages"][-1]["accuracy"] for name in ("one", "two")]
    assert accuracies[0] == accuracies[1]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("sparse_*.toml")), ids=lambda p: p.stem)
def test_our_recipes_are_read_and_their_hooks_made(path, recipe):
    value = schema.read(path)
    assert value.sparse.method in GRADUAL
    if value.model.build.startswith("zoo:") and "vgg" not in path.stem:
        data = replace(parts(recipe, cpu()), train=[None] * 391)
        hook = sparse_hook(zoo.build(value.model.build.removeprefix("zoo:")), value, data)
        assert hook is not None
        assert hook.ramp.steps == 391 * value.finetune.epochs
        assert hook.rank.strength == 0.5


WRONG = {
    "no such method": ({"sparse": {"method": "rgp"}}, "did you mean 'rpg'"),
    "no share": ({"sparse": {"method": "rpg", "keep": 0}}, "share"),
    "no training": ({"sparse": {"method": "rpg"}, "finetune": {"epochs": 0}}, "no training"),
    "args": ({"sparse": {"method": "gmp", "args": {"evry": 3, "every": 2}}, "finetune": {"epochs": 1}}, "sparse.args"),
    "text": (
        {"sparse": {"method": "gmp", "args": {"begin": "soon", "every": 2}}, "finetune": {"epochs": 1}},
        "what the method takes",
    ),
    "a layout": ({"sparse": {"method": "magnitude", "args": {"allocation": "all"}}}, "allocation 'all'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_makes_no_sense_is_one_sentence(case, recipe):
    table, words = WRONG[case]

    def ask() -> None:
        value = schema.from_dict({"model": {"build": "zoo:digits_resnet"}, **table})
        sparse_hook(zoo.digits_resnet(), value, parts(recipe, cpu()))

    with pytest.raises(SecateurError, match=words):
        ask()
