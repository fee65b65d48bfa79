"""Fit one config: a readable loop on Lightning Fabric."""

import math
import os
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock
from lightning_fabric import Fabric
from safetensors.torch import save_file
from torch import Tensor

from atr import features, losses, metrics, model, records, store, voxels
from atr.config import RunConfig
from atr.corpora import IN_FOLDER, load_corpus
from atr.corpora.corpus import Corpus
from atr.records import Run
from atr.sampling import epoch_batches

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


def rate_factor(config: RunConfig, step: int, steps_per_epoch: int) -> float:
    """Share of the peak learning rate at optimiser step `step`, counted from 0."""
    epoch = step / steps_per_epoch
    if epoch < config.warmup_epochs:
        return epoch / config.warmup_epochs
    if config.schedule == "step":
        return config.step_factor ** (int(epoch) // config.step_epochs)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / config.epochs)))
    return 1.0


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
    return load_corpus(name, root if name in IN_FOLDER else None, **options)


def fit(
    config: RunConfig,
    corpus: Corpus | None = None,
    *,
    root: str | Path | None = None,
    device: str = "auto",
    runs: Path | None = None,
    threads: int = 1,
    quiet: bool = True,
) -> Run:
    """Train `config`, or continue it, or return it if it is finished.

    corpus   loaded already; by default what `config.corpus` names, from the folder `root` where it lies in one
    runs     folder of the run store, default `results/runs`
    threads  CPU threads: one, so that a run's numbers do not depend on what runs beside it

    Raises ConfigError, CorpusError, TrainingError. A failed run keeps its state and says why in error.txt.
    """
    device = resolve_device(device)
    corpus = corpus or corpus_of(config, root)
    run = locate(config, corpus, runs, quiet)
    if run.finished:
        return run
    run.path.mkdir(parents=True, exist_ok=True)
    locks = run.path.parent / ".locks"
    locks.mkdir(exist_ok=True)
    with FileLock(locks / run.address):
        if not run.finished:
            try:
                prepared = features.prepare(config, corpus, quiet=quiet, device=device)
                clips = corpus.clips[["clip", "split"]]
                store.write_atomic(run.path / "clips.csv", lambda path: clips.to_csv(path, index=False))
                with store.threads(threads):
                    _train(config, prepared, run, device, threads)
            except Exception:
                (run.path / "error.txt").write_text(traceback.format_exc())
                raise
    return Run(run.path)


def locate(config: RunConfig, corpus: Corpus, runs: Path | None = None, quiet: bool = True, fetch: bool = True) -> Run:
    """The run of a config, finished or not; makes or fetches the weights that it starts from where they are missing,
    or raises FileNotFoundError without `fetch`.
    """
    weights = features.weights(config, corpus, quiet, fetch)
    return Run((runs or records.default_folder()) / records.address(config, corpus.fingerprint, weights.fingerprints))


def _train(config: RunConfig, prepared: features.Prepared, run: Run, device: str, threads: int) -> None:
    records.write_json(run.path / "config.json", {"result_version": records.RESULT_VERSION, "config": config.to_dict()})
    (run.path / "error.txt").unlink(missing_ok=True)
    started = time.perf_counter()
    if device == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
    train, validation, test = (prepared.splits[name] for name in ("train", "validation", "test"))

    fabric = Fabric(accelerator=device, devices=1, precision=PRECISIONS[config.precision])
    torch.manual_seed(config.seed)
    network = model.build(config, prepared)
    loss_function = losses.build(**config.loss, variant=config.recipe).to(fabric.device)
    weighed = voxels.settings(config.penalty) if config.penalty else None
    penalty = weighed.build().to(fabric.device) if weighed else None
    network.to(fabric.device)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    groups = model.groups(network, loss_function, config)
    if groups:
        optimizer = kinds[config.optimizer](groups, weight_decay=config.weight_decay, fused=True)
        dual, optimizer = fabric.setup(network, optimizer)
    else:  # an external model has nothing to train
        dual = fabric.setup(network)
    trained = [parameter for group in groups for parameter in group["params"]]

    def to_device(tensor: Tensor) -> Tensor:
        return tensor.to(fabric.device, non_blocking=True)

    def batch_to(pair: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
        return to_device(pair[0]), None if pair[1] is None else to_device(pair[1])

    released_batch = config.batch_size if config.padding == "released" else None

    def evaluate(split: features.Inputs) -> tuple[metrics.Ranks, Tensor, Tensor]:
        audio, text = model.embed(dual, split, to_device, released_batch=released_batch)
        if not (audio.isfinite().all() and text.isfinite().all()):
            if not config.epochs:
                raise TrainingError(BROKEN_WEIGHTS)
            raise TrainingError("embeddings are not finite: the run has diverged; lower its learning_rates")
        return metrics.ranks((text, audio), split.relevance), audio, text

    def scores(split: features.Inputs) -> dict[str, float]:
        return metrics.retrieval_metrics(evaluate(split)[0])

    state = _load_state(run.path / "state.pt")
    if state is None:
        state = {"epoch": 0, "history": [], "best_epoch": 0, "best_score": -math.inf, "seconds": 0.0}
        if not config.epochs:  # else the first epoch is the best so far
            state |= {"best": _copy(network.kept()), "validation": scores(validation)}
    else:
        network.load_state_dict(state["model"], strict=False)
        loss_function.load_state_dict(state["loss"])
        optimizer.load_state_dict(state["optimizer"])
    spent = state["seconds"]

    for epoch in range(state["epoch"], config.epochs):
        torch.manual_seed(config.seed * 100_003 + epoch + 1)  # dropout and SpecAugment: a function of seed and epoch
        batches = epoch_batches(train.clip_of_caption, config.batch_size, config.sampler, config.seed, epoch)
        network.train()
        total = torch.zeros((), device=fabric.device)
        evenness = torch.zeros(2, device=fabric.device)
        drawing = torch.Generator().manual_seed(config.seed * 100_003 + epoch + 1)  # so that dropout is undisturbed
        for number, captions in enumerate(batches):
            factor = rate_factor(config, epoch * len(batches) + number, len(batches))
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            clips = train.clip_of_caption[captions]
            audio, text = dual(batch_to(train.audio_batch(clips)), batch_to(train.text_batch(captions)))
            loss = loss_function(audio.float(), text.float(), to_device(torch.from_numpy(clips)))
            if number == epoch == 0 and not loss.isfinite():
                raise TrainingError(BROKEN_WEIGHTS)
            total += loss.detach()
            if penalty is not None and weighed is not None:
                chosen = penalty.choose(config.embedding_dim, drawing)
                h = penalty(torch.stack([audio, text]), chosen)
                evenness += h.detach()
                loss = loss - weighed.alpha * h.sum()
            optimizer.zero_grad()
            fabric.backward(loss)
            if config.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(trained, config.clip_norm)
            optimizer.step()
        mean_loss = float(total) / len(batches)
        if not math.isfinite(mean_loss):
            raise TrainingError(f"epoch {epoch + 1}: the loss is {mean_loss}; lower learning_rates and run again")
        found = scores(validation)
        rate = config.rate("heads") * rate_factor(config, epoch * len(batches), len(batches))
        row = {"epoch": epoch + 1, "loss": mean_loss, "learning_rate": rate, **found}
        if penalty is not None:
            row |= dict(zip(("batch_h_audio", "batch_h_text"), (evenness / len(batches)).tolist(), strict=True))
        state["history"].append(row)
        score = selection_score(config, found, epoch + 1)
        if score >= state["best_score"]:
            state |= {"best_score": score, "best_epoch": epoch + 1, "validation": found, "best": _copy(network.kept())}
        state |= {"epoch": epoch + 1, "seconds": spent + time.perf_counter() - started}
        state |= {"model": network.kept(), "loss": loss_function.state_dict(), "optimizer": optimizer.state_dict()}
        if epoch + 1 < config.epochs:  # what follows the last epoch is short
            store.write_atomic(run.path / "state.pt", partial(_save_state, state))
        _write_history(run.path, state["history"])

    network.load_state_dict(state["best"], strict=False)
    ranks, audio, text = evaluate(test)
    embeddings = {"audio": audio, "text": text, "relevance": torch.from_numpy(test.relevance)}
    embeddings |= {"t2a": torch.from_numpy(ranks.t2a), "a2t": torch.from_numpy(ranks.a2t)}
    store.write_atomic(run.path / "embeddings.safetensors", lambda path: save_file(_contiguous(embeddings), path))
    store.write_atomic(run.path / "checkpoint.safetensors", lambda path: save_file(_contiguous(state["best"]), path))
    _write_history(run.path, state["history"])
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    seconds = spent + time.perf_counter() - started
    records.write_json(
        run.path / "environment.json",
        {**records.environment(name, threads), "seconds": round(seconds, 3), "weights": prepared.fingerprints},
    )
    best = {"best_epoch": state["best_epoch"], "validation": state["validation"]}
    records.write_json(run.path / "metrics.json", {"test": metrics.retrieval_metrics(ranks), **best})
    (run.path / "state.pt").unlink(missing_ok=True)


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


def _write_history(folder: Path, history: list[dict[str, float]]) -> None:
    table = pd.DataFrame(history) if history else pd.DataFrame(columns=["epoch", "loss", "learning_rate"])
    store.write_atomic(folder / "history.csv", lambda path: table.to_csv(path, index=False))


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def _contiguous(tensors: dict[str, Any]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
