"""Block-diagonal layers: the laws, steps in a row, files that lie, and training that goes on."""

from __future__ import annotations

import itertools
import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cut_networks import X, network
from secateur import load, measure, read_plan, save, trace
from secateur.core.codec import dumps, from_json, loads, to_json
from secateur.core.errors import SecateurError
from secateur.core.factor import Product
from secateur.core.plan import Plan, factor, split
from secateur.core.split import Blocks, blocks_of
from secateur.io import write_plan
from secateur.surgery import BlockDiagonal, fingerprint, shapes_after
from secateur.surgery.workers import expanded


def mixed(model: nn.Module) -> Plan:
    """Blocks with channels in no order."""
    layers = []
    draw = np.random.default_rng(0)
    for name in ("two", "three", "four", "five"):
        out, into = model.get_submodule(name).weight.shape[:2]
        layers.append(blocks_of(name, draw.permutation(np.arange(into) % 4), draw.permutation(np.arange(out) % 4), 4))
    return split(fingerprint(model), layers)


def masked(model: nn.Module, plan: Plan) -> nn.Module:
    """Weights between workers set to zero one by one."""
    model = deepcopy(model)
    with torch.no_grad():
        for blocks in plan.steps[0].layers:
            weight = model.get_submodule(blocks.module).weight
            for o, i in itertools.product(range(weight.shape[0]), range(weight.shape[1])):
                if not any(o in outputs and i in inputs for inputs, outputs in zip(blocks.inputs, blocks.outputs, strict=True)):
                    weight[o, i] = 0
    return model


def test_blocks_preview_and_zeros_agree() -> None:
    model = network()
    plan = mixed(model)
    before = deepcopy(model.state_dict())
    small = plan.apply(model)
    torch.testing.assert_close(small(X), masked(model, plan)(X))
    torch.testing.assert_close(plan.preview(model)(X), small(X))
    torch.testing.assert_close(expanded(small)(X), small(X))
    assert fingerprint(small) == shapes_after(plan)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not {p.data_ptr() for p in small.parameters()} & {p.data_ptr() for p in model.parameters()}
    dense, cut = measure.facts(model, X), measure.facts(small, X)
    saved = sum(model.get_submodule(b.module).weight.numel() * 3 // 4 for b in plan.steps[0].layers)
    assert dense.params - cut.params == saved
    macs = {"two": 16, "three": 4, "four": 1, "five": 1}  # positions of the output
    saved = sum(3 * macs[b.module] * model.get_submodule(b.module).weight.numel() * 3 // 4 for b in plan.steps[0].layers)
    assert dense.macs - cut.macs == saved


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 4), (2, 6)),
        (nn.Linear(6, 4, bias=False), (2, 3, 6)),
        (nn.Conv1d(6, 4, 3, stride=2, dilation=2, padding=1), (2, 6, 9)),
        (nn.Conv2d(6, 4, 3, padding="same"), (2, 6, 5, 5)),
        (nn.Conv2d(6, 4, 3, padding=(1, 2), padding_mode="circular"), (6, 5, 5)),
    ],
)
def test_every_kind_of_layer(layer: nn.Module, shape: tuple[int, ...]) -> None:
    model = nn.Sequential(layer.double())
    for reads, writes in (((0, 0, 0, 1, 1, 1), (0, 0, 1, 1)), ((1, 0, 1, 0, 0, 1), (0, 1, 1, 0))):
        plan = split(fingerprint(model), [blocks_of("0", reads, writes, 2)])
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(plan.apply(model)(x), masked(model, plan)(x))
        torch.testing.assert_close(expanded(plan.apply(model))(x), masked(model, plan)(x))


def test_files_and_text_round_trip(tmp_path: Path) -> None:
    model = network()
    plan = mixed(model)
    assert loads(dumps(plan)) == plan
    assert not plan.diff(loads(dumps(plan)))
    small = plan.apply(model)
    save(tmp_path / "small.safetensors", small, plan)
    again = load(tmp_path / "small.safetensors", into=network(1))
    assert torch.equal(again(X), small(X))
    write_plan(tmp_path / "plan.json", plan)
    assert read_plan(tmp_path / "plan.json") == plan
    assert "4 blocks of 3 x 2" in str(plan)
    other = split(plan.fingerprint, plan.steps[0].layers[:1])
    assert plan.diff(other)


def test_steps_compose() -> None:
    model = network()
    layers = mixed(model).steps[0].layers
    first = split(fingerprint(model), layers[:2])
    second = split(shapes_after(first), layers[2:])
    whole = first.then(second)
    assert whole.steps == mixed(model).steps
    torch.testing.assert_close(whole.apply(model)(X), second.apply(first.apply(model))(X))
    axes = trace(model, X)
    cut = axes.plan({"one": range(4)})
    middle = cut.apply(model)
    both = cut.then(split(fingerprint(middle), [blocks_of("four", np.arange(32) % 2, np.arange(12) % 2, 2)]))
    assert len(both.steps) == 2
    torch.testing.assert_close(both.apply(model)(X), both.preview(model)(X))
    assert loads(dumps(both)) == both


def test_momentum_follows_the_weights() -> None:
    model = network().train()
    plan = mixed(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(X).square().sum().backward()
    optimizer.step()
    momentum = {name: optimizer.state[p]["momentum_buffer"].clone() for name, p in model.named_parameters()}
    plan.apply_(model, optimizer=optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    blocks = next(b for b in plan.steps[0].layers if b.module == "four")
    found = optimizer.state[model.four.weight]["momentum_buffer"]
    start = 0
    for inputs, outputs in zip(blocks.inputs, blocks.outputs, strict=True):
        expected = momentum["four.weight"][list(outputs)][:, list(inputs)]
        torch.testing.assert_close(found[start : start + len(outputs)], expected)
        start += len(outputs)
    optimizer.zero_grad()
    model(X).square().sum().backward()
    optimizer.step()


def test_layers_that_cannot_are_refused_before_anything_changes() -> None:
    model = network()
    fine = blocks_of("five", np.arange(12) % 2, np.arange(8) % 2, 2)
    tied = network()
    tied.also = nn.Linear(12, 8).double()
    tied.also.weight = tied.five.weight
    with pytest.raises(SecateurError, match=r"shared with 'also\.weight'"):
        split(fingerprint(tied), [fine]).apply(tied)
    grouped = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2))
    with pytest.raises(SecateurError, match="4 outputs and 4 inputs"):
        split(fingerprint(grouped), [blocks_of("0", (0, 0, 1, 1), (0, 0, 1, 1), 2)]).apply(grouped)
    plan = split(fingerprint(model), [fine])
    with pytest.raises(SecateurError, match="a plan applied to this model"):
        plan.apply(plan.apply(model))
    again = plan.apply(model)
    with pytest.raises(SecateurError, match="beside its weight"):
        split(fingerprint(again), [blocks_of("five", np.arange(6) % 2, np.arange(8) % 2, 2)]).apply(again)
    for inputs, outputs, words in (
        (((0, 1),), ((0, 1),), "two at least"),
        (((0, 1), (2,)), ((0,), (1,)), "unequal"),
        (((0,), (0,)), ((0,), (1,)), "every channel once"),
        (((1,), (0,)), ((0,),), "the same workers"),
        (((1, 0), (2, 3)), ((0,), (1,)), "out of order"),
    ):
        with pytest.raises(SecateurError, match=words):
            Blocks("a", inputs, outputs)


@pytest.mark.parametrize(
    "change",
    [
        lambda step: step["layers"][0].pop("inputs"),
        lambda step: step["layers"][0].update(inputs=["0-99999999999"]),
        lambda step: step["layers"][0].update(inputs=["0 1", "1 2"]),
        lambda step: step["layers"][0].update(inputs=["0-1"] * 9999),
        lambda step: step["layers"][0].update(layer="nothing"),
        lambda step: step["layers"][0].update(layer="one\n"),
        lambda step: step["layers"].append(step["layers"][0]),
        lambda step: step.update(extra=1),
        lambda step: step.update(layers=3),
    ],
)
def test_forged_files_are_one_sentence(change) -> None:  # type: ignore[no-untyped-def]
    value = json.loads(json.dumps(to_json(mixed(network()))))
    change(value["steps"][0])
    with pytest.raises(SecateurError, match="reading a plan"):
        from_json(value)


def test_a_split_network_traces_and_trains() -> None:
    model = network()
    small = mixed(model).apply(model)
    axes = trace(small, X)
    assert axes.count("params") == sum(p.numel() for p in small.parameters())
    for axis in axes.free:
        plan = axes.plan({axis.name: range(1, axis.units)})
        torch.testing.assert_close(plan.apply(small)(X), plan.preview(small)(X))
    small.train()(X).square().sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    assert isinstance(small.five, BlockDiagonal)


@pytest.mark.parametrize("kind", ["blocks", "product"])
def test_hooks_on_a_layer_go_on_with_what_replaces_it(kind):
    model, seen = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), []
    first = model[0]
    handles = [
        first.register_forward_pre_hook(lambda module, args: seen.append(("before", tuple(args[0].shape)))),
        first.register_forward_hook(
            lambda module, args, kwargs, output: seen.append(("after", tuple(output.shape))), with_kwargs=True
        ),
        first.register_full_backward_hook(lambda module, into, out: seen.append(("back", tuple(out[0].shape)))),
    ]
    if kind == "blocks":
        plan = split(fingerprint(model), [Blocks("0", ((0, 1), (2, 3)), ((0, 1, 2), (3, 4, 5)))])
    else:
        plan = factor(fingerprint(model), [Product("0", "linear", (1,))])
    x = torch.randn(5, 4, requires_grad=True)
    wanted = [("before", (5, 4)), ("after", (5, 6)), ("back", (5, 6))]
    small = plan.apply(model)
    small(x).sum().backward()
    assert seen == wanted, "a copy has them"
    plan.apply_(model)
    assert model[0] is not first
    seen.clear()
    model(x).sum().backward()
    assert seen == wanted
    for handle in handles:
        handle.remove()
    seen.clear()
    model(x).sum().backward()
    assert not seen, "handles know where they are"
