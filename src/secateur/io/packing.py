"""A sparse model as three rows of bytes, small enough that names and batch norms do not eat what the zeros save.

* `secateur.index`: JSON, deflated: the plan, names that share a tensor, the length of every mask's code, and the groups of
  tensors: `{"dtype": text, "planes": [bytes of each plane], "tensors": {name: shape}}`. Every name is written in full once or
  twice, and repeats deflate to a few bytes.
* `secateur.masks`: codes of the masks one after the other, as they are: they stand near their entropy.
* `secateur.values`: the planes of all groups. A group's plane p holds byte p of every entry; the planes of exponents deflate to
  a fraction of their size, and one that does not shrink is stored as it is. Dense tensors and the values that sparse ones keep
  are grouped apart, since their exponents differ. No bit of any value is lost.

Reading inflates nothing beyond `GROWTH` times the index and, of the values, what the model of the reader has room for.

Shape legend: E entries of a group, B bytes of one entry.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.core.codec import to_json
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.core.strict import array, bad, fields, integer, name_of, parse, show, table

INDEX, MASKS, VALUES = "secateur.index", "secateur.masks", "secateur.values"
MOST_INDEX = 100_000_000
"""Bytes of an index before it is deflated."""
GROWTH = 64
"""Times its stored size that an index may have; plans of networks deflate 10 to 20 times, a bomb 1000 times."""
_AGAIN = "copy or download it again"
_WORDS = (
    "bool uint8 int8 uint16 int16 uint32 int32 uint64 int64 float16 bfloat16 float32 float64 complex64 complex128 "
    "float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu"
)
_DTYPES = {word: getattr(torch, word) for word in _WORDS.split()}


@dataclass(frozen=True)
class Group:
    """Tensors of one dtype whose bytes stand together: the shape of each by name, and the stored bytes of each plane (B,)."""

    dtype: torch.dtype
    planes: tuple[int, ...]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def entries(self) -> int:
        """Entries of all its tensors."""
        return sum(prod(shape) for shape in self.shapes.values())


@dataclass(frozen=True)
class Packed:
    """A sparse model as it was read: its plan as JSON, ties, codes of masks by name, and values that are still packed."""

    plan: Any
    aliases: Mapping[str, str]
    codes: Mapping[str, np.ndarray]
    groups: tuple[Group, ...]
    values: np.ndarray


def packed(
    plan: Plan, tensors: Mapping[str, Tensor], aliases: Mapping[str, str], sparse: Container[str], asked: str
) -> dict[str, Tensor]:
    """The three rows of bytes (uint8) that hold `plan`, `tensors` and `aliases`; names in `sparse` are grouped apart.

    Raises `SecateurError` for a dtype that files do not hold, and for a plan too long to be read again.
    """
    codes: dict[str, np.ndarray] = {}
    index: dict[str, Any] = {"plan": to_json(plan, codes), "aliases": dict(sorted(aliases.items()))}
    index["masks"] = {name: len(code) for name, code in codes.items()}
    index["groups"], rows = [], []
    for (word, _), names in _grouped(tensors, sparse).items():
        if word not in _DTYPES:
            raise SecateurError(asked, f"{names[0][:80]!r} of dtype {word}, which files do not hold", "convert it first")
        planes = _planes([tensors[name] for name in names])
        rows += planes
        shapes = {name: list(tensors[name].shape) for name in names}
        index["groups"].append({"dtype": word, "planes": [len(plane) for plane in planes], "tensors": shapes})
    text = json.dumps(index, separators=(",", ":"), allow_nan=False).encode("ascii")
    if len(text) > MOST_INDEX:
        raise SecateurError(asked, f"a plan and names of {len(text):,} bytes", f"files hold at most {MOST_INDEX:,}")
    short = _deflated(text)
    if len(text) > _room(short):  # no bomb, but nobody could tell
        short = _deflated(text, level=0)
    return {
        name: torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        for name, data in (
            (INDEX, short),
            (MASKS, b"".join(code.tobytes() for code in codes.values())),
            (VALUES, b"".join(rows)),
        )
    }


def read(rows: Mapping[str, Tensor]) -> Packed:
    """The inverse, but for the values. Raises `SecateurError` for whatever `packed` does not write."""
    if set(rows) != {INDEX, MASKS, VALUES} or any(row.dtype != torch.uint8 or row.dim() != 1 for row in rows.values()):
        raise bad("a sparse model without its index, masks and values", _AGAIN)
    short = rows[INDEX].numpy().tobytes()
    found = fields(
        parse(_inflated(short, _room(short)), "its index"), {"plan", "aliases", "masks", "groups"}, set(), "an index"
    )
    aliases, masks = table(found["aliases"], "tied tensors"), table(found["masks"], "lengths of masks")
    if not all(isinstance(name, str) for name in aliases.values()):
        raise bad("a table of tied tensors that is none", _AGAIN)
    lengths = [integer(length, 0, rows[MASKS].numel(), "the length of a mask") for length in masks.values()]
    codes = dict(zip(masks, _cut(rows[MASKS].numpy(), lengths, "masks"), strict=True))
    groups = tuple(_group(value, rows[VALUES].numel()) for value in array(found["groups"], "groups of tensors"))
    if len({name for group in groups for name in group.shapes}) < sum(len(group.shapes) for group in groups):
        raise bad("a tensor that stands in two groups", _AGAIN)
    return Packed(found["plan"], aliases, codes, groups, rows[VALUES].numpy())


def unpacked(model: Packed, room: int) -> dict[str, Tensor]:
    """Name to tensor; of those the plan makes sparse, the values that stay (C,).

    Raises `SecateurError` where values are damaged, or would have more than `room` entries in all.
    """
    entries = sum(group.entries for group in model.groups)
    if entries > room:
        raise bad(f"{entries:,} values where the model has room for {room:,}", _AGAIN)
    lengths = [length for group in model.groups for length in group.planes]
    rows = iter(_cut(model.values, lengths, "values"))
    return {name: value for group in model.groups for name, value in _tensors(group, rows)}


def _grouped(tensors: Mapping[str, Tensor], sparse: Container[str]) -> dict[tuple[str, bool], list[str]]:
    groups: dict[tuple[str, bool], list[str]] = {}
    for name, value in tensors.items():
        groups.setdefault((str(value.dtype).removeprefix("torch."), name in sparse), []).append(name)
    return groups


def _planes(tensors: list[Tensor]) -> list[bytes]:
    """Byte p of every entry for p in turn, each deflated where that is shorter."""
    size = tensors[0].element_size()
    flat = [value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy() for value in tensors]
    entries = np.concatenate(flat).reshape(-1, size)  # E, B
    plain = [np.ascontiguousarray(entries[:, place]).tobytes() for place in range(size)]
    return [min(plane, _deflated(plane, strategy=zlib.Z_RLE), key=len) for plane in plain]


def _tensors(group: Group, rows: Iterator[np.ndarray]) -> Iterator[tuple[str, Tensor]]:
    total = group.entries
    entries = np.empty((total, len(group.planes)), dtype=np.uint8)  # E, B
    for place in range(len(group.planes)):
        row = next(rows)
        entries[:, place] = row if len(row) == total else np.frombuffer(_inflated(row.tobytes(), total, total), dtype=np.uint8)
    flat = torch.from_numpy(entries).reshape(-1).view(group.dtype)
    start = 0
    for name, shape in group.shapes.items():
        yield name, flat[start : start + prod(shape)].reshape(shape)
        start += prod(shape)


def _group(value: Any, stored: int) -> Group:
    value = fields(value, {"dtype", "planes", "tensors"}, set(), "a group of tensors")
    word = value["dtype"]
    if type(word) is not str or word not in _DTYPES:
        raise bad(f"tensors of dtype {show(word)}", "upgrade secateur if the file is newer")
    planes = tuple(integer(length, 0, stored, "the length of a plane") for length in array(value["planes"], "planes"))
    if len(planes) != _DTYPES[word].itemsize:
        raise bad(f"{len(planes)} planes of bytes for {word}", _AGAIN)
    shapes = {name_of(name, "a tensor name"): _shape(shape) for name, shape in table(value["tensors"], "tensors").items()}
    return Group(_DTYPES[word], planes, shapes)


def _shape(value: Any) -> tuple[int, ...]:
    shape = tuple(integer(size, 0, 1 << 40, "a shape") for size in array(value, "a shape"))
    if len(shape) > 64 or prod(size for size in shape if size) >= 1 << 62:
        raise bad(f"a tensor of {len(shape)} dims that no memory holds", _AGAIN)
    return shape


def _cut(row: np.ndarray, lengths: list[int], what: str) -> list[np.ndarray]:
    if sum(lengths) != len(row):
        raise bad(f"{len(row):,} bytes of {what} where there should be {sum(lengths):,}", _AGAIN)
    return np.split(row, np.cumsum(lengths)[:-1]) if lengths else []


def _room(short: bytes) -> int:
    return min(GROWTH * len(short), MOST_INDEX)


def _deflated(data: bytes, level: int = 9, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
    # bare: the file has a checksum of its own
    stream = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
    return stream.compress(data) + stream.flush()


def _inflated(data: bytes, most: int, exactly: int | None = None) -> bytes:
    """At most `most` bytes, never one more in memory; `exactly` so many where that is known."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = stream.decompress(data, most + 1)
    except zlib.error as error:
        raise bad("a packed part that does not unpack", _AGAIN) from error
    if len(found) > most:
        raise bad(f"a packed part that grows beyond {most:,} bytes", _AGAIN)
    if not stream.eof or stream.unused_data or exactly not in (None, len(found)):
        raise bad("a packed part of another length than it should have", _AGAIN)
    return found
