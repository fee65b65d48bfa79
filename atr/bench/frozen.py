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
from atr.bench.harness import Case, ReleasedCode, scratch
from atr.bench.released import random_networks
from atr.config import RunConfig
from atr.corpora.corpus import Corpus
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
        batch = 32 if clips >= 32 else clips
        yield RunConfig(corpus="csv", epochs=epochs, batch_size=batch, **fields), atr.load_corpus("csv", folder), folder


def ours(shape: str, clips: int, epochs: int, network: str, device: str) -> dict[str, Any]:
    with study(shape, clips, epochs, network) as (config, corpus, folder):
        started = time.perf_counter()
        run = atr.fit(config, corpus, device=device, runs=folder / "runs", threads=os.cpu_count() or 1)
        seconds = time.perf_counter() - started
        history = run.history["loss"]
        return {"seconds": seconds, "first_loss": float(history.iloc[0]), "epochs": len(history)}


def every_epoch(shape: str, clips: int, epochs: int, network: str, device: str, timed_epochs: int) -> dict[str, Any]:
    """The same study, its encoders frozen in evaluation mode, but run on every batch of every epoch, as a loop that
    keeps no features has it. `timed_epochs` are timed, validation and all, and count for `epochs`: each costs the same.
    """
    with study(shape, clips, epochs, network) as (config, corpus, _):
        started = time.perf_counter()
        assert config.audio_weights is not None
        audio = registry.build(config.audio_encoder, config.audio_weights).eval().to(device).requires_grad_(False)
        text_encoder = text.TextEncoder(Path(config.text_encoder), config.text_pooling).eval().to(device)
        text_encoder.requires_grad_(False)
        splits = {name: _inputs(config, corpus.split(name), text_encoder) for name in ("train", "validation", "test")}
        torch.manual_seed(config.seed)
        widths = (audio.dim, text_encoder.dim, config.embedding_dim, audio.head_hidden)
        heads = model.DualEncoder(None, None, *widths).to(device)
        loss_function = pair.build(**config.loss, variant=config.recipe)
        optimizer = torch.optim.Adam(model.parameter_groups(heads, loss_function, config), fused=True)

        def to(tensor: Tensor) -> Tensor:
            return tensor.to(device)

        @torch.no_grad()
        def encode_audio(split: Inputs, clips: np.ndarray) -> Batch:
            return Batch(POOLED, audio.pool(*inputs.encode(audio, split.audio.batch(clips).to(to))))

        @torch.no_grad()
        def encode_text(split: Inputs, captions: np.ndarray) -> Batch:
            return Batch(POOLED, text_encoder(split.text.batch(captions).to(to)))

        @torch.no_grad()
        def evaluate(split: Inputs) -> None:
            """Each clip and each caption once."""
            sides = []
            for encode, count in ((encode_audio, len(split.audio)), (encode_text, len(split.text))):
                batches = np.split(np.arange(count), range(config.batch_size, count, config.batch_size))
                sides.append(Batch(POOLED, torch.cat([encode(split, batch).values for batch in batches])))
            embeddings = heads.embed_text(sides[1]), heads.embed_audio(sides[0])
            retrieval.retrieval_metrics(embeddings, split.relevance)

        ready = time.perf_counter() - started
        clip_of = splits["train"].clip_of_caption
        first_loss = None
        started = time.perf_counter()
        for epoch in range(timed_epochs):
            total, batches = 0.0, epoch_batches(clip_of, config.batch_size, config.sampler, config.seed, epoch)
            for captions in batches:
                sounds, words = encode_audio(splits["train"], clip_of[captions]), encode_text(splits["train"], captions)
                ids = torch.from_numpy(clip_of[captions]).to(device)
                loss = loss_function(heads.embed_audio(sounds), heads.embed_text(words), ids)
                optimizer.zero_grad()
                loss.backward()
                if config.clip_norm is not None:
                    torch.nn.utils.clip_grad_norm_(heads.parameters(), config.clip_norm)
                optimizer.step()
                total += loss.item()
            first_loss = total / len(batches) if first_loss is None else first_loss
            evaluate(splits["validation"])
        epoch_seconds = (time.perf_counter() - started) / timed_epochs
        started = time.perf_counter()
        evaluate(splits["test"])
        tested = time.perf_counter() - started
        seconds = ready + epochs * epoch_seconds + tested
        return {"seconds": seconds, "epoch_seconds": epoch_seconds, "ready_seconds": ready, "first_loss": first_loss}


def _inputs(config: RunConfig, corpus: Corpus, encoder: text.TextEncoder) -> Inputs:
    fingerprint = text.fingerprint(Path(config.text_encoder))
    ids = text.ids_from_store(preparation.normal_captions(config, corpus), fingerprint, lambda: encoder)
    waveforms = inputs.waveforms(corpus, registry.facts(config.audio_encoder).sample_rate, True)
    place = {clip: row for row, clip in enumerate(corpus.clips["clip"])}
    clip_of = corpus.captions["clip"].map(place).to_numpy(dtype=np.int64)
    return Inputs(InputRows(inputs.WAVEFORMS, waveforms), ids, clip_of, corpus.relevance())
