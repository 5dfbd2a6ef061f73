"""Methods of sparse training but RPG, which has its own file, against slow references and by what each of them keeps."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from loops import train
from secateur import SecateurError
from secateur.surgery import masks_after
from secateur.train.sparse import Layout, Ramp, Sparse, fixed, gmp, iterative, one_shot, rigl, st3, weights_of
from secateur.train.sparse.select import erk
from sparse_cases import SGD, batches, net


def test_no_growth_and_a_cubic_ramp_is_gradual_magnitude_pruning():
    model, steps = net(), 30
    slow, optimizer = copy.deepcopy(model), torch.optim.SGD(model.parameters(), 0.05)
    hook = gmp(model, 0.1, steps, every=4)
    other, names = torch.optim.SGD(slow.parameters(), 0.05), [n for n, p in slow.named_parameters() if p.dim() > 1]
    train(model, hook, batches(steps), optimizer)
    masks = {n: torch.ones(p.shape) for n, p in slow.named_parameters() if n in names}
    params = dict(slow.named_parameters())
    for t, (x, y) in enumerate(batches(steps), 1):
        slow.zero_grad()
        functional.cross_entropy(slow(x), y).backward()
        if t % 4 == 0 and t <= 28:
            p = min((t // 4 - 1) / 6, 1)
            flat = torch.cat([params[n].detach().abs().flatten() for n in names])
            count = round((0.1 + 0.9 * (1 - p) ** 3) * len(flat))
            least = flat.sort(descending=True).values[count - 1]
            masks = {n: (params[n].detach().abs() >= least).double() for n in names}
        for n in names:
            params[n].grad.mul_(masks[n])
        other.step()
        for n in names:
            params[n].data.mul_(masks[n])
    assert all(torch.equal(hook.masks[n], masks[n].bool()) for n in names)
    assert all((one - two).abs().max() < 1e-12 for one, two in zip(model.parameters(), slow.parameters(), strict=True))


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


class Everywhere(torch.optim.SGD):
    """Moves every weight, also where its gradient is zero, as orthogonalised momentum does."""

    def step(self, closure=None):
        super().step(closure)
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter.add_(1e-3)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, Everywhere])
def test_a_fixed_mask_stays(optimizer):
    model = net()
    plan = one_shot(model, 0.3)
    optimizer = optimizer(model.parameters(), **SGD)
    hook = fixed(model, plan, optimizer=optimizer)
    before = {name: model.get_parameter(name).detach().clone() for name in hook.masks}
    train(model, hook, batches(8), optimizer)
    assert hook.plan() == plan
    for name, kept in masks_after(plan).items():
        weight = model.get_parameter(name).detach()
        assert not weight[~torch.from_numpy(kept)].any()
        assert (weight != before[name])[torch.from_numpy(kept)].any()


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
