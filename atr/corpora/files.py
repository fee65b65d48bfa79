"""What the published data sets share: where they lie, and an index of their audio files."""

import csv
import os
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from atr.corpora import audio, containers, csvtable
from atr.corpora.corpus import SPLITS, Corpus, CorpusError, Problem, caption_table, clip_table, event_table
from atr.system import atomic, hashes, places

SUFFIXES = set(containers.SUFFIXES.values())


class Fact(NamedTuple):
    """An audio file's length in seconds, by its header, and the SHA-256 of its bytes."""

    seconds: float
    digest: str


def read(path: Path, digest: str) -> tuple[np.ndarray, int]:
    """`audio.read`; AudioError also where the bytes are not those of this SHA-256, so that no clip that changes is kept
    under the digest that it had.
    """
    _check_place(path)
    waveform, rate = audio.read(path)
    try:
        changed = hashes.file_sha256(path) != digest  # after decoding: a change in between shows too
    except OSError:
        changed = True
    if changed:
        raise containers.AudioError(path, "changed since the corpus was loaded", "let it be complete, then run again")
    return waveform, rate


def _check_place(path: Path) -> None:
    """AudioError for what lies there and is no file to read; what is missing is left to `audio`."""
    if path.is_dir():
        raise containers.AudioError(path, "a folder, not a file", "rename it, or name a file")
    if path.is_file() and not os.access(path, os.R_OK):
        raise containers.AudioError(path, "no permission to read it", "change its permissions")


def index(folder: Path, names: Iterable[str], decode: bool = False) -> dict[str, Fact | containers.AudioError]:
    """Length and digest of each file folder/name, or what is wrong with it; in the order of `names`.

    Facts are remembered in the cache, by folder, name, size and times of change, so that a second call reads no audio.
    decode: read every file to its end, remembered or not.
    """
    remembered = _memory(folder)
    memory = _read_memory(remembered)
    names = list(names)
    states = {name: _state(folder, name) for name in names}
    facts: dict[str, Fact | containers.AudioError] = {
        name: Fact(float(row[3]), row[4])
        for name in names
        if not decode and (row := memory.get(name)) and row[:3] == states[name]
    }
    fresh: dict[str, list[str]] = {}

    def inspect(name: str) -> None:
        path = folder / name
        try:
            _check_place(path)
            seconds, digest = audio.duration(path), hashes.file_sha256(path)
            if _state(folder, name) != states[name]:
                raise containers.AudioError(path, "changes while it is read", "let it be complete, then run again")
            if decode:
                read(path, digest)
            fresh[name] = [*states[name], repr(seconds), digest]
            facts[name] = Fact(seconds, digest)
        except containers.AudioError as error:
            facts[name] = error
        except OSError as error:
            problem = f"cannot be read ({error.strerror})"
            facts[name] = containers.AudioError(path, problem, "restore or remove it")

    wanted = [name for name in states if name not in facts]
    pool = ThreadPoolExecutor()  # reading and hashing let go of the interpreter's lock
    try:
        results = pool.map(inspect, wanted)
        for _ in tqdm(results, "inspecting audio", len(wanted), unit="file", disable=None, leave=False):
            pass
    finally:  # an interrupted inspection keeps what it has done
        pool.shutdown(cancel_futures=True)
        if fresh:
            rows = [[name, *row] for name, row in (memory | fresh).items()]
            atomic.write_atomic(remembered, lambda path: _write(path, rows))
    return {name: facts[name] for name in names}


def byte_changes(folder: Path) -> list[str]:
    """Files of a folder, one line each, whose bytes are not those remembered, though size and time of change are."""
    memory = _read_memory(_memory(folder))
    return [
        f"{folder / name}: its bytes have changed since it was first read; restore it from a copy or fetch it again"
        for name, row in memory.items()
        if _state(folder, name)[:2] == row[:2] and hashes.file_sha256(folder / name) != row[4]
    ]


def _memory(folder: Path) -> Path:
    return places.home() / "cache" / "files" / f"{hashes.content_key(str(folder.resolve()))}.csv"


def _state(folder: Path, name: str) -> list[str]:
    """Size and times of change, as they are remembered; empty if there is no such file. A copy may keep the time of
    the content, but never that of the entry.
    """
    try:
        state = os.stat(os.path.join(folder, name))
    except OSError:
        return []
    return [str(state.st_size), str(state.st_mtime_ns), str(state.st_ctime_ns)]


def _read_memory(path: Path) -> dict[str, list[str]]:
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return {row[0]: row[1:] for row in csv.reader(file) if len(row) == 6}


def _write(path: Path, rows: list[list]) -> None:
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows(rows)


def listing(folder: Path, suffixes: Collection[str] = SUFFIXES) -> list[str]:
    """What `walk` finds, sorted: of audio files, unless others are named. OSError: a folder that may not be read."""
    return sorted(walk(folder, suffixes))


def walk(
    folder: Path, suffixes: Collection[str], closed: dict[str, str] | None = None, links_last: bool = False
) -> Iterator[str]:
    """Paths of the files with such endings below the folder, relative to it; nothing hidden. Each folder that links
    lead to is entered once, under its own name if they come last.

    closed: filled with the folders that cannot be listed, and why; without it they raise OSError.
    """
    visits: set[tuple[int, int]] = set()
    folders, links = [""], list[str]()
    while folders or links:
        below = folders.pop() if folders else links.pop()
        try:
            state = os.stat(folder / below)
            if (state.st_dev, state.st_ino) in visits:
                continue
            visits.add((state.st_dev, state.st_ino))
            entries = os.scandir(folder / below)
        except OSError as error:
            if closed is None:
                raise
            closed[below] = f"{error.strerror}; make it readable"
            continue
        further: list[str] = []
        with entries:
            for entry in entries:
                path = f"{below}/{entry.name}" if below else entry.name
                with suppress(OSError):  # a loop of links
                    if entry.is_dir() and not entry.name.startswith("."):
                        (links if links_last and entry.is_symlink() else further).append(path)
                    elif is_audio(entry.name, suffixes):
                        yield path
        folders += sorted(further, reverse=True)
        links.sort(reverse=True)


def is_audio(name: str, suffixes: Collection[str] = SUFFIXES) -> bool:
    return os.path.splitext(name)[1].lower() in suffixes and not name.startswith(".")


def normal_spelling(path: str) -> str:
    """A path spelt one way for tables and file systems: NFC, small letters, blanks of any kind single and inside."""
    *folders, name = unicodedata.normalize("NFC", path).split("/")
    stem, suffix = os.path.splitext(name)
    *parts, suffix = (" ".join(part.split()).casefold() for part in (*folders, stem, suffix))
    return "/".join(parts) + suffix


def join(
    names: Iterable[str], there: Mapping[str, str], spellings: Iterable[Callable[[str], str]] = (str, normal_spelling)
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Which file each name of a table means: the files found by name, and those that a name could mean if there are
    several, or if several names could mean them.

    there: the files, each with the name that it goes by. spellings: under which names and files agree, the strictest
    first; a file that is found by one of them is no candidate for the next.
    """
    matches: dict[str, str] = {}
    unclear: dict[str, list[str]] = {}
    rest, free = list(dict.fromkeys(names)), dict(there)
    for spelling in spellings:
        files, counts = defaultdict(list), Counter(map(spelling, rest))
        for path, name in free.items():
            files[spelling(name)].append(path)
        for name in rest:
            here = files[spelling(name)]
            if len(here) == 1 == counts[spelling(name)]:
                matches[name] = here[0]
                del free[here[0]]
            elif here:
                unclear[name] = here
        rest = [name for name in rest if name not in matches and name not in unclear]
    return matches, unclear


def unclear_problem(where: str, paths: list[str]) -> Problem:
    """The problem of a name of a table that `join` calls unclear."""
    names = ", ".join(map(repr, paths[:3])) + (", …" if len(paths) > 3 else "")
    problem = f"its file could be {names}" + ("" if len(paths) > 1 else ", as another name's could")
    return Problem(where, problem, "give one file exactly the name in the table, and keep others alike elsewhere")


def location(name: str) -> Path:
    """The record of where a data set lies that is not in its own place in the home."""
    return places.home() / name / "location.json"


def locate(name: str, root: str | PathLike[str] | None) -> Path:
    """`root`, else the folder that `atr data <name> --from` recorded, else the data set's own place in the home.

    Raises FileNotFoundError, with the command that obtains the data set.
    """
    home, record = places.home() / name, location(name)
    if root is None and record.exists():
        try:
            root = str(atomic.read_object(record)["folder"])
        except (ValueError, KeyError) as error:
            mend = f"delete it and run: atr data {name} --from <folder>"
            raise ValueError(f"{record}: does not name a folder ({error!r}); {mend}") from None
    folder = home if root is None else Path(root).expanduser().absolute()
    if not folder.is_dir():
        mend = f"run: atr data {name}, or, if you have it: atr data {name} --from <folder>"
        if root is not None and record.exists():
            mend = f"bring it back, or delete {record} and {mend}"
        raise FileNotFoundError(f"{name}: no folder {folder}; {mend}")
    return folder


def first(
    folder: Path, bases: Iterable[str], names: Sequence[str], is_there: Callable[[Path], bool] = Path.is_file
) -> Path | None:
    """What is there under the first of the names, in the first of the bases below the folder."""
    return next((path for name in names for base in bases if is_there(path := folder / base / name)), None)


def unknown_layout(name: str, folder: Path, looked_for: str) -> CorpusError:
    """The error for a folder that does not hold the data set: what was looked for and what lies there."""
    there = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir() if not path.name.startswith("."))
    problem = f"looked for {looked_for}; found {csvtable.column_list(there) or 'nothing'}"
    mend = f"run: atr data {name}, or name the right folder: atr data {name} --from <folder>"
    return CorpusError(name, [Problem(str(folder), problem, mend)])


@dataclass(frozen=True)
class FileReader:
    """Reads a clip from its file.

    digests: the SHA-256 of each clip's file; a file that has another by now is an AudioError. paths: the audio files
    below `folder` of clips that are not named as theirs. table_counts: how many clips each split has by its
    table, with audio or without.
    """

    folder: Path
    digests: Mapping[str, str] = field(repr=False)
    paths: Mapping[str, str] = field(default_factory=dict, repr=False)
    table_counts: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, clip: str) -> tuple[np.ndarray, int]:
        if clip not in self.digests:
            raise KeyError(f"{self.folder}: no clip {clip!r} among {len(self.digests)}")
        return read(self.folder / self.paths.get(clip, clip), self.digests[clip])


def published_corpus(
    name: str,
    folder: Path,
    lists: Mapping[str, Mapping[str, list[str]]],
    paths: Mapping[str, str],
    source: str,
    missing: Callable[[str, str], Problem] | None = None,
    unclear: Mapping[str, list[str]] | None = None,
    limits: Mapping[str, tuple[float, float]] | None = None,
) -> Corpus:
    """The corpus of the listed clips that have audio.

    lists: split → clip → captions. paths: clip → audio file below `folder`; more than are listed may be there.
    missing: makes the problem of a clip (split, clip) without audio; None: such clips are left out.
    unclear: clips that several files could be, a problem. limits: the shortest and longest that a clip is by the data
    set, in seconds; a file that is clearly not gets a warning and is in `Corpus.doubts`, for some that were published
    are not either.
    A file that cannot be used is a problem, and its clip left out.
    """
    audio_files = {clip: paths[clip] for clips in lists.values() for clip in clips if clip in paths}
    facts = index(folder, audio_files.values())
    problems, doubts, rows, texts = [], [], [], []
    unclear, limits = unclear or {}, limits or {}
    for split, clips in lists.items():
        for clip, captions in clips.items():
            fact = facts.get(audio_files.get(clip, ""))
            if isinstance(fact, containers.AudioError):
                problems.append(Problem(fact.where, fact.problem, fact.mend))
            elif clip in unclear:
                problems.append(unclear_problem(f"{folder}, clip {clip!r}", unclear[clip]))
            elif fact is not None:
                rows.append((clip, split, fact.seconds, fact.digest, ""))
                texts += [(clip, text) for text in captions]
                if clip in limits and not _fits(fact.seconds, *limits[clip]):
                    least, most = limits[clip]
                    length = f"{most:.2f} s" if least == most else f"{least:.0f} to {most:.0f} s"
                    problem = f"{fact.seconds:.2f} s long where {name} states {length}"
                    where = str(folder / audio_files[clip])
                    doubts.append(Problem(where, problem, "fetch it again, or check that it is so"))
            elif missing is not None:
                problems.append(missing(split, clip))
    if doubts:
        first = ": ".join(doubts[0][:2])
        warnings.warn(f"{len(doubts)} of {len(rows)} files of {name} are too long or short, as {first}", stacklevel=3)
    digests = {clip: digest for clip, _, _, digest, _ in rows}
    reader = FileReader(folder, digests, audio_files, {split: len(clips) for split, clips in lists.items()})
    tables = clip_table(rows), caption_table(texts), event_table()
    return Corpus(name, *tables, reader, source, loading_problems=tuple(problems), repeats=True, doubts=tuple(doubts))


def _fits(seconds: float, least: float, most: float) -> bool:
    """Whether a length is what it should be, but for what cutting and compressing add or take."""
    return least - 0.5 - 0.05 * least <= seconds <= most + 0.5 + 0.05 * most


# What the papers used, by split, and the mean seconds of a clip: Mei et al. 2022, and Mei et al. 2023 for WavCaps.
PAPER_COUNTS: dict[str, dict[str, Any]] = {
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
    if not isinstance(corpus.read, FileReader) or corpus.name not in PAPER_COUNTS:
        raise ValueError(f"corpus {corpus.name!r}: coverage is known for {', '.join(PAPER_COUNTS)}")
    here = corpus.clips["split"].value_counts()
    splits = [split for split in SPLITS if split in corpus.read.table_counts]
    columns = {
        "split": splits,
        "clips here": [int(here.get(split, 0)) for split in splits],
        "clips in the list": [corpus.read.table_counts[split] for split in splits],
        "clips in the paper": [PAPER_COUNTS[corpus.name]["clips"][split] for split in splits],
    }
    return pd.DataFrame(columns)
