"""What a clip looks like and sounds like: its mel spectrogram, alone or in a gallery, and its bytes to play."""

import functools
import io
import math
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import soundfile
import torch
import torchaudio
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from atr.corpora.corpus import Corpus
from atr.reports import figures

BANDS = 64
FLOOR = -70.0  # dB below a clip's loudest
TICKS = (0.5, 2, 8)  # kHz
WIDTH = 54  # characters of a caption's line in a gallery


def decibels(waveform: np.ndarray, rate: int) -> Tensor:
    """(BANDS, frames): mel power below its loudest, in dB from FLOOR to 0; silence is FLOOR throughout.

    waveform: (samples,) at `rate` Hz. Windows of about 64 ms, each half over the next; bands up to half of the rate.
    """
    window = 2 ** round(math.log2(0.064 * rate))
    wave = torch.from_numpy(np.asarray(waveform, np.float32))
    wave = torch.nn.functional.pad(wave, (0, max(0, window - len(wave))))
    power = torchaudio.transforms.MelSpectrogram(rate, window, hop_length=window // 2, n_mels=BANDS)(wave)
    return 10 * (power / power.max().clamp(min=1e-10)).clamp(min=10 ** (FLOOR / 10)).log10()


def draw(axis: Axes, corpus: Corpus, clip: str) -> AxesImage:
    """A clip's spectrogram, time in seconds, frequency in kHz. AudioError: it cannot be read."""
    waveform, rate = corpus.read(clip)
    image = axis.imshow(
        decibels(waveform, rate).numpy(),
        cmap=plt.get_cmap("magma", 24),  # so few colours, and none between pixels, make files a third the size
        interpolation="nearest",
        vmin=FLOOR,
        vmax=0,
        origin="lower",
        aspect="auto",
        extent=(0, len(waveform) / rate, 0, BANDS),
    )
    heights = {f"{tick:g}": BANDS * _mel(1000 * tick) / _mel(rate / 2) for tick in TICKS if 1000 * tick <= rate / 2}
    axis.set_yticks(list(heights.values()), list(heights))
    axis.tick_params(labelsize=6, length=2, pad=1)
    axis.grid(False)
    return image


def _mel(frequency: float) -> float:
    return 2595 * math.log10(1 + frequency / 700)


@functools.lru_cache(maxsize=256)
def thumbnail(corpus: Corpus, clip: str) -> bytes:
    """A clip's spectrogram as a PNG of 300 × 120 pixels."""
    figures.style()
    figure = Figure(figsize=(3.0, 1.2), dpi=100)
    figure.set_layout_engine("none")
    axis = figure.add_axes((0.1, 0.28, 0.86, 0.69))
    draw(axis, corpus, clip)
    axis.set_xlabel("time (s)", size=7, labelpad=1)
    axis.set_ylabel("kHz", size=7, labelpad=1)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def wav(corpus: Corpus, clip: str) -> bytes:
    """A clip as a WAV file of 16 bits. AudioError: it cannot be read."""
    waveform, rate = corpus.read(clip)
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def gallery(table: pd.DataFrame, corpus: Corpus, title: str = "") -> Figure:
    """Spectrograms of ranked clips, two a row, under their captions; a right clip is framed and says so.

    table: rank, clip, similarity, right and caption, as `explore.rank_clips` gives them. ValueError: it has no rows.
    """
    if not len(table):
        raise ValueError("no clips to show; give a table with a row or more")
    rows = math.ceil(len(table) / 2)
    figure, axes = figures.subplots(rows, 2, 1.25 * rows + 0.4)
    for axis, row in zip(axes.flat, table.itertuples(), strict=False):
        image = draw(axis, corpus, str(row.clip))
        line = f"{row.rank} · {row.similarity:z.2f} · {row.clip}{' · ✓ right clip' if row.right else ''}"
        axis.set_title("\n".join([line, *textwrap.wrap(str(row.caption), WIDTH)]), size=7, loc="left", pad=3)
        axis.set_ylabel("kHz", size=7)
        if row.right:
            axis.spines[:].set(visible=True, color="C2", linewidth=2.5)
    for axis in axes.flat[len(table) :]:
        axis.set_axis_off()
    for axis in axes[-1]:
        axis.set_xlabel("time (s)", size=7)
    bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 2 / rows), aspect=12)
    bar.set_label("dB below a clip's loudest", size=7)
    bar.ax.tick_params(labelsize=6)
    figure.suptitle("\n".join(textwrap.wrap(title, 90)), size=9)
    return figure
