"""Sounds in windows of the length that an encoder was trained on, and the mean of their embeddings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from atr.config import RunConfig
from atr.corpora.corpus import CLIP_COLUMNS, Corpus, Reader, clip_table, event_table
from atr.encoders import registry
from atr.system import hashes


def window_of(config: RunConfig) -> float | None:
    """Seconds that a run's audio encoder hears at a time: its own window, or the run's `max_seconds` where that is less
    or all there is; None where neither is stated. CLAP's own is known once it is loaded, and not here.
    """
    own = None if config.training == "external" else registry.facts(config.audio_encoder).window
    return min((seconds for seconds in (own, config.max_seconds) if seconds is not None), default=None)


def cut(
    waveform: np.ndarray, rate: int, window: float, short: str | None, count: int | None = None
) -> list[np.ndarray]:
    """Windows of `window` seconds, evenly spaced from start to end: `count`, or as few as cover the waveform.

    waveform: (samples,) at `rate` Hz. A shorter one is one window: repeated ("repeat"), padded ("pad") or as it is.
    """
    size = round(window * rate)
    if len(waveform) < size:
        if short == "repeat":
            waveform = np.resize(waveform, size)
        if short == "pad":
            waveform = np.pad(waveform, (0, size - len(waveform)))
    count = count or math.ceil(len(waveform) / size)
    starts = np.linspace(0, max(0, len(waveform) - size), count).round().astype(int)
    return [waveform[start : start + size] for start in starts]


def one(waveform: np.ndarray, rate: int, window: float, short: str | None, seed: int | None = None) -> np.ndarray:
    """The first `window` seconds, or with a seed those that it and the samples draw. A shorter waveform as in `cut`."""
    size, start = round(window * rate), 0
    if seed is not None and len(waveform) > size:
        content = int.from_bytes(bytes.fromhex(hashes.sha256(waveform.tobytes())), "little")
        start = int(np.random.default_rng([seed, content]).integers(len(waveform) - size + 1))
    return cut(waveform[start : start + size], rate, window, short)[0]


def mean(embeddings: Tensor, counts: Sequence[int]) -> Tensor:
    """(sounds, D) of length 1: the means of the embeddings (windows, D) of each sound's windows."""
    return functional.normalize(torch.stack([part.mean(0) for part in embeddings.split(list(counts))]))


@dataclass(frozen=True)
class WindowReader:
    """Gives a window of a clip; places: of each window its clip, which it is and how many the clip has."""

    read: Reader
    places: dict[str, tuple[str, int, int]]
    window: float
    short: str | None

    def __call__(self, clip: str) -> tuple[np.ndarray, int]:
        whole, number, count = self.places[clip]
        waveform, rate = self.read(whole)
        return cut(waveform, rate, self.window, self.short, count)[number], rate


def cut_corpus(corpus: Corpus, window: float, short: str | None) -> tuple[Corpus, list[int]]:
    """A corpus of one split whose clips are the windows of another's, in order, and how many each of its clips has.

    The captions are at each clip's first window, which has its name.
    """
    rows, counts, places = [], [], {}
    for clip, split, seconds, digest, _ in corpus.clips[list(CLIP_COLUMNS)].itertuples(index=False):
        count = max(1, math.ceil(seconds / window))
        counts.append(count)
        for number in range(count):
            name = f"{clip}\t{number}" if number else clip
            places[name] = clip, number, count
            rows.append((name, split, window, hashes.content_key(digest, window, short, number, count), ""))
    reader = WindowReader(corpus.read, places, window, short)
    return replace(corpus, clips=clip_table(rows), events=event_table(), read=reader), counts
