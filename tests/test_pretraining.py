import csv

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from atr import encoders
from atr.corpora import load_corpus
from atr.corpora.corpus import Corpus, event_table
from atr.encoders import pretraining
from atr.system import places, store
from atr.system.packed import RaggedArray


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("ATR_HOME", str(tmp_path))
    return tmp_path


def packed(lengths, seed=0):
    """Log-mels of clips of so many frames, 64 bands, in dB."""
    data = np.random.default_rng(seed).normal(-40, 10, (sum(lengths), 64)).astype(np.float32)
    return RaggedArray(data, np.cumsum([0, *lengths]))


def test_labels_are_the_events_of_each_clip(corpus):
    events = sorted(corpus.events["event"].unique())
    table = pretraining.labels(corpus, events)
    assert table.shape == (len(corpus), len(events)) and set(table.unique().tolist()) == {0.0, 1.0}
    for row, clip in enumerate(corpus.clips["clip"]):
        heard = {events[column] for column in table[row].nonzero()[:, 0]}
        assert heard == set(corpus.events.loc[corpus.events["clip"] == clip, "event"])


def test_weights_are_made_once_and_load(corpus, monkeypatch):
    first = pretraining.weights(corpus, "compact", quiet=True)

    def fail(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(pretraining, "train", fail)
    assert pretraining.weights(corpus, "compact", quiet=True) == first
    assert first.is_relative_to(places.home())
    encoder, fresh = encoders.build("compact", first), encoders.build("compact")
    assert encoder.bn0.num_batches_tracked == 2 * (48 // 32)  # two epochs of one batch
    assert not torch.allclose(encoder.stem[0].weight, fresh.stem[0].weight)
    with safe_open(first, "pt") as file:
        events = file.metadata()["events"].split(", ")
    assert events == sorted(corpus.split("train").events["event"].unique())


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(corpus, monkeypatch, home):
    def tensors():
        return load_file(pretraining.weights(corpus, "compact", epochs=1, seed=seed, quiet=True))

    seed = 1
    first = tensors()
    monkeypatch.setenv("ATR_HOME", str(home / "other"))
    torch.manual_seed(123)  # what was drawn before does not matter
    again = tensors()
    assert all(torch.equal(first[name], again[name]) for name in first)
    seed = 2
    assert not torch.equal(first["stem.0.weight"], tensors()["stem.0.weight"])


def test_pretraining_leaves_random_numbers_and_threads_alone(corpus, home):
    torch.manual_seed(5)
    expected, number = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(5)
    pretraining.weights(corpus, "compact", epochs=1, quiet=True)
    assert torch.equal(torch.rand(3), expected) and torch.get_num_threads() == number


def test_what_training_depends_on_is_in_the_key_and_the_other_splits_are_not(corpus, monkeypatch, home):
    built = []

    def cached(kind, key, build):
        built.append(key)
        return home

    monkeypatch.setattr(store, "cached_folder", cached)

    def key(corpus=corpus, name="compact", **options):
        pretraining.weights(corpus, name, **options)
        return built[-1]

    other_test = load_corpus("soundscapes", train=48, validation=12, test=17, duration=4.0)
    assert key() == key() == key(corpus=other_test) == key(epochs=2)  # ATR_PRETRAINING_EPOCHS is 2 in these tests
    train, fewer = corpus.split("train"), load_corpus("soundscapes", train=47, validation=12, test=16, duration=4.0)
    relabelled = Corpus(train.name, train.clips, train.captions, train.events.iloc[1:], train.read)
    events = [train, fewer, relabelled]
    keys = [*map(key, events), key(name="compact_resnet"), key(seed=1), key(epochs=3)]
    assert keys[0] == key() and len(set(keys)) == len(keys)
    monkeypatch.delenv("ATR_PRETRAINING_EPOCHS")
    assert key() == key(epochs=pretraining.EPOCHS)


def test_training_learns_to_tag():
    """Clips whose lower bands are loud against clips whose upper bands are."""
    features = packed([40] * 64)
    targets = torch.zeros(64, 2)
    for row in range(64):
        targets[row, row % 2] = 1
        features[row][:, 32 * (row % 2) : 32 * (row % 2) + 32] += 20
    torch.manual_seed(0)
    encoder = encoders.build("compact", augment="specaugment")

    def separation():
        """Squared distance of the two kinds' means over the variance within a kind."""
        batch, lengths = features.batch(np.arange(64))
        with torch.no_grad():
            pooled = encoder.eval().pool(*encoder.encode(batch.transpose(1, 2), lengths))
        even, odd = pooled[::2], pooled[1::2]
        return float((even.mean(0) - odd.mean(0)).square().mean() / (even.var(0) + odd.var(0)).mean())

    before = separation()
    pretraining.train(encoder, features, targets, 6, 0, "test", True)
    assert not encoder.training and separation() > 3 * before, (before, separation())


def test_padding_counts_as_silence_in_a_mixture(monkeypatch):
    seen = []
    encoder = encoders.build("compact")
    encode = encoder.encode
    monkeypatch.setattr(
        encoder, "encode", lambda batch, lengths: (seen.append((batch, lengths)), encode(batch, lengths))[1]
    )
    pretraining.train(encoder, packed([80, 30] * 16), torch.ones(32, 1), 1, 0, "test", True)
    (batch, lengths), *_ = seen
    assert set(lengths.tolist()) == {30, 80}
    assert -85 < batch[:, :, 30:].mean() < -55  # half the clips are over, the others go on at about -40 dB


def test_fewer_clips_than_a_batch_are_enough():
    encoder = encoders.build("compact")
    pretraining.train(encoder, packed([30] * 3), torch.ones(3, 1), 2, 0, "test", True)
    assert encoder.bn0.num_batches_tracked == 2 and all(p.isfinite().all() for p in encoder.parameters())


def test_a_corpus_that_knows_no_events_is_an_error_that_says_what_to_do():
    clips = pd.DataFrame({"clip": ["a"], "split": "train", "duration": 1.0, "digest": "0a", "description": ""})
    corpus = Corpus("own", clips, pd.DataFrame({"clip": ["a"], "caption": ["a dog"]}), event_table(), lambda clip: None)
    with pytest.raises(ValueError, match="own: knows no sound events to pre-train compact on; set audio_weights"):
        pretraining.weights(corpus, "compact")


def test_names_of_sounds_with_commas_come_back_from_one_line():
    names = ["bell", "car horn", "Speech, human", 'a "quoted" one']
    (found,) = csv.reader([pretraining.name_line(names)], skipinitialspace=True)
    assert found == names and pretraining.name_line(names[:2]) == "bell, car horn"
