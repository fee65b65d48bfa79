"""Zero-shot classification as retrieval: a recording's class is the sentence that it finds first."""

import re
from dataclasses import replace
from pathlib import Path

from atr.corpora import catalogue, files
from atr.corpora.corpus import Corpus
from atr.corpora.scenes import clipfolder

SOURCE = "ESC-50 (CC BY-NC 3.0 as a set, github.com/karolpiczak/ESC-50), or recordings in folders named by their class"


def recordings(root: str | Path | None, template: str) -> Corpus:
    """Recordings in folders named by their class, or ESC-50 as published, all as the split test. Each has one caption:
    the template with its class's name in the place of {}.

    root: by default where `atr data esc50` put or found ESC-50. Clips are named by their paths. Raises
    FileNotFoundError if there is nothing, CorpusError for a folder that cannot be used.
    """
    folder = catalogue.esc50() if root is None else Path(root).expanduser().resolve()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder; give --root=<folder of class folders>, or run: atr data esc50"
        )
    if (folder / "meta" / "esc50.csv").is_file():
        classes = {path: row["category"] for row, _, path in clipfolder.esc50(folder)}
    else:
        classes = {path: path.split("/")[0] for path in files.listing(folder) if path.count("/") == 1}
    if not classes:
        raise files.unknown_layout("esc50", folder, "folders of recordings named by their class, or meta/esc50.csv")
    texts = {path: [template.format(re.sub(r"[\W_]+", " ", name).strip().lower())] for path, name in classes.items()}
    part = files.published_corpus("esc50", folder, {"test": texts}, {path: path for path in classes}, SOURCE)
    return replace(part, test_only=True).check()


def fold(clip: str) -> str:
    """The digit before the first "-" of a recording's name, where it has one as ESC-50's have; else nothing."""
    match = re.match(r"(\d)-", clip.rpartition("/")[2])
    return match[1] if match else ""


def recording(clip: str) -> str:
    """What a take was cut from: the Freesound id of a name as ESC-50's are; else the clip itself."""
    match = re.match(r"\d-(\d+)-", clip.rpartition("/")[2])
    return match[1] if match else clip
