"""Runs of recipes: what their folders hold, resuming, and users' own data, losses, metrics and weights."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import secateur
import small_run
from scripts import DATA, ROOT
from secateur import SecateurError
from secateur.io import load, read_json, read_plan
from secateur.recipes import demo, run, schema, zoo
from secateur.recipes import folder as files

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    return small_run.write(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "small"
    run(recipe, folder)
    return folder


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
    data = str(DATA)
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
