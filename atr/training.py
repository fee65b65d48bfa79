"""Fit one config: a readable loop on Lightning Fabric."""

import math
import os
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor

from atr import evaluation, features, losses, mining, model, records, store, tracking, voxels
from atr.config import RunConfig
from atr.corpora import in_folder, load_corpus
from atr.corpora.corpus import Corpus
from atr.evaluation import Evaluated
from atr.records import Run
from atr.sampling import epoch_batches

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed"}

BROKEN_WEIGHTS = "embeddings are not finite before any training: check audio_weights and text_encoder"


class TrainingError(RuntimeError):
    """A run cannot go on."""


def resolve_device(device: str = "auto") -> str:
    """ "cpu" or "cuda"; "auto" takes a GPU if there is one."""
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: unknown {device!r}; known: 'auto', 'cpu', 'cuda'")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: 'cuda' asked for, but PyTorch sees no GPU; use 'cpu' or 'auto'")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if device == "cuda":  # the same bits each time, where CUDA offers them; to be set before its first use
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return device


def learning_rate(config: RunConfig, peak: float, step: int, steps_per_epoch: int) -> float:
    """The learning rate at optimiser step `step`, counted from 0, of a group whose peak is `peak`."""
    epoch = step / steps_per_epoch
    start = config.warmup_epochs
    if epoch < start:
        return peak * (epoch / start)
    if config.schedule == "step":
        return peak * config.step_factor ** (int(epoch) // config.step_epochs)
    if config.schedule == "cosine":
        end = config.cosine_epochs or config.epochs
        share = 0.5 * (1 + math.cos(math.pi * min(1.0, (epoch - start) / max(end - start, 1e-9))))
        return config.floor_rate + (peak - config.floor_rate) * share
    return peak


def selection_score(config: RunConfig, scores: dict[str, float], epoch: int) -> float:
    """What the best epoch has most of."""
    recalls = {way: sum(scores[f"{way}_r{k}"] for k in (1, 5, 10)) for way in ("t2a", "a2t")}
    return {
        "t2a_recall_sum": recalls["t2a"],
        "recall_sum": recalls["t2a"] + recalls["a2t"],
        "t2a_map10": scores["t2a_map10"],
        "last": float(epoch),
    }[config.select_by]


def corpus_of(config: RunConfig, root: str | Path | None = None) -> Corpus:
    """The corpus that a config names; `root` goes to the corpora that lie in a folder."""
    options = dict(config.corpus)
    name = options.pop("name")
    return load_corpus(name, root if in_folder(name) else None, **options)


def fit(
    config: RunConfig,
    corpus: Corpus | None = None,
    *,
    root: str | Path | None = None,
    device: str = "auto",
    runs: Path | None = None,
    threads: int = 1,
    track: Sequence[str] | str | None = None,
    quiet: bool = True,
) -> Run:
    """Train `config`, or continue it, or return it if it is finished.

    corpus   loaded already; by default what `config.corpus` names, from the folder `root` where it lies in one
    runs     folder of the run store, default `results/runs`
    threads  CPU threads: one, so that a run's numbers do not depend on what runs beside it
    track    "tensorboard" or "wandb", where each epoch is logged; by default what ATR_TRACK says

    Raises ConfigError, CorpusError, TrainingError. A failed run keeps its state and says why in error.txt.

    >>> soundscapes = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
    >>> run = fit(RunConfig(corpus=soundscapes, epochs=2))
    >>> fit(RunConfig(corpus=soundscapes, epochs=2)) == run  # trained once
    True
    """
    device, trackers = resolve_device(device), tracking.chosen(track)
    corpus = corpus or corpus_of(config, root)
    run = locate(config, corpus, runs, quiet, root=root)
    if run.finished:
        return run
    others = {
        name: fit(other, given, root=root, device=device, runs=runs, threads=threads, track=trackers, quiet=quiet)
        for name, (other, given) in needed(config, corpus, root).items()
    }
    run.path.mkdir(parents=True, exist_ok=True)
    locks = run.path.parent / ".locks"
    locks.mkdir(exist_ok=True)
    with FileLock(locks / run.address):
        if not run.finished:
            try:
                prepared = features.prepare(config, corpus, quiet=quiet, device=device)
                clips = corpus.clips[["clip", "split"]]
                store.write_atomic(run.path / "clips.csv", lambda path: clips.to_csv(path, index=False))
                settings = {"result_version": records.RESULT_VERSION, "config": config.to_dict()}
                records.write_json(run.path / "config.json", settings)
                (run.path / "error.txt").unlink(missing_ok=True)
                if device == "cuda":
                    torch.use_deterministic_algorithms(True, warn_only=True)
                with store.threads(threads):
                    loggers = tracking.loggers(trackers, run)
                    _train(_Trainer(config, corpus, prepared, others, device, threads, loggers), run, device, threads)
            except Exception:
                (run.path / "error.txt").write_text(traceback.format_exc())
                raise
    return Run(run.path)


def locate(
    config: RunConfig,
    corpus: Corpus,
    runs: Path | None = None,
    quiet: bool = True,
    fetch: bool = True,
    root: str | Path | None = None,
    corpora: dict[str, Corpus] | None = None,
) -> Run:
    """The run of a config, finished or not; makes or fetches the weights that it starts from where they are missing,
    or raises FileNotFoundError without `fetch`. `corpora`: as of `needed`.
    """
    fingerprints = features.weights(config, corpus, quiet, fetch).fingerprints
    for name, (other, given) in needed(config, corpus, root, corpora).items():
        fingerprints = fingerprints | {name: locate(other, given, runs, quiet, fetch, root, corpora).address}
    return Run((runs or records.default_folder()) / records.address(config, corpus.fingerprint, fingerprints))


def needed(
    config: RunConfig, corpus: Corpus, root: str | Path | None, corpora: dict[str, Corpus] | None = None
) -> dict[str, tuple[RunConfig, Corpus]]:
    """The configs of the runs that a run needs, each with its corpus. `corpora` keeps those that are loaded for it, by
    the content key of their options, for further calls.
    """
    corpora = {} if corpora is None else corpora
    corpora[store.content_key(dict(config.corpus))] = corpus
    return {name: (other, loaded(other, root, corpora)) for name, other in config.needs().items()}


def loaded(config: RunConfig, root: str | Path | None, corpora: dict[str, Corpus]) -> Corpus:
    """The corpus of a config, from `corpora` if it is there, else loaded and put there."""
    key = store.content_key(dict(config.corpus))
    if key not in corpora:
        corpora[key] = corpus_of(config, root)
    return corpora[key]


def ancillary(run: Run, corpus: Corpus, device: str = "cpu", threads: int = 1) -> Tensor:
    """(captions, D) ancillary embeddings of the training pairs of a finished run's corpus, computed once: of each
    caption with its clip (`mining.ancillary`), by the run's selected epoch.
    """

    def build(folder: Path) -> None:
        prepared = features.prepare(run.config, corpus, ("train",), True, device)
        with torch.random.fork_rng():
            torch.manual_seed(run.config.seed)  # a random encoder that stays random is in no checkpoint
            network = model.load(model.build(run.config, prepared), run)
        fabric = fabric_of(run.config, device)
        split = prepared.splits["train"]
        size = run.config.batch_size if run.config.padding == "released" else None
        with store.threads(threads):
            audio, text = model.embed(fabric.setup(network), split, lambda x: x.to(fabric.device), released_batch=size)
            pairs = mining.ancillary(audio[torch.tensor(split.clip_of_caption)], text)
        save_file({"embeddings": pairs}, folder / "embeddings.safetensors")

    return load_file(store.cached("ancillary", run.address, build) / "embeddings.safetensors")["embeddings"]


def fabric_of(config: RunConfig, device: str, loggers: Sequence[Any] = ()) -> "Fabric":
    """Lightning Fabric for one device at the config's precision."""
    from lightning_fabric import Fabric  # brings PyTorch's compiler: a second that reading results need not wait for

    return Fabric(accelerator=device, devices=1, precision=PRECISIONS[config.precision], loggers=list(loggers))


class _Trainer:
    """A config's networks on their device: what they see of the splits, one epoch's steps, and evaluation."""

    def __init__(
        self,
        config: RunConfig,
        corpus: Corpus,
        prepared: features.Prepared,
        others: dict[str, Run],
        device: str,
        threads: int,
        loggers: Sequence[Any] = (),
    ) -> None:
        self.started = time.perf_counter()
        self.config, self.corpus, self.prepared = config, corpus, prepared
        self.fabric = fabric_of(config, device, loggers)
        mined_by = ancillary(others["ancillary"], corpus, device, threads) if config.ancillary else None
        self.mined_by = None if mined_by is None else mined_by.to(self.fabric.device)
        torch.manual_seed(config.seed)
        self.network = model.build(config, prepared)
        if config.start:
            model.load(self.network, others["start"])
        self.weighed = voxels.settings(config.penalty) if config.penalty else None
        self.penalty = self.weighed.build().to(self.fabric.device) if self.weighed else None
        self.dual = self.fabric.setup(self.network)
        self.released_batch = config.batch_size if config.padding == "released" else None
        self.last_epoch = sum(part.epochs for part in config.parts())

    def to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.fabric.device, non_blocking=True)

    def batch(self, pair: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
        return self.to_device(pair[0]), None if pair[1] is None else self.to_device(pair[1])

    def evaluate(self, split: features.Inputs) -> Evaluated:
        try:
            return evaluation.evaluate(self.dual, self.network, split, self.to_device, self.released_batch)
        except FloatingPointError as error:
            reason = f"{error}: the run has diverged; lower its learning_rates" if self.last_epoch else BROKEN_WEIGHTS
            raise TrainingError(reason) from error

    def optimizer(self, part: RunConfig, loss_function: losses.PairLoss) -> Any:
        """None for an external model, which has nothing to train."""
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        groups = model.groups(self.network, loss_function, part)
        if not groups:
            return None
        return self.fabric.setup_optimizers(kinds[part.optimizer](groups, weight_decay=part.weight_decay, fused=True))

    def splits(self, part: RunConfig, first: bool) -> tuple[features.Inputs, features.Inputs]:
        """Training and validation split as a stage sees them: of a fixed encoder, its output."""
        splits = {name: self.prepared.splits[name] for name in ("train", "validation")}
        if (
            part.fixed == "text" and first and not self.config.start
        ):  # as the encoder starts: other runs know its output
            texts = {name: features.pooled_text(self.config, self.corpus.split(name), self.device) for name in splits}
            return replace(splits["train"], text=texts["train"]), replace(
                splits["validation"], text=texts["validation"]
            )
        if part.fixed is None:
            return splits["train"], splits["validation"]
        fix = partial(model.fix, self.dual, side=part.fixed, to=self.to_device, released_batch=self.released_batch)
        return fix(splits["train"]), fix(splits["validation"])

    @property
    def device(self) -> str:
        return self.fabric.device.type

    def epoch(
        self,
        part: RunConfig,
        train: features.Inputs,
        loss_function: losses.PairLoss,
        optimizer: Any,
        epoch: int,
        before: int,
    ) -> tuple[dict[str, float], list[dict[str, float]]]:
        """Train for one epoch, counted from 0 over all stages, `before` of which were before this stage.

        Gives its row of the history, and what the loss has learned after each step.
        """
        seed = self.config.seed * 100_003 + epoch + 1  # dropout and SpecAugment: a function of seed and epoch
        torch.manual_seed(seed)
        batches = epoch_batches(
            train.clip_of_caption,
            part.batch_size,
            part.sampler,
            part.seed,
            epoch,
            drop_last=part.drop_last,
            mining=part.mining,
            embeddings=self.mined_by,
        )
        self.network.train()
        total = torch.zeros((), device=self.fabric.device)
        evenness = torch.zeros(2, device=self.fabric.device)
        drawing = torch.Generator().manual_seed(seed)  # so that dropout is undisturbed
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        learned = {name: parameter for name, parameter in loss_function.named_parameters() if parameter.ndim == 0}
        values = []
        for number, captions in enumerate(batches):
            for group in optimizer.param_groups:
                step = (epoch - before) * len(batches) + number
                group["lr"] = learning_rate(part, group["peak"], step, len(batches))
            clips = train.clip_of_caption[captions]
            ids = self.to_device(torch.from_numpy(clips))
            audio, text = self.dual(self.batch(train.audio_batch(clips)), self.batch(train.text_batch(captions)))
            if part.text_aware:
                similarity = self.network.similarity(audio.float(), text.float())
                loss = loss_function.from_similarity(similarity.T, ids, ids)
            else:
                loss = loss_function(audio.float(), text.float(), ids)
            if number == epoch == 0 and not loss.isfinite():
                raise TrainingError(BROKEN_WEIGHTS)
            total += loss.detach()
            if self.penalty is not None and self.weighed is not None:
                h = self.penalty(torch.stack([audio, text]), self.penalty.choose(part.embedding_dim, drawing))
                evenness += h.detach()
                loss = loss - self.weighed.alpha * h.sum()
            optimizer.zero_grad()
            self.fabric.backward(loss)
            if part.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(trained, part.clip_norm)
            optimizer.step()
            if learned:
                values.append(torch.stack([parameter.detach().float() for parameter in learned.values()]))
        mean_loss = float(total) / len(batches)
        if not math.isfinite(mean_loss):
            raise TrainingError(f"epoch {epoch + 1}: the loss is {mean_loss}; lower learning_rates and run again")
        rate = learning_rate(part, part.rate("heads"), (epoch - before) * len(batches), len(batches))
        row = {"epoch": epoch + 1, "loss": mean_loss, "learning_rate": rate}
        if self.penalty is not None:
            row |= dict(zip(("batch_h_audio", "batch_h_text"), (evenness / len(batches)).tolist(), strict=True))
        steps = torch.stack(values).tolist() if values else []
        return row, [dict(zip(learned, step, strict=True)) for step in steps]


def _train(trainer: _Trainer, run: Run, device: str, threads: int) -> None:
    """Train a run stage by stage, from its last epoch if it has one, and write what it comes to."""
    config, network, prepared = trainer.config, trainer.network, trainer.prepared
    state = _load_state(run.path / "state.pt")
    if state is None:
        state = {"epoch": 0, "history": [], "learned": [], "stages": [], "seconds": 0.0}
        if not trainer.last_epoch:  # else the first epoch is the best so far
            scores = trainer.evaluate(prepared.splits["validation"]).scores
            state |= {"best": _copy(network.kept()), "best_epoch": 0, "validation": scores}
    else:
        network.load_state_dict(state["model"], strict=False)
    spent = state["seconds"]
    for logger in trainer.fabric.loggers:
        logger.log_hyperparams(config.to_dict())

    parts = config.parts()
    for stage, part in enumerate(parts):
        if stage < len(state["stages"]):
            continue
        before = sum(part.epochs for part in parts[:stage])
        loss_function = losses.build(**part.loss, variant=part.recipe).to(trainer.fabric.device)
        optimizer = trainer.optimizer(part, loss_function)
        if state["epoch"] > before:
            loss_function.load_state_dict(state["loss"])
            optimizer.load_state_dict(state["optimizer"])
        else:
            state["best_score"] = -math.inf
            if stage:
                network.load_state_dict(state["best"], strict=False)
        train, validation = trainer.splits(part, first=not stage)

        for epoch in range(state["epoch"], before + part.epochs):
            trained, learned = trainer.epoch(part, train, loss_function, optimizer, epoch, before)
            evaluated = trainer.evaluate(validation)
            row = {"stage": stage + 1} | trained if config.stages else trained
            row |= evaluated.scores | {"validation_loss": evaluated.loss(loss_function, part.batch_size)}
            state["history"].append(row)
            state["learned"] += [{"stage": stage + 1, "epoch": epoch + 1, **step} for step in learned]
            score = selection_score(part, evaluated.scores, epoch + 1)
            if score >= state["best_score"]:
                best = {"best_score": score, "best_epoch": epoch + 1, "validation": evaluated.scores}
                state |= best | {"best": _copy(network.kept())}
            state |= {"epoch": epoch + 1, "seconds": spent + time.perf_counter() - trainer.started}
            state |= {"model": network.kept(), "loss": loss_function.state_dict(), "optimizer": optimizer.state_dict()}
            if epoch + 1 < trainer.last_epoch:  # what follows the last epoch is short
                store.write_atomic(run.path / "state.pt", partial(_save_state, state))
            _write_history(run.path, state)
            trainer.fabric.log_dict(row, step=epoch + 1)

        network.load_state_dict(state["best"], strict=False)
        tested = trainer.evaluate(prepared.splits["test"])
        chosen_epoch = {"best_epoch": state["best_epoch"], "validation": state["validation"]}
        state["stages"].append({"test": tested.scores, **chosen_epoch})

    embeddings = tested.tensors | {"relevance": torch.from_numpy(prepared.splits["test"].relevance)}
    embeddings |= {"t2a": torch.from_numpy(tested.ranks.t2a), "a2t": torch.from_numpy(tested.ranks.a2t)}
    store.write_atomic(run.path / "embeddings.safetensors", lambda path: save_file(_contiguous(embeddings), path))
    store.write_atomic(run.path / "checkpoint.safetensors", lambda path: save_file(_contiguous(state["best"]), path))
    _write_history(run.path, state)
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    seconds = spent + time.perf_counter() - trainer.started
    records.write_json(
        run.path / "environment.json",
        {**records.environment(name, threads), "seconds": round(seconds, 3), "weights": prepared.fingerprints},
    )
    stages = {"stages": state["stages"]} if config.stages else {}
    records.write_json(run.path / "metrics.json", state["stages"][-1] | stages)
    (run.path / "state.pt").unlink(missing_ok=True)
    trainer.fabric.log_dict({f"test_{name}": value for name, value in tested.scores.items()}, step=state["epoch"])
    for logger in trainer.fabric.loggers:
        logger.finalize("success")


def _save_state(state: dict[str, Any], path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)  # checksums take three times as long as writing
    try:
        torch.save(state, path)
    finally:
        torch.serialization.set_crc32_options(before)


def _load_state(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrainingError(f"{path}: cannot be read ({first}); delete it to start the run anew") from error


def _write_history(folder: Path, state: dict[str, Any]) -> None:
    columns = None if state["history"] else ["epoch", "loss", "learning_rate"]
    tables = {"history": pd.DataFrame(state["history"], columns=columns)}
    if state["learned"]:
        tables["learned"] = pd.DataFrame(state["learned"])
        tables["learned"].insert(2, "step", np.arange(1, len(state["learned"]) + 1))
    for name, table in tables.items():
        store.write_atomic(folder / f"{name}.csv", partial(_write_table, table))


def _write_table(table: pd.DataFrame, path: Path) -> None:
    table.to_csv(path, index=False)


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def _contiguous(tensors: dict[str, Any]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
