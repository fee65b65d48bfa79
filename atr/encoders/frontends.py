"""Waveform to log-mel, and SpecAugment."""

import torch
import torchaudio
from torch import Tensor, nn


class LogMel(nn.Module):
    """Log-mel spectrogram as PANNs computes it (Kong et al. 2020): Hann window, power, Slaney mel scale and norm, dB.

    (B, samples) in [-1, 1] at `sample_rate` → (B, bands, frames) in dB, frames = 1 + samples // hop; centred with
    reflection, 10·log10(max(x, 1e-10)), no top_db.
    """

    def __init__(self, sample_rate: int, window: int, hop: int, bands: int, low: float, high: float) -> None:
        super().__init__()
        self.hop = hop
        self.description = ("logmel", 1, sample_rate, window, hop, bands, low, high)
        self.mel = torchaudio.transforms.MelSpectrogram(
            sample_rate,
            n_fft=window,
            hop_length=hop,
            f_min=low,
            f_max=high,
            n_mels=bands,
            norm="slaney",
            mel_scale="slaney",
            center=False,
        )
        # Fixed by the arguments: kept out of checkpoints, as released files name them differently.
        for module in self.mel.modules():
            module._non_persistent_buffers_set.update(module._buffers)

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """lengths: (B,) samples; each clip is reflected at its own end, so its frames do not depend on the padding."""
        margin, size = self.mel.n_fft // 2, waveform.shape[-1]
        shortest = size if lengths is None else int(lengths.min())
        if shortest <= margin:
            raise ValueError(f"{shortest} samples are too few for a window of {2 * margin}: pad the clip with zeros")
        if lengths is None:
            waveform = nn.functional.pad(waveform, (margin, margin), mode="reflect")
        else:
            place = torch.arange(-margin, size + margin, device=waveform.device).abs()[None]
            last = lengths[:, None] - 1
            waveform = waveform.gather(1, torch.where(place > last, 2 * last - place, place).clamp(min=0))
        return 10 * self.mel(waveform).clamp(min=1e-10).log10()

    def lengths(self, samples: Tensor) -> Tensor:
        """Frames of clips of `samples` samples."""
        return 1 + samples // self.hop


class SpecAugment(nn.Module):
    """Zero two stripes of time and two of frequency, drawn for each clip (Park et al. 2019, as PANNs uses it).

    A stripe's width is drawn from 0 to `time` - 1 frames, or `bands` - 1 bands. In evaluation nothing happens.
    """

    def __init__(self, time: int = 64, bands: int = 8, stripes: int = 2) -> None:
        super().__init__()
        self.time, self.bands, self.stripes = time, bands, stripes

    def forward(self, features: Tensor) -> Tensor:
        """(B, frames, bands) → the same, with stripes of zeros."""
        if not self.training:
            return features
        keep = self._keep(features, 1, self.time)[:, :, None] & self._keep(features, 2, self.bands)[:, None, :]
        return features * keep

    def _keep(self, features: Tensor, axis: int, widest: int) -> Tensor:
        size, device = features.shape[axis], features.device
        shape = (len(features), self.stripes, 1)
        width = torch.randint(0, max(1, min(widest, size)), shape, device=device)
        start = (torch.rand(shape, device=device) * (size - width)).long()
        place = torch.arange(size, device=device)
        return ~((place >= start) & (place < start + width)).any(1)
