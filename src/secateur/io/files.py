"""Files read and written whole: a reader never sees half a file, and a full disk leaves the old one as it was."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, Any

from secateur.core.errors import SecateurError, nearest
from secateur.core.strict import parse

MOST_TEXT = 100_000_000
"""Bytes of a text file that is read whole."""
MOST_START = 1 << 20
"""Bytes of a file that are looked at to know what it is."""
_NUMBERS = count()
_OPEN: set[str] = set()
"""Temporary names this process writes right now."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REASONS = {
    errno.ENOENT: ("no such folder", "make the folder first"),
    errno.ENOTDIR: ("a file where a folder should be", "name a path below a folder"),
    errno.EISDIR: ("a folder of that name", "name a file"),
    errno.EACCES: ("no permission to write there", "choose a folder you may write to"),
    errno.EPERM: ("no permission to write there", "choose a folder you may write to"),
    errno.EROFS: ("a read-only disk", "choose a folder you may write to"),
    errno.ELOOP: ("links that point at each other", "name a path without that link"),
    errno.ENAMETOOLONG: ("a name too long for this disk", "choose a shorter name"),
}


@contextmanager
def atomic(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """A file open for writing ("wb", or "w" for UTF-8 text) that takes the place of `path` when the block ends.

    Written under another name in the same folder, flushed to the disk, then renamed: any exception, a full disk, or a
    kill leaves `path` as it was. What a killed writer left behind goes with the next write of the same path. A link is
    followed, and the file it points at replaced; the mode bits of an existing file stay.

    Raises `SecateurError` where the file cannot be written: missing or read-only folder, full disk, no regular file.
    """
    asked = f"writing {shown(path)}"
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
        raise _explain(error, asked) from error
    except (TypeError, ValueError) as error:
        if temporary is not None:
            raise
        raise SecateurError(asked, f"no path ({error})", "give the path as text") from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            _OPEN.discard(temporary.name)


def require_own(path: str | os.PathLike[str], mark: bytes, what: str) -> None:
    """Raise `SecateurError` where writing `path` would replace a file that is none of ours: its start lacks `mark`."""
    with suppress(OSError, ValueError, TypeError):
        if os.path.isfile(path) and os.path.getsize(path):
            with open(path, "rb") as file:
                if mark in file.read(MOST_START):
                    return
            do = "give another name, or remove that file first"
            raise SecateurError(f"writing {shown(path)}", f"a file there that is no {what}", do)


def read_bytes(path: str | os.PathLike[str], what: str = "file", limit: int | None = None) -> bytes:
    """All bytes of the file at `path`; `what` names it in errors.

    Raises `SecateurError` where it is missing (with the nearest name beside it), a folder, unreadable, or longer than
    `limit` bytes.
    """
    asked = f"reading the {what} {shown(path)}"
    try:
        place = Path(path)
        found = place.stat()
        if stat.S_ISDIR(found.st_mode):
            raise SecateurError(asked, "a folder", "name a file inside it")
        if not stat.S_ISREG(found.st_mode):
            raise SecateurError(asked, "no regular file", "save it to a file first")
        if limit is not None and found.st_size > limit:
            raise SecateurError(
                asked, f"{found.st_size:,} bytes, more than the {limit:,} such a file can have", "give another file"
            )
        return place.read_bytes()
    except FileNotFoundError:
        raise SecateurError(asked, "no such file", _beside(place)) from None
    except OSError as error:
        raise SecateurError(asked, error.strerror or str(error), "name a file that can be read") from error
    except (TypeError, ValueError) as error:
        raise SecateurError(asked, f"no path ({error})", "give the path as text") from error
    except MemoryError as error:
        raise SecateurError(asked, "more bytes than fit in memory", "give another file, or use a larger machine") from error


def read_text(path: str | os.PathLike[str], what: str = "file") -> str:
    """The UTF-8 text at `path`. Raises `SecateurError` as `read_bytes` does, and for other encodings."""
    try:
        return read_bytes(path, what, MOST_TEXT).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        asked = f"reading the {what} {shown(path)}"
        raise SecateurError(
            asked, f"a byte that is no UTF-8 text at position {error.start}", "save the file as UTF-8"
        ) from None


def read_json(path: str | os.PathLike[str], what: str = "file") -> Any:
    """The value of the JSON file at `path`. Raises `SecateurError` as `read_bytes` does, and where it is no JSON."""
    return parse(read_bytes(path, what, MOST_TEXT), f"reading the {what} {shown(path)}")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace the file at `path` by `text`, whole or not at all. Raises `SecateurError` as `atomic` does."""
    with atomic(path, "w") as file:
        file.write(text)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Replace the file at `path` by `value` as indented JSON, without NaN. Raises `SecateurError` as `atomic` does."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def shown(path: Any) -> str:
    """`path` as errors print it, whatever it is."""
    return repr(os.fspath(path)) if isinstance(path, (str, os.PathLike)) else repr(path)[:80]


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


def _explain(error: OSError, asked: str) -> SecateurError:
    if error.errno in _FULL:
        return SecateurError(
            asked, "a full disk (or a limit on file size)", "free some space; what was there before is untouched"
        )
    found, do = _REASONS.get(error.errno or 0, (error.strerror or str(error), "name a file on a disk that can be written"))
    return SecateurError(asked, found, do)


def _beside(place: Path) -> str:
    """A hint from the names in the same folder."""
    try:
        names = os.listdir(place.parent)
    except OSError:
        return "check the folder's name"
    hint = nearest(place.name, names) if names else ""
    return hint if hint.startswith("did") else "check the name"
