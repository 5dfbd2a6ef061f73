"""Truncation by the compiled kernels against numpy's full singular value decomposition in float64, by every instruction set."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from engine_networks import forced
from secateur import TRP
from secateur.native import library
from secateur.native.lowrank import FOLLOWED, LONGEST, Matrices, matrices_of, truncate_all
from secateur.surgery import fold, unfold
from secateur.train.trp import kernels

MISSING = library.missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING or "the kernels are there")
SINGLE = [path for path in (library.usable() if not MISSING else ()) if library.plain(path) == path]
"""Instruction sets with float32 kernels of their own."""


@pytest.fixture(params=SINGLE)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each instruction set this CPU has, forced as a user would force it."""
    with forced(request.param, monkeypatch) as isa:
        yield isa


def decaying(shape: tuple[int, ...], form: str, *, fall: float = 2.0, seed: int = 0) -> Tensor:
    """A weight whose singular values fall by powers of ten, as trained ones' do."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    left, values, right = torch.linalg.svd(unfold(drawn, form), full_matrices=False)
    values = values.amax() * torch.logspace(0, -fall, values.shape[-1], dtype=torch.float64)
    return fold((left * values) @ right, drawn.shape, form).float().contiguous()


def cut(
    weight: Tensor, form: str, discarded: float, *, most: int | None = None, matrices: Matrices | None = None, threads: int = 1
):
    """(what is kept, its polar factor, whether the kernels left it), `weight` itself unchanged."""
    matrices = matrices or matrices_of(weight, partial(unfold, format=form))
    assert matrices is not None
    kept, push = weight.clone(memory_format=torch.preserve_format), torch.full_like(weight, torch.nan)
    left = truncate_all({"it": (kept, push, matrices)}, discarded, {} if most is None else {"it": most}, 1)
    return kept, push, bool(left)


def exact(weight: Tensor, form: str, discarded: float, most: int = 10**9) -> tuple[np.ndarray, np.ndarray, bool]:
    """The same by brute force, and whether rounding could move a rank."""
    kept, push, near = [], [], False
    for one in unfold(weight, form).double().numpy():
        u, s, v = np.linalg.svd(one, full_matrices=False)
        tails = np.append(np.cumsum(s[::-1] ** 2)[::-1], 0) / max((s**2).sum(), 1e-300)
        k = int(np.argmax(tails <= discarded))
        near |= bool(np.abs(tails - discarded).min() < 1e-5)
        k = min(k, most)
        kept.append((u[:, :k] * s[:k]) @ v[:k])
        push.append(u[:, :k] @ v[:k])
    return np.stack(kept), np.stack(push), near


FORMS = st.sampled_from(["channel", "spatial", "decouple"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    form=FORMS,
    outputs=st.integers(1, 40),
    inputs=st.integers(1, 40),
    kernel=st.sampled_from([(1, 1), (3, 3), (1, 5), (2, 3)]),
    discarded=st.sampled_from([0.3, 0.05, 0.01]),
    last=st.booleans(),
    seed=st.integers(0, 5),
)
def test_any_weight_is_cut_as_by_the_full_decomposition(path, form, outputs, inputs, kernel, discarded, last, seed):
    weight = decaying((outputs, inputs, *kernel), form, seed=seed)
    weight = weight.contiguous(memory_format=torch.channels_last) if last else weight
    kept, push, left = cut(weight, form, discarded)
    assert not left
    wanted, direction, near = exact(weight, form, discarded)
    if near:
        return
    size = float(weight.abs().max())
    assert np.abs(unfold(kept, form).numpy() - wanted).max() < 3e-6 * max(size, 1)
    assert np.abs(unfold(push, form).numpy() - direction).max() < 5e-5
    assert kept.stride() == weight.stride()


@pytest.mark.parametrize("rows", [16, 64, 96, LONGEST])
def test_larger_ones_and_a_highest_rank(path, rows):
    weight = decaying((rows, rows, 3, 3), "channel", fall=1.0)
    for most in (None, 5, rows):
        kept, push, left = cut(weight, "channel", 0.02, most=most)
        wanted, direction, near = exact(weight, "channel", 0.02, most or rows)
        assert not left
        assert not near
        assert np.abs(unfold(kept, "channel").numpy() - wanted).max() < 3e-6 * float(weight.abs().max())
        assert np.abs(unfold(push, "channel").numpy() - direction).max() < 5e-5


def test_following_a_drifting_weight_is_the_full_decomposition(path):
    """The steps of training between two truncations are small: the last vectors are where the next truncation starts."""
    form, followed = "spatial", 0
    weight = decaying((40, 35, 3, 3), form, fall=3.0)
    matrices = matrices_of(weight, partial(unfold, format=form))
    assert FOLLOWED[0] <= matrices.rows.shape[1]
    generator = torch.Generator().manual_seed(4)
    for _ in range(6):
        before = matrices.followed
        kept, push, left = cut(weight, form, 0.02, matrices=matrices)
        wanted, direction, _ = exact(weight, form, 0.02)
        assert not left
        assert np.abs(unfold(kept, form).numpy() - wanted).max() < 2e-5 * float(weight.abs().max())
        assert np.abs(unfold(push, form).numpy() - direction).max() < 2e-3
        followed += before > 0
        drift = torch.randn(weight.shape, generator=generator)
        weight = kept + 0.01 * drift * kept.norm() / drift.norm()
    assert followed == 5, "all but the first"


def test_what_cannot_be_followed_is_left_untouched_or_cut_from_scratch(path):
    for inputs in (35, 50):  # 105 rows, which are cut all the same, and 150, which are too many
        first, second = (decaying((60, inputs, 3, 3), "spatial", fall=3.0, seed=seed) for seed in (0, 1))
        matrices = matrices_of(first, partial(unfold, format="spatial"))
        wrong = torch.linalg.svd(unfold(first, "spatial")[0], full_matrices=False)[0][:, -20:]
        matrices.basis[:20], matrices.followed = wrong.mT, 20
        kept, _, left = cut(second, "spatial", 0.02, matrices=matrices)
        assert left == (3 * inputs > LONGEST)
        wanted = unfold(second, "spatial").numpy() if left else exact(second, "spatial", 0.02)[0]
        assert np.abs(unfold(kept, "spatial").numpy() - wanted).max() < 3e-6 * float(second.abs().max())


@pytest.mark.parametrize("how", ["the largest is missing", "one is turned"])
def test_vectors_that_are_not_exact_enough_are_not_followed(path, how):
    weight = decaying((60, 35, 3, 3), "spatial", fall=3.0)
    matrices = matrices_of(weight, partial(unfold, format="spatial"))
    vectors = torch.linalg.svd(unfold(weight, "spatial")[0].double(), full_matrices=False)[0].float()
    start = vectors[:, 1:41] if how == "the largest is missing" else vectors[:, :40].clone()
    if how == "one is turned":
        start[:, 20] = 0.9 * vectors[:, 20] + 0.19**0.5 * vectors[:, 41]
    matrices.basis[:40], matrices.followed = start.mT, 40
    kept, _, left = cut(weight, "spatial", 0.02, matrices=matrices)
    assert not left
    assert np.abs(unfold(kept, "spatial").numpy() - exact(weight, "spatial", 0.02)[0]).max() < 3e-6 * float(weight.abs().max())


def test_zeros_single_numbers_and_numbers_that_are_none(path):
    kept, push, left = cut(torch.zeros(4, 3, 3, 3), "channel", 0.1)
    assert not left
    assert not kept.any()
    assert not push.any()
    kept, push, _ = cut(torch.full((1, 1, 1, 1), -2.0), "channel", 0.9)
    assert kept.item() == -2
    assert push.item() == pytest.approx(-1)
    for bad in (torch.nan, torch.inf):
        weight = decaying((16, 8, 3, 3), "channel")
        weight[3, 2, 1, 1] = bad
        kept, _, left = cut(weight, "channel", 0.1)
        assert left, "nobody can say what is kept"
        assert torch.equal(kept.nan_to_num(), weight.nan_to_num()), "nothing was touched"


def test_threads_change_no_bit(path):
    weights = {str(i): decaying((24, 10 + i, 3, 3), "channel", seed=i) for i in range(12)}
    found = []
    for threads in (1, 2, 3):
        work = {name: weight.clone() for name, weight in weights.items()}
        jobs = {name: (w, torch.empty_like(w), matrices_of(w, partial(unfold, format="channel"))) for name, w in work.items()}
        assert truncate_all(jobs, 0.05, {}, threads) == []
        found.append([*work.values(), *(push for _, push, _ in jobs.values())])
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_weights_that_overlap_have_gaps_or_other_dtypes_are_not_taken():
    as_rows = partial(unfold, format="channel")
    whole = torch.randn(8, 4, 3, 3)
    assert matrices_of(whole, as_rows) is not None
    for other in (whole.double(), whole[:, ::2], whole[:1].expand(8, 4, 3, 3), whole.to("meta"), torch.randn(0, 4, 3, 3)):
        assert matrices_of(other, as_rows) is None


@pytest.mark.parametrize("form", ["channel", "spatial", "decouple"])
def test_the_hook_trains_to_the_same_weights_with_kernels_and_without(form, monkeypatch):
    def trained(with_kernels: bool) -> tuple[list[Tensor], int]:
        monkeypatch.setattr(kernels, "usable", lambda: with_kernels)
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 40, 3), nn.ReLU(), nn.Conv2d(40, 40, 3))
        optimizer = torch.optim.SGD(net.parameters(), 0.02, momentum=0.9)
        method = TRP(net, format=form, energy=0.9, every=2, nuclear=1e-3)
        versions = [parameter._version for parameter in net.parameters()]
        images = torch.randn(4, 3, 12, 12)
        for _ in range(8):
            optimizer.zero_grad()
            net(images).square().mean().backward()
            method.after_backward()
            optimizer.step()
            method.after_step()
        return [parameter.detach().clone() for parameter in net.parameters()], versions[2]

    fast, version = trained(True)
    slow, plain = trained(False)
    assert all(float((a - b).abs().max()) < 1e-4 for a, b in zip(fast, slow, strict=True))
    assert version == plain > 0, "autograd knows of the change"


def test_state_goes_from_kernels_to_tensors_and_back(monkeypatch):
    def hook() -> tuple[nn.Module, TRP]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 30, 3), nn.Conv2d(30, 60, 3), nn.Conv2d(60, 60, 3))
        return net, TRP(net, format="spatial", energy=0.7, every=1)

    net, method = hook()
    method.after_step()
    started = {name for names in method.state_dict()["bases"] for name in names.split("\n")}
    assert started, "some start where they were"
    resumed = []
    for with_kernels in (False, True):
        monkeypatch.setattr(kernels, "usable", lambda with_kernels=with_kernels: with_kernels)
        other, again = hook()
        other.load_state_dict(net.state_dict())
        again.load_state_dict(method.state_dict())
        again.after_step()
        assert {name for names in again.state_dict()["bases"] for name in names.split("\n")} == started
        resumed.append([parameter.detach() for parameter in other.parameters()])
    method.after_step()
    for weights in resumed:
        assert all(float((a.detach() - b).abs().max()) < 1e-5 for a, b in zip(net.parameters(), weights, strict=True))
