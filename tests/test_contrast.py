import math

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import torch.nn.functional as F
from torch import nn

import atr
from atr import RunConfig, fit
from atr.config import ConfigError
from atr.corpora.captioning import language
from atr.encoders import text
from atr.encoders.audio.mobilenet import MobileNet
from atr.losses.contrast import Contrast, WordRows
from atr.system.packed import POOLED, InputRows
from atr.training import model, preparation


def table(path, rows):
    pd.DataFrame(rows, columns=["file_name", "caption_1", "caption_2"]).to_csv(path, index=False)
    return path


@pytest.fixture
def captions(tmp_path, monkeypatch):
    monkeypatch.setenv("ATR_HOME", str(tmp_path))
    rows = [(f"{number}.wav", f"Sound number {number} rings.", f"A ring, number {number}.") for number in range(20)]
    return language.collect([table(tmp_path / "people.csv", rows)])


def test_a_clip_of_which_one_caption_is_tested_on_is_left_out_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("ATR_HOME", str(tmp_path))
    rows = [("a.wav", "A dog barks.", "Barking"), ("b.wav", "Rain  falls", "It rains"), ("c.wav", "Wind", "")]
    given = [table(tmp_path / "people.csv", rows)]
    everything, fewer = language.collect(given), language.collect(given, ["rain falls"])
    assert language.read(everything)["clip"].tolist() == ["people/0", "people/0", "people/1", "people/1"]
    assert language.read(fewer)["caption"].tolist() == ["A dog barks.", "Barking"] and everything != fewer
    assert language.collect(given) == everything
    with pytest.raises(ValueError, match=r"people\.csv: no clip with several captions is left"):
        language.collect(given, ["Barking", "it rains"])
    with pytest.raises(FileNotFoundError, match=r"text_contrast: 'none\.csv': no such file"):
        language.read("none.csv")
    with pytest.raises(ValueError, match=r"people\.csv: no table of several captions a clip"):
        language.read(str(given[0]))


def test_captions_of_one_clip_find_each_other():
    rows = F.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    words = WordRows(InputRows(POOLED, rows), clips=np.array([[0, 2], [2, 2], [4, 2]]))
    term = Contrast({"captions": {"weight": 0.5}}, {"captions": words}, "text")
    value = term(torch.zeros(3, 4), np.arange(3), lambda batch: batch.values, lambda x: x, torch.Generator())

    def by_hand(order):  # NT-Xent of pairs (first, second) of each clip, both directions
        one, other = rows[0::2], rows[1::2]
        flip = torch.tensor(order)[:, None]
        a, b = torch.where(flip, other, one), torch.where(flip, one, other)
        scores, ids = a @ b.T / 0.07, torch.arange(3)
        return 0.5 * float(F.cross_entropy(scores, ids) + F.cross_entropy(scores.T, ids))

    possible = [by_hand([bool(n & 1), bool(n & 2), bool(n & 4)]) for n in range(8)]
    assert min(abs(float(value) - one) for one in possible) < 1e-5


def test_sounds_find_the_mean_of_the_names_that_their_posterior_draws():
    rows = torch.eye(4)
    posteriors = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]])
    words = WordRows(InputRows(POOLED, rows), posteriors=posteriors)
    term = Contrast({"labels": {"labels": 2, "weight": 2.0}}, {"labels": words}, "text")
    right = F.normalize(torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]), dim=1)
    drawing = torch.Generator().manual_seed(0)
    value, wrong = (
        term(audio, np.arange(2), lambda batch: batch.values, lambda x: x, drawing) for audio in (right, right.flip(0))
    )
    scores, ids = right @ right.T / 0.07, torch.arange(2)
    assert float(value) == pytest.approx(4 * float(F.cross_entropy(scores, ids)), abs=1e-5) and wrong > value + 10


@pytest.mark.parametrize("training", ["frozen", "finetuned"])
def test_a_run_learns_both_and_a_weight_changes_it(training, captions, corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(atr.encoders.AUDIO_ENCODERS, "mn04", lambda augment=None, dropout=None: MobileNet(0.1, augment))
    torch.manual_seed(0)
    torch.save(MobileNet(0.1).state_dict(), tmp_path / "mn04.pt")
    soundscapes = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
    config = RunConfig(
        corpus=soundscapes, audio_encoder="mn04", audio_weights=str(tmp_path / "mn04.pt"), training=training,
        audio_layers=2, augment=None, epochs=1, batch_size=16, embedding_dim=16,
        text_contrast={"captions": captions, "batch_size": 8}, label_contrast={"labels": 3},
    )  # fmt: skip
    runs = [
        fit(one, corpus, runs=tmp_path)
        for one in (
            config,
            config.replace(label_contrast={"labels": 3, "weight": 2.0}),
            config.replace(text_contrast=None),
        )
    ]
    losses = [run.history["loss"].iloc[0] for run in runs]
    assert len(set(losses)) == 3 and losses[1] > losses[0] > losses[2]
    assert len({run.address for run in runs}) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text_contrast": {"weight": 1.0}}, "text_contrast: .* it has batch_size, captions, weight"),
        ({"text_contrast": {"captions": "x.csv", "batch_size": 1}}, "text_contrast: 1 is too few"),
        ({"label_contrast": {"labels": 0}}, "label_contrast: 0 is too few"),
        ({"label_contrast": {"labels": 3, "weight": -1}}, "label_contrast: weight: -1 is not a positive number"),
        ({"label_contrast": {"labels": 3}, "chunk": 4}, "label_contrast: needs an embedding of each clip"),
    ],
)
def test_settings_that_say_nothing_are_errors(changes, words):
    with pytest.raises(ConfigError, match=words):
        RunConfig(**changes)


def test_an_encoder_without_a_classifier_is_an_error(corpus, tmp_path):
    soundscapes = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
    config = RunConfig(corpus=soundscapes, epochs=1, batch_size=16, label_contrast={"labels": 3})
    with pytest.raises(ValueError, match="compact has no classifier that was trained; take mn04 or mn10 with weights"):
        fit(config, corpus, runs=tmp_path)


# --- names alone: nothing trained


def test_a_sound_is_the_mean_of_names_by_the_roots_of_their_posteriors():
    names = torch.tensor([[2.0, 0], [0, 1], [0, -3]])  # of length 1: (1, 0), (0, 1), (0, -1), whose mean is (1/3, 0)
    head = model.LabelHead(nn.Sequential(), names)
    logits = torch.tensor([[0.0, 0.0, 0.0], [math.log(1 / 3), math.log(4 / 5 / (1 / 5)), -torch.inf]])
    roots = math.sqrt(0.25), math.sqrt(0.8)
    expected = [[math.sqrt(0.5) * (2 / 3 - 1 / 3 - 1 / 3), 0], [roots[0] * 2 / 3 - roots[1] / 3, roots[1]]]
    assert torch.allclose(head(logits), torch.tensor(expected), atol=1e-6)


@pytest.fixture
def labelled(tmp_path, monkeypatch):
    """Config of a run by names alone, with a small network of random weights."""
    monkeypatch.setitem(atr.encoders.AUDIO_ENCODERS, "mn04", lambda augment=None, dropout=None: MobileNet(0.1, augment))
    torch.manual_seed(0)
    torch.save(MobileNet(0.1).state_dict(), tmp_path / "mn04.pt")
    soundscapes = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
    return RunConfig(
        corpus=soundscapes, audio_encoder="mn04", audio_weights=str(tmp_path / "mn04.pt"), head="labels", epochs=0
    )


def test_a_run_by_names_alone_is_what_its_classifier_and_its_text_encoder_say(labelled, corpus, tmp_path):
    run = fit(labelled, corpus, runs=tmp_path)
    assert set(run.checkpoint) == {"audio_head.names"} and run.embeddings["audio"].shape == (16, 384)
    part = corpus.split("test")
    encoder = atr.encoders.build("mn04", tmp_path / "mn04.pt").eval()
    logits = encoder.logits(preparation.pool_features(labelled, part, tmp_path / "mn04.pt"))
    reader = text.TextEncoder(text.folder("minilm")).eval()
    ids = text.ids([text.normalise(f"the sound of {name}", "mei2022") for name in encoder.labels()], reader)
    with torch.no_grad():
        names = F.normalize(reader(ids.batch(np.arange(len(ids)))), dim=1)
        expected = F.normalize(logits.sigmoid().sqrt() @ (names - names.mean(0)), dim=1)
    assert torch.allclose(run.embeddings["audio"], expected, atol=1e-4)
    embedder = atr.Embedder(run)
    waveform, rate = part.read(part.clips["clip"].iloc[0])
    soundfile.write(tmp_path / "first.wav", waveform, rate)
    assert torch.allclose(embedder.sounds([tmp_path / "first.wav"])[0], run.embeddings["audio"][0], atol=1e-3)
    assert embedder.dim == 384 and embedder.sounds([]).shape == embedder.sentences([]).shape == (0, 384)
    caption = part.captions["caption"].iloc[0]
    assert torch.allclose(embedder.sentences([caption])[0], run.embeddings["text"][0], atol=1e-5)


@pytest.mark.parametrize("changes", [{"epochs": 1}, {"training": "finetuned"}])
def test_names_alone_have_nothing_to_train(labelled, changes):
    with pytest.raises(ConfigError, match="head: 'labels' has nothing to train; set training='frozen' and epochs=0"):
        labelled.replace(**changes)


def test_names_need_an_encoder_with_a_classifier(corpus, tmp_path, labelled):
    with pytest.raises(ValueError, match="compact has no classifier that was trained; take mn04 or mn10 with weights"):
        fit(labelled.replace(audio_encoder="compact", audio_weights="pretrained"), corpus, runs=tmp_path)
