"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.io import (
    atomic,
    read_json,
    read_text,
    save,
    write_json,
    write_plan,
    write_text,
)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As a disk with `size` bytes left: longer writes fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_atomic_writes_bytes_and_text(tmp_path: Path) -> None:
    with atomic(tmp_path / "a") as file:
        file.write(b"\x00\n")
    with atomic(str(tmp_path / "b"), "w") as file:
        file.write("é\n")
    assert (tmp_path / "a").read_bytes() == b"\x00\n"
    assert (tmp_path / "b").read_bytes() == "é\n".encode()
    assert names(tmp_path) == ["a", "b"]


def half_written(path: Path, error: BaseException) -> None:
    with atomic(path, "w") as file:
        file.write("new")
        file.flush()
        raise error


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), ValueError("x"), SecateurError("a", "b", "c"), GeneratorExit()], ids=repr
)
def test_an_interrupted_write_changes_nothing(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(type(error)) as caught:
        half_written(tmp_path / "a", error)
    assert caught.value is error
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_killed_write_changes_nothing_and_is_swept(tmp_path: Path) -> None:
    code = """if True:
        import os, signal, sys
        from secateur.io.files import atomic
        with atomic(sys.argv[1], "w") as file:
            file.write("new"); file.flush()
            os.kill(os.getpid(), signal.SIGKILL)"""
    target = tmp_path / "a"
    target.write_text("old")
    done = subprocess.run([sys.executable, "-c", code, target], check=False, env={**os.environ, "PYTHONPATH": "src"})
    assert done.returncode == -9
    assert target.read_text() == "old"
    assert len(names(tmp_path)) == 2
    (tmp_path / f".a.{os.getpid()}-99.part").write_text("left by an earlier process of this number")
    (tmp_path / ".b.1-1.part").write_text("of another file")
    (tmp_path / ".a.1-1.part").write_text("of a process that lives")
    write_text(target, "new")
    assert target.read_text() == "new"
    assert names(tmp_path) == [".a.1-1.part", ".b.1-1.part", "a"]


def test_the_old_file_is_replaced_and_never_written_to(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    os.link(tmp_path / "a", tmp_path / "same file")
    write_text(tmp_path / "a", "new")
    assert (tmp_path / "same file").read_text() == "old"


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    with atomic(tmp_path / "a", "w") as first:
        first.write("first")
        with atomic(tmp_path / "a", "w") as second:
            second.write("second")
        assert (tmp_path / "a").read_text() == "second"
    assert (tmp_path / "a").read_text() == "first"
    assert names(tmp_path) == ["a"]


def test_a_link_is_followed_and_mode_bits_stay(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o640
    (tmp_path / "dangling").symlink_to("fresh")
    write_text(tmp_path / "dangling", "new")
    assert (tmp_path / "fresh").read_text() == "new"
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / "fresh").stat().st_mode == plain.stat().st_mode


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with files_of_at_most(1000), pytest.raises(SecateurError, match="a full disk"):
        write_text(tmp_path / "a", "x" * 10_000)
    save(tmp_path / "b", nn.Linear(2, 2))
    old = (tmp_path / "b").read_bytes()
    with files_of_at_most(1000), pytest.raises(SecateurError, match="a full disk"):
        save(tmp_path / "b", nn.Linear(100, 100))
    assert (tmp_path / "a").read_text() == "old"
    assert (tmp_path / "b").read_bytes() == old
    assert names(tmp_path) == ["a", "b"]


def test_nobody_elses_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("the user's source")
    save_file({"weight": torch.zeros(2)}, tmp_path / "pretrained.safetensors")
    for path, write in (
        (tmp_path / "net.py", lambda path: write_plan(path, Plan({}))),
        (tmp_path / "net.py", lambda path: save(path, nn.Linear(2, 2))),
        (tmp_path / "pretrained.safetensors", lambda path: save(path, nn.Linear(2, 2))),
    ):
        before = path.read_bytes()
        with pytest.raises(SecateurError, match="a file there that is no"):
            write(path)
        assert path.read_bytes() == before
    write_plan(tmp_path / "plan.json", Plan({}))
    write_plan(tmp_path / "plan.json", Plan({"a": (2,)}))
    save(tmp_path / "small.safetensors", nn.Linear(2, 2))
    save(tmp_path / "small.safetensors", nn.Linear(3, 3))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fills_at_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def full(_: int) -> None:
        raise OSError(code, os.strerror(code))

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SecateurError):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(path: object, *_: object) -> int:
        raise OSError(code, os.strerror(code), os.fspath(path))  # type: ignore[call-overload]

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SecateurError, match=r"read-only disk|no permission"):
        write_text(tmp_path / "a", "new")
    assert names(tmp_path) == []


def test_an_error_of_another_file_stays_itself(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "a"):
        (tmp_path / "missing").read_bytes()
    assert names(tmp_path) == []


def test_text_and_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [1, 2.5]})
    assert read_json(tmp_path / "a.json") == {"x": [1, 2.5]} == json.loads(read_text(tmp_path / "a.json"))
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert read_json(tmp_path / "a.json") == {"x": [1, 2.5]}
    assert names(tmp_path) == ["a.json"]
