"""Uniformity: values by hand and by brute force, what leaves the measures as they are, gradients of the penalty."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from atr import store, uniformity
from atr.uniformity import (
    UniformityPenalty,
    VoxelLogistic,
    VoxelNetwork,
    VoxelRecipe,
    alignment,
    ceiling,
    draw,
    entropy,
    gaussian_mixture,
    modality_gap,
    nearest_distances,
    point_to_point,
    train_voxel_network,
    uniform_set,
    voxel_accuracy,
    voxel_entropy,
    voxel_network,
    voxel_network_history,
    voxels,
)

SMALL = VoxelRecipe(hidden=(16,), examples=2_000, epochs=10, batch_size=128)


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
@pytest.mark.parametrize("chunk", [None, 1, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nearest_distances_are_those_of_brute_force(dtype, chunk, precision):
    x = points(dtype=dtype)
    torch.set_float32_matmul_precision(precision)
    try:
        np.testing.assert_allclose(nearest_distances(x, chunk), brute_force(x), rtol=1e-6)
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


def test_sigma_counts_the_given_dimensions_alone():
    x = points()
    assert point_to_point(x, dims=[3, 5]) == point_to_point(x[:, [3, 5]]) != point_to_point(x)


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


def test_the_block_is_a_small_part_of_4_gib():
    assert uniformity.BLOCK * torch.float32.itemsize == 2**26
    assert uniformity._chunk(None, 50_000) * 50_000 <= uniformity.BLOCK


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


def test_uniformity_of_wang_and_isola_by_hand_and_by_definition():
    # Squared distances on the circle: 2, 2, 4.
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    assert uniformity.uniformity(x) == pytest.approx(math.log((2 * math.exp(-4) + math.exp(-8)) / 3))
    x = points()
    expected = (-3 * torch.pdist(F.normalize(x, dim=1)).square()).exp().mean().log()
    for chunk in (None, 1, 7, 60):
        assert uniformity.uniformity(x, t=3, chunk=chunk) == pytest.approx(float(expected))
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


# Soft assignment


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_the_logistic_assignment_is_the_product_of_logistics(temperature):
    x = points(5, 8)
    p = VoxelLogistic(temperature).double()(x)
    assert p.shape == (5, 256) and torch.allclose(p.sum(1), torch.ones(5, dtype=p.dtype))
    for voxel in (0, 1, 77, 255):
        signs = torch.tensor([1.0 if voxel >> k & 1 else -1.0 for k in range(8)])
        assert torch.allclose(p[:, voxel], torch.sigmoid(signs * x / temperature).prod(1))


def test_a_cold_logistic_assignment_is_the_voxel():
    x = uniform_set(50, 8)
    p = VoxelLogistic(1e-6)(x)
    assert torch.equal(p.argmax(1), voxels(x)) and p.max(1).values.min() > 0.99
    assert voxel_accuracy(VoxelLogistic(0.1)) == 100


def test_a_network_learns_above_chance_and_repeats():
    before = torch.get_rng_state()
    network, history = train_voxel_network(seed=0, recipe=SMALL, quiet=True)
    again, _ = train_voxel_network(seed=0, recipe=SMALL, quiet=True)
    assert torch.equal(torch.get_rng_state(), before)
    columns = ["epoch", "learning_rate", "loss", "training_accuracy", "validation_accuracy"]
    assert history.columns.tolist() == columns and len(history) == SMALL.epochs
    assert history["loss"].iloc[-1] < history["loss"].iloc[0] and history["learning_rate"].iloc[-1] < 1e-6
    assert voxel_accuracy(network, points=1_000) > 20  # chance is 0.4
    assert history["validation_accuracy"].iloc[-1] > 20
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_the_network_is_trained_once_and_kept_with_its_history(monkeypatch):
    recipe = VoxelRecipe(hidden=(8,), examples=500, epochs=2)
    before = torch.get_rng_state()
    first = voxel_network(seed=5, recipe=recipe, quiet=True)
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(uniformity, "train_voxel_network", None)
    second = voxel_network(seed=5, recipe=recipe, quiet=True)
    x = uniform_set(4, 8)
    assert torch.equal(first(x), second(x)) and not second.training
    assert voxel_network_history(seed=5, recipe=recipe)["epoch"].tolist() == [1, 2]
    (folder,) = (store.home() / "cache" / "voxel_network").glob("[!.]*")
    assert sorted(file.name for file in folder.iterdir()) == ["history.csv", "weights.safetensors"]
    with pytest.raises(TypeError):  # another seed is not there yet
        voxel_network(seed=6, recipe=recipe, quiet=True)


def test_the_papers_figures_are_the_default():
    recipe = VoxelRecipe()
    assert (recipe.examples, recipe.validation, recipe.epochs, recipe.weight_decay) == (100_000, 0.1, 100, 4e-4)
    assert recipe.hidden and not recipe.decoupled


# Penalty


def estimator(name):
    if name == "logistic":
        return VoxelLogistic(0.5).double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = VoxelNetwork((12,)).double().requires_grad_(False)
    for parameter in network.parameters():
        parameter *= 3  # as sharp as a trained one; random weights alone are near to constant
    return network


@pytest.mark.parametrize("histogram", ["softmax", "counts"])
@pytest.mark.parametrize("name", ["network", "logistic"])
def test_gradients_are_those_of_finite_differences(name, histogram):
    penalty = UniformityPenalty(estimator(name), histogram)
    x, chosen = points(6, 10).requires_grad_(), torch.tensor([9, 0, 3, 1, 4, 7, 2, 5])
    (gradient,) = torch.autograd.grad(penalty(x, chosen), x)
    size = gradient.abs().max()  # gradients of "softmax" are small, and the check's tolerance is absolute
    assert torch.autograd.gradcheck(lambda embeddings: penalty(embeddings, chosen) / size, x, atol=1e-4)


@pytest.mark.parametrize("histogram", ["softmax", "counts"])
def test_a_cold_penalty_is_h_of_the_batch(histogram):
    x = points(32, 8)
    h = UniformityPenalty(VoxelLogistic(1e-6), histogram)(x)
    assert float(h) == pytest.approx(voxel_entropy(x, draws=1, histogram=histogram), abs=1e-3)


def test_the_penalty_lies_between_0_and_log_256_and_its_ceiling_is_that_of_hard_assignments():
    scattered, together = F.normalize(corners(8)[:32], dim=1), torch.ones(32, 8)
    cold, warm = UniformityPenalty(VoxelLogistic(1e-3)), UniformityPenalty(VoxelLogistic(1.0))
    assert float(cold(together)) == pytest.approx(0, abs=1e-4)
    assert float(cold(scattered)) == pytest.approx(ceiling(32))
    assert ceiling(32) < float(warm(scattered)) < math.log(256)


def test_embeddings_are_normalised_and_scaled_to_the_root_of_their_width():
    x, chosen = points(16, 32, dtype=torch.float32), torch.arange(8)
    default, unit = UniformityPenalty(VoxelLogistic(0.5)), UniformityPenalty(VoxelLogistic(0.5), scale=1)
    p = VoxelLogistic(0.5)(math.sqrt(32) * F.normalize(x, dim=1)[:, :8]).sum(0)
    assert float(default(x, chosen)) == pytest.approx(float(entropy(p, "counts")), rel=1e-5)
    assert float(default(9 * x, chosen)) == pytest.approx(float(default(x, chosen)), rel=1e-5)
    warmer = UniformityPenalty(VoxelLogistic(0.5 * math.sqrt(32)))
    assert float(unit(x, chosen)) == pytest.approx(float(warmer(x, chosen)), rel=1e-5)


def test_dimensions_are_drawn_anew_at_each_call_from_the_generator():
    x, penalty = points(16, 64), UniformityPenalty(VoxelLogistic(0.5))
    generator = torch.Generator().manual_seed(0)
    first, second = penalty(x, generator=generator), penalty(x, generator=generator)
    assert first != second and first == penalty(x, generator=generator.manual_seed(0))
    chosen = draw(64, generator=generator.manual_seed(0))
    assert first == penalty(x, chosen)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        default = penalty(x)
    assert default == penalty(x, generator=generator.manual_seed(7))


def test_climbing_the_penalty_spreads_a_batch():
    x = (torch.ones(16, 8, dtype=torch.float64) + 0.8 * points(16, 8)).requires_grad_()
    penalty, chosen = UniformityPenalty(VoxelLogistic(0.5)), torch.arange(8)
    before = voxel_entropy(x, draws=1, histogram="counts")
    optimizer = torch.optim.SGD([x], 2.0, maximize=True)
    for _ in range(50):
        optimizer.zero_grad()
        penalty(x, chosen).backward()
        optimizer.step()
    assert voxel_entropy(x, draws=1, histogram="counts") > before + 0.3


def test_gradients_stay_finite_where_probabilities_vanish_and_under_autocast():
    x = points(8, 16, dtype=torch.float32).requires_grad_()
    for penalty in (UniformityPenalty(VoxelLogistic(1e-4)), UniformityPenalty(VoxelNetwork((8,)), scale=1e5)):
        (gradient,) = torch.autograd.grad(penalty(x, torch.arange(8)), x)
        assert gradient.isfinite().all()
    penalty = UniformityPenalty(VoxelLogistic(0.5))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(penalty(x, torch.arange(8)), UniformityPenalty(VoxelLogistic(0.5))(x, torch.arange(8)))
        h = penalty(x.bfloat16(), torch.arange(8))
    assert h.dtype == torch.float32 and h.item() == pytest.approx(penalty(x, torch.arange(8)).item(), rel=0.02)


# Errors


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: point_to_point(torch.ones(1, 3)), "at least two"),
        (lambda: point_to_point(torch.ones(3)), r"give a matrix \(N, D\)"),
        (lambda: point_to_point(torch.tensor([[0.0], [math.nan]])), "NaN"),
        (lambda: point_to_point(points(), chunk=0), "chunk is 0"),
        (lambda: voxel_entropy(points(dim=7)), r"\(60, 7\), dims 8"),
        (lambda: voxel_entropy(points(), draws=0), "draws 0"),
        (lambda: voxel_entropy(points(), histogram="count"), "'count'"),
        (lambda: voxel_entropy(points(), unit="dB"), "'dB'"),
        (lambda: uniformity.uniformity(torch.ones(1, 3)), "a pair needs two"),
        (lambda: alignment(points(), points(dim=3)), "give pairs"),
        (lambda: VoxelLogistic(0), "temperature is 0"),
        (lambda: voxel_accuracy(VoxelLogistic(), points=0), "points is 0"),
        (lambda: UniformityPenalty(VoxelLogistic(), "soft"), "'soft'"),
        (lambda: UniformityPenalty(VoxelLogistic())(points(dim=4)), "cannot draw 8 of 4"),
    ],
)
def test_errors_say_what_to_change(call, words):
    with pytest.raises(ValueError, match=words):
        call()
