"""One finished or unfinished run on disk, and the folder that holds them; `atr.training.results` has what it came to.

`<runs>/<address>/` holds what `atr.training` names; state.pt while unfinished; error.txt if it failed. sums.json has
the digests of all (`store.damage`; runs by older versions lack it), metrics.json is written last: a run is finished
where it is there and all of them are whole. external/ has what a finished run came to on other corpora: each as a
.json, written last, and an .npz, whose digest that has. What is not whole is never used, and never deleted: `atr.fit`
trains such a run anew and keeps its folder as `<address>.aside-1`.
"""

import io
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from atr.config import RESULT_VERSION, ConfigError, RunConfig, from_dict
from atr.corpora.corpus import SPLITS, Corpus
from atr.metrics.retrieval import Ranks
from atr.system import atomic, hashes, store
from atr.system.atomic import read_object
from atr.system.environment import PACKAGES
from atr.training import (
    CHECKPOINT,
    CLIPS,
    CONFIG,
    EMBEDDINGS,
    ENVIRONMENT,
    ERROR,
    EXTERNAL,
    HISTORY,
    LEARNED,
    METRICS,
    STATE,
    default_folder,
    results,
    run_folders,
    state,
)
from atr.training.results import ExternalTest, check_embeddings, check_kinds, check_metrics
from atr.training.state import State

Content = TypeVar("Content")
MENDS = {
    "unfinished": "not finished; atr.fit(run.config) continues it",
    "failed": "failed, as its error.txt says; atr.fit(run.config) tries again",
    "newer": "made by a newer version of atr; look at it with that one",
    "stale": "made by an older version, whose results differ; atr.fit(run.config) makes it anew",
}
AGAIN = "run its study or atr.fit again: the run is trained anew, and this folder kept beside it"


class RecordError(ValueError):
    """A file of a run is missing, or holds what it cannot; the message names it and says how the run is made again."""


def error_text(error: BaseException) -> str:
    """An exception in words, even where it has none."""
    return f"{type(error).__name__}: {error}" if str(error).strip() else type(error).__name__


def address(config: RunConfig, corpus_fingerprint: str, weights: dict[str, str]) -> str:
    """16 hexadecimal digits that name a run by all that decides its numbers."""
    return hashes.content_key(config.identity(), corpus_fingerprint, weights, RESULT_VERSION)[:16]


@dataclass(frozen=True)
class Run:
    """A run's folder. What is read from a file raises FileNotFoundError where the run is not finished, and RecordError
    where the file is missing or damaged all the same.

    >>> soundscapes = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
    >>> run = atr.fit(atr.RunConfig(corpus=soundscapes, epochs=2))
    >>> run.status, len(run.history), sorted(run.embeddings)
    ('finished', 2, ['a2t', 'audio', 'relevance', 't2a', 'text'])
    >>> 0 <= run.metrics["t2a_r10"] <= 100
    True
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))  # which may be given as text

    @property
    def address(self) -> str:
        return self.path.name

    @property
    def at_end(self) -> bool:
        """Whether it came to its end, whatever has become of its files."""
        return os.path.lexists(self.path / METRICS)

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def status(self) -> str:
        """finished, stale (by an older version), newer (by a newer one), damaged, failed or unfinished."""
        try:
            version = self._record["result_version"]
        except (RecordError, FileNotFoundError):
            version = RESULT_VERSION
        if version != RESULT_VERSION:
            return "stale" if version < RESULT_VERSION else "newer"
        if self.at_end:
            return "damaged" if self.problem else "finished"
        return "failed" if os.path.lexists(self.path / ERROR) else "unfinished"

    @property
    def diverged(self) -> bool:
        """Whether it failed because its numbers ran away."""
        if self.status != "failed":
            return False
        with suppress(OSError):
            return f"{Diverged.__name__}: " in (self.path / ERROR).read_text(encoding="utf-8", errors="replace")
        return False

    @property
    def problem(self) -> str:
        """What is wrong with the files of a run that came to its end, the first of them; nothing if they are whole."""
        if not self.at_end:
            return ""
        run = Run(self.path)  # reads anew, and keeps nothing
        try:
            audio = len(run.embeddings["a2t"])
            _ = run.clips, run._record, run._metrics, run.environment, run.history
            if os.path.lexists(self.path / LEARNED):
                _ = run.learned
            self._read(CHECKPOINT, lambda path: safe_open(path, "pt"))
        except RecordError as error:
            return str(error)
        if len(run.test_clips) != audio:
            return f"{self.path / CLIPS}: other clips than the {audio} of {EMBEDDINGS}; {AGAIN}"
        return ""

    def require_finished(self, mend: str | None = None) -> None:
        """RecordError: the run is not finished, or damaged. mend: what is said after its status, by default how `fit`
        goes on with it.
        """
        status = self.status
        if status != "finished":
            words = MENDS.get(status, "") if mend is None else status + mend
            raise RecordError(self.problem if status == "damaged" else f"{self.path}: {words}")

    def _read(self, name: str, parse: Callable[[Path], Content]) -> Content:
        """What `parse` makes of a file."""
        path = self.path / name
        try:
            if self.at_end and (problem := store.damage(self.path, name)):
                raise RecordError(f"{path}: damaged ({problem}); {AGAIN}")
            return parse(path)
        except RecordError:
            raise
        except FileNotFoundError as error:
            if not self.at_end:
                missing = f"{path}: missing, as the run is not finished; atr.fit(run.config) continues it"
                raise FileNotFoundError(missing) from error
            raise RecordError(f"{path}: missing; {AGAIN}") from error
        except ConfigError as error:
            raise RecordError(f"{path}: {error}; if no other version of atr wrote it, {AGAIN}") from error
        except Exception as error:  # of json, pandas, safetensors, Unicode, the file system
            raise RecordError(f"{path}: cannot be read ({error_text(error).splitlines()[0]}); {AGAIN}") from error

    @cached_property
    def config(self) -> RunConfig:
        return self._read(CONFIG, lambda _: from_dict(self._record["config"]))

    @property
    def _record(self) -> dict[str, Any]:
        return self._read(CONFIG, lambda path: check_kinds(read_object(path), {"result_version": int, "config": dict}))

    @cached_property
    def _metrics(self) -> dict[str, Any]:
        return self._read(METRICS, lambda path: check_metrics(read_object(path)))

    @property
    def metrics(self) -> dict[str, float]:
        """Test metrics of the selected epoch, as `atr.metrics.retrieval_metrics` names them.

        Those of its validation clips where the corpus has no test clips (`load_corpus(…, hold_out=…)`).
        """
        return self._metrics["test"]

    @property
    def validation(self) -> dict[str, float]:
        """Validation metrics of the selected epoch."""
        return self._metrics["validation"]

    @property
    def stages(self) -> list[dict[str, Any]]:
        """What each stage came to, where a run has several: test, validation, best_epoch, as for the whole run."""
        return self._metrics.get("stages", [])

    @property
    def best_epoch(self) -> int:
        """The selected epoch, from 1; 0 is before any training."""
        return self._metrics["best_epoch"]

    @property
    def environment(self) -> dict[str, Any]:
        """Where and with what it was made: device, platform, seconds, versions, commit, and hashes of the weights."""
        kinds = {"device": str, "platform": str, "seconds": (int, float), "versions": dict}

        def parse(path: Path) -> dict[str, Any]:
            record = check_kinds(read_object(path), kinds | {"commit": (str, type(None))})
            check_kinds(record["versions"], dict.fromkeys(PACKAGES, str))
            check_kinds(record, {"weights": dict} if "weights" in record else {})
            return record

        return self._read(ENVIRONMENT, parse)

    @cached_property
    def clips(self) -> pd.DataFrame:
        """The clips that the run had: clip, split."""

        def parse(path: Path) -> pd.DataFrame:
            table = _table(path, dtype="str", keep_default_na=False)
            if list(table) != ["clip", "split"] or not len(table) or not table["split"].isin(SPLITS).all():
                raise ValueError("not a table of clip and split")
            return table

        return self._read(CLIPS, parse)

    @property
    def tested_split(self) -> str:
        """ "test", or "validation" where the corpus had no test clips."""
        return "test" if self.clips["split"].eq("test").any() else "validation"

    @property
    def test_clips(self) -> list[str]:
        """Names of the clips of the `tested_split`, in their order."""
        return self.clips.loc[self.clips["split"] == self.tested_split, "clip"].tolist()

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per epoch: stage, where there are several, epoch, loss (without any penalty; by each stage's own
        loss), learning rate, validation metrics; with a penalty also batch_h_audio and batch_h_text, the mean over
        batches of its estimates of h in nats. validation_loss: the stage's loss over validation pairs in batches,
        without any penalty.
        """

        def parse(path: Path) -> pd.DataFrame:
            table = _table(path)
            if not {"epoch", "loss", "learning_rate"} <= set(table):
                raise ValueError("no columns epoch, loss and learning_rate")
            if not table.empty and not all(map(pd.api.types.is_numeric_dtype, table.dtypes)):
                raise ValueError("holds other things than numbers")
            if table["epoch"].tolist() != list(range(1, len(table) + 1)) or table["loss"].isna().any():
                raise ValueError("an epoch or its loss is missing")
            if self.at_end and len(table) < self.best_epoch:
                raise ValueError(f"ends before the selected epoch {self.best_epoch}")
            return table

        return self._read(HISTORY, parse)

    @cached_property
    def learned(self) -> pd.DataFrame:
        """One row per step: stage, epoch, step from 1, and what the loss has learned after it, as its class names it.

        FileNotFoundError: the loss learns nothing.
        """
        path = self.path / LEARNED
        if not os.path.lexists(path):
            raise FileNotFoundError(f"{path}: missing, as the loss of the run learns nothing")

        def parse(path: Path) -> pd.DataFrame:
            table = _table(path)
            if list(table)[:3] != ["stage", "epoch", "step"] or not np.isfinite(table.to_numpy(float)).all():
                raise ValueError("not a table of stage, epoch, step and numbers")
            if table["step"].tolist() != list(range(1, len(table) + 1)):
                raise ValueError("a step is missing")
            return table

        return self._read(LEARNED, parse)

    @cached_property
    def embeddings(self) -> dict[str, torch.Tensor]:
        """Test split: audio (clips, dim), text (captions, dim), relevance of the `Corpus`, ranks t2a and a2t; of a
        text-aware model similarity (captions, clips) in place of audio.
        """
        return self._read(EMBEDDINGS, lambda path: check_embeddings(load_file(path)))

    @property
    def checkpoint(self) -> dict[str, torch.Tensor]:
        """Weights of the selected epoch, as `DualEncoder.trainable_state` names them."""
        return self._read(CHECKPOINT, load_file)

    @property
    def pairs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Test split: audio (clips, dim), and the embedding of one caption of each clip, row by row.

        The first; clips described alike share their captions, and take one each.
        """
        return results.pairs(self.embeddings)

    @property
    def ranks(self) -> Ranks:
        """Ranks of the test split."""
        return Ranks(self.embeddings["t2a"].numpy(), self.embeddings["a2t"].numpy())

    @property
    def relevance(self) -> np.ndarray:
        """Of the test split, as in `Corpus`."""
        return self.embeddings["relevance"].numpy()

    def external(self, name: str) -> ExternalTest | None:
        """What `write_external` kept under a name, None if nothing. RecordError: its files are damaged."""
        path = self.path / EXTERNAL / f"{name}.json"
        if not os.path.lexists(path):
            return None
        try:
            return results.read_external(path)
        except Exception as error:  # of json, NumPy, Unicode, the file system
            problem = error_text(error).splitlines()[0]
            raise RecordError(f"{path}: cannot be read ({problem}); test the run on that corpus again") from error

    def write_external(self, name: str, test: ExternalTest, about: dict[str, Any]) -> None:
        """Keep what a run came to on another corpus, and in words what it was tested on."""
        results.write_external(self.path / EXTERNAL / f"{name}.json", test, about)

    def damage(self) -> str:
        """What is wrong with its files, "" if nothing is known to be: of a finished run all of them, else its state."""
        if self.at_end:
            return store.damage(self.path, whole=True) or self.problem
        try:
            if (self.path / STATE).is_file():
                state.check(self.path / STATE)
        except ValueError as error:
            return f"{STATE}: {error}"
        return ""

    def begin(self) -> None:
        """Make the folder, and forget why the run failed before."""
        self.path.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):
            (self.path / ERROR).unlink()

    def describe(self, config: RunConfig, corpus: Corpus) -> None:
        """Write what is trained, on which clips."""
        atomic.write_csv(corpus.clips[["clip", "split"]], self.path / CLIPS)
        atomic.write_json(self.path / CONFIG, {"result_version": RESULT_VERSION, "config": config.to_dict()})

    def fail(self, traceback: str) -> None:
        with suppress(OSError):  # a full disk must not hide the cause
            (self.path / ERROR).write_text(traceback, encoding="utf-8", errors="backslashreplace")

    def write_history(self, now: State) -> None:
        columns = None if now.history else ["epoch", "loss", "learning_rate"]
        atomic.write_csv(pd.DataFrame(now.history, columns=columns), self.path / HISTORY)
        if now.learned:
            learned = pd.DataFrame(now.learned)
            learned.insert(2, "step", np.arange(1, len(learned) + 1))
            atomic.write_csv(learned, self.path / LEARNED)

    def finish(
        self, now: State, embeddings: dict[str, Tensor], environment: dict[str, Any], stages: dict[str, Any]
    ) -> None:
        """Write what a run came to. embeddings: as the property of that name; stages: of a run that has several."""
        for name, tensors in ((EMBEDDINGS, embeddings), (CHECKPOINT, now.best)):
            whole = {key: tensor.contiguous() for key, tensor in tensors.items()}
            atomic.write_atomic(self.path / name, partial(save_file, whole))
        self.write_history(now)
        atomic.write_json(self.path / ENVIRONMENT, environment)
        metrics = json.dumps(now.stages[-1] | stages, indent=1) + "\n"
        names = (CONFIG, ENVIRONMENT, CLIPS, HISTORY, LEARNED, EMBEDDINGS, CHECKPOINT)
        store.write_sums(
            self.path, [name for name in names if (self.path / name).exists()], {METRICS: metrics.encode()}
        )
        atomic.write_text(self.path / METRICS, metrics)
        (self.path / STATE).unlink(missing_ok=True)

    @contextmanager
    def lock(self, verb: str, timeout: float = -1) -> Iterator[None]:
        """Hold the run, as one process at a time does. BlockingIOError: another one does, after so many seconds."""
        folder = self.path.parent / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock, holder = FileLock(folder / self.address), folder / f"{self.address}.holder"
        try:
            lock.acquire(timeout)
        except Timeout:
            who = holder.read_text(encoding="utf-8") if holder.is_file() else "in use by another process"
            raise BlockingIOError(f"{self.path}: is {who or 'in use'}; stop it first, or wait until it ends") from None
        try:
            with suppress(OSError):  # a full disk
                holder.write_text(f"being {verb} by process {os.getpid()} on {platform.node()}", encoding="utf-8")
            yield
        finally:
            lock.release()

    def set_aside(self) -> Path:
        """Rename the folder, so that the run can be made again; the new name. To be called under `lock`."""
        names = (self.path.with_name(f"{self.address}.aside-{number}") for number in count(1))
        aside = next(name for name in names if not os.path.lexists(name))
        os.rename(self.path, aside)
        return aside

    def remove(self) -> None:
        """Remove the folder. BlockingIOError: a process is training the run; FileNotFoundError: it is not there."""
        temporary = self.path.with_name(f".{self.address}.removed")
        with self.lock("removed", timeout=1):
            shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
            os.rename(self.path, temporary)  # at once: a reader finds the whole run or none
            shutil.rmtree(temporary)


def _table(path: Path, **options: Any) -> pd.DataFrame:
    with open(path, "rb") as file:
        text = file.read()
    if not text.endswith(b"\n"):
        raise ValueError("cut off")
    return pd.read_csv(io.BytesIO(text), **options)


def runs_in(folder: Path | None = None) -> list[Run]:
    """All runs in a folder, whatever their state, oldest first."""
    return [Run(path) for path in run_folders(folder or default_folder())]


class TrainingError(RuntimeError):
    """A run cannot go on."""


class Diverged(TrainingError):
    """A run whose loss or embeddings are no numbers any more."""
