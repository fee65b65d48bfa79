"""How fast the parts are on the machine at hand, beside what people use today: `atr bench`.

A case is a function of this package with its arguments. Each runs in a process of its own, so that the peak memory that
it reports is its own, PyTorch and all. What is compared runs in one go on one machine, first with the same work, batch
and precision.

Whoever has the released code of Mei et al. 2022 or of Tymofieiev 2025 at hand can have it run beside ours; nothing of
it is part of this package.
"""

import ast
import importlib
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from atr.system import atomic, devices, hashes, places
from atr.system.environment import environment, processor

# What each part measures, in the order in which they run: `cases(scale, device, released)` of its module has its cases.
PARTS = {
    "frozen": "a frozen study, from audio files to test metrics",
    "evaluation": "ranks and metrics of a test split, in both directions",
    "text_aware": "all pairs scored by text-aware pooling",
    "step": "a step of fine-tuning, what it spends its time on, what each switch brings",
    "pipeline": "batches of waveforms read from the store",
    "mining": "an epoch's batches mined from all pairs",
    "measures": "uniformity of a set of embeddings",
    "frontends": "spectrograms of a batch of clips",
    "packing": "audio files decoded, resampled and packed",
    "search": "the nearest of many embeddings, exactly and by FAISS",
}
MODULES = {"pipeline": "inputs", "frontends": "inputs", "packing": "inputs"}  # by part, where the names differ
MODULES |= {"mining": "embeddings", "measures": "embeddings"}
SCALES = ("smoke", "demo", "paper")  # tests; a laptop; what the goals are stated for


@dataclass(frozen=True)
class ReleasedCode:
    """Folders with the released code of two papers, None where it is not at hand."""

    mei2022: Path | None = None  # a clone of github.com/XinhaoMei/audio-text_retrieval
    tymofieiev2025: Path | None = None  # a clone of github.com/timoniko/PR-Text-To-Audio-Retrieval

    @classmethod
    def from_environment(cls) -> "ReleasedCode":
        """Those that the environment names: ATR_MEI2022, ATR_TYMOFIEIEV2025."""
        return cls(**{one.name: places.place(f"ATR_{one.name.upper()}") for one in fields(cls)})

    def missing(self, name: str) -> str:
        """Why a paper's code cannot be measured here, nothing if it can."""
        return "" if getattr(self, name) else f"needs the released code of {name[:-4].title()} {name[-4:]}"

    def commits(self) -> dict[str, str]:
        """By paper, the commit of each clone that is there."""
        folders = {name: folder for name, folder in asdict(self).items() if folder is not None}
        git = {name: ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"] for name, folder in folders.items()}
        return {
            name: subprocess.run(call, capture_output=True, text=True).stdout.strip() or "no clone"
            for name, call in git.items()
        }


@dataclass(frozen=True)
class Case:
    """One measurement: `function`, as "module.name" of this package, with its arguments, JSON alone.

    how      ours or what it is compared with, in words
    missing  why it cannot be measured here; it is then listed as not measured
    """

    part: str
    how: str
    function: str
    arguments: dict[str, Any] = field(default_factory=dict)
    missing: str = ""

    def row(self) -> dict[str, Any]:
        sizes = {name: value for name, value in self.arguments.items() if name not in ("folder", "device")}
        return {"part": self.part, "how": self.how, "size": sizes}


class MeasurementError(RuntimeError):
    """A case could not be measured: which, and the reason."""

    def __init__(self, case: Case, reason: str) -> None:
        size = ", ".join(f"{name} {value}" for name, value in case.arguments.items())
        super().__init__(f"{case.part}, {case.how} ({size}): {reason}")
        self.reason = reason


def cases(parts: Sequence[str], scale: str, device: str, released: ReleasedCode) -> list[Case]:
    """All cases of some parts. ValueError: an unknown part or scale."""
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"unknown part {part!r}; known: {', '.join(PARTS)}")
    if scale not in SCALES:
        raise ValueError(f"scale: unknown {scale!r}; known: {', '.join(SCALES)}")
    result = []
    for part in parts or PARTS:
        module = importlib.import_module(f"atr.bench.{MODULES.get(part, part)}")
        result += [case for case in module.cases(scale, device, released) if case.part == part]
    return result


def measure(case: Case, limit: float | None = None, threads: int | None = None) -> dict[str, Any]:
    """A case's row, by a process of its own: part, how, size, what its function gives (seconds, and more), the peak
    memory of that process in GiB. What cannot be measured here says so under "missing". threads: of the CPU; all cores
    if not given. MeasurementError: it failed, or took more than `limit` seconds and was ended.
    """
    if case.missing:
        return case.row() | {"missing": case.missing}
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler, which misses a GPU aloud
    start = time.monotonic()
    threads = threads or os.cpu_count() or 1
    with ProcessPoolExecutor(1, devices.worker_context()) as pool:
        try:
            return case.row() | pool.submit(_work, case.function, case.arguments, threads, limit).result()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            if isinstance(error, BrokenProcessPool) and limit is not None and time.monotonic() - start >= limit:
                reason = f"ended after {limit:.0f} s"
            raise MeasurementError(case, reason) from error


def _work(function: str, arguments: dict[str, Any], threads: int, limit: float | None) -> dict[str, Any]:
    """What a case's function gives, in this process, which ends after `limit` seconds."""
    if limit is not None:
        signal.setitimer(signal.ITIMER_REAL, limit)  # its signal ends a process that waits on a GPU, too
    module, _, name = function.rpartition(".")
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    row = getattr(importlib.import_module(f"atr.bench.{module}"), name)(**arguments)
    return row | {"memory_gib": peak_memory(arguments.get("device", "cpu"))}


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder; the store and the results lie in it meanwhile, both empty."""
    with tempfile.TemporaryDirectory() as temporary:
        own = {"ATR_HOME": f"{temporary}/home", "ATR_RESULTS": f"{temporary}/results"}
        with patch.dict(os.environ, own):
            yield Path(temporary)


def run(
    parts: Sequence[str] = (),
    scale: str = "demo",
    device: str = "cpu",
    released: ReleasedCode | None = None,
    again: bool = False,
    on_row: Callable[[dict[str, Any]], Any] | None = None,
) -> dict[str, Any]:
    """Measure `parts` (all if none), one case after another: {"machine", "scale", "released", "rows"}.

    What this code has measured on this machine before is taken from the store, unless `again`. Nothing else should run
    meanwhile; each row's "load" says how many processes were busy when it began. RuntimeError: a case failed.
    """
    released = ReleasedCode.from_environment() if released is None else released
    here, rows = machine(device), []
    same = [here[name] for name in ("device", "processor", "cores", "python", "versions")]
    for case in cases(parts, scale, device, released):
        path = places.home() / "cache" / "bench" / f"{hashes.content_key(same, _code(case.part), asdict(case))}.json"
        if again or not path.is_file():
            load = round(os.getloadavg()[0], 2)
            row = measure(case)
            if not case.missing:
                atomic.write_json(path, row | {"load": load})
        rows.append(json.loads(path.read_text()) if path.is_file() else row)
        if on_row is not None:
            on_row(rows[-1])
    return {"machine": here, "scale": scale, "released": released.commits(), "rows": rows}


@cache
def _code(part: str) -> str:
    """Content hash of the code behind a part: its module, what that imports of this package, and so on."""
    package = Path(__file__).parents[1]
    waiting, digests = [f"atr.bench.{MODULES.get(part, part)}", "atr.bench.harness"], dict[str, str]()
    while waiting:
        name = waiting.pop()
        place = package.joinpath(*name.split(".")[1:])
        file = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"
        if name in digests or not file.is_file():
            continue
        digests[name] = hashes.file_hash(file)
        if name == "atr":  # they name all modules
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "atr":
                waiting += [str(node.module), *(f"{node.module}.{one.name}" for one in node.names)]
    return hashes.content_key(digests)


def machine(device: str) -> dict[str, Any]:
    """Where it is measured, by what versions."""
    cores = os.cpu_count() or 1
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    return {
        **environment(name, cores),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
    }


def timed(work: Callable[[], Any], device: str = "cpu", repeats: int = 5, least: float = 0.2) -> dict[str, float]:
    """Median, fastest and slowest seconds of `work`, over at least `repeats` runs and `least` seconds, fewer if they
    come to half a minute, after one to warm up. Work that takes a minute or more runs once, cold.
    """
    times = [once(work, device)]
    if times[0] < 60:
        times = []
        while not times or (len(times) < repeats or sum(times) < least) and sum(times) < 30:
            times.append(once(work, device))
    return {"seconds": statistics.median(times), "fastest": min(times), "slowest": max(times), "repeats": len(times)}


def once(work: Callable[[], Any], device: str, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of `work`, here and now."""
    start = clock()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def warm_seconds(work: Callable[[], Any], device: str) -> float:
    """Seconds of `work` once it is warm: the faster of two runs, or one if it is slow. On a CPU, CPU time, which what
    else runs there lengthens little.
    """
    clock = time.process_time if device == "cpu" else time.perf_counter
    times: list[float] = []
    while len(times) < 2 or len(times) == 2 and times[1] < 1:
        times.append(once(work, device, clock))
    return min(times[1:])


def peak_memory(device: str = "cpu") -> float:
    """GiB that this process has held at most, on a GPU the tensors there (`max_memory_allocated`)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2.0 ** (-30 if sys.platform == "darwin" else -20)
