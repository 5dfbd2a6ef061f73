"""Files read and written whole, and what is wrong with them in one sentence."""

from __future__ import annotations

import errno
import json
import os
import stat
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import IO, Any

from secateur.core.errors import SecateurError, nearest
from secateur.core.replacing import replacing
from secateur.core.strict import parse

MOST_TEXT = 100_000_000
"""Bytes of a text file that is read whole."""
MOST_START = 1 << 20
"""Bytes of a file that are looked at to know what it is."""
MARKS = {
    "plan": (b'"format":', b'"model":'),
    "model file of secateur": (b'"secateur":',),
    "exported model": (b'"secateur":', b'"engine":'),
    "latency table": (b'"format":', b'"rest_ms":'),
    "file of scores": (b'"scores":',),
}
"""What a file of each kind has in its first bytes; a writer replaces files of its own kind and no other."""
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


def atomic(path: str | os.PathLike[str], mode: str = "wb") -> AbstractContextManager[IO[Any]]:
    """A file open for writing ("wb", or "w" for UTF-8 text) that takes the place of `path` when the block ends.

    Any exception, a full disk, or a kill leaves `path` as it was; see `core.replacing`.

    Raises `SecateurError` where the file cannot be written: missing or read-only folder, full disk, no regular file.
    """
    return replacing(path, mode, explain=lambda error: _explain(error, f"writing {shown(path)}"))


def require_own(path: str | os.PathLike[str], kind: str) -> None:
    """Raise `SecateurError` where writing `path` would replace a file that is no `kind`: its start lacks one of its `MARKS`."""
    with suppress(OSError, ValueError, TypeError):
        if os.path.isfile(path) and os.path.getsize(path):
            with open(path, "rb") as file:
                start = file.read(MOST_START)
            if not all(mark in start for mark in MARKS[kind]):
                do = "give another name, or remove that file first"
                raise SecateurError(f"writing {shown(path)}", f"a file there that is no {kind}", do)


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


def _explain(error: Exception, asked: str) -> SecateurError:
    if not isinstance(error, OSError):
        return SecateurError(asked, f"no path ({error})", "give the path as text")
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
