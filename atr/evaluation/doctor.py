"""What makes numbers mean less than they seem to, in a model or in a test set: found, and said in words."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from atr.corpora.corpus import Corpus
from atr.encoders.pooling import FrameRows
from atr.evaluation import leaks
from atr.evaluation.leaks import words
from atr.evaluation.models import Model
from atr.metrics.retrieval import Relevance

ALIKE = 0.95  # mean cosine, without its sign, of a collapsed tower's embeddings
LEAST, MOST = 8, 2000  # rows that it is judged by
SAMPLE = 4  # shortest and as many longest, heard alone
OTHER = 1  # seed than the 0 that is the default
APART = 1e-3  # of an entry of an embedding of length 1, from which two are not the same


def examine(
    model: Model,
    part: Corpus,
    queries: Sequence[str],
    own: np.ndarray,
    relevance: Relevance,
    text: Tensor,
    audio: Tensor | FrameRows,
    train: Path | None = None,
    seed: int | None = None,
) -> list[str]:
    """What is to be noticed, one line each.

    queries, own, relevance: as `Protocol.ask` gives them; text and audio: the model's embeddings of queries and clips.
    train: a folder of sounds, with tables of captions beside them, or such a table: what a model was trained on.
    seed: of the parts of sounds, where one was asked for: what hangs on it is then known.
    ValueError: a table that is damaged, or not there.
    """
    return [
        *collapse("text", text),
        *collapse("audio", audio),
        *dependence(
            "sounds", audio, part.clips["duration"].to_numpy(), lambda row: model.sounds(_one(part, row), True)
        ),
        *dependence(
            "captions", text, np.array([len(one) for one in queries]), lambda row: model.sentences([queries[row]])
        ),
        *(draws(model, part, audio) if seed is None else ()),
        *ambiguity(part, queries, own, relevance),
        *duplicates(part),
        *(leaks.leaks(part, queries, train) if train else ()),
    ]


def collapse(side: str, rows: Tensor | FrameRows) -> Iterator[str]:
    """Of embeddings (rows, D): those that point one way, or lie on one line; those that are zero."""
    if isinstance(rows, FrameRows) or len(rows) < LEAST:
        return
    if zeros := int((rows.abs().amax(1) == 0).sum()):
        yield f"{zeros:,} of {len(rows):,} {side} embeddings are zero"
    unit = F.normalize(rows[:: -(-len(rows) // MOST)].float(), dim=1)
    cosines = (unit @ unit.T).abs()
    mean = float((cosines.sum() - cosines.diagonal().sum()) / (len(unit) * (len(unit) - 1)))
    if mean > ALIKE:
        yield f"{side} embeddings are all alike, with cosines of {mean:.3f} on average: this tower has collapsed"


def dependence(what: str, rows: Tensor | FrameRows, lengths: np.ndarray, alone) -> Iterator[str]:
    """Embeddings that chance or their batch decides. alone: embeds one row by itself."""
    order = np.argsort(lengths, kind="stable")
    sample = list(dict.fromkeys([*order[:SAMPLE].tolist(), *order[-SAMPLE:].tolist()]))
    once, again = ([alone(row)[0] for row in sample] for _ in range(2))
    by_chance = max(_apart(*pair) for pair in zip(once, again, strict=True))
    by_batch = max(_apart(one, rows[row]) for one, row in zip(once, sample, strict=True))
    if by_chance > APART:
        yield f"embeddings of {what} depend on chance: one twice differs by up to {by_chance:.2g}; fix the seed"
    elif by_batch > APART:
        yield f"embeddings of {what} depend on their batch: alone and among others they differ by up to {by_batch:.2g}"


def draws(model: Model, part: Corpus, audio: Tensor | FrameRows) -> Iterator[str]:
    """Sounds of which another seed would draw another part."""
    try:
        other = model.with_seed(OTHER)
    except ValueError:  # it draws none
        return
    longest = np.argsort(part.clips["duration"].to_numpy(), kind="stable")[-SAMPLE:].tolist()
    apart = max(_apart(other.sounds(_one(part, row), True)[0], audio[row]) for row in longest)
    if apart > APART:
        yield (
            "embeddings of sounds depend on the seed: of longer ones a part is drawn, and by another seed they differ "
            f"by up to {apart:.2g}; evaluate with several: --seeds 0,1,2"
        )


def ambiguity(part: Corpus, queries: Sequence[str], own: np.ndarray, relevance: Relevance) -> Iterator[str]:
    """Captions, but for case and punctuation, of several clips of which one alone counts as right."""
    rows: dict[str, list[int]] = {}
    for row, query in enumerate(queries):
        rows.setdefault(words(query), []).append(row)
    cases = []
    for alike in rows.values():
        clips = list(dict.fromkeys(own[alike].tolist()))
        if len(clips) > 1 and (relevance.ndim == 1 or not all(relevance[row, clip] for row in alike for clip in clips)):
            cases.append((queries[alike[0]], [part.clips["clip"].iloc[clip] for clip in clips]))
    if cases:
        caption, names = cases[0]
        yield (
            f"{len(cases):,} captions are of several clips, as {caption!r} of {names[0]!r} and {names[1]!r}; to find "
            "the other one counts as wrong"
        )


def duplicates(part: Corpus) -> Iterator[str]:
    """Clips with the same bytes."""
    clips = part.clips[part.clips["digest"].duplicated(keep=False)]
    if len(clips):
        names = clips.loc[clips["digest"] == clips["digest"].iloc[0], "clip"].tolist()
        yield f"{len(clips):,} clips have another one's bytes, as {names[0]!r} and {names[1]!r}: none tells them apart"


def _one(part: Corpus, row: int) -> Corpus:
    return replace(part, clips=part.clips.iloc[[row]].reset_index(drop=True))


def _apart(one: Any, other: Any) -> float:
    """The largest difference of two embeddings (D,), or of the frames (T, D) that both have."""
    if isinstance(one, FrameRows):
        one, other = (clip.values[clip.mask] for clip in (one, other))
        frames = min(len(one), len(other))
        one, other = one[:frames], other[:frames]
    return float((F.normalize(one.float(), dim=-1) - F.normalize(other.float(), dim=-1)).abs().max())
