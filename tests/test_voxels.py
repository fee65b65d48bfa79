"""The penalty: soft assignments beside the voxels themselves, training the network, gradients of h."""

import math

import pytest
import torch
import torch.nn.functional as F

from atr import losses
from atr.analysis.penalty import batch_estimate, by_scale, errors_by_distance, gradient_sizes, voxel_accuracy
from atr.losses import voxels as assignments
from atr.losses.penalty import UniformityPenalty
from atr.losses.voxels import (
    VoxelLogistic,
    VoxelNetwork,
    VoxelRecipe,
    train_voxel_network,
    voxel_network,
    voxel_network_history,
)
from atr.metrics.uniformity import ceiling, draw, entropy, uniform_set, voxel_entropy, voxels
from atr.system import places

SMALL = VoxelRecipe(hidden=(16,), examples=2_000, epochs=10, batch_size=128)


def points(n=60, dim=12, seed=0, dtype=torch.float64):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def corners(dims):
    """One point in each voxel, in order."""
    return torch.tensor([[1.0 if voxel >> k & 1 else -1.0 for k in range(dims)] for voxel in range(2**dims)])


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
    monkeypatch.setattr(assignments, "train_voxel_network", None)
    second = voxel_network(seed=5, recipe=recipe, quiet=True)
    x = uniform_set(4, 8)
    assert torch.equal(first(x), second(x)) and not second.training
    assert voxel_network_history(seed=5, recipe=recipe)["epoch"].tolist() == [1, 2]
    folder = assignments.network_folder(5, recipe, train=False)
    assert folder.parent == places.home() / "cache" / "voxel_network"
    assert sorted(file.name for file in folder.iterdir()) == ["history.csv", "sums.json", "weights.safetensors"]
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


# What a penalty does


def test_several_batches_at_once_give_each_its_h():
    x, chosen = torch.stack([points(12, 16), points(12, 16, seed=1)]), torch.arange(8)
    for penalty in (UniformityPenalty(estimator("network")), UniformityPenalty(VoxelLogistic(0.5), "softmax")):
        both = penalty(x, chosen)
        assert both.shape == (2,) and torch.allclose(both, torch.stack([penalty(part, chosen) for part in x]))


def test_the_estimate_of_batches_is_the_mean_over_draws_of_points_and_dimensions():
    x, penalty = points(40, 12), UniformityPenalty(VoxelLogistic(0.5))
    generator = torch.Generator().manual_seed(5)
    expected = [penalty(x[torch.randperm(40, generator=generator)[:16]], generator=generator).item() for _ in range(3)]
    assert batch_estimate(penalty, x, 16, batches=3, seed=5) == pytest.approx(sum(expected) / 3)
    assert batch_estimate(penalty, x, 1000, batches=1) == pytest.approx(
        penalty(x, draw(12, generator=after_permutation(40, 0))).item()
    )


def after_permutation(size, seed):
    generator = torch.Generator().manual_seed(seed)
    torch.randperm(size, generator=generator)
    return generator


def test_a_penalty_may_cover_all_dimensions_with_the_mean_over_groups():
    x = points(20, 19, dtype=torch.float64)
    whole, drawn = UniformityPenalty(VoxelLogistic(0.5), cover="all"), UniformityPenalty(VoxelLogistic(0.5))
    groups = whole.choose(19, torch.Generator().manual_seed(1))
    assert groups.shape == (2, 8) and len(set(groups.flatten().tolist())) == 16
    expected = torch.stack([drawn(x, group) for group in groups]).mean()
    assert torch.allclose(whole(x, groups), expected)
    assert torch.allclose(whole(torch.stack([x, 2 * x]), groups), expected.expand(2))
    assert whole(x, generator=torch.Generator().manual_seed(1)) == whole(x, groups)
    leaf = x.clone().requires_grad_()
    whole(leaf, groups).backward()
    assert (leaf.grad[:, groups.flatten()] != 0).all()


def test_gradient_sizes_are_those_of_loss_and_penalty():
    audio, text = F.normalize(points(12, 10), dim=1), F.normalize(points(12, 10, seed=1), dim=1)
    loss, penalty = losses.build("nt_xent"), UniformityPenalty(VoxelLogistic(0.5))
    table = gradient_sizes(audio, text, loss, {"logistic": penalty}, batch_size=12, batches=1)
    pair = torch.stack([audio, text]).requires_grad_()
    (down,) = torch.autograd.grad(loss(pair[0], pair[1], torch.arange(12)), pair)
    row = table.loc["logistic"]
    assert row["loss"] == pytest.approx(float(down.norm())) and row["ratio"] == pytest.approx(
        row["penalty"] / row["loss"]
    )
    assert row["penalty"] > 0 and abs(row["cosine"]) < 1
    aligned = gradient_sizes(audio, text, Repulsion(penalty), {"itself": penalty}, batch_size=12, batches=1)
    assert aligned.loc["itself", "cosine"] == pytest.approx(1) and aligned.loc["itself", "ratio"] == pytest.approx(0.5)


class Repulsion(torch.nn.Module):
    """A loss whose way down is the penalty's way up, on the dimensions that the first batch draws."""

    def __init__(self, penalty):
        super().__init__()
        self.penalty = penalty

    def forward(self, audio, text, clip_ids):
        chosen = draw(audio.shape[1], generator=after_permutation(len(audio), 0))
        return -2 * (self.penalty(audio, chosen) + self.penalty(text, chosen))


def test_errors_lie_near_the_planes_of_a_network_that_is_blurred():
    class Shifted(VoxelLogistic):
        """Its first plane lies at 0.1."""

        def logits(self, x):
            return super().logits(x - torch.tensor([0.1] + [0.0] * 7))

    table = errors_by_distance(Shifted(), points=20_000, bins=10)
    assert len(table) == 10 and table["distance"].is_monotonic_increasing
    assert table["wrong"].iloc[0] > 5 and table["wrong"].iloc[-1] == 0
    assert table["wrong"].mean() == pytest.approx(5, abs=0.5)  # 0 to 0.1 is a twentieth of -1 to 1
    assert errors_by_distance(VoxelLogistic(), points=1000)["wrong"].max() == 0


def test_what_an_assignment_makes_of_scales():
    table = by_scale(VoxelLogistic(0.1), points(50, 32), [1e-2, 1.0, 1e6])
    assert table["right"].tolist() == [100, 100, 100]
    assert table["certainty"].is_monotonic_increasing
    assert table["certainty"].iloc[0] == pytest.approx(100 / 256, rel=0.1) and table["certainty"].iloc[-1] > 99


# Errors


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: VoxelLogistic(0), "temperature is 0"),
        (lambda: voxel_accuracy(VoxelLogistic(), points=0), "points is 0"),
        (lambda: UniformityPenalty(VoxelLogistic(), "soft"), "'soft'"),
        (lambda: UniformityPenalty(VoxelLogistic(), cover="some"), "cover is 'some'"),
        (lambda: UniformityPenalty(VoxelLogistic(), cover="all")(points(dim=4)), "cannot draw 8 of 4"),
        (lambda: UniformityPenalty(VoxelLogistic())(points(dim=4)), "cannot draw 8 of 4"),
    ],
)
def test_errors_say_what_to_change(call, words):
    with pytest.raises(ValueError, match=words):
        call()
