"""Published numbers, and ours beside them."""

from collections.abc import Sequence

import pandas as pd

from atr.metrics import statistics
from atr.reports.names import DATASETS, HEADINGS, RECALLS, loss_title, plus_minus, quantity
from atr.reports.tables import cells, formatted, sort_rows, summary
from atr.system import places


def published(name: str) -> pd.DataFrame:
    """A table of `data/reference/`: one row per cell, its mean and deviation as printed, and training, loss, batch and
    dim in the words of our own tables.
    """
    path = places.PROJECT / "data" / "reference" / f"{name}.csv"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in path.parent.glob("*.csv")))
        raise FileNotFoundError(f"{path}: no such published table; known: {names}")
    table = pd.read_csv(path)
    if "fine_tuned" in table:
        table["training"] = table["fine_tuned"].map({True: "finetuned", False: "frozen"})
        table["loss"] = table["loss"].map(loss_title)
    return table.rename(columns={"batch_size": "batch", "embedding_dim": "dim"})


def exhibits() -> pd.DataFrame:
    """Every table and figure of the five papers, a row each: paper, exhibit, shows, notebook, and `ours`, the name of
    our counterpart among the notebook's results, or why there is none.
    """
    table = pd.read_csv(places.PROJECT / "data" / "reference" / "exhibits.csv", dtype=str).fillna("")
    why = "none: " + table.pop("why_none")
    return table.assign(ours=table["ours"].where(table["ours"] != "", why))


def as_printed(reference: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """A published table as it was printed: rows `by`, `mean ± deviation` of each metric."""
    printed = [
        plus_minus(mean, std, quantity(metric) or "recall")
        for mean, std, metric in reference[["mean", "std", "metric"]].itertuples(index=False)
    ]
    table = reference.assign(cell=printed, dataset=reference["dataset"].map(DATASETS), order=range(len(reference)))
    wide = table.pivot(index=list(by), columns="metric", values="cell")
    first = table.groupby(list(by))["order"].min().sort_values()
    columns = list(dict.fromkeys(reference["metric"]))
    return wide.loc[first.index, columns].rename(columns=HEADINGS).rename_axis(columns=None)


def beside_published(
    ours: pd.DataFrame, reference: pd.DataFrame, by: Sequence[str], columns: Sequence[str]
) -> pd.DataFrame:
    """Published and own `mean ± deviation` side by side: rows `by`, columns (metric, whose).

    ours: one row per run, as `tables.run_table` gives it; reference: as `published` gives it, with the columns of `by`
    added. Sources stand side by side; no difference is computed, as data and encoders differ outside of profile
    `paper`.
    """
    parts: dict[tuple[str, str], pd.Series] = {}
    for column in columns:
        for dataset, group in reference[reference["metric"] == column].groupby("dataset", sort=False):
            values = cells(group["mean"], group["std"], quantity(column) or "recall")
            index = group.set_index(list(by)).index
            parts[HEADINGS[column], f"{DATASETS[str(dataset)]}, published"] = pd.Series(values, index=index)
        for corpus, group in ours.groupby("corpus", sort=False):
            means = summary(group, by, [column])
            parts[HEADINGS[column], f"{corpus}, ours"] = formatted(means, [column])[HEADINGS[column]]
    result = pd.concat(parts, axis=1)  # rows that only one side has stay
    return sort_rows(result, by).fillna("—")


def differences(
    ours: pd.DataFrame,
    reference: pd.DataFrame,
    by: Sequence[str],
    columns: Sequence[str] = RECALLS,
    published_seeds: int = 3,
) -> pd.DataFrame:
    """Ours minus published, for runs of the published experiment (profile `paper`) and no others.

    Rows are matched by `by`, columns of both (corpus, training, loss, rate, batch, …); one row per metric: ours,
    published, difference, and its 95 % interval (Welch's, from both deviations over seeds; blank with a single seed).
    """
    rows_there = reference.assign(corpus=reference["dataset"].map(DATASETS))
    if "learning_rate" in rows_there:
        rows_there["rate"] = rows_there["learning_rate"]
    rows = []
    for keys, group in ours.groupby(list(by), sort=False):
        theirs = rows_there[(rows_there[list(by)] == list(keys)).all(axis=1)].set_index("metric")
        for column in (column for column in columns if column in theirs.index):
            mean, deviation = statistics.mean_std(group[column].to_numpy())
            level, spread = float(theirs["mean"][column]), float(theirs["std"][column])
            low, high = statistics.welch_interval((mean, deviation, len(group)), (level, spread, published_seeds))
            both = {"ours": plus_minus(mean, deviation), "published": plus_minus(level, spread)}
            difference = {"difference": mean - level, "low": low, "high": high}
            rows.append(dict(zip(by, keys, strict=True)) | {"metric": HEADINGS[column], **both, **difference})
    return pd.DataFrame(rows, columns=[*by, "metric", "ours", "published", "difference", "low", "high"])
