"""Masks of sparse training: how many entries stay after every step, and which, by the laws of ramps and layouts."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from loops import train
from secateur.recipes import zoo
from secateur.train.sparse import Layout, Ramp, Sparse, gmp, one_shot, weights_of
from secateur.train.sparse.select import choose, counts_of, erk, largest, needed
from sparse_cases import METHODS, SGD, batches, net

# how many stay -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_density_equals_the_schedule_after_every_step(name):
    model = net(dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    hook = METHODS[name](model, optimizer=optimizer)
    total = sum(weight.tensor.numel() for weight in hook.weights)

    def look() -> None:
        kept = sum(int(mask.sum()) for mask in hook.masks.values())
        wanted = hook.ramp.density(hook.step)
        if name == "2:4":  # 2 of 2 until 1 of 2 is enough
            assert max(total // 2, wanted * total - 4) <= kept <= (total if wanted > 0.5 else total // 2)
        elif "blocks" in name:
            assert abs(kept - wanted * total) <= 40
        else:
            assert kept == round(wanted * total), f"step {hook.step}"

    train(model, hook, batches(40, dtype=torch.float32), optimizer, look)
    assert hook.ramp.density(40) == hook.ramp.keep
    assert all(p.isfinite().all() for p in model.parameters())
    again = hook.plan().apply(model)
    assert all(torch.equal(one, two) for one, two in zip(again.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("shape", ["cubic", "exponential", "linear"])
@pytest.mark.parametrize(("steps", "every"), [(1000, 100), (1000, 7), (57, 5), (12, 1), (391, 20)])
def test_ramps_fall_from_one_to_keep_and_end_before_training_does(shape, steps, every):
    ramp = Ramp(0.03, steps, shape, every, begin=0.1)
    densities = [ramp.density(step) for step in range(1, steps + 1)]
    assert densities[0] == 1
    assert densities == sorted(densities, reverse=True)
    assert densities[-1] == 0.03
    assert ramp.due(ramp.last)
    assert ramp.last < steps
    due = [step for step in range(1, steps + 1) if ramp.due(step)]
    changes = [step for step in range(2, steps + 1) if densities[step - 1] != densities[step - 2]]
    assert set(changes) <= set(due), "a density changes only where masks do"


def test_phases_of_acdc():
    ramp = Ramp(0.1, 100, "alternating", 10, begin=0.1, end=0.85)
    densities = "".join("s" if ramp.density(step) == 0.1 else "d" for step in range(1, 101))
    assert densities == "d" * 10 + "ssssssssssdddddddddd" * 3 + "s" * 10 + "s" * 20
    assert [s for s in range(1, 101) if ramp.due(s)] == [11, 21, 31, 41, 51, 61, 71]
    model = net(dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    hook = Sparse(model, ramp, optimizer=optimizer)
    train(model, hook, batches(20, dtype=torch.float32), optimizer)
    assert hook.density == pytest.approx(0.1, abs=1e-3)
    train(model, hook, batches(5, dtype=torch.float32), optimizer)
    assert hook.density == 1
    filled = sum(int((weight.tensor != 0).sum()) for weight in hook.weights)
    assert filled > 0.3 * sum(weight.tensor.numel() for weight in hook.weights), "everything trains in a dense phase"


# which stay --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 5, 11, 12])
def test_exactly_that_many_also_where_scores_tie(count):
    for scores in (torch.zeros(3, 4), torch.arange(12.0).view(3, 4) // 4, torch.randn(3, 4)):
        mask = largest(scores, count)
        assert int(mask.sum()) == count
        if 0 < count < 12:
            assert scores[mask].min() >= scores[~mask].max()


def test_erk_against_the_formula_and_its_total():
    shapes = {"a": (64, 3, 3, 3), "b": (64, 64, 3, 3), "c": (10, 64), "d": (256, 256)}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    for keep in (0.5, 0.1, 0.02):
        found = erk(shapes, keep)
        assert sum(found[n] * sizes[n] for n in shapes) == pytest.approx(keep * sum(sizes.values()))
        assert max(found.values()) <= 1
        free = [n for n in shapes if found[n] < 1]
        ratios = [found[n] / (sum(shapes[n]) / sizes[n]) for n in free]
        assert ratios == pytest.approx([ratios[0]] * len(ratios))
    scores = {name: torch.rand(shape) for name, shape in shapes.items()}
    for how, keep in product(("global", "uniform", "erk"), (0.5, 0.1, 0.02)):
        assert sum(counts_of(scores, keep, how).values()) == round(keep * sum(sizes.values()))
    assert counts_of({"x": torch.rand(3, 3)}, 0.5, "uniform") == {"x": 4}


@pytest.mark.parametrize(
    ("pattern", "shape"), [("2:4", (6, 8)), ("4:8", (5, 16, 3, 3)), ("1:2", (3, 4, 1, 1)), ("2:4", (4, 12, 5))]
)
def test_n_of_m_holds_in_every_group_and_takes_the_largest(pattern, shape):
    n, m = map(int, pattern.split(":"))
    scores = torch.rand(shape)
    mask = choose(scores, 0, Layout(pattern=pattern)).numpy()
    for out, place in product(range(shape[0]), np.ndindex(*shape[2:])):
        for first in range(0, shape[1], m):
            near = (out, slice(first, first + m), *place)
            assert mask[near].sum() == n
            assert scores.numpy()[near][mask[near]].min() >= scores.numpy()[near][~mask[near]].max()


def test_groups_hold_through_training_and_layers_that_do_not_fit_stay_dense():
    model = net(dtype=torch.float32)
    layout = Layout(pattern="1:2")
    hook = gmp(model, 0.5, 30, every=3, layout=layout)
    assert "stem.weight" not in hook.masks, "three inputs"
    train(model, hook, batches(30, dtype=torch.float32), torch.optim.SGD(model.parameters(), 0.05))
    for name, mask in hook.masks.items():
        pairs = mask.transpose(1, -1).reshape(-1, 2).sum(1)
        assert (pairs == 1).all(), name


def test_blocks_are_whole_and_every_row_and_column_is_met():
    scores = torch.rand(8, 6, 3, 3)
    plan = one_shot(nn.Conv2d(6, 8, 3), 0.25, {"weight": scores}, layout=Layout(pattern="4x3"))
    mask = plan.steps[0].supports[0].mask().reshape(8, 54)
    assert mask.mean() == 0.25
    blocks = mask.reshape(2, 4, 18, 3)
    assert (blocks.any((1, 3)) == blocks.all((1, 3))).all()
    kept = choose(scores - 0.4 * torch.arange(8.0).view(8, 1, 1, 1), 40, Layout(occupancy=2))
    assert int(kept.sum()) == 40
    assert kept.flatten(1).sum(1).min() >= 2
    assert kept.transpose(0, 1).flatten(1).sum(1).min() >= 2
    assert not largest(scores - 0.4 * torch.arange(8.0).view(8, 1, 1, 1), 40).flatten(1).any(1).all(), "else it needs no care"
    assert int(needed(scores, 1).sum()) <= 8 + 6
    assert int(choose(scores, 3, Layout(occupancy=1)).sum()) == 3, "as far as the number goes"


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("allocation", ["global", "uniform", "erk"])
def test_every_row_and_column_of_a_network_has_its_entries(allocation, memory):
    torch.manual_seed(0)
    model = zoo.digits_resnet().to(memory_format=memory)
    with torch.no_grad():
        model.layer3[0].conv2.weight.mul_(1e-3)  # by magnitude alone nothing of it would stay
    sizes = {weight.name: weight.tensor for weight in weights_of(model)}
    for least in (1, 2):
        plan = one_shot(model, 0.05, layout=Layout(allocation, occupancy=least))
        masks = {support.tensor: torch.from_numpy(support.mask()) for step in plan.steps for support in step.supports}
        assert sum(int(mask.sum()) for mask in masks.values()) == round(0.05 * sum(value.numel() for value in sizes.values()))
        for name, mask in masks.items():
            per_row, per_column = mask.flatten(1).sum(1), mask.transpose(0, 1).flatten(1).sum(1)
            assert int(per_row.min()) >= min(least, mask[0].numel()), name
            assert int(per_column.min()) >= min(least, mask[:, 0].numel()), name
