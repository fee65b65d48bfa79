"""What a run is: the weights that a config names, and the address that all of it has in the store."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import sparse

from atr.config import RunConfig
from atr.corpora import corpus_of
from atr.corpora.captioning import language
from atr.corpora.corpus import Corpus
from atr.encoders import checkpoints, clap, pretraining, text
from atr.encoders.clap import CLAP_VERSION
from atr.losses import penalty
from atr.losses.contrast import WordRows
from atr.register import code
from atr.system import hashes, store
from atr.system.packed import InputRows
from atr.system.places import home
from atr.training import default_folder, records
from atr.training.records import Run


@dataclass(frozen=True)
class Inputs:
    """One split, ready to be batched.

    audio: pooled, or of a kind of `atr.encoders.inputs`; text: pooled, or of a kind of `atr.encoders.text`;
    clip_of_caption: (captions,); relevance as in `Corpus.relevance`.
    """

    audio: InputRows
    text: InputRows
    clip_of_caption: np.ndarray
    relevance: np.ndarray | sparse.csr_array


@dataclass(frozen=True)
class Preparation:
    """A corpus as one config sees it: splits, where the weights come from, and their fingerprints."""

    audio_weights: Path | None
    text_folder: Path
    fingerprints: dict[str, str]
    splits: dict[str, Inputs] = field(default_factory=dict)
    words: dict[str, WordRows] = field(default_factory=dict)


def pretrained_on_corpus(config: RunConfig) -> bool:
    """Whether a run's audio encoder starts from weights that are its corpus's own."""
    own = config.audio_weights == "pretrained" and config.audio_encoder not in checkpoints.REGISTRY
    return own and config.training not in ("external", "scratch")


def pretraining_corpus(config: RunConfig, root: str | Path | None = None) -> Corpus | None:
    """The corpus whose own weights a run's audio encoder starts from, None if it has none; root: its folder."""
    return corpus_of(config.corpus, root) if pretrained_on_corpus(config) else None


def weights(config: RunConfig, corpus: Corpus | None, quiet: bool = False, fetch: bool = True) -> Preparation:
    """The weights that a run starts from: pre-trained first where they are the corpus's own, fetched where they are
    published. Without `fetch`, FileNotFoundError for those that are not here. corpus: None will do where they are not
    `pretrained_on_corpus`.
    """
    external = config.training == "external"
    folder = clap.folder(config.text_encoder, fetch) if external else text.folder(config.text_encoder, fetch)
    spoken = text.fingerprint(folder)
    extra = penalty.read_settings(config.penalty).fingerprint(fetch, quiet) if config.penalty else {}
    extra |= fingerprints(config)
    if config.text_contrast:
        extra["captions"] = hashes.content_key(language.read(config.text_contrast["captions"]).values.tolist())
    if external:
        spoken = hashes.content_key(CLAP_VERSION, spoken)
        return Preparation(None, folder, {"audio": spoken, "text": spoken})
    if config.training == "scratch" or config.audio_weights is None:
        audio_weights = None
    elif config.audio_weights != "pretrained":
        audio_weights = _weights_file(config.audio_weights, config.audio_encoder)
    elif config.audio_encoder in checkpoints.REGISTRY:
        audio_weights = home() / "checkpoints" / checkpoints.REGISTRY[config.audio_encoder].file.name
        if fetch:
            audio_weights = checkpoints.fetch(config.audio_encoder, quiet)
    else:
        assert corpus is not None
        audio_weights = pretraining.path(corpus, config.audio_encoder)
        if fetch:
            audio_weights = pretraining.weights(corpus, config.audio_encoder, quiet=quiet)
        elif problem := store.damage(audio_weights.parent):  # a damaged file would give the run another address
            raise FileNotFoundError(f"{audio_weights}: not there, or damaged ({problem}); it is made anew with the run")
    if audio_weights is None and config.training == "frozen":
        raise ValueError("training 'frozen' needs audio_weights; a random encoder that stays random learns nothing")
    audio = hashes.file_hash(audio_weights) if audio_weights else "random"  # FileNotFoundError where it is missing
    return Preparation(audio_weights, folder, {"audio": audio, "text": spoken, **extra})


def _weights_file(name: str, encoder: str) -> Path:
    """A file, or the file `<encoder>.*` of a folder; a relative path is looked for here and below the checkpoints."""
    places = [Path(name).expanduser(), home() / "checkpoints" / name]
    for place in places:
        if place.is_file():
            return place
        matches = sorted(place.glob(f"{encoder}.*"))
        if matches:
            return matches[0]
    where = " and ".join(map(str, dict.fromkeys(places)))
    raise FileNotFoundError(
        f"audio_weights: {name!r}: no such file, nor a folder with a file {encoder}.*; looked at {where}"
    )


def fingerprints(config: RunConfig) -> dict[str, str]:
    """Hashes of the code of one's own that a config trains with; empty for most."""
    used = [("encoder", config.audio_encoder), *(("loss", part.loss["name"]) for part in config.parts())]
    return {f"{kind} {name}": digest for kind, name in used if (digest := code(kind, name))}


def locate(
    config: RunConfig,
    corpus: Corpus,
    runs: str | Path | None = None,
    quiet: bool = True,
    fetch: bool = True,
    root: str | Path | None = None,
) -> Run:
    """The run of a config, finished or not; makes or fetches the weights that it starts from where they are missing,
    or raises FileNotFoundError without `fetch`.
    """
    fingerprints = weights(config, corpus, quiet, fetch).fingerprints
    for name, (other, its_corpus) in requirements(config, corpus, root).items():
        fingerprints = fingerprints | {name: locate(other, its_corpus, runs, quiet, fetch, root).address}
    return Run(Path(runs or default_folder()) / records.address(config, corpus.fingerprint, fingerprints))


def requirements(config: RunConfig, corpus: Corpus, root: str | Path | None) -> dict[str, tuple[RunConfig, Corpus]]:
    """The configs of the runs that a run needs, each with its corpus."""
    return {
        name: (other, corpus if other.corpus == config.corpus else corpus_of(other.corpus, root))
        for name, other in config.needs().items()
    }
