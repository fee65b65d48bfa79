import csv
import os
import pickle
import re
import shutil
import warnings
from pathlib import Path

import dataset_layouts
import numpy as np
import pytest

from atr.corpora import clotho, files, load_corpus
from atr.corpora.containers import AudioError
from atr.corpora.corpus import CorpusError
from atr.corpora.files import coverage
from atr.system import places

MEI2022 = Path(__file__).parents[2] / "shared" / "data" / "captions"
SHARED = {"train": "Bus(Drive_Reverse)_1-2", "validation": "Bus(Drive_Reverse)_1-2", "test": "Bus(Drive_Reverse)_1-2"}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ATR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def root(tmp_path):
    return dataset_layouts.clotho(tmp_path / "clotho", seconds=0.2)


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def as_mei2022(root, to):
    """The same data set as the released code of Mei et al. 2022 wants it."""
    for official, short in (("development", "train"), ("validation", "val"), ("evaluation", "test")):
        shutil.copytree(root / official, to / "waveforms" / short)
        (to / "csv_files").mkdir(exist_ok=True)
        shutil.copy(root / f"clotho_captions_{official}.csv", to / "csv_files" / f"{short}.csv")
    return to


def test_clips_captions_and_splits_are_those_of_the_tables(home, root):
    corpus = load_corpus("clotho", root)
    assert corpus.clips["split"].value_counts().to_dict() == {"train": 6, "validation": 3, "test": 3}
    assert corpus.captions.groupby("clip").size().eq(5).all() and corpus.events.empty
    assert corpus.clips["duration"].tolist() == [0.2] * 12 and corpus.clips["digest"].nunique() == 12
    table = rows(root / "clotho_captions_development.csv")
    assert corpus.captions["caption"].tolist()[:30] == [row[f"caption_{k}"] for row in table for k in range(1, 6)]
    assert '"' in corpus.captions["caption"][2] and "," in corpus.captions["caption"][0]
    assert corpus.problems().empty


def test_clips_are_named_as_their_files_and_shared_names_have_their_split_in_front(home, root):
    corpus = load_corpus("clotho", root)
    assert corpus.clips["clip"][0] == " train sound.000_w_ 0"
    for split, name in SHARED.items():
        assert corpus.split(split).clips["clip"][1] == f"{split}/{name}"
    first, again = (pickle.loads(pickle.dumps(corpus.read))(f"{split}/{SHARED[split]}") for split in ("train", "test"))
    assert first[1] == 44100 and len(first[0]) == 8820 and not np.array_equal(first[0], again[0])


LAYOUTS = {
    "as unpacked": lambda root, to: shutil.copytree(root, to),
    "archives by name": lambda root, to: [
        shutil.copytree(root / split, to / f"clotho_audio_{split}" / split)
        and shutil.copy(root / f"clotho_captions_{split}.csv", to)
        for split in clotho.OFFICIAL.values()
    ],
    "archives unpacked flat": lambda root, to: [
        shutil.copytree(root / split, to / f"clotho_audio_{split}")
        and shutil.copy(root / f"clotho_captions_{split}.csv", to)
        for split in clotho.OFFICIAL.values()
    ],
    "tables apart": lambda root, to: [
        shutil.copytree(root / split, to / "clotho_audio_files" / split)
        and (to / "clotho_csv_files").mkdir(exist_ok=True)
        or shutil.copy(root / f"clotho_captions_{split}.csv", to / "clotho_csv_files")
        for split in clotho.OFFICIAL.values()
    ],
    "Mei et al. 2022": as_mei2022,
    "Mei et al. 2022, from above": lambda root, to: as_mei2022(root, to / "Clotho"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_usual_layouts_hold_the_same_corpus(home, root, tmp_path, layout):
    LAYOUTS[layout](root, tmp_path / "other")
    assert load_corpus("clotho", tmp_path / "other").fingerprint == load_corpus("clotho", root).fingerprint


def test_a_folder_of_something_else_is_refused_with_what_was_looked_for_and_found(home, tmp_path):
    (tmp_path / "sounds").mkdir()
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(CorpusError) as caught:
        load_corpus("clotho", tmp_path)
    text = str(caught.value)
    for words in ("clotho_captions_<split>.csv", "waveforms/<split>/", "'notes.txt', 'sounds/'", "--from <folder>"):
        assert words in text


def test_without_a_root_the_corpus_lies_in_the_home_or_where_it_was_recorded(home, root):
    with pytest.raises(FileNotFoundError, match=f"no folder {re.escape(str(home))}/clotho; run: atr data clotho, or"):
        load_corpus("clotho")
    shutil.copytree(root, home / "clotho")
    own = load_corpus("clotho")
    (home / "clotho" / "location.json").write_text('{"folder": "' + str(root) + '"}')
    assert load_corpus("clotho").read.folder == root and own.read.folder == home / "clotho"
    (home / "clotho" / "location.json").write_text('{"folder": "' + str(root / "gone") + '"}')
    with pytest.raises(FileNotFoundError, match="gone; bring it back, or delete .*location.json and run: atr data"):
        load_corpus("clotho")
    (home / "clotho" / "location.json").write_text("[]")
    with pytest.raises(ValueError, match="location.json: does not name a folder .*; delete it and run"):
        load_corpus("clotho")


def test_a_listed_clip_without_audio_and_a_broken_file_are_problems(home, root):
    (root / "development" / " train sound.000_w_ 0.wav").unlink()
    (root / "evaluation" / "Bus(Drive_Reverse)_1-2.wav").write_bytes(b"RIFF")
    corpus = load_corpus("clotho", root, check=False)
    found = corpus.problems().values.tolist()
    assert found[0][0] == "clotho_captions_development.csv, ' train sound.000_w_ 0'"
    assert "no audio file in" in found[0][1] and found[0][2].endswith("atr data clotho")
    assert found[1][0].endswith("evaluation/Bus(Drive_Reverse)_1-2.wav") and "unreadable" in found[1][1]
    assert len(found) == 2 and len(corpus) == 10
    with pytest.raises(CorpusError, match="has 2 problem"):
        load_corpus("clotho", root)


def test_coverage_counts_clips_here_beside_the_list_and_the_paper(home, root):
    (root / "development" / " train sound.000_w_ 0.wav").unlink()
    table = coverage(load_corpus("clotho", root, check=False))
    assert table.values.tolist() == [["train", 5, 6, 3839], ["validation", 3, 3, 1045], ["test", 3, 3, 1045]]
    with pytest.raises(ValueError, match="coverage is known for clotho, audiocaps, wavcaps"):
        coverage(load_corpus("soundscapes", train=2, validation=1, test=1))


def test_names_agree_over_unicode_forms_blanks_and_formats(home, root):
    path = root / "development" / " train sound.000_w_ 0.wav"
    table = root / "clotho_captions_development.csv"
    table.write_text(table.read_text().replace(" train sound.000_w_ 0.wav", " Caf\u00e9 noise.wav"), encoding="utf-8")
    path.rename(path.with_name("Cafe\u0301 noise.WAV"))
    assert load_corpus("clotho", root).clips["clip"][0] == " Caf\u00e9 noise"


def test_names_that_differ_in_blanks_alone_keep_their_own_audio(home, root):
    table = root / "clotho_captions_development.csv"
    table.write_text(table.read_text().replace(" train sound.003_w_ 3.wav", "train sound.000_w_ 0.wav"))
    (root / "development" / " train sound.003_w_ 3.wav").rename(root / "development" / "train sound.000_w_ 0.wav")
    corpus = load_corpus("clotho", root)
    assert corpus.clips["digest"].nunique() == 12 and "train sound.000_w_ 0" in set(corpus.clips["clip"])


def test_two_files_that_one_name_could_mean_are_a_problem_and_the_exact_one_is_none(home, root):
    path = root / "development" / " train sound.002_w_ 2.wav"
    shutil.copy(path, path.with_name("Train Sound.002_w_ 2.wav"))
    load_corpus("clotho", root)
    path.rename(path.with_name("TRAIN sound.002_w_\u00a02.wav"))
    with pytest.raises(CorpusError, match="clip ' train sound.002_w_ 2': its file could be 'TRAIN .*', 'Train Sound"):
        load_corpus("clotho", root)


def test_clips_that_are_not_as_long_as_clotho_says_are_named(home, tmp_path):
    root = dataset_layouts.clotho(tmp_path / "long", {"train": 4, "validation": 1, "test": 1}, seconds=16, rate=2000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_corpus("clotho", root).problems(audio=True).empty
    names = [row["file_name"] for row in rows(root / "clotho_captions_development.csv")]
    dataset_layouts.sound(root / "development" / names[0], 90, seconds=3, rate=2000)
    dataset_layouts.sound(root / "development" / names[2], 91, seconds=61, rate=2000)
    metadata = [["file_name", "start_end_samples"], [names[3], "[44100, 1146600]"], [names[1], "[0, 705600]"]]
    dataset_layouts.table(root / "clotho_metadata_development.csv", metadata[0], metadata[1:])
    with pytest.warns(UserWarning, match="3 of 6 files of clotho are too long or short, as .*0.wav: 3.00 s long"):
        corpus = load_corpus("clotho", root)
    found = corpus.problems(audio=True)
    assert found["where"].tolist() == [str(root / "development" / names[k]) for k in (0, 2, 3)]
    assert found["problem"].tolist() == [
        "3.00 s long where clotho states 15 to 30 s",
        "61.00 s long where clotho states 15 to 30 s",
        "16.00 s long where clotho states 25.00 s",
    ]


def test_a_damaged_table_of_lengths_is_named(home, root):
    path = root / "clotho_metadata_development.csv"
    path.write_text("file_name,start_end_samples\na,b,c\n")
    with pytest.raises(
        ValueError, match="clotho_metadata_development.csv, row 1: 3 fields where the header has 2; put"
    ):
        load_corpus("clotho", root)


def test_a_file_that_changes_after_the_check_is_refused(home, root):
    corpus = load_corpus("clotho", root)
    path = root / "evaluation" / "Bus(Drive_Reverse)_1-2.wav"
    dataset_layouts.sound(path, 99, seconds=0.2)
    with pytest.raises(AudioError, match=r"_1-2.wav: changed since the corpus was loaded; .* run again"):
        corpus.read("test/Bus(Drive_Reverse)_1-2")


TABLES = {
    "a column twice": ("caption_5", "caption_4", "column 'caption_4' is there twice"),
    "another column": ("caption_5", "caption5", "no column 'caption_5'"),
    "a short row": (",number 0", "", "line 2: 5 fields where the header has 6"),
    "an open quote": ("A dog", '"A dog', "no CSV in UTF-8"),
    "a clip twice": (" train sound.002_w_ 2.wav", " train sound.003_w_ 3.wav", "listed twice"),
}


@pytest.mark.parametrize("fault", TABLES)
def test_a_damaged_table_is_an_error_with_its_place(home, root, fault):
    before, after, message = TABLES[fault]
    path = root / "clotho_captions_development.csv"
    text = path.read_text(encoding="utf-8")
    if fault == "a short row":
        text = text.replace(rows(path)[0]["caption_2"], "x", 1).replace('"x",', "", 1)
    path.write_text(text.replace(before, after), encoding="utf-8")
    with pytest.raises(CorpusError) as caught:
        load_corpus("clotho", root)
    assert "clotho_captions_development.csv" in str(caught.value) and message in str(caught.value)


@pytest.mark.skipif(not MEI2022.is_dir(), reason="needs the tables of Mei et al. 2022")
def test_the_tables_of_mei_et_al_2022_give_the_published_counts_in_both_layouts(home, tmp_path):
    mei, official = tmp_path / "mei", tmp_path / "official"
    dataset_layouts.sound(mei / "sound.wav", 1, seconds=0.01)
    expected = []
    for split, short in (("train", "train"), ("validation", "val"), ("test", "test")):
        dataset_layouts.linked(MEI2022 / f"clotho_{short}.csv", mei / "csv_files" / f"{short}.csv")
        (mei / "waveforms" / short).mkdir(parents=True)
        with open(MEI2022 / f"clotho_{short}.csv", newline="", encoding="utf-8") as file:
            header, *table = csv.reader(file)
        for name, *_ in table:
            os.link(mei / "sound.wav", mei / "waveforms" / short / name)
        expected += [text for _, *captions in table for text in captions]
        dataset_layouts.table(official / f"clotho_captions_{clotho.OFFICIAL[split]}.csv", header, table)
        (official / clotho.OFFICIAL[split]).symlink_to(mei / "waveforms" / short)
    corpus = load_corpus("clotho", mei)
    table = coverage(corpus)
    assert table["clips here"].tolist() == table["clips in the paper"].tolist() == [3839, 1045, 1045]
    assert corpus.captions["caption"].tolist() == expected and len(expected) == 5 * 5929
    assert corpus.captions.groupby("clip").size().eq(5).all()
    assert corpus.clips["clip"].str.contains("^(?:train|validation|test)/").sum() == 8  # four names, two splits each
    assert load_corpus("clotho", official).fingerprint == corpus.fingerprint


class TestIndex:
    def test_a_second_call_reads_nothing(self, home, root, monkeypatch):
        names = files.listing(root)
        first = files.index(root, names)
        monkeypatch.setattr(files.audio, "duration", lambda path: pytest.fail(f"{path} was read again"))
        assert files.index(root, reversed(names)) == first and list(first) == names

    def test_a_changed_file_is_read_again_and_alone(self, home, root):
        names = files.listing(root)
        first = files.index(root, names)
        dataset_layouts.sound(root / names[0], 99, seconds=0.3)
        os.utime(root / names[0], ns=(1, 1))
        second = files.index(root, names)
        assert second[names[0]].seconds == 0.3 and second[names[0]].digest != first[names[0]].digest
        assert [second[name] for name in names[1:]] == [first[name] for name in names[1:]]

    def test_a_file_replaced_with_size_and_time_as_before_is_read_again(self, home, root):
        path = root / files.listing(root)[0]
        first, state = files.index(root, [path.relative_to(root).as_posix()]), path.stat()
        dataset_layouts.sound(path, 99, seconds=0.2)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
        assert path.stat().st_size == state.st_size and files.index(root, list(first)) != first

    def test_a_file_that_changes_while_it_is_read_is_an_error(self, home, root, monkeypatch):
        name = files.listing(root)[0]
        digest = files.hashes.file_sha256

        def change(path):
            dataset_layouts.sound(path, 99, seconds=0.3)
            return digest(path)

        monkeypatch.setattr(files.hashes, "file_sha256", change)
        assert "changes while it is read" in files.index(root, [name])[name].problem
        monkeypatch.undo()
        assert files.index(root, [name])[name].seconds == 0.3

    def test_bad_files_are_errors_with_place_and_mend_and_are_not_remembered(self, home, root):
        name = files.listing(root)[0]
        content = (root / name).read_bytes()
        (root / name).write_bytes(b"no sound")
        found = files.index(root, [name, "absent.wav"])
        assert "unreadable" in found[name].problem and found["absent.wav"].problem == "no such file"
        (root / name).write_bytes(content)
        assert files.index(root, [name])[name].seconds == 0.2

    def test_what_was_done_before_an_interruption_is_kept(self, home, root, monkeypatch):
        names = files.listing(root)
        duration = files.audio.duration

        def interrupted(path):
            if path == root / names[-1]:
                raise KeyboardInterrupt
            return duration(path)

        monkeypatch.setattr(files.audio, "duration", interrupted)
        with pytest.raises(KeyboardInterrupt):
            files.index(root, names)
        kept = next((places.home() / "cache" / "files").glob("*.csv")).read_text()
        assert names[0] in kept and names[-1] not in kept

    def test_a_folder_that_may_not_be_read_is_an_error(self, root, monkeypatch):
        def scandir(path, scan=os.scandir):
            if str(path).endswith("development"):
                raise PermissionError(13, "Permission denied", str(path))
            return scan(path)

        monkeypatch.setattr(os, "scandir", scandir)
        with pytest.raises(PermissionError, match="development"):
            files.listing(root)

    def test_a_file_that_may_not_be_read_is_an_error_with_its_mend(self, home, root, monkeypatch):
        name = files.listing(root)[0]
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        assert str(files.index(root, [name])[name]).endswith("no permission to read it; change its permissions")

    def test_listing_follows_links_once_and_leaves_hidden_and_other_files_out(self, root, tmp_path):
        (tmp_path / "all").mkdir()
        (tmp_path / "all" / "linked").symlink_to(root / "validation")
        (tmp_path / "all" / "loop").symlink_to(tmp_path / "all")
        dataset_layouts.sound(tmp_path / "all" / ".half.wav", 1)
        (tmp_path / "all" / "notes.txt").write_text("")
        found = files.listing(tmp_path / "all")
        assert len(found) == 3 and all(name.startswith("linked/") for name in found)


class TestEvaluation:
    def test_two_files_of_one_clip_are_an_error(self, home, tmp_path):
        folder = dataset_layouts.evaluation(tmp_path / "dcase", seconds=0.2)
        dataset_layouts.sound(folder / "retrieval_audio" / "test" / "clip 1.flac", 9, seconds=0.2)
        with pytest.raises(CorpusError, match="clip 'clip 1': its file could be 'retrieval_audio/test/clip 1.flac', "):
            clotho.evaluation(folder)

    def test_it_holds_clips_and_queries_without_answers(self, home):
        dataset_layouts.evaluation(home / "dcase2022", seconds=0.2)
        found = clotho.evaluation()
        assert found.clips["clip"].tolist() == ["clip 0", "clip 1", "clip 2"]
        assert found.clips["duration"].tolist() == [0.2] * 3 and list(found.clips) == ["clip", "duration", "digest"]
        assert found.queries == ["Rain falls, then stops", 'A "loud" dog', "Rain falls, then stops"]
        assert found.ids == ["0", "1", "2"] and len(found.read("clip 1")[0]) == 8820

    def test_what_is_missing_or_broken_is_an_error(self, home, tmp_path):
        with pytest.raises(FileNotFoundError, match="run: atr data dcase2022"):
            clotho.evaluation()
        with pytest.raises(CorpusError, match="looked for retrieval_captions.csv and retrieval_audio/ or test/"):
            clotho.evaluation(tmp_path)
        folder = dataset_layouts.evaluation(tmp_path / "dcase", seconds=0.2)
        (folder / "retrieval_audio" / "test" / "clip 1.wav").write_bytes(b"")
        with pytest.raises(CorpusError, match="clip 1.wav: 0 bytes"):
            clotho.evaluation(folder)
