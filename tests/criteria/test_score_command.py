"""secateur score: scores of criteria and of Scoring Nets, alone or weighed, and what it says where there are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from secateur import score, trace
from secateur.core.axes import Axes
from secateur.criteria.scoring import NetSettings, ScoringNet, Slopes, Task, weighed
from secateur.io import load_scorer, save_scorer
from secateur.recipes import choose, zoo
from secateur.recipes.schema import Prune

SMALL = ("zoo:digits_resnet", "--input", "1,1,8,8")
DATA = """
import torch

def train():
    draw = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 1, 8, 8, generator=draw), torch.randint(10, (8,), generator=draw)) for _ in range(2)]
"""


def random_net(path: Path, **settings: Any) -> ScoringNet:
    torch.manual_seed(3)
    net = ScoringNet(NetSettings(**settings)).eval()
    torch.nn.init.normal_(net.head.weight)
    save_scorer(path, net)
    return load_scorer(path)


def small() -> tuple[torch.nn.Module, Axes]:
    torch.manual_seed(0)
    model = zoo.digits_resnet()
    return model, trace(model, torch.zeros(1, 1, 8, 8))


def lists(scores: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    return {name: values.tolist() for name, values in scores.items()}


@pytest.fixture
def batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    (tmp_path / "data.py").write_text(DATA)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(DATA, scope)
    return scope["train"]()


def test_the_command_scores_with_a_file(tmp_path: Path, call: Any) -> None:
    path, out = tmp_path / "net.safetensors", tmp_path / "scores.json"
    net = random_net(path)
    code, printed, err = call("score", *SMALL, "--with", path, "-o", out, "--json")
    assert (code, err) == (0, "")
    model, axes = small()
    assert json.loads(printed) == {"scores": lists(score(axes, net.criterion(model, axes)))}
    assert json.loads(out.read_text()) == json.loads(printed)
    code, printed, _ = call("score", *SMALL, "--criterion", "l1")
    assert code == 0
    assert "layer1.0.conv1" in printed
    assert call("score", *SMALL, "--with", tmp_path / "none.safetensors")[0] == 2


def test_a_net_scores_by_itself_whether_there_are_data_or_not(batches: Any, tmp_path: Path, call: Any) -> None:
    model, axes = small()
    for gradients in (False, True):
        net = random_net(tmp_path / "net.safetensors", gradients=gradients)
        code, printed, err = call("score", SMALL[0], "--with", "net.safetensors", "--data", "data.py:train", "--json")
        assert (code, err) == (0, "")
        slopes = Slopes(model, batches, F.cross_entropy) if gradients else None
        assert json.loads(printed) == {"scores": lists(score(axes, net.criterion(model, axes, slopes)))}
    code, _, err = call("score", *SMALL, "--with", "net.safetensors")
    assert code == 2
    assert "--data" in err
    assert "file" not in err


@pytest.mark.parametrize("gradients", [False, True])
def test_a_net_is_weighed_where_that_is_asked_and_the_trust_is_told(
    gradients: bool, batches: Any, tmp_path: Path, call: Any
) -> None:
    """At the share that is asked, by the plans that secateur plan makes."""
    net = random_net(tmp_path / "net.safetensors", gradients=gradients)
    model, axes = small()
    slopes = Slopes(model, batches, F.cross_entropy) if gradients else None
    words = ("score", SMALL[0], "--with", "net.safetensors", "--data", "data.py:train")
    trusts = set()
    for share in (0.7, 0.1):
        prune = Prune(keep={"macs": share}, criterion="scoring_net")
        by_plan = lambda axes, scores, keep, prune=prune: choose.allocated(axes, scores, prune, {"macs": keep}, {})  # noqa: E731
        task = Task(model, axes, batches, F.cross_entropy, by_plan)
        expected = weighed(net.criterion(model, axes, slopes), task, share)
        code, printed, err = call(*words, "--weigh", share, "--json")
        assert (code, err) == (0, "")
        found = json.loads(printed)
        assert found["weighed"] == {"macs": share, "trust": expected.trust}
        assert found["scores"] == lists(score(axes, expected.criterion))
        assert f"weighed against L1 at {share:g} of the MACs: trust {expected.trust:g}\n" in call(*words, "--weigh", share)[1]
        trusts.add(expected.trust)
    assert len(trusts) == 2, "the share decides"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--with", "pretrained", "--criterion", "l2"), "--criterion l2 beside it"),
        (("--with", "pretrained", "--weigh", "0.5"), "found no data"),
        (("--weigh", "0.5"), "found no net to weigh"),
        (("--with", "pretrained", "--data", "digits", "--weigh", "2"), "at most 1"),
        (("--criterion", "scoring_net", "--data", "digits"), "secateur plan --criterion scoring_net"),
    ],
)
def test_options_that_do_not_go_together(words: tuple[str, ...], says: str, call: Any) -> None:
    code, out, err = call("score", *SMALL, *words)
    assert (code, out) == (2, "")
    assert says in err


@pytest.mark.parametrize("more", [(), ("--with", "pretrained"), ("--with", "pretrained", "--data", "digits", "--weigh", "0.5")])
def test_where_nothing_can_be_cut_that_is_said(more: tuple[str, ...], call: Any) -> None:
    said = "no axis can be cut; secateur inspect tells why."
    assert call("score", *SMALL, "--ignore", "*", *more) == (0, said + "\n", "")
    code, out, _ = call("score", *SMALL, "--ignore", "*", *more, "--json")
    assert code == 0
    assert json.loads(out) == {"note": said, "scores": {}}
