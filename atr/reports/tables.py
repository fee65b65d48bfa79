"""Tables of runs: means over seeds with their uncertainty, in one order, as people read them."""

import time
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from atr.config import RunConfig
from atr.experiments.grid import Runs, key, run_all
from atr.experiments.profiles import Profile
from atr.experiments.rates import RateSearch, as_tuple
from atr.inference.external import test
from atr.losses.pair import LOSSES
from atr.metrics import retrieval, statistics
from atr.reports import figures, names, output, verdicts
from atr.reports.names import EXTERNAL, MEASURES, heading, loss_title, measures, parts_of, plus_minus, quantity
from atr.reports.verdicts import scores
from atr.training.records import Run

TRAININGS = ("frozen", "finetuned", "scratch")


def run_table(runs: Iterable[tuple[RunConfig, Run]], profile: Profile) -> pd.DataFrame:
    """One row per run: corpus, recipe, training, loss, rate (that of the heads), batch size, embedding dimension,
    weight of the penalty (0: none), epochs, seed, best epoch, validation R@10 (selected epoch), test metrics, the run
    itself. A run that several parts of a grid ask for has one row. With the columns of `external`.
    """
    return external(_rows(runs, profile), profile, runs.trials if isinstance(runs, Runs) else set())


def external(table: pd.DataFrame, profile: Profile, trials: Collection[str] = ()) -> pd.DataFrame:
    """A frame of runs with columns of their tests on each of the profile's other corpora, as far as these are here:
    those of `names.EXTERNAL`, as people_t2a_r1, and the test itself, as people_run. Each run is tested once, those at
    the addresses `trials` not at all.
    """
    try:
        corpora = profile.external_corpora() if len(table) else {}
    except FileNotFoundError:
        return table
    for title, corpus in corpora.items():
        tests = [None if run.address in trials else test(run, corpus, root=profile.root) for run in table["run"]]
        columns: dict[str, Any] = {
            f"{title}_{name}": [one.metrics[name] if one else np.nan for one in tests] for name in EXTERNAL
        }
        table = table.assign(**columns | {f"{title}_run": tests})
    return table


def _rows(runs: Iterable[tuple[RunConfig, Run]], profile: Profile) -> pd.DataFrame:
    rows = [
        {
            "corpus": profile.name_of(config),
            "recipe": config.recipe,
            "training": config.training.removesuffix("_released"),
            "loss": loss_title(config.loss["name"]),
            "rate": config.rate("heads"),
            "batch": config.batch_size,
            "dim": config.embedding_dim,
            "alpha": config.penalty["alpha"] if config.penalty else 0.0,
            "epochs": sum(part.epochs for part in config.parts()),
            "seed": config.seed,
            "best_epoch": run.best_epoch,
            "validation_t2a_r10": run.validation["t2a_r10"],
            **run.metrics,
            "run": run,
        }
        for config, run in {run.address: (config, run) for config, run in runs}.values()
    ]
    return pd.DataFrame(rows)


def in_order(values: Iterable[Any]) -> list[Any]:
    """Distinct labels of rows in the one order of all tables: numbers from the smallest, losses and kinds of training
    as in the papers, others behind them as they come.
    """
    present = dict.fromkeys(values)
    numbers = sorted(value for value in present if isinstance(value, int | float | np.number))
    first = [*numbers, *map(loss_title, LOSSES), *TRAININGS]
    return [value for value in dict.fromkeys([*first, *present]) if value in present]


def sort_rows(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Rows by `by`, columns or levels of the index, each in the one order."""
    places = [{value: place for place, value in enumerate(in_order(table.reset_index()[name]))} for name in by]
    keys = [table.reset_index()[name].map(place) for name, place in zip(by, places, strict=True)]
    return table.iloc[np.lexsort(keys[::-1])]


def with_baselines(
    table: pd.DataFrame, untrained: pd.DataFrame, chance: Mapping[str, Mapping[str, float]]
) -> pd.DataFrame:
    """A summary with rows below it for the untrained model and for chance, by corpus."""
    levels = list(table.index.names)
    below = [
        {"corpus": corpus, "loss": "untrained", **row}
        for corpus, row in summary(untrained, ["corpus"]).to_dict("index").items()
    ]
    below += [
        {"corpus": corpus, "loss": "chance", **{key: row[key] for key in measures(table) if key in row}}
        for corpus, row in chance.items()
    ]
    blank = dict.fromkeys(levels, "")
    return pd.concat([table, pd.DataFrame([blank | row for row in below]).set_index(levels)])[list(table.columns)]


def runs_by(table: pd.DataFrame, **where: Any) -> list[Run]:
    """Runs of the rows that agree with `where`, in order of their seeds."""
    for column, value in where.items():
        table = table[table[column] == value]
    return table.sort_values("seed")["run"].tolist()


def runs_by_loss(table: pd.DataFrame, **where: Any) -> dict[str, list[Run]]:
    """Loss → its runs among the rows that agree with `where`."""
    return {loss: runs_by(table, loss=loss, **where) for loss in in_order(table["loss"])}


def summary(table: pd.DataFrame, by: Sequence[str], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Mean and deviation over seeds (ddof 1) of `columns`, by default `names.measures`: indexed by `by`; seeds,
    `<column>`, `<column>_std`. Rows stand in the one order (`sort_rows`).
    """
    columns, rows = measures(table) if columns is None else columns, []
    for keys, group in sort_rows(table, by).groupby(list(by), sort=False):
        row = {**dict(zip(by, as_tuple(keys), strict=True)), "seeds": len(group)}
        for column in columns:
            row[column], row[f"{column}_std"] = statistics.mean_std(group[column].to_numpy())
        rows.append(row)
    return pd.DataFrame(rows).set_index(list(by)) if rows else pd.DataFrame(columns=[*by, "seeds", *columns])


def intervals(table: pd.DataFrame, runs: pd.DataFrame, column: str | None = None) -> pd.DataFrame:
    """A summary with the 95 % interval of a recall or an mAP over seeds and clips (`statistics.crossed_interval`), in
    `<column>_low` and `<column>_high`. runs: the frame that was summarised. By default of t2a_r1, t2a_map10 and what
    the table shows of tests on other corpora.
    """
    if column is None:
        for name in ("t2a_r1", "t2a_map10", *measures(table)[len(MEASURES) :]):
            table = intervals(table, runs, name)
        return table
    title, metric = parts_of(column)
    direction, measure = metric.split("_")
    precise, k = measure.startswith("map"), int(measure.lstrip("rmap"))
    low, high = {}, {}
    levels: Any = list(table.index.names)
    for keys, group in runs.groupby(levels if len(levels) > 1 else levels[0], sort=False):  # keys as in the index
        values = scores(list(group[f"{title}_run" if title else "run"]), k, direction, precise)  # type: ignore[arg-type]
        interval = statistics.crossed_interval(values)
        low[keys], high[keys] = interval.low, interval.high
    return table.assign(**{f"{column}_low": pd.Series(low), f"{column}_high": pd.Series(high)})


def comparison(runs: pd.DataFrame, by: Sequence[str], columns: Sequence[str] = MEASURES) -> pd.DataFrame:
    """The table that answers a notebook's question: a summary of `columns` and of tests on other corpora, with its
    intervals; of rows by `Results.rows` also which methods have converged, nothing where that is not known.
    """
    table = intervals(summary(runs, by, [*columns, *measures(runs)[len(MEASURES) :]]), runs)
    if "converged" not in runs:
        return table
    rows = [group["converged"].iloc[0] for _, group in sort_rows(runs, by).groupby(list(by), sort=False)]
    return table.assign(converged=["" if pd.isna(one) else "yes" if one else "no" for one in rows])


def cells(means: pd.Series, deviations: pd.Series, kind: str | int) -> list[str]:
    """`names.plus_minus` of each mean and its deviation."""
    return [plus_minus(*pair, kind) for pair in zip(means, deviations, strict=True)]


def formatted(table: pd.DataFrame, columns: Sequence[str] | None = None, digits: int | None = None) -> pd.DataFrame:
    """A summary as people read it: `mean ± deviation` under headings. columns: by default all that it summarises, and
    whether methods have converged; digits: after the point, by default those of what is measured.
    """
    result = pd.DataFrame(index=table.index)
    summarised = [column for column in map(str, table.columns) if f"{column}_std" in table]
    for column in summarised if columns is None else columns:
        kind = (quantity(column) or "recall") if digits is None else digits
        deviations = table.get(f"{column}_std", pd.Series(np.nan, table.index))
        result[heading(column)] = cells(table[column], deviations, kind)
        if f"{column}_low" in table:
            ends = zip(table[f"{column}_low"], table[f"{column}_high"], strict=True)
            result[f"{heading(column)}, 95 %"] = [names.interval(*pair, kind) for pair in ends]
    if "seeds" in table:
        result.insert(0, "seeds", [names.number(number, "count").replace("—", "") for number in table["seeds"]])
    return result.assign(converged=table["converged"]) if columns is None and "converged" in table else result


def rows_of(table: pd.DataFrame, configs: Iterable[RunConfig], **labels: Any) -> pd.DataFrame:
    """The rows of a frame whose runs are those of `configs`, with columns that hold a label each."""
    addresses = {key(config) for config in configs}
    rows = table[[key(run.config) in addresses for run in table["run"]]]
    return rows.assign(**labels)


def runs_of(table: pd.DataFrame, configs: Iterable[RunConfig]) -> list[Run]:
    """The runs of `configs` in a frame, in order of their seeds."""
    return runs_by(rows_of(table, configs))


class Results:
    """What came of the methods of a search: the runs of each, whether it has converged, and how two of them compare.

    table: `run_table` of all runs; budget: `RateSearch.budget`. Of a method the runs are those at its best rate.
    """

    def __init__(self, search: RateSearch, runs: Runs, profile: Profile, names: Sequence[str]) -> None:
        """names: of the columns that a method's name in the search makes in tables."""
        self.search, self.profile, self.names = search, profile, list(names)
        self.table, self.budget = run_table(runs, profile), search.budget(names)

    def rows(self, *methods: Hashable, **labels: Any) -> pd.DataFrame:
        """Of these methods, one after the other: their runs' rows, with the parts of a method's name, whether it has
        converged (None: not known) and `labels` in columns. No rows if no method is given.
        """
        parts = []
        for name in methods:
            named = dict(zip(self.names, as_tuple(name), strict=True)) | {
                "converged": self.budget["converged"].get(name)
            }
            parts.append(rows_of(self.table, self.search.seeded(name), **named | labels))
        return pd.concat(parts) if parts else self.table.iloc[:0]

    def runs(self, name: Hashable) -> list[Run]:
        """In order of their seeds."""
        return runs_by(self.rows(name))

    def all_runs(self) -> pd.Series:
        """Of all methods, and no tries: what tables and claims rest on."""
        return rows_of(self.table, self.search.finals())["run"]

    def converged(self, *names: Hashable) -> bool:
        """Whether none of them is known to gain by twice the epochs."""
        return all(bool(self.budget["converged"].get(name, True)) for name in names)

    def compare(
        self, claim: str, a: Hashable, b: Hashable, measure: Callable[[Run], float] | None = None, **options: Any
    ) -> dict[str, Any]:
        """A row for `verdicts.claims` on two methods, by the seeds that both have: on their average precision text to
        audio, with an option `k` on R@k, or on `measure`, one number per run. ValueError: they have no seed in common.
        """
        pair = self._pairs(claim, a, b)
        if measure:
            values: list[Any] = [[measure(run) for run in runs] for runs in pair]
        else:
            values = [runs if "k" in options else verdicts.average_precision(runs) for runs in pair]
        return {"claim": claim, "a": values[0], "b": values[1], "converged": self.converged(a, b)} | options

    def compare_both_ways(self, claim: str, a: Hashable, b: Hashable, **options: Any) -> list[dict[str, Any]]:
        """As `compare`, on their average precision in each direction of retrieval: two rows."""
        return verdicts.both_ways(claim, *self._pairs(claim, a, b), converged=self.converged(a, b), **options)

    def _pairs(self, claim: str, *methods: Hashable) -> list[list[Run]]:
        pair = [self.runs(name) for name in methods]
        seeds = [{run.config.seed for run in runs} for runs in pair]
        if not (common := set.intersection(*seeds)):
            text = ", ".join(f"{name} has seeds {sorted(own)}" for name, own in zip(methods, seeds, strict=True))
            raise ValueError(f"{claim}: {text}; give both a common one")
        return [[run for run in runs if run.config.seed in common] for runs in pair]

    def save_search(self, number: str) -> Figure:
        """Save what twice the epochs bring, which is shown, and how the learning rates were searched, of which the
        figure is returned. number: of the notebook, before the names.
        """
        from IPython.display import display

        folder, runs, rates = self.profile.results, list(self.table["run"]), self.search.table(self.names)
        caption = "Validation mAP@10 after a method's epochs and after twice as many, first seed."
        output.save(self.budget, folder, f"{number}_budget", caption, runs)
        caption = "The search of learning rates, by validation mAP@10."
        output.save(rates, folder, f"{number}_rates", caption, runs)
        display(output.show(self.budget))
        return figures.save(figures.tries(rates), folder, f"{number}_rates", runs)


def run_grid(
    wanted: Sequence[RunConfig] | RateSearch,
    profile: Profile,
    by: Sequence[str],
    device: str = "auto",
    executor: str = "local",
) -> Runs:
    """Run the configs of a notebook, or a search and what comes of it; the table so far (`progress`) stands below its
    cell, renewed once a second at most.

    RuntimeError: a run failed, other than a try that diverged; the others have ended then.
    """
    from IPython.display import DisplayHandle

    try:
        profile.external_corpora()
    except FileNotFoundError as error:
        print(error)  # the tables go without its columns
    live = DisplayHandle()
    live.display("no run yet")

    def run(configs: Sequence[RunConfig], total: int, further: Callable[[], Sequence[RunConfig]] = tuple) -> Runs:
        runs: list[tuple[RunConfig, Run]] = []
        due = 0.0

        def show(config: RunConfig, run: Run) -> None:
            nonlocal due
            runs.append((config, run))
            if time.monotonic() >= due:
                live.update(progress(runs, total, profile, by))
                due = time.monotonic() + 1

        work: dict[str, Any] = {"root": profile.root, "device": device, "runs": profile.runs, "executor": executor}
        outcome = run_all(configs, **work, on_run=show, further=further)
        if outcome.failures and runs:
            live.update(progress(runs, total, profile, by))
        return outcome

    if isinstance(wanted, RateSearch):
        search, outcome = wanted, None
        while outcome is None or search.todo() != outcome.configs:
            outcome = run(search.todo(), len(search.grid()), search.todo)
            if not all(search.at_end(outcome.configs[place]) for place in outcome.failures):
                outcome.raise_failures()
        reported = {key(config) for config in [*search.finals(), *search.others]}
        outcome.trials = {run.address for config, run in outcome if key(config) not in reported}
    else:
        outcome = run(wanted, len(wanted))
        outcome.raise_failures()
    if len(outcome):
        live.update(progress(outcome, len(outcome), profile, by))
    return outcome


def progress(runs: Runs | Sequence[tuple[RunConfig, Run]], total: int, profile: Profile, by: Sequence[str]) -> Styler:
    """The table so far, marked as partial; or of all, tested on other corpora, without the trials of a search."""
    if isinstance(runs, Runs):
        state, table = "complete", run_table(runs, profile)
        table = table[[run.address not in runs.trials for run in table["run"]]]
    else:
        state, table = "partial", _rows(runs, profile)
    view = formatted(summary(table, by)).style
    view = view.format_index(lambda label: f"{label:g}" if isinstance(label, float) else str(label), escape="html")
    return view.set_caption(f"{state}: {len(runs)} of {total} runs")


def chance(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Expected metrics of a random ranking of the test split, by corpus of a frame, and of its tests on others."""
    result = {}
    for _, row in table.drop_duplicates("corpus").iterrows():
        result[row["corpus"]] = retrieval.chance(row["run"].relevance)
        for title in {parts_of(name)[0] for name in map(str, table.columns)} - {""}:
            expected = retrieval.chance(row[f"{title}_run"].relevance)
            result[row["corpus"]] |= {f"{title}_{name}": expected[name] for name in EXTERNAL}
    return result
