"""Batches: normalised, shuffled, shifted and mirrored as slow loops do it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pictures import images
from secateur import data
from secateur.data.batches import shifted


def test_a_shift_is_a_cut_out_of_the_black_bordered_image() -> None:
    x, border = images(6, side=8), 3
    down, right = torch.tensor([0, 1, 2, 3, 5, 6]), torch.tensor([6, 0, 3, 1, 2, 4])
    found = shifted(x, down, right, border)
    for i in range(6):
        canvas = np.zeros((3, 14, 14), np.uint8)
        canvas[:, 3:11, 3:11] = x[i].numpy()
        assert (found[i].numpy() == canvas[:, down[i] : down[i] + 8, right[i] : right[i] + 8]).all()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_batches_normalise_as_the_textbook_does(channels_last: bool, kind: torch.dtype) -> None:
    x, mean, std = images(10, side=4), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    source = x if kind == torch.uint8 else x.float() / 255
    batches = data.Batches(source, torch.arange(10), batch=4, mean=mean, std=std, channels_last=channels_last)
    before = source.clone()
    found = torch.cat([pair[0] for pair in batches])
    per_colour = [torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (mean, std)]
    wanted = (x.double() / 255 - per_colour[0]) / per_colour[1]
    assert (found - wanted).abs().max() < 1e-5
    assert found.dtype == torch.float32
    assert next(iter(batches))[0].is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    assert len(batches) == 3
    assert torch.equal(source, before)


def test_a_pass_follows_from_seed_and_number_and_shows_every_image_once() -> None:
    def passed(number: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
        augment = data.Augment(crop=2, flip=True)
        return list(data.Batches(images(30), torch.arange(30), batch=7, augment=augment, shuffle=True, seed=seed).epoch(number))

    first, again = passed(1), passed(1)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    assert sorted(torch.cat([y for _, y in first]).tolist()) == list(range(30))
    for other in (passed(2), passed(1, seed=1)):
        assert not torch.equal(first[0][1], other[0][1])


def test_augmented_images_are_shifted_mirrored_originals() -> None:
    x = images(40, colours=1, side=6)
    batches = data.Batches(x, torch.arange(40), batch=40, augment=data.Augment(crop=1, flip=True))
    ((found, labels),) = batches
    mirrored = shifts = 0
    for image, label in zip(found * 255, labels, strict=True):
        canvas = np.zeros((8, 8), np.float32)
        canvas[1:7, 1:7] = x[label, 0].numpy()
        hits = [
            (flip, i, j)
            for flip in (0, 1)
            for i in range(3)
            for j in range(3)
            if np.allclose(canvas[i : i + 6, j : j + 6][:, :: -1 if flip else 1], image[0].numpy(), atol=1e-3)
        ]
        assert len(hits) == 1
        mirrored, shifts = mirrored + hits[0][0], shifts + (hits[0][1:] != (1, 1))
    assert 8 < mirrored < 32
    assert shifts > 25
    assert torch.allclose(torch.cat([pair[0] for pair in batches.plain()]) * 255, x.float(), atol=1e-3)


def test_loaders_drop_the_odd_batch_only_where_one_is_left() -> None:
    loaded = data.loaders(data.digits(), data.BatchSettings(batch=64, holdout=100))
    assert loaded.train.images == 1338 // 64 * 64
    assert loaded.holdout is not None
    assert loaded.holdout.images == 100
    assert loaded.test.images == 359
    assert not loaded.test.shuffle
    assert loaded.test.augment == data.Augment()
    assert len(data.loaders(data.digits(), data.BatchSettings(batch=5000, holdout=0)).train) == 1
