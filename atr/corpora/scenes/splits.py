"""Splits of scenes as the tables of a corpus, for synthesised and for recorded sounds alike."""

import random
from collections.abc import Callable, Iterator, Mapping

import pandas as pd

from atr.corpora.corpus import caption_table, clip_table, event_table
from atr.corpora.scenes.scene import Difficulty, Scene, distinct, new_combinations
from atr.corpora.scenes.wording import TIMES, Words, captions
from atr.system.hashes import sha256


def draw_splits(
    name: str,
    counts: Mapping[str, int],
    seed: int,
    duration: float,
    stream: Callable[[str], Iterator[Scene | None]],
    content: Callable[[str, int, Scene], tuple],
    words: Mapping[str, Words],
    difficulty: Difficulty,
    *,
    mend: str,
    times: Mapping = TIMES,
    unseen: bool = False,
    repeats: bool = False,
) -> tuple[dict[str, Scene], tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]]:
    """So many scenes of each split: by their clips' names, and as the tables clips, captions and events.

    stream(split): what they are drawn from; content(split, index, scene): all that determines a clip's audio. unseen:
    test scenes combine sounds that occur together in no training scene. repeats: as in `distinct`. CorpusError: a split
    has not so many different scenes; `name` and `mend`, with {split} for the split's name, say where and what to do.
    """
    scenes: dict[str, Scene] = {}
    clips, texts, events = [], [], []
    for split, count in counts.items():
        candidates = stream(split)
        if unseen and split == "test":
            candidates = new_combinations(candidates, list(scenes.values())[: counts["train"]])
        where, advice = f"{name}, {split}", mend.format(split=split)
        for index, scene in enumerate(distinct(candidates, count, where, advice, repeats)):
            clip = f"{split}-{index:05d}"
            scenes[clip] = scene
            wording = random.Random(f"captions {seed} {split} {index}")
            texts += [(clip, text) for text in captions(wording, scene, words, difficulty, times)]
            events += [(clip, part.event, *span) for part in scene.parts for span in part.spans]
            digest = sha256(repr(content(split, index, scene)))
            clips.append((clip, split, duration, digest, scene.description))
    return scenes, (clip_table(clips), caption_table(texts), event_table(events))
