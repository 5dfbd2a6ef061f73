"""Low rank through recipes: training, choosing, fitting, the folder a run leaves and its report."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from scripts import ROOT
from secateur import SecateurError
from secateur.core.factor import Factor
from secateur.io import load, read_plan
from secateur.measure import facts
from secateur.recipes import run, schema, zoo
from secateur.report.build import build as report
from secateur.report.folder import read as read_folder

SMALL = {
    "model": {"build": "zoo:digits_resnet"},
    "threads": 1,
    "device": "cpu",
    "data": {"name": "digits", "batch": 64},
    "prune": {"keep": {"macs": 0.6}, "batches": 2},
    "repair": {"name": "none"},
    "train": {"epochs": 1},
    "measure": {"latency": False},
}
METHODS = {
    "trp": {"method": "trp", "args": {"format": "spatial", "every": 5, "project_momentum": True}},
    "trp from scratch": {"method": "trp", "preset": "code", "scratch": True, "deploy": {"rank": 8}},
    "force": {"method": "force", "args": {"strength": 1e-3, "law": "l1"}},
    "choose": {"method": "choose", "args": {"multiple": 4}},
    "choose, then train": {"method": "choose", "args": {"multiple": 2}},
    "choose by weights": {"method": "choose", "args": {"formats": ["spatial"], "multiple": 1}, "responses": False},
}


def recipe(**sections) -> schema.Recipe:
    return schema.from_dict({**SMALL, **sections})


@pytest.mark.parametrize("name", METHODS)
def test_every_method_ends_in_a_folder_that_loads(name, tmp_path):
    trained = METHODS[name]["method"] != "choose" or "train" in name
    sections = {"lowrank": METHODS[name], "lowtrain": {"epochs": 1 if trained else 0, "lr": 0.05}}
    found = run(recipe(**sections), tmp_path / "run", report=report)
    stages = [row["stage"] for row in found["stages"]]
    assert stages == ["dense", *(["after low-rank training"] if trained else []), "after the cut"]
    plan = read_plan(tmp_path / "run" / "plan.json")
    assert [type(step) for step in plan.steps] == [Factor]
    small = load(tmp_path / "run" / "small.safetensors", into=zoo.digits_resnet())
    assert sum(p.numel() for p in small.parameters()) == found["stages"][-1]["params"]
    if "deploy" not in METHODS[name]:
        assert found["stages"][-1]["macs"] <= 0.6 * found["stages"][0]["macs"]
    record = read_folder(tmp_path / "run")
    ranks = {width.name: width for width in record.widths if width.kind == "rank"}
    assert {f"{p.module}.0" for p in plan.steps[0].products} <= set(ranks)
    assert all(0 < width.after <= width.before for width in ranks.values())
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"{plan.steps[0].products[0].module}.0" in page


def test_ranks_chosen_first_are_held_in_training_so_that_the_cut_costs_nothing(tmp_path):
    given = {"method": "choose", "args": {"multiple": 1}}
    value = recipe(
        lowrank=given, lowtrain={"epochs": 1, "lr": 0.05, "teacher": 0.5}, prune={"keep": {"macs": 0.35}, "batches": 2}
    )
    dense, held, cut = run(value, tmp_path / "run")["stages"]
    assert cut["loss"] == pytest.approx(held["loss"], rel=1e-3)
    assert cut["macs"] <= 0.35 * dense["macs"]
    assert held["macs"] == dense["macs"]
    products = read_plan(tmp_path / "run" / "plan.json").steps[0].products
    assert {p.format for p in products} <= {"channel", "spatial", "linear"}


def test_formats_that_cannot_be_held_are_refused_before_they_are_chosen(tmp_path):
    given = {"method": "choose", "args": {"formats": ["tucker2", "channel"]}}
    with pytest.raises(SecateurError, match=r"'tucker2'.*channel, spatial"):
        run(recipe(lowrank=given, lowtrain={"epochs": 1}, train={"epochs": 0}), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("chosen.json"))


def test_a_budget_that_is_met_needs_no_products(tmp_path):
    given = {"method": "choose", "deploy": {"macs": 1.0}}
    value = recipe(lowrank=given, lowtrain={"epochs": 1}, train={"epochs": 0}, repair={"name": "whitened", "batches": 1})
    found = run(value, tmp_path / "run")
    assert not read_plan(tmp_path / "run" / "plan.json")
    assert found["stages"][-1]["macs"] == found["stages"][0]["macs"]


@pytest.mark.parametrize("name", ["trp", "choose, then train"])
def test_a_run_stopped_in_low_rank_training_goes_on(name, tmp_path, monkeypatch):
    value = recipe(lowrank=METHODS[name], lowtrain={"epochs": 2, "lr": 0.05, "teacher": 0.5})
    whole = run(value, tmp_path / "whole")

    def stop(phase, done, total, note=""):
        if phase == "lowtrain" and "epoch 2" in note:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(value, tmp_path / "part", progress=stop)
    part = run(value, tmp_path / "part")
    assert [row["accuracy"] for row in part["stages"]] == [row["accuracy"] for row in whole["stages"]]
    one, two = (load(tmp_path / name / "small.safetensors", into=zoo.digits_resnet()) for name in ("whole", "part"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_products_are_fitted_to_data_by_the_repair_of_that_name(tmp_path):
    value = recipe(lowrank=METHODS["choose"], repair={"name": "whitened+batchnorm", "batches": 4})
    value = replace(value, train=replace(value.train, epochs=4), prune=replace(value.prune, keep={"macs": 0.35}))
    found = run(value, tmp_path / "run")
    by_stage = {row["stage"]: row["loss"] for row in found["stages"]}
    assert by_stage["after repair"] < by_stage["after the cut"]


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"method": "trp", "args": {"evry": 3}}, "did you mean 'every'"),
        ({"method": "choose", "args": {"formts": []}}, "lowrank.args"),
        ({"method": "force", "args": {"strenght": 1}}, "lowrank.args"),
        ({"method": "force", "args": {"strength": "much"}}, "no strength"),
        ({"method": "trp", "args": {"ranks": 5}}, "ranks by layer"),
        ({"method": "trp", "args": {"stem": "no"}}, "true or false"),
        ({"method": "trp", "args": {"ignore": "*"}}, "list"),
        ({"method": "trp", "args": {"ignore": ["*"]}}, "no plain convolution"),
        ({"method": "force", "args": {"ignore": ["*"]}}, "no plain convolution"),
        ({"method": "force", "args": {"settings": {"format": "channel"}}}, "TRPSettings"),
        ({"method": "choose", "args": {"multiple": 0}}, "multiple=0"),
        ({"method": "choose", "args": {"sample": 0}}, "sample=0"),
        ({"method": "choose", "scratch": True}, "scratch"),
        ({"method": "choose", "preset": "code"}, "preset of TRP alone"),
        ({"method": "force", "preset": "code"}, "preset of TRP alone"),
        ({"method": "trpp"}, "did you mean 'trp'"),
    ],
)
def test_wrong_words_are_one_sentence(section, words, tmp_path):
    with pytest.raises(SecateurError, match=words):
        run(recipe(lowrank=section, train={"epochs": 0}), tmp_path / "run")


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"lowtrain": {"epochs": 3}}, r"lowtrain\.epochs = 3: found no lowrank\.method"),
        ({"lowrank": {"method": "choose", "scratch": True}}, "scratch"),
        ({"lowrank": {"method": "choose", "args": {"formats": ["tucker2"]}}, "lowtrain": {"epochs": 1}}, "'tucker2'"),
    ],
)
def test_what_has_no_effect_is_refused_before_the_network_is_trained(sections, words, tmp_path):
    with pytest.raises(SecateurError, match=words):
        run(recipe(train={"epochs": 50}, **sections), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("trp_*.toml")), ids=lambda path: path.stem)
def test_the_recipes_read(path):
    value = schema.read(path)
    assert value.lowrank.method == "trp"
    assert value.lowtrain.epochs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trp_resnet18_imagenet", "trp_resnet50_imagenet"])
def test_imagenet_recipes_run_on_a_folder_of_that_layout(name, tmp_path):
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for label in ("cat", "dog"):
            (tmp_path / part / label).mkdir(parents=True)
            for number in range(4):
                pixels = random.integers(0, 255, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / label / f"{number}.png")

    def smaller(table):
        table["model"]["args"] = {"num_classes": 2}
        table["data"] |= {"args": {"size": 32}, "batch": 4}
        table["lowtrain"]["epochs"] = 1
        table["lowrank"]["deploy"] = {"energy": 0.6}  # fresh weights are of full rank
        table["measure"] = {"latency": False}

    found = run(schema.read(ROOT / "recipes" / f"{name}.toml", smaller), tmp_path / "run", data=str(tmp_path))
    assert found["stages"][-1]["macs"] < found["stages"][0]["macs"]


def test_the_bottleneck_network_has_the_counts_of_the_released_code():
    """0.870 M parameters and 127.3 M multiply-accumulates, half of them in 3 x 3 convolutions."""
    model, x = zoo.build("cifar_resnet56_bottleneck"), torch.zeros(1, 3, 32, 32)
    found = facts(model, x)
    assert (found.params, found.macs) == (869_530, 127_322_624)
    assert len([m for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]) == 28
    other = zoo.build("cifar_resnet56_bottleneck", released=False)
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model.eval()(x), other.eval()(x))
