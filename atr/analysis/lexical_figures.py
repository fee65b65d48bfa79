"""Figures of captions by their source: word clouds, densities of their richness, and what MTLD rests on."""

from collections.abc import Mapping
from random import Random

import pandas as pd
from matplotlib import font_manager
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from atr.analysis import lexical
from atr.reports import figures

LABELS = lexical.MEASURES | {"mtld": "MTLD (words)"}


def clouds(table: pd.DataFrame) -> Figure:
    """Word clouds side by side, a source a panel, words as large as they are frequent: figure 4.4 of Tymofieiev 2025.

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
    """How a measure is spread, by source: densities (above) and violins with quartiles (below), a unit a column, as
    figure 4.5 of Tymofieiev 2025.

    measured: unit → table of `lexical.richness`. Of each unit the largest values, `beyond` of them, are not drawn.
    """
    import seaborn

    figure, axes = figures.subplots(2, len(measured), 3.6, sharex="col")
    for (upper, lower), (unit, table) in zip(axes.T, measured.items(), strict=True):
        shown = table[table[column] <= table[column].quantile(1 - beyond)]
        names = list(dict.fromkeys(shown["source"]))
        colors = {name: f"C{place}" for place, name in enumerate(names)}
        common = {"data": shown, "x": column, "hue": "source", "palette": colors, "cut": 0}
        seaborn.kdeplot(**common, ax=upper, common_norm=False, fill=True, alpha=0.25, warn_singular=False)
        seaborn.violinplot(**common, ax=lower, y="source", order=names, inner="quart", linewidth=0.8, legend=False)
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
    """Why MTLD of a caption says little: its median by the number of words, by source, where no word is repeated and
    where one is; and the share of captions that repeat one.

    measured: of `lexical.richness`, by caption. Numbers of words that fewer than `least` captions have are not drawn.
    """
    figure, ((left, right),) = figures.subplots(1, 2, 2.8)
    again = measured.assign(again=measured["types"] < measured["tokens"])
    for place, (name, table) in enumerate(again.groupby("source", sort=False)):
        for repeated, part in table.groupby("again"):
            medians = part.groupby("tokens")["mtld"].agg(["median", "size"]).query("size >= @least")["median"]
            label = f"{name}, {'a word repeated' if repeated else 'none repeated'}"
            line = "-" if repeated else "--"
            left.plot(medians.index, medians, line, color=f"C{place}", marker="o", ms=2.5, label=label)
        shares = table.groupby("tokens")["again"].agg(["mean", "size"]).query("size >= @least")["mean"]
        right.plot(shares.index, 100 * shares, color=f"C{place}", marker="o", ms=2.5)
    left.set(xlabel="words of the caption", ylabel="median MTLD (words)", ylim=(0, None))
    right.set(xlabel="words of the caption", ylabel="captions that\nrepeat a word (%)", ylim=(0, 100))
    figures.legend_below(figure, left, 4)
    return figure
