"""Muon against PyTorch's own, before and after a cut, and optimizers by name."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur import allocate, criteria, score, trace
from secateur.linalg.muon import Muon
from secateur.train import FitSettings, fit
from small_digits import batches, network, weights


def test_muon_steps_matrices_by_torchs_own_and_the_rest_by_adamw():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 4))
    twin = copy.deepcopy(model)
    ours = Muon(list(model.parameters()), 0.01, 0.9, 0.0, True)
    flat = nn.Parameter(twin[0].weight.detach().flatten(1).clone())
    how = {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
    muon = torch.optim.Muon([flat, twin[3].weight], **how)
    adam = torch.optim.AdamW([twin[0].bias, twin[1].weight, twin[1].bias, twin[3].bias], lr=0.01, weight_decay=0.0)
    x, y = torch.randn(6, 2, 3, 3), torch.randint(4, (6,))
    for _ in range(3):
        ours.zero_grad()
        F.cross_entropy(model(x), y).backward()
        ours.step()
        twin.zero_grad()
        with torch.no_grad():
            twin[0].weight.copy_(flat.view_as(twin[0].weight))
        F.cross_entropy(twin(x), y).backward()
        flat.grad = twin[0].weight.grad.flatten(1)
        muon.step()
        adam.step()
    torch.testing.assert_close(model[0].weight.flatten(1), flat)
    torch.testing.assert_close(model[3].weight, twin[3].weight)
    torch.testing.assert_close(model[1].weight, twin[1].weight)


def test_muon_takes_kernels_in_any_order_of_memory():
    plain, last = network(), network()
    settings = FitSettings(epochs=2, optimizer="muon", lr=0.01)
    fit(plain, batches(), settings)
    fit(last, batches(), replace(settings, channels_last=True))
    torch.testing.assert_close(weights(last), weights(plain), rtol=0.05, atol=0.02)  # its iterations run in bfloat16


def test_muon_trains_what_a_cut_leaves_with_the_momentum_it_had():
    model = network(widths=(6, 6, 6))
    optimizer = Muon(list(model.parameters()), 0.01, 0.9, 0.0, True)
    (x, y), axes = batches(1)[0], trace(model, batches(1)[0][0])
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    for p in matrices:
        optimizer.state[p]["momentum_buffer"].copy_(p.detach())
    plan = allocate.uniform(axes, score(axes, criteria.l1(model)), 0.5)
    plan.apply_(model, optimizer=optimizer)
    assert sum(p.numel() for p in model.parameters() if p.dim() > 1) < sum(p.numel() for p in matrices)
    assert all(torch.equal(optimizer.state[p]["momentum_buffer"], p) for p in model.parameters() if p.dim() > 1)
    old = copy.deepcopy(model.state_dict())
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert all(not torch.equal(p, old[name]) for name, p in model.named_parameters() if p.dim() > 1)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon", "rmsprop"])
def test_optimizers_by_name_learn(name):
    model = network()
    records = fit(model, batches(), FitSettings(epochs=6, optimizer=name, lr=0.003 if name != "sgd" else 0.1))
    assert records[-1]["loss"] < records[0]["loss"]
