"""Soundscapes: a pure function of (seed, split, index), and audio in which the table's events can be found."""

import pickle

import numpy as np
import pytest
from scipy.signal import stft

from atr import load_corpus
from atr.corpora.corpus import CorpusError
from atr.corpora.scenes import soundscapes
from atr.corpora.scenes.synthesis import SYNTHESISERS, synthesise
from atr.corpora.scenes.waveforms import RATE

SIZES = {"train": 30, "validation": 10, "test": 20}


@pytest.fixture(scope="module")
def corpus():
    return soundscapes.load(**SIZES)


def test_the_corpus_is_sound(corpus):
    assert corpus.check() is corpus
    assert corpus.clips["split"].value_counts().to_dict() == SIZES
    assert (corpus.captions.groupby("clip").size() == 5).all()
    for split in SIZES:
        assert corpus.split(split).clips["description"].is_unique


def test_its_fingerprint_by_which_runs_are_addressed_stays():
    corpus = load_corpus("soundscapes", train=48, validation=12, test=24, duration=4.0)
    assert corpus.fingerprint.startswith("7d6b45045f4317a0")


def test_asking_for_more_changes_nothing_earlier(corpus):
    larger = soundscapes.load(train=60, validation=20, test=40)
    for table in ("clips", "captions", "events"):
        mine, theirs = getattr(corpus, table), getattr(larger, table)
        assert mine.equals(theirs[theirs["clip"].isin(mine["clip"])].reset_index(drop=True))
    np.testing.assert_array_equal(corpus.read("test-00003")[0], larger.read("test-00003")[0])


def test_audio_is_pure_and_the_reader_travels(corpus):
    reader = pickle.loads(pickle.dumps(corpus.read))
    for clip in ("train-00000", "test-00007"):
        np.testing.assert_array_equal(reader(clip)[0], corpus.read(clip)[0])


def test_seed_and_events_change_scenes_audio_and_digests(corpus):
    other = soundscapes.load(seed=1, **SIZES)
    assert other.clips["description"].tolist() != corpus.clips["description"].tolist()
    assert not set(other.clips["digest"]) & set(corpus.clips["digest"])
    few = soundscapes.load(seed=1, events=["rain", "bell", "frog", "saw", "horn", "wind"], **SIZES)
    assert set(few.events["event"]) == {"rain", "bell", "frog", "saw", "horn", "wind"}


def test_audio_is_finite_audible_and_below_full_scale(corpus):
    for clip in corpus.clips["clip"]:
        wave, rate = corpus.read(clip)
        assert rate == RATE and wave.shape == (10 * RATE,) and wave.dtype == np.float32
        assert np.isfinite(wave).all() and 0.01 < np.abs(wave).max() < 1


def test_every_event_stands_out_between_onset_and_offset():
    """In some frequency band an event in a sequence or alone is well above what is heard while nothing happens."""
    corpus = soundscapes.load(train=150, validation=0, test=0)
    plain = corpus.clips[~corpus.clips["description"].str.contains("over|while")]["clip"]
    checked = set()
    for clip in plain:
        events = corpus.events[corpus.events["clip"] == clip]
        wave, _ = corpus.read(clip)
        _, times, spectrum = stft(wave, RATE, nperseg=512)
        power = np.abs(spectrum[1:].reshape(16, 16, -1)).max(axis=1)
        inside = {}
        for event, spans in events.groupby("event"):
            inside[event] = np.any(
                [(times >= a) & (times <= b) for a, b in zip(spans["onset"], spans["offset"], strict=True)], axis=0
            )
        silent = ~np.any(list(inside.values()), axis=0)
        for event, frames in inside.items():
            rise = np.percentile(power[:, frames], 90, axis=1) / np.percentile(power[:, silent], 25, axis=1)
            assert rise.max() > 2, (clip, event)
            checked.add(event)
    assert len(checked) > 20


@pytest.mark.parametrize("name", SYNTHESISERS)
def test_each_sound_has_its_length_and_its_own_timbre(name):
    shortest = soundscapes.EVENTS[name][0].seconds[0]
    for seconds in (shortest, 2.5):
        first, second = (synthesise(name, np.random.default_rng(k), seconds) for k in (0, 1))
        assert first.dtype == np.float32 and first.shape == (int(seconds * RATE),)
        assert np.isfinite(first).all() and first.std() > 0
        assert not np.allclose(first, second)


@pytest.mark.parametrize("name", [name for name, (kind, _) in soundscapes.EVENTS.items() if kind.pitched])
def test_a_higher_pitch_moves_the_spectrum_up(name):
    def centre(pitch: float) -> float:
        """Mean logarithm of frequency, weighted by amplitude, over a few timbres."""
        waves = [synthesise(name, np.random.default_rng(k), 1.0, pitch) for k in range(6)]
        spectra = [np.abs(np.fft.rfft(wave))[20:] for wave in waves]
        return float(np.mean([np.average(np.log2(np.arange(20, 20 + len(s))), weights=s) for s in spectra]))

    assert centre(0.65) < centre(1.0) < centre(1.55)


def test_every_event_has_a_sound_and_words():
    assert set(soundscapes.EVENTS) == set(SYNTHESISERS)
    for kind, words in soundscapes.EVENTS.values():
        assert len(words.phrases) >= 3 and all(phrase.count("|") == 2 for phrase in words.phrases)
        assert not kind.pitched or any("*" in phrase for phrase in words.phrases)


def test_errors_name_the_mend():
    with pytest.raises(ValueError, match="unknown events .*trumpet.*known: rain, wind"):
        soundscapes.load(events=["trumpet"])
    with pytest.raises(ValueError, match="give 4 to 30 s"):
        soundscapes.load(duration=1.0)
    with pytest.raises(ValueError, match="train=-1"):
        soundscapes.load(train=-1)
    with pytest.raises(CorpusError, match="use more events"):
        soundscapes.load(events=["rain"], train=20)
    with pytest.raises(KeyError, match="no clip 'test-9'"):
        soundscapes.load(train=1, validation=0, test=0).read("test-9")


def test_unseen_scenes_combine_what_no_training_scene_does_and_leave_the_others_as_they_are():
    sizes = {"train": 40, "validation": 5, "test": 10, "duration": 4.0}
    usual, unseen = load_corpus("soundscapes", **sizes), load_corpus("soundscapes", **sizes, unseen=True)
    kinds = unseen.kinds()
    seen = [set(kinds[clip]) for clip in unseen.split("train").clips["clip"]]
    tested = [set(kinds[clip]) for clip in unseen.split("test").clips["clip"]]
    assert len(tested) == 10 and not any(kind <= other for kind in tested for other in seen)
    for split in ("train", "validation"):
        assert unseen.split(split).clips.equals(usual.split(split).clips)
    assert unseen.fingerprint != usual.fingerprint and "occur in none to train on" in unseen.source
