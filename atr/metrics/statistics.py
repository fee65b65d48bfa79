"""Intervals, comparisons and verdicts over seeds and clips.

Scores are (seeds, clips). Both are samples: another seed gives another model, another test set other clips. Every model
meets every clip, so their effects are crossed, and an interval speaks of both. A clip's captions are not independent:
`clip_scores` averages them first. Comparisons are paired, by seed and by clip. With one seed, intervals speak of the
clips alone.

`crossed_interval` and `crossed_test` are what the study goes by: Student's t on the two-way variance of the mean.
`nested_bootstrap` is there for comparison. It has two biases: over S seeds it sees (S - 1) / S of the variance between
them, two thirds with three; and it counts the noise that belongs to neither side, how a seed fares on a clip, about
three times (Owen 2007, "The pigeonhole bootstrap"). `coverage` simulates how often either is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from atr.metrics.retrieval import Direction, Ranks, Relevance, average_precision, relevant_pairs

BLOCK = 2**22  # resampled clips drawn at a time


@dataclass(frozen=True)
class Interval:
    """Mean and bounds of its confidence interval, in the unit of the scores."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """Mean difference, bounds of its confidence interval, in the unit of the scores, and two-sided p value."""

    difference: float
    low: float
    high: float
    p: float


def clip_scores(ranks: Ranks, relevance: Relevance, k: int = 10, direction: Direction = "t2a") -> np.ndarray:
    """(clips,) R@k of each clip that a caption fits, in percent.

    t2a: the share of the clip's captions whose rank is up to k; a2t: whether the clip's own rank is.
    relevance: as `metrics.ranks` took it. The mean over clips is R@k; with t2a, where clips have equally many captions.
    """
    return _by_clip(100.0 * (ranks.best(direction) <= k), ranks, relevance, direction)


def clip_precision(ranks: Ranks, relevance: Relevance, k: int = 10, direction: Direction = "t2a") -> np.ndarray:
    """(clips,) average precision at k of each clip that a caption fits, in percent.

    t2a: the mean over the clip's captions; a2t: that of the clip as a query. relevance: as `metrics.ranks` took it.
    The mean over clips is mAP@k; with t2a, where clips have equally many captions.
    """
    return _by_clip(100 * average_precision(getattr(ranks, direction), k), ranks, relevance, direction)


def _by_clip(values: np.ndarray, ranks: Ranks, relevance: Relevance, direction: Direction) -> np.ndarray:
    """(clips,) of each clip that a caption fits: its own value of (clips,), or with t2a its captions' mean."""
    captions, clips = relevant_pairs(relevance, (len(ranks.t2a), len(ranks.a2t)))
    if direction == "t2a":
        values = np.bincount(clips, weights=values[captions]) / np.maximum(np.bincount(clips), 1)
    return values[np.unique(clips)]


def mean_std(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation (ddof 1) over seeds; the deviation of a single seed is NaN, as it has none."""
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"values have shape {array.shape}; give one number per seed")
    return float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else float("nan")


def nested_bootstrap(values: np.ndarray, draws: int = 2000, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean of values (seeds, clips) and its percentile interval, seeds and clips resampled with replacement.

    level: nominal coverage, between 0 and 1. ValueError: a non-finite score, or no score.
    """
    values = _scores(values, "values")
    low, high = _bounds(_means(values, draws, seed), level)
    return Interval(float(values.mean()), low, high)


def mean_squares(values: np.ndarray) -> tuple[float, float, float]:
    """Of values (seeds, clips): the mean squares between seeds, between clips, and of what is left, the error.

    Two-way analysis of variance without replication; NaN where a side has but one.
    """
    values = _scores(values, "values")
    seeds, clips = values.shape
    by_seed, by_clip = values.mean(1, keepdims=True), values.mean(0, keepdims=True)
    rest = values - by_seed - by_clip + values.mean()
    sums = clips * np.square(by_seed - values.mean()), seeds * np.square(by_clip - values.mean()), np.square(rest)
    freedoms = seeds - 1, clips - 1, (seeds - 1) * (clips - 1)
    return tuple(float(part.sum() / free) if free else np.nan for part, free in zip(sums, freedoms, strict=True))  # type: ignore[return-value]


def spreads(values: np.ndarray) -> tuple[float, float, float]:
    """Of values (seeds, clips): standard deviations of the seeds' effects, of the clips', and of the error, in the
    values' unit; 0 where an estimated variance is negative, NaN where a side has but one.
    """
    seed, clip, error = mean_squares(values)
    seeds, clips = np.shape(values)
    variances = np.array([(seed - error) / clips, (clip - error) / seeds, error])
    return tuple(np.sqrt(np.maximum(variances, 0)).tolist())


def crossed_interval(values: np.ndarray, level: float = 0.95) -> Interval:
    """Mean of values (seeds, clips) and Student's t interval over both.

    The mean's variance is (MS_seed + MS_clip - MS_error) / (S C), at the least max(MS_seed, MS_clip) / (S C), its
    degrees of freedom Satterthwaite's (1946, Biometrics Bulletin 2, p. 110). ValueError: a non-finite score, or none.
    """
    comparison = _crossed_comparison(values, level)
    return Interval(comparison.difference, comparison.low, comparison.high)


def crossed_test(a: np.ndarray, b: np.ndarray, level: float = 0.95) -> PairedTest:
    """a - b, both (seeds, clips) of the same seeds and clips, with the interval of `crossed_interval` and its p."""
    a, b = _scores(a, "a"), _scores(b, "b")
    if a.shape != b.shape:
        raise ValueError(f"a is {a.shape}, b is {b.shape} (seeds, clips); compare the same seeds on the same clips")
    return _crossed_comparison(a - b, level)


def _crossed_comparison(values: np.ndarray, level: float) -> PairedTest:
    """Of values (seeds, clips), as differences from 0."""
    seed, clip, error = squares = mean_squares(values)
    seeds, clips = np.shape(values)
    freedoms = np.array([seeds - 1, clips - 1, (seeds - 1) * (clips - 1)])
    parts = np.nan_to_num(squares)
    # Numbers that are all one, but for rounding, have no spread.
    parts[np.sqrt(parts) < 1e-12 * np.abs(values).max()] = 0
    total = parts[0] + parts[1] - parts[2]
    if total < parts[:2].max():
        total = parts[:2].max()
        parts[[1 - int(parts[1] > parts[0]), 2]] = 0  # the side that the floor is, alone
    mean, p, half = float(np.mean(values)), float(np.mean(values) == 0), 0.0
    if total:
        freedom = total**2 / (parts**2 / np.maximum(freedoms, 1)).sum()
        deviation = np.sqrt(total / (seeds * clips))
        half = float(stats.t.ppf((1 + _level(level)) / 2, freedom) * deviation)
        p = float(2 * stats.t.sf(abs(mean) / deviation, freedom))
    return PairedTest(mean, mean - half, mean + half, p)


def coverage(
    interval: Callable[[np.ndarray], Interval],
    spread: tuple[float, float, float],
    seeds: int = 5,
    clips: int = 500,
    draws: int = 1000,
    seed: int = 0,
) -> float:
    """How often an interval holds the true mean, in percent: simulated scores (seeds, clips) whose seeds, clips and
    error deviate so far, normally, as `spreads` has it.
    """
    rng, hits = np.random.default_rng(seed), 0
    for _ in range(draws):
        shapes = (seeds, 1), (1, clips), (seeds, clips)
        bounds = interval(sum(std * rng.standard_normal(shape) for std, shape in zip(spread, shapes, strict=True)))  # type: ignore[arg-type]
        hits += bounds.low <= 0 <= bounds.high
    return 100 * hits / draws


def grouped_bootstrap(
    values: np.ndarray, groups: Sequence | np.ndarray, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Mean of values (queries,) and its percentile interval, groups (queries,) resampled with replacement.

    A group, such as a clip, brings all of its queries, however many. ValueError: a non-finite value, or none.
    """
    values = _scores(np.asarray(values)[None], "values")[0]
    low, high = _bounds(_grouped_means(values, groups, draws, seed), level)
    return Interval(float(values.mean()), low, high)


def grouped_test(
    a: np.ndarray, b: np.ndarray, groups: Sequence | np.ndarray, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> PairedTest:
    """a - b, both (queries,) of the same queries, with interval and p value from one bootstrap over groups (queries,).

    p is twice the smaller share of draws on or beyond 0, with one draw added to both, and so never 0: at the least
    2 / (draws + 1). Errors: as in `grouped_bootstrap`, and for shapes that differ.
    """
    a, b = (_scores(np.asarray(values)[None], name)[0] for values, name in ((a, "a"), (b, "b")))
    if a.shape != b.shape:
        raise ValueError(f"a has {len(a)} scores, b has {len(b)}; compare the same queries")
    return _comparison(a - b, _grouped_means(a - b, groups, draws, seed), level)


def paired_t(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, level: float = 0.95) -> PairedTest:
    """a - b of numbers (seeds,), paired by seed: Student's t test and interval.

    For measures of a whole set, such as its uniformity, of which no clip has a share. With a single seed the interval
    is NaN and p is 1; with differences that are all equal, where `scipy.stats.ttest_rel` gives NaN or infinity, the
    interval has no width.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.ndim != 1 or a.shape != b.shape or not a.size or not np.isfinite([a, b]).all():
        raise ValueError(f"a is {a}, b is {b}; give a finite number for each of the same seeds")
    mean, deviation = mean_std(a - b)
    if a.size < 2:
        return PairedTest(mean, np.nan, np.nan, 1.0)
    error = deviation / np.sqrt(a.size)
    half = float(stats.t.ppf((1 + level) / 2, a.size - 1) * error)
    if error <= 1e-12 * np.abs([a, b]).max():  # rounding is all that the differences differ by
        return PairedTest(mean, mean, mean, float(abs(mean) < 1e-12 * np.abs([a, b]).max() or mean == 0))
    return PairedTest(mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, a.size - 1)))


def permutation_test(
    values: Sequence[float] | np.ndarray, groups: Sequence, blocks: Sequence, draws: int = 10_000, seed: int = 0
) -> float:
    """p of the hypothesis that all groups share one mean: do they differ by more than their noise?

    values, groups, blocks: (runs,); a block, such as a seed, may miss groups. Groups are permuted within blocks. The
    statistic is the sum over groups of n · mean², of values less their block's mean. p counts the data as one draw, so
    it is at least 1 / (draws + 1). ValueError: fewer than two groups, or a value that is not finite.
    """
    value = np.asarray(values, dtype=float)
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    _, block = np.unique(np.asarray(blocks), return_inverse=True)
    if not len(value) == len(group) == len(block) or len(names) < 2 or not np.isfinite(value).all():
        raise ValueError(f"{len(value)} values in {len(names)} groups; give finite values of two groups or more")
    value = value - (np.bincount(block, value) / np.bincount(block))[block]
    order = np.argsort(block, kind="stable")
    value, group, block = value[order], group[order], block[order]
    sizes = np.bincount(group)
    rng = np.random.default_rng(seed)

    def statistic(labels: np.ndarray) -> float:
        return float((np.bincount(labels, value, len(sizes)) ** 2 / sizes).sum())

    threshold = statistic(group) * (1 - 1e-9)  # ties are met by sums in another order
    shuffled = (group[np.lexsort((rng.random(len(block)), block))] for _ in range(draws))
    return (1 + sum(statistic(labels) >= threshold for labels in shuffled)) / (draws + 1)


def pooled_std(samples: Sequence[Sequence[float]]) -> float:
    """Standard deviation within samples, pooled over them; NaN where none has two values."""
    arrays = [np.asarray(sample, dtype=float) for sample in samples]
    freedom = sum(array.size - 1 for array in arrays)
    squares = sum(float(((array - array.mean()) ** 2).sum()) for array in arrays)
    return float(np.sqrt(squares / freedom)) if freedom else float("nan")


def expected_range(size: int) -> float:
    """Mean of largest less smallest of `size` values of one normal distribution, in its standard deviations."""

    def beyond(x: np.ndarray) -> np.ndarray:
        return 1 - stats.norm.cdf(x) ** size - stats.norm.sf(x) ** size

    x = np.linspace(-10, 10, 20_001)
    return float(np.trapezoid(beyond(x), x))


def range_p(spread: float, deviation: float, size: int, freedom: int) -> float:
    """Chance that `size` equal groups range as widely as `spread` or more: Tukey's studentised range.

    deviation: over seeds, estimated with so many degrees of freedom; NaN where there are none.
    """
    if freedom < 1:
        return float("nan")
    return float(stats.studentized_range.sf(spread / deviation, size, freedom))


def best_shares(scores: Mapping[Any, Sequence[float]], draws: int = 10_000, seed: int = 0) -> dict[Any, float]:
    """How often each label comes out best, in percent, where one of its scores is drawn at random: what a comparison
    of single runs would report. Ties are shared.
    """
    rng = np.random.default_rng(seed)
    samples = np.stack([rng.choice(np.asarray(values, dtype=float), draws) for values in scores.values()])
    best = samples == samples.max(0)
    return dict(zip(scores, (100 * best / best.sum(0)).mean(1).tolist(), strict=True))


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
    comparison: PairedTest | tuple[float, float], alpha: float = 0.05
) -> Literal["holds", "contradicted", "undecided"]:
    """What a comparison, or (difference, p) with a corrected p, says of the claim that the difference is above 0.

    "undecided" where p exceeds alpha.
    """
    difference, p = (comparison.difference, comparison.p) if isinstance(comparison, PairedTest) else comparison
    if not (np.isfinite(difference) and 0 <= p <= 1):
        raise ValueError(f"difference {difference}, p {p}; give a finite difference and a p from 0 to 1")
    if p > alpha or difference == 0:
        return "undecided"
    return "holds" if difference > 0 else "contradicted"


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


def _comparison(difference: np.ndarray, means: np.ndarray, level: float) -> PairedTest:
    """Of differences, and their (draws,) means under resampling."""
    # Sums of rounded weights leave noise around a difference that is exactly 0; it must count for both sides.
    noise = 1e-12 * float(np.abs(difference).max())
    tail = min(int((means <= noise).sum()), int((means >= -noise).sum()))
    low, high = _bounds(means, level)
    return PairedTest(float(difference.mean()), low, high, min(1.0, 2 * (tail + 1) / (len(means) + 1)))


def _grouped_means(values: np.ndarray, groups: Sequence | np.ndarray, draws: int, seed: int) -> np.ndarray:
    """(draws,) means of values (queries,) under resampling of groups (queries,)."""
    if draws < 1 or len(groups) != len(values):
        raise ValueError(f"{draws} draws of {len(values)} values in {len(groups)} groups; give a group for each value")
    _, place = np.unique(np.asarray(groups), return_inverse=True)
    sums, counts = np.bincount(place, values), np.bincount(place)
    rng, step = np.random.default_rng(seed), max(1, BLOCK // len(sums))
    means = []
    for start in range(0, draws, step):
        samples = rng.integers(len(sums), size=(min(step, draws - start), len(sums)))
        means.append(sums[samples].sum(1) / counts[samples].sum(1))
    return np.concatenate(means)


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
    low, high = np.quantile(means, [(1 - _level(level)) / 2, (1 + level) / 2])
    return float(low), float(high)


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; give a number between 0 and 1, such as 0.95")
    return level
