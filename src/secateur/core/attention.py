"""`nn.MultiheadAttention` that follows its tensors.

PyTorch's module computes the width of a head as `embed_dim // num_heads` and asserts that all heads together are as wide
as the stream, so no head can leave it. This class has the same tensors, arguments and results, and takes every size
from the tensors; a model keeps PyTorch's class until a plan cuts its heads.

Shape legend: B batch, L queries, S keys, H heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional


class FollowingAttention(nn.MultiheadAttention):
    """Multi-head attention whose heads may have any width; use `follow_heads`, which turns existing modules into it."""

    scale: float

    @property
    def _qkv_same_embed_dim(self) -> bool:  # type: ignore[override]
        """False sends `nn.TransformerEncoderLayer` past its fused kernel, which hard-codes the width of a head."""
        return False

    @_qkv_same_embed_dim.setter
    def _qkv_same_embed_dim(self, _: bool) -> None:
        pass

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Arguments and results of `nn.MultiheadAttention.forward`."""
        single = query.dim() == 2
        if single:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = self._heads(query, key, value)
        mask = self._mask(q, k, attn_mask, key_padding_mask)
        if self.bias_k is not None or self.add_zero_attn:
            k, v, mask = self._extra(k, v, mask)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            weights = torch.softmax(q * self.scale @ k.transpose(-2, -1) + (0 if mask is None else mask), -1)
            mixed = functional.dropout(weights, dropout) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.scale)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))  # B, L, H * D
        if single:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _heads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The three projections, each (B, H, L, D)."""
        if self.in_proj_weight is not None:
            if query is key and key is value:
                packed = functional.linear(query, self.in_proj_weight, self.in_proj_bias)
                q, k, v = packed.unflatten(-1, (3, self.num_heads, -1)).unbind(2)
                return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            weights = self.in_proj_weight.unflatten(0, (3, self.num_heads, -1)).flatten(1, 2).unbind(0)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases: Iterable[Tensor | None] = (None, None, None)
        if self.in_proj_bias is not None:
            biases = self.in_proj_bias.unflatten(0, (3, self.num_heads, -1)).flatten(1, 2).unbind(0)
        mapped = [
            functional.linear(x, w, b).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        ]
        return mapped[0], mapped[1], mapped[2]

    def _mask(self, q: Tensor, k: Tensor, attn_mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """One additive mask that broadcasts to (B, H, L, S)."""

        def additive(mask: Tensor) -> Tensor:
            return q.new_zeros(mask.shape).masked_fill(mask, float("-inf")) if mask.dtype == torch.bool else mask

        mask = None
        if attn_mask is not None:
            mask = additive(attn_mask)
            mask = mask if mask.dim() == 2 else mask.unflatten(0, (-1, self.num_heads))
        if padding is not None:
            padding = additive(padding)[:, None, None, :] if padding.dim() == 2 else additive(padding)
            mask = padding if mask is None else mask + padding
        return mask

    def _extra(self, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Learned and zero key-value pairs at the end of the sequence."""
        added = 0
        if self.bias_k is not None and self.bias_v is not None:
            row = (k.shape[0], 1, self.num_heads, -1)
            k = torch.cat([k, self.bias_k.unflatten(-1, (self.num_heads, -1)).expand(row).transpose(1, 2)], 2)
            v = torch.cat([v, self.bias_v.unflatten(-1, (self.num_heads, -1)).expand(row).transpose(1, 2)], 2)
            added += 1
        if self.add_zero_attn:
            k, v = functional.pad(k, (0, 0, 0, 1)), functional.pad(v, (0, 0, 0, 1))
            added += 1
        return k, v, mask if mask is None else functional.pad(mask, (0, added))


@contextmanager
def following(model: nn.Module, layers: Iterable[str]) -> Iterator[None]:
    """Inside, the attention whose projection at the end is among the `layers` calls it as a module, so that hooks see it."""
    changed: list[tuple[nn.Module, bool]] = []
    try:
        for path in {name.removesuffix(".out_proj") for name in layers if name.endswith(".out_proj")}:
            module = model.get_submodule(path)
            if type(module) is nn.MultiheadAttention:
                changed.append((module, module._qkv_same_embed_dim))
                follow_heads(model, [path])
        yield
    finally:
        for module, same in changed:
            del module.scale
            module.__class__ = nn.MultiheadAttention
            module._qkv_same_embed_dim = same  # type: ignore[assignment]


def follow_heads(model: nn.Module, touched: Iterable[str] | None = None) -> nn.Module:
    """Turn `nn.MultiheadAttention` modules of `model` (all, or those at the paths `touched`) into the following kind."""
    paths = None if touched is None else set(touched)
    for name, module in model.named_modules():
        if type(module) is nn.MultiheadAttention and (paths is None or name in paths):
            module.__dict__.pop("_qkv_same_embed_dim", None)
            module.__class__ = FollowingAttention
            module.scale = float(module.head_dim) ** -0.5  # type: ignore[assignment]
    return model
