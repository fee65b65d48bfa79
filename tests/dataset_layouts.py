"""Miniature data sets in the layouts that the published ones have, for tests."""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile

CLIPS = {"train": 6, "validation": 3, "test": 3}
CLOTHO_SPLITS = {"train": "development", "validation": "validation", "test": "evaluation"}
SHORT_SPLITS = {"train": "train", "validation": "val", "test": "test"}
SOUNDS = ("a dog barks", "rain falls", "a bell rings", "wind blows", "an engine idles", "birds sing")


def sound(path: Path, number: int, seconds: float = 1.0, rate: int = 44100) -> None:
    """A tone in noise, another one for every number."""
    rng = np.random.default_rng(number)
    t = np.arange(int(seconds * rate)) / rate
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = 0.3 * np.sin(2 * np.pi * (200 + 170 * (number % 40)) * t)
    soundfile.write(path, tone + 0.05 * rng.standard_normal(len(t)), rate)


def linked(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source)


def captions(number: int) -> list[str]:
    """Five captions, with the commas and quotes that real ones have."""
    what = f"{SOUNDS[number % len(SOUNDS)]}, number {number}"
    return [what.capitalize(), f"{what}, then stops.", f'Someone says "{what}"', f"{what} twice", f"Far away, {what}"]


def table(path: Path, header: list[str], rows: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def clotho(folder: Path, clips: Mapping[str, int] = CLIPS, seconds: float = 1.0, rate: int = 44100) -> Path:
    """Clotho as its archives unpack: development/, validation/, evaluation/ and their caption tables."""
    number = 0
    for split, count in clips.items():
        rows = []
        for index in range(count):
            # Real names hold spaces and odd characters, and four of them occur in two splits each.
            name = "Bus(Drive_Reverse)_1-2.wav" if index == 1 else f" {split} sound.{index:03d}_w_ {number}.wav"
            sound(folder / CLOTHO_SPLITS[split] / name, number, seconds, rate)
            rows.append([name, *captions(number)])
            number += 1
        header = ["file_name", *(f"caption_{k}" for k in range(1, 6))]
        table(folder / f"clotho_captions_{CLOTHO_SPLITS[split]}.csv", header, rows)
    return folder


def evaluation(folder: Path, clips: int = 3, seconds: float = 1.0) -> Path:
    """The evaluation set of DCASE 2022 task 6b as it unpacks: queries without answers, one of them twice."""
    for number in range(clips):
        sound(folder / "retrieval_audio" / "test" / f"clip {number}.wav", number, seconds)
    queries = [["Rain falls, then stops"], ['A "loud" dog'], ["Rain falls, then stops"]]
    table(folder / "retrieval_captions.csv", ["caption"], queries)
    return folder


def youtube_id(number: int) -> str:
    """Eleven characters that look like the ids that are hard to tell from their decoration."""
    return ("Y" if number % 3 == 0 else "-" if number % 3 == 1 else "a") + f"_{number:04d}_bC-" + "_1"[number % 2 :][0]


def audiocaps(folder: Path, clips: Mapping[str, int] = CLIPS, seconds: float = 1.0, rate: int = 32000) -> Path:
    """AudioCaps with its official tables, and audio/<split>/<YouTube id>.wav."""
    number = 0
    for split, count in clips.items():
        rows = []
        for _ in range(count):
            clip = youtube_id(number)
            sound(folder / "audio" / SHORT_SPLITS[split] / f"{clip}.wav", number, seconds, rate)
            texts = captions(number)
            texts = texts[:1] if split == "train" else [*texts[:4], texts[0]]  # real ones repeat captions too
            rows += [[str(1000 + 5 * number + k), clip, str(10 * number), text] for k, text in enumerate(texts)]
            number += 1
        table(folder / f"{SHORT_SPLITS[split]}.csv", ["audiocap_id", "youtube_id", "start_time", "caption"], rows)
    return folder
