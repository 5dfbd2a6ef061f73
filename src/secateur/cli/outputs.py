"""What a command may write over: none of the files it reads, and no file of another kind."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from secateur.core.errors import SecateurError
from secateur.io.files import require_own, shown


def require_free(output: Path, kind: str, *reads: str | Path | None) -> None:
    """Raise `SecateurError` where `output` is a file the command reads, or holds what is no `kind` of `io.files.MARKS`.

    `reads` are paths, "file.py:function", or None; a folder stands for the plan.json in it.
    """
    require_unread(output, *reads)
    require_own(output, kind)


def require_unread(output: Path, *reads: str | Path | None) -> None:
    """Raise `SecateurError` where `output` is one of the files of `reads`, be it by another name."""
    for word in reads:
        head, python, _ = str(word or "").partition(".py:")
        path = Path(head + python[:3]).expanduser()
        with suppress(OSError, ValueError):
            if word and os.path.samefile(output, path / "plan.json" if path.is_dir() else path):
                raise SecateurError(f"writing {shown(output)}", "a file that this command reads", "give another name")
