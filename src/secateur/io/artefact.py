"""One file for a compressed model: safetensors, with the plan in its header.

Header: `__metadata__` holds `secateur` (format of the artefact), `plan` (JSON), `aliases` (JSON: tied name -> saved name),
`sha256` (of the whole file with these 64 digits as zeros) and what the user adds. Any safetensors reader opens it. Of
tensors the plan makes sparse the file holds the values that stay, and the packed masks once (`io/sparse.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from secateur.core.codec import dumps, loads
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.core.strict import parse
from secateur.io import sparse
from secateur.io.files import MOST_TEXT, atomic, read_bytes, require_own, shown, write_text
from secateur.io.state import fill_, require_model, state_of, untie
from secateur.surgery import duplicate

FORMAT = 1
MOST_HEADER = 100_000_000
"""Bytes of a header; the safetensors library draws the same line."""
_OWN = ("secateur", "plan", "aliases", "sha256")
_ZEROS = "0" * 64
_AGAIN = "copy or download it again"


@dataclass(frozen=True)
class Header:
    """What stands before the tensors: `metadata` as text, `tensors` as the format describes them, `length` in bytes."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, Any]
    length: int


def save(
    path: str | os.PathLike[str], model: nn.Module, plan: Plan | None = None, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write `model` and the `plan` that made it to one safetensors file, whole or not at all.

    Tied tensors are stored once; every dtype is kept. `metadata` is text of your own for the header.
    Raises `SecateurError` where the plan does not lead to this model, the state holds more than plain tensors, the file
    cannot be written, or `path` holds something else than a model secateur saved.
    """
    asked = f"saving {shown(path)}"
    require_own(path, b'"secateur":', "model file of secateur")
    require_model(model, asked)
    metadata = dict(metadata or {})
    for key, value in metadata.items():
        if key in _OWN or type(key) is not str or type(value) is not str:
            raise SecateurError(asked, f"metadata {key!r}: {value!r}", f"give text under names other than {', '.join(_OWN)}")
    tensors, aliases = untie(state_of(model, asked))
    if plan is not None:
        _require_end(plan, model, asked)
        packed: dict[str, Any] = {}
        metadata["plan"] = dumps(plan, packed)
        codes = sparse.as_tensors(packed, tensors, asked)
        tensors = sparse.condense(tensors, aliases, plan, asked) | codes
    metadata |= {"format": "pt", "secateur": str(FORMAT), "aliases": json.dumps(aliases, sort_keys=True)}
    head, body = pack(tensors, metadata, asked)
    with atomic(path) as file:
        file.write(head)
        file.write(body)


def load(path: str | os.PathLike[str], into: nn.Module) -> nn.Module:
    """The saved model: a copy of `into`, cut by the plan in the file and filled with its tensors, in their dtypes.

    `into` is a freshly built model of the architecture before the cut; it stays untouched. No tracer, no example input
    and no code from the file are needed. Training mode and devices are those of `into`.
    Raises `SecateurError` where the file is damaged, of another format, or made for another architecture.
    """
    asked = f"loading {shown(path)}"
    require_model(into, asked)
    data = read_bytes(path, "model file")
    header = verified(data, asked)
    state, aliases = tensors_of(data, asked), _aliases(header, asked)
    codes = sparse.as_codes(state)
    plan = _plan(header.metadata["plan"], asked, codes) if "plan" in header.metadata else None
    if plan is not None:
        plan.check(into)  # before masks are unpacked to the sizes the file claims
        state = sparse.expand({name: value for name, value in state.items() if name not in codes}, aliases, plan, asked)
    for alias, name in aliases.items():
        if alias in state or name not in state:
            raise SecateurError(asked, f"tensor {alias!r} tied to {name!r}, which does not fit the file", _AGAIN)
        state[alias] = state[name]
    model = duplicate(into) if plan is None else plan.apply(into)
    fill_(model, state, asked, keep_dtype=True)
    return model


def read_plan(path: str | os.PathLike[str]) -> Plan:
    """The plan in a saved model or in a plan file (JSON).

    Raises `SecateurError` where the file is damaged, or a saved model without a plan.
    """
    asked = f"reading the plan {shown(path)}"
    data = read_bytes(path, "plan")
    # the first eight bytes of safetensors are a small number: they hold zeros, which no text does
    if data and not data[:8].count(0):
        if len(data) > MOST_TEXT:
            raise SecateurError(asked, f"{len(data):,} bytes of JSON", f"a plan has at most {MOST_TEXT:,}")
        return _plan(data, asked)
    metadata = verified(data, asked).metadata
    if "plan" not in metadata:
        raise SecateurError(asked, "a saved model without a plan", "save it with its plan, or give a plan file")
    return _plan(metadata["plan"], asked, sparse.as_codes(tensors_of(data, asked)))


def write_plan(path: str | os.PathLike[str], plan: Plan) -> None:
    """Write `plan` as JSON for a person to read and diff.

    Raises `SecateurError` where the file cannot be written, or `path` holds something else than a plan.
    """
    require_own(path, b'"format":', "plan")
    write_text(path, dumps(plan))


def has_metadata(path: str | os.PathLike[str], key: str) -> bool:
    """Is there a safetensors file at `path` whose metadata has `key`? Only its header is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return key in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The user's own metadata of a saved model. Raises `SecateurError` as `load` does."""
    metadata = verified(read_bytes(path, "model file"), f"reading {shown(path)}").metadata
    return {key: value for key, value in metadata.items() if key not in (*_OWN, "format")}


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


def _plan(text: str | bytes, asked: str, codes: Mapping[str, Any] | None = None) -> Plan:
    """The plan in JSON `text`, with the file's name in errors."""
    try:
        return loads(text, codes)
    except SecateurError as error:
        found = error.found if error.asked == "reading a plan" else f"{error.asked} with {error.found}"
        raise SecateurError(asked, found, error.do) from error


def _aliases(header: Header, asked: str) -> dict[str, str]:
    aliases = parse(header.metadata.get("aliases", "{}"), asked)
    if not isinstance(aliases, dict) or not all(isinstance(name, str) for name in aliases.values()):
        raise SecateurError(asked, "a table of tied tensors that is none", _AGAIN)
    return aliases


def _require_end(plan: Plan, model: nn.Module, asked: str) -> None:
    from secateur.surgery.fingerprint import mismatches, shapes_after

    if not isinstance(plan, Plan):
        raise SecateurError(
            asked, f"an object of type {type(plan).__name__} in place of a plan", "give the Plan that made the model"
        )
    if wrong := mismatches(shapes_after(plan), model):
        raise SecateurError(asked, "a model this plan does not lead to: " + "; ".join(wrong[:3]), "give the plan that made it")
