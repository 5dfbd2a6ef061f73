"""Training in stages, losses and optimizers by name, in Python and in recipes."""

import copy
import json
import tomllib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import small_run
from secateur import allocate, criteria, score, trace
from secateur.core.errors import SecateurError
from secateur.linalg.muon import Muon
from secateur.recipes import read, run, zoo
from secateur.recipes.schema import from_dict, text
from secateur.train import FeatureMatching, FitSettings, Stage, fit, fit_stages, objective
from secateur.train.objectives import LOSSES


def batches(count=3):
    draw = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 1, 8, 8, generator=draw), torch.randint(10, (8,), generator=draw)) for _ in range(count)]


def network(seed=0, widths=(4, 4, 4)):
    torch.manual_seed(seed)
    return zoo.digits_resnet(widths=widths)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


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


def test_feature_matching_compares_maps_whatever_the_width():
    model, teacher = network(0, (4, 6, 8)), network(1, (6, 8, 10)).eval()
    twins = {"ours": copy.deepcopy(model).train(), "theirs": copy.deepcopy(teacher)}
    match = FeatureMatching(model, teacher, ["layer1", "layer2"], weight=2.0)
    x = batches(1)[0][0]
    model.train()(x)
    held = {}
    for name, twin in twins.items():
        h = F.relu(twin.bn1(twin.conv1(x)))
        held[name] = [(h := twin.layer1(h)), twin.layer2(h)]
    total = 0.0
    for ours, theirs in zip(held["ours"], held["theirs"], strict=True):
        one, two = ours.detach().numpy(), theirs.detach().numpy()
        for a, b in zip(one, two, strict=True):
            a, b = ((part**2).mean(0).ravel() for part in (a, b))
            total += ((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2).sum() / len(one)
    assert float(match.loss().detach()) == pytest.approx(2 * total, rel=1e-4)
    match.loss().backward()
    assert model.conv1.weight.grad.abs().sum() > 0
    assert teacher.conv1.weight.grad is None
    match.remove()
    assert not model._forward_pre_hooks
    same = FeatureMatching(teacher, copy.deepcopy(teacher), ["layer3"])
    teacher.train()
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    teacher(x)
    assert float(same.loss().detach()) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(SecateurError, match=r"'layer9'"):
        FeatureMatching(model, teacher, ["layer9"])
    assert not model._forward_pre_hooks


class Features(nn.Module):
    """A layer that hands on what it is given, so that a test chooses the features."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, x):
        return self.layer(x)


def distance(ours, theirs):
    model, teacher = Features().train(), Features()
    match = FeatureMatching(model, teacher, ["layer"])
    teacher(theirs)
    held = dict(match._theirs)
    model(ours)
    match._theirs.update(held)  # the teacher was asked about `ours` as well
    return float(match.loss())


def test_features_of_tokens_compare_tokens():
    """Maps (B, C, H, W), tokens (B, N, C) and lines (B, C, P) of the same values are equally far apart."""
    draw = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, 5, 1, 6, generator=draw), torch.randn(2, 3, 1, 6, generator=draw)
    expected = distance(ours, theirs)
    assert distance(ours[:, :, 0].transpose(1, 2), theirs[:, :, 0].transpose(1, 2)) == pytest.approx(expected, rel=1e-5)
    assert distance(ours[:, :, 0], theirs[:, :, 0]) == pytest.approx(expected, rel=1e-5)
    for one, two in ((ours, theirs[..., :4]), (ours[:, :, 0], theirs[:, :, 0, :4])):
        with pytest.raises(SecateurError, match="the same positions"):
            distance(one, two)


def test_a_stage_of_features_trains_and_leaves_no_hook():
    model, teacher = network(), network(1, (6, 6, 6))
    before = weights(teacher)
    fit_stages(model, batches(), [Stage("match", FitSettings(epochs=1), "features", layers=("layer1",))], teacher=teacher)
    assert not model._forward_pre_hooks
    assert not teacher.layer1._forward_hooks
    assert torch.equal(weights(teacher), before)


def test_muon_steps_matrices_by_torchs_own_and_the_rest_by_adamw():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 4))
    twin = copy.deepcopy(model)
    ours = Muon(list(model.parameters()), 0.01, 0.9, 0.0, True)
    flat = nn.Parameter(twin[0].weight.detach().flatten(1).clone())
    how = {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
    muon = torch.optim.Muon([flat, twin[3].weight], **how)
    adam = torch.optim.AdamW([twin[0].bias, twin[1].weight, twin[1].bias, twin[3].bias], lr=0.01, weight_decay=0.0)
    x, y = torch.randn(6, 2, 3, 3), torch.randint(4, (6,))
    for _ in range(3):
        ours.zero_grad()
        F.cross_entropy(model(x), y).backward()
        ours.step()
        twin.zero_grad()
        with torch.no_grad():
            twin[0].weight.copy_(flat.view_as(twin[0].weight))
        F.cross_entropy(twin(x), y).backward()
        flat.grad = twin[0].weight.grad.flatten(1)
        muon.step()
        adam.step()
    torch.testing.assert_close(model[0].weight.flatten(1), flat)
    torch.testing.assert_close(model[3].weight, twin[3].weight)
    torch.testing.assert_close(model[1].weight, twin[1].weight)


def test_muon_takes_kernels_in_any_order_of_memory():
    plain, last = network(), network()
    settings = FitSettings(epochs=2, optimizer="muon", lr=0.01)
    fit(plain, batches(), settings)
    fit(last, batches(), replace(settings, channels_last=True))
    torch.testing.assert_close(weights(last), weights(plain), rtol=0.05, atol=0.02)  # its iterations run in bfloat16


def test_muon_trains_what_a_cut_leaves_with_the_momentum_it_had():
    model = network(widths=(6, 6, 6))
    optimizer = Muon(list(model.parameters()), 0.01, 0.9, 0.0, True)
    (x, y), axes = batches(1)[0], trace(model, batches(1)[0][0])
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    for p in matrices:
        optimizer.state[p]["momentum_buffer"].copy_(p.detach())
    plan = allocate.uniform(axes, score(axes, criteria.l1(model)), 0.5)
    plan.apply_(model, optimizer=optimizer)
    assert sum(p.numel() for p in model.parameters() if p.dim() > 1) < sum(p.numel() for p in matrices)
    assert all(torch.equal(optimizer.state[p]["momentum_buffer"], p) for p in model.parameters() if p.dim() > 1)
    old = copy.deepcopy(model.state_dict())
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert all(not torch.equal(p, old[name]) for name, p in model.named_parameters() if p.dim() > 1)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon", "rmsprop"])
def test_optimizers_by_name_learn(name):
    model = network()
    records = fit(model, batches(), FitSettings(epochs=6, optimizer=name, lr=0.003 if name != "sgd" else 0.1))
    assert records[-1]["loss"] < records[0]["loss"]


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
