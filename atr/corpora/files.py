"""What the published data sets share: where they lie, their tables, and an index of their audio files."""

import csv
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from atr import audio, store
from atr.corpora.corpus import SPLITS, Corpus, CorpusError, Problem, no_events, problem_table

SUFFIXES = {".wav", ".flac", ".ogg", ".mp3"}
CAPTION_COLUMN = re.compile(r"caption(_\d+)?")


class Fact(NamedTuple):
    """An audio file's length in seconds, by its header, and the SHA-256 of its bytes."""

    seconds: float
    digest: str


def index(
    folder: Path, names: Iterable[str], quiet: bool | None = None, decode: bool = False
) -> dict[str, Fact | audio.AudioError]:
    """Length and digest of each file folder/name, or what is wrong with it; in the order of `names`.

    Facts are remembered in the cache, by folder, name, size and time of change, so that a second call reads no audio.
    decode: read every file to its end too. quiet: no progress bar; None: one where there is a terminal.
    """
    remembered = _memory(folder)
    known = _remembered(remembered)
    names = list(names)
    states = {name: _state(folder, name) for name in names}
    found: dict[str, Fact | audio.AudioError] = {
        name: Fact(float(row[2]), row[3]) for name in names if (row := known.get(name)) and row[:2] == states[name]
    }
    fresh: dict[str, list[str]] = {}

    def inspect(name: str) -> None:
        try:
            if name not in found:
                seconds, digest = audio.duration(folder / name), _sha256(folder / name)
                fresh[name] = [*states[name], repr(seconds), digest]
                found[name] = Fact(seconds, digest)
            if decode:
                audio.read(folder / name)
        except audio.AudioError as error:
            found[name] = error
        except OSError as error:
            found[name] = audio.AudioError(folder / name, f"cannot be read ({error.strerror})", "restore or remove it")

    wanted = names if decode else [name for name in names if name not in found]
    pool = ThreadPoolExecutor()  # reading and hashing let go of the interpreter's lock
    try:
        results = pool.map(inspect, wanted)
        for _ in tqdm(results, "inspecting audio", len(wanted), unit="file", disable=quiet, leave=False):
            pass
    finally:  # an interrupted inspection keeps what it has done
        pool.shutdown(cancel_futures=True)
        if fresh:
            rows = [[name, *row] for name, row in (known | fresh).items()]
            store.write_atomic(remembered, lambda path: _write(path, rows))
    return {name: found[name] for name in names}


def changed(folder: Path) -> list[str]:
    """Files of a folder, one line each, whose bytes are not those remembered, though size and time of change are."""
    known = _remembered(_memory(folder))
    return [
        f"{folder / name}: its bytes have changed since it was first read; restore it from a copy or fetch it again"
        for name, row in known.items()
        if _state(folder, name) == row[:2] and _sha256(folder / name) != row[3]
    ]


def _memory(folder: Path) -> Path:
    return store.home() / "cache" / "files" / f"{store.content_key(str(folder.resolve()))}.csv"


def _state(folder: Path, name: str) -> list[str]:
    """Size and time of change, as they are remembered; empty if there is no such file."""
    try:
        state = os.stat(os.path.join(folder, name))
    except OSError:
        return []
    return [str(state.st_size), str(state.st_mtime_ns)]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remembered(path: Path) -> dict[str, list[str]]:
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return {row[0]: row[1:] for row in csv.reader(file) if len(row) == 5}


def _write(path: Path, rows: list[list]) -> None:
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows(rows)


def listing(folder: Path) -> list[str]:
    """Paths of all audio files below the folder, relative to it, sorted; links are followed, hidden files left out."""
    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(place).relative_to(folder).as_posix()
        prefix = "" if below == "." else f"{below}/"
        found += [f"{prefix}{name}" for name in names if is_audio(name)]
    return sorted(found)


def is_audio(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")


def bare(path: str) -> str:
    """The file name of a listed path, without its suffix."""
    return path.rpartition("/")[2].rpartition(".")[0]


def stem(name: str) -> str:
    """A file's name without folder and suffix, spelt one way for tables and file systems: NFC, outer blanks off."""
    return unicodedata.normalize("NFC", Path(name).stem).strip()


def located(name: str, root: str | PathLike[str] | None) -> Path:
    """`root`, else the folder that `atr data <name> --from` recorded, else the data set's own place in the home.

    Raises FileNotFoundError, with the command that obtains the data set.
    """
    home = store.home() / name
    record = home / "location.json"
    if root is None and record.exists():
        try:
            root = str(json.loads(record.read_text(encoding="utf-8"))["folder"])
        except (ValueError, KeyError, TypeError) as error:
            mend = f"delete it and run: atr data {name} --from <folder>"
            raise ValueError(f"{record}: does not name a folder ({error!r}); {mend}") from None
    folder = home if root is None else Path(root).expanduser().absolute()
    if not folder.is_dir():
        mend = f"run: atr data {name}, or, if you have it: atr data {name} --from <folder>"
        if root is not None and record.exists():
            mend = f"bring it back, or delete {record} and {mend}"
        raise FileNotFoundError(f"{name}: no folder {folder}; {mend}")
    return folder


def unrecognised(name: str, folder: Path, looked_for: str) -> CorpusError:
    """The error for a folder that does not hold the data set: what was looked for and what lies there."""
    there = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir() if not path.name.startswith("."))
    found = ", ".join(map(repr, there[:12])) + (f" and {len(there) - 12} more" if len(there) > 12 else "")
    problem = f"looked for {looked_for}; found {found or 'nothing'}"
    mend = f"run: atr data {name}, or name the right folder: atr data {name} --from <folder>"
    return CorpusError(name, problem_table([Problem(str(folder), problem, mend)]))


def read_table(name: str, path: Path, required: Iterable[str]) -> list[dict[str, str]]:
    """The rows of a CSV file in UTF-8, every cell as it stands; CorpusError, with the line, for one that is damaged."""

    def failure(where: str, problem: str) -> CorpusError:
        return CorpusError(name, problem_table([Problem(where, problem, "fetch it again or name the right folder")]))

    rows: list[dict[str, str]] = []
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [column for column in required if column not in (reader.fieldnames or ())]
            if missing:
                listed = ", ".join(reader.fieldnames or ()) or "nothing"
                raise failure(str(path), f"no column {missing[0]!r} (the header has {listed})")
            for row in reader:
                if None in row or None in row.values():
                    width = len(reader.fieldnames or ())
                    raise failure(f"{path}, line {reader.line_num}", f"not {width} fields as in the header")
                rows.append(row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise failure(str(path), f"no CSV in UTF-8 ({error})") from None
    return rows


def captions_of(row: Mapping[str, str]) -> list[str]:
    """The row's captions in the order of its columns."""
    return [text for column, text in row.items() if CAPTION_COLUMN.fullmatch(column)]


@dataclass(frozen=True)
class FileReader:
    """Reads a clip of a published data set.

    paths: the audio file of each clip, below `folder`. listed: how many clips each split has by its table, with
    audio or without.
    """

    folder: Path
    paths: dict[str, str] = field(repr=False)
    listed: dict[str, int] = field(default_factory=dict)

    def __call__(self, clip: str) -> tuple[np.ndarray, int]:
        if clip not in self.paths:
            raise KeyError(f"{self.folder}: no clip {clip!r} among {len(self.paths)}")
        return audio.read(self.folder / self.paths[clip])


def published(
    name: str,
    folder: Path,
    lists: Mapping[str, Mapping[str, list[str]]],
    paths: Mapping[str, str],
    source: str,
    missing: Callable[[str, str], Problem] | None = None,
) -> Corpus:
    """The corpus of the listed clips that have audio.

    lists: split → clip → captions. paths: clip → audio file below `folder`; more than are listed may be there.
    missing: makes the problem of a clip (split, clip) without audio; None: such clips are left out.
    A file that cannot be used is a problem, and its clip left out.
    """
    chosen = {clip: paths[clip] for clips in lists.values() for clip in clips if clip in paths}
    facts = index(folder, chosen.values())
    found, rows, texts = [], [], []
    for split, clips in lists.items():
        for clip, captions in clips.items():
            fact = facts.get(chosen.get(clip, ""))
            if isinstance(fact, audio.AudioError):
                found.append(Problem(fact.where, fact.problem, fact.mend))
            elif fact is not None:
                rows.append((clip, split, fact.seconds, fact.digest, ""))
                texts += [(clip, text) for text in captions]
            elif missing is not None:
                found.append(missing(split, clip))
    clip_table = pd.DataFrame(rows, columns=["clip", "split", "duration", "digest", "description"]).astype(
        {"clip": "str", "split": "str", "duration": "float64", "digest": "str", "description": "str"}
    )
    caption_table = pd.DataFrame(texts, columns=["clip", "caption"], dtype="str")
    reader = FileReader(folder, chosen, {split: len(clips) for split, clips in lists.items()})
    return Corpus(name, clip_table, caption_table, no_events(), reader, source, tuple(found), repeats=True)


# What the papers used, by split, and the mean seconds of a clip: Mei et al. 2022, and Mei et al. 2023 for WavCaps.
PUBLISHED: dict[str, dict[str, Any]] = {
    "clotho": {
        "clips": {"train": 3839, "validation": 1045, "test": 1045},
        "captions": {"train": 19195, "validation": 5225, "test": 5225},
        "seconds": 22.5,
        "longest": 30.0,
    },
    "audiocaps": {
        "clips": {"train": 49274, "validation": 494, "test": 957},
        "captions": {"train": 49274, "validation": 2470, "test": 4785},
        "seconds": 10.0,
        "longest": 10.0,
    },
    "wavcaps": {"clips": {"train": 403050}, "captions": {"train": 403050}, "seconds": 67.59},
}


def coverage(corpus: Corpus) -> pd.DataFrame:
    """Clips by split of a published data set: here with audio, in its tables, and in the paper."""
    if not isinstance(corpus.read, FileReader) or corpus.name not in PUBLISHED:
        raise ValueError(f"corpus {corpus.name!r}: coverage is known for {', '.join(PUBLISHED)}")
    here = corpus.clips["split"].value_counts()
    splits = [split for split in SPLITS if split in corpus.read.listed]
    columns = {
        "split": splits,
        "clips here": [int(here.get(split, 0)) for split in splits],
        "clips in the list": [corpus.read.listed[split] for split in splits],
        "clips in the paper": [PUBLISHED[corpus.name]["clips"][split] for split in splits],
    }
    return pd.DataFrame(columns)
