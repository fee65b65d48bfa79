"""A table as the files that a report gathers, and where its numbers come from."""

import os
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from atr.config import RESULT_VERSION
from atr.reports import latex
from atr.system import atomic, hashes
from atr.system.credentials import without_credentials
from atr.system.environment import RECORDED, environment
from atr.training.records import Run


def _marked(cell: Any) -> Any:
    """A text as Markdown prints it, on one line; anything else as it is."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(cell.split())) if isinstance(cell, str) else cell


def save(table: pd.DataFrame, folder: Path, name: str, caption: str, runs: Iterable[Run] = ()) -> Path:
    """Write `<folder>/tables/<name>` as .csv, .md and .tex, and .json with the runs it came from and what made them."""
    target = folder / "tables"
    flat = table.reset_index() if any(table.index.names) else table
    flat = flat.drop(columns=[name for name in flat if name == "run" or str(name).endswith("_run")])
    if isinstance(flat.columns, pd.MultiIndex):
        flat.columns = [" ".join(part for part in column if part) for column in flat.columns]
    blank = flat.astype(object).where(flat.notna(), None)
    origin = provenance(runs)
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


def content(runs: Iterable[Run]) -> str:
    """A hash of what finished runs came to, in any order."""
    names = ("metrics.json", "history.csv", "embeddings.safetensors")
    return hashes.content_key(
        sorted([run.address, *(run._read(name, hashes.file_hash) for name in names)] for run in runs)
    )


def provenance(runs: Iterable[Run]) -> dict[str, Any]:
    """Where numbers come from: addresses of the runs, devices, versions and commits, and a note in words; without runs,
    of what computes here and now. hashes: of what the runs were, and of the code of the notebook that `atr study` runs.
    """
    runs = list({run.address: run for run in runs}.values())
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    made = [run.environment for run in runs] or [environment(here, torch.get_num_threads())]
    devices = sorted({f"{one['device']}, {one['platform']}" for one in made})
    versions = {name: sorted({one["versions"][name] for one in made}) for name in RECORDED}
    hours = sum(one["seconds"] for one in made) / 3600 if runs else 0.0
    said = f"{len(runs)} runs, {hours:.2f} h in sum; " if runs else ""
    note = f"{said}{'; '.join(devices)}; PyTorch {', '.join(versions['torch'])}."
    commits = sorted({one["commit"] for one in made if one["commit"]})
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
