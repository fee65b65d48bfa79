"""What feeds a network: spectrograms of a batch, batches of waveforms from the store, audio files packed into it."""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
import torch

from atr.bench.harness import Case, ReleasedCode, scratch, timed
from atr.corpora import audio
from atr.corpora.corpus import Corpus, event_table
from atr.encoders import inputs, registry
from atr.system import packed

FILES = 100  # of noise; more clips share them, so that a large corpus needs no large disk
RATE, CHANNELS, PACKED_RATE = 44_100, 2, 32_000
ENCODERS = ("resnet38", "passt_s", "atst_frame", "mn04", "compact")
# batch sizes, clips, seconds of a clip; clips, seconds; clips by number, seconds
BATCHES = {"smoke": ((2,), 4, 1.0), "demo": ((8, 32, 128), 256, 10.0), "paper": ((8, 32, 128), 256, 10.0)}
SPECTROGRAMS = {"smoke": (2, 1.0), "demo": (32, 10.0), "paper": (32, 10.0)}
CLIPS = {"smoke": ((4,), 1.0), "demo": ((100, 300, 1000), 10.0), "paper": ((100, 1000, 10_000), 10.0)}


def cases(scale: str, device: str, released: ReleasedCode) -> list[Case]:
    batches, clips, seconds = BATCHES[scale]
    sizes = [{"batch": batch, "clips": clips, "seconds": seconds, "device": device} for batch in batches]
    result = [Case("pipeline", "atr", "inputs.read_batches", size) for size in sizes]
    clips, seconds = SPECTROGRAMS[scale]
    size = {"clips": clips, "clip_seconds": seconds, "device": device}
    result += [Case("frontends", name, "inputs.spectrograms", size | {"encoder": name}) for name in ENCODERS]
    numbers, seconds = CLIPS[scale]
    return result + [Case("packing", "atr", "inputs.pack", {"clips": n, "seconds": seconds}) for n in numbers]


def read_batches(batch: int, clips: int, seconds: float, device: str) -> dict[str, Any]:
    """Batches in random order, padded, and on a GPU copied there; the files are in the system's memory by then, as
    after an epoch.
    """
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        samples = int(seconds * PACKED_RATE)
        lengths = samples - generator.integers(samples // 10, size=clips)
        packed.pack(folder, (generator.integers(-9999, 9999, length, dtype=np.int16) for length in lengths))
        rows = packed.open_packed(folder)

        def epoch() -> None:
            order = generator.permutation(clips)
            for start in range(0, clips, batch):
                for tensor in rows.batch(order[start : start + batch]):
                    tensor.to(device, non_blocking=True)

        return timed(epoch, device) | {"served": clips}


@torch.inference_mode()
def spectrograms(clips: int, clip_seconds: float, device: str, encoder: str) -> dict[str, Any]:
    """Of a batch of clips, as the encoder wants them."""
    network = registry.build(encoder).eval().to(device)
    longest = int(clip_seconds * network.sample_rate)
    waveform = 0.1 * torch.randn(clips, longest, device=device)
    lengths = torch.randint(longest * 9 // 10, longest, (clips,), device=device)
    return timed(lambda: network.frontend(waveform, lengths), device) | {"clips": clips}


class WaveReader:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, clip: str) -> tuple[np.ndarray, int]:
        return audio.read(self.folder / f"{int(clip) % FILES}.wav")


def pack(clips: int, seconds: float) -> dict[str, Any]:
    """Audio files decoded, resampled and packed into the store."""
    with scratch() as folder:
        generator = np.random.default_rng(0)
        for number in range(min(clips, FILES)):
            noise = generator.uniform(-0.5, 0.5, (round(seconds * RATE), CHANNELS))
            soundfile.write(folder / f"{number}.wav", noise, RATE)
        names = [str(number) for number in range(clips)]
        table = pd.DataFrame({"clip": names, "split": "train", "duration": seconds, "description": ""})
        captions = pd.DataFrame({"clip": names, "caption": "noise"})
        corpus = Corpus("noise", table.assign(digest=names), captions, event_table(), WaveReader(folder))
        start = time.perf_counter()
        inputs.waveforms(corpus, PACKED_RATE, quiet=True)
        return {"seconds": time.perf_counter() - start}
