"""How fast audio is packed, and in how much memory.

`python benchmarks/packing.py` for clips a second; `python benchmarks/packing.py --clips 50000 --seconds 0.2` shows that
memory stays flat. Clips are noise; from the 500th on they share files, so that a large corpus needs no large disk.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from atr import audio, store
from atr.corpora.corpus import Corpus, no_events

FILES = 500


def peak() -> float:
    """Most memory that this process has held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


class Reader:
    """Reads a clip's file; keeps the peak memory after each tenth of the clips."""

    def __init__(self, folder: Path, clips: int) -> None:
        self.folder, self.tenth = folder, max(1, clips // 10)
        self.peaks: dict[int, float] = {}

    def __call__(self, clip: str) -> tuple[np.ndarray, int]:
        if int(clip) % self.tenth == 0:
            self.peaks[int(clip)] = peak()
        return audio.read(self.folder / f"{int(clip) % FILES}.wav")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a clip")
    parser.add_argument("--rate", type=int, default=44100, help="Hz of the files")
    parser.add_argument("--channels", type=int, default=2)
    parser.add_argument("--to", type=int, default=32000, help="Hz of the packed waveforms")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ATR_HOME"] = folder
        rng = np.random.default_rng(0)
        for number in range(min(options.clips, FILES)):
            noise = rng.uniform(-0.5, 0.5, (round(options.seconds * options.rate), options.channels))
            soundfile.write(f"{folder}/{number}.wav", noise, options.rate)
        names = [str(number) for number in range(options.clips)]
        clips = pd.DataFrame({"clip": names, "split": "train", "duration": options.seconds, "description": ""})
        captions = pd.DataFrame({"clip": names, "caption": "noise"})
        reader = Reader(Path(folder), options.clips)
        corpus = Corpus("noise", clips.assign(digest=names), captions, no_events(), reader)
        wall, cpu = time.perf_counter(), time.process_time()
        store.waveforms(corpus, options.to)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    cores = os.cpu_count() or 1
    print(f"{options.clips / wall:.0f} clips/s on {cores} cores, of which packing had {cpu / wall / cores:.0%}")
    print(f"{options.clips / cpu:.0f} clips a second of one core's time")
    print("peak memory in MB:", ", ".join(f"{mb:.0f} at clip {clip:,}" for clip, mb in sorted(reader.peaks.items())))
    print(f"  {peak():.0f} at the end")


if __name__ == "__main__":
    main()
