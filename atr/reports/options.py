"""Options that were tried on a test set of few recordings: chosen on one half of them, reported on the other."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from atr.metrics import statistics
from atr.training.results import ExternalTest

BY = "t2a_r1"  # what an option is chosen by, and compared in


def compare(
    tests: Mapping[str, Sequence[ExternalTest]], against: str | Mapping[str, Sequence[ExternalTest]]
) -> pd.DataFrame:
    """One row per option: seeds, R@1 and R@10 T→A as means over seeds, and in R@1 the difference from the option
    `against`, or from what the same option comes to there, with its standard error over recordings, each one's scores
    averaged over seeds.

    tests: by option its tests on one corpus, one per seed.
    """
    others = dict.fromkeys(tests, tests[against]) if isinstance(against, str) else against
    rows = []
    for name, seeds in tests.items():
        means = {key: np.mean([test.metrics[key] for test in seeds]) for key in (BY, "t2a_r10")}
        difference = _mean_and_error(_by_recording(seeds) - _by_recording(others[name]))
        rows.append({"option": name, "seeds": len(seeds), **means} | difference)
    return pd.DataFrame(rows).set_index("option")


def on_halves(tests: Mapping[str, Sequence[ExternalTest]], against: str) -> pd.DataFrame:
    """What comes of choosing an option: one row per half of the recordings, every second one, and one for both pooled.

    chosen: the option with the highest R@1 on the *other* half. t2a_r1, difference, standard_error: of this half, as in
    `compared`. So no recording is reported that had a say in what it is reported for.
    """
    scores = {name: _by_recording(seeds) for name, seeds in tests.items()}
    first = np.arange(len(scores[against])) % 2 == 0
    rows, pooled = [], np.empty(len(first))
    for title, half in (("first, third, …", first), ("second, fourth, …", ~first)):
        best = max(scores, key=lambda name: scores[name][~half].mean())
        pooled[half] = scores[best][half]
        difference = _mean_and_error((scores[best] - scores[against])[half])
        rows.append({"recordings": title, "chosen": best, BY: scores[best][half].mean()} | difference)
    rows.append({"recordings": "all", "chosen": "", BY: pooled.mean()} | _mean_and_error(pooled - scores[against]))
    return pd.DataFrame(rows).set_index("recordings")


def _by_recording(tests: Sequence[ExternalTest]) -> np.ndarray:
    """(recordings,) R@1 T→A in percent, the mean over seeds."""
    return np.mean([statistics.clip_scores(test.ranks, test.relevance, k=1) for test in tests], axis=0)


def _mean_and_error(differences: np.ndarray) -> dict[str, float]:
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    return {"difference": float(differences.mean()), "standard_error": float(error)}
