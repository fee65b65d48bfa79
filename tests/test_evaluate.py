"""`atr evaluate`: protocols, models, numbers that two people share."""

import json
import re
import subprocess
import sys
import tomllib
from dataclasses import fields, replace
from pathlib import Path

import dataset_layouts
import made_models
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from made_embeddings import written
from safetensors.torch import save_file
from typer.testing import CliRunner

from atr import Embedder, RunConfig, extend, fit, get_profile, register
from atr.cli import app
from atr.evaluation import compare, evaluate, models, naming, protocols
from atr.evaluation.protocols import CHOICES, Protocol
from atr.metrics import retrieval, statistics
from atr.system import places

NAMES = [
    "audiocaps-883",
    "audiocaps-957",
    "audiocaps-975",
    "audiocaps2-975",
    "clotho-5225",
    "dcase2022-6b",
    "dcase2025-6",
]
NAMES += ["esc50-zero-shot", "folder", "mteb-clotho", "people", "people-65"]
TINY = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
SETTINGS = {"corpus": TINY, "epochs": 1, "batch_size": 16, "embedding_dim": 16}


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    return fit(RunConfig(**SETTINGS), corpus, runs=tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six recordings with two or three captions each; names hold a blank."""
    folder = tmp_path_factory.mktemp("own sounds")
    rows = []
    for number, what in enumerate(dataset_layouts.SOUNDS):
        dataset_layouts.sound(folder / f"sound {number}.wav", number, 0.5 + 0.7 * number)
        captions = [what, f"{what}. It stops.", *[f"{what} again"] * (number % 2)]
        rows += [[f"sound {number}.wav", caption] for caption in captions]
    dataset_layouts.table(folder / "captions.csv", ["file_name", "caption"], rows)
    return folder


@pytest.fixture(scope="module")
def part(folder):
    return protocols.get("folder").load(folder)


def call(*words, status=0):
    outcome = CliRunner().invoke(app.app, [str(word) for word in words])
    assert outcome.exit_code == status, outcome.output
    return " ".join(outcome.output.split())


@pytest.fixture
def made(tmp_path, part):
    rng = np.random.default_rng(0)
    return written(tmp_path, part, rng.standard_normal((6, 4)), rng.standard_normal((len(part.captions), 4)))


class TestProtocols:
    def test_each_says_what_it_is_and_has_a_hash_of_its_own(self):
        found = [protocols.get(name) for name in protocols.names()]
        assert [one.name for one in found] == NAMES and all(one.title and one.source for one in found)
        clotho = protocols.get("clotho-5225")
        hashes = [one.hash for one in found if one.name not in ("audiocaps-883", "dcase2022-6b")]
        assert len(set(hashes)) == len(NAMES) - 2 and clotho.hash == protocols.get("dcase2022-6b").hash
        assert (clotho.clips, clotho.queries) == (1045, 5 * 1045) and replace(clotho, title="x").hash == clotho.hash
        others = {"captions": "joined", "windows": "mean", "recalls": [1, 5], "precisions": [10], "split": "validation"}
        assert len({clotho.hash, *(replace(clotho, **{name: value}).hash for name, value in others.items())}) == 6
        assert replace(clotho, recalls=(10, 5, 1)).hash == clotho.hash
        assert {*CHOICES, "recalls", "precisions"} <= {one.name for one in fields(protocols.Protocol)}
        for path in protocols.FOLDER.glob("*.toml"):  # what could be left to a default is stated
            assert {"windows", "text", "ties", "recalls", "precisions"} <= set(tomllib.loads(path.read_text()))

    def test_captions_are_given_joined_or_split(self, part):
        own = Protocol("own", "", {"name": "csv"}, "")
        (given, clips, relevance), (joined, of_joined, _), (sentences, of_sentences, found) = (
            replace(own, captions=how).ask(part) for how in protocols.CAPTIONS
        )
        assert len(given) == 15 and clips.tolist() == relevance.tolist()
        assert joined[0] == f"{given[0]} {given[1]}" and of_joined.tolist() == list(range(6))
        assert sentences[:2] == ["a dog barks a dog barks", "It stops"] and len(sentences) == 15
        assert of_sentences.tolist() == found.tolist() and of_sentences[:4].tolist() == [0, 0, 1, 1]

    def test_where_clips_share_a_description_either_answers(self, corpus):
        part = corpus.split("test")
        part = replace(part, clips=part.clips.assign(description=["alike"] * 2 + [""] * 14))
        _, own, relevance = Protocol("own", "", {"name": "x"}, "", captions="joined").ask(part)
        dense = relevance if isinstance(relevance, np.ndarray) else relevance.toarray()
        assert dense.shape == (16, 16) and dense.sum() == 18 and own.tolist() == list(range(16))

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ('title = "x"', "without corpus, source; write what it is"),
            (
                'title = "x"\nname = "y"\nfoo = 1',
                "unknown: foo, name; known: answers, captions, clip_list, clips, corp",
            ),
            ('title = 3\nsource = ""\ncorpus = { name = "csv" }', "title: 3; give a text"),
            ('title = "x"\nsource = ""\ncorpus = { name = "csv" }\nclips = "many"', "clips: 'many'; give a whole"),
            ('title = "x"\nsource = ""\ncorpus = { name = "csv" }\nqueries = true', "queries: True; give a whole"),
            ('title = "x"\nsource = ""\ncorpus = { name = "csv" }\nclip_list = 3', "clip_list: 3; give a text"),
            ('title = "x"\nsource = ""\ncorpus = { name = "csv" }\nwithout = "abc"', "without: 'abc'; give a list of"),
            (
                'title = "x"\nsource = ""\ncorpus = { name = "csv" }\ntemplate = "{} {x}"',
                "template: .*; write {} where",
            ),
            (
                'title = "x"\nsource = ""\ncorpus = { name = "csv" }\ncaptions = "some"',
                "captions: 'some'; known: given",
            ),
            ('title = "x"\nsource = ""\ncorpus = { name = "csv" }\nsplit = "a"', "split: 'a'; known: train"),
            ('title = "x"\nsource = ""\ncorpus = { name = "csv" }\nanswers = "a"', "answers: 'a'; known: dcase2025"),
            ('title = "x"\nsource = ""\ncorpus = "csv"', "corpus: write { name"),
            ('title = "x"\nsource = ""\ncorpus = { name = "csv" }\nwindows = "a"', "windows: 'a'; known: model, mean"),
            ('title = "x"\nsource = ""\ncorpus = { name = "csv" }\nties = "for"', "ties: 'for'; known: against"),
            ('title = "x"\nsource = ""\ncorpus = { name = "csv" }\nrecalls = [0]', "recalls: .0.; give whole numbers"),
            ('title = "x"\nsource = ""\ncorpus = { name = "csv" }\nprecisions = 10', "precisions: 10; give whole"),
            ("title", "Expected '='"),
        ],
    )
    def test_a_file_that_says_nothing_is_named(self, tmp_path, content, words):
        (tmp_path / "own.toml").write_text(content)
        with pytest.raises(ValueError, match=f"own.toml: .*{words}"):
            protocols.get(str(tmp_path / "own.toml"))

    def test_the_list_of_ones_own_may_come_from_any_machine_and_must_be_there(self, tmp_path, folder):
        own = 'title = "x"\nsource = ""\ncorpus = { name = "csv" }\nclip_list = "own.txt"\n'
        (tmp_path / "own.toml").write_text(own, encoding="utf-8-sig")
        with pytest.raises(FileNotFoundError, match=r"protocol own: its clips are named in .*own\.txt, which is not"):
            protocols.get(str(tmp_path / "own.toml")).load(folder)
        (tmp_path / "own.txt").write_bytes("sound 0.wav\r\nsound 1.wav\r\ngone.wav\r\n".encode("utf-8-sig"))
        protocol = protocols.get(str(tmp_path / "own.toml"))
        part = protocol.load(folder)
        assert part.clips["clip"].tolist() == ["sound 0.wav", "sound 1.wav"]
        assert protocol.missing(part) == ["gone.wav"]
        (tmp_path / "own.txt").write_bytes(b"\xff")
        with pytest.raises(ValueError, match=r"own\.txt: not UTF-8 \(.*; save it as that"):
            protocols.get(str(tmp_path / "own.toml")).load(folder)

    def test_clips_left_out_of_all_are_another_protocol(self, tmp_path, folder):
        own = 'title = "x"\nsource = ""\ncorpus = { name = "csv" }\n'
        (tmp_path / "all.toml").write_text(own)
        (tmp_path / "own.toml").write_text(own + 'without = ["sound 5.wav", "sound 0.wav"]\n')
        every, fewer = (protocols.get(str(tmp_path / name)) for name in ("all.toml", "own.toml"))
        assert fewer.load(folder).clips["clip"].tolist() == [f"sound {number}.wav" for number in range(1, 5)]
        assert fewer.hash != every.hash == protocols.get("folder").hash
        assert replace(fewer, without=("sound 0.wav", "sound 5.wav")).hash == fewer.hash
        with pytest.raises(ValueError, match="without names 'gone.wav', which is not in .*own sounds"):
            replace(fewer, without=["sound 0.wav", "gone.wav"]).load(folder)
        (tmp_path / "own.txt").write_text("sound 0.wav\nsound 1.wav\n")
        with pytest.raises(ValueError, match=r"without names 'sound 5.wav', which is not in .*own\.txt"):
            replace(fewer, clip_list="own.txt").load(folder)

    def test_classes_can_do_without_recordings_too(self, tmp_path):
        for number, name in enumerate(("cat", "cat", "dog", "rain")):
            dataset_layouts.sound(tmp_path / name / f"{number}.wav", number, 0.3)
        protocol = replace(protocols.get("esc50-zero-shot"), without=["rain/3.wav"])
        part = protocol.load(tmp_path)
        assert part.clips["clip"].tolist() == ["cat/0.wav", "cat/1.wav", "dog/2.wav"]
        assert len(protocol.ask(part)[0]) == 2

    def test_where_no_clip_is_as_it_is_named_what_is_there_is_said(self, tmp_path, folder):
        (tmp_path / "own.txt").write_text("sound 0\nsound 1\n")
        protocol = replace(protocols.get("folder"), clip_list="own.txt", folder=tmp_path)
        words = "no clips of the 2 that it names, as 'sound 0', in the split test of .*; there are 6, as 'sound 0.wav'"
        with pytest.raises(ValueError, match=words):
            protocol.load(folder)
        dataset_layouts.table(tmp_path / "captions.csv", ["file_name", "caption"], [["0", "a dog"], ["1", "a cat"]])
        with pytest.raises(ValueError, match="no such file") as caught:
            protocols.get("folder").load(tmp_path)
        assert "captions.csv, line 2" in str(caught.value)

    def test_what_cannot_be_evaluated_on_is_an_error(self, tmp_path, part):
        with pytest.raises(ValueError, match="protocol 'clotho': unknown; known: audiocaps-883, audiocaps-957"):
            protocols.get("clotho")
        with pytest.raises(ValueError, match="protocol folder: needs a folder of sounds with captions.csv"):
            protocols.get("folder").load()
        for text in ("…", "___", "🐶"):  # of some no model's normalising leaves anything
            silent = replace(part, captions=part.captions.assign(caption=[text, *part.captions["caption"][1:]]))
            with pytest.raises(ValueError, match=f"1 queries without a word, as '{text}' of 'sound 0.wav'; mend"):
                protocols.get("folder").ask(silent)


class TestNumbers:
    def test_they_are_those_of_the_embeddings(self, made, part):
        one = evaluate.evaluate(models.Embeddings(made), protocols.get("folder"), part)
        audio, text = (torch.from_numpy(np.load(made / f"{side}.npy")).float() for side in ("audio", "text"))
        expected = retrieval.retrieval_metrics((text, audio), part.relevance())
        found = one.table.set_index(["direction", "metric"])["value"]
        for way, title in evaluate.TITLES.items():
            told = [found[title, name] for name in ("R@1", "R@5", "R@10", "mAP@10", "median rank")]
            assert told == pytest.approx(
                [expected[f"{way}_{name}"] for name in ("r1", "r5", "r10", "map10", "median_rank")]
            )
        assert (one.table["low"].dropna() <= one.table["value"][one.table["low"].notna()]).all()
        assert list(one.readable) == ["metric", "text to audio", "audio to text"]
        assert not one.whole

    def test_intervals_resample_clips_with_their_captions(self):
        scores, groups = np.array([100.0, 100, 0, 0, 0]), np.array([7, 7, 8, 9, 9])
        found = statistics.grouped_bootstrap(scores, groups, draws=20_000)
        every = [
            sum({7: 200, 8: 0, 9: 0}[one] for one in drawn) / sum({7: 2, 8: 1, 9: 2}[one] for one in drawn)
            for drawn in np.array(np.meshgrid([7, 8, 9], [7, 8, 9], [7, 8, 9])).reshape(3, -1).T.tolist()
        ]
        assert (found.mean, found.low, found.high) == pytest.approx(
            (40, *np.quantile(every, (0.025, 0.975), method="inverted_cdf")), abs=1
        )

    @pytest.mark.parametrize("windows", [None, "mean"])
    def test_a_run_hears_as_its_embedder_does(self, run, folder, part, windows, corpus, tmp_path):
        if windows:
            run = fit(RunConfig(**SETTINGS | {"max_seconds": 1.0, "epochs": 0}), corpus, runs=tmp_path)
        model = models.load(str(run.path), get_profile("smoke"), windows)
        embedder = Embedder(run, windows=windows)
        sounds = embedder.sounds([folder / clip for clip in part.clips["clip"]])
        assert torch.allclose(model.sounds(part, quiet=True), sounds, atol=1e-6)
        assert model.fingerprint == embedder.fingerprint

    def test_a_text_aware_run_is_ranked_by_its_similarities(self, corpus, part, tmp_path):
        changes = {"training": "scratch", "audio_weights": None, "text_aware": {"projection_dim": 16}, "epochs": 0}
        run = fit(RunConfig(**SETTINGS | changes), corpus, runs=tmp_path)
        one = evaluate.evaluate(models.load(str(run.path), get_profile("smoke")), protocols.get("folder"), part)
        assert one.similarity.shape == (15, 6) and one.table["value"].notna().all()
        one.save(tmp_path)
        assert len((tmp_path / "folder.a2t.run").read_text().splitlines()) == 6 * 15

    def test_two_people_get_the_same_digits(self, run, part, folder, tmp_path, monkeypatch):
        """Other batches, another order of clips, other threads."""
        protocol, reports = protocols.get("folder"), []
        order = [3, 1, 5, 0, 2, 4]
        shuffled = replace(part, clips=part.clips.iloc[order].reset_index(drop=True))
        for size, given, threads in ((16, part, 1), (4, part, 2), (1, shuffled, 2)):
            monkeypatch.setattr(models, "SOUNDS", size)
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                one = evaluate.evaluate(models.load(str(run.path), get_profile("smoke")), protocol, given)
            finally:
                torch.set_num_threads(before)
            reports.append(one.table.loc[one.table["metric"] != "", ["direction", "metric", "value"]])
        for other in reports[1:]:
            pd.testing.assert_frame_equal(other, reports[0])


class TestFiles:
    def test_ranks_and_trec_files_say_the_same(self, made, part, tmp_path):
        model = models.Embeddings(made)
        model.name = "a model's"  # as a folder may be called
        one = evaluate.evaluate(model, protocols.get("folder"), part)
        report = json.loads(one.save(str(tmp_path / "out")).read_text())
        assert report["protocol"]["hash"] == one.protocol.hash and report["clips"] == 6 and report["queries"] == 15
        assert report["metrics"][0]["value"] == one.table["value"][0] and report["metrics"][5]["low"] is None
        ranks = pd.read_parquet(tmp_path / "out" / "folder.ranks.parquet")
        assert ranks["direction"].value_counts().to_dict() == {"text to audio": 15, "audio to text": 6}
        for way, title in evaluate.TITLES.items():
            read = lambda kind, way=way: [  # noqa: E731
                line.split() for line in (tmp_path / "out" / f"folder.{way}.{kind}").read_text().splitlines()
            ]
            answers = {}
            for query, _, answer, _ in read("qrels"):
                answers.setdefault(query, set()).add(answer)
            best = {}
            for query, _, answer, rank, score, tag in read("run"):
                assert tag == "a%20model%27s" and np.isfinite(float(score))
                if answer in answers[query]:
                    best.setdefault(query, int(rank))
            assert list(best.values()) == ranks.loc[ranks["direction"] == title, "rank"].tolist()
        assert "sound%200.wav" in (tmp_path / "out" / "folder.t2a.run").read_text()


class TestOwn:
    (EXAMPLE,) = re.findall(r"```python\n(.*?)```", (places.PROJECT / "docs" / "evaluate.md").read_text(), re.S)

    def test_the_pages_model_is_evaluated(self, tmp_path, monkeypatch):
        rows = []
        for number, (what, level) in enumerate([("a quiet hum", 0.01), ("a hum", 0.1), ("a loud siren", 0.8)]):
            wave = level * np.random.default_rng(number).uniform(-1, 1, 8000)
            soundfile.write(tmp_path / f"{number}.wav", wave, 8000)
            rows.append([f"{number}.wav", what])
        dataset_layouts.table(tmp_path / "captions.csv", ["file_name", "caption"], rows)
        (tmp_path / "own.py").write_text(self.EXAMPLE)
        assert len(self.EXAMPLE.strip().splitlines()) < 30
        monkeypatch.setenv("ATR_EXTENSIONS", str(tmp_path / "own.py"))
        given = ["evaluate", "loudness", "--on", "folder", "--root", tmp_path, "--out", tmp_path / "out", "--quiet"]
        assert "3 clips, 3 queries" in call(*given)
        report = json.loads((tmp_path / "out" / "folder.json").read_text())
        assert report["metrics"][0]["value"] == 100 and report["model"]["name"] == "loudness"
        monkeypatch.setenv("ATR_EXTENSIONS", "")
        (tmp_path / "own.py").write_text(f"{self.EXAMPLE}#")
        extend(tmp_path / "own.py")
        assert models.Own("loudness").fingerprint != report["model"]["fingerprint"]
        assert "own models hear longer sounds in their own way" in call(*given, "--windows", "mean", status=1)

    def test_rows_that_are_too_few_are_an_error(self, tmp_path, part):
        (tmp_path / "own.py").write_text(self.EXAMPLE.replace("angle)], axis=1)", "angle)])"))
        extend(tmp_path / "own.py")
        with pytest.raises(ValueError, match=r"loudness: its sounds gave \(2, 6\) for 6 of them; give \(N, D\)"):
            models.Own("loudness").sounds(part, quiet=True)

    @pytest.mark.parametrize("rate", [None, 0, "16 kHz"])
    def test_a_rate_that_is_none_is_an_error(self, monkeypatch, rate):
        made = type("Silent", (), {} if rate is None else {"sample_rate": rate})
        monkeypatch.setitem(register.MODELS, "silent", made)
        with pytest.raises(ValueError, match=f"silent: its sample_rate is {rate!r}; give Hz"):
            models.Own("silent")

    def test_rows_of_unlike_widths_are_an_error(self, monkeypatch, part):
        uneven = type(
            "Uneven", (), {"sample_rate": 8000, "sounds": lambda self, waves: [[0.0] * k for k in range(1, 7)]}
        )
        monkeypatch.setitem(register.MODELS, "uneven", uneven)
        monkeypatch.setattr(register, "code", lambda *_: "")
        with pytest.raises(ValueError, match=r"uneven: its sounds gave no array of numbers \(.*\); give \(N, D\)"):
            models.Own("uneven").sounds(part, quiet=True)


class TestErrors:
    @pytest.mark.parametrize(
        ("damage", "words"),
        [
            (lambda made: (made / "text.npy").unlink(), r"text\.npy: missing; give audio\.npy and text\.npy"),
            (lambda made: (made / "audio.npy").write_bytes(b"x"), r"audio\.npy: not an array of numbers"),
            (lambda made: np.save(made / "audio.npy", np.array([{}])), r"audio\.npy: not an array of numbers"),
            (
                lambda made: np.save(made / "audio.npy", np.full((6, 4), np.nan)),
                "audio that is not finite in float32 in 6 of 6 rows; give",
            ),
            (lambda made: np.save(made / "audio.npy", np.full((6, 4), 1e39)), "audio that is not finite in float32"),
            (lambda made: np.save(made / "audio.npy", np.ones((6, 4), complex)), "audio of type complex128"),
            (lambda made: np.save(made / "audio.npy", np.full((6, 4), "1")), "audio of type <U1"),
            (lambda made: np.save(made / "audio.npy", np.ones((6, 0))), r"audio of shape \(6, 0\)"),
            (lambda made: np.savez(open(made / "audio.npy", "wb"), np.ones((6, 4))), r"audio\.npy: not an array .*sev"),
            (
                lambda made: (made / "clips.txt").unlink(),
                r"clips\.txt: missing; it says on a line for each row of audio",
            ),
            (
                lambda made: (made / "clips.txt").write_text("sound 0.wav\n" * 6),
                r"clips\.txt: 'sound 0\.wav' is on lines 1 and 2, with two embeddings; keep one of them",
            ),
            (
                lambda made: save_file({"x": torch.ones(2)}, made / "embeddings.safetensors"),
                r"embeddings\.safetensors: .*without audio and text, it holds x",
            ),
            (lambda made: np.save(made / "audio.npy", np.ones(6)), r"audio of shape \(6,\)"),
            (lambda made: np.save(made / "audio.npy", np.ones((5, 4))), r"clips\.txt: 6 lines for 5 rows of audio"),
            (lambda made: np.save(made / "audio.npy", np.ones((6, 3))), "audio has 3 dimensions, text 4"),
            (lambda made: (made / "clips.txt").write_bytes(b"\xff"), r"clips\.txt: not UTF-8"),
            (
                lambda made: (made / "clips.txt").write_text("a\nb\nc\nd\ne\nf\n"),
                r"clips\.txt: 6 of 6 are not in it, as",
            ),
            (lambda made: (made / "embeddings.safetensors").write_bytes(b"x"), r"embeddings\.safetensors: damaged"),
        ],
    )
    def test_embeddings_that_do_not_fit_are_named(self, made, part, damage, words):
        damage(made)
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            evaluate.evaluate(models.Embeddings(made), protocols.get("folder"), part)

    def test_lists_may_come_from_any_machine_and_name_a_row_twice(self, made, part):
        """With a mark at the start, lines ended as on Windows, and what others take for the end of a line; the second
        of two rows of a clip may differ by rounding.
        """
        captions = part.captions["caption"].tolist()
        captions[0] = "a dog\u2028barks \x85 twice"
        odd = replace(part, captions=part.captions.assign(caption=captions))
        for name, lines in (("captions.txt", captions), ("clips.txt", [*part.clips["clip"], part.clips["clip"][0]])):
            (made / name).write_bytes("".join(f"{line}\r\n" for line in lines).encode("utf-8-sig"))
        audio = np.load(made / "audio.npy")
        np.save(made / "audio.npy", np.vstack([audio, audio[:1] * (1 + 1e-6)]))
        assert len(evaluate.evaluate(models.Embeddings(made), protocols.get("folder"), odd).queries) == 15

    @pytest.mark.parametrize("kind", [np.int64, np.float16, np.float64])
    def test_numbers_of_any_type_are_the_same(self, made, kind):
        rows = np.arange(24).reshape(6, 4)
        np.save(made / "audio.npy", rows.astype(kind))
        assert torch.equal(models.Embeddings(made).rows["audio"], torch.from_numpy(rows).float())

    @pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e18, 1e30])
    def test_numbers_of_any_size_rank_alike(self, made, part, scale):
        audio, text = (np.load(made / f"{side}.npy") for side in ("audio", "text"))
        ranks = [evaluate.evaluate(models.Embeddings(made), protocols.get("folder"), part).ranks]
        np.save(made / "audio.npy", (audio * scale).astype(np.float32))
        np.save(made / "text.npy", (text * scale).astype(np.float32))
        ranks.append(evaluate.evaluate(models.Embeddings(made), protocols.get("folder"), part).ranks)
        assert np.array_equal(ranks[0].t2a, ranks[1].t2a) and np.array_equal(ranks[0].a2t, ranks[1].a2t)

    def test_a_folder_is_named_wherever_one_stands(self, made, monkeypatch):
        monkeypatch.chdir(made)
        assert models.Embeddings(Path()).name == made.name

    def test_safetensors_are_read_too(self, made, part):
        audio, text = (torch.from_numpy(np.load(made / f"{side}.npy")).float() for side in ("audio", "text"))
        first = models.Embeddings(made)
        save_file({"audio": audio, "text": text}, made / "embeddings.safetensors")
        assert models.Embeddings(made).fingerprint == first.fingerprint
        save_file({"audio": audio.bfloat16(), "text": text.bfloat16()}, made / "embeddings.safetensors")
        assert torch.equal(models.Embeddings(made).rows["audio"], audio.bfloat16().float())

    def test_a_folder_of_another_kind_is_named_as_what_it_is(self, made, folder, tmp_path):
        smoke, (clap, run) = get_profile("smoke"), (tmp_path / "clap", tmp_path / "run")
        for path, content in ((clap, '{"model_type": "clap"}'), (run, '{"training": "frozen"}')):
            path.mkdir()
            (path / "config.json").write_text(content)
        for name, words in {
            f"{made}": f"a folder of embeddings; give it as embeddings:{made}",
            f"hf:{made}": f"a folder of embeddings; give it as embeddings:{made}",
            f"{clap}": f"a model of transformers; give it as hf:{clap}",
            f"laion:{clap}": f"a model of transformers; give it as hf:{clap}",
            f"embeddings:{clap}": f"a model of transformers; give it as hf:{clap}",
            f"hf:{run}": f"a folder of a run or a pack; give it as {run}",
            f"msclap:{folder}": "no model and no finished run; give a run's folder",
            f"embeddings:{made / 'audio.npy'}": "a file; give the folder that holds it, with clips.txt and",
        }.items():
            with pytest.raises(ValueError, match=re.escape(words)):
                models.load(name, smoke)
        assert f"a folder of embeddings; give it as embeddings:{made}" in call("pack", made, status=1)

    def test_a_checkpoint_of_the_home_needs_no_path(self, tmp_path, monkeypatch):
        monkeypatch.setenv("ATR_HOME", str(tmp_path))
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "own.pt").touch()
        assert naming.kind_of("laion:own.pt", tmp_path) == ("laion", "own.pt")

    def test_embeddings_are_looked_at_without_pytorch(self, made):
        np.save(made / "text.npy", np.full((15, 4), np.inf))
        code = "import sys; from pathlib import Path; from atr.evaluation import naming\n"
        code += "try: naming.check(sys.argv[1], Path())\n"
        code += "except ValueError as error: print(error, 'torch' in sys.modules)"
        said = subprocess.run([sys.executable, "-c", code, f"embeddings:{made}"], capture_output=True, text=True)
        assert "text that is not finite" in said.stdout and said.stdout.endswith("numbers False\n"), said

    def test_models_that_are_none(self, tmp_path, made):
        smoke = get_profile("smoke")
        for name in ("no such model", "laion:", "embeddings:", "a/b"):
            with pytest.raises(ValueError, match=f"model '{name}': unknown; give a run's folder or address, hf:"):
                models.load(name, smoke)
        (tmp_path / "none").mkdir()
        with pytest.raises(ValueError, match="no model and no finished run; give a run's folder"):
            models.load(str(tmp_path / "none"), smoke)
        with pytest.raises(ValueError, match="0 runs begin with 'abc'"):
            models.load("abc", smoke)
        with pytest.raises(ValueError, match="embeddings models have been made already"):
            models.load(f"embeddings:{made}", smoke, "mean")


class TestCommand:
    def test_it_prints_a_table_and_writes_what_it_is_asked_for(self, made, folder, tmp_path):
        out = tmp_path / "out"
        said = call("evaluate", f"embeddings:{made}", "--on", "folder", "--root", folder, "--out", out, "--quiet")
        for words in ("text to audio", "R@10", "mAP@16", "median rank", "folder (", "6 clips, 15 queries"):
            assert words in said
        assert sorted(path.name for path in out.iterdir()) == sorted(
            ["folder.json", "folder.ranks.parquet"]
            + [f"folder.{way}.{kind}" for way in ("t2a", "a2t") for kind in ("run", "qrels")]
        )

    def test_a_clap_model_of_transformers(self, folder, tmp_path):
        model = made_models.clap(tmp_path / "clap")
        said = call("evaluate", f"hf:{model}", "--on", "folder", "--root", folder, "--quiet", "--device", "cpu")
        assert "6 clips, 15 queries" in said

    def test_a_protocol_that_is_asked_for_twice_is_evaluated_once(self, made, folder):
        given = ["evaluate", f"embeddings:{made}", "--on", "folder", "--on", "folder", "--root", folder, "--quiet"]
        assert call(*given).count("median rank") == 1

    def test_errors_come_before_a_model_is_loaded(self, monkeypatch, tmp_path, made, folder):
        monkeypatch.setattr(models, "load", None)
        assert "protocol 'clotho-1': unknown" in call("evaluate", "abc", "--on", "clotho-1", status=1)
        assert "0 runs begin with 'abc'" in call("evaluate", "abc", "--on", "clotho-5225", status=1)
        assert "none.pt: not there; name the checkpoint" in call(
            "evaluate", "laion:none.pt", "--on", "people", status=1
        )
        assert "--windows: unknown 'max'; known: mean" in call(
            "evaluate", "hf:a/b", "--on", "people", "--windows", "max", status=1
        )
        assert "needs a folder of sounds" in call("evaluate", "hf:a/b", "--on", "folder", status=1)
        (tmp_path / "list.json").write_text("[]")
        said = call("evaluate", "hf:a/b", "--on", "people", "--train", tmp_path / "list.json", status=1)
        assert "list.json: no column 'caption' or 'caption_1'" in said
        for words in (("embeddings:{}",), ("hf:a/b", "--windows", "first")):
            said = call("evaluate", words[0].format(made), *words[1:], "--on", "people", "--seeds", "0,1", status=1)
            assert "draws nothing here; leave it out" in said
        given = ["evaluate", f"embeddings:{made}", "--on", "folder", "--root", folder]
        for out in (made / "audio.npy", made / "audio.npy" / "below"):
            assert f"--out: {made / 'audio.npy'}: a file; name a folder" in call(*given, "--out", out, status=1)
        (tmp_path / "folder.toml").write_text(
            (protocols.FOLDER / "folder.toml").read_text() + "# mine\nsplit = 'train'"
        )
        said = call(*given, "--on", tmp_path / "folder.toml", status=1)
        assert "--on: two protocols are named folder, and so their results; rename one's file" in said
        monkeypatch.setenv("ATR_HOME", str(tmp_path))
        assert "atr data clotho" in call("evaluate", "hf:a/b", "--on", "clotho-5225", status=1)

    def test_a_protocol_says_how_longer_sounds_are_heard(self, monkeypatch):
        asked = []
        monkeypatch.setattr(models, "load", lambda name, profile, windows, device: asked.append(windows))
        own = protocols.get("folder")
        under = evaluate.under("hf:a/b", None, None, "cpu")
        for protocol in (own, replace(own, windows="mean"), own, replace(own, windows="first")):
            under(protocol)
        assert asked == [None, "mean", "first"]
        evaluate.under("hf:a/b", None, "random", "cpu")(replace(own, windows="mean"))
        evaluate.under("embeddings:x", None, None, "cpu")(replace(own, windows="mean"))
        assert asked[3:] == ["random", None]

    def test_another_way_of_hearing_does_not_compare(self, made, part):
        whole = replace(protocols.get("folder"), clips=6, queries=15)
        one = evaluate.evaluate(models.Embeddings(made), whole, part, windows="mean")
        assert not one.whole and "heard by --windows mean, so published numbers do not compare" in one.coverage
        assert replace(one, protocol=replace(whole, windows="mean")).whole

    def test_cuts_are_the_protocols(self, made, part):
        own = replace(protocols.get("folder"), recalls=[2, 3], precisions=[4])
        one = evaluate.evaluate(models.Embeddings(made), own, part)
        assert one.table["metric"].unique().tolist() == ["R@2", "R@3", "mAP@4", "median rank"]
        best = one.by_query()["rank"][one.by_query()["direction"] == "text to audio"]
        assert one.table["value"][0] == pytest.approx(100 * (best <= 2).mean())
        a = compare.Result.of(one)
        assert set(compare.compare(a, a).table["metric"]) == set(one.table["metric"])

    def test_what_is_whole_compares_with_published_numbers(self, made, part):
        whole = replace(protocols.get("folder"), clips=6, queries=15)
        one = evaluate.evaluate(models.Embeddings(made), whole, part)
        assert one.whole and not replace(one, protocol=replace(whole, clips=7)).whole
