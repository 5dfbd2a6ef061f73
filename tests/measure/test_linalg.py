"""Truncation, energy ranks and polar factors against numpy's full singular value decomposition in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secateur.linalg import energy_rank, follow, kept_mask, newton_schulz, polar, stack, truncate, unstack

SIDES = [(3, 5), (16, 144), (32, 32), (64, 576)]


def decaying(batch: int, rows: int, columns: int, *, fall: float = 2.0) -> torch.Tensor:
    """Matrices whose singular values fall by powers of ten, as trained weights' do."""
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    left = torch.linalg.qr(torch.randn(batch, rows, rows, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(batch, columns, rows, generator=generator, dtype=torch.float64))[0]
    values = torch.logspace(0, -fall, rows, dtype=torch.float64)
    return (left * values @ right.mT).float()


def slow_rank(values: np.ndarray, discarded: float) -> int:
    """The smallest k whose tail holds at most the share, by trying each."""
    for k in range(len(values) + 1):
        if sum(float(v) ** 2 for v in values[k:]) <= discarded * sum(float(v) ** 2 for v in values):
            return k
    raise AssertionError


@pytest.mark.parametrize("discarded", [0.3, 0.1, 0.02, 0.005])
@pytest.mark.parametrize("sides", SIDES)
def test_truncation_is_that_of_the_full_decomposition(sides, discarded):
    matrices = decaying(3, *sides)
    kept, factor, _ = truncate(matrices, discarded)
    ranks = energy_rank(matrices, discarded)
    for one, found, direction, rank in zip(matrices, kept, factor, ranks, strict=True):
        u, s, v = np.linalg.svd(one.double().numpy(), full_matrices=False)
        k = slow_rank(s, discarded)
        assert int(rank) == k, "the energy rank is that of brute force"
        assert np.abs((u[:, :k] * s[:k]) @ v[:k] - found.numpy()).max() < 2e-6
        assert np.abs(u[:, :k] @ v[:k] - direction.numpy()).max() < 2e-5
        gone = 1 - float(found.double().square().sum() / one.double().square().sum())
        assert gone <= discarded + 1e-6
        assert float((direction * found).sum()) == pytest.approx(s[:k].sum(), rel=1e-5), "<P, W> is the nuclear norm"


def test_no_discarded_energy_leaves_matrices_untouched_bit_for_bit():
    matrices = decaying(2, 8, 20)
    kept, factor, _ = truncate(matrices, 0.0)
    assert torch.equal(kept, matrices)
    assert (torch.linalg.svdvals(factor) - 1).abs().max() < 1e-3


def test_ranks_of_equal_values_zeros_and_single_numbers():
    assert energy_rank(torch.eye(10)[None], 0.25).tolist() == [8]
    assert energy_rank(torch.zeros(1, 3, 4), 0.02).tolist() == [0]
    assert energy_rank(torch.full((1, 1, 1), 2.0), 0.9).tolist() == [1]
    for discarded in (0.0, 0.1):
        kept, factor, _ = truncate(torch.zeros(2, 3, 4), discarded)
        assert not kept.any()
        assert not factor.any()
    assert kept_mask(torch.tensor([[1.0, 1.0, 2.0]]), 0.25).tolist() == [[False, True, True]]


@pytest.mark.parametrize("sides", [*SIDES, (144, 16)])
@pytest.mark.parametrize("function", [polar, newton_schulz])
def test_polar_factors_converge(function, sides):
    rows, columns = sorted(sides)
    matrices = decaying(2, rows, columns)
    matrices = matrices.mT if sides[0] > sides[1] else matrices
    factor = function(matrices)
    for one, found in zip(matrices, factor, strict=True):
        u, _, v = np.linalg.svd(one.double().numpy(), full_matrices=False)
        assert np.linalg.norm(u @ v - found.double().numpy(), 2) < 1e-3


def test_newton_schulz_keeps_a_null_space_small_and_is_guarded():
    torch.manual_seed(0)
    low = torch.randn(1, 64, 20) @ torch.randn(1, 20, 300)
    values = torch.linalg.svdvals(newton_schulz(low)[0])
    assert (values[:20] - 1).abs().max() < 1e-3
    assert values[20:].max() < 1e-3
    wild = torch.randn(3, 4, 6)
    wild[1, 0, 0] = float("inf")
    wild[2] = 0
    found = newton_schulz(wild)
    assert found[0].any()
    assert not found[1:].any()


def test_bfloat16_and_autocast_compute_in_float32():
    matrices = decaying(2, 16, 40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = truncate(matrices, 0.02)
        pushed = newton_schulz(matrices)
    for one, two in zip(inside[:2], truncate(matrices, 0.02)[:2], strict=True):
        assert torch.equal(one, two)
    assert torch.equal(pushed, newton_schulz(matrices))
    rough = truncate(matrices.bfloat16(), 0.02)[0]
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - truncate(matrices, 0.02)[0]).abs().max() < 1e-2


def test_stacks_hold_what_they_were_given():
    given = {"a": torch.randn(1, 3, 5), "b": torch.randn(2, 5, 3), "c": torch.randn(1, 4, 4)}
    stacks = stack(given)
    assert [tuple(group.matrices.shape) for group in stacks] == [(3, 3, 5), (1, 4, 4)]
    again = {name: value for group in stacks for name, value in unstack(group.parts, group.matrices).items()}
    assert all(torch.equal(again[name], value) for name, value in given.items())


def test_matrices_of_one_side_share_a_stack_where_few_zeros_fill_it():
    given = {"a": decaying(2, 6, 20), "b": decaying(1, 6, 15), "c": decaying(1, 6, 7), "d": decaying(1, 6, 15).mT}
    stacks = stack(given)
    assert sorted(tuple(group.matrices.shape) for group in stacks) == [(1, 6, 7), (4, 6, 20)]
    found = {}
    for group in stacks:
        result = truncate(group.matrices, 0.02)
        assert result.polar is not None
        found |= {name: (value,) for name, value in unstack(group.parts, result.kept).items()}
        found |= {name: (*found[name], value) for name, value in unstack(group.parts, result.polar).items()}
    for name, value in given.items():
        alone = truncate(value.mT if name == "d" else value, 0.02)
        for mine, other in zip(found[name], alone[:2], strict=True):
            assert (mine - (other.mT if name == "d" else other)).abs().max() < 1e-5, name


@pytest.mark.parametrize("discarded", [0.1, 0.02])
@pytest.mark.parametrize("sides", [(96, 144), (128, 128)])
def test_following_a_drifting_stack_is_the_full_decomposition(sides, discarded):
    """The steps of training between two truncations are small: the last vectors are where the next truncation starts."""
    matrices, basis, followed = decaying(3, *sides, fall=3.0), None, 0
    matrices = matrices * torch.tensor([1.0, 5.0, 0.1])[:, None, None]
    generator = torch.Generator().manual_seed(4)
    for _ in range(6):
        found = truncate(matrices, discarded, basis=basis)
        followed += basis is not None and follow(matrices, basis, discarded) is not None
        exact = truncate(matrices, discarded)
        scale = matrices.abs().amax()
        assert (found.kept - exact.kept).abs().max() < 2e-5 * scale
        assert (found.polar - exact.polar).abs().max() < 2e-3
        basis = found.basis
        push = torch.randn(matrices.shape, generator=generator)
        size = torch.linalg.matrix_norm(found.kept, keepdim=True) / torch.linalg.matrix_norm(push, keepdim=True)
        matrices = found.kept + 0.01 * push * size
    assert followed == 5, "all but the first"


def test_following_is_refused_where_it_would_be_wrong():
    matrices = decaying(1, 96, 144)
    basis = truncate(matrices, 0.02).basis
    assert basis is not None
    kept = truncate(matrices, 0.02).kept
    assert follow(kept, basis, 0.02) is not None
    assert follow(matrices, basis, 0.0005) is None, "a rank that grew"
    assert follow(torch.eye(96)[None], basis, 0.02) is None, "no gap between what stays and what goes"
    other = decaying(1, 96, 160)[:, :, :144]
    assert follow(other, basis, 0.02) is None
    assert (truncate(other, 0.02, basis=basis).kept - truncate(other, 0.02).kept).abs().max() < 1e-5


def test_following_sees_energy_outside_and_directions_that_are_off():
    """Each of the two alone: an exact basis with much energy outside, and a basis that is off with little outside."""
    axes = torch.eye(96)
    outside = torch.diag(torch.tensor([1.0] * 4 + [0.2] * 92))[None]
    assert follow(outside, axes[None, :, :4], 0.02) is None
    assert follow(outside, axes[None, :, :4], 0.6) is not None
    off = torch.diag(torch.tensor([1.0] * 4 + [0.9] + [0.0] * 91))[None]
    turned = torch.stack([axes[0], axes[1], axes[2], (axes[3] + axes[4]) / 2**0.5], 1)[None]
    assert follow(off, turned, 0.3) is None
    assert follow(off, axes[None, :, :4], 0.3) is not None


def test_highest_ranks_and_shrinkage_of_each_matrix():
    matrices = decaying(2, 8, 20, fall=1.0)
    kept = truncate(matrices, 0.0, most=torch.tensor([3, 8])).kept
    assert torch.linalg.matrix_rank(kept, rtol=1e-4).tolist() == [3, 8]
    u, s, v = np.linalg.svd(matrices[1].double().numpy(), full_matrices=False)
    found = truncate(matrices, 0.0, shrink=torch.tensor([0.0, 0.3]))
    assert np.abs((u * np.maximum(s - 0.3, 0)) @ v - found.kept[1].numpy()).max() < 1e-5
    assert np.abs((u * (s > 0.3)) @ v - found.polar[1].numpy()).max() < 1e-4
    assert (found.kept[0] - matrices[0]).abs().max() < 1e-5
