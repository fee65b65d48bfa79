"""Audio files in, mono float waveforms out."""

import struct
from collections.abc import Iterator
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import soxr

from atr import containers

MAX_SECONDS = 1800.0
SHORTEST = 1.0  # seconds of a segment
MAX_PEAK = 4.0  # lossy codecs overshoot 1 by some dB, never by 12; integers as floats reach 127 and more
CONVERT = "convert it to WAV, FLAC, OGG or MP3, or fetch it again"


class AudioError(ValueError):
    """An audio file that cannot be used: which one (`where`), why (`problem`), and what to do about it (`mend`)."""

    def __init__(self, where: str | PathLike[str], problem: str, mend: str) -> None:
        self.where, self.problem, self.mend = str(where), problem, mend
        super().__init__(f"{self.where}: {problem}; {mend}")

    def __reduce__(self) -> tuple:  # an exception with three arguments does not unpickle by itself
        return type(self), (self.where, self.problem, self.mend)


class _Sound(NamedTuple):
    frames: int
    rate: int
    sources: list  # what libsndfile opens, one after another: the path, or files in memory


def header(path: str | PathLike[str]) -> tuple[int, int]:
    """Frames and sample rate in Hz of a file by its headers; only one that states no length is decoded.

    AudioError: it is missing, unreadable, empty or cut short.
    """
    return _sound(path)[:2]


def _sound(path: str | PathLike[str]) -> _Sound:
    if not Path(path).is_file():
        raise AudioError(path, "no such file", "restore it or remove it from the corpus")
    if not Path(path).stat().st_size:
        raise AudioError(path, "0 bytes", "delete it or fetch it again")
    try:
        sources: list[Any]  # the path, or files in memory
        sources, present, lack, rate = containers.mpeg(path)
        if lack:
            raise _cut(path, present / rate, (present + lack) / rate)
        if not sources:
            promise = containers.promise(path)
            try:
                stated = soundfile.info(str(path))
            except RuntimeError:
                if not (promise and (sources := _mended(path, *promise))):
                    raise
                stated = soundfile.info(sources[0])
            rate = stated.samplerate
            if stated.format == "OGG":
                sources, whole = containers.ogg(path)
                if not whole:
                    problem = f"cut short: its last page is missing, after {stated.frames / rate:.2f} s"
                    raise AudioError(path, problem, "fetch it again")
            elif promise and not stated.frames:
                sources = _mended(path, *promise)
            elif promise and not containers.unknown(promise[1], promise[3]) and promise[1] - promise[2] > 1:
                seconds = stated.frames / rate
                raise _cut(path, seconds, seconds * promise[1] / promise[2])
        frames = 0 if sources else stated.frames
        for source in sources:
            source.seek(0)
            with soundfile.SoundFile(source) as file:
                if file.samplerate != rate:
                    raise AudioError(path, f"joined of sounds at {rate} and {file.samplerate} Hz", "join them anew")
                frames += file.frames
            source.seek(0)
        sources = sources or [str(path)]
        if frames >= 1 << 62:
            raise AudioError(path, "its header does not state its length", CONVERT)
    except UnicodeEncodeError:
        raise AudioError(path, "a name that is not UTF-8", "rename it") from None
    except RuntimeError as error:
        raise _unreadable(path, error) from None
    if frames == 0:
        raise AudioError(path, "0 samples", "delete it or fetch it again")
    return _Sound(frames, rate, sources)


def _cut(path: str | PathLike[str], present: float, stated: float) -> AudioError:
    problem = f"cut short: {present:.2f} s of the {stated:.2f} s that its header states"
    return AudioError(path, problem, "fetch it again")


def _mended(path: str | PathLike[str], begin: int, stated: int, present: int, place: str) -> list[BytesIO]:
    """A file whose header states no length, as that of a recorder that was interrupted, with its true one."""
    if present <= 0 or not containers.unknown(stated, place):
        return []
    where, form = place.split(":")
    content = bytearray(Path(path).read_bytes())
    struct.pack_into(form, content, int(where), present + 24 * (content[:4] == b"riff"))
    return [BytesIO(content)]


def duration(path: str | PathLike[str]) -> float:
    """Length in seconds, as `header` has it. Raises AudioError as `read` does."""
    return _checked(path, _sound(path))


def _checked(path: str | PathLike[str], sound: _Sound) -> float:
    seconds = sound.frames / sound.rate
    if seconds > MAX_SECONDS:
        raise AudioError(path, f"{seconds:.0f} s long, more than {MAX_SECONDS:.0f} s", "cut it into clips")
    return seconds


def _blocks(path: str | PathLike[str], sound: _Sound) -> Iterator[np.ndarray]:
    """A file's channels' mean in blocks (samples,), at least one; AudioError as `read` has it, but for silence."""
    frames, rate, done = sound.frames, sound.rate, 0
    try:
        for source in sound.sources:
            with soundfile.SoundFile(source) as file:
                # file.blocks() would fill up a file that was cut short with the block before
                while len(block := file.read(1 << 18, dtype="float32", always_2d=True)):
                    yield _mean(path, block)
                    done += len(block)
    except RuntimeError as error:
        raise _unreadable(path, error) from None
    if not done or done / rate < 0.99 * frames / rate - 0.1:  # compressed formats round their length
        raise _cut(path, done / rate, frames / rate)


def _mean(path: str | PathLike[str], block: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # infinities of both signs meet in the mean: reported below
        few = block.shape[1] <= 2  # there numpy's mean takes longer than decoding, for the same bits
        mean = (block[:, 0] + block[:, -1]) / 2 if few else block.mean(axis=1)
    if not np.isfinite(mean).all():
        raise AudioError(path, "samples that are NaN or infinite", "export it again with finite samples, or remove it")
    if (peak := max(mean.max(), -mean.min())) > MAX_PEAK:
        raise AudioError(path, f"samples up to {peak:,.0f}, where 1 is full scale", "scale it to the range -1 to 1")
    return mean


def _unreadable(path: str | PathLike[str], error: RuntimeError) -> AudioError:
    return AudioError(path, f"unreadable ({getattr(error, 'error_string', error)})", CONVERT)


def _silent(path: str | PathLike[str]) -> AudioError:
    return AudioError(path, "silent: every sample is 0 once channels are averaged", "replace it or remove it")


def read(path: str | PathLike[str]) -> tuple[np.ndarray, int]:
    """Decode a file: its channels' mean as float32 (samples,), and its sample rate in Hz.

    Raises AudioError for a file that is missing, unreadable, empty, longer than MAX_SECONDS by its header, cut short,
    non-finite or silent (every sample 0).
    """
    sound = _sound(path)
    _checked(path, sound)
    waveform = np.concatenate(list(_blocks(path, sound)))
    if not waveform.any():
        raise _silent(path)
    return waveform, sound.rate


def segments(path: str | PathLike[str], seconds: float) -> Iterator[tuple[float, np.ndarray, int]]:
    """A file of any length piece by piece, as `read` gives it: start in seconds, (samples,) float32, sample rate in Hz.

    Pieces of `seconds`, one after another; a rest shorter than SHORTEST belongs to the piece before, which no other may
    exceed. Never more than two pieces are in memory. Raises AudioError as `read` does, once it gets there.
    """
    sound = _sound(path)
    rate = sound.rate
    length, shortest = max(1, round(seconds * rate)), round(SHORTEST * rate)
    rest, done, heard = np.empty(0, np.float32), 0, False
    for block in _blocks(path, sound):
        rest = np.concatenate([rest, block])
        while len(rest) >= length + shortest:
            heard = heard or bool(rest[:length].any())
            yield done / rate, rest[:length], rate
            rest, done = rest[length:], done + length
    if not heard and not rest.any():
        raise _silent(path)
    yield done / rate, rest, rate


def resample(waveform: np.ndarray, orig: int, new: int) -> np.ndarray:
    """Resample (samples,) from `orig` to `new` Hz, as float32 of about samples · new / orig.

    soxr's HQ quality: its cost does not depend on the two rates' common divisor, so that 44101 Hz is as good as 44100.
    """
    if orig <= 0 or new <= 0:
        raise ValueError(f"sample rates must be positive, got {orig} and {new} Hz")
    waveform = np.asarray(waveform, dtype=np.float32)
    return waveform if orig == new else soxr.resample(waveform, orig, new, quality="HQ")
