"""Work on many embeddings: an epoch's batches mined from all pairs, and the measures of uniformity."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from atr.bench.harness import Case, ReleasedCode, timed
from atr.metrics import uniformity
from atr.training.batches import mine, report

BATCH = 32
MEASURES: dict[str, Callable[[Tensor], Any]] = {
    "h": uniformity.voxel_entropy,
    "uniformity": uniformity.uniformity,
    "σ": uniformity.point_to_point,
}
# pairs, D, clusters (the last pairs are AudioCaps' training set); points, D
PAIRS = {"smoke": ((64,), 16, 8)} | dict.fromkeys(("demo", "paper"), ((5000, 15_000, 49_274), 1024, 1000))
POINTS = {"smoke": ((50,), 16), "demo": ((1000, 3000, 10_000), 2048), "paper": ((1000, 5000, 50_000), 2048)}


def cases(scale: str, device: str, released: ReleasedCode) -> list[Case]:
    pairs, dim, clusters = PAIRS[scale]
    sizes = [{"pairs": number, "dim": dim, "clusters": clusters, "device": device} for number in pairs]
    result = [
        Case("mining", how, "embeddings.mining", size | {"how": how}) for size in sizes for how in ("easy", "hard")
    ]
    points, dim = POINTS[scale]
    sizes = [{"points": number, "dim": dim} for number in points]
    return result + [
        Case("measures", name, "embeddings.measures", size | {"measure": name}) for size in sizes for name in MEASURES
    ]


def gaussian_clusters(clips: np.ndarray, dim: int, clusters: int) -> Tensor:
    """(pairs, D) normalised embeddings: a common direction, a direction of the clip's cluster and noise, all about as
    long. The sizes of clusters fall as one over their rank.
    """
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(clusters, dim, generator=generator), dim=1)
    centres += F.normalize(torch.randn(1, dim, generator=generator), dim=1)
    shares = 1 / torch.arange(1.0, clusters + 1)
    cluster_of = torch.multinomial(shares, int(clips.max()) + 1, replacement=True, generator=generator)
    noise = torch.randn(len(clips), dim, generator=generator).div_(dim**0.5)
    return F.normalize(noise.add_(centres[cluster_of[torch.from_numpy(clips)]]), dim=1)


def mining(pairs: int, dim: int, clusters: int, how: str, device: str) -> dict[str, Any]:
    """Also the mean cosine within a batch, of all batches and of each quarter as they were built; `floor` is the lowest
    mean that any division into batches could have, that of all pairs in every batch.
    """
    clips = np.arange(pairs)
    embeddings = gaussian_clusters(clips, dim, clusters).to(device)
    batches: list[np.ndarray] = []

    def work() -> None:
        batches[:] = mine(embeddings, clips, BATCH, how, 0)

    row: dict[str, Any] = timed(work, device, repeats=1, least=0.0)
    cosines = report(embeddings, batches)
    quarters = np.array_split(cosines["mean_cosine"].dropna().to_numpy(), 4)
    square = float(embeddings.mean(0).square().sum())
    row["mean_cosine"] = round(float(np.average(cosines["mean_cosine"].fillna(0), weights=cosines["size"])), 4)
    row["by_quarter"] = [round(float(quarter.mean()), 4) for quarter in quarters if len(quarter)]
    return row | {"floor": round((BATCH * square - 1) / (BATCH - 1), 4)}


def measures(points: int, dim: int, measure: str) -> dict[str, Any]:
    x = torch.randn(points, dim, generator=torch.Generator().manual_seed(0))
    return timed(lambda: MEASURES[measure](x), repeats=2, least=0.0)
