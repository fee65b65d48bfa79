"""Finished runs tested on another corpus, and what tables show of it."""

import json
from dataclasses import replace
from pathlib import Path

import dataset_layouts
import numpy as np
import pandas as pd
import pytest
import torch
from made_runs import made_run, ranks_with

from atr import Embedder, RunConfig, fit, get_profile, load_corpus
from atr.experiments import profiles
from atr.experiments.grid import Runs
from atr.inference import external
from atr.metrics import Ranks, retrieval, statistics
from atr.reports import names, output, tables
from atr.training.records import Run
from atr.training.results import ExternalTest

SHARED = Path(__file__).parents[2] / "shared"
TINY = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
SETTINGS = {"corpus": TINY, "epochs": 1, "batch_size": 16, "embedding_dim": 16}


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    return fit(RunConfig(**SETTINGS), corpus, runs=tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six recordings with two captions each, as a folder of one's own."""
    folder = tmp_path_factory.mktemp("people")
    rows = []
    for number, what in enumerate(dataset_layouts.SOUNDS):
        dataset_layouts.sound(folder / f"{number}.wav", number, 0.5 + 0.3 * number)
        rows.append([f"{number}.wav", what, f"{what} far away"])
    dataset_layouts.table(folder / "captions.csv", ["file_name", "caption_1", "caption_2"], rows)
    return folder


@pytest.fixture(scope="module")
def people(folder):
    return load_corpus("csv", folder, split="test")


@pytest.fixture
def profile(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("ATR_PEOPLE", str(folder))
    return replace(get_profile("smoke"), external=profiles.PEOPLE)


def test_ranks_are_those_of_the_runs_embeddings(run, people, folder):
    found = external.test(run, people)
    embedder = Embedder(run)
    sounds = embedder.sounds([folder / f"{number}.wav" for number in range(6)])
    sentences = embedder.sentences(people.captions["caption"].tolist())
    relevance = np.repeat(np.arange(6), 2)
    expected = retrieval.ranks((sentences, sounds), relevance)
    assert np.array_equal(found.ranks.t2a, expected.t2a) and np.array_equal(found.ranks.a2t, expected.a2t)
    assert found.relevance.tolist() == relevance.tolist()
    assert found.metrics == retrieval.retrieval_metrics(expected)


def test_a_run_is_tested_once_and_what_it_came_to_lies_in_its_folder(run, people):
    first = external.test(run, people)
    (record,) = (run.path / "external").glob("*.json")
    kept = json.loads(record.read_text())
    assert kept["test"] == first.metrics and kept["clips"] == 6 and kept["fingerprint"] == people.fingerprint
    assert run.finished and not run.damage()
    written = record.stat().st_mtime_ns
    again = external.test(Run(run.path), people)
    assert again.metrics == first.metrics and np.array_equal(again.ranks.a2t, first.ranks.a2t)
    assert record.stat().st_mtime_ns == written


@pytest.mark.parametrize("ending", [".json", ".npz"])
@pytest.mark.parametrize("damage", ["cut", "gone", "other"])
def test_what_is_damaged_is_named_and_made_anew(run, people, ending, damage):
    first = external.test(run, people)
    (record,) = (run.path / "external").glob("*.json")
    path = record.with_suffix(ending)
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-9] if damage == "cut" else content.replace(content[90:93], b"999"))
    if damage == "gone" and ending == ".json":  # as if it had never been tested
        again = external.test(run, people)
    else:
        with pytest.warns(UserWarning, match=rf"{record}: cannot be read \(.*Now made anew"):
            again = external.test(run, people)
    assert again.metrics == first.metrics and np.array_equal(again.ranks.t2a, first.ranks.t2a)
    assert run.external(record.stem).metrics == first.metrics


def test_another_corpus_or_another_hearing_is_another_test(run, people, monkeypatch):
    part = people.split("test")
    other = replace(part, captions=part.captions.assign(caption=part.captions["caption"] + " loudly"))
    names_ = {external._name(run.config, part, None), external._name(run.config, other.split("test"), None)}
    names_ |= {external._name(run.config, part, window) for window in (1.0, 2.0)}
    assert len(names_) == 4


def test_windows_are_averaged_as_an_embedder_does_it(run, corpus, people, folder, tmp_path):
    config = RunConfig(**SETTINGS | {"max_seconds": 1.0, "epochs": 0})
    run = fit(config, corpus, runs=tmp_path)
    found = external.test(run, people)
    embedder = Embedder(run, windows="mean")
    sounds = embedder.sounds([folder / f"{number}.wav" for number in range(6)])
    similarity = embedder.similarity(embedder.sentences(people.captions["caption"].tolist()), sounds)
    assert np.array_equal(found.ranks.t2a, retrieval.ranks(similarity, found.relevance).t2a)
    whole = external.test(run, people, windows=None)
    assert len(list((run.path / "external").glob("*.json"))) == 2 and whole.metrics.keys() == found.metrics.keys()
    with pytest.raises(ValueError, match="windows: 'max'; known: 'mean'"):
        external.test(run, people, windows="max")


def test_runs_joined_are_tested_by_their_mean_similarity(run, corpus, people, folder, tmp_path):
    other = fit(RunConfig(**SETTINGS | {"seed": 1, "embedding_dim": 24}), corpus, runs=tmp_path)
    sentences, sounds = people.captions["caption"].tolist(), [folder / f"{number}.wav" for number in range(6)]
    embedders = [Embedder(one) for one in (run, other)]
    parts = [one.similarity(one.sentences(sentences), one.sounds(sounds)) for one in embedders]
    expected = retrieval.ranks((parts[0] + parts[1]) / 2, np.repeat(np.arange(6), 2))
    one, two = (external.similarity(run, people) for run in (run, other))
    found = external.rank((one + two) / 2, people)
    assert np.array_equal(found.ranks.t2a, expected.t2a) and found.metrics == retrieval.retrieval_metrics(expected)
    assert external.rank(one, people).metrics == external.test(run, people).metrics


def test_a_bank_of_sentences_takes_from_each_clip_how_near_it_is_to_them(run, people, folder):
    bank = ["Rain falls.", "a bell rings twice", "somebody walks away"]
    plain, less = (external.similarity(run, people, bank=sentences) for sentences in (None, bank))
    embedder = Embedder(run)
    sounds = embedder.sounds([folder / f"{number}.wav" for number in range(6)])
    near = embedder.similarity(embedder.sentences(bank), sounds).double()
    expected = (20 * near).exp().mean(0).log() / 20
    assert (plain - less).numpy() == pytest.approx(expected.expand(12, 6).numpy(), abs=1e-6)
    assert np.array_equal(external.rank(less, people).ranks.a2t, external.rank(plain, people).ranks.a2t)


def test_a_bank_leaves_out_what_is_tested_on_and_wants_captions(run, people):
    tested = [f" {caption.upper()} " for caption in people.captions["caption"]]
    bank = ["Rain falls.", "a bell rings twice"]
    plain = external.similarity(run, people, bank=bank)
    assert torch.equal(external.similarity(run, people, bank=pd.Series([*tested, *bank])), plain)
    for wrong, words in [
        (tested, "bank has shape"),
        ("rain", "sentences: one text, 'rain'; give a list of them"),
        (["rain", None], "sentence None: no text; leave out what has no caption"),
    ]:
        with pytest.raises(ValueError, match=words):
            external.similarity(run, people, bank=wrong)


def test_what_cannot_be_tested_is_named(run, people, corpus, tmp_path):
    with pytest.raises(ValueError, match="corpus 'csv': no test clips; load it with a split 'test'"):
        external.test(run, replace(people, clips=people.clips.assign(split="train")))
    with pytest.raises(FileNotFoundError, match="not finished; atr.fit"):
        external.test(Run(str(tmp_path / "nothing")), people)


def test_a_text_aware_run_is_tested_by_its_similarities(corpus, people, folder, tmp_path):
    changes = {
        "training": "scratch",
        "audio_weights": None,
        "text_aware": {"projection_dim": 16},
        "max_seconds": 1.0,
        "epochs": 0,
    }
    run = fit(RunConfig(**SETTINGS | changes), corpus, runs=tmp_path)
    found = external.test(run, people)
    embedder = Embedder(run)
    sounds = embedder.sounds([folder / f"{number}.wav" for number in range(6)])
    similarity = embedder.similarity(embedder.sentences(people.captions["caption"].tolist()), sounds)
    assert np.array_equal(found.ranks.t2a, retrieval.ranks(similarity, found.relevance).t2a)
    with pytest.raises(ValueError, match="is text-aware, so that its sounds have no one embedding; leave it out"):
        external.similarity(run, people)


def made(folder, shares):
    """Runs by seed, and of each a test on another corpus of which a share is found first: (config, run, test)."""
    found = []
    for seed, share in enumerate(shares):
        config = get_profile("smoke").config("soundscapes", "frozen", "nt_xent", seed)
        run = made_run(folder, f"{seed}abc", config, ranks_with(0.5, 120, seed), ranks_with(0.5, 60, seed))
        ranks = Ranks(ranks_with(share, 100, seed)[:, None], ranks_with(share, 20, seed)[:, None])
        found.append((config, run, ExternalTest(ranks, np.repeat(np.arange(20), 5))))
    return found


@pytest.fixture
def table(profile, tmp_path, monkeypatch):
    found = made(tmp_path, (0.4, 0.5, 0.6))
    tests = {run.address: test for _, run, test in found}
    monkeypatch.setattr(tables, "test", lambda run, corpus, root: tests[run.address])
    return tables.run_table([(config, run) for config, run, _ in found], profile)


def test_tables_have_columns_beside_the_runs_own(table):
    assert table["people_t2a_r1"].tolist() == [40, 50, 60] and table["t2a_r1"].tolist() == [50] * 3
    summary = tables.summary(table, ["loss"])
    assert summary["people_t2a_r10"].item() == 50 and summary["people_t2a_r10_std"].item() == pytest.approx(10)
    shown = tables.formatted(tables.intervals(summary, table))
    headings = ["people: T→A R@1", "people: T→A R@1, 95 %", "people: T→A R@10", "people: T→A R@10, 95 %"]
    assert list(shown)[-6:-2] == headings and shown["people: T→A R@10"].item() == "50.0 ± 10.0"
    assert "T→A mAP@10, 95 %" in shown and list(shown)[-2:] == ["people: T→A mAP@10", "people: T→A mAP@10, 95 %"]


def test_intervals_are_over_recordings_and_seeds(table):
    found = tables.intervals(tables.summary(table, ["loss"]), table, "people_t2a_r10").iloc[0]
    scores = np.stack([statistics.clip_scores(one.ranks, one.relevance) for one in table["people_run"]])
    expected = statistics.crossed_interval(scores)
    assert scores.shape == (3, 20)
    assert (found["people_t2a_r10_low"], found["people_t2a_r10_high"]) == (expected.low, expected.high)


def test_chance_stands_below_and_files_hold_numbers_alone(table, tmp_path):
    chance = tables.chance(table)
    assert chance["soundscapes"]["people_t2a_r1"] == pytest.approx(5)
    summary = tables.intervals(tables.summary(table, ["corpus", "loss"]), table)
    below = tables.with_baselines(summary, table, chance)
    assert below["people_t2a_r10"].tolist() == [50, 50, pytest.approx(50)]
    output.save(table, tmp_path, "all", "All runs.", [])
    saved = pd.read_csv(tmp_path / "tables" / "all.csv", dtype=str, keep_default_na=False)
    assert {"people_t2a_r1", "people_t2a_r10", "people_t2a_map10"} <= set(saved) and not {"run", "people_run"} & set(
        saved
    )
    assert "people: T→A R@1" in names.readable(saved)


def test_the_live_table_has_them_once_it_is_complete(table, profile):
    outcome = Runs([run.config for run in table["run"]], list(table["run"]))
    partial, complete = (tables.progress(runs, 3, profile, ["loss"]).data for runs in (list(outcome), outcome))
    assert not any("people" in name for name in partial) and "people: T→A R@1" in complete


def test_nothing_that_a_search_tried_is_in_the_whole_table_and_two_parts_of_a_grid_can_be_joined(table, profile):
    first, second, third = (Runs([run.config], [run], trials={run.address}) for run in table["run"])
    second.trials = set()
    both = first + second + Runs(third.configs, [None], {0: "killed"}) + third
    assert both.configs == [run.config for run in table["run"].iloc[[0, 1, 2, 2]]]
    assert both.failures == {2: "killed"} and both.runs[3] is third.runs[0]
    assert both.trials == first.trials | third.trials
    assert (first + Runs(first.configs, first.runs)).trials == set()  # reported in one of them
    (seeds,) = tables.progress(both, 4, profile, ["loss"]).data["seeds"]
    assert seeds == "1"


def test_a_table_of_real_runs_has_them(run, profile):
    table = tables.run_table([(run.config, run)], profile)
    assert table["people_t2a_r10"].item() == external.test(run, profile.external_corpora()["people"]).metrics["t2a_r10"]


def test_without_the_files_tables_go_without_and_a_line_says_what_is_missing(
    run, profile, monkeypatch, tmp_path, capsys
):
    monkeypatch.delenv("ATR_PEOPLE")
    monkeypatch.setenv("ATR_HOME", str(tmp_path))
    table = tables.run_table([(run.config, run)], profile)
    assert "t2a_r1" in table and not any("people" in name for name in table)
    assert list(tables.formatted(tables.summary(table, ["loss"])))[1:] == [
        names.HEADINGS[name] for name in names.MEASURES
    ]
    monkeypatch.setattr(tables, "run_all", lambda *given, **options: Runs([], []))
    tables.run_grid([], profile, ["loss"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "people" in line]
    for words in ("no columns 'people'", "run: atr data esc50", "run: atr data clotho", "zenodo.org", "ATR_PEOPLE"):
        assert words in line


def test_a_folder_that_is_named_and_not_there_is_an_error(profile, monkeypatch, tmp_path):
    monkeypatch.setenv("ATR_PEOPLE", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="none: no such folder of audio"):
        profile.external_corpora()


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published weights and recordings are not here")
def test_published_weights_hear_people(corpus, tmp_path, monkeypatch):
    weights = str(SHARED / "weights" / "mn04_as_mAP_432.pt")
    config = RunConfig(**SETTINGS | {"audio_encoder": "mn04", "audio_weights": weights, "epochs": 3, "augment": None})
    run = fit(config, corpus, runs=tmp_path)
    whole = load_corpus("csv", SHARED / "data" / "human_captions", split="test")
    assert len(whole) == 65
    part = whole.split("test")
    few = replace(part, clips=part.clips[:6], captions=part.captions[:30])
    found = external.test(run, few)
    assert found.ranks.t2a.shape == (30, 1) and 0 <= found.metrics["t2a_r1"] <= 100
