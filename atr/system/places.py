"""The folders that `atr` reads and writes, and the environment variables that move them."""

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
CHECKOUT = (PROJECT / "pyproject.toml").exists()  # else an installed package


PLACES = (
    "ATR_HOME",
    "ATR_RESULTS",
    "ATR_CLIPS",
    "ATR_WITHOUT",
    "ATR_PEOPLE",
    "ATR_CAPTIONS",
    "ATR_MEI2022",
    "ATR_TYMOFIEIEV2025",
)
LISTS = ("ATR_WORDS",)  # of several paths, separated as in PATH


def place(variable: str, file: bool = False) -> Path | None:
    """The absolute path that an environment variable names, None if it is not set; ValueError where a file lies in
    place of the folder, or a folder in place of the `file`.

    Relative paths are written back as absolute ones, for notebooks and workers run in other folders.
    """
    for name in PLACES:
        if os.environ.get(name):
            expanded = os.path.expanduser(os.environ[name])
            if expanded.startswith("~"):
                raise ValueError(f"{name}: {expanded}: no such user's folder; name a folder")
            os.environ[name] = os.path.abspath(expanded)
    for name in LISTS:
        if os.environ.get(name):
            os.environ[name] = os.pathsep.join(map(str, paths_of(name)))
    if not os.environ.get(variable):
        return None
    path = Path(os.environ[variable])
    there = next(one for one in (path, *path.parents) if os.path.lexists(one))
    if not (there.is_dir() or file and there == path) or file and path.is_dir():
        raise ValueError(f"{variable}: {path}: {there} is not a folder; name a {'file' if file else 'folder'}")
    return path


def paths_of(variable: str) -> list[Path]:
    """The absolute paths that an environment variable of `LISTS` names."""
    paths = os.environ.get(variable, "").split(os.pathsep)
    return [Path(os.path.abspath(os.path.expanduser(path))) for path in paths if path]


def home() -> Path:
    """Folder of downloads and caches: `ATR_HOME`, else `data/` of the checkout, else `~/.cache/atr`."""
    return place("ATR_HOME") or (PROJECT / "data" if CHECKOUT else Path.home() / ".cache" / "atr")


def results_home() -> Path:
    """Folder of results: `ATR_RESULTS`, else `results/` of the checkout, else `./results`."""
    return place("ATR_RESULTS") or (PROJECT / "results" if CHECKOUT else Path("results").resolve())
