"""Metrics: the released code's numbers, values by hand, and a sort by brute force."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from torch.utils._python_dispatch import TorchDispatchMode

from atr.metrics import Ranks, chance, ranks, retrieval, retrieval_metrics
from atr.metrics.statistics import clip_scores

GOLDEN = Path(__file__).parent / "golden"

# Three clips; captions 0 and 1 are of clip 0, 2 of clip 1, 3 of clip 2.
CLIP_OF = np.array([0, 0, 1, 2])
SIMILARITY = np.array([[0.9, 0.1, 0.2], [0.3, 0.5, 0.4], [0.6, 0.5, 0.1], [0.2, 0.8, 0.7]])


def by_sorting(scores, relevant):
    """Ranks of one query's relevant candidates by a full sort in which irrelevant ones win ties."""
    order = sorted(range(len(scores)), key=lambda j: (-scores[j], relevant[j]))
    return [rank for rank, j in enumerate(order, start=1) if relevant[j]]


def average_precision(found, k):
    return sum(n / rank for n, rank in enumerate(found, start=1) if rank <= k) / len(found)


def check_against_sorting(similarity, relevance, k=4):
    result = ranks(similarity, relevance)
    metrics = retrieval_metrics(result, ks=(1, k), map_at=k)
    for direction, scores, relevant in (("t2a", similarity, relevance), ("a2t", similarity.T, relevance.T)):
        expected = [by_sorting(*query) for query in zip(scores, relevant, strict=True)]
        table = getattr(result, direction)
        assert [[r for r in row if r] for row in table.tolist()] == expected
        best = [found[0] for found in expected]
        assert metrics[f"{direction}_r{k}"] == pytest.approx(100 * np.mean([r <= k for r in best]))
        assert metrics[f"{direction}_mean_rank"] == pytest.approx(np.mean(best))
        mean = np.mean([average_precision(found, k) for found in expected])
        assert metrics[f"{direction}_map{k}"] == pytest.approx(100 * mean)


def test_metrics_match_the_released_evaluation():
    golden = np.load(GOLDEN / "metrics_mei2022.npz")
    clip_of = np.repeat(np.arange(100), 5)
    metrics = retrieval_metrics((golden["caption"], golden["audio"]), clip_of, ks=(1, 5, 10, 50))
    for direction in ("t2a", "a2t"):
        for name, value in zip(golden["names"], golden[direction], strict=True):
            assert metrics[f"{direction}_{name}"] == pytest.approx(value, rel=1e-4)


def test_ranks_and_metrics_by_hand():
    result = ranks(SIMILARITY, CLIP_OF)
    np.testing.assert_array_equal(result.t2a, [[1], [3], [2], [2]])
    # Clip 0's captions score 0.9 and 0.3, caption 2 gets between them; clip 1's 0.5 is beaten by 0.8 and tied by 0.5.
    np.testing.assert_array_equal(result.a2t, [[1, 3], [3, 0], [1, 0]])
    np.testing.assert_array_equal(result.best("a2t"), [1, 3, 1])
    metrics = retrieval_metrics(result, ks=(1, 2), map_at=2)
    assert metrics == pytest.approx(
        {
            "t2a_r1": 25.0,
            "t2a_r2": 75.0,
            "t2a_map2": 100 * (1 + 0 + 1 / 2 + 1 / 2) / 4,
            "t2a_median_rank": 2.0,
            "t2a_mean_rank": 2.0,
            "a2t_r1": 200 / 3,
            "a2t_r2": 200 / 3,
            "a2t_map2": 100 * (1 / 2 + 0 + 1) / 3,
            "a2t_median_rank": 1.0,
            "a2t_mean_rank": 5 / 3,
        }
    )


def test_default_keys():
    names = ["r1", "r5", "r10", "map10", "median_rank", "mean_rank"]
    assert list(retrieval_metrics(SIMILARITY, CLIP_OF)) == [f"{d}_{n}" for d in ("t2a", "a2t") for n in names]
    assert "a2t_map16" in retrieval_metrics(SIMILARITY, CLIP_OF, map_at=16)


def test_an_even_median_is_rounded_down():
    table = np.array([[1], [2], [3], [9]])
    assert retrieval_metrics(Ranks(t2a=table, a2t=table))["t2a_median_rank"] == 2.0


def test_a_collapsed_model_comes_last():
    result = ranks((torch.ones(20, 3), torch.ones(4, 3)), np.repeat(np.arange(4), 5))
    np.testing.assert_array_equal(result.best("t2a"), 4)
    np.testing.assert_array_equal(result.a2t, np.tile([16, 17, 18, 19, 20], (4, 1)))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(seed=st.integers(0, 100_000), clips=st.integers(1, 7), extra=st.integers(0, 9), ties=st.booleans())
def test_one_clip_a_caption_agrees_with_sorting(seed, clips, extra, ties):
    rng = np.random.default_rng(seed)
    clip_of = rng.permutation(np.concatenate([np.arange(clips), rng.integers(clips, size=extra)]))
    similarity = rng.standard_normal((clips + extra, clips))
    similarity = similarity.round() if ties else similarity
    check_against_sorting(similarity, clip_of[:, None] == np.arange(clips))
    np.testing.assert_array_equal(
        ranks(similarity, clip_of).a2t, ranks(similarity, clip_of[:, None] == np.arange(clips)).a2t
    )


@settings(deadline=None, derandomize=True, max_examples=60)
@given(seed=st.integers(0, 100_000), captions=st.integers(1, 12), clips=st.integers(1, 8), ties=st.booleans())
def test_several_clips_a_caption_agree_with_sorting(seed, captions, clips, ties):
    rng = np.random.default_rng(seed)
    relevance = rng.random((captions, clips)) < 0.3
    relevance[np.arange(captions), rng.integers(clips, size=captions)] = True
    relevance[rng.integers(captions, size=clips), np.arange(clips)] = True
    similarity = rng.standard_normal((captions, clips))
    check_against_sorting(similarity.round() if ties else similarity, relevance)


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_chunks_and_embeddings_give_what_the_matrix_gives(chunk):
    rng = np.random.default_rng(0)
    text, audio = rng.standard_normal((50, 6)), rng.standard_normal((10, 6))
    clip_of = rng.permutation(np.repeat(np.arange(10), 5))
    norms = np.linalg.norm(text, axis=1)[:, None] * np.linalg.norm(audio, axis=1)
    whole = ranks(text @ audio.T / norms, clip_of)
    for similarity in ((text, audio), (torch.tensor(text), torch.tensor(3 * audio)), text @ audio.T / norms):
        result = ranks(similarity, clip_of, chunk=chunk)
        np.testing.assert_array_equal(result.t2a, whole.t2a)
        np.testing.assert_array_equal(result.a2t, whole.a2t)


def test_the_order_of_captions_and_clips_does_not_matter():
    rng = np.random.default_rng(1)
    similarity, clip_of = rng.standard_normal((40, 8)), np.repeat(np.arange(8), 5)
    captions, clips = rng.permutation(40), rng.permutation(8)
    shuffled = similarity[captions][:, clips], np.argsort(clips)[clip_of[captions]]
    assert retrieval_metrics(*shuffled) == pytest.approx(retrieval_metrics(similarity, clip_of))


def test_ranks_survive_a_file(tmp_path):
    result = ranks(SIMILARITY, CLIP_OF)
    np.savez(tmp_path / "ranks.npz", **vars(result))
    again = Ranks(**np.load(tmp_path / "ranks.npz"))
    assert retrieval_metrics(again) == retrieval_metrics(SIMILARITY, CLIP_OF)


@pytest.mark.parametrize("several", [False, True])
def test_chance_is_the_mean_over_random_rankings(several):
    rng = np.random.default_rng(0)
    relevance = np.repeat(np.arange(6), [1, 2, 2, 3, 4, 4])
    if several:
        relevance = (relevance[:, None] == np.arange(6)) | (rng.random((16, 6)) < 0.2)
    expected = chance(relevance, ks=(1, 3, 20), map_at=4)
    drawn = [retrieval_metrics(rng.random((16, 6)), relevance, ks=(1, 3, 20), map_at=4) for _ in range(1500)]
    assert expected.keys() == drawn[0].keys()
    for name, value in expected.items():
        if "median" not in name:
            sample = np.array([metrics[name] for metrics in drawn])
            assert abs(sample.mean() - value) <= 4 * sample.std() / np.sqrt(len(sample)) + 1e-9, name


def test_chance_of_one_clip_a_caption_by_hand():
    metrics = chance(np.arange(100), map_at=2)
    assert metrics["t2a_r1"] == pytest.approx(1) and metrics["a2t_r10"] == pytest.approx(10)
    assert metrics["t2a_map2"] == pytest.approx(1.5)
    assert metrics["t2a_median_rank"] == 50 and metrics["t2a_mean_rank"] == pytest.approx(50.5)


def test_errors_say_where_and_what_to_do():
    broken = SIMILARITY.copy()
    broken[2, 1] = np.nan
    with pytest.raises(ValueError, match="similarity: 1 of 4 rows .* first is row 2; look for a diverged"):
        ranks(broken, CLIP_OF)
    broken[1] = [np.inf, -np.inf, 0]
    with pytest.raises(ValueError, match="audio: 2 of 4 rows .* first is row 1"):
        ranks((SIMILARITY, broken), CLIP_OF)
    with pytest.raises(ValueError, match="text has 3 dimensions, audio 2"):
        ranks((SIMILARITY, SIMILARITY[:, :2]), CLIP_OF)
    with pytest.raises(ValueError, match="3 rows for 4 captions"):
        ranks(SIMILARITY, CLIP_OF[:3])
    with pytest.raises(ValueError, match=r"\(4, 2\), \(captions, clips\) is \(4, 3\)"):
        ranks(SIMILARITY, np.ones((4, 2), dtype=bool))
    with pytest.raises(ValueError, match="1 of 4 captions have clip outside 0 to 2, the first is caption 3"):
        ranks(SIMILARITY, [0, 1, 2, 3])
    with pytest.raises(ValueError, match="1 of 3 clips have no relevant caption, the first is clip 1"):
        ranks(SIMILARITY, [0, 0, 2, 2])
    fits = CLIP_OF[:, None] == np.arange(3)
    fits[1] = False
    with pytest.raises(ValueError, match="1 of 4 captions have no relevant clip, the first is caption 1"):
        ranks(SIMILARITY, fits)
    with pytest.raises(ValueError, match="relevance is float64 of shape"):
        ranks(SIMILARITY, CLIP_OF.astype(float))
    with pytest.raises(ValueError, match="relevance is missing"):
        retrieval_metrics(SIMILARITY)
    with pytest.raises(ValueError, match="already part of Ranks"):
        retrieval_metrics(ranks(SIMILARITY, CLIP_OF), CLIP_OF)
    with pytest.raises(ValueError, match="two dimensions"):
        ranks(SIMILARITY[0], CLIP_OF)
    with pytest.raises(ValueError, match="at least one query"):
        ranks(SIMILARITY, CLIP_OF, chunk=0)


def test_a_clip_that_no_caption_fits_is_found_wrongly_and_asks_nothing():
    rng = np.random.default_rng(0)
    similarity = rng.random((8, 5))
    fits = np.zeros((8, 5), dtype=bool)
    fits[np.arange(8), [0, 0, 1, 1, 2, 2, 4, 4]] = True
    fits[7, 0] = True
    found = ranks(similarity, fits)
    measured = retrieval_metrics(found, map_at=16)
    scored = similarity[np.arange(8), [0, 0, 1, 1, 2, 2, 4, 4]]
    single = np.arange(8) != 7  # whose rank can be counted by hand: the scores that reach it
    expected = (similarity >= scored[:, None]).sum(1)
    assert (found.best("t2a")[single] == expected[single]).all()
    assert not found.a2t[3].any() and found.best("a2t")[3] == 0

    without = retrieval_metrics(np.delete(similarity, 3, axis=1), np.delete(fits, 3, axis=1), map_at=16)
    by_sound = [name for name in measured if name.startswith("a2t")]
    assert {name: measured[name] for name in by_sound} == {name: without[name] for name in by_sound}
    assert measured["t2a_mean_rank"] > without["t2a_mean_rank"]

    for direction in ("t2a", "a2t"):
        scores = clip_scores(found, fits, 1, direction)
        assert scores.shape == (4,) and np.isfinite(scores).all()
    assert clip_scores(found, fits, 1, "a2t").mean() == pytest.approx(measured["a2t_r1"])
    expected = np.mean([retrieval_metrics(rng.random((8, 5)), fits)["t2a_r1"] for _ in range(400)])
    assert chance(fits)["t2a_r1"] == pytest.approx(expected, abs=2.5)
    assert all(np.isfinite(value) for value in chance(fits).values())


@pytest.mark.parametrize("form", [sparse.csr_array, sparse.csc_array, sparse.coo_array, sparse.csr_matrix])
def test_sparse_relevance_is_the_dense_one(form):
    rng = np.random.default_rng(0)
    relevance = rng.random((30, 12)) < 0.2
    relevance[np.arange(30), np.arange(30) % 12] = True
    similarity = rng.standard_normal((30, 12)).round(1)
    assert retrieval_metrics(similarity, form(relevance)) == retrieval_metrics(similarity, relevance)
    assert chance(form(relevance)) == chance(relevance)
    relevance[7] = False
    with pytest.raises(ValueError, match="1 of 30 captions have no relevant clip, the first is caption 7"):
        ranks(similarity, form(relevance))
    with pytest.raises(ValueError, match="30 of 30 captions have no relevant clip"):
        ranks(similarity, form(np.zeros((30, 12), bool)))
    with pytest.raises(ValueError, match="relevance is float64 of shape"):
        ranks(similarity, form(relevance.astype(float)))


def test_many_relevant_clips_of_a_caption_are_ranked_in_little_memory():
    """5,000 relevant ones a caption: pairs of them, (8, 5,000, 5,000) booleans, would take 200 MB."""
    rng = np.random.default_rng(0)
    similarity, relevance = rng.standard_normal((8, 6000)).round(2), rng.random((8, 6000)) < 5 / 6
    relevance[0] |= ~relevance.any(0)
    with Largest() as largest:
        found = ranks(similarity, relevance)
    assert largest.bytes < 2 * similarity.nbytes
    assert found.t2a[3][found.t2a[3] > 0].tolist() == by_sorting(similarity[3], relevance[3])


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that any operation returns."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        found = result if isinstance(result, (tuple, list)) else [result]
        self.bytes = max([self.bytes, *(x.nbytes for x in found if isinstance(x, torch.Tensor))])
        return result


def test_a_cut_below_one_is_refused():
    for cuts in ({"ks": (0, 5)}, {"map_at": 0}):
        with pytest.raises(ValueError, match="ranks count from 1"):
            retrieval_metrics(SIMILARITY, CLIP_OF, **cuts)


STREAM = """
import resource, sys
import numpy as np
import torch
from scipy import sparse
from atr.metrics import retrieval

torch.set_num_threads(1)
audio, text = torch.randn(100_000, 4), torch.randn(8_000, 4)
own = np.arange(8_000)
relevance = sparse.csr_array((np.ones(8_000, bool), (own, own)), shape=(8_000, 100_000))
retrieval.ranks((text[:50], audio), relevance[:50])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
retrieval.ranks((text, audio), relevance)
unit = 2**20 if sys.platform == "darwin" else 2**10
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit)
"""


def test_memory_does_not_grow_with_the_number_of_blocks():
    """8e8 similarities in each direction, 3 GiB: they grew by 0.7 GiB where each block had memory of its own."""
    done = subprocess.run([sys.executable, "-c", STREAM], capture_output=True, text=True, check=True, timeout=300)
    assert float(done.stdout) < 200  # MiB


def test_hubness_is_how_near_a_clip_is_to_a_bank_of_sentences():
    bank, audio = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    # by hand: cosines of the first clip 1 and 0, of the second twice the root of a half
    expected = [math.log((math.exp(2) + 1) / 2) / 2, math.sqrt(0.5)]
    assert retrieval.hubness(bank, audio, beta=2).tolist() == pytest.approx(expected, abs=1e-6)
    assert retrieval.hubness(bank.repeat(7, 1), audio, beta=2).tolist() == pytest.approx(expected, abs=1e-6)
    for beta, limit in (1e-4, [0.5, math.sqrt(0.5)]), (1e4, [1, math.sqrt(0.5)]):  # from the mean to the largest
        assert retrieval.hubness(bank, audio, beta).tolist() == pytest.approx(limit, abs=1e-3)


def test_hubness_holds_in_blocks_and_demotes_a_hub(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    bank, audio = torch.randn(90, 4, generator=generator), torch.randn(11, 4, generator=generator)
    whole = retrieval.hubness(bank, audio)
    monkeypatch.setattr(retrieval, "BLOCK", 200)
    assert torch.allclose(retrieval.hubness(bank, audio), whole, atol=1e-6)
    hub, other = torch.tensor([1.0, 1.0]), torch.tensor([1.0, -0.2])
    query, sounds, bank = torch.tensor([[1.0, 0.4]]), torch.stack([hub, other]), torch.tensor([[1.0, 1.0], [0.4, 1.0]])
    cosine = F.normalize(query, dim=1) @ F.normalize(sounds, dim=1).T
    assert cosine.argmax() == 0 and (cosine - retrieval.hubness(bank, sounds)).argmax() == 1


@pytest.mark.parametrize("beta", [0, -1, float("nan"), float("inf")])
def test_hubness_wants_an_inverse_temperature(beta):
    with pytest.raises(ValueError, match="beta is .*; give a number above 0"):
        retrieval.hubness(torch.eye(2), torch.eye(2), beta)
    with pytest.raises(ValueError, match=r"bank has shape \(0, 2\); give two dimensions, none of them empty"):
        retrieval.hubness(torch.empty(0, 2), torch.eye(2))
    with pytest.raises(ValueError, match="bank: 1 of 2 rows hold non-finite numbers"):
        retrieval.hubness(torch.tensor([[1, 0], [float("nan"), 1]]), torch.eye(2))


def test_relevance_of_any_kind_is_an_array_in_a_file():
    fits = np.array([[True, False], [False, True]])
    for relevance in (fits, torch.from_numpy(fits), sparse.csr_array(fits), sparse.csr_matrix(fits)):
        dense = retrieval.dense(relevance)
        assert type(dense) is np.ndarray and np.array_equal(dense, fits)
