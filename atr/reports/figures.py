"""Figures in one style (Okabe and Ito's colour-blind-safe palette), saved as PNG and PDF with their provenance."""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.scale import LogScale, register_scale
from matplotlib.ticker import LogFormatterSciNotation, MaxNLocator
from scipy.optimize import isotonic_regression

from atr.metrics.statistics import crossed_interval
from atr.reports.names import HEADINGS, heading, number
from atr.reports.output import provenance
from atr.reports.verdicts import scores
from atr.system import atomic
from atr.training.records import Run

COLUMN, PAGE = 3.4, 7.0  # inches: one column, full page width
STYLE = Path(__file__).with_name("style.mplstyle")
GLYPH = r"Glyph (\d+) .* missing from font"
BARS: dict[str, Any] = {"marker": "o", "ms": 3, "capsize": 2}
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# Series that many figures show, in the order of the palette: each has one colour in all of them.
SERIES = (
    ("Triplet-sum", "Triplet-max", "Triplet-weighted", "NT-Xent", "Sigmoid"),
    ("text", "audio", "uniform", "gaussians"),
    ("human", "phi-4"),
    ("training", "validation", "test"),
    ("network", "logistic", "network, to the letter", "logistic, all dimensions"),
)
COLORS, DASHES, MARKERS = 7, ("-", "--", "-.", ":"), "osD^vP*"


def style() -> None:
    """The style of all figures. Text stands as it is, since captions and names may hold a $; what the font lacks is an
    empty box, of which `save` warns.
    """
    plt.style.use(STYLE)
    warnings.filterwarnings("ignore", GLYPH, UserWarning)


def subplots(
    rows: int = 1, columns: int = 1, height: float = 2.5, width: float | None = None, **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure in this style and its axes (rows, columns). height, width in inches, by default of a page, or of one
    column for one panel.
    """
    style()
    width = width or (PAGE if columns > 1 else COLUMN)
    return plt.subplots(rows, columns, figsize=(width, height), squeeze=False, **options)


def looks(labels: Iterable[object]) -> dict[Any, dict[str, Any]]:
    """Colour, dashes and marker of each label: its own where it is one of `SERIES`, else the next that is free. Past
    seven, dashes tell apart what shares a colour; markers do in grey.
    """
    names = list(dict.fromkeys(labels))
    own = {name: place for series in SERIES for place, name in enumerate(series) if name in names}
    if len(set(own.values())) < len(own):
        own = {}
    free = (place for place in range(len(names) + len(own)) if place not in own.values())
    places = {name: own[name] if name in own else next(free) for name in names}
    return {
        name: {"color": f"C{place % COLORS}", "ls": DASHES[place // COLORS % len(DASHES)], "marker": MARKERS[place % 7]}
        for name, place in places.items()
    }


def name_lines(axis: Axes, **options: Any) -> None:
    """Name each line of a panel right of it, at the height where it ends, in its colour, names kept apart: in place of
    a legend. To be called once all is drawn.
    """
    handles, labels = axis.get_legend_handles_labels()
    if not labels:
        return
    lines: list[Any] = [handle if isinstance(handle, Line2D) else handle[0] for handle in handles]  # type: ignore[index]
    look: dict[str, Any] = {"size": 8, "va": "center"} | options
    figure: Any = axis.figure
    figure.draw_without_rendering()  # for its limits
    ends = [(0.0, float(pd.Series(line.get_ydata(), dtype=float).dropna().iloc[-1])) for line in lines]
    heights = axis.transData.transform(ends)[:, 1] * 72 / figure.dpi
    order, apart = np.argsort(heights, kind="stable"), 1.2 * look["size"] * np.arange(len(lines))
    moves = isotonic_regression(heights[order] - apart).x + apart - heights[order]
    for place, move in zip(order, moves, strict=True):
        at = (1, ends[place][1])
        axis.annotate(
            labels[place],
            at,
            (5, move),
            axis.get_yaxis_transform(),
            "offset points",
            color=lines[place].get_color(),
            **look,
        )


def legend_below(figure: Figure, axes: Axes | np.ndarray, most: int = 99, **options: Any) -> None:
    """The labels of a panel, or of several in their order, below all, at `most` so many side by side; nothing where
    there are none.
    """
    entries: dict[str, Any] = {}
    for axis in np.ravel(axes):  # type: ignore[arg-type]
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    if entries:
        columns = min(len(entries), most)
        figure.legend(entries.values(), entries, loc="outside lower center", ncols=columns, **options)


def mark(axis: Axes, words: str, at: tuple[float, float], offset: tuple[float, float], **options: Any) -> None:
    """A dotted upright line through the place (x, y) where its words stand, moved by `offset` points."""
    axis.axvline(at[0], color="0.5", lw=1, ls=":")
    look: dict[str, Any] = {"size": 7, "color": "0.4"} | options
    axis.annotate(words, at, offset, "data", "offset points", **look)


def level(axis: Axes, words: str, height: float) -> None:
    """A dotted level line, its words right of the panel, where nothing is drawn."""
    axis.axhline(height, color="0.5", lw=1, ls=":")
    axis.annotate(
        words, (1, height), (3, 0), axis.get_yaxis_transform(), "offset points", size=7, color="0.4", va="center"
    )


def log2_axis(axis: Axes, ticks: Iterable[float], **options: Any) -> None:
    """A logarithmic x axis of base 2 with these ticks alone."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(list(ticks), [f"{tick:g}" for tick in ticks], **options)
    axis.minorticks_off()


def band(axis: Axes, tables: Sequence[pd.DataFrame], x: str, y: str, label: str, **look: Any) -> None:
    """The mean of a column y over tables of one x as a line, and shaded from their minimum to their maximum."""
    values = np.stack([table[y] for table in tables])
    axis.plot(tables[0][x], values.mean(0), label=legible(label), **look)
    axis.fill_between(tables[0][x], values.min(0), values.max(0), color=look["color"], alpha=0.2, lw=0)


def legible(label: object) -> str:
    """A label that a legend shows also where it begins with "_", which matplotlib leaves out."""
    return f"\u200b{label}" if str(label).startswith("_") else str(label)


class _Powers(LogFormatterSciNotation):
    """Matplotlib's labels of a logarithmic axis, in Unicode where its own are mathematics."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        label = super().__call__(x, pos).removeprefix(r"$\mathdefault{").removesuffix("}$")
        return re.sub(r"\^\{(.*?)\}", lambda power: power[1].translate(SUPERSCRIPTS), label).replace(r"\times", " × ")


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
    """Learning curves: one column per panel, one row per history column; mean over seeds, band from minimum to maximum.

    panels: title → label → runs that differ by seed. columns: history column → axis label. ordered: labels are
    steps of a scale: colours go from dark to light, lines have their names beside them and no bands. A dotted line
    marks where a "step" schedule lowers the rate, a dashed one where a stage begins. Where runs have several losses,
    whose values mean different things, each is drawn as a share of its value after the first epoch.
    """
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    scale = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(labels)))
    colors = {name: look["color"] for name, look in looks(labels).items()}
    colors = dict(zip(labels, scale, strict=True)) if ordered else colors
    several = len({run.config.loss["name"] for lines in panels.values() for runs in lines.values() for run in runs}) > 1
    figure, axes = subplots(len(columns), len(panels), 2.1 * len(columns), PAGE, sharex="col", sharey="row")
    for place, (title, lines) in enumerate(panels.items()):
        for row, (column, label) in enumerate(columns.items()):
            axis = axes[row, place]
            shared = column in ("loss", "validation_loss") and several
            for name, runs in lines.items():
                histories = [run.history for run in runs if len(run.history)]
                if shared:
                    histories = [table.assign(**{column: table[column] / table[column].iloc[0]}) for table in histories]
                if ordered and histories:
                    histories = [pd.concat(histories).groupby("epoch", as_index=False).mean(numeric_only=True)]
                if histories:
                    marker = "." if len(histories[0]) < 12 else ""
                    band(axis, histories, "epoch", column, name, marker=marker, color=colors[name])
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
                axis.set_ylabel(f"{label}\n(epoch 1 = 1)" if shared else label)
    if ordered:
        for axis in axes[0]:
            name_lines(axis, size=7)
    else:
        legend_below(figure, axes[0, 0])
    return figure


def dots(
    panels: Mapping[str, Mapping[str, Sequence[Run]]], marks: Mapping[str, Mapping[str, float]] | None = None
) -> Figure:
    """mAP@10 of each system, text-to-audio and audio-to-text: a dot per seed, mean with its 95 % interval over seeds
    and clips. marks: label → t2a_map10 and a2t_map10 of a level drawn as a vertical line, such as chance.
    """
    rows = sum(len(lines) for lines in panels.values()) + len(panels)
    look = looks(label for lines in panels.values() for label in lines)
    figure, axes = subplots(1, 2, 0.22 * rows + 0.9, sharey=True)
    for axis, direction in zip(axes[0], ("t2a", "a2t"), strict=True):
        height, ticks = 0.0, {}
        for title, lines in panels.items():
            axis.annotate(title, (0, height), (3, 0), "data", "offset points", weight="bold", va="center", size=8)
            height -= 1
            for name, runs in lines.items():
                values = scores(runs, 10, direction, True)  # type: ignore[arg-type]
                interval = crossed_interval(values)
                color = look[name]["color"]
                axis.plot([interval.low, interval.high], [height, height], color=color, lw=2.5, alpha=0.45)
                axis.plot(values.mean(1), [height] * len(values), "o", color=color, ms=3, alpha=0.6, mew=0)
                axis.plot(interval.mean, height, "|", color=color, ms=10, mew=2)
                ticks[height] = name
                height -= 1
        for name, levels in (marks or {}).items():
            mark(axis, name, (levels[f"{direction}_map10"], height + 0.5), (3, 0), va="center")
        axis.set_yticks(list(ticks), list(ticks.values()))
        axis.set_ylim(height, 0.7)
        axis.grid(axis="y", visible=False)
        axis.set_xlim(left=0)
        axis.set_xlabel(f"{HEADINGS[f'{direction}_map10']} (%)")
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

    table: one row per point, with `column` and `<column>_std`. panels: a column of the table that splits it side by
    side, on one scale; if it is `hue` itself, each to its own.
    """
    names = list(dict.fromkeys(table[panels])) if panels else [""]
    look = looks(table[hue])
    figure, axes = subplots(1, len(names), 2.4, PAGE if panels else COLUMN, sharey=panels != hue)
    for axis, name in zip(axes[0], names, strict=True):
        part = table[table[panels] == name] if panels else table
        for place, (label, group) in enumerate(part.groupby(hue, sort=False)):
            group = group.sort_values(x)
            places = group[x] * (1 + 0.03 * (place - 1.5))  # bars that would hide each other
            axis.errorbar(places, group[column], group[f"{column}_std"], label=legible(label), **BARS | look[label])
        ticks = sorted(part[x].unique())
        log2_axis(axis, ticks, rotation=60 if len(ticks) > 7 else 0)
        axis.set_title(name)
        axis.set_xlabel((labels or {}).get(x, x.replace("_", " ")))
    axes[0, 0].set_ylabel(f"{heading(column)} (%)")
    if not panels:
        name_lines(axes[0, 0])
    elif panels != hue:
        legend_below(figure, axes[0, 0])
    return figure


def tries(table: pd.DataFrame, label: str = "validation mAP@10") -> Figure:
    """The search of learning rates: the try's score against the heads' rate, a ring around the best one.

    table: as `RateSearch.table` gives it; the last level of its index that has several values is a line's name, the
    others a panel's.
    """
    *levels, line = sorted(table.index.names, key=lambda name: table.index.unique(name).size > 1)
    panels = dict(list(table.groupby(levels, sort=False))) if levels else {(): table}
    figure, axes = subplots(1, len(panels), 2.7, PAGE, sharey=True)
    look = looks(table.index.unique(line))
    for axis, (panel, rows) in zip(axes[0], panels.items(), strict=True):
        for name, group in rows.groupby(level=line, sort=False):
            best = group[group["best"] == "yes"]
            words = legible(name) if isinstance(name, str) else f"{heading(str(line))} {name:g}"
            axis.plot(group["rate"], group[label], ms=3, label=words, **look[name])
            axis.plot(best["rate"], best[label], "o", ms=8, mfc="none", color=look[name]["color"])
        ticks = sorted(set(rows["rate"]))
        axis.set_xscale("log")
        axis.set_xticks(ticks, [number(tick, "rate") for tick in ticks], rotation=60, size=7)
        axis.minorticks_off()
        named = zip(levels, panel, strict=True)
        axis.set_title(
            ", ".join(value if isinstance(value, str) else f"{heading(str(at))} {value:g}" for at, value in named)
        )
        axis.set_xlabel("heads' rate")
    axes[0, 0].set_ylabel(f"{label} (%)")
    legend_below(figure, axes, 4)
    return figure


def responses(
    table: pd.DataFrame, x: str, hue: str, columns: Mapping[str, str], levels: Mapping[str, Mapping[str, float]]
) -> Figure:
    """One panel per column of the table: its mean against the categories `x` by `hue`, bars of one deviation over
    seeds.

    table: one row per run; x in its order of appearance, or where it is a number. columns: column → axis label. levels:
    column → label → a level to mark by a dotted line.
    """
    figure, axes = subplots(1, len(columns), 2.7, PAGE)
    look = looks(table[hue])
    order = list(dict.fromkeys(table[x]))
    at = {key: key if pd.api.types.is_numeric_dtype(table[x]) else place for place, key in enumerate(order)}
    for axis, (column, label) in zip(axes[0], columns.items(), strict=True):
        for place, (name, group) in enumerate(table.groupby(hue, sort=False)):
            means, deviations = (group.groupby(x, sort=False)[column].agg(how) for how in ("mean", "std"))
            places = np.array([at[key] for key in means.index])
            places = places + 0.08 * (place - (table[hue].nunique() - 1) / 2)  # bars that would hide each other
            axis.errorbar(places, means, deviations.fillna(0), label=legible(name), **BARS | look[name])
        for words, height in levels.get(column, {}).items():
            level(axis, words, height)
        axis.set_xticks(list(at.values()), order)
        axis.set_xlabel(x)
        axis.set_ylabel(label)
    legend_below(figure, axes[0, 0], 4)
    return figure


def batches(reports: Mapping[str, pd.DataFrame]) -> Figure:
    """Mean cosine within each batch by order of construction. reports: label → table of `batches.report`."""
    figure, ((axis,),) = subplots(height=2.4)
    for name, table in reports.items():
        marker = "." if len(table) < 60 else ""
        axis.plot(np.arange(1, len(table) + 1), table["mean_cosine"], label=legible(name), marker=marker)
    axis.set(xlabel="batch, by order of construction", ylabel="mean cosine within a batch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    name_lines(axis)
    return figure


def learned(groups: Mapping[str, Sequence[Run]]) -> Figure:
    """What a loss learns, one panel per parameter, by step; mean over seeds, band from minimum to maximum.

    groups: label → runs that differ by seed (`Run.learned`).
    """
    tables = {label: [run.learned for run in runs] for label, runs in groups.items()}
    names = list(next(iter(tables.values()))[0].columns[3:])
    figure, axes = subplots(1, len(names), 2.2)
    for axis, name in zip(axes[0], names, strict=True):
        for place, (label, histories) in enumerate(tables.items()):
            band(axis, histories, "step", name, label, color=f"C{place}")
        axis.set(xlabel="step", ylabel=name.replace("_", " "))
    legend_below(figure, axes[0, 0])
    return figure


def forest(table: pd.DataFrame, names: str, label: str) -> Figure:
    """Differences with their intervals, a row each, beside 0. table: the column `names`, difference, low, high."""
    figure, ((axis,),) = subplots(height=0.3 * len(table) + 0.8, width=PAGE)
    places = -np.arange(len(table))
    axis.hlines(places, table["low"], table["high"], color="C0", lw=2.5, alpha=0.45)
    axis.plot(table["difference"], places, "o", color="C0", ms=4)
    axis.axvline(0, color="0.5", lw=1, ls=":")
    axis.set_yticks(places, table[names])
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(label)
    return figure


def save(figure: Figure, folder: str | Path, name: str, runs: Sequence[Run] = ()) -> Figure:
    """Write `<folder>/figures/<name>` as .png and .pdf, and .json with the runs it came from; returns the figure. Warns
    of letters that the font lacks.
    """
    target, stem = Path(folder) / "figures", atomic.file_name(name)
    origin = provenance(runs)
    lacking: dict[str, None] = {}
    for ending in ("png", "pdf"):
        metadata: dict[str, Any] = {"Title": name, "Keywords" if ending == "pdf" else "Comment": origin["note"]}
        if ending == "pdf":
            metadata["CreationDate"] = None  # the same figure gives the same file

        def write(path: Path, ending: str = ending, metadata: dict = metadata) -> None:
            with warnings.catch_warnings(record=True) as caught:
                warnings.filterwarnings("always", GLYPH, UserWarning)
                figure.savefig(path, format=ending, metadata=metadata)
            for one in caught:
                if match := re.match(GLYPH, str(one.message)):
                    lacking[f"U+{int(match[1]):04X}"] = None
                else:
                    warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)

        atomic.write_atomic(target / f"{stem}.{ending}", write)
    atomic.write_json(target / f"{stem}.json", origin)
    plt.close(figure)
    if lacking:
        mend = f"name one that has them in font.family of atr/reports/{STYLE.name}"
        warnings.warn(
            f"{target / stem}.*: empty boxes for what the font lacks: {', '.join(lacking)}; {mend}", stacklevel=2
        )
    return figure
