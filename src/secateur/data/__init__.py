"""Data sets in memory and the batches cut from them."""

from __future__ import annotations

from pathlib import Path

from secateur.core.errors import SecateurError, nearest
from secateur.data.batches import Batches, BatchSettings, Loaders, loaders
from secateur.data.cifar10 import cifar10
from secateur.data.dataset import NORMALISATIONS, Augment, DataSet
from secateur.data.digits import digits
from secateur.data.folder import image_folder
from secateur.data.idx import fashion_mnist, mnist

__all__ = [
    "NAMES",
    "NORMALISATIONS",
    "Augment",
    "BatchSettings",
    "Batches",
    "DataSet",
    "Loaders",
    "cifar10",
    "digits",
    "fashion_mnist",
    "image_folder",
    "loaders",
    "mnist",
    "named",
]

_IN_FOLDER = {"cifar10": cifar10, "fashion_mnist": fashion_mnist, "image_folder": image_folder, "mnist": mnist}
NAMES = ("digits", *_IN_FOLDER)


def named(name: str, folder: str | Path | None = None) -> DataSet:
    """The data set of that name, read from `folder`; "digits" needs none.

    Raises `SecateurError` for an unknown name, and for a missing folder.

    >>> len(named("digits").test[0])
    359
    """
    if name == "digits":
        return digits()
    if name not in _IN_FOLDER:
        raise SecateurError(f"the data set {name!r}", "no such name", nearest(name, list(NAMES)))
    if folder is None:
        raise SecateurError(f"the data set {name!r}", "no folder to read it from", "give --data FOLDER or set SECATEUR_DATA")
    return _IN_FOLDER[name](folder)
