"""Protocols: what exactly a model is evaluated on, in files that have a hash."""

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atr.config import WINDOWS
from atr.corpora import SPLITS, clotho, in_folder, load_corpus
from atr.corpora.corpus import Corpus
from atr.evaluation import zeroshot
from atr.system import hashes, places

if TYPE_CHECKING:  # it takes PyTorch, for which an unknown name need not wait
    from atr.metrics.retrieval import Relevance

FOLDER = Path(__file__).parent / "protocols"
CAPTIONS = ("given", "joined", "sentences")
ANSWERS = ("dcase2025",)
LABELS = ("name", "title", "source", "folder", "clip_list", "without")  # what a hash is not of; `names` for the last
OWN = "model"  # what a protocol leaves to the model, as its authors do it

CHOICES = {
    "captions": CAPTIONS,
    "split": SPLITS,
    "answers": (None, *ANSWERS),
    "windows": (OWN, *WINDOWS),
    "text": (OWN,),
    "ties": ("against",),
}
FIELD_TYPES: list[tuple[str, str, Callable[[Any], bool]]] = [
    *((field, "a text", lambda value: isinstance(value, str)) for field in ("title", "source", "clip_list")),
    *(
        (field, "a whole number above 0", lambda value: type(value) is int and value > 0)
        for field in ("clips", "queries")
    ),
    (
        "without",
        "a list of clips' names",
        lambda value: isinstance(value, list | tuple) and all(isinstance(one, str) for one in value),
    ),
]


@dataclass(frozen=True)
class Protocol:
    """What a model is evaluated on, and against which published numbers it may be held.

    corpus    as `RunConfig.corpus`
    split     of the corpus: the one that is evaluated on
    captions  "given": each is a query; "joined": those of a clip are one; "sentences": those of a clip are joined and
              split at full stops, and the parts are queries
    answers   "dcase2025": the captions that its table lists are the queries, and the clips that it lists answer them;
              else a caption is answered by its clip, and by those of the same description
    clip_list a file of the clips' names, one per line, here or in the folder `protocols` of the home; None: all clips
    without   those of them that are left out
    template  with {} for a class's name, it makes the queries of what its recordings are sorted into (`zeroshot`); the
              corpus is then read by its folders
    clips     how many clips, and
    queries   how many queries it has by its source; None where that is the user's affair
    source    where it comes from
    windows   what is heard of longer sounds: "model", what its authors let it hear, or one of `config.WINDOWS`
    text      "model": captions go in as they are written, and are normalised as the model's authors do it
    ties      "against": of equal similarities the wrong clip comes first (`metrics.retrieval`)
    recalls, precisions  where recall and mean average precision are cut

    Everywhere every query meets every clip.
    """

    name: str
    title: str
    corpus: Mapping[str, Any]
    source: str
    captions: str = "given"
    clips: int | None = None
    queries: int | None = None
    split: str = "test"
    answers: str | None = None
    clip_list: str | None = None
    without: Sequence[str] = ()
    template: str | None = None
    windows: str = OWN
    text: str = OWN
    ties: str = "against"
    recalls: Sequence[int] = (1, 5, 10)
    precisions: Sequence[int] = (10, 16)
    folder: Path = FOLDER

    @cached_property
    def names(self) -> list[str] | None:
        """The clips that it names, or None where it takes all of the split. ValueError: its list is not here, or of
        another length.
        """
        if self.clip_list is None:
            return None
        paths = [self.folder / self.clip_list, places.home() / "protocols" / self.clip_list]
        file = next((path for path in paths if path.is_file()), None)
        if file is None and self.folder != FOLDER:
            raise FileNotFoundError(f"protocol {self.name}: its clips are named in {paths[0]}, which is not there")
        if file is None:
            raise ValueError(
                f"protocol {self.name}: its {self.clips:,} clips are named in {self.clip_list}, which does not come "
                f"with atr; write their names, one per line, to {paths[1]}, or run: atr data {self.corpus['name']} "
                f"--hub. They are of: {self.source}"
            )
        try:
            lines = map(str.strip, file.read_text(encoding="utf-8-sig").splitlines())
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: not UTF-8 ({error}); save it as that") from None
        names = list(dict.fromkeys(filter(None, lines)))
        self._check_without(names, str(file))
        names = [name for name in names if name not in self.without]
        if self.clips is not None and len(names) != self.clips:
            raise ValueError(f"{file}: names {len(names):,} clips where protocol {self.name} has {self.clips:,}")
        return names

    @property
    def cuts(self) -> tuple[Sequence[int], Sequence[int]]:
        return self.recalls, self.precisions

    @cached_property
    def hash(self) -> str:
        """Of all that it says but its name, title and source. ValueError: as in `names`."""
        content = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in LABELS}
        content |= {"corpus": dict(self.corpus), "names": sorted(self.names) if self.names is not None else None}
        if self.without and self.names is None:
            content["without"] = sorted(set(self.without))
        content |= {cuts: sorted(set(content[cuts])) for cuts in ("recalls", "precisions")}
        return hashes.content_key("protocol", 2, content)[:12]

    def load(self, root: str | Path | None = None) -> Corpus:
        """The clips and captions that are here, as the split test. root: a folder of one's own, where the corpus lies
        in one. ValueError: no clip to evaluate on. Errors of the loader, and of `names`.
        """
        names = self.names
        if self.answers:
            clotho.answers()
        part, where = self._all(root)
        here = part.clips["clip"]
        if names is None and self.without:
            self._check_without(here.tolist(), where)
            names = [clip for clip in here if clip not in self.without]
        if names is not None:
            part = replace(part, clips=part.clips[here.isin(names)]).split(self.split)
        if not len(part):
            missing = f" of the {len(names):,} that it names, as {names[0]!r}," if names else ""
            there = f"; there are {len(here):,}, as {here.iloc[0]!r}" if len(here) else ""
            raise ValueError(f"protocol {self.name}: no clips{missing} in the split {self.split} of {where}{there}")
        return replace(part, clips=part.clips.assign(split="test"), test_only=True).check()

    def _check_without(self, names: Sequence[str], where: str) -> None:
        if unknown := [name for name in self.without if name not in names]:
            raise ValueError(f"protocol {self.name}: without names {unknown[0]!r}, which is not in {where}; mend it")

    def _all(self, root: str | Path | None) -> tuple[Corpus, str]:
        """Its split of the corpus that it is of, and where that is."""
        if self.template:
            return zeroshot.recordings(root, self.template), str(root or self.corpus["name"])
        options, folder = dict(self.corpus), in_folder(self.corpus["name"])
        if folder and root is None:
            raise ValueError(
                f"protocol {self.name}: needs a folder of sounds with captions.csv; give it: --root <folder>"
            )
        if folder and not _has_splits(Path(root or "")):
            options["split"] = "test"
        name, others = options["name"], {option: value for option, value in options.items() if option != "name"}
        whole = load_corpus(name, root if folder else None, check=False, **others)
        part = whole.split(self.split)
        if not len(part):  # perhaps since something is wrong with all of it
            replace(whole, test_only=True).check()
        return part, str(root or name)

    def missing(self, part: Corpus) -> list[str]:
        """The clips that it names and `load` did not find."""
        here = set(part.clips["clip"])
        return [name for name in self.names or () if name not in here]

    def ask(self, part: Corpus) -> "tuple[list[str], np.ndarray, Relevance]":
        """Of what `load` gave: the queries, the clip (queries,) that each was made from, and which clips answer which.

        ValueError: a query without a word.
        """
        if self.answers:
            return self._ask_table(part)
        if self.template:
            names = part.captions["caption"].to_numpy(dtype=str)
            classes, first = np.unique(names, return_index=True)
            return classes.tolist(), part.clip_of_caption()[first], classes[:, None] == names
        rows = list(range(len(part.captions)))
        texts, own, relevance = part.captions["caption"].tolist(), part.clip_of_caption(), part.relevance()
        if self.captions in ("joined", "sentences"):
            rows = [int(np.flatnonzero(own == clip)[0]) for clip in dict.fromkeys(own)]
            texts = [" ".join(part.captions["caption"][own == own[row]]) for row in rows]
            if self.captions == "sentences":
                parts = [(row, piece) for row, text in zip(rows, texts, strict=True) for piece in text.split(".")]
                parts = [(row, piece.strip()) for row, piece in parts if piece.strip()]
                rows, texts = [row for row, _ in parts], [piece for _, piece in parts]
        if empty := [place for place, text in enumerate(texts) if not re.search(r"[^\W_]", text)]:
            example = f"{texts[empty[0]]!r} of {part.clips['clip'].iloc[own[rows[empty[0]]]]!r}"
            raise ValueError(f"protocol {self.name}: {len(empty)} queries without a word, as {example}; mend the table")
        return texts, own[rows], relevance[rows]

    def _ask_table(self, part: Corpus) -> "tuple[list[str], np.ndarray, Relevance]":
        """`ask` by a table of answers; queries are left out that describe no clip here, or that none answers."""
        places = {clip.removeprefix("test/"): place for place, clip in enumerate(part.clips["clip"])}
        clip_of = dict(reversed(list(zip(part.captions["caption"], part.clip_of_caption(), strict=True))))
        answers = {
            query: [places[clip] for clip in clips if clip in places] for query, clips in clotho.answers().items()
        }
        texts = [query for query, clips in answers.items() if clips and query in clip_of]
        if not texts:
            raise ValueError(
                f"protocol {self.name}: none of the {len(answers):,} queries is a caption of the clips here"
            )
        relevance = np.zeros((len(texts), len(part)), bool)
        for row, query in enumerate(texts):
            relevance[row, answers[query]] = True
        return texts, np.array([clip_of[query] for query in texts]), relevance


def names() -> list[str]:
    """Of the protocols that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def get(name: str) -> Protocol:
    """A protocol by its name, or by the path of a file of one's own. ValueError: there is none, or it says nothing."""
    path = Path(name).expanduser() if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file() or (path.parent == FOLDER and path.stem not in names()):
        raise ValueError(f"protocol {name!r}: unknown; known: {', '.join(names())}, or a .toml file of your own")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        keys = {field.name for field in fields(Protocol)} - {"name", "folder"}
        if unknown := ", ".join(sorted(content.keys() - keys)):
            raise ValueError(f"unknown: {unknown}; known: {', '.join(sorted(keys))}")
        if lacking := ", ".join(sorted({"title", "corpus", "source"} - content.keys())):
            raise ValueError(f"without {lacking}; write what it is")
        protocol = Protocol(path.stem, folder=path.parent, **content)
        for field, what, right in FIELD_TYPES:
            if (value := getattr(protocol, field)) is not None and not right(value):
                raise ValueError(f"{field}: {value!r}; give {what}")
        for field, choices in CHOICES.items():
            if (value := getattr(protocol, field)) not in choices:
                raise ValueError(f"{field}: {value!r}; known: {', '.join(filter(None, choices))}")
        for field in ("recalls", "precisions"):
            cuts = getattr(protocol, field)
            if not isinstance(cuts, list | tuple) or not all(type(cut) is int and cut > 0 for cut in cuts) or not cuts:
                raise ValueError(f"{field}: {cuts!r}; give whole numbers above 0, such as [1, 5, 10]")
        if protocol.template is not None and (not _one_gap(protocol.template) or 1 not in protocol.recalls):
            raise ValueError(
                f"template: {protocol.template!r}; write {{}} where the class's name stands, and 1 among the recalls"
            )
        if not isinstance(protocol.corpus, Mapping) or "name" not in protocol.corpus:
            raise ValueError('corpus: write { name = "…" }')
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    return protocol


def several(names: Sequence[str]) -> list[Protocol]:
    """Those of the names and paths that are given, each once. Errors: as in `get`, and ValueError for two of one name,
    whose results would be one file.
    """
    by_name: dict[str, Protocol] = {}
    for one in map(get, dict.fromkeys(names)):
        if by_name.setdefault(one.name, one) != one:
            raise ValueError(f"--on: two protocols are named {one.name}, and so their results; rename one's file")
    return list(by_name.values())


def _one_gap(template: str) -> bool:
    """Whether a class's name has its place in it, and nothing else has one."""
    try:
        return template.format("A") != template.format("B")
    except (LookupError, ValueError, AttributeError):
        return False


def _has_splits(folder: Path) -> bool:
    try:
        with open(folder / "captions.csv", encoding="utf-8-sig", errors="replace") as file:
            return "split" in re.split(r"[,;\t]", file.readline().strip())
    except OSError:
        return False
