"""Protocols: what exactly a model is evaluated on, in files that have a hash."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from atr.corpora import corpus_of, in_folder
from atr.corpora.corpus import Corpus
from atr.metrics.retrieval import Relevance
from atr.system import hashes

FOLDER = Path(__file__).parent / "protocols"
CAPTIONS = ("given", "joined", "sentences")


@dataclass(frozen=True)
class Protocol:
    """What a model is evaluated on, and against which published numbers it may be held.

    corpus    as `RunConfig.corpus`; its split test is evaluated on
    captions  "given": each is a query; "joined": those of a clip are one; "sentences": each is split at full stops, and
              its parts are queries
    clips     how many clips, and
    queries   how many queries it has by its source; None where that is the user's affair
    source    where it comes from

    Everywhere the same: every query meets every clip, ties go against the model (`metrics.retrieval`), recalls are cut
    at 1, 5 and 10, mean average precision at 10 and 16.
    """

    name: str
    title: str
    corpus: Mapping[str, Any]
    source: str
    captions: str = "given"
    clips: int | None = None
    queries: int | None = None

    @cached_property
    def hash(self) -> str:
        """Of all that it says but its title and source."""
        parts = (dict(self.corpus), self.captions, self.clips, self.queries)
        return hashes.content_key("protocol", 1, *parts)[:12]

    def load(self, root: str | Path | None = None) -> Corpus:
        """The clips and captions that are here, of one split. root: a folder of one's own, where the corpus lies in
        one. ValueError: no clip to evaluate on. Errors of the loader.
        """
        options, folder = dict(self.corpus), in_folder(self.corpus["name"])
        if folder and root is None:
            raise ValueError(
                f"protocol {self.name}: needs a folder of sounds with captions.csv; give it: --root <folder>"
            )
        if folder and not _has_splits(Path(root or "")):
            options["split"] = "test"
        part = corpus_of(options, root).split("test")
        if not len(part):
            raise ValueError(f"protocol {self.name}: no clips in the split test of {root or options['name']}")
        return part

    def ask(self, part: Corpus) -> "tuple[list[str], np.ndarray, Relevance]":
        """Of what `load` gave: the queries, the clip (queries,) that each was made from, and which clips answer which.

        ValueError: a query without a word.
        """
        rows = list(range(len(part.captions)))
        texts, own, relevance = part.captions["caption"].tolist(), part.clip_of_caption(), part.relevance()
        if self.captions == "joined":
            rows = [int(np.flatnonzero(own == clip)[0]) for clip in dict.fromkeys(own)]
            texts = [" ".join(part.captions["caption"][own == own[row]]) for row in rows]
        elif self.captions == "sentences":
            parts = [(row, piece) for row in rows for piece in re.split(r"\.+", texts[row]) if piece.strip()]
            rows, texts = [row for row, _ in parts], [piece.strip() for _, piece in parts]
        if empty := [text for text in texts if not re.search(r"\w", text)]:
            raise ValueError(
                f"protocol {self.name}: {len(empty)} queries without a word, as {empty[0]!r}; mend the table"
            )
        return texts, own[rows], relevance[rows]


def known() -> list[str]:
    """Names of the protocols that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def get(name: str) -> Protocol:
    """A protocol by its name, or by the path of a file of one's own. ValueError: there is none, or it says nothing."""
    path = Path(name).expanduser() if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file() or (path.parent == FOLDER and path.stem not in known()):
        raise ValueError(f"protocol {name!r}: unknown; known: {', '.join(known())}, or a .toml file of your own")
    try:
        found = Protocol(path.stem, **tomllib.loads(path.read_text(encoding="utf-8")))
        if found.captions not in CAPTIONS:
            raise ValueError(f"captions: {found.captions!r}; known: {', '.join(CAPTIONS)}")
        if not isinstance(found.corpus, Mapping) or "name" not in found.corpus:
            raise ValueError('corpus: write { name = "…" }')
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    return found


def _has_splits(folder: Path) -> bool:
    try:
        with open(folder / "captions.csv", encoding="utf-8-sig", errors="replace") as file:
            return "split" in re.split(r"[,;\t]", file.readline().strip())
    except OSError:
        return False
