"""Reads the pickled batches of CIFAR-10 without running anything they name.

A pickle calls what its `find_class` hands out. Ours hands out four small recorders and nothing else, so the worst a
stranger's file can do is to be refused.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from secateur.core.errors import SecateurError

LIMIT_BYTES = 1 << 28  # a batch of CIFAR-10 is 31 MB


class _Array:
    """A byte array on its way out of a pickle; numpy's own constructor would take any dtype and any shape."""

    def __init__(self, *_: Any) -> None:
        self.value = np.zeros(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, body = state
        if not isinstance(kind, _Kind) or kind.code not in ("u1", "|u1"):
            raise pickle.UnpicklingError("an array of another kind than bytes")
        if isinstance(body, str):
            body = body.encode("latin1")
        self.value = np.frombuffer(body, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Kind:
    """A dtype on its way out of a pickle."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else code

    def __setstate__(self, state: Any) -> None:
        """Byte order and padding: nothing that bytes have."""


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 writes bytes into a pickle of protocol 2."""
    return text.encode("latin1")


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): _encoded,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module, name))
        if known is None:
            raise pickle.UnpicklingError(f"a call of {module}.{name}")
        return known


def read(path: Path) -> dict[str, Any]:
    """The dictionary in a CIFAR batch file: "data" uint8 (N, 3072), "labels" list of N ints, names as text.

    Raises `SecateurError` for a file that is not one, or that names anything but byte arrays.
    """
    asked, do = f"the CIFAR batch {path}", "use the original python batches"
    try:
        if path.stat().st_size > LIMIT_BYTES:
            raise SecateurError(asked, f"{path.stat().st_size} bytes", do)
        with path.open("rb") as file:
            found = _Reader(file, encoding="bytes").load()
    except OSError as error:
        raise SecateurError(asked, error.strerror or "an unreadable file", "check the path and its permissions") from error
    except SecateurError:
        raise
    except Exception as error:  # a damaged pickle raises anything: KeyError, EOFError, ValueError, struct.error ...
        raise SecateurError(asked, f"a file that is no such batch ({error})", do) from error
    if not isinstance(found, dict):
        raise SecateurError(asked, f"a {type(found).__name__}", do)
    return {_text(key): value.value if isinstance(value, _Array) else value for key, value in found.items()}


def _text(key: Any) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else str(key)
