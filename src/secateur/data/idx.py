"""MNIST and Fashion-MNIST from their idx files, plain, gzip or xz.

The idx format: two zero bytes, a type byte (8: unsigned byte), a byte D, D big-endian sizes of 4 bytes, the entries.
"""

from __future__ import annotations

import gzip
import lzma
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.data.dataset import Augment, DataSet, Part

OPENERS: dict[str, Callable[..., IO[Any]]] = {"": open, ".gz": gzip.open, ".xz": lzma.open}
LIMIT_BYTES = 1 << 28  # 60,000 images are 47 MB; a longer stream is no such file, and may be a decompression bomb


def mnist(root: str | Path) -> DataSet:
    """MNIST in `root`, x (N, 1, 28, 28) uint8. LeCun et al., 1998, "Gradient-based learning applied to document recognition".

    The four files may lie in `root`, `root/mnist` or `root/MNIST/raw`. Raises `SecateurError` where one is missing or damaged.
    """
    train, test = _parts(Path(root), "MNIST", ("mnist", "MNIST/raw"))
    return DataSet("mnist", train, test, tuple(str(n) for n in range(10)), (0.1307,), (0.3081,), Augment(crop=2))


def fashion_mnist(root: str | Path) -> DataSet:
    """Fashion-MNIST in `root`, x (N, 1, 28, 28) uint8. Xiao et al., 2017, "Fashion-MNIST: a novel image dataset".

    The four files may lie in `root`, `root/fashion_mnist` or `root/FashionMNIST/raw`. Raises `SecateurError` as `mnist`.
    """
    train, test = _parts(Path(root), "Fashion-MNIST", ("fashion_mnist", "FashionMNIST/raw"))
    names = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
    return DataSet("fashion_mnist", train, test, names, (0.2860,), (0.3530,), Augment(crop=2, flip=True))


def _parts(root: Path, name: str, places: tuple[str, ...]) -> tuple[Part, Part]:
    """(train, test) from the first place under `root` that holds the files; a named subfolder goes before `root` itself."""
    for place in (*(root / p for p in places), root):
        if _file(place, "t10k-images-idx3-ubyte"):
            return _part(place, "train"), _part(place, "t10k")
    found = "no t10k-images-idx3-ubyte, .gz or .xz" if root.is_dir() else "no such folder"
    raise SecateurError(f"{name} in {root}", found, "name the folder that holds the four idx files")


def _part(folder: Path, part: str) -> Part:
    x, y = read(folder, f"{part}-images-idx3-ubyte"), read(folder, f"{part}-labels-idx1-ubyte")
    if x.dim() != 3 or y.dim() != 1 or len(x) != len(y):
        found = f"images of shape {tuple(x.shape)} and labels of shape {tuple(y.shape)}"
        raise SecateurError(f"the idx files in {folder}", found, "copy the four files of one data set")
    return x[:, None], y.long()


def _file(folder: Path, name: str) -> Path | None:
    candidates = [folder / (name + suffix) for suffix in OPENERS]
    return next((path for path in candidates if path.is_file()), None)


def read(folder: Path, name: str) -> Tensor:
    """The uint8 tensor in the idx file `name`, `name`.gz or `name`.xz of `folder`."""
    path = _file(folder, name)
    if path is None:
        do = "copy the four files of one data set"
        raise SecateurError(f"the idx file {folder / name}", "no such file, nor .gz or .xz", do)
    asked, do = f"the idx file {path}", "copy the file again"
    try:
        with OPENERS[path.suffix if path.suffix in OPENERS else ""](path, "rb") as file:
            body = file.read(LIMIT_BYTES)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise SecateurError(asked, f"an unreadable file ({error})", do) from error
    if len(body) < 4 or body[:3] != b"\0\0\x08" or len(body) < 4 + 4 * body[3]:
        raise SecateurError(asked, "no idx header of unsigned bytes", do)
    start = 4 + 4 * body[3]
    shape = struct.unpack(f">{body[3]}I", body[4:start])
    if len(body) - start != int(np.prod(shape, dtype=object)):
        raise SecateurError(asked, f"{len(body) - start} bytes where the header says {' x '.join(map(str, shape))}", do)
    return torch.from_numpy(np.frombuffer(body, np.uint8, offset=start).reshape(shape).copy())
