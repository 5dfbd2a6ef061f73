"""The path of a recipe in memory: what is cut by rounds and allocators, and `compress` on a network of one's own."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import secateur
from secateur import SecateurError
from secateur.recipes import Settings, compress, schema, zoo
from secateur.recipes.choose import choose
from secateur.train import FitSettings

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("allocator", ["budget", "uniform"])
@pytest.mark.parametrize("rounds", [1, 3])
def test_rounds_and_allocators_meet_the_budget(allocator, rounds):
    torch.manual_seed(0)
    net = zoo.digits_resnet(widths=(8, 16, 16)).eval()
    x = torch.randn(2, 1, 8, 8)
    prune = schema.Prune(keep={"macs": 0.4, "params": 0.6}, criterion="l1", allocator=allocator, rounds=rounds)
    axes, plan = choose(net, x, prune)
    kept = {name: after for name, (_, after) in plan.widths().items()}
    for what, share in prune.keep.items():
        assert axes.count(what, kept) <= share * axes.count(what)
    assert axes.count("macs", kept) > 0.2 * axes.count("macs")
    small = plan.apply(net)
    assert torch.allclose(plan.preview(net)(x), small(x), atol=1e-5)


def test_a_criterion_without_data_is_told():
    with pytest.raises(SecateurError, match="no data to run on"):
        choose(zoo.digits_resnet(), torch.zeros(1, 1, 8, 8), schema.Prune(criterion="taylor"))


def test_compress_in_memory():
    torch.manual_seed(0)
    net = zoo.digits_resnet(widths=(4, 8, 8))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    batches = [(torch.randn(32, 1, 8, 8), torch.randint(0, 10, (32,))) for _ in range(4)]
    judged = []

    def accuracy(model: nn.Module) -> float:
        assert not model.training
        judged.append(model)
        return 0.25

    settings = Settings(finetune=FitSettings(epochs=1, lr=0.01), measure=schema.Measure(repeats=2))
    small, report = compress(net, batches[0][0][:1], batches, evaluate=accuracy, keep={"macs": 0.5}, settings=settings)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert net.training
    assert list(report.stages) == ["dense", "after the cut", "after repair", "after fine-tuning"]
    assert len(judged) == 4
    assert report.stages["after repair"].macs == secateur.measure.facts(small, batches[0][0][:1]).macs
    assert report.stages["after repair"].macs <= 0.5 * report.stages["dense"].macs
    assert report.plan.widths()
    assert "after fine-tuning" in str(report)
    assert json.dumps(report.to_json())


def test_compress_without_data_scores_by_magnitude():
    net = zoo.digits_resnet(widths=(4, 8, 8))
    small, report = secateur.compress(
        net, torch.zeros(1, 1, 8, 8), keep={"params": 0.5}, settings=Settings(measure=schema.Measure(latency=False))
    )
    assert list(report.stages) == ["dense", "after the cut"]
    assert sum(p.numel() for p in small.parameters()) <= 0.5 * sum(p.numel() for p in net.parameters())
