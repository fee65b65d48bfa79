"""Audio files decoded, resampled and packed into the store."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile

from atr.bench.harness import Case, Released, scratch
from atr.corpora import audio
from atr.corpora.corpus import Corpus, no_events
from atr.encoders import inputs

FILES = 100  # of noise; more clips share them, so that a large corpus needs no large disk
RATE, CHANNELS, PACKED_RATE = 44_100, 2, 32_000
SIZES = {"smoke": ((4,), 1.0), "demo": ((100, 300, 1000), 10.0), "paper": ((100, 1000, 10_000), 10.0)}


def cases(scale: str, device: str, released: Released) -> list[Case]:
    clips, seconds = SIZES[scale]
    return [Case("packing", "atr", "packing.packed", {"clips": number, "seconds": seconds}) for number in clips]


class Reader:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, clip: str) -> tuple[np.ndarray, int]:
        return audio.read(self.folder / f"{int(clip) % FILES}.wav")


def packed(clips: int, seconds: float) -> dict[str, Any]:
    with scratch() as folder:
        generator = np.random.default_rng(0)
        for number in range(min(clips, FILES)):
            noise = generator.uniform(-0.5, 0.5, (round(seconds * RATE), CHANNELS))
            soundfile.write(folder / f"{number}.wav", noise, RATE)
        names = [str(number) for number in range(clips)]
        table = pd.DataFrame({"clip": names, "split": "train", "duration": seconds, "description": ""})
        captions = pd.DataFrame({"clip": names, "caption": "noise"})
        corpus = Corpus("noise", table.assign(digest=names), captions, no_events(), Reader(folder))
        started = time.perf_counter()
        inputs.waveforms(corpus, PACKED_RATE, quiet=True)
        return {"seconds": time.perf_counter() - started}
