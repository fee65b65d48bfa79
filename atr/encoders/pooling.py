"""Means over the frames of clips of unequal length."""

from torch import Tensor


def mean(frames: Tensor, mask: Tensor) -> Tensor:
    """Mean of the frames that count: (B, T, dim), (B, T) → (B, dim)."""
    keep = mask[:, :, None]
    return (frames * keep).sum(1) / keep.sum(1)
