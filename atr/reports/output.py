"""A table as files, on a page and in a notebook, with the text of `names.readable`; and where its numbers come from."""

import io
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pandas.io.formats.style import Styler

from atr.config import RESULT_VERSION
from atr.reports import latex
from atr.reports.names import DATASETS, numeric, quantity, readable
from atr.system import atomic, hashes, units
from atr.system.credentials import without_credentials
from atr.system.environment import PACKAGES, environment
from atr.training import EMBEDDINGS, HISTORY, METRICS
from atr.training.records import Run

MOST = 10  # columns of a table as people read it
SCORES = {"R@k": r"R@\d|2a_r\d|2t_r\d", "mAP@10": r"mAP@10|map10"}  # told with a table that has such columns
LABELS = 5  # at most, of the columns that tell rows apart and are repeated


@dataclass(frozen=True)
class View:
    """A table as people read it: text in parts of at most `MOST` columns, and below it what is the same in all rows."""

    parts: list[pd.DataFrame]
    note: str


def view(table: pd.DataFrame, wide: int | None = None) -> View:
    """A table of numbers as text. With more than `MOST` columns, or wider than `wide` letters, it comes in parts, which
    repeat the columns that tell rows apart; of these, those that do not are told below it.
    """
    text, same = readable(table), []
    first = labels(table, text)
    if len(text.columns) > MOST and len(text) > 1:
        same = [name for name in first[:-1] if text[name].nunique() == 1]
        text, first = text.drop(columns=same), [name for name in first if name not in same]
    note = f"In all rows: {', '.join(f'{name} {readable(table)[name].iloc[0]}' for name in same)}." if same else ""
    rooms = [_groups(text, len(first), most, wide) for most in range(MOST, len(first), -1)]
    even = [groups for groups in rooms if len(groups) == len(rooms[0])][-1]  # as few parts, but none of a column or two
    return View([text[names] for names in even], note)


def _groups(text: pd.DataFrame, first: int, most: int, wide: int | None) -> list[list[str]]:
    """Names of the columns of each part, at most so many, and so wide in letters."""
    sizes = dict(zip(text, latex.widths(text), strict=True))
    names = list(map(str, text))
    units: list[list[str]] = []  # a mean and its interval stay together
    for name in names[first:]:
        beside = bool(units) and name == f"{units[-1][0]}, 95 %"
        units = [*units[:-1], [*units[-1], name]] if beside else [*units, [name]]
    groups = [names[:first]]
    for unit in units:
        wider = wide is not None and sum(min(sizes[name], latex.LONG) for name in [*groups[-1], *unit]) > wide
        if (wider or len(groups[-1]) + len(unit) > most) and len(groups[-1]) > first:
            groups.append(names[:first])
        groups[-1] += unit
    return groups


def labels(table: pd.DataFrame, text: pd.DataFrame) -> list[str]:
    """Headings of the first columns, which tell rows apart: those before `seeds`, or else before the first number."""
    if "seeds" in table:
        return list(text.columns[: list(text).index("seeds")])[:LABELS]
    count = next((place for place, name in enumerate(text) if numeric(text[name])), 1)
    return list(text.columns[: max(1, min(count, LABELS, len(text.columns) - 1))])


def flat(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose index and levels of columns are columns; without its runs."""
    result = table.reset_index() if any(table.index.names) else table
    result = result.drop(columns=[name for name in result if name == "run" or str(name).endswith("_run")])
    if isinstance(result.columns, pd.MultiIndex):
        result.columns = [" ".join(part for part in column if part) for column in result.columns]
    return result.rename(columns=str)


def show(table: pd.DataFrame) -> Styler:
    """A table as notebooks show it: no index, numbers to the right."""
    text = readable(read(io.StringIO(_csv(table))))
    sides = [f"text-align: {'right' if numeric(text[name]) else 'left'}" for name in text]
    return text.style.hide(axis="index").format(escape="html").apply(lambda _: sides, axis=1)


def save(
    table: pd.DataFrame, folder: str | Path, name: str, caption: str, runs: Iterable[Run] = (), on: str | None = None
) -> Path:
    """Write `<folder>/tables/<name>` as .csv, .md and .tex, and .json with the runs it came from and what made them.

    The .csv has every number to twelve figures, the others as `readable` prints them. on: what was measured on; None:
    the test clips of the runs' corpora, "": not said.
    """
    runs, target, text = list(runs), Path(folder) / "tables", _csv(table)
    origin = {"caption": caption, **provenance(runs), "measured": test_sets(runs) if on is None else on}
    texts = drawings(read(io.StringIO(text)), name, origin)  # refuses a name before anything is written
    atomic.write_text(target / f"{name}.csv", text)
    _draw(target / name, texts)
    atomic.write_json(target / f"{name}.json", origin)
    return target / f"{name}.csv"


def render(folder: Path) -> int:
    """Write .md and .tex of each table in a folder anew from its .csv and .json; how many. ValueError: one cannot be
    read.
    """
    paths = sorted(folder.glob("*.csv"))
    for path in paths:
        try:
            origin = atomic.read_object(path.with_suffix(".json"))
            texts = drawings(read(path), path.stem, origin)
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(f"{path}: cannot be read ({error}); run its notebook again") from error
        _draw(path.with_suffix(""), texts)
    return len(paths)


def _csv(table: pd.DataFrame) -> str:
    return atomic.as_csv(flat(table).apply(_twelve_figures))


def read(file: Path | io.StringIO) -> pd.DataFrame:
    """A saved table; words such as "null" are words."""
    return pd.read_csv(file, keep_default_na=False, na_values=[""])


def drawings(table: pd.DataFrame, name: str, origin: Mapping[str, Any]) -> dict[str, str]:
    """A table as Markdown and LaTeX, by ending."""
    title, look = legend(table, origin), view(table)
    blocks = [_escape(title), *map(markdown, look.parts), _escape(look.note), _escape(origin["note"])]
    paper = view(table, latex.WIDE)
    below = " ".join(filter(None, [paper.note, origin["note"]]))
    return {"md": "\n\n".join(filter(None, blocks)) + "\n", "tex": latex.table(paper.parts, title, below, name)}


def _draw(path: Path, texts: Mapping[str, str]) -> None:
    for ending, text in texts.items():
        atomic.write_text(path.parent / f"{path.name}.{ending}", text)


def markdown(text: pd.DataFrame) -> str:
    """A table of text in Markdown, numbers to the right."""
    sides = ["right" if numeric(text[name]) else "left" for name in text]
    marked = text.rename(columns=_escape).map(_escape)
    return marked.to_markdown(index=False, disable_numparse=True, colalign=sides if len(text) else None)


def _escape(cell: str) -> str:
    """A text as Markdown prints it, on one line."""
    return re.sub(r"([\\`*\[\]>|]|<(?! ))", r"\\\1", " ".join(cell.split()))


def _twelve_figures(column: pd.Series) -> pd.Series:
    """A column as a file holds it: 27.68 for 27.679999999999996, 5 for 5.0 of what is counted."""
    if not pd.api.types.is_float_dtype(column):
        return column
    rounded = column.map(lambda value: float(f"{value:.12g}"), na_action="ignore")
    whole = quantity(str(column.name)) == "count" and (rounded.dropna() % 1 == 0).all()
    return rounded.astype("Int64") if whole else rounded


def legend(table: pd.DataFrame, origin: Mapping[str, Any]) -> str:
    """What a table is called: its caption, what was tested on (not of scores on validation), over how many seeds."""
    caption, seeds = origin["caption"].strip(), sorted(set(table.get("seeds", pd.Series(dtype=float)).dropna()))
    many = f"{seeds[0]:.0f}" + (f" to {seeds[-1]:.0f}" if len(seeds) > 1 else "") if seeds else ""
    several = bool(seeds) and seeds[-1] > 1 and any(name.endswith("_std") for name in map(str, table))
    spread = f"Mean ± standard deviation over {many} seeds." if several else ""
    tested = origin.get("measured") and not re.search(r"validation [^.,;]*@", caption, re.IGNORECASE)
    where = f"Measured on {origin['measured']}." if tested else ""
    columns = " ".join(map(str, table))
    scores = [name for name, pattern in SCORES.items() if re.search(pattern, columns) and "percent" not in caption]
    what = f"{' and '.join(scores)} in percent." if scores else ""
    title = caption if not caption or caption[-1] in ".?!" else f"{caption}."
    return " ".join(filter(None, [title, what, where, spread]))


def test_sets(runs: Iterable[Run]) -> str:
    """What runs were tested on: `500 test clips of soundscapes`."""
    counts: dict[str, int] = {}
    for run in {str(run.config.corpus): run for run in runs}.values():
        corpus, count = run.config.corpus["name"], int((run.clips["split"] == "test").sum())
        name = DATASETS.get(corpus, corpus)
        counts[name] = max(count, counts.get(name, 0))  # some train on more, and are tested elsewhere
    return ", ".join(f"{units.count_of(count, 'test clip')} of {name}" for name, count in counts.items() if count)


def content(runs: Iterable[Run]) -> str:
    """A hash of what finished runs came to, in any order."""
    names = (METRICS, HISTORY, EMBEDDINGS)
    return hashes.content_key(
        sorted([run.address, *(run._read(name, hashes.file_hash) for name in names)] for run in runs)
    )


def _device(environment: Mapping[str, Any]) -> str:
    """Of a run; a CPU by its name, on which last bits hang, where that was recorded."""
    name = environment["device"] == "cpu" and environment.get("processor")
    return f"{environment['device']} ({name})" if name else environment["device"]


def provenance(runs: Iterable[Run]) -> dict[str, Any]:
    """Where numbers come from: addresses of the runs, devices, versions and commits, and a note in words; without runs,
    of what computes here and now. hashes: of what the runs were, and of the code of the notebook that `atr study` runs.
    """
    runs = list({run.address: run for run in runs}.values())
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    environments = [run.environment for run in runs] or [environment(here, torch.get_num_threads())]
    devices = sorted({f"{_device(one)}, {one['platform']}" for one in environments})
    versions = {name: sorted({one["versions"][name] for one in environments}) for name in PACKAGES}
    hours = sum(one["seconds"] for one in environments) / 3600 if runs else 0.0
    total = f"{units.count_of(len(runs), 'run')}, {hours:.2f} h in sum; " if runs else ""
    note = f"{total}{'; '.join(devices)}; PyTorch {', '.join(versions['torch'])}."
    commits = sorted({one["commit"] for one in environments if one["commit"]})
    return {
        "note": note,
        "runs": [run.address for run in runs],
        "devices": devices,
        "versions": versions,
        "commits": commits,
        "result_version": RESULT_VERSION,
        "command": without_credentials(os.environ.get("ATR_COMMAND", "")),
        "hashes": {"runs": content(runs), "notebook": os.environ.get("ATR_NOTEBOOK", "")},
    }
