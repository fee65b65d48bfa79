"""The frames of clips of unequal length: which of them count, their means, and their pooling by caption."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def frame_mask(lengths: Tensor, size: int) -> Tensor:
    """Lengths (B,) → (B, size) bool, True before each end."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def mean(frames: Tensor, mask: Tensor) -> Tensor:
    """Mean of the frames that count: (B, T, dim), (B, T) → (B, dim)."""
    keep = mask[:, :, None]
    return (frames * keep).sum(1) / keep.sum(1)


@dataclass(eq=False)  # not frozen: Lightning replaces the tensors of what a network gives
class FrameRows:
    """What a text-aware model makes of clips, side by side: values (B, T, dim), zeros behind a clip's end, and mask
    (B, T) bool, which of the frames count. To be moved, indexed and joined by clip, as a tensor (B, …) is.
    """

    values: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    def __getitem__(self, rows: Any) -> "FrameRows":
        return FrameRows(self.values[rows], self.mask[rows])

    def __setitem__(self, rows: Any, other: "FrameRows") -> None:
        """T grows where that of `other` is more."""
        size, room = other.shape[1], self.pad(other.shape[1])
        self.values, self.mask = room.values, room.mask
        self.values[rows, :size], self.mask[rows, :size] = other.values, other.mask
        self.mask[rows, size:] = False

    @staticmethod
    def cat(parts: Sequence["FrameRows"]) -> "FrameRows":
        """The clips of all parts, T that of the longest."""
        parts = [part.pad(max(one.shape[1] for one in parts)) for part in parts]
        return FrameRows(torch.cat([part.values for part in parts]), torch.cat([part.mask for part in parts]))

    def pad(self, size: int) -> "FrameRows":
        """With T of at least `size`."""
        more = size - self.shape[1]
        if more <= 0:
            return self
        return FrameRows(F.pad(self.values, (0, 0, 0, more)), F.pad(self.mask, (0, more)))

    def new_zeros(self, *shape: int) -> "FrameRows":
        return FrameRows(self.values.new_zeros(shape), self.mask.new_zeros(shape[:2]))

    def to(self, *place: Any, **how: Any) -> "FrameRows":
        return FrameRows(self.values.to(*place, **how), self.mask.to(*place, **how))

    def float(self) -> "FrameRows":
        return FrameRows(self.values.float(), self.mask)

    def exchange(self, work: Callable[[Tensor], Tensor]) -> "FrameRows":
        """What `work` makes of both, between processes, which exchange no booleans."""
        return FrameRows(work(self.values), work(self.mask.byte()).bool())

    def isfinite(self) -> Tensor:
        return self.values.isfinite()

    def mean(self, dim: int = 1) -> Tensor:
        """(B, dim) of the frames that count; over frames alone, as `dim` says of a tensor."""
        assert dim == 1
        return mean(self.values, self.mask)


# Bytes of attention and pooled frames that scoring without gradients holds at a time: what a CPU's caches nearly hold.
MEMORY = {"cpu": 2**25, "cuda": 2**28}


class TextAwarePooling(nn.Module):
    """Scaled dot-product attention from a caption to the frames of a sound (Tymofieiev 2025, section 3.6).

    dim, projection_dim: D and D_p of the thesis. One layer norm serves captions, frames and the pooled sound.
    dropout: of attention weights, in training.
    variant: "text", or "code", whose scoring hands on captions of length 1 from the second clip of a pass on, but
    as they are to the first, which matters only through the layer norm's epsilon.

    A pooled sound belongs to one caption, so every pair has to be scored. Products that no pair enters are made once:
    with scores q · W_k x, the query is taken through W_k, and what a bias adds to all frames of a clip alike leaves a
    softmax as it is; values go through W_v and W_0 together. Attention then runs in D instead of D_p dimensions.
    """

    def __init__(self, dim: int, projection_dim: int, dropout: float = 0.0, variant: str = "text") -> None:
        super().__init__()
        self.w_q, self.w_k, self.w_v = (nn.Linear(dim, projection_dim) for _ in range(3))
        self.w_0 = nn.Linear(projection_dim, dim)
        self.layer_norm = nn.LayerNorm(dim)
        self.dropout, self.variant = nn.Dropout(dropout), variant

    def forward(self, frames: Tensor, mask: Tensor, text: Tensor) -> Tensor:
        """frames (clips, T, D), mask (clips, T) bool, text (texts, D) → pooled (clips, texts, D)."""
        sounds = self.layer_norm(frames)
        return self._pool(sounds, F.linear(sounds, *self._fold()), mask, self._queries(text))

    def attention(self, frames: Tensor, mask: Tensor, text: Tensor) -> Tensor:
        """Weights (clips, texts, T) that each caption gives to the frames of each clip; they sum to 1."""
        return self._weights(self.layer_norm(frames), mask, self._queries(text))

    def similarity(self, frames: Tensor, mask: Tensor, text: Tensor, memory: int | None = None) -> Tensor:
        """Cosine of each caption with each clip as that caption pools it: (texts, clips).

        Without gradients, `memory` bytes (None: `MEMORY` of the device) are held at a time, but at least one pair; with
        them, all there is.
        ValueError: a clip without a frame.
        """
        if not mask.any(1).all():
            raise ValueError("a clip without a frame cannot be heard: leave it out")
        memory = MEMORY[frames.device.type] if memory is None else memory
        size = 4 * (frames.shape[1] + 3 * frames.shape[2])  # bytes of a pair
        pairs = frames.shape[0] * text.shape[0] if torch.is_grad_enabled() else max(1, memory // size)
        target = F.normalize(text, dim=1)
        queries = self._queries(target if self.variant == "code" else text)
        first = self._queries(text) if self.variant == "code" else queries
        folded, texts = self._fold(), min(len(text), pairs)
        result = frames.new_empty(frames.shape[0], text.shape[0])
        for clips in _blocks(frames.shape[0], max(1, pairs // texts), alone=self.variant == "code"):
            here = mask[clips]
            last = int(here.any(0).nonzero().max()) + 1  # frames behind all clips of the block
            here, sounds = here[:, :last], self.layer_norm(frames[clips, :last])
            values, block = F.linear(sounds, *folded), first if clips.start == 0 else queries
            for rows in _blocks(len(text), texts):
                pooled = self._pool(sounds, values, here, block[rows])
                length = torch.linalg.vector_norm(pooled, dim=-1).clamp_min(1e-12)
                result[clips, rows] = torch.einsum("ctd,td->ct", pooled, target[rows]) / length
        return result.T

    def _queries(self, text: Tensor) -> Tensor:
        return self.w_q(self.layer_norm(text)) @ self.w_k.weight / self.w_q.out_features**0.5

    def _fold(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of W_v and W_0 as one layer."""
        return self.w_0.weight @ self.w_v.weight, self.w_0.weight @ self.w_v.bias

    def _weights(self, sounds: Tensor, mask: Tensor, queries: Tensor) -> Tensor:
        scores = queries @ sounds.transpose(1, 2)
        return scores.masked_fill_(~mask[:, None], float("-inf")).softmax(-1)

    def _pool(self, sounds: Tensor, values: Tensor, mask: Tensor, queries: Tensor) -> Tensor:
        weights = self.dropout(self._weights(sounds, mask, queries))
        return self.layer_norm((weights @ values).add_(self.w_0.bias))


def _blocks(count: int, size: int, alone: bool = False) -> Iterator[slice]:
    """0 to `count` in steps of `size`; with `alone`, the first by itself."""
    starts = [0, *range(1, count, size)] if alone else list(range(0, count, size))
    for start, end in zip(starts, [*starts[1:], count], strict=True):
        yield slice(start, end)
