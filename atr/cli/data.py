"""`atr data`: what there is of data sets and checkpoints, and whether it is whole."""

import pandas as pd
from tqdm.auto import tqdm

from atr.corpora import files
from atr.corpora.catalogue import DATASETS, _located, state
from atr.system import download, places, store
from atr.system.download import File
from atr.system.units import human


def status() -> pd.DataFrame:
    """All data sets and checkpoints: name, what it is, bytes to fetch, bytes on disk, licence, state here."""
    from atr.encoders import checkpoints

    rows = [
        (name, set_.title.partition(":")[0], human(set_.download), human(set_.disk), set_.licence, state(name))
        for name, set_ in DATASETS.items()
    ]
    for name, entry in checkpoints.REGISTRY.items():
        size = "unknown" if entry.file.size is None else human(entry.file.size)
        here = checkpoint_state(entry.file)
        rows.append((name, "checkpoint", size, size, entry.licence, here))
    return pd.DataFrame(rows, columns=["name", "what", "download", "on disk", "licence", "here"])


def checkpoint_state(file: File) -> str:
    path = places.home() / "checkpoints" / file.name
    return "ready" if path.exists() else "partial" if path.with_name(f"{path.name}.part").exists() else "absent"


def verify(quiet: bool = False) -> list[str]:
    """What is damaged of downloads, indexes and the cache, one line each; all whose hashes are known is read.

    Damaged entries of the cache are removed: they are made anew when they are needed.
    """
    from atr.encoders import checkpoints
    from atr.inference import search

    home, found = places.home(), []
    kept = [(home / "checkpoints" / entry.file.name, entry.file) for entry in checkpoints.REGISTRY.values()]
    for name, set_ in DATASETS.items():
        for place in dict.fromkeys((home / name, _located(name))):
            kept += [(place / file.name, file) for file in set_.files]
            for folder in (place, *(path for path in place.rglob("*") if path.is_dir())):
                found += files.changed(folder)
    for path, file in kept:
        if path.is_file():
            try:
                download.verify(path, file, quiet)
            except download.DownloadError as error:
                found.append(str(error))
    for path in sorted(search.home().glob("*/")):
        found += search.verify(path)
    for path in tqdm(sorted((home / "cache").glob("*/[!.]*/")), "cache", unit="entry", disable=quiet):
        if problem := store.damage(path, whole=True):
            store.discard(path)
            found.append(f"{path}: damaged ({problem}); removed, it is made anew when it is needed")
    return found
