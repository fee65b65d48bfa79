"""Uniformity: values by hand and by brute force, and what leaves the measures as they are."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from atr.metrics import uniformity
from atr.metrics.uniformity import (
    alignment,
    ceiling,
    draw,
    drawn_sigma,
    entropy,
    gaussian_mixture,
    measures,
    modality_gap,
    nearest_distances,
    over_subsets,
    point_to_point,
    uniform_set,
    voxel_entropy,
    voxels,
)
from atr.reports.names import UNIFORMITY


def points(n=60, dim=12, seed=0, dtype=torch.float64):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rotation(dim):
    return torch.linalg.qr(points(dim, dim, seed=1)).Q


def brute_force(x):
    """Nearest distances by the definition, in float64."""
    x = x.double().numpy()
    distances = np.array([[math.dist(a, b) for b in x] for a in x])
    np.fill_diagonal(distances, np.inf)
    return distances.min(1)


def corners(dims):
    """One point in each voxel, in order."""
    return torch.tensor([[1.0 if voxel >> k & 1 else -1.0 for k in range(dims)] for voxel in range(2**dims)])


# Point to point


def test_sigma_by_hand():
    # Nearest distances 1, 1, 3: mean 5/3, deviation over N sqrt(8)/3.
    assert point_to_point(torch.tensor([[0.0], [1.0], [4.0]])) == pytest.approx(math.sqrt(8) / 5)


def test_sigma_of_a_lattice_is_0_and_of_duplicates_alone_undefined():
    lattice = torch.cartesian_prod(torch.arange(4.0), torch.arange(3.0))
    assert point_to_point(lattice) == 0
    assert math.isnan(point_to_point(torch.ones(4, 3)))


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("rows", [60, 1, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nearest_distances_are_those_of_brute_force(dtype, rows, precision, monkeypatch):
    monkeypatch.setattr(uniformity, "BLOCK", 60 * rows)
    x = points(dtype=dtype)
    torch.set_float32_matmul_precision(precision)
    try:
        np.testing.assert_allclose(nearest_distances(x), brute_force(x), rtol=1e-6)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_duplicates_are_at_distance_0_exactly():
    x = points(30, 300, dtype=torch.float32)
    distances = nearest_distances(torch.cat([x, x, x[:1] + 5]))
    assert (distances[:60] == 0).all() and float(distances[60]) == pytest.approx(5 * math.sqrt(300))


def test_near_neighbours_far_from_the_origin_and_from_each_other_keep_their_digits():
    # Given clusters 1e-3 wide, of norm 1e3: a matrix product in float32 sees squared distances only to about 0.1.
    centres = 1e3 * F.normalize(points(8, 64), dim=1)
    x = (centres.repeat(10, 1) + 1e-3 * points(80, 64, seed=1)).float()
    np.testing.assert_allclose(nearest_distances(x), brute_force(x), rtol=1e-5)
    shifted = points(40, 8, dtype=torch.float32) + 1e5
    np.testing.assert_allclose(nearest_distances(shifted), brute_force(shifted), rtol=1e-5)


def test_sigma_does_not_change_under_permutation_rotation_scale_and_shift():
    x = points()
    for other in (x.flip(0), x[:, torch.randperm(12)], x @ rotation(12), 0.01 * x, x + 3):
        assert point_to_point(other) == pytest.approx(point_to_point(x), rel=1e-9)


def test_embeddings_of_any_size_are_held_a_block_at_a_time(monkeypatch):
    # Given a block of 640 numbers: 10 rows against 64 points, 20 pairs of 32 dimensions at a time.
    monkeypatch.setattr(uniformity, "BLOCK", 640)
    largest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest.append(result.numel())
            return result

    x = points(64, 32)
    with Watch():
        sigma, log_mean = point_to_point(x), uniformity.uniformity(x)
    assert max(largest) <= 64 * 32  # the points themselves; all pairs are 4,096
    monkeypatch.undo()
    assert point_to_point(x) == pytest.approx(sigma) and uniformity.uniformity(x) == pytest.approx(log_mean)


# Voxels


def test_voxels_are_numbered_by_their_bits_and_0_is_not_positive():
    assert voxels(corners(3)).tolist() == list(range(8))
    assert voxels(torch.tensor([[0.0, 0.5], [-0.0, -1.0]])).tolist() == [2, 0]


def test_entropy_of_histograms_counted_by_hand_in_two_dimensions():
    # Two points with both signs +, one with the first alone, one with neither: counts 1, 1, 0, 2.
    x = torch.tensor([[1.0, 2.0], [3.0, 1.0], [2.0, -1.0], [-1.0, -5.0]])
    assert torch.bincount(voxels(x), minlength=4).tolist() == [1, 1, 0, 2]
    counts = -(2 * 0.25 * math.log(0.25) + 0.5 * math.log(0.5))
    assert voxel_entropy(x, draws=3, dims=2, histogram="counts") == pytest.approx(counts)
    assert voxel_entropy(x, draws=3, dims=2, histogram="counts", unit="bits") == pytest.approx(1.5)
    exponentials = np.exp([1, 1, 0, 2])
    p = exponentials / exponentials.sum()
    assert voxel_entropy(x, draws=3, dims=2) == pytest.approx(-(p * np.log(p)).sum())


def test_entropy_of_a_histogram_counted_by_hand_in_three_dimensions():
    # Voxels 7, 7, 7 and 0: entropy of (3/4, 1/4).
    x = torch.tensor([[1.0, 1.0, 1.0], [2.0, 1.0, 3.0], [1.0, 9.0, 1.0], [-1.0, -1.0, -1.0]])
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert voxel_entropy(x, draws=1, dims=3, histogram="counts") == pytest.approx(expected)


def test_h_is_the_mean_over_the_draws_of_dimensions():
    # Given one dimension with both signs and three with one: a drawn dimension has log 2 or 0.
    x = torch.tensor([[1.0, 1.0, 1.0, 1.0], [-1.0, 1.0, 1.0, 1.0]])
    h = voxel_entropy(x, draws=400, dims=1, histogram="counts", seed=3)
    assert h / math.log(2) == pytest.approx(0.25, abs=0.06)
    assert h == voxel_entropy(x, draws=400, dims=1, histogram="counts", seed=3)
    assert h != voxel_entropy(x, draws=400, dims=1, histogram="counts", seed=4)


def test_dimensions_are_drawn_without_replacement_from_all():
    generator = torch.Generator().manual_seed(0)
    draws = [draw(10, 8, generator).tolist() for _ in range(50)]
    assert all(len(set(chosen)) == 8 for chosen in draws)
    assert set().union(*draws) == set(range(10))
    assert sorted(draw(8).tolist()) == list(range(8))


@pytest.mark.parametrize("histogram", ["softmax", "counts"])
def test_h_does_not_change_under_permutation_scale_and_flipped_dimensions(histogram):
    x = points(200)
    h = voxel_entropy(x, draws=5, histogram=histogram)
    flipped = x * torch.tensor([1.0, -1.0] * 6)
    for other in (x.flip(0), 7 * x, flipped, x * torch.rand(200, 1)):
        assert voxel_entropy(other, draws=5, histogram=histogram) == pytest.approx(h)


def test_limits_of_h():
    one_each, all_in_one = corners(8), torch.ones(256, 8)
    for histogram in ("softmax", "counts"):
        assert voxel_entropy(one_each, draws=2, histogram=histogram) == pytest.approx(math.log(256))
        assert voxel_entropy(all_in_one, draws=2, histogram=histogram) == pytest.approx(0, abs=1e-9)
    assert voxel_entropy(one_each[:20], draws=2, histogram="counts") == pytest.approx(math.log(20)) == ceiling(20)
    assert ceiling(1000) == pytest.approx(math.log(256)) and ceiling(1000, dims=3) == pytest.approx(math.log(8))


def test_entropy_takes_many_histograms_at_once():
    histograms = torch.tensor([[1.0, 1.0, 2.0], [5.0, 0.0, 0.0]])
    both = [float(entropy(row, "counts")) for row in histograms]
    assert entropy(histograms, "counts").tolist() == pytest.approx(both)
    assert both[1] == 0


# Alignment, uniformity, gap


def test_alignment_and_gap_by_hand():
    audio, text = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0, 0.0], [0.0, -4.0]])
    assert alignment(audio, text) == pytest.approx(2) and alignment(audio, text, power=1) == pytest.approx(1)
    assert modality_gap(audio, text) == pytest.approx(1)  # (1/2, 1/2) to (1/2, -1/2)
    assert modality_gap(audio[:1], text[:1]) == 0


def test_uniformity_of_wang_and_isola_by_hand_and_by_definition(monkeypatch):
    # Squared distances on the circle: 2, 2, 4.
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    assert uniformity.uniformity(x) == pytest.approx(math.log((2 * math.exp(-4) + math.exp(-8)) / 3))
    x = points()
    expected = (-3 * torch.pdist(F.normalize(x, dim=1)).square()).exp().mean().log()
    for rows in (60, 1, 7):
        monkeypatch.setattr(uniformity, "BLOCK", 60 * rows)
        assert uniformity.uniformity(x, t=3) == pytest.approx(float(expected))
    assert uniformity.uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-6)


# Reference sets


def test_reference_sets_are_as_asked_for_and_repeat():
    x = uniform_set(4_000, 6, low=-2, high=3)
    assert x.min() >= -2 and x.max() <= 3 and x.mean(0).sub(0.5).abs().max() < 0.1
    assert x.std(0).sub(5 / math.sqrt(12)).abs().max() < 0.05
    assert torch.equal(x, uniform_set(4_000, 6, low=-2, high=3)) and not torch.equal(x, uniform_set(4_000, 6, -2, 3, 1))

    clusters = gaussian_mixture(900, 6, components=3, std=1e-3, low=4, high=5)
    centroids = (torch.cdist(clusters, clusters) < 0.02).float().unique(dim=0)
    assert clusters.min() > 3.99 and clusters.max() < 5.01
    assert len(centroids) == 3 and (centroids.sum(1) / 900 - 1 / 3).abs().max() < 0.1
    lone = gaussian_mixture(4_000, 6, components=1, std=0.3)
    assert lone.std(0).sub(0.3).abs().max() < 0.02
    assert torch.equal(lone, gaussian_mixture(4_000, 6, components=1, std=0.3))


# Many at once


def test_drawn_sigma_is_the_mean_over_the_draws():
    x = points(40, 12)
    generator = torch.Generator().manual_seed(3)
    expected = [point_to_point(x[:, draw(12, generator=generator)]) for _ in range(4)]
    assert drawn_sigma(x, draws=4, seed=3) == pytest.approx(sum(expected) / 4)
    assert drawn_sigma(points(30, 8), draws=2) == pytest.approx(point_to_point(points(30, 8)))


def test_a_measure_over_subsets_has_so_many_points():
    x, sizes = points(30, 3), []

    def mean(part):
        sizes.append(len(part))
        return float(part.mean())

    found = over_subsets(mean, x, 10, subsets=4)
    assert sizes == [10] * 4 and found == over_subsets(mean, x, 10, subsets=4) != over_subsets(mean, x, 10, seed=1)
    assert over_subsets(mean, x, 30) == over_subsets(mean, x, 99) == float(x.mean())


def test_all_measures_of_a_space():
    audio, text = points(30, 16), points(30, 16, seed=1)
    found = measures(audio, text)
    assert found["text_sigma"] == point_to_point(text) and found["audio_h"] == voxel_entropy(audio, histogram="counts")
    assert found["audio_uniformity"] == uniformity.uniformity(audio) and found["alignment"] == alignment(audio, text)
    assert found["modality_gap"] == modality_gap(audio, text) and set(found) == set(UNIFORMITY)


# Errors


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: point_to_point(torch.ones(1, 3)), "at least two"),
        (lambda: point_to_point(torch.ones(3)), r"give a matrix \(N, D\)"),
        (lambda: point_to_point(torch.tensor([[0.0], [math.nan]])), "NaN"),
        (lambda: voxel_entropy(points(dim=7)), r"\(60, 7\), dims 8"),
        (lambda: voxel_entropy(points(), draws=0), "draws 0"),
        (lambda: voxel_entropy(points(), histogram="count"), "'count'"),
        (lambda: voxel_entropy(points(), unit="dB"), "'dB'"),
        (lambda: uniformity.uniformity(torch.ones(1, 3)), "a pair needs two"),
        (lambda: alignment(points(), points(dim=3)), "give pairs"),
    ],
)
def test_errors_say_what_to_change(call, words):
    with pytest.raises(ValueError, match=words):
        call()
