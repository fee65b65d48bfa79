"""What columns, losses and data sets are called in tables and figures, and how their numbers print.

Every table, as Markdown, LaTeX, on the page or in a notebook, comes from `readable` or from the functions that it uses.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_float_dtype, is_numeric_dtype

from atr.losses.pair import LOSSES
from atr.register import AUDIO_ENCODERS
from atr.system import units

RECALLS = ("t2a_r1", "t2a_r5", "t2a_r10", "a2t_r1", "a2t_r5", "a2t_r10")  # the papers'
# R@10 saturates where all sounds of a scene are told apart, so others lead.
MEASURES = ("t2a_r1", "t2a_map10", "t2a_r10", "a2t_r1", "a2t_map10", "a2t_r10")
HEADINGS = {
    **{f"t2a_r{k}": f"T→A R@{k}" for k in (1, 5, 10)},
    **{f"a2t_r{k}": f"A→T R@{k}" for k in (1, 5, 10)},
    "t2a_map10": "T→A mAP@10",
    "a2t_map10": "A→T mAP@10",
    **{f"{name}_sigma": f"σ, {name}" for name in ("audio", "text")},
    **{f"{name}_h": f"h, {name}" for name in ("audio", "text")},
    **{f"{name}_uniformity": f"uniformity, {name}" for name in ("audio", "text")},
    "alignment": "alignment",
    "modality_gap": "modality gap",
}
UNIFORMITY = tuple(HEADINGS)[-8:]  # as `uniformity.measures` names them
HEADINGS |= {
    "dim": "dimension",
    "alpha": "α",
    "batch": "batch size",
    "audio_share": "audio rate, share of the others'",
    "ami": "AMI",
    "ari": "ARI",
    "ami_all": "AMI, outliers too",
    "ari_all": "ARI, outliers too",
    "d": "Cohen's d",
    "rank_biserial": "rank-biserial r",
    "mtld": "MTLD",
    "flops": "FLOPs",
    "memory_gib": "memory",
    "log_odds": "log odds",
    "per_1000": "per 1,000 words",
}
EXTERNAL = ("t2a_r1", "t2a_r10", "t2a_map10")  # shown of a test on another corpus, its title in front
DATASETS = {"audiocaps": "AudioCaps", "clotho": "Clotho", "clipfolder": "mixed recordings"}
# What is measured in a column, by its name; the first pattern that fits decides.
QUANTITIES = {
    r"p|p[ ,(].*": "p",
    r"(.*[ _])?rate|alpha|α|(audio_)?share|temperature": "rate",
    r"seeds?|epochs?|batch|dim|runs|clips|models|subsets|steps|rows|failed|pairs": "count",
    r"seconds|fastest|slowest": "seconds",
    r"memory_gib": "memory",
    r"flops": "flops",
    r".*(_sigma|_h|uniformity|alignment|modality_gap)|[σh]( .*|, .*)?": "evenness",
    r".*(R@|mAP@|_r\d|_map\d).*|(.*_)?accuracy|percent|chance|once|twice|spread of .*": "recall",
    r"coverage.*|attention.*|greatest .*": "recall",
}


def heading(column: str) -> str:
    """A column's name in words."""
    title, metric = parts_of(column)
    if title:
        return f"{title}: {HEADINGS[metric]}"
    if column.startswith("validation_"):
        return f"validation {heading(column.removeprefix('validation_'))}"
    return HEADINGS.get(column, column.replace("_", " "))


def quantity(column: str) -> str:
    """What is measured in a column, a value of `QUANTITIES`; "" where its name does not say."""
    return next((name for pattern, name in QUANTITIES.items() if re.fullmatch(pattern, column)), "")


def number(value: float | None, kind: str | int = "recall") -> str:
    """A number as people read it, a dash for none. kind: what `quantity` says, or digits after the point."""
    if value is None or pd.isna(value):
        return "—"
    match kind:
        case int():
            return f"{value:z.{kind}f}"
        case "recall":
            return f"{value:z.1f}"
        case "evenness":
            return f"{value:z.2f}"
        case "rate":
            return np.format_float_positional(value, 3, fractional=False, trim="-")
        case "count":
            return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.0f}"
        case "p":
            return "< 0.001" if value < 0.001 else f"{value:.3f}"
        case "seconds":
            return units.seconds(value)
        case "memory":
            return f"{value:.2g} GiB"
        case "flops":
            return f"{value / 1e9:,.0f} billion"
    raise ValueError(f"{kind!r}: no such quantity; one of {', '.join(sorted(set(QUANTITIES.values())))}")


def plus_minus(mean: float | None, deviation: float | None, kind: str | int = "recall") -> str:
    """`17.2 ± 0.5`; the mean alone where there is no deviation."""
    alone = mean is None or pd.isna(mean) or deviation is None or pd.isna(deviation)
    return number(mean, kind) if alone else f"{number(mean, kind)} ± {number(deviation, kind)}"


def interval(low: float, high: float, kind: str | int = "recall") -> str:
    """`16.1 to 18.3`, a dash for none."""
    return "—" if pd.isna(low) else f"{number(low, kind)} to {number(high, kind)}"


def effect(difference: float, low: float, high: float) -> tuple[str, str]:
    """A signed difference and its interval, with the digits that show two figures of the difference, one to four, but
    none that is less than a three-hundredth of half the interval; of an interval alone three figures.
    """
    alone = np.isnan(difference)
    sizes = [(abs(high), 3)] if alone else [(abs(difference), 2), ((high - low) / 6, 2)]
    places = [figures - 1 - np.floor(np.log10(size)) for size, figures in sizes if 0 < size < np.inf]
    digits = int(np.clip(min(places, default=1), 0 if alone else 1, 4))
    return "—" if alone else f"{difference:+z.{digits}f}", interval(low, high, digits)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A table of numbers as one of text: headings in words, `mean ± deviation` and `low to high` in one column, digits
    by what is measured, yes and no, a dash where a number is missing.

    Columns `<name>_std`, `<name>_low` and `<name>_high` go with `<name>`, `low` and `high` with `difference`.
    """
    result: dict[str, list[str]] = {}
    for name, column in table.items():
        title, kind = heading(str(name)), quantity(str(name)) or _default(column)
        bounds = [table.get(f"{name}_{end}") for end in ("low", "high")]
        if _belongs(str(name), table):
            continue
        if title in result:
            raise ValueError(f"two columns are called {title!r}; rename {name!r}")
        if name in ("difference", "low") and _effects(table):
            nothing = pd.Series(np.nan, table.index)
            rows = zip(table.get("difference", nothing), table["low"], table["high"], strict=True)
            differences, intervals = zip(*(effect(*row) for row in rows), strict=True) if len(table) else ((), ())
            if name == "difference":
                result[title] = list(differences)
            result["95 %" if "difference" in table else "low to high"] = list(intervals)
        elif not is_numeric_dtype(column) or is_bool_dtype(column):
            result[title] = list(map(_text, column))
        elif f"{name}_std" in table:
            spread = table[f"{name}_std"]
            result[title] = [plus_minus(*pair, kind) for pair in zip(column, spread, strict=True)]
        else:
            result[title] = [_two_figures(value, kind) for value in column]
        if bounds[0] is not None and bounds[1] is not None:
            result[f"{title}, 95 %"] = [interval(low, high, kind) for low, high in zip(*bounds, strict=True)]
    return pd.DataFrame(result, index=table.index)


def _belongs(name: str, table: pd.DataFrame) -> bool:
    """Whether a column is printed with another one."""
    stem = re.sub("_(std|low|high)$", "", name)
    beside = "difference" if "difference" in table else "low"
    return (stem != name and stem in table) or (name in ("low", "high") and name != beside and _effects(table))


def _effects(table: pd.DataFrame) -> bool:
    return {"low", "high"} <= set(table) and all(is_float_dtype(table[name]) for name in ("low", "high"))


def _default(column: pd.Series) -> str | int:
    """Of a column whose name does not say what is measured: a count if all are whole, or else as many digits after the
    point, at most four, as show three figures of its largest number.
    """
    if not is_numeric_dtype(column) or (column.dropna() % 1 == 0).all():
        return "count"
    return int(np.clip(2 - np.floor(np.log10(column.abs().max())), 0, 4))


def _two_figures(value: float, kind: str | int) -> str:
    """A number; two figures of one that would be none with the digits of its column."""
    small = isinstance(kind, int) and 0 < abs(value) < 10.0 ** (1 - kind)
    return f"{value:#.2g}" if small else number(value, kind)


def _text(cell: Any) -> str:
    if isinstance(cell, bool | np.bool_):
        return "yes" if cell else "no"
    return "" if pd.isna(cell) else str(cell)


def numeric(column: pd.Series) -> bool:
    """Whether a column of text holds numbers, which stand to the right."""
    cells = [cell for cell in column if cell not in ("", "—")]
    return bool(cells) and all(re.match(r"[-+]?\d|< \d", cell) for cell in cells) and max(map(len, cells)) < 25


def parts_of(column: str) -> tuple[str, str]:
    """Title and metric of a column of a test on another corpus, such as people_t2a_r10; "" and the column of others."""
    metric = next((name for name in EXTERNAL if column.endswith(f"_{name}")), "")
    title = column.removesuffix(f"_{metric}")
    return (title, metric) if metric and title != "validation" and column not in HEADINGS else ("", column)


def measures(table: pd.DataFrame) -> tuple[str, ...]:
    """The columns that a table shows if none are named: `MEASURES`, and those of tests on other corpora that it has."""
    return (*MEASURES, *(column for column in map(str, table.columns) if parts_of(column)[0]))


def display_title(registry: Mapping[str, Any], name: str) -> str:
    """What a registered loss or audio encoder is called: its own `title`, not one that it inherits, or else the name
    that it is registered under.
    """
    return vars(registry[name]).get("title", name) if name in registry else name


def loss_title(name: str) -> str:
    return display_title(LOSSES, name)


def stand_in(encoder: str, published: str) -> str:
    """What a system is called by the encoder that ran: `compact (in CNN14's place)`, or CNN14 where it is that one.

    encoder: its name in the registry; published: its title in the paper.
    """
    own = encoder.startswith(published.lower())  # cnn14_mei2022 is CNN14
    return published if own else f"{display_title(AUDIO_ENCODERS, encoder)} (in {published}'s place)"
