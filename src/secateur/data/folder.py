"""Images in one folder per class, read into memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from secateur.core.errors import SecateurError
from secateur.data.dataset import NORMALISATIONS, Augment, DataSet, Part

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
TRAIN_NAMES, TEST_NAMES = ("train", "training"), ("test", "val", "valid", "validation")


def image_folder(root: str | Path, *, size: int = 224, test_every: int = 5) -> DataSet:
    """Images under `root` as x (N, 3, size, size) uint8: the shorter side resized to `size`, the centre cut out.

    `root/train/CLASS/*.png` with `root/test` or `root/val` beside it; or `root/CLASS/*.png`, of which every `test_every`-th
    image in order of name is a test image. All images lie in memory: 3 * size * size bytes each.
    Raises `SecateurError` for a folder without classes, or an image that cannot be read.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise SecateurError(f"the image folder {folder}", "no such folder", "name a folder with one subfolder per class")
    if size < 1 or test_every < 2:
        found = f"size {size}, test_every {test_every}"
        raise SecateurError("an image folder", found, "use a size above 0 and test_every above 1")
    train_root = next((folder / name for name in TRAIN_NAMES if (folder / name).is_dir()), folder)
    test_root = next((folder / name for name in TEST_NAMES if (folder / name).is_dir()), None)
    classes = _classes(train_root if test_root else folder)
    if test_root:
        train, test = _read(train_root, classes, size), _read(test_root, classes, size)
    else:
        x, y = _read(train_root, classes, size)
        held = torch.arange(len(x)) % test_every == test_every - 1
        train, test = (x[~held], y[~held]), (x[held], y[held])
    return DataSet(folder.name, train, test, classes, *NORMALISATIONS["imagenet"], Augment(crop=size // 8, flip=True))


def _classes(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(place.name for place in folder.iterdir() if place.is_dir() and not place.name.startswith(".")))
    if len(names) < 2:
        found = f"{len(names)} subfolders" if names else "no subfolders"
        raise SecateurError(f"the image folder {folder}", found, "put the images of each class into a subfolder of its own")
    return names


def _read(folder: Path, classes: tuple[str, ...], size: int) -> Part:
    images, labels = [], []
    for label, name in enumerate(classes):
        place = folder / name
        paths = sorted(path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES) if place.is_dir() else []
        images += [_image(path, size) for path in paths]
        labels += [label] * len(paths)
    if not images:
        do = f"use files that end in {', '.join(SUFFIXES)}"
        raise SecateurError(f"the image folder {folder}", "no image in any class", do)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def _image(path: Path, size: int) -> np.ndarray:
    """One picture as (size, size, 3) uint8."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            fitted = ImageOps.fit(picture.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
            return np.asarray(fitted)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SecateurError(f"the image {path}", f"an unreadable picture ({error})", "delete it or copy it again") from error
