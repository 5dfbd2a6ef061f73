"""The kernels as Python sees them: where the library is, its structs, and which instruction set runs."""

from __future__ import annotations

import ctypes
import functools
import os
from enum import IntEnum
from pathlib import Path
from typing import Any

from secateur.core.errors import SecateurError, nearest
from secateur.runtime import build

BESIDE = Path(__file__).parent / "_engine.so"
PATHS = ("avx512_bf16", "avx512_vnni", "avx512", "avx2", "portable")


class Kind(IntEnum):
    """Operations of the engine, as in kernels/engine.h."""

    CONV, GATHER, MAXPOOL, AVGPOOL, MEAN, ADD, AFFINE, COPY, IMPORT, EXPORT, DOT, SCALE = range(12)


class Activation(IntEnum):
    """What follows a sum, as in kernels/engine.h."""

    NONE, CLAMP, HARDSWISH, SILU, SIGMOID, HARDSIGMOID, GELU = range(7)


class Plane(ctypes.Structure):
    """The layout of one tensor; kernels/engine.h says what the fields mean."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("channels", "images", "height", "width", "lanes", "row", "image", "channel", "lead", "bytes", "zero")
    ]


class Op(ctypes.Structure):
    """One operation of a program; kernels/engine.h says what the fields mean."""

    _fields_ = [
        ("kind", ctypes.c_int32), ("activation", ctypes.c_int32),
        ("low", ctypes.c_float), ("high", ctypes.c_float),
        ("input", Plane), ("output", Plane),
        ("x", ctypes.c_int64), ("y", ctypes.c_int64), ("other", ctypes.c_int64), ("other_channel", ctypes.c_int64),
        ("words", ctypes.c_void_p), ("start", ctypes.c_void_p), ("rows", ctypes.c_void_p),
        ("bias", ctypes.c_void_p), ("scale", ctypes.c_void_p), ("mask", ctypes.c_void_p),
        ("blocks", ctypes.c_int64), ("block", ctypes.c_int64), ("tile", ctypes.c_int64), ("parts", ctypes.c_int64),
        ("split", ctypes.c_int64),
        ("kernel", ctypes.c_int64 * 2), ("stride", ctypes.c_int64 * 2),
        ("padding", ctypes.c_int64 * 2), ("phases", ctypes.c_int64 * 2),
        ("outer", ctypes.c_int64), ("inner", ctypes.c_int64), ("step", ctypes.c_int64),
        ("after", ctypes.c_int64), ("begin", ctypes.c_void_p),
        ("in_scale", ctypes.c_float), ("out_scale", ctypes.c_float),
        ("other_scale", ctypes.c_float), ("other_shift", ctypes.c_float),
    ]  # fmt: skip


def missing() -> str:
    """What keeps the sparse engine from running, as one sentence; empty where it runs."""
    try:
        _library()
    except build.Unbuilt as error:
        return f"The sparse engine is not available because {error}; models run dense through PyTorch."
    return ""


def library() -> Any:
    """The loaded kernels, on the instruction set SECATEUR_ENGINE_ISA names, or the best of this CPU.

    Raises `SecateurError` where there are none, or the set is unknown here.
    """
    try:
        lib = _library()
    except build.Unbuilt as error:
        raise SecateurError("the sparse engine", f"that {error}", "install a C++ compiler, or run the model dense") from error
    wanted = os.environ.get("SECATEUR_ENGINE_ISA", "")
    if wanted and wanted not in PATHS:
        raise SecateurError(f"SECATEUR_ENGINE_ISA={wanted}", "no such instruction set", nearest(wanted, list(PATHS)))
    if lib.secateur_force(wanted.encode()):
        raise SecateurError(f"SECATEUR_ENGINE_ISA={wanted}", "a CPU without it", f"take one of {', '.join(usable(lib))}")
    return lib


def usable(lib: Any = None) -> tuple[str, ...]:
    """The instruction sets this CPU and this build have, best first. The one in use stays."""
    lib = lib or _library()
    before = lib.secateur_path()
    found = tuple(path for path in PATHS if lib.secateur_force(path.encode()) == 0)
    lib.secateur_force(before)
    return found


def plain(isa: str) -> str:
    """The set whose float32 kernels `isa` runs."""
    return isa.removesuffix("_bf16").removesuffix("_vnni")


def path() -> str:
    """The instruction set in use."""
    return str(library().secateur_path().decode())


@functools.cache
def _library() -> Any:
    if os.environ.get("SECATEUR_ENGINE") == "off":
        raise build.Unbuilt("SECATEUR_ENGINE=off switches it off")
    if named := os.environ.get("SECATEUR_ENGINE_LIBRARY"):  # a build with checks, as .ci/sanitize makes it
        if lib := _load(Path(named)):
            return lib
        raise build.Unbuilt(f"SECATEUR_ENGINE_LIBRARY={named} does not load")
    digest = build.digest()
    for place in (BESIDE, cached := build.cache_folder() / f"engine-{digest[:16]}.so"):
        if place.exists() and (lib := _load(place)) and lib.secateur_source().decode() == digest:
            return lib
    build.build(cached)
    if lib := _load(cached):
        return lib
    raise build.Unbuilt("its freshly built kernels do not load")


def _load(place: Path) -> Any:
    try:
        lib = ctypes.CDLL(str(place))
    except OSError:
        return None
    lib.secateur_run.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
    where, count = ctypes.c_void_p, ctypes.c_int64
    lib.secateur_chunks.argtypes = (where, count, where, where, where, count, count, ctypes.c_int, ctypes.c_int)
    lib.secateur_time.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64)
    lib.secateur_time.restype = ctypes.c_int64
    lib.secateur_path.restype = lib.secateur_source.restype = ctypes.c_char_p
    lib.secateur_force.argtypes = (ctypes.c_char_p,)
    lib.secateur_peak.argtypes, lib.secateur_peak.restype = (ctypes.c_int,), ctypes.c_double
    lib.secateur_bandwidth.argtypes, lib.secateur_bandwidth.restype = (ctypes.c_int64,), ctypes.c_double
    return lib
