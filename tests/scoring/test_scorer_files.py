"""Scoring Nets in files, on the command line and in recipes; transfer to another network in one pass."""

import json

import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

import handmade
from secateur import criteria, score, trace
from secateur.cli.main import application
from secateur.core.errors import SecateurError
from secateur.criteria.scoring import NetSettings, Objective, ScorerSettings, ScorerStage, ScoringNet
from secateur.io import load_scorer, read_metadata, save, save_scorer
from secateur.io.scorer import PRETRAINED
from secateur.recipes import choose as chooser
from secateur.recipes import read, run, zoo
from secateur.recipes.choose import amount, choose, costs_of
from secateur.recipes.schema import Prune, from_dict
from secateur.recipes.scoring import settings_of

SMALL = ["zoo:digits_resnet", "--input", "1,1,8,8"]


def random_net(**settings):
    torch.manual_seed(3)
    net = ScoringNet(NetSettings(**settings)).eval()
    torch.nn.init.normal_(net.head.weight)
    return net


@pytest.mark.parametrize(
    "settings", [{}, {"encoder": "raw", "context": "attention", "width": 32}, {"gradients": True, "relative": True}]
)
def test_a_file_gives_the_same_net(tmp_path, settings):
    net = random_net(**settings)
    save_scorer(tmp_path / "net.safetensors", net, metadata={"trained on": "nothing"})
    again = load_scorer(tmp_path / "net.safetensors")
    assert again.settings == net.settings
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))
    assert not again.training
    assert read_metadata(tmp_path / "net.safetensors")["trained on"] == "nothing"
    assert (tmp_path / "net.safetensors").stat().st_size < 1_000_000


def test_a_net_scores_networks_it_was_not_built_for(tmp_path):
    save_scorer(tmp_path / "net.safetensors", random_net())
    net = load_scorer(tmp_path / "net.safetensors")
    for model, x in ((handmade.small(), torch.zeros(1, 3, 4, 4).double()), (zoo.digits_resnet(), torch.zeros(1, 1, 8, 8))):
        axes = trace(model.eval(), x)
        assert all(torch.isfinite(values).all() for values in score(axes, net.criterion(model, axes)).values())


def test_the_net_of_the_package_scores_convolutions_heads_and_hidden_units():
    net = load_scorer("pretrained")
    assert PRETRAINED.stat().st_size < 1_000_000
    assert "bench/scoring_meta.py" in read_metadata(PRETRAINED)["made by"]
    encoder = torch.nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    for model, x in ((zoo.digits_resnet(), torch.zeros(1, 1, 8, 8)), (encoder, torch.zeros(1, 5, 16))):
        axes = trace(model.eval(), x)
        found = score(axes, net.criterion(model, axes))
        assert set(found) == {axis.name for axis in axes.free}
        assert all(len(values.unique()) > 1 for values in found.values()), "units are told apart"
    done = CliRunner().invoke(application(), ["score", *SMALL, "--with", "pretrained"])
    assert done.exit_code == 0, done.output


def bad_header(path, change):
    net = random_net()
    save(path, net, metadata={"scoring_net": json.dumps(change)})


GOOD = {"encoder": "stats", "gradients": False, "context": "deepsets", "scale": True, "relative": False, "width": 64}
BAD = {
    "settings with 'color', which is none": {**GOOD, "color": 1},
    "width=1000000000": {**GOOD, "width": 1000000000},
    "encoder='__import__'": {**GOOD, "encoder": "__import__"},
    "gradients='yes'": {**GOOD, "gradients": "yes"},
    "'a value that is no table'": [1, 2],
    "where the model has": {**GOOD, "width": 32},
}


@pytest.mark.parametrize("words", BAD)
def test_files_of_strangers_are_refused_in_one_sentence(tmp_path, words):
    bad_header(tmp_path / "net.safetensors", BAD[words])
    with pytest.raises(SecateurError, match=words):
        load_scorer(tmp_path / "net.safetensors")


def test_what_an_older_file_does_not_say_is_the_default(tmp_path):
    net = random_net(width=32)
    save(tmp_path / "net.safetensors", net, metadata={"scoring_net": json.dumps({"encoder": "stats", "width": 32})})
    assert load_scorer(tmp_path / "net.safetensors").settings == NetSettings(width=32)


def test_other_files_are_no_scoring_nets(tmp_path):
    save(tmp_path / "model.safetensors", handmade.small())
    with pytest.raises(SecateurError, match="no Scoring Net"):
        load_scorer(tmp_path / "model.safetensors")
    net = random_net()
    net.head.bias.data.fill_(float("nan"))
    save_scorer(tmp_path / "net.safetensors", net)
    with pytest.raises(SecateurError, match=r"'head\.bias' with numbers that are not finite"):
        load_scorer(tmp_path / "net.safetensors")


def test_where_nothing_can_be_cut_nothing_is_scored():
    model = zoo.digits_resnet()
    axes = trace(model, torch.zeros(1, 1, 8, 8)).ignore("*")
    for encoder in ("stats", "raw"):
        assert score(axes, random_net(encoder=encoder).criterion(model, axes)) == {}


def batches():
    draw = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 1, 8, 8, generator=draw), torch.randint(10, (8,), generator=draw)) for _ in range(2)]


def test_recipes_train_one_or_take_a_file(tmp_path):
    torch.manual_seed(0)
    model, x = zoo.digits_resnet(widths=(4, 6, 8)), torch.zeros(1, 1, 8, 8)
    args = {"epochs": 1, "encoder": "raw", "kl": 0.0, "stages": [{"name": "a", "lr": 0.1}, {"optimizer": "sgd"}]}
    prune = Prune(keep={"macs": 0.5}, criterion="scoring_net", args=args, floor=0.0)
    axes, plan = choose(model, x, prune, batches=batches(), loss=F.cross_entropy)
    widths = {name: after for name, (_, after) in plan.widths().items()}
    assert axes.count("macs", widths) <= 0.5 * axes.count("macs")
    net = random_net()
    save_scorer(tmp_path / "net.safetensors", net)
    prune = Prune(keep={"macs": 0.5}, criterion="scoring_net", args={"file": str(tmp_path / "net.safetensors")})
    _, plan = choose(model, x, prune)
    kept = {cut.axis: cut.kept for cut in plan.steps[0].cuts}
    for name, scores in score(axes, net.criterion(model, axes)).items():
        if name in kept:
            best = sorted(scores.argsort(descending=True, stable=True)[: len(kept[name])].tolist())
            assert list(kept[name]) == best
    with pytest.raises(SecateurError, match="no data to run on"):
        choose(model, x, Prune(criterion="scoring_net"))
    with pytest.raises(SecateurError, match="settings of training beside a file"):
        choose(model, x, Prune(criterion="scoring_net", args={"file": "x", "lr": 0.1}))


@pytest.mark.parametrize("what", ["bytes", "memory", "latency", "params"])
def test_a_net_is_trained_for_any_budget(what, monkeypatch):
    torch.manual_seed(0)
    model, x = zoo.digits_resnet(widths=(4, 6, 8)), torch.zeros(1, 1, 8, 8)
    root = {
        "latency": lambda widths: trace(model, x).count("macs", widths) ** 0.5
    }  # a measured table is another one every time
    monkeypatch.setattr(chooser, "costs_of", lambda *given: root if what == "latency" else costs_of(*given))
    monkeypatch.setattr(chooser, "measured_share", lambda *given: 0.79)
    prune = Prune(keep={what: 0.8}, criterion="scoring_net", args={"epochs": 1}, floor=0.0)
    axes, plan = choose(model, x, prune, batches=batches(), loss=F.cross_entropy)
    widths = {name: after for name, (_, after) in plan.widths().items()}
    costs = chooser.costs_of(model, axes, x, prune)
    assert amount(axes, costs, what, widths) <= 0.8 * amount(axes, costs, what)


def test_a_net_trained_in_a_run_is_in_its_folder_with_its_records(tmp_path):
    words = {
        "model": {"build": "zoo:digits_resnet", "args": {"widths": [4, 6, 8]}},
        "data": {"name": "digits", "batch": 256},
        "threads": 1,
        "prune": {"criterion": "scoring_net", "batches": 2, "rounds": 2, "args": {"epochs": 2, "width": 16}},
        "measure": {"latency": False},
    }
    run(from_dict(words), tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "scorer.jsonl").read_text().splitlines()]
    assert [(r["round"], r["epoch"]) for r in records] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert all({"loss", "seconds", "forwards", "stage"} < set(r) for r in records)
    path = tmp_path / "run" / "scoring_net.safetensors"
    assert load_scorer(path).settings.width == 16
    assert read_metadata(path)["trained on"] == "zoo:digits_resnet"
    done = CliRunner().invoke(application(), ["score", *SMALL, "--with", str(path)])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"prune": {"criterion": "scoring_net", "args": {"stages": [{"epocs": 1}]}}}, "did you mean 'epochs'"),
        ({"prune": {"criterion": "scoring_net", "args": {"keeps": 0.5}}}, "a list of numbers"),
        ({"prune": {"criterion": "scoring_net", "args": {"file": "none.safetensors"}}}, "no such file"),
        ({"prune": {"criterion": "scoring_net", "args": {"file": 3}}}, "no path"),
        ({"stage": [{"name": "a", "epochs": 1}, {"name": "a", "epochs": 1}]}, "another stage of that name"),
    ],
)
def test_wrong_words_are_told_before_anything_is_trained(words, said, tmp_path):
    whole = {"model": {"build": "zoo:digits_resnet"}, "data": {"name": "digits"}, "train": {"epochs": 99}, **words}
    with pytest.raises(SecateurError, match=said):
        run(from_dict(whole), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_file_of_a_net_may_lie_beside_the_recipe(tmp_path, monkeypatch):
    save_scorer(tmp_path / "net.safetensors", random_net())
    table = '[model]\nbuild = "zoo:digits_resnet"\n[data]\nname = "digits"\n'
    table += '[prune]\ncriterion = "scoring_net"\nargs = { file = "net.safetensors" }\n'
    (tmp_path / "recipe.toml").write_text(table)
    monkeypatch.chdir(tmp_path.parent)
    assert read(tmp_path / "recipe.toml").prune.args == {"file": str(tmp_path / "net.safetensors")}
    (tmp_path / "recipe.toml").write_text(table.replace("net.safetensors", "pretrained"))
    assert read(tmp_path / "recipe.toml").prune.args == {"file": "pretrained"}


def test_a_net_trained_for_a_plan_lies_beside_it(tmp_path):
    words = ["plan", "zoo:digits_resnet", "--keep", "macs=0.5", "--criterion", "scoring_net", "--data", "digits"]
    words += ["--set", "args={epochs = 1}", "--set", "batches=1", "-o", str(tmp_path / "half.json")]
    done = CliRunner().invoke(application(), words)
    assert done.exit_code == 0, (done.output, done.exception)
    assert {path.name for path in tmp_path.iterdir()} == {"half.json", "half.scoring_net.safetensors", "half.scorer.jsonl"}


@pytest.mark.parametrize("name", ["snip", "grasp", "synflow", "three_sp"])
def test_recipes_prune_before_training(name):
    torch.manual_seed(0)
    model, x = zoo.digits_resnet(widths=(4, 6, 8)), torch.zeros(1, 1, 8, 8)
    prune = Prune(keep={"macs": 0.5}, criterion=name, rounds=3 if name == "synflow" else 1)
    _, plan = choose(model, x, prune, batches=batches(), loss=F.cross_entropy)
    small = plan.apply(model)
    assert small(batches()[0][0]).isfinite().all()


def test_three_sp_is_not_snip_in_a_recipe():
    """Its cost is one number per axis: a normalisation by axis would cancel it."""
    torch.manual_seed(0)
    model, x = zoo.digits_resnet(widths=(4, 6, 8)), torch.zeros(1, 1, 8, 8)
    made = {
        (name, how): choose(model, x, Prune(criterion=name, normalise=how), batches=batches(), loss=F.cross_entropy)[1]
        for name in ("snip", "three_sp")
        for how in ("mean", "none")
    }
    assert made["three_sp", "mean"] == made["three_sp", "none"]
    assert made["three_sp", "mean"] not in (made["snip", "mean"], made["snip", "none"])


def test_words_of_a_recipe_become_settings():
    words = {"width": 32, "mode": "init", "epochs": 3, "task": 0.5, "stages": [{"name": "a"}, {"name": "b", "epochs": 7}]}
    net, settings = settings_of(words, 0.3, 5)
    assert net == NetSettings(width=32)
    assert [(stage.name, stage.epochs, stage.objective.task) for stage in settings.stages] == [("a", 3, 0.5), ("b", 7, 0.5)]
    assert settings.mode == "init"
    assert settings.keeps == (0.3,)
    assert settings.seed == 5
    with pytest.raises(SecateurError, match=r"'epoch'.*did you mean 'epochs'"):
        settings_of({"epoch": 3}, 0.5, 0)
    stage = {"name": "a", "task": 0, "kl": 1, "optimizer": "sgd", "lr": 0.1, "epochs": 2}
    assert settings_of({"stages": [stage]}, 0.5, 0)[1].stages == (ScorerStage("a", 2, Objective(0, 1), "sgd", 0.1),)
    with pytest.raises(SecateurError, match=r"args\.stages: 'epocs'.*did you mean 'epochs'"):
        settings_of({"stages": [{"epocs": 3}]}, 0.5, 0)
    with pytest.raises(SecateurError, match=r"args\.stages: 'loss'.*task = 0 and kl = 1"):
        settings_of({"stages": [{"loss": "kl"}]}, 0.5, 0)
    with pytest.raises(SecateurError, match=r"args\.stages: 'width'.*no such setting"):
        settings_of({"stages": [{"width": 32}]}, 0.5, 0)
    with pytest.raises(SecateurError, match="give a list of tables"):
        settings_of({"stages": 3}, 0.5, 0)
    assert settings_of({}, 0.5, 0)[1] == ScorerSettings(stages=(ScorerStage(),), keeps=(0.5,))


def test_a_trained_net_is_asked_and_not_trained_again():
    model, net = handmade.small(), random_net()
    axes = handmade.axes(model)
    x = [(torch.randn(4, 3, 4, 4).double(), torch.zeros(4, dtype=torch.int64))]
    before = [p.clone() for p in net.parameters()]
    how = {"allocate": lambda *_: 1 / 0, "net": net, "on_trained": lambda *_: 1 / 0}
    found = criteria.scoring_net(model, x, F.cross_entropy, axes=axes, **how)
    assert torch.equal(found(axes["one"]), net.criterion(model, axes)(axes["one"]))
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
