"""Clip-folder scenes: real recordings mixed, folds kept apart, and errors that say what to mend."""

import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from atr.corpora.corpus import CorpusError
from atr.corpora.scenes import clipfolder

ESC10 = Path(__file__).parents[2] / "shared" / "data" / "esc10"
SIZES = {"train": 20, "validation": 8, "test": 12}
CLASSES = {"dog_bark": (900.0, 0.5), "sea_waves": (300.0, 4.0), "odd_thing": (2000.0, 3.0)}  # Hz, seconds


def write_sound(path: Path, frequency: float, seconds: float, seed: int, rate: int = 22_050) -> None:
    """A sound of so many seconds, padded with half a second of silence on both sides."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    wave = 0.5 * np.sin(2 * np.pi * frequency * rng.uniform(0.9, 1.1) * time) + 0.05 * rng.standard_normal(len(time))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.pad(wave, rate // 2), rate)


def make_folder(root: Path, folds: bool = True, each: int = 1) -> Path:
    for k, (name, (frequency, seconds)) in enumerate(CLASSES.items()):
        for fold in range(1, 6):
            for take in range(each):
                file = f"{fold}-{k}{take}.wav" if folds else f"sound{fold}{take}.wav"
                write_sound(root / name / file, frequency, seconds, 100 * k + 10 * fold + take)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def corpus(root):
    return clipfolder.load(root, **SIZES)


def test_the_corpus_is_sound(corpus):
    corpus.check()
    assert corpus.clips["split"].value_counts().to_dict() == SIZES
    assert set(corpus.events["event"]) == set(CLASSES)
    assert "train 20 scenes of 9 recordings" in corpus.source and "licence: unknown" in corpus.source


def test_a_difficulty_that_configs_of_before_name_changes_nothing(corpus, root):
    same = clipfolder.load(root, difficulty="plain", **SIZES)
    assert same.clips.equals(corpus.clips) and same.captions.equals(corpus.captions)
    with pytest.raises(ValueError, match="difficulty 'hard'; all scenes are 'plain': leave it out"):
        clipfolder.load(root, difficulty="hard", **SIZES)


def test_recordings_of_a_fold_stay_in_one_split(corpus):
    used = {split: set() for split in SIZES}
    for clip, (_, scene) in corpus.read.scenes.items():
        used[clip.split("-")[0]] |= {Path(part.source).name[0] for part in scene.parts}
    assert used == {"train": {"1", "2", "3"}, "validation": {"4"}, "test": {"5"}}


def test_audio_has_its_events_where_the_table_says(corpus):
    for clip in corpus.clips["clip"]:
        wave, rate = corpus.read(clip)
        assert rate == 16_000 and wave.shape == (160_000,) and wave.dtype == np.float32
        assert np.isfinite(wave).all() and 0.01 < np.abs(wave).max() < 1
        events = corpus.events[corpus.events["clip"] == clip]
        inside = np.zeros(len(wave), bool)
        for row in events.itertuples():
            inside[int(row.onset * rate) : int(row.offset * rate)] = True
        if not inside.all():
            assert wave[inside].std() > 2 * np.percentile(np.abs(wave[~inside]), 25), clip


def test_silent_ends_are_cut(corpus):
    """The files begin and end with half a second of silence, which no onset or offset includes."""
    once = corpus.events[corpus.events["event"] == "dog_bark"]
    assert (once["offset"] - once["onset"]).to_numpy() == pytest.approx(0.5, abs=0.02)


def test_only_short_sounds_are_repeated_and_only_long_ones_lie_under_others(corpus):
    for description in corpus.clips["description"]:
        assert "sea_waves twice" not in description and "over dog_bark" not in description


def test_captions_use_words_not_folder_names(corpus):
    text = " ".join(corpus.captions["caption"]).lower()
    assert "_" not in text
    assert "odd thing" in text and "bark" in text and "waves" in text


def test_more_scenes_change_nothing_earlier_and_the_reader_travels(corpus, root):
    larger = clipfolder.load(root, train=40, validation=20, test=30)
    for table in ("clips", "captions", "events"):
        mine, theirs = getattr(corpus, table), getattr(larger, table)
        assert mine.equals(theirs[theirs["clip"].isin(mine["clip"])].reset_index(drop=True))
    reader = pickle.loads(pickle.dumps(larger.read))
    np.testing.assert_array_equal(corpus.read("test-00002")[0], reader("test-00002")[0])


def test_a_changed_recording_changes_the_digests_of_its_scenes_and_stops_the_old_reader(tmp_path):
    before = clipfolder.load(make_folder(tmp_path), **SIZES)
    before.read.__call__("test-00000")
    write_sound(tmp_path / "dog_bark" / "5-00.wav", *CLASSES["dog_bark"], seed=7)
    clipfolder.recording.cache_clear()
    after = clipfolder.load(tmp_path, **SIZES)
    changed = before.clips["digest"] != after.clips["digest"]
    barks = before.clips["description"].str.contains("dog_bark") & (before.clips["split"] == "test")
    assert changed[barks].all() and not changed[before.clips["split"] != "test"].any()
    with pytest.raises(ValueError, match="5-00.wav: changed since the corpus was loaded"):
        before.read(before.clips["clip"][barks.idxmax()])


def test_few_classes_repeat_descriptions_and_say_so(tmp_path):
    for fold in range(1, 6):
        write_sound(tmp_path / "hum" / f"{fold}-1.wav", 200, 3.0, fold)
    (tmp_path / "LICENSE.txt").write_text("free")
    corpus = clipfolder.load(tmp_path, train=3, validation=2, test=8)
    assert "(5 repeat a description)" in corpus.source and "licence: LICENSE.txt" in corpus.source
    assert corpus.split("test").relevance().shape == (40, 8)


def test_without_folds_names_decide_and_a_warning_is_given(tmp_path):
    make_folder(tmp_path, folds=False)
    with pytest.warns(UserWarning, match="carry no folds"):
        corpus = clipfolder.load(tmp_path, **SIZES)
    used = {split: set() for split in SIZES}
    for clip, (_, scene) in corpus.read.scenes.items():
        used[clip.split("-")[0]] |= {part.source for part in scene.parts}
    assert not used["train"] & used["validation"] and not used["test"] & (used["train"] | used["validation"])
    assert all(used.values())
    assert "train 20 scenes of 9 recordings" in corpus.source and "test 12 scenes of 3 recordings" in corpus.source


def test_esc50_layout(tmp_path):
    rows = []
    for k, name in enumerate(("rain", "dog")):
        for fold in range(1, 6):
            rows.append((f"{fold}-{k}.wav", fold, k, name))
            write_sound(tmp_path / "audio" / rows[-1][0], 500 * (k + 1), 3.0, 10 * k + fold)
    (tmp_path / "meta").mkdir()
    pd.DataFrame(rows, columns=["filename", "fold", "target", "category"]).to_csv(
        tmp_path / "meta" / "esc50.csv", index=False
    )
    corpus = clipfolder.load(tmp_path, train=5, validation=2, test=3)
    assert set(corpus.events["event"]) == {"rain", "dog"}


def test_errors_name_the_folder_class_or_file_and_the_mend(tmp_path):
    with pytest.raises(CorpusError, match="no such folder; give the folder"):
        clipfolder.load(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="no class folders .* lay the recordings out as"):
        clipfolder.load(tmp_path)
    make_folder(tmp_path)
    with pytest.raises(ValueError, match="give 4 to 30 s"):
        clipfolder.load(tmp_path, duration=90)
    (tmp_path / "dog_bark" / "5-00.wav").write_text("not audio")
    (tmp_path / "sea_waves" / "4-10.wav").unlink()
    with pytest.raises(CorpusError) as caught:
        clipfolder.load(tmp_path, **SIZES)
    message = str(caught.value)
    assert "5-00.wav: unreadable" in message
    assert "class 'dog_bark': no recording for the split 'test'; add recordings" in message
    assert "class 'sea_waves': no recording for the split 'validation'" in message


def test_the_same_recording_in_two_splits_is_an_error(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "dog_bark" / "5-00.wav").write_bytes((tmp_path / "dog_bark" / "1-00.wav").read_bytes())
    with pytest.raises(CorpusError, match="the same recording as .*1-00.wav, in another split; delete one"):
        clipfolder.load(tmp_path, **SIZES)


def test_copies_stay_together_where_the_splits_are_drawn(tmp_path):
    make_folder(tmp_path, folds=False)
    with pytest.warns(UserWarning, match="carry no folds"):
        before = clipfolder.load(tmp_path, **SIZES)
    original = tmp_path / "dog_bark" / "sound10.wav"
    for number in range(20):
        shutil.copy(original, tmp_path / ("dog_bark" if number % 2 else "sea_waves") / f"копия {number}.wav")
    wave, rate = soundfile.read(original)
    soundfile.write(tmp_path / "dog_bark" / "leise.mp3", 0.3 * wave, rate)
    with pytest.warns(UserWarning, match="carry no folds"):
        corpus = clipfolder.load(tmp_path, train=200, validation=100, test=100).check()
    assert "; 21 copies (1 recordings), each in the split of the first; seed 0" in corpus.source
    assert "each in the split" not in before.source
    splits = {}
    for clip, (_, scene) in corpus.read.scenes.items():
        for part in scene.parts:
            splits.setdefault(corpus.read.hashes[part.source], set()).add(clip.split("-")[0])
    assert all(len(used) == 1 for used in splits.values())
    encoded = corpus.read.hashes["dog_bark/leise.mp3"]
    assert splits[encoded] == splits[corpus.read.hashes["dog_bark/sound10.wav"]]


def test_names_of_any_language_make_scenes_and_hidden_files_are_left_alone(tmp_path):
    for name, other in (("dog_bark", "лай собаки"), ("sea_waves", "Meeresgeräusch"), ("odd_thing", "奇怪的声音")):
        make_folder(tmp_path / "plain", folds=False)
        (tmp_path / "plain" / name).rename(tmp_path / other)
        for number, path in enumerate(sorted((tmp_path / other).iterdir())):
            path.rename(path.with_name(f"Aufnähme № {number} — звук.wav"))
        (tmp_path / other / "._Aufnähme № 0 — звук.wav").write_bytes(b"Mac OS X")
        (tmp_path / other / ".DS_Store").write_bytes(b"Mac OS X")
    shutil.rmtree(tmp_path / "plain")
    with pytest.warns(UserWarning, match="carry no folds"):
        corpus = clipfolder.load(tmp_path, **SIZES).check()
    text = " ".join(corpus.captions["caption"]).lower()
    assert "лай собаки" in text and "meeresgeräusch" in text and "奇怪的声音" in text and "the sound of  " not in text


def test_a_folder_named_like_a_recording_is_a_problem(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "dog_bark" / "1-x.wav").mkdir()
    with pytest.raises(CorpusError, match="dog_bark/1-x.wav: a folder, not a file; rename it"):
        clipfolder.load(tmp_path, **SIZES)


def test_the_table_of_esc50_finds_files_that_are_spelt_alike_and_names_a_wrong_fold(tmp_path):
    rows = ["filename,fold,category"]
    for fold in range(1, 6):
        rows.append(f"{fold}-A.wav,{fold},NA")
        write_sound(tmp_path / "audio" / f"{fold}-a.WAV", 500, 3.0, fold)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "esc50.csv").write_text("\n".join(rows))
    corpus = clipfolder.load(tmp_path, train=2, validation=1, test=1)
    assert set(corpus.events["event"]) == {"NA"}
    (tmp_path / "meta" / "esc50.csv").write_text("\n".join(rows).replace("5-A.wav,5", "5-A.wav,6"))
    with pytest.raises(CorpusError, match="esc50.csv, '5-A.wav': fold '6'; correct it"):
        clipfolder.load(tmp_path, train=2, validation=1, test=1)


@pytest.mark.skipif(not ESC10.is_dir(), reason="needs ESC-10 beside the project")
def test_esc10_makes_scenes_with_distinct_descriptions():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        corpus = clipfolder.load(ESC10, train=60, validation=20, test=500).check()
    assert corpus.split("test").clips["description"].is_unique
    assert "test 500 scenes of 80 recordings" in corpus.source and "LICENSE.txt" in corpus.source
    wave, _ = corpus.read("test-00499")
    assert np.isfinite(wave).all() and 0.01 < np.abs(wave).max() < 1


def test_classes_that_are_worded_alike_are_refused(tmp_path):
    for name in ("car_horn", "Car horn"):
        for fold in range(1, 6):
            write_sound(tmp_path / name / f"{fold}-{len(name)}{name[0]}.wav", 400, 1.0, fold + ord(name[0]))
    with pytest.raises(CorpusError, match="classes 'Car horn' and 'car_horn': worded alike.*; put them into one"):
        clipfolder.load(tmp_path, **SIZES)


@pytest.mark.parametrize(
    "name, words",
    [
        ("Car horn, honking", "car horn honking"),
        ("Hu\u0308ndchen", "hündchen"),
        ("हिन्दी_गाना", "हिन्दी गाना"),
        ("狗叫", "狗叫"),
        ("001 - Owl", "owl"),
    ],
)
def test_class_names_are_worded_in_all_scripts(name, words):
    sentence = clipfolder.ClipSceneReader("", 10.0, {}, {}, 16_000, (-70.0, -55.0)).sentence(name)
    assert sentence.split(words)[0] in ("", "a ", "the sound of ") and words in sentence


def test_no_scene_is_mixed_from_recordings_that_are_held_out(tmp_path):
    make_folder(tmp_path)
    ids = sorted({path.stem.split("-")[1] for path in tmp_path.rglob("*-*.wav")})
    whole = clipfolder.load(tmp_path, **SIZES)
    some = [ids[0][:1] + "1", ids[0], int(ids[-1])]
    fewer = clipfolder.load(tmp_path, **SIZES, without=some)
    used = {part.source for _, scene in fewer.read.scenes.values() for part in scene.parts}
    assert {Path(source).stem.split("-")[1] for source in used} <= set(ids) - {str(one) for one in some}
    assert "recordings held out" in fewer.source and "held out" not in whole.source
    assert clipfolder.load(tmp_path, **SIZES, without="described").fingerprint == whole.fingerprint
    with pytest.raises(ValueError, match=r"has no recordings to be held out \(0815, …\); correct the list"):
        clipfolder.load(tmp_path, **SIZES, without=["0815"])
    with pytest.raises(ValueError, match="without 'all'; give ids of recordings, or 'described'"):
        clipfolder.load(tmp_path, **SIZES, without="all")


def test_scenes_have_the_rate_that_is_asked_for(tmp_path):
    make_folder(tmp_path)
    low, high = (clipfolder.load(tmp_path, **SIZES, **more) for more in ({}, {"rate": 32_000}))
    assert low.captions.equals(high.captions) or set(low.captions["clip"]) == set(high.captions["clip"])
    assert not set(low.clips["digest"]) & set(high.clips["digest"])
    clip = high.clips["clip"][0]
    (wave, rate), (_, lower) = high.read(clip), low.read(clip)
    assert (rate, lower) == (32_000, 16_000) and len(wave) == 320_000 and np.abs(wave).max() <= 1
    with pytest.raises(ValueError, match="rate 8000 Hz; give 16,000 or more"):
        clipfolder.load(tmp_path, **SIZES, rate=8000)
