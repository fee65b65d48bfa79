"""A table of runs: one row per run, one column per field of its config and per metric."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from atr.experiments.listing import leaves
from atr.system import atomic
from atr.training.records import Run


def flat(run: Run) -> dict[str, Any]:
    """A finished run in one row: address, fields of the config, metrics, and where it was made.

    Names are joined by a dot (`config.loss.name`, `test.t2a_r10`); lists, and the configs of runs that it needs, are
    JSON.
    """
    config = run.config.to_dict()
    facts = ("seconds", "device", "platform", "threads", "commit", "versions")
    parts: dict[str, Mapping[str, Any]] = {
        "": {"address": run.address},
        "config.": config | {name: json.dumps(config[name], sort_keys=True) for name in run.config.needs()},
        "test.": run.metrics,
        "validation.": run.validation,
        "run.": {"best_epoch": run.best_epoch} | {name: run.environment.get(name) for name in facts},
    }
    return {prefix + name: value for prefix, part in parts.items() for name, value in leaves(part).items()}


def export(runs: Iterable[Run], target: str | Path) -> None:
    """Write finished runs as a table, one row per run (`flat`), as CSV or Parquet by the file's ending.

    ValueError: another ending.
    """
    target = Path(target)
    if target.suffix not in (".csv", ".parquet"):
        raise ValueError(f"{target}: ends neither in .csv nor in .parquet; name the file so")
    table = pd.DataFrame([flat(run) for run in runs])

    if target.suffix == ".csv":
        atomic.write_csv(table, target)
    else:
        import fastparquet

        atomic.write_atomic(target, lambda path: fastparquet.write(str(path), table))
