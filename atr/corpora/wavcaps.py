"""WavCaps (Mei et al. 2023, huggingface.co/datasets/cvssp/WavCaps): four sources, one generated caption a clip."""

import json
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

from atr import register
from atr.corpora import audio, files
from atr.corpora.corpus import Corpus, CorpusError, Problem
from atr.system import places

LISTS = {
    "AudioSet_SL": "as_final.json",
    "BBC_Sound_Effects": "bbc_final.json",
    "FreeSound": "fsd_final.json",
    "SoundBible": "sb_final.json",
}
BLACKLIST = "blacklist_exclude_all_ac.json"
BLACKLIST_SOURCES = {"AudioSet_SL": "AudioSet", "FreeSound": "FreeSound"}  # sources by their names in the blacklist
LAYOUT = (
    f"{', '.join(LISTS.values())} (here, in json_files/ or in json_files/<source>/) and folders of audio named "
    f"<source> or <source>_flac ({', '.join(LISTS)}), at any depth"
)


@register.corpus("wavcaps")
def load(
    root: str | PathLike[str] | None = None,
    *,
    sources: Iterable[str] = tuple(LISTS),
    exclude: bool = True,
    longest: float = audio.MAX_SECONDS,
) -> Corpus:
    """WavCaps from a folder, or from where `atr data wavcaps` was told that it lies; all of it is for training.

    sources: which of LISTS. A clip is named "<source>/<id>", since ids of different sources coincide.
    exclude: leave out the clips of Clotho and AudioCaps, by the data set's own blacklist.
    longest: leave out clips that are longer by the list, in seconds.
    Listed clips without audio are left out: `atr.corpora.coverage` counts them.

    Raises FileNotFoundError if there is nothing, CorpusError for a folder or list that cannot be used.
    """
    sources = list(sources)
    if unknown := sorted(set(sources) - set(LISTS)):
        raise ValueError(f"wavcaps: unknown source(s) {', '.join(unknown)}; known: {', '.join(LISTS)}")
    folder = files.locate("wavcaps", root)
    banned = _read(folder, BLACKLIST) if exclude else {}
    captions: dict[str, list[str]] = {}
    limits: dict[str, tuple[float, float]] = {}
    for source in sources:
        out = set(banned.get(BLACKLIST_SOURCES.get(source, ""), ()))
        for entry in _read(folder, LISTS[source])["data"]:
            clip = f"{source}/{entry['id'].removesuffix('.wav')}"
            if entry["id"] in out or float(entry["duration"]) > longest:
                continue
            captions[clip] = [entry["caption"]]
            limits[clip] = (float(entry["duration"]),) * 2
    paths, unclear = files.join(captions, sounds(folder))
    if not paths:
        raise files.unknown_layout("wavcaps", folder, LAYOUT)
    source = "WavCaps, huggingface.co/datasets/cvssp/WavCaps (CC BY 4.0, academic use); audio under its sources' terms"
    return files.published_corpus("wavcaps", folder, {"train": captions}, paths, source, unclear=unclear, limits=limits)


def sounds(folder: Path) -> dict[str, str]:
    """The clip of each audio file that is below the folder, listed or not, relative to it."""
    named = {place: source for source in LISTS for place in (source, f"{source}_flac")}
    paths = [(Path(path), path) for path in files.listing(folder)]
    return {path: f"{named[p.parent.name]}/{p.stem}" for p, path in paths if p.parent.name in named}


def complete(folder: Path) -> bool:
    """Whether the folder has all lists."""
    return all(_place(folder, name) for name in (*LISTS.values(), BLACKLIST))


def _place(folder: Path, name: str) -> Path | None:
    place = next((source for source, file in LISTS.items() if file == name), "blacklist")
    bases = ("", "json_files", place, f"json_files/{place}", f"WavCaps/json_files/{place}")
    return files.first(folder, bases, [name])


def _read(folder: Path, name: str) -> Any:
    """The content of a list, of the folder or else as `atr data wavcaps` fetched it, with its fields checked."""
    path = _place(folder, name) or _place(places.home() / "wavcaps", name)
    if path is None:
        raise files.unknown_layout("wavcaps", folder, f"{name}; {LAYOUT}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for entry in content["data"] if name != BLACKLIST else ():
            texts = isinstance(entry["id"], str) and isinstance(entry["caption"], str)
            if not texts or not float(entry["duration"]) >= 0:
                raise ValueError(f"entry {entry['id']!r}")
    except (ValueError, KeyError, TypeError) as error:
        problem = Problem(str(path), f"no list of id, caption and duration ({error!r})", "run: atr data wavcaps")
        raise CorpusError("wavcaps", [problem]) from None
    return content
