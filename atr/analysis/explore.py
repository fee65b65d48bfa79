"""What a finished run makes of its test split: clips ranked by a sentence, captions by a clip, failed queries, nearest
neighbours.

A test caption is answered by the run's own numbers; any other sentence by its model, which is loaded when it is first
needed. Ranks count from 1, and ties go against the model, as in `atr.metrics.retrieval`.
"""

import functools
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from atr.analysis import lexical, maps
from atr.analysis.maps import CorpusOf, Map
from atr.config import RunConfig
from atr.corpora import audio, corpus_memory
from atr.corpora.corpus import Corpus
from atr.encoders.text import normalise
from atr.experiments import listing
from atr.inference.embedder import Embedder
from atr.reports import figures
from atr.reports.names import loss_title
from atr.training import records, results
from atr.training.records import Run

MAPPING = threading.Lock()  # in JupyterLab widgets answer in another thread than cells
WORDS = re.compile(r"[^\s\d!-/:-@\[-`{-~]+(?:'[^\s\d!-/:-@\[-`{-~]+)*")  # in `lexical.ascii_signs` of a text


def corpora(root: str | Path | None = None) -> CorpusOf:
    """Gives the corpus that a config names, each made once; root: the folder of those that lie in one."""
    corpus_of = corpus_memory(root)
    return lambda config: corpus_of(config.corpus)


def run_menu(folder: Path, first: Iterable[Run] = ()) -> dict[str, Run]:
    """The runs `first`, and all others of a folder that are finished, by what they are: loss, training, seed, and the
    fields in which a run is unlike most of them.
    """
    runs = {run.address: run for run in first}
    others = [run for run in records.runs_in(folder) if run.status == "finished" and run.address not in runs]
    fields = {run: _fields(run) for run in [*runs.values(), *others]}
    labels: dict[str, Run] = {}
    for (run, own), words in zip(fields.items(), listing.differences(list(fields.values())), strict=True):
        label = " · ".join(filter(None, [_kind(own), words]))
        labels[label if label not in labels else f"{label} · {run.address}"] = run  # the same but for data or weights
    return labels


def kind(run: Run) -> str:
    """What a run is, in words: its loss, training and seed."""
    return _kind(_fields(run))


def _kind(own: dict[str, Any]) -> str:
    what = [loss_title(own["loss.name"]), own["training"], f"seed {own['seed']}"] if own else ["of another version"]
    return " · ".join(what)


def config_of(run: Run) -> RunConfig:
    """The config of a finished run. ValueError: the run is not there, not finished, or of another version."""
    if not run.path.is_dir():
        raise ValueError(f"{run.path}: no such run, it may have been removed; choose another, or fit it again")
    run.require_finished()
    return run.config


def split_of(run: Run, corpus: Corpus) -> Corpus:
    """As `results.test_split`. ValueError also as `config_of`."""
    config_of(run)
    return results.test_split(run, corpus)


def rank_clips(run: Run, corpus: Corpus, sentence: str, top: int = 10, device: str = "auto") -> pd.DataFrame:
    """Test clips by their similarity to a sentence, the `top` first and behind them every right one.

    Columns: rank, clip, similarity (cosine), right, caption (the clip's first). right: the sentence is a test caption
    that fits the clip. corpus: what the run was trained on. With text-aware pooling a sentence that is no test caption
    first embeds all test clips, once.

    ValueError: as `split_of`, no words, or as `Embedder`.
    """
    part = split_of(run, corpus)
    style = run.config.caption_style
    words = normalise(sentence, style)
    if not words.strip():
        raise ValueError(f"sentence {sentence!r}: no words; describe a sound in a few")
    rows = [row for row, caption in enumerate(part.captions["caption"]) if normalise(caption, style) == words]
    if rows:
        scores, right = similarity(run, rows[:1])[0], _right(run, rows).any(0)
    else:
        model = _model(run, corpus, device)
        sounds = _sounds(run, corpus, device) if model.text_aware else run.embeddings["audio"]
        scores, right = model.similarity(model.sentences([sentence]), sounds)[0], np.zeros(len(part), bool)
    table = pd.DataFrame({"clip": part.clips["clip"], "similarity": scores.numpy(), "right": right})
    return _in_order(table.assign(caption=table["clip"].map(first_captions(part))), top)


def rank_captions(run: Run, corpus: Corpus, clip: str, top: int = 10) -> pd.DataFrame:
    """Test captions by their similarity to a test clip, the `top` first and behind them every right one.

    Columns: rank, caption, similarity (cosine), right. ValueError: as `split_of`, or no such test clip.
    """
    part = split_of(run, corpus)
    clips = part.clips["clip"].tolist()
    if clip not in clips:
        raise ValueError(f"no test clip {clip!r} in {corpus.name!r}; it has {clips[0]!r} and {len(clips) - 1} more")
    place = clips.index(clip)
    scores, right = _of_clip(run, place)
    table = pd.DataFrame({"caption": part.captions["caption"], "similarity": scores.numpy(), "right": right})
    return _in_order(table, top)


def compare_runs(
    runs: Mapping[str, Run], corpus: Corpus, sentence: str, top: int = 10, device: str = "auto"
) -> pd.DataFrame:
    """What several runs make of one sentence: the rank of each clip by each run.

    Columns: clip, right, caption, and the runs' labels; the clips that one of them has among its `top`, and the right
    ones, in the order of the first run. runs: label → finished run, all trained on the corpus. ValueError: as
    `rank_clips`.
    """
    columns = ["clip", "right", "caption"]
    tables = {label: rank_clips(run, corpus, sentence, len(corpus), device) for label, run in runs.items()}
    table = next(iter(tables.values()))[columns]
    for label, other in tables.items():
        table = table.merge(other[["clip", "rank"]].rename(columns={"rank": label}), on="clip")
    mask = (table[list(runs)] <= top).any(axis=1) | table["right"]
    return table[mask].reset_index(drop=True)


def failures(run: Run, corpus: Corpus, number: int = 10) -> pd.DataFrame:
    """The test captions whose right clip ranks worst, the worst first, and what came first instead.

    Columns: rank (of the best right clip), caption, clip (that one), similarity, first, first_similarity,
    first_caption (its first). Captions whose right clip comes first are no failures. ValueError: as `split_of`.
    """
    part = split_of(run, corpus)
    ranks = run.ranks.best("t2a")
    worst = [row for row in np.argsort(-ranks, kind="stable")[:number].tolist() if ranks[row] > 1]
    scores, right = similarity(run, worst).numpy(), _right(run, worst)
    clips = part.clips["clip"].to_numpy()
    own, first = (np.where(mask, scores, -np.inf).argmax(1) for mask in (right, ~right))
    rows = np.arange(len(worst))
    return pd.DataFrame(
        {
            "rank": ranks[worst],
            "caption": part.captions["caption"].to_numpy()[worst],
            "clip": clips[own],
            "similarity": scores[rows, own],
            "first": clips[first],
            "first_similarity": scores[rows, first],
            "first_caption": first_captions(part)[clips[first]].to_numpy(),
        }
    )


def neighbours(run: Run, corpus: Corpus, point: str, number: int = 5) -> pd.DataFrame:
    """The clips and the captions of the test split nearest to one of them, `number` of either, nearest first.

    point: a test clip, or a test caption to the letter. Columns: kind (clip or caption), clip, caption (a clip's
    first), similarity (cosine), place (its row among the clips or captions). ValueError: as `split_of` and
    `results.space`, or no such point.
    """
    part = split_of(run, corpus)
    sounds, texts = results.space(run)
    clips, captions = part.clips["clip"], part.captions["caption"]
    names = [*clips, *captions]
    if point not in names:
        raise ValueError(f"{point!r} is no test clip of {corpus.name!r} and no test caption; copy one to the letter")
    own = names.index(point)
    texts_of = {
        "clip": pd.DataFrame({"clip": clips, "caption": clips.map(first_captions(part))}),
        "caption": part.captions,
    }
    tables = []
    for kind, x, itself in (("clip", sounds, own), ("caption", texts, own - len(clips))):
        scores = x @ torch.cat([sounds, texts])[own]
        if 0 <= itself < len(x):
            scores[itself] = -torch.inf
        similarities, nearest = scores.topk(min(number, int(scores.isfinite().sum())))
        table = texts_of[kind].loc[nearest.tolist(), ["clip", "caption"]]
        tables.append(table.assign(similarity=similarities.numpy(), place=nearest.numpy()))
        tables[-1].insert(0, "kind", kind)
    return pd.concat(tables, ignore_index=True)


def first_captions(part: Corpus) -> pd.Series:
    """The first caption of each clip, by its name."""
    return part.captions.drop_duplicates("clip").set_index("clip")["caption"]


def map_of(run: Run, corpus: Corpus) -> Map:
    """`maps.map_of`, made once. ValueError: as `split_of` and `maps.map_of`."""
    split_of(run, corpus)
    with MAPPING:
        return _map_of(run, corpus)


_map_of = functools.lru_cache(maxsize=4)(maps.map_of)


def places(one: Map, table: pd.DataFrame) -> Tensor:
    """(rows, 2): where the rows of a table of `neighbours` lie on the run's map."""
    layers = {"clip": one.audio, "caption": one.text}
    return torch.stack([layers[kind][place] for kind, place in zip(table["kind"], table["place"], strict=True)])


def neighbourhood(run: Run, corpus: Corpus, clip: str, number: int = 5, title: str = "") -> Figure:
    """The run's map with a test clip and its `neighbours` marked. ValueError: as `neighbours` and `map_of`."""
    table, layers = neighbours(run, corpus, clip, number), map_of(run, corpus)
    figure = maps.picture(layers.audio, layers.text, title, layers.audio_kinds, layers.text_kinds)
    (axis,) = figure.axes
    x, y = places(layers, table).t()
    axis.scatter(x, y, 60, facecolors="none", edgecolors="k", lw=1, label=f"its {number} nearest of either")
    x, y = layers.audio[split_of(run, corpus).clips["clip"].tolist().index(clip)]
    axis.scatter(x, y, 110, "w", marker="*", edgecolors="k", lw=0.6, label=f"clip {clip}", zorder=3)
    figure.legends[0].remove()
    figures.legend_below(figure, axis, 5)
    return figure


def unknown_words(corpus: Corpus, sentence: str) -> list[str]:
    """The words of a sentence that no training caption of the corpus has, in their order."""
    vocabulary = _vocabulary(corpus)
    return [word for word in dict.fromkeys(_words(sentence)) if word not in vocabulary]


def similarity(run: Run, rows: Sequence[int]) -> Tensor:
    """(rows, clips): cosines of some test captions and all test clips, as the run was tested."""
    embeddings = run.embeddings
    if "similarity" in embeddings:
        return embeddings["similarity"][list(rows)]
    return embeddings["text"][list(rows)] @ embeddings["audio"].T


def _fields(run: Run) -> dict[str, Any]:
    try:
        return listing.leaves(run.config.to_dict())
    except ValueError:  # fields that this version does not know; whoever selects the run is told which
        return {}


def _right(run: Run, rows: Sequence[int]) -> np.ndarray:
    """(rows, clips) bool: which clips fit some test captions."""
    relevance = run.embeddings["relevance"].numpy()
    own = relevance[list(rows)]
    return own if relevance.ndim == 2 else own[:, None] == np.arange(len(run.ranks.a2t))


def _of_clip(run: Run, place: int) -> tuple[Tensor, np.ndarray]:
    """(captions,) of a test clip: its cosines with all test captions, and which of them fit it."""
    embeddings = run.embeddings
    scores = (
        embeddings["similarity"][:, place]
        if "similarity" in embeddings
        else embeddings["text"] @ embeddings["audio"][place]
    )
    relevance = embeddings["relevance"].numpy()
    return scores, relevance[:, place] if relevance.ndim == 2 else relevance == place


def _in_order(table: pd.DataFrame, top: int) -> pd.DataFrame:
    table = table.iloc[np.lexsort((table["right"], -table["similarity"]))]
    table.insert(0, "rank", np.arange(1, len(table) + 1))
    return table[(table["rank"] <= top) | table["right"]].reset_index(drop=True)


@functools.lru_cache(maxsize=2)  # two runs side by side; each holds a text encoder
def _model(run: Run, corpus: Corpus, device: str) -> Embedder:
    return Embedder(run, corpus, device=device)


@functools.lru_cache(maxsize=2)
def _sounds(run: Run, corpus: Corpus, device: str) -> Any:
    model = _model(run, corpus, device)
    waveforms = (corpus.read(clip) for clip in results.test_split(run, corpus).clips["clip"])
    return model.sounds([audio.resample(wave, rate, model.sample_rate) for wave, rate in waveforms], quiet=False)


@functools.lru_cache(maxsize=4)
def _vocabulary(corpus: Corpus) -> frozenset[str]:
    return frozenset(_words(" ".join(corpus.split("train").captions["caption"])))


def _words(text: str) -> list[str]:
    return WORDS.findall(lexical.ascii_signs(text).lower())
