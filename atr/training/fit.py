"""Fit one config: find its run, and train it unless it is finished."""

import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from atr.config import RunConfig
from atr.corpora import corpus_of
from atr.corpora.corpus import Corpus
from atr.system import atomic, devices, store, tracking
from atr.system.devices import resolve_device
from atr.training import CONFIG, batches, distributed, evaluation, model, preparation
from atr.training.distributed import ALONE, Group
from atr.training.identity import Preparation, locate, requirements
from atr.training.records import RecordError, Run
from atr.training.trainer import Trainer, train


def fit(
    config: RunConfig,
    corpus: Corpus | None = None,
    *,
    root: str | Path | None = None,
    device: str = "auto",
    runs: str | Path | None = None,
    threads: int = 1,
    processes: int = 1,
    track: Sequence[str] | str | None = None,
    quiet: bool = True,
) -> Run:
    """Train `config`, or continue it, or return it if it is finished.

    corpus     loaded already; by default what `config.corpus` names, from the folder `root` where it lies in one
    runs       folder of the run store, default `results/runs`
    threads    CPU threads: one, so that a run's numbers do not depend on what runs beside it
    processes  how many train together, each its share of every batch: on as many GPUs, or cores of the CPU times
               `threads`. The numbers are those of one process, but for rounding, dropout and SpecAugment
    track      "tensorboard" or "wandb", where each epoch is logged; by default what ATR_TRACK says

    Raises ConfigError, CorpusError, TrainingError; ChildProcessError for what fails in one of several processes. A
    failed run keeps its state and says why in error.txt. A finished run whose files are damaged is trained anew, with a
    warning that names the file and where its folder is kept.

    >>> soundscapes = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
    >>> run = fit(RunConfig(corpus=soundscapes, epochs=2))
    >>> fit(RunConfig(corpus=soundscapes, epochs=2)) == run  # trained once
    True
    """
    device, trackers = resolve_device(device), tracking.trackers_of(track)
    distributed.check(processes, device, config.batch_size)
    corpus = corpus or corpus_of(config.corpus, root)
    run = locate(config, corpus, runs, quiet, root=root)
    if at_hand(run, config):
        return run
    options: dict[str, Any] = {"device": device, "threads": threads, "processes": processes, "track": trackers}
    others = {
        name: fit(other, its_corpus, root=root, runs=runs, quiet=quiet, **options)
        for name, (other, its_corpus) in requirements(config, corpus, root).items()
    }
    with atomic.writing(run.path), run.lock("trained"):
        if not at_hand(run, config):
            if run.at_end:
                problem = run.problem or f"{run.path / CONFIG}: not what this version writes for the run"
                warnings.warn(f"{problem}. Now trained anew; kept as {run.set_aside()}", stacklevel=2)
            run.begin()
            try:
                prepared = preparation.prepare(config, corpus, quiet=quiet, device=device)
                run.describe(config, corpus)
                work = (run, config, corpus, others, device, threads, trackers)
                if processes == 1:
                    _train(ALONE, *work, prepared)
                else:
                    if config.ancillary:  # once, here
                        ancillary(others["ancillary"], corpus, device, threads)
                    distributed.start(_train, processes, device, *work)
            except Exception:
                run.fail(traceback.format_exc())
                raise
    return Run(run.path)


def at_hand(run: Run, config: RunConfig) -> bool:
    """Whether the run of a config, as `locate` gives it, is finished, with all of its files whole."""
    try:
        return run.finished and Run(run.path).config.identity() == config.identity()
    except (RecordError, FileNotFoundError):
        return False


def _train(
    group: Group,
    run: Run,
    config: RunConfig,
    corpus: Corpus,
    others: dict[str, Run],
    device: str,
    threads: int,
    trackers: list[str],
    prepared: Preparation | None = None,
) -> None:
    """Train a run in this process, as one of a group."""
    prepared = prepared or preparation.prepare(config, corpus, quiet=True, device=device)
    if device == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
    with devices.threads(threads), devices.switches_for(device).on():
        loggers = [] if group.rank else tracking.loggers(trackers, run.path)
        mined_by = ancillary(others["ancillary"], corpus, device, threads) if config.ancillary else None
        train(Trainer(config, corpus, prepared, others, device, mined_by, loggers, group), run, threads)


def ancillary(run: Run, corpus: Corpus, device: str = "cpu", threads: int = 1) -> Tensor:
    """(captions, D) ancillary embeddings of the training pairs of a finished run's corpus, computed once: of each
    caption with its clip (`batches.ancillary`), by the run's selected epoch.
    """

    def build(folder: Path) -> None:
        network, _, split, to = model.restore_split(run, corpus, "train", device)
        size = run.config.batch_size if run.config.padding == "released" else None
        with devices.threads(threads):
            audio, text = evaluation.embed(network, split, to, released_batch=size)
            pairs = batches.ancillary(audio[torch.tensor(split.clip_of_caption)], text)
        save_file({"embeddings": pairs}, folder / "embeddings.safetensors")

    return load_file(store.cached_folder("ancillary", run.address, build) / "embeddings.safetensors")["embeddings"]
