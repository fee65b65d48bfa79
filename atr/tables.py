"""Tables: our numbers with their uncertainty, beside the published ones, as CSV, Markdown and LaTeX."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from atr import latex, metrics, records, statistics, store
from atr.config import RunConfig
from atr.profiles import Profile
from atr.records import Run

RECALLS = ("t2a_r1", "t2a_r5", "t2a_r10", "a2t_r1", "a2t_r5", "a2t_r10")
HEADINGS = {
    **{f"t2a_r{k}": f"T→A R@{k}" for k in (1, 5, 10)},
    **{f"a2t_r{k}": f"A→T R@{k}" for k in (1, 5, 10)},
    "t2a_map10": "T→A mAP@10",
    "a2t_map10": "A→T mAP@10",
    "validation_t2a_r10": "validation T→A R@10",
    **{f"{name}_sigma": f"σ, {name}" for name in ("audio", "text")},
    **{f"{name}_h": f"h, {name}" for name in ("audio", "text")},
    **{f"{name}_uniformity": f"uniformity, {name}" for name in ("audio", "text")},
    "alignment": "alignment",
    "modality_gap": "modality gap",
}
UNIFORMITY = tuple(HEADINGS)[-8:]  # as `uniformity.measures` names them
DIGITS = dict.fromkeys(UNIFORMITY, 2)  # after the point; 1 for all others
DATASETS = {"audiocaps": "AudioCaps", "clotho": "Clotho"}
LOSS_NAMES = {
    "triplet_sum": "Triplet-sum",
    "triplet_max": "Triplet-max",
    "triplet_weighted": "Triplet-weighted",
    "nt_xent": "NT-Xent",
    "sigmoid": "Sigmoid",
}


def published(name: str) -> pd.DataFrame:
    """A table of `data/reference/`: a row a cell, its mean and deviation as printed, and training, loss, batch and dim
    in the words of our own tables.
    """
    path = store.PROJECT / "data" / "reference" / f"{name}.csv"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.csv")))
        raise FileNotFoundError(f"{path}: no such published table; known: {known}")
    table = pd.read_csv(path)
    if "fine_tuned" in table:
        table["training"] = table["fine_tuned"].map({True: "finetuned", False: "frozen"})
        table["loss"] = table["loss"].map(LOSS_NAMES)
    return table.rename(columns={"batch_size": "batch", "embedding_dim": "dim"})


def frame(runs: Iterable[tuple[RunConfig, Run]], profile: Profile) -> pd.DataFrame:
    """A row a run: corpus, recipe, training, loss, rate (that of the heads), batch size, embedding dimension, weight
    of the penalty (0: none), epochs, seed, best epoch, validation R@10 (selected epoch), test metrics, the run itself.
    A run that several parts of a grid ask for has one row.
    """
    rows = [
        {
            "corpus": profile.name_of(config),
            "recipe": config.recipe,
            "training": config.training.removesuffix("_released"),
            "loss": LOSS_NAMES.get(config.loss["name"], config.loss["name"]),
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


def as_printed(reference: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """A published table as it was printed: rows `by`, `mean ± deviation` of each metric."""
    cells = [
        plus_minus(mean, std, DIGITS.get(metric, 1))
        for mean, std, metric in reference[["mean", "std", "metric"]].itertuples(index=False)
    ]
    table = reference.assign(cell=cells, dataset=reference["dataset"].map(DATASETS), order=range(len(reference)))
    wide = table.pivot(index=list(by), columns="metric", values="cell")
    first = table.groupby(list(by))["order"].min().sort_values()
    columns = list(dict.fromkeys(reference["metric"]))
    return wide.loc[first.index, columns].rename(columns=HEADINGS).rename_axis(columns=None)


def in_order(values: Iterable[str]) -> list[str]:
    """Distinct losses in the order of the papers, others behind them as they come."""
    present = dict.fromkeys(values)
    return [name for name in dict.fromkeys([*LOSS_NAMES.values(), *present]) if name in present]


def with_baselines(
    table: pd.DataFrame, untrained: pd.DataFrame, chance: Mapping[str, Mapping[str, float]]
) -> pd.DataFrame:
    """A summary with rows below it for the untrained model and for chance, by corpus."""
    names = list(table.index.names)
    below = [
        {"corpus": corpus, "loss": "untrained", **row}
        for corpus, row in summary(untrained, ["corpus"]).to_dict("index").items()
    ]
    below += [
        {"corpus": corpus, "loss": "chance", **{key: row[key] for key in RECALLS}} for corpus, row in chance.items()
    ]
    blank = {name: "" for name in names}
    return pd.concat([table, pd.DataFrame([blank | row for row in below]).set_index(names)])[list(table.columns)]


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


def select(table: pd.DataFrame, by: Sequence[str], over: str = "rate") -> pd.DataFrame:
    """Rows at the value of `over` whose mean validation T→A R@10 over seeds is highest, within each group of `by`.

    Every method is searched over the same values, and the test split has no say.
    """
    means = table.groupby([*by, over], sort=False)["validation_t2a_r10"].mean().reset_index()
    best = means.loc[means.groupby(list(by), sort=False)["validation_t2a_r10"].idxmax(), [*by, over]]
    return table.merge(best, on=[*by, over], how="inner")


def runs_by(table: pd.DataFrame, **where: Any) -> list[Run]:
    """Runs of the rows that agree with `where`, in order of their seeds."""
    for column, value in where.items():
        table = table[table[column] == value]
    return table.sort_values("seed")["run"].tolist()


def runs_by_loss(table: pd.DataFrame, **where: Any) -> dict[str, list[Run]]:
    """Loss → its runs among the rows that agree with `where`."""
    return {loss: runs_by(table, loss=loss, **where) for loss in in_order(table["loss"])}


def beside(ours: pd.DataFrame, reference: pd.DataFrame, by: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Published and own `mean ± deviation` side by side: rows `by`, columns (metric, whose).

    ours: a row a run, as `frame` gives it; reference: as `published` gives it, with the columns of `by` added.
    Sources stand side by side; no difference is computed, as data and encoders differ outside of profile `paper`.
    """
    parts: dict[tuple[str, str], pd.Series] = {}
    for column in columns:
        cells = reference[reference["metric"] == column]
        for dataset, group in cells.groupby("dataset", sort=False):
            digits = DIGITS.get(column, 1)
            values = [plus_minus(mean, std, digits) for mean, std in zip(group["mean"], group["std"], strict=True)]
            index = group.set_index(list(by)).index
            parts[HEADINGS[column], f"{DATASETS[str(dataset)]}, published"] = pd.Series(values, index=index)
        for corpus, group in ours.groupby("corpus", sort=False):
            means = summary(group, by, [column])
            parts[HEADINGS[column], f"{corpus}, ours"] = shown(means, [column])[HEADINGS[column]]
    result = pd.concat(parts, axis=1)  # rows that only one side has stay
    numbers = [name for name in by if pd.api.types.is_numeric_dtype(result.index.get_level_values(name))]
    if numbers:
        result = result.sort_index(level=numbers, sort_remaining=False, kind="stable")
    return result.fillna("—")


def differences(
    ours: pd.DataFrame,
    reference: pd.DataFrame,
    by: Sequence[str],
    columns: Sequence[str] = RECALLS,
    published_seeds: int = 3,
) -> pd.DataFrame:
    """Ours minus published, for runs of the published experiment (profile `paper`) and no others.

    Rows are matched by `by`, columns of both (corpus, training, loss, rate, batch, …); a row a metric: ours, published,
    difference, and its 95 % interval (Welch's, from both deviations over seeds; blank with a single seed).
    """
    known = reference.assign(corpus=reference["dataset"].map(DATASETS))
    if "learning_rate" in known:
        known["rate"] = known["learning_rate"]
    rows = []
    for keys, group in ours.groupby(list(by), sort=False):
        cells = known[(known[list(by)] == list(keys)).all(axis=1)].set_index("metric")
        for column in (column for column in columns if column in cells.index):
            mean, deviation = statistics.mean_std(group[column].to_numpy())
            theirs, spread = float(cells["mean"][column]), float(cells["std"][column])
            low, high = statistics.welch_interval((mean, deviation, len(group)), (theirs, spread, published_seeds))
            both = {"ours": plus_minus(mean, deviation), "published": plus_minus(theirs, spread)}
            difference = {"difference": mean - theirs, "low": low, "high": high}
            rows.append(dict(zip(by, keys, strict=True)) | {"metric": HEADINGS[column], **both, **difference})
    return pd.DataFrame(rows, columns=[*by, "metric", "ours", "published", "difference", "low", "high"])


def summary(table: pd.DataFrame, by: Sequence[str], columns: Sequence[str] = RECALLS) -> pd.DataFrame:
    """Mean and deviation over seeds (ddof 1) of `columns`: indexed by `by`; seeds, `<column>`, `<column>_std`."""
    rows = []
    for keys, group in table.groupby(list(by), sort=False):
        row = {**dict(zip(by, keys if isinstance(keys, tuple) else (keys,), strict=True)), "seeds": len(group)}
        for column in columns:
            row[column], row[f"{column}_std"] = statistics.mean_std(group[column].to_numpy())
        rows.append(row)
    return pd.DataFrame(rows).set_index(list(by)) if rows else pd.DataFrame(columns=[*by, "seeds", *columns])


def intervals(table: pd.DataFrame, runs: pd.DataFrame, column: str = "t2a_r10") -> pd.DataFrame:
    """A summary with the 95 % interval of a recall or an mAP, `<column>_low` and `<column>_high`: nested bootstrap over
    seeds and clips. runs: the frame that was summarised.
    """
    direction, measure = column.split("_")
    precise, k = measure.startswith("map"), int(measure.lstrip("rmap"))
    low, high = {}, {}
    names: Any = list(table.index.names)
    for keys, group in runs.groupby(names if len(names) > 1 else names[0], sort=False):  # keys as in the index
        values = scores(list(group["run"]), k, direction, precise)  # type: ignore[arg-type]
        interval = statistics.nested_bootstrap(values)
        low[keys], high[keys] = interval.low, interval.high
    return table.assign(**{f"{column}_low": pd.Series(low), f"{column}_high": pd.Series(high)})


def plus_minus(mean: float, deviation: float | None, digits: int = 1) -> str:
    """`17.2 ± 0.5`; the mean alone where there is no deviation."""
    if mean is None or not np.isfinite(mean):
        return "—"
    spread = deviation is not None and np.isfinite(deviation)
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}" if spread else f"{mean:.{digits}f}"


def shown(table: pd.DataFrame, columns: Sequence[str] = RECALLS, digits: int | None = None) -> pd.DataFrame:
    """A summary as people read it: `mean ± deviation` under headings. digits: after the point, by default `DIGITS`."""
    asked, result = digits, pd.DataFrame(index=table.index)
    for column in columns:
        digits = DIGITS.get(column, 1) if asked is None else asked
        deviations = table.get(f"{column}_std", pd.Series(np.nan, table.index))
        result[HEADINGS.get(column, column)] = [
            plus_minus(mean, deviation, digits) for mean, deviation in zip(table[column], deviations, strict=True)
        ]
        if f"{column}_low" in table:
            result[f"{HEADINGS.get(column, column)}, 95 %"] = [
                f"{low:.{digits}f} to {high:.{digits}f}" if np.isfinite(low) else "—"
                for low, high in zip(table[f"{column}_low"], table[f"{column}_high"], strict=True)
            ]
    if "seeds" in table:
        result.insert(0, "seeds", [f"{number:.0f}" if np.isfinite(number) else "" for number in table["seeds"]])
    return result


def of(table: pd.DataFrame, configs: Iterable[RunConfig]) -> pd.DataFrame:
    """The rows of a frame whose runs are those of `configs`."""
    wanted = {json.dumps(config.to_dict(), sort_keys=True) for config in configs}
    return table[[json.dumps(run.config.to_dict(), sort_keys=True) in wanted for run in table["run"]]]


def progress(runs: Sequence[tuple[RunConfig, Run]], total: int, profile: Profile, by: Sequence[str]) -> Styler:
    """The table so far, marked as partial until all `total` runs are in."""
    state = "complete" if len(runs) == total else "partial"
    view = shown(summary(frame(runs, profile), by)).style
    return view.set_caption(f"{state}: {len(runs)} of {total} runs")


def chance(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Expected metrics of a random ranking of the test split, by corpus of a frame."""
    first = table.drop_duplicates("corpus")
    return {
        corpus: metrics.chance(run.embeddings["relevance"])
        for corpus, run in zip(first["corpus"], first["run"], strict=True)
    }


def scores(
    runs: Sequence[Run], k: int = 10, direction: statistics.Direction = "t2a", precision: bool = False
) -> np.ndarray:
    """(seeds, clips), for runs that differ by seed: percent of a clip's queries answered within the first k, or with
    `precision` their average precision at k.
    """
    measure = statistics.clip_precision if precision else statistics.clip_scores
    return np.stack([measure(run.ranks, run.embeddings["relevance"], k, direction) for run in runs])


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
        result.append(
            {
                "claim": row["claim"],
                "difference": test.difference,
                "low": test.low,
                "high": test.high,
                "p (Holm)": adjusted.get(place, np.nan),
                "verdict": verdict,
            }
        )
    return pd.DataFrame(result)


def _marked(cell: Any) -> Any:
    """A text as Markdown prints it, on one line; anything else as it is."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(cell.split())) if isinstance(cell, str) else cell


def save(table: pd.DataFrame, folder: Path, name: str, caption: str, runs: Iterable[Run] = ()) -> Path:
    """Write `<folder>/tables/<name>` as .csv, .md and .tex, and .json with the runs it came from and what made them."""
    target = folder / "tables"
    flat = table.reset_index() if any(table.index.names) else table
    flat = flat.drop(columns="run", errors="ignore")
    if isinstance(flat.columns, pd.MultiIndex):
        flat.columns = [" ".join(part for part in column if part) for column in flat.columns]
    blank = flat.astype(object).where(flat.notna(), None)
    provenance = records.provenance(runs)
    note = f"{caption} {provenance['note']}".strip()
    printed = blank.rename(columns=_marked).map(_marked)
    texts = {
        "csv": store.as_csv(flat),
        "md": f"{_marked(note)}\n\n{printed.to_markdown(index=False, floatfmt='.3g', missingval='')}\n",
        "tex": latex.table(flat, note, name),
    }
    for ending, text in texts.items():
        store.write_atomic(target / f"{name}.{ending}", partial(Path.write_text, data=text, encoding="utf-8"))
    records.write_json(target / f"{name}.json", {"caption": caption, **provenance})
    return target / f"{name}.csv"
