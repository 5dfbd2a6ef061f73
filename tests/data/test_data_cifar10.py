"""CIFAR-10 read from pickles and from sheets that are written here, damaged and malicious ones among them."""

from __future__ import annotations

import json
import lzma
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from pictures import images
from secateur import data
from secateur.core.errors import SecateurError


def pickled_cifar(folder: Path, count: int = 6, protocol: int = 2) -> torch.Tensor:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]
    x = images(count * 6)
    for n, name in enumerate(names):
        part = x[n * count : (n + 1) * count].reshape(count, -1).numpy()
        with open(folder / name, "wb") as file:
            labels = [i % 10 for i in range(count)]
            pickle.dump({b"data": part, b"labels": labels, b"filenames": [b"a"] * count}, file, protocol)
    return x


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", [".", "cifar-10-batches-py"])
def test_cifar10_from_pickled_batches(tmp_path: Path, place: str, protocol: int) -> None:
    x = pickled_cifar(tmp_path / place, protocol=protocol)
    found = data.cifar10(tmp_path)
    assert torch.equal(torch.cat([found.train[0], found.test[0]]), x)
    assert found.test[1].tolist() == [0, 1, 2, 3, 4, 5]
    assert found.classes[3] == "cat"


def test_cifar10_from_sheets(tmp_path: Path) -> None:
    from PIL import Image

    x = images(6 * 6)
    meta = {}
    for n, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        sheet = np.zeros((64, 96, 3), np.uint8)
        for i in range(6):
            row, column = divmod(i, 3)
            sheet[row * 32 : row * 32 + 32, column * 32 : column * 32 + 32] = x[n * 6 + i].permute(1, 2, 0).numpy()
        Image.fromarray(sheet).save(tmp_path / f"{name}.webp", lossless=True)
        meta[name] = {"labels": "012345"}
    with lzma.open(tmp_path / "meta.json.xz", "wt") as file:
        json.dump(meta, file)
    found = data.cifar10(tmp_path)
    assert torch.equal(torch.cat([found.train[0], found.test[0]]), x)
    assert found.test[1].tolist() == list(range(6))
    (tmp_path / "test_batch.webp").write_bytes(b"RIFF")
    with pytest.raises(SecateurError, match="unreadable picture"):
        data.cifar10(tmp_path)


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return os.mkdir, (str(self.marker),)


def test_a_pickle_bomb_among_the_batches_does_not_go_off(tmp_path: Path) -> None:
    pickled_cifar(tmp_path)
    marker = tmp_path / "gone off"
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps({b"data": Bomb(marker)}, 2))
    with pytest.raises(SecateurError, match=r"data_batch_3.*mkdir"):
        data.cifar10(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no pickle",
        pickle.dumps([1, 2], 2),
        pickle.dumps({b"labels": [1]}, 2),
        pickle.dumps({b"data": np.zeros((2, 3072), object), b"labels": [1, 2]}, 2),
        pickle.dumps({b"data": np.zeros((2, 3072), np.int8), b"labels": [1, 2]}, 2),
        pickle.dumps({b"data": np.zeros((2, 7), np.uint8), b"labels": [1, 2]}, 2),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": ["cat", "dog"]}, 2),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2]}, 2)[:-900],
    ],
)
def test_damaged_batches_are_refused_by_name(tmp_path: Path, body: bytes) -> None:
    pickled_cifar(tmp_path)
    (tmp_path / "data_batch_2").write_bytes(body)
    with pytest.raises(SecateurError, match="data_batch_2"):
        data.cifar10(tmp_path)
