"""Two small audio encoders, PANNs in the small: a plain one and a residual one, for two CPU cores."""

import torch
from torch import Tensor, nn

from atr.encoders.frontends import LogMel, SpecAugment

ENCODER_VERSION = 1  # raised when the same weights would give other features


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))


class PlainBlock(nn.Module):
    """3 × 3 convolution, batch-norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.convolution = convolution(inputs, outputs, stride)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.convolution(x).relu()


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = convolution(inputs, outputs, stride), convolution(outputs, outputs)
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """mask: (B, 1, T, 1) of the output's valid frames, or None where all are."""
        inner = self.first(x).relu()
        return (self.second(inner if mask is None else inner * mask) + self.shortcut(x)).relu()


class Compact(nn.Module):
    """Log-mel → batch-norm over bands → strided 8 × 8 stem → blocks → (frames, `dim`).

    forward(waveform (B, samples) at 16 kHz, lengths (B,) samples or None) → frames (B, T, dim), mask (B, T) bool.
    One frame covers 640 ms. Padding is zeroed before every convolution, so a clip's frames do not depend on
    what else is in its batch (in evaluation mode).
    """

    sample_rate = 16_000

    def __init__(self, block: type[nn.Module], width: int = 32, dim: int = 192, augment: bool = False) -> None:
        super().__init__()
        self.dim = dim
        self.logmel = LogMel(self.sample_rate, window=1024, hop=320, bands=64, low=50, high=8000)
        # PANNs' bn0 without its scale and shift, which the stem can absorb: no gradient through the largest map.
        self.bn0 = nn.BatchNorm1d(64, affine=False)
        self.augment = SpecAugment(time=32) if augment else nn.Identity()  # frames of 20 ms: half of PANNs' number
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 8, stride=(8, 4), padding=(4, 2), bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.blocks = nn.ModuleList([block(width, 2 * width, 2), block(2 * width, dim, 2)])
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a fifth faster on a CPU

    def frontend(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, samples), lengths (B,) in samples → (B, 64, frames) in dB."""
        return self.logmel(waveform, lengths)

    def feature_lengths(self, samples: Tensor) -> Tensor:
        return self.logmel.lengths(samples)

    def encode(self, features: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, 64, frames) in dB, lengths (B,) in frames → frames (B, T, dim), mask (B, T)."""
        if lengths is None:
            lengths = torch.full((len(features),), features.shape[2], device=features.device)
        ragged = bool((lengths < features.shape[2]).any())
        if ragged:  # batch statistics of the clips alone: padding, 0 dB, is louder than any of them
            valid = self._mask(lengths, features.shape[2])
            x = torch.zeros_like(features.transpose(1, 2))
            x[valid] = self.bn0(features.transpose(1, 2)[valid]).to(x.dtype)
        else:
            x = self.bn0(features).transpose(1, 2)
        x = self.augment(x)[:, None]  # (B, 1, time, bands)
        x, lengths = self.stem(x), lengths // 8 + 1
        for block in self.blocks:
            if ragged:
                x = x * self._mask(lengths, x.shape[2])[:, None, :, None]
            lengths = (lengths + 1) // 2
            inner_mask = self._mask(lengths, (x.shape[2] + 1) // 2)[:, None, :, None] if ragged else None
            x = block(x, inner_mask)
        return x.mean(3).transpose(1, 2), self._mask(lengths, x.shape[2])

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        feature_lengths = None if lengths is None else self.feature_lengths(lengths)
        return self.encode(self.frontend(waveform, lengths), feature_lengths)

    def pool(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Maximum over time plus mean over time (Kong et al. 2020): (B, T, dim), (B, T) → (B, dim)."""
        keep = mask[:, :, None]
        highest = frames.masked_fill(~keep, float("-inf")).amax(1)
        return highest + (frames * keep).sum(1) / keep.sum(1)

    @staticmethod
    def _mask(lengths: Tensor, size: int) -> Tensor:
        return torch.arange(size, device=lengths.device) < lengths[:, None]


def compact(augment: bool = False) -> Compact:
    return Compact(PlainBlock, augment=augment)


def compact_resnet(augment: bool = False) -> Compact:
    return Compact(ResidualBlock, augment=augment)
