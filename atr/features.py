"""What a run reads of a corpus: log-mels, pooled features, captions as token states, all from the store."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from atr import encoders, store
from atr.config import RunConfig
from atr.corpora.corpus import SPLITS, Corpus
from atr.encoders import pretraining, text
from atr.encoders.compact import ENCODER_VERSION, Compact
from atr.store import Packed


def log_mels(corpus: Corpus, encoder: Compact, quiet: bool = False) -> Packed:
    """The encoder's frontend over the clips of a one-split corpus: rows (frames, bands) float32, computed once."""
    split = corpus.clips["split"].iloc[0]

    def build(folder: Path) -> None:
        waveforms = store.waveforms(corpus, encoder.sample_rate, quiet)

        def rows():
            for start in tqdm(range(0, len(waveforms), 16), desc=f"{corpus.name} {split}: log-mel", disable=quiet):
                batch, lengths = waveforms.batch(np.arange(start, min(start + 16, len(waveforms))))
                features = encoder.frontend(batch.float() / 32767, lengths).transpose(1, 2).numpy()
                for row, length in zip(features, encoder.feature_lengths(lengths).tolist(), strict=True):
                    yield row[:length]

        with torch.no_grad(), store.threads(os.cpu_count() or 1):
            store.pack(folder, rows())

    key = store.content_key(corpus.audio_fingerprint(split), encoder.logmel.description, store.WAVEFORM_VERSION)
    return store.open_packed(store.cached("logmel", key, build))


def pooled(corpus: Corpus, name: str, weights: Path, quiet: bool = False) -> Tensor:
    """Pooled features of a frozen encoder in evaluation mode: (clips, dim), computed once."""
    split = corpus.clips["split"].iloc[0]

    def build(folder: Path) -> None:
        encoder = encoders.build(name, weights).eval()
        features = log_mels(corpus, encoder, quiet)
        with torch.no_grad(), store.threads(os.cpu_count() or 1):
            rows = []
            for start in range(0, len(features), 64):
                batch, lengths = features.batch(np.arange(start, min(start + 64, len(features))))
                rows.append(encoder.pool(*encoder.encode(batch.transpose(1, 2), lengths)))
        store.pack(folder, torch.cat(rows).numpy()[:, None])

    versions = (ENCODER_VERSION, store.WAVEFORM_VERSION)
    key = store.content_key(corpus.audio_fingerprint(split), name, store.file_hash(weights), versions)
    return torch.from_numpy(store.open_packed(store.cached("pooled", key, build)).data)


@dataclass(frozen=True)
class Inputs:
    """One split, ready to be batched.

    audio: pooled features (clips, dim), or log-mels; text: pooled (captions, dim), or token states, or token ids;
    clip_of_caption: (captions,); relevance as in `Corpus.relevance`.
    """

    audio: Tensor | Packed
    text: Tensor | Packed
    clip_of_caption: np.ndarray
    relevance: np.ndarray

    def audio_batch(self, clips: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Pooled (B, dim) and None, or log-mels (B, bands, frames) and their lengths."""
        if isinstance(self.audio, Tensor):
            return self.audio[clips], None
        batch, lengths = self.audio.batch(clips)
        return batch.transpose(1, 2), lengths

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


def weights(config: RunConfig, corpus: Corpus, quiet: bool = False) -> Prepared:
    """The weights that a run starts from, pre-trained first where they are the corpus's own."""
    if config.training == "scratch" or config.audio_weights is None:
        audio_weights = None
    elif config.audio_weights == "pretrained":
        audio_weights = pretraining.weights(corpus, config.audio_encoder, quiet=quiet)
    else:
        audio_weights = Path(config.audio_weights).expanduser()
        if not audio_weights.is_file():
            raise FileNotFoundError(f"audio_weights: {audio_weights}: no such file")
    if audio_weights is None and config.training == "frozen":
        raise ValueError("training 'frozen' needs audio_weights; a random encoder that stays random learns nothing")
    folder = text.folder(config.text_encoder)
    audio = store.file_hash(audio_weights) if audio_weights else "random"
    return Prepared(audio_weights, folder, {"audio": audio, "text": text.fingerprint(folder)})


def prepare(config: RunConfig, corpus: Corpus, splits: tuple[str, ...] = SPLITS, quiet: bool = False) -> Prepared:
    """Everything that `config` reads of `corpus`, from the store; what is missing there is computed now."""
    prepared = weights(config, corpus, quiet)
    # Built only if the store lacks something: loading a text model takes longer than many a frozen run's epoch.
    language: list[text.TextEncoder] = []
    over_states = config.training in ("finetuned", "scratch") and config.text_layers is not None

    def text_encoder() -> text.TextEncoder:
        if not language:
            layers = config.text_layers if over_states else None
            language.append(text.TextEncoder(prepared.text_folder, config.text_pooling, layers))
        return language[0]

    known = prepared.fingerprints["text"]
    for name in splits:
        part = corpus.split(name)
        captions = [text.normalise(caption, config.caption_style) for caption in part.captions["caption"]]
        place = {clip: row for row, clip in enumerate(part.clips["clip"])}
        clip_of_caption = part.captions["clip"].map(place).to_numpy(dtype=np.int64)
        audio: Tensor | Packed
        spoken: Tensor | Packed
        if config.training == "frozen":
            assert prepared.audio_weights is not None
            audio = pooled(part, config.audio_encoder, prepared.audio_weights, quiet)
            spoken = torch.from_numpy(
                text.computed(captions, known, text_encoder, pooling=config.text_pooling, quiet=quiet).data
            )
        else:
            audio = log_mels(part, encoders.build(config.audio_encoder), quiet)
            spoken = (
                text.computed(captions, known, text_encoder, below=config.text_layers, quiet=quiet)
                if over_states
                else text.ids(captions, text_encoder())
            )
        prepared.splits[name] = Inputs(audio, spoken, clip_of_caption, part.relevance())
    return prepared
