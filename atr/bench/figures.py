"""Figures of what was measured."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from atr.bench.harness import PARTS
from atr.reports.figures import COLORS, legend_below, looks, name_lines, subplots

# What grows in each part.
AXES = {
    "frozen": "clips",
    "evaluation": "clips",
    "text_aware": "clips",
    "step": "batch",
    "pipeline": "batch",
    "mining": "pairs",
    "measures": "points",
    "packing": "clips",
    "search": "rows",
}

REST = "the rest"


def growth(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per line of the figure that has several sizes: part, how, shape where it has one, from, to, and the
    exponent with which seconds grow between the two largest.
    """
    table = []
    for (part, how), line in _lines(rows).items():
        if len({size for size, _ in line}) > 1:
            (before, earlier), (last, later) = line[-2:]
            exponent = np.log(later / earlier) / np.log(last / before)
            table.append((part, how, AXES[part], line[0][0], last, exponent))
    return pd.DataFrame(table, columns=["part", "how", "of", "from", "to", "exponent"])


def _lines(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """(size, seconds) by part and way of doing it, ascending."""
    lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        if row["part"] in AXES and "seconds" in row and (row["part"] != "step" or row["how"] == "atr"):
            shape = f", {row['size']['shape']}" if "shape" in row["size"] else ""
            line = lines.setdefault((row["part"], row["how"] + shape), [])
            line.append((row["size"][AXES[row["part"]]], row["seconds"]))
    return {key: sorted(line) for key, line in lines.items()}


def sizes(rows: Sequence[dict[str, Any]]) -> Figure:
    """Seconds over size, both on a logarithmic scale of whole decades, one panel per part."""
    lines = _lines(rows)
    parts = [part for part in PARTS if any(key[0] == part for key in lines)]
    figure, axes = subplots(-(-len(parts) // 3), 3, 2.6 * -(-len(parts) // 3))
    for axis in axes.flat[len(parts) :]:
        axis.set_visible(False)
    for axis, part in zip(axes.flat, parts, strict=False):
        own = {how: line for (name, how), line in lines.items() if name == part}
        for (how, line), look in zip(own.items(), looks(own).values(), strict=True):
            axis.loglog(*zip(*line, strict=True), ms=4, label=how, clip_on=False, **look)
        points = np.concatenate(list(own.values()))
        low, high = 10 ** np.floor(np.log10(points.min(0))), 10 ** np.ceil(np.log10(points.max(0)))
        axis.set(xlim=(low[0], max(high[0], 10 * low[0])), ylim=(low[1], max(high[1], 10 * low[1])))
        axis.xaxis.set_minor_formatter("")
        axis.yaxis.set_minor_formatter("")
        axis.set_title(part.replace("_", "-"))
        axis.set_xlabel(AXES[part] if AXES[part] != "rows" else "embeddings")
        if axis in axes[:, 0]:
            axis.set_ylabel("seconds")
        if len(own) > 1:
            axis.legend(fontsize=6.5, loc="upper center", bbox_to_anchor=(0.5, -0.3), labelspacing=0.2)
    return figure


def steps(rows: Sequence[dict[str, Any]]) -> Figure:
    """Clips a second of a step of fine-tuning, by what is switched on, and what its time goes into."""
    done = [row for row in rows if row["part"] == "step" and row["how"] != "atr" and "seconds" in row]
    figure, ((left, right),) = subplots(1, 2, 0.6 + 0.32 * len(done), sharey=True)
    names = [row["how"] for row in done]
    rates = [row["clips"] / row["seconds"] for row in done]
    low, high = ([row["clips"] / row.get(name, row["seconds"]) for row in done] for name in ("slowest", "fastest"))
    spread = np.abs(np.array([low, high]) - rates)
    left.barh(names, rates, xerr=spread, color=["C1" if name == "released code" else "C0" for name in names])
    left.invert_yaxis()
    left.set_xlabel("clips/s")
    start = np.zeros(len(done))
    shares = pd.DataFrame([row.get("shares", {}) for row in done]).fillna(0.0)
    shares = shares[shares.max().sort_values(ascending=False, kind="stable").index]
    if shares.shape[1] > COLORS:  # of the smallest kinds one
        largest = shares.drop(columns=REST, errors="ignore").iloc[:, : COLORS - 1]
        shares = largest.assign(**{REST: shares.sum(axis=1) - largest.sum(axis=1)})
    for place, (kind, part) in enumerate(shares.items()):
        widths = 100 * part.to_numpy()
        right.barh(names, widths, left=start, label=kind, color="0.8" if kind == REST else f"C{place}")
        start += widths
    right.set_xlabel("% of a step's time")
    legend_below(figure, right, 4)
    return figure


def recalls(rows: Sequence[dict[str, Any]]) -> Figure:
    """Recall of the exact ten and queries a second by the lists that FAISS looks at; beside them exact search."""
    figure, ((left, right),) = subplots(1, 2, 2.6)
    searches = [row for row in rows if row["part"] == "search" and "seconds" in row]
    sizes = sorted({row["size"]["rows"] for row in searches})
    for number, look in looks(sizes).items():
        for row in (row for row in searches if row["size"]["rows"] == number):
            if row["how"] == "exact":
                right.axhline(row["queries_a_second"], ls=":", color=look["color"], label=f"exact, {number:,}")
                continue
            by = pd.DataFrame(row["by_lists"])
            left.plot(by["probed"], 100 * by["recall"], label=f"{number:,}", ms=4, **look)
            right.plot(by["probed"], by["queries_a_second"], label=f"{number:,}", ms=4, **look)
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.set_xlabel("lists looked at")
    left.set(ylabel="recall of the ten nearest (%)", title="by number of embeddings")
    right.set(ylabel="queries/s, one at a time", yscale="log")
    name_lines(left)
    name_lines(right, size=7)
    return figure
