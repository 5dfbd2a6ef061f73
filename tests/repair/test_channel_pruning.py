"""Whole-model channel pruning, and repairs by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import nn

from secateur import criteria, repair, save, score, trace
from secateur.core.errors import SecateurError
from secateur.io import load, read_plan
from secateur.recipes import demo, demo_channel, run, schema, zoo
from secateur.recipes.compress import Settings, compress
from secateur.recipes.judging import judge_of, many_of
from secateur.recipes.parts import parts
from secateur.recipes.reconstruct import channel_pruning, repair_by_name
from secateur.testing import awake

REPAIRS = get_args(get_type_hints(schema.Repair)["name"])


def network() -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    torch.manual_seed(0)
    model = awake(zoo.digits_resnet(widths=(8, 8, 8))).double().eval()
    draw = torch.Generator().manual_seed(1)
    return model, [
        (torch.randn(40, 1, 8, 8, generator=draw).double(), torch.randint(10, (40,), generator=draw)) for _ in range(2)
    ]


def distance(model: nn.Module, small: nn.Module, batches: list) -> float:  # type: ignore[type-arg]
    with torch.no_grad():
        return float(torch.cat([model(x) - small(x) for x, _ in batches]).square().mean())


def test_layer_by_layer_beats_a_cut_and_leaves_the_model_alone() -> None:
    model, batches = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    axes = trace(model, batches[0][0][:1])
    widths = {axis.name: axis.units - 2 for axis in axes.free}
    plan, small = channel_pruning(model, axes, widths, batches)
    assert {name: after for name, (_, after) in plan.widths().items()} == widths
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    plain = plan.apply(model)
    assert distance(model, small, batches) < distance(model, plain, batches) / 2
    scores = score(axes, criteria.l2(model))
    _, other = channel_pruning(model, axes, widths, batches, select=lambda current, original, axis: scores[axis.name])
    assert distance(model, other, batches) > distance(model, small, batches) / 10
    assert not channel_pruning(model, axes, {}, batches)[0]


def test_a_duplicate_is_found_and_costs_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = model[0].weight[1], model[0].bias[1]
        model[2].weight[2], model[2].bias[2] = model[2].weight[0], model[2].bias[0]
    batches = [(torch.randn(80, 6, dtype=torch.float64), None)]
    axes = trace(model, batches[0][0])
    widths = {axis.name: axis.units - 1 for axis in axes.free}
    _, small = channel_pruning(
        model, axes, widths, batches, select=lambda current, original, axis: criteria.cap(current, batches)(axis)
    )
    assert distance(model, small, batches) < 1e-10


def test_both_sides_fitted_in_between_are_those_of_the_whole_plan() -> None:
    """Within blocks, where no layer is in two pairs: the plan comes from what was fitted before, and the fits are the same."""
    model, batches = network()
    axes = trace(model, batches[0][0][:1])
    widths = {axis.name: axis.units // 2 for axis in axes.free if ".conv1" in axis.name}
    plan, small = channel_pruning(model, axes, widths, batches, fit=repair.two_sided)
    again = plan.apply(model)
    repair.two_sided(model, again, batches, plan=plan)
    assert len(widths) > 1
    torch.testing.assert_close(small.state_dict(), again.state_dict(), rtol=1e-6, atol=1e-8)


def test_both_sides_of_a_chain_are_nearer_than_its_readers_alone() -> None:
    model, batches = chain()
    axes = trace(model, batches[0][0][:1])
    widths = {axis.name: axis.units // 2 for axis in axes.free}
    plan, small = channel_pruning(model, axes, widths, batches, fit=repair.two_sided)
    one = plan.apply(model)
    repair.least_squares(model, one, batches, plan=plan)
    assert distance(model, small, batches) < 0.9 * distance(model, one, batches)


def chain() -> tuple[nn.Module, list[tuple[torch.Tensor, None]]]:
    """Each layer within is the reader of one axis and the writer of the next."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for wide, to in ((5, 10), (10, 12), (12, 8)):
        parts += [nn.Linear(wide, to, bias=False), nn.BatchNorm1d(to), nn.ReLU()]
    model = awake(nn.Sequential(*parts, nn.Linear(8, 3))).double().eval()
    return model, [(torch.randn(60, 5, dtype=torch.float64), None) for _ in range(2)]


@pytest.mark.parametrize("norm_first", [False, True])
def test_the_stream_of_a_transformer_is_fitted_as_its_norms_see_it(norm_first: bool) -> None:
    """Units that are silent still count in a layer norm: what is fitted so is not what is left after the cut."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = nn.Sequential(nn.Linear(5, 12), encoder, nn.Linear(12, 3)).double().eval()
    batches = [(torch.randn(20, 6, 5, dtype=torch.float64), None) for _ in range(3)]
    axes = trace(model, batches[0][0][:2])
    widths = {axis.name: axis.units // 2 for axis in axes.free if axis.gate == "read"}
    assert not all(axes[name].exact for name in widths)
    plan, small = channel_pruning(model, axes, widths, batches)
    other = plan.apply(model)
    repair.least_squares(model, other, batches, plan=plan)
    assert distance(model, small, batches) < 1.01 * distance(model, other, batches)
    assert distance(model, small, batches) < 0.6 * distance(model, plan.apply(model), batches)


def test_bad_widths_are_refused() -> None:
    model, batches = network()
    axes = trace(model, batches[0][0][:1])
    with pytest.raises(SecateurError, match="9 of 8 units"):
        channel_pruning(model, axes, {axes.free[0].name: 9}, batches)
    with pytest.raises(SecateurError, match=r"1\.5 of 8 units"):
        channel_pruning(model, axes, {axes.free[0].name: 1.5}, batches)  # type: ignore[dict-item]
    assert channel_pruning(model, axes, {axes.free[0].name: torch.tensor([7]).numpy()[0]}, batches)[0]
    fixed = next(axis for axis in axes if axis.fixed)
    with pytest.raises(SecateurError, match="a selection on axis"):
        channel_pruning(model, axes, {fixed.name: 1}, batches)


@pytest.mark.parametrize("name", [name for name in REPAIRS if not {"none", "whitened"} & set(name.split("+"))])
def test_repairs_have_names(name: str) -> None:
    model, batches = network()
    axes = trace(model, batches[0][0][:1])
    plan = axes.plan({axis.name: range(axis.units - 2) for axis in axes.free})
    small, again = plan.apply(model), plan.apply(model)
    repair_by_name(name, plan, steps=3, lr=1e-2)(model, small, batches)
    options: dict[str, dict[str, Any]] = {"batchnorm": {}, "distil": {"steps": 3, "lr": 1e-2}}
    for part in name.split("+"):
        given = options.get(part, {"plan": plan})
        getattr(repair, part)(model, again, batches, **given)
    assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), again.state_dict().values(), strict=True))
    settings = Settings(prune=schema.Prune(criterion="l2"), repair=schema.Repair(name=name, batches=2, steps=3))  # type: ignore[arg-type]
    _, report = compress(model, batches[0][0][:1], batches, keep={"macs": 0.6}, settings=settings)
    assert "after repair" in report.stages


@pytest.mark.slow
def test_the_demo_has_a_row_for_each_system(tmp_path: Path) -> None:
    torch.manual_seed(0)
    how = demo.recipe()
    model = awake(zoo.build("digits_resnet", **how.model.args))
    save(tmp_path / "dense.safetensors", model)
    found = demo_channel.rows(tmp_path)
    assert [row["stage"] for row in found] == ["dense", *demo_channel.SYSTEMS]
    assert all(row["macs"] <= 0.51 * found[0]["macs"] for row in found[1:])
    assert all(0 <= row["accuracy"] <= 1 for row in found)


def test_batch_norms_take_their_statistics_of_batches_as_in_training() -> None:
    """Fits look at plain images; statistics of those would not be what a network trained on augmented ones has learnt."""
    model, batches = network()
    axes = trace(model, batches[0][0][:1])
    plan = axes.plan({axis.name: range(axis.units - 2) for axis in axes.free})
    usual = [(3 * x + 1, y) for x, y in batches]
    small, again = plan.apply(model), plan.apply(model)
    repair_by_name("compensation+batchnorm", plan, trained_on=usual)(model, small, batches)
    repair.compensation(model, again, batches, plan=plan)
    repair.batchnorm(model, again, usual)
    assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), again.state_dict().values(), strict=True))


USER = """
import torch
from secateur.data import Augment, DataSet, digits

def shifted():
    whole = digits()
    part = whole.train[0][:200], whole.train[1][:200]
    return DataSet("shifted", part, (whole.test[0][:50], whole.test[1][:50]), whole.classes, whole.mean, whole.std, Augment(3))
"""


def shifted_recipe(folder: Path) -> schema.Recipe:
    """Digits cut out of a black border when they are trained on."""
    (folder / "mine.py").write_text(USER)
    return schema.from_dict({
        "model": {"build": "zoo:digits_resnet", "args": {"widths": [4, 8, 8]}}, "threads": 1, "device": "cpu",
        "data": {"name": f"{folder / 'mine.py'}:shifted", "batch": 50, "holdout": 50}, "train": {"epochs": 1},
        "prune": {"keep": {"macs": 0.6}, "criterion": "l2"}, "repair": {"name": "batchnorm", "batches": 2},
        "search": {"repair": "batchnorm", "batches": 2}, "finetune": {"epochs": 0}, "measure": {"latency": False},
    })  # fmt: skip


def test_a_run_takes_statistics_of_images_as_in_training(tmp_path: Path) -> None:
    recipe = shifted_recipe(tmp_path)
    run(recipe, tmp_path / "run")
    dense = load(tmp_path / "run" / "dense.safetensors", into=zoo.digits_resnet(widths=(4, 8, 8)))
    found = load(tmp_path / "run" / "small.safetensors", into=zoo.digits_resnet(widths=(4, 8, 8)))
    known = parts(recipe, torch.device("cpu"))
    far = {}
    for name, batches in (("train", known.train), ("plain", known.plain)):
        small = read_plan(tmp_path / "run" / "plan.json").apply(dense)
        repair.batchnorm(dense, small, batches, limit=2)
        state = found.state_dict()
        far[name] = max(float((value - state[key]).abs().max()) for key, value in small.state_dict().items())
    assert far["train"] < 1e-6
    assert far["plain"] > 1e-2


@pytest.mark.parametrize("at_once", [1, 2])
def test_judges_of_searches_take_statistics_of_images_as_in_training(tmp_path: Path, at_once: int) -> None:
    recipe = shifted_recipe(tmp_path)
    recipe = replace(recipe, search=replace(recipe.search, metric="loss", at_once=at_once))
    known, model = parts(recipe, torch.device("cpu")), awake(zoo.digits_resnet(widths=(4, 8, 8))).eval()
    axes = trace(model, known.example)
    plans = [axes.plan({axis.name: range(axis.units - n) for axis in axes.free}) for n in (1, 2)]
    judge = judge_of(model, recipe, known)
    many = many_of(model, recipe, known, judge)
    assert (many is None) == (at_once == 1)
    found = [judge(plan) for plan in plans] if many is None else many(plans)
    for plan, loss in zip(plans, found, strict=True):
        small = plan.apply(model)
        repair.batchnorm(model, small, known.train, limit=2)
        assert known.holdout is not None
        assert loss == pytest.approx(known.judge(small.eval(), known.holdout)["loss"], rel=1e-4)
