"""What a run is, its training, and its folder; here what a command can know of that folder without PyTorch."""

import os
import re
from contextlib import suppress
from pathlib import Path

from atr.system import places

CONFIG, ENVIRONMENT, CLIPS = "config.json", "environment.json", "clips.csv"
HISTORY, LEARNED = "history.csv", "learned.csv"
EMBEDDINGS, CHECKPOINT, METRICS = "embeddings.safetensors", "checkpoint.safetensors", "metrics.json"
STATE, ERROR, EXTERNAL = "state.pt", "error.txt", "external"


def default_folder() -> Path:
    return places.results_home() / "runs"


def run_folders(folder: Path) -> list[Path]:
    """Those of all runs in a folder, whatever their state, oldest first."""
    entries = []
    with suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            with suppress(FileNotFoundError):  # removed meanwhile
                if re.fullmatch("[0-9a-f]+", entry.name) and entry.is_dir():
                    entries.append((entry.stat().st_mtime, entry.path))
    return [Path(path) for _, path in sorted(entries)]


def find(digits: str, folder: Path) -> Path:
    """The run in a folder whose address begins so; ValueError if there is none, or several."""
    matches = [path for path in run_folders(folder) if path.name.startswith(digits)]
    if len(matches) != 1:
        none = ", as there are none yet; list profiles: atr study --help"
        mend = "; list them: atr runs list" if folder.is_dir() else none
        raise ValueError(f"{folder}: {len(matches)} runs begin with {digits!r}{mend}")
    return matches[0]
