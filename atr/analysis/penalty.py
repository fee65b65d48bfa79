"""How good a voxel network and the penalty's estimate are."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from atr.losses.penalty import UniformityPenalty
from atr.losses.voxels import VoxelAssignment, _accuracy
from atr.metrics.uniformity import draw, uniform_set, voxels
from atr.reports.figures import legible, level, log2_axis, looks, mark, name_lines, subplots


def h_by_points(table: pd.DataFrame, published: pd.DataFrame) -> Figure:
    """Voxel entropy of sets against their number of points, beside log N and the published bands.

    table: points, set, h in nats; published: set, mean, one row per printed value.
    """
    figure, ((axis,),) = subplots(height=2.6)
    look = looks(table["set"])
    for name, group in table.groupby("set", sort=False):
        axis.plot(group["points"], group["h"], ms=3, label=legible(name), **look[name])
        values = published.loc[published["set"] == name, "mean"]
        if len(values):
            axis.axhspan(values.min() - 0.005, values.max() + 0.005, color=look[name]["color"], alpha=0.35, lw=0)
    points = np.unique(table["points"])
    axis.plot(points, np.log(points), color="0.5", lw=1, ls=":", label="ceiling, log N")
    log2_axis(axis, [point for point in points if not ((points > point) & (points < 1.25 * point)).any()], rotation=60)
    axis.set(xlabel="points N (bands: published)", ylabel="h (nats)")
    name_lines(axis)
    return figure


def voxel_network(
    history: pd.DataFrame, errors: pd.DataFrame, scales: Mapping[str, pd.DataFrame], usual: float
) -> Figure:
    """A voxel network three ways: accuracy by epoch beside the published one, errors by the distance to the nearest
    plane, and what it and others make of embeddings at each scale.

    history: of `voxels.train_voxel_network`; errors: of `errors_by_distance`; scales: label → table of
    `by_scale`; usual: the scale that makes the mean square of an entry 1.
    """
    figure, (axes,) = subplots(1, 3)
    axes[0].plot(history["epoch"], history["training_accuracy"], color="C0", label="training")
    axes[0].plot(history["epoch"], history["validation_accuracy"], color="C1", label="held out")
    level(axes[0], "", 97)
    axes[0].set(xlabel="epoch", ylabel="right voxel (%; dotted: published)")
    name_lines(axes[0])
    axes[1].plot(errors["distance"], errors["wrong"], marker="o", ms=3)
    axes[1].set(xlabel="distance to the nearest plane", ylabel="wrong voxel (%)", xscale="log")
    for number, (name, table) in enumerate(scales.items()):
        axes[2].plot(table["scale"], table["right"], color=f"C{number}", label=legible(name))
        axes[2].plot(table["scale"], table["certainty"], color=f"C{number}", ls="--")
    for scale, words in ((1, "1"), (usual, "√D")):
        mark(axes[2], words, (scale, 0), (2, 2))
    axes[2].set(xlabel="embedding × scale", ylabel="right (—), certainty (- -) (%)", xscale="log", ylim=(0, 103))
    name_lines(axes[2])
    return figure


def voxel_accuracy(network: VoxelAssignment, points: int = 10_000, seed: int = 1) -> float:
    """Share, in percent, of fresh uniform 8-vectors whose voxel the network names: 97.0 in section 6.2.

    seed: another than the training's, whose own vectors would come again. ValueError: no points.
    """
    if points < 1:
        raise ValueError(f"points is {points}; give at least one")
    return _accuracy(network, uniform_set(points, 8, seed=seed))


def errors_by_distance(network: VoxelAssignment, points: int = 100_000, bins: int = 20, seed: int = 1) -> pd.DataFrame:
    """Where the network errs: fresh uniform 8-vectors by the distance to the nearest voxel boundary, the least of their
    absolute entries.

    One row per bin of equally many points: distance (its mean), wrong (percent).
    """
    x = uniform_set(points, 8, seed=seed)
    with torch.no_grad():
        wrong = 100 * (network.logits(x).argmax(1) != voxels(x)).double()
    distance = x.abs().amin(1)
    order = distance.argsort()
    rows = [(float(distance[part].mean()), float(wrong[part].mean())) for part in order.tensor_split(bins)]
    return pd.DataFrame(rows, columns=["distance", "wrong"])


def by_scale(
    assignment: VoxelAssignment, x: Tensor, scales: Sequence[float], draws: int = 20, seed: int = 0
) -> pd.DataFrame:
    """What an assignment makes of embeddings x (N, D), normalised here, at each scale, over drawn dimensions.

    One row per scale: scale; right (percent of points whose voxel is named); certainty (mean of the largest
    probability, percent).
    """
    unit = F.normalize(x.float(), dim=1)
    rows = []
    for scale in scales:
        generator = torch.Generator().manual_seed(seed)
        parts = torch.stack([scale * unit[:, draw(x.shape[1], 8, generator)] for _ in range(draws)])
        with torch.no_grad():
            largest, nearest = assignment(parts).max(-1)
        right = (nearest == torch.stack([voxels(part) for part in parts])).double().mean()
        rows.append((scale, 100 * float(right), 100 * float(largest.mean())))
    return pd.DataFrame(rows, columns=["scale", "right", "certainty"])


def batch_estimate(penalty: UniformityPenalty, x: Tensor, batch_size: int, batches: int = 20, seed: int = 0) -> float:
    """Mean h that `penalty` sees in batches drawn from x (N, D), each with dimensions of its own.

    Batches of the whole set where it has fewer points.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        values = [
            penalty(x[torch.randperm(len(x), generator=generator)[:batch_size]], generator=generator)
            for _ in range(batches)
        ]
    return float(torch.stack(values).mean())


def gradient_sizes(
    audio: Tensor,
    text: Tensor,
    loss: nn.Module,
    penalties: Mapping[str, UniformityPenalty],
    batch_size: int,
    batches: int = 20,
    seed: int = 0,
) -> pd.DataFrame:
    """Gradients of the loss and of each penalty, at α = 1, with respect to the normalised embeddings of a batch.

    audio, text: (N, D), paired row by row, of distinct clips; loss: as `atr.losses.build` makes it. One row per
    penalty: loss and penalty, mean norms of the gradient over the batch's audio and text together; ratio of the two;
    cosine between them: below 0 where raising h would raise the loss.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes: dict[str, list[tuple[float, float, float]]] = {name: [] for name in penalties}
    for _ in range(batches):
        rows = torch.randperm(len(audio), generator=generator)[:batch_size]
        state = generator.get_state()
        pair = torch.stack([F.normalize(x[rows], dim=1) for x in (audio, text)]).requires_grad_()
        (down,) = torch.autograd.grad(loss(pair[0], pair[1], torch.arange(len(rows))), pair)
        for name, penalty in penalties.items():
            generator.set_state(state)  # the same dimensions for each
            (up,) = torch.autograd.grad(penalty(pair, generator=generator).sum(), pair)
            cosine = F.cosine_similarity(-down.flatten(), up.flatten(), dim=0)
            sizes[name].append((float(down.norm()), float(up.norm()), float(cosine)))
    means = {name: [sum(column) / batches for column in zip(*rows, strict=True)] for name, rows in sizes.items()}
    table = pd.DataFrame.from_dict(means, orient="index", columns=["loss", "penalty", "cosine"])
    table.insert(2, "ratio", table["penalty"] / table["loss"])
    return table.rename_axis("penalty by")
