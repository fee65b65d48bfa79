"""What the measures of uniformity take on a large set of embeddings."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from atr.bench.harness import Case, Released, timed
from atr.metrics import uniformity

MEASURES: dict[str, Callable[[Tensor], Any]] = {
    "h": uniformity.voxel_entropy,
    "uniformity": uniformity.uniformity,
    "σ": uniformity.point_to_point,
}
SIZES = {"smoke": ((50,), 16), "demo": ((1000, 3000, 10_000), 2048), "paper": ((1000, 5000, 50_000), 2048)}


def cases(scale: str, device: str, released: Released) -> list[Case]:
    points, dim = SIZES[scale]
    sizes = [{"points": number, "dim": dim} for number in points]
    return [Case("measures", name, "measures.one", size | {"measure": name}) for size in sizes for name in MEASURES]


def one(points: int, dim: int, measure: str) -> dict[str, Any]:
    x = torch.randn(points, dim, generator=torch.Generator().manual_seed(0))
    return timed(lambda: MEASURES[measure](x), repeats=2, least=0.0)
