"""How evenly embeddings fill their space: measures and reference sets.

Tourbabin and Ben-Hur 2023, "Audio-Text Cross-Modal Retrieval" (CS224N project); equations are numbered as there. Their
voxels are the orthants of a few drawn dimensions: 2^dims of them, one a sign pattern. Voxel v has dimension k on its
positive side where bit k of v is set; positive means above 0.

Measures take points (N, D), float32 or float64, on any device, and return a float. Where a matrix of all pairs is
needed, `BLOCK` numbers of it are held at a time: with 50,000 × 2,048 float32 points that is
64 MiB, a handful of times, beside at most two copies of the points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Histogram = Literal["softmax", "counts"]
Unit = Literal["nats", "bits"]

BLOCK = 2**24  # numbers held at a time: 64 MiB in float32


def point_to_point(x: Tensor) -> float:
    """σ, eq. 4: standard deviation over mean of the points' distances to their nearest neighbours.

    x: (N, D). The deviation is over N, as eq. 4 has it, not over N - 1. 0 where all distances are equal (the paper says
    1), larger for less uniform sets; NaN where every point has a duplicate, as the mean is 0. ValueError: as
    `nearest_distances`.
    """
    distances = nearest_distances(x).cpu().double()
    return float(distances.std(correction=0) / distances.mean())


def nearest_distances(x: Tensor) -> Tensor:
    """λ, eq. 3: (N,) Euclidean distance of each point of x (N, D) to its nearest neighbour, 0 for duplicates.

    Matrix products find the candidates: all points that could be nearest within the products' rounding error. The
    candidates' distances are then taken from differences, so near neighbours far from the origin keep their digits.
    ValueError: fewer than two points, or one that is not finite.
    """
    x = matrix(x)
    if len(x) < 2:
        raise ValueError(f"x has {len(x)} points; a nearest neighbour needs at least two")
    chunk = max(1, BLOCK // len(x))  # rows of the matrix of all pairs
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
    x: Tensor, draws: int = 100, dims: int = 8, histogram: Histogram = "softmax", seed: int = 0, unit: Unit = "nats"
) -> float:
    """h, eq. 5: entropy over the 2^dims voxels of `dims` dimensions drawn without replacement, averaged over `draws`.

    x: (N, D); histogram: see `entropy`. At most dims · log 2, in nats 5.55 for 8; "counts" at most log N besides. The
    paper does not name the logarithm; nats are what scipy and PyTorch compute, and "its maximum value of log I" has
    no base. ValueError: fewer dimensions than `dims`, no point, no draw, or a point that is not finite.
    """
    x = matrix(x)
    if not 1 <= dims <= x.shape[1] or draws < 1 or not len(x):
        raise ValueError(
            f"x is {tuple(x.shape)}, dims {dims}, draws {draws}; give at least one point, one draw, and dims from 1 to "
            "the width of x"
        )
    if unit not in ("nats", "bits"):
        raise ValueError(f'unit is {unit!r}; known: "nats", "bits"')

    def of_counts(sample: Tensor) -> float:
        return float(entropy(torch.bincount(voxels(sample), minlength=2**dims).cpu().double(), histogram))

    return over_draws(of_counts, x, draws, dims, seed) / (math.log(2) if unit == "bits" else 1)


def drawn_sigma(x: Tensor, draws: int = 100, dims: int = 8, seed: int = 0) -> float:
    """σ over `dims` drawn dimensions, as h takes them, averaged over `draws`: a reading of table 3. See
    `point_to_point`.
    """
    return over_draws(point_to_point, x, draws, dims, seed)


def over_draws(measure: Callable[[Tensor], float], x: Tensor, draws: int, dims: int, seed: int = 0) -> float:
    """Mean of a measure over so many draws of `dims` dimensions of x (N, D)."""
    generator = torch.Generator().manual_seed(seed)
    return sum(measure(x[:, draw(x.shape[1], dims, generator).to(x.device)]) for _ in range(draws)) / draws


def over_subsets(measure: Callable[[Tensor], float], x: Tensor, points: int, subsets: int = 10, seed: int = 0) -> float:
    """Mean of a measure over random subsets of x (N, D) of so many points; the whole of x where it has no more.

    Both σ and h depend on the number of points, so sets are compared at the same number.
    """
    if len(x) <= points:
        return measure(x)
    generator = torch.Generator().manual_seed(seed)
    samples = [torch.randperm(len(x), generator=generator)[:points] for _ in range(subsets)]
    return sum(measure(x[rows]) for rows in samples) / subsets


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
    difference = F.normalize(matrix(audio), dim=1) - F.normalize(matrix(text), dim=1)
    return float(torch.linalg.vector_norm(difference, dim=1).pow(power).mean())


def uniformity(x: Tensor, t: float = 2) -> float:
    """log of the mean of exp(-t · squared distance) over pairs of distinct rows: Wang and Isola 2020, eq. 2.

    x: (N, D), normalised here. 0 where all points coincide, down to about -2t on a uniform sphere of many dimensions;
    lower is more uniform. ValueError: fewer than two points.
    """
    x = F.normalize(matrix(x), dim=1)
    if len(x) < 2:
        raise ValueError(f"x has {len(x)} points; a pair needs two")
    chunk = max(1, BLOCK // len(x))  # rows of the matrix of all pairs
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
    return float((F.normalize(matrix(audio), dim=1).mean(0) - F.normalize(matrix(text), dim=1).mean(0)).norm())


def measures(audio: Tensor, text: Tensor) -> dict[str, float]:
    """Every measure of paired, normalised embeddings (N, D), a caption a clip: of each modality σ over all dimensions,
    h by "counts" in nats, and Wang and Isola's uniformity; alignment and modality gap.
    """
    result = {}
    for name, x in (("audio", audio), ("text", text)):
        result[f"{name}_sigma"] = point_to_point(x)
        result[f"{name}_h"] = voxel_entropy(x, histogram="counts")
        result[f"{name}_uniformity"] = uniformity(x)
    return result | {"alignment": alignment(audio, text), "modality_gap": modality_gap(audio, text)}


def uniform_set(points: int, dim: int, low: float = -1, high: float = 1, seed: int = 0) -> Tensor:
    """(points, dim) float32, uniform between low and high: a reference set of table 3, its range unsaid."""
    return torch.rand(points, dim, generator=torch.Generator().manual_seed(seed)) * (high - low) + low


def gaussian_mixture(
    points: int, dim: int, components: int = 10, std: float = 0.1, low: float = -1, high: float = 1, seed: int = 0
) -> Tensor:
    """(points, dim) float32 from equally likely Gaussians, centroids uniform in the cube: a reference set of table 3.

    std: of each dimension. The paper's "equal variance of 1/10" is 0.32; its h fits 0.1 better.
    """
    generator = torch.Generator().manual_seed(seed)
    centroids = torch.rand(components, dim, generator=generator) * (high - low) + low
    component = torch.randint(components, (points,), generator=generator)
    return centroids[component] + std * torch.randn(points, dim, generator=generator)


def ceiling(batch_size: int, dims: int = 8) -> float:
    """Largest h, in nats, of a batch's hard histogram with reading "counts": min(dims · log 2, log B).

    B points fill at most B voxels. A soft histogram spreads each point over voxels and can pass log B.
    """
    return min(dims * math.log(2), math.log(batch_size))


def matrix(x: Tensor, name: str = "x") -> Tensor:
    """x as (N, D) of float32 or float64; ValueError if it is no such matrix or holds what is not finite."""
    if x.ndim != 2:
        raise ValueError(f"{name} is {tuple(x.shape)}; give a matrix (N, D), a point per row")
    x = x.detach() if x.dtype == torch.float64 else x.detach().float()
    if not x.isfinite().all():
        raise ValueError(f"{name} {tuple(x.shape)} holds NaN or infinity; look for the epoch that diverged")
    return x
