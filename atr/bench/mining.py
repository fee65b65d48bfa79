"""An epoch's batches, mined from all pairs: how fast, in how much memory, and how good they are."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from atr.bench.harness import Case, Released, timed
from atr.training.batches import mine, report

# pairs, D, clusters; the last of `paper` is AudioCaps' training set
SIZES = {
    "smoke": ((64,), 16, 8),
    "demo": ((5000, 15_000, 49_274), 1024, 1000),
    "paper": ((5000, 15_000, 49_274), 1024, 1000),
}
BATCH = 32


def cases(scale: str, device: str, released: Released) -> list[Case]:
    pairs, dim, clusters = SIZES[scale]
    sizes = [{"pairs": number, "dim": dim, "clusters": clusters, "device": device} for number in pairs]
    return [Case("mining", how, "mining.mined", size | {"how": how}) for size in sizes for how in ("easy", "hard")]


def made(clips: np.ndarray, dim: int, clusters: int) -> Tensor:
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


def mined(pairs: int, dim: int, clusters: int, how: str, device: str) -> dict[str, Any]:
    """Also the mean cosine within a batch, of all batches and of each quarter as they were built; `floor` is the lowest
    mean that any division into batches could have, that of all pairs in every batch.
    """
    clips = np.arange(pairs)
    embeddings = made(clips, dim, clusters).to(device)
    batches: list[np.ndarray] = []

    def work() -> None:
        batches[:] = mine(embeddings, clips, BATCH, how, 0)

    found: dict[str, Any] = timed(work, device, repeats=1, least=0.0)
    cosines = report(embeddings, batches)
    quarters = np.array_split(cosines["mean_cosine"].dropna().to_numpy(), 4)
    square = float(embeddings.mean(0).square().sum())
    found["mean_cosine"] = round(float(np.average(cosines["mean_cosine"].fillna(0), weights=cosines["size"])), 4)
    found["by_quarter"] = [round(float(quarter.mean()), 4) for quarter in quarters if len(quarter)]
    return found | {"floor": round((BATCH * square - 1) / (BATCH - 1), 4)}
