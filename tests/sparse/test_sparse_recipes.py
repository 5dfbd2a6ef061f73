"""[sparse] in recipes: every method carries out, files shrink, a stopped run goes on, and our recipes are sound."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import pytest

import small_run
from scripts import ROOT
from secateur import SecateurError
from secateur.core.mask import Mask
from secateur.io import load, read_json, read_plan, save
from secateur.recipes import demo, run, schema, zoo
from secateur.recipes.parts import cpu, parts
from secateur.recipes.schema import Sparsity
from secateur.recipes.sparsing import GRADUAL, sparse_hook
from secateur.train.sparse import Growth, Layout, Rank, Sparse


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


STAGES = (
    schema.Stage(name="first", epochs=1),
    schema.Stage(name="second", epochs=2, optimizer="adamw", lr=1e-3, loss="kl"),
)


@pytest.mark.parametrize("method", ["magnitude", "rpg", "st3"])
def test_sparse_training_goes_through_all_stages(method, recipe, tmp_path):
    """Schedules count the steps of all stages; a run that was stopped in the second goes on to the same masks."""
    section = Sparsity(method, keep=0.2, args={"every": 3} if method == "rpg" else {})
    staged = replace(recipe, sparse=section, finetune=schema.Fit(), stage=STAGES)
    facts = run(staged, tmp_path / "one")
    model = load(tmp_path / "one" / "small.safetensors", into=zoo.digits_resnet(widths=(4, 8, 8)))
    plan = read_plan(tmp_path / "one" / "plan.json")
    kept = sum(support.count for support in plan.steps[-1].supports)
    assert kept == pytest.approx(0.2 * sum(support.size for support in plan.steps[-1].supports), abs=5)
    for support in plan.steps[-1].supports:
        assert not model.get_parameter(support.tensor).detach().numpy()[~support.mask()].any()
    assert facts["stages"][-1]["stage"] == "after fine-tuning"
    assert "best" not in facts
    ramp = sparse_hook(zoo.digits_resnet(), staged, replace(parts(recipe, cpu()), train=[None] * 9)).ramp
    assert ramp is None or ramp.steps == 27

    def stop(phase: str, done: int, of: int, told: str) -> None:
        if phase == "finetune" and told == "stage second, epoch 2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(staged, tmp_path / "two", progress=stop)
    run(staged, tmp_path / "two")
    assert read_plan(tmp_path / "two" / "plan.json") == plan


def hook_of(recipe: schema.Recipe, method: str, args: dict, keep: float = 0.2) -> Sparse:
    table = {"model": {"build": "zoo:digits_resnet"}, "finetune": {"epochs": 9}}
    value = schema.from_dict({**table, "sparse": {"method": method, "keep": keep, "args": args}})
    assert schema.from_dict(tomllib.loads(schema.text(value))) == value
    return sparse_hook(zoo.digits_resnet(), value, parts(recipe, cpu()))


def test_rank_growth_and_layout_are_tables_that_change_what_the_method_has(recipe):
    given = {"every": 2, "rank": {"strength": 0}, "growth": {"drop": 0.02, "skip_step": False}, "shape": "cubic"}
    hook = hook_of(recipe, "rpg", given)
    assert (hook.rank, hook.growth, hook.ramp.shape) == (Rank(0, 0.2), Growth(0.02, skip_step=False), "cubic")
    assert hook_of(recipe, "rpg", {"reading": "st3", "rank": {"tail": 0.3}}).rank == Rank(0.03, 0.3, "step", 20, False, True)
    assert hook_of(recipe, "gmp", {"every": 2, "rank": {"strength": 1.5}}).rank == Rank(1.5, acts="step")
    assert hook_of(recipe, "granet", {"every": 2, "end": 0.5, "growth": {"score": "random"}}).growth == Growth(score="random")
    assert hook_of(recipe, "rigl", {"every": 2, "occupancy": 1}).layout == Layout("erk", occupancy=1)
    assert hook_of(recipe, "gmp", {"every": 2, "layout": {"pattern": "2x1"}}).layout == Layout(pattern="2x1")


WRONG_TABLES = {
    "a key": ("rpg", {"rank": {"strenght": 1.0}}, "did you mean 'strength'"),
    "another key": ("rigl", {"growth": {"dorp": 1.0}}, "did you mean 'drop'"),
    "a layout's key": ("gmp", {"layout": {"patern": "2:4"}}, "did you mean 'pattern'"),
    "a value": ("rpg", {"rank": {"strength": -1.0}}, "give a strength from 0"),
    "a kind": ("rpg", {"rank": {"strength": "much"}}, "give a number"),
    "a number for a flag": ("rpg", {"rank": {"linear": 1}}, "give true or false"),
    "a flag for a number": ("rpg", {"growth": {"drop": True}}, "give a number"),
    "no text": ("gmp", {"pattern": 24}, "give text"),
    "a share": ("granet", {"growth": {"drop": 2.0}}, "share from 0 to 1"),
    "no table": ("rpg", {"rank": 3.0}, "write rank = "),
    "no strength": ("gmp", {"rank": {"tail": 0.1}}, "no strength"),
    "nothing for a recipe": ("gmp", {"optimizer": "sgd"}, "no argument for a recipe"),
    "dense": ("gmp", {"dense": ["stem"]}, "set sparse.dense"),
    "a reading": ("rpg", {"reading": "st33", "rank": {}}, "did you mean 'st3'"),
    "growth where there is none": ("rpg", {"reading": "st3", "growth": {}}, "no use"),
    "growth at once": ("magnitude", {"growth": {}}, "what the method takes"),
}


@pytest.mark.parametrize("case", WRONG_TABLES)
def test_a_wrong_table_is_one_sentence(case, recipe):
    method, args, words = WRONG_TABLES[case]
    with pytest.raises(SecateurError, match=words):
        hook_of(recipe, method, {"every": 2, **args} if method != "magnitude" else args)


def test_the_demos_row_is_a_recipe_that_runs(tmp_path):
    """Smaller and shorter than in `make demo`, from a dense network that was not trained."""
    narrow = {"blocks": 1, "widths": [4, 8, 8]}
    save(tmp_path / "dense.safetensors", zoo.digits_resnet(**narrow))
    value = demo.sparse(tmp_path, seed=1)
    assert schema.from_dict(tomllib.loads(schema.text(value))) == value
    short = replace(value.finetune, epochs=1)
    model, measure = replace(value.model, args=narrow), schema.Measure(latency=False)
    facts = run(replace(value, model=model, finetune=short, measure=measure), tmp_path / "run")
    dense, last = facts["stages"][0], facts["stages"][-1]
    assert last["nonzeros"] < 0.2 * dense["nonzeros"]
    assert last["macs"] == dense["macs"]
    assert read_plan(tmp_path / "run" / "plan.json").steps


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
