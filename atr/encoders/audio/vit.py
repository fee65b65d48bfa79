"""What PaSST and ATST-Frame share: a vision transformer's blocks, and long clips cut into segments of ten seconds."""

import torch
from torch import Tensor, nn

from atr.encoders.pooling import frame_mask, mean

SECONDS = 10  # of a segment: what both networks were trained on
HOPS = 1000  # feature frames begin every 10 ms


class Attention(nn.Module):
    """Multi-head self-attention: (N, tokens, width) → the same."""

    def __init__(self, width: int, heads: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.dropout(self.proj(mixed.transpose(1, 2).flatten(2)))


class MLP(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(nn.functional.gelu(self.fc1(x)))
        return self.dropout(self.fc2(x))


class Block(nn.Module):
    """Pre-norm transformer block (Dosovitskiy et al. 2021): (N, tokens, width) → the same."""

    def __init__(self, width: int, heads: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = layer_norm(width), layer_norm(width)
        self.attn = Attention(width, heads, bias, dropout)
        self.mlp = MLP(width, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def layer_norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6)


def table(*shape: int) -> nn.Parameter:
    """A learned token or table of positions, drawn as in the released networks."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))


def initialise(module: nn.Module) -> None:
    """Draw a linear layer as in the released networks; for `nn.Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class SegmentEncoder(nn.Module):
    """An audio encoder that hears ten seconds at a time.

    forward(waveform (B, samples), lengths (B,) samples or None) → frames (B, segments · frames_out, dim), mask bool.
    A clip is padded with zeros to whole segments of 10 s, and each segment goes through the network by itself. A frame
    counts when any of its time lies inside the clip: the first ceil(n · length / padded length) of n frames, as in the
    code of Tymofieiev (2025). Segments behind a clip's end are not computed; their frames are zero.

    A subclass sets the attributes below and `mel`, and defines `network`.
    """

    sample_rate: int
    dim: int
    window = float(SECONDS)  # a shorter sound is padded to it here, so that `short` stays None
    cached = False
    head_hidden = 1
    frames_in: int  # feature frames of a segment
    frames_out: int  # frames that the network makes of them
    mel: nn.Module  # (N, samples of a segment) → (N, bands, frames_in)

    def network(self, features: Tensor) -> Tensor:
        """(N, bands, frames_in) → (N, frames_out, dim)."""
        raise NotImplementedError

    def frontend(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, samples), lengths (B,) in samples → (B, bands, segments · frames_in), the segments side by side.

        Raises ValueError for a clip without samples.
        """
        size, segment = waveform.shape[1], SECONDS * self.sample_rate
        if size == 0 or lengths is not None and int(lengths.min()) < 1:
            raise ValueError("a clip of 0 samples cannot be heard: leave it out")
        if lengths is not None:
            waveform = waveform.masked_fill(~frame_mask(lengths, size), 0)
        segments = nn.functional.pad(waveform, (0, -size % segment)).unflatten(1, (-1, segment))
        with torch.autocast(waveform.device.type, enabled=False):
            features = self.mel(segments.flatten(0, 1).float())
        return features.unflatten(0, segments.shape[:2]).transpose(1, 2).flatten(2)

    def frame_times(self, count: int) -> Tensor:
        """As many frames in each segment, side by side."""
        return (torch.arange(count) + 0.5) * SECONDS / self.frames_out

    def feature_lengths(self, samples: Tensor) -> Tensor:
        """Feature frames that begin inside clips of `samples` samples."""
        segment, hop = SECONDS * self.sample_rate, SECONDS * self.sample_rate // HOPS
        return samples // segment * self.frames_in + (samples % segment + hop - 1) // hop

    def encode(self, features: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, bands, segments · frames_in), lengths (B,) in feature frames → frames, mask.

        Without lengths every clip fills its segments.
        """
        segments = features.unflatten(2, (-1, self.frames_in)).transpose(1, 2)  # (B, segments, bands, frames_in)
        if lengths is None:
            lengths = torch.full((len(features),), features.shape[2], device=features.device)
        rest = (lengths % self.frames_in * self.frames_out + HOPS - 1) // HOPS
        counts = lengths // self.frames_in * self.frames_out + rest
        mask = frame_mask(counts, segments.shape[1] * self.frames_out)
        present = mask[:, :: self.frames_out]  # segments whose first frame counts
        made = self.network(segments[present])
        frames = made.new_zeros(*present.shape, *made.shape[1:])
        frames[present] = made
        return frames.flatten(1, 2), mask

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        features = self.frontend(waveform, lengths)
        if lengths is None:
            lengths = torch.full((len(waveform),), waveform.shape[1], device=waveform.device)
        return self.encode(features, self.feature_lengths(lengths))

    pool = staticmethod(mean)
