"""Zeros inside tensors: which entries of a tensor may be other than zero, as a value that packs into few bytes."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from secateur.core.errors import SecateurError
from secateur.core.sparse_code import code_length, decode, encode
from secateur.core.strict import MEND, array, bad, fields, integer, name_of, show

MASK_PREFIX = "secateur.mask/"
"""Of the names under which an artefact holds the codes of its plan: `secateur.mask/STEP/TENSOR`."""


@dataclass(frozen=True)
class Support:
    """The entries of one tensor that stay: `count` of them, their row-major positions packed in `code`.

    Make one with `support`. Two of equal entries are equal, and it takes about the entropy of the mask in memory, so a plan
    for a large model stays small; positions are unpacked where they are needed.
    """

    tensor: str
    shape: tuple[int, ...]
    count: int
    code: bytes

    @property
    def size(self) -> int:
        """Entries of the tensor."""
        return prod(self.shape)

    def positions(self) -> np.ndarray:
        """Row-major positions (count,) of the entries that stay, ascending. Raises `ValueError` for a damaged code."""
        return decode(self.code, self.count, self.size)

    def mask(self) -> np.ndarray:
        """True where an entry stays, in the tensor's shape."""
        flat = np.zeros(self.size, dtype=bool)
        flat[self.positions()] = True
        return flat.reshape(self.shape)

    def __str__(self) -> str:
        share = self.count / max(self.size, 1)
        return f"{self.count} of {self.size} entries ({100 * share:.2f} %, code {zlib.crc32(self.code):08x})"


@dataclass(frozen=True)
class Mask:
    """A step that sets entries to zero. All its tensors are of the model the step starts from; supports of all are left out."""

    supports: tuple[Support, ...]

    def __post_init__(self) -> None:
        names = [support.tensor for support in self.supports]
        for name in names:
            if names.count(name) > 1:
                raise SecateurError("a mask step", f"tensor {name!r} named twice", "name each tensor once per step")
        sparse = [support for support in self.supports if support.count < support.size]
        object.__setattr__(self, "supports", tuple(sorted(sparse, key=lambda support: support.tensor)))


def support(tensor: str, mask: Any) -> Support:
    """The support of the tensor of that name: where `mask` (an array or tensor of its shape) is not zero.

    >>> print(support("weight", [[1, 0], [0, 0]]))
    1 of 4 entries (25.00 %, code a505df1b)
    """
    entries = np.asarray(mask.detach().cpu() if hasattr(mask, "detach") else mask)
    positions = np.flatnonzero(entries.reshape(-1))
    return Support(tensor, tuple(entries.shape), len(positions), encode(positions, entries.size))


def require_fit(step: Mask, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `SecateurError` unless every support has the shape of its tensor in `shapes`."""
    for one in step.supports:
        if one.tensor not in shapes:
            raise SecateurError(
                f"a mask of {one.tensor!r}", "no tensor of that name", "name a parameter or buffer of the model"
            )
        if tuple(shapes[one.tensor]) != one.shape:
            found = f"shape {list(one.shape)} where the tensor has {list(shapes[one.tensor])}"
            raise SecateurError(f"a mask of {one.tensor!r}", found, "make the mask for the model the plan starts from")


def both(first: Mask, second: Mask) -> Mask:
    """One step equal to the two in turn: entries that stay in both."""
    known = {one.tensor: one for one in first.supports}
    for one in second.supports:
        before = known.get(one.tensor)
        known[one.tensor] = one if before is None else support(one.tensor, before.mask() & one.mask())
    return Mask(tuple(known.values()))


def mask_to_json(step: Mask, number: int, packed: dict[str, np.ndarray] | None) -> dict[str, Any]:
    """`step` as JSON: codes as base64 text, or put into `packed` under `name_in_artefact`, which the reader is then given."""
    rows = []
    for one in step.supports:
        row: dict[str, Any] = {"tensor": one.tensor, "kept": one.count}
        if packed is None:
            row["code"] = base64.b64encode(one.code).decode("ascii")
        else:
            packed[name_in_artefact(number, one.tensor)] = np.frombuffer(one.code, dtype=np.uint8)
        rows.append(row)
    return {"do": "mask", "supports": rows}


def mask_from_json(
    value: Any, number: int, sizes: Mapping[str, tuple[int, ...]], packed: Mapping[str, np.ndarray] | None
) -> Mask:
    """The inverse, for a model of `sizes`. Raises `SecateurError` for whatever `mask_to_json` does not write."""
    where = f"step {number}"
    found: dict[str, Support] = {}
    for row in array(fields(value, {"do", "supports"}, set(), where)["supports"], f"the supports of {where}"):
        row = fields(row, {"tensor", "kept"}, {"code"}, f"a support of {where}")
        name = name_of(row["tensor"], f"a tensor name of {where}")
        at = f"{where}, tensor {show(name)}"
        if name in found or name not in sizes:
            raise bad(f"{at}, which {'stands twice' if name in found else 'the model does not have'}", MEND)
        shape = tuple(sizes[name])
        count = integer(row["kept"], 0, max(prod(shape) - 1, 0), f"kept entries of {at}")
        if len(code := _code(row, at, name_in_artefact(number, name), packed)) != code_length(count, prod(shape)):
            raise bad(f"{at} with a mask of {len(code)} bytes", f"{count} of {prod(shape)} entries take another number")
        found[name] = Support(name, shape, count, code)
        try:
            found[name].positions()
        except (ValueError, MemoryError) as error:
            raise bad(f"{at} with a damaged mask ({error})", MEND) from None
    return Mask(tuple(found.values()))


def name_in_artefact(step: int, tensor: str) -> str:
    """The tensor of an artefact that holds one code."""
    return f"{MASK_PREFIX}{step}/{tensor}"


def _code(row: Mapping[str, Any], at: str, name: str, packed: Mapping[str, np.ndarray] | None) -> bytes:
    if "code" not in row:
        if packed is None or name not in packed:
            raise bad(f"{at} without its mask", "give the whole file that secateur wrote")
        return packed[name].tobytes()
    try:
        if type(row["code"]) is not str:
            raise ValueError
        return base64.b64decode(row["code"], validate=True)
    except (ValueError, binascii.Error):
        raise bad(f"{at} with a code that is no base64 text", MEND) from None


def supports_of(masks: Mapping[str, Any]) -> Iterable[Support]:
    """A support for every named mask."""
    return (support(name, mask) for name, mask in masks.items())
