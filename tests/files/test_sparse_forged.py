"""Sparse files whose checksum is right and whose index, masks or values are forged: refused in a sentence."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
import torch

import secateur
from masked import CODE, saved, stamped, wide_net
from secateur import SecateurError
from secateur.io import container, packing


def deflated(text: bytes) -> torch.Tensor:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    return torch.tensor(list(stream.compress(text) + stream.flush()), dtype=torch.uint8)


def in_index(change):
    """`change` at work on the JSON of the index."""

    def forge(rows):
        index = json.loads(zlib.decompress(rows[packing.INDEX].numpy().tobytes(), -15))
        change(index)
        rows[packing.INDEX] = deflated(json.dumps(index).encode())

    return forge


def sparse_group(**parts):
    return in_index(lambda index: index["groups"][1].update(**parts))


def claimed(size: int):
    """The shape of one tensor that says more than there is."""
    return in_index(lambda index: index["groups"][0]["tensors"].update({"1.weight": [size]}))


def more(index, count: int, name: str = "1.weight") -> None:
    """`count` values more of one tensor in the table, and no more in the file."""
    index["groups"][0]["tensors"][name][0] += count


def longer(name: str):
    return lambda rows: rows.update({name: torch.cat([rows[name], torch.zeros(1, dtype=torch.uint8)])})


def grown(rows):
    """A plane that inflates to more than its tensors hold: ten million zeros in ten kilobytes."""
    bomb = deflated(bytes(10_000_000))
    index = json.loads(zlib.decompress(rows[packing.INDEX].numpy().tobytes(), -15))
    before = sum(index["groups"][0]["planes"])
    index["groups"][0]["planes"] = [len(bomb), 0, 0, 0]
    rows[packing.VALUES] = torch.cat([bomb, rows[packing.VALUES][before:]])
    rows[packing.INDEX] = deflated(json.dumps(index).encode())


PACKED = {
    "no index": ("without its index", lambda rows: rows.pop(packing.INDEX)),
    "no masks": ("without its index", lambda rows: rows.pop(packing.MASKS)),
    "a tensor beside them": ("without its index", lambda rows: rows.update(x=torch.ones(1))),
    "values of floats": ("without its index", lambda rows: rows.update({packing.VALUES: torch.ones(8)})),
    "an empty index": ("does not|another length", lambda rows: rows.update({packing.INDEX: rows[packing.INDEX][:0]})),
    "an index cut short": ("another length", lambda rows: rows.update({packing.INDEX: rows[packing.INDEX][:-3].clone()})),
    "an index of noise": ("does not unpack", lambda rows: rows.update({packing.INDEX: rows[packing.INDEX] ^ 255})),
    "bytes behind the index": ("another length", longer(packing.INDEX)),
    "bytes behind the masks": ("of masks", longer(packing.MASKS)),
    "bytes behind the values": ("of values", longer(packing.VALUES)),
    "an index that is a bomb": ("grows beyond", lambda rows: rows.update({packing.INDEX: deflated(b"[" + b" " * 10**7)})),
    "an index that is no JSON": ("no JSON", lambda rows: rows.update({packing.INDEX: deflated(b"plan: import os")})),
    "a deep index": ("nested too deep", lambda rows: rows.update({packing.INDEX: deflated(DEEP)})),
    "an index that is a list": ("list of 0", lambda rows: rows.update({packing.INDEX: deflated(b"[]")})),
    "a key twice": ("twice", lambda rows: rows.update({packing.INDEX: deflated(b'{"plan":1,"plan":1}')})),
    "no plan": ("without 'plan'", in_index(lambda index: index.pop("plan"))),
    "an unknown key": ("unknown key", in_index(lambda index: index.update(run="os.system"))),
    "a newer plan": ("newer than", in_index(lambda index: index["plan"].update(format=2))),
    "ties that are none": ("tied tensors", in_index(lambda index: index.update(aliases={"a": 3}))),
    "a tie to nothing": ("tied to", in_index(lambda index: index.update(aliases={"a": "b"}))),
    "a mask of another length": ("of masks", in_index(lambda index: index["masks"].update({CODE: 1}))),
    "a mask of less than nothing": ("for the length", in_index(lambda index: index["masks"].update({CODE: -1}))),
    "a mask that is not there": ("without its mask", in_index(lambda i: i["masks"].update(x=i["masks"].pop(CODE)))),
    "an unknown dtype": ("of dtype", sparse_group(dtype="object")),
    "another dtype": ("planes of bytes", sparse_group(dtype="float64")),
    "planes of nothing": ("planes of bytes", sparse_group(planes=[])),
    "a tensor in two groups": ("two groups", sparse_group(tensors={"0.weight": [1]})),
    "one value too many": ("does not unpack|another length", in_index(lambda index: more(index, 1))),
    "one value too few": ("does not unpack|another length|grows beyond", in_index(lambda index: more(index, -1))),
    "values of two tensors swapped": ("values of shape", in_index(lambda index: more(index, 1, "4.weight") or more(index, -1))),
    "a tensor nobody knows": ("an unknown", in_index(lambda i: i["groups"][1]["tensors"].update(x=[0]))),
    "a hundred billion values": ("has room for", claimed(10**11)),
    "a shape of text": ("for a shape", claimed("os")),
    "no values": ("does not unpack|another length", in_index(lambda index: index["groups"][0]["tensors"].pop("1.weight"))),
    "a plane that is a bomb": ("grows beyond", grown),
}
DEEP = bytes(np.random.default_rng(0).integers(97, 122, 4000, dtype=np.uint8)).join([b'{"', b'":' + b"[" * 30_000])


@pytest.mark.parametrize("case", PACKED)
def test_a_forged_file_is_refused_with_a_sentence(tmp_path, case):
    """The checksum is right; a case has altered the rows of bytes."""
    says, change = PACKED[case]
    data = saved(tmp_path)
    header, rows = container.header_of(data, "forging"), container.tensors_of(data, "forging")
    change(rows)
    path = stamped(tmp_path / "forged.safetensors", rows, {k: v for k, v in header.metadata.items() if k != "sha256"})
    with pytest.raises(SecateurError, match=says) as caught:
        secateur.load(path, into=wide_net(8))
    assert caught.value.asked.startswith("loading")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
