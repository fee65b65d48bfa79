"""Intervals, comparisons and verdicts over seeds and clips.

Scores are (seeds, clips). Both are samples: another seed gives another model, another test set other clips. So both are
resampled, crossed, as every model meets every clip. Captions are never resampled on their own: a clip's captions are
not independent, and `clip_scores` averages them first. Comparisons are paired, by seed and by clip.

Two biases to know. A bootstrap over S seeds sees (S - 1) / S of the variance between seeds, two thirds with three; with
one seed, intervals speak of the clips alone. And resampling both sides counts the noise that belongs to neither, how a
seed fares on a clip, about three times (Owen 2007, "The pigeonhole bootstrap"): where it dominates, intervals are wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from atr.metrics import Direction, Matrix, Ranks, relevant_pairs

BLOCK = 2**22  # resampled clips drawn at a time


@dataclass(frozen=True)
class Interval:
    """Mean and bounds of its confidence interval, in the unit of the scores."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Mean difference, bounds of its confidence interval, in the unit of the scores, and two-sided p value."""

    difference: float
    low: float
    high: float
    p: float


def clip_scores(ranks: Ranks, relevance: Matrix, k: int = 10, direction: Direction = "t2a") -> np.ndarray:
    """(clips,) R@k of each clip, in percent.

    t2a: the share of the clip's captions whose rank is up to k; a2t: whether the clip's own rank is.
    relevance: as `metrics.ranks` took it. The mean over clips is R@k; with t2a, where clips have equally many captions.
    """
    hits = 100.0 * (ranks.best(direction) <= k)
    captions, clips = relevant_pairs(relevance, (len(ranks.t2a), len(ranks.a2t)))
    if direction == "a2t":
        return hits
    return np.bincount(clips, weights=hits[captions]) / np.bincount(clips)


def mean_std(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation (ddof 1) over seeds; the deviation of a single seed is NaN, as it has none."""
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"values have shape {array.shape}; give one number a seed")
    return float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else float("nan")


def nested_bootstrap(values: np.ndarray, draws: int = 2000, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean of values (seeds, clips) and its percentile interval, seeds and clips resampled with replacement.

    level: nominal coverage, between 0 and 1. ValueError: a non-finite score, or no score.
    """
    values = _scores(values, "values")
    low, high = _bounds(_means(values, draws, seed), level)
    return Interval(float(values.mean()), low, high)


def paired_test(a: np.ndarray, b: np.ndarray, draws: int = 2000, seed: int = 0, level: float = 0.95) -> Comparison:
    """a - b, both (seeds, clips) of the same seeds and clips, with interval and p value from one nested bootstrap.

    p is twice the smaller share of draws on or beyond 0, with one draw added to both, and so never 0: at the least
    2 / (draws + 1).
    """
    a, b = _scores(a, "a"), _scores(b, "b")
    if a.shape != b.shape:
        raise ValueError(f"a is {a.shape}, b is {b.shape} (seeds, clips); compare the same seeds on the same clips")
    difference = a - b
    means = _means(difference, draws, seed)
    # Sums of rounded weights leave noise around a difference that is exactly 0; it must count for both sides.
    noise = 1e-12 * float(np.abs(difference).max())
    tail = min(int((means <= noise).sum()), int((means >= -noise).sum()))
    low, high = _bounds(means, level)
    return Comparison(float(difference.mean()), low, high, min(1.0, 2 * (tail + 1) / (draws + 1)))


def welch_interval(
    ours: tuple[float, float, int], theirs: tuple[float, float, int], level: float = 0.95
) -> tuple[float, float]:
    """Interval of the difference of two means, each given as (mean, deviation, seeds): Welch's t interval.

    For numbers of which only mean and deviation are known; NaN where a side has a single seed.
    """
    (a, a_std, a_size), (b, b_std, b_size) = ours, theirs
    if min(a_size, b_size) < 2 or not np.isfinite([a_std, b_std]).all():
        return np.nan, np.nan
    parts = np.array([a_std**2 / a_size, b_std**2 / b_size])
    if not parts.any():
        return a - b, a - b
    freedom = parts.sum() ** 2 / (parts**2 / [a_size - 1, b_size - 1]).sum()
    half = float(stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(parts.sum()))
    return a - b - half, a - b + half


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down correction: adjusted p values, in the order given; compare them with the level itself."""
    p = np.asarray(p_values, dtype=float)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p values are {p}; give a list of numbers from 0 to 1")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def judge(
    comparison: Comparison | tuple[float, float], alpha: float = 0.05, claim: Literal["greater", "less"] = "greater"
) -> Literal["holds", "contradicted", "undecided"]:
    """What a comparison, or (difference, p) with a corrected p, says of the claim that the difference is above 0.

    claim "less": that it is below 0. "undecided" where p exceeds alpha.
    """
    if claim not in ("greater", "less"):
        raise ValueError(f"claim is {claim!r}; known: 'greater', 'less'")
    difference, p = (comparison.difference, comparison.p) if isinstance(comparison, Comparison) else comparison
    if not (np.isfinite(difference) and 0 <= p <= 1):
        raise ValueError(f"difference {difference}, p {p}; give a finite difference and a p from 0 to 1")
    if p > alpha or difference == 0:
        return "undecided"
    return "holds" if (difference > 0) == (claim == "greater") else "contradicted"


def _scores(values: np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"{name}: shape {array.shape}; give scores (seeds, clips)")
    if not np.isfinite(array).all():
        seed, clip = np.argwhere(~np.isfinite(array))[0]
        raise ValueError(
            f"{name}: non-finite score at seed {seed}, clip {clip}; every seed needs a score of every clip"
        )
    return array


def _means(values: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """(draws,) means of values (seeds, clips) under resampling of both."""
    if draws < 1:
        raise ValueError(f"draws is {draws}; give at least 1")
    rng = np.random.default_rng(seed)
    seeds, clips = values.shape
    seed_weights = _weights(rng, draws, seeds)
    step = max(1, BLOCK // clips)
    return np.concatenate(
        [
            ((weights @ values) * _weights(rng, len(weights), clips)).sum(1)
            for weights in (seed_weights[start : start + step] for start in range(0, draws, step))
        ]
    )


def _weights(rng: np.random.Generator, draws: int, size: int) -> np.ndarray:
    """(draws, size) shares of each item in a sample of `size` with replacement; each row sums to 1."""
    picks = rng.integers(size, size=(draws, size)) + size * np.arange(draws)[:, None]
    return np.bincount(picks.ravel(), minlength=draws * size).reshape(draws, size) / size


def _bounds(means: np.ndarray, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; give a number between 0 and 1, such as 0.95")
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
