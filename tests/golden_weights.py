"""Parameters and signals that the golden vectors were recorded with; both are functions of names and seeds."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
import torchaudio

GOLDEN = Path(__file__).parent / "golden"


def keys(name):
    """The entries of an official state dict: [[name, shape, dtype], …]."""
    return json.loads((GOLDEN / f"{name}.keys.json").read_text(encoding="utf-8"))


def fill(keys):
    """A state dict in which each floating-point entry is drawn from its own name; integer entries are zero, and what
    belongs to the frontend of PANNs is the transform itself.
    """
    tensors = {
        name: _values(name, shape) if "float" in dtype else torch.zeros(shape).long() for name, shape, dtype in keys
    }
    return tensors | {name: part for name, part in transform().items() if name in tensors}


def transform(window=1024, rate=32_000, bands=64, low=50, high=14_000):
    """The frontend's tensors in PANNs' official files: Fourier transform of Hann windows, Slaney's mel bands."""
    fourier = np.fft.rfft(np.eye(window), axis=0) * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window))
    mel = torchaudio.functional.melscale_fbanks(window // 2 + 1, low, high, bands, rate, "slaney", "slaney")
    return {
        "spectrogram_extractor.stft.conv_real.weight": torch.from_numpy(fourier.real.astype(np.float32))[:, None],
        "spectrogram_extractor.stft.conv_imag.weight": torch.from_numpy(fourier.imag.astype(np.float32))[:, None],
        "logmel_extractor.melW": mel,
    }


def under(prefix, tensors):
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _values(name, shape):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        values = 1.0 + 0.1 * rng.random(shape)
    elif name.endswith("running_mean"):
        values = 0.1 * rng.standard_normal(shape)
    elif len(shape) <= 1:
        values = 0.1 * rng.standard_normal(shape) + (1.0 if name.endswith("weight") else 0.0)
    else:
        values = rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def waveform(spec):
    """[batch, seconds, sample_rate, seed] → (batch, samples): a sweep, two tones and noise for each clip."""
    batch, seconds, rate, seed = spec
    batch, rate, rng = int(batch), int(rate), np.random.default_rng(int(seed))
    t = np.arange(int(seconds * rate)) / rate
    clips = []
    for clip in range(batch):
        low, high = 200 + 150 * clip, 5000 - 400 * clip
        sweep = np.sin(2 * np.pi * (low * t + (high - low) * t**2 / (2 * seconds)))
        tones = 0.5 * np.sin(2 * np.pi * 440 * (clip + 1) * t) + 0.25 * np.sin(2 * np.pi * 3000 * t)
        clips.append(0.4 * sweep + 0.2 * tones + 0.05 * rng.standard_normal(t.size))
    return torch.from_numpy(np.stack(clips).astype(np.float32))
