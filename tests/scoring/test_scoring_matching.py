"""Feature matching as a loss of a Scoring Net's stages."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import handmade
from networks import ZOO
from secateur import allocate, trace
from secateur.core.errors import SecateurError
from secateur.criteria.scoring import NetSettings, Objective, ScorerSettings, ScorerStage, ScoringNet, Task, fit_
from secateur.criteria.scoring.matching import Matching, watching
from secateur.criteria.scoring.task import objective, prepare
from secateur.recipes import zoo
from secateur.recipes.scoring import settings_of
from secateur.surgery import on_batch_statistics

ONLY = Objective(task=0, kl=0, budget=0, features=1.0, layers=("layer1", "layer2.0.conv1"))


def budget(axes, scores, share):
    return allocate.budget(axes, scores, {"macs": share}, normalise="none", floor=0.0)


def network():
    torch.manual_seed(0)
    model = zoo.digits_resnet(widths=(6, 8, 8)).eval()
    return model, trace(model, torch.zeros(1, 1, 8, 8))


def batches(count=3):
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 1, 8, 8, generator=draw), torch.randint(10, (8,), generator=draw)) for _ in range(count)]


def task(model, axes):
    return Task(model, axes, batches(), F.cross_entropy, budget)


def maps(features):
    """(B, P) by numpy."""
    rows = (features.detach().numpy() ** 2).mean(1).reshape(len(features), -1)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_loss_is_the_distance_of_the_cut_network_from_the_full_one():
    """Layers of gated networks have all their channels; maps are those of the network that is really cut."""
    model, axes = network()
    ready = prepare(task(model, axes), NetSettings(), 3, layers=ONLY.layers)
    kept = {axis.name: tuple(range(1, axis.units, 2)) for axis in axes.free}
    gates = {a.name: torch.zeros(a.units).index_fill(0, torch.tensor(kept[a.name]), 1) for a in axes.free}
    cut = on_batch_statistics(axes.plan(kept).apply(model))
    for batch, (inputs, target, answer) in enumerate(ready.batches):
        output = ready.output(gates, inputs)
        found = objective(ready, ONLY, output, target, answer, 0.0, ready.features(ONLY, gates, batch))
        with watching(model, ONLY.layers) as theirs, watching(cut, ONLY.layers) as ours, torch.no_grad():
            model(inputs)
            cut(inputs)
            expected = sum(((maps(ours[layer]) - maps(theirs[layer])) ** 2).sum() / len(inputs) for layer in ONLY.layers)
        assert float(found) == pytest.approx(expected, rel=1e-4)
    assert not any(module._forward_hooks for module in [*model.modules(), *ready.gated.modules()])


def test_nothing_gated_is_no_distance_and_other_stages_pay_nothing():
    model, axes = network()
    ready = prepare(task(model, axes), NetSettings(), 1, layers=ONLY.layers)
    ready.gated.model.eval()  # as the full network ran
    ready.output({}, ready.batches[0][0])
    assert float(ready.features(ONLY, {}, 0)) == pytest.approx(0.0, abs=1e-6)
    assert ready.features(Objective(), {}, 0) == 0.0


@pytest.mark.parametrize("name", ["plain", "vision transformer", "depthwise, squeeze-excite"])
def test_channels_of_a_layer_are_found_whatever_else_has_their_number(name):
    torch.manual_seed(0)
    build, example = ZOO[name]
    model, x = build().eval(), example()
    axes = trace(model, x)
    for axis in axes.free:
        for slot in (s for s in axis.slots if s.role == "write" and s.entries == 1 and s.dim == 0):
            layer, _, last = slot.tensor.rpartition(".")
            if last == "weight":
                assert Matching(model, axes, [layer], x).where[layer][0] == axis.name, layer


@pytest.mark.parametrize("variant", ["gates", "reinforce"])
@pytest.mark.parametrize("mode", ["post", "init"])
def test_a_stage_of_features_trains_the_net(variant, mode):
    model, axes = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    net = ScoringNet()
    start = [p.clone() for p in net.parameters()]
    stages = (ScorerStage("match", 2, ONLY), ScorerStage("task", 1))
    records = fit_(net, [task(model, axes)], ScorerSettings(stages=stages, variant=variant, mode=mode))
    assert [record["stage"] for record in records] == ["match", "match", "task"]
    assert records[0]["loss"] > 0 or variant == "reinforce"
    assert any(not torch.equal(one, two) for one, two in zip(net.parameters(), start, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_words_of_a_recipe_reach_it():
    words = {"stages": [{"name": "match", "task": 0, "kl": 0, "features": 2.0, "layers": ["layer3"]}, {"name": "task"}]}
    stages = settings_of(words, 0.5, 0)[1].stages
    assert stages[0].objective == Objective(task=0, kl=0, features=2.0, layers=("layer3",))
    assert not stages[1].objective.features


def test_what_cannot_be_matched_is_one_sentence():
    model, axes = network()
    for how, words in (
        ({"features": 1.0}, "feature matching without layers"),
        ({"layers": ("layer1",)}, "layers without a weight"),
        ({"features": 1.0, "layers": "layer1"}, "no list of names"),
        ({"features": -1.0, "layers": ("layer1",)}, "features=-1.0"),
    ):
        with pytest.raises(SecateurError, match=words):
            Objective(**how)
    far = ScorerSettings(stages=(ScorerStage(objective=replace(ONLY, layers=("layer9",))),))
    with pytest.raises(SecateurError, match=r"'layer9'.*did you mean"):
        fit_(ScoringNet(), [task(model, axes)], far)
    idle = handmade.small()
    idle.unused = torch.nn.Linear(2, 2)
    with pytest.raises(SecateurError, match="name a layer that runs"):
        Matching(idle, handmade.axes(idle), ["unused"], handmade.data(1)[0][0])
