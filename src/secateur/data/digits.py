"""The handwritten digits that come with scikit-learn: 1,797 images of 8 x 8 pixels."""

from __future__ import annotations

import torch

from secateur.data.dataset import Augment, DataSet


def digits() -> DataSet:
    """1,438 training and 359 test images, x (N, 1, 8, 8) uint8; every fifth image is a test image.

    Alpaydin and Kaynak, 1998, "Optical Recognition of Handwritten Digits" (the test part, as scikit-learn embeds it).
    The 17 grey levels 0..16 become 0..240.
    """
    from sklearn.datasets import load_digits

    source = load_digits()
    x = torch.from_numpy(source.images * 15).to(torch.uint8)[:, None]
    y = torch.from_numpy(source.target).long()
    test = torch.arange(len(x)) % 5 == 4
    classes = tuple(str(name) for name in range(10))
    return DataSet("digits", (x[~test], y[~test]), (x[test], y[test]), classes, (0.2878,), (0.3543,), Augment(crop=1))
