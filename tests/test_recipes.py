"""Recipes: what a TOML file may say, what a run does with it, and the same path in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import secateur
import small_run
from secateur import SecateurError
from secateur.io import load, read_json, read_plan
from secateur.recipes import Settings, compress, demo, grid, run, schema, toml, zoo
from secateur.recipes import folder as files
from secateur.recipes.choose import choose
from secateur.recipes.parts import build_model
from secateur.recipes.tune import settings_of
from secateur.train import FitSettings

ROOT = Path(__file__).parents[1]
MINIMAL: dict[str, Any] = {"model": {"build": "zoo:digits_resnet"}}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    return small_run.write(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "small"
    run(recipe, folder)
    return folder


def test_every_default_is_written_out_and_read_back():
    value = schema.from_dict(MINIMAL)
    table = tomllib.loads(schema.text(value))
    assert schema.from_dict(table) == value
    for section in ("data", "train", "prune", "repair", "finetune", "measure"):
        written = {key for key, default in asdict(value)[section].items() if default is not None}
        assert set(table[section]) == written


def test_fit_has_the_names_of_the_training_loop():
    ours = {field.name for field in fields(schema.Fit)} - {"teacher", "temperature"}
    assert ours == {field.name for field in fields(FitSettings)} - {"seed"}
    assert settings_of(schema.Fit(epochs=3, lr=0.2), 5) == FitSettings(epochs=3, lr=0.2, seed=5)


@pytest.mark.parametrize(
    ("section", "key", "value", "says"),
    [
        ("prune", "flor", 0.1, "did you mean 'floor'"),
        ("prune", "criterion", "tailor", "did you mean 'taylor'"),
        ("prune", "keep", {"macs": 2}, "a share above 0 and at most 1"),
        ("prune", "keep", {"macs": float("nan")}, "a share above 0 and at most 1"),
        ("prune", "keep", {"mcas": 0.5}, "did you mean 'macs'"),
        ("prune", "keep", {}, "what remains"),
        ("prune", "keep", 0.5, "what remains"),
        ("prune", "floor", 1.0, "from 0 up to, not including, 1"),
        ("prune", "ignore", "head", "a list of texts"),
        ("prune", "rounds", 0, "a whole number of at least 1"),
        ("finetune", "epochs", True, "a whole number of at least 0"),
        ("finetune", "epochs", "3", "a whole number of at least 0"),
        ("finetune", "lr", float("inf"), "a number above 0"),
        ("finetune", "schedule", "cosin", "did you mean 'cosine'"),
        ("data", "normalise", "imagnet", "did you mean 'imagenet'"),
        ("measure", "latency", "yes", "true or false"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_allowed(section, key, value, says):
    with pytest.raises(SecateurError, match=says) as told:
        schema.from_dict(MINIMAL | {section: {key: value}})
    assert section in str(told.value)
    assert key in str(told.value)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({}, r"add \[model\]"),
        ({"model": {}}, "no 'build'"),
        ({"model": 3}, "int instead of a table"),
        (MINIMAL | {"prun": {}}, "did you mean 'prune'"),
        (MINIMAL | {"device": "gpu"}, '"auto", "cpu", "cuda" or "mps"'),
    ],
)
def test_a_wrong_recipe_is_told(table, says):
    with pytest.raises(SecateurError, match=says):
        schema.from_dict(table)


def test_without_pydantic_keys_are_checked_and_values_trusted():
    """The recipe has to be read on a machine that has torch and little else."""
    code = """
import sys
sys.modules["pydantic"] = None
from secateur.recipes import schema
from secateur.core.errors import SecateurError
value = schema.from_dict({"model": {"build": "x"}, "prune": {"keep": {"macs": 0.4}, "ignore": ["a"]}})
assert value == schema.Recipe(schema.Model("x"), prune=schema.Prune(keep={"macs": 0.4}, ignore=("a",))), value
try:
    schema.from_dict({"model": {"build": "x"}, "prune": {"kep": 1}})
except SecateurError as error:
    assert "did you mean 'keep'" in str(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


names = st.text(min_size=1, max_size=8)
plain = st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | st.text(max_size=12)
values = st.recursive(
    plain.filter(lambda v: v is not None), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)
)


@given(st.dictionaries(names, plain | values | st.dictionaries(names, values, max_size=3), max_size=4))
def test_toml_is_read_back_by_the_standard_library(table):
    table = {key: value for key, value in table.items() if value is not None}
    assert tomllib.loads(toml.dumps(table)) == table


def test_paths_beside_the_recipe_become_absolute(recipe):
    assert schema.read(recipe).data.name == f"{recipe.parent / 'data.py'}:small"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_recipes_of_this_repository_are_valid(path):
    several = "\n[grid" in path.read_text()
    for value in grid.read(path).cells.values() if several else [schema.read(path)]:
        assert build_model(value.model.build, value.model.args)
        trained = [settings_of(section, value.seed).epochs for section in (value.lowtrain, value.finetune)]
        told = path.read_text().splitlines()[0]
        assert any([*trained, *(stage.epochs for stage in value.stage)]) == ("without a step of training" not in told)


def test_a_run_leaves_everything(finished):
    facts, state = read_json(finished / "facts.json"), read_json(finished / "run.json")
    assert [stage["stage"] for stage in facts["stages"]] == ["dense", "after the cut", "after repair", "after fine-tuning"]
    for stage in facts["stages"]:
        assert {"params", "macs", "bytes", "latency_ms", "peak_memory", "accuracy", "loss"} <= set(stage)
    dense, *cut = facts["stages"]
    assert all(stage["macs"] <= 0.5 * dense["macs"] for stage in cut)
    assert len({(stage["params"], stage["macs"], stage["latency_ms"]) for stage in cut}) == 1
    assert facts["accuracy_on"] == "test, 359 images"
    assert facts["best"]["epoch"] in (1, 2, 3)
    assert state["finished"]
    assert list(state["phases"]) == ["dense", "prune", "cut", "repair", "finetune", "measure"]
    assert [(line["phase"], line["epoch"]) for line in files.read_history(finished)] == [
        (phase, epoch) for phase in ("train", "finetune") for epoch in (1, 2, 3)
    ]
    axes = read_json(finished / "axes.json")
    assert axes["free_share"] > 0.9
    assert any(axis["fixed"] for axis in axes["axes"])
    assert not (finished / "work").exists()


def test_the_numbers_of_a_run_are_those_of_its_files(finished):
    """Counted and judged again from small.safetensors, by a loop of our own."""
    from secateur.data import digits

    small = load(finished / "small.safetensors", into=zoo.digits_resnet(widths=(4, 8, 8))).eval()
    data = digits()
    x = (data.test[0].double() / 255 - data.mean[0]) / data.std[0]
    with torch.no_grad():
        right = (small(x.float()).argmax(1) == data.test[1]).double().mean().item()
    last = read_json(finished / "facts.json")["stages"][-1]
    assert last["accuracy"] == pytest.approx(right, abs=1e-9)
    assert last["params"] == sum(p.numel() for p in small.parameters())
    assert last["bytes"] == (finished / "small.safetensors").stat().st_size
    assert read_plan(finished / "small.safetensors") == read_plan(finished / "plan.json")


def test_a_finished_run_is_not_repeated(recipe, finished):
    before = {path.name: path.stat().st_mtime_ns for path in finished.iterdir() if path.suffix in (".safetensors", ".json")}
    facts = run(recipe, finished)
    assert facts == read_json(finished / "facts.json")
    assert before == {name: (finished / name).stat().st_mtime_ns for name in before}


def test_training_goes_on_from_the_last_whole_epoch(recipe, finished, tmp_path):
    seen: list[str] = []

    def stop(phase: str, done: int, total: int, note: str = "") -> None:
        seen.append(f"{phase}, {note[:7]}")
        if phase == "finetune" and note.startswith("epoch 3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "run", progress=stop)
    assert {"train, epoch 1", "finetune, epoch 1"} <= set(seen)
    seen.clear()
    run(recipe, tmp_path / "run", progress=lambda phase, done, total, note="": seen.append(f"{phase}, {note[:7]}"))
    assert "finetune, epoch 3" in seen
    assert not [line for line in seen if line.startswith(("train", "prune")) or line.endswith(("epoch 1", "epoch 2"))]
    assert (tmp_path / "run" / "small.safetensors").read_bytes() == (finished / "small.safetensors").read_bytes()


def test_a_folder_holds_one_recipe(recipe, finished, tmp_path):
    other = replace(schema.read(recipe), seed=9)
    with pytest.raises(SecateurError, match=r"another recipe \(seed differ"):
        run(other, finished)
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(SecateurError, match="other files"):
        run(other, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt"]


def test_a_recipe_that_failed_at_once_may_be_mended(recipe, tmp_path):
    broken = replace(schema.read(recipe), model=schema.Model("zoo:digits_resnet", weights="missing.pt"))
    with pytest.raises(SecateurError, match="no such file"):
        run(broken, tmp_path / "run")
    files.prepare(tmp_path / "run")
    assert files.create(tmp_path / "run", schema.read(recipe), "")["phases"] == {}


def test_two_processes_do_not_share_a_folder(recipe, tmp_path):
    files.prepare(tmp_path / "run")
    with files.alone(tmp_path / "run"), pytest.raises(SecateurError, match="another process"):
        run(recipe, tmp_path / "run")


def test_test_data_decide_nothing(recipe, finished, tmp_path):
    """With every test label wrong, the plan, the weights and the best epoch are the same; only the figures differ."""
    value = schema.read(recipe)
    run(replace(value, data=replace(value.data, args={"wrong_test": True})), tmp_path / "run")
    for name in ("plan.json", "dense.safetensors", "small.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes()
    ours, theirs = (read_json(folder / "facts.json") for folder in (tmp_path / "run", finished))
    assert ours["best"]["epoch"] == theirs["best"]["epoch"]
    assert ours["stages"][0]["accuracy"] != theirs["stages"][0]["accuracy"]


def test_the_users_own_batches_metric_and_teacher(recipe, tmp_path):
    value = schema.read(recipe)
    place = recipe.parent / "data.py"
    value = replace(
        value,
        data=schema.Data(f"{place}:pair"),
        metric=schema.Metric(f"{place}:negative_loss"),
        train=schema.Fit(epochs=1),
        finetune=schema.Fit(epochs=1, teacher=0.5, lr=0.01),
        repair=schema.Repair("none"),
        measure=schema.Measure(latency=False),
    )
    facts = run(value, tmp_path / "run")
    assert [stage["stage"] for stage in facts["stages"]] == ["dense", "after the cut", "after fine-tuning"]
    assert all(stage["accuracy"] < 0 and "latency_ms" not in stage for stage in facts["stages"])
    assert facts["metric"] == f"{place}:negative_loss"
    assert "best" not in facts


def test_weights_are_looked_up_below_the_data_folder(recipe, tmp_path):
    net = zoo.digits_resnet(widths=(4, 8, 8))
    (tmp_path / "data" / "weights").mkdir(parents=True)
    secateur.save(tmp_path / "data" / "weights" / "net.safetensors", net)
    value = schema.read(recipe)
    value = replace(
        value, model=replace(value.model, weights="weights/net.safetensors"), train=schema.Fit(), finetune=schema.Fit()
    )
    run(value, tmp_path / "run", data=str(tmp_path / "data"))
    again = load(tmp_path / "run" / "dense.safetensors", into=zoo.digits_resnet(widths=(4, 8, 8)))
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("allocator", ["budget", "uniform"])
@pytest.mark.parametrize("rounds", [1, 3])
def test_rounds_and_allocators_meet_the_budget(allocator, rounds):
    torch.manual_seed(0)
    net = zoo.digits_resnet(widths=(8, 16, 16)).eval()
    x = torch.randn(2, 1, 8, 8)
    prune = schema.Prune(keep={"macs": 0.4, "params": 0.6}, criterion="l1", allocator=allocator, rounds=rounds)
    axes, plan = choose(net, x, prune)
    kept = {name: after for name, (_, after) in plan.widths().items()}
    for what, share in prune.keep.items():
        assert axes.count(what, kept) <= share * axes.count(what)
    assert axes.count("macs", kept) > 0.2 * axes.count("macs")
    small = plan.apply(net)
    assert torch.allclose(plan.preview(net)(x), small(x), atol=1e-5)


def test_a_criterion_without_data_is_told():
    with pytest.raises(SecateurError, match="no data to run on"):
        choose(zoo.digits_resnet(), torch.zeros(1, 1, 8, 8), schema.Prune(criterion="taylor"))


def test_compress_in_memory():
    torch.manual_seed(0)
    net = zoo.digits_resnet(widths=(4, 8, 8))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    batches = [(torch.randn(32, 1, 8, 8), torch.randint(0, 10, (32,))) for _ in range(4)]
    judged = []

    def accuracy(model: nn.Module) -> float:
        assert not model.training
        judged.append(model)
        return 0.25

    settings = Settings(finetune=FitSettings(epochs=1, lr=0.01), measure=schema.Measure(repeats=2))
    small, report = compress(net, batches[0][0][:1], batches, evaluate=accuracy, keep={"macs": 0.5}, settings=settings)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert net.training
    assert list(report.stages) == ["dense", "after the cut", "after repair", "after fine-tuning"]
    assert len(judged) == 4
    assert report.stages["after repair"].macs == secateur.measure.facts(small, batches[0][0][:1]).macs
    assert report.stages["after repair"].macs <= 0.5 * report.stages["dense"].macs
    assert report.plan.widths()
    assert "after fine-tuning" in str(report)
    assert json.dumps(report.to_json())


def test_compress_without_data_scores_by_magnitude():
    net = zoo.digits_resnet(widths=(4, 8, 8))
    small, report = secateur.compress(
        net, torch.zeros(1, 1, 8, 8), keep={"params": 0.5}, settings=Settings(measure=schema.Measure(latency=False))
    )
    assert list(report.stages) == ["dense", "after the cut"]
    assert sum(p.numel() for p in small.parameters()) <= 0.5 * sum(p.numel() for p in net.parameters())


def test_the_demo_is_a_recipe_that_runs(tmp_path):
    """Its numbers are those of `make demo`; here one epoch of it shows that the parts fit."""
    value = demo.recipe(seed=1)
    assert schema.from_dict(tomllib.loads(schema.text(value))) == value
    short = replace(value.train, epochs=1)
    facts = run(replace(value, train=short, finetune=short, measure=schema.Measure(repeats=2)), tmp_path / "run")
    assert facts["stages"][-1]["macs"] <= facts["stages"][0]["macs"] / 3


@pytest.mark.data
@pytest.mark.slow
def test_cifar10_resnet56(tmp_path):
    """The pretrained network is read, cut to 2.1 times fewer MACs and judged on all test images; no fine-tuning here."""
    data = os.environ.get("SECATEUR_DATA", str(ROOT.parent / "shared" / "data"))
    if not Path(data).exists():
        pytest.skip("no data folder")
    value = schema.read(ROOT / "recipes" / "cifar10_resnet56.toml")
    facts = run(replace(value, finetune=schema.Fit()), tmp_path / "run", data=data)
    dense, cut, repaired = facts["stages"]
    assert dense["params"] == 853_018
    assert dense["macs"] == pytest.approx(125.49e6, rel=1e-3)
    assert dense["accuracy"] == pytest.approx(0.9339, abs=5e-4)
    assert dense["macs"] / cut["macs"] == pytest.approx(2.1, abs=0.02)
    assert repaired["accuracy"] > cut["accuracy"]


def test_what_a_users_data_function_may_return(tmp_path):
    from secateur.recipes import parts

    (tmp_path / "mine.py").write_text(
        "import torch\nx, y = torch.zeros(2, 3), torch.zeros(2).long()\n"
        "def batches(): return [(x, y), (x, y)]\n"
        "def pair(): return [(x, y), (x, y), (x, y)], [(x, y)]\n"
        "def number(): return 3\n"
    )

    def named(name: str) -> schema.Recipe:
        return schema.Recipe(schema.Model("x"), data=schema.Data(f"{tmp_path / 'mine.py'}:{name}"))

    assert len(list(parts.scoring_batches(named("batches"), parts.cpu()))) == 2
    assert len(list(parts.scoring_batches(named("pair"), parts.cpu()))) == 3
    assert len(list(parts.load_data(named("pair"), parts.cpu())[3])) == 1
    for name in ("batches", "number"):
        with pytest.raises(SecateurError, match=r"\(train, test\) batches"):
            parts.load_data(named(name), parts.cpu())


def test_a_loss_of_ones_own_and_no_accuracy(recipe, tmp_path):
    """Outputs that are no class scores: the loss alone is reported, and decides which epoch was best."""
    place = recipe.parent / "regress.py"
    place.write_text(
        "import torch\nfrom secateur.data import DataSet, digits\nfrom data import small\n"
        "def loss(output, target): return (output.mean((1,)) - target.float()).square().mean()\n"
        "def error(model, batches): return float('nan')\n"
    )
    value = schema.read(recipe)
    one = schema.Fit(epochs=1, lr=1e-4)
    value = replace(value, loss=f"{place}:loss", train=one, finetune=one, measure=schema.Measure(latency=False))
    facts = run(value, tmp_path / "run")
    assert all(stage["loss"] > 0 for stage in facts["stages"])
    with pytest.raises(SecateurError, match="one finite number"):
        run(replace(value, metric=schema.Metric(f"{place}:error")), tmp_path / "other")


def test_a_recipe_trains_by_the_defaults_of_the_loop():
    own = {field.name: field.default for field in fields(schema.Fit)}
    for field in fields(FitSettings):
        if field.name not in ("epochs", "seed"):  # a section that is not written trains for no epoch; the recipe has the seed
            assert own[field.name] == field.default, field.name
