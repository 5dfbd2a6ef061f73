"""Laws 1 to 13 of the design over a zoo of small networks and over random ones; law 12 is search's."""

import pytest
import torch
from conftest import SEED

from networks import ZOO, builder
from networks_structures import STRUCTURES
from networks_vision import VISION
from random_networks import random_network
from secateur.graph import trace
from secateur.testing import LAWS, laws, preview_equals_apply, random_plan


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", ZOO)
def test_zoo(name, law):
    make, example = ZOO[name]
    for seed in (0, 1):
        laws(builder(make), example(), seed=seed, only=(law,))


@pytest.mark.parametrize("name", ZOO)
def test_masked_equals_cut_in_float64(name):
    make, example = ZOO[name]
    x = example()
    x = x.double() if x.is_floating_point() else x
    build = builder(make, torch.float64)
    axes = trace(build(), x)
    for seed in range(5):
        preview_equals_apply(build, x, axes, random_plan(axes, seed=seed))


@pytest.mark.parametrize("name", [*VISION, *STRUCTURES])
def test_structures(name):
    make, example = {**VISION, **STRUCTURES}[name]
    for seed in (0, 1):
        laws(builder(make), example(), seed=seed)
    x, build = example().double(), builder(make, torch.float64)
    axes = trace(build(), x)
    assert axes.free_share() > (0.85 if name in STRUCTURES else 0.75)
    for seed in range(2, 5):
        preview_equals_apply(build, x, axes, random_plan(axes, seed=seed))


@pytest.mark.parametrize("number", range(200))
def test_random_networks(number):
    """Each case prints its seed on failure: SECATEUR_SEED=... reruns it."""
    seed = SEED + number
    make, example = random_network(seed)
    try:
        laws(builder(make), example, seed=seed)
    except Exception as error:
        raise AssertionError(f"random network of seed {seed}: {make()}") from error
