"""What is computed once and kept: packed waveforms, features, token states, under content hashes.

An entry is a folder `<home>/cache/<kind>/<key>/`. It is built under a temporary name and renamed when complete, behind
a lock file, so a kill, a full disk or a second process leaves either the whole entry or none.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from filelock import FileLock
from tqdm.auto import tqdm

from atr.audio import MAX_PEAK, resample
from atr.corpora.corpus import Corpus

Item = TypeVar("Item")
Result = TypeVar("Result")

PROJECT = Path(__file__).resolve().parents[1]
WAVEFORM_VERSION = 1
SHORTEST = 0.1  # seconds of a packed waveform
TRANSFORMERS = ("transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto")


def home() -> Path:
    """Folder of downloads and caches: `ATR_HOME`, else `data/` of the checkout, else `~/.cache/atr`."""
    if os.environ.get("ATR_HOME"):
        return Path(os.environ["ATR_HOME"]).expanduser()
    return PROJECT / "data" if (PROJECT / "pyproject.toml").exists() else Path.home() / ".cache" / "atr"


def results_home() -> Path:
    """Folder of results: `ATR_RESULTS`, else `results/` of the checkout, else `./results`."""
    if os.environ.get("ATR_RESULTS"):
        return Path(os.environ["ATR_RESULTS"]).expanduser()
    return PROJECT / "results" if (PROJECT / "pyproject.toml").exists() else Path("results").resolve()


def content_key(*parts: Any) -> str:
    """24 hexadecimal digits that name JSON-serialisable `parts` by their content."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


file_hashes: dict[tuple[str, int, int], str] = {}  # (path, size, time of change) → SHA-256; `runs` hands it to workers


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, computed once while its size and time of change stay the same."""
    state = path.stat()
    key = (str(path), state.st_size, state.st_mtime_ns)
    if key not in file_hashes:
        with open(path, "rb") as file:
            file_hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return file_hashes[key]


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, then rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def cached(kind: str, key: str, build: Callable[[Path], object]) -> Path:
    """Folder of the entry `kind`/`key`; `build(folder)` fills it the first time."""
    path = home() / "cache" / kind / key
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{key}.lock")):
        if not path.exists():
            for leftover in path.parent.glob(f".{key}.*.tmp"):  # of a killed process: we hold the lock
                shutil.rmtree(leftover)
            temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{key}.", suffix=".tmp"))
            try:
                build(temporary)
                temporary.chmod(path.parent.stat().st_mode)  # mkdtemp's own lets nobody else in
                os.rename(temporary, path)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return path


@dataclass(frozen=True)
class Packed:
    """Rows of unequal length in one memory-mapped array.

    data: (total length, ...); offsets: (rows + 1,) int64. Row i is `data[offsets[i]:offsets[i + 1]]`.
    """

    data: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.data[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def batch(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, longest, ...) padded with zeros, and lengths (B,) int64."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        padded = np.zeros((len(rows), int(lengths.max()), *self.data.shape[1:]), self.data.dtype)
        for place, row in enumerate(rows):
            padded[place, : lengths[place]] = self[row]
        return torch.from_numpy(padded), torch.from_numpy(lengths)


def pack(folder: Path, rows: Iterable[np.ndarray]) -> None:
    """Write rows (length, ...) of one dtype to `folder` as `data.npy` and `offsets.npy`, one at a time."""
    offsets, shape, dtype = [0], None, None
    with open(folder / "raw", "wb") as file:
        for row in rows:
            row = np.ascontiguousarray(row)
            if shape is None:
                shape, dtype = row.shape[1:], row.dtype
            if row.shape[1:] != shape or row.dtype != dtype:
                raise ValueError(f"rows differ: {row.shape[1:]} {row.dtype} after {shape} {dtype}")
            file.write(row.tobytes())  # ndarray.tofile does not notice a disk that is full
            offsets.append(offsets[-1] + len(row))
    if shape is None:
        raise ValueError("nothing to pack: no rows")
    np.save(folder / "offsets.npy", np.array(offsets))
    (folder / "layout.json").write_text(json.dumps({"shape": [offsets[-1], *shape], "dtype": str(dtype)}))


def open_packed(folder: Path) -> Packed:
    """The rows that `pack` wrote, memory-mapped."""
    try:
        layout = json.loads((folder / "layout.json").read_text())
        data = np.memmap(folder / "raw", dtype=layout["dtype"], mode="c", shape=tuple(layout["shape"]))
        return Packed(data, np.load(folder / "offsets.npy"))
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{folder}: files missing or cut short ({error}); delete it and run again") from error


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Run PyTorch on `number` threads. The number changes the last bits of sums, so it is always set on purpose."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def worker_context() -> Any:
    """Fork from a clean server: PyTorch is imported once, and no thread pool is forked half-way."""
    # Large pages, where Linux grants them on demand: with D 2,048 an epoch takes an eighth to a quarter less time.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    context = multiprocessing.get_context("forkserver")
    # These take seconds to import, which the first fit would do: once here instead of in every process.
    bert = "transformers.models.bert.modeling_bert"
    context.set_forkserver_preload(["atr.training", "lightning_fabric", bert, *TRANSFORMERS])
    return context


def waveforms(corpus: Corpus, sample_rate: int, quiet: bool = False, seconds: float | None = None) -> Packed:
    """16-bit waveforms of the clips of a one-split corpus, in order, decoded and resampled once.

    Rows are (samples,) int16; divide by 32767 for the range -1 to 1. seconds: keep only the beginning of each clip, cut
    before it is resampled; None keeps all. Raises AudioError, or what else the corpus's reader raises.
    """
    if seconds is not None and seconds <= 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    clips = corpus.clips["clip"].tolist()
    split = corpus.clips["split"].iloc[0]

    def decode(clip: str) -> np.ndarray:
        waveform, rate = corpus.read(clip)
        if seconds is not None:
            waveform = waveform[: max(1, round(seconds * rate))]
        return quantised(waveform, rate, sample_rate)

    def build(folder: Path) -> None:
        title = f"{corpus.name} {split}: audio"
        pack(folder, tqdm(ahead(decode, clips), total=len(clips), desc=title, unit="clip", disable=quiet))

    beginning = [] if seconds is None else [float(seconds)]
    key = content_key(corpus.audio_fingerprint(split), sample_rate, WAVEFORM_VERSION, *beginning)
    return open_packed(cached("waveforms", key, build))


def quantised(waveform: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """A waveform (samples,) in the range -1 to 1 at `rate` Hz as `waveforms` keeps it: int16 at `sample_rate`.

    Below SHORTEST it is padded with zeros: every encoder has a window, and pools. ValueError: no such range.
    """
    peak = np.abs(waveform).max(initial=0.0) if waveform.dtype.kind == "f" else np.inf
    if not peak <= MAX_PEAK:
        held = f"samples up to {peak:,.0f}" if waveform.dtype.kind == "f" else f"a waveform of {waveform.dtype}"
        raise ValueError(f"{held}, where 1 is full scale; give floats in the range -1 to 1")
    samples = np.round(np.clip(resample(waveform, rate, sample_rate), -1, 1) * 32767).astype(np.int16)
    return np.pad(samples, (0, max(0, round(SHORTEST * sample_rate) - len(samples))))


def ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map(function, items)` on a thread for each core, never more than four items a thread ahead of what is taken.

    Threads, because decoding and resampling let go of the interpreter's lock and nothing has to be sent.
    """
    workers, items = os.cpu_count() or 1, iter(items)
    pool = ThreadPoolExecutor(workers)
    try:
        underway = deque(pool.submit(function, item) for item in islice(items, 4 * workers))
        while underway:
            yield underway.popleft().result()
            underway.extend(pool.submit(function, item) for item in islice(items, 1))
    finally:
        pool.shutdown(cancel_futures=True)
