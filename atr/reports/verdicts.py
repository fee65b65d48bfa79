"""Claims and their verdicts."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from atr.metrics import retrieval, statistics
from atr.reports import names
from atr.reports.output import labels
from atr.training.records import Run
from atr.training.results import ExternalTest

VERDICTS = ("holds", "contradicted", "undecided", "not converged")
DIRECTIONS: dict[retrieval.Direction, str] = {"t2a": "T→A", "a2t": "A→T"}

RULES = {
    "beats": "holds if ahead by {} or more",
    "within": "holds if they differ by less than {}",
    "no less": "holds if behind by less than {}",
    "range": "holds if it lies within the range over seeds",
    "span": "holds if the span of good learning rates is narrower",
}


@dataclass(frozen=True)
class ComparisonRow:
    """A comparison of ours that has a verdict: its words, its direction of retrieval ("" for both or neither), and what
    came out, as text.
    """

    notebook: str
    words: str
    direction: str
    verdict: str
    difference: str
    interval: str
    p: str

    @classmethod
    def read(cls, notebook: str, row: Mapping[str, str]) -> "ComparisonRow":
        """From a row of a readable table of claims."""
        words, direction = split_direction(row["claim"])
        p = next((text for name, text in row.items() if names.quantity(name) == "p" and text != "—"), "—")
        ends = row.get("95 %", row.get("low to high", "—"))
        return cls(notebook, words, direction, row["verdict"], row.get("difference", "—"), ends, p)


def split_direction(claim: str) -> tuple[str, str]:
    """A claim's words but for its direction of retrieval, and that, "" for both or neither."""
    way = next((title for title in DIRECTIONS.values() if claim.endswith(f", {title}")), "")
    return claim.removesuffix(f", {way}") if way else claim, way


def comparisons(notebook: str, table: pd.DataFrame, caption: str) -> list[ComparisonRow]:
    """The rows of a table that have a verdict; its caption says what they are where they are no claims in words."""
    if "verdict" not in table:
        return []
    text = names.readable(table)
    if "claim" not in table:
        first = text[labels(table, text)].to_numpy()
        text.insert(0, "claim", [f"{caption} {', '.join(row)}" for row in first])
    return [ComparisonRow.read(notebook, dict(zip(map(str, text), row, strict=True))) for row in text.to_numpy()]


@dataclass
class Claim:
    """What a paper claims, in our words, or what a notebook asks beyond it; and our comparisons that test it.

    place: in the paper; context: how it is judged, or why it is not, and that alone is its note; figure: the name of
    one that shows it; pattern: of the words of its comparisons; negated: these ask for its contrary.
    """

    title: str
    place: str
    context: str
    notebook: str
    figure: str
    comparisons: list[ComparisonRow] = field(default_factory=list)
    pattern: str = ""
    negated: bool = False
    note: str = ""

    @property
    def verdict(self) -> str:
        """Of all its comparisons, "not tested" where there is none; where they differ, "holds in part", or else
        "contradicted in part", or else undecided.
        """
        verdicts = {one.verdict for one in self.comparisons}
        if len(verdicts) < 2:
            return next(iter(verdicts), "not tested")
        return next((f"{one} in part" for one in VERDICTS[:2] if one in verdicts), VERDICTS[2])

    @property
    def count(self) -> str:
        """`2 of 6 hold`."""
        holding = sum(one.verdict == VERDICTS[0] for one in self.comparisons)
        return f"{holding} of {len(self.comparisons)} hold{'s' * (holding == 1)}"

    def take(self, comparisons: Sequence[ComparisonRow]) -> list[ComparisonRow]:
        """Take those that test it; the others are given back. Those on its contrary get the contrary verdict."""
        matching = [one for one in comparisons if self.pattern and re.search(self.pattern, one.words)]
        contrary = [replace(one, words=f"not: {one.words}", verdict=opposite(one.verdict)) for one in matching]
        self.comparisons += contrary if self.negated else matching
        return [one for one in comparisons if one not in matching]


def paper_claims(path: Path) -> dict[str, list[Claim]]:
    """By paper its claims, from a table such as data/reference/claims.csv. Columns: paper, place, claim, direction,
    notebook, measure, rule, effect, note, comparisons (a pattern, after "not" one of the contrary), figure.
    """
    result: dict[str, list[Claim]] = {}
    for row in pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records"):
        rule = RULES[row["rule"]].format(row["effect"]).replace(" by 0 or more", "") if row["rule"] else ""
        context = "; ".join(filter(None, [row["measure"] and f"by {row['measure']}", rule, row["note"]]))
        pattern = row["comparisons"].removeprefix("not ")
        claim = Claim(row["claim"], row["place"], context, row["notebook"], row["figure"], [], pattern)
        claim.negated, claim.note = pattern != row["comparisons"], row["note"]
        result.setdefault(row["paper"], []).append(claim)
    return result


def sensitivity_claim(table: pd.DataFrame, suspects: Sequence[str]) -> dict[str, Any]:
    """Judge "`suspects` need their learning rate met, the others do not" on a table of `RateSearch.sensitivity`, of
    which one row is one loss: it holds if every suspect's span of rates is narrower than every other's, is
    contradicted if none is narrower than the widest of them, and is undecided otherwise, as where all spans are 1, a
    single rate: the search tells none narrower.
    """
    theirs = table["span"].groupby(table.index.get_level_values("loss").isin(suspects)).agg(list)
    suspected, others = theirs.get(True, []), theirs.get(False, [])
    verdict = "undecided"
    if suspected and others:
        verdict = "holds" if max(suspected) < min(others) else verdict
        verdict = "contradicted" if min(suspected) >= max(others) > 1 else verdict
    words = f"{' and '.join(suspects)} suit a narrower span of learning rates"
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


def in_words(table: pd.DataFrame) -> list[str]:
    """Claims and their verdicts as Markdown, an item each, with the difference where there is an effect."""
    sizes = table.get("difference", pd.Series(np.nan, table.index)).where(table["verdict"].isin(VERDICTS[:2]))
    effects = [f" ({size:+.1f} points)" if pd.notna(size) else "" for size in sizes]
    return [
        f"- {claim}: {verdict}{size}."
        for claim, verdict, size in zip(table["claim"], table["verdict"], effects, strict=True)
    ]


def both_ways(claim: str, a: Sequence[Run], b: Sequence[Run], **options: Any) -> list[dict[str, Any]]:
    """Rows for `claims`: a claim on mAP@10, text-to-audio and audio-to-text. options: further fields."""
    return [
        {"claim": f"{claim}, {title}", "a": scores(a, 10, way, True), "b": scores(b, 10, way, True), **options}
        for way, title in DIRECTIONS.items()
    ]


def claims(rows: Sequence[dict[str, Any]], alpha: float = 0.05) -> pd.DataFrame:
    """Judge claims on pairs of systems, paired by seed and clip (`statistics.crossed_test`).

    Each row: claim (words), a and b (runs that pair by seed), optionally k (10) and direction ("t2a"). a and b may
    also be scores (seeds, clips), as `scores` gives them, or numbers, one per seed, which are paired by seed alone
    (`statistics.paired_t`).
    "a beats b", by `least` points or more (0): holds if the p value, Holm-corrected over these rows, is below `alpha`
    and the difference is at least that; is contradicted if a is behind by such a p, or the 95 % interval excludes it.
    With `within` (points) the claim is "a and b differ by less": it holds if the 95 % interval of the difference lies
    inside, is contradicted if it lies outside. With `no_less` (points) it is "a is not that much behind b": it holds
    if the interval lies above -`no_less`, is contradicted if it lies below. Everything else is undecided; where
    `converged` is false, no verdict rests on the row.
    """
    tests = []
    for row in rows:
        if isinstance(row["a"][0], Run):
            k, direction = row.get("k", 10), row.get("direction", "t2a")
            tests.append(statistics.crossed_test(scores(row["a"], k, direction), scores(row["b"], k, direction)))
        elif np.ndim(row["a"]) == 2:
            tests.append(statistics.crossed_test(row["a"], row["b"]))
        else:
            tests.append(statistics.paired_t(row["a"], row["b"]))
    ordered = [place for place, row in enumerate(rows) if not {"within", "no_less"} & set(row)]
    adjusted = dict(zip(ordered, statistics.holm([tests[place].p for place in ordered]), strict=True))
    result = []
    for place, (row, test) in enumerate(zip(rows, tests, strict=True)):
        if "within" in row:
            margin, nearest = row["within"], max(test.low, -test.high, 0.0)
            inside = -margin < test.low and test.high < margin
            verdict = "holds" if inside else "contradicted" if nearest >= margin else "undecided"
        elif "no_less" in row:
            verdict = by_interval(test.low, test.high, -row["no_less"])
        else:
            verdict = _beats(test, adjusted[place], row.get("least", 0.0), alpha)
        verdict = verdict if row.get("converged", True) else "not converged"
        p = adjusted.get(place, np.nan)
        result.append((row["claim"], test.difference, test.low, test.high, p, verdict))
    return pd.DataFrame(result, columns=["claim", "difference", "low", "high", "p (Holm)", "verdict"])


def _beats(test: statistics.PairedTest, p: float, least: float, alpha: float) -> str:
    verdict = statistics.judge((test.difference, p), alpha)
    if verdict == "holds" and test.difference < least:
        verdict = "undecided"
    return "contradicted" if test.high < least and least else verdict
