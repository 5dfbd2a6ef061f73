"""The only folder that changes shapes."""

from secateur.surgery.apply import apply, apply_
from secateur.surgery.attention import FollowingAttention, follow_heads
from secateur.surgery.copies import clone
from secateur.surgery.fingerprint import fingerprint, mismatches, shapes_after, tensors
from secateur.surgery.norms import is_rms_norm
from secateur.surgery.optimizer import carry
from secateur.surgery.preview import Preview

__all__ = [
    "FollowingAttention",
    "Preview",
    "apply",
    "apply_",
    "carry",
    "clone",
    "fingerprint",
    "follow_heads",
    "is_rms_norm",
    "mismatches",
    "shapes_after",
    "tensors",
]
