"""Per-query ranks of the runs that a notebook reports: enough to compute its tables and its tests again without the
run folders, which hold the weights and are not shared.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atr.config import RunConfig, from_dict
from atr.metrics.retrieval import Ranks
from atr.system import atomic
from atr.training import EXTERNAL
from atr.training.records import Run
from atr.training.results import ExternalTest


@dataclass(frozen=True)
class RunTests:
    """A run's config, and what it came to by corpus: "" is its own test split, else as `Profile.external` names it."""

    config: RunConfig
    tests: dict[str, ExternalTest]


def addresses(results: Path, stem: str) -> list[str]:
    """Of the runs behind the table that is named as a notebook is, and behind its claims."""
    runs: set[str] = set()
    for name in (stem, f"{stem[:2]}_claims"):
        path = results / "tables" / f"{name}.json"
        if path.is_file():
            runs |= set(atomic.read_object(path)["runs"])
    return sorted(runs)


def write(runs: Iterable[Run], path: Path) -> None:
    """Configs, ranks and relevance of finished runs as one .npz."""
    arrays: dict[str, np.ndarray] = {}
    for run in runs:
        arrays[run.address] = np.array(json.dumps(run.config.to_dict(), sort_keys=True))
        others = {file.stem: run.external(file.stem) for file in sorted((run.path / EXTERNAL).glob("*.json"))}
        for name, test in {"": ExternalTest(run.ranks, run.relevance), **others}.items():
            if test is not None:
                parts = {"t2a": test.ranks.t2a, "a2t": test.ranks.a2t, "relevance": test.relevance}
                arrays |= {f"{run.address}/{name}/{part}": _small(array) for part, array in parts.items()}
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def _small(array: np.ndarray) -> np.ndarray:
    """The same in as few bits as it fits; ranks and relevance are never negative."""
    return array if array.dtype == bool else array.astype(np.min_scalar_type(int(array.max(initial=0))))


def read(path: Path) -> dict[str, RunTests]:
    """What `write` has written, by the runs' addresses. ValueError: the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        texts = {name: str(array) for name, array in arrays.items() if "/" not in name}
        runs = {address: RunTests(from_dict(json.loads(text)), {}) for address, text in texts.items()}
        for place in {name.rpartition("/")[0] for name in arrays if "/" in name}:
            address, _, corpus = place.partition("/")
            t2a, a2t, relevance = (_large(arrays[f"{place}/{part}"]) for part in ("t2a", "a2t", "relevance"))
            runs[address].tests[corpus] = ExternalTest(Ranks(t2a, a2t), relevance)
    except FileNotFoundError:
        raise
    except Exception as error:  # of NumPy, zipfile, zlib, json
        raise ValueError(f"{path}: cannot be read ({type(error).__name__}); fetch it again: git checkout") from error
    return runs


def _large(array: np.ndarray) -> np.ndarray:
    return array if array.dtype == bool else array.astype(np.int64)
