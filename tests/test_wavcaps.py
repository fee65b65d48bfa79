import json

import dataset_layouts
import pytest

from atr.corpora import load_corpus, wavcaps
from atr.corpora.corpus import CorpusError
from atr.corpora.files import coverage

IDS = {
    "AudioSet_SL": ["Yb0RFKhbpFJA.wav", "Yr1nicOVtvkQ.wav"],
    "BBC_Sound_Effects": ["NHU0501"],
    "FreeSound": ["17", "117790", "99"],
    "SoundBible": ["17"],
}
BLACKLIST = {"AudioSet": ["Yr1nicOVtvkQ.wav"], "FreeSound": ["117790"]}
KEPT = ["AudioSet_SL/Yb0RFKhbpFJA", "BBC_Sound_Effects/NHU0501", "FreeSound/17", "FreeSound/99", "SoundBible/17"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ATR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def lists(folder):
    """The lists as they are published: json_files/<source>/…, and the blacklist."""
    for source, ids in IDS.items():
        entries = [{"id": one, "caption": f"A sound, {one}", "duration": 0.2, "author": "x"} for one in ids]
        path = folder / "json_files" / source / wavcaps.LISTS[source]
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"num_captions_per_audio": 1, "data": entries}))
    path = folder / "json_files" / "blacklist" / wavcaps.BLACKLIST
    path.parent.mkdir()
    path.write_text(json.dumps(BLACKLIST))
    return folder


def sounds(folder, suffix="_flac"):
    """The audio as the archives hold it: deep folders named after the sources."""
    number = 0
    for source, ids in IDS.items():
        for one in ids:
            path = folder / "mnt" / "waveforms" / f"{source}{suffix}" / f"{one.removesuffix('.wav')}.flac"
            dataset_layouts.sound(path, number, seconds=0.2, rate=32000)
            number += 1
    return folder


@pytest.fixture
def root(tmp_path):
    return sounds(lists(tmp_path / "wavcaps"))


def test_sources_are_joined_and_ids_that_coincide_stay_apart(root):
    corpus = load_corpus("wavcaps", root)
    assert corpus.clips["clip"].tolist() == KEPT and set(corpus.clips["split"]) == {"train"}
    assert corpus.captions["caption"].tolist()[:2] == ["A sound, Yb0RFKhbpFJA.wav", "A sound, NHU0501"]
    assert corpus.clips["digest"].nunique() == 5 and corpus.problems(audio=True).empty
    assert coverage(corpus).values.tolist() == [["train", 5, 5, 403050]]


def test_clips_of_clotho_and_audiocaps_are_left_out_unless_asked_for(root):
    everything = load_corpus("wavcaps", root, exclude=False).clips["clip"].tolist()
    assert sorted(set(everything) - set(KEPT)) == ["AudioSet_SL/Yr1nicOVtvkQ", "FreeSound/117790"]


def test_sources_and_lengths_can_be_chosen(root):
    assert load_corpus("wavcaps", root, sources=["SoundBible"]).clips["clip"].tolist() == ["SoundBible/17"]
    with pytest.raises(CorpusError, match="found 'json_files/', 'mnt/'"):
        load_corpus("wavcaps", root, longest=0.1)
    with pytest.raises(ValueError, match="unknown source.s. Freesound; known: AudioSet_SL, BBC"):
        load_corpus("wavcaps", root, sources=["Freesound"])


def test_audio_that_is_missing_is_left_out_and_counted(root):
    next(root.rglob("NHU0501.flac")).unlink()
    assert coverage(load_corpus("wavcaps", root)).values.tolist() == [["train", 4, 5, 403050]]


def test_files_that_are_not_as_long_as_their_list_says_are_named(root):
    path = next(root.rglob("99.flac"))
    dataset_layouts.sound(path, 9, seconds=2, rate=32000)
    with pytest.warns(UserWarning, match="1 of 5 files of wavcaps are too long or short"):
        corpus = load_corpus("wavcaps", root)
    assert corpus.problems(audio=True).to_numpy().tolist() == [
        [str(path), "2.00 s long where wavcaps states 0.20 s", "fetch it again, or check that it is so"]
    ]


def test_files_are_found_by_names_that_are_spelt_alike_and_two_of_one_clip_are_a_problem(root):
    path = next(root.rglob("NHU0501.flac"))
    path.rename(path.with_name(" nhu0501.FLAC"))
    corpus = load_corpus("wavcaps", root)
    assert corpus.clips["clip"].tolist() == KEPT
    dataset_layouts.sound(path.with_name("NHU0501 .wav"), 9, seconds=0.2)
    with pytest.raises(CorpusError, match="clip 'BBC_Sound_Effects/NHU0501': its file could be .*, '"):
        load_corpus("wavcaps", root)


def test_lists_may_lie_in_the_home_and_audio_elsewhere(home, tmp_path):
    lists(home / "wavcaps")
    sounds(tmp_path / "audio", suffix="")
    assert load_corpus("wavcaps", tmp_path / "audio").clips["clip"].tolist() == KEPT


def test_a_folder_without_lists_is_refused_and_a_damaged_list_is_an_error(root, tmp_path):
    with pytest.raises(CorpusError, match="looked for blacklist_exclude_all_ac.json; as_final.json, .* found 'mnt/'"):
        load_corpus("wavcaps", sounds(tmp_path / "audio"))
    path = root / "json_files" / "SoundBible" / "sb_final.json"
    path.write_text('{"data": [{"id": 3, "caption": "x", "duration": 1}]}')
    with pytest.raises(CorpusError, match="sb_final.json: no list of id, caption and duration .*; run: atr"):
        load_corpus("wavcaps", root)
