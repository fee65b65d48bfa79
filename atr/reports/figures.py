"""Figures in one style (Okabe and Ito's colour-blind-safe palette), saved as PNG and PDF with their provenance."""

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.scale import LogScale, register_scale
from matplotlib.ticker import LogFormatterSciNotation, MaxNLocator

from atr.metrics.statistics import nested_bootstrap
from atr.reports import provenance
from atr.reports.names import HEADINGS
from atr.reports.verdicts import scores
from atr.system import atomic
from atr.training.records import Run

COLUMN, PAGE = 3.4, 7.0  # inches: one column, full page width
STYLE = Path(__file__).with_name("style.mplstyle")
GLYPH = r"Glyph (\d+) .* missing from font"
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def style() -> None:
    """The style of all figures. Text stands as it is, since captions and names may hold a $; what the font lacks is an
    empty box, of which `save` warns.
    """
    plt.style.use(STYLE)
    warnings.filterwarnings("ignore", GLYPH, UserWarning)


def legible(label: object) -> str:
    """A label that a legend shows also where it begins with "_", which matplotlib leaves out."""
    return f"\u200b{label}" if str(label).startswith("_") else str(label)


class _Powers(LogFormatterSciNotation):
    """Matplotlib's labels of a logarithmic axis, in Unicode where its own are mathematics."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        label = super().__call__(x, pos).removeprefix(r"$\mathdefault{").removesuffix("}$")
        return re.sub(r"\^\{(.*?)\}", lambda power: power[1].translate(RAISED), label).replace(r"\times", " × ")


class _LogScale(LogScale):
    def __init__(self, *args: Any, **kwargs: Any) -> None:  # a signature without `axis`, which is on its way out
        super().__init__(*args, **kwargs)

    def set_default_locators_and_formatters(self, axis: Axis) -> None:
        super().set_default_locators_and_formatters(axis)
        axis.set_major_formatter(_Powers(self.base))
        axis.set_minor_formatter(_Powers(self.base, labelOnlyBase=self.subs is not None))


register_scale(_LogScale)  # "log", everywhere, as the style draws all text as it stands


def curves(
    panels: Mapping[str, Mapping[str, Sequence[Run]]], columns: Mapping[str, str], ordered: bool = False
) -> Figure:
    """Learning curves: a column a panel, a row a history column; mean over seeds, band from minimum to maximum.

    panels: title → label → runs that differ by seed. columns: history column → axis label. ordered: labels are
    steps of a scale, and colours go from dark to light. A dotted line marks where a "step" schedule lowers the rate,
    a dashed one where a stage begins.
    """
    style()
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    scale = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(labels)))
    colors = {label: scale[number] if ordered else f"C{number}" for number, label in enumerate(labels)}
    figure, axes = plt.subplots(
        len(columns), len(panels), figsize=(PAGE, 2.1 * len(columns)), squeeze=False, sharex="col", sharey="row"
    )
    for place, (title, lines) in enumerate(panels.items()):
        for row, (column, label) in enumerate(columns.items()):
            axis = axes[row, place]
            for name, runs in lines.items():
                histories = [run.history for run in runs if len(run.history)]
                if not histories:
                    continue
                values = np.stack([history[column] for history in histories])
                epochs = histories[0]["epoch"]
                mark = "." if len(epochs) < 12 else ""
                axis.plot(epochs, values.mean(0), label=legible(name), marker=mark, color=colors[name])
                axis.fill_between(epochs, values.min(0), values.max(0), color=colors[name], alpha=0.2, lw=0)
            if row == 0:
                axis.set_title(title)
            first = next(iter(lines.values()))[0]
            if first.config.schedule == "step":
                history = first.history
                for epoch in history.loc[history["learning_rate"].diff() < 0, "epoch"]:
                    axis.axvline(epoch - 0.5, color="0.5", lw=1, ls=":")
            staged = next((run.history for runs in lines.values() for run in runs if "stage" in run.history), None)
            for epoch in () if staged is None else staged.loc[staged["stage"].diff() > 0, "epoch"]:
                axis.axvline(epoch - 0.5, color="0.5", lw=1, ls="--")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            if column == "loss":  # losses differ in scale, not in meaning of their curves
                axis.set_yscale("log")
            if row == len(columns) - 1:
                axis.set_xlabel("epoch")
            if place == 0:
                axis.set_ylabel(label)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def dots(
    panels: Mapping[str, Mapping[str, Sequence[Run]]], k: int = 10, marks: Mapping[str, float] | None = None
) -> Figure:
    """Recall at k of each system, text-to-audio and audio-to-text: a dot a seed, mean with its 95 % interval
    (nested bootstrap over seeds and clips). marks: label → level drawn as a vertical line, such as chance.
    """
    style()
    directions = ("t2a", "a2t")
    rows = sum(len(lines) for lines in panels.values()) + len(panels)
    figure, axes = plt.subplots(1, 2, figsize=(PAGE, 0.22 * rows + 0.9), sharey=True, squeeze=False)
    for axis, direction in zip(axes[0], directions, strict=True):
        height, ticks = 0.0, {}
        for title, lines in panels.items():
            axis.annotate(title, (0, height), (3, 0), "data", "offset points", weight="bold", va="center", size=8)
            height -= 1
            for number, (name, runs) in enumerate(lines.items()):
                values = scores(runs, k, direction)  # type: ignore[arg-type]
                interval = nested_bootstrap(values)
                color = f"C{number}"
                axis.plot([interval.low, interval.high], [height, height], color=color, lw=2.5, alpha=0.45)
                axis.plot(values.mean(1), [height] * len(values), "o", color=color, ms=3, alpha=0.6, mew=0)
                axis.plot(interval.mean, height, "|", color=color, ms=10, mew=2)
                ticks[height] = name
                height -= 1
        for name, level in (marks or {}).items():
            axis.axvline(level, color="0.5", lw=1, ls=":")
            axis.annotate(
                name, (level, height + 0.5), (3, 0), "data", "offset points", va="center", size=7, color="0.4"
            )
        axis.set_yticks(list(ticks), list(ticks.values()))
        axis.set_ylim(height, 0.7)
        axis.grid(axis="y", visible=False)
        axis.set_xlim(left=0)
        axis.set_xlabel(f"{HEADINGS.get(f'{direction}_r{k}', f'R@{k}')} (%)")
    return figure


def lines(
    table: pd.DataFrame,
    x: str,
    hue: str,
    column: str,
    panels: str | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Mean of `column` against `x` (logarithmic, base 2) by `hue`, bars of one deviation over seeds.

    table: a row a point, with `column` and `<column>_std`. panels: a column of the table that splits it side by side.
    """
    style()
    names = list(dict.fromkeys(table[panels])) if panels else [""]
    figure, axes = plt.subplots(1, len(names), figsize=(PAGE if panels else COLUMN, 2.7), squeeze=False, sharey=True)
    for axis, name in zip(axes[0], names, strict=True):
        part = table[table[panels] == name] if panels else table
        for number, (label, group) in enumerate(part.groupby(hue, sort=False)):
            group = group.sort_values(x)
            shift = 1 + 0.03 * (number - 1.5)  # bars that would hide each other
            axis.errorbar(
                group[x] * shift,
                group[column],
                group[f"{column}_std"],
                label=legible(label),
                marker="o",
                ms=3,
                capsize=2,
            )
        axis.set_xscale("log", base=2)
        ticks = sorted(part[x].unique())
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.set_title(name)
        axis.set_xlabel((labels or {}).get(x, x.replace("_", " ")))
    axes[0, 0].set_ylabel(f"{HEADINGS.get(column, column)} (%)")
    handles, texts = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=len(texts))
    return figure


def responses(
    table: pd.DataFrame, x: str, hue: str, columns: Mapping[str, str], levels: Mapping[str, Mapping[str, float]]
) -> Figure:
    """A panel a column of the table: its mean against the categories `x` by `hue`, bars of one deviation over seeds.

    table: a row a run; x in its order of appearance, or where it is a number. columns: column → axis label. levels:
    column → label → a level to mark by a dotted line.
    """
    style()
    figure, axes = plt.subplots(1, len(columns), figsize=(PAGE, 2.7), squeeze=False)
    order = list(dict.fromkeys(table[x]))
    at = {key: key if pd.api.types.is_numeric_dtype(table[x]) else place for place, key in enumerate(order)}
    for axis, (column, label) in zip(axes[0], columns.items(), strict=True):
        for number, (name, group) in enumerate(table.groupby(hue, sort=False)):
            means, deviations = (group.groupby(x, sort=False)[column].agg(how) for how in ("mean", "std"))
            places = np.array([at[key] for key in means.index])
            places = places + 0.08 * (number - (table[hue].nunique() - 1) / 2)  # bars that would hide each other
            axis.errorbar(places, means, deviations.fillna(0), label=legible(name), marker="o", ms=3, capsize=2)
        for words, level in levels.get(column, {}).items():
            axis.axhline(level, color="0.5", lw=1, ls=":")
            axis.annotate(
                words, (max(at.values()), level), (0, 2), "data", "offset points", ha="right", size=7, color="0.4"
            )
        axis.set_xticks(list(at.values()), order)
        axis.set_xlabel(x)
        axis.set_ylabel(label)
    handles, texts = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=min(len(texts), 4))
    return figure


def batches(reports: Mapping[str, pd.DataFrame]) -> Figure:
    """Mean cosine within each batch by order of construction. reports: label → table of `mining.report`."""
    style()
    figure, axis = plt.subplots(figsize=(COLUMN, 2.4))
    for name, table in reports.items():
        mark = "." if len(table) < 60 else ""
        axis.plot(np.arange(1, len(table) + 1), table["mean_cosine"], label=legible(name), marker=mark)
    axis.set(xlabel="batch, by order of construction", ylabel="mean cosine\nwithin a batch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", ncols=len(reports))
    return figure


def learned(groups: Mapping[str, Sequence[Run]]) -> Figure:
    """What a loss learns, a panel a parameter, by step; mean over seeds, band from minimum to maximum.

    groups: label → runs that differ by seed (`Run.learned`).
    """
    style()
    tables = {label: [run.learned for run in runs] for label, runs in groups.items()}
    names = list(next(iter(tables.values()))[0].columns[3:])
    figure, axes = plt.subplots(1, len(names), figsize=(PAGE if len(names) > 1 else COLUMN, 2.2), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for number, (label, histories) in enumerate(tables.items()):
            values = np.stack([history[name] for history in histories])
            axis.plot(histories[0]["step"], values.mean(0), color=f"C{number}", label=legible(label))
            axis.fill_between(histories[0]["step"], values.min(0), values.max(0), color=f"C{number}", alpha=0.2, lw=0)
        axis.set(xlabel="step", ylabel=name.replace("_", " "))
    if any(groups):
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(groups))
    return figure


def forest(table: pd.DataFrame, names: str, label: str) -> Figure:
    """Differences with their intervals, a row each, beside 0. table: the column `names`, difference, low, high."""
    style()
    figure, axis = plt.subplots(figsize=(PAGE, 0.3 * len(table) + 0.8))
    places = -np.arange(len(table))
    axis.hlines(places, table["low"], table["high"], color="C0", lw=2.5, alpha=0.45)
    axis.plot(table["difference"], places, "o", color="C0", ms=4)
    axis.axvline(0, color="0.5", lw=1, ls=":")
    axis.set_yticks(places, table[names])
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(label)
    return figure


def save(figure: Figure, folder: Path, name: str, runs: Sequence[Run] = ()) -> Figure:
    """Write `<folder>/figures/<name>` as .png and .pdf, and .json with the runs it came from; returns the figure. Warns
    of letters that the font lacks.
    """
    target, stem = folder / "figures", atomic.file_name(name)
    origin = provenance.provenance(runs)
    lacking: dict[str, None] = {}
    for ending in ("png", "pdf"):
        metadata: dict[str, Any] = {"Title": name, "Keywords" if ending == "pdf" else "Comment": origin["note"]}
        if ending == "pdf":
            metadata["CreationDate"] = None  # the same figure gives the same file

        def write(path: Path, ending: str = ending, metadata: dict = metadata) -> None:
            with warnings.catch_warnings(record=True) as told:
                warnings.filterwarnings("always", GLYPH, UserWarning)
                figure.savefig(path, format=ending, metadata=metadata)
            for one in told:
                if found := re.match(GLYPH, str(one.message)):
                    lacking[f"U+{int(found[1]):04X}"] = None
                else:
                    warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)

        atomic.write_atomic(target / f"{stem}.{ending}", write)
    atomic.write_json(target / f"{stem}.json", origin)
    plt.close(figure)
    if lacking:
        mend = f"name one that has them in font.family of atr/{STYLE.name}"
        warnings.warn(
            f"{target / stem}.*: empty boxes for what the font lacks: {', '.join(lacking)}; {mend}", stacklevel=2
        )
    return figure
