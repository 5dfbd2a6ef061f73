"""Bad input to the Scoring Net and to pruning at initialisation, in Python and in recipes: one sentence, and nothing lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import handmade
from scorers import SHORT, data, fresh, scored, task, uniform
from secateur import criteria, score
from secateur.core.errors import SecateurError
from secateur.criteria.scoring import NetSettings, Objective, ScorerSettings, ScorerStage, ScoringNet, Slopes, fit_
from secateur.io import load_scorer, save_scorer
from secateur.recipes import run
from secateur.recipes.schema import from_dict
from untouched import everything, unchanged

NAN = float("nan")

PAIRS = [(o, v) for o in ("adam", "adamw", "sgd", "lbfgs", "muon") for v in ("gates", "regress", "reinforce")]


@pytest.mark.parametrize(("optimizer", "variant"), [pair for pair in PAIRS if pair != ("lbfgs", "reinforce")])
def test_a_training_that_runs_away_is_told_and_the_net_is_as_it_was(optimizer: Any, variant: Any) -> None:
    net = fresh(NetSettings())
    net.head.weight.data.mul_(3)
    model = handmade.small()
    before = everything(net)
    how = replace(SHORT, stages=(ScorerStage("wild", 2, optimizer=optimizer, lr=1e30),), variant=variant, masks=5)
    with pytest.raises(SecateurError, match=r"ran away.*lower the learning rate of stage 'wild'"):
        fit_(net, [task(model)], how)
    assert unchanged(before, net)


def test_a_net_whose_scores_are_all_0_is_told() -> None:
    net = fresh(NetSettings())
    net.head.bias.data.fill_(-1e4)
    with pytest.raises(SecateurError, match="scores are all 0"):
        fit_(net, [task(handmade.small())], SHORT)


def test_gradients_may_be_off_around_a_training() -> None:
    nets = [fresh(NetSettings()), fresh(NetSettings())]
    fit_(nets[0], [task(handmade.small())], SHORT)
    with torch.no_grad():
        fit_(nets[1], [task(handmade.small())], SHORT)
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))


def frozen() -> ScoringNet:
    net = ScoringNet()
    net.head.weight.requires_grad_(False)
    return net


def nan_network() -> nn.Module:
    model = handmade.small()
    model.two.weight.data[0, 0, 0, 0] = NAN
    return model


REFUSED: dict[str, tuple[str, Callable[[], Any]]] = {
    "a task in place of tasks": ("a list of Task", lambda: fit_(ScoringNet(), task(handmade.small()))),  # type: ignore[arg-type]
    "no net": ("a Linear", lambda: fit_(nn.Linear(1, 1), [task(handmade.small())])),  # type: ignore[arg-type]
    "no settings": ("of type dict", lambda: fit_(ScoringNet(), [task(handmade.small())], {"seed": 1})),  # type: ignore[arg-type]
    "a frozen net": ("a net that is frozen", lambda: fit_(frozen(), [task(handmade.small())], SHORT)),
    "a net in double precision": ("call net.float()", lambda: fit_(ScoringNet().double(), [task(handmade.small())], SHORT)),
    "a net of a dict": ("give NetSettings", lambda: ScoringNet({"width": 8})),  # type: ignore[arg-type]
    "no allocator": ("with an allocator", lambda: fit_(ScoringNet(), [task(handmade.small(), 5)], SHORT)),
    "no plan": ("type NoneType", lambda: fit_(ScoringNet(), [task(handmade.small(), lambda *_: None)], SHORT)),
    "an unknown count": (
        "did you mean 'macs'",
        lambda: fit_(ScoringNet(), [replace(task(handmade.small()), budget="mac")], SHORT),
    ),
    "a plan of another network": (
        "of the network at hand",
        lambda: fit_(ScoringNet(), [task(handmade.small(), lambda a, s, k: uniform(handmade.axes(handmade.small(a=4)), {
            "one": torch.ones(4), "two": torch.ones(6)}, k))], SHORT),
    ),
    "weights that are no numbers": ("'two.weight' with numbers that are not finite", lambda: fit_(
        ScoringNet(), [task(nan_network())], replace(SHORT, variant="reinforce"))),
    "gradients of another network": (
        "those of another model",
        lambda: ScoringNet(NetSettings(gradients=True)).criterion(
            handmade.small(), handmade.axes(handmade.small()), Slopes(handmade.small(), data(), F.cross_entropy)
        ),
    ),
    "a net named": ("of type str", lambda: criteria.scoring_net(
        handmade.small(), data(), F.cross_entropy, axes=handmade.axes(handmade.small()), allocate=uniform, net="pretrained")),
    "a learning rate no float holds": ("lr=1000", lambda: ScorerStage(lr=10**400)),
    "a seed of 70 bits": ("more than 63 bits", lambda: ScorerSettings(seed=1 << 70)),
    "temperatures that are no numbers": ("soft=", lambda: ScorerSettings(soft=(NAN, 1.0))),
    "temperatures of next to nothing": ("soft=", lambda: ScorerSettings(soft=(1e-300, 1e-300))),
    "a temperature that leaves nothing": ("at most 1000", lambda: Objective(temperature=1e30)),
    "losses that are no numbers at all trusts": (
        "a loss of nan at every trust",
        lambda: scored("weighed", data(), lambda out, y: out.sum() * NAN)(handmade.small()),
    ),
    "a word as trusts": ("no shares of trust", lambda: scored("weighed", data(), trusts="all")(handmade.small())),
    "GraSP at no temperature": ("no temperature", lambda: scored("grasp", data(), temperature=0)(handmade.small())),
    "GraSP at a word": ("no temperature", lambda: scored("grasp", data(), temperature="a")(handmade.small())),
    "SynFlow of no example": ("a NoneType", lambda: criteria.synflow(handmade.small(), None)),
    "SynFlow of no image": ("shape [0, 3, 4, 4]", lambda: criteria.synflow(handmade.small(), data()[0][0][:0])),
    "SynFlow of another shape": ("channels", lambda: criteria.synflow(handmade.small(), torch.zeros(1, 5, 4, 4))),
    "saving another model": ("secateur.save", lambda: save_scorer("net.safetensors", nn.Linear(1, 1))),  # type: ignore[arg-type]
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_one_sentence(case: str) -> None:
    words, act = REFUSED[case]
    with pytest.raises(SecateurError) as caught:
        act()
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_net_saved_in_another_precision_scores(tmp_path: Any) -> None:
    save_scorer(tmp_path / "net.safetensors", ScoringNet().half())
    model = handmade.small()
    axes = handmade.axes(model)
    assert all(
        values.isfinite().all()
        for values in score(axes, load_scorer(tmp_path / "net.safetensors").criterion(model, axes)).values()
    )


def test_synflow_takes_named_inputs() -> None:
    model = handmade.small()
    axes, x = handmade.axes(model), data()[0][0]
    one, two = (score(axes, criteria.synflow(model, given)) for given in (x, {"x": x}))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("criterion", ["scoring_net", "three_sp"])
def test_a_normalisation_without_effect_is_refused_before_anything_is_made(criterion: str, tmp_path: Any) -> None:
    words = {"model": {"build": "zoo:digits_resnet"}, "prune": {"criterion": criterion, "normalise": "max"}}
    with pytest.raises(SecateurError, match=r"normalise = 'max'.*as they are; leave normalise out"):
        run(from_dict(words), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"objective": 5}, "'objective': found no such setting"),
        ({"stages": []}, "one at least"),
        ({"file": ""}, "no path"),
    ],
)
def test_words_of_a_recipe_that_mean_nothing_are_refused(args: dict[str, Any], words: str, tmp_path: Any) -> None:
    table = {"model": {"build": "zoo:digits_resnet"}, "prune": {"criterion": "scoring_net", "args": args}}
    with pytest.raises(SecateurError, match=words):
        run(from_dict(table), tmp_path / "run")
    with pytest.raises(SecateurError, match="give one at least"):
        ScorerSettings(stages=())


@pytest.mark.parametrize(
    "words",
    [
        {"stage": [{"loss": "features", "layers": ["layer9"]}]},
        {"prune": {"criterion": "scoring_net", "args": {"features": 1, "layers": ["layer9"]}}},
    ],
)
def test_a_layer_nobody_has_is_told_before_the_dense_network_is_trained(words: dict[str, Any], tmp_path: Any) -> None:
    table = {"model": {"build": "zoo:digits_resnet"}, "data": {"name": "digits"}, "train": {"epochs": 99}, **words}
    with pytest.raises(SecateurError, match=r"'layer9'.*did you mean 'layer"):
        run(from_dict(table), tmp_path / "run")
    assert not (tmp_path / "run" / "history.jsonl").exists()
