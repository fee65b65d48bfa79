"""What a run reads of a corpus: waveforms or log-mels, pooled features, captions as token states, from the store."""

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from atr import register
from atr.config import RunConfig
from atr.corpora.captioning import language
from atr.corpora.corpus import SPLITS, Corpus
from atr.encoders import inputs, registry, text
from atr.encoders.audio.compact import ENCODER_VERSION
from atr.encoders.clap import CLAP_VERSION, Clap
from atr.encoders.inputs import AUDIO_BATCH, audio_input, encode
from atr.losses.contrast import WordRows
from atr.system import devices, hashes, packed
from atr.system.packed import POOLED, InputRows
from atr.training.identity import Inputs, Preparation, weights


def pool_features(config: RunConfig, corpus: Corpus, weights: Path, device: str = "cpu", quiet: bool = False) -> Tensor:
    """Pooled features of a frozen encoder in evaluation mode over a one-split corpus: (clips, dim), computed once."""
    split = corpus.clips["split"].iloc[0]
    name, seconds = config.audio_encoder, config.max_seconds

    def features() -> np.ndarray:
        encoder = registry.build(name, weights, pooling=config.pooling).eval().to(device)
        rows = audio_input(corpus, name, quiet, seconds)
        size = 64 if encoder.cached else AUDIO_BATCH
        parts = []
        with torch.inference_mode(), devices.threads(os.cpu_count() or 1):
            title = f"{corpus.name} {split}: {name}"
            for start in tqdm(range(0, len(rows), size), title, disable=quiet or encoder.cached):
                batch = rows.batch(np.arange(start, min(start + size, len(rows))))
                parts.append(encoder.pool(*encode(encoder, batch.to(lambda tensor: tensor.to(device)))).cpu())
        return torch.cat(parts).numpy()[:, None]

    versions: list[Any] = [ENCODER_VERSION, inputs.WAVEFORM_VERSION]
    if seconds or config.pooling != "max_mean":
        versions += [seconds, config.pooling]
    if own := register.code("encoder", name):
        versions.append(own)
    key = hashes.content_key(corpus.audio_fingerprint(split), name, hashes.file_hash(weights), versions)
    return torch.from_numpy(packed.cached_rows("pooled", key, features).data)


def audio_states(
    config: RunConfig, corpus: Corpus, weights: Path, device: str = "cpu", quiet: bool = False
) -> InputRows:
    """What the blocks that a config trains take, over a one-split corpus: rows (T, bands, channels) float16, computed
    once.
    """
    split, layers = corpus.clips["split"].iloc[0], config.audio_state_layers
    name, seconds = config.audio_encoder, config.max_seconds
    assert layers is not None

    def states() -> Iterator[np.ndarray]:
        encoder = registry.with_states(registry.build(name, weights), name).eval().to(device)
        sounds = inputs.waveforms(corpus, encoder.sample_rate, quiet, seconds)
        return inputs.states(encoder, sounds, layers, device, f"{corpus.name} {split}: {name}", quiet)

    versions = [inputs.STATES_VERSION, inputs.WAVEFORM_VERSION, layers, seconds, register.code("encoder", name)]
    key = hashes.content_key(corpus.audio_fingerprint(split), name, hashes.file_hash(weights), versions)
    return InputRows(inputs.STATES, packed.cached_rows("states", key, states))


def caption_style(config: RunConfig) -> str | None:
    """How `atr.encoders.text.normalise` cleans what a config's text encoder reads: for CLAP, not at all."""
    return None if config.training == "external" else config.caption_style


def normal_captions(config: RunConfig, corpus: Corpus) -> list[str]:
    """The captions of a corpus as a config's text encoder reads them."""
    return [text.normalise(caption, caption_style(config)) for caption in corpus.captions["caption"]]


def pooled_text(config: RunConfig, corpus: Corpus, device: str = "cpu", quiet: bool = True) -> InputRows:
    """Output of the text encoder, as it starts and in evaluation mode, for the captions of a one-split corpus, computed
    once.
    """
    folder = text.folder(config.text_encoder)

    def encoder() -> text.TextEncoder:
        return text.TextEncoder(folder, config.text_pooling).to(device)

    fingerprint, pooling = text.fingerprint(folder), config.text_pooling
    rows = text.rows_from_store(normal_captions(config, corpus), fingerprint, encoder, pooling=pooling, quiet=quiet)
    return InputRows(POOLED, torch.from_numpy(rows.data))


class CaptionReader:
    """What a config's text encoder takes of captions, from the store. The encoder is loaded only where something is
    missing there: that takes longer than many a frozen run's epoch.
    """

    def __init__(self, config: RunConfig, prepared: Preparation, device: str, quiet: bool) -> None:
        self.config, self.folder, self.device, self.quiet = config, prepared.text_folder, device, quiet
        self.fingerprint = prepared.fingerprints["text"]

    @cached_property
    def encoder(self) -> text.TextEncoder:
        return text.TextEncoder(self.folder, self.config.text_pooling, self.config.state_layers)

    def __call__(self, captions: list[str]) -> InputRows:
        frozen, below = self.config.training == "frozen", self.config.state_layers
        if not frozen and below is None:
            return text.ids_from_store(captions, self.fingerprint, lambda: self.encoder)
        pooling = self.config.text_pooling if frozen else None
        work = (lambda: self.encoder.to(self.device), pooling, below, self.quiet)
        rows = text.rows_from_store(captions, self.fingerprint, *work)
        return InputRows(POOLED, torch.from_numpy(rows.data)) if frozen else InputRows(text.STATES, rows)


def prepare(
    config: RunConfig, corpus: Corpus, splits: tuple[str, ...] = SPLITS, quiet: bool = False, device: str = "cpu"
) -> Preparation:
    """Everything that `config` reads of `corpus`, from the store; what is missing there is computed now, frozen
    features on `device`. Where a corpus has no test clips, its validation clips are tested on.
    """
    if corpus.test_only and "train" in splits:
        raise ValueError(
            f"corpus {corpus.name!r} has test clips alone, and nothing to train on; test finished runs on it"
        )
    prepared = weights(config, corpus, quiet)
    if config.padding == "released" and registry.facts(config.audio_encoder).cached:
        raise ValueError(f"padding 'released': {config.audio_encoder} reads cached log-mels, which hold no padding")
    read = CaptionReader(config, prepared, device, quiet)
    for name in splits:
        if name == "test" and not corpus.clips["split"].eq("test").any():
            prepared.splits[name] = prepared.splits["validation"]
            continue
        part = corpus.split(name)
        captions = normal_captions(config, part)
        if config.training == "external":
            sides = external(config, part, prepared.text_folder, captions, device, quiet)
        else:
            sides = audio_rows(config, part, prepared.audio_weights, device, quiet), read(captions)
        prepared.splits[name] = Inputs(*sides, part.clip_of_caption(), part.relevance())
    if config.text_contrast and "train" in splits:
        prepared.words["captions"] = _contrast_captions(config, read)
    if config.label_contrast and "train" in splits or config.head == "labels":
        prepared.words["labels"] = _label_words(config, corpus, splits, prepared, read)
    return prepared


def audio_rows(config: RunConfig, corpus: Corpus, weights: Path | None, device: str, quiet: bool) -> InputRows:
    """What a config's audio encoder, whose weights are given, takes of a one-split corpus."""
    if config.training == "frozen":
        assert weights is not None
        return InputRows(POOLED, pool_features(config, corpus, weights, device, quiet))
    if config.audio_state_layers is None:
        return audio_input(corpus, config.audio_encoder, quiet, config.max_seconds)
    if weights is None:
        raise ValueError("audio_layers: random audio_weights have no states worth keeping; use None")
    return audio_states(config, corpus, weights, device, quiet)


def _contrast_captions(config: RunConfig, read: CaptionReader) -> WordRows:
    """The captions of clips that have several, for `RunConfig.text_contrast`."""
    assert config.text_contrast is not None
    table = language.read(config.text_contrast["captions"]).sort_values("clip", kind="stable")
    captions = [text.normalise(caption, caption_style(config)) for caption in table["caption"]]
    count = table.groupby("clip")["caption"].size().to_numpy()
    clips = np.stack([np.cumsum(count) - count, count], axis=1)[count > 1]
    return WordRows(read(captions), clips=clips)


def _label_words(
    config: RunConfig, corpus: Corpus, splits: tuple[str, ...], prepared: Preparation, read: CaptionReader
) -> WordRows:
    """The names of the classes that the audio encoder hears; where a run trains by them, how much of each is in the
    training clips.
    """
    encoder = registry.with_labels(config.audio_encoder, prepared.audio_weights)
    names = [text.normalise(f"the sound of {name}", caption_style(config)) for name in encoder.labels()]
    words = WordRows(read(names))
    if not config.label_contrast or "train" not in splits:
        return words
    assert prepared.audio_weights is not None
    with torch.inference_mode():
        frozen = pool_features(config, corpus.split("train"), prepared.audio_weights, read.device, read.quiet)
        posteriors = encoder.logits(frozen).sigmoid()
    return replace(words, posteriors=posteriors.clone())


def external(
    config: RunConfig, corpus: Corpus, folder: Path, captions: list[str], device: str, quiet: bool
) -> tuple[InputRows, InputRows]:
    """Embeddings of a CLAP model with both towers over a one-split corpus, computed once: audio, text."""
    fingerprint, split = text.fingerprint(folder), corpus.clips["split"].iloc[0]
    model = cache(lambda: Clap(folder, device))

    def sounds() -> np.ndarray:
        rows = inputs.waveforms(corpus, model().sample_rate, quiet, config.max_seconds)
        return model().audio(rows, config.seed, quiet).numpy()[:, None]

    def words() -> np.ndarray:
        return model().text(captions, quiet).numpy()[:, None]

    content, cut = corpus.audio_fingerprint(split), (config.max_seconds, config.seed)
    audio_key = hashes.content_key(CLAP_VERSION, fingerprint, content, cut, inputs.WAVEFORM_VERSION)
    keys = {audio_key: sounds, hashes.content_key(CLAP_VERSION, fingerprint, captions): words}
    audio, texts = (packed.cached_rows("clap", key, rows).data for key, rows in keys.items())
    return InputRows(POOLED, torch.from_numpy(audio)), InputRows(POOLED, torch.from_numpy(texts))
