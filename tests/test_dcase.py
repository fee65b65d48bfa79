"""DCASE files: what stands in them by hand, and that reading them back gives the metrics of what was written."""

import csv
import dataclasses
import json
import shutil
import tracemalloc

import made_models
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from scipy import sparse
from test_readme import blocks

from atr import Embedder, RunConfig, fit, metrics
from atr.corpora import audio, containers
from atr.corpora.corpus import Corpus
from atr.encoders.clap import Clap
from atr.inference.dcase import embed, export, read, relevance, same_events, score, write, write_scores
from atr.metrics import retrieval
from atr.training.records import Run

TINY = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
QUERIES = ["A dog barks", 'rain, and "more" rain', "Ein Käuzchen ruft\nзимой 鳥"]
NAMES = ["dog.wav", "rain, heavy.wav", 'Käuzchen "1".wav', "zug.wav"]
SCORES = np.array([[0.9, 0.1, 0.3, 0.2], [0.2, 0.7, 0.2, 0.8], [-0.5, -0.1, -0.3, -0.2]])


def drawn(queries=40, files=25, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    text, sound = (torch.randn(n, dim, generator=generator) for n in (queries, files))
    return text, sound, [f"query {row}" for row in range(queries)], [f"{place:02}.wav" for place in range(files)]


def several_answers(queries=40, files=25, seed=0):
    """Relevance of one to four files a query; the last two files answer none."""
    rng = np.random.default_rng(seed)
    matrix = np.zeros((queries, files), dtype=bool)
    for row in matrix:
        row[rng.choice(files - 2, size=rng.integers(1, 5), replace=False)] = True
    return matrix


def lines(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def table(path, *rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


# Writing


def test_a_submission_by_hand_with_commas_quotes_lines_and_unicode(tmp_path):
    write(tmp_path / "out.csv", QUERIES, NAMES, SCORES, top=3)
    dog, rain, owl, train = NAMES
    assert lines(tmp_path / "out.csv") == [
        ["caption", "file_name_1", "file_name_2", "file_name_3"],
        [QUERIES[0], dog, owl, train],
        [QUERIES[1], train, rain, owl],  # 0.2 twice: "K" stands before "d"
        [QUERIES[2], rain, train, owl],
    ]


def test_ten_names_are_the_default(tmp_path):
    text, sound, queries, names = drawn()
    write(tmp_path / "out.csv", queries, names, (text, sound))
    assert lines(tmp_path / "out.csv")[0] == ["caption", *(f"file_name_{place}" for place in range(1, 11))]


def test_equal_scores_are_ordered_by_name(tmp_path):
    names = ["c.wav", "a.wav", "d.wav", "b.wav"]
    write(tmp_path / "out.csv", ["anything"], names, np.zeros((1, 4)), top=4)
    assert lines(tmp_path / "out.csv")[1][1:] == sorted(names)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("embedded", [False, True])
def test_the_order_of_the_files_has_no_say(tmp_path, embedded, ties):
    text, sound, queries, names = drawn()
    if ties:
        sound = sound[torch.arange(25) % 5]
    order = np.random.default_rng(0).permutation(25)
    whole, shuffled = (text, sound), (text, sound[order])
    if not embedded:
        whole, shuffled = ((text @ part.T).round(decimals=0 if ties else 9) for part in (sound, sound[order]))
    write(tmp_path / "out.csv", queries, names, whole)
    write(tmp_path / "shuffled.csv", queries, [names[place] for place in order], shuffled)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "shuffled.csv").read_bytes()


def test_how_many_queries_are_taken_at_a_time_has_no_say(tmp_path, monkeypatch):
    text, sound, queries, names = drawn(dim=2)
    write(tmp_path / "whole.csv", queries, names, (text, sound))
    monkeypatch.setattr(retrieval, "BLOCK", 75)
    write(tmp_path / "parts.csv", queries, names, (text, sound))
    assert (tmp_path / "whole.csv").read_bytes() == (tmp_path / "parts.csv").read_bytes()


def test_the_scores_of_every_file_come_back_bit_by_bit(tmp_path):
    text, sound, queries, names = drawn()
    similarity = text @ sound.T
    write_scores(tmp_path / "out.csv", queries, names, similarity)
    found = pd.read_csv(tmp_path / "out.csv", index_col="index")
    assert found.index.tolist() == queries and found.columns.tolist() == names
    np.testing.assert_array_equal(found.to_numpy().astype(np.float32), similarity.numpy())


def test_what_cannot_be_written_is_refused_and_the_older_file_stays(tmp_path):
    path = tmp_path / "out.csv"
    write(path, QUERIES, NAMES, SCORES, top=1)
    before = path.read_bytes()
    broken = SCORES.copy()
    broken[1, 2] = np.nan
    for arguments, message in [
        ((QUERIES, NAMES, broken, 1), "query 1 has non-finite scores; look for a diverged"),
        ((QUERIES, NAMES, (broken, SCORES[[0, 1, 2, 0]]), 1), "query 1 has non-finite scores"),
        ((QUERIES, [*NAMES[:3], NAMES[0]], SCORES, 1), "'dog.wav' is given twice; give each file a name of its own"),
        ((QUERIES, NAMES[:3], SCORES, 1), r"\(3, 4\) for 3 queries and 3 files; give"),
        ((QUERIES[:2], NAMES, SCORES, 1), r"\(3, 4\) for 2 queries and 4 files"),
        ((QUERIES, NAMES, (SCORES, SCORES), 1), r"\(3, 4\) and \(3, 4\) for 3 queries and 4 files"),
        ((QUERIES, NAMES, (SCORES[:, :3], SCORES[[0, 1, 2, 0]]), 1), r"\(3, 3\) and \(4, 4\) for 3 queries"),
        ((QUERIES, NAMES, SCORES), "the 10 best of 4 files; give top=1 to 4"),
        ((QUERIES, NAMES, SCORES, 0), "the 0 best of 4 files"),
    ]:
        with pytest.raises(ValueError, match=message):
            write(path, *arguments)
    with pytest.raises(ValueError, match="query 1 has non-finite scores"):
        write_scores(path, QUERIES, NAMES, broken)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# Reading and scoring


def test_what_is_written_is_read(tmp_path):
    queries = [*QUERIES[:2], "NA"]  # which is a text, not a missing value
    write(tmp_path / "out.csv", queries, NAMES, SCORES, top=2)
    found = read(tmp_path / "out.csv", queries, NAMES)
    assert found.columns.tolist() == ["caption", "file_name_1", "file_name_2"]
    assert found["caption"].tolist() == queries
    assert found["file_name_1"].tolist() == ["dog.wav", "zug.wav", "rain, heavy.wav"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("embedded", [False, True])
def test_the_score_of_a_file_is_that_of_its_similarities(tmp_path, seed, embedded):
    text, sound, queries, names = drawn(seed=seed)
    similarity = (text, sound) if embedded else text @ sound.T
    clip_of = np.random.default_rng(seed).permutation(np.arange(40) % 25)
    write(tmp_path / "out.csv", queries, names, similarity)
    found = score(tmp_path / "out.csv", queries, names, clip_of)
    direct = metrics.retrieval_metrics(similarity, clip_of)
    assert found == {name: direct[name] for name in ("t2a_r1", "t2a_r5", "t2a_r10", "t2a_map10")}


@pytest.mark.parametrize("seed", range(3))
def test_with_several_relevant_files_too(tmp_path, seed):
    text, sound, queries, names = drawn(seed=seed)
    fits = several_answers(seed=seed)
    fits[0, -2:] = True  # retrieval_metrics wants a query for every file
    write(tmp_path / "out.csv", queries, names, (text, sound), top=16)
    found = score(tmp_path / "out.csv", queries, names, fits, ks=(1, 16), map_at=16)
    direct = metrics.retrieval_metrics((text, sound), fits, ks=(1, 16), map_at=16)
    assert found == {name: direct[name] for name in ("t2a_r1", "t2a_r16", "t2a_map16")}


def test_scores_by_hand_where_a_file_answers_nothing(tmp_path):
    rows = [["q", "a", "b", "c"], ["r", "c", "b", "a"], ["s", "d", "c", "b"]]
    path = table(tmp_path / "out.csv", ["caption", "file_name_1", "file_name_2", "file_name_3"], *rows)
    fits = np.array([[1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [1, 0, 0, 0, 0]], dtype=bool)  # of a to e: e answers nothing
    found = score(path, ["q", "r", "s"], list("abcde"), fits, ks=(1, 2), map_at=3)
    precisions = [(1 + 2 / 3) / 2, (1 / 2 + 2 / 3) / 3, 0]  # d, the third answer to r, is not listed
    assert found == pytest.approx({"t2a_r1": 100 / 3, "t2a_r2": 200 / 3, "t2a_map3": 100 * np.mean(precisions)})


def test_map_at_16_of_many_to_many_relevance_by_hand():
    # 20 files in falling order for query 0, in rising order for query 1.
    similarity = np.stack([-np.arange(20.0), np.arange(20.0)])
    fits = np.zeros((2, 20), dtype=bool)
    fits[0, [0, 3, 15, 16]] = True  # ranks 1, 4, 16 and 17, the last beyond the cut
    fits[1] = ~fits[0]  # not at ranks 4, 5, 17 and 20
    expected = (1 + 2 / 4 + 3 / 16) / 4, sum(n / rank for n, rank in enumerate([1, 2, 3, *range(6, 17)], start=1)) / 16
    found = metrics.retrieval_metrics(similarity, fits, map_at=16)
    assert found["t2a_map16"] == pytest.approx(100 * np.mean(expected))


def test_bad_submissions_are_named_with_the_mend(tmp_path):
    path, header = tmp_path / "out.csv", ["caption", "file_name_1", "file_name_2"]
    for rows, message in [
        ([["caption", "name_1"], ["q", "a"]], "the header is 'caption', 'name_1'; it must be caption, file_name_1, …"),
        ([["caption"], ["q"]], "the header is 'caption'; it must be"),
        (
            [[*header[:2], "file_name_1"], ["q", "a", "b"]],
            r"no table in CSV \(column 'file_name_1' is there twice\)",
        ),
        ([["a" * 9] + [f"c{n}" for n in range(20_000)]], "'c10' and 19989 more; it must be"),
        ([header, ["q", "a", "\0"]], "line 2: no table in CSV .*0x00"),
        ([header, ["q", "a", "b"]], "1 rows for 2 queries; give each query its row"),
        ([header, ["r", "a", "b"], ["q", "a", "b"]], "row 1: 'r' where the query is 'q'; keep the order"),
        ([header, ["q", "a", "b"], ["r", "b", "b"]], "row 2: file name 'b' is there twice; name each file once"),
        ([header, ["q", "a", "b"], ["r", "b", ""]], "row 2: no file name at place 2; fill every place"),
        ([header, ["q", "a", "b"], ["r", "b"]], "row 2: 2 fields where the header has 3; put quotes around"),
        ([header, ["q", "a", "x"], ["r", "b", "a"]], "row 1: unknown file name 'x'; use the names of the files"),
        ([header, ["q", "a", "b"], ["r", "b", "a", "c"]], "row 2: 4 fields where the header has 3; put quotes"),
        ([], r"no table in CSV \(is empty\); save the table again as CSV"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            read(table(path, *rows), ["q", "r"], ["a", "b"])
        assert str(caught.value).startswith(str(path))
    path.write_bytes(b"caption,file_name_1\nK\xe4uzchen,a\n")
    with pytest.raises(ValueError, match=r"csv, line 2: no table in CSV \(byte 21 of the file, 0xe4, is no UTF-8"):
        read(path)


def test_relevance_that_does_not_fit_a_submission_is_refused(tmp_path):
    path = tmp_path / "out.csv"
    write(path, QUERIES, NAMES, SCORES, top=2)
    fits = np.eye(3, 4, dtype=bool)
    with pytest.raises(ValueError, match="lists 2 files a query, too few for a cut at 10; lower ks or map_at"):
        score(path, QUERIES, NAMES, fits)
    for wrong in (fits[:2], fits.astype(float), np.arange(2)):
        with pytest.raises(ValueError, match="give the index of each query's file, or booleans"):
            score(path, QUERIES, NAMES, wrong, ks=(1,), map_at=2)
    fits[1] = False
    with pytest.raises(ValueError, match="1 of 3 queries have no relevant file, the first is 1 .*; score without"):
        score(path, QUERIES, NAMES, fits, ks=(1,), map_at=2)
    with pytest.raises(ValueError, match="1 of 3 queries have no relevant file, the first is 2"):
        score(path, QUERIES, NAMES, np.array([0, 1, 4]), ks=(1,), map_at=2)


# Relevance


@pytest.mark.parametrize("column", ["caption", "query"])
def test_relevance_from_pairs_and_from_lists(tmp_path, column):
    queries, names = ["q, r", "s", "q, r", "t"], ["a.wav", "b's.wav", "c.wav"]
    pairs = table(tmp_path / "1.csv", [column, "file_name"], ["s", "c.wav"], ["q, r", "b's.wav"], ["s", "a.wav"])
    lists = [["s", "['c.wav', 'a.wav']"], ["q, r", '["b\'s.wav"]']]
    annotations = table(tmp_path / "2.csv", [column, "audio_filenames"], *lists)
    for path in (pairs, annotations):
        expected = [[0, 1, 0], [1, 0, 1], [0, 1, 0], [0, 0, 0]]  # a text twice is answered alike; t is left out
        np.testing.assert_array_equal(relevance(path, queries, names), np.array(expected, dtype=bool))


def test_relevance_written_as_pairs_comes_back(tmp_path):
    _, _, queries, names = drawn()
    fits = several_answers()
    pairs = [(queries[row], names[place]) for row, place in zip(*fits.nonzero(), strict=True)]
    path = table(tmp_path / "pairs.csv", ["query", "file_name"], *pairs)
    np.testing.assert_array_equal(relevance(path, queries, names), fits)


def test_bad_relevance_is_named_with_the_mend(tmp_path):
    for rows, message in [
        ([["query", "file"], ["q", "a"]], "the header is 'query', 'file'; it needs query or caption, and file"),
        ([["text", "file_name"], ["q", "a"]], "the header is 'text', 'file_name'; it needs query"),
        ([["query", "file_name"], ["q", "a"], ["x", "a"]], "1 unknown in query, such as 'x'; see the queries given"),
        ([["query", "file_name"], ["q", "x"], ["q", "y"]], "2 unknown in file_name, such as 'x'; see the names"),
        ([["query", "audio_filenames"], ["q", "['a', "]], r"no lists like \['a.wav', 'b.wav'\]"),
        ([["query", "audio_filenames"], ["q", "3"]], "no lists like"),
    ]:
        with pytest.raises(ValueError, match=message):
            relevance(table(tmp_path / "pairs.csv", *rows), ["q", "r"], ["a", "b"])
    with pytest.raises(ValueError, match="'a' is given twice"):
        relevance(table(tmp_path / "pairs.csv", ["query", "file_name"], ["q", "a"]), ["q"], ["a", "a"])


# Clips that no corpus has


@pytest.fixture(scope="module")
def folder(corpus, tmp_path_factory):
    """The test clips of the corpus as files, in order, with all bits of their samples; and its captions."""
    part, root = corpus.split("test"), tmp_path_factory.mktemp("clips")
    files = [root / f"{row:02}.wav" for row in range(len(part))]
    for path, clip in zip(files, part.clips["clip"], strict=True):
        waveform, rate = corpus.read(clip)
        soundfile.write(path, waveform, rate, subtype="FLOAT")
        np.testing.assert_array_equal(audio.read(path)[0], waveform)
    return files, part.captions["caption"].tolist()


def trained(corpus, runs, **changes):
    settings = {"corpus": TINY, "epochs": 1, "batch_size": 16, "embedding_dim": 16}
    return fit(RunConfig(**settings | changes), corpus, runs=runs)


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    return trained(corpus, tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        # a random encoder that stays random, in no checkpoint
        {"training": "frozen_released", "audio_weights": None, "max_seconds": 1.0, "epochs": 0},
    ],
)
def test_files_and_queries_get_the_embeddings_that_the_run_gave_them(corpus, folder, tmp_path, changes):
    run = trained(corpus, tmp_path, **changes)
    state = torch.random.get_rng_state()
    text, sound = embed(run, *folder, device="cpu")
    assert torch.equal(text, run.embeddings["text"]) and torch.equal(sound, run.embeddings["audio"])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_folder_without_captions_goes_from_files_to_a_scored_submission(corpus, run, folder, tmp_path):
    files, captions = folder
    names, queries = [path.name for path in files], captions[::5]
    write(tmp_path / "out.csv", queries, names, embed(run, files, queries, corpus))
    found = score(tmp_path / "out.csv", queries, names, np.arange(16))
    similarity = run.embeddings["text"][::5] @ run.embeddings["audio"].T
    assert found["t2a_map10"] == pytest.approx(metrics.retrieval_metrics(similarity, np.arange(16))["t2a_map10"])


def test_the_readmes_submission_is_written_and_can_be_read(run, folder, tmp_path, monkeypatch):
    files, captions = folder
    space: dict = {}
    exec(blocks()[2], space)
    monkeypatch.chdir(tmp_path)
    space["submit"]([run, run], files, captions[:3])
    found = read("submission.csv", captions[:3], [path.name for path in files])
    alone = embed(run, files, captions[:3])
    write("alone.csv", captions[:3], [path.name for path in files], alone)
    assert found.equals(read("alone.csv"))  # twice the same model is that model


def test_a_query_reaches_a_clap_model_as_it_is(run, folder, corpus, tmp_path, monkeypatch):
    model = made_models.clap(tmp_path / "clap")
    config = RunConfig(TINY, training="external", audio_encoder="clap", epochs=0, text_encoder=str(model))
    external = fit(config, corpus, runs=tmp_path / "runs")
    query, heard = "A Dog barks, then RAIN.", []
    original = Clap.text
    monkeypatch.setattr(Clap, "text", lambda self, *given: heard.extend(given[0]) or original(self, *given))
    text, _ = embed(external, folder[0][:1], [query], corpus)
    assert heard == [query]
    again = F.normalize(original(Clap(model), [query]), dim=1)  # as the dual encoder does, which may move last bits
    assert torch.equal(text, again)
    assert not torch.equal(text, original(Clap(model), [query.lower().replace(",", "")]))


def test_what_cannot_be_embedded_is_named_with_the_mend(run, folder, tmp_path):
    files, captions = folder
    with pytest.raises(ValueError, match="2 files, 1 distinct, and 80 queries; give each file once"):
        embed(run, [files[0], files[0]], captions)
    with pytest.raises(containers.AudioError, match="none.wav: no such file"):
        embed(run, [tmp_path / "none.wav"], captions)
    with pytest.raises(FileNotFoundError, match="not finished; atr.fit"):
        embed(Run(tmp_path / "nothing"), files, captions)
    other = Run(shutil.copytree(run.path, tmp_path / "other"))
    (other.path / "sums.json").unlink()
    made = other.environment
    made["weights"]["audio"] = "0"
    (other.path / "environment.json").write_text(json.dumps(made))
    with pytest.raises(ValueError, match="trained from other audio weights than are here; restore what"):
        embed(other, files, captions)
    kept = load_file(run.path / "checkpoint.safetensors")
    kept.pop("audio_head.0.weight")
    save_file(kept, other.path / "checkpoint.safetensors")
    (other.path / "environment.json").write_text(json.dumps(run.environment))
    with pytest.raises(
        ValueError,
        match=r"checkpoint.safetensors: .* other tensors than the config builds: "
        r"audio_head.0.weight \(none instead of \[.*\]\); train anew, with the run's folder moved away",
    ):
        embed(other, files, captions)
    kept = load_file(run.path / "checkpoint.safetensors")
    kept["audio_head.0.weight"][0, 0] = torch.nan
    save_file(kept, other.path / "checkpoint.safetensors")
    for attempt in (lambda: embed(other, files, captions), lambda: Embedder(other)):
        with pytest.raises(
            ValueError, match="checkpoint.safetensors: not finite, .*: audio_head.0.weight; train anew, "
        ):
            attempt()


def test_an_evaluation_set_is_handed_out_and_its_submission_scored_as_the_run_is(corpus, run, tmp_path):
    part = corpus.split("test")
    files, queries, answers = export(part, tmp_path / "evaluation")
    assert [path.stem for path in files] == part.clips["clip"].tolist() and len(queries) == 16
    assert queries == part.captions.groupby("clip", sort=False)["caption"].first().tolist()
    waveform, rate = audio.read(files[3])
    expected, expected_rate = corpus.read(part.clips["clip"][3])
    assert rate == expected_rate and np.abs(waveform - expected).max() <= 2**-15  # 16 bits
    names = [path.name for path in files]
    write(tmp_path / "out.csv", queries, names, embed(run, files, queries, corpus))
    assert read(tmp_path / "out.csv", queries, names).shape == (16, 11)
    found = score(tmp_path / "out.csv", queries, names, answers)
    first = run.embeddings["text"][::5], run.embeddings["audio"]
    measured = metrics.retrieval_metrics(first, answers)
    assert found == pytest.approx({name: measured[name] for name in found}, abs=100 / 16)  # one query may tip over


def test_a_caption_fits_every_clip_with_the_same_kinds_of_sound(corpus):
    part = corpus.split("test")
    fits = same_events(part)
    kinds = part.events.groupby("clip")["event"].agg(frozenset)
    expected = [[kinds[own] == kinds[clip] for clip in part.clips["clip"]] for own in part.captions["clip"]]
    assert fits.dtype == bool and fits.tolist() == expected and fits.sum() > len(fits)
    silent = dataclasses.replace(part, events=part.events[part.events["clip"] != part.clips["clip"][2]])
    with pytest.raises(ValueError, match="1 clips without events, such as 'test-00002'"):
        same_events(silent)


def made(clips, kinds=None, description=""):
    """A test split of such clips, with a caption each; kinds: names of the sounds in each clip."""
    table = pd.DataFrame({"clip": clips, "split": "test", "duration": 1.0, "digest": "0", "description": description})
    spans = [
        (clip, kind, 0.0, 1.0) for clip, names in zip(clips, kinds or [()] * len(clips), strict=True) for kind in names
    ]
    captions = pd.DataFrame({"clip": clips, "caption": [f"this is {clip}" for clip in clips]})
    events = pd.DataFrame(spans, columns=["clip", "event", "onset", "offset"])
    return Corpus("made", table, captions, events, lambda clip: (np.full(8000, len(clip) / 100, np.float32), 8000))


@pytest.mark.parametrize(
    "one, other",
    [
        (["car horn"], ["car", "horn"]),
        (["Speech, human"], ["Speech", "human"]),
        (["a b", "c"], ["a", "b c"]),
        (["bell"], ["church bell"]),
        (["car_horn"], ["car-horn"]),
        (["bell"], ["bells"]),
    ],
)
def test_a_kind_of_sound_stays_one_whatever_its_name(one, other):
    fits = same_events(made(["first", "second", "third"], [one, other, [*one[::-1], *one]]))
    assert fits.tolist() == [[True, False, True], [False, True, False], [True, False, True]]


def test_clips_get_a_file_each_whatever_their_names(tmp_path):
    clips = [
        "a/b",
        "a_b",
        "a%2Fb",
        "a\\b",
        "..",
        ".hidden",
        "CON",
        "what?",
        "Käuzchen 1.wav",
        "x" * 300,
        "x" * 299 + "y",
    ]
    files, queries, _ = export(made(clips), tmp_path / "out")
    assert len(set(files)) == len(clips) and sorted((tmp_path / "out").iterdir()) == sorted(files)
    assert [path.name for path in files[:4]] == ["a%2Fb.wav", "a_b.wav", "a%252Fb.wav", "a%5Cb.wav"]
    assert files[8].name == "Käuzchen 1.wav.wav" and not any(path.name.startswith((".", "CON")) for path in files)
    for clip, path in zip(clips, files, strict=True):
        assert audio.read(path)[0].max() == pytest.approx(len(clip) / 100 if len(clip) < 100 else 1, abs=1e-3)
    write(tmp_path / "out.csv", queries, [path.name for path in files], np.eye(len(clips)), top=1)
    assert read(tmp_path / "out.csv")["file_name_1"].tolist() == [path.name for path in files]


@pytest.mark.parametrize("one, other", [("Dog", "dog"), ("Ma\u0308dchen", "M\u00e4dchen"), ("STRASSE", "straße")])
def test_names_that_some_file_systems_take_for_one_are_refused_and_nothing_is_written(tmp_path, one, other):
    with pytest.raises(ValueError, match=f"clips '{one}' and '{other}' make one file name; rename one"):
        export(made([one, "x", other]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sparse_relevance_scores_as_the_dense_does(tmp_path, monkeypatch):
    text, sound, queries, names = drawn()
    fits = several_answers()
    write(tmp_path / "out.csv", queries, names, (text, sound), top=16)
    expected = score(tmp_path / "out.csv", queries, names, fits, map_at=16)
    for form in (sparse.csr_array, sparse.coo_array, sparse.csc_matrix):
        assert score(tmp_path / "out.csv", queries, names, form(fits), map_at=16) == expected
    pairs = [(queries[row], names[place]) for row, place in zip(*fits.nonzero(), strict=True)]
    path = table(tmp_path / "pairs.csv", ["query", "file_name"], *pairs, pairs[0])  # a pair twice counts once
    clips = made([f"{number}" for number in range(30)], [[f"kind {number % 4}"] for number in range(30)])
    dense = relevance(path, queries, names), same_events(clips)
    monkeypatch.setattr("atr.corpora.corpus.DENSE", 1)
    monkeypatch.setattr("atr.inference.dcase.DENSE", 1)
    for found, whole in zip((relevance(path, queries, names), same_events(clips)), dense, strict=True):
        assert sparse.issparse(found) and found.dtype == bool
        np.testing.assert_array_equal(found.toarray(), whole)


def test_large_relevance_is_never_held_whole(tmp_path):
    number = 20_000  # of queries and files: as booleans 400 MB
    queries, names = [f"query {row}" for row in range(number)], [f"{row}.wav" for row in range(number)]
    answers = table(tmp_path / "answers.csv", ["query", "file_name"], *zip(queries, names, strict=True))
    found = table(
        tmp_path / "out.csv", ["caption", "file_name_1", "file_name_2"], *zip(queries, names[::-1], names, strict=True)
    )
    clips = made(names, [[name] for name in names])
    alike = made(names, description=[str(row // 2) for row in range(number)])
    tracemalloc.start()
    fits = relevance(answers, queries, names)
    several = [score(found, queries, names, fits, ks=(1, 2), map_at=2)]
    several.append(score(found, queries, names, np.arange(number), ks=(1, 2), map_at=2))
    assert same_events(clips).sum() == number and alike.relevance().sum() == 2 * number
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80e6
    assert several[0] == several[1] == {"t2a_r1": 0, "t2a_r2": 100, "t2a_map2": 50}


def test_lists_of_no_files_answer_nothing_and_a_lone_name_is_no_list(tmp_path):
    header = ["query", "audio_filenames"]
    found = relevance(table(tmp_path / "1.csv", header, ["q", "[]"], ["r", "['b']"]), ["q", "r"], ["a", "b"])
    assert found.tolist() == [[False, False], [False, True]]
    with pytest.raises(ValueError, match=r"no lists like \['a.wav', 'b.wav'\] but 'ab'"):
        relevance(table(tmp_path / "2.csv", header, ["q", "'ab'"]), ["q"], ["a", "b"])


def test_a_submission_of_no_queries_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no queries; give at least one"):
        write(tmp_path / "out.csv", [], NAMES, np.zeros((0, 4)), top=1)
    assert not list(tmp_path.iterdir())
