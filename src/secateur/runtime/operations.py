"""The ATen operations an engine file may name: each computes a value from values, and nothing else."""

from __future__ import annotations

import torch

_WORDS = """
abs add addmm all amax amin any arange argmax argmin avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d baddbmm batch_norm bitwise_and bitwise_not bitwise_or bmm cat
ceil channel_shuffle chunk clamp clamp_max clamp_min clone concat constant_pad_nd contiguous conv1d conv2d conv3d
conv_transpose1d conv_transpose2d convolution cos cumsum detach diff div einsum elu embedding empty_like eq erf exp expand
expand_as eye fill flatten flip floor floor_divide full full_like gather ge gelu glu group_norm gt hardsigmoid hardswish
hardtanh im2col index index_select instance_norm isinf isnan layer_norm le leaky_relu lift_fresh_copy linear linspace log log1p
log_softmax logical_and logical_not logical_or lt masked_fill matmul max max_pool1d max_pool2d max_pool3d maximum mean
meshgrid min minimum mish mm movedim mul narrow native_group_norm native_layer_norm ne neg new_full new_ones new_zeros
nonzero norm numel one_hot ones ones_like outer pad permute pixel_shuffle pixel_unshuffle pow prelu prod reciprocal relu relu6
remainder repeat repeat_interleave reshape resolve_conj rms_norm roll round rsqrt rsub scalar_tensor
scaled_dot_product_attention select selu sigmoid sign silu sin slice softmax softplus softsign split split_with_sizes sqrt
squeeze stack std sub sum sym_numel sym_size t tan tanh tensor_split threshold tile to topk transpose tril triu type_as unbind
unflatten unfold unsafe_split unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d
upsample_nearest2d upsample_trilinear3d var var_mean view view_as where zeros zeros_like _softmax _log_softmax _to_copy
_unsafe_view __and__ __or__
"""
SAFE = frozenset(_WORDS.split())


def allowed(target: str) -> bool:
    """May a file name this operation, as in "aten.add.Tensor" or "operator.mul"? Overloads that write to an argument may not.

    >>> allowed("aten.add.Tensor"), allowed("aten.from_file.default"), allowed("os.system")
    (True, False, False)
    """
    from secateur.runtime.graph import SCALARS

    space, _, rest = target.partition(".")
    word, _, overload = rest.partition(".")
    if space == "operator":
        return rest in SCALARS
    packet = getattr(torch.ops.aten, word, None) if space == "aten" and word in SAFE else None
    if packet is None or overload not in packet.overloads():
        return False
    arguments = getattr(packet, overload)._schema.arguments
    return not any(argument.alias_info and argument.alias_info.is_write for argument in arguments)
