"""A report as one HTML page that needs nothing else."""

import re

import numpy as np
import pandas as pd

from atr.reports.names import HEADINGS

VERDICTS = ("holds", "contradicted", "undecided")
NUMBER = r"-?\d+(\.\d+)?(e-?\d+)?"


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A saved table as people read it: `mean ± deviation` and `low to high` in one column, the numbers of a column to
    the same digit, small ones to two that count; columns of short numbers as they are.
    """
    result: dict[str, list[str]] = {}
    for name in table.columns:
        mean = re.sub("_(std|low|high)$", "", name)
        if mean != name and mean in table:
            continue
        cells, digits = table[name], _digits(table[name])
        heading = HEADINGS.get(name, name.replace("_", " "))
        if f"{name}_std" in table:
            result[heading] = _joined(" ± ", cells, table[f"{name}_std"], digits)
        elif all(cell.endswith(".0") for cell in cells if cell):
            result[heading] = [cell.removesuffix(".0") for cell in cells]
        elif cells.str.len().max() <= 6:
            result[heading] = list(cells)
        else:
            result[heading] = [_rounded(cell, digits, small=True) for cell in cells]
        if {f"{name}_low", f"{name}_high"} <= set(table.columns):
            result[f"{heading}, 95 %"] = _joined(" to ", table[f"{name}_low"], table[f"{name}_high"], digits)
    return pd.DataFrame(result)


def _joined(sign: str, first: pd.Series, second: pd.Series, digits: int) -> list[str]:
    pairs = zip(first, second, strict=True)
    return [sign.join(_rounded(text, digits) for text in pair if text) for pair in pairs]


def _digits(column: pd.Series) -> int:
    """Digits after the point, at most four: three that count in the column's largest number."""
    largest = pd.to_numeric(column, errors="coerce").abs().max()
    return min(4, max(0, 2 - int(np.floor(np.log10(largest))))) if largest > 0 else 0


def _rounded(text: str, digits: int, small: bool = False) -> str:
    """A number with `digits` after the point, or two that count if it is `small`; other text as it is."""
    if not re.fullmatch(NUMBER, text):
        return text
    number = float(text)
    return f"{number:#.2g}" if small and 0 < abs(number) < 10.0 ** (1 - digits) else f"{number:.{digits}f}"
