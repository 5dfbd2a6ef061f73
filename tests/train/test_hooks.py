"""Hooks of the channel-pruning papers: a run in two halves is the run, and states of other settings are refused."""

from __future__ import annotations

import copy

import pytest
import torch

from hooked import compactors, data, network, smallest
from secateur.core.errors import SecateurError
from secateur.train import FitSettings, GrowingPenalty, GrowingSettings, Slimming, SoftPruning, fit

MADE = {
    "slimming": lambda model, axes: Slimming(model, smallest(axes), strength=0.01),
    "soft": lambda model, axes: SoftPruning(model, smallest(axes, 0.8), every=3),
    "greg1": lambda model, axes: GrowingPenalty(model, smallest(axes), GrowingSettings(grow=0.01, every=2, settle=2)),
    "greg2": lambda model, axes: GrowingPenalty(
        model,
        smallest(axes),
        GrowingSettings(grow=0.01, every=2, pick=0.02),
        axes_plan=axes.plan({axis.name: [0] for axis in axes.free}),
    ),
    "compactors": lambda model, axes: compactors(model, axes, penalty=0.01),
}


@pytest.mark.parametrize("name", MADE)
def test_a_run_in_two_halves_is_the_run(name: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    ends = []
    for stops in ((4,), (2, 4)):
        for epochs in stops:
            model, axes = network()
            method = MADE[name](model, axes)
            settings = FitSettings(4, lr=0.02, schedule="constant")
            batches = data()[:3]

            def stop(record: dict, epochs: int = epochs) -> None:  # type: ignore[type-arg]
                if record["epoch"] == epochs and epochs < 4:
                    raise KeyboardInterrupt

            path = tmp_path / f"{name}{len(stops)}.checkpoint"
            try:
                fit(model, batches, settings, hooks=[method], checkpoint=path, on_epoch=stop)
            except KeyboardInterrupt:
                assert epochs == 2
        ends.append((copy.deepcopy(model.state_dict()), method.plan(), method))
    assert all(torch.equal(ends[0][0][key], ends[1][0][key]) for key in ends[0][0])
    assert ends[0][1] == ends[1][1]
    if name == "compactors":
        for one, two in zip(ends[0][2].compactors, ends[1][2].compactors, strict=True):
            assert torch.equal(one.matrix, two.matrix)


@pytest.mark.parametrize("name", ["slimming", "soft", "greg1", "greg2", "compactors"])
def test_state_of_other_settings_is_refused(name: str) -> None:
    model, axes = network()
    others = {
        "slimming": Slimming(model, smallest(axes), strength=0.5),
        "soft": SoftPruning(model, smallest(axes), every=9),
        "greg1": GrowingPenalty(model, smallest(axes)),
        "greg2": GrowingPenalty(model, smallest(axes)),
        "compactors": compactors(model, axes, more=1),
    }
    with pytest.raises(SecateurError, match="going on with"):
        MADE[name](model, axes).load_state_dict(others[name].state_dict())
