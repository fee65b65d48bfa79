import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atr import Embedder
from atr.inference import lookup, neighbours, shards
from atr.inference.lookup import Lookup
from atr.inference.neighbours import Neighbours

needs_faiss = pytest.mark.skipif(sys.platform == "darwin", reason="FAISS is not used on macOS")
DIM = 8


class Cosines:
    """As `Embedder` compares embeddings."""

    text_aware, similarity = False, Embedder.similarity


class Distances(Cosines):
    def similarity(self, sentences, sounds):
        return -torch.cdist(sentences, sounds)


def directions(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, DIM, generator=generator), dim=1)


def write(folder, segments, seed=0):
    """A shard of files with so many segments each; a file's name is the shard's seed and its number."""
    rows = [(f"{seed}-{number}", 1, 1, float(count), count, "") for number, count in enumerate(segments)]
    times = torch.cat([torch.arange(count, dtype=torch.float64) for count in segments])
    table = pd.DataFrame(rows, columns=list(shards.COLUMNS))
    shards.write(folder, [shards.FileRows(table, directions(sum(segments), seed), torch.stack([times, times + 1], 1))])


def opened(folder, embedder=None, gone=()):
    """All files that shards have but some, as an interrupted update leaves them."""
    stored = shards.shards_in(folder)
    files = shards.files(stored)
    return Lookup(folder, stored, files[~files["path"].isin(gone)], embedder or Cosines())


def expected(folder, sentences, top, gone=()):
    """Path and score of the best files of each sentence, by going through all."""
    scores = [dict() for _ in sentences]
    for shard in shards.shards_in(folder):
        for line, path in enumerate(shard.table["path"]):
            for number, sentence in enumerate(sentences):
                rows = shard.tensors["embeddings"][shard.offsets[line] : shard.offsets[line + 1]].double()
                if len(rows) and path not in gone:
                    scores[number][path] = float((rows @ sentence.double()).max())
    return [sorted(found.items(), key=lambda item: -item[1])[:top] for found in scores]


def assert_finds(found, wanted):
    for hits, best in zip(found, wanted, strict=True):
        assert [hit.path for hit in hits] == [path for path, _ in best]
        np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in best], atol=1e-6)


@pytest.fixture
def small(monkeypatch):
    """FAISS beyond 50 segments, which looks at all lists."""
    monkeypatch.setattr(neighbours, "LIMIT", 50)
    monkeypatch.setattr(neighbours, "PROBES", 10**4)


files = st.lists(st.integers(0, 4), min_size=1, max_size=30)


@given(counts=st.lists(files, min_size=1, max_size=3), top=st.integers(1, 40), gone=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_every_file_is_ranked_by_its_best_segment(tmp_path_factory, counts, top, gone):
    folder, sentences = tmp_path_factory.mktemp("shards"), directions(3, 99)
    for seed, segments in enumerate(counts):
        write(folder, segments, seed)
    gone = [f"0-{number}" for number in range(gone)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookup, "QUERIES", 2)
        found = opened(folder, gone=gone).best(sentences, top)
    assert_finds(found, expected(folder, sentences, top, gone))
    for hits in found:
        for hit in hits:
            seed, number = map(int, hit.path.split("-"))
            first = sum(counts[seed][:number])
            rows = directions(sum(counts[seed]), seed)[first : first + counts[seed][number]]
            best = int((rows @ sentences[found.index(hits)]).argmax())
            assert (hit.start, hit.end) == (best, best + 1)


@needs_faiss
class TestFaiss:
    def folder(self, folder):
        """Three shards, of which some files have no segments and one has half of them all."""
        for seed, segments in enumerate([[2, 0, 3] * 30, [0, 0, 150, 1], [1] * 40]):
            write(folder, segments, seed)
        return folder

    @pytest.mark.parametrize("gone", [(), ("1-2", "0-0", "2-39")])
    def test_files_that_it_names_are_ranked_as_an_exact_search_ranks_them(self, small, tmp_path, monkeypatch, gone):
        made, sentences = opened(self.folder(tmp_path), gone=gone), directions(20, 99)
        made.build(quiet=True)
        monkeypatch.setattr(Lookup, "_exactly", None)
        assert_finds(made.best(sentences, 5), expected(tmp_path, sentences, 5, gone))

    def test_where_one_file_has_all_that_it_names_the_search_is_exact(self, small, tmp_path, monkeypatch):
        made, sentences = opened(self.folder(tmp_path)), directions(20, 99)
        made.build(quiet=True)
        monkeypatch.setattr(lookup, "SEGMENTS", 1)
        exactly, asked = made._exactly, []
        monkeypatch.setattr(made, "_exactly", lambda *given: asked.append(len(given[0])) or exactly(*given))
        assert_finds(made.best(sentences, 10), expected(tmp_path, sentences, 10))
        assert 0 < asked[0] <= 20
        assert_finds(made.best(sentences[:2], 10**6), expected(tmp_path, sentences[:2], 10**6))

    def test_another_similarity_is_computed_for_every_segment(self, small, tmp_path, recwarn):
        made, sentences = opened(self.folder(tmp_path), Distances()), directions(5, 99)
        made.build(quiet=True)
        assert not list(tmp_path.glob("*.faiss"))
        assert [[hit.path for hit in hits] for hits in made.best(sentences, 9)] == [
            [path for path, _ in best] for best in expected(tmp_path, sentences, 9)
        ]
        assert not recwarn.list

    def test_its_file_follows_the_shards_and_nothing_else_stays(self, small, tmp_path):
        opened(self.folder(tmp_path)).build(quiet=True)
        (first,) = tmp_path.glob("*.faiss")
        opened(tmp_path).build(quiet=True)
        assert list(tmp_path.glob("*neighbours*")) == [first]
        write(tmp_path, [3], seed=7)
        made = opened(tmp_path)
        made.build(quiet=True)
        assert first.exists()  # others may be searching it
        made.clean()
        (second,) = tmp_path.glob("*neighbours*")
        assert second != first

    def test_before_it_is_made_anew_the_search_is_exact_and_says_so_once(self, small, tmp_path, recwarn):
        opened(self.folder(tmp_path)).build(quiet=True)
        write(tmp_path, [3, 1], seed=7)
        made, sentences = opened(tmp_path), directions(5, 99)
        for _ in range(2):
            assert_finds(made.best(sentences, 5), expected(tmp_path, sentences, 5))
        (said,) = recwarn.list
        assert "345 embeddings searched exactly, in " in str(said.message) and "atr index" in str(said.message)

    @pytest.mark.parametrize("cut, problem", [(True, "it is cut short"), (False, "other bytes than were written")])
    def test_a_damaged_file_is_named_and_the_search_exact(self, small, tmp_path, recwarn, cut, problem):
        opened(self.folder(tmp_path)).build(quiet=True)
        (file,) = tmp_path.glob("*.faiss")
        content = file.read_bytes()
        file.write_bytes(content[:-100] if cut else content[:1000] + bytes([content[1000] ^ 4]) + content[1001:])
        sentences = directions(5, 99)
        assert_finds(opened(tmp_path).best(sentences, 5), expected(tmp_path, sentences, 5))
        assert f"{file}: damaged ({problem}" in str(recwarn.list[0].message)
        opened(tmp_path).build(quiet=True)
        assert_finds(opened(tmp_path).best(sentences, 5), expected(tmp_path, sentences, 5))
        assert len(recwarn.list) == 1


def test_without_files_nothing_is_found(tmp_path):
    assert Lookup(tmp_path, [], shards.files([]), Cosines()).best(directions(2, 0), 3) == [[], []]
    write(tmp_path, [0, 0])
    made = opened(tmp_path)
    made.build(quiet=True)
    assert made.best(directions(2, 0), 3) == [[], []]


def test_no_more_files_are_given_than_there_are(tmp_path):
    write(tmp_path, [1, 0, 2])
    assert [len(hits) for hits in opened(tmp_path).best(directions(2, 0), 10)] == [2, 2]


def test_the_cosine_is_known_by_the_embedders_own_function(tmp_path):
    write(tmp_path, [1])
    assert isinstance(opened(tmp_path).neighbours, Neighbours)
    assert opened(tmp_path).neighbours.path and not opened(tmp_path, Distances()).neighbours.path
