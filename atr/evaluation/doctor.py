"""What makes numbers mean less than they seem to, in a model or in a test set: found, and said in words."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from atr.corpora import copies, csvtable, files
from atr.corpora.containers import AudioError
from atr.corpora.corpus import Corpus
from atr.encoders.pooling import FrameRows
from atr.evaluation.models import Model
from atr.metrics.retrieval import Relevance

ALIKE = 0.95  # mean cosine, without its sign, of a collapsed tower's embeddings
LEAST, MOST = 8, 2000  # rows that it is judged by
SAMPLE = 4  # shortest and as many longest, heard alone
OTHER = 1  # seed than the 0 that is the default
CLOSE = 0.7  # of two captions' words are shared: all but one of six, or two of twelve
ROWS = 256  # queries that are compared with all captions at a time
APART = 1e-3  # of an entry of an embedding of length 1, from which two are not the same


def examine(
    model: Model,
    part: Corpus,
    queries: Sequence[str],
    own: np.ndarray,
    relevance: Relevance,
    text: Tensor,
    audio: Tensor | FrameRows,
    train: Path | None = None,
    seed: int | None = None,
) -> list[str]:
    """What is to be noticed, one line each.

    queries, own, relevance: as `Protocol.ask` gives them; text and audio: the model's embeddings of queries and clips.
    train: a folder of sounds, with tables of captions beside them, or such a table: what a model was trained on.
    seed: of the parts of sounds, where one was asked for: what hangs on it is then known.
    ValueError: a table that is damaged, or not there.
    """
    return [
        *collapse("text", text),
        *collapse("audio", audio),
        *dependence(
            "sounds", audio, part.clips["duration"].to_numpy(), lambda row: model.sounds(_one(part, row), True)
        ),
        *dependence(
            "captions", text, np.array([len(one) for one in queries]), lambda row: model.sentences([queries[row]])
        ),
        *(draws(model, part, audio) if seed is None else ()),
        *ambiguity(part, queries, own, relevance),
        *duplicates(part),
        *(leaks(part, queries, train) if train else ()),
    ]


def collapse(side: str, rows: Tensor | FrameRows) -> Iterator[str]:
    """Of embeddings (rows, D): those that point one way, or lie on one line; those that are zero."""
    if isinstance(rows, FrameRows) or len(rows) < LEAST:
        return
    if zeros := int((rows.abs().amax(1) == 0).sum()):
        yield f"{zeros:,} of {len(rows):,} {side} embeddings are zero"
    unit = F.normalize(rows[:: -(-len(rows) // MOST)].float(), dim=1)
    cosines = (unit @ unit.T).abs()
    mean = float((cosines.sum() - cosines.diagonal().sum()) / (len(unit) * (len(unit) - 1)))
    if mean > ALIKE:
        yield f"{side} embeddings are all alike, with cosines of {mean:.3f} on average: this tower has collapsed"


def dependence(what: str, rows: Tensor | FrameRows, lengths: np.ndarray, alone) -> Iterator[str]:
    """Embeddings that chance or their batch decides. alone: embeds one row by itself."""
    order = np.argsort(lengths, kind="stable")
    sample = list(dict.fromkeys([*order[:SAMPLE].tolist(), *order[-SAMPLE:].tolist()]))
    once, again = ([alone(row)[0] for row in sample] for _ in range(2))
    by_chance = max(_apart(*pair) for pair in zip(once, again, strict=True))
    by_batch = max(_apart(one, rows[row]) for one, row in zip(once, sample, strict=True))
    if by_chance > APART:
        yield f"embeddings of {what} depend on chance: one twice differs by up to {by_chance:.2g}; fix the seed"
    elif by_batch > APART:
        yield f"embeddings of {what} depend on their batch: alone and among others they differ by up to {by_batch:.2g}"


def draws(model: Model, part: Corpus, audio: Tensor | FrameRows) -> Iterator[str]:
    """Sounds of which another seed would draw another part."""
    try:
        other = model.with_seed(OTHER)
    except ValueError:  # it draws none
        return
    longest = np.argsort(part.clips["duration"].to_numpy(), kind="stable")[-SAMPLE:].tolist()
    apart = max(_apart(other.sounds(_one(part, row), True)[0], audio[row]) for row in longest)
    if apart > APART:
        yield (
            "embeddings of sounds depend on the seed: of longer ones a part is drawn, and by another seed they differ "
            f"by up to {apart:.2g}; evaluate with several: --seeds 0,1,2"
        )


def ambiguity(part: Corpus, queries: Sequence[str], own: np.ndarray, relevance: Relevance) -> Iterator[str]:
    """Captions, but for case and punctuation, of several clips of which one alone counts as right."""
    rows: dict[str, list[int]] = {}
    for row, query in enumerate(queries):
        rows.setdefault(_words(query), []).append(row)
    found = []
    for alike in rows.values():
        clips = list(dict.fromkeys(own[alike].tolist()))
        if len(clips) > 1 and (relevance.ndim == 1 or not all(relevance[row, clip] for row in alike for clip in clips)):
            found.append((queries[alike[0]], [part.clips["clip"].iloc[clip] for clip in clips]))
    if found:
        caption, names = found[0]
        yield (
            f"{len(found):,} captions are of several clips, as {caption!r} of {names[0]!r} and {names[1]!r}; to find "
            "the other one counts as wrong"
        )


def duplicates(part: Corpus) -> Iterator[str]:
    """Clips with the same bytes."""
    clips = part.clips[part.clips["digest"].duplicated(keep=False)]
    if len(clips):
        names = clips.loc[clips["digest"] == clips["digest"].iloc[0], "clip"].tolist()
        yield f"{len(clips):,} clips have another one's bytes, as {names[0]!r} and {names[1]!r}: none tells them apart"


def leaks(part: Corpus, queries: Sequence[str], train: Path) -> Iterator[str]:
    """What of the test set is in `train`: sounds of the same bytes or that sound the same (`copies`), captions but for
    case and punctuation, and how many more come close (`nearest`). Files that are the test set's own do not count, nor
    do rows of a split other than train.
    """
    tables = [train] if train.is_file() else sorted(train.glob("*.csv"))
    texts = {words: text for table in tables for words, text in _captions(table, must=train.is_file())}
    lost = [query for query in queries if _words(query) in texts]
    if texts:
        said = f"{len(lost):,} of {len(queries):,} queries are in {train}" + (f", as {lost[0]!r}" if lost else "")
        others = [query for query in queries if _words(query) not in texts]
        close = [found for found in nearest(others, list(texts.values())) if found[2] >= CLOSE]
        if close:
            query, text, _ = max(close, key=lambda found: found[2])
            said += f"; {len(close):,} more share {CLOSE:.0%} or more of their words with a caption there, as {query!r}"
            said += f" with {text!r}"
        yield said
    else:
        yield f"no captions to train on are in {train}, so queries were not looked for"
    if train.is_dir():
        if not isinstance(part.read, files.FileReader):
            yield f"the test clips are no files, so they were not looked for in {train}"
            return
        reader = part.read
        here = {str((reader.folder / reader.paths.get(clip, clip)).absolute()): clip for clip in part.clips["clip"]}
        facts = files.index(train, files.listing(train))
        if not facts:
            yield f"no sounds are in {train}, so clips were not looked for"
            return
        theirs = {str((train / name).absolute()): fact for name, fact in facts.items()}
        digests = {path: fact.digest for path, fact in theirs.items() if not isinstance(fact, AudioError)}
        digests = {path: digest for path, digest in digests.items() if path not in here}
        first, errors = copies.groups(Path(), digests | {path: reader.digests[clip] for path, clip in here.items()})
        found = [(clip, first[path]) for path, clip in here.items() if first[path] in digests]
        said = f"{len(found):,} of {len(here):,} clips are in {train}"
        said += f", as {found[0][0]!r}: {found[0][1]}" if found else ""
        if bad := [fact for fact in theirs.values() if isinstance(fact, AudioError)] + errors:
            said += f"; {len(bad):,} files cannot be read, as {bad[0].where}"
        yield said + ("; so bytes alone were compared" if errors else "")


def nearest(queries: Sequence[str], texts: Sequence[str]) -> Iterator[tuple[str, str, float]]:
    """Each query with the text that shares most of its words, and how many they share of those that either has: 1 for
    the same words in any order, (n - 1) / (n + 1) if one of n is another (Jaccard's index).
    """
    from scipy.sparse import csr_array  # a tenth of a second to import

    places: dict[str, int] = {}

    def counted(sentences: Sequence[str]) -> Any:
        rows = [[places.setdefault(word, len(places)) for word in set(_words(text).split())] for text in sentences]
        ends, columns = np.cumsum([0, *map(len, rows)]), np.array([place for row in rows for place in row], dtype=int)
        return ends, columns

    (ends, columns), (ends_there, columns_there) = counted(queries), counted(texts)
    ones = np.ones(max(len(columns), len(columns_there)), np.float32)
    here = csr_array((ones[: len(columns)], columns, ends), shape=(len(queries), len(places)))
    shape = (len(texts), len(places))
    there = csr_array((ones[: len(columns_there)], columns_there, ends_there), shape=shape).T.tocsr()
    sizes, sizes_there = np.diff(ends), np.diff(ends_there)
    for start in range(0, len(queries), ROWS):
        common = here[start : start + ROWS] @ there
        for row, query in enumerate(queries[start : start + ROWS]):
            part = slice(*common.indptr[row : row + 2])
            if part.start == part.stop:
                continue  # no word is known there
            shared, texts_here = common.data[part], common.indices[part]
            index = shared / (sizes[start + row] + sizes_there[texts_here] - shared)
            best = index.argmax()
            yield query, texts[texts_here[best]], float(index[best])


def _captions(table: Path, must: bool) -> Iterator[tuple[str, str]]:
    """Captions of a table's training rows: their words alone, and as they stand."""
    found = csvtable.frame(table)
    columns = [column for column in map(str, found) if csvtable.CAPTION_COLUMN.fullmatch(column)]
    if must and not columns:
        raise ValueError(f"{table}: no column 'caption' or 'caption_1'; name a table of captions")
    if "split" in found:
        found = found[found["split"] == "train"]
    for column in columns:
        yield from ((_words(text), text) for text in found[column])


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _one(part: Corpus, row: int) -> Corpus:
    return replace(part, clips=part.clips.iloc[[row]].reset_index(drop=True))


def _apart(one: Any, other: Any) -> float:
    """The largest difference of two embeddings (D,), or of the frames (T, D) that both have."""
    if isinstance(one, FrameRows):
        one, other = (clip.values[clip.mask] for clip in (one, other))
        frames = min(len(one), len(other))
        one, other = one[:frames], other[:frames]
    return float((F.normalize(one.float(), dim=-1) - F.normalize(other.float(), dim=-1)).abs().max())
