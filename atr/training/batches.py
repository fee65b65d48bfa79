"""The order in which an epoch visits (clip, caption) pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from atr.config import CHOICES

SAMPLERS = CHOICES["sampler"]


def epoch_batches(
    clip_of_caption: np.ndarray,
    batch_size: int,
    sampler: str,
    seed: int,
    epoch: int,
    drop_last: bool = True,
    mining: str | None = None,
    embeddings: Tensor | None = None,
) -> list[np.ndarray]:
    """Batches of caption indices for one epoch, a pure function of its arguments.

    clip_of_caption: (captions,) clip index of each caption. "caption_per_clip" visits every clip once with one of its
    captions drawn at random; "all_captions" visits every pair (Mei et al. 2022). The last incomplete batch is dropped
    unless it is the only one or `drop_last` is False.

    mining: "easy", "random" or "hard" puts the epoch's pairs into batches by `mine`, so that no batch holds a
    clip twice, keeps them all, and visits them in random order, since those built last are leftovers.
    embeddings: (captions, D) ancillary embeddings, needed for "easy" and "hard".
    """
    generator = np.random.default_rng([seed, epoch, 1])
    if sampler == "all_captions":
        order = generator.permutation(len(clip_of_caption))
    elif sampler == "caption_per_clip":
        shuffled = generator.permutation(len(clip_of_caption))
        _, first = np.unique(clip_of_caption[shuffled], return_index=True)
        order = generator.permutation(shuffled[first])
    else:
        raise ValueError(f"sampler: unknown {sampler!r}; known: {', '.join(SAMPLERS)}")
    if mining is not None:
        if embeddings is None and mining != "random":
            raise ValueError(f"mining {mining!r} needs the embeddings to mine by")
        rows = torch.zeros(len(order), 1) if embeddings is None else embeddings[torch.from_numpy(order)]
        mined = mine(rows, clip_of_caption[order], batch_size, mining, (seed, epoch, 2))
        places = np.random.default_rng([seed, epoch, 3]).permutation(len(mined))
        return [order[mined[place]] for place in places]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if drop_last and len(batches) > 1 and len(batches[-1]) < batch_size:
        batches.pop()
    return batches


HOW = tuple(filter(None, CHOICES["mining"]))


def ancillary(audio: Tensor, text: Tensor) -> Tensor:
    """(N, D) ancillary embeddings e_i of training pairs: the normalised sum of a pair's two normalised embeddings.

    audio, text: (N, D), row i of both is pair i. The paper does not say how the two combine. Opposite embeddings have
    no sum to normalise and give zeros. ValueError: shapes that differ or are not (N, D).
    """
    if audio.ndim != 2 or audio.shape != text.shape:
        raise ValueError(f"audio is {tuple(audio.shape)}, text {tuple(text.shape)}; give both as (pairs, dimensions)")
    return F.normalize(F.normalize(audio, dim=1) + F.normalize(text, dim=1), dim=1)


def mine(
    embeddings: Tensor,
    clips: np.ndarray | Sequence[int] | Sequence[str],
    batch_size: int,
    how: str,
    seed: int | Sequence[int],
    parallel: int | None = None,
) -> list[np.ndarray]:
    """Batches of pair indices, in order of construction, that hold every pair once and no clip twice.

    embeddings  (N, D) of the pairs, as `ancillary` gives them; compared by their cosine, on the device they are on
    clips       (N,) clip of each pair, any labels
    how         "easy" and "hard": a batch starts with a random unused pair and picks one after another the unused pair
                with the least or greatest sum of cosines to the batch so far (greedy, for equations 2 and 3).
                "random": pairs in random order go each to the first batch that has room and not their clip
    seed        one or several integers for `numpy.random.default_rng`; random batches of one caption a clip are those
                of `epoch_batches` for the seed (seed, epoch, 1)
    parallel    batches that grow side by side: they pick in turn, and a pair that two want goes to the one that was
                started first, while the other takes its next best. Default for "easy": all, as those built last would
                be left with pairs that are all alike, and the whole worse than random. For "hard": a sixteenth of the
                batches still to come, nearly as good as one by one

    A batch stays short only if every unused pair is of a clip that it holds already; what is left over goes into
    further batches. One caption a clip: all batches are full but the last. Train in another order than that of
    construction, in which late batches are leftovers.

    The result is a function of the arguments on one machine with one number of threads, since rounding may decide
    between pairs that are as good. Memory, in float32: three copies of the embeddings and two of parallel × N scores,
    which is N² / batch_size for "easy".
    ValueError: shapes that do not fit, embeddings that are not finite, an unknown `how`, sizes below 1.
    """
    labels = np.asarray(clips)
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        shapes = f"embeddings are {tuple(embeddings.shape)}, clips {labels.shape}"
        raise ValueError(f"{shapes}; give (pairs, dimensions) and the clip of each pair")
    if how not in HOW:
        raise ValueError(f"how: unknown {how!r}; known: {', '.join(HOW)}")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; give at least one pair a batch")
    if parallel is not None and parallel < 1:
        raise ValueError(f"parallel is {parallel}; let at least one batch grow at a time")
    if not embeddings.isfinite().all():
        raise ValueError("embeddings are not finite; train a model that has not diverged")
    codes = np.unique(labels, return_inverse=True)[1].astype(np.int32)
    order = np.random.default_rng(seed).permutation(len(codes))
    if how == "random":
        return _first_fit(order.tolist(), codes.tolist(), batch_size)
    index = torch.from_numpy(order).to(embeddings.device)
    columns = F.normalize(embeddings.detach()[index].float(), dim=1).t().contiguous()
    pool = _Pool(index, torch.from_numpy(codes[order]).to(index.device), columns)
    batches: list[np.ndarray] = []
    while len(pool.pairs):
        count = max(1, len(pool.pairs) // batch_size)
        together = parallel or (count if how == "easy" else -(-count // 16))
        grown, pool = _grow(pool, min(together, count), batch_size, 1.0 if how == "hard" else -1.0)
        batches += [np.array(batch) for batch in grown]
    return batches


def report(embeddings: Tensor, batches: Sequence[np.ndarray]) -> pd.DataFrame:
    """One row per batch, in order of construction: size, and mean_cosine over its distinct pairs (NaN if it has one).

    embeddings: (N, D), as `mine` took them. The sum of equations 2 and 3 is that of size (size - 1) mean_cosine.
    """
    means = [float(cosines.mean()) for cosines in _cosines(embeddings, batches)]
    return pd.DataFrame({"size": [len(batch) for batch in batches], "mean_cosine": means})


def false_negatives(captions: Tensor, batches: Sequence[np.ndarray], threshold: float) -> np.ndarray:
    """(batches,) number of distinct pairs of a batch whose captions are near-duplicates: a cosine of `threshold` up.

    A caption that fits another's clip as well is a negative in name only, and hard mining seeks such out.
    captions: (N, D) embeddings of the captions by any text encoder, best by one that did not take part in the mining;
    0.9999 counts captions of equal embeddings alone, whatever the rounding.
    """
    counts = [int((cosines >= threshold).sum()) for cosines in _cosines(captions, batches)]
    return np.array(counts, dtype=np.int64)


def same_kind(kinds: np.ndarray, batches: Sequence[np.ndarray]) -> float:
    """Percent of what a batch can pair, over all batches, that is of one kind; NaN if nothing can be paired.

    kinds: (N,) numbers of kinds, as `pandas.factorize` gives them; what has none (-1) is not paired.
    """
    sizes = [np.unique(kinds[batch][kinds[batch] >= 0], return_counts=True)[1] for batch in batches]
    same, total = (sum(int((n * (n - 1)).sum()) for n in counts) for counts in (sizes, [n.sum() for n in sizes]))
    return 100 * same / total if total else float("nan")


class _Pool(NamedTuple):
    """Unused pairs in random order, their clips and, as columns (D, n) for fast products, their embeddings."""

    pairs: Tensor
    clips: Tensor
    columns: Tensor

    def at(self, places: Tensor) -> _Pool:
        return _Pool(*(part.index_select(-1, places) for part in self))


def _grow(pool: _Pool, together: int, batch_size: int, sign: float) -> tuple[list[list[int]], _Pool]:
    """Batches that start with the first pairs of the pool and grow side by side, and the pairs that are left.

    Scores are `sign` times a batch's sum of cosines, which grows by the product with its latest member; what a batch
    may not pick has -inf, and keeps it whatever is added.
    """
    places = torch.arange(len(pool.pairs), device=pool.pairs.device)
    latest, used = pool.at(places[:together]), places < together
    batches = [[pair] for pair in latest.pairs.tolist()]
    growing = batches
    scores = pool.columns.new_zeros(together, len(places))
    scores[:, used] = -torch.inf
    for _ in range(min(batch_size, len(places) // together) - 1):
        if 8 * int(used.sum()) > len(pool.pairs):  # now and then, as it copies the pool
            unused = (~used).nonzero()[:, 0]
            scores, pool, used = scores.index_select(1, unused), pool.at(unused), used[unused]
        scores.addmm_(latest.columns.t(), pool.columns, alpha=sign)
        scores.masked_fill_(latest.clips[:, None] == pool.clips, -torch.inf)
        picks = _in_turn(scores, used)
        if min(picks) < 0:
            rows = [row for row, pick in enumerate(picks) if pick >= 0]
            growing, picks, scores = [growing[row] for row in rows], [picks[row] for row in rows], scores[rows]
            if not rows:
                break
        members = torch.tensor(picks, device=used.device)
        scores.index_fill_(1, members, -torch.inf)
        latest = pool.at(members)
        for batch, pair in zip(growing, latest.pairs.tolist(), strict=True):
            batch.append(pair)
    return batches, pool.at((~used).nonzero()[:, 0])


def _in_turn(scores: Tensor, used: Tensor) -> list[int]:
    """What each row picks after those above it, -1 where nothing is left for it; marks it in `used`."""
    picks: list[int] = []
    pairs = set()
    for row, (score, pick) in enumerate(zip(*(best.tolist() for best in scores.max(1)), strict=True)):
        if pick in pairs:
            score, pick = (best.item() for best in scores[row].masked_fill_(used, -torch.inf).max(0))
        if score == -torch.inf:
            pick = -1
        else:
            pairs.add(pick)
            used[pick] = True
        picks.append(pick)
    return picks


def _first_fit(order: list[int], clips: list[int], batch_size: int) -> list[np.ndarray]:
    batches: list[list[int]] = []
    clips_of: list[set[int]] = []
    full = 0  # so many, of the first
    for pair in order:
        places = range(full, len(batches))
        fits = (n for n in places if len(batches[n]) < batch_size and clips[pair] not in clips_of[n])
        place = next(fits, len(batches))
        if place == len(batches):
            batches.append([])
            clips_of.append(set())
        batches[place].append(pair)
        clips_of[place].add(clips[pair])
        while full < len(batches) and len(batches[full]) == batch_size:
            full += 1
    return [np.array(batch) for batch in batches]


def _cosines(embeddings: Tensor, batches: Sequence[np.ndarray]) -> Iterator[Tensor]:
    """(n (n - 1) / 2,) cosines of the distinct pairs of each batch of n."""
    for batch in batches:
        rows = F.normalize(embeddings.detach()[torch.from_numpy(batch).to(embeddings.device)].double(), dim=1)
        first, second = torch.triu_indices(len(batch), len(batch), 1, device=rows.device)
        yield (rows @ rows.t())[first, second]
