"""Data sets and batches, against slow loops, files written by hand and the original bytes."""

from __future__ import annotations

import gzip
import importlib.util
import json
import lzma
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from secateur import data
from secateur.core.errors import SecateurError
from secateur.data.batches import shifted

SHARED = Path(os.environ.get("SECATEUR_DATA", Path(__file__).parents[2] / "shared" / "data"))
absent = pytest.mark.skipif(not (SHARED / "cifar10").is_dir(), reason="no data folder: set SECATEUR_DATA")


def images(count: int, *, colours: int = 3, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, colours, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


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


@pytest.mark.data
@absent
def test_the_packed_form_equals_the_original_batches(tmp_path: Path) -> None:
    """The data folder brings its own writer of the original bytes, checked by MD5: an independent reference."""
    spec = importlib.util.spec_from_file_location("datapack", SHARED / "datapack.py")
    assert spec
    assert spec.loader
    datapack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(datapack)
    for name in [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]:
        (tmp_path / name).write_bytes(datapack.cifar_pickle("data_batch_1" if name != "test_batch" else name))
    packed, original = data.cifar10(SHARED), data.cifar10(tmp_path)
    assert torch.equal(packed.test[0], original.test[0])
    assert torch.equal(packed.test[1], original.test[1])
    assert torch.equal(packed.train[0][:10000], original.train[0][:10000])
    assert torch.equal(packed.train[1][:10000], original.train[1][:10000])
    assert len(packed.train[0]) == 50000


@pytest.mark.data
@absent
def test_both_mnists_of_the_data_folder() -> None:
    for found in (data.mnist(SHARED), data.fashion_mnist(SHARED)):
        assert found.train[0].shape == (60000, 1, 28, 28)
        assert found.test[0].shape == (10000, 1, 28, 28)
        assert abs(float((found.train[0] / 255).mean()) - found.mean[0]) < 1e-3
