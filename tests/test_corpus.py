import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from atr import encoders
from atr.corpora import LOADERS, load_corpus
from atr.corpora.containers import AudioError
from atr.corpora.corpus import Corpus, CorpusError, alike, event_table
from atr.encoders import inputs, pretraining

RATE = 1000


def read(clip):
    return np.full(2 * RATE, 0.1, np.float32), RATE


def corpus(**changes):
    """Five clips: three to train on, one to validate on, one to test on; the first has two captions."""
    clips = pd.DataFrame(
        {
            "clip": ["a", "b", "c", "d", "e"],
            "split": ["train", "train", "train", "validation", "test"],
            "duration": [2.0] * 5,
            "digest": ["0a", "0b", "0c", "0d", "0e"],
            "description": ["rain", "", "rain", "", ""],
        }
    )
    captions = pd.DataFrame(
        {"clip": list("aabcde"), "caption": ["rain", "it rains", "a dog", "rain", "wind", "a bell"]}
    )
    events = pd.DataFrame({"clip": ["a"], "event": ["rain"], "onset": [0.0], "offset": [2.0]})
    return Corpus(**{"name": "tiny", "clips": clips, "captions": captions, "events": events, "read": read} | changes)


def changed(table, row, column, value):
    tables = {name: getattr(corpus(), name).astype(object) for name in ("clips", "captions", "events")}
    tables[table].loc[row, column] = value
    return corpus(**tables)


def test_a_sound_corpus_has_no_problems_and_checks_as_itself():
    tiny = corpus()
    assert tiny.problems(audio=True).empty and tiny.check(audio=True) is tiny and len(tiny) == 5
    assert list(tiny.problems().columns) == ["where", "problem", "mend"]


def test_a_corpus_without_known_events_is_sound():
    assert corpus(events=event_table()).problems().empty


# table, row, column, value → where, what
FAULTS = [
    ("clips", 0, "clip", "b", "clip 'b'", "listed 2 times"),
    ("clips", 0, "clip", "d", "clip 'd'", "in 2 splits: train, validation"),
    ("clips", 0, "clip", None, "clips, row 0", "no clip id"),
    ("clips", 0, "clip", 7, "clips, row 0", "no clip id"),
    ("clips", 0, "split", "eval", "clip 'a'", "unknown split 'eval'"),
    ("clips", 0, "duration", 0.0, "clip 'a'", "duration 0.0"),
    ("clips", 0, "duration", np.nan, "clip 'a'", "duration nan"),
    ("clips", 0, "duration", "long", "clip 'a'", "duration 'long'"),
    ("clips", 0, "digest", "xyz", "clip 'a'", "digest 'xyz'"),
    ("clips", 0, "description", np.nan, "clip 'a'", "description nan"),
    ("captions", 0, "clip", "z", "captions, row 0 (clip 'z')", "unknown clip"),
    ("captions", 2, "clip", "a", "clip 'b'", "no caption"),
    ("captions", 0, "caption", "  ", "captions, row 0 (clip 'a')", "empty caption"),
    ("captions", 0, "caption", np.nan, "captions, row 0 (clip 'a')", "empty caption"),
    ("captions", 1, "caption", "rain", "captions, row 1 (clip 'a')", "caption twice on one clip: 'rain'"),
    ("events", 0, "clip", "z", "events, row 0 (clip 'z')", "unknown clip"),
    ("events", 0, "event", "", "events, row 0 (clip 'a')", "without a name"),
    ("events", 0, "onset", -1.0, "events, row 0 (clip 'a')", "from -1.0 to 2.0 s"),
    ("events", 0, "onset", 2.0, "events, row 0 (clip 'a')", "from 2.0 to 2.0 s"),
    ("events", 0, "offset", 2.5, "events, row 0 (clip 'a')", "to 2.5 s in a clip of 2.00 s"),
    ("events", 0, "offset", np.nan, "events, row 0 (clip 'a')", "to nan s"),
]


@pytest.mark.parametrize("table, row, column, value, where, problem", FAULTS)
def test_each_fault_is_listed_with_its_place(table, row, column, value, where, problem):
    found = changed(table, row, column, value).problems()
    assert any(line.where == where and problem in line.problem and line.mend for line in found.itertuples()), found


def test_all_faults_are_listed_at_once_and_shown_by_check():
    faulty = changed("clips", 0, "duration", -1.0)
    faulty = replace(faulty, captions=faulty.captions.assign(caption=""))
    with pytest.raises(CorpusError) as caught:
        faulty.check()
    assert len(caught.value.problems) == 1 + 6
    assert "'tiny' has 7 problem(s)" in str(caught.value) and "duration -1.0" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_long_list_is_cut_in_the_message_but_not_in_the_table():
    captions = pd.concat([corpus().captions] * 20, ignore_index=True)
    with pytest.raises(CorpusError, match="and 64 more") as caught:
        corpus(captions=captions).check()
    assert len(caught.value.problems) == 6 * 19


def test_missing_and_doubled_columns_are_listed():
    clips, captions = corpus().clips.drop(columns="digest"), corpus().captions[["clip", "caption", "clip"]]
    found = corpus(clips=clips, captions=captions).problems()
    assert found["where"].tolist() == ["table clips", "table captions"]
    assert "'digest'" in found["problem"][0] and "'clip' is there 2 times" in found["problem"][1]


def test_a_corpus_needs_something_to_train_on():
    clips = corpus().clips.assign(split="test")
    assert "no clip in the split 'train'" in corpus(clips=clips).problems()["problem"].tolist()


def test_one_to_test_on_alone_does_not():
    clips = corpus().clips.assign(split="test")
    assert corpus(clips=clips, test_only=True).check().test_only
    assert (
        "no clip in the split 'test'"
        in corpus(clips=clips.assign(split="train"), test_only=True).problems()["problem"].tolist()
    )


def test_what_a_loader_found_is_listed_too():
    found = (("table.csv, line 3", "empty caption", "write one"),)
    assert corpus(loading_problems=found).problems()["where"].tolist() == ["table.csv, line 3"]
    assert len(corpus(loading_problems=found).split("train").problems()) == 1


garbage = st.one_of(
    st.none(), st.floats(), st.text(max_size=3), st.integers(), st.lists(st.none(), max_size=1), st.just(pd.NA)
)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(data=st.data())
def test_validation_lists_garbage_and_never_raises(data):
    sound = corpus()
    tables = {name: getattr(sound, name).astype(object) for name in ("clips", "captions", "events")}
    name = data.draw(st.sampled_from(sorted(tables)))
    column = data.draw(st.sampled_from(list(tables[name].columns)))
    values = data.draw(st.lists(garbage, min_size=len(tables[name]), max_size=len(tables[name])))
    tables[name][column] = pd.Series(values, dtype=object)
    if any(not isinstance(value, (str, int, float)) for value in values):
        assert len(corpus(**tables).problems(audio=True))
    else:
        corpus(**tables).problems(audio=True)


def faulty_read(clip):
    match clip:
        case "a":
            raise AudioError("a.wav", "silent", "remove it")
        case "b":
            raise KeyError(clip)
        case "c":
            return np.array([np.nan], np.float32), RATE
        case "d":
            return np.zeros(0, np.float32), RATE
    return np.ones(RATE, np.float32), RATE


def test_reading_the_audio_finds_every_clip_that_cannot_be_used():
    assert corpus(read=faulty_read).problems().empty
    found = corpus(read=faulty_read).problems(audio=True)
    assert found["where"].tolist() == ["a.wav", "clip 'b'", "clip 'c'", "clip 'd'", "clip 'e'"]
    assert found["problem"][4] == "1.00 s of audio, 2.00 s in the table"


def test_a_split_holds_its_own_rows_in_order():
    train = corpus().split("train")
    assert train.clips["clip"].tolist() == ["a", "b", "c"] and train.captions["clip"].tolist() == list("aabc")
    assert len(train.events) == 1 and len(corpus().split("test").events) == 0
    with pytest.raises(ValueError, match="unknown split 'eval'; known: train, validation, test"):
        corpus().split("eval")


def test_relevance_is_an_index_where_no_descriptions_coincide():
    tiny = corpus(clips=corpus().clips.assign(description=""))
    np.testing.assert_array_equal(tiny.split("train").relevance(), [0, 0, 1, 2])


def test_clips_described_alike_are_relevant_to_each_other():
    expected = [[1, 0, 1], [1, 0, 1], [0, 1, 0], [1, 0, 1]]
    np.testing.assert_array_equal(corpus().split("train").relevance(), np.array(expected, bool))


def test_relevance_is_refused_over_several_splits_and_for_unknown_clips():
    with pytest.raises(ValueError, match="within one split"):
        corpus().relevance()
    with pytest.raises(ValueError, match="unknown clips"):
        replace(corpus().split("train"), captions=corpus().captions).relevance()


def test_the_fingerprint_is_of_the_content_and_not_of_name_source_or_dtype():
    same = corpus(name="other", source="elsewhere", clips=corpus().clips.astype(object))
    assert same.fingerprint == corpus().fingerprint
    for table, row, column, value in [
        ("clips", 0, "digest", "ff"),
        ("clips", 0, "description", "snow"),
        ("captions", 0, "caption", "drizzle"),
        ("events", 0, "offset", 1.0),
    ]:
        assert changed(table, row, column, value).fingerprint != corpus().fingerprint
    assert corpus(captions=corpus().captions.iloc[::-1]).fingerprint != corpus().fingerprint


def test_the_audio_fingerprint_depends_on_one_splits_clips_and_digests_alone():
    before = corpus().audio_fingerprint("train")
    assert changed("captions", 0, "caption", "drizzle").audio_fingerprint("train") == before
    assert changed("clips", 4, "digest", "ff").audio_fingerprint("train") == before
    assert changed("clips", 0, "digest", "ff").audio_fingerprint("train") != before
    assert corpus(clips=corpus().clips.iloc[::-1]).audio_fingerprint("train") != before


def test_corpora_are_loaded_by_name():
    assert set(LOADERS) == {*"soundscapes clipfolder csv clotho audiocaps audiocaps2 wavcaps people".split()}
    assert len(load_corpus("soundscapes", train=4, validation=2, test=2)) == 8


@pytest.mark.parametrize(
    "name, root, options, message",
    [
        ("clotho2", None, {}, "unknown corpus 'clotho2'; known: clotho, audiocaps, audiocaps2, csv"),
        ("csv", None, {}, "corpus 'csv' lies in a folder: give root=<folder>"),
        ("clipfolder", None, {}, "corpus 'clipfolder' lies in a folder"),
        ("soundscapes", "here", {}, "takes no root"),
        ("csv", ".", {"tabel": "x"}, "unknown option(s) tabel; known: table, audio"),
    ],
)
def test_what_a_corpus_does_not_know_is_an_error_that_says_what_it_knows(name, root, options, message):
    with pytest.raises(ValueError) as caught:
        load_corpus(name, root, **options)
    assert message in str(caught.value)


def test_spaces_belong_to_a_clips_name():
    assert changed("clips", 0, "clip", " b").problems()["problem"].str.contains("listed").sum() == 0


def test_clips_held_out_validate_and_all_others_train():
    whole = load_corpus("soundscapes", train=10, validation=4, test=6, duration=4.0)
    held = load_corpus("soundscapes", train=10, validation=4, test=6, duration=4.0, hold_out=3)
    assert held.clips["split"].value_counts().to_dict() == {"train": 17, "validation": 3}
    assert held.clips["clip"].tolist() == whole.clips["clip"].tolist() and held.captions.equals(whole.captions)
    assert held.clips["split"].equals(whole.hold_out(3).clips["split"])  # drawn once
    assert not held.clips["split"].equals(whole.hold_out(3, seed=1).clips["split"])
    assert held.fingerprint != whole.fingerprint
    listened = whole.split("train").clips["clip"]
    for count in (3, 10):  # all from outside of what was for training
        few = whole.hold_out(count).split("validation").clips["clip"]
        assert len(few) == count and not set(few) & set(listened)
    many = whole.hold_out(12)  # more than there are outside
    assert many.pretraining_clips == set(listened) - set(many.split("validation").clips["clip"])
    for count in (0, 20, -1):
        with pytest.raises(ValueError, match=f"hold_out is {count}; hold out 1 to 19 of the 20 clips"):
            whole.hold_out(count)


def test_an_encoder_of_its_own_hears_the_same_clips_with_and_without_some_held_out():
    whole = load_corpus("soundscapes", train=10, validation=4, test=6, duration=4.0)
    held = whole.hold_out(3)
    assert held.to_pretrain_on().clips["clip"].tolist() == whole.split("train").clips["clip"].tolist()
    assert pretraining.location(held, "compact", epochs=2) == pretraining.location(whole, "compact", epochs=2)
    other = whole.hold_out(12)
    assert pretraining.location(other, "compact", epochs=2) != pretraining.location(whole, "compact", epochs=2)
    assert not set(other.to_pretrain_on().clips["clip"]) & set(other.split("validation").clips["clip"])


def test_kinds_are_names_whatever_stands_in_them():
    events = [("x", "car horn", 0, 1), ("x", "bell", 0, 1), ("x", "car horn", 1, 2), ("y", "Speech, human", 0, 1)]
    table = pd.DataFrame(events, columns=["clip", "event", "onset", "offset"])
    assert corpus(events=table).kinds().to_dict() == {"x": ("bell", "car horn"), "y": ("Speech, human",)}


def test_alike_is_sparse_where_it_is_large(monkeypatch):
    captions, clips = np.array([2, 0, 2, 5]), np.array([0, 2, 1, 2, 0])
    whole = alike(captions, clips)
    np.testing.assert_array_equal(whole, captions[:, None] == clips)
    monkeypatch.setattr("atr.corpora.corpus.DENSE", 20)
    assert sparse.issparse(alike(captions, clips)) and not sparse.issparse(alike(captions[1:], clips))
    np.testing.assert_array_equal(alike(captions, clips).toarray(), whole)


def test_clips_held_out_have_no_copy_among_those_to_train_on():
    digests = ["00"] * 3 + ["0d", "0e"]
    for seed in range(5):
        held = corpus(clips=corpus().clips.assign(digest=digests)).hold_out(2, seed).clips
        assert set(held.loc[held["split"] == "validation", "clip"]) == {"d", "e"}


@pytest.mark.parametrize("text", ["rain \ud800", "rain \0"])
def test_a_caption_with_what_is_no_text_is_a_problem(text):
    found = changed("captions", 0, "caption", text).problems()
    assert (
        found["where"].tolist() == ["captions, row 0 (clip 'a')"]
        and "a character that is no text" in found["problem"][0]
    )


def test_a_reader_that_gives_integers_as_floats_is_found_by_the_check():
    problems = corpus(read=lambda clip: (np.full(2 * RATE, 16_384, np.float32), RATE)).problems(audio=True)
    assert len(problems) == 5 and set(problems["problem"]) == {"samples up to 16,384, where 1 is full scale"}


@pytest.mark.parametrize("waveform", [np.full(100, 9_000, np.int16), np.full(100, 9_000, np.float32)])
def test_a_waveform_out_of_range_is_not_clipped_in_silence(waveform):
    with pytest.raises(ValueError, match="where 1 is full scale; give floats in the range -1 to 1"):
        inputs.quantise(waveform, RATE, RATE)


@pytest.mark.parametrize("name", encoders.AUDIO_ENCODERS)
def test_every_encoder_hears_a_clip_of_a_few_samples(name):
    torch.manual_seed(0)
    encoder = encoders.build(name).eval()
    waveform = inputs.quantise(np.full(20, 0.1, np.float32), 16_000, encoder.sample_rate)
    batch = torch.from_numpy(waveform)[None].float() / 32767
    with torch.inference_mode():
        frames, mask = encoder(batch, torch.tensor([len(waveform)]))
        assert mask.any() and encoder.pool(frames, mask).isfinite().all()
