"""A finished run tested on the test clips of another corpus: of sounds and words that it was not made for."""

import warnings
from pathlib import Path

import torch

from atr.config import RESULT_VERSION, RunConfig
from atr.corpora import audio, corpus_of
from atr.corpora.corpus import Corpus
from atr.encoders import registry
from atr.inference.embedder import Embedder, window_of
from atr.metrics import retrieval
from atr.system import hashes
from atr.training import identity
from atr.training.records import ExternalTest, RecordError, Run

AT_A_TIME = 64  # clips whose samples are in memory


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

    windows: as `Embedder` has it; a text-aware model, or one whose encoder has no window, hears each clip as it does
    without. root: folder of the corpus that the run was trained on, where that lies in one.
    ValueError: a corpus without test clips. Errors of the run as in `embedder.beginning`. What is damaged is made anew,
    with a warning that names the file.
    """
    part = corpus.split("test")
    if not len(part):
        raise ValueError(f"corpus {corpus.name!r}: no test clips; load it with a split 'test'")
    windows = windows if has_windows(run.config) else None
    name = _name(run.config, part, windows)
    if known := _kept(run, name):
        return known
    with run.lock("tested on another corpus"):
        if known := _kept(run, name, warn=True):
            return known
        trained = corpus_of(run.config.corpus, root) if identity.pretrained_on_corpus(run.config) else None
        result = _ranked(Embedder(run, trained, windows=windows, device=device, quiet=quiet), part)
        about = {"corpus": part.name, "fingerprint": part.fingerprint, "clips": len(part), "windows": windows}
        run.write_external(name, result, about)
        return result


def has_windows(config: RunConfig) -> bool:
    """Whether a run's model hears sounds in windows, if asked to."""
    return config.text_aware is None and (config.training == "external" or window_of(config) is not None)


def _name(config: RunConfig, part: Corpus, windows: str | None) -> str:
    """Of a test: the corpus, and how it is heard."""
    how = None if config.training == "external" else registry.facts(config.audio_encoder).short
    return f"{part.fingerprint[:16]}-{hashes.content_key(windows, window_of(config), how, RESULT_VERSION)[:8]}"


def _kept(run: Run, name: str, warn: bool = False) -> ExternalTest | None:
    try:
        return run.external(name)
    except RecordError as error:
        if warn:
            warnings.warn(f"{error}. Now made anew", stacklevel=3)
        return None


def _ranked(embedder: Embedder, part: Corpus) -> ExternalTest:
    sentences, clips = embedder.sentences(part.captions["caption"].tolist()), part.clips["clip"].tolist()
    columns = []
    for start in range(0, len(clips), AT_A_TIME):
        heard = (part.read(clip) for clip in clips[start : start + AT_A_TIME])
        sounds = embedder.sounds([audio.resample(*one, embedder.sample_rate) for one in heard])
        columns.append(embedder.similarity(sentences, sounds))
    relevance = part.relevance()
    dense = relevance if not hasattr(relevance, "toarray") else relevance.toarray()
    return ExternalTest(retrieval.ranks(torch.cat(columns, dim=1), relevance), dense)
