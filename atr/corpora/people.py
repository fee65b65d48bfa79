"""People's words for real recordings: ESC-50 joined with Clotho's captions by Freesound id. A test set, made here.

Both data sets took recordings from Freesound and say which. Nothing of them is redistributed: the two downloads are
read where they lie. Each describes a part of its own: ESC-50 has 5 s, Clotho's listeners heard 15 to 30 s.
"""

from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from atr import register
from atr.corpora import clotho, csvtable, files
from atr.corpora.corpus import Corpus, CorpusError, Problem

Folder = str | PathLike[str]
# Where tables lie in a folder: as published, as Mei et al. 2022 released them, or as a folder of captions alone has it.
CAPTIONS = ("clotho_captions_{official}.csv", "csv_files/{short}.csv", "clotho_{short}.csv", "{short}.csv")
METADATA = ("clotho_metadata_{official}.csv",)
SOURCE = (
    "recordings of ESC-50 (CC BY-NC 3.0 as a set, github.com/karolpiczak/ESC-50; each under its Freesound licence), "
    "captions of Clotho v2.1 (Tampere University, non-commercial, zenodo.org/record/4783391), joined by Freesound id"
)


class Places(NamedTuple):
    """The folder of ESC-50's recordings; Clotho's tables of captions and of metadata, by split."""

    sounds: Path
    captions: dict[str, Path]
    metadata: dict[str, Path]


@register.corpus("people")
def load(root: Folder | None = None, *, captions: Folder | None = None, metadata: Folder | None = None) -> Corpus:
    """Recordings of ESC-50 with the five captions that people gave them for Clotho: test clips alone.

    root: ESC-50 as published or as <class>/<fold>-<Freesound id>-<take>.ogg. captions, metadata: folders of Clotho's
    tables, as published or as Mei et al. 2022 released them. By default all lie where `atr data esc50` and
    `atr data clotho` put or found them.

    A clip is named by its recording's Freesound id. Where ESC-50 has several takes of a recording, its first one is
    heard. Clotho's captions may speak of what a take does not hold: `matches` says for each what is known.

    Raises FileNotFoundError that names all that is missing, CorpusError for what cannot be used.
    """
    places = locate(root, captions, metadata)
    table = matches(root, captions=captions, metadata=metadata)
    if table.empty:
        problem = Problem(
            str(places.sounds), "no recording that Clotho describes", "name ESC-50's folder: root=<folder>"
        )
        raise CorpusError("people", [problem])
    texts = {
        (split, files.normal_spelling(row["file_name"])): csvtable.captions_of(row)
        for split, path in places.captions.items()
        for row in csvtable.read_table("people", path, clotho.COLUMNS)
    }
    named = list(
        zip(table["clip"], table["clotho_split"], table["clotho_file"].map(files.normal_spelling), strict=True)
    )
    if lost := [f"{split}, {name!r}" for _, split, name in named if (split, name) not in texts]:
        mend = "fetch Clotho's captions and metadata again, both of v2.1: atr data clotho"
        raise CorpusError("people", [Problem(where, "in Clotho's metadata, without captions", mend) for where in lost])
    lists = {"test": {clip: texts[split, name] for clip, split, name in named}}
    paths = dict(zip(table["clip"], table["file"], strict=True))
    corpus = files.published_corpus("people", places.sounds, lists, paths, SOURCE)
    return replace(corpus, test_only=True)


def matches(
    root: Folder | None = None, *, captions: Folder | None = None, metadata: Folder | None = None
) -> pd.DataFrame:
    """What is known of each match, one row per recording, by its number; arguments and errors as in `load`.

    clip: its Freesound id; file: the take that is heard, of so many `takes` of ESC-50; clotho_split, clotho_file;
    start, seconds: of Clotho's excerpt in the recording, NaN where its metadata state none; licence: the recording's;
    sure: the same in words. That both are of one recording is certain; ESC-50 does not state where in it a take lies.
    """
    places = locate(root, captions, metadata)
    takes: dict[str, list[tuple[str, str]]] = {}
    for path in files.listing(places.sounds):
        name = Path(path).stem.split("-")  # fold, Freesound id, take, and as published the class's number
        if len(name) > 2 and name[1].isdecimal():
            takes.setdefault(name[1], []).append((name[2], path))
    rows: dict[str, tuple] = {}
    for split, of_split in places.metadata.items():
        for row in _metadata(of_split).to_dict("records"):
            clip = row["sound_id"].strip()
            if clip in takes and clip not in rows:
                excerpt = clotho.excerpt(row["start_end_samples"])
                start, seconds = excerpt or (float("nan"), float("nan"))
                letters = sorted({take for take, _ in takes[clip]})
                speech = _certainty(excerpt, len(letters))
                recording = min(takes[clip])[1]
                about = split, row["file_name"], start, seconds, row["license"]
                rows[clip] = clip, recording, len(letters), *about, speech
    columns = "clip file takes clotho_split clotho_file start seconds licence sure".split()
    return pd.DataFrame([rows[clip] for clip in sorted(rows, key=int)], columns=columns)


def _certainty(excerpt: tuple[float, float] | None, takes: int) -> str:
    """How sure a match is."""
    words = ["same recording"]
    if excerpt is None:
        words.append("Clotho states no excerpt")
    else:
        start, seconds = excerpt
        words.append(f"Clotho's excerpt is of {seconds:.1f} s from {start:.1f} s on, perhaps another part")
    if takes > 1:
        words.append(f"the first of {takes} takes")
    return "; ".join(words)


def _metadata(path: Path) -> pd.DataFrame:
    """A table of Clotho's metadata; CorpusError for what is none."""
    try:
        table = csvtable.frame(path, latin=True)  # as some of the published ones are
    except ValueError as error:
        raise CorpusError("people", [Problem(str(path), str(error), "fetch it again: atr data clotho")]) from None
    if lacks := {"file_name", "sound_id", "start_end_samples", "license"} - set(table):
        problem = Problem(str(path), f"no column {min(lacks)!r}", "fetch it again: atr data clotho")
        raise CorpusError("people", [problem])
    return table


def locate(root: Folder | None = None, captions: Folder | None = None, metadata: Folder | None = None) -> Places:
    """Where the two data sets lie; FileNotFoundError that names all that is missing, and what fetches it."""
    missing: list[str] = []
    sounds = _folder("esc50", root, missing)
    tables = []
    for name, place, names in (("captions", captions, CAPTIONS), ("metadata", metadata, METADATA)):
        folder = _folder("clotho", place, missing)
        by_split = {} if folder is None else _tables(folder, names)
        if folder is not None and len(by_split) < len(clotho.OFFICIAL):
            lacks = ", ".join(official for split, official in clotho.OFFICIAL.items() if split not in by_split)
            mend = f"run: atr data clotho, or name their folder: {name}=<folder>"
            missing.append(f"{folder}: no table of Clotho's {name} of {lacks} ({names[0]}); {mend}")
        tables.append(by_split)
    if missing or sounds is None:
        missing.append("Clotho is at zenodo.org/records/4783391, ESC-50 at github.com/karolpiczak/ESC-50")
        raise FileNotFoundError("people: " + ". ".join(dict.fromkeys(missing)))
    return Places(sounds, *tables)


def _folder(name: str, root: Folder | None, missing: list[str]) -> Path | None:
    """Where a data set lies; None if nowhere, with the reason in `missing`."""
    try:
        return files.locate(name, root)
    except FileNotFoundError as error:
        missing.append(str(error))
        return None


def _tables(folder: Path, names: tuple[str, ...]) -> dict[str, Path]:
    """The table of each split that is there."""
    by_split = {}
    for split, official in clotho.OFFICIAL.items():
        own = [name.format(official=official, short=clotho.SHORT[split]) for name in names]
        if path := files.first(folder, clotho.BASES, own):
            by_split[split] = path
    return by_split
