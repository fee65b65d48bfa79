"""Options compared on few recordings."""

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import dataset_layouts
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

import atr
from atr import get_profile
from atr.corpora.captioning import language
from atr.experiments import study
from atr.experiments.profiles import PEOPLE, PROFILES
from atr.metrics import Ranks
from atr.reports import options
from atr.training.results import ExternalTest


def made(found):
    """Two captions of each recording, found first or as second: found (recordings, 2)."""
    found = np.array(found, bool)
    ranks = Ranks(np.where(found.ravel(), 1, 2)[:, None], np.ones((len(found), 2), int))
    return ExternalTest(ranks, np.repeat(np.arange(len(found)), 2))


TESTS = {
    "plain": [made([[1, 0], [0, 0], [1, 1], [0, 0]])],
    "good on even": [made([[1, 1], [0, 0], [1, 1], [0, 0]]), made([[1, 1], [0, 0], [1, 1], [0, 1]])],
    "good on odd": [made([[0, 0], [1, 1], [1, 0], [1, 1]])],
}


def test_differences_are_paired_by_recording_after_the_mean_over_seeds():
    found = options.compare(TESTS, "plain")
    assert found["t2a_r1"].tolist() == [37.5, 56.25, 62.5] and found["seeds"].tolist() == [1, 2, 1]
    assert found["t2a_r10"].tolist() == [100] * 3
    assert found["difference"].tolist() == [0, 18.75, 25] and found["standard_error"].iloc[0] == 0
    apart = np.array([50, 0, 0, 25])
    assert found["standard_error"].iloc[1] == pytest.approx(apart.std(ddof=1) / 2)


def test_each_option_may_be_compared_with_its_own_counterpart():
    found = options.compare(
        {"one": TESTS["good on even"], "two": TESTS["good on odd"]},
        {"two": TESTS["plain"], "one": TESTS["good on odd"]},
    )
    assert found["difference"].tolist() == [-6.25, 25] and found["t2a_r1"].tolist() == [56.25, 62.5]


def test_each_half_is_reported_for_what_the_other_half_chose():
    found = options.on_halves(TESTS, "plain")
    assert found["chosen"].tolist() == ["good on odd", "good on even", ""]
    assert found["t2a_r1"].tolist() == [25, 12.5, 18.75] and found["difference"].tolist() == [-50, 12.5, -18.75]
    apart = np.array([-50, 0, -50, 25])
    assert found["standard_error"].iloc[2] == pytest.approx(apart.std(ddof=1) / 2)


# --- notebook 13


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """Smoke with `mn04` of random weights, tested on six recordings of one's own."""
    rows = [[f"{number}.wav", what, f"{what} far away"] for number, what in enumerate(dataset_layouts.SOUNDS)]
    for number in range(6):
        dataset_layouts.sound(tmp_path / "people" / f"{number}.wav", number, 0.5 + 2 * number)
    columns = ["file_name", "caption_1", "caption_2"]
    dataset_layouts.table(tmp_path / "people" / "captions.csv", columns, rows)
    others = [[f"{number}.wav", f"Sound number {number}.", f"The {number}th sound."] for number in range(9)]
    dataset_layouts.table(tmp_path / "words.csv", columns, [*rows[:1], *others])
    torch.manual_seed(0)
    torch.save(atr.encoders.build("mn04").state_dict(), tmp_path / "mn04.pt")
    base = {"audio_encoder": "mn04", "audio_weights": str(tmp_path / "mn04.pt"), "embedding_dim": 32}
    small = replace(get_profile("smoke"), name="small", external=PEOPLE, base=base, epochs={"frozen": 1})
    monkeypatch.setitem(PROFILES, "small", small)
    monkeypatch.setenv("ATR_PEOPLE", str(tmp_path / "people"))
    monkeypatch.setenv("ATR_RESULTS", str(tmp_path / "results"))
    return small


def run_notebook(monkeypatch):
    shown = SimpleNamespace(update=lambda view: None)
    monkeypatch.setattr("IPython.display.display", lambda *given, **options: shown)
    space = {"display": lambda *given: None}
    (path,) = study.notebooks(["13"])
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            exec(cell.source, space)
        if "parameters" in cell.metadata.get("tags", []):
            space |= {"profile_name": "small", "seeds": [0, 1], "device": "cpu"}
    return space


@pytest.mark.filterwarnings("ignore")
def test_the_notebook_compares_each_way_alone_and_joined(profile, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATR_WORDS", os.pathsep.join(["words.csv", ""]))
    space = run_notebook(monkeypatch)
    assert os.environ["ATR_WORDS"] == str(tmp_path / "words.csv")
    alone = ["scenes alone", "scenes alone, τ 0.1", "scenes alone, adapter", "scenes alone, adapter, τ 0.1"]
    ways = [*alone, "class names", "people's captions", "both", "both, adapter, τ 0.1"]
    alike = ["control", *ways, *(f"{way}, joined with the control" for way in ways)]
    read = lambda name: pd.read_csv(profile.results / "tables" / f"13_{name}.csv")  # noqa: E731
    tables = {name: read(name) for name in ("scenes", "people_options", "people_halves", "people_scenes_halves")}
    assert tables["scenes"]["option"].tolist() == tables["people_options"]["option"].tolist() == alike
    assert tables["people_options"]["seeds"].tolist() == [1] + [2] * 16
    assert tables["people_options"]["difference"].iloc[0] == 0
    for name, tried in ("people_halves", alike), ("people_scenes_halves", alone):
        assert set(tables[name]["chosen"].dropna()) <= set(tried)
    assert read("scenes_bank")["option"].tolist() == read("people_bank")["option"].tolist() == alike
    bank = read("people_bank").set_index("option")
    expected = bank["t2a_r1"] - tables["people_options"].set_index("option")["t2a_r1"]
    assert bank["difference"].to_numpy() == pytest.approx(expected.to_numpy(), abs=1e-9)
    (axis,) = space["figure"].axes  # of the differences, which is saved with the runs it rests on
    assert [label.get_text() for label in axis.get_yticklabels()] == alike[1:]
    assert axis.lines[0].get_xdata() == pytest.approx(tables["people_options"]["difference"].iloc[1:].to_numpy())
    saved = json.loads((profile.results / "figures" / "13_people_differences.json").read_text())
    assert sorted(saved["runs"]) == sorted(run.address for run in space["everything"]["run"])
    learnt = language.read(space["words"])  # the clip whose captions are tested on is not among them
    assert learnt["clip"].nunique() == 9 and not learnt["caption"].str.contains("dog").any()
    assert "three ways are left out" not in capsys.readouterr().out

    monkeypatch.delenv("ATR_WORDS")
    monkeypatch.setenv("ATR_HOME", str(tmp_path))
    monkeypatch.delenv("ATR_PEOPLE")
    assert get_profile("small").words() is None


def test_it_is_for_profiles_that_are_tested_in_peoples_words(monkeypatch):
    numbers = {name: [path.stem[:2] for path in study.notebooks((), get_profile(name))] for name in PROFILES}
    assert [name for name in PROFILES if "13" in numbers[name]] == ["esc50", "esc10"]
    with pytest.raises(study.StudyError, match="13_people: profile demo has no test in people's words; esc50 has"):
        study.notebooks(["13"], get_profile("demo"))
