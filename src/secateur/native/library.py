"""The kernels as Python sees them: where the library is, and which instruction set runs."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

from secateur.core.errors import SecateurError, nearest
from secateur.native import build

BESIDE = Path(__file__).parent / "_engine.so"
PATHS = ("avx512_bf16", "avx512_vnni", "avx512", "avx2", "portable")


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
    lib.secateur_scratch.argtypes, lib.secateur_scratch.restype = (count, count), count
    lib.secateur_truncate.argtypes, lib.secateur_truncate.restype = (where, count, where, count, ctypes.c_int), count
    lib.secateur_bandwidth.argtypes, lib.secateur_bandwidth.restype = (ctypes.c_int64,), ctypes.c_double
    return lib
