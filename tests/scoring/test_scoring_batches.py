"""Batches and losses of all that scores with gradients: those that do not fit, come but once, or stop in the middle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import handmade
from scorers import SHORT, data, fresh, scored, task
from secateur.core.errors import SecateurError
from secateur.criteria.scoring import NetSettings, ScorerSettings, Slopes, fit_
from secateur.criteria.scoring.weigh import Weighed
from untouched import everything, unchanged

NAN = float("nan")


def half_frozen() -> nn.Module:
    """A network of mixed modes, a part of it frozen, so that what is put back is seen."""
    model = handmade.small().train()
    model.norm.eval()
    model.two.requires_grad_(False)
    return model


def trained(settings: ScorerSettings = SHORT, net: NetSettings | None = None, **changes: Any) -> Callable[[nn.Module], Any]:
    made = fresh(net or NetSettings())
    return lambda model: fit_(made, [replace(task(model), **changes)], settings)


WAYS: dict[str, Callable[..., Callable[[nn.Module], Any]]] = {
    **{name: lambda b, loss=F.cross_entropy, name=name: scored(name, b, loss) for name in ("snip", "grasp", "three_sp")},
    **{name: lambda b, loss=F.cross_entropy, name=name: scored(name, b, loss) for name in ("slopes", "weighed", "taylor")},
    "gates": lambda b, loss=F.cross_entropy: trained(batches=b, loss=loss),
    "gates with gradients": lambda b, loss=F.cross_entropy: trained(net=NetSettings(gradients=True), batches=b, loss=loss),
    "init": lambda b, loss=F.cross_entropy: trained(replace(SHORT, mode="init"), batches=b, loss=loss),
    "regress": lambda b, loss=F.cross_entropy: trained(replace(SHORT, variant="regress", masks=3), batches=b, loss=loss),
    "reinforce": lambda b, loss=F.cross_entropy: trained(replace(SHORT, variant="reinforce"), batches=b, loss=loss),
}
BATCHES: dict[str, tuple[str, Any]] = {
    "nothing": ("type NoneType", None),
    "no batch": ("no batch", []),
    "no pairs": ("no pair", [torch.zeros(2, 3, 4, 4)]),
    "triples": ("no pair", [(1, 2, 3)]),
    "other channels": ("channels", [(torch.zeros(4, 5, 4, 4).double(), torch.zeros(4).long())]),
    "half precision": ("Half", [(torch.zeros(4, 3, 4, 4).half(), torch.zeros(4).long())]),
    "labels out of range": ("out of bounds", [(x, y + 99) for x, y in data()]),
    "labels of floats": ("Float", [(x, y.float()) for x, y in data()]),
    "no labels": ("NoneType", [(x, None) for x, _ in data()]),
    "labels in a dict": ("dict", [(x, {"y": y}) for x, y in data()]),
    "too few labels": ("batch_size", [(x, y[:2]) for x, y in data()]),
    "inputs that are no numbers": ("nan", [(x * NAN, y) for x, y in data()]),
    "batches of no image": ("nan", [(x[:0], y[:0]) for x, y in data()]),
}


def refused(act: Callable[[nn.Module], Any], words: str, model: nn.Module) -> None:
    """One sentence with these words, the model as it was."""
    before = everything(model)
    with pytest.raises(SecateurError) as caught:
        act(model)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert unchanged(before, model)


@pytest.mark.parametrize("case", BATCHES)
@pytest.mark.parametrize("way", WAYS)
def test_batches_that_do_not_fit_are_one_sentence(way: str, case: str) -> None:
    words, batches = BATCHES[case]
    refused(WAYS[way](batches), words, half_frozen())


@pytest.mark.parametrize("way", sorted(set(WAYS) - {"weighed"}))
@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda out, y: F.cross_entropy(out, y, reduction="none"), "a loss of shape [12]"),
        (lambda out, y: (out.sum(),), "a loss of type tuple"),
        (None, "not callable"),
        (lambda out, y: torch.tensor(1.0), "a loss that does not depend on the"),
    ],
)
def test_losses_that_are_none_are_one_sentence(way: str, loss: Any, words: str) -> None:
    if "depend" in words and way in ("regress", "reinforce"):  # these take a loss without slopes, as an accuracy
        assert all(record["forwards"] > 0 for record in WAYS[way](data(), loss)(handmade.small()))
    else:
        refused(WAYS[way](data(), loss), words, half_frozen())


def figures(found: Any) -> Any:
    """What a way has found, in numbers that compare."""
    if isinstance(found, Slopes):
        return [value.tolist() for value in (*found._mean.values(), *found._square.values())]
    if isinstance(found, Weighed):
        return found.trust, dict(found.losses)
    if isinstance(found, Mapping):
        return {name: value.tolist() for name, value in found.items()}
    return [{key: value for key, value in record.items() if key != "seconds"} for record in found]


@pytest.mark.parametrize("way", WAYS)
def test_batches_that_come_but_once_serve_as_a_list_does(way: str) -> None:
    found = []
    for batches in (data(), iter(data())):
        torch.manual_seed(0)
        found.append(figures(WAYS[way](batches)(half_frozen())))
    assert found[0]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("way", "which"), [(way, n) for way in WAYS for n in (1, 2) if n == 1 or way not in ("snip", "grasp", "three_sp")]
)  # which look at one batch
def test_what_is_stopped_in_the_middle_leaves_the_model_alone(way: str, which: int) -> None:
    model, calls = half_frozen(), []

    def loss(out: Any, y: Any) -> Tensor:
        calls.append(1)
        if len(calls) == which:
            raise KeyboardInterrupt
        return F.cross_entropy(out, y)

    act, before = WAYS[way](data(), loss), everything(model)
    with pytest.raises(KeyboardInterrupt):
        act(model)
    assert unchanged(before, model)
