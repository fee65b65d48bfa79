import io

import matplotlib
import numpy as np
import pandas as pd
import pytest
import soundfile
from made_runs import three_clips
from matplotlib import image

from atr.analysis import spectrograms
from atr.reports import figures

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    figures.plt.close("all")


@pytest.fixture
def table():
    return pd.DataFrame(
        {
            "rank": [1, 2, 11],
            "clip": ["rain.wav", "bell.wav", "<dog>.wav"],
            "similarity": [0.5, 0.25, -0.1],
            "right": [False, False, True],
            "caption": ["rain $\\nofont{$", "a bell " * 20, "a dog"],
        }
    )


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
def test_a_tone_is_loudest_in_its_band_and_at_its_ticks_height(rate):
    wave = 0.01 * np.sin(2 * np.pi * 2000 * np.arange(rate) / rate).astype(np.float32)
    levels = spectrograms.decibels(wave, rate)
    assert levels.shape[0] == spectrograms.BANDS and levels.max() == 0 and levels.min() == spectrograms.FLOOR
    _, axis = figures.plt.subplots()
    corpus = three_clips()
    object.__setattr__(corpus, "read", lambda clip: (wave, rate))
    spectrograms.draw(axis, corpus, "any")
    heights = dict(zip([tick.get_text() for tick in axis.get_yticklabels()], axis.get_yticks(), strict=True))
    loudest = int(levels[:, 10].argmax())
    assert abs(heights["2"] - (loudest + 0.5)) < 1 and ("8" in heights) == (rate > 8000)
    assert axis.get_xlim() == (0, 1) and axis.get_ylim() == (0, spectrograms.BANDS)


def test_silence_is_dark_and_a_few_samples_have_a_spectrogram():
    for wave in (np.zeros(16_000, np.float32), np.zeros(3, np.float32)):
        assert (spectrograms.decibels(wave, 16_000) == spectrograms.FLOOR).all()


def test_a_thumbnail_is_a_picture_of_its_size_and_is_drawn_once():
    corpus = three_clips()
    first = spectrograms.thumbnail(corpus, "rain.wav")
    pixels = image.imread(io.BytesIO(first))
    assert pixels.shape[:2] == (120, 300) and pixels[..., :3].std() > 0.1
    assert spectrograms.thumbnail(corpus, "rain.wav") is first and figures.plt.get_fignums() == []


def test_a_clips_file_plays_what_the_corpus_reads():
    corpus = three_clips()
    wave, rate = soundfile.read(io.BytesIO(spectrograms.wav(corpus, "bell.wav")), dtype="float32")
    assert rate == 8000
    np.testing.assert_allclose(wave, corpus.read("bell.wav")[0], atol=1e-4)


def test_a_gallery_shows_ranks_captions_and_the_right_clip(table):
    figure = spectrograms.gallery(table, three_clips(), "a query")
    figure.canvas.draw()
    shown = [axis for axis in figure.axes if axis.images]
    said = [axis.get_title(loc="left").split("\n") for axis in shown]
    assert [lines[0] for lines in said] == [
        "1 · 0.50 · rain.wav",
        "2 · 0.25 · bell.wav",
        "11 · -0.10 · <dog>.wav · ✓ right clip",
    ]
    assert said[0][1] == "rain $\\nofont{$" and max(map(len, said[1])) <= spectrograms.WIDTH and len(said[1]) > 2
    framed = [axis.spines["top"].get_visible() for axis in shown]
    assert framed == [False, False, True] and figure.get_suptitle() == "a query"
    assert {axis.get_ylabel() for axis in shown} == {"kHz"} and figure.axes[
        -1
    ].get_ylabel() == "dB below a clip's loudest"
    with pytest.raises(ValueError, match="no clips to show"):
        spectrograms.gallery(table[:0], three_clips())
