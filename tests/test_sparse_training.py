"""The family of sparse training: laws of ramps, layouts and masks, each method against a slow reference."""

from __future__ import annotations

import copy
import math
import os
import socket
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from secateur import SecateurError
from secateur.core.plan import Plan
from secateur.recipes import zoo
from secateur.surgery import fingerprint, masks_after
from secateur.testing import distance
from secateur.train import FitSettings, fit
from secateur.train.sparse import (
    Growth,
    Layout,
    Ramp,
    Rank,
    Sparse,
    acdc,
    fixed,
    gmp,
    granet,
    iterative,
    one_shot,
    rigl,
    rpg,
    st3,
    weights_of,
)
from secateur.train.sparse.select import choose, counts_of, erk, largest, needed
from test_rpg import SGD, Net, batches, net, train

METHODS = {
    "gmp": lambda m, **more: gmp(m, 0.1, 40, every=3, **more),
    "gmp erk": lambda m, **more: gmp(m, 0.1, 40, every=3, layout=Layout("erk"), **more),
    "gmp uniform": lambda m, **more: gmp(m, 0.1, 40, every=3, layout=Layout("uniform"), **more),
    "gmp occupancy": lambda m, **more: gmp(m, 0.2, 40, every=3, layout=Layout(occupancy=1), **more),
    "blocks": lambda m, **more: gmp(m, 0.25, 40, every=3, layout=Layout(pattern="2x1"), **more),
    "2:4": lambda m, **more: gmp(m, 0.5, 40, every=3, layout=Layout(pattern="1:2"), **more),
    "granet": lambda m, **more: granet(m, 0.1, 40, every=3, **more),
    "rigl": lambda m, **more: rigl(m, 0.1, 40, every=3, **more),
    "rigl random": lambda m, **more: rigl(m, 0.1, 40, every=3, start="random", **more),
    "random growth": lambda m, **more: Sparse(m, Ramp(0.1, 40, every=3), growth=Growth(score="random"), **more),
    "rpg b": lambda m, **more: rpg(m, 0.1, 40, every=3, **more),
    "rpg a": lambda m, **more: rpg(m, 0.1, 40, every=3, rank=Rank(0.3, 0.2, "step", 4), **more),
    "rpg blocks": lambda m, **more: rpg(m, 0.25, 40, every=3, layout=Layout(pattern="2x1"), **more),
    "st3": lambda m, **more: st3(m, 0.1, 40, **more),
    "rpg st3": lambda m, **more: rpg(m, 0.1, 40, reading="st3", **more),
    "acdc": lambda m, **more: acdc(m, 0.1, 40, **more),
    "rpg acdc": lambda m, **more: rpg(m, 0.1, 40, reading="acdc", **more),
}


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


@pytest.mark.parametrize("layout", [Layout(pattern="4x1"), Layout(occupancy=1)])
def test_thresholds_go_with_no_layout_that_keeps_small_entries(layout):
    with pytest.raises(SecateurError, match="soft thresholds"):
        st3(net(), 0.1, 20, layout=layout)


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


# selection ---------------------------------------------------------------------------------------------------------


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


# methods against slow references -----------------------------------------------------------------------------------


def test_st3_is_a_straight_through_gradient_through_soft_thresholds():
    """Against autograd: the forward reads w + (w~ - w).detach(), the optimizer moves w."""
    steps, keep = 40, 0.1
    model = net()
    slow = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    hook = st3(model, keep, steps, optimizer=optimizer)
    train(model, hook, batches(steps), optimizer)
    other = torch.optim.SGD(slow.parameters(), **SGD)
    names = [weight.name for weight in weights_of(slow)]
    shown = dict.fromkeys(names, None)
    for t, (x, y) in enumerate(batches(steps), 1):
        params = dict(slow.named_parameters())
        read = {n: params[n] + (shown[n] - params[n]).detach() if shown[n] is not None else params[n] for n in names}
        other.zero_grad()
        functional.cross_entropy(functional_call(slow, read, (x,)), y).backward()
        other.step()
        p = (t - 2) / 18  # begins after 0.03 * 40 = 1 step, every step, over 0.47 * 40 = 18
        if p < 0:
            continue
        flat = torch.cat([params[n].detach().abs().flatten() for n in names])
        count = round((keep + (1 - keep) * (1 - min(p, 1)) ** 3) * len(flat))
        threshold = flat.sort(descending=True).values[count] if count < len(flat) else 0.0
        for n in names:
            w = params[n].detach()
            mask = w.abs() > threshold
            size = w.abs().flatten(1)
            share = ((size * mask.flatten(1)).mean(1) + 1e-6) / (size.mean(1) + 1e-6)
            scale = (1.01 / (share + 0.01)).view(-1, *[1] * (w.dim() - 1))
            shown[n] = scale * (w - w.sign() * threshold) * mask
    for n in names:
        assert (model.get_parameter(n) - shown[n]).abs().max() < 1e-10, n
    assert hook.density == pytest.approx(keep, abs=1e-3)


def test_soft_thresholds_freeze_into_plain_masked_training():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    hook = Sparse(model, Ramp(0.1, 40, "cubic", 1, end=0.4, freeze=0.5), soft=True, optimizer=optimizer)
    train(model, hook, batches(20), optimizer)
    held, masks = copy.deepcopy(model), copy.deepcopy(hook.masks)
    train(model, hook, batches(20, seed=5), optimizer)
    assert all(torch.equal(hook.masks[n], masks[n]) for n in masks)
    assert sum(bool((model.get_parameter(n) - held.get_parameter(n)).any()) for n in masks) > 2, "what stays goes on training"


def test_rigl_keeps_the_number_of_every_layer_and_moves_the_weakest():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    hook = rigl(model, 0.2, 60, every=4, optimizer=optimizer)
    start = {n: int(m.sum()) for n, m in hook.masks.items()}
    shares = erk({w.name: tuple(w.tensor.shape) for w in hook.weights}, 0.2)
    assert all(abs(start[w.name] - shares[w.name] * w.tensor.numel()) < 1 for w in hook.weights)
    seen = []

    def look() -> None:
        seen.append({n: m.clone() for n, m in hook.masks.items()})
        assert {n: int(m.sum()) for n, m in hook.masks.items()} == start

    train(model, hook, batches(60), optimizer, look)
    moved = [sum(int((one[n] != two[n]).sum()) for n in one) for one, two in pairwise(seen)]
    assert all(count == 0 for step, count in enumerate(moved, 2) if step % 4 or step >= 45)
    assert moved[2] > moved[30] > 0


def test_a_fixed_mask_stays():
    model = net()
    plan = one_shot(model, 0.3)
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    hook = fixed(model, plan, optimizer=optimizer)
    train(model, hook, batches(8), optimizer)
    assert hook.plan() == plan


def test_one_shot_is_global_or_layer_wise():
    model = net()
    sizes = {w.name: w.tensor.numel() for w in weights_of(model)}
    everywhere = torch.cat([w.tensor.detach().abs().flatten() for w in weights_of(model)])
    least = everywhere.sort(descending=True).values[round(0.2 * len(everywhere)) - 1]
    for name, kept in masks_after(one_shot(model, 0.2)).items():
        assert np.array_equal(kept, (model.get_parameter(name).detach().abs() >= least).numpy())
    for name, kept in masks_after(one_shot(model, 0.2, layout=Layout("uniform"))).items():
        assert abs(kept.sum() - 0.2 * sizes[name]) <= 1
    assert not one_shot(model, 1.0)


def test_iterative_pruning_rewinds_to_early_weights():
    model = net()
    early = copy.deepcopy(model.state_dict())
    seen: list[tuple[float, bool]] = []

    def learn(model: nn.Module, hook: Sparse) -> None:
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        hook.optimizer = optimizer
        names = list(hook.masks)
        at_start = all(torch.equal(model.get_parameter(n), early[n] * hook.masks[n]) for n in names)
        seen.append((hook.density, at_start))
        train(model, hook, batches(6), optimizer)

    plan = iterative(model, learn, 0.125, rounds=3, rewind=early)
    assert [density for density, _ in seen] == pytest.approx([1, 0.5, 0.25, 0.125], abs=2e-3)
    assert all(rewound for _, rewound in seen)
    assert all(not model.get_parameter(n).detach().numpy()[~mask].any() for n, mask in masks_after(plan).items())
    seen.clear()
    iterative(net(), learn, 0.5, rounds=1)
    assert seen[1][1] is False, "without a state to rewind to, weights go on"
    with pytest.raises(SecateurError, match="rewinding"):
        iterative(net(), learn, 0.5, rounds=1, rewind={"other": torch.zeros(1)})
    with pytest.raises(SecateurError, match="rounds"):
        iterative(net(), learn, 0.5, rounds=0)


# where it trains ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_has_the_same_masks_and_weights(name):
    whole, data = net(), batches(40)
    optimizer = torch.optim.SGD(whole.parameters(), **SGD)
    hook = METHODS[name](whole, optimizer=optimizer)
    train(whole, hook, data[:17], optimizer)
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict(), hook.state_dict()))
    train(whole, hook, data[17:], optimizer)
    again = net(9)
    second = torch.optim.SGD(again.parameters(), **SGD)
    resumed = METHODS[name](again, optimizer=second)
    again.load_state_dict(saved[0])
    second.load_state_dict(saved[1])
    resumed.load_state_dict(saved[2])
    train(again, resumed, data[17:], second)
    assert all(torch.equal(hook.masks[n], resumed.masks[n]) for n in hook.masks)
    assert all(torch.equal(one, two) for one, two in zip(whole.parameters(), again.parameters(), strict=True))
    with pytest.raises(SecateurError, match="going on"):
        Sparse(net(), Ramp(0.3, 40, every=3)).load_state_dict(saved[2])


def test_a_state_of_other_layers_is_refused():
    state = gmp(net(), 0.1, 40, every=3).state_dict()
    with pytest.raises(SecateurError, match="does not fit"):
        gmp(net(), 0.1, 40, every=3, dense=["head"]).load_state_dict(state)


def small_batches(count: int):
    return batches(count, dtype=torch.float32)


@pytest.mark.parametrize("name", ["rpg b", "rpg a", "rpg st3"])
def test_in_the_training_loop_with_a_checkpoint(name, tmp_path):
    """`fit` hands over its optimizer, and a run that is called again from its checkpoint ends in the same masks."""

    def run(epochs: int, model: nn.Module, stop: int | None = None) -> Sparse:
        hook = METHODS[name](model)

        def halt(epoch: int, step: int, _: int | None) -> None:
            if epoch == stop:
                raise KeyboardInterrupt

        settings = FitSettings(epochs=epochs, lr=0.05, schedule="constant")
        try:
            fit(model, small_batches(20), settings, hooks=[hook], checkpoint=tmp_path / f"{stop}.pt", on_step=halt)
        except KeyboardInterrupt:
            return run(epochs, net(5, torch.float32), 0) if (tmp_path / "0.pt").exists() else hook
        assert hook.optimizer is not None
        return hook

    first = run(2, net(dtype=torch.float32))
    run(2, net(dtype=torch.float32), 2)
    (tmp_path / "2.pt").rename(tmp_path / "0.pt")
    second = run(2, net(5, torch.float32), 0)
    assert all(torch.equal(first.masks[n], second.masks[n]) for n in first.masks)
    assert distance(first.model, second.model, small_batches(1)[0][0]) == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("how", ["compiled", "bf16, channels last"])
def test_the_compiled_step_and_mixed_precision_train_with_masks(how, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    settings = FitSettings(epochs=1, lr=0.02)
    told = {"compile": True} if how == "compiled" else {"precision": "bf16", "channels_last": True}
    for name in ("rpg b", "rpg a", "rpg st3"):
        plain, other = net(dtype=torch.float32), net(dtype=torch.float32)
        hooks = [METHODS[name](plain), METHODS[name](other)]
        fit(plain, small_batches(40), settings, hooks=hooks[:1])
        fit(other, small_batches(40), replace(settings, **told), hooks=hooks[1:])
        assert hooks[0].density == hooks[1].density
        for key, mask in hooks[1].masks.items():
            assert not other.get_parameter(key).detach()[~mask].any()
        if how == "compiled":
            assert all(torch.equal(hooks[0].masks[n], hooks[1].masks[n]) for n in hooks[0].masks)


TOGETHER = """
import atexit, os, sys, torch
from torch import nn
from secateur.data import Batches
from secateur.train import FitSettings, fit
from secateur.train.sparse import rpg, rigl
atexit.register(lambda: torch.distributed.is_initialized() and os._exit(3))  # runs last: a group left open may abort
torch.set_num_threads(1)
torch.manual_seed(0)
net = lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 3))
x, y = torch.randn(64, 3, 8, 8), torch.arange(64) % 3
out = {}
for name in ("released", "abstract", "st3", "rigl"):
    torch.manual_seed(1)
    model = net()
    if name == "rigl":
        hook = rigl(model, 0.2, 24, every=3, start="random", seed=int(os.environ.get("RANK", 0)))
    else:
        hook = rpg(model, 0.2, 24, reading=name, **({} if name == "st3" else {"every": 3}))
    if name != "rigl":
        torch.manual_seed(2)
    fit(model, Batches(x, y, batch=16, shuffle=True), FitSettings(epochs=6, lr=0.05), hooks=[hook])
    out[name] = {"masks": torch.cat([m.flatten() for m in hook.masks.values()]),
                 "weights": torch.cat([p.detach().flatten() for p in model.parameters()])}
torch.save(out, sys.argv[1])
"""


def test_two_processes_hold_identical_masks(tmp_path: Path) -> None:
    """Also where their random numbers differ: rank 0 decides. Where nothing is random, they are those of one process."""

    def started(out: str, **env: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", TOGETHER, str(tmp_path / out)], env={**os.environ, **env})

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    runs = [started("one")] + [started(f"two{r}", RANK=str(r), LOCAL_RANK=str(r), **shared) for r in range(2)]
    assert [run.wait(timeout=180) for run in runs] == [0, 0, 0]
    one, first, second = (torch.load(tmp_path / name, weights_only=True) for name in ("one", "two0", "two1"))
    for name in first:
        assert torch.equal(first[name]["masks"], second[name]["masks"]), name
        assert torch.equal(first[name]["weights"], second[name]["weights"]), name
    assert (one["released"]["masks"] == first["released"]["masks"]).float().mean() > 0.99


def test_transformers_and_attention_with_packed_weights():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    names = [weight.name for weight in weights_of(model)]
    assert names == ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    hook = rpg(model, 0.1, 30, every=3, optimizer=optimizer)
    assert hook.rank.linear
    x = torch.randn(4, 5, 8)
    for _ in range(30):
        model(x).square().mean().backward()
        hook.after_backward()
        optimizer.step()
        hook.after_step()
        optimizer.zero_grad()
    assert hook.density == pytest.approx(0.1, abs=2e-3)
    plan = hook.plan()
    assert distance(plan.preview(model.eval()), plan.apply(model), x) == 0


def test_tied_weights_count_once_and_dense_patterns_are_kept():
    model = Net()
    model.twin2.weight = model.twin.weight
    assert [w.name for w in weights_of(model)] == ["stem.weight", "wide.weight", "twin.weight", "head.weight"]
    hook = gmp(model, 0.1, 40, every=3, dense=["stem", "head.weight"])
    assert list(hook.masks) == ["wide.weight", "twin.weight"]
    with pytest.raises(SecateurError, match="no layer"):
        weights_of(model, ["hed"])


def test_a_plan_of_another_model_is_refused():
    with pytest.raises(SecateurError, match=r"did you mean|no tensor|where the plan has"):
        fixed(net(), one_shot(nn.Sequential(nn.Linear(3, 3)), 0.5))
    assert Plan(fingerprint(net())) == fixed(net(), Plan(fingerprint(net()))).plan()
