"""Training in stages and losses by name, in Python and in recipes."""

import json
import tomllib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import small_run
from secateur.core.errors import SecateurError
from secateur.recipes import read, run
from secateur.recipes.schema import from_dict, text
from secateur.train import FitSettings, Stage, fit, fit_stages, objective
from secateur.train.objectives import LOSSES
from small_digits import batches, network, weights


def test_one_plain_stage_is_fit():
    one, two = network(), network()
    settings = FitSettings(epochs=2, lr=0.1)
    records = fit_stages(one, batches(), [Stage("only", settings)])
    expected = fit(two, batches(), settings)
    assert torch.equal(weights(one), weights(two))
    assert [r["stage"] for r in records] == ["only", "only"]
    assert [r["loss"] for r in records] == [r["loss"] for r in expected]


def test_stages_are_fits_in_a_row_with_a_fresh_optimizer():
    first, second = FitSettings(epochs=1, lr=0.1), FitSettings(epochs=2, optimizer="adamw", lr=1e-3, seed=4)
    one, two = network(), network()
    records = fit_stages(one, batches(), [Stage("a", first), Stage("b", second, "label_smoothing")])
    fit(two, batches(), first)
    fit(two, batches(), second, loss=lambda out, y: F.cross_entropy(out, y, label_smoothing=0.1))
    assert torch.equal(weights(one), weights(two))
    assert [(r["stage"], r["epoch"]) for r in records] == [("a", 1), ("b", 1), ("b", 2)]


def test_stopped_stages_go_on_bit_for_bit(tmp_path):
    stages = [
        Stage("a", FitSettings(epochs=2, lr=0.1)),
        Stage("b", FitSettings(epochs=2, optimizer="muon", lr=1e-2, momentum=0.9), "kl"),
    ]
    teacher, whole = network(1), network()
    expected = fit_stages(whole, batches(), stages, teacher=teacher)

    class Stop(Exception):
        pass

    seen = []

    def stop(record):
        seen.append(record["stage"])
        if len(seen) == 3:
            raise Stop

    half, path = network(), tmp_path / "stages.checkpoint"
    with pytest.raises(Stop):
        fit_stages(half, batches(), stages, teacher=teacher, checkpoint=path, on_epoch=stop)
    again = network()
    found = fit_stages(again, batches(), stages, teacher=teacher, checkpoint=path)
    assert torch.equal(weights(again), weights(whole))
    assert [{**r, "seconds": 0} for r in found] == [{**r, "seconds": 0} for r in expected]


def test_losses_equal_arithmetic():
    draw = torch.Generator().manual_seed(0)
    out, theirs = torch.randn(5, 4, generator=draw), torch.randn(5, 4, generator=draw)
    y = torch.tensor([0, 1, 2, 3, 0])
    logs = (out - out.exp().sum(1, keepdim=True).log()).numpy()
    plain = -np.mean([logs[i, label] for i, label in enumerate(y)])
    smooth = 0.9 * plain - 0.1 * logs.mean()
    assert float(objective("cross_entropy")(out, y)) == pytest.approx(plain, rel=1e-5)
    assert float(objective("label_smoothing")(out, y)) == pytest.approx(smooth, rel=1e-5)
    squares = np.mean((out - theirs).numpy() ** 2)
    assert float(objective("logits", alpha=0.3)(out, (y, theirs))) == pytest.approx(0.3 * squares + 0.7 * plain, rel=1e-5)
    p, q = (theirs / 2).softmax(1), (out / 2).softmax(1)
    divergence = float((p * (p / q).log()).sum(1).mean())
    expected = 0.3 * 4 * divergence + 0.7 * plain
    assert float(objective("kl", alpha=0.3, temperature=2.0)(out, (y, theirs))) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(SecateurError, match=r"'logit'.*did you mean 'logits'"):
        objective("logit")


WRONG = {
    "no teacher; give": lambda: fit_stages(network(), batches(), [Stage("a", FitSettings(epochs=1), "kl")]),
    "another stage of that name": lambda: fit_stages(network(), batches(), [Stage("a"), Stage("a")]),
    "did you mean 'features'": lambda: Stage("a", loss="feature"),
    "feature matching without layers": lambda: Stage("a", loss="features"),
    "give alpha between": lambda: Stage("a", loss="kl", alpha=2.0),
    "no name": lambda: Stage(""),
}


@pytest.mark.parametrize("words", WRONG)
def test_bad_stages_are_one_sentence(words):
    with pytest.raises(SecateurError, match=words):
        WRONG[words]()


STAGES = """
[[stage]]
name = "warm"
loss = "logits"
optimizer = "adamw"
lr = 0.002
weight_decay = 0.01

[[stage]]
name = "settle"
epochs = 2
loss = "features"
layers = ["layer3"]
lr = 0.02
"""


def recipe_with_stages(folder):
    path = small_run.write(folder)
    before, _, after = path.read_text().partition("[finetune]")
    path.write_text(before + STAGES + "[measure]" + after.partition("[measure]")[2])
    return path


def test_a_recipe_trains_in_stages(tmp_path):
    recipe = read(recipe_with_stages(tmp_path))
    assert [(stage.name, stage.epochs, stage.loss) for stage in recipe.stage] == [
        ("warm", 1, "logits"),
        ("settle", 2, "features"),
    ]
    assert from_dict(tomllib.loads(text(recipe))) == recipe
    facts = run(recipe, tmp_path / "run")
    assert [stage["stage"] for stage in facts["stages"]] == ["dense", "after the cut", "after repair", "after fine-tuning"]
    history = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [(row["phase"], row["epoch"]) for row in history[3:]] == [("warm", 1), ("settle", 1), ("settle", 2)]
    assert facts["best"]["epoch"] in (1, 2)


def test_wrong_stages_in_a_recipe(tmp_path):
    table = {"model": {"build": "zoo:digits_resnet"}}
    for rows, words in (
        ([{"nam": "a"}], r"key 'nam' in \[stage\].*did you mean 'name'"),
        ([{"lr": 0.1}, {"lr": -1.0}], r"stage\.1\.lr = -1\.0: found a value that is not allowed; give a number above 0"),
        ([{"loss": "kll"}], r"stage\.0\.loss = 'kll'.*did you mean 'kl'"),
    ):
        with pytest.raises(SecateurError, match=words):
            from_dict({**table, "stage": rows})
    with pytest.raises(SecateurError, match="instead of a table"):
        from_dict({**table, "stage": ["a"]})
    recipe = from_dict({**table, "stage": [{"name": "a"}], "finetune": {"epochs": 1}})
    with pytest.raises(SecateurError, match=r"beside \[\[stage\]\]"):
        run(recipe, tmp_path / "run")
    recipe = replace(
        recipe, finetune=replace(recipe.finetune, epochs=0), stage=from_dict({**table, "stage": [{"optimizer": "sdg"}]}).stage
    )
    with pytest.raises(SecateurError, match="did you mean 'sgd'"):
        run(recipe, tmp_path / "run")


def test_every_loss_has_a_name_in_recipes():
    table = {"model": {"build": "zoo:digits_resnet"}}
    for name in LOSSES:
        assert from_dict({**table, "stage": [{"loss": name}]}).stage[0].loss == name
