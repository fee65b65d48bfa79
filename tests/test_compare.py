"""`atr compare`: two models query by query."""

import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import dataset_layouts
import numpy as np
import pandas as pd
import pytest
from made_embeddings import written
from typer.testing import CliRunner

from atr.cli import app
from atr.evaluation import compare, evaluate, models, protocols
from atr.evaluation.compare import Result

MARK = "<b>&\"'"


def call(*words, status=0):
    outcome = CliRunner().invoke(app.app, [str(word) for word in words])
    assert outcome.exit_code == status, outcome.output
    return " ".join(outcome.output.split())


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Eight recordings, three captions each; one caption is of seven clips, and one of each holds markup."""
    folder = tmp_path_factory.mktemp("sounds")
    rows = []
    for number in range(8):
        dataset_layouts.sound(folder / f"{number}.wav", number, 0.2)
        texts = [f"Sound {number}", f"Sound {number} {MARK}", "It is heard once" if number else "Heard first"]
        rows += [[f"{number}.wav", text] for text in texts]
    dataset_layouts.table(folder / "captions.csv", ["file_name", "caption"], rows)
    return folder


@pytest.fixture(scope="module")
def part(sounds):
    return protocols.get("folder").load(sounds)


@pytest.fixture(scope="module")
def made(tmp_path_factory, part):
    """Two folders of embeddings; the second one's text is nearer to its sounds."""
    rng = np.random.default_rng(0)
    audio, noise = rng.standard_normal((8, 6)), rng.standard_normal((24, 6))
    own = part.clip_of_caption()
    return [
        written(tmp_path_factory.mktemp(f"model {name}"), part, audio, share * audio[own] + noise)
        for name, share in (("a", 0.3), ("b", 1.5))
    ]


@pytest.fixture(scope="module")
def evaluated(made, part):
    return [evaluate.evaluate(models.Embeddings(folder), protocols.get("folder"), part) for folder in made]


@pytest.fixture(scope="module")
def both(evaluated):
    return compare.compare(*map(Result.of, evaluated))


@pytest.fixture(scope="module")
def folders(evaluated, tmp_path_factory):
    found = [tmp_path_factory.mktemp("results") / name for name in "ab"]
    for one, folder in zip(evaluated, found, strict=True):
        one.save(folder)
    return found


class TestNumbers:
    def test_the_differences_are_those_of_the_two_tables(self, both, evaluated):
        keys = ["direction", "metric"]
        a, b = (one.table.set_index(keys)["value"] for one in evaluated)
        table = both.table.set_index(keys)
        pd.testing.assert_series_equal(table["A"], a, check_names=False)
        pd.testing.assert_series_equal(table["difference"], a - b, check_names=False)
        known = table.dropna()
        assert (known["low"] <= known["difference"]).all() and (known["difference"] <= known["high"]).all()
        assert table.loc[("text to audio", "mAP@10"), "high"] < 0 and table.loc[("text to audio", "mAP@10"), "p"] < 0.05

    def test_turned_round_the_differences_change_their_sign(self, both, evaluated):
        other = compare.compare(*map(Result.of, evaluated[::-1]))
        assert other.table["difference"].tolist() == (-both.table["difference"]).tolist()
        assert other.wins["A wins"].tolist() == both.wins["B wins"].tolist()

    def test_a_model_is_like_itself(self, evaluated):
        same = compare.compare(*[Result.of(evaluated[0])] * 2)
        assert (same.table["difference"] == 0).all() and same.table["p"].dropna().eq(1).all()
        assert same.wins["alike"].tolist() == [24, 8] and same.apart().empty

    def test_wins_and_what_differs_most_count_the_best_answer(self, both, evaluated):
        a, b = (one.by_query() for one in evaluated)
        asked = a["direction"] == "text to audio"
        wins = both.wins.set_index("direction").loc["text to audio"]
        assert wins["A wins"] == (a["rank"] < b["rank"])[asked].sum() > 0
        assert wins["B wins"] == (a["rank"] > b["rank"])[asked].sum() > wins["A wins"] and wins.sum() == 24
        gaps = (1 / a["rank"] - 1 / b["rank"]).abs()[asked]
        shown = both.apart(4)
        assert shown["direction"].value_counts()["text to audio"] == 4
        assert shown["gap"].abs()[:4].tolist() == sorted(gaps, reverse=True)[:4]

    def test_order_does_not_count(self, both, evaluated):
        a, b = map(Result.of, evaluated)
        shuffled = replace(b, queries=b.queries.sample(frac=1, random_state=0))
        pd.testing.assert_frame_equal(compare.compare(a, shuffled).queries, both.queries)


def test_a_model_held_against_itself_is_told_by_how_it_heard(evaluated):
    names = [Result.of(replace(evaluated[0], **how)).model for how in ({"seed": 0}, {"windows": "mean", "seed": 1}, {})]
    assert names == [f"{names[2]}, seed 0", f"{names[2]}, windows mean, seed 1", evaluated[0].model]


class TestRefusals:
    def test_two_protocols(self, evaluated, part, made):
        joined = replace(protocols.get("folder"), name="joined", captions="joined")
        hashes = protocols.get("folder").hash, joined.hash
        other = replace(evaluated[1], protocol=joined)
        with pytest.raises(
            ValueError, match=rf"under folder \({hashes[0]}\), .* under joined \({hashes[1]}\): two prot"
        ):
            compare.compare(Result.of(evaluated[0]), Result.of(other))

    def test_other_queries_or_clips(self, evaluated):
        a, b = map(Result.of, evaluated)
        changed = replace(b, queries=b.queries.replace({"query": {"Sound 3": "Another"}}))
        with pytest.raises(ValueError, match="and 2 are of one alone, as 'Another'; evaluate both where|'Sound 3'"):
            compare.compare(a, changed)
        fewer = replace(b, report=b.report | {"clips": 7})
        with pytest.raises(ValueError, match="over 8 clips, .* over 7, and 0 are of one alone; evaluate both"):
            compare.compare(a, fewer)

    @pytest.mark.parametrize("damage", ["json", "ranks", "column", "hash", "numbers", "clips", "path"])
    def test_results_that_are_none(self, evaluated, tmp_path, damage):
        report = evaluated[0].save(tmp_path)
        ranks = tmp_path / "folder.ranks.parquet"
        if damage == "json":
            report.write_text("{")
        elif damage == "ranks":
            ranks.write_bytes(b"x")
        elif damage == "column":
            pd.read_parquet(ranks).drop(columns="ranks").to_parquet(ranks)
        elif damage == "numbers":
            pd.read_parquet(ranks).assign(ranks="1 x").to_parquet(ranks)
        else:
            content = json.loads(report.read_text())
            protocol = content["protocol"] | {"name": "../elsewhere"} if damage == "path" else {}
            content |= {"clips": "8"} if damage == "clips" else {"protocol": protocol}
            report.write_text(json.dumps(content))
        words = "a protocol named '../elsewhere', which is no" if damage == "path" else "no result of this version"
        with pytest.raises(ValueError, match=rf"folder\.json: {words}.*; evaluate it again"):
            compare.results(tmp_path)


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found.append(tag)


class TestCommand:
    def test_two_folders_of_results(self, folders, sounds, tmp_path):
        said = call("compare", *folders, "--root", sounds, "--out", tmp_path / "out")
        for words in ("A less B", "mAP@16", "A wins", "rank_a", "8 clips, 32 queries"):
            assert words in said
        names = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert names == ["folder.compare.csv", "folder.compare.html", "folder.compare.json"]
        report = json.loads((tmp_path / "out" / "folder.compare.json").read_text())
        assert report["protocol"]["hash"] == protocols.get("folder").hash and report["metrics"][0]["difference"] < 0
        table = pd.read_csv(tmp_path / "out" / "folder.compare.csv")
        assert len(table) == 32 and set(table["query"]) >= {f"Sound 3 {MARK}"}
        page = (tmp_path / "out" / "folder.compare.html").read_text()
        tags = Tags()
        tags.feed(page)
        assert "b" not in tags.found and "Sound" in page and 4 <= tags.found.count("audio")
        assert re.search(r'src="data:audio/mpeg;base64,[A-Za-z0-9+/=]{200,}"', page) and len(page) < 5e6

    def test_a_notebook_shows_the_page(self, both, part):
        shown = both.show(part).data
        assert shown.startswith("<iframe srcdoc=") and shown.count("data:audio/mpeg;base64,") >= 4
        assert html.unescape(shown).count("<audio controls") == shown.count("data:audio/mpeg")

    def test_without_sounds_the_page_says_why(self, folders, tmp_path):
        call("compare", folders[0] / "folder.json", folders[1], "--out", tmp_path)
        page = (tmp_path / "folder.compare.html").read_text()
        assert "Without sounds: protocol folder: needs a folder of sounds" in page and "<audio" not in page

    def test_sounds_take_no_more_room_than_there_is(self, both, part, monkeypatch):
        whole = compare._players(part, part.clips["clip"].tolist())
        monkeypatch.setattr(compare, "ROOM", 3 * max(map(len, whole.values())))
        assert 3 <= len(compare._players(part, part.clips["clip"].tolist())) < len(whole) == 8

    def test_two_models_and_a_model_with_results(self, made, folders, sounds):
        models_ = [f"embeddings:{folder}" for folder in made]
        said = [
            call("compare", a, b, "--on", "folder", "--root", sounds, "--quiet")
            for a, b in (models_, (folders[0], models_[1]), folders)
        ]
        assert said[0] == said[1] == said[2]

    def test_what_cannot_be_compared_is_said_in_a_line(self, folders, made, tmp_path):
        assert "for a model, name a protocol: --on" in call("compare", folders[0], "hf:x", status=1)
        (tmp_path / "two").mkdir()
        for name in ("x", "y"):
            for ending in (".json", ".ranks.parquet"):
                (tmp_path / "two" / f"{name}{ending}").write_bytes((folders[0] / f"folder{ending}").read_bytes())
        assert "no protocol in both: folder; x, y" in call("compare", folders[0], tmp_path / "two", status=1)
        said = call("compare", folders[0], folders[1], "--on", "people", status=1)
        assert f"{folders[0]}: no result of people, but of folder; evaluate its model under that" in said
        on = ("--on", "folder")
        assert "--windows: unknown 'max'" in call("compare", folders[0], "hf:x", *on, "--windows", "max", status=1)
        kept = tmp_path / "two" / "x.json"
        assert f"--out: {kept}: a file" in call("compare", *folders, "--out", kept, status=1)
        assert f"give it as embeddings:{made[0]}" in call("compare", folders[0], made[0], *on, status=1)
