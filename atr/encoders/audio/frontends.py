"""Waveform to log-mel as each encoder was trained on it, and SpecAugment."""

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
        with torch.device("cpu"):  # an encoder may be laid out on the meta device, its frontend is never loaded
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
        margin = self.mel.n_fft // 2
        shortest = waveform.shape[-1] if lengths is None else int(lengths.min())
        if shortest <= margin:
            raise ValueError(f"{shortest} samples are too few for a window of {2 * margin}: pad the clip with zeros")
        with torch.autocast(waveform.device.type, enabled=False):  # half precision would not do for powers
            padded = nn.functional.pad(waveform.float(), (margin, margin), mode="reflect")
            if lengths is not None:
                end, step = margin + lengths[:, None], torch.arange(margin, device=waveform.device)
                padded.scatter_(1, end + step, padded.gather(1, end - 2 - step))
            few = 4 if padded.device.type == "cpu" else len(padded)  # parts that fit a CPU's cache
            power = torch.cat([self.mel(part).transpose(1, 2) for part in padded.split(few)])
            return 10 * power.clamp(min=1e-10).log10().transpose(1, 2)

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
        return features * self.keep(features) if self.training else features

    def keep(self, features: Tensor) -> Tensor:
        """(B, frames, bands) bool of features: False within a stripe."""
        return self._keep(features, 1, self.time)[:, :, None] & self._keep(features, 2, self.bands)[:, None, :]

    def over(self, stride: int) -> "SpecAugment":
        """The same over states that lie `stride` frames and bands apart, of which a stripe may hold one at least."""
        return SpecAugment(max(2, self.time // stride), max(2, self.bands // stride), self.stripes)

    def _keep(self, features: Tensor, axis: int, widest: int) -> Tensor:
        size, device = features.shape[axis], features.device
        shape = (len(features), self.stripes, 1)
        width = torch.randint(0, max(1, min(widest, size)), shape, device=device)
        start = (torch.rand(shape, device=device) * (size - width)).long()
        place = torch.arange(size, device=device)
        return ~((place >= start) & (place < start + width)).any(1)


class PaSSTMel(nn.Module):
    """Log-mel spectrogram as PaSST computes it (Koutini et al. 2022): pre-emphasis, Kaldi's mel bands, logarithm.

    (N, samples) at 32 kHz, float32 → (N, 128, 1 + (samples - 1) // 320); symmetric Hann window of 25 ms, power,
    (ln(x + 1e-5) + 4.5) / 5. Bands from 0 to 15,000 Hz. In training the edges are drawn anew for each batch: the lower
    from 0 to 9 Hz, the upper from 14,001 to 16,000 Hz.
    """

    bands = 128
    window: Tensor
    banks: Tensor

    def __init__(self) -> None:
        super().__init__()
        with torch.device("cpu"):  # as in LogMel
            self.register_buffer("window", torch.hann_window(800, periodic=False), persistent=False)
            self.register_buffer("banks", self.mel_banks(0, 15_000), persistent=False)

    def mel_banks(self, low: int, high: int) -> Tensor:
        """(128, 513): weights of the bands between two frequencies in Hz."""
        banks, _ = torchaudio.compliance.kaldi.get_mel_banks(self.bands, 1024, 32_000, low, high, 100.0, -500.0, 1.0)
        return nn.functional.pad(banks, (0, 1))

    def forward(self, waveform: Tensor) -> Tensor:
        banks = self.banks
        if self.training:
            low, high = int(torch.randint(10, ())), 16_000 - int(torch.randint(2000, ()))
            banks = self.mel_banks(low, high).to(waveform.device)
        power = _mel(waveform[:, 1:] - 0.97 * waveform[:, :-1], banks, self.window, hop=320)
        return ((power + 1e-5).log() + 4.5) / 5


class ATSTMel(nn.Module):
    """Log-mel spectrogram as ATST-Frame computes it (Li, Shao and Li 2024), scaled to about [-1, 1].

    (N, samples) at 16 kHz, float32 → (N, 64, 1 + samples // 160); Hann window of 64 ms, power, HTK's mel scale from 60
    to 7,800 Hz, dB; not below 80 dB under the row's own maximum, clamped to [-50, 80] dB.
    """

    bands = 64
    window: Tensor
    banks: Tensor

    def __init__(self) -> None:
        super().__init__()
        with torch.device("cpu"):  # as in LogMel
            banks = torchaudio.functional.melscale_fbanks(513, 60.0, 7800.0, self.bands, 16_000)
            self.register_buffer("window", torch.hann_window(1024), persistent=False)
            self.register_buffer("banks", banks.T.contiguous(), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        decibels = 10 * _mel(waveform, self.banks, self.window, hop=160).clamp(min=1e-10).log10()
        decibels = decibels.maximum(decibels.amax((1, 2), keepdim=True) - 80).clamp(-50, 80)
        low, high = -79.6482, 50.6842  # of the network's training data
        return 2 * (decibels - low) / (high - low) - 1


def _mel(waveform: Tensor, banks: Tensor, window: Tensor, hop: int) -> Tensor:
    """(N, samples), (bands, 513) → mel powers (N, bands, 1 + samples // hop), centred with reflection."""
    few = 4 if waveform.device.type == "cpu" else len(waveform)  # parts that fit a CPU's cache
    parts = (torch.stft(part, 1024, hop, len(window), window, return_complex=True) for part in waveform.split(few))
    return torch.cat([banks @ (part.real.square() + part.imag.square()) for part in parts])
