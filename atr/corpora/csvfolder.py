"""A table of captions and a folder of audio as a corpus."""

import math
import os
import posixpath
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path, PureWindowsPath

import pandas as pd

from atr import register
from atr.corpora import containers, copies, csvtable, files
from atr.corpora.corpus import (
    EVENT_TOLERANCE,
    SPLITS,
    Corpus,
    CorpusError,
    Problem,
    caption_table,
    clip_table,
    event_table,
)
from atr.system import hashes

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "dev", "development"), "train"),
    **dict.fromkeys(("validation", "val", "valid"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


@register.corpus("csv")
def load(
    root: str | PathLike[str], *, table: str = "captions.csv", audio: str | None = None, split: str | None = None
) -> Corpus:
    """The corpus of `root/table` and the audio files that it names.

    table: comma-separated, in UTF-8, with the columns
        file_name   path of the audio file below the audio folder
        caption, or caption_1, caption_2, …; a file may also have several rows
        split       optional: train, validation or test. training, val, valid, testing, eval and evaluation are
                    understood; dev and development mean train, as in Clotho, or validation where the column has train
                    too. Without the column the SHA-256 of the file name decides: 80 % train, 10 % validation,
                    10 % test; copies of a recording (`copies`) go where the first of them goes.
    audio: the audio folder, relative to `root`; `root` itself if None.
    split: of all files, in place of the column and the hash; with "test" nothing can be trained on the corpus.
    root/events.csv, optional: file_name, event, onset, offset (seconds). It may cover more files than the table.

    A table or folder that cannot be read at all raises CorpusError. A row with a problem is left out and the problem
    listed, with its line, by `Corpus.problems`; `Corpus.check`, and so `atr.load_corpus`, refuses such a corpus.
    """
    if split is not None and split not in SPLITS:
        raise ValueError(f"csv: split {split!r}; known: {', '.join(SPLITS)}")
    sheet, events = _open(Path(root), table, audio)
    sheet.validate(decode=False, split=split)
    facts, rows = sheet.facts, sheet.good()
    split_of = {sheet.clips[row]: sheet.splits[row] for row in rows}
    if split is None and "split" not in sheet.header:
        for name in SPLITS[1:]:
            if split_of and name not in split_of.values():
                problem = f"split by the hash of their names, its {len(split_of)} files leave none for {name}"
                sheet.problems.append(Problem(table, problem, "add a column 'split'"))
    texts: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        texts[sheet.clips[row]] += [text for _, text in sheet.captions(row)]
    spans = _events(events, sheet.folder, {clip: facts[clip].seconds for clip in split_of}) if events else []
    digests, paths = {clip: facts[clip].digest for clip in split_of}, {clip: sheet.paths[clip] for clip in split_of}
    return Corpus(
        name="csv",
        clips=clip_table([(clip, its, *facts[clip], "") for clip, its in split_of.items()]),
        captions=caption_table([(clip, text) for clip in split_of for text in texts[clip]]),
        events=event_table(spans),
        read=files.FileReader(sheet.folder, digests, paths),
        source=f"own data: {table} in {Path(root).resolve().name}{copies.in_words(sheet.together)}",
        loading_problems=(*sheet.problems, *(events.problems if events else ())),
        test_only=split == "test",
    )


def split_names(written: Iterable[str]) -> dict[str, str]:
    """What each name of a split means where a table has these, in small letters."""
    return SPLIT_NAMES | (dict.fromkeys(("dev", "development"), "validation") if "train" in written else {})


def clean_table(root: str | PathLike[str], *, table: str = "captions.csv", audio: str | None = None) -> pd.DataFrame:
    """The table as it stands in the file, as text, without the rows that have problems; every audio file is decoded.

    Of rows that repeat one another the first stays; of a file in two splits none does, since nobody knows which row is
    right. Raises CorpusError where `load` does.
    """
    sheet, _ = _open(Path(root), table, audio)
    sheet.validate(decode=True)
    return pd.DataFrame([sheet.rows[row] for row in sheet.good()], columns=sheet.header, dtype="str")


@dataclass
class _Sheet:
    """A CSV file's cells, and what is wrong with which of its rows."""

    name: str
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)  # where each row begins in the file
    problems: list[Problem] = field(default_factory=list)
    bad: set[int] = field(default_factory=set)

    @cached_property
    def places(self) -> dict[str, int]:
        return {column: place for place, column in enumerate(self.header)}

    def raw(self, row: int, column: str) -> str:
        return self.rows[row][self.places[column]]

    def cell(self, row: int, column: str) -> str:
        return self.raw(row, column).strip()

    def good(self) -> list[int]:
        return [row for row in range(len(self.rows)) if row not in self.bad]

    def reject(self, rows: list[int], problem: str, mend: str, column: str = "") -> None:
        """List one problem, at the first of the rows that it spoils."""
        where = f"{self.name}, line {self.lines[rows[0]]}" + (f", {column}" if column else "")
        self.problems.append(Problem(where, problem, mend))
        self.bad.update(rows)


def _open(root: Path, table: str, audio: str | None) -> tuple["_CaptionSheet", _Sheet | None]:
    """The two tables; CorpusError if one of them, or the audio folder, is unusable as a whole."""
    sheet, events, fatal = _CaptionSheet(table, folder=root / (audio or "")), None, []
    if not sheet.folder.is_dir():
        fatal.append(Problem(str(sheet.folder), "no such folder of audio", "create it or name the right one"))
    fatal += _read(sheet, root / table, ("file_name",))
    columns = sheet.caption_columns if sheet.header else []
    if sheet.header and not columns:
        fatal.append(
            Problem(table, f"no caption column ({_header_of(sheet)})", "add 'caption', or 'caption_1' and so on")
        )
    for column in sheet.header:
        small = column.lower()
        if column != small and (small == "split" or csvtable.CAPTION_COLUMN.fullmatch(small)):
            fatal.append(Problem(table, f"column {column!r} would go unread", f"write it in small letters: {small}"))
    if "caption" in columns and len(columns) > 1:
        fatal.append(Problem(table, "both 'caption' and numbered caption columns", "keep one of the two forms"))
    if (root / "events.csv").exists():
        events = _Sheet("events.csv")
        fatal += _read(events, root / "events.csv", ("file_name", "event", "onset", "offset"))
    if fatal:
        raise CorpusError("csv", fatal)
    return sheet, events


def _header_of(sheet: _Sheet) -> str:
    return f"the header has {csvtable.column_list(sheet.header)}"


def _read(sheet: _Sheet, path: Path, required: tuple[str, ...]) -> list[Problem]:
    """Fill the sheet from its file; returns what makes the file unusable as a whole."""
    table = csvtable.read_csv(path, sheet.name)
    if isinstance(table, Problem):
        return [table]
    sheet.header, sheet.rows, sheet.lines = table
    problems = []
    for column in required:
        if column not in sheet.header:
            commas = len(sheet.header) > 1 and not any(mark in name for name in sheet.header for mark in ";\t")
            mend = "rename or add it" if commas else "save the table with commas between its columns"
            problems.append(Problem(sheet.name, f"no column {column!r} ({_header_of(sheet)})", mend))
    for row, problem in table.uneven.items():
        sheet.reject([row], problem, "put quotes around a text that contains commas")
    return problems


def _clip(name: str) -> str:
    """One spelling a file, so that './a.wav' and 'a.wav' are the same clip; empty for a path out of the folder."""
    path = posixpath.normpath(name)
    outside = path in (".", "..") or path.startswith(("../", "/")) or PureWindowsPath(name).is_absolute()
    return "" if outside else path


def _split_of_name(clip: str) -> str:
    place = int(hashes.sha256(clip)[:16], 16) / 2**64
    return "train" if place < 0.8 else "validation" if place < 0.9 else "test"


@dataclass
class _CaptionSheet(_Sheet):
    """The table of captions.

    clips, splits: of each row. paths: of each clip. facts: of each clip whose file can be used. together: where the
    splits are drawn, the first of each clip's copies.
    """

    folder: Path = Path()
    clips: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    paths: dict[str, str] = field(default_factory=dict)
    facts: dict[str, files.Fact] = field(default_factory=dict)
    together: dict[str, str] = field(default_factory=dict)

    @cached_property
    def caption_columns(self) -> list[str]:
        return [column for column in self.header if csvtable.CAPTION_COLUMN.fullmatch(column)]

    def captions(self, row: int) -> list[tuple[str, str]]:
        """The row's captions with their columns."""
        return [(name, self.cell(row, name)) for name in self.caption_columns]

    def rows_of_clips(self, rows: Iterable[int]) -> dict[str, list[int]]:
        """The given rows of each clip, in order; rows without a clip are left out."""
        groups = defaultdict(list)
        for row in rows:
            if self.clips[row]:
                groups[self.clips[row]].append(row)
        return groups

    def validate(self, decode: bool, split: str | None = None) -> None:
        """Reject every row with a problem, and fill what is known of rows and clips. split: of all, if given."""
        self.clips, self.splits = [""] * len(self.rows), [split or ""] * len(self.rows)
        whole, by_hash = self.good(), split is None and "split" not in self.header
        written = [split or ("" if by_hash else self.cell(row, "split").lower()) for row in whole]
        names = split_names(written)
        for row, split in zip(whole, written, strict=True):
            self._read_name(row)
            if not by_hash:
                self.splits[row] = names.get(split, "")
                if not self.splits[row]:
                    self.reject([row], f"unknown split {split!r}", f"use one of {', '.join(SPLITS)}", "split")
        self._reject_captions(whole)
        self._reject_files(decode)
        if by_hash:
            self._reject_undecodable()
            self.splits = [_split_of_name(self.together.get(clip, clip)) for clip in self.clips]
        self._reject_splits()

    def _read_name(self, row: int) -> None:
        name, exact = self.cell(row, "file_name"), self.raw(row, "file_name")
        if name != exact and _clip(exact) and (self.folder / _clip(exact)).is_file():
            name = exact  # blanks outside may belong to it
        self.clips[row] = _clip(name) if name else ""
        if not name:
            self.reject([row], "no file name", "write it or remove the row", "file_name")
        elif not self.clips[row]:
            self.reject([row], f"{name!r} lies outside the audio folder", "give a path below it", "file_name")

    def _reject_captions(self, whole: list[int]) -> None:
        first_row: dict[tuple[str, ...], int] = {}
        first_text: dict[tuple[str, str], int] = {}
        for row in whole:
            captions = self.captions(row)
            for column, text in captions:
                if not text:
                    self.reject([row], "empty caption", "write one, or use one row per caption", column)
            earlier = first_row.setdefault(tuple(self.rows[row]), row)
            if earlier != row:
                self.reject([row], f"the same row as line {self.lines[earlier]}", "remove one of them")
                continue
            here: set[str] = set()
            for column, text in captions:
                earlier = first_text.get((self.clips[row], text), row)
                if text and (text in here or earlier != row):
                    problem = f"caption as in line {self.lines[earlier]}, of the same file: {text!r}"
                    self.reject([row], problem, "keep it once", column)
                here.add(text)
            if row not in self.bad:
                first_text.update({(self.clips[row], text): row for _, text in captions})

    def _reject_files(self, decode: bool) -> None:
        """Find the file of each clip, the exact one or the only one spelt alike."""
        rows = self.rows_of_clips(range(len(self.clips)))
        self.paths = {clip: clip for clip in rows}
        if astray := [clip for clip in rows if not os.path.lexists(self.folder / clip)]:
            suffixes = {os.path.splitext(clip)[1].strip().lower() for clip in astray}
            there = {path: path for path in files.listing(self.folder, suffixes) if path not in rows}
            matches, unclear = files.join(astray, there, (files.normal_spelling,))
            self.paths |= matches
            for clip, several in unclear.items():
                del self.paths[clip]
                self.reject(rows[clip], *files.unclear_problem("", several)[1:], "file_name")
        inspected = files.index(self.folder, self.paths.values(), decode=decode)
        for clip, path in self.paths.items():
            fact = inspected[path]
            if isinstance(fact, containers.AudioError):
                self.reject(rows[clip], f"{fact.where}: {fact.problem}", fact.mend, "file_name")
            else:
                self.facts[clip] = fact

    def _reject_undecodable(self) -> None:
        """Find the copies; the rows of files that cannot be decoded are rejected."""
        rows = self.rows_of_clips(self.good())
        clip_of = {self.paths[clip]: clip for clip in sorted(rows)}
        first, errors = copies.groups(self.folder, {path: self.facts[clip].digest for path, clip in clip_of.items()})
        for error in errors:
            clip = clip_of[Path(error.where).relative_to(self.folder).as_posix()]
            self.reject(rows[clip], f"{error.where}: {error.problem}", error.mend, "file_name")
        self.together = {clip_of[path]: clip_of[other] for path, other in first.items()}

    def _reject_splits(self) -> None:
        for clip, rows in self.rows_of_clips(self.good()).items():
            used = {self.splits[row] for row in rows}
            if len(used) > 1:
                lines = ", ".join(str(self.lines[row]) for row in rows[:12]) + (", …" if len(rows) > 12 else "")
                problem = f"{clip!r} is in {len(used)} splits (lines {lines})"
                self.reject(rows, problem, "keep it in one of them", "split")
        first: dict[str, tuple[str, str]] = {}
        for clip, rows in self.rows_of_clips(self.good()).items():
            other, split = first.setdefault(self.facts[clip][1], (clip, self.splits[rows[0]]))
            if split != self.splits[rows[0]]:
                problem = f"{clip!r} holds the same bytes as {other!r}, which is in another split ({split})"
                self.reject(rows, problem, "remove one of them or put both into one split", "file_name")


def _events(sheet: _Sheet, folder: Path, durations: dict[str, float]) -> list[tuple[str, str, float, float]]:
    """The events of the corpus's clips; rows with a problem are rejected."""
    values = []
    written = {row: sheet.cell(row, "file_name") for row in sheet.good()}
    own, _ = files.join((_clip(name) for name in written.values() if name), {clip: clip for clip in durations})
    for row, name in written.items():
        event = sheet.cell(row, "event")
        clip = own.get(_clip(name), _clip(name)) if name else ""
        if clip not in durations:
            if not clip or not (folder / clip).is_file():
                problem = f"no file {name!r} in the audio folder"
                sheet.reject([row], problem, "correct it or remove the row", "file_name")
            continue
        if not event:
            sheet.reject([row], "no event", "name it or remove the row", "event")
        onset, offset = (_number(sheet.cell(row, column)) for column in ("onset", "offset"))
        if not 0 <= onset < offset <= durations[clip] + EVENT_TOLERANCE:
            problem = f"from {sheet.cell(row, 'onset')!r} to {sheet.cell(row, 'offset')!r} s"
            mend = f"give 0 <= onset < offset <= {durations[clip]:.2f}, the clip's length"
            sheet.reject([row], problem, mend, "onset, offset")
        if row not in sheet.bad:
            values.append((clip, event, onset, offset))
    return values


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
