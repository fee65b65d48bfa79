"""Which sounds lie in a folder."""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd
import soundfile
from tqdm.auto import tqdm

from atr.corpora import files

# Endings of the formats that libsndfile knows by their content; RAW has none, and .mat seldom holds a sound.
SUFFIXES = {f".{name.lower()}" for name in soundfile.available_formats()} - {".raw", ".mat4", ".mat5"}
SUFFIXES |= {".aif", ".aifc", ".iff", ".mp2", ".oga", ".opus", ".snd", ".sph", ".wave"}
OTHER_SUFFIXES = {".aac", ".amr", ".ape", ".m4a", ".wma"}  # which it cannot read: listed, so that somebody is told


def check(folder: Path) -> None:
    """FileNotFoundError, NotADirectoryError, ValueError: no folder, or no sounds in it."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: a file; give a folder, such as {folder.parent}")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    try:
        str(folder).encode()
    except UnicodeEncodeError:  # libsndfile opens nothing below it
        raise ValueError(f"{folder}: a name that is not UTF-8; rename it") from None
    if next(walk(folder, {}), None) is None:
        raise ValueError(f"{folder}: no sounds here (WAV, FLAC, OGG, MP3, AIFF, …); give a folder that has some")


def scan(folder: Path, quiet: bool = False) -> tuple[pd.DataFrame, dict[str, str]]:
    """The sounds of a folder, sorted by path, with the columns of `walk`; and the folders in it that cannot be listed,
    with the reason. Errors as in `check`.
    """
    check(folder)
    unreadable: dict[str, str] = {}
    rows = sorted(tqdm(walk(folder, unreadable), desc="looking for sounds", unit=" files", disable=quiet))
    return pd.DataFrame(rows, columns=["path", "size", "mtime_ns"]), unreadable


def walk(folder: Path, closed: dict[str, str]) -> Iterator[tuple[str, int, int]]:
    """Path below the folder, size and mtime_ns of each sound in it, by its ending; `closed` as in `files.walk`."""
    for path in files.walk(folder, SUFFIXES | OTHER_SUFFIXES, closed, links_last=True):
        with suppress(OSError):  # a link that leads nowhere
            state = os.stat(folder / path)
            if stat.S_ISREG(state.st_mode):
                yield path, state.st_size, state.st_mtime_ns
