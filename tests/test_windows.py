"""Sounds heard in windows whose embeddings are averaged."""

import json
import time

import dataset_layouts
import numpy as np
import pytest
import torch
from made_models import clap
from torch.nn.functional import normalize
from typer.testing import CliRunner

from atr import Embedder, RunConfig, extend, fit, register
from atr.cli import app
from atr.encoders import registry
from atr.inference.windows import window_of

TINY = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
RATE = 16_000
ENCODER = """
import torch
from atr import register
from atr.encoders.pooling import frame_mask, mean


@register.encoder("windowed")
class Windowed(torch.nn.Module):
    sample_rate, dim, cached, head_hidden = 16_000, 8, False, 1
    window, short = 1.0, "repeat"

    def __init__(self, augment=None, dropout=None):
        super().__init__()
        self.linear = torch.nn.Linear(160, 8)

    def forward(self, waveform, lengths=None):
        frames = self.linear(10 * waveform.unfold(1, 160, 160)).square()
        ends = torch.full((len(frames),), frames.shape[1]) if lengths is None else lengths // 160
        return frames, frame_mask(ends, frames.shape[1])

    def pool(self, frames, mask):
        return mean(frames, mask)
"""


def untrained(corpus, runs, **changes):
    settings = {"corpus": TINY, "epochs": 0, "training": "scratch", "audio_weights": None, "embedding_dim": 16}
    return fit(RunConfig(**settings | {"audio_encoder": "windowed", "augment": None} | changes), corpus, runs=runs)


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "own.py").write_text(ENCODER)
    extend(folder / "own.py")
    yield untrained(corpus, folder / "runs")
    register.forget((folder / "own.py").resolve())


def test_one_window_is_the_first_or_one_that_seed_and_samples_draw(run):
    whole, first, drawn = Embedder(run), Embedder(run, windows="first"), Embedder(run, windows="random")
    sounds = [0.1 * np.random.default_rng(n).standard_normal(3 * RATE + n).astype(np.float32) for n in range(4)]
    beginnings = [sound[:RATE] for sound in sounds]
    torch.testing.assert_close(first.sounds(sounds), whole.sounds(beginnings), atol=1e-6, rtol=0)
    once = drawn.sounds(sounds)
    torch.testing.assert_close(drawn.sounds(sounds[::-1]).flip(0), once, atol=1e-6, rtol=0)
    other = drawn.with_seed(1)
    assert (other.sounds(sounds) - once).abs().amax(1).min() > 1e-4
    torch.testing.assert_close(drawn.with_seed(0).sounds(sounds), once)
    torch.testing.assert_close(drawn.sounds(beginnings), first.sounds(beginnings), atol=1e-6, rtol=0)
    assert len({one.fingerprint for one in (whole, first, drawn, other)}) == 4
    with pytest.raises(ValueError, match="draws no part of a sound, so no seed counts; leave it out"):
        first.with_seed(1)


def test_seeds_are_evaluated_one_by_one_and_together(tmp_path):
    clap(tmp_path / "clap")
    for number in range(8):
        dataset_layouts.sound(tmp_path / "sounds" / f"{number}.wav", number, 2.5, rate=8000)
    rows = [[f"{number}.wav", f"{what} twice"] for number, what in enumerate(made_words())]
    dataset_layouts.table(tmp_path / "sounds" / "captions.csv", ["file_name", "caption"], rows)
    words = ["evaluate", f"hf:{tmp_path / 'clap'}", "--on", "folder", "--root", str(tmp_path / "sounds"), "--quiet"]
    words += ["--device", "cpu", "--seeds", "0,3", "--windows", "random", "--out", str(tmp_path / "out")]
    outcome = CliRunner().invoke(app.app, words)
    assert outcome.exit_code == 0, outcome.output
    said = " ".join(outcome.output.split())
    assert "seed 0" in said and "seed 3" in said and "mean ± standard deviation of 2 seeds" in said
    kept = [json.loads((tmp_path / "out" / f"seed-{seed}" / "folder.json").read_text()) for seed in (0, 3)]
    assert [one["model"]["seed"] for one in kept] == [0, 3]
    assert kept[0]["model"]["fingerprint"] != kept[1]["model"]["fingerprint"]
    values = [one["metrics"][3]["value"] for one in kept]
    assert f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" in said
    for changes, error in (
        ([*words[:7], "--seeds", "0,1", "--windows", "first"], "--seeds: --windows first draws nothing here"),
        ([*words[:7], "--seeds", "a"], "--seeds: 'a'; give whole numbers with commas between, such as 0,1,2"),
    ):
        outcome = CliRunner().invoke(app.app, changes)
        assert outcome.exit_code == 1 and error in " ".join(outcome.output.split())


def made_words():
    return ["rain", "a dog barks", "wind", "a bell", "an engine idles", "birds sing", "waves crash", "a man talks"]


@pytest.fixture(scope="module")
def whole(run):
    return Embedder(run, device="cpu")


@pytest.fixture(scope="module")
def windowed(run):
    return Embedder(run, windows="mean", device="cpu")


def noise(seconds, seed=0):
    rng = np.random.default_rng(seed)
    samples = rng.standard_normal(round(seconds * RATE)) * np.linspace(0.01, 0.2, round(seconds * RATE))
    return samples.astype(np.float32)


def test_windows_reach_from_start_to_end_and_their_unit_embeddings_are_averaged(whole, windowed):
    sound, size = noise(2.5), RATE
    parts = whole.sounds([sound[start : start + size] for start in (0, 12_000, 24_000)])
    expected = normalize(parts.mean(0), dim=0)
    assert (parts[0] - parts[2]).abs().max() > 1e-4
    torch.testing.assert_close(windowed.sounds([sound])[0], expected, atol=1e-5, rtol=0)


def test_clips_of_any_lengths_share_batches_and_are_heard_as_each_alone(windowed, monkeypatch):
    sounds = [noise(seconds, seed) for seed, seconds in enumerate((0.3, 1.2, 1.0, 3.1))]
    alone = torch.cat([windowed.sounds([sound]) for sound in sounds])
    calls = []
    embedded = Embedder._embed
    monkeypatch.setattr(Embedder, "_embed", lambda self, *given: calls.append(1) or embedded(self, *given))
    together = windowed.sounds(sounds)
    assert len(calls) == 1
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))


def test_a_shorter_sound_is_repeated_where_its_encoder_prefers_that(whole, windowed):
    sound = noise(0.3)
    repeated = np.concatenate([sound] * 4)[:RATE]
    torch.testing.assert_close(windowed.sounds([sound]), whole.sounds([repeated]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("short", ["pad", None])
def test_or_padded_or_left_as_it_is(run, whole, monkeypatch, short):
    facts = registry.facts("windowed")
    monkeypatch.setattr(registry, "facts", lambda name: facts._replace(short=short))
    sound = noise(0.3)
    expected = np.pad(sound, (0, RATE - len(sound))) if short else sound
    heard = Embedder(run, windows="mean", device="cpu").sounds([sound])
    torch.testing.assert_close(heard, whole.sounds([expected]), atol=1e-5, rtol=0)


def test_a_tenth_of_a_second_is_heard(windowed, whole):
    sound = noise(0.1)
    repeated = np.resize(sound, RATE)
    torch.testing.assert_close(windowed.sounds([sound]), whole.sounds([repeated]), atol=1e-5, rtol=0)
    assert windowed.sounds([noise(0.001)]).isfinite().all()


def test_ten_minutes_are_heard_whole(windowed, whole):
    sound, start = np.resize(noise(10), 600 * RATE), time.process_time()
    expected = normalize(whole.sounds(sound.reshape(600, -1)).mean(0), dim=0)
    torch.testing.assert_close(windowed.sounds([sound])[0], expected, atol=1e-5, rtol=0)
    assert time.process_time() - start < 60


def test_the_encoders_that_state_a_window_have_it(run, corpus):
    known = {name: registry.facts(name) for name in ("windowed", "mn10", "passt_s", "atst_frame", "cnn14", "compact")}
    stated = {name: (facts.window, facts.short) for name, facts in known.items()}
    assert stated == {
        "windowed": (1.0, "repeat"),
        "mn10": (10.0, "repeat"),
        **dict.fromkeys(("passt_s", "atst_frame"), (10.0, None)),
        **dict.fromkeys(("cnn14", "compact"), (None, None)),
    }
    assert window_of(run.config) == 1 and window_of(run.config.replace(max_seconds=0.5)) == 0.5


def test_without_windows_all_is_as_it_was_and_with_them_the_fingerprint_says_so(run, whole, windowed):
    assert Embedder(run, device="cpu").fingerprint == whole.fingerprint != windowed.fingerprint
    assert windowed.seconds is None and windowed.sounds([]).shape == (0, 16)


def test_what_has_no_window_is_named(run, corpus, tmp_path):
    with pytest.raises(ValueError, match="windows: 'max'; known: mean, first, random"):
        Embedder(run, windows="max")
    compact = untrained(corpus, tmp_path, audio_encoder="compact")
    with pytest.raises(ValueError, match="the encoder compact states no window; leave windows at None, or state"):
        Embedder(compact, corpus, windows="mean")
    aware = untrained(corpus, tmp_path, audio_encoder="compact", text_aware={"projection_dim": 16})
    with pytest.raises(ValueError, match="is text-aware, its sounds have no embedding to average"):
        Embedder(aware, corpus, windows="mean")


def test_clap_hears_windows_of_its_own_seconds(tmp_path):
    folder = clap(tmp_path / "clap")
    whole, windowed = (Embedder.clap(folder, windows=windows, device="cpu") for windows in (None, "mean"))
    size = round(whole.seconds * whole.sample_rate)
    sound = np.resize(noise(2), 2 * size)
    parts = whole.sounds([sound[:size], sound[size:]])
    torch.testing.assert_close(windowed.sounds([sound])[0], normalize(parts.mean(0), dim=0), atol=1e-5, rtol=0)
