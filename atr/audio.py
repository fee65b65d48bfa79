"""Audio files in, mono float waveforms out."""

from os import PathLike
from pathlib import Path

import numpy as np
import soundfile
import soxr

MAX_SECONDS = 1800.0


class AudioError(ValueError):
    """An audio file that cannot be used: which one (`where`), why (`problem`), and what to do about it (`mend`)."""

    def __init__(self, where: str | PathLike[str], problem: str, mend: str) -> None:
        self.where, self.problem, self.mend = str(where), problem, mend
        super().__init__(f"{self.where}: {problem}; {mend}")

    def __reduce__(self) -> tuple:  # an exception with three arguments does not unpickle by itself
        return type(self), (self.where, self.problem, self.mend)


def duration(path: str | PathLike[str]) -> float:
    """Length in seconds by the file's header; nothing is decoded. Raises AudioError as `read` does."""
    if not Path(path).is_file():
        raise AudioError(path, "no such file", "restore it or remove it from the corpus")
    try:
        header = soundfile.info(str(path))
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioError(
            path, f"unreadable ({error})", "convert it to WAV, FLAC, OGG or MP3, or fetch it again"
        ) from None
    if header.frames == 0:
        raise AudioError(path, "0 samples", "delete it or fetch it again")
    seconds = header.frames / header.samplerate
    if seconds > MAX_SECONDS:  # also what a header of unknown length claims
        raise AudioError(path, f"{seconds:.0f} s long, more than {MAX_SECONDS:.0f} s", "cut it into clips")
    return seconds


def read(path: str | PathLike[str]) -> tuple[np.ndarray, int]:
    """Decode a file: its channels' mean as float32 (samples,), and its sample rate in Hz.

    Raises AudioError for a file that is missing, unreadable, empty, longer than MAX_SECONDS by its header, cut short,
    non-finite or silent (every sample 0).
    """
    seconds = duration(path)
    try:
        with soundfile.SoundFile(str(path)) as file:
            rate = file.samplerate
            parts = []
            # file.blocks() would fill up a file that was cut short with the block before
            while len(block := file.read(1 << 18, dtype="float32", always_2d=True)):
                with np.errstate(invalid="ignore"):  # infinities of both signs meet in the mean: reported below
                    few = block.shape[1] <= 2  # there numpy's mean takes longer than decoding, for the same bits
                    parts.append((block[:, 0] + block[:, -1]) / 2 if few else block.mean(axis=1))
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioError(
            path, f"unreadable ({error})", "convert it to WAV, FLAC, OGG or MP3, or fetch it again"
        ) from None
    waveform = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    if len(waveform) / rate < 0.99 * seconds - 0.1:  # compressed formats round their length
        problem = f"cut short: {len(waveform) / rate:.2f} s of the {seconds:.2f} s that its header states"
        raise AudioError(path, problem, "fetch it again")
    if not np.isfinite(waveform).all():
        raise AudioError(path, "samples that are NaN or infinite", "export it again with finite samples, or remove it")
    if not waveform.any():
        raise AudioError(path, "silent: every sample is 0 once channels are averaged", "replace it or remove it")
    return waveform, rate


def resample(waveform: np.ndarray, orig: int, new: int) -> np.ndarray:
    """Resample (samples,) from `orig` to `new` Hz, as float32 of about samples · new / orig.

    soxr's HQ quality: its cost does not depend on the two rates' common divisor, so that 44101 Hz is as good as 44100.
    """
    if orig <= 0 or new <= 0:
        raise ValueError(f"sample rates must be positive, got {orig} and {new} Hz")
    waveform = np.asarray(waveform, dtype=np.float32)
    return waveform if orig == new else soxr.resample(waveform, orig, new, quality="HQ")
