"""What audio encoders take: waveforms as 16-bit integers, or spectrograms, computed once."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from atr.corpora.audio import MAX_PEAK, from_int16, resample, to_int16
from atr.corpora.corpus import Corpus
from atr.encoders import registry
from atr.encoders.audio.compact import Compact
from atr.encoders.registry import AudioEncoder
from atr.system import devices, hashes
from atr.system.packed import Batch, InputRows, RaggedArray, cached_rows

WAVEFORMS, LOG_MELS, STATES = "waveforms", "log-mels", "states"  # kinds of rows that an audio encoder reads
AUDIO_BATCH = 16  # clips that an audio encoder takes at a time outside of training


def log_mels(corpus: Corpus, encoder: Compact, quiet: bool = False, seconds: float | None = None) -> RaggedArray:
    """The encoder's frontend over the clips of a one-split corpus: rows (frames, bands) float32, computed once."""
    split = corpus.clips["split"].iloc[0]

    def rows() -> Iterator[np.ndarray]:
        sounds = waveforms(corpus, encoder.sample_rate, quiet, seconds)
        for start in tqdm(range(0, len(sounds), AUDIO_BATCH), desc=f"{corpus.name} {split}: log-mel", disable=quiet):
            batch, lengths = sounds.batch(np.arange(start, min(start + AUDIO_BATCH, len(sounds))))
            with torch.no_grad(), devices.threads(os.cpu_count() or 1):
                features = encoder.frontend(from_int16(batch), lengths).transpose(1, 2).numpy()
            for row, length in zip(features, encoder.feature_lengths(lengths).tolist(), strict=True):
                yield row[:length]

    cut = [seconds] if seconds else []
    key = hashes.content_key(corpus.audio_fingerprint(split), encoder.logmel.description, WAVEFORM_VERSION, *cut)
    return cached_rows("logmel", key, rows)


def audio_input(corpus: Corpus, name: str, quiet: bool = False, seconds: float | None = None) -> InputRows:
    """What training feeds the encoder `name`: log-mels, or waveforms where the frontend runs beside the network."""
    facts = registry.facts(name)
    if facts.cached:
        return InputRows(LOG_MELS, log_mels(corpus, registry.build(name), quiet, seconds))
    return InputRows(WAVEFORMS, waveforms(corpus, facts.sample_rate, quiet, seconds))


def encode(encoder: AudioEncoder, batch: Batch) -> tuple[Tensor, Tensor]:
    """Frames and mask of a batch of int16 WAVEFORMS (B, samples), LOG_MELS (B, frames, bands) or STATES (B, T, bands,
    channels); without lengths, all clips are as long as the batch.
    """
    if batch.kind == STATES:
        return encoder.encode_states(batch.values, batch.lengths)  # type: ignore[attr-defined]
    if batch.kind == WAVEFORMS:
        return encoder(from_int16(batch.values), batch.lengths)
    return encoder.encode(batch.values.transpose(1, 2), batch.lengths)


def states(
    encoder: Any, sounds: RaggedArray, layers: int, device: str = "cpu", title: str = "", quiet: bool = True
) -> Iterator[np.ndarray]:
    """What the top `layers` blocks of an encoder in evaluation mode take of each waveform: rows (T, bands, channels),
    float16. FloatingPointError: states that 16 bits cannot hold.
    """
    for start in tqdm(range(0, len(sounds), AUDIO_BATCH), title, disable=quiet):
        batch, lengths = sounds.batch(np.arange(start, min(start + AUDIO_BATCH, len(sounds))))
        waveforms, lengths = from_int16(batch).to(device), lengths.to(device)
        with torch.inference_mode(), devices.threads(os.cpu_count() or 1):
            features = encoder.frontend(waveforms, lengths)
            maps, ends = encoder.states(features, encoder.feature_lengths(lengths), layers)
        maps = maps.half().cpu()
        if not maps.isfinite().all():
            raise FloatingPointError("states beyond what 16 bits hold; set audio_layers to None")
        yield from (row[:end].numpy() for row, end in zip(maps, ends.tolist(), strict=True))


WAVEFORM_VERSION = STATES_VERSION = 1
SHORTEST = 0.1  # seconds of a packed waveform


def waveforms(corpus: Corpus, sample_rate: int, quiet: bool = False, seconds: float | None = None) -> RaggedArray:
    """16-bit waveforms of the clips of a one-split corpus, in order, decoded and resampled once.

    Rows are (samples,) int16, for `audio.from_int16`. seconds: keep only the beginning of each clip, cut
    before it is resampled; None keeps all. Raises AudioError, or what else the corpus's reader raises.
    """
    if seconds is not None and seconds <= 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    clips = corpus.clips["clip"].tolist()
    split = corpus.clips["split"].iloc[0]

    def decode(clip: str) -> np.ndarray:
        waveform, rate = corpus.read(clip)
        if seconds is not None:
            waveform = waveform[: max(1, round(seconds * rate))]
        return quantise(waveform, rate, sample_rate)

    def rows() -> Iterable[np.ndarray]:
        decoded = devices.prefetch(decode, clips)
        return tqdm(decoded, f"{corpus.name} {split}: audio", len(clips), unit="clip", disable=quiet)

    beginning = [] if seconds is None else [float(seconds)]
    key = hashes.content_key(corpus.audio_fingerprint(split), sample_rate, WAVEFORM_VERSION, *beginning)
    return cached_rows("waveforms", key, rows)


def quantise(waveform: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """A waveform (samples,) in the range -1 to 1 at `rate` Hz as `waveforms` keeps it: int16 at `sample_rate`.

    Below SHORTEST it is padded with zeros: every encoder has a window, and pools. ValueError: no such range.
    """
    peak = np.abs(waveform).max(initial=0.0) if waveform.dtype.kind == "f" else np.inf
    if not peak <= MAX_PEAK:
        held = f"samples up to {peak:,.0f}" if waveform.dtype.kind == "f" else f"a waveform of {waveform.dtype}"
        raise ValueError(f"{held}, where 1 is full scale; give floats in the range -1 to 1")
    samples = to_int16(resample(waveform, rate, sample_rate))
    return np.pad(samples, (0, max(0, round(SHORTEST * sample_rate) - len(samples))))
