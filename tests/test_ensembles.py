"""Ensembles: the mean similarity by hand and matrix by matrix, and what it leaves as it was."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from atr import RunConfig, fit, metrics
from atr.inference import dcase
from atr.inference.ensembles import embeddings, ensemble, join
from atr.metrics import Ranks, retrieval, statistics
from atr.training.records import Run

CLIP_OF = np.repeat(np.arange(12), 3)


def member(folder, seed, dim=6, relevance=CLIP_OF, clips=None):
    """A finished run's test split of 12 clips and 36 captions, embeddings drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    text, audio = (torch.randn(n, dim, generator=generator) for n in (36, 12))
    text, audio = (torch.nn.functional.normalize(x, dim=1) for x in (text + audio[CLIP_OF], audio))
    ranks = metrics.ranks((text, audio), relevance)
    path = folder / f"{seed:016x}"
    path.mkdir()
    tensors = {"text": text, "audio": audio, "relevance": torch.from_numpy(relevance)}
    tensors |= {name: torch.from_numpy(table) for name, table in vars(ranks).items()}
    save_file(tensors, path / "embeddings.safetensors")
    clips = clips or [f"clip {clip}" for clip in range(12)]
    rows = [("other", "train"), *((clip, "test") for clip in clips)]
    pd.DataFrame(rows, columns=["clip", "split"]).to_csv(path / "clips.csv", index=False)
    return Run(path)


def assert_same(ranks, other):
    np.testing.assert_array_equal(ranks.t2a, other.t2a)
    np.testing.assert_array_equal(ranks.a2t, other.a2t)


def mean_similarity(runs):
    return sum((run.embeddings["text"].double() @ run.embeddings["audio"].double().T) for run in runs) / len(runs)


class Sizes(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        found = result if isinstance(result, (tuple, list)) else [result]
        self.largest = max([self.largest, *(x.numel() for x in found if isinstance(x, torch.Tensor))])
        return result


def test_the_mean_of_two_similarities_by_hand():
    # Cosines of the first model: 1 and 0; of the second, which has another dimension: 0.6 and 0.8.
    first = torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    second = torch.tensor([[0.0, 3.0, 4.0]]), torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    text, audio = join([first, second])
    assert torch.nn.functional.cosine_similarity(text, audio).tolist() == pytest.approx([0.8, 0.4])
    assert text.shape == (1, 5) and audio.shape == (2, 5)


def test_an_ensemble_ranks_by_the_mean_of_its_members_matrices(tmp_path):
    runs = [member(tmp_path, seed, dim) for seed, dim in enumerate((4, 6, 9))]
    found = ensemble(runs)
    assert_same(found, metrics.ranks(mean_similarity(runs), CLIP_OF))
    assert any(not np.array_equal(found.t2a, run.ranks.t2a) for run in runs)


def test_an_ensemble_of_one_run_or_of_the_same_run_again_is_the_run(tmp_path):
    run = member(tmp_path, 0)
    for runs in ([run], [run, run, run]):
        assert_same(ensemble(runs), run.ranks)


def test_the_order_of_the_members_does_not_matter(tmp_path):
    runs = [member(tmp_path, seed) for seed in range(4)]
    assert_same(ensemble(runs), ensemble(runs[::-1]))


@pytest.mark.parametrize("submitted", [False, True])
def test_no_similarity_matrix_is_held_as_a_whole(tmp_path, monkeypatch, submitted):
    runs = [member(tmp_path, seed, dim=2) for seed in range(3)]
    queries, names = ["a query"] * 36, [f"{clip}.wav" for clip in range(12)]

    def largest():
        with Sizes() as sizes:
            dcase.write(tmp_path / "out.csv", queries, names, embeddings(runs)) if submitted else ensemble(runs)
        return sizes.largest

    assert largest() >= 36 * 12  # small enough for one block, so the measure sees it
    monkeypatch.setattr(retrieval, "BLOCK", 48)
    assert largest() < 36 * 12


def test_a_measure_with_its_interval_for_an_ensemble(tmp_path):
    runs = [member(tmp_path, seed) for seed in range(3)]
    ranks = ensemble(runs)
    for direction in ("t2a", "a2t"):
        interval = statistics.crossed_interval(statistics.clip_precision(ranks, CLIP_OF, 5, direction)[None])
        measured = metrics.retrieval_metrics(ranks, map_at=5)[f"{direction}_map5"]
        assert interval.mean == pytest.approx(measured)
        assert interval.low < measured < interval.high


def test_precision_of_a_clip_by_hand():
    # Captions 0 and 1 are of clip 0, caption 2 of clips 0 and 1, caption 3 of clip 2.
    relevance = np.array([[1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1]], dtype=bool)
    ranks = Ranks(t2a=np.array([[1, 0], [3, 0], [1, 3], [2, 0]]), a2t=np.array([[1, 2, 4], [2, 0, 0], [3, 0, 0]]))
    captions = np.array([1, 0, 1 / 2, 1 / 2])  # within 2; of caption 2's two clips, one is found
    expected = [captions[:3].mean(), captions[2], captions[3]]
    np.testing.assert_allclose(statistics.clip_precision(ranks, relevance, 2), 100 * np.array(expected))
    np.testing.assert_allclose(statistics.clip_precision(ranks, relevance, 2, "a2t"), [100 * 2 / 3, 50, 0])


def test_runs_of_different_test_sets_are_refused_by_name(tmp_path):
    run = member(tmp_path, 0)
    named = member(tmp_path, 1, clips=[f"other {clip}" for clip in range(12)])
    answered = member(tmp_path, 2, relevance=CLIP_OF[::-1].copy())
    widened = member(tmp_path, 3, relevance=CLIP_OF[:, None] == np.arange(12))
    with pytest.raises(ValueError, match=f"run {named.address} has other test clips than run {run.address}; join"):
        embeddings([run, named])
    for other in (answered, widened):
        with pytest.raises(ValueError, match=f"run {other.address} has other relevance than run {run.address}"):
            embeddings([run, run, other])
    with pytest.raises(ValueError, match="an ensemble of no models; give at least one"):
        embeddings([])
    with pytest.raises(ValueError, match=r"\[\(2, 3\), \(2, 4\)\] \(captions, clips\); embed the same"):
        join([(torch.ones(2, 5), torch.ones(3, 5)), (torch.ones(2, 5), torch.ones(4, 5))])


def test_a_text_aware_run_has_nothing_to_join(tmp_path):
    run = member(tmp_path, 0)
    tensors = dict(run.embeddings)
    tensors["similarity"] = tensors["text"] @ tensors.pop("audio").T
    save_file(tensors, run.path / "embeddings.safetensors")
    with pytest.raises(ValueError, match=f"run {run.address} pools each sound anew .*; leave it out"):
        ensemble([member(tmp_path, 1), Run(run.path)])


def test_runs_without_test_clips_are_tested_and_joined_on_those_held_out(tmp_path):
    held = {"name": "soundscapes", "train": 20, "validation": 6, "test": 0, "duration": 4.0, "hold_out": 8}
    config = RunConfig(corpus=held, epochs=1, batch_size=9, embedding_dim=16)
    runs = [fit(config.replace(seed=seed), runs=tmp_path) for seed in (0, 1)]
    run = runs[0]
    assert run.clips["split"].value_counts().to_dict() == {"train": 18, "validation": 8}
    assert run.metrics == run.validation and len(run.embeddings["audio"]) == 8
    text, audio = embeddings(runs)
    assert text.shape == (40, 32) and audio.shape == (8, 32)
    joined = metrics.retrieval_metrics((text, audio), run.embeddings["relevance"])
    assert metrics.retrieval_metrics(ensemble(runs)) == joined and joined["t2a_r1"] < 100


def test_a_member_that_is_not_finite_is_named():
    good, bad = (torch.ones(2, 3), torch.ones(2, 3)), (torch.ones(2, 3), torch.full((2, 3), torch.nan))
    with pytest.raises(ValueError, match="member 2 of 3 has embeddings that are not finite; leave it out"):
        join([good, bad, good])
