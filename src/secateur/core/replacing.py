"""Files that are replaced whole: a reader never sees half a file, and a full disk leaves the old one as it was."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, Any

from secateur.core.errors import SecateurError

_NUMBERS = count()
_OPEN: set[str] = set()
"""Temporary names this process writes right now."""


@contextmanager
def replacing(
    path: str | os.PathLike[str], mode: str = "wb", *, explain: Callable[[Exception], SecateurError]
) -> Iterator[IO[Any]]:
    """A file open for writing ("wb", or "w" for UTF-8 text) that takes the place of `path` when the block ends.

    Written under another name in the same folder, flushed to the disk, then renamed: any exception, a full disk, or a
    kill leaves `path` as it was. What a killed writer left behind goes with the next write of the same path. A link is
    followed, and the file it points at replaced; the mode bits of an existing file stay.

    Raises ``explain(error)`` where the file cannot be written (`OSError`) and where `path` is none (`TypeError`, `ValueError`).
    """
    temporary = None
    try:
        target, bits = _target(path)
        _sweep(target)
        temporary = target.with_name(f".{target.name[:40]}.{os.getpid()}-{next(_NUMBERS)}.part")
        _OPEN.add(temporary.name)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with open(handle, mode, encoding=None if "b" in mode else "utf-8", newline=None if "b" in mode else "") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if bits is not None:
            os.chmod(temporary, bits)
        os.replace(temporary, target)
        _sync(target.parent)
    except OSError as error:
        # an error of another file, opened inside the block, is not ours to explain
        if error.filename is not None and temporary is not None and os.fspath(error.filename) != os.fspath(temporary):
            raise
        raise explain(error) from error
    except (TypeError, ValueError) as error:
        if temporary is not None:
            raise
        raise explain(error) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            _OPEN.discard(temporary.name)


def reason(error: Exception) -> str:
    """What the system, or the first line of the message, says went wrong."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else str(error).splitlines()[0]


def _target(path: str | os.PathLike[str]) -> tuple[Path, int | None]:
    """Where links lead, and the mode bits of a file already there."""
    target = Path(os.path.realpath(path))
    if not os.fspath(path) or not target.name or os.fspath(path).endswith(os.sep):
        raise IsADirectoryError(errno.EISDIR, "a folder")
    try:
        bits = target.stat().st_mode
    except FileNotFoundError:
        return target, None
    if stat.S_ISDIR(bits):
        raise IsADirectoryError(errno.EISDIR, "a folder")
    if not stat.S_ISREG(bits):
        # renaming over a device (/dev/null) would destroy it
        raise OSError(errno.ENODEV, "a device or pipe")
    return target, stat.S_IMODE(bits)


def _sweep(target: Path) -> None:
    """Remove what a killed process left of an earlier write of `target`."""
    if os.name != "posix":
        return
    prefix = f".{target.name[:40]}."
    for name in os.listdir(target.parent):
        owner = name.removeprefix(prefix).removesuffix(".part").partition("-")[0]
        if name in _OPEN or not (name.startswith(prefix) and name.endswith(".part") and owner.isdecimal()):
            continue
        # in a container the next process often has the number of the killed one
        if int(owner) == os.getpid() or not _alive(int(owner)):
            with suppress(OSError):
                (target.parent / name).unlink()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _sync(folder: Path) -> None:
    """Make the rename last through a power cut, where the system can open a folder."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
