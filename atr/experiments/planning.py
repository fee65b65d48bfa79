"""What a run costs before it runs: steps, seconds, memory and disk, by what was measured of networks like its own."""

import math
import time
from dataclasses import dataclass, replace

import torch

from atr.config import RunConfig
from atr.corpora.corpus import Corpus
from atr.corpora.files import PAPER_COUNTS
from atr.encoders import pretraining
from atr.system import devices


@dataclass(frozen=True)
class CorpusSize:
    """Clips and captions by split, and the mean and the greatest length of a clip in seconds, 0 where unknown."""

    clips: dict[str, int]
    captions: dict[str, int]
    seconds: float
    longest: float = 0.0


def size(config: RunConfig, corpus: Corpus | None) -> CorpusSize:
    """Of a corpus at hand, else what is published of it, else what its options say."""
    if corpus is not None:
        split_of = corpus.clips.set_index("clip")["split"]
        counts = corpus.clips["split"].value_counts(), corpus.captions["clip"].map(split_of).value_counts()
        clips, captions = ({str(split): int(number) for split, number in count.items()} for count in counts)
        durations = corpus.clips["duration"]
        return CorpusSize(clips, captions, float(durations.mean()), float(durations.max()))
    options = dict(config.corpus)
    synthetic, use = options.pop("synthetic", None), options.pop("use", "both")
    if synthetic is not None:
        plain = size(config.replace(corpus=options), None)
        new = 5 * plain.clips["train"]
        train = new + plain.captions["train"] if use == "both" else new
        return replace(plain, captions={**plain.captions, "train": train})
    validation = options.pop("hold_out", None)
    if validation is not None:
        whole = size(config.replace(corpus=options), None)
        each = sum(whole.captions.values()) / sum(whole.clips.values())
        clips = {"train": sum(whole.clips.values()) - validation, "validation": int(validation)}
        return replace(whole, clips=clips, captions={split: round(each * n) for split, n in clips.items()})
    if options["name"] in PAPER_COUNTS:
        return CorpusSize(**PAPER_COUNTS[options["name"]])
    clips = {split: options.get(split, 1200) for split in ("train", "validation", "test")}
    seconds = options.get("duration", 10.0)
    return CorpusSize(clips, {split: 5 * number for split, number in clips.items()}, seconds, seconds)


@dataclass(frozen=True)
class Cost:
    """Of one run. steps, seconds; bytes: memory of the device, disk when done, and more disk while unfinished."""

    steps: int
    seconds: float
    memory: float
    disk: float
    state: float


@dataclass(frozen=True)
class Measurement:
    """Seconds of a training step, fixed and for each pair; of embedding a clip and a caption; bytes of activations a
    pair, of the network's parameters, of those that are trained, of its checkpoint and of that one's copy on the
    device; for clips of `seconds`.
    """

    fixed: float
    pair: float
    clip: float
    caption: float
    activations: float
    parameters: float
    trained: float
    checkpoint: float
    copy: float
    seconds: float

    def at(self, seconds: float) -> "Measurement":
        """For clips of another length: what sound costs grows with it. Frozen features have none (0 seconds)."""
        if not self.seconds:
            return self
        longer = seconds / self.seconds
        share = self.clip / (self.clip + self.caption)  # of a pair that is sound
        grown = longer * share + 1 - share
        return replace(
            self, pair=self.pair * grown, clip=self.clip * longer, activations=self.activations * grown, seconds=seconds
        )


def cost(config: RunConfig, measured: Measurement, data: CorpusSize) -> Cost:
    """What a run needs, from a measurement of its signature and the size of its corpus.

    A batch is about as long as the longest clips; evaluation puts clips of like length together. A stage whose encoder
    is fixed counts as if it were trained, so such runs are faster than this; mining is not counted, nor is the scoring
    of all pairs by text-aware pooling.
    """
    limit = config.max_seconds or math.inf
    measured, batched = measured.at(min(data.seconds, limit)), measured.at(min(data.longest or data.seconds, limit))
    parts = config.parts()
    epochs = sum(part.epochs for part in parts)

    def steps_an_epoch(part: RunConfig) -> int:
        pairs = data.captions["train"] if part.sampler == "all_captions" else data.clips["train"]
        return max(1, -(-pairs // part.batch_size) if part.mining else pairs // part.batch_size)

    def embedded(split: str) -> float:
        return data.clips.get(split, 0) * measured.clip + data.captions.get(split, 0) * measured.caption

    step = batched.fixed + config.batch_size * batched.pair
    steps = sum(part.epochs * steps_an_epoch(part) for part in parts)
    seconds = steps * step + epochs * embedded("validation") + len(parts) * embedded("test")
    memory = batched.parameters + 3 * batched.trained + batched.copy + config.batch_size * batched.activations
    embeddings = 4 * config.embedding_dim * (data.clips.get("test", 0) + data.captions.get("test", 0))
    state = 4 * measured.checkpoint + 4 * measured.trained  # a new one is written beside the old one
    return Cost(steps, seconds, memory, measured.checkpoint + embeddings, state)


# Seconds with the small encoders (compact, MiniLM) on one core where `speed` is 1, by training: of a step and of each
# of its pairs, and in evaluation of a clip of 10 s and of a caption. Measured as the CPU time of `Trainer.epoch` over
# 320 soundscapes at batches of 8 and of 32, and of `evaluation.one_side`, the fastest of several, divided by `speed()`,
# which was 1.5. "scratch" is taken to cost what "finetuned" does. Other encoders take longer. The cost of
# heads is apart.
TYPICAL = {
    "external": (0.0, 0.0, 0.0, 0.0),
    "frozen": (1.3e-3, 0.0, 7e-6, 7e-6),
    "frozen_released": (1.2e-2, 4.2e-3, 3.7e-4, 2.7e-3),
    "finetuned": (1.2e-2, 1.0e-3, 4.4e-4, 0.0),
    "scratch": (1.2e-2, 1.0e-3, 4.4e-4, 0.0),
}
# More for each layer of MiniLM, of six, that is fine-tuned: of a step's pair, and of a caption in evaluation. An epoch
# of 992 pairs took 3.8 s with one and 6.1 s with two; of a caption it is half of what two layers take.
LAYER_SECONDS = (1.6e-3, 4.6e-4)
# More for mn04's three top blocks over cached states than for compact: of a step's pair, and of a clip in evaluation.
# From 97 fine-tuned runs of esc50 of 2 to 20 epochs, two side by side where frozen ones took 1.35 times what is said
# here; what is said of them is within 3 % then.
STATES_SECONDS = (2.8e-3, 1.0e-3)
# Of a pair, for each parameter of the heads, of which those over these encoders have about 3 D² + 850 D: from 200
# frozen runs, two side by side where a fine-tuned one took 1.35 times what is said here, 1.1 to 1.4e-10 from D 256 on.
HEAD_SECONDS = 1.15e-10
RUN_SECONDS = 0.5  # of starting a run and writing it: 0.15 of a frozen one, 0.5 of a fine-tuned one
# Of decoding a clip on one core, of encoding a caption, and of pre-training on a clip for an epoch.
DECODING_SECONDS, ENCODING_SECONDS, PRETRAINING_SECONDS = 0.03, 7e-3, 0.0015
YARDSTICK_SECONDS = 0.1  # that `speed` measures there


def seconds(config: RunConfig, data: CorpusSize) -> float:
    """Rough seconds of a run on one core where `speed` is 1, as `cost` has them."""
    step, pair, clip, caption = TYPICAL[config.training]
    if config.training in ("finetuned", "scratch"):
        layers = config.text_layers or 6
        pair, caption = pair + layers * LAYER_SECONDS[0], caption + layers * LAYER_SECONDS[1]
        if config.audio_state_layers is not None:
            pair, clip = pair + STATES_SECONDS[0], clip + STATES_SECONDS[1]
    # Cached features cost the same, however long their clips.
    length = 0.0 if config.training in ("frozen", "external") else 10.0
    pair += HEAD_SECONDS * (3 * config.embedding_dim**2 + 850 * config.embedding_dim)
    measured = Measurement(step, pair, clip, caption, *(0.0,) * 5, seconds=length)
    return RUN_SECONDS + cost(config, measured, data).seconds


def preparation(data: CorpusSize, cores: int) -> float:
    """Rough seconds to decode a corpus, pre-train its encoder and encode its captions, where `speed` is 1; measured as
    `TYPICAL` is, on clips of 10 s.
    """
    decoding = DECODING_SECONDS / cores * sum(data.clips.values())
    encoding = ENCODING_SECONDS * sum(data.captions.values())
    return decoding + encoding + data.clips["train"] * PRETRAINING_SECONDS * pretraining.EPOCHS


def speed() -> float:
    """How many times slower one core is here, by its CPU time, than one on which the constants above hold."""
    weight, batch = torch.randn(512, 512), torch.randn(512, 512)
    with devices.threads(1):
        batch @ weight
        started = time.process_time()
        for _ in range(50):
            batch @ weight
        return (time.process_time() - started) / YARDSTICK_SECONDS
