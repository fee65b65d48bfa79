"""ESC-50 joined with Clotho's captions by Freesound id."""

import csv
import math
from pathlib import Path

import dataset_layouts
import pytest
from dataset_layouts import sound, table
from typer.testing import CliRunner

from atr import RunConfig, fit
from atr.cli.app import app
from atr.corpora import load_corpus, people
from atr.corpora.corpus import CorpusError
from atr.corpora.scenes import clipfolder

SHARED = Path(__file__).parents[2] / "shared" / "data"
SPLITS = {"development": "train", "validation": "val", "evaluation": "test"}
RECORDINGS = {  # of ESC-50, by what its names say: fold, Freesound id, take
    "dog": [("1", "100", "A"), ("1", "100", "B"), ("2", "7", "A")],
    "rain": [("3", "20", "B"), ("3", "20", "A"), ("4", "300", "A")],
}
CLIPS = [  # of Clotho: split, file name, Freesound id, excerpt
    ("development", "A dog.wav", "100", "[0, 661500]"),
    ("development", "Não está.wav", "20", "[44100, 882000]"),
    ("validation", "Wind.wav", "999", ""),
    ("evaluation", "A dog.wav", "7", ""),
    ("evaluation", "gone.wav", "Not found", ""),
]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ATR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def esc50(folder, published=False):
    number = 0
    for name, clips in RECORDINGS.items():
        for fold, recording, take in clips:
            path = f"audio/{fold}-{recording}-{take}-0.wav" if published else f"{name}/{fold}-{recording}-{take}.wav"
            sound(folder / path, number, 0.2)
            number += 1
    if published:
        table(folder / "meta" / "esc50.csv", ["filename", "fold", "category"], [])
    return folder


def captions_of(number):
    return [f"caption {k} of {number}" for k in range(1, 6)]


def clotho(folder, name="clotho_captions_{official}.csv", encoding="utf-8"):
    for official, short in SPLITS.items():
        rows = [(number, *clip[1:]) for number, clip in enumerate(CLIPS) if clip[0] == official]
        header = ["file_name", *(f"caption_{k}" for k in range(1, 6))]
        path = folder / name.format(official=official, short=short)
        table(path, header, [[file, *captions_of(number)] for number, file, _, _ in rows])
        path = folder / f"clotho_metadata_{official}.csv"
        header = "file_name keywords sound_id sound_link start_end_samples manufacturer license".split()
        table(path, header, [[file, "", of, "", part, "x", "CC0"] for _, file, of, part in rows])
        path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
    return folder


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("name", people.CAPTIONS)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_recording_is_one_test_clip_with_the_captions_that_people_gave_it(home, tmp_path, published, name, encoding):
    root, tables = esc50(tmp_path / "esc50", published), clotho(tmp_path / "clotho", name, encoding)
    corpus = load_corpus("people", root, captions=tables, metadata=tables)
    assert corpus.clips["clip"].tolist() == ["7", "20", "100"] and set(corpus.clips["split"]) == {"test"}
    assert corpus.captions["caption"].tolist() == captions_of(3) + captions_of(1) + captions_of(0)
    assert corpus.test_only and corpus.problems(audio=True).empty
    assert "CC BY-NC" in corpus.source and "Tampere" in corpus.source
    takes = people.matches(root, captions=tables, metadata=tables)["file"]
    assert [Path(path).stem.removesuffix("-0") for path in takes] == ["2-7-A", "3-20-A", "1-100-A"]
    assert len(corpus.read("100")[0]) == 8820


def test_what_is_known_of_a_match_is_said_and_no_more(home, tmp_path):
    tables = clotho(tmp_path / "clotho")
    found = people.matches(esc50(tmp_path / "esc50"), captions=tables, metadata=tables)
    assert found["takes"].tolist() == [1, 2, 2] and found["clotho_split"].tolist() == ["test", "train", "train"]
    assert math.isnan(found["start"][0]) and found["start"].tolist()[1:] == [1, 0]
    assert found["seconds"].tolist()[1:] == [19, 15] and set(found["licence"]) == {"CC0"}
    assert found["sure"].tolist() == [
        "same recording; Clotho states no excerpt",
        "same recording; Clotho's excerpt is of 19.0 s from 1.0 s on, perhaps another part; the first of 2 takes",
        "same recording; Clotho's excerpt is of 15.0 s from 0.0 s on, perhaps another part; the first of 2 takes",
    ]


def test_it_needs_the_two_downloads_alone_where_they_were_put(home):
    esc50(home / "esc50" / "ESC-50" / "ESC-50-master", published=True)
    clotho(home / "clotho")
    assert len(load_corpus("people")) == 3
    done = CliRunner().invoke(app, ["check", "people"])
    assert done.exit_code == 0, done.output


def test_all_that_is_missing_is_named_at_once_with_the_commands_that_fetch_it(home, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        load_corpus("people")
    for words in ("no folder", "run: atr data esc50", "run: atr data clotho"):
        assert words in str(caught.value)
    tables = clotho(home / "clotho")
    (tables / "clotho_metadata_validation.csv").unlink()
    with pytest.raises(
        FileNotFoundError, match="no table of Clotho's metadata of validation .*run: atr data clotho, or"
    ):
        load_corpus("people", esc50(tmp_path / "esc50"))


def test_tables_that_do_not_fit_are_named(home, tmp_path):
    tables, root = clotho(tmp_path / "clotho"), esc50(tmp_path / "esc50")
    options = {"captions": tables, "metadata": tables}
    path = tables / "clotho_captions_evaluation.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("A dog", "A cat"), encoding="utf-8")
    with pytest.raises(CorpusError, match="test, 'a dog.wav': in Clotho's metadata, without captions"):
        load_corpus("people", root, **options)
    with pytest.raises(CorpusError, match="no recording that Clotho describes; name ESC-50's folder"):
        load_corpus("people", tables, **options)
    (tables / "clotho_metadata_evaluation.csv").write_text("file_name,start_end_samples\na.wav,\n")
    with pytest.raises(CorpusError, match="clotho_metadata_evaluation.csv: no column 'license'; fetch it again"):
        load_corpus("people", root, **options)


def test_nothing_is_trained_on_it(home, tmp_path):
    tables = clotho(tmp_path / "clotho")
    corpus = load_corpus("people", esc50(tmp_path / "esc50"), captions=tables, metadata=tables)
    config = RunConfig(training="scratch", audio_weights=None, epochs=0)
    with pytest.raises(ValueError, match="corpus 'people' has test clips alone, and nothing to train on"):
        fit(config, corpus, runs=tmp_path / "runs")


def test_files_of_ones_own_can_all_be_tested_on(home, tmp_path):
    dataset_layouts.table(tmp_path / "captions.csv", ["file_name", "caption"], [["a.wav", "a dog"], ["b.wav", "rain"]])
    for number, name in enumerate(("a.wav", "b.wav")):
        sound(tmp_path / name, number, 0.2)
    corpus = load_corpus("csv", tmp_path, split="test")
    assert corpus.clips["split"].tolist() == ["test"] * 2 and corpus.test_only
    with pytest.raises(ValueError, match="csv: split 'tests'; known: train, validation, test"):
        load_corpus("csv", tmp_path, split="tests")


def test_the_listed_recordings_are_those_of_the_data_sets(home):
    assert len(clipfolder.CLOTHO_SOURCES) == 106 and list(clipfolder.CLOTHO_SOURCES) == sorted(
        set(clipfolder.CLOTHO_SOURCES), key=int
    )
    if not SHARED.is_dir():
        pytest.skip("the data sets are not here")
    options = {"captions": SHARED / "captions", "metadata": SHARED / "clotho_metadata"}
    assert people.matches(SHARED / "esc50", **options)["clip"].tolist() == list(clipfolder.CLOTHO_SOURCES)
    corpus = load_corpus("people", SHARED / "esc50", **options)
    assert len(corpus) == 106 and corpus.captions["clip"].value_counts().eq(5).all()
    with open(SHARED / "captions" / "clotho_test.csv", newline="", encoding="utf-8") as file:
        row = next(row for row in csv.DictReader(file) if row["file_name"].startswith("Jet over Rosemont"))
    own = corpus.captions.loc[corpus.captions["clip"] == "24796", "caption"].tolist()
    assert own == [row[f"caption_{k}"] for k in range(1, 6)]
