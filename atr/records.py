"""One finished or unfinished run on disk, and the folder that holds them.

`<runs>/<address>/` holds config.json, environment.json, clips.csv, history.csv, metrics.json, embeddings.safetensors
and checkpoint.safetensors; state.pt while unfinished; error.txt if it failed. metrics.json is written last: its
presence means finished.
"""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from atr import config as configs
from atr import store
from atr.config import RunConfig
from atr.language_models import without_credentials
from atr.metrics import Ranks, relevant_pairs

RESULT_VERSION = 2  # raised when a fix changes results
RECORDED = ("torch", "torchaudio", "transformers", "lightning-fabric", "numpy", "pandas", "atr")


def default_folder() -> Path:
    return store.results_home() / "runs"


def address(config: RunConfig, corpus_fingerprint: str, weights: dict[str, str]) -> str:
    """16 hexadecimal digits that name a run by all that decides its numbers."""
    return store.content_key(config.identity(), corpus_fingerprint, weights, RESULT_VERSION)[:16]


def environment(device: str, threads: int) -> dict[str, Any]:
    """Where and with what a run was made."""
    return {
        "device": device,
        "threads": threads,
        "cores": os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in RECORDED},
        "commit": commit(),
    }


def commit() -> str | None:
    """Commit of the checkout that `atr` runs from, "+" appended if it was changed; None outside of one."""
    git = ["git", "-C", str(store.PROJECT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "--", "atr"], capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def write_json(path: Path, content: Any) -> None:
    store.write_atomic(path, lambda temporary: temporary.write_text(json.dumps(content, indent=1) + "\n"))


def provenance(runs: Iterable["Run"]) -> dict[str, Any]:
    """Where numbers come from: addresses of the runs, devices, versions and commits, and a note in words; without runs,
    of what computes here and now.
    """
    runs = list({run.address: run for run in runs}.values())
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    made = [run.environment for run in runs] or [environment(here, torch.get_num_threads())]
    devices = sorted({f"{one['device']}, {one['platform']}" for one in made})
    versions = {name: sorted({one["versions"][name] for one in made}) for name in RECORDED}
    hours = sum(one["seconds"] for one in made) / 3600 if runs else 0.0
    said = f"{len(runs)} runs, {hours:.2f} h in sum; " if runs else ""
    note = f"{said}{'; '.join(devices)}; PyTorch {', '.join(versions['torch'])}."
    commits = sorted({one["commit"] for one in made if one["commit"]})
    return {
        "note": note,
        "runs": [run.address for run in runs],
        "devices": devices,
        "versions": versions,
        "commits": commits,
        "result_version": RESULT_VERSION,
        "command": without_credentials(os.environ.get("ATR_COMMAND", "")),
    }


@dataclass(frozen=True)
class Run:
    """A run's folder. Reading `metrics` or `embeddings` of an unfinished run raises FileNotFoundError.

    >>> soundscapes = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
    >>> run = atr.fit(atr.RunConfig(corpus=soundscapes, epochs=2))
    >>> run.status, len(run.history), sorted(run.embeddings)
    ('finished', 2, ['a2t', 'audio', 'relevance', 't2a', 'text'])
    >>> 0 <= run.metrics["t2a_r10"] <= 100
    True
    """

    path: Path

    @property
    def address(self) -> str:
        return self.path.name

    @property
    def finished(self) -> bool:
        return (self.path / "metrics.json").is_file()

    @cached_property
    def config(self) -> RunConfig:
        return configs.from_dict(self._record["config"])

    @property
    def _record(self) -> dict[str, Any]:
        return json.loads((self.path / "config.json").read_text())

    @property
    def stale(self) -> bool:
        """Made by an older version of the code, whose results differ."""
        return self._record["result_version"] != RESULT_VERSION

    @property
    def status(self) -> str:
        """finished, stale, failed or unfinished."""
        if not (self.path / "config.json").is_file():
            return "unfinished"
        if self.stale:
            return "stale"
        if self.finished:
            return "finished"
        return "failed" if (self.path / "error.txt").is_file() else "unfinished"

    @cached_property
    def _metrics(self) -> dict[str, Any]:
        try:
            return json.loads((self.path / "metrics.json").read_text())
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.path}: not finished; atr.fit(run.config) continues it") from error

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
        return json.loads((self.path / "environment.json").read_text())

    @cached_property
    def clips(self) -> pd.DataFrame:
        """The clips that the run had: clip, split."""
        return pd.read_csv(self.path / "clips.csv", dtype="str", keep_default_na=False)

    @cached_property
    def history(self) -> pd.DataFrame:
        """A row an epoch: stage, where there are several, epoch, loss (without any penalty; by each stage's own loss),
        learning rate, validation metrics; with a penalty also
        batch_h_audio and batch_h_text, the mean over batches of its estimates of h in nats. validation_loss: the
        stage's loss over validation pairs in batches, without any penalty.
        """
        return pd.read_csv(self.path / "history.csv")

    @cached_property
    def learned(self) -> pd.DataFrame:
        """A row a step: stage, epoch, step from 1, and what the loss has learned after it, as its class names it.

        FileNotFoundError: the loss learns nothing.
        """
        return pd.read_csv(self.path / "learned.csv")

    @cached_property
    def embeddings(self) -> dict[str, torch.Tensor]:
        """Test split: audio (clips, dim), text (captions, dim), relevance of the `Corpus`, ranks t2a and a2t; of a
        text-aware model similarity (captions, clips) in place of audio.
        """
        return load_file(self.path / "embeddings.safetensors")

    @property
    def pairs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Test split: audio (clips, dim), and the embedding of one caption of each clip, row by row.

        The first; clips described alike share their captions, and take one each.
        """
        audio, text = self.embeddings["audio"], self.embeddings["text"]
        captions, clips = relevant_pairs(self.embeddings["relevance"], (len(text), len(audio)))
        free, chosen = np.ones(len(text), bool), []
        for clip in range(len(audio)):
            own = captions[clips == clip]
            chosen.append(own[free[own].argmax()])  # its first, if none is free
            free[chosen[-1]] = False
        return audio, text[torch.from_numpy(np.array(chosen))]

    @property
    def ranks(self) -> Ranks:
        """Ranks of the test split."""
        return Ranks(self.embeddings["t2a"].numpy(), self.embeddings["a2t"].numpy())

    def remove(self) -> None:
        shutil.rmtree(self.path)


def stored(folder: Path | None = None) -> list[Run]:
    """All runs in a folder, whatever their state, oldest first."""
    folder = folder or default_folder()
    paths = [path for path in folder.glob("[0-9a-f]*") if path.is_dir()] if folder.is_dir() else []
    return [Run(path) for path in sorted(paths, key=lambda path: path.stat().st_mtime)]


def find(address: str, folder: Path | None = None) -> Run:
    """The run in a folder whose address begins so; ValueError if there is none, or several."""
    matches = [run for run in stored(folder) if run.address.startswith(address)]
    if len(matches) != 1:
        raise ValueError(
            f"{folder or default_folder()}: {len(matches)} runs begin with {address!r}; list them: atr runs list"
        )
    return matches[0]


def flat(run: Run) -> dict[str, Any]:
    """A finished run in one row: address, fields of the config, metrics, and where it was made.

    Names are joined by a dot (`config.loss.name`, `test.t2a_r10`); lists, and the configs of runs that it needs, are
    JSON.
    """
    config = run.config.to_dict()
    kept = ("seconds", "device", "platform", "threads", "commit", "versions")
    parts: dict[str, Mapping[str, Any]] = {
        "": {"address": run.address},
        "config.": {name: _json(value) if name in run.config.needs() else value for name, value in config.items()},
        "test.": run.metrics,
        "validation.": run.validation,
        "run.": {"best_epoch": run.best_epoch} | {name: run.environment.get(name) for name in kept},
    }
    return {prefix + name: value for prefix, part in parts.items() for name, value in _leaves(part).items()}


def _leaves(tree: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{inner}": leaf for inner, leaf in _leaves(value).items()}
        else:
            found[name] = _json(value) if isinstance(value, list) else value
    return found


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def export(runs: Iterable[Run], target: Path) -> None:
    """Write finished runs as a table, a row a run (`flat`), as CSV or Parquet by the file's ending.

    ValueError: another ending.
    """
    if target.suffix not in (".csv", ".parquet"):
        raise ValueError(f"{target}: ends neither in .csv nor in .parquet; name the file so")
    table = pd.DataFrame([flat(run) for run in runs])

    def write(path: Path) -> None:
        if target.suffix == ".csv":
            table.to_csv(path, index=False)
        else:
            import fastparquet

            fastparquet.write(str(path), table)

    store.write_atomic(target, write)
