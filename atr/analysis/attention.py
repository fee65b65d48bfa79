"""What text-aware attention looks at: its weights over time, beside when each sound is known to be heard."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from atr.analysis import spectrograms
from atr.corpora.corpus import Corpus
from atr.encoders import text
from atr.reports.figures import PAGE, legible, subplots
from atr.system import devices
from atr.system.packed import InputRows, RaggedArray
from atr.training import evaluation, identity, model
from atr.training.records import Run


@dataclass(frozen=True)
class ClipFrames:
    """The test clips of a text-aware run: frames (clips, T, D) and mask (clips, T) behind the audio head, the time of
    each frame's centre (T,) in seconds, and the network.
    """

    network: model.DualEncoder
    frames: Tensor
    mask: Tensor
    times: np.ndarray
    corpus: Corpus
    inputs: identity.Inputs
    run: Run

    def captions(self, names: list[str]) -> list[str]:
        """A caption of each kind of sound by itself, as the corpus words it; else its name."""
        sentence = getattr(self.corpus.read, "sentence", lambda name: name.replace("_", " "))
        return [sentence(name) for name in names]

    @torch.no_grad()
    def attention(self, words: list[str]) -> np.ndarray:
        """(clips, words, T) weights that each phrase gives to the frames of each clip; they sum to 1."""
        assert self.network.text_aware is not None
        config, folder = self.run.config, text.folder(self.run.config.text_encoder)
        phrases = [text.normalise(word, config.caption_style) for word in words]
        layers, bar = config.state_layers, tqdm(disable=True)
        encoder = text.TextEncoder(folder, config.text_pooling, layers)
        kind = text.TOKENS if layers is None else text.STATES
        rows = encoder.tokenize(phrases) if layers is None else encoder.rows(phrases, layers, bar)
        queries = self.network.embed_text(InputRows(kind, RaggedArray.of(rows)).batch(np.arange(len(phrases))))
        return self.network.text_aware.attention(self.frames, self.mask, queries).numpy()


def restore_frames(run: Run, corpus: Corpus) -> ClipFrames:
    """The test split of `corpus` as a finished text-aware run hears it. ValueError: another kind of run."""
    _require_pooling(run)
    _, network, inputs, _ = model.restore_split(run, corpus)
    with torch.no_grad():
        frames = evaluation.embed(network, inputs)[0]
    return ClipFrames(
        network,
        frames.values,
        frames.mask,
        frame_times(network.audio_encoder, frames.shape[1]),
        corpus.split("test"),
        inputs,
        run,
    )


def _require_pooling(run: Run) -> None:
    if not run.config.text_aware:
        raise ValueError(f"{run.path}: has no text-aware pooling, so there is no attention to look at")


def frame_times(encoder: Any, count: int) -> np.ndarray:
    """(count,) time in seconds of the centre of each of an encoder's frames. ValueError: an encoder that hides it."""
    if not hasattr(encoder, "frame_times"):
        raise ValueError(
            f"{type(encoder).__name__}: where its frames lie in time is not known; give it a method frame_times"
        )
    return encoder.frame_times(count).numpy()


def looks(clip_frames: ClipFrames, most: float = 0.8) -> pd.DataFrame:
    """How well attention finds each sound when asked for it by a caption of it alone: one row per (clip, event).

    Of clips of several sounds. coverage: share of the clip's frames within the event; attention: share of the weights
    there; hit: whether the greatest weight lies there (the pointing game of Zhang et al. 2018); others, others_hit: the
    same means for captions of the clip's other sounds. Attention that looks anywhere gives a mean `attention` and
    `hit` equal to `coverage`; attention that prefers sounds to silence, whichever is asked for, gives more, but as much
    as `others` and `others_hit`. Events that fill more than `most` of their clip are left out, as are those without a
    frame. ValueError: a corpus that does not know its events.
    """
    events = clip_frames.corpus.events
    if events.empty:
        raise ValueError(f"corpus {clip_frames.corpus.name!r} does not know when its sounds are heard")
    names = sorted(events["event"].unique())
    weights = clip_frames.attention(clip_frames.captions(names))
    place = {clip: row for row, clip in enumerate(clip_frames.corpus.clips["clip"])}
    together = {str(clip): sorted(set(kinds)) for clip, kinds in events.groupby("clip")["event"]}
    rows = []
    for (clip, event), group in events.groupby(["clip", "event"]):
        row, others = place[clip], [names.index(name) for name in together[str(clip)] if name != event]
        valid = clip_frames.mask[row].numpy()
        inside = np.zeros(len(valid), bool)
        for onset, offset in zip(group["onset"], group["offset"], strict=True):
            inside |= (clip_frames.times >= onset) & (clip_frames.times <= offset)
        coverage = (inside & valid).sum() / valid.sum()
        if others and 0 < coverage <= most:
            by_name = weights[row, [names.index(event), *others]]
            there, hits = by_name[:, inside].sum(1), inside[by_name.argmax(1)]
            rows.append((clip, event, coverage, there[0], there[1:].mean(), hits[0], hits[1:].mean()))
    return pd.DataFrame(rows, columns=["clip", "event", "coverage", "attention", "others", "hit", "others_hit"])


@torch.no_grad()
def scoring_cost(run: Run, corpus: Corpus, device: str = "auto") -> pd.DataFrame:
    """What it costs to score all queries of a corpus's test split against all of its clips, by a mean over frames and
    by a finished run's text-aware pooling: one row each, index pooling; queries a second (the fastest of three times,
    which other work disturbs least), numbers a clip (what an index holds of it), parameters of the pooling.
    ValueError: another kind of run.
    """
    _require_pooling(run)
    _, network, inputs, to = model.restore_split(run, corpus, "test", devices.resolve_device(device))
    frames: Any
    frames, queries = map(to, evaluation.embed(network, inputs, to))
    pooling, means, (_, steps, dim) = network.text_aware, frames.mean(), frames.shape
    assert pooling is not None

    def second(score: Callable[[], Tensor]) -> float:
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            score().sum().item()
            seconds.append(time.perf_counter() - start)
        return len(queries) / min(seconds)

    parameters = sum(parameter.numel() for parameter in pooling.parameters())
    rows = [
        ("mean", second(lambda: queries @ means.T), dim, 0),
        ("text-aware", second(lambda: network.similarity(frames, queries)), dim * steps, parameters),
    ]
    columns = ["pooling", "queries a second", "numbers a clip", "parameters of the pooling"]
    return pd.DataFrame(rows, columns=columns).set_index("pooling")


def picture(clip_frames: ClipFrames, clips: list[str]) -> Figure:
    """Spectrogram of each clip, and under it the weights by which a caption of each of its sounds pools it, beside when
    the sound is heard.
    """
    columns = min(len(clips), 3)
    figure, axes = subplots(2, columns, 3.3, PAGE, sharex="col", sharey="row")
    table = clip_frames.corpus.clips.reset_index(drop=True)
    for column, clip in enumerate(clips[:columns]):
        row = int(table.index[table["clip"] == clip][0])
        duration = float(table["duration"][row])
        spectrograms.draw(axes[0, column], clip_frames.corpus, clip)
        events = clip_frames.corpus.events[clip_frames.corpus.events["clip"] == clip]
        names = sorted(events["event"].unique())
        weights = clip_frames.attention(clip_frames.captions(names))[row]
        valid = clip_frames.mask[row].numpy()
        for number, name in enumerate(names):
            color = f"C{number}"
            axes[1, column].plot(
                clip_frames.times[valid], weights[number][valid], color=color, marker=".", label=legible(name)
            )
            for onset, offset in events.loc[events["event"] == name, ["onset", "offset"]].to_numpy():
                axes[1, column].hlines(-0.03 * (number + 1), onset, offset, color=color, lw=3)
        axes[1, column].set(xlabel="time (s)", xlim=(0, duration))
        axes[1, column].legend(loc="upper left", bbox_to_anchor=(0, -0.3), fontsize=7)
    axes[0, 0].set_ylabel("kHz")
    axes[1, 0].set_ylabel("attention")
    axes[1, 0].set_yticks([tick for tick in axes[1, 0].get_yticks() if 0 <= tick <= axes[1, 0].get_ylim()[1]])
    return figure
