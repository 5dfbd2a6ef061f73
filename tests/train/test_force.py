"""Force regularisation against the sum over pairs, written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from secateur import SecateurError
from secateur.train import FitSettings, Force, fit
from secateur.train.force import pulls


def slow(filters: np.ndarray, law: str) -> np.ndarray:
    out = np.zeros_like(filters)
    unit = filters / np.linalg.norm(filters, axis=1, keepdims=True)
    for i in range(len(filters)):
        for j in range(len(filters)):
            force = unit[j] - unit[i]
            if i == j:
                continue
            force = force if law == "l2" else force / np.linalg.norm(force)
            out[i] += np.linalg.norm(filters[i]) * (force - force @ unit[i] * unit[i])
    return out


@pytest.mark.parametrize("law", ["l1", "l2"])
def test_the_closed_form_is_the_sum_over_pairs(law):
    filters = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    found = pulls(filters, law).double().numpy()
    assert np.abs(found - slow(filters.double().numpy(), law)).max() < 1e-4
    assert np.abs((found * filters.numpy()).sum(1)).max() < 1e-4, "lengths are left alone"
    filters[2] = 0
    assert not pulls(filters, law)[2].any()
    assert pulls(filters, law).isfinite().all()
    filters[3] = filters[4]
    assert pulls(filters, law).isfinite().all()


@pytest.mark.parametrize("law", ["l1", "l2"])
def test_filters_end_in_fewer_directions(law):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    hook = Force(model, 0.2 if law == "l2" else 0.3, law=law, every=2)
    values = torch.linalg.svdvals(model[2].weight.detach().flatten(1))
    data = [(torch.randn(4, 3, 6, 6), torch.randint(0, 8, (4,))) for _ in range(20)]
    fit(model, data, FitSettings(epochs=1, lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0), hooks=[hook])
    after = torch.linalg.svdvals(model[2].weight.detach().flatten(1))
    assert after[1:].square().sum() / after.square().sum() < 0.8 * values[1:].square().sum() / values.square().sum()
    assert hook.step == 20
    again = Force(model)
    again.load_state_dict(hook.state_dict())
    assert again.step == 20
    assert hook.loss() == 0
    assert hook.plan({"rank": 2}).apply(model)(data[0][0]).shape == (4, 8)


@pytest.mark.parametrize(
    ("changes", "words"), [({"strength": -1}, "strength"), ({"law": "l3"}, "law"), ({"every": 0}, "steps")]
)
def test_what_makes_no_sense_is_one_sentence(changes, words):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    with pytest.raises(SecateurError, match=words):
        Force(model, **changes)
