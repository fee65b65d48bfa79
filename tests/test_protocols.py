"""The protocols that come with the package: which clips, which queries, which answers."""

import json
from dataclasses import replace
from pathlib import Path

import dataset_layouts
import numpy as np
import pandas as pd
import pytest
import torch
from made_embeddings import written
from typer.testing import CliRunner

from atr.cli import app
from atr.corpora import clotho
from atr.corpora.corpus import Corpus, caption_table, clip_table, event_table
from atr.evaluation import evaluate, models, protocols
from atr.evaluation.protocols import Protocol
from atr.metrics import retrieval

CAPTIONS = Path(__file__).parents[2] / "shared" / "data" / "captions"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ATR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


class TestAudioCaps:
    @pytest.fixture(autouse=True)
    def here(self, home, monkeypatch):
        """Three test clips and no others, of which the official list has the first two and one more."""
        folder = dataset_layouts.audiocaps(home / "audiocaps", {"train": 0, "validation": 0, "test": 3}, 0.1)
        self.ids = [dataset_layouts.youtube_id(number) for number in range(3)]
        (home / "protocols").mkdir()
        (home / "protocols" / "own.txt").write_text("\n".join([*self.ids[:2], "elsewhere__", ""]))
        self.own = Protocol("own", "", {"name": "audiocaps"}, "", clip_list="own.txt", clips=3, queries=15)
        assert (folder / "test.csv").is_file()

    def test_the_clips_are_those_of_the_list_and_what_is_missing_is_named(self, home):
        part = self.own.load()
        assert part.clips["clip"].tolist() == self.ids[:2] and self.own.missing(part) == ["elsewhere__"]
        rng = np.random.default_rng(0)
        made = written(home, part, rng.standard_normal((2, 4)), rng.standard_normal((10, 4)))
        one = evaluate.evaluate(models.Embeddings(made), self.own, part)
        assert one.coverage.startswith(
            "2 of 3 clips, 10 of 15 queries; missing elsewhere__; not all of it, so published"
        )
        assert not one.whole
        report = one.report()
        assert report["missing clips"] == ["elsewhere__"] and report["comparable with published numbers"] is False

    def test_clips_left_out_change_the_hash_and_are_not_missed(self):
        fewer = replace(self.own, without=["elsewhere__"], clips=2, queries=10)
        assert fewer.missing(fewer.load()) == [] and fewer.hash != replace(self.own, clips=3, queries=10).hash

    def test_a_list_that_does_not_come_with_the_package_is_asked_for(self, home):
        mteb = protocols.get("audiocaps-883")
        with pytest.raises(ValueError, match="its 883 clips are named in audiocaps-883.txt, which does not come with"):
            mteb.load()
        outcome = CliRunner().invoke(app.app, ["evaluate", "hf:a/b", "--on", "audiocaps-883"])
        assert "OpenSound/AudioCaps" in outcome.output
        (home / "protocols" / "audiocaps-883.txt").write_text("a\n")
        with pytest.raises(ValueError, match="audiocaps-883.txt: names 1 clips where protocol audiocaps-883 has 883"):
            mteb.hash  # noqa: B018

    def test_the_lists_are_the_published_ones(self):
        official, mei = (set(protocols.get(f"audiocaps-{count}").names) for count in (975, 957))
        assert len(official) == 975 and mei < official and len(mei) == 957
        if not CAPTIONS.is_dir():
            pytest.skip("no ../shared")
        released = pd.read_csv(CAPTIONS / "audiocaps_test.csv")["file_name"]
        assert mei == set(released.str[1:12])


class TestClotho:
    @pytest.fixture
    def folder(self, home):
        return dataset_layouts.clotho(home / "clotho", {"train": 2, "validation": 2, "test": 3}, 0.1)

    def test_several_clips_answer_a_query_of_dcase2025(self, home, folder):
        """One query's own clip is not among them; a query of no caption, and clips that are not here, are left out."""
        texts = pd.read_csv(folder / "clotho_captions_evaluation.csv")
        names = texts["file_name"].tolist()  # the second one's name is in three splits
        rows = [[texts["caption_1"][0], str(names[:2])], [texts["caption_3"][2], str([names[1], "gone.wav"])]]
        rows += [["No caption.", str(names)], [texts["caption_2"][1], "['gone.wav']"]]
        protocol = protocols.get("dcase2025-6")
        with pytest.raises(FileNotFoundError, match="run: atr data dcase2025"):
            protocol.load()
        dataset_layouts.table(home / "dcase2025" / "metadata_eval.csv", ["query", "audio_filenames"], rows)
        part = protocol.load()
        queries, own, relevance = protocol.ask(part)
        assert queries == [rows[0][0], rows[1][0]] and own.tolist() == [0, 2]
        assert relevance.tolist() == [[True, True, False], [False, True, False]]
        rng = np.random.default_rng(0)
        made = written(home, part, rng.standard_normal((3, 4)), rng.standard_normal((15, 4)))
        one = evaluate.evaluate(models.Embeddings(made), protocol, part)
        assert one.coverage.startswith("3 of 1,045 clips, 2 of 1,037 queries") and one.ranks.t2a.shape == (2, 2)

    def test_average_precision_divides_by_all_that_answer_though_it_is_cut(self):
        """A query with three answers at 1, 12 and 20 of 30 has 1/3 at 10, (1 + 2/12) / 3 at 16."""
        relevance = np.zeros((1, 30), bool)
        relevance[0, [0, 11, 19]] = True
        similarity = torch.arange(30, 0, -1).float()[None]
        clips = [str(number) for number in range(30)]
        own = np.array([5])
        one = evaluate.Evaluation("m", "", protocols.get("folder"), clips, ["q"], own, relevance, similarity)
        found = one.table[one.table["direction"] == "text to audio"].set_index("metric")["value"]
        assert found["mAP@10"] == pytest.approx(100 / 3) and found["mAP@16"] == pytest.approx(100 * (1 + 2 / 12) / 3)

    @pytest.mark.parametrize("cell", ["no list", "[1]", "{"])
    def test_a_damaged_table_of_answers_is_named(self, tmp_path, cell):
        dataset_layouts.table(tmp_path / "metadata_eval.csv", ["query", "audio_filenames"], [["Rain", cell]])
        with pytest.raises(ValueError, match="metadata_eval.csv, 'Rain': no list of file names"):
            clotho.answers(tmp_path)

    def test_mteb_asks_the_validation_split(self, folder):
        protocol = protocols.get("mteb-clotho")
        part = protocol.load()
        queries, own, _ = protocol.ask(part)
        assert len(part) == 2 and len(queries) == 4 and own.tolist() == [0, 0, 1, 1]

    @pytest.mark.skipif(not CAPTIONS.is_dir(), reason="no ../shared")
    def test_what_mteb_counts_are_the_validation_splits_captions(self):
        """Its pull request 5062: 5,585 pieces, of which 905 are empty; the shortest other one has 33 letters."""
        protocol, found = protocols.get("mteb-clotho"), {}
        for split in ("val", "test"):
            table = pd.read_csv(CAPTIONS / f"clotho_{split}.csv")
            rows = [(name, text) for name, *texts in table.itertuples(index=False) for text in texts]
            clips = clip_table([(name, "test", 1.0, "0", "") for name in table["file_name"]])
            found[split] = protocol.ask(Corpus("clotho", clips, caption_table(rows), event_table(), None))[0]
        assert len(found["val"]) == protocol.queries == 5585 - 905 and min(map(len, found["val"])) == 33
        assert len(found["test"]) == 4738

    @pytest.mark.skipif(not CAPTIONS.is_dir(), reason="no ../shared")
    def test_the_published_answers_are_as_many_as_the_protocol_says(self, tmp_path):
        (tmp_path / "metadata_eval.csv").symlink_to(CAPTIONS / "dcase2025_metadata_eval.csv")
        found = clotho.answers(tmp_path)
        assert len(found) == protocols.get("dcase2025-6").queries
        pairs = [clip for clips in found.values() for clip in clips]
        assert len(pairs) == 3116 and len(set(pairs)) == 1006
        own = {
            text: name.removesuffix(".wav")
            for name, *texts in pd.read_csv(CAPTIONS / "clotho_test.csv").itertuples(index=False)
            for text in texts
        }
        assert sum(own[query] not in clips for query, clips in found.items()) == 46


class TestTrecFiles:
    """Against what a library computes from the files: `golden/trec.json` has them, with its numbers for each query."""

    @pytest.fixture(scope="class")
    def golden(self):
        return json.loads(Path(__file__).with_name("golden").joinpath("trec.json").read_text())

    @pytest.fixture
    def one(self, golden):
        """Several answers to a query, and scores of which most are tied."""
        similarity, relevance = (
            np.array([list(row) for row in golden[key]], int) for key in ("similarity", "relevance")
        )
        queries, own = [f"query {number}" for number in range(6)], relevance.argmax(1)
        scores = torch.from_numpy(similarity).float() / 4
        folder = protocols.get("folder")
        return evaluate.Evaluation("a model", "", folder, golden["clips"], queries, own, relevance == 1, scores)

    @pytest.mark.parametrize("way", evaluate.DIRECTIONS)
    def test_the_library_finds_our_ranks(self, golden, one, tmp_path, way):
        one.save(tmp_path)
        for kind in ("run", "qrels"):
            assert (tmp_path / f"folder.{way}.{kind}").read_text().splitlines() == golden[way][kind]
        table = getattr(one.ranks, way)
        table = table[table[:, 0] > 0]
        ours = {f"AP@{k}": retrieval.average_precision(table, k) for k in (10, 16)}
        ours |= {f"Success@{k}": table[:, 0] <= k for k in (1, 5, 10)} | {"RR": 1 / table[:, 0]}
        asked = list(dict.fromkeys(line.split()[0] for line in golden[way]["qrels"]))
        for measure, values in golden[way]["measures"].items():
            assert ours[measure].tolist() == pytest.approx([values[query] for query in asked]), measure

    @pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
    def test_scores_fall_strictly_in_float32_and_answers_come_last_of_a_tie(self, one, tmp_path, kind):
        alike = replace(one, similarity=torch.ones(6, 18, dtype=kind))
        if kind == torch.float64:  # closer than float32 tells apart
            alike.similarity[:, 3] += 1e-12
        alike.save(tmp_path)
        lines = [line.split() for line in (tmp_path / "folder.t2a.run").read_text().splitlines()]
        for query, relevant in enumerate(one.relevance):
            scores = np.array([line[4] for line in lines if line[0] == str(query + 1)], np.float32)
            assert len(scores) == 18 and (np.diff(scores) < 0).all()
            found = [line[2].replace("%20", " ") for line in lines if line[0] == str(query + 1)]
            places = [rank for rank, clip in enumerate(found, 1) if relevant[one.clips.index(clip)]]
            assert places == alike.ranks.t2a[query][: len(places)].tolist()
