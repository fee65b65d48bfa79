"""Embeddings of sounds and sentences that belong to no corpus, by a finished run or by CLAP as published."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from atr.config import WINDOWS, RunConfig
from atr.corpora import audio
from atr.corpora.corpus import Corpus
from atr.encoders import clap, clap_files, inputs, registry, text
from atr.encoders.clap import CLAP_VERSION, Clap
from atr.inference import pack
from atr.inference.windows import cut, mean, one, window_of
from atr.system import devices, hashes
from atr.system.packed import POOLED, InputRows, RaggedArray
from atr.training import CHECKPOINT, ENVIRONMENT, evaluation, identity, model, preparation
from atr.training.distributed import fabric_of
from atr.training.evaluation import SIDES
from atr.training.identity import Inputs, Preparation
from atr.training.records import Run

Sound = str | os.PathLike[str] | np.ndarray | tuple[np.ndarray, int]


def beginning(run: Run, corpus: Corpus | None = None, quiet: bool = True) -> tuple[RunConfig, Preparation]:
    """A finished run's config with its audio encoder's weights named by their file, and the weights that it started
    from.

    corpus: the one that the run was trained on, by default as its config names it; one that lies in a folder has to be
    given where the encoder was pre-trained on it, which is found, or made again, by it.

    FileNotFoundError: the run is not finished. ValueError: its weights are no longer the same.
    """
    if not run.at_end:
        raise FileNotFoundError(f"{run.path}: not finished; atr.fit(run.config) continues it")
    config = run.config.replace(penalty=None)  # training's alone; it would have to be fetched
    corpus = corpus or identity.pretraining_corpus(config)
    start = identity.weights(config, corpus, quiet)
    recorded = run.environment.get("weights", {})
    for part, fingerprint in start.fingerprints.items():
        if fingerprint != recorded.get(part):
            kind = f"other {part} weights than are" if part in SIDES else f"another code of {part} than is"
            raise ValueError(f"{run.path / ENVIRONMENT}: trained from {kind} here; restore what it was, or train anew")
    if start.audio_weights is not None:  # "pretrained" would mean: on the corpus at hand
        config = config.replace(audio_weights=str(start.audio_weights))
    return config, start


def check_sentences(sentences: Sequence[str]) -> list[str]:
    """The sentences as a list. ValueError: one text in place of several, or one that is no text."""
    if isinstance(sentences, str):
        raise ValueError(f"sentences: one text, {sentences!r}; give a list of them, if of one")
    for sentence in (listed := list(sentences)):
        if not isinstance(sentence, str):
            raise ValueError(f"sentence {sentence!r}: no text; leave out what has no caption")
    return listed


class Embedder:
    """The model of a finished run's selected epoch, in evaluation mode.

    sample_rate: in Hz, of the sounds it hears; seconds: of the longest that it hears whole, None for any; of a longer
    one a run hears the beginning, CLAP parts drawn from the sound itself; name: of the run or model;
    text_aware: whether sounds have an embedding per frame (`DualEncoder`).

    With windows="mean" it hears any sound whole: in windows of `window` seconds, as few as cover it, evenly spaced from
    its start to its end. Their embeddings of length 1 are averaged, and the mean is made of length 1 again. A shorter
    sound is one window, repeated or padded where its encoder prefers that (`AudioEncoder`). `window` is the encoder's
    own, or the run's `max_seconds` where that is less or all there is (`windows.window_of`); None where neither is
    stated. With windows="first" it hears a sound's first window alone, with "random" one that the seed and the sound's
    samples draw: the same in any batch.

    >>> soundscapes = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
    >>> run = atr.fit(atr.RunConfig(corpus=soundscapes, epochs=2))
    >>> embedder = Embedder(run)
    >>> sounds = embedder.sounds([0.1 * np.random.default_rng(0).standard_normal(64000)])  # or audio files
    >>> sentences = embedder.sentences(["Rain falls on a roof.", "A dog barks."])
    >>> embedder.similarity(sentences, sounds).shape
    torch.Size([2, 1])
    """

    def __init__(
        self,
        run: Run,
        corpus: Corpus | None = None,
        *,
        windows: str | None = None,
        device: str = "auto",
        quiet: bool = True,
    ) -> None:
        """corpus and errors: as in `beginning`; also ValueError for a checkpoint that does not fit, for windows of a
        model that has none, and for the mean over those of a text-aware one.
        """
        config, start = beginning(run, corpus, quiet)
        self._load(config, start, run, device, windows)

    @classmethod
    def packed(cls, name: str | os.PathLike[str], *, windows: str | None = None, device: str = "auto") -> Embedder:
        """A run that `atr pack` wrote, by its folder or its name on the Hub: it embeds as the run did, and has its
        fingerprint. Errors: as in `pack.open_pack`, and FileNotFoundError for what is no pack.
        """
        folder, self = pack.locate(name), cls.__new__(cls)
        if folder is None:
            raise FileNotFoundError(f"{name}: no pack; give a folder with {pack.PACK}, or its name on the Hub")
        self._load(*pack.open_pack(folder), device, windows)
        return self

    @classmethod
    def clap(cls, name: str | os.PathLike[str], *, windows: str | None = None, device: str = "auto") -> Embedder:
        """A CLAP model of transformers (`atr.encoders.clap`), by its folder or its name on the Hub, or of its authors'
        own file, by `laion:<file>` or `msclap:<file>`. Errors: as in `clap.folder` and `Clap`, or `clap_files.load`.
        """
        name, self = str(name), cls.__new__(cls)
        config = RunConfig(training="external", audio_encoder="clap", epochs=0, text_encoder=name)
        if name.startswith(clap_files.PREFIXES):
            loaded = clap_files.load(name, devices.resolve_device(device))
            folder, digest = Path(), loaded.fingerprint
        else:
            folder = clap.folder(name)
            loaded, digest = None, text.fingerprint(folder)
        start = Preparation(None, folder, {"text": hashes.content_key(CLAP_VERSION, digest)})
        self._load(config, start, None, device, windows, loaded)
        return self

    def _load(
        self,
        config: RunConfig,
        start: Preparation,
        run: Run | None,
        device: str,
        windows: str | None,
        loaded: Clap | None = None,
    ) -> None:
        self.config, self.seconds, self.text_aware = config, config.max_seconds, config.text_aware is not None
        checkpoint = run and run.path / CHECKPOINT
        trained = hashes.file_hash(checkpoint) if checkpoint and checkpoint.is_file() else None
        # Contents alone: the config names weights by where they lie here.
        self.seed = config.seed if config.training == "external" else 0
        self.fingerprint = hashes.content_key(
            config.training, start.fingerprints, run.address if run else None, trained, *([windows] if windows else [])
        )
        self.name = run.address if run else config.text_encoder
        device = devices.resolve_device(device)
        self._clap = loaded or (Clap(start.text_folder, device) if config.training == "external" else None)
        if self._clap is not None:
            self.sample_rate, self.dim = self._clap.sample_rate, self._clap.dim
            self.seconds = min(self._clap.seconds, self.seconds or self._clap.seconds)
            self._hear_in(windows, self.seconds, None)
            return
        assert run is not None
        self._below, self._audio_below = config.state_layers, config.audio_state_layers
        self._words = start.fingerprints["text"]
        facts = registry.facts(config.audio_encoder)
        self._hear_in(windows, window_of(config), facts.short)
        with torch.random.fork_rng():
            self._reader = text.TextEncoder(start.text_folder, config.text_pooling, self._below).to(device).eval()
            hears, reads = (InputRows(POOLED, torch.empty(0, dim)) for dim in (facts.dim, self._reader.dim))
            nothing = Inputs(hears, reads, np.empty(0), np.empty(0))
            network = model.restore(run, replace(start, splits={"test": nothing}), config)
            if self._audio_below is not None:
                self._hearer = registry.build(config.audio_encoder, start.audio_weights).to(device).eval()
            if config.training == "frozen":
                hears = registry.build(config.audio_encoder, start.audio_weights, pooling=config.pooling)
                network.audio_encoder, network.text_encoder = hears, self._reader
        self._network, self._fabric = network, fabric_of(config, device)
        self._dual = self._fabric.setup(network)
        self.sample_rate = facts.sample_rate
        self.dim = self._reader.dim if config.head == "labels" else config.embedding_dim

    def _hear_in(self, windows: str | None, window: float | None, short: str | None) -> None:
        """Take up how sounds are heard; ValueError where the model cannot hear them so."""
        self.window, self._short, self._windows = window, short, windows
        if windows is None:
            return
        if windows not in WINDOWS:
            raise ValueError(f"windows: {windows!r}; known: {', '.join(WINDOWS)}, and None for a sound in one piece")
        mend = "leave windows at None"
        if self.text_aware and windows == "mean":
            raise ValueError(f"windows: {self.name} is text-aware, its sounds have no embedding to average; {mend}")
        if window is None:
            raise ValueError(
                f"windows: the encoder {self.config.audio_encoder} states no window; {mend}, or state `window`, in "
                "seconds, in its class"
            )
        self.seconds = None if windows == "mean" else window

    @property
    def draws(self) -> bool:
        """Whether the seed counts: of a longer sound a part is drawn."""
        return self._windows == "random" or (self._windows is None and self._clap is not None)

    def with_seed(self, seed: int) -> Embedder:
        """The same model, which draws by another seed. ValueError: it draws nothing."""
        if not self.draws:
            raise ValueError(f"seed: {self.name} draws no part of a sound, so no seed counts; leave it out")
        other = copy.copy(self)
        other.seed, other.fingerprint = seed, hashes.content_key(self.fingerprint, "seed", seed)
        return other

    def sounds(self, sounds: Sequence[Sound], quiet: bool = True) -> Any:
        """(N, dim) float32 on the CPU, of length 1; of a text-aware model `FrameRows` (N, frames, dim).

        sounds: audio files, or waveforms (samples,) in the range -1 to 1, at `sample_rate` or each with its rate.
        AudioError: a file that cannot be used; ValueError: a waveform without samples, one sound in place of a list.
        """
        if isinstance(sounds, str | os.PathLike) or getattr(sounds, "ndim", 2) == 1:
            raise ValueError(f"sounds: one {type(sounds).__name__}; give a list, if of one")
        prepared = devices.prefetch(self.prepare, sounds)
        return self.embed(list(tqdm(prepared, "sounds", len(sounds), disable=quiet)))

    def prepare(self, sound: Sound) -> list[Any]:
        """What `embed` takes of one sound, an entry for each window; threads may do it. Errors: as in `sounds`."""
        pieces = self._pieces(sound)
        return pieces if self._clap is None else [self._clap.prepare(piece, self.seed) for piece in pieces]

    def embed(self, prepared: Sequence[list[Any]]) -> Any:
        """What `sounds` gives, of what `prepare` gave of each."""
        rows = [row for parts in prepared for row in parts]
        if not rows:
            return torch.empty(0, self.dim)
        if self._clap is not None:
            embeddings = self._clap.embed(rows)
        else:
            packed = RaggedArray.of(rows)
            batch = InputRows(inputs.WAVEFORMS, packed)
            if self._audio_below is not None:
                states = inputs.states(self._hearer, packed, self._audio_below, self._fabric.device.type)
                batch = InputRows(inputs.STATES, RaggedArray.of(list(states)))
            embeddings = self._embed("audio", batch)
        if self._windows != "mean":
            return embeddings
        return mean(embeddings, [len(parts) for parts in prepared])

    def sentences(self, sentences: Sequence[str], quiet: bool = True, keep: bool = False) -> Tensor:
        """(N, dim) float32 on the CPU, of length 1 but for a text-aware model. ValueError: an empty sentence, one that
        is no text, or a text in place of a list of them.

        keep: what the fixed part of a run's text encoder makes of them, in the store, for other runs to read.
        """
        sentences = check_sentences(sentences)
        words = [text.normalise(sentence, preparation.caption_style(self.config)) for sentence in sentences]
        for sentence in sentences:
            if not text.normalise(sentence, self.config.caption_style).strip():
                raise ValueError(f"sentence {sentence!r}: no words; describe a sound in a few")
        if not words:
            return torch.empty(0, self.dim)
        if self._clap is not None:
            return self._clap.text(words, quiet)
        frozen = self.config.training == "frozen"
        if self._below is None and not (frozen and keep):
            return self._embed("text", text.ids(words, self._reader))
        if keep:
            pooling = self.config.text_pooling if frozen else None
            rows = text.rows_from_store(words, self._words, lambda: self._reader, pooling, self._below, quiet)
        else:
            rows = RaggedArray.of(self._reader.rows(words, self._below, tqdm(disable=True)))
        fixed = InputRows(POOLED, torch.from_numpy(rows.data)) if frozen else InputRows(text.STATES, rows)
        return self._embed("text", fixed)

    def similarity(self, sentences: Tensor, sounds: Any) -> Tensor:
        """(sentences, sounds): cosines of what `sentences` and `sounds` gave."""
        if not self.text_aware:
            return sentences @ sounds.T
        with torch.no_grad():
            device = self._fabric.device
            return self._network.eval().similarity(sounds.to(device), sentences.to(device)).float().cpu()

    def _pieces(self, sound: Sound) -> list[np.ndarray]:
        """A sound as int16 at `sample_rate`: in its windows, or in one piece."""
        if isinstance(sound, np.ndarray):
            waveform, rate = sound, self.sample_rate
        elif isinstance(sound, tuple):
            waveform, rate = sound
        else:
            waveform, rate = audio.read(sound)
        if waveform.ndim != 1 or not len(waveform):
            raise ValueError(f"a waveform of shape {waveform.shape}; give (samples,), one channel and not empty")
        if self._windows is not None:
            assert self.window is not None
            seed = self.seed if self._windows == "random" else None
            if self._windows == "mean":
                pieces = cut(waveform, rate, self.window, self._short)
            else:
                pieces = [one(waveform, rate, self.window, self._short, seed)]
        else:
            seconds = self.config.max_seconds
            pieces = [waveform if seconds is None else waveform[: max(1, round(seconds * rate))]]
        return [inputs.quantise(piece, rate, self.sample_rate) for piece in pieces]

    def _embed(self, side: str, rows: InputRows) -> Any:
        unread = Inputs(rows, rows, np.empty(0), np.empty(0))
        return evaluation.one_side(self._dual, unread, side, lambda tensor: tensor.to(self._fabric.device))
