"""What a paper left unsaid, searched: which reading of the uniformity measures gives the published numbers.

Tourbabin and Ben-Hur 2023, "Audio-Text Cross-Modal Retrieval" (CS224N project), table 3: σ (eq. 4) and h (eq. 5) of two
reference sets, one uniform, one a mixture of ten Gaussians. Neither needs training, but the number of points, the range
of the cube, the width of the Gaussians, and how σ meets hundreds of dimensions are not given. A `Reading` says all of
it, `search` puts what each gives beside what was printed. The measures are those of `atr.metrics.uniformity`.

Means over a few sets tell readings apart, but not which side of a band's edge one lies: give `search` the few readings
that matter, and more sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import product
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy.spatial import KDTree
from torch import Tensor

from atr.losses.voxels import VoxelAssignment, VoxelLogistic
from atr.metrics.statistics import mean_std
from atr.metrics.uniformity import (
    Histogram,
    Unit,
    entropy,
    gaussian_mixture,
    over_draws,
    point_to_point,
    uniform_set,
    voxel_entropy,
)
from atr.reports.figures import looks, subplots
from atr.system import places

Metric = Literal["sigma", "h"]
Normalised = Literal["no", "whole", "drawn"]
Band = tuple[float, float]

SETS = ("uniform", "gaussians")
TABLE = places.PROJECT / "data" / "reference" / "tourbabin2023_table3.csv"
# Among them a batch of the paper's experiment 1.a, and AudioCaps' validation clips, test clips, and test captions.
POINTS = (16, 32, 64, 100, 494)
LARGE = (957, 4785)


@dataclass(frozen=True)
class Reading:
    """One way to read section 6.1 and table 3.

    points: of each set; low, high: range of the uniform set and of the centroids, per dimension. Voxels meet at 0, so
    (-0.5, 0.5) is also the unit cube with its voxels meeting in its middle.
    std: of each Gaussian in each dimension; balanced: whether components have equally many points (up to one) or each
    point draws its own.
    dims: dimensions drawn at a time, None for all (σ alone); normalised: whether σ is taken over points as they are,
    L2-normalised over all dimensions ("whole"), or over the drawn ones ("drawn"). h does not feel it.
    histogram, unit: as in `voxel_entropy`; assignment: of points to voxels, None for the indicator of the voxel that a
    point lies in, else one whose outputs are summed, as the penalty of section 6.2 does.

    ValueError: a field that makes no sense.
    """

    points: int = 64
    low: float = -1.0
    high: float = 1.0
    std: float = 0.1
    balanced: bool = False
    dims: int | None = 8
    normalised: Normalised = "no"
    histogram: Histogram = "counts"
    unit: Unit = "nats"
    assignment: VoxelAssignment | None = None

    def __post_init__(self) -> None:
        if self.points < 2:
            raise ValueError(f"points is {self.points}; σ needs at least 2")
        if not self.low < self.high:
            raise ValueError(f"low is {self.low}, high {self.high}; give low < high")
        if self.std < 0:
            raise ValueError(f"std is {self.std}; give 0 or more")
        if self.dims is not None and self.dims < 1:
            raise ValueError(f"dims is {self.dims}; give 1 or more, or None for all")
        for name, kind in (("normalised", Normalised), ("histogram", Histogram), ("unit", Unit)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}; known: {', '.join(get_args(kind))}")

    def reference_set(self, name: str, dim: int, seed: int = 0) -> Tensor:
        """(points, dim) float32: the "uniform" set or the "gaussians", before any normalising."""
        if name == "uniform":
            return uniform_set(self.points, dim, self.low, self.high, seed)
        if name != "gaussians":
            raise ValueError(f"set is {name!r}; known: {', '.join(SETS)}")
        if not self.balanced:
            return gaussian_mixture(self.points, dim, 10, self.std, self.low, self.high, seed)
        shares = [len(share) for share in torch.arange(self.points).tensor_split(10)]
        return torch.cat(
            [
                gaussian_mixture(share, dim, 1, self.std, self.low, self.high, 10 * seed + number)
                for number, share in enumerate(shares)
            ]
        )

    def sigma(self, x: Tensor, draws: int = 20, seed: int = 0) -> float:
        """σ of x (N, D), averaged over `draws` of `dims` dimensions."""
        if self.normalised == "whole":
            x = F.normalize(x, dim=1)
        if self.dims is None:
            return point_to_point(F.normalize(x, dim=1) if self.normalised == "drawn" else x)

        def of_drawn(sample: Tensor) -> float:
            return tree_point_to_point(F.normalize(sample, dim=1) if self.normalised == "drawn" else sample)

        return over_draws(of_drawn, x, draws, self.dims, seed)

    def h(self, x: Tensor, draws: int = 100, seed: int = 0) -> float:
        """h of x (N, D), averaged over `draws` of `dims` dimensions, in `unit`; ValueError where dims is None."""
        if self.dims is None:
            raise ValueError("dims is None; h needs dimensions to draw, as all of them have 2^D voxels")
        if self.assignment is None:
            return voxel_entropy(x, draws, self.dims, self.histogram, seed, self.unit)
        assignment = self.assignment

        @torch.no_grad()
        def of_drawn(sample: Tensor) -> float:
            return float(entropy(assignment(sample).sum(0).double(), self.histogram))

        return over_draws(of_drawn, x, draws, self.dims, seed) / (np.log(2) if self.unit == "bits" else 1)


def tree_point_to_point(x: Tensor) -> float:
    """`point_to_point` of x (N, dims), by a tree: with eight dimensions and thousands of points ten times as fast."""
    points = x.double().numpy()
    distances = KDTree(points).query(points, k=2)[0][:, 1]
    return float(distances.std() / distances.mean())


def values(
    reading: Reading, metric: Metric, name: str, dim: int = 128, sets: int = 4, draws: int | None = None, seed: int = 0
) -> np.ndarray:
    """(sets,) σ or h of as many reference sets `name` of `dim` dimensions, of seeds from `seed` on.

    draws: of dimensions for each set, by default 20 for σ and 50 for h (the paper: 100). ValueError: unknown
    metric or set.
    """
    if metric not in ("sigma", "h"):
        raise ValueError(f'metric is {metric!r}; known: "sigma", "h"')
    draws = draws or {"sigma": 20, "h": 50}[metric]
    measure = getattr(reading, metric)
    seeds = range(seed, seed + sets)
    return np.array([measure(reading.reference_set(name, dim, each), draws, each) for each in seeds])


def bands(metric: Metric, table: pd.DataFrame | None = None, rounding: float = 0.005) -> dict[str, Band]:
    """Set → lowest and highest of its published values over the dimensions, widened by what rounding hides.

    table: columns set, metric, mean, by default the paper's table 3; rounding: half of the last printed digit.
    """
    table = pd.read_csv(TABLE) if table is None else table
    cells = table[table["metric"] == metric].groupby("set")["mean"]
    if missing := [name for name in SETS if name not in cells.groups]:
        raise ValueError(f"no {metric} of {' and '.join(missing)} in the published table")
    return {name: (cells.get_group(name).min() - rounding, cells.get_group(name).max() + rounding) for name in SETS}


def nearest_points(
    reading: Reading,
    target: float,
    dim: int = 128,
    sets: int = 4,
    draws: int | None = None,
    seed: int = 0,
    most: int = 1024,
) -> int:
    """Number of points, from 2 to `most`, whose uniform h comes nearest to `target`; `reading.points` is not used.

    By halving: h grows with the points where it is taken from counts, and falls where softmax sharpens them (up to
    about a thousand). ValueError: the target is beyond what both ends give.
    """

    def h(points: int) -> float:
        of_sets = values(replace(reading, points=points), "h", "uniform", dim, sets, draws, seed)
        return float(of_sets.mean())

    low, high = 2, most
    ends = {low: h(low), high: h(high)}
    if not min(ends.values()) <= target <= max(ends.values()):
        raise ValueError(
            f"h is {ends[low]:.2f} with {low} points and {ends[high]:.2f} with {high}, never {target:.2f}; change the "
            "target or `most`"
        )
    rising = ends[high] > ends[low]
    while high - low > 1:
        middle = (low + high) // 2
        ends[middle] = h(middle)
        low, high = (middle, high) if (ends[middle] < target) == rising else (low, middle)
    return min(low, high, key=lambda points: abs(ends[points] - target))


# What the words leave open. Variance 1/10 is a deviation of 0.32; "1/10" may also be the deviation itself.
WIDTHS: tuple[dict[str, Any], ...] = (
    {"std": 0.1},
    {"std": 0.1, "balanced": True},
    {"std": 0.1**0.5},
    {"std": 0.1, "low": -0.5, "high": 0.5},
)
MEETINGS: tuple[dict[str, Any], ...] = (
    {"dims": None},
    {"dims": 8},
    {"dims": 8, "normalised": "whole"},
    {"dims": 8, "normalised": "drawn"},
)
# 0.0115: with it, uniform h is the published at a batch of 64.
ENTROPIES: tuple[dict[str, Any], ...] = (
    {"histogram": "softmax"},
    {"histogram": "counts"},
    {"histogram": "counts", "unit": "bits"},
    {"histogram": "counts", "assignment": VoxelLogistic(0.0115)},
)


def sigma_readings(points: Sequence[int] = POINTS, large: Sequence[int] = LARGE) -> list[Reading]:
    """Readings of σ: each of `MEETINGS` with each of `WIDTHS` at each number of points.

    large: more points, which cost most, for the last of the meetings and the first of the widths alone.
    """
    readings = [Reading(count, **meeting, **width) for meeting, width, count in product(MEETINGS, WIDTHS, points)]
    return readings + [Reading(count, **MEETINGS[-1], **WIDTHS[0]) for count in large]


def h_readings(
    points: Sequence[int] = POINTS,
    table: pd.DataFrame | None = None,
    dim: int = 128,
    sets: int = 4,
    draws: int | None = None,
) -> list[Reading]:
    """Readings of h: each of `ENTROPIES` with each of `WIDTHS` at each number of points, and at the number where its
    uniform h comes nearest to the middle of the published band.

    table: as in `bands`; dim, sets, draws: as in `values`. ValueError: as `nearest_points`.
    """
    target = float(np.mean(bands("h", table)["uniform"]))
    nearest = cache(lambda reading: nearest_points(reading, target, dim, sets, draws))
    readings = []
    for kind, width in product(ENTROPIES, WIDTHS):
        reading = Reading(**kind, **width)
        counts = sorted({*points, nearest(_without_gaussians(reading))})
        readings += [replace(reading, points=count) for count in counts]
    return readings


def _without_gaussians(reading: Reading) -> Reading:
    """The same for all readings whose uniform set is the same."""
    return replace(reading, std=0.0, balanced=False)


def search(
    metric: Metric,
    readings: Iterable[Reading] | None = None,
    table: pd.DataFrame | None = None,
    dim: int = 128,
    sets: int = 4,
    draws: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per reading: its fields, and for each reference set what it gives beside what was printed.

    For each set: `<set>`, mean over `sets` sets; `<set>_std`, their deviation; `<set>_published`, as printed;
    `<set>_fits`, whether the mean lies in the band of `bands`. fits: whether both do. A reading whose deviation is far
    above the published values' own, hits their level by luck.

    readings: by default `sigma_readings()` or `h_readings()`; table: as `bands` takes it; dim, sets, draws, seed: as in
    `values`. ValueError: fewer than two sets, which have no deviation.
    """
    if sets < 2:
        raise ValueError(f"sets is {sets}; a deviation over sets needs at least 2")
    published = pd.read_csv(TABLE) if table is None else table
    limits = bands(metric, published)
    if readings is None:
        readings = sigma_readings() if metric == "sigma" else h_readings(POINTS, published, dim, sets, draws)
    measured = cache(lambda name, reading: values(reading, metric, name, dim, sets, draws, seed))
    rows = []
    for reading in readings:
        row: dict[str, Any] = {each.name: getattr(reading, each.name) for each in fields(reading)}
        row |= {"assignment": _assignment(reading), "measure": _measure(reading, metric), "width": _width(reading)}
        for name in SETS:
            same = _without_gaussians(reading) if name == "uniform" else reading
            mean, deviation = mean_std(measured(name, same))
            low, high = limits[name]
            printed = published.loc[(published["metric"] == metric) & (published["set"] == name), "mean"]
            row[name], row[f"{name}_std"] = mean, deviation
            row[f"{name}_published"] = f"{printed.min():.2f} to {printed.max():.2f}"
            row[f"{name}_fits"] = low <= mean <= high
        rows.append(row | {"fits": all(row[f"{name}_fits"] for name in SETS)})
    return pd.DataFrame(rows)


def _assignment(reading: Reading) -> str:
    if isinstance(reading.assignment, VoxelLogistic):
        return f"logistic {reading.assignment.temperature:g}"
    return "hard" if reading.assignment is None else "network"


def _measure(reading: Reading, metric: Metric) -> str:
    """How the reading takes the measure, in words: what the figure colours by."""
    if metric == "h":
        soft = "" if reading.assignment is None else f", {_assignment(reading)}"
        return f"{reading.histogram}, {reading.unit}{soft}"
    dims = "all dimensions" if reading.dims is None else f"{reading.dims} drawn"
    return dims + {"no": "", "whole": " of normalised points", "drawn": ", then normalised"}[reading.normalised]


def _width(reading: Reading) -> str:
    """The Gaussians, in words: what the figure dashes by."""
    return f"std {reading.std:.2g} in [{reading.low:g}, {reading.high:g}]" + (", balanced" if reading.balanced else "")


def by_points(tables: Mapping[Metric, pd.DataFrame], table: pd.DataFrame | None = None, most: int = 2) -> Figure:
    """σ and h of both reference sets against the number of points: one row per metric, of its readings the `most` that
    come nearest to what was printed (`nearest`), the published values shaded, bars of one deviation over sets.

    tables: metric → its `search`; table: the published one, as in `bands`.
    """
    figure, axes = subplots(len(tables), 2, 2.1 * len(tables), sharex=True, sharey="row")
    for row, (metric, results) in zip(axes, tables.items(), strict=True):
        readings, limits = nearest(results, bands(metric, table), most), bands(metric, table)
        for axis, name in zip(row, SETS, strict=True):
            axis.axhspan(*limits[name], color="0.6", alpha=0.6, lw=0.7)
            for (measure, width), look in zip(readings, looks(range(most)).values(), strict=False):
                line = results[(results["measure"] == measure) & (results["width"] == width)].sort_values("points")
                label = f"{measure};\n{width}"
                axis.errorbar(line["points"], line[name], line[f"{name}_std"], ms=3, capsize=2, label=label, **look)
            axis.set_xscale("log")
            if axis in axes[0]:
                axis.set_title({"uniform": "uniform set", "gaussians": "Gaussian mixture"}[name])
        row[1].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7, labelspacing=1)
        row[0].set_ylim(0, 1.8 * max(high for _, high in limits.values()))  # a few points a component give anything
        units = dict.fromkeys(
            unit
            for measure, width in readings
            for unit in results["unit"][(results["measure"] == measure) & (results["width"] == width)]
        )
        row[0].set_ylabel("σ" if metric == "sigma" else f"h ({' or '.join(units)})")
    for axis in axes[-1]:
        axis.set_xlabel("points (shaded: published)")
    return figure


def nearest(results: pd.DataFrame, limits: Mapping[str, Band], most: int = 2) -> list[tuple[str, str]]:
    """Measure and width of the readings that come nearest to the printed values, nearest first: by the larger of the
    two sets' distances from the middle of their band, in parts of it, where it is smallest over the points.

    results: of `search`; limits: of `bands`.
    """
    middles = {name: sum(limits[name]) / 2 for name in SETS}
    apart = pd.concat([(results[name] - middle).abs() / middle for name, middle in middles.items()], axis=1).max(axis=1)
    best = apart.groupby([results["measure"], results["width"]]).min().sort_values(kind="stable")
    return list(best.index[:most])
