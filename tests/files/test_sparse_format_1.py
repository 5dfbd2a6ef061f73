"""Sparse files of format 1, as secateur wrote them before format 2: read, and refused in a sentence where forged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import secateur
from masked import CODE, random_masks, same_bits, stamped, wide_net
from secateur import Mask, Plan, SecateurError, support
from secateur.core.codec import to_json
from secateur.core.plan import mask
from secateur.io import artefact
from secateur.surgery import fingerprint, masks_after


def as_format_1(model: nn.Module, plan: Plan) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a file of format 1, written out here as that format was described."""
    codes: dict[str, np.ndarray] = {}
    text, masks = json.dumps(to_json(plan, codes)), masks_after(plan)
    values = {
        name: value[torch.from_numpy(masks[name])] if name in masks else value for name, value in model.state_dict().items()
    }
    metadata = {"format": "pt", "secateur": "1", "plan": text, "aliases": "{}"}
    return values | {name: torch.tensor(code) for name, code in codes.items()}, metadata


def test_files_of_format_1_are_read(tmp_path):
    model = wide_net(8)
    plan = mask(fingerprint(model), random_masks(model, 0.1))
    small = plan.apply(model)
    path = stamped(tmp_path / "old.safetensors", *as_format_1(small, plan))
    assert artefact.read_plan(path) == plan
    same_bits(small, secateur.load(path, into=wide_net(8)))


class Old(nn.Module):
    """The network in files/sparse_format_1.safetensors, which secateur wrote before format 2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 4, bias=False)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.head.weight


def test_a_file_of_format_1_that_was_kept(tmp_path):
    path = Path(__file__).with_name("sparse_format_1.safetensors")
    model, plan = secateur.load(path, into=Old()), artefact.read_plan(path)
    masks = {"conv.weight": np.arange(36).reshape(4, 1, 3, 3) % 5 == 0, "head.weight": np.eye(4)}
    assert plan == Plan(fingerprint(Old()), (Mask(tuple(support(name, value) for name, value in masks.items())),))
    for place, (name, value) in enumerate(model.state_dict().items(), 1):
        place = 9 if name == "head.weight" else place  # the tied weight comes ninth and was written last
        count = torch.arange(value.numel()) * place % 7 - 3
        expected = (count.reshape(value.shape) / 4 * torch.tensor(masks.get(name.replace("tied", "head"), 1.0))).to(value.dtype)
        assert torch.equal(value, torch.tensor(7) if name.endswith("tracked") else expected), name
    assert model.tied.weight is model.head.weight
    assert artefact.read_metadata(path) == {"note": "format 1"}
    secateur.save(tmp_path / "new.safetensors", model, plan)
    same_bits(model, secateur.load(tmp_path / "new.safetensors", into=Old()))


FORGED = {
    "a mask that is not there": lambda t, m: t.pop(CODE),
    "a mask of floats": lambda t, m: t.update({CODE: t[CODE].float()}),
    "a mask cut short": lambda t, m: t.update({CODE: t[CODE][:-1].clone()}),
    "a mask of ones": lambda t, m: t.update({CODE: torch.full_like(t[CODE], 255)}),
    "a mask of zeros": lambda t, m: t.update({CODE: torch.zeros_like(t[CODE])}),
    "one value too many": lambda t, m: t.update({"1.weight": torch.cat([t["1.weight"], torch.ones(1)])}),
    "no values": lambda t, m: t.pop("1.weight"),
    "a whole tensor": lambda t, m: t.update({"1.weight": torch.ones(8, 8, 3, 3)}),
    "huge tensors": lambda t, m: m.update(plan=m["plan"].replace("[8, 8, 3, 3]", "[1099511627776, 8, 3, 3]")),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_file_of_format_1_is_refused_with_a_sentence(tmp_path, case):
    """The checksum is right; `FORGED` has altered the tensors."""
    model = wide_net(8)
    plan = mask(fingerprint(model), random_masks(model, 0.1))
    tensors, metadata = as_format_1(plan.apply(model), plan)
    FORGED[case](tensors, metadata)
    path = stamped(tmp_path / "forged.safetensors", tensors, metadata)
    with pytest.raises(SecateurError):
        secateur.load(path, into=wide_net(8))
