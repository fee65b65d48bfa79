"""Zero-shot classification under `atr evaluate`: classes, accuracy, folds."""

import json

import dataset_layouts
import numpy as np
import pandas as pd
import pytest
import torch
from made_embeddings import written
from typer.testing import CliRunner

from atr.cli import app
from atr.corpora.corpus import CorpusError
from atr.evaluation import compare, evaluate, models, protocols, zeroshot

CLASSES = ("crying_baby", "dog", "Rain-drops")
TEXTS = ["This is a sound of crying baby.", "This is a sound of dog.", "This is a sound of rain drops."]


def name(fold, take):
    """Takes A and B of a fold are of one recording."""
    return f"{fold}-{1000 + fold}-{'AB'[take]}.wav"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes; in each a recording of fold 1 with two takes, and one of fold 2 with one."""
    folder = tmp_path_factory.mktemp("classes")
    for number, kind in enumerate(CLASSES):
        for place, (fold, take) in enumerate([(1, 0), (1, 1), (2, 0)]):
            dataset_layouts.sound(folder / kind / name(fold, take), 10 * number + place, 0.2)
    return folder


@pytest.fixture(scope="module")
def protocol():
    return protocols.get("esc50-zero-shot")


@pytest.fixture(scope="module")
def part(folder, protocol):
    return protocol.load(folder)


@pytest.fixture
def made(part, tmp_path):
    """Right for all but the two takes of the dog, which are heard as rain, with a baby second."""
    kinds = {text: row for row, text in enumerate(TEXTS)}
    text = np.eye(3)[[kinds[caption] for caption in part.captions["caption"]]]
    audio = text + 0.1
    for row, clip in enumerate(part.clips["clip"]):
        if clip.startswith("dog/1-"):
            audio[row] = [0.5, 0.1, 0.9]
    return written(tmp_path, part, audio, text)


def test_each_class_is_a_query_that_its_recordings_answer(part, protocol):
    queries, own, relevance = protocol.ask(part)
    assert queries == TEXTS and relevance.sum(1).tolist() == [3, 3, 3] and relevance.sum(0).tolist() == [1] * 9
    assert all(relevance[row, clip] for row, clip in enumerate(own))
    assert protocol.hash not in {protocols.get(one).hash for one in ("folder", "people", "clotho-5225")}


def test_esc50_as_published_has_the_same_classes(tmp_path, protocol, monkeypatch):
    monkeypatch.setenv("ATR_HOME", str(tmp_path / "home"))
    root = tmp_path / "home" / "esc50" / "ESC-50" / "ESC-50-master"
    rows = [["1-1001-A-0.wav", "1", "0", "dog"], ["2-1002-A-1.wav", "2", "1", "crying_baby"]]
    for number, row in enumerate(rows):
        dataset_layouts.sound(root / "audio" / row[0], number, 0.2)
    dataset_layouts.table(root / "meta" / "esc50.csv", ["filename", "fold", "target", "category"], rows)
    assert protocol.ask(protocol.load())[0] == TEXTS[:2]
    (root / "audio" / "1-1001-A-0.wav").unlink()
    with pytest.raises(CorpusError, match="1-1001-A-0.wav"):
        protocol.load()


def test_accuracy_stands_with_its_interval_and_by_fold(made, part, protocol):
    one = evaluate.evaluate(models.Embeddings(made), protocol, part)
    found = one.table.set_index("metric")
    assert set(found["direction"]) == {"audio to text"} and list(one.readable) == ["metric", "audio to text"]
    values = [found["value"][metric] for metric in ("accuracy", "accuracy, fold 1", "accuracy, fold 2", "R@5")]
    assert values == pytest.approx([100 * 7 / 9, 100 * 4 / 6, 100, 100])
    assert found["low"]["accuracy, fold 2"] == found["high"]["accuracy, fold 2"] == 100
    assert found["low"]["accuracy"] < 100 * 7 / 9 < found["high"]["accuracy"] and not one.whole


def test_a_model_that_hears_no_difference_is_right_about_nothing(part, protocol):
    same = torch.ones(3, 4), torch.ones(9, 4)
    queries, own, relevance = protocol.ask(part)
    one = evaluate.Evaluation("m", "", protocol, part.clips["clip"].tolist(), queries, own, relevance, same)
    assert one.table.set_index("metric")["value"]["accuracy"] == 0


def test_takes_are_drawn_with_their_recording():
    assert zeroshot.recording("dog/1-1001-A.wav") == zeroshot.recording("audio/1-1001-B-0.wav") == "1001"
    assert zeroshot.recording("dog/my own.wav") == "dog/my own.wav"
    assert [zeroshot.fold(clip) for clip in ("dog/3-1-A.ogg", "dog/bark.wav", "dog/12-1.wav")] == ["3", "", ""]


def test_the_command_writes_files_and_two_of_them_compare(made, folder, tmp_path):
    words = ["--on", "esc50-zero-shot", "--root", str(folder), "--out", str(tmp_path / "out"), "--quiet"]
    outcome = CliRunner().invoke(app.app, ["evaluate", f"embeddings:{made}", *words])
    assert outcome.exit_code == 0 and "accuracy, fold 2" in outcome.output, outcome.output
    assert "9 of 2,000 clips, 3 of 50 queries; not all of it" in " ".join(outcome.output.split())
    names = [f"esc50-zero-shot.{ending}" for ending in ("a2t.qrels", "a2t.run", "json", "ranks.parquet")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    report = json.loads((tmp_path / "out" / names[2]).read_text())
    assert report["protocol"]["template"] == "This is a sound of {}."
    assert len(pd.read_parquet(tmp_path / "out" / names[3])) == 9
    (result,) = compare.results(tmp_path / "out").values()
    assert compare.compare(result, result).table["metric"].tolist()[:2] == ["accuracy", "R@5"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('template = "A sound."', "template: 'A sound.'; write {} where the class's name stands"),
        ("template = 3", "template: 3; write {}"),
    ],
)
def test_a_template_without_a_place_is_refused(tmp_path, content, words):
    (tmp_path / "own.toml").write_text(f'title = "x"\nsource = ""\ncorpus = {{ name = "esc50" }}\n{content}')
    with pytest.raises(ValueError, match=words):
        protocols.get(str(tmp_path / "own.toml"))


def test_folders_that_have_no_classes_are_refused(tmp_path, protocol):
    with pytest.raises(FileNotFoundError, match="gone: no such folder; give --root"):
        protocol.load(tmp_path / "gone")
    dataset_layouts.sound(tmp_path / "a.wav", 1, 0.1)
    with pytest.raises(CorpusError, match="looked for folders of recordings named by their class"):
        protocol.load(tmp_path)
