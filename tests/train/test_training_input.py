"""Bad input to trainings, their stages and teachers, and to tickets: one sentence, and nothing lost."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import handmade
from scorers import data
from secateur.core.errors import SecateurError
from secateur.core.plan import mask
from secateur.train import FeatureMatching, FitSettings, Stage, evaluate, fit, fit_stages
from secateur.train.tickets import ZerosStay, ticket
from small_training import batches, net
from untouched import everything, unchanged

NAN = float("nan")
ONCE = FitSettings(epochs=1, lr=0.01)


def masks() -> Any:
    """A plan of which nothing of one layer stays."""
    model = handmade.small()
    gone = torch.zeros(model.one.weight.shape, dtype=torch.bool)
    return mask({name: tuple(value.shape) for name, value in model.state_dict().items()}, {"one.weight": gone})


REFUSED: dict[str, tuple[str, Callable[[], Any]]] = {
    "a lone stage": ("give a list of Stage", lambda: fit_stages(nn.Linear(2, 2), [], Stage())),  # type: ignore[arg-type]
    "stages that come but once": ("generator", lambda: fit_stages(nn.Linear(2, 2), [], (Stage(n) for n in "ab"))),  # type: ignore[arg-type]
    "a stage without a fit": ("give FitSettings", lambda: Stage(fit=None)),  # type: ignore[arg-type]
    "a stage without a loss": ("no such loss", lambda: Stage(loss=None)),  # type: ignore[arg-type]
    "a stage of a number": ("no name", lambda: Stage(name=5)),  # type: ignore[arg-type]
    "one layer as text": ("no list of names", lambda: Stage(loss="features", layers="one")),  # type: ignore[arg-type]
    "layers beside another loss": ("layers beside loss 'kl'", lambda: Stage(loss="kl", layers=("one",))),
    "an alpha that is no share": ("alpha=5", lambda: Stage(loss="logits", alpha=5)),
    "an alpha that is no number": ("alpha=nan", lambda: Stage(loss="features", layers=("one",), alpha=NAN)),
    "an alpha of text": ("alpha='a'", lambda: Stage(loss="kl", alpha="a")),  # type: ignore[arg-type]
    "an endless temperature": ("temperature inf", lambda: Stage(loss="kl", temperature=float("inf"))),
    "a teacher that is trained": ("network that is trained", lambda: (m := handmade.small()) and fit_stages(
        m, data(), [Stage("a", ONCE, "kl")], teacher=m)),
    "a teacher that is none": ("a dict", lambda: fit_stages(handmade.small(), data(), [Stage("a", ONCE, "kl")], teacher={})),  # type: ignore[arg-type]
    "a ticket of no plan": ("of type NoneType", lambda: ticket(handmade.small(), handmade.small(), None)),  # type: ignore[arg-type]
    "a ticket of no network": ("a NoneType", lambda: ticket(handmade.small(), None, masks())),  # type: ignore[arg-type]
    "a ticket without values": ("device meta", lambda: ticket(handmade.small().to("meta"), handmade.small(), masks())),
    "a ticket by a list": ("no such variant", lambda: ticket(handmade.small(), handmade.small(), masks(), ["sign"])),  # type: ignore[arg-type]
    "a ticket of a large seed": ("no seed", lambda: ticket(handmade.small(), handmade.small(), masks(), seed=1 << 80)),
    "zeros of another network": ("where the plan has [8, 3, 3, 3]", lambda: ZerosStay(handmade.small(a=4), masks())),
    "zeros of no plan": ("of type NoneType", lambda: ZerosStay(handmade.small(), None)),  # type: ignore[arg-type]
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_one_sentence(case: str) -> None:
    words, act = REFUSED[case]
    with pytest.raises(SecateurError) as caught:
        act()
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "settings",
    [{"lr": "a"}, {"lr": None}, {"lr": True}, {"lr": 10**400}, {"epochs": True}, {"optimizer": None}, {"optimizer": ["sgd"]},
     {"momentum": "a"}, {"weight_decay": "a"}, {"warmup": "a"}, {"milestones": 5}, {"milestones": ("a",)},
     {"milestones": (NAN,)},     {"grad_clip": "a"}, {"seed": "a"}, {"seed": 1.5}, {"label_smoothing": "a"}],
)  # fmt: skip
def test_settings_of_another_kind_are_one_sentence(settings: dict[str, Any]) -> None:
    with pytest.raises(SecateurError, match=f"^{next(iter(settings))}="):
        FitSettings(**settings)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"optimizer": "sdg"}, "did you mean 'sgd'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"precision": "half"}, "known: bf16, float32"),
        ({"lr": 0.0}, "above 0"),
        ({"lr": float("nan")}, "above 0"),
        ({"momentum": 1.0}, "not including, 1"),
        ({"epochs": -1}, "at least 0"),
        ({"epochs": 1.5}, "whole number"),
        ({"grad_clip": -1.0}, "above 0"),
    ],
)
def test_wrong_settings_say_what_is_allowed(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(SecateurError, match=told):
        FitSettings(**wrong)


def linear(out: int = 4) -> nn.Module:
    torch.manual_seed(out)
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.Linear(8, out)).train()


LINES = [(torch.linspace(-k, k, 72).view(12, 6), torch.arange(12) % 4) for k in (1, 2)]
TAUGHT = {"kl": (), "logits": (), "features": ("0",)}


@pytest.mark.parametrize("loss", TAUGHT)
def test_a_teacher_stays_as_it_is(loss: str) -> None:
    teacher = linear()
    teacher[0].eval()
    before = everything(teacher)
    fit_stages(linear(), LINES, [Stage("a", ONCE, loss, layers=TAUGHT[loss])], teacher=teacher)
    assert unchanged(before, teacher)


@pytest.mark.parametrize("loss", TAUGHT)
@pytest.mark.parametrize(
    ("teacher", "words"), [(lambda: linear().half(), "the teacher on inputs of"), (lambda: linear(3), "[12, 3]")]
)
def test_a_teacher_that_does_not_fit_is_one_sentence(loss: str, teacher: Callable[[], nn.Module], words: str) -> None:
    if loss == "features" and "3]" in words:
        return  # of another number of classes it may be
    model, wrong = linear(), teacher()
    modes = [module.training for module in wrong.modules()]
    with pytest.raises(SecateurError) as caught:
        fit_stages(model, LINES, [Stage("a", ONCE, loss, layers=TAUGHT[loss])], teacher=wrong)
    assert words in str(caught.value)
    assert [module.training for module in wrong.modules()] == modes
    assert not model._forward_pre_hooks


def test_a_layer_of_a_later_stage_is_told_before_the_first_is_trained() -> None:
    model = linear()
    before = deepcopy(model.state_dict())
    stages = [Stage("a", ONCE), Stage("b", ONCE, "features", layers=("9",))]
    with pytest.raises(SecateurError, match="'9'"):
        fit_stages(model, LINES, stages, teacher=linear())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_layer_that_does_not_run_is_told() -> None:
    models = [linear(), linear()]
    for model in models:
        model[0].idle = nn.Linear(1, 1)
    with pytest.raises(SecateurError, match=r"'0\.idle'.*no output"):
        fit_stages(models[0], LINES, [Stage("a", ONCE, "features", layers=("0.idle",))], teacher=models[1])
    with pytest.raises(SecateurError, match=r"'7' of the teacher.*known: none"):
        FeatureMatching(nn.Sequential(*[nn.Identity() for _ in range(8)]), nn.Linear(6, 4), ["7"])


@pytest.mark.parametrize("loss", [lambda out, y: F.cross_entropy(out, y, reduction="none"), lambda out, y: 1.0])
def test_a_loss_of_training_is_one_number(loss: Any) -> None:
    with pytest.raises(SecateurError, match="returns one number"):
        fit(linear(), LINES, ONCE, loss=loss)


def test_a_loss_of_training_depends_on_the_weights() -> None:
    with pytest.raises(SecateurError, match="does not depend on the weights"):
        fit(linear(), LINES, ONCE, loss=lambda out, y: torch.tensor(1.0))


@pytest.mark.parametrize("batches", [None, [(1, 2, 3)], [torch.zeros(4, 6)]])
def test_batches_of_training_are_pairs(batches: Any) -> None:
    with pytest.raises(SecateurError, match="pairs"):
        fit(linear(), batches, ONCE)


def test_nothing_to_train_and_nothing_to_train_on() -> None:
    with pytest.raises(SecateurError, match="no parameter"):
        fit(nn.Flatten(), batches(), FitSettings(epochs=1))
    with pytest.raises(SecateurError, match="no batches"):
        fit(net(), [], FitSettings(epochs=1))
    with pytest.raises(SecateurError, match="no batches"):
        evaluate(net(), [])


def test_nothing_left_of_a_layer_draws_no_warning() -> None:
    made = ticket(handmade.small(), handmade.small(1), masks(), "normal")
    assert (made.one.weight == 0).all()
