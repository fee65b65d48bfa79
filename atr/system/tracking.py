"""Optional trackers of training, TensorBoard and Weights & Biases, as loggers of Lightning Fabric."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_fabric.loggers import Logger


def trackers_of(names: Sequence[str] | str | None = None) -> list[str]:
    """The trackers asked for, by default those of the environment's ATR_TRACK: "tensorboard", "wandb", or both with a
    comma between. ValueError: an unknown one, or one whose package is not installed.
    """
    field = "ATR_TRACK" if names is None else "track"
    names = os.environ.get("ATR_TRACK", "") if names is None else names
    names = [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else list(names)
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"{field}: unknown {name!r}; known: {', '.join(TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"{field}: {name} is not installed; .venv/bin/python -m pip install {name}")
    return names


def loggers(names: Sequence[str], folder: Path) -> list[Logger]:
    """A logger of each tracker for a run's folder; one that is continued goes on in the same place."""
    return [TRACKERS[name](folder) for name in names]


def _tensorboard(folder: Path) -> Logger:
    from lightning_fabric.loggers import TensorBoardLogger

    return TensorBoardLogger(folder.parents[1], name="tensorboard", version=folder.name)


def _wandb(folder: Path) -> Logger:
    import wandb
    from lightning_fabric.loggers import Logger

    class Wandb(Logger):
        """One W&B run for a run, under its address, in the project that WANDB_PROJECT names, by default "atr"."""

        name, version = "wandb", folder.name

        def __init__(self) -> None:
            project = os.environ.get("WANDB_PROJECT", "atr")
            self.run: Any = wandb.init(project=project, id=folder.name, resume="allow", dir=folder.parents[1])

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            self.run.log(metrics, step=step)

        def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
            self.run.config.update(params, allow_val_change=True)

        def finalize(self, status: str) -> None:
            self.run.finish(0 if status == "success" else 1)

    return Wandb()


TRACKERS: dict[str, Callable[[Path], Logger]] = {"tensorboard": _tensorboard, "wandb": _wandb}
