"""A table as the files that a report gathers."""

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from atr.reports import latex, provenance
from atr.system import atomic
from atr.training.records import Run


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
    origin = provenance.provenance(runs)
    note = f"{caption} {origin['note']}".strip()
    printed = blank.rename(columns=_marked).map(_marked)
    texts = {
        "csv": atomic.as_csv(flat),
        "md": f"{_marked(note)}\n\n{printed.to_markdown(index=False, floatfmt='.3g', missingval='')}\n",
        "tex": latex.table(flat, note, name),
    }
    for ending, text in texts.items():
        atomic.write_atomic(target / f"{name}.{ending}", partial(Path.write_text, data=text, encoding="utf-8"))
    atomic.write_json(target / f"{name}.json", {"caption": caption, **origin})
    return target / f"{name}.csv"
