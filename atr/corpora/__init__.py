"""Data sets by name."""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from os import PathLike
from typing import Any

from atr.corpora.captioning.record import USES, with_synthetic
from atr.corpora.corpus import SPLITS, Corpus, CorpusError, Reader
from atr.corpora.files import PAPER_COUNTS, coverage
from atr.register import LOADERS, import_built_in
from atr.system.hashes import content_key

import_built_in("corpus", "atr.corpora")


def in_folder(name: str) -> bool:
    """Whether a corpus needs a root."""
    root = inspect.signature(LOADERS[name]).parameters.get("root") if name in LOADERS else None
    return root is not None and root.default is root.empty


def load_corpus(
    name: str,
    root: str | PathLike[str] | None = None,
    *,
    check: bool = True,
    hold_out: int | None = None,
    synthetic: str | None = None,
    use: str = "both",
    **options,
) -> Corpus:
    """Load a corpus by its name in LOADERS and check it.

    root: the folder of a corpus that lies on disk: needed by those `in_folder`; "clotho", "audiocaps", "wavcaps" and
        "people" know where `atr data` put or found them; the others take none.
    check: raise CorpusError if the corpus has problems; without it the caller looks at `Corpus.problems` himself.
    hold_out: so many clips, drawn once, are for validation and all others for training, as submissions to a challenge
        train; runs on it are tested on their validation clips.
    synthetic: new captions for the training clips, those of other splits stay: "paraphrase" makes them by rules,
        "phi-4" has those that `atr data phi4` brought for Clotho, any other name is a record that `atr caption` wrote.
        A ValueError says for how many clips it lacks them.
    use: "both" trains on them and on the clip's own captions, "synthetic" on them alone.
    options: the loader's keyword arguments. Unknown names and options are ValueErrors that list the known ones.

    >>> corpus = load_corpus("soundscapes", train=48, validation=12, test=16, duration=4.0)
    >>> len(corpus), len(corpus.split("test").captions)
    (76, 80)
    """
    if name not in LOADERS:
        names = ", ".join(LOADERS)
        raise ValueError(f"unknown corpus {name!r}; known: {names}; one of your own: first atr.extend(<its file>)")
    options_of = inspect.signature(LOADERS[name]).parameters
    if in_folder(name) and root is None:
        raise ValueError(f"corpus {name!r} lies in a folder: give root=<folder>")
    if "root" not in options_of and root is not None:
        raise ValueError(f"corpus {name!r} takes no root (got {str(root)!r}): leave it out")
    unknown = sorted(set(options) - set(options_of))
    if unknown:
        text = ", ".join(option for option in (*options_of, "hold_out", "synthetic", "use") if option != "root")
        raise ValueError(f"corpus {name!r}: unknown option(s) {', '.join(unknown)}; known: {text}")
    if use not in USES:
        raise ValueError(f"corpus {name!r}: use is {use!r}; known: {', '.join(USES)}")
    if synthetic is None and use != "both":
        raise ValueError(f"corpus {name!r}: use={use!r} needs new captions: give synthetic=<name>")
    corpus = LOADERS[name](**options) if root is None else LOADERS[name](root, **options)
    corpus = corpus if hold_out is None else corpus.hold_out(hold_out)
    corpus = corpus.check() if check else corpus
    return corpus if synthetic is None else with_synthetic(corpus, synthetic, use)


_loaded: dict[str, Corpus | Exception] | None = None


@contextmanager
def remember_corpora() -> Iterator[None]:
    """Within it, `corpus_of` loads each corpus, or fails to, once; what changes on disk meanwhile goes unseen."""
    global _loaded
    outer = _loaded
    _loaded = {} if outer is None else outer
    try:
        yield
    finally:
        _loaded = outer


def corpus_of(options: Mapping[str, Any], root: str | PathLike[str] | None = None) -> Corpus:
    """The corpus that `RunConfig.corpus` names; `root` goes to the corpora that lie in a folder."""
    key = content_key(dict(options), str(root))
    memory = {} if _loaded is None else _loaded
    if key not in memory:
        name, others = options["name"], {option: value for option, value in options.items() if option != "name"}
        try:
            memory[key] = load_corpus(name, root if in_folder(name) else None, **others)
        except Exception as error:
            memory[key] = error
    if isinstance(corpus := memory[key], Exception):
        raise corpus
    return corpus


def corpus_memory(root: str | PathLike[str] | None = None) -> Callable[[Mapping[str, Any]], Corpus]:
    """`corpus_of` that loads each corpus once, for whoever holds it."""
    load = cache(lambda options: corpus_of(json.loads(options), root))
    return lambda options: load(json.dumps(dict(options)))


__all__ = [
    "LOADERS",
    "PAPER_COUNTS",
    "SPLITS",
    "Corpus",
    "CorpusError",
    "Reader",
    "corpus_memory",
    "corpus_of",
    "coverage",
    "in_folder",
    "load_corpus",
    "remember_corpora",
]
