"""The nearest of many embeddings: queries a second, exactly and by FAISS, and how many neighbours FAISS misses.

Embeddings are clusters blown up: each is a centre plus noise of as much length as that of two others apart, plus a
tenth as much without shape. Queries lie around the centres as captions lie around their sounds. Real collections
differ: how their embeddings lie decides what FAISS misses.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from atr.bench.harness import Case, ReleasedCode, timed
from atr.inference import neighbours
from atr.inference.neighbours import Neighbours

SIZES: dict[str, tuple[tuple[int, ...], int, tuple[int, ...]]] = {
    "smoke": ((2000,), 16, (4,)),
    "demo": ((10_000, 100_000, 1_000_000), 256, (4, 16, 32, 64, 128, 256)),
    "paper": ((10_000, 100_000, 1_000_000), 1024, (4, 16, 32, 64, 128, 256)),
}
CENTRES, NOISE, QUERIES, TOP = 500, 0.5, 1000, 10
AT_A_TIME = 100


def cases(scale: str, device: str, released: ReleasedCode) -> list[Case]:
    numbers, dim, probes = SIZES[scale]
    missing = ""
    try:
        neighbours.import_faiss()
    except ImportError as error:
        missing = str(error)
    result = []
    for rows in numbers:
        size = {"rows": rows, "dim": dim}
        result.append(Case("search", "exact", "search.exact", size))
        result.append(Case("search", "FAISS", "search.approximate", size | {"probed": list(probes)}, missing))
    return result


def random_rows(file: Path, rows: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (rows, D) of length 1 in float16, memory-mapped, and queries (queries, D)."""
    generator = np.random.default_rng(1)
    centres = generator.standard_normal((CENTRES, dim)) / dim**0.5
    queries = centres[generator.integers(0, CENTRES, QUERIES)] + generator.standard_normal((QUERIES, dim)) / dim**0.5
    mapped = np.lib.format.open_memmap(file, mode="w+", dtype="float16", shape=(rows, dim))
    for start in range(0, rows, 10_000):
        count = min(10_000, rows - start)
        first, one, other = generator.integers(0, CENTRES, (3, count))
        new = centres[first] + NOISE * (centres[one] - centres[other])
        new += 0.1 * NOISE / dim**0.5 * generator.standard_normal(new.shape)
        mapped[start : start + count] = new / np.linalg.norm(new, axis=1, keepdims=True)
    mapped.flush()
    return np.load(file, mmap_mode="r"), queries.astype(np.float32)


def exact(rows: int, dim: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        embeddings, queries = random_rows(Path(folder) / "rows.npy", rows, dim)
        return speed(Neighbours(embeddings), queries, repeats=3)


def speed(index: Neighbours, queries: np.ndarray, **how: Any) -> dict[str, float]:
    """Of one query at a time, timed as `how` says, and of many together."""
    alone = timed(lambda: index.search(queries[:1], TOP), **how)
    together = timed(lambda: index.search(queries[:AT_A_TIME], TOP), repeats=3)
    return alone | {"queries_a_second": 1 / alone["seconds"], "together": AT_A_TIME / together["seconds"]}


def approximate(rows: int, dim: int, probed: list[int]) -> dict[str, Any]:
    """Recall of the exact ten among FAISS's ten, and queries a second, by the number of lists that are looked at; the
    row's own seconds are of the number that `atr search` takes, or the nearest to it.
    """
    with tempfile.TemporaryDirectory() as folder:
        embeddings, queries = random_rows(Path(folder) / "rows.npy", rows, dim)
        truth = Neighbours(embeddings).search(queries, TOP)[1]
        neighbours.LIMIT = 0
        index = Neighbours(embeddings, Path(folder) / "rows.faiss")
        start = time.perf_counter()
        index.build(quiet=True)
        row: dict[str, Any] = {"built_seconds": time.perf_counter() - start}
        row["file_gb"] = index.path.stat().st_size / 1e9 if index.path else 0.0
        by: list[dict[str, float]] = []
        for lists in probed:
            index._index.nprobe = lists
            answers = index.search(queries, TOP)[1]
            hits = [len(set(one) & set(other)) for one, other in zip(answers.tolist(), truth.tolist(), strict=True)]
            recall = round(float(np.mean(hits)) / TOP, 4)
            by.append({"probed": lists, "recall": recall} | speed(index, queries, repeats=20, least=0.5))
    usual = min(by, key=lambda one: abs(one["probed"] - neighbours.PROBES))
    return row | usual | {"by_lists": by}
