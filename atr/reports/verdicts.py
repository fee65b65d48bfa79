"""Claims and their verdicts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from atr.metrics import retrieval, statistics
from atr.training.records import ExternalTest, Run

VERDICTS = ("holds", "contradicted", "undecided")


def not_converged(table: pd.DataFrame, among: Sequence[str], by: Sequence[str], share: float = 0.5) -> pd.DataFrame:
    """How many runs did not converge, by `by`: validation T→A R@10 below `share` of the best run's that agrees in
    `among`. Columns: failed, runs.
    """
    best = table.groupby(list(among))["validation_t2a_r10"].transform("max")
    failed = table.assign(failed=table["validation_t2a_r10"] < share * best)
    return failed.groupby(list(by), sort=False).agg(failed=("failed", "sum"), runs=("failed", "count"))


def sensitivity_claim(failed: pd.DataFrame, suspects: Sequence[str]) -> dict[str, Any]:
    """Judge "only `suspects` fail to converge" on a table of `not_converged`."""
    by_loss = failed.groupby("loss")["failed"].sum()
    theirs, others = by_loss[by_loss.index.isin(suspects)].sum(), by_loss[~by_loss.index.isin(suspects)].sum()
    verdict = "holds" if theirs and not others else "contradicted" if others and not theirs else "undecided"
    words = f"only {' and '.join(suspects)} fail to converge ({theirs} of theirs, {others} of the others)"
    return {"claim": words, "difference": np.nan, "low": np.nan, "high": np.nan, "p (Holm)": np.nan, "verdict": verdict}


def scores(
    runs: Sequence[Run | ExternalTest], k: int = 10, direction: retrieval.Direction = "t2a", precision: bool = False
) -> np.ndarray:
    """(seeds, clips), for runs that differ by seed, or their tests on another corpus: percent of a clip's queries
    answered within the first k, or with `precision` their average precision at k.
    """
    measure = statistics.clip_precision if precision else statistics.clip_scores
    return np.stack([measure(run.ranks, run.relevance, k, direction) for run in runs])


def average_precision(runs: Sequence[Run]) -> np.ndarray:
    """(seeds, clips), for runs that differ by seed: text-to-audio average precision at 10, in percent."""
    return scores(runs, precision=True)


def by_p(p: float, alpha: float = 0.05) -> str:
    """The verdict on a claim that is never contradicted: that something is there at all."""
    return "holds" if p < alpha else "undecided"


def by_interval(low: float, high: float, level: float) -> str:
    """The verdict on "it is at least `level`" of what lies from low to high."""
    return "holds" if low >= level else "contradicted" if high < level else "undecided"


def opposite(verdict: str) -> str:
    """The verdict on the contrary of a claim."""
    return {"holds": "contradicted", "contradicted": "holds"}.get(verdict, verdict)


def in_words(judged: pd.DataFrame, difference: str = " ({:+.1f} points)") -> list[str]:
    """Claims and their verdicts as Markdown, an item each. difference: how it is said, as `str.format` takes it."""
    return [
        f"- {row['claim']}: {row['verdict']}{difference.format(row.get('difference'))}." for _, row in judged.iterrows()
    ]


def claims(rows: Sequence[dict[str, Any]], alpha: float = 0.05) -> pd.DataFrame:
    """Judge claims on pairs of systems, paired by seed and clip (`statistics.paired_test`).

    Each row: claim (words), a and b (runs that pair by seed), optionally k (10) and direction ("t2a"). a and b may
    also be scores (seeds, clips), as `scores` gives them, or numbers, one a seed, which are paired by seed alone
    (`statistics.paired_t`).
    "a beats b": holds or is contradicted if the p value, Holm-corrected over these rows, is below `alpha`.
    With `within` (points) the claim is "a and b differ by less": it holds if the 95 % interval of the difference lies
    inside, is contradicted if it lies outside. Everything else is undecided.
    """
    tests = []
    for row in rows:
        if isinstance(row["a"][0], Run):
            k, direction = row.get("k", 10), row.get("direction", "t2a")
            tests.append(statistics.paired_test(scores(row["a"], k, direction), scores(row["b"], k, direction)))
        elif np.ndim(row["a"]) == 2:
            tests.append(statistics.paired_test(row["a"], row["b"]))
        else:
            tests.append(statistics.paired_t(row["a"], row["b"]))
    ordered = [place for place, row in enumerate(rows) if "within" not in row]
    adjusted = dict(zip(ordered, statistics.holm([tests[place].p for place in ordered]), strict=True))
    result = []
    for place, (row, test) in enumerate(zip(rows, tests, strict=True)):
        if "within" in row:
            margin, nearest = row["within"], max(test.low, -test.high, 0.0)
            inside = -margin < test.low and test.high < margin
            verdict = "holds" if inside else "contradicted" if nearest >= margin else "undecided"
        else:
            verdict = statistics.judge((test.difference, adjusted[place]), alpha)
        p = adjusted.get(place, np.nan)
        result.append((row["claim"], test.difference, test.low, test.high, p, verdict))
    return pd.DataFrame(result, columns=["claim", "difference", "low", "high", "p (Holm)", "verdict"])
