"""Clotho v2.1 (Drossos et al. 2020, zenodo.org/record/4783391), and the DCASE 2022 task 6b evaluation set.

The splits train, validation and test are Clotho's development, validation and evaluation.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePosixPath

import pandas as pd

from atr import register
from atr.corpora import csvtable, files
from atr.corpora.corpus import Corpus, CorpusError, Problem

OFFICIAL = {"train": "development", "validation": "validation", "test": "evaluation"}
SHORT = {"train": "train", "validation": "val", "test": "test"}  # as the released code of Mei et al. 2022 names them
BASES = ("", "clotho_csv_files", "clotho_audio_files", "Clotho", "clotho", "CLOTHO_v2.1")
LAYOUT = (
    "clotho_captions_<split>.csv with <split>/ or clotho_audio_<split>/ (split: development, validation, evaluation), "
    "or csv_files/<split>.csv with waveforms/<split>/ (train, val, test), here or in Clotho/"
)
COLUMNS = ("file_name", *csvtable.caption_columns(5))
SECONDS = (15.0, 30.0)  # shortest and longest clip
PHI4 = "clotho_captions_development_plus_phi_generated.csv"
RATE = 44_100  # of the samples in which the metadata tables give a clip's start and end in its recording


@register.corpus("clotho")
def load(root: str | PathLike[str] | None = None) -> Corpus:
    """Clotho from a folder, or from where `atr data clotho` put or found it.

    Clips are named as their files, without the suffix; four names of v2.1 belong to two splits each, and such a clip
    has its split in front: "train/Bus(Drive_Reverse)_1-2". Five captions a clip.
    Clotho is complete by definition: a listed clip without audio is a problem of the corpus. Clips are 15 to 30 s long,
    or as the metadata tables say where these lie beside the captions; others are doubts.

    Raises FileNotFoundError if there is nothing, CorpusError for a folder or table that cannot be used.
    """
    folder = files.locate("clotho", root)
    places = layout(folder)
    tables = {split: csvtable.read_table("clotho", table, COLUMNS) for split, (table, _) in places.items()}
    clips = by_clip(tables, {split: table for split, (table, _) in places.items()})
    lists: dict[str, dict[str, list[str]]] = {}
    paths: dict[str, str] = {}
    unclear: dict[str, list[str]] = {}
    limits: dict[str, tuple[float, float]] = {}
    for split, rows in tables.items():
        table, sounds = places[split]
        here = {path: PurePosixPath(path).name for path in files.listing(sounds)}
        spellings = (str, _stem, lambda name: files.normal_spelling(_stem(name)))
        matches, several = files.join((row["file_name"] for row in rows), here, spellings)
        excerpts = _excerpts(table)
        lists[split] = {}
        for clip, row in clips[split].items():
            lists[split][clip] = csvtable.captions_of(row)
            limits[clip] = excerpts.get(files.normal_spelling(row["file_name"]), SECONDS)
            if row["file_name"] in several:
                unclear[clip] = several[row["file_name"]]
            elif row["file_name"] in matches:
                paths[clip] = (sounds / matches[row["file_name"]]).relative_to(folder).as_posix()

    def missing(split: str, clip: str) -> Problem:
        mend = "fetch or unpack the archive again: atr data clotho"
        return Problem(f"{places[split][0].name}, {clip!r}", f"no audio file in {places[split][1]}", mend)

    source = "Clotho v2.1, zenodo.org/record/4783391; audio under the licences of its Freesound files, captions of TAU"
    return files.published_corpus("clotho", folder, lists, paths, source, missing, unclear, limits)


def by_clip(
    tables: Mapping[str, list[dict[str, str]]], paths: Mapping[str, Path]
) -> dict[str, dict[str, dict[str, str]]]:
    """The rows of the caption tables, by split and by the clip's name. CorpusError: a file that is listed twice."""
    count = Counter(_stem(row["file_name"]) for rows in tables.values() for row in rows)
    by_split: dict[str, dict[str, dict[str, str]]] = {split: {} for split in tables}
    for split, rows in tables.items():
        for row in rows:
            name = _stem(row["file_name"])
            clip = name if count[name] == 1 else f"{split}/{name}"
            if clip in by_split[split]:
                problem = Problem(f"{paths[split]}, {row['file_name']!r}", "listed twice", "fetch the table again")
                raise CorpusError("clotho", [problem])
            by_split[split][clip] = row
    return by_split


def _stem(name: str) -> str:
    return PurePosixPath(name).stem


def _excerpts(captions: Path) -> dict[str, tuple[float, float]]:
    """The length, twice, of each file that the metadata table beside a table of captions gives as an excerpt."""
    path = captions.with_name(captions.name.replace("_captions_", "_metadata_"))
    if path == captions or not path.is_file():
        return {}
    table = csvtable.frame(path, latin=True)  # as some of the published ones are
    if not {"file_name", "start_end_samples"} <= set(table):
        return {}
    named = zip(table["file_name"].map(files.normal_spelling), map(excerpt, table["start_end_samples"]), strict=True)
    return {name: (part[1], part[1]) for name, part in named if part and part[1] > 0}


def excerpt(samples: str) -> tuple[float, float] | None:
    """Start and length in seconds of a clip in its recording, by its cell "[start, end]"; None where it states none."""
    numbers = re.fullmatch(r"\[(\d+), (\d+)\]", samples)
    if numbers is None:
        return None
    start, end = int(numbers[1]), int(numbers[2])
    return start / RATE, (end - start) / RATE


def layout(folder: Path) -> dict[str, tuple[Path, Path]]:
    """The caption table and the audio folder of each split; CorpusError if the folder is not laid out as Clotho."""
    places = {}
    for split, official in OFFICIAL.items():
        tables = [f"clotho_captions_{official}.csv", f"csv_files/{SHORT[split]}.csv"]
        archive = f"clotho_audio_{official}"
        folders = [official, f"{archive}/{official}", archive, f"waveforms/{SHORT[split]}"]
        table, sounds = files.first(folder, BASES, tables), files.first(folder, BASES, folders, Path.is_dir)
        if table is None or sounds is None:
            raise files.unknown_layout("clotho", folder, LAYOUT)
        places[split] = table, sounds
    return places


@dataclass(frozen=True)
class EvaluationSet:
    """The evaluation set of DCASE 2022 task 6b: audio to rank for queries whose answers are not published.

    clips: clip, duration (seconds), digest. queries: the captions; ids: of the queries, in the same order.
    read: gives a clip's audio.
    """

    clips: pd.DataFrame
    queries: list[str]
    ids: list[str]
    read: files.FileReader


def evaluation(root: str | PathLike[str] | None = None) -> EvaluationSet:
    """The DCASE 2022 task 6b evaluation set (zenodo.org/record/6590983): 1,000 clips and 1,000 queries.

    The record holds no ground truth, so no metric can be computed here; results go to the challenge's format.
    The published table has no ids: a query's id is its row, from 0, as text.

    Raises FileNotFoundError if there is nothing, CorpusError for what cannot be used.
    """
    name = "dcase2022"
    folder = files.locate(name, root)
    table = folder / "retrieval_captions.csv"
    sounds = files.first(folder, [""], ("retrieval_audio", "test"), Path.is_dir)
    if sounds is None or not table.is_file():
        raise files.unknown_layout(name, folder, "retrieval_captions.csv and retrieval_audio/ or test/")
    queries = [row["caption"] for row in csvtable.read_table(name, table, ("caption",))]
    here: dict[str, list[str]] = {}
    for path in files.listing(sounds):
        here.setdefault(_stem(path), []).append((sounds / path).relative_to(folder).as_posix())
    paths = {clip: candidates[0] for clip, candidates in here.items()}
    unclear = {clip: candidates for clip, candidates in here.items() if len(candidates) > 1}
    corpus = files.published_corpus(name, folder, {"test": {clip: [] for clip in paths}}, paths, "", unclear=unclear)
    if corpus.loading_problems:
        raise CorpusError(name, corpus.loading_problems)
    assert isinstance(corpus.read, files.FileReader)
    clips = corpus.clips[["clip", "duration", "digest"]]
    return EvaluationSet(clips, queries, [str(row) for row in range(len(queries))], corpus.read)


def answers(root: str | PathLike[str] | None = None) -> dict[str, list[str]]:
    """The queries of DCASE 2025 task 6, captions of Clotho's evaluation split, each with the clips that answer it.

    Clips are named as their files, without the suffix. A caption's own clip need not be among them.
    root: the folder of metadata_eval.csv (github.com/CPJKU/dcase2025_task6_baseline), by default where
    `atr data dcase2025` put or found it.

    Raises FileNotFoundError if there is nothing, CorpusError for what cannot be used.
    """
    name = "dcase2025"
    table = files.locate(name, root) / "metadata_eval.csv"
    if not table.is_file():
        raise files.unknown_layout(name, table.parent, table.name)
    files_of: dict[str, list[str]] = {}
    for row in csvtable.read_table(name, table, ("query", "audio_filenames")):
        try:
            sounds = ast.literal_eval(row["audio_filenames"])
            files_of[row["query"]] = [_stem(file) for file in dict.fromkeys(sounds)]
        except (ValueError, SyntaxError, TypeError) as error:
            problem = Problem(f"{table}, {row['query']!r}", f"no list of file names ({error})", "fetch it again")
            raise CorpusError(name, [problem]) from None
    return files_of


def phi4(table: Path | None = None) -> list[tuple[str, list[str], list[str]]]:
    """The clips of Clotho's development split, as files, with five captions each by people and five by phi-4, which
    Tymofieiev 2025 published. table: by default where `atr data phi4` put or found it.

    Raises FileNotFoundError if there is nothing, CorpusError for what cannot be used.
    """
    columns = csvtable.caption_columns(10)
    rows = csvtable.read_table("phi4", table or files.locate("phi4", None) / PHI4, ("file_name", *columns))
    return [(row["file_name"], [row[c] for c in columns[:5]], [row[c] for c in columns[5:]]) for row in rows]


def phi4_captions(clips: Iterable[str]) -> dict[str, list[str]]:
    """phi-4's captions of training clips of Clotho. ValueError: clips that the table lacks; else as in `phi4`."""
    by_name = {files.normal_spelling(_stem(file)): texts for file, _, texts in phi4()}
    captions = {clip: by_name.get(files.normal_spelling(clip.removeprefix("train/")), []) for clip in clips}
    if lacking := [clip for clip, texts in captions.items() if not texts]:
        raise ValueError(
            f"{PHI4}: no captions of {len(lacking)} of {len(captions)} training clips, as {lacking[0]!r}; they are "
            "for Clotho alone; if it is that, fetch them again: atr data phi4"
        )
    return captions
