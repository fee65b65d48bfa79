"""`atr data`: what there is of data sets and checkpoints, how it is fetched, and whether it is whole."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import typer
from tqdm.auto import tqdm

from atr.cli.console import complain, print_table, say
from atr.corpora import SPLITS, catalogue, files
from atr.corpora.catalogue import DATASETS, Counts, _locate, state
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


def _agree(state: str, yes: bool) -> None:
    if not state.startswith("ready") and not yes and not typer.confirm("Go on?"):
        raise typer.Exit(1)


def fetch_checkpoint(name: str, yes: bool, quiet: bool) -> None:
    """`atr data <checkpoint>`: what it is, then, if one agrees, its file."""
    from atr.encoders import checkpoints

    entry = checkpoints.REGISTRY[name]
    size = "unknown" if entry.file.size is None else human(entry.file.size)
    facts = [f"download: {size}", f"licence: {entry.licence}", f"source: {entry.source}"]
    say(f"{name}: {entry.file.name}", *facts)
    _agree(checkpoint_state(entry.file), yes)
    say(f"→ {checkpoints.fetch(name, quiet)}")


def adopt(name: str, source: Path, quiet: bool) -> None:
    """`atr data <name> --from`: the folder is recorded, and what it has."""
    if name not in DATASETS:
        raise ValueError(f"--from: {name} is a checkpoint, which is fetched; known data sets: {', '.join(DATASETS)}")
    _show(name, catalogue.adopt(name, source, quiet))


def obtain(name: str, yes: bool, workers: int, again: bool, quiet: bool) -> None:
    """`atr data <name>`: what it is, then, if one agrees, all of it that is not here, and what is left to do."""
    say(*catalogue.announcement(name).split("\n"))
    _agree(state(name), yes)
    rest, counts = catalogue.obtain(name, workers, again, quiet)
    if rest:
        say(*rest.split("\n"))
    if counts is not None:
        _show(name, counts)


def _show(name: str, counts: Counts) -> None:
    say(f"{name}: {catalogue.folder(name)}")
    print_table(counts.clips)
    complain(counts.problems, "problems", most=50)


def from_hub(name: str, repo: str | None, split: Sequence[str] | None, yes: bool, quiet: bool) -> None:
    """`atr data <name> --hub`: what a copy has of each protocol, then, if one agrees, the clips of some splits."""
    from atr.evaluation import hub

    splits = split or SPLITS
    copy, here = hub.copy_of(name, repo), state(name)
    if here.startswith("ready") and _locate(name) != copy.folder:
        raise ValueError(f"{name} is {here}: nothing to fetch; without that, --hub fetches it")
    files_, set_ = copy.todo(splits), DATASETS[name]
    has = {clip for shard in copy.shards for clip in shard.clips if clip is not None}
    if path := hub.write_list(copy):  # before the table, which has a row for it
        say(f"→ {path}")
    print_table(copy.coverage(has), f"{copy.repo} at {copy.revision[:12]} has")
    size = human(sum(shard.file.size or 0 for shard in files_))
    say(f"download: {size} in {len(files_)} files, one after another", f"licence: {set_.licence}", f"to: {copy.folder}")
    _agree("partial" if files_ else "ready", yes)
    copy.fetch(splits, quiet)
    print_table(copy.coverage(copy.here()), f"{copy.folder} has")


def verify(quiet: bool = False) -> list[str]:
    """What is damaged of downloads, indexes and the cache, one line each; all whose hashes are known is read.

    Damaged entries of the cache are removed: they are made anew when they are needed.
    """
    from atr.encoders import checkpoints
    from atr.inference import indexes

    home, damage = places.home(), []
    paths = [(home / "checkpoints" / entry.file.name, entry.file) for entry in checkpoints.REGISTRY.values()]
    for name, set_ in DATASETS.items():
        for place in dict.fromkeys((home / name, _locate(name))):
            paths += [(place / file.name, file) for file in set_.files]
            for folder in (place, *(path for path in place.rglob("*") if path.is_dir())):
                damage += files.byte_changes(folder)
    for path, file in paths:
        if path.is_file():
            try:
                download.verify(path, file, quiet)
            except download.DownloadError as error:
                damage.append(str(error))
    for path in sorted(indexes.home().glob("*/")):
        damage += indexes.verify(path)
    for path in tqdm(sorted((home / "cache").glob("*/[!.]*/")), "cache", unit="entry", disable=quiet):
        if problem := store.damage(path, whole=True):
            store.discard(path)
            damage.append(f"{path}: damaged ({problem}); removed, it is made anew when it is needed")
    return damage
