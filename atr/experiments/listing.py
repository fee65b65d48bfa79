"""What runs are, at a glance: from their JSON alone and without PyTorch, whose import takes seconds."""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atr.config import RESULT_VERSION, RunConfig
from atr.system import atomic, store
from atr.training import CONFIG, ERROR, METRICS, run_folders

STATES = ("finished", "unfinished", "failed", "damaged", "stale", "newer")
OWN = ("loss.name", "training", "seed")  # have columns of their own


@dataclass(frozen=True)
class Glance:
    """A run's folder: its state as `Run.status` has it, as far as sizes of files, and digests of the small ones, tell;
    the config as it was written, empty if it cannot be read; text-to-audio R@10 of a finished run; what is wrong.
    """

    path: Path
    state: str
    config: Mapping[str, Any]
    r10: float | None = None
    problem: str = ""

    @property
    def fields(self) -> dict[str, Any]:
        """All of the config by `leaves`, those that the version which wrote it did not know at their defaults."""
        return leaves({**_defaults(), **self.config}) if self.config else {}


def glance(path: Path) -> Glance | None:
    """None: no run, or none that has begun."""
    if not any(os.path.lexists(path / name) for name in (CONFIG, METRICS)):
        return None
    ended, config = os.path.lexists(path / METRICS), {}
    try:
        record = _read(path, CONFIG)
        version, config = record["result_version"], record["config"]
        if version != RESULT_VERSION:
            return Glance(path, "stale" if version < RESULT_VERSION else "newer", config)
        if not ended:
            return Glance(path, "failed" if os.path.lexists(path / ERROR) else "unfinished", config)
        for name in _sums(path):
            if problem := store.damage(path, name) if name.endswith(".json") else _size(path, name):
                return Glance(path, "damaged", config, None, f"{path / name}: damaged ({problem})")
        return Glance(path, "finished", config, float(_read(path, METRICS)["test"]["t2a_r10"]))
    except (ValueError, TypeError, LookupError, OSError) as error:
        state = "damaged" if ended else "unfinished"
        problem = str(error) if str(path) in str(error) else f"{path}: cannot be read ({type(error).__name__}: {error})"
        return Glance(path, state, config, None, problem)


def glances(folder: Path) -> list[Glance]:
    """Of all runs in a folder, oldest first."""
    return [one for path in run_folders(folder) if (one := glance(path))]


def differences(every: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of the `leaves` of several configs those in which each is unlike most of them, but those of `OWN`, in words."""
    usual = {}
    for name in dict.fromkeys(name for fields in every for name in fields):
        values = Counter(json.dumps(fields.get(name)) for fields in every if fields)
        if len(values) > 1 and name not in OWN:
            usual[name] = values.most_common(1)[0][0]
    words = [
        [f"{name} {fields.get(name)}" for name, value in usual.items() if json.dumps(fields.get(name)) != value]
        for fields in every
    ]
    return [", ".join(some) if fields else "" for some, fields in zip(words, every, strict=True)]


def leaves(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The values of nested mappings, under their names joined by dots; lists are JSON."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": leaf for inner, leaf in leaves(value).items()}
        else:
            flat[name] = json.dumps(value, sort_keys=True) if isinstance(value, list) else value
    return flat


def _defaults() -> dict[str, Any]:
    values = {}
    for field in dataclasses.fields(RunConfig):
        factory = field.default_factory
        values[field.name] = field.default if factory is dataclasses.MISSING else factory()
    return values


def _read(path: Path, name: str) -> dict[str, Any]:
    try:
        return atomic.read_object(path / name)
    except FileNotFoundError:
        raise ValueError(f"{path / name}: missing") from None
    except ValueError as error:
        raise ValueError(f"{path / name}: cannot be read ({error})") from error


def _sums(path: Path) -> dict[str, Any]:
    """What `sums.json` knows of the files; runs by older versions have none."""
    return _read(path, store.SUMS) if (path / store.SUMS).is_file() else {}


def _size(path: Path, name: str) -> str:
    size, there = _sums(path)[name][0], (path / name).stat().st_size
    return "" if there == size else f"{there:,} bytes instead of {size:,}"
