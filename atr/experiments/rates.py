"""Each method's learning rate, found on validation data, and whether its epochs are enough: what a comparison of
methods begins with.

A method is a config. Short runs of one seed, a quarter of its epochs, try rates a factor of three apart, and further
ones while the best lies at an edge; the seeds then train at the best, and one of them for twice the epochs too.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from atr.config import RunConfig
from atr.corpora import corpus_memory, remember_corpora
from atr.corpora.corpus import Corpus
from atr.experiments.profiles import Profile
from atr.training import fit, identity
from atr.training.records import Run

STEP = 3.0  # between rates
SHARE = 0.25  # of the epochs, of a try
FURTHEST = 5  # steps from the usual rate, beyond which no search goes
METRIC = "t2a_map10"  # of validation, which decides
CLOSE = 3.0  # points below the best: a rate that would do as well
ENOUGH = 1.0  # points: what twice the epochs may still bring a method that has converged


@dataclass(frozen=True)
class RateSearch:
    """What a notebook trains: tries, then each method's seeds at its best rate and one for twice the epochs.

    methods   by any name: a config at its usual rates, for all of its epochs
    seeds     of all methods, or by method
    like      a control → the method whose search it shares
    others    runs beside them, as they are
    twice     the methods whose epochs are doubled, by default all; in a quick profile the first of them
    """

    profile: Profile
    methods: Mapping[Any, RunConfig]
    seeds: Sequence[int] | Mapping[Any, Sequence[int]]
    like: Mapping[Any, Any] = field(default_factory=dict)
    others: Sequence[RunConfig] = ()
    twice: Iterable[Any] | None = None
    # Runs by their config, and their scores: what does not change any more.
    _memory: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def _twice(self) -> list:
        names = list(self.methods if self.twice is None else self.twice)
        return names[:1] if self.profile.quick else names

    @cached_property
    def _corpus_of(self) -> Callable[[Mapping[str, Any]], Corpus]:
        return corpus_memory(self.profile.root)

    def _seeds(self, name: Hashable) -> Sequence[int]:
        return self.seeds[name] if isinstance(self.seeds, Mapping) else self.seeds

    def _run(self, config: RunConfig) -> Run | None:
        """Its run if it has ended, well or by diverging."""
        key = str(config.to_dict())
        if key not in self._memory:
            profile = self.profile
            try:
                corpus = self._corpus_of(config.corpus)
                run = identity.locate(config, corpus, profile.runs, fetch=False, root=profile.root)
            except (ValueError, OSError):
                return None
            if not (fit.at_hand(run, config) or run.diverged):
                return None
            self._memory[key] = run
        return self._memory[key]

    def at_end(self, config: RunConfig) -> bool:
        """Whether its run has ended, well or by diverging."""
        return self._run(config) is not None

    def tries(self, name: Hashable) -> dict[int, RunConfig]:
        """The short runs of a method's search by their rate, in steps from the usual one."""
        name = self.like.get(name, name)
        method, seed = self.methods[name], self._seeds(name)[0]
        tries = {step: _short(method, step, seed) for step in self.profile.tries}
        while (
            len(tries) > 2 and None not in (scores := {step: self._score(one) for step, one in tries.items()}).values()
        ):
            best, steps = _best(scores), sorted(tries)
            beyond = {steps[0]: steps[0] - 1, steps[-1]: steps[-1] + 1}.get(best)
            if beyond is None or abs(beyond) > FURTHEST:
                break
            tries[beyond] = _short(method, beyond, seed)
        return dict(sorted(tries.items()))

    def _score(self, config: RunConfig) -> float | None:
        """Validation mAP@10 of a try; None before it has ended."""
        if (run := self._run(config)) is None:
            return None
        key = "score", str(config.to_dict())
        if key not in self._memory:
            self._memory[key] = -np.inf if run.diverged else run.validation[METRIC]
        return self._memory[key]

    def best(self, name: Hashable) -> int | None:
        """The rate of a method's seeds, in steps from the usual one; None before its search has ended. Where a profile
        reproduces the published experiment, the published rate, whatever the search says.
        """
        scores = {step: self._score(config) for step, config in self.tries(name).items()}
        if None in scores.values():
            return None
        return 0 if self.profile.published or not scores else _best(scores)

    def seeded(self, name: Hashable, step: int | None = None) -> list[RunConfig]:
        """A method's runs, one for each seed, at its best rate, or at the usual one as long as that is not known."""
        at = at_step(self.methods[name], (self.best(name) or 0) if step is None else step)
        return [at.replace(seed=seed) for seed in self._seeds(name)]

    def finals(self) -> list[RunConfig]:
        """The runs of all methods' seeds, at the best rate of each: what tables and claims rest on."""
        return [config for name in self.methods for config in self.seeded(name)]

    def double_epochs(self, name: Hashable) -> RunConfig:
        """A method's first seed for twice the epochs, its schedule stretched."""
        return stretched(self.seeded(name)[0], 2)

    def grid(self) -> list[RunConfig]:
        """All runs, as far as is known: at the usual rate where a search has not ended."""
        return self._grid(list(self.methods))

    def todo(self) -> list[RunConfig]:
        """What can run now: the tries of searches under way, and all of methods whose search has ended."""
        return self._grid([name for name in self.methods if self.best(name) is not None])

    def _grid(self, names: list) -> list[RunConfig]:
        with remember_corpora():
            tries = [config for name in self.methods for config in self.tries(name).values()]
            tries = [config for config in tries if self._score(config) != -np.inf]
            doubled = [self.double_epochs(name) for name in self._twice if name in names]
            runs = [*(config for name in names for config in self.seeded(name)), *tries, *doubled, *self.others]
        return list({str(config.to_dict()): config for config in runs}.values())

    def table(self, names: Sequence[str]) -> pd.DataFrame:
        """One row per try: a method's name in columns `names`, the heads' rate, validation mAP@10 in percent (NaN: it
        diverged), best ("yes" or nothing).
        """
        rows = []
        for name in self.methods:
            for step, config in self.tries(name).items() if name not in self.like else ():
                score = self._score(config)
                score = np.nan if score is None or np.isinf(score) else score
                row = {"rate": config.rate("heads"), "validation mAP@10": score}
                rows.append((name, row | {"best": "yes" * (step == self.best(name))}))
        return _by_name(names, rows) if rows else pd.DataFrame(columns=[*names])

    def sensitivity(self, names: Sequence[str]) -> pd.DataFrame:
        """One row per method. span: largest by smallest rate whose try came within `CLOSE` points of the best; failed:
        how many of its seeds, at the best rate, end below half of its best seed's validation mAP@10, of `seeds`, with
        the share's 95 % interval in percent (Clopper-Pearson).
        """
        rows = []
        for name in self.methods:
            scores = {step: self._score(config) or -np.inf for step, config in self.tries(name).items()}
            near = [step for step, score in scores.items() if score > max(scores.values()) - CLOSE] or [0]
            finals = [run.validation[METRIC] for config in self.seeded(name) if (run := self._run(config))]
            failed = sum(score < max(finals) / 2 for score in finals)
            share = stats.binomtest(failed, len(finals)).proportion_ci(0.95)
            row = {"span": STEP ** (max(near) - min(near)), "failed": failed, "seeds": len(finals)}
            rows.append((name, row | {"failed_low": 100 * share.low, "failed_high": 100 * share.high}))
        return _by_name(names, rows)

    def budget(self, names: Sequence[str]) -> pd.DataFrame:
        """One row per method: validation mAP@10 of its first seed after its epochs and after twice as many, in percent,
        and whether it has converged: the second is less than `ENOUGH` points above the first.
        """
        rows = []
        for name in self._twice:
            once, twice = (self._run(config) for config in (self.seeded(name)[0], self.double_epochs(name)))
            if once is None or twice is None:
                continue
            scores = once.validation[METRIC], twice.validation[METRIC]
            row = {"epochs": once.config.epochs, "once": scores[0], "twice": scores[1]}
            rows.append((name, row | {"converged": scores[1] - scores[0] < ENOUGH}))
        return _by_name(names, rows, ("epochs", "once", "twice", "converged"))


def _best(scores: Mapping[int, float | None]) -> int:
    """The step of the highest score, of equals the one nearest to the usual rate."""
    return max(scores, key=lambda step: (scores[step], -abs(step)))


def as_tuple(name: Hashable) -> tuple:
    """The parts of a method's name, or of a row's key, which is no tuple where there is one."""
    return name if isinstance(name, tuple) else (name,)


def _by_name(names: Sequence[str], rows: Sequence[tuple[Any, dict]], columns: Sequence[str] = ()) -> pd.DataFrame:
    """Rows by their methods' names, which are the index; with `columns` also where there are no rows."""
    table = [dict(zip(names, as_tuple(name), strict=True)) | row for name, row in rows]
    return pd.DataFrame(table, columns=[*names, *columns] if columns else None).set_index(list(names))


def at_step(config: RunConfig, step: int) -> RunConfig:
    """A config with its learning rates so many steps of a search higher, but for that of the loss's own parameters."""
    factor = STEP**step
    rates = {
        group: rate if group == "loss" else float(f"{rate * factor:.3g}")
        for group, rate in config.learning_rates.items()
    }
    return config.replace(learning_rates=rates)


def stretched(config: RunConfig, factor: float) -> RunConfig:
    """A config for `factor` times the epochs, one at the least, its schedule and its stages with them."""
    epochs, steps = (max(1, round(factor * number)) for number in (config.epochs, config.step_epochs))
    cosine = None if config.cosine_epochs is None else factor * config.cosine_epochs
    if config.stages is not None:
        stages = [
            {**stage, "epochs": max(1, round(factor * part.epochs))}
            for stage, part in zip(config.stages, config.parts(), strict=True)
        ]
        config = config.replace(stages=stages)
    return config.replace(
        epochs=epochs, step_epochs=steps, cosine_epochs=cosine, warmup_epochs=factor * config.warmup_epochs
    )


def _short(config: RunConfig, step: int, seed: int) -> RunConfig:
    return stretched(at_step(config, step), SHARE).replace(seed=seed)
