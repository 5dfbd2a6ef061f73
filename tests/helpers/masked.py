"""Random masks, a network to wear them, and its files: written, compared bit by bit, and stamped anew."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import secateur
from secateur.core.plan import mask
from secateur.io import container
from secateur.surgery import fingerprint

CODE = "secateur.mask/1/1.weight"
"""Where files keep the mask of the first wide convolution of `wide_net`."""


def random_masks(model: nn.Module, share: float, seed: int = 0) -> dict[str, torch.Tensor]:
    """A random mask for every weight of two dims or more."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(value.shape, generator=generator) < share
        for name, value in model.named_parameters()
        if value.dim() > 1
    }


def wide_net(width: int = 192) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, width, 3), nn.Conv2d(width, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, width, 3, bias=False), nn.BatchNorm2d(width), nn.Linear(width, 10))


def same_bits(one: nn.Module, two: nn.Module) -> None:
    """Names, dtypes, shapes and every bit, of zeros and NaN too."""
    states = one.state_dict(), two.state_dict()
    assert list(states[0]) == list(states[1])
    for first, second in zip(states[0].values(), states[1].values(), strict=True):
        assert (first.dtype, first.shape) == (second.dtype, second.shape)
        assert torch.equal(first.reshape(-1).view(torch.uint8), second.reshape(-1).view(torch.uint8))


def saved(tmp_path) -> bytes:
    model = wide_net(8)
    plan = mask(fingerprint(model), random_masks(model, 0.1))
    secateur.save(tmp_path / "x.safetensors", plan.apply(model), plan)
    return (tmp_path / "x.safetensors").read_bytes()


def stamped(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> Path:
    head, body = container.pack(tensors, metadata, "forging")
    path.write_bytes(head + bytes(body))
    return path
