"""Building blocks of synthesised sound: noise, tones, resonances, envelopes and rhythms, at 16 kHz."""

from collections.abc import Callable

import numpy as np
from scipy.fft import irfft, next_fast_len

RATE = 16_000
HOP = 160  # control curves have one value every 10 ms
TABLE = 2_048  # samples of one period in a wavetable


def noise(rng: np.random.Generator, n: int, low: float, high: float, tilt: float = 0.0) -> np.ndarray:
    """Gaussian noise (n,) between `low` and `high` Hz with `tilt` dB per octave inside, of RMS 1."""
    size = next_fast_len(max(n, 64), real=True)
    bins = size // 2 + 1
    frequency = np.arange(bins, dtype=np.float32) * (RATE / size) + 1.0
    shape = frequency ** (tilt / 6.02) / (1 + (low / frequency) ** 6) / (1 + (frequency / high) ** 6)
    spectrum = rng.standard_normal(2 * bins, dtype=np.float32).view(np.complex64) * shape.astype(np.float32)
    wave = irfft(spectrum, size)[:n]
    return wave / (np.sqrt(np.mean(wave**2)) + 1e-12)


def upsample(values: np.ndarray, n: int) -> np.ndarray:
    """Linear interpolation of control values, one every `HOP` samples, to n samples."""
    values = np.asarray(values, np.float32)
    ramp = np.arange(HOP, dtype=np.float32) / HOP
    return (values[:-1, None] + np.diff(values)[:, None] * ramp).ravel()[:n]


def controls(n: int) -> np.ndarray:
    """Times in seconds of the control values that `upsample` needs for n samples."""
    return np.arange(n // HOP + 2) * (HOP / RATE)


def wander(rng: np.random.Generator, n: int, rate: float, low: float, high: float) -> np.ndarray:
    """A slow random curve (n // HOP + 2,) between `low` and `high` with about `rate` turns a second."""
    times = controls(n)
    points = int(times[-1] * rate) + 3
    return np.interp(times * rate + rng.uniform(), np.arange(points + 1), rng.uniform(low, high, points + 1))


def tone(frequency: np.ndarray | float, amplitudes: np.ndarray, rng: np.random.Generator, n: int) -> np.ndarray:
    """A harmonic tone (n,): `frequency` in Hz, a number or control values; amplitudes of harmonics 1, 2, …

    Harmonics that would pass 7.6 kHz are left out.
    """
    values = np.broadcast_to(np.asarray(frequency, np.float64), (n // HOP + 2,))
    keep = max(1, min(len(amplitudes), int(7_600 / values.max())))
    spectrum = np.zeros(TABLE // 2 + 1, complex)
    spectrum[1 : keep + 1] = amplitudes[:keep] * np.exp(2j * np.pi * rng.uniform(size=keep))
    table = irfft(spectrum, TABLE).astype(np.float32) * TABLE
    # Phase from 10 ms steps in double precision; a running float32 sum would drift.
    steps = values[:-1] * (HOP / RATE)
    start = np.concatenate(([0.0], np.cumsum((values[:-1] + values[1:]) / 2 * (HOP / RATE))))[:-1] % 1.0
    x = np.arange(HOP) / HOP
    phase = start[:, None] + steps[:, None] * x + np.diff(values)[:, None] * (HOP / RATE) * x**2 / 2
    return table[(phase.ravel()[:n] * TABLE).astype(np.int32) & (TABLE - 1)]


def harmonics(rng: np.random.Generator, count: int, slope: float, spread: float = 0.5) -> np.ndarray:
    """Amplitudes (count,) falling as harmonic number to the power of -slope, each randomly off by a factor."""
    return np.arange(1.0, count + 1) ** -slope * np.exp(rng.normal(0, spread, count))


def resonate(wave: np.ndarray, frequency: float, width: float) -> np.ndarray:
    """Two-pole resonance at `frequency` with bandwidth `width`, both in Hz; about unit gain at the peak."""
    r = np.exp(-np.pi * width / RATE)
    angle = 2 * np.pi * min(frequency, 7_500.0) / RATE
    gain = (1 - r) * np.sqrt(1 - 2 * r * np.cos(2 * angle) + r * r)
    wave = wave.astype(np.float32) + np.float32(1e-12)  # a state that decays into denormal numbers would be slow
    return _filter([gain], [1, -2 * r * np.cos(angle), r * r], wave)


def smooth(gate: np.ndarray) -> np.ndarray:
    """A gate (n,) without the clicks of sudden switching: time constant 3 ms."""
    return _filter([0.02], [1, -0.98], gate + np.float32(1e-12))


def _filter(ahead: list[float], back: list[float], wave: np.ndarray) -> np.ndarray:
    from scipy.signal import lfilter  # a second to import, and most sounds are in the store

    return lfilter(np.array(ahead, np.float32), np.array(back, np.float32), wave)


def pulses(rng: np.random.Generator, n: int, rate: float, spread: float) -> np.ndarray:
    """Impulses (n,) at random times, `rate` a second, with log-normal amplitudes and random sign."""
    count = max(1, rng.poisson(rate * n / RATE))
    weights = np.exp(rng.normal(0, spread, count)) * rng.choice([-1, 1], count)
    return np.bincount(rng.integers(0, n, count), weights, minlength=n).astype(np.float32)


def modes(frequencies: np.ndarray, decays: np.ndarray, amplitudes: np.ndarray, n: int) -> np.ndarray:
    """Sum of sines (n,) of the given frequencies in Hz, each dying away with its own time constant in seconds."""
    wave = np.zeros(n, np.float32)
    for frequency, decay, amplitude in zip(frequencies, decays, amplitudes, strict=True):
        if frequency < 7_600:
            t = np.arange(min(n, int(7 * decay * RATE) + 1), dtype=np.float32) / RATE
            wave[: len(t)] += amplitude * np.exp(-t / decay) * np.sin(2 * np.pi * frequency * t)
    return wave


def place(n: int, times: np.ndarray, grain: Callable[[int], np.ndarray]) -> np.ndarray:
    """Adds grain(k) at the k-th of `times`, in seconds, into n samples."""
    wave = np.zeros(n, np.float32)
    for k, time in enumerate(times):
        start = int(time * RATE)
        piece = grain(k)[: max(0, n - start)]
        wave[start : start + len(piece)] += piece
    return wave


def beats(rng: np.random.Generator, seconds: float, interval: float, jitter: float) -> np.ndarray:
    """Times in seconds of a rhythm: steps of `interval`, each randomly off by the fraction `jitter`; never empty."""
    steps = interval * (1 + jitter * rng.uniform(-1, 1, int(seconds / interval * 2) + 2))
    times = np.concatenate(([0.0], np.cumsum(steps)))
    return times[times < max(seconds - 0.05, 0.01)]


def decay(n: int, attack: float, fall: float) -> np.ndarray:
    """Envelope (n,): rises within `attack` seconds, then falls with time constant `fall`."""
    t = np.arange(n, dtype=np.float32) / RATE
    return np.minimum(t / attack, 1) * np.exp(-np.maximum(t - attack, 0) / fall)


def hump(n: int, rise: float, fall: float) -> np.ndarray:
    """Envelope (n,) of a held sound: raised-cosine rise and fall, as fractions of its length."""
    t = np.arange(n, dtype=np.float32) / max(n, 1)
    return np.sin(np.pi / 2 * np.minimum(np.minimum(t / rise, (1 - t) / fall), 1)) ** 2
