"""Audio files in, mono float waveforms out."""

from collections.abc import Iterator
from os import PathLike
from typing import Any

import numpy as np
import soxr

from atr.corpora.containers import AudioError, Stream, short, streams

MAX_SECONDS = 1800.0
SHORTEST = 1.0  # seconds of a segment
FULL_SCALE = 32_767  # 1.0 as a 16-bit integer
MAX_PEAK = 4.0  # full scale is 1; full-scale noise peaks at up to 3.6 after MP3, Vorbis or Opus at few bits


def header(path: str | PathLike[str]) -> tuple[int, int]:
    """Frames and sample rate in Hz of a file; only FLAC that does not state its length is decoded.

    AudioError: it is missing, unreadable or empty, or its size or frames show that it is cut short.
    """
    return _length(streams(path))


def _length(parts: list[Stream]) -> tuple[int, int]:
    return sum(part.frames for part in parts), parts[0].rate


def duration(path: str | PathLike[str]) -> float:
    """Length in seconds by `header`. Raises AudioError as `read` does, as far as that shows without decoding."""
    return _seconds_within_limit(path, *header(path))


def _seconds_within_limit(path: str | PathLike[str], frames: int, rate: int) -> float:
    seconds = frames / rate
    if seconds > MAX_SECONDS:
        raise AudioError(path, f"{seconds:.0f} s long, more than {MAX_SECONDS:.0f} s", "cut it into clips")
    return seconds


def _blocks(path: str | PathLike[str], parts: list[Stream]) -> Iterator[np.ndarray]:
    """A file's channels' mean in blocks (samples,), at least one; AudioError as `read` has it, but for silence."""
    for part in parts:
        at = 0
        try:
            with part.open() as file:
                # file.blocks() would fill up a file that was cut short with the block before
                while len(block := file.read(1 << 18, dtype="float32", always_2d=True)):
                    yield _mean(path, block)
                    at += len(block)
        except RuntimeError as error:
            reason = getattr(error, "error_string", error)
            problem = f"cut short or damaged after {at / part.rate:.2f} of {part.frames / part.rate:.2f} s ({reason})"
            raise AudioError(path, problem, "fetch it again") from None
        tolerance = 0 if part.exact else 0.01 * part.frames + 0.1 * part.rate  # compressed formats round their length
        if not at or at < part.frames - tolerance:
            raise short(path, at / part.rate, part.frames / part.rate)


def _mean(path: str | PathLike[str], block: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # infinities of both signs meet in the mean: reported below
        few = block.shape[1] <= 2  # there numpy's mean takes longer than decoding, for the same bits
        mean = (block[:, 0] + block[:, -1]) / 2 if few else block.mean(axis=1)
    if not np.isfinite(mean).all():
        raise AudioError(path, "samples that are NaN or infinite", "export it again with finite samples, or remove it")
    if (peak := max(block.max(), -block.min())) > MAX_PEAK:
        raise AudioError(path, f"a peak of {peak:,.0f}, where full scale is 1", "scale it to the range -1 to 1")
    return mean


def _silent(path: str | PathLike[str]) -> AudioError:
    return AudioError(path, "silent: every sample is 0 once channels are averaged", "replace it or remove it")


def read(path: str | PathLike[str]) -> tuple[np.ndarray, int]:
    """Decode a file: its channels' mean as float32 (samples,), and its sample rate in Hz.

    Raises AudioError for a file that is missing, unreadable, empty, longer than MAX_SECONDS by its header, cut short,
    non-finite, louder than MAX_PEAK or silent (every sample 0).
    """
    parts = streams(path)
    frames, rate = _length(parts)
    _seconds_within_limit(path, frames, rate)
    waveform = np.concatenate(list(_blocks(path, parts)))
    if not waveform.any():
        raise _silent(path)
    return waveform, rate


def segments(path: str | PathLike[str], seconds: float) -> Iterator[tuple[float, np.ndarray, int]]:
    """A file of any length piece by piece, as `read` gives it: start in seconds, (samples,) float32, sample rate in Hz.

    Pieces of `seconds`, one after another; a rest shorter than SHORTEST belongs to the piece before, which no other may
    exceed. Never more than two pieces are in memory, and the bytes of an MP3 or Ogg file. Raises AudioError as `read`
    does, once it gets there.
    """
    parts = streams(path)
    rate = parts[0].rate
    length, shortest = max(1, round(seconds * rate)), round(SHORTEST * rate)
    rest, at, audible = np.empty(0, np.float32), 0, False
    for block in _blocks(path, parts):
        rest = np.concatenate([rest, block])
        while len(rest) >= length + shortest:
            audible = audible or bool(rest[:length].any())
            yield at / rate, rest[:length], rate
            rest, at = rest[length:], at + length
    if not audible and not rest.any():
        raise _silent(path)
    yield at / rate, rest, rate


def to_int16(waveform: np.ndarray) -> np.ndarray:
    """Floats as the nearest 16-bit integers; what is outside -1 to 1 is clipped."""
    return np.round(np.clip(waveform, -1, 1) * FULL_SCALE).astype(np.int16)


def from_int16(samples: Any) -> Any:
    """16-bit integers, an array or a tensor, as float32 in the range -1 to 1."""
    return (samples.astype(np.float32) if isinstance(samples, np.ndarray) else samples.float()) / FULL_SCALE


def resample(waveform: np.ndarray, orig: int, new: int) -> np.ndarray:
    """Resample (samples,) from `orig` to `new` Hz, as float32 of about samples · new / orig.

    soxr's HQ quality: its cost does not depend on the two rates' common divisor, so that 44101 Hz is as good as 44100.
    """
    if orig <= 0 or new <= 0:
        raise ValueError(f"sample rates must be positive, got {orig} and {new} Hz")
    waveform = np.asarray(waveform, dtype=np.float32)
    return waveform if orig == new else soxr.resample(waveform, orig, new, quality="HQ")
