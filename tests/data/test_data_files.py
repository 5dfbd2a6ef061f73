"""Files in the format of MNIST and folders of images, written by hand, packed and damaged."""

from __future__ import annotations

import gzip
import lzma
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from pictures import images
from secateur import data
from secateur.core.errors import SecateurError


def write_idx(path: Path, array: np.ndarray, suffix: str = "") -> None:
    body = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    opener = {"": open, ".gz": gzip.open, ".xz": lzma.open}[suffix]
    with opener(path.with_name(path.name + suffix), "wb") as file:  # type: ignore[operator]
        file.write(body)


def write_mnist(folder: Path, suffix: str = "", count: int = 12) -> torch.Tensor:
    folder.mkdir(parents=True, exist_ok=True)
    x = images(count, colours=1, side=28)[:, 0].numpy()
    for part in ("train", "t10k"):
        write_idx(folder / f"{part}-images-idx3-ubyte", x, suffix)
        write_idx(folder / f"{part}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10, suffix)
    return torch.from_numpy(x)[:, None]


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_idx_files_plain_and_packed(tmp_path: Path, suffix: str) -> None:
    x = write_mnist(tmp_path / "MNIST" / "raw", suffix)
    found = data.mnist(tmp_path)
    assert torch.equal(found.train[0], x)
    assert found.test[1].tolist() == [*range(10), 0, 1]
    write_mnist(tmp_path / "fashion_mnist", suffix, count=3)
    assert len(data.fashion_mnist(tmp_path).train[0]) == 3


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "no idx header"),
        (b"\0\0\x08\x03\0\0", "no idx header"),
        (b"\0\0\x0d\x01\0\0\0\0", "no idx header"),
        (b"\0\0\x08\x01\0\0\0\x09abc", "3 bytes where"),
        (b"\0\0\x08\x04" + b"\xff" * 16, "0 bytes where"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path: Path, body: bytes, told: str) -> None:
    write_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(body)
    with pytest.raises(SecateurError, match=told):
        data.mnist(tmp_path)


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path, ".xz")
    path = tmp_path / "train-images-idx3-ubyte.xz"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(SecateurError, match="unreadable"):
        data.mnist(tmp_path)


def test_image_folder_with_and_without_parts(tmp_path: Path) -> None:
    from PIL import Image

    def write(folder: Path, value: int, size: tuple[int, int] = (20, 10)) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (value, 0, 255)).save(folder / f"{value}.png")

    for value in range(10):
        write(tmp_path / "one" / ("even" if value % 2 == 0 else "odd"), value)
    found = data.image_folder(tmp_path / "one", size=8)
    assert found.classes == ("even", "odd")
    assert len(found.train[0]) == 8
    assert found.test[1].tolist() == [0, 1]
    assert found.test[0].shape == (2, 3, 8, 8)
    assert int(found.test[0][0, 0, 0, 0]) == 8
    for part in ("train", "val"):
        write(tmp_path / "two" / part / "a", 1)
        write(tmp_path / "two" / part / "b", 2)
    found = data.image_folder(tmp_path / "two", size=4)
    assert len(found.train[0]) == len(found.test[0]) == 2
    (tmp_path / "two" / "val" / "a" / "x.jpg").write_bytes(b"no picture")
    with pytest.raises(SecateurError, match=r"x\.jpg"):
        data.image_folder(tmp_path / "two", size=4)
