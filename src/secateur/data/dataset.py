"""What a data set is: images and labels in memory, cut into training, holdout and test.

Shape legend: N images, C colours, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from secateur.core.errors import SecateurError, nearest

Part = tuple[Tensor, Tensor]
"""Images (N, C, H, W), uint8 in 0..255 or float taken as it is, and labels (N,), int64."""

NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0,), (1.0,)),
}
"""Mean and standard deviation per colour that published networks were trained with, on the scale 0..1."""


@dataclass(frozen=True)
class Augment:
    """What training images go through: a shift by up to `crop` pixels with black borders, and a mirroring of every second."""

    crop: int = 0
    flip: bool = False


@dataclass(frozen=True, eq=False)
class DataSet:
    """Images with labels, the training part and the test part apart.

    `mean` and `std` are per colour on the scale 0..1 (uint8 images are divided by 255 first; float images are not).
    """

    name: str
    train: Part
    test: Part
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment = field(default_factory=Augment)

    def __post_init__(self) -> None:
        for part, (x, y) in (("train", self.train), ("test", self.test)):
            if len(x) != len(y) or not len(x):
                found = f"{len(x)} images and {len(y)} labels in its {part} part"
                raise SecateurError(f"the data set {self.name!r}", found, "give as many labels as images, and at least one")
            if len(y) and not 0 <= int(y.min()) <= int(y.max()) < len(self.classes):
                found = f"label {int(y.max())} for {len(self.classes)} classes in its {part} part"
                raise SecateurError(f"the data set {self.name!r}", found, "number the labels from 0 to classes - 1")

    def splits(self, holdout: int = 5000, seed: int = 0) -> tuple[Part, Part]:
        """(training, holdout), both cut from the training part; the test part is never touched.

        The same `seed` holds out the same images. Order inside each part is that of the data set.
        Raises `SecateurError` where `holdout` leaves nothing to train on.
        """
        x, y = self.train
        if not 0 <= holdout < len(x):
            found = f"{len(x)} training images"
            raise SecateurError(f"a holdout of {holdout} images", found, f"hold out 0 to {len(x) - 1}")
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        held, rest = order[:holdout].sort().values, order[holdout:].sort().values
        return (x[rest], y[rest]), (x[held], y[held])

    def normalised(self, how: str | tuple[Sequence[float], Sequence[float]]) -> DataSet:
        """The same images with another `mean` and `std`: a name of `NORMALISATIONS`, or the two themselves.

        Pretrained weights expect the normalisation they were trained with.
        """
        if isinstance(how, str):
            if how not in NORMALISATIONS:
                raise SecateurError(f"the normalisation {how!r}", "no such name", nearest(how, list(NORMALISATIONS)))
            how = NORMALISATIONS[how]
        mean, std = (tuple(float(v) for v in values) for values in how)
        colours = self.train[0].shape[1]
        if len(mean) not in (1, colours) or len(std) != len(mean) or min(std) <= 0:
            found = f"{len(mean)} means and {len(std)} deviations for {colours} colours"
            raise SecateurError("a normalisation", found, "give one number per colour, deviations above 0")
        return replace(self, mean=mean, std=std)
