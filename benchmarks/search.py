"""How many queries a second find the nearest of many embeddings, exactly and by FAISS, and how many of them FAISS
misses: python benchmarks/search.py --run results/demo/runs/<address>.

One JSON line a size and number of lists. Embeddings are a run's test sounds blown up: each is a sound's embedding plus
`--noise` times the difference of two others, so that the noise has the shape of the data, plus a tenth as much without
shape; a million are two thousand around each of 500 sounds. Queries are the run's test captions as they are. Without
--run, clusters and noise take their place. Real collections differ: how their embeddings lie decides what FAISS misses.
Peak memory includes pages of files, which the system takes back when it needs them.
"""

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from atr import neighbours
from atr.neighbours import Neighbours


def seeds(run: Path | None, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of sounds to blow up, and queries."""
    if run is not None:
        from atr.records import Run

        embeddings = Run(run).embeddings
        return embeddings["audio"].numpy(), embeddings["text"].numpy()
    generator = np.random.default_rng(1)
    centres = generator.standard_normal((500, dim)) / dim**0.5
    return centres, np.repeat(centres, 5, 0) + generator.standard_normal((2500, dim)) / dim**0.5


def fill(file: Path, seeds: np.ndarray, rows: int, noise: float, dtype: str) -> np.ndarray:
    """(rows, dim) of length 1, memory-mapped."""
    mapped = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=(rows, seeds.shape[1]))
    generator = np.random.default_rng(0)
    for start in range(0, rows, 10_000):
        count = min(10_000, rows - start)
        chosen, one, other = generator.integers(0, len(seeds), (3, count))
        made = seeds[chosen] + noise * (seeds[one] - seeds[other])
        made += 0.1 * noise / seeds.shape[1] ** 0.5 * generator.standard_normal(made.shape, dtype=np.float32)
        mapped[start : start + count] = made / np.linalg.norm(made, axis=1, keepdims=True)
    mapped.flush()
    return np.load(file, mmap_mode="r")


def rate(search, queries: np.ndarray, batch: int, seconds: float = 5.0) -> float:
    """Queries a second, so many at a time; the first ones warm up."""
    search(queries[:batch])
    done, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        at = done % (len(queries) - batch + 1)
        search(queries[at : at + batch])
        done += batch
    return round(done / passed, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a finished run")
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=1024, help="without --run")
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float32")
    parser.add_argument("--queries", type=int, default=1000, help="whose recall is measured")
    parser.add_argument("--top", type=int, default=10)
    parser.add_argument("--probed", type=int, nargs="*", default=[neighbours.PROBED])
    parser.add_argument("--out", type=Path, help="file that the lines are added to")
    options = parser.parse_args()

    import faiss

    sounds, sentences = seeds(options.run, options.dim)
    queries = np.random.default_rng(2).permutation(sentences)[: options.queries]
    context = {
        "command": " ".join(["python", *sys.argv]),
        "device": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "faiss": faiss.__version__},
    }
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            embeddings = fill(Path(folder) / "rows.npy", sounds, size, options.noise, options.dtype)
            line = context | {"rows": size, "dim": embeddings.shape[1], "dtype": options.dtype, "top": options.top}
            exact = Neighbours(embeddings)
            started = time.perf_counter()
            truth = exact.search(queries, options.top)[1]
            line["exact_all_queries_s"] = round(time.perf_counter() - started, 2)
            line["exact_queries_a_second"] = rate(lambda some: exact.search(some, options.top), queries, 1)  # noqa: B023
            neighbours.LIMIT = 0
            index = Neighbours(embeddings, Path(folder) / "rows.faiss")
            started = time.perf_counter()
            index.build(quiet=True)
            line["faiss_built_in_s"] = round(time.perf_counter() - started, 1)
            line["faiss_file_gb"] = round(index.path.stat().st_size / 1e9, 3)
            for probed in options.probed:
                index._index.nprobe = probed
                found = index.search(queries, options.top)[1]
                hits = [len(set(one) & set(other)) for one, other in zip(found.tolist(), truth.tolist(), strict=True)]
                result = {"probed": probed, "recall": round(float(np.mean(hits)) / options.top, 4)}
                for batch in (1, 100):
                    name = f"faiss_queries_a_second_{batch}_at_a_time"
                    result[name] = rate(lambda some: index.search(some, options.top), queries, batch)  # noqa: B023
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2.0 ** (-30 if MAC else -20)
                text = json.dumps(line | result | {"peak_gb": round(peak, 2), "load": round(os.getloadavg()[0], 1)})
                print(text, flush=True)
                if options.out:
                    with open(options.out, "a") as file:
                        file.write(text + "\n")
            neighbours.LIMIT = LIMIT


MAC = sys.platform == "darwin"  # which counts in bytes, not in KiB
LIMIT = neighbours.LIMIT

if __name__ == "__main__":
    main()
