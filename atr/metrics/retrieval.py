"""Retrieval metrics in both directions, from similarities or from embeddings.

A query's relevant candidates are ranked among all candidates by counting the scores that reach theirs; nothing is
sorted. Ties go against the model: an irrelevant candidate with an equal score stands ahead, so that a model which gives
everything the same score comes last, not first. Among a query's own relevant candidates, ties need no rule.

Relevance is one of
- (captions,) integers: the index of each caption's clip;
- (captions, clips) booleans: which clips a caption fits, where it fits several; a clip that fits none is there to be
  found wrongly, and is no query. Best a sparse array of SciPy's where there are many captions and clips.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor

Matrix = Tensor | np.ndarray
Relevance: TypeAlias = Matrix | sparse.sparray
Direction = Literal["t2a", "a2t"]
BLOCK = 2**22  # similarities held at a time unless `chunk` says otherwise: 16 MiB in float32
PIECE = 2**18  # compared at a time


@dataclass(frozen=True, eq=False)
class Ranks:
    """Ranks, from 1 and ascending, of each query's relevant candidates, padded with 0.

    t2a: (captions, most relevant clips of a caption); a2t: (clips, most relevant captions of a clip), zeros alone for a
    clip that no caption fits.
    `np.savez(path, **vars(ranks))` keeps them, `Ranks(**np.load(path))` brings them back.
    """

    t2a: np.ndarray
    a2t: np.ndarray

    def best(self, direction: Direction) -> np.ndarray:
        """(queries,) rank of each query's best-ranked relevant candidate, 0 where it has none."""
        return getattr(self, direction)[:, 0]


def ranks(similarity: Matrix | tuple[Matrix, Matrix], relevance: Relevance, chunk: int | None = None) -> Ranks:
    """Ranks of the relevant candidates in both directions.

    similarity: (captions, clips), or embeddings (text (captions, D), audio (clips, D)), compared by their cosine and
    held against each other `chunk` queries at a time; by default as a whole up to 32 MiB of similarities, and beyond
    that about 16 MiB at a time.
    ValueError: non-finite numbers, shapes that do not fit, a caption without a clip; by integers also a clip without a
    caption.
    """
    to_audio, to_text, shape = similarities(similarity, chunk)
    captions, clips = relevant_pairs(relevance, shape)
    return Ranks(
        t2a=_ranks(to_audio, _group_members(captions, clips, shape[0])),
        a2t=_ranks(to_text, _group_members(clips, captions, shape[1])),
    )


def similarities(
    similarity: Matrix | tuple[Matrix, Matrix], chunk: int | None = None
) -> tuple[Iterator[Tensor], Iterator[Tensor], tuple[int, int]]:
    """What `ranks` compares: blocks (queries, candidates) from text to audio and from audio to text; (captions, clips).
    A block holds until the next one is asked for.

    similarity, chunk and errors: as in `ranks`.
    """
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}; give at least one query at a time")
    if isinstance(similarity, tuple):
        text, audio = (_finite(_matrix(x, name), name) for x, name in zip(similarity, ("text", "audio"), strict=True))
        if text.shape[1] != audio.shape[1]:
            raise ValueError(
                f"text has {text.shape[1]} dimensions, audio {audio.shape[1]}; give embeddings of one space"
            )
        text, audio = F.normalize(text, dim=1), F.normalize(audio, dim=1)
        shape = len(text), len(audio)
        if chunk is None and shape[0] * shape[1] <= 2 * BLOCK:
            whole = text @ audio.t()  # once, for both directions
            to_audio, to_text = _rows(whole, None), _rows(whole.t(), None)
        else:
            to_audio, to_text = _products(text, audio, chunk), _products(audio, text, chunk)
    else:
        matrix = _finite(_matrix(similarity, "similarity"), "similarity")
        to_audio, to_text = _rows(matrix, chunk), _rows(matrix.t(), chunk)
        shape = matrix.shape[0], matrix.shape[1]
    return to_audio, to_text, shape


def hubness(bank: Matrix, audio: Matrix, beta: float = 20.0) -> Tensor:
    """(clips,) how near each clip lies to sentences at large: log(mean(exp(beta * cosine))) / beta over a bank of them.

    A hub, near to many sentences, is found for queries that mean other clips. `similarity - hubness(bank, audio)` is
    querybank normalisation by the inverted softmax (Bogolin et al., CVPR 2022). Their released code has this beta, and
    leaves alone the queries whose best clip is no sentence's of the bank. It changes which clips a sentence finds, and
    not which sentences a clip finds.

    bank: (sentences, D) embeddings of captions, none of which is tested on; audio: (clips, D).
    ValueError: beta is not above 0, non-finite numbers, shapes that do not fit.
    """
    if not 0 < beta < math.inf:
        raise ValueError(f"beta is {beta}; give a number above 0, the inverse of a temperature")
    _, blocks, (sentences, _) = similarities((_finite(_matrix(bank, "bank"), "bank"), audio))
    return (torch.cat([torch.logsumexp(beta * block, dim=1) for block in blocks]) - math.log(sentences)) / beta


def retrieval_metrics(
    similarity: Matrix | tuple[Matrix, Matrix] | Ranks,
    relevance: Relevance | None = None,
    ks: Sequence[int] = (1, 5, 10),
    map_at: int = 10,
) -> dict[str, float]:
    """R@k, mAP@k, median and mean rank, text to audio (`t2a_`) and audio to text (`a2t_`).

    similarity and relevance as `ranks` takes them, or Ranks alone. Keys: t2a_r1 (one for each of `ks`), t2a_map10 (by
    `map_at`), t2a_median_rank, t2a_mean_rank, and the same with a2t_; in percent, but ranks count from 1.

    A query's rank is that of its best-ranked relevant candidate. R@k: queries with a rank up to k. mAP@k: precision at
    the rank of each relevant candidate found within k, summed, divided by the number of relevant candidates (Mei 2022,
    DCASE task 6b); for one relevant candidate, the reciprocal rank cut at k. The median is rounded down to a rank, as
    in the released code of Mei 2022.

    >>> text, audio = torch.eye(3), torch.eye(3)[[0, 2, 1]]  # the second and the third clip are exchanged
    >>> found = retrieval_metrics((text, audio), torch.tensor([0, 1, 2]), ks=(1,))
    >>> round(found["t2a_r1"], 1), found["t2a_mean_rank"]
    (33.3, 2.3333333333333335)
    """
    if isinstance(similarity, Ranks):
        if relevance is not None:
            raise ValueError("relevance is already part of Ranks; leave it out, or give the similarity")
        both = similarity
    elif relevance is None:
        raise ValueError("relevance is missing; give the clip of each caption, or a (captions, clips) boolean matrix")
    else:
        both = ranks(similarity, relevance)
    if min(map_at, *ks) < 1:
        raise ValueError(f"ks {tuple(ks)}, map_at {map_at}; ranks count from 1, so give cuts of 1 or more")
    metrics: dict[str, float] = {}
    for direction, table in (("t2a", both.t2a), ("a2t", both.a2t)):
        table = table[table[:, 0] > 0]
        best = table[:, 0]
        metrics |= {f"{direction}_r{k}": 100 * float((best <= k).mean()) for k in ks}
        metrics[f"{direction}_map{map_at}"] = 100 * float(average_precision(table, map_at).mean())
        metrics[f"{direction}_median_rank"] = float(np.floor(np.median(best)))
        metrics[f"{direction}_mean_rank"] = float(best.mean())
    return metrics


def average_precision(table: np.ndarray, k: int, relevant: np.ndarray | None = None) -> np.ndarray:
    """(queries,) average precision at k, 0 to 1, of a direction of Ranks: the precision at the rank of each relevant
    candidate within k, summed, by how many are relevant; 0 where none is.

    relevant: (queries,) how many candidates fit each query, where the table lacks some; by default those it holds.
    """
    hits, relevant = (table > 0) & (table <= k), (table > 0).sum(1) if relevant is None else relevant
    sums = np.where(hits, np.arange(1, table.shape[1] + 1) / np.maximum(table, 1), 0.0).sum(1)
    return sums / np.maximum(relevant, 1)


def chance(relevance: Relevance, ks: Sequence[int] = (1, 5, 10), map_at: int = 10) -> dict[str, float]:
    """What `retrieval_metrics` is expected to give for a ranking drawn at random, exactly, under the same keys.

    The median rank is that of all queries' ranks taken together: the smallest that half of them are expected to reach.
    """
    captions, clips = relevant_pairs(relevance)
    shape = np.shape(relevance) if np.ndim(relevance) == 2 else (len(captions), int(clips.max()) + 1)
    metrics: dict[str, float] = {}
    for direction, queries, candidates in (("t2a", captions, shape[1]), ("a2t", clips, shape[0])):
        counts = np.bincount(queries)
        relevant, weight = np.unique(counts[counts > 0], return_counts=True)
        weight = weight / weight.sum()
        rank = np.arange(1, candidates + 1)
        # Chance that the best of m relevant ones lies within each rank; m by row, rank by column.
        irrelevant = np.maximum(candidates - relevant[:, None] - rank + 1, 0)
        within = 1 - np.cumprod(irrelevant / (candidates - rank + 1), axis=1)
        # Given a relevant candidate at rank r, r - 1 places ahead hold (m - 1) / (n - 1) relevant ones each.
        others = (relevant[:, None] - 1) / max(candidates - 1, 1)
        precision = (1 + (rank - 1) * others) / rank / candidates
        metrics |= {f"{direction}_r{k}": 100 * float(weight @ within[:, min(k, candidates) - 1]) for k in ks}
        metrics[f"{direction}_map{map_at}"] = 100 * float(weight @ precision[:, :map_at].sum(1))
        metrics[f"{direction}_median_rank"] = float(rank[np.argmax(weight @ within >= 0.5 - 1e-12)])
        metrics[f"{direction}_mean_rank"] = float(weight @ ((candidates + 1) / (relevant + 1)))
    return metrics


def relevant_pairs(relevance: Relevance, shape: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Caption and clip index of every relevant pair, by caption: two (pairs,) integer arrays.

    shape: (captions, clips) to hold the relevance against; without it, that of the relevance.
    ValueError: it does not fit, a caption has no clip, or by integers a clip no caption.
    """
    array: Any = relevance.detach().cpu().numpy() if isinstance(relevance, Tensor) else relevance
    array = array.tocsr() if sparse.issparse(array) else np.asarray(array)  # by row
    if array.ndim == 1 and np.issubdtype(array.dtype, np.integer) and array.size:
        expected = shape or (len(array), int(array.max()) + 1)
        if len(array) != expected[0]:
            raise ValueError(f"relevance has {len(array)} rows for {expected[0]} captions; give one clip per caption")
        outside = (array < 0) | (array >= expected[1])
        _none_of(outside, "caption", f"clip outside 0 to {expected[1] - 1}", "index clips")
        captions, clips = np.arange(len(array)), array.astype(np.int64)
        captionless = np.bincount(clips, minlength=expected[1]) == 0
        _none_of(captionless, "clip", "no relevant caption", "give it one, drop it, or give booleans (captions, clips)")
    elif array.ndim == 2 and array.dtype == bool and all(array.shape):
        expected = shape or (array.shape[0], array.shape[1])
        if array.shape != expected:
            raise ValueError(f"relevance is {array.shape}, (captions, clips) is {expected}; give one row per caption")
        captions, clips = array.nonzero()
        clipless = np.bincount(captions, minlength=expected[0]) == 0
        _none_of(clipless, "caption", "no relevant clip", "mark its clip or drop it")
    else:
        raise ValueError(
            f"relevance is {array.dtype} of shape {array.shape}; give integers (captions,) or booleans by clip"
        )
    return captions, clips


def dense(relevance: Relevance) -> np.ndarray:
    """Relevance as an array of NumPy, for a file of them."""
    array: Any = relevance.detach().cpu() if isinstance(relevance, Tensor) else relevance
    return array.toarray() if sparse.issparse(array) else np.asarray(array)


def _ranks(blocks: Iterator[Tensor], relevant: np.ndarray) -> np.ndarray:
    """(queries, most relevant) ranks from similarities, some queries a block; relevant: indices, -1 where none."""
    parts, start = [], 0
    for block in blocks:
        index = torch.from_numpy(relevant[start : start + len(block)]).to(block.device)
        start += len(block)
        # Scores come from the block itself: a second product could round otherwise and rank an item behind itself.
        scores = block.gather(1, index.clamp(min=0)).masked_fill(index < 0, -torch.inf).sort(1, descending=True).values
        ahead = _reaching(block, scores)
        relevant_ahead = torch.searchsorted(-scores, -scores, right=True)
        order = torch.arange(1, index.shape[1] + 1, device=block.device)
        parts.append((order + ahead - relevant_ahead).masked_fill(scores == -torch.inf, 0).cpu().numpy())
    return np.concatenate(parts)


def _reaching(block: Tensor, scores: Tensor) -> Tensor:
    """(queries, relevant) how many candidates of a query score at least as high as each of its relevant ones."""
    if block.device.type != "cpu":
        return torch.stack([(block >= score[:, None]).sum(1) for score in scores.t()], dim=1)
    # Piece by piece, which stays in the cache; bits are counted faster than numpy or torch add up booleans.
    rows, least = (x.float().numpy() if x.dtype == torch.bfloat16 else x.numpy() for x in (block, scores))
    counts = np.empty(least.shape, np.int64)
    size = max(1, PIECE // rows.shape[1])
    for start in range(0, len(rows), size):
        piece = slice(start, start + size)
        for number in range(least.shape[1]):
            hits = np.packbits(rows[piece] >= least[piece, number, None], axis=1)
            counts[piece, number] = np.bitwise_count(hits).sum(1, dtype=np.int64)
    return torch.from_numpy(counts)


# All blocks of a pass stand in the same memory: that of new ones is not given back where small arrays that stay are
# made between them, and comes to gigabytes.
def _products(queries: Tensor, candidates: Tensor, chunk: int | None) -> Iterator[Tensor]:
    size = min(chunk or max(1, BLOCK // len(candidates)), len(queries))
    room = queries.new_empty(size, len(candidates))
    return (torch.mm(rows, candidates.t(), out=room[: len(rows)]) for rows in queries.split(size))


def _rows(matrix: Tensor, chunk: int | None) -> Iterator[Tensor]:
    size = min(chunk or max(1, BLOCK // matrix.shape[1]), len(matrix))
    if matrix.is_contiguous():
        return iter(matrix.split(size))
    room = matrix.new_empty(size, matrix.shape[1])
    return (room[: len(rows)].copy_(rows) for rows in matrix.split(size))


def _group_members(groups: np.ndarray, members: np.ndarray, count: int) -> np.ndarray:
    """(count, largest group) members of each group, -1 where it has no more."""
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups, minlength=count)
    table = np.full((count, sizes.max()), -1, dtype=np.int64)
    table[np.arange(table.shape[1]) < sizes[:, None]] = members[order]
    return table


def _matrix(values: Matrix, name: str) -> Tensor:
    tensor = torch.as_tensor(values).detach()
    if tensor.ndim != 2 or tensor.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; give two dimensions, none of them empty")
    return tensor if tensor.is_floating_point() else tensor.double()


def _finite(matrix: Tensor, name: str) -> Tensor:
    # A sum is non-finite wherever an entry is, and needs no second matrix in memory; the suspects are then looked at.
    suspects = (~matrix.sum(1).isfinite()).nonzero()[:, 0]
    bad = suspects[(~matrix[suspects].isfinite()).any(1)]
    if len(bad):
        raise ValueError(
            f"{name}: {len(bad)} of {len(matrix)} rows hold non-finite numbers, the first is row {int(bad[0])}; "
            "look for a diverged training or an overflow in half precision"
        )
    return matrix


def _none_of(bad: np.ndarray, item: str, problem: str, mend: str) -> None:
    if bad.any():
        raise ValueError(
            f"relevance: {int(bad.sum())} of {len(bad)} {item}s have {problem}, the first is {item} "
            f"{int(np.argmax(bad))}; {mend}"
        )
