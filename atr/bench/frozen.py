"""A frozen study from audio files to test metrics: encoded once, or anew in every epoch."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
import torch
from torch import Tensor

import atr
from atr.bench.harness import Case, ReleasedCode, once, scratch
from atr.bench.released import random_networks
from atr.config import RunConfig
from atr.corpora.corpus import SPLITS, Corpus
from atr.encoders import inputs, registry, text
from atr.losses import pair
from atr.metrics import retrieval
from atr.system.packed import POOLED, Batch, InputRows
from atr.training import model, preparation
from atr.training.batches import epoch_batches
from atr.training.identity import Inputs

RATE = 44_100  # Hz of the files
WORDS = 11  # of a caption, as Clotho's have
# captions of a clip, seconds of a clip (shortest, longest): Clotho's shape and AudioCaps'
SHAPES = {"Clotho": (5, 15.0, 30.0), "AudioCaps": (1, 10.0, 10.0)}
# training clips by shape (anew in every epoch: the last), epochs, of which so many are timed where each costs the same,
# networks
SCALES: dict[str, tuple[dict[str, tuple[int, ...]], int, int, str]] = {
    "smoke": ({"Clotho": (8,), "AudioCaps": (8,)}, 2, 1, "small"),
    "demo": ({"Clotho": (32,), "AudioCaps": (32, 96)}, 50, 1, "paper"),
    "paper": ({"Clotho": (3839,), "AudioCaps": (49_274,)}, 50, 1, "paper"),
}
EVALUATED = 5  # a clip of the validation and one of the test split for so many of the training split


def cases(scale: str, device: str, released: ReleasedCode) -> list[Case]:
    clips, epochs, timed_epochs, network = SCALES[scale]
    result = []
    for shape, numbers in clips.items():
        for number in numbers:
            size = {"shape": shape, "clips": number, "epochs": epochs, "network": network, "device": device}
            result.append(Case("frozen", "atr", "frozen.ours", size))
        again = size | {"timed_epochs": timed_epochs}
        result.append(Case("frozen", "anew in every epoch", "frozen.every_epoch", again))
    return result


@contextmanager
def study(shape: str, clips: int, epochs: int, network: str) -> Iterator[tuple[RunConfig, Corpus, Path]]:
    """A corpus of noise and random words in files, a config for it with networks of random weights, and an empty
    store; all of it gone afterwards.
    """
    captions, shortest, longest = SHAPES[shape]
    if network == "small":
        shortest, longest = 1.0, 2.0
    generator = np.random.default_rng(0)
    vocabulary = [
        word for word in (text.folder("minilm") / "vocab.txt").read_text(encoding="utf-8").split() if word.isalpha()
    ]
    with scratch() as folder:
        rows = []
        counts = {"train": clips, "validation": -(-clips // EVALUATED), "test": -(-clips // EVALUATED)}
        for split, count in counts.items():
            for number in range(count):
                name = f"{split}{number}.wav"
                samples = round(generator.uniform(shortest, longest) * RATE)
                soundfile.write(folder / name, generator.uniform(-0.5, 0.5, samples), RATE)
                sentences = [" ".join(generator.choice(vocabulary, WORDS)) for _ in range(captions)]
                rows.append(
                    {"file_name": name, "split": split} | {f"caption_{k}": s for k, s in enumerate(sentences, 1)}
                )
        pd.DataFrame(rows).to_csv(folder / "captions.csv", index=False)
        (folder / "weights").mkdir()
        fields = random_networks(network, folder / "weights")
        batch = min(32, clips)
        yield RunConfig(corpus="csv", epochs=epochs, batch_size=batch, **fields), atr.load_corpus("csv", folder), folder


def ours(shape: str, clips: int, epochs: int, network: str, device: str) -> dict[str, Any]:
    with study(shape, clips, epochs, network) as (config, corpus, folder):
        start = time.perf_counter()
        run = atr.fit(config, corpus, device=device, runs=folder / "runs", threads=os.cpu_count() or 1)
        seconds = time.perf_counter() - start
        history = run.history["loss"]
        return {"seconds": seconds, "first_loss": float(history.iloc[0]), "epochs": len(history)}


class EncodingStudy:
    """A frozen study whose encoders, in evaluation mode, run on every batch, as where no features are kept."""

    def __init__(self, config: RunConfig, corpus: Corpus, device: str) -> None:
        self.config, self.device = config, device
        assert config.audio_weights is not None
        self.audio = registry.build(config.audio_encoder, config.audio_weights).eval().to(device).requires_grad_(False)
        self.text = text.TextEncoder(Path(config.text_encoder), config.text_pooling).eval().to(device)
        self.text.requires_grad_(False)
        self.splits = {name: _inputs(config, corpus.split(name), self.text) for name in SPLITS}
        torch.manual_seed(config.seed)
        widths = (self.audio.dim, self.text.dim, config.embedding_dim, self.audio.head_hidden)
        self.heads = model.DualEncoder(None, None, *widths).to(device)
        self.loss = pair.build(**config.loss, variant=config.recipe)
        self.optimizer = torch.optim.Adam(model.parameter_groups(self.heads, self.loss, config), fused=True)

    def _to(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)

    @torch.no_grad()
    def encode_audio(self, split: Inputs, clips: np.ndarray) -> Batch:
        return Batch(POOLED, self.audio.pool(*inputs.encode(self.audio, split.audio.batch(clips).to(self._to))))

    @torch.no_grad()
    def encode_text(self, split: Inputs, captions: np.ndarray) -> Batch:
        return Batch(POOLED, self.text(split.text.batch(captions).to(self._to)))

    def train(self, epoch: int) -> float:
        """An epoch's mean loss."""
        split, config, total = self.splits["train"], self.config, 0.0
        batches = epoch_batches(split.clip_of_caption, config.batch_size, config.sampler, config.seed, epoch)
        for captions in batches:
            clips = split.clip_of_caption[captions]
            sounds, words = self.encode_audio(split, clips), self.encode_text(split, captions)
            ids = torch.from_numpy(clips).to(self.device)
            loss = self.loss(self.heads.embed_audio(sounds), self.heads.embed_text(words), ids)
            self.optimizer.zero_grad()
            loss.backward()
            if config.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(self.heads.parameters(), config.clip_norm)
            self.optimizer.step()
            total += loss.item()
        return total / len(batches)

    @torch.no_grad()
    def evaluate(self, name: str) -> None:
        """Each clip and each caption of a split once."""
        split, size, sides = self.splits[name], self.config.batch_size, []
        for encode, count in ((self.encode_audio, len(split.audio)), (self.encode_text, len(split.text))):
            batches = np.split(np.arange(count), range(size, count, size))
            sides.append(Batch(POOLED, torch.cat([encode(split, batch).values for batch in batches])))
        embeddings = self.heads.embed_text(sides[1]), self.heads.embed_audio(sides[0])
        retrieval.retrieval_metrics(embeddings, split.relevance)


def every_epoch(shape: str, clips: int, epochs: int, network: str, device: str, timed_epochs: int) -> dict[str, Any]:
    """The same study, its features encoded anew in every epoch. `timed_epochs` are timed, validation and all, and count
    for `epochs`: each costs the same.
    """
    with study(shape, clips, epochs, network) as (config, corpus, _):
        start = time.perf_counter()
        anew = EncodingStudy(config, corpus, device)
        ready, losses = time.perf_counter() - start, []
        start = time.perf_counter()
        for epoch in range(timed_epochs):
            losses.append(anew.train(epoch))
            anew.evaluate("validation")
        epoch_seconds = (time.perf_counter() - start) / timed_epochs
        seconds = ready + epochs * epoch_seconds + once(lambda: anew.evaluate("test"), device)
        return {"seconds": seconds, "epoch_seconds": epoch_seconds, "ready_seconds": ready, "first_loss": losses[0]}


def _inputs(config: RunConfig, corpus: Corpus, encoder: text.TextEncoder) -> Inputs:
    fingerprint = text.fingerprint(Path(config.text_encoder))
    ids = text.ids_from_store(preparation.normal_captions(config, corpus), fingerprint, lambda: encoder)
    waveforms = inputs.waveforms(corpus, registry.facts(config.audio_encoder).sample_rate, True)
    return Inputs(InputRows(inputs.WAVEFORMS, waveforms), ids, corpus.clip_of_caption(), corpus.relevance())
