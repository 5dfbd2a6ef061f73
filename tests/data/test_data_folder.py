"""The data folder, where there is one: its packed data sets against the original bytes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from scripts import DATA
from secateur import data

absent = pytest.mark.skipif(
    not all((DATA / name).is_dir() for name in ("cifar10", "mnist", "fashion_mnist")),
    reason="no data folder: set SECATEUR_DATA",
)


@pytest.mark.data
@absent
def test_the_packed_form_equals_the_original_batches(tmp_path: Path) -> None:
    """The data folder brings its own writer of the original bytes, checked by MD5: an independent reference."""
    spec = importlib.util.spec_from_file_location("datapack", DATA / "datapack.py")
    assert spec
    assert spec.loader
    datapack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(datapack)
    for name, held in zip([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"], [1, 2, 2, 2, 2, "test"], strict=True):
        (tmp_path / name).write_bytes(datapack.cifar_pickle("test_batch" if held == "test" else f"data_batch_{held}"))
    packed, original = data.cifar10(DATA), data.cifar10(tmp_path)
    assert torch.equal(packed.test[0], original.test[0])
    assert torch.equal(packed.test[1], original.test[1])
    assert torch.equal(packed.train[0][:20000], original.train[0][:20000])
    assert torch.equal(packed.train[1][:20000], original.train[1][:20000])
    assert len(packed.train[0]) == 50000


@pytest.mark.data
@absent
def test_both_mnists_of_the_data_folder() -> None:
    for found in (data.mnist(DATA), data.fashion_mnist(DATA)):
        assert found.train[0].shape == (60000, 1, 28, 28)
        assert found.test[0].shape == (10000, 1, 28, 28)
        assert abs(float((found.train[0] / 255).mean()) - found.mean[0]) < 1e-3
