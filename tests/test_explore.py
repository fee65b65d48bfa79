import dataclasses
import json
import shutil
import unicodedata
import warnings

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from made_runs import change_embeddings, run_on_three_clips, three_clips

from atr import Embedder, RunConfig, fit, metrics
from atr.analysis import explore, maps
from atr.reports import figures
from atr.training.records import Run

matplotlib.use("agg")
TINY = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    figures.plt.close("all")


@pytest.fixture
def made():
    return three_clips()


@pytest.fixture
def run(tmp_path, made):
    return run_on_three_clips(tmp_path / "runs", "a", made)


@pytest.fixture
def unprojected(monkeypatch):
    """Maps that are the first two dimensions."""
    monkeypatch.setattr(maps, "project", lambda audio, text, seed, neighbours: (audio[:, :2], text[:, :2]))


def text_aware(run):
    """The run with its similarities in place of its clips' embeddings."""
    known = run.embeddings
    change_embeddings(run, similarity=known["text"] @ known["audio"].T, audio=None)
    return Run(run.path)


@pytest.fixture(scope="module", params=["frozen", "text-aware"])
def trained(request, corpus, tmp_path_factory):
    changes = {"frozen": {}, "text-aware": {"training": "finetuned", "text_aware": {"projection_dim": 16}}}
    config = RunConfig(corpus=TINY, epochs=1, batch_size=16, embedding_dim=16, **changes[request.param])
    return fit(config, corpus, runs=tmp_path_factory.mktemp("runs"))


def test_clips_come_by_similarity_and_every_right_one_comes_behind_the_best(run, made):
    table = explore.rank_clips(run, made, "It rains!", top=1)  # a caption of two clips, as the model reads it
    assert table["clip"].tolist() == ["<dog>.wav", "bell.wav", "rain.wav"] and table["rank"].tolist() == [1, 2, 3]
    np.testing.assert_allclose(table["similarity"], [1, 0.8, 0], atol=1e-6)
    assert table["right"].tolist() == [False, True, True]
    assert table["caption"].tolist() == ["a dog barks & barks", "a bell rings", "rain falls"]
    assert explore.rank_clips(run, made, "rain falls", top=2)["clip"].tolist() == ["rain.wav", "bell.wav"]


def test_a_right_clip_loses_ties_as_the_metrics_have_it(run, made):
    change_embeddings(run, text=torch.ones(6, 2), audio=torch.ones(3, 2))
    table = explore.rank_clips(Run(run.path), made, "rain falls")
    assert table["right"].tolist() == [False, False, True]
    assert metrics.ranks(np.ones((1, 3)), np.eye(3, dtype=bool)[:1]).best("t2a") == [3]


def test_relevance_by_a_matrix_and_text_aware_similarities_rank_alike(run, made):
    expected = explore.rank_clips(run, made, "it rains")
    known = run.embeddings["relevance"]
    change_embeddings(run, relevance=torch.nn.functional.one_hot(known).bool())
    for other in (Run(run.path), text_aware(Run(run.path))):
        assert explore.rank_clips(other, made, "it rains").equals(expected)


def test_captions_come_by_their_similarity_to_a_clip(run, made):
    table = explore.rank_captions(run, made, "bell.wav", top=2)
    assert table["caption"].tolist() == ["a bell rings", "a dog barks & barks", "it rains"]
    assert table["rank"].tolist() == [1, 2, 5] and table["right"].tolist() == [True, False, True]
    np.testing.assert_allclose(table["similarity"], [1, 0.96, 0.8], atol=1e-6)
    with pytest.raises(ValueError, match="no test clip 'seen' in 'made'; it has 'rain.wav' and 2 more"):
        explore.rank_captions(run, made, "seen")


def test_runs_are_compared_by_the_rank_that_each_gives_a_clip(run, made, tmp_path):
    other = run_on_three_clips(tmp_path / "runs", "b", made, turned=True)
    table = explore.compare_runs({"one": run, "other": other}, made, "barking", top=1)
    assert table["clip"].tolist() == ["<dog>.wav", "rain.wav"]
    assert table["one"].tolist() == [1, 3] and table["other"].tolist() == [3, 1]
    assert table["right"].tolist() == [True, False]


def test_the_worst_queries_come_with_what_came_first_instead(run, made):
    table = explore.failures(run, made, 2)
    assert table["caption"].tolist() == ["it rains", "a dog barks & barks"] and table["rank"].tolist() == [3, 3]
    assert table["clip"].tolist() == ["rain.wav", "<dog>.wav"] and table["first"].tolist() == ["<dog>.wav", "bell.wav"]
    np.testing.assert_allclose(table["similarity"], [0, 0.6], atol=1e-6)
    np.testing.assert_allclose(table["first_similarity"], [1, 0.96], atol=1e-6)
    assert table["first_caption"].tolist() == ["a dog barks & barks", "a bell rings"]
    assert explore.failures(run, made)["rank"].tolist() == [3, 3, 2]  # those with rank 1 are none


def test_a_run_without_failures_has_an_empty_table(run, made):
    change_embeddings(run, t2a=torch.ones(6, 1, dtype=torch.long))
    assert len(explore.failures(Run(run.path), made)) == 0


def test_neighbours_are_the_nearest_of_both_kinds(run, made):
    table = explore.neighbours(run, made, "bell.wav", 2)
    assert table["kind"].tolist() == ["clip", "clip", "caption", "caption"] and table["place"].tolist() == [1, 0, 4, 2]
    assert table["clip"].tolist() == ["<dog>.wav", "rain.wav", "bell.wav", "<dog>.wav"]
    assert table["caption"].tolist()[1:] == ["rain falls", "a bell rings", "a dog barks & barks"]
    np.testing.assert_allclose(table["similarity"], [0.8, 0.6, 1, 0.96], atol=1e-6)
    near = explore.neighbours(run, made, "rain falls", 20)  # itself is none of them
    assert near["kind"].tolist() == ["clip"] * 3 + ["caption"] * 5 and near["clip"][0] == "rain.wav"
    assert "rain falls" not in near.loc[near["kind"] == "caption", "caption"].tolist()
    with pytest.raises(ValueError, match="'thunder' is no test clip of 'made' and no test caption"):
        explore.neighbours(run, made, "thunder")


def test_a_map_marks_a_clip_and_its_neighbours(run, made, unprojected):
    figure = explore.neighbourhood(run, made, "bell.wav", 1, "one run")
    _, _, nearest, own = figure.axes[0].collections
    np.testing.assert_allclose(nearest.get_offsets(), [[0, 1], [0.6, 0.8]], atol=1e-6)
    np.testing.assert_allclose(own.get_offsets(), [[0.6, 0.8]], atol=1e-6)
    said = [entry.get_text() for entry in figure.legends[-1].get_texts()]
    assert said == ["6 captions", "3 clips", "its 1 nearest of either", "clip bell.wav"] and len(figure.legends) == 1
    assert explore.map_of(run, made) is explore.map_of(Run(run.path), made)


def test_with_text_aware_pooling_there_is_no_map_and_it_says_why(run, made):
    for ask in (explore.map_of, lambda *run: explore.neighbours(*run, "bell.wav")):
        with pytest.raises(ValueError, match="text-aware pooling a clip has an embedding for each caption"):
            ask(text_aware(run), made)


def test_words_that_no_training_caption_has(made):
    assert explore.unknown_words(made, "Somebody's car, ein Hund: a hund & 3 perros") == ["ein", "hund", "perros"]
    assert explore.unknown_words(made, "A car.") == []


def stale(run):
    record = json.loads((run.path / "config.json").read_text())
    (run.path / "config.json").write_text(json.dumps({**record, "result_version": 0}))


@pytest.mark.parametrize(
    "harm, said",
    [
        (lambda run: shutil.rmtree(run.path), "no such run, it may have been removed; choose another"),
        (lambda run: (run.path / "metrics.json").unlink(), "not finished; atr.fit"),
        (stale, "by an older version, whose results differ"),
    ],
)
def test_a_run_that_cannot_answer_says_why(run, made, harm, said):
    harm(run)
    for ask in (explore.failures, explore.map_of, lambda *run: explore.rank_clips(*run, "it rains")):
        with pytest.raises(ValueError, match=said):
            ask(Run(run.path), made)


def test_a_run_with_an_error_beside_it_has_failed(run, made):
    (run.path / "metrics.json").unlink()
    (run.path / "error.txt").write_text("no memory")
    with pytest.raises(ValueError, match="failed, as its error.txt says"):
        explore.failures(run, made)


def test_a_sentence_without_words_is_an_error(run, made):
    for sentence in ("", "  ?!"):
        with pytest.raises(ValueError, match="no words; describe a sound in a few"):
            explore.rank_clips(run, made, sentence)


def test_all_finished_runs_are_found_by_what_they_are(run, made, tmp_path):
    folder = run.path.parent
    other = run_on_three_clips(folder, "bcd", made, RunConfig(seed=3))
    strange = run_on_three_clips(folder, "c", made)
    record = json.loads((strange.path / "config.json").read_text())
    (strange.path / "config.json").write_text(json.dumps({**record, "config": {"unknown": 1}}))
    stale(run_on_three_clips(folder, "e", made))
    twin = run_on_three_clips(folder, "f", made)
    menu = explore.run_menu(folder, [run])
    assert list(menu.values())[0] == run and set(menu.values()) == {run, other, strange, twin}
    assert list(menu)[0] == "NT-Xent · frozen · seed 0"
    by_run = {one.address: label for label, one in menu.items()}
    assert by_run["bcd"] == "NT-Xent · frozen · seed 3" and by_run["c"] == "of another version"
    assert by_run["f"] == "NT-Xent · frozen · seed 0 · f"  # the same but for its data, which it does not say
    with pytest.raises(ValueError, match="unknown"):
        explore.failures(strange, made)


def test_runs_that_agree_in_loss_training_and_seed_say_in_what_they_differ(run, made):
    folder = run.path.parent
    run_on_three_clips(folder, "b", made, RunConfig(batch_size=64))
    run_on_three_clips(folder, "c", made, RunConfig(loss={"name": "triplet_max", "margin": 0.3}, epochs=9))
    labels = set(explore.run_menu(folder, [run]))
    assert {"NT-Xent · frozen · seed 0", "NT-Xent · frozen · seed 0 · batch_size 64"} < labels
    (other,) = [label for label in labels if label.startswith("Triplet-max")]
    assert "loss.margin 0.3" in other and "epochs 9" in other


def test_a_corpus_is_made_once(tmp_path):
    corpus_of = explore.corpora()
    configs = [RunConfig(corpus=TINY, seed=seed) for seed in (0, 1)]
    assert corpus_of(configs[0]) is corpus_of(configs[1]) and len(corpus_of(configs[0]).split("test")) == 16


def test_any_sentence_is_ranked_as_the_model_embeds_it_and_test_captions_as_the_run_was_tested(trained, corpus):
    part = corpus.split("test")
    embedder = Embedder(trained, corpus, device="cpu")
    sounds = embedder.sounds([corpus.read(clip)[0] for clip in part.clips["clip"]])
    expected = embedder.similarity(embedder.sentences(["a dog and a whistle"]), sounds)[0]
    table = explore.rank_clips(trained, corpus, "a dog and a whistle", top=16, device="cpu")
    found = table.set_index("clip")["similarity"][part.clips["clip"]]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert table["similarity"].is_monotonic_decreasing and not table["right"].any()
    rank = trained.ranks.best("t2a")[7]
    table = explore.rank_clips(trained, corpus, part.captions["caption"][7], device="cpu")
    assert rank in table.loc[table["right"], "rank"].tolist()


def test_words_are_known_in_either_spelling_and_script(made):
    said = pd.DataFrame({"clip": ["seen"], "caption": "a Käuzchen, somebody’s, हिन्दी"})
    heard = dataclasses.replace(made, captions=pd.concat([made.captions[1:], said]))
    sentence = unicodedata.normalize("NFD", "KÄUZCHEN somebody's somebodyʼs हिन्दी Bäche")
    assert explore.unknown_words(heard, sentence) == ["bäche"]


@pytest.mark.parametrize("aware", [False, True])
def test_captions_of_a_clip_need_no_matrix_of_all(run, made, monkeypatch, aware):
    expected = explore.rank_captions(run, made, "bell.wav")
    monkeypatch.setattr(explore, "similarity", None)
    monkeypatch.setattr(explore, "_right", None)
    found = explore.rank_captions(text_aware(run) if aware else run, made, "bell.wav")
    assert found["caption"].tolist() == expected["caption"].tolist() and found["right"].sum() == 2
    np.testing.assert_allclose(found["similarity"], expected["similarity"], atol=1e-6)


def test_a_map_says_the_names_of_clips_as_they_are(tmp_path, made, unprojected):
    name = r"$\frac{$ 狗.wav"
    for table in (made.clips, made.captions):
        table["clip"] = table["clip"].replace("bell.wav", name)
    figure = explore.neighbourhood(run_on_three_clips(tmp_path / "runs", "b", made), made, name, 1, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.canvas.draw()
    assert figure.legends[-1].get_texts()[-1].get_text() == f"clip {name}" and figure.axes[0].get_title() == name
