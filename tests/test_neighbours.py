import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atr.inference import neighbours
from atr.inference.neighbours import Neighbours

needs_faiss = pytest.mark.skipif(sys.platform == "darwin", reason="FAISS is not used on macOS")


def made(rows, dim, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)


def cosines(queries, embeddings):
    """(Q, N) in double precision, by the definition."""
    one, other = np.asarray(queries, np.float64), np.asarray(embeddings, np.float64)
    return one @ other.T / np.linalg.norm(one, axis=1)[:, None] / np.linalg.norm(other, axis=1)


def clustered(rows, dim, seed=0):
    """Around twenty directions."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((20, dim))
    return (centres[generator.integers(0, 20, rows)] + 0.3 * generator.standard_normal((rows, dim))).astype(np.float32)


@pytest.fixture
def small(monkeypatch):
    """FAISS beyond 100 rows; an eighth of its lists are looked at."""
    monkeypatch.setattr(neighbours, "LIMIT", 100)
    monkeypatch.setattr(neighbours, "PROBES", 16)
    monkeypatch.setattr(neighbours, "CHUNK", 1000)


class TestExact:
    @given(
        seed=st.integers(0, 10**6),
        shape=st.tuples(st.integers(1, 90), st.integers(1, 9)),
        queries=st.integers(1, 5),
        top=st.integers(1, 100),
        chunk=st.integers(1, 200),
        half=st.booleans(),
        parts=st.integers(1, 4),
    )
    @settings(max_examples=150, deadline=None)
    def test_it_is_what_all_cosines_sorted_say(self, seed, shape, queries, top, chunk, half, parts):
        generator = np.random.default_rng(seed)
        embeddings = made(*shape, seed).astype(np.float16 if half else np.float32)
        embeddings = embeddings[generator.integers(0, len(embeddings), len(embeddings))]  # some rows are equal
        asked = made(queries, shape[1], seed + 1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(neighbours, "CHUNK", chunk)
            patch.setattr(neighbours, "QUERIES", 2)
            scores, rows = Neighbours(np.array_split(embeddings, parts)).search(asked, top)
        expected = cosines(asked, embeddings)
        assert rows.shape == scores.shape == (queries, min(top, len(embeddings)))
        for query in range(queries):
            order = np.lexsort((np.arange(len(embeddings)), -expected[query].round(12)))[: rows.shape[1]]
            assert rows[query].tolist() == order.tolist()
        np.testing.assert_allclose(scores, np.take_along_axis(expected, rows, 1), atol=1e-12)

    @pytest.mark.parametrize("dim", [7, 64, 1000])
    def test_the_bits_do_not_depend_on_chunks_parts_or_other_queries(self, dim, monkeypatch):
        embeddings, asked = made(300, dim), made(9, dim, 1)
        scores, rows = Neighbours(embeddings).search(asked)
        for chunk in (dim, 17 * dim, 10**6):
            monkeypatch.setattr(neighbours, "CHUNK", chunk)
            again = Neighbours([embeddings[:5], embeddings[5:5], embeddings[5:]]).search(asked)
            alone = [Neighbours(embeddings).search(query[None]) for query in asked]
            assert (again[0] == scores).all() and (again[1] == rows).all()
            assert all((alone[query][0] == scores[query]).all() for query in range(len(asked)))

    def test_among_equal_ones_the_lower_row_comes_first_however_many_there_are(self, monkeypatch):
        monkeypatch.setattr(neighbours, "CHUNK", 64)
        embeddings = np.tile(made(1, 33), (500, 1))
        embeddings[100:] *= 2
        scores, rows = Neighbours(embeddings).search(made(3, 33, 1), 7)
        assert rows.tolist() == [list(range(7))] * 3 and (scores == scores[:, :1]).all()

    def test_differences_below_single_precision_decide(self):
        embeddings = np.ones((64, 512), np.float32)
        embeddings[:, 0] += np.arange(64, dtype=np.float32)[::-1] * 2.0**-20
        _, rows = Neighbours(embeddings).search(np.ones((1, 512)), 5)
        assert rows.tolist() == [[63, 62, 61, 60, 59]]

    @pytest.mark.parametrize("dtype", [np.float16, np.float32])
    def test_a_file_is_read_in_pieces(self, tmp_path, monkeypatch, dtype):
        embeddings, asked = made(200, 8).astype(dtype), made(2, 8, 1)
        np.save(tmp_path / "a.npy", embeddings)
        mapped, read = np.load(tmp_path / "a.npy", mmap_mode="r"), []
        measured = neighbours._measure
        monkeypatch.setattr(neighbours, "_measure", lambda rows: read.append(len(rows)) or measured(rows))
        monkeypatch.setattr(neighbours, "CHUNK", 8 * 32)
        found = Neighbours(mapped).search(asked)
        assert read == [32] * 6 + [8]
        for one, other in zip(found, Neighbours(embeddings.copy()).search(asked), strict=True):
            assert (one == other).all()

    def test_a_row_of_zeros_has_the_cosine_zero(self):
        scores, rows = Neighbours(np.array([[0, 0], [-1, 0], [0, 1]], np.float16)).search(np.array([[1, 0]]), 3)
        assert rows.tolist() == [[0, 2, 1]] and scores.tolist() == [[0, 0, -1]]

    def test_what_cannot_be_searched_is_said(self):
        with pytest.raises(ValueError, match="query 1: zeros alone, or not finite"):
            Neighbours(made(3, 2)).search(np.array([[1, 0], [0, 0]]))
        with pytest.raises(ValueError, match="embeddings: not all are finite"):
            Neighbours(np.array([[1, np.nan]], np.float32)).search(np.ones((1, 2)))
        one, two = r"0 rows, \[\(2,\)\]: give \(N, D\)", r"4 rows, \[\(2,\), \(3,\)\]: give"
        wrong = {one: made(0, 2), r"3 rows, \[\(\)\]: give": np.ones(3, np.float32), two: [made(2, 2), made(2, 3)]}
        for said, embeddings in (wrong | {r"0 rows, \[\]: give": []}).items():
            with pytest.raises(ValueError, match=said):
                Neighbours(embeddings)

    def test_beyond_the_limit_it_stays_exact_without_a_path_and_says_nothing(self, small, recwarn):
        embeddings, asked = made(300, 4), made(2, 4, 1)
        index = Neighbours(embeddings)
        index.build(quiet=True)
        assert (index.search(asked)[1] == np.argsort(-cosines(asked, embeddings))[:, :10]).all() and not recwarn.list


@needs_faiss
class TestFaiss:
    def test_it_is_used_beyond_the_limit_and_what_it_returns_is_true(self, small, tmp_path, monkeypatch, recwarn):
        embeddings, asked = clustered(1000, 16), clustered(50, 16, 1)
        index = Neighbours(np.array_split(embeddings, 3), tmp_path / "a.faiss")
        index.build(quiet=True)
        monkeypatch.setattr(Neighbours, "_exact", None)
        scores, rows = index.search(asked)
        expected = cosines(asked, embeddings)
        best = np.argsort(-expected)[:, :10]
        recall = np.mean([len(set(one) & set(other)) / 10 for one, other in zip(rows, best, strict=True)])
        assert recall > 0.9 and not recwarn.list
        np.testing.assert_allclose(scores, np.take_along_axis(expected, rows, 1), atol=1e-12)
        assert (np.diff(scores) <= 0).all() and all(len(set(row)) == 10 for row in rows.tolist())

    def test_with_all_lists_looked_at_it_is_exact(self, small, tmp_path, monkeypatch):
        monkeypatch.setattr(neighbours, "PROBES", 1000)
        embeddings, asked = clustered(400, 16), clustered(20, 16, 1)
        index = Neighbours(embeddings, tmp_path / "a.faiss")
        index.build(quiet=True)
        monkeypatch.setattr(Neighbours, "_exact", None)
        scores, rows = index.search(asked, 20)
        assert (rows == np.argsort(-cosines(asked, embeddings))[:, :20]).all()

    def test_a_query_for_which_it_finds_too_few_is_searched_exactly(self, small, tmp_path, monkeypatch):
        monkeypatch.setattr(neighbours, "PROBES", 1)
        embeddings, asked = clustered(400, 16), clustered(5, 16, 1)
        index = Neighbours(embeddings, tmp_path / "a.faiss")
        index.build(quiet=True)
        assert (index.candidates(asked, 200) < 0).any()
        assert (index.search(asked, 200)[1] == np.argsort(-cosines(asked, embeddings))[:, :200]).all()

    def test_up_to_the_limit_nothing_is_built(self, small, tmp_path):
        Neighbours(made(100, 4), tmp_path / "a.faiss").build(quiet=True)
        assert not list(tmp_path.iterdir())

    def test_it_is_built_once(self, small, tmp_path):
        Neighbours(made(200, 4), tmp_path / "a.faiss").build(quiet=True)
        (file,) = tmp_path.iterdir()
        built = file.stat().st_mtime_ns
        Neighbours(made(200, 4), file).build(quiet=True)
        assert file.stat().st_mtime_ns == built

    def test_until_it_is_built_search_is_exact_and_says_so_once(self, small, tmp_path, recwarn):
        embeddings, asked = made(300, 4), made(2, 4, 1)
        index = Neighbours(embeddings, tmp_path / "a.faiss")
        for _ in range(2):
            assert (index.search(asked)[1] == np.argsort(-cosines(asked, embeddings))[:, :10]).all()
        (said,) = recwarn.list
        assert re.fullmatch(
            r"300 embeddings searched exactly, in \d+\.\d s: .* build\(\) .* atr index", str(said.message)
        )

    @pytest.mark.parametrize("kept", [0, 5, 100, -1, -300, "other bytes", "another index"])
    def test_a_damaged_file_is_named_and_made_anew(self, small, tmp_path, kept, recwarn):
        embeddings, path = clustered(300, 4), tmp_path / "a.faiss"
        Neighbours(embeddings, path).build(quiet=True)
        whole = path.read_bytes()
        if kept == "another index":
            path.unlink()
            Neighbours(embeddings[:200], path).build(quiet=True)
        else:
            path.write_bytes(b"\0" * 100 + neighbours.COMPLETE if isinstance(kept, str) else whole[:kept])
        index = Neighbours(embeddings, path)
        expected = np.argsort(-cosines(embeddings[:2], embeddings))[:, :10]
        assert (index.search(embeddings[:2])[1] == expected).all()
        (said,) = recwarn.list
        assert f"{path}: damaged (" in str(said.message) and "build() makes it anew" in str(said.message)
        index.build(quiet=True)
        for one in (index, Neighbours(embeddings, path)):
            assert (one.candidates(embeddings[:2], 1)[:, 0] == [0, 1]).all() and not one.reason

    def test_a_disk_that_is_full_is_an_error_and_leaves_nothing(self, small, tmp_path, monkeypatch):
        import faiss

        def full(*given):
            raise RuntimeError("write error: No space left on device")

        monkeypatch.setattr(faiss, "write_index", full)
        with pytest.raises(OSError, match="a.faiss: write error: No space left on device"):
            Neighbours(made(200, 4), tmp_path / "a.faiss").build(quiet=True)
        assert not list(tmp_path.iterdir())


class TestWithoutFaiss:
    @pytest.mark.parametrize(
        "platform, words", [("linux", "pip install faiss-cpu"), ("darwin", "FAISS is not used on macOS")]
    )
    def test_search_is_exact_and_says_what_would_help(self, small, tmp_path, monkeypatch, recwarn, platform, words):
        monkeypatch.setitem(sys.modules, "faiss", None)
        monkeypatch.setattr(sys, "platform", platform)
        embeddings, asked = made(300, 4), made(2, 4, 1)
        index = Neighbours(embeddings, tmp_path / "a.faiss")
        index.build(quiet=True)
        assert (index.search(asked)[1] == np.argsort(-cosines(asked, embeddings))[:, :10]).all()
        (said,) = recwarn.list
        assert words in str(said.message) and not list(tmp_path.iterdir())
