"""A finished run tested on the test clips of another corpus: of sounds and words that it was not made for."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from atr.config import RESULT_VERSION, RunConfig
from atr.corpora.captioning import language
from atr.corpora.corpus import Corpus
from atr.encoders import registry
from atr.inference import embedder
from atr.inference.windows import cut_corpus, mean, window_of
from atr.metrics import retrieval
from atr.system import devices, hashes
from atr.training import evaluation, identity, model
from atr.training.identity import Inputs
from atr.training.model import DualEncoder
from atr.training.records import RecordError, Run
from atr.training.results import ExternalTest


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
    part, window = _part(corpus), _window(run, windows)
    name = _name(run.config, part, window)
    if earlier := _load_test(run, name):
        return earlier
    with run.lock("tested on another corpus"):
        if earlier := _load_test(run, name, warn=True):
            return earlier
        result = _run_test(run, part, window, root, devices.resolve_device(device), quiet)
        about = {"corpus": part.name, "fingerprint": part.fingerprint, "clips": len(part), "window": window}
        run.write_external(name, result, about)
        return result


def similarity(
    run: Run,
    corpus: Corpus,
    windows: str | None = "mean",
    device: str = "auto",
    *,
    bank: Sequence[str] | None = None,
    root: str | Path | None = None,
    quiet: bool = True,
) -> Tensor:
    """(captions, clips) cosines of a finished run on a corpus's test clips; the mean of several runs' is an ensemble.

    bank: captions, by which each clip's hubness is subtracted (`retrieval.hubness`); those that are tested on are left
    out of it, of any spelling in capitals or blanks. The rest, and errors, as in `test`; also ValueError for a
    text-aware run, whose sounds have no embedding, and for a bank of none but tested captions.
    """
    if run.config.text_aware is not None:
        raise ValueError(f"run {run.address} is text-aware, so that its sounds have no one embedding; leave it out")
    part, device, sentences = _part(corpus), devices.resolve_device(device), None
    if bank is not None:
        tested = set(map(language.plain, part.captions["caption"]))
        others = [caption for caption in embedder.check_sentences(bank) if language.plain(caption) not in tested]
        own = identity.pretraining_corpus(run.config, root)
        sentences = embedder.Embedder(run, own, device=device, quiet=quiet).sentences(others, quiet, keep=True)
    text, audio = _embed(run, part, _window(run, windows), root, device, quiet)
    cosines = F.normalize(text, dim=1) @ F.normalize(audio, dim=1).T
    return cosines if sentences is None else cosines - retrieval.hubness(sentences, audio)


def rank(similarity: Tensor | tuple[Tensor, Tensor], corpus: Corpus) -> ExternalTest:
    """What a similarity comes to on the test clips of a corpus; errors as in `retrieval.ranks`."""
    relevance = _part(corpus).relevance()
    return ExternalTest(retrieval.ranks(similarity, relevance), retrieval.dense(relevance))


def _part(corpus: Corpus) -> Corpus:
    part = corpus.split("test")
    if not len(part):
        raise ValueError(f"corpus {corpus.name!r}: no test clips; load it with a split 'test'")
    return part


def _window(run: Run, windows: str | None) -> float | None:
    if windows not in ("mean", None):
        raise ValueError(f"windows: {windows!r}; known: 'mean', and None for a sound in one piece")
    return window_of(run.config) if windows and run.config.text_aware is None else None


def _name(config: RunConfig, part: Corpus, window: float | None) -> str:
    """Of a test: the corpus, and how it is heard."""
    short = window and registry.facts(config.audio_encoder).short
    return f"{part.fingerprint[:16]}-{hashes.content_key(window, short, RESULT_VERSION)[:8]}"


def _load_test(run: Run, name: str, warn: bool = False) -> ExternalTest | None:
    try:
        return run.external(name)
    except RecordError as error:
        if warn:
            warnings.warn(f"{error}. Now made anew", stacklevel=3)
        return None


def _run_test(
    run: Run, part: Corpus, window: float | None, root: str | Path | None, device: str, quiet: bool
) -> ExternalTest:
    if run.config.text_aware is None:
        return rank(_embed(run, part, window, root, device, quiet), part)
    dual, network, split, to, _ = _restore(run, part, window, root, device, quiet)
    return ExternalTest(evaluation.evaluate(dual, network, split, to).ranks, retrieval.dense(part.relevance()))


def _embed(
    run: Run, part: Corpus, window: float | None, root: str | Path | None, device: str, quiet: bool
) -> tuple[Tensor, Tensor]:
    """Of a run that is not text-aware: text (captions, dim), audio (clips, dim)."""
    dual, _, split, to, counts = _restore(run, part, window, root, device, quiet)
    sounds, words = evaluation.embed(dual, split, to)
    return words, sounds if counts is None else mean(sounds, counts)


def _restore(
    run: Run, part: Corpus, window: float | None, root: str | Path | None, device: str, quiet: bool
) -> tuple[Any, DualEncoder, Inputs, Callable[[Tensor], Tensor], list[int] | None]:
    """As `model.restore_split`, and each clip's number of windows."""
    config, _ = embedder.beginning(run, identity.pretraining_corpus(run.config, root), quiet)
    short = registry.facts(config.audio_encoder).short if window else None
    pieces, counts = (part, None) if window is None else cut_corpus(part, window, short)
    return *model.restore_split(run, pieces, "test", device, quiet, config), counts
