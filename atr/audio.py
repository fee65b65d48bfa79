"""Audio files in, mono float waveforms out."""

from collections.abc import Iterator
from os import PathLike
from pathlib import Path

import numpy as np
import soundfile
import soxr

MAX_SECONDS = 1800.0
SHORTEST = 1.0  # seconds of a segment
CONVERT = "convert it to WAV, FLAC, OGG or MP3, or fetch it again"


class AudioError(ValueError):
    """An audio file that cannot be used: which one (`where`), why (`problem`), and what to do about it (`mend`)."""

    def __init__(self, where: str | PathLike[str], problem: str, mend: str) -> None:
        self.where, self.problem, self.mend = str(where), problem, mend
        super().__init__(f"{self.where}: {problem}; {mend}")

    def __reduce__(self) -> tuple:  # an exception with three arguments does not unpickle by itself
        return type(self), (self.where, self.problem, self.mend)


def header(path: str | PathLike[str]) -> tuple[int, int]:
    """Frames and sample rate in Hz that a file states; nothing is decoded.

    AudioError: it is missing, unreadable or empty.
    """
    if not Path(path).is_file():
        raise AudioError(path, "no such file", "restore it or remove it from the corpus")
    if not Path(path).stat().st_size:
        raise AudioError(path, "0 bytes", "delete it or fetch it again")
    try:
        stated = soundfile.info(str(path))
    except UnicodeEncodeError:
        raise AudioError(path, "a name that is not UTF-8", "rename it") from None
    except RuntimeError as error:
        raise _unreadable(path, error) from None
    if stated.frames == 0:
        raise AudioError(path, "0 samples", "delete it or fetch it again")
    return stated.frames, stated.samplerate


def duration(path: str | PathLike[str]) -> float:
    """Length in seconds by the file's header; nothing is decoded. Raises AudioError as `read` does."""
    frames, rate = header(path)
    seconds = frames / rate
    if seconds > MAX_SECONDS:  # also what a header of unknown length claims
        raise AudioError(path, f"{seconds:.0f} s long, more than {MAX_SECONDS:.0f} s", "cut it into clips")
    return seconds


def _blocks(path: str | PathLike[str]) -> Iterator[np.ndarray]:
    """A file's channels' mean in blocks (samples,), at least one; AudioError as `read` has it, but for silence."""
    frames, rate = header(path)
    done = 0
    try:
        with soundfile.SoundFile(str(path)) as file:
            # file.blocks() would fill up a file that was cut short with the block before
            while len(block := file.read(1 << 18, dtype="float32", always_2d=True)):
                with np.errstate(invalid="ignore"):  # infinities of both signs meet in the mean: reported below
                    few = block.shape[1] <= 2  # there numpy's mean takes longer than decoding, for the same bits
                    mean = (block[:, 0] + block[:, -1]) / 2 if few else block.mean(axis=1)
                if not np.isfinite(mean).all():
                    mend = "export it again with finite samples, or remove it"
                    raise AudioError(path, "samples that are NaN or infinite", mend)
                done += len(mean)
                yield mean
    except RuntimeError as error:
        raise _unreadable(path, error) from None
    if not done or done / rate < 0.99 * frames / rate - 0.1:  # compressed formats round their length
        problem = f"cut short: {done / rate:.2f} s of the {frames / rate:.2f} s that its header states"
        raise AudioError(path, problem, "fetch it again")


def _unreadable(path: str | PathLike[str], error: RuntimeError) -> AudioError:
    return AudioError(path, f"unreadable ({getattr(error, 'error_string', error)})", CONVERT)


def _silent(path: str | PathLike[str]) -> AudioError:
    return AudioError(path, "silent: every sample is 0 once channels are averaged", "replace it or remove it")


def read(path: str | PathLike[str]) -> tuple[np.ndarray, int]:
    """Decode a file: its channels' mean as float32 (samples,), and its sample rate in Hz.

    Raises AudioError for a file that is missing, unreadable, empty, longer than MAX_SECONDS by its header, cut short,
    non-finite or silent (every sample 0).
    """
    duration(path)
    waveform = np.concatenate(list(_blocks(path)))
    if not waveform.any():
        raise _silent(path)
    return waveform, header(path)[1]


def segments(path: str | PathLike[str], seconds: float) -> Iterator[tuple[float, np.ndarray, int]]:
    """A file of any length piece by piece, as `read` gives it: start in seconds, (samples,) float32, sample rate in Hz.

    Pieces of `seconds`, one after another; a rest shorter than SHORTEST belongs to the piece before, which no other may
    exceed. Never more than two pieces are in memory. Raises AudioError as `read` does, once it gets there.
    """
    frames, rate = header(path)
    if frames >= 1 << 62:
        raise AudioError(path, "its header does not state its length", CONVERT)
    length, shortest = max(1, round(seconds * rate)), round(SHORTEST * rate)
    rest, done, heard = np.empty(0, np.float32), 0, False
    for block in _blocks(path):
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
