"""Pre-train a compact encoder on tagging a corpus's sound events, as PANNs was on AudioSet (Kong et al. 2020)."""

import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from atr import register
from atr.corpora.corpus import Corpus
from atr.encoders import registry
from atr.encoders.audio.compact import ENCODER_VERSION, Compact
from atr.encoders.inputs import log_mels
from atr.encoders.pooling import frame_mask
from atr.system import devices, hashes, packed, places, store

PRETRAINING_VERSION = 1
EPOCHS, BATCH_SIZE, LEARNING_RATE = 25, 32, 2e-3
SILENCE = -100.0  # dB, what the frontend makes of zeros


def labels(corpus: Corpus, events: list[str]) -> Tensor:
    """(clips, events) of 0 and 1: which event occurs in which clip."""
    table = torch.zeros(len(corpus), len(events))
    place = {clip: row for row, clip in enumerate(corpus.clips["clip"])}
    column = {event: number for number, event in enumerate(events)}
    for clip, event in zip(corpus.events["clip"], corpus.events["event"], strict=True):
        table[place[clip], column[event]] = 1
    return table


def default_epochs() -> int:
    """EPOCHS, or what ATR_PRETRAINING_EPOCHS says; ValueError where that is no number from 1."""
    value = os.environ.get("ATR_PRETRAINING_EPOCHS") or str(EPOCHS)
    if not value.isdecimal() or not int(value):
        raise ValueError(f"ATR_PRETRAINING_EPOCHS: {value!r}; give a whole number from 1")
    return int(value)


def name_line(events: list[str]) -> str:
    """Names in one line, as CSV with a blank after each comma: a name that has a comma or a quote stands in quotes."""
    return ", ".join('"' + name.replace('"', '""') + '"' if set(name) & set(',"') else name for name in events)


def location(corpus: Corpus, name: str, *, epochs: int | None = None, seed: int = 0) -> tuple[str, int]:
    """Key in the store of what `weights` makes, and the number of epochs. ValueError if the corpus knows no events."""
    epochs = epochs or default_epochs()
    sounds, events = corpus.pretraining_key
    if not events:
        raise ValueError(
            f"{corpus.name}: knows no sound events to pre-train {name} on; set audio_weights to a file (say, of "
            'atr.encoders.pretraining.weights(atr.load_corpus("soundscapes"), …)), or training to "scratch"'
        )
    recipe = (PRETRAINING_VERSION, epochs, BATCH_SIZE, LEARNING_RATE, seed)
    code = register.code("encoder", name)
    own = [code] if code else []
    key = hashes.content_key(name, ENCODER_VERSION, _shapes(name, code), sounds, events, recipe, *own)
    return key, epochs


def path(corpus: Corpus, name: str) -> Path:
    """Where `weights` keeps its file, made or not."""
    return places.home() / "cache" / "weights" / location(corpus, name)[0] / "weights.safetensors"


@cache
def _shapes(name: str, code: str | None) -> tuple[tuple[str, tuple[int, ...]], ...]:
    with torch.random.fork_rng():  # only the shapes are of interest
        return tuple((key, tuple(tensor.shape)) for key, tensor in registry.build(name).state_dict().items())


def weights(corpus: Corpus, name: str, *, epochs: int | None = None, seed: int = 0, quiet: bool = False) -> Path:
    """File of the encoder `name` pre-trained on `corpus`, trained the first time and kept.

    Multi-label tagging of the training split: binary cross-entropy, SpecAugment, mixup of pairs of clips, AdamW with a
    one-cycle schedule, the last epoch's weights. Raises ValueError if the corpus knows no events.
    """
    key, epochs = location(corpus, name, epochs=epochs, seed=seed)
    part = corpus.to_pretrain_on()
    events = sorted(part.events["event"].unique())

    def build(folder: Path) -> None:
        with torch.random.fork_rng(), devices.threads(os.cpu_count() or 1):
            torch.manual_seed(seed)
            encoder = registry.build(name, augment="specaugment")
            features = log_mels(part, encoder, quiet)
            train(encoder, features, labels(part, events), epochs, seed, f"{corpus.name}: pre-training {name}", quiet)
        tensors = {key: tensor.contiguous() for key, tensor in encoder.state_dict().items()}
        save_file(tensors, folder / "weights.safetensors", {"events": name_line(events)})

    return store.cached_folder("weights", key, build) / "weights.safetensors"


def train(
    encoder: Compact, features: packed.RaggedArray, targets: Tensor, epochs: int, seed: int, title: str, quiet: bool
) -> None:
    """Train `encoder` in place to tag `targets` (clips, events) from `features`."""
    tagger = nn.Linear(encoder.dim, targets.shape[1])
    optimizer = torch.optim.AdamW([*encoder.parameters(), *tagger.parameters()], LEARNING_RATE, fused=True)
    steps = max(1, len(features) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, epochs=epochs, steps_per_epoch=steps)
    generator = np.random.default_rng(seed)
    encoder.train()
    with tqdm(total=epochs, desc=title, unit="epoch", disable=quiet) as bar:
        for _ in range(epochs):
            order, total = generator.permutation(len(features)), 0.0
            for step in range(steps):
                rows = order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
                batch, lengths = features.batch(rows)
                batch = batch.masked_fill(~frame_mask(lengths, batch.shape[1])[:, :, None], SILENCE)
                target = targets[rows]
                share = torch.from_numpy(generator.beta(0.5, 0.5, (len(rows), 1)).astype(np.float32))
                batch = share[:, :, None] * batch + (1 - share[:, :, None]) * batch.flip(0)
                lengths = torch.maximum(lengths, lengths.flip(0))
                target = share * target + (1 - share) * target.flip(0)
                logits = tagger(encoder.pool(*encoder.encode(batch.transpose(1, 2), lengths)))
                loss = nn.functional.binary_cross_entropy_with_logits(logits, target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item()
            bar.set_postfix(loss=f"{total / steps:.3f}")
            bar.update()
    encoder.eval()
