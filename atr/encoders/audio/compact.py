"""Two small audio encoders, PANNs in the small: a plain one and a residual one, for two CPU cores."""

import torch
from torch import Tensor, nn

from atr import register
from atr.encoders.audio.cnn import SpectrogramCNN
from atr.encoders.audio.frontends import LogMel
from atr.encoders.pooling import frame_mask

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


class Compact(SpectrogramCNN):
    """Log-mel → batch-norm over bands → strided 8 × 8 stem → blocks → (frames, `dim`), at 16 kHz.

    One frame covers 640 ms. Padding is zeroed before every convolution, so a clip's frames do not depend on
    what else is in its batch (in evaluation mode).
    """

    sample_rate = 16_000
    cached = True
    head_hidden = 1

    def __init__(self, block: type[nn.Module], augment: str | None, dropout: None) -> None:
        if dropout is not None:
            raise ValueError(f"dropout: {dropout} is nothing for a compact encoder, which has none; leave it at None")
        # PANNs' bn0 without its scale and shift, which the stem can absorb: no gradient through the largest map.
        # Frames of 20 ms: stripes of half PANNs' number.
        logmel = LogMel(self.sample_rate, window=1024, hop=320, bands=64, low=50, high=8000)
        super().__init__(logmel, nn.BatchNorm1d(64, affine=False), augment, stripe=32)
        width, self.dim = 32, 192
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 8, stride=(8, 4), padding=(4, 2), bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.blocks = nn.ModuleList([block(width, 2 * width, 2), block(2 * width, self.dim, 2)])
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a fifth faster on a CPU

    def frame_times(self, count: int) -> Tensor:
        """Strides of 8, 2 and 2 over frames of 20 ms, each centred on its first."""
        return 0.64 * torch.arange(count)

    def encode(self, features: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, 64, frames) in dB, lengths (B,) in frames → frames (B, T, dim), mask (B, T)."""
        x, mask = self.normalise(features, lengths)
        if lengths is None:
            lengths = torch.full((len(features),), features.shape[2], device=features.device)
        x, lengths = self.stem(x), lengths // 8 + 1
        for block in self.blocks:
            if mask is not None:
                x = x * frame_mask(lengths, x.shape[2])[:, None, :, None]
            lengths = (lengths + 1) // 2
            inner_mask = None if mask is None else frame_mask(lengths, (x.shape[2] + 1) // 2)[:, None, :, None]
            x = block(x, inner_mask)
        return x.mean(3).transpose(1, 2), frame_mask(lengths, x.shape[2])


@register.encoder("compact")
def compact(augment: str | None = None, dropout: None = None) -> Compact:
    return Compact(PlainBlock, augment, dropout)


@register.encoder("compact_resnet")
def compact_resnet(augment: str | None = None, dropout: None = None) -> Compact:
    return Compact(ResidualBlock, augment, dropout)
