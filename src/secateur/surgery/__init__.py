"""The only folder that changes shapes."""

from secateur.core.attention import FollowingAttention, follow_heads
from secateur.surgery.apply import apply, apply_
from secateur.surgery.copies import clone, duplicate, forget, remembered
from secateur.surgery.fingerprint import fingerprint, mismatches, shapes_after, tensors
from secateur.surgery.mask import masks_after
from secateur.surgery.norms import is_norm, is_rms_norm
from secateur.surgery.optimizer import carry
from secateur.surgery.preview import Preview, gates
from secateur.surgery.soft import Gated, on_batch_statistics
from secateur.surgery.split import BlockDiagonal, splittable
from secateur.surgery.unfold import expand, fold, pieces, project, unfold

__all__ = [
    "BlockDiagonal",
    "FollowingAttention",
    "Gated",
    "Preview",
    "apply",
    "apply_",
    "carry",
    "clone",
    "duplicate",
    "expand",
    "fingerprint",
    "fold",
    "follow_heads",
    "forget",
    "gates",
    "is_norm",
    "is_rms_norm",
    "masks_after",
    "mismatches",
    "on_batch_statistics",
    "pieces",
    "project",
    "remembered",
    "shapes_after",
    "splittable",
    "tensors",
    "unfold",
]
