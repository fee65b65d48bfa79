"""The files of DCASE's language-based audio retrieval: submissions written, read and scored; clips that no corpus has.

2022, task 6b: one row per query, its text and the names of the ten best files, best first:
    caption,file_name_1,…,file_name_10
as the organisers' baseline writes it (utils/eval_utils.py and test.output.csv of
github.com/xieh97/dcase2022-audio-retrieval; dcase.community/challenge2022/task-language-based-audio-retrieval).
Ranked by mAP@10. Of queries with the same text, the organisers' script counts one.

2025, task 6: one row per query, its text and the score of every file (d25_t6/predict.py of
github.com/CPJKU/dcase2025_task6_baseline), as a query may have several relevant files. Ranked by mAP@16
(dcase.community/challenge2025/task-language-based-audio-retrieval-results).
"""

from __future__ import annotations

import ast
import csv
import io
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor

from atr.corpora.audio import duration
from atr.corpora.corpus import DENSE, Corpus, alike, clip_table, event_table
from atr.corpora.csvtable import LONGEST_LINE, column_list, frame
from atr.corpora.files import FileReader
from atr.inference import embedder
from atr.metrics import retrieval
from atr.metrics.retrieval import Matrix, Relevance
from atr.system import atomic, devices, hashes
from atr.training import evaluation, model
from atr.training.records import Run

StrPath = str | PathLike[str]


def write(
    path: StrPath,
    queries: Sequence[str],
    names: Sequence[str],
    similarity: Matrix | tuple[Matrix, Matrix],
    top: int = 10,
) -> None:
    """Write the names of each query's `top` best files, in the form of 2022.

    names: of the files, with their suffix. similarity: (queries, files), or embeddings (text (queries, D),
    audio (files, D)) compared by their cosine, some queries at a time. Equal scores are ordered by name; so the order
    in which the files are given has no say.

    ValueError, and an older file stays as it was: a name given twice, sizes that do not fit, non-finite similarities.
    """
    if not 1 <= top <= len(names):
        raise ValueError(f"the {top} best of {len(names)} files; give top=1 to {len(names)}")
    order = sorted(range(len(names)), key=lambda file: names[file])

    def rows() -> Iterator[list[str]]:
        for captions, scores in _scores(queries, names, similarity, order):
            best = scores.sort(dim=1, descending=True, stable=True).indices[:, :top].tolist()
            for caption, places in zip(captions, best, strict=True):
                yield [caption, *(names[order[place]] for place in places)]

    _write(path, ["caption", *(f"file_name_{place}" for place in range(1, top + 1))], rows())


def write_scores(
    path: StrPath, queries: Sequence[str], names: Sequence[str], similarity: Matrix | tuple[Matrix, Matrix]
) -> None:
    """Write each query's score of every file, in the form of 2025: index,<name>,<name>,…; arguments as for `write`.

    Scores have nine digits, all that float32 holds.
    """

    def rows() -> Iterator[list[str]]:
        for captions, scores in _scores(queries, names, similarity, list(range(len(names)))):
            for caption, row in zip(captions, scores.tolist(), strict=True):
                yield [caption, *(f"{score:.9g}" for score in row)]

    _write(path, ["index", *names], rows())


def read(path: StrPath, queries: Sequence[str] | None = None, names: Sequence[str] | None = None) -> pd.DataFrame:
    """A submission in the form of 2022, of any number of files a query: caption, file_name_1, file_name_2, …

    queries, names: where given, what the captions must be, in order, and what the file names must be among.
    ValueError: another form, an empty or repeated file name in a row, other queries, an unknown file name.
    """
    table = frame(Path(path), LONGEST_LINE)
    expected = ["caption", *(f"file_name_{place}" for place in range(1, table.shape[1]))]
    if list(table.columns) != expected or len(expected) < 2:
        raise ValueError(
            f"{path}: the header is {column_list(table.columns.tolist())}; it must be caption, file_name_1, …"
        )
    captions = table["caption"].tolist()
    if queries is not None and captions != list(queries):
        if len(captions) != len(queries):
            raise ValueError(f"{path}: {len(captions)} rows for {len(queries)} queries; give each query its row")
        row = next(row for row, pair in enumerate(zip(captions, queries, strict=True)) if pair[0] != pair[1])
        raise ValueError(
            f"{path}, row {row + 1}: {captions[row]!r} where the query is {queries[row]!r}; keep the order"
        )
    valid = None if names is None else set(names)
    for row, files in enumerate(table[expected[1:]].itertuples(index=False, name=None), start=1):
        if "" in files:
            raise ValueError(f"{path}, row {row}: no file name at place {files.index('') + 1}; fill every place")
        if len(set(files)) < len(files):
            twice = next(file for file in files if files.count(file) > 1)
            raise ValueError(f"{path}, row {row}: file name {twice!r} is there twice; name each file once")
        if valid is not None and not valid.issuperset(files):
            stranger = next(file for file in files if file not in valid)
            raise ValueError(f"{path}, row {row}: unknown file name {stranger!r}; use the names of the files to rank")
    return table


def score(
    path: StrPath,
    queries: Sequence[str],
    names: Sequence[str],
    relevance: Relevance,
    ks: Sequence[int] = (1, 5, 10),
    map_at: int = 10,
) -> dict[str, float]:
    """R@k and mAP@k in percent of a submission in the form of 2022: t2a_r1, … and t2a_map10, by `map_at`.

    relevance: (queries,) the index in `names` of each query's file, or (queries, files) booleans, which may be SciPy's
    sparse ones; a file may be relevant to no query. The measures are those of `metrics.retrieval_metrics`, and so the
    numbers too, but for ties: a file has them in the order of names, whereas there they go against the model.

    ValueError: as `read`; a query without a relevant file; a cut beyond the files listed.
    """
    listing = read(path, queries, names).drop(columns="caption").to_numpy()
    top = listing.shape[1]
    if max(*ks, map_at) > top:
        raise ValueError(
            f"{path}: lists {top} files a query, too few for a cut at {max(*ks, map_at)}; lower ks or map_at"
        )
    fits: Any = relevance if sparse.issparse(relevance) else np.asarray(relevance)
    whole = (len(queries), len(names))
    if fits.shape != (whole if fits.dtype == bool else whole[:1]) or fits.dtype.kind not in "biu":
        raise ValueError(
            f"relevance is {fits.dtype} of shape {fits.shape}; give the index of each query's file, or booleans {whole}"
        )
    rows, files = fits.nonzero() if fits.ndim == 2 else (np.arange(len(queries)), fits.astype(np.int64))
    rows, files = (pair[(files >= 0) & (files < len(names))] for pair in (rows, files))
    relevant = np.bincount(rows, minlength=len(queries))
    if not relevant.all():
        row = int(np.argmin(relevant))
        raise ValueError(
            f"relevance: {int((relevant == 0).sum())} of {len(queries)} queries have no relevant file, the first is "
            f"{row} ({queries[row]!r}); score without them"
        )
    places = _index(names).get_indexer(pd.Index(listing.ravel())).reshape(listing.shape)
    hits = np.isin(places + len(names) * np.arange(len(queries))[:, None], len(names) * rows.astype(np.int64) + files)
    # Files that are not relevant, and relevant ones that are not listed, stand behind the list, where no cut reaches.
    ranked = np.sort(np.where(hits, np.arange(1, top + 1), top + 1), axis=1)[:, : relevant.max()]
    precision = retrieval.average_precision(ranked, map_at, relevant)
    recall = {f"t2a_r{k}": 100 * float((ranked[:, 0] <= k).mean()) for k in ks}
    return recall | {f"t2a_map{map_at}": 100 * float(precision.mean())}


def relevance(path: StrPath, queries: Sequence[str], names: Sequence[str]) -> np.ndarray | sparse.csr_array:
    """(queries, files) bool: which files answer which query, by a table of them. Sparse where it is large.

    The table has a column `query` or `caption`, and either `file_name`, with a row for every pair, or, as the
    annotations of 2025 have it (resources/metadata_eval.csv of the baseline), `audio_filenames`, a list in Python's
    notation. A query that the table leaves out gets an empty row: `matrix.any(1)` tells which are annotated.

    ValueError: other columns, a broken list, a query or a file that is unknown.
    """
    table = frame(Path(path), LONGEST_LINE)
    text = "query" if "query" in table else "caption"
    if text not in table or not {"file_name", "audio_filenames"} & set(table):
        listed = column_list(table.columns.tolist())
        raise ValueError(f"{path}: the header is {listed}; it needs query or caption, and file_name or audio_filenames")
    if "audio_filenames" in table:
        try:
            lists = [ast.literal_eval(cell) for cell in table["audio_filenames"]]
        except (ValueError, SyntaxError, TypeError) as error:
            raise ValueError(f"{path}: audio_filenames holds no lists like ['a.wav', 'b.wav'] ({error})") from None
        if other := [listed for listed in lists if not isinstance(listed, list | tuple)]:
            raise ValueError(f"{path}: audio_filenames holds no lists like ['a.wav', 'b.wav'] but {other[0]!r}")
        table["file_name"] = lists
        table = table[table["file_name"].map(len) > 0].explode("file_name")
    of_query, distinct = pd.factorize(np.array(queries, dtype=object))  # a text may be the query of several rows
    sides = (pd.Index(distinct), table[text]), (_index(names), table["file_name"])
    pairs = tuple(index.get_indexer(pd.Index(column)) for index, column in sides)
    for places, column, mend in zip(pairs, (text, "file_name"), ("queries", "names"), strict=True):
        if (places < 0).any():
            first = table[column].iloc[int(np.argmax(places < 0))]
            raise ValueError(
                f"{path}: {(places < 0).sum()} unknown in {column}, such as {first!r}; see the {mend} given"
            )
    shape = (len(distinct), len(names))
    fits = sparse.csr_array((np.ones(len(table), bool), pairs), shape)[of_query]
    return fits if len(queries) * len(names) >= DENSE else fits.toarray()


def export(corpus: Corpus, folder: StrPath) -> tuple[list[Path], list[str], np.ndarray]:
    """A one-split corpus as organisers hand out an evaluation set: its clips as WAV files (16 bits, one channel) in
    `folder`, by `atomic.file_name`, and the first caption of each as a query. Returns files, queries, and relevance as
    `score` takes it.

    ValueError, before anything is written: names of two clips that some file systems take for one.
    """
    clips = corpus.clips["clip"].tolist()
    files = [Path(folder) / atomic.file_name(clip, ".wav") for clip in clips]
    owner: dict[str, str] = {}
    for clip, file in zip(clips, files, strict=True):
        other = owner.setdefault(unicodedata.normalize("NFC", file.name).casefold(), clip)
        if other != clip:
            raise ValueError(f"corpus {corpus.name!r}: clips {other!r} and {clip!r} make one file name; rename one")
    for clip, file in zip(clips, files, strict=True):
        waveform, rate = corpus.read(clip)
        sound = io.BytesIO()  # libsndfile does not tell of a disk that is full
        soundfile.write(sound, waveform, rate, subtype="PCM_16", format="WAV")
        atomic.write_atomic(file, partial(Path.write_bytes, data=sound.getvalue()))
    first = corpus.captions.drop_duplicates("clip")
    return files, first["caption"].tolist(), corpus.relevance()[first.index.to_numpy()]


def same_events(corpus: Corpus) -> np.ndarray | sparse.csr_array:
    """(captions, clips) bool, for a corpus of one split that knows its events: a caption fits every clip with the same
    kinds of sound as its own clip. A stand-in for annotations such as those of 2025. Sparse where it is large.

    ValueError: a clip without an event.
    """
    kinds = corpus.clips["clip"].map(corpus.kinds())
    if kinds.isna().any():
        clip = corpus.clips["clip"][kinds.isna()].iloc[0]
        raise ValueError(f"corpus {corpus.name!r}: {kinds.isna().sum()} clips without events, such as {clip!r}")
    groups = pd.factorize(kinds)[0]
    return alike(groups[corpus.clip_of_caption()], groups)


def embed(
    run: Run,
    files: Sequence[StrPath],
    queries: Sequence[str],
    corpus: Corpus | None = None,
    *,
    device: str = "auto",
    threads: int = 1,
    quiet: bool = True,
) -> tuple[Tensor, Tensor]:
    """Embeddings of audio files and queries that belong to no corpus, by a finished run's selected epoch:
    text (queries, D), audio (files, D), float32 on the CPU, as `metrics.ranks` and `write` take them.

    corpus: the one that the run was trained on, by default as its config names it; one that lies in a folder has to be
    given. An encoder pre-trained on it is found, or made again, by it. With `padding` "released" clips of like length
    share a batch, since there are no captions to order them by.

    Raises FileNotFoundError for an unfinished run, AudioError, and ValueError where the weights that the run started
    from are no longer the same, or its checkpoint does not fit.
    """
    paths = [str(Path(file).absolute()) for file in files]
    if not paths or not queries or len(set(paths)) < len(paths):
        raise ValueError(
            f"{len(paths)} files, {len(set(paths))} distinct, and {len(queries)} queries; give each file once"
        )
    config, _ = embedder.beginning(run, corpus, quiet)
    device = devices.resolve_device(device)
    clips = [(path, "test", duration(path), hashes.file_hash(Path(path)), "") for path in paths]
    captions = pd.DataFrame({"clip": paths[0], "caption": list(queries)})  # a caption needs a clip, any will do
    reader = FileReader(Path(), {path: digest for path, _, _, digest, _ in clips})
    corpus_of_files = Corpus("files", clip_table(clips), captions, event_table(), reader)
    network, _, split, to = model.restore_split(run, corpus_of_files, "test", device, quiet, config)
    with devices.threads(threads):
        sounds, words = evaluation.embed(network, split, to)
    return words, sounds


def _scores(
    queries: Sequence[str], names: Sequence[str], similarity: Matrix | tuple[Matrix, Matrix], order: list[int]
) -> Iterator[tuple[Sequence[str], Tensor]]:
    """Some queries at a time, with their scores of the files in `order`: (some queries, files)."""
    _index(names)
    if not len(queries):
        raise ValueError("no queries; give at least one")
    embedded = isinstance(similarity, tuple)
    parts = [torch.as_tensor(part).detach() for part in (similarity if embedded else (similarity,))]
    shapes = [tuple(part.shape) for part in parts]
    dim = shapes[-1][1:2]
    if shapes != ([(len(queries), *dim), (len(names), *dim)] if embedded else [(len(queries), len(names))]):
        raise ValueError(
            f"similarity is {' and '.join(map(str, shapes))} for {len(queries)} queries and {len(names)} files; give "
            "(queries, files), or a pair of embeddings, text (queries, D) and audio (files, D)"
        )
    rows, files = (F.normalize(part, dim=1) for part in parts) if embedded else (parts[0], None)
    files = files if files is None else files[order]
    step = max(1, retrieval.BLOCK // len(names))
    for start in range(0, len(queries), step):
        block = rows[start : start + step]
        scores = block[:, order] if files is None else block @ files.t()
        bad = ~scores.isfinite().all(1)
        if bad.any():
            raise ValueError(
                f"similarity: query {start + int(bad.int().argmax())} has non-finite scores; look for a diverged "
                "training or an overflow in half precision"
            )
        yield queries[start : start + step], scores


def _index(names: Sequence[str]) -> pd.Index:
    index = pd.Index(names)
    if not index.is_unique:
        raise ValueError(f"names: {index[index.duplicated()][0]!r} is given twice; give each file a name of its own")
    return index


def _write(path: StrPath, header: list[str], rows: Iterable[list[str]]) -> None:
    def fill(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)

    atomic.write_atomic(Path(path), fill)
