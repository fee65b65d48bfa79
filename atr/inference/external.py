"""A finished run tested on the test clips of another corpus: of sounds and words that it was not made for."""

import warnings
from pathlib import Path

import numpy as np
import torch

from atr.config import RESULT_VERSION, RunConfig
from atr.corpora import corpus_of
from atr.corpora.corpus import Corpus
from atr.encoders import registry
from atr.inference import embedder
from atr.inference.windows import mean, window_of, windowed
from atr.metrics import retrieval
from atr.system import devices, hashes
from atr.training import evaluation, identity, model, preparation, trainer
from atr.training.records import ExternalTest, RecordError, Run


def test(
    run: Run,
    corpus: Corpus,
    windows: str | None = "mean",
    device: str = "auto",
    *,
    root: str | Path | None = None,
    quiet: bool = True,
) -> ExternalTest:
    """Ranks, relevance and metrics of a finished run on a corpus's test clips, computed once and kept in its folder.

    windows: as `Embedder` has it. A text-aware model, and one without a window (`windows.window_of`), hear each clip as
    with None. root: folder of the corpus that the run was trained on, where that lies in one.
    ValueError: a corpus without test clips, or other windows. Errors of the run as in `embedder.beginning`. What is
    damaged is made anew, with a warning that names the file.
    """
    if windows not in ("mean", None):
        raise ValueError(f"windows: {windows!r}; known: 'mean', and None for a sound in one piece")
    part = corpus.split("test")
    if not len(part):
        raise ValueError(f"corpus {corpus.name!r}: no test clips; load it with a split 'test'")
    window = window_of(run.config) if windows and run.config.text_aware is None else None
    name = _name(run.config, part, window)
    if known := _kept(run, name):
        return known
    with run.lock("tested on another corpus"):
        if known := _kept(run, name, warn=True):
            return known
        trained = corpus_of(run.config.corpus, root) if identity.pretrained_on_corpus(run.config) else None
        result = _tested(run, part, window, trained, devices.resolve_device(device), quiet)
        about = {"corpus": part.name, "fingerprint": part.fingerprint, "clips": len(part), "window": window}
        run.write_external(name, result, about)
        return result


def _name(config: RunConfig, part: Corpus, window: float | None) -> str:
    """Of a test: the corpus, and how it is heard."""
    short = window and registry.facts(config.audio_encoder).short
    return f"{part.fingerprint[:16]}-{hashes.content_key(window, short, RESULT_VERSION)[:8]}"


def _kept(run: Run, name: str, warn: bool = False) -> ExternalTest | None:
    try:
        return run.external(name)
    except RecordError as error:
        if warn:
            warnings.warn(f"{error}. Now made anew", stacklevel=3)
        return None


def _tested(
    run: Run, part: Corpus, window: float | None, trained: Corpus | None, device: str, quiet: bool
) -> ExternalTest:
    """Through the inputs that training has: what runs share, such as a frozen encoder's output, is computed once."""
    config, _ = embedder.beginning(run, trained, quiet)
    heard, counts = (
        (part, None) if window is None else windowed(part, window, registry.facts(config.audio_encoder).short)
    )
    with torch.random.fork_rng():
        prepared = preparation.prepare(config, heard, ("test",), quiet, device)
    fabric, network, split = (
        trainer.fabric_of(config, device),
        model.restore(run, prepared, config),
        prepared.splits["test"],
    )
    dual, relevance = fabric.setup(network), part.relevance()
    if counts is None:
        ranks = evaluation.evaluate(dual, network, split, lambda x: x.to(fabric.device)).ranks
    else:
        sounds, words = evaluation.embed(dual, split, lambda x: x.to(fabric.device))
        ranks = retrieval.ranks((words, mean(sounds, counts)), relevance)
    return ExternalTest(ranks, relevance if isinstance(relevance, np.ndarray) else relevance.toarray())
