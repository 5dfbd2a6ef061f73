"""CIFAR-10 from the folder its authors publish, or from lossless WebP sheets.

Krizhevsky, 2009, "Learning Multiple Layers of Features from Tiny Images": 50,000 + 10,000 colour images of 32 x 32.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.data import pickles
from secateur.data.dataset import NORMALISATIONS, Augment, DataSet, Part

TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST = "test_batch"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32


def cifar10(root: str | Path) -> DataSet:
    """The data set in `root`, x (N, 3, 32, 32) uint8, in the original order.

    `root` holds, itself or in a subfolder `cifar-10-batches-py`, `data_batch_1` ... `test_batch` (pickles, read without
    running them); or, itself or in a subfolder `cifar10`, `data_batch_1.webp` ... and `meta.json.xz`: one lossless WebP
    sheet per batch, rows of images in order, labels as a text of digits in the JSON.
    Raises `SecateurError` where neither is there, or a file is damaged.
    """
    folder = Path(root)
    for place in (folder, folder / "cifar-10-batches-py", folder / "cifar10"):
        if (place / TEST).is_file():
            return _assembled(partial(_pickled, place))
        if (place / f"{TEST}.webp").is_file():
            return _assembled(partial(_sheet, place, _labels(place / "meta.json.xz")))
    found = "no test_batch and no test_batch.webp" if folder.is_dir() else "no such folder"
    do = "name the folder that holds cifar-10-batches-py (unpacked from cifar-10-python.tar.gz) or the WebP sheets"
    raise SecateurError(f"CIFAR-10 in {folder}", found, do)


def _assembled(read: Callable[[str], Part]) -> DataSet:
    with ThreadPoolExecutor() as pool:  # decoding a sheet lets other threads run
        *train, test = pool.map(read, (*TRAIN, TEST))
    together = torch.cat([x for x, _ in train]), torch.cat([y for _, y in train])
    return DataSet("cifar10", together, test, CLASSES, *NORMALISATIONS["cifar10"], Augment(crop=4, flip=True))


def _pickled(folder: Path, name: str) -> Part:
    """Images and labels of one original batch file."""
    path = folder / name
    batch = pickles.read(path)
    data, labels = batch.get("data"), batch.get("labels")
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3 * SIDE * SIDE or not isinstance(labels, list):
        raise SecateurError(f"the CIFAR batch {path}", "no images of 32 x 32 with labels", "use the original python batches")
    return torch.from_numpy(data.reshape(-1, 3, SIDE, SIDE).copy()), _int64(labels, path)


def _sheet(folder: Path, labels: dict[str, str], name: str) -> Part:
    """Images and labels of one WebP sheet: rows of images, row-major."""
    from PIL import Image

    path = folder / f"{name}.webp"
    try:
        with Image.open(path) as picture:
            sheet = np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise SecateurError(f"the CIFAR sheet {path}", f"an unreadable picture ({error})", "copy the file again") from error
    rows, columns = sheet.shape[0] // SIDE, sheet.shape[1] // SIDE
    y = _int64(list(labels.get(name, "")), path)
    if sheet.shape[:2] != (rows * SIDE, columns * SIDE) or rows * columns != len(y):
        found = f"{sheet.shape[1]} x {sheet.shape[0]} pixels for {len(y)} labels"
        raise SecateurError(f"the CIFAR sheet {path}", found, "use a sheet of 32 x 32 images, one per label")
    tiles = sheet.reshape(rows, SIDE, columns, SIDE, 3).transpose(0, 2, 4, 1, 3)  # (rows, columns, 3, 32, 32)
    return torch.from_numpy(np.ascontiguousarray(tiles).reshape(-1, 3, SIDE, SIDE)), y


def _labels(path: Path) -> dict[str, str]:
    """Batch name to a text with one digit per image."""
    try:
        with lzma.open(path) as file:
            meta = json.loads(file.read(1 << 26))
        return {name: entry["labels"] for name, entry in meta.items() if isinstance(entry, dict)}
    except (OSError, EOFError, ValueError, KeyError, AttributeError, lzma.LZMAError) as error:
        raise SecateurError(f"the labels {path}", f"an unreadable file ({error})", "copy the file again") from error


def _int64(labels: list, path: Path) -> Tensor:  # type: ignore[type-arg]
    try:
        return torch.tensor([int(label) for label in labels], dtype=torch.int64)
    except (TypeError, ValueError) as error:
        raise SecateurError(f"the labels of {path}", "something else than digits", "copy the file again") from error
