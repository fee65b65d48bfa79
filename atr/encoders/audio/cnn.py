"""What the convolutional encoders share: log-mel, batch-norm over bands, SpecAugment, pooling over time."""

import torch
from torch import Tensor, nn

from atr.encoders.audio.frontends import LogMel, SpecAugment
from atr.encoders.pooling import frame_mask, mean


class SpectrogramCNN(nn.Module):
    """Frontend, first normalisation and pooling of a network over log-mels; `encode` is the network's own.

    forward(waveform (B, samples), lengths (B,) samples or None) → frames (B, T, dim), mask (B, T) bool.
    """

    sample_rate: int
    dim: int
    dropped: tuple[str, ...] = ()

    def __init__(self, logmel: LogMel, bn0: nn.BatchNorm1d, augment: str | None, stripe: int) -> None:
        """augment: None or "specaugment", with stripes of time narrower than `stripe` frames."""
        super().__init__()
        if augment not in (None, "specaugment"):
            raise ValueError(f"augment: {augment!r} is nothing for a CNN, which offers 'specaugment' and None")
        self.logmel, self.bn0 = logmel, bn0
        self.augment = SpecAugment(time=stripe) if augment else nn.Identity()

    def frontend(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, samples), lengths (B,) in samples → (B, 64, frames) in dB."""
        return self.logmel(waveform, lengths)

    def feature_lengths(self, samples: Tensor) -> Tensor:
        return self.logmel.lengths(samples)

    def encode(self, features: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, 64, frames) in dB, lengths (B,) in frames → frames (B, T, dim), mask (B, T)."""
        raise NotImplementedError

    def normalise(self, features: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, 64, frames) in dB → (B, 1, frames, 64) after batch-norm and SpecAugment, and the mask (B, frames).

        What lies behind a clip's end becomes 0. The mask is None where no clip is shorter than the tensor.
        """
        mask = None
        if lengths is not None and bool((lengths < features.shape[2]).any()):
            # Batch statistics of the clips alone: padding, 0 dB, is louder than any of them.
            mask = frame_mask(lengths, features.shape[2])
            x = torch.zeros_like(features.transpose(1, 2))
            x[mask] = self.bn0(features.transpose(1, 2)[mask]).to(x.dtype)
        else:
            x = self.bn0(features).transpose(1, 2)
        return self.augment(x)[:, None], mask

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        feature_lengths = None if lengths is None else self.feature_lengths(lengths)
        return self.encode(self.frontend(waveform, lengths), feature_lengths)

    def pool(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Maximum over time plus mean over time (Kong et al. 2020): (B, T, dim), (B, T) → (B, dim)."""
        highest = frames.masked_fill(~mask[:, :, None], float("-inf")).amax(1)
        return highest + mean(frames, mask)
