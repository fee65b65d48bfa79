"""The nearest of very many embeddings, by cosine: exactly up to a million, beyond by an index of FAISS, if it is here.

The index is an inverted file over 8-bit codes (IVF, SQ8): k-means sorts the embeddings into lists, and a query looks at
the PROBES lists that are nearest to it. Of the kinds that FAISS has, this one can be searched where it lies on disk, is
a quarter as large as the embeddings, built by one pass after the k-means, and fits any dimension; a graph (HNSW) needs
all embeddings in memory, codes of a few bytes (PQ) lose more than they save here. What it finds is scored again from
the embeddings themselves: it may miss a neighbour, but what is returned is true.
"""

import json
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from os import SEEK_END
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from atr.system import hashes
from atr.system.atomic import write_atomic

LIMIT = 1_000_000  # rows, up to which every one is scored
LISTS = 4.0  # for each square root of a row
TRAINING_ROWS = 40  # rows for each list, drawn for the k-means
PROBES = 64  # lists a query
OVERFETCH = 4  # candidates for each neighbour that is asked for
CHUNK = 1 << 24  # numbers read at a time
QUERIES = 256  # scored at a time
COMPLETE = b"complete"  # what a whole file ends with, behind checksums: FAISS maps a damaged one and dies on reading it


class Neighbours:
    """Embeddings to be searched.

    embeddings: (N, D) float16 or float32, or several such arrays whose rows follow each other. They may be
    memory-mapped: they are read in pieces, and never copied as a whole. path: where an index of FAISS lies or is to lie
    if there are more than LIMIT rows; one that is there is taken for theirs, so name it after what they are. Without it
    every search is exact.

    ValueError: no rows, or rows of several lengths.

    >>> import numpy as np
    >>> neighbours = Neighbours(np.array([[1, 0], [0, 2], [3, 3]], np.float32))
    >>> scores, rows = neighbours.search(np.array([[0, 1]]), top=2)
    >>> rows.tolist(), scores.round(3).tolist()
    ([[1, 2]], [[1.0, 0.707]])
    """

    def __init__(self, embeddings: np.ndarray | Sequence[np.ndarray], path: Path | None = None) -> None:
        self.parts = [embeddings] if isinstance(embeddings, np.ndarray) else list(embeddings)
        shapes = {part.shape[1:] for part in self.parts}
        self.starts = np.cumsum([0, *(len(part) for part in self.parts)])
        self.rows = int(self.starts[-1])
        if len(shapes) != 1 or len(min(shapes)) != 1 or not self.rows:
            raise ValueError(f"embeddings of {self.rows} rows, {sorted(shapes)}: give (N, D), N and D at least 1")
        ((self.dim,),) = shapes
        self.path, self.reason = path, ""

    def search(self, queries: np.ndarray, top: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Cosines (Q, top) float64, the highest first, and rows (Q, top); of equal ones the lower row comes first.

        An exact search gives the same bits whatever the chunks, the threads and the other queries. A row of zeros has
        the cosine 0. ValueError: queries (Q, D) or embeddings that are not finite, a query of zeros.
        """
        queries = np.asarray(queries, dtype=np.float64)
        lengths = np.sqrt(np.einsum("ij,ij->i", queries, queries))
        if bad := np.flatnonzero(~np.isfinite(lengths) | (lengths == 0)).tolist():
            raise ValueError(f"query {bad[0]}: zeros alone, or not finite; nothing is near to it")
        queries = queries / lengths[:, None]
        begin, top = time.monotonic(), min(top, self.rows)
        scores, rows = np.empty((len(queries), top)), np.empty((len(queries), top), np.int64)
        candidates = self.candidates(queries, OVERFETCH * top)
        lacking = []
        for query, near in enumerate(candidates):
            near = np.sort(near[near >= 0])
            if len(near) < top:
                lacking.append(query)
            else:
                scores[query], rows[query] = _best(_cosines(queries[query], self._gather(near)), near, top)
        for start in range(0, len(lacking), QUERIES):
            block = lacking[start : start + QUERIES]
            scores[block], rows[block] = self._exact(queries[block], top)
        self.remark(time.monotonic() - begin)
        return scores, rows

    def open(self) -> str:
        """Map the index of FAISS, if it is there; why it cannot be used, "" where it can or need not be."""
        return self.reason if self._index is None else ""

    def candidates(self, queries: np.ndarray, number: int) -> np.ndarray:
        """(Q, number) rows that are likely to be the nearest, the likeliest first, -1 for none: what FAISS finds, so
        none where it is not used.
        """
        if self._index is None:
            return np.empty((len(queries), 0), np.int64)
        return self._index.search(np.asarray(queries, dtype=np.float32), number)[1]

    def remark(self, seconds: float) -> None:
        """Warn, once, that a search took so long because it is exact, and say what would shorten it."""
        if self.reason:
            warnings.warn(f"{self.rows:,} embeddings searched exactly, in {seconds:.1f} s: {self.reason}", stacklevel=3)
            self.reason = ""

    def build(self, quiet: bool = False) -> None:
        """Make the index of FAISS, where there are more than LIMIT rows, FAISS is installed, and it is not there whole.

        It takes as much memory as it will be large, D + 8 bytes a row, and TRAINING_ROWS * LISTS * sqrt(N) rows for the
        k-means. OSError: it cannot be written.
        """
        self.__dict__.pop("_index", None)
        if self.path is None or self.rows <= LIMIT:
            return
        with suppress(ValueError, OSError):
            check(self.path)
            if self._index is not None:
                return
        try:
            faiss = import_faiss()
        except ImportError:
            return  # search says so
        lists = round(LISTS * self.rows**0.5)
        sample = np.random.default_rng(0).choice(self.rows, min(self.rows, TRAINING_ROWS * lists), replace=False)
        index = faiss.index_factory(self.dim, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        index.cp.min_points_per_centroid = 1  # no remark on standard output
        with tqdm(total=self.rows, unit=" rows", unit_scale=True, disable=quiet) as bar:
            bar.set_description(f"FAISS: k-means, {lists:,} lists")
            rows, lengths = _measure(self._gather(np.sort(sample)))
            index.train(rows / lengths[:, None])
            bar.set_description("FAISS: filling the lists")
            for _, chunk in self._chunks():
                rows, lengths = _measure(chunk)
                index.add(rows / lengths[:, None])
                bar.update(len(rows))

        def write(path: Path) -> None:
            try:
                faiss.write_index(index, str(path))
            except RuntimeError as error:
                raise OSError(f"{self.path}: {error}") from error
            sums = json.dumps(hashes.blocks(path)).encode()
            with open(path, "ab") as file:
                file.write(sums + len(sums).to_bytes(8) + COMPLETE)

        write_atomic(self.path, write)
        self.__dict__.pop("_index", None)
        self.reason = ""

    @cached_property
    def _index(self) -> Any:
        """The index of FAISS, mapped from disk; None, and in `reason` why, if it cannot be used."""
        self.reason = ""
        if self.path is None or self.rows <= LIMIT:
            return None
        try:
            faiss = import_faiss()
            check(self.path, sample=True)
            index = faiss.read_index(str(self.path), faiss.IO_FLAG_MMAP)
            if (index.ntotal, index.d) != (self.rows, self.dim):
                raise OSError(f"it has {index.ntotal:,} rows of {index.d}")
            index.nprobe = PROBES
            return index
        except ImportError as error:
            self.reason = str(error)
        except FileNotFoundError:
            self.reason = "no index of FAISS is made for them yet; build() does it, or for a folder: atr index"
        except (OSError, RuntimeError, ValueError) as error:
            problem = str(error).splitlines()[-1]
            self.reason = f"{self.path}: damaged ({problem}); build() makes it anew, or for a folder: atr index"
        return None

    def _exact(self, queries: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        """For queries of length 1. Single precision leaves few rows, and double precision decides among them."""
        slack = 2 * (self.dim + 8) * 2.0**-24  # no cosine in single precision is further from the true one
        scores: list[np.ndarray] = [np.empty(0)] * len(queries)
        numbers: list[np.ndarray] = [np.empty(0, np.int64)] * len(queries)
        floor = np.full(len(queries), -np.inf)
        single = queries.astype(np.float32)
        for start, chunk in tqdm(self._chunks(), "searching", delay=3, leave=False):
            rows, lengths = _measure(chunk)
            rough = single @ rows.T / lengths
            for query in np.flatnonzero((rough >= floor[:, None]).any(1)):
                near = np.flatnonzero(rough[query] >= floor[query])
                if len(near) > top:
                    least = np.partition(rough[query, near], -top)[-top]
                    near = near[rough[query, near] >= least - 2 * slack]
                both = np.concatenate([scores[query], _cosines(queries[query], rows[near])])
                scores[query], numbers[query] = _best(both, np.concatenate([numbers[query], start + near]), top)
                if len(numbers[query]) == top:
                    floor[query] = scores[query][-1] - slack
        return np.stack(scores), np.stack(numbers)

    def _chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Number of the first row, and rows (n, D) as they are."""
        size = max(1, CHUNK // self.dim)
        for first, part in zip(self.starts.tolist(), self.parts, strict=False):
            for start in range(0, len(part), size):
                yield first + start, part[start : start + size]

    def _gather(self, rows: np.ndarray) -> np.ndarray:
        """(n, D) of ascending row numbers (n,)."""
        edges = np.searchsorted(rows, self.starts)
        pieces = zip(self.parts, self.starts.tolist(), edges.tolist(), edges[1:].tolist(), strict=False)
        return np.concatenate([part[rows[begin:end] - first] for part, first, begin, end in pieces if begin < end])


def check(path: Path, sample: bool = False) -> None:
    """ValueError: a file of `Neighbours` is not as it was written; with `sample`, in a part of it."""
    with open(path, "rb") as file:
        end = file.seek(0, SEEK_END) - len(COMPLETE) - 8
        file.seek(max(0, end))
        size = int.from_bytes(file.read(8))
        if file.read() != COMPLETE or size > end:
            raise ValueError("it is cut short")
        file.seek(end - size)
        sums = json.loads(file.read(size))
    hashes.check(path, sums, sample, rest=size + 8 + len(COMPLETE))


def import_faiss() -> Any:
    """FAISS. ImportError: it is not here, with what to do."""
    if sys.platform == "darwin":
        raise ImportError("FAISS is not used on macOS, where its OpenMP and PyTorch's crash each other")
    with suppress(ImportError):
        import faiss

        return faiss
    raise ImportError("FAISS is not installed: pip install faiss-cpu, then build(), or for a folder: atr index")


def _measure(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, D) in single precision, and their lengths (n,), above 0; ValueError: they are not finite."""
    rows = np.asarray(rows, dtype=np.float32)
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    if not np.isfinite(lengths).all():
        raise ValueError("embeddings: not all are finite; look for a diverged training, and embed again")
    return rows, np.maximum(lengths, np.finfo(np.float32).tiny)


def _cosines(query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(n,) of a query (D,) of length 1 with rows (n, D), in double precision and each as if it were alone."""
    rows = np.asarray(rows, dtype=np.float64)
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    return np.einsum("ij,j->i", rows, query) / np.maximum(lengths, np.finfo(np.float64).tiny)


def _best(scores: np.ndarray, rows: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((rows, -scores))[:top]
    return scores[order], rows[order]
