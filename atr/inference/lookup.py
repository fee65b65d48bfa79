"""Which files of an index fit a sentence best. A file counts by the best of its segments."""

import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from atr.inference import neighbours, shards
from atr.inference.embedder import Embedder
from atr.inference.neighbours import Neighbours
from atr.inference.shards import Shard
from atr.system import hashes

QUERIES = 256  # scored at a time
SEGMENTS = 32  # that FAISS is asked for by each file of the answer: the nearest may all lie in one file
FILES = 4  # of those that are scored, by each file of the answer
PREFIX = "neighbours-"


class Hit(NamedTuple):
    """A file's score, its path relative to the folder that is indexed, start and end of its best segment in seconds."""

    score: float
    path: str
    start: float
    end: float


class Lookup:
    """The segments of the shards in `folder`, of whose files those in `table` count, rows of `shards.files`.

    The embedder scores every segment. Only where there are more than `atr.inference.neighbours.LIMIT`, and its
    similarity is the cosine, FAISS names likely ones first, and all segments of their files are scored. Files are
    counted through the shards. shards.DamageError: one of their files is.
    """

    def __init__(self, folder: Path, parts: Sequence[Shard], table: pd.DataFrame, embedder: Embedder) -> None:
        self.folder, self.parts, self.table, self.embedder = folder, parts, table, embedder
        self.starts = np.cumsum([0, *(len(part.table) for part in parts)])
        self.live = np.concatenate([np.empty(0, bool), *shards.masks(parts, table)])
        self.files = int((table["segments"] > 0).sum())

    def best(self, sentences: Tensor, top: int) -> list[list[Hit]]:
        """The `top` files for each sentence (N, dim), the best first."""
        result, top, start = [], min(top, self.files), time.monotonic()
        for block in sentences.split(QUERIES):
            for sentence, files in zip(block, self._likely(block, top) if top else [[]] * len(block), strict=True):
                hits = sorted((self._hit(sentence, file) for file in files), key=lambda hit: (-hit.score, hit.path))
                result.append(hits[:top])
        if self.neighbours is not None:
            self.neighbours.remark(time.monotonic() - start)
        return result

    def open(self) -> str:
        """Map and check all files, so that their removal changes no answer. Why FAISS cannot be used, if it should."""
        many = sum(int(part.offsets[-1]) for part in self.parts) > neighbours.LIMIT
        for part in self.parts:
            part.check(sample=many)
        return self.neighbours.open() if self.neighbours is not None else ""

    @cached_property
    def neighbours(self) -> Neighbours | None:
        """Of all segments, with a file that is named after the shards; None: no segments."""
        embeddings = [part.tensors["embeddings"].numpy() for part in self.parts]
        if not sum(map(len, embeddings)):
            return None
        key = hashes.content_key([part.name for part in self.parts])
        cosine = type(self.embedder).similarity is Embedder.similarity
        return Neighbours(embeddings, self.folder / f"{PREFIX}{key}.faiss" if cosine else None)

    def build(self, quiet: bool) -> None:
        """Make the file that FAISS searches, if it is wanted."""
        if self.neighbours is not None:
            self.neighbours.build(quiet)

    def clean(self) -> None:
        """Remove the files that FAISS searched for other shards."""
        for path in self.folder.glob(f"{PREFIX}*"):
            if self.neighbours is None or path != self.neighbours.path:
                path.unlink()

    def _likely(self, sentences: Tensor, top: int) -> list[list[int]]:
        """For each sentence files that have the `top` ones among them: those of the segments that FAISS names if they
        are enough, else exactly the `top` ones.
        """
        assert self.neighbours is not None
        likely = []
        for rows in self.neighbours.candidates(sentences.numpy(), SEGMENTS * top):
            owners = dict.fromkeys(self._owners[rows[rows >= 0]].tolist())
            likely.append([file for file in owners if self.live[file]][: FILES * top])
        if lacking := [query for query, files in enumerate(likely) if len(files) < top]:
            for query, files in zip(lacking, self._exactly(sentences[lacking], top), strict=True):
                likely[query] = files
        return likely

    def _exactly(self, sentences: Tensor, top: int) -> list[list[int]]:
        best: list[list[tuple[float, int]]] = [[] for _ in sentences]
        for start, part in zip(self.starts.tolist(), self.parts, strict=False):
            lines = np.flatnonzero(part.table["segments"])
            if not len(lines):
                continue
            scores = self.embedder.similarity(sentences, part.tensors["embeddings"]).numpy()
            live = self.live[start + lines]
            peaks = np.maximum.reduceat(scores, part.offsets[lines], axis=1)[:, live]
            values, places = torch.from_numpy(peaks).topk(min(top, peaks.shape[1]))
            files = start + lines[live][places.numpy()]
            for query, hits in enumerate(zip(values.tolist(), files.tolist(), strict=True)):
                best[query] = sorted([*best[query], *zip(*hits, strict=True)], key=lambda hit: -hit[0])[:top]
        return [[file for _, file in hits] for hits in best]

    @cached_property
    def _owners(self) -> np.ndarray:
        """Each segment's file."""
        segments = np.concatenate([part.table["segments"] for part in self.parts])
        return np.repeat(np.arange(len(segments), dtype=np.int32), segments)

    def _hit(self, sentence: Tensor, file: int) -> Hit:
        place = int(np.searchsorted(self.starts, file, "right")) - 1
        part, line = self.parts[place], file - self.starts[place]
        rows = slice(*part.offsets[line : line + 2])
        score, best = self.embedder.similarity(sentence[None], part.tensors["embeddings"][rows])[0].max(0)
        return Hit(float(score), part.table["path"].iloc[line], *part.tensors["times"][rows][best].tolist())
