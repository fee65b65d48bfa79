"""What a run reads of a corpus: waveforms or log-mels, pooled features, captions as token states, from the store."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from tqdm.auto import tqdm

from atr import encoders, register, store, voxels
from atr.config import RunConfig
from atr.corpora.corpus import SPLITS, Corpus
from atr.encoders import AudioEncoder, checkpoints, clap, pretraining, text
from atr.encoders.clap import CLAP_VERSION, Clap
from atr.encoders.compact import ENCODER_VERSION, Compact
from atr.store import Packed

AUDIO_BATCH = 16  # clips that an audio encoder takes at a time outside of training


def log_mels(corpus: Corpus, encoder: Compact, quiet: bool = False, seconds: float | None = None) -> Packed:
    """The encoder's frontend over the clips of a one-split corpus: rows (frames, bands) float32, computed once."""
    split = corpus.clips["split"].iloc[0]

    def build(folder: Path) -> None:
        waveforms = store.waveforms(corpus, encoder.sample_rate, quiet, seconds)

        def rows():
            for start in tqdm(range(0, len(waveforms), 16), desc=f"{corpus.name} {split}: log-mel", disable=quiet):
                batch, lengths = waveforms.batch(np.arange(start, min(start + 16, len(waveforms))))
                features = encoder.frontend(batch.float() / 32767, lengths).transpose(1, 2).numpy()
                for row, length in zip(features, encoder.feature_lengths(lengths).tolist(), strict=True):
                    yield row[:length]

        with torch.no_grad(), store.threads(os.cpu_count() or 1):
            store.pack(folder, rows())

    cut = [seconds] if seconds else []
    key = store.content_key(corpus.audio_fingerprint(split), encoder.logmel.description, store.WAVEFORM_VERSION, *cut)
    return store.open_packed(store.cached("logmel", key, build))


def audio_input(corpus: Corpus, name: str, quiet: bool = False, seconds: float | None = None) -> Packed:
    """What training feeds the encoder `name`: log-mels, or waveforms where the frontend runs beside the network."""
    facts = encoders.facts(name)
    if facts.cached:
        return log_mels(corpus, encoders.build(name), quiet, seconds)
    return store.waveforms(corpus, facts.sample_rate, quiet, seconds)


def pooled(config: RunConfig, corpus: Corpus, weights: Path, device: str = "cpu", quiet: bool = False) -> Tensor:
    """Pooled features of a frozen encoder in evaluation mode over a one-split corpus: (clips, dim), computed once."""
    split = corpus.clips["split"].iloc[0]
    name, seconds = config.audio_encoder, config.max_seconds

    def build(folder: Path) -> None:
        encoder = encoders.build(name, weights, pooling=config.pooling).eval().to(device)
        rows = audio_input(corpus, name, quiet, seconds)
        size = 64 if encoder.cached else AUDIO_BATCH
        parts = []
        with torch.inference_mode(), store.threads(os.cpu_count() or 1):
            title = f"{corpus.name} {split}: {name}"
            for start in tqdm(range(0, len(rows), size), title, disable=quiet or encoder.cached):
                batch, lengths = rows.batch(np.arange(start, min(start + size, len(rows))))
                parts.append(encoder.pool(*encode(encoder, batch.to(device), lengths.to(device))).cpu())
        store.pack(folder, torch.cat(parts).numpy()[:, None])

    versions: list[Any] = [ENCODER_VERSION, store.WAVEFORM_VERSION]
    if seconds or config.pooling != "max_mean":
        versions += [seconds, config.pooling]
    if own := register.code("encoder", name):
        versions.append(own)
    key = store.content_key(corpus.audio_fingerprint(split), name, store.file_hash(weights), versions)
    return torch.from_numpy(store.open_packed(store.cached("pooled", key, build)).data)


def caption_style(config: RunConfig) -> str | None:
    """How `atr.encoders.text.normalise` cleans what a config's text encoder reads: for CLAP, not at all."""
    return None if config.training == "external" else config.caption_style


def normalised(config: RunConfig, corpus: Corpus) -> list[str]:
    """The captions of a corpus as a config's text encoder reads them."""
    return [text.normalise(caption, caption_style(config)) for caption in corpus.captions["caption"]]


def pooled_text(config: RunConfig, corpus: Corpus, device: str = "cpu", quiet: bool = True) -> Tensor:
    """Output of the text encoder, as it starts and in evaluation mode, for the captions of a one-split corpus:
    (captions, dim), computed once.
    """
    folder = text.folder(config.text_encoder)

    def encoder() -> text.TextEncoder:
        return text.TextEncoder(folder, config.text_pooling).to(device)

    known, pooling = text.fingerprint(folder), config.text_pooling
    spoken = text.computed(normalised(config, corpus), known, encoder, pooling=pooling, quiet=quiet)
    return torch.from_numpy(spoken.data)


def encode(encoder: AudioEncoder, batch: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Frames and mask of a batch of rows of `audio_input`: int16 waveforms (B, samples), or log-mels
    (B, frames, bands); lengths None: all as long as the batch.
    """
    if batch.dtype == torch.int16:
        return encoder(batch.float() / 32767, lengths)
    return encoder.encode(batch.transpose(1, 2), lengths)


@dataclass(frozen=True)
class Inputs:
    """One split, ready to be batched.

    audio: pooled features (clips, dim), or rows of `audio_input`; text: pooled (captions, dim), or token states, or
    token ids; clip_of_caption: (captions,); relevance as in `Corpus.relevance`.
    """

    audio: Tensor | Packed
    text: Tensor | Packed
    clip_of_caption: np.ndarray
    relevance: np.ndarray | sparse.csr_array

    def audio_batch(self, clips: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Pooled (B, dim) and None, or log-mels (B, frames, bands) or waveforms (B, samples) and their lengths."""
        return (self.audio[clips], None) if isinstance(self.audio, Tensor) else self.audio.batch(clips)

    def text_batch(self, captions: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Pooled (B, dim) and None, or states (B, tokens, dim) or ids (B, tokens) and their lengths."""
        return (self.text[captions], None) if isinstance(self.text, Tensor) else self.text.batch(captions)


@dataclass(frozen=True)
class Prepared:
    """A corpus as one config sees it: splits, where the weights come from, and their fingerprints."""

    audio_weights: Path | None
    text_folder: Path
    fingerprints: dict[str, str]
    splits: dict[str, Inputs] = field(default_factory=dict)


def weights(config: RunConfig, corpus: Corpus, quiet: bool = False, fetch: bool = True) -> Prepared:
    """The weights that a run starts from: pre-trained first where they are the corpus's own, fetched where they are
    published. Without `fetch`, FileNotFoundError for those that are not here.
    """
    external = config.training == "external"
    folder = clap.folder(config.text_encoder, fetch) if external else text.folder(config.text_encoder, fetch)
    spoken = text.fingerprint(folder)
    extra = voxels.settings(config.penalty).fingerprint(fetch, quiet) if config.penalty else {}
    extra |= register.fingerprints(config)
    if external:
        spoken = store.content_key(CLAP_VERSION, spoken)
        return Prepared(None, folder, {"audio": spoken, "text": spoken})
    if config.training == "scratch" or config.audio_weights is None:
        audio_weights = None
    elif config.audio_weights != "pretrained":
        audio_weights = _weights_file(config.audio_weights, config.audio_encoder)
    elif config.audio_encoder in checkpoints.REGISTRY:
        audio_weights = store.home() / "checkpoints" / checkpoints.REGISTRY[config.audio_encoder].file.name
        if fetch:
            audio_weights = checkpoints.fetch(config.audio_encoder, quiet)
    else:
        audio_weights = pretraining.path(corpus, config.audio_encoder)
        if fetch:
            audio_weights = pretraining.weights(corpus, config.audio_encoder, quiet=quiet)
        elif problem := store.damage(audio_weights.parent):  # a damaged file would give the run another address
            raise FileNotFoundError(f"{audio_weights}: not there, or damaged ({problem}); it is made anew with the run")
    if audio_weights is None and config.training == "frozen":
        raise ValueError("training 'frozen' needs audio_weights; a random encoder that stays random learns nothing")
    audio = store.file_hash(audio_weights) if audio_weights else "random"  # FileNotFoundError where it is missing
    return Prepared(audio_weights, folder, {"audio": audio, "text": spoken, **extra})


def _weights_file(name: str, encoder: str) -> Path:
    """A file, or the file `<encoder>.*` of a folder; a relative path is looked for here and below the checkpoints."""
    places = [Path(name).expanduser(), store.home() / "checkpoints" / name]
    for place in places:
        if place.is_file():
            return place
        found = sorted(place.glob(f"{encoder}.*"))
        if found:
            return found[0]
    looked = " and ".join(map(str, dict.fromkeys(places)))
    raise FileNotFoundError(
        f"audio_weights: {name!r}: no such file, nor a folder with a file {encoder}.*; looked at {looked}"
    )


def prepare(
    config: RunConfig, corpus: Corpus, splits: tuple[str, ...] = SPLITS, quiet: bool = False, device: str = "cpu"
) -> Prepared:
    """Everything that `config` reads of `corpus`, from the store; what is missing there is computed now, frozen
    features on `device`. Where a corpus has no test clips, its validation clips are tested on.
    """
    prepared = weights(config, corpus, quiet)
    # Built only if the store lacks something: loading a model takes longer than many a frozen run's epoch.
    language: list[text.TextEncoder] = []
    over_states = config.training in ("finetuned", "scratch") and config.text_layers is not None

    def text_encoder() -> text.TextEncoder:
        if not language:
            layers = config.text_layers if over_states else None
            language.append(text.TextEncoder(prepared.text_folder, config.text_pooling, layers))
        return language[0]

    def moved() -> text.TextEncoder:
        return text_encoder().to(device)

    known = prepared.fingerprints["text"]
    if config.padding == "released" and encoders.facts(config.audio_encoder).cached:
        raise ValueError(f"padding 'released': {config.audio_encoder} reads cached log-mels, which hold no padding")
    for name in splits:
        if name == "test" and not corpus.clips["split"].eq("test").any():
            prepared.splits[name] = prepared.splits["validation"]
            continue
        part = corpus.split(name)
        captions = normalised(config, part)
        place = {clip: row for row, clip in enumerate(part.clips["clip"])}
        clip_of_caption = part.captions["clip"].map(place).to_numpy(dtype=np.int64)
        audio: Tensor | Packed
        spoken: Tensor | Packed
        if config.training == "external":
            audio, spoken = external(config, part, prepared.text_folder, captions, device, quiet)
        elif config.training == "frozen":
            assert prepared.audio_weights is not None
            audio = pooled(config, part, prepared.audio_weights, device, quiet)
            spoken = pooled_text(config, part, device, quiet)
        else:
            audio = audio_input(part, config.audio_encoder, quiet, config.max_seconds)
            spoken = (
                text.computed(captions, known, moved, below=config.text_layers, quiet=quiet)
                if over_states
                else text.tokenized(captions, known, text_encoder)
            )
        prepared.splits[name] = Inputs(audio, spoken, clip_of_caption, part.relevance())
    return prepared


def external(
    config: RunConfig, corpus: Corpus, folder: Path, captions: list[str], device: str, quiet: bool
) -> tuple[Tensor, Tensor]:
    """Embeddings of a CLAP model with both towers over a one-split corpus, computed once: audio, text."""
    known, split = text.fingerprint(folder), corpus.clips["split"].iloc[0]
    loaded: list[Clap] = []

    def model() -> Clap:
        if not loaded:
            loaded.append(Clap(folder, device))
        return loaded[0]

    def sounds(target: Path) -> None:
        rows = store.waveforms(corpus, model().sample_rate, quiet, config.max_seconds)
        store.pack(target, model().audio(rows, config.seed, quiet).numpy()[:, None])

    def words(target: Path) -> None:
        store.pack(target, model().text(captions, quiet).numpy()[:, None])

    cut = (config.max_seconds, config.seed)
    heard = store.content_key(CLAP_VERSION, known, corpus.audio_fingerprint(split), cut, store.WAVEFORM_VERSION)
    keys = {heard: sounds, store.content_key(CLAP_VERSION, known, captions): words}
    audio, spoken = (store.open_packed(store.cached("clap", key, build)).data for key, build in keys.items())
    return torch.from_numpy(audio), torch.from_numpy(spoken)
