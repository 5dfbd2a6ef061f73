"""Safetensors with a checksum: headers read with care, tensors out of bytes and into them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.strict import parse

FORMAT = 2
"""The newest format; only sparse models need it."""
MOST_HEADER = 100_000_000
"""Bytes of a header; the safetensors library draws the same line."""
_ZEROS = "0" * 64
_AGAIN = "copy or download it again"


@dataclass(frozen=True)
class Header:
    """What stands before the tensors: `metadata` as text, `tensors` as the format describes them, `length` in bytes."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, Any]
    length: int


def has_metadata(path: str | os.PathLike[str], key: str) -> bool:
    """Is there a safetensors file at `path` whose metadata has `key`? Only its header is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return key in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def header_of(data: bytes, asked: str) -> Header:
    """The header of safetensors `data`.

    Raises `SecateurError` where it is cut short, too long, or no header.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 10 or data[8:9] != b"{":
        raise SecateurError(asked, "no safetensors file" if data else "an empty file", "give a .safetensors file")
    if length > MOST_HEADER:
        raise SecateurError(
            asked, f"a header said to be {length:,} bytes long", f"give a file whose header has at most {MOST_HEADER:,}"
        )
    if length > len(data) - 8:
        raise SecateurError(asked, f"a file cut short inside its header ({len(data):,} bytes)", _AGAIN)
    tensors = parse(data[8 : 8 + length], asked)
    metadata = tensors.pop("__metadata__", {}) if isinstance(tensors, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise SecateurError(asked, "a header that is no table of tensors", "give a .safetensors file")
    return Header(metadata, tensors, length)


def tensors_of(data: bytes, asked: str) -> dict[str, Tensor]:
    """Name to tensor (on the CPU) of safetensors `data`. Raises `SecateurError` where tensors are missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load as unpack

    header_of(data, asked)
    try:
        return unpack(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError, MemoryError) as error:
        reason = str(error).removeprefix("Error while deserializing: ").splitlines()[0][:120] if str(error) else "no tensors"
        raise SecateurError(asked, f"a damaged or truncated file ({reason})", _AGAIN) from error


def pack(tensors: Mapping[str, Tensor], metadata: dict[str, str], asked: str) -> tuple[bytes, memoryview]:
    """Header bytes with the checksum in place, and the tensors' bytes.

    The header is written anew because the library's order of metadata differs from call to call.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save as to_bytes

    own: dict[tuple[Any, ...], int] = {}
    plain = {}
    for name, value in tensors.items():
        shares = own.setdefault((value.untyped_storage().data_ptr(), value.device), 0)
        own[value.untyped_storage().data_ptr(), value.device] = shares + 1
        plain[name] = value.detach().contiguous().clone() if shares else value.detach().contiguous()
    try:
        data = to_bytes(plain)
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise SecateurError(
            asked, f"a tensor safetensors cannot hold ({str(error).strip().splitlines()[0]})", "convert it first"
        ) from error
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    text = json.dumps({"__metadata__": dict(sorted({**metadata, "sha256": _ZEROS}.items())), **table}, separators=(",", ":"))
    header = text.encode("ascii")
    header += b" " * (-len(header) % 8)
    if len(header) > MOST_HEADER:
        raise SecateurError(asked, f"a header of {len(header):,} bytes", f"shorten the metadata below {MOST_HEADER:,}")
    head, body = len(header).to_bytes(8, "little") + header, memoryview(data)[8 + length :]
    return head.replace(_stamp(_ZEROS), _stamp(_digest(head, body)), 1), body


def verified(data: bytes, asked: str) -> Header:
    """The header of a file `save` wrote, after its checksum. Raises `SecateurError` where a bit has changed."""
    header = header_of(data, asked)
    version, saved = header.metadata.get("secateur"), header.metadata.get("sha256", "")
    if version is None:
        raise SecateurError(asked, "weights that secateur.save did not write", "use load_weights for them")
    if not version.isdecimal():
        raise SecateurError(asked, f"format {version[:40]!r}", _AGAIN)
    if int(version[:9]) > FORMAT:
        raise SecateurError(asked, f"format {version[:9]}, newer than the {FORMAT} known here", "upgrade secateur")
    head = data[: 8 + header.length]
    plain = head.replace(_stamp(saved), _stamp(_ZEROS), 1)
    if _digest(plain, memoryview(data)[8 + header.length :]) != saved:
        raise SecateurError(asked, "a damaged file (its checksum does not match)", _AGAIN)
    return header


def _digest(head: bytes, body: memoryview) -> str:
    digest = hashlib.sha256(head)
    digest.update(body)
    return digest.hexdigest()


def _stamp(digest: str) -> bytes:
    # inside another JSON string the quotes would be escaped: this stands in a header once
    return f'"sha256":"{digest}"'.encode("ascii", "replace")
