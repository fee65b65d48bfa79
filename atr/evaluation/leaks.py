"""What of a test set is among what a model was trained on."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atr.corpora import copies, csvfolder, csvtable, files
from atr.corpora.containers import AudioError
from atr.corpora.corpus import Corpus

CLOSE = 0.7  # of two captions' words are shared: all but one of six, or two of twelve
PAIRS = 1 << 24  # of a query and a text that are compared at a time: 0.3 GB
# Scripts that put no blanks between words (Thai, Lao, Myanmar, Khmer, Japanese, Chinese): each letter is one.
LETTER = re.compile("([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])")


def words(text: str) -> str:
    """A caption's words with blanks between, but for case, punctuation, and how Unicode composes its letters."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    letters = (letter if letter.isalnum() or unicodedata.category(letter)[0] == "M" else " " for letter in text)
    return " ".join(LETTER.sub(r" \1 ", "".join(letters)).split())


def captions(train: Path, part: Corpus | None = None) -> tuple[dict[str, str], list[str]]:
    """Captions that were trained on, by their `words`, and why tables of a folder could not be read.

    train: a table, or a folder with tables in it. Where a column split says so, as the corpus "csv" reads it, rows of
    train alone count; of a folder, neither tables that are named for test or validation, as in Clotho and AudioCaps,
    nor rows that name the own files of `part`, a test set. ValueError: a table that is none, or has no captions.
    """
    if train.is_file():
        return dict(_captions(train, True, set())), []
    texts, unread = dict[str, str](), list[str]()
    own = _own_files(train, part) if part is not None else set()
    for table in sorted(train.rglob("*.csv")):
        splits = {csvfolder.SPLIT_NAMES.get(word, "train") for word in words(table.stem).split()}
        if splits <= {"train"}:
            try:
                texts |= _captions(table, False, own)
            except ValueError as error:
                unread.append(str(error))
    return texts, unread


def _captions(table: Path, must: bool, own: set[str]) -> Iterator[tuple[str, str]]:
    rows = csvtable.frame(table, latin=True)
    columns = [column for column in map(str, rows) if csvtable.CAPTION_COLUMN.fullmatch(column)]
    if must and not columns:
        raise ValueError(f"{table}: no column 'caption' or 'caption_1'; name a table of captions")
    if "split" in rows:
        splits = rows["split"].str.strip().str.lower()
        rows = rows[splits.map(csvfolder.split_names(splits.tolist())) == "train"]
    for column in {"file_name", "youtube_id"} & set(rows):
        rows = rows[~rows[column].map(_last).isin(own)]
    for column in columns:
        yield from ((words(text), text) for text in rows[column] if text.strip())


def _last(name: str) -> str:
    """Of a path its end, as a file system may spell it."""
    return files.normal_spelling(name.strip().replace("\\", "/")).rpartition("/")[2]


def _own_files(train: Path, part: Corpus) -> set[str]:
    """Names of the test set's files that lie below `train`, and of their clips, but for those that others have, too."""
    below = {path: clip for path, clip in _paths(part).items() if path.is_relative_to(train.resolve())}
    others = {_last(name) for name in files.listing(train) if (train / name).resolve() not in below}
    return {_last(name) for path, clip in below.items() for name in (path.name, clip)} - others


def _paths(part: Corpus) -> dict[Path, str]:
    """Each clip by the file that it lies in; none where clips are no files."""
    if not isinstance(part.read, files.FileReader):
        return {}
    reader = part.read
    return {(reader.folder / reader.paths.get(clip, clip)).resolve(): clip for clip in part.clips["clip"]}


def leaks(part: Corpus, queries: Sequence[str], train: Path) -> Iterator[str]:
    """What of the test set is in `train`, in words: sounds of the same bytes or that sound the same (`copies`), and
    captions (`captions`) of the same words or nearly so (`nearest`). The test set's own files do not count.
    """
    texts, unread = captions(train, part)
    same = [query for query in queries if words(query) in texts]
    if texts:
        line = f"{len(same):,} of {len(queries):,} queries are in {train}" + (f", as {same[0]!r}" if same else "")
        others = [query for query in queries if words(query) not in texts]
        close = [pair for pair in nearest(others, list(texts.values())) if pair[2] >= CLOSE]
        if close:
            query, text, _ = max(close, key=lambda pair: pair[2])
            line += f"; {len(close):,} more share {CLOSE:.0%} or more of their words with a caption there, as {query!r}"
            line += f" with {text!r}"
    else:
        line = f"no captions to train on are in {train}, so queries were not looked for"
    yield line + (f"; {len(unread):,} tables cannot be read: {unread[0]}" if unread else "")
    if train.is_dir():
        yield _sounds(part, train)


def _sounds(part: Corpus, train: Path) -> str:
    here = _paths(part)
    if not here:
        return f"the test clips are no files, so they were not looked for in {train}"
    facts = files.index(train, files.listing(train))
    if not facts:
        return f"no sounds are in {train}, so clips were not looked for"
    theirs = {(train / name).resolve(): fact for name, fact in facts.items()}
    digests = {str(path): fact.digest for path, fact in theirs.items() if not isinstance(fact, AudioError)}
    digests = {path: digest for path, digest in digests.items() if Path(path) not in here}
    reader: Any = part.read
    own = {str(path): reader.digests[clip] for path, clip in here.items()}
    first, errors = copies.groups(Path(), digests | own)
    doubles = [(clip, first[str(path)]) for path, clip in here.items() if first[str(path)] in digests]
    line = f"{len(doubles):,} of {len(here):,} clips are in {train}" + (
        f", as {doubles[0][0]!r}: {doubles[0][1]}" if doubles else ""
    )
    if bad := [fact for fact in theirs.values() if isinstance(fact, AudioError)] + errors:
        line += f"; {len(bad):,} files cannot be read, as {bad[0].where}"
    return line + ("; so bytes alone were compared" if errors else "")


def nearest(queries: Sequence[str], texts: Sequence[str]) -> Iterator[tuple[str, str, float]]:
    """Each query with the text that shares most of its `words`, and how many they share of those that either has: 1 for
    the same words in any order, (n - 1) / (n + 1) if one of n is another (Jaccard's index). None for a query of which
    no word is there.
    """
    from scipy.sparse import csr_array  # a tenth of a second to import

    places: dict[str, int] = {}

    def table(sentences: Sequence[str]) -> Any:
        rows = [[places.setdefault(word, len(places)) for word in set(words(text).split())] for text in sentences]
        columns, ends = np.array([place for row in rows for place in row], dtype=int), np.cumsum([0, *map(len, rows)])
        return np.ones(len(columns), np.float32), columns, ends

    here, there = table(queries), table(texts)
    counts = csr_array(here, shape=(len(queries), len(places)))
    right = csr_array(there, shape=(len(texts), len(places))).T.tocsr()
    sizes, sizes_there = np.diff(here[2]), np.diff(there[2])
    step = max(1, PAIRS // max(1, len(texts)))
    for start in range(0, len(queries), step):
        common = counts[start : start + step] @ right
        for row, query in enumerate(queries[start : start + step]):
            part = slice(*common.indptr[row : row + 2])
            if part.start == part.stop:
                continue
            shared, texts_here = common.data[part], common.indices[part]
            index = shared / (sizes[start + row] + sizes_there[texts_here] - shared)
            best = index.argmax()
            yield query, texts[texts_here[best]], float(index[best])
