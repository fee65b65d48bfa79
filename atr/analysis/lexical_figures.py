"""Figures of captions by their source: word clouds, densities of their richness, and what MTLD rests on."""

from collections.abc import Mapping
from random import Random

import pandas as pd
from matplotlib import font_manager
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from atr.analysis import lexical
from atr.reports import figures

FEW = 30
LABELS = lexical.MEASURES | {"mtld": "MTLD (words)"}


def clouds(table: pd.DataFrame) -> Figure:
    """Word clouds, one source per panel, words as large as they are frequent: figure 4.4 of Tymofieiev 2025.

    table: of `lexical.frequent`. Shades have no meaning.
    """
    from wordcloud import WordCloud

    names = list(dict.fromkeys(table["source"]))
    figure, axes = figures.subplots(1, len(names), 2.6 if len(names) > 1 else 4.0, figures.PAGE)
    for place, (axis, name) in enumerate(zip(axes[0], names, strict=True)):
        part = table[table["source"] == name]
        red, green, blue = to_rgb(f"C{place}")
        shades = [to_hex((share * red, share * green, share * blue)) for share in (0.45, 0.65, 0.85, 1.0)]

        def color(*_: object, random_state: Random, shades: list[str] = shades, **__: object) -> str:
            return random_state.choice(shades)

        cloud = WordCloud(
            font_path=font_manager.findfont("DejaVu Sans"),
            width=1000,
            height=700,
            background_color="white",
            max_words=len(part),
            color_func=color,
            random_state=0,
        )
        axis.imshow(cloud.generate_from_frequencies(dict(zip(part["word"], part["count"], strict=True))))
        axis.set_title(name)
        axis.set_axis_off()
    return figure


def densities(measured: Mapping[str, pd.DataFrame], column: str = "mtld", beyond: float = 0.01) -> Figure:
    """How a measure is spread, by source: densities (above) and violins with quartiles (below), one unit per column, as
    figure 4.5 of Tymofieiev 2025.

    measured: unit → table of `lexical.richness`. Of each unit the largest values, `beyond` of them, are not drawn;
    where a source has at most `FEW`, they are dots.
    """
    import seaborn

    figure, axes = figures.subplots(2, len(measured), 3.6, sharex="col")
    for (upper, lower), (unit, table) in zip(axes.T, measured.items(), strict=True):
        shown = table[table[column] <= table[column].quantile(1 - beyond)]
        names = list(dict.fromkeys(shown["source"]))
        colors = {name: f"C{place}" for place, name in enumerate(names)}
        common = {"data": shown, "x": column, "hue": "source", "palette": colors}
        few = shown.groupby("source")[column].size().max() <= FEW  # whose density would be made up
        if few:
            seaborn.stripplot(
                **common, ax=lower, y="source", order=names, size=3, alpha=0.6, jitter=False, legend=False
            )
            upper.set_axis_off()
        else:
            seaborn.kdeplot(**common, ax=upper, cut=0, common_norm=False, fill=True, alpha=0.25, warn_singular=False)
            violins = {"y": "source", "order": names, "inner": "quart", "linewidth": 0.8, "legend": False}
            seaborn.violinplot(**common, **violins, ax=lower, cut=0)
        upper.set(title=unit, ylabel="density" if upper is axes[0, 0] else "")
        upper.set_yticks([])
        if legend := upper.get_legend():
            legend.set_title("")
            if upper is not axes[0, -1]:
                legend.remove()
        lower.set(xlabel=LABELS[column], ylabel="")
        if lower is not axes[1, 0]:
            lower.set_yticks([])
        lower.grid(axis="y", visible=False)
    return figure


def by_length(measured: pd.DataFrame, least: int = 20) -> Figure:
    """Why MTLD of a caption says little: its median by the number of words, one source per panel, where no word is
    repeated and where one is; and the share of captions that repeat one.

    measured: of `lexical.richness`, by caption. Numbers of words that fewer than `least` captions have are not drawn.
    """
    again = measured.assign(again=measured["types"] < measured["tokens"])
    sources = dict(list(again.groupby("source", sort=False)))
    look = figures.looks(sources)
    figure, (axes,) = figures.subplots(1, len(sources) + 1, 2.4, sharex=True)
    top = 0.0
    for axis, (name, table) in zip(axes, sources.items(), strict=False):
        for repeated, part in table.groupby("again"):
            medians = part.groupby("tokens")["mtld"].agg(["median", "size"]).query("size >= @least")["median"]
            if len(medians):
                style = {**look[name], "ls": "-" if repeated else "--", "ms": 2.5}
                axis.plot(medians.index, medians, label="a word repeated" if repeated else "none repeated", **style)
                top = max(top, medians.max())
        axis.set(title=name)
        shares = table.groupby("tokens")["again"].agg(["mean", "size"]).query("size >= @least")["mean"]
        axes[-1].plot(shares.index, 100 * shares, ms=2.5, label=figures.legible(name), **look[name])
    for axis in axes[:-1]:
        axis.set_ylim(0, 1.1 * top)
        figures.name_lines(axis, size=7)
    for axis in axes:
        axis.set_xlabel("words of the caption")
    axes[0].set_ylabel("median MTLD (words)")
    axes[-1].set(ylabel="captions that repeat a word (%)", ylim=(0, 100))
    figures.name_lines(axes[-1], size=7)
    return figure
