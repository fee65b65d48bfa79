"""How evenly embeddings fill their space: measures, reference sets, and a penalty to train with.

Tourbabin and Ben-Hur 2023, "Audio-Text Cross-Modal Retrieval" (CS224N project); equations are numbered as there. Their
voxels are the orthants of a few drawn dimensions: 2^dims of them, one a sign pattern. Voxel v has dimension k on its
positive side where bit k of v is set; positive means above 0.

Measures take points (N, D), float32 or float64, on any device, and return a float. Where a matrix of all pairs is
needed, `chunk` rows of it are held at a time, by default `BLOCK` numbers: with 50,000 × 2,048 float32 points that is
64 MiB, a handful of times, beside at most two copies of the points.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from atr import store

Histogram = Literal["softmax", "counts"]
Unit = Literal["nats", "bits"]

BLOCK = 2**24  # numbers held at a time unless `chunk` says otherwise: 64 MiB in float32
VOXEL_NETWORK_VERSION = 1


def point_to_point(x: Tensor, dims: Tensor | list[int] | None = None, chunk: int | None = None) -> float:
    """σ, eq. 4: standard deviation over mean of the points' distances to their nearest neighbours.

    x: (N, D); dims: indices of the dimensions that count, None for all. The deviation is over N, as eq. 4 has it, not
    over N - 1. 0 where all distances are equal (the paper says 1), larger for less uniform sets; NaN where every point
    has a duplicate, as the mean is 0. ValueError: as `nearest_distances`.
    """
    distances = nearest_distances(x if dims is None else x[:, dims], chunk).cpu().double()
    return float(distances.std(correction=0) / distances.mean())


def nearest_distances(x: Tensor, chunk: int | None = None) -> Tensor:
    """λ, eq. 3: (N,) Euclidean distance of each point of x (N, D) to its nearest neighbour, 0 for duplicates.

    Matrix products find the candidates: all points that could be nearest within the products' rounding error. The
    candidates' distances are then taken from differences, so near neighbours far from the origin keep their digits.
    ValueError: fewer than two points, or one that is not finite.
    """
    x = _points(x)
    if len(x) < 2:
        raise ValueError(f"x has {len(x)} points; a nearest neighbour needs at least two")
    chunk = _chunk(chunk, len(x))
    centred = x - x.mean(0)
    squares = centred.square().sum(1)
    # Inputs may be rounded to TF32 or bfloat16 before they are multiplied; sums lose up to D roundings more.
    product = {"highest": 0.0, "high": 2.0**-10, "medium": 2.0**-7}[torch.get_float32_matmul_precision()]
    rounding = 2 * ((x.shape[1] + 8) * torch.finfo(x.dtype).eps + product)
    nearest = torch.empty_like(squares)
    for start in range(0, len(x), chunk):
        stop = min(start + chunk, len(x))
        rows = torch.arange(start, stop, device=x.device)
        sums = squares[start:stop, None] + squares
        lower = sums - 2 * centred[start:stop] @ centred.t()
        lower[rows - start, rows] = torch.inf
        first = _distances(x, rows, lower.argmin(1))
        lower -= rounding * sums
        row, column = (lower <= (first.square() * (1 + rounding))[:, None]).nonzero(as_tuple=True)
        nearest[start:stop] = first.scatter_reduce(0, row, _distances(x, row + start, column), "amin")
    return nearest


def _distances(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """(pairs,) distances between rows `first` and `second` of x, from differences."""
    pairs = max(1, BLOCK // max(1, x.shape[1]))
    both = zip(first.split(pairs), second.split(pairs), strict=True)
    return torch.cat([torch.linalg.vector_norm(x[a] - x[b], dim=1) for a, b in both])


def voxels(x: Tensor) -> Tensor:
    """(N,) index, int64, of the voxel that each point of x (N, dims) lies in, from 0 to 2^dims - 1."""
    powers = 2 ** torch.arange(x.shape[1], device=x.device)
    return ((x > 0) * powers).sum(1)


def entropy(histogram: Tensor, reading: Histogram = "softmax") -> Tensor:
    """Entropy, in nats, of a histogram (..., voxels) of counts that need not be whole: eq. 5.

    reading: "softmax" takes the softmax of the raw counts, as eq. 5 is printed; "counts" divides them by their sum, as
    "normalized histogram" in the text has it.
    """
    if reading == "softmax":
        return torch.special.entr(histogram.softmax(-1)).sum(-1)
    if reading == "counts":
        return torch.special.entr(histogram / histogram.sum(-1, keepdim=True)).sum(-1)
    raise ValueError(f'histogram is {reading!r}; known: "softmax", "counts"')


def voxel_entropy(
    x: Tensor,
    draws: int = 100,
    dims: int = 8,
    histogram: Histogram = "softmax",
    seed: int = 0,
    unit: Unit = "nats",
) -> float:
    """h, eq. 5: entropy over the 2^dims voxels of `dims` dimensions drawn without replacement, averaged over `draws`.

    x: (N, D); histogram: see `entropy`. At most dims · log 2, in nats 5.55 for 8; "counts" at most log N besides. The
    paper does not name the logarithm; nats are what scipy and PyTorch compute, and "its maximum value of log I" has
    no base. ValueError: fewer dimensions than `dims`, no point, no draw, or a point that is not finite.
    """
    x = _points(x)
    if not 1 <= dims <= x.shape[1] or draws < 1 or not len(x):
        raise ValueError(
            f"x is {tuple(x.shape)}, dims {dims}, draws {draws}; give at least one point, one draw, and dims from 1 to "
            "the width of x"
        )
    if unit not in ("nats", "bits"):
        raise ValueError(f'unit is {unit!r}; known: "nats", "bits"')
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for _ in range(draws):
        chosen = draw(x.shape[1], dims, generator).to(x.device)
        counts = torch.bincount(voxels(x[:, chosen]), minlength=2**dims).cpu().double()
        total += float(entropy(counts, histogram))
    return total / draws / (math.log(2) if unit == "bits" else 1)


def draw(width: int, dims: int = 8, generator: torch.Generator | None = None) -> Tensor:
    """(dims,) distinct indices below `width`, from a CPU generator or torch's own."""
    if dims > width:
        raise ValueError(f"cannot draw {dims} of {width} dimensions; lower dims")
    return torch.randperm(width, generator=generator)[:dims]


def alignment(audio: Tensor, text: Tensor, power: float = 2) -> float:
    """Mean distance of paired, normalised embeddings (N, D) to the given power: Wang and Isola 2020, eq. 1 (α = power).

    0 where each pair coincides; at most 2^power. ValueError: the shapes differ.
    """
    if audio.shape != text.shape:
        raise ValueError(f"audio is {tuple(audio.shape)}, text {tuple(text.shape)}; give pairs, row by row")
    difference = F.normalize(_points(audio), dim=1) - F.normalize(_points(text), dim=1)
    return float(torch.linalg.vector_norm(difference, dim=1).pow(power).mean())


def uniformity(x: Tensor, t: float = 2, chunk: int | None = None) -> float:
    """log of the mean of exp(-t · squared distance) over pairs of distinct rows: Wang and Isola 2020, eq. 2.

    x: (N, D), normalised here. 0 where all points coincide, down to about -2t on a uniform sphere of many dimensions;
    lower is more uniform. ValueError: fewer than two points.
    """
    x = F.normalize(_points(x), dim=1)
    if len(x) < 2:
        raise ValueError(f"x has {len(x)} points; a pair needs two")
    chunk = _chunk(chunk, len(x))
    sums = []
    for start in range(0, len(x), chunk):
        exponents = (2 * t) * (x[start : start + chunk] @ x.t() - 1)
        exponents.diagonal(start).fill_(-torch.inf)
        sums.append(exponents.logsumexp(1).cpu().double())
    return float(torch.cat(sums).logsumexp(0) - math.log(len(x)) - math.log(len(x) - 1))


def modality_gap(audio: Tensor, text: Tensor) -> float:
    """Distance between the means of normalised audio (N, D) and text (M, D) embeddings: Liang et al. 2022, section 4.

    From 0 to 2.
    """
    return float((F.normalize(_points(audio), dim=1).mean(0) - F.normalize(_points(text), dim=1).mean(0)).norm())


def uniform_set(points: int, dim: int, low: float = -1, high: float = 1, seed: int = 0) -> Tensor:
    """(points, dim) float32, uniform between low and high: a reference set of table 3, its range unsaid."""
    return torch.rand(points, dim, generator=torch.Generator().manual_seed(seed)) * (high - low) + low


def gaussian_mixture(
    points: int,
    dim: int,
    components: int = 10,
    std: float = 0.1,
    low: float = -1,
    high: float = 1,
    seed: int = 0,
) -> Tensor:
    """(points, dim) float32 from equally likely Gaussians, centroids uniform in the cube: a reference set of table 3.

    std: of each dimension. The paper's "equal variance of 1/10" is 0.32; its h fits 0.1 better.
    """
    generator = torch.Generator().manual_seed(seed)
    centroids = torch.rand(components, dim, generator=generator) * (high - low) + low
    component = torch.randint(components, (points,), generator=generator)
    return centroids[component] + std * torch.randn(points, dim, generator=generator)


class VoxelAssignment(nn.Module):
    """Points (N, dims) to probabilities (N, 2^dims) of lying in each voxel."""

    def logits(self, x: Tensor) -> Tensor:
        """(N, 2^dims): log probabilities up to a constant of each row."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x).softmax(1)


class VoxelLogistic(VoxelAssignment):
    """The product over dimensions of logistic(± x / temperature): exact, differentiable, nothing to train.

    A product of logistics is the softmax of half the sum of ± x / temperature. temperature: in the unit of x; towards 0
    the assignment becomes the voxel's indicator.
    """

    signs: Tensor

    def __init__(self, temperature: float = 0.1, dims: int = 8) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; give one above 0")
        self.temperature = temperature
        bits = torch.arange(2**dims)[:, None] >> torch.arange(dims) & 1
        self.register_buffer("signs", bits * 2.0 - 1, persistent=False)

    def logits(self, x: Tensor) -> Tensor:
        return x @ self.signs.t().to(x.dtype) / (2 * self.temperature)


class VoxelNetwork(VoxelAssignment):
    """Fully connected with ReLU, dims → hidden → 2^dims: section 6.2, figure 4. The paper does not give its widths."""

    def __init__(self, hidden: tuple[int, ...] = (128, 64), dims: int = 8) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, following in pairwise((dims, *hidden)):
            layers += [nn.Linear(width, following), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden[-1] if hidden else dims, 2**dims))

    def logits(self, x: Tensor) -> Tensor:
        return self.layers(x)


@dataclass(frozen=True)
class VoxelRecipe:
    """How a voxel network is trained. Of these the paper gives examples, validation, epochs and weight decay.

    examples: vectors drawn, the share `validation` of them held out; low, high: range of their entries; learning_rate:
    Adam's, falling to 0 by a cosine; weight_decay: Adam's own (an L2 term in the gradient, as PyTorch's Adam has it),
    or, where decoupled, AdamW's.
    """

    hidden: tuple[int, ...] = (128, 64)
    examples: int = 100_000
    validation: float = 0.1
    epochs: int = 100
    batch_size: int = 512
    learning_rate: float = 1e-2
    weight_decay: float = 4e-4
    decoupled: bool = False
    low: float = -1.0
    high: float = 1.0


def train_voxel_network(
    seed: int = 0, recipe: VoxelRecipe | None = None, quiet: bool = False
) -> tuple[VoxelNetwork, pd.DataFrame]:
    """Train a voxel network to name the voxel of uniformly drawn 8-vectors: section 6.2. Runs on one thread of the CPU.

    Returns the network after its last epoch, in evaluation mode and frozen, and a row an epoch: epoch, learning_rate
    (at its end), loss (mean cross-entropy in nats), training_accuracy (while training) and validation_accuracy, both
    in percent.
    """
    recipe = recipe or VoxelRecipe()
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(recipe.examples, 8, generator=generator) * (recipe.high - recipe.low) + recipe.low
    y = voxels(x)
    cut = recipe.examples - round(recipe.validation * recipe.examples)
    with torch.random.fork_rng(devices=()), store.threads(1), _flushed_denormals():
        torch.manual_seed(seed)
        network = VoxelNetwork(recipe.hidden)
        kind = torch.optim.AdamW if recipe.decoupled else torch.optim.Adam
        optimizer = kind(network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
        steps = recipe.epochs * math.ceil(cut / recipe.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        rows = []
        bar = tqdm(range(1, recipe.epochs + 1), desc="voxel network", unit="epoch", disable=quiet)
        for epoch in bar:
            loss_sum, correct = 0.0, 0
            for chosen in torch.randperm(cut, generator=generator).split(recipe.batch_size):
                logits = network.logits(x[chosen])
                loss = F.cross_entropy(logits, y[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                loss_sum += loss.item() * len(chosen)
                correct += int((logits.argmax(1) == y[chosen]).sum())
            row = {
                "epoch": epoch,
                "learning_rate": schedule.get_last_lr()[0],
                "loss": loss_sum / cut,
                "training_accuracy": 100 * correct / cut,
                "validation_accuracy": _accuracy(network, x[cut:]),
            }
            rows.append(row)
            bar.set_postfix(loss=f"{row['loss']:.3f}", accuracy=f"{row['validation_accuracy']:.1f} %")
    return network.eval().requires_grad_(False), pd.DataFrame(rows)


@contextmanager
def _flushed_denormals() -> Iterator[None]:
    """Round denormal numbers to 0: a sharp network's gradients are full of them, and processors take them slowly."""
    before = not torch.tensor(1e-39).mul(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


@torch.no_grad()
def _accuracy(network: VoxelAssignment, x: Tensor) -> float:
    return 100 * float((network.logits(x).argmax(1) == voxels(x)).double().mean())


def voxel_accuracy(
    network: VoxelAssignment, points: int = 10_000, seed: int = 1, low: float = -1, high: float = 1
) -> float:
    """Share, in percent, of fresh uniform 8-vectors whose voxel the network names: 97.0 in section 6.2.

    seed: another than the training's, whose own vectors would come again. ValueError: no points.
    """
    if points < 1:
        raise ValueError(f"points is {points}; give at least one")
    return _accuracy(network, uniform_set(points, 8, low, high, seed))


def voxel_network(seed: int = 0, recipe: VoxelRecipe | None = None, quiet: bool = False) -> VoxelNetwork:
    """The network of `train_voxel_network`, trained the first time and kept in the store."""
    recipe = recipe or VoxelRecipe()
    with torch.random.fork_rng(devices=()):  # the initial weights are overwritten
        network = VoxelNetwork(recipe.hidden)
    network.load_state_dict(load_file(_trained(seed, recipe, quiet) / "weights.safetensors"))
    return network.eval().requires_grad_(False)


def voxel_network_history(seed: int = 0, recipe: VoxelRecipe | None = None, quiet: bool = False) -> pd.DataFrame:
    """The history of `train_voxel_network`, kept beside the network; trains where that is not there yet."""
    return pd.read_csv(_trained(seed, recipe or VoxelRecipe(), quiet) / "history.csv")


def _trained(seed: int, recipe: VoxelRecipe, quiet: bool) -> Path:
    def build(folder: Path) -> None:
        network, history = train_voxel_network(seed, recipe, quiet)
        save_file(network.state_dict(), folder / "weights.safetensors")
        history.to_csv(folder / "history.csv", index=False)

    return store.cached("voxel_network", store.content_key(VOXEL_NETWORK_VERSION, seed, asdict(recipe)), build)


class UniformityPenalty(nn.Module):
    """h of a batch, in nats, to be subtracted from the loss: loss - α (h of audio + h of text), section 6.2.

    Embeddings (B, D) are normalised and multiplied by `scale`, `dims` of their dimensions are drawn, `estimator`
    assigns them to voxels, the assignments summed over the batch are the histogram, and its entropy is h. Gradients
    reach the drawn dimensions, and the others through the embedding's length alone.

    estimator: a VoxelNetwork (`voxel_network()`) or a VoxelLogistic; its parameters are the caller's to freeze.
    histogram: the reading of eq. 5, as in `entropy`.
    scale: by default sqrt(D). The entries of a normalised embedding are about 1 / sqrt(D), far below the unit cube that
    the network knows; sqrt(D) makes their mean square 1. With 1 the estimator sees them as the paper's letter has it.
    """

    def __init__(
        self,
        estimator: VoxelAssignment,
        histogram: Histogram = "counts",
        scale: float | None = None,
        dims: int = 8,
    ) -> None:
        super().__init__()
        if histogram not in ("softmax", "counts"):
            raise ValueError(f'histogram is {histogram!r}; known: "softmax", "counts"')
        self.estimator = estimator
        self.histogram, self.scale, self.dims = histogram, scale, dims

    def forward(
        self, embeddings: Tensor, chosen: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Scalar h of embeddings (B, D).

        chosen: (dims,) indices of dimensions; without it they are drawn anew, from `generator` or torch's own, on the
        CPU. Pass one `draw` for both modalities to have them share it. ValueError: D is below dims.
        """
        width = embeddings.shape[1]
        if chosen is None:
            chosen = draw(width, self.dims, generator)
        with torch.autocast(embeddings.device.type, enabled=False):
            unit = F.normalize(embeddings if embeddings.dtype == torch.float64 else embeddings.float(), dim=1)
            scale = math.sqrt(width) if self.scale is None else self.scale
            assigned = self.estimator.logits(scale * unit[:, chosen.to(unit.device)]).log_softmax(1)
            # In logarithms: where a voxel's probability underflows to 0, the gradient of p log p would be NaN.
            logarithms = assigned.logsumexp(0)
            if self.histogram == "softmax":
                logarithms = logarithms.exp()
            logarithms = logarithms.log_softmax(0)
            return -(logarithms.exp() * logarithms).sum()


def ceiling(batch_size: int, dims: int = 8) -> float:
    """Largest h, in nats, of a batch's hard histogram with reading "counts": min(dims · log 2, log B).

    B points fill at most B voxels. A soft histogram spreads each point over voxels and can pass log B.
    """
    return min(dims * math.log(2), math.log(batch_size))


def _points(x: Tensor) -> Tensor:
    """x as (N, D) of float32 or float64; ValueError if it is no such matrix or holds what is not finite."""
    if x.ndim != 2:
        raise ValueError(f"embeddings are {tuple(x.shape)}; give a matrix (N, D)")
    x = x.detach() if x.dtype == torch.float64 else x.detach().float()
    if not x.isfinite().all():
        raise ValueError(f"embeddings {tuple(x.shape)} hold NaN or infinity; look for the epoch that diverged")
    return x


def _chunk(chunk: int | None, points: int) -> int:
    """Rows of the matrix of all pairs to hold at a time."""
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}; give at least one row at a time")
    return chunk or max(1, BLOCK // points)
