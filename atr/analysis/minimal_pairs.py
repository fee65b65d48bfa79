"""Does a model hear order, number and overlap? Recall hardly asks: who tells a scene's sounds apart finds it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from atr.corpora.corpus import Corpus
from atr.inference.embedder import Embedder
from atr.metrics import statistics
from atr.training.records import Run

ASPECTS = ("order", "number", "overlap")


def pairs(corpus: Corpus) -> pd.DataFrame:
    """One row per pair of captions of a test scene that differ in one aspect alone: clip, aspect, right, wrong. Empty
    for a corpus that is not mixed from known sounds.

    As many pairs say "twice" rightly and "once" wrongly as the other way round, and so on, in order of the clips: a
    model that always prefers the same words is right in half of them.
    """
    pair_of: Any = getattr(corpus.read, "minimal_pairs", lambda clip: {})
    rows = [
        (clip, aspect, *texts) for clip in corpus.split("test").clips["clip"] for aspect, texts in pair_of(clip).items()
    ]
    table = pd.DataFrame(rows, columns=["clip", "aspect", "right", "wrong", "true", "false"])
    groups = table.groupby(["aspect", "true", "false"])
    turns = table.merge(groups.size().rename("turned"), "left", left_on=["aspect", "false", "true"], right_index=True)
    return table[groups.cumcount() < turns["turned"].fillna(0)].drop(columns=["true", "false"]).reset_index(drop=True)


def answers(run: Run, corpus: Corpus, questions: pd.DataFrame, device: str = "auto") -> np.ndarray:
    """(pairs,) in percent: 100 where the right caption is nearer to its scene than the wrong one, 50 where both are as
    near. questions: what `pairs` gives of the run's corpus.
    """
    embedder = Embedder(run, corpus, device=device)
    part = corpus.split("test")
    clips = list(dict.fromkeys(questions["clip"]))
    if embedder.text_aware:
        sounds = embedder.sounds([part.read(clip) for clip in clips])
    else:
        sounds = run.embeddings["audio"][pd.Index(part.clips["clip"]).get_indexer(pd.Index(clips))]
    own = pd.Index(clips).get_indexer(pd.Index(questions["clip"]))
    scores = []
    for column in ("right", "wrong"):
        texts = embedder.sentences(questions[column].tolist(), keep=True)
        blocks = [
            embedder.similarity(texts[start : start + 256], sounds)[np.arange(len(rows)), rows]
            for start in range(0, len(texts), 256)
            for rows in [own[start : start + 256]]
        ]
        scores.append(torch.cat(blocks).numpy())
    return 50.0 * (1 + np.sign(scores[0] - scores[1]))


def accuracy(runs: Sequence[Run], corpus: Corpus, questions: pd.DataFrame, device: str = "auto") -> pd.DataFrame:
    """One row per aspect, of runs that differ by seed: pairs, accuracy in percent (chance: 50), and its 95 % interval
    over seeds and clips, low and high.
    """
    scores = np.stack([answers(run, corpus, questions, device) for run in runs])
    rows = {}
    for aspect in ASPECTS:
        part = scores[:, (questions["aspect"] == aspect).to_numpy()]
        if part.shape[1]:
            interval = statistics.crossed_interval(part)
            rows[aspect] = (part.shape[1], interval.mean, interval.low, interval.high)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["pairs", "accuracy", "accuracy_low", "accuracy_high"])
    return table.rename_axis("aspect")
