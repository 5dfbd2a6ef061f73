"""Data sets: their parts, those of the package, and what is no data set."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pictures import images
from secateur import data
from secateur.core.errors import SecateurError


def test_digits_parts_are_apart_and_whole() -> None:
    found = data.digits()
    assert [tuple(part[0].shape) for part in (found.train, found.test)] == [(1438, 1, 8, 8), (359, 1, 8, 8)]
    assert int(found.train[0].max()) == 240
    assert sorted(set(found.test[1].tolist())) == list(range(10))
    seen = found.train[0].double() / 255
    assert abs(float(seen.mean()) - found.mean[0]) < 1e-3
    assert abs(float(seen.std()) - found.std[0]) < 1e-3


def test_holdout_comes_from_training_alone_and_from_the_seed_alone() -> None:
    train_part, test_part = (images(50), torch.arange(50)), (images(9, seed=1), torch.arange(9))
    found = data.DataSet("x", train_part, test_part, tuple("c" * 50), (0.0,), (1.0,))
    (_, train), (x, held) = found.splits(20, seed=3)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(50))
    assert len(held) == 20
    assert torch.equal(x, found.train[0][held])
    assert torch.equal(found.splits(20, seed=3)[1][1], held)
    assert not torch.equal(found.splits(20, seed=4)[1][1], held)
    for wrong in (50, -1):
        with pytest.raises(SecateurError, match="holdout"):
            found.splits(wrong)


@pytest.mark.parametrize("name", ["cifar10", "mnist", "fashion_mnist", "image_folder"])
def test_a_missing_folder_is_said(tmp_path: Path, name: str) -> None:
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(SecateurError, match="found no"):
            data.named(name, folder)
    with pytest.raises(SecateurError, match="no folder"):
        data.named(name)


def test_a_wrong_name_gets_the_nearest_spelling() -> None:
    with pytest.raises(SecateurError, match="did you mean 'cifar10'"):
        data.named("cifar-10")
    with pytest.raises(SecateurError, match="did you mean 'imagenet'"):
        data.digits().normalised("imagnet")


@pytest.mark.parametrize(("labels", "classes"), [([0, 1, 5], "ab"), ([0, -1, 1], "ab"), ([0, 1], "ab")])
def test_a_data_set_that_contradicts_itself_is_refused(labels: list[int], classes: str) -> None:
    x, y = images(3), torch.tensor(labels)
    with pytest.raises(SecateurError, match="the data set 'mine'"):
        data.DataSet("mine", (x, y), (x, y), tuple(classes), (0.0,), (1.0,))
