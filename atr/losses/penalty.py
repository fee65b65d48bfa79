"""The uniformity penalty: an estimate of the voxel entropy of a batch that gradients go through."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atr.losses.voxels import VoxelAssignment, VoxelLogistic, VoxelRecipe, network_folder, voxel_network
from atr.metrics.uniformity import Histogram, draw
from atr.system import hashes

Cover = Literal["drawn", "all"]


class UniformityPenalty(nn.Module):
    """h of a batch, in nats, to be subtracted from the loss: loss - α (h of audio + h of text), section 6.2.

    Embeddings (B, D) are normalised and multiplied by `scale`, `dims` of their dimensions are drawn, `estimator`
    assigns them to voxels, the assignments summed over the batch are the histogram, and its entropy is h. Gradients
    reach the drawn dimensions, and the others through the embedding's length alone.

    cover: "drawn", the paper's `dims` dimensions a batch; "all": every dimension (but for a rest below `dims`), in
    random groups of `dims`, with the mean of their h.

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
        cover: Cover = "drawn",
    ) -> None:
        super().__init__()
        if cover not in ("drawn", "all"):
            raise ValueError(f'cover is {cover!r}; known: "drawn", "all"')
        if histogram not in ("softmax", "counts"):
            raise ValueError(f'histogram is {histogram!r}; known: "softmax", "counts"')
        self.estimator = estimator
        self.histogram, self.scale, self.dims, self.cover = histogram, scale, dims, cover

    def choose(self, width: int, generator: torch.Generator | None = None) -> Tensor:
        """(dims,) drawn dimensions of `width`, or (groups, dims) that cover them."""
        if self.cover == "drawn":
            return draw(width, self.dims, generator)
        return draw(width, width // self.dims * self.dims, generator).view(-1, self.dims)

    def forward(
        self, embeddings: Tensor, dimensions: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Scalar h of embeddings (B, D), or one (…,) of each of several batches (…, B, D).

        dimensions: of `choose`; without them, drawn anew, from `generator` or torch's own, on the CPU. The same for
        both modalities to have them share it. ValueError: D is below dims.
        """
        width = embeddings.shape[-1]
        if width < self.dims:
            raise ValueError(f"cannot draw {self.dims} of {width} dimensions; lower dims")
        if dimensions is None:
            dimensions = self.choose(width, generator)
        with torch.autocast(embeddings.device.type, enabled=False):
            unit = F.normalize(embeddings if embeddings.dtype == torch.float64 else embeddings.float(), dim=-1)
            scale = math.sqrt(width) if self.scale is None else self.scale
            points = scale * unit[..., dimensions.to(unit.device)]
            if dimensions.ndim == 2:
                points = points.transpose(-3, -2)  # (…, groups, B, dims)
            assigned = self.estimator.logits(points).log_softmax(-1)
            # In logarithms: where a voxel's probability underflows to 0, the gradient of p log p would be NaN.
            logarithms = assigned.logsumexp(-2)
            if self.histogram == "softmax":
                logarithms = logarithms.exp()
            logarithms = logarithms.log_softmax(-1)
            h = -(logarithms.exp() * logarithms).sum(-1)
            return h.mean(-1) if dimensions.ndim == 2 else h


@dataclass(frozen=True)
class PenaltySettings:
    """A penalty in plain fields, as `RunConfig.penalty` holds it.

    alpha: its weight, above 0; estimator: "network" or "logistic" with `temperature`; histogram, scale, cover: as in
    `UniformityPenalty`; network: fields of the `VoxelRecipe` that the network is trained by. ValueError or TypeError
    for what makes no sense.
    """

    alpha: float
    estimator: str = "network"
    histogram: Histogram = "counts"
    scale: float | None = None
    cover: Cover = "drawn"
    temperature: float = 0.1
    network: Mapping[str, Any] = field(default_factory=dict)
    dims: int = field(default=8, init=False)  # what the network takes

    def __post_init__(self) -> None:
        for name in ("alpha", "temperature", "scale"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (number and 0 < value < math.inf) and not (name == "scale" and value is None):
                raise ValueError(f"{name} is {value!r}; give a number above 0")
            if number:
                object.__setattr__(self, name, float(value))
        if self.estimator not in ("network", "logistic"):
            raise ValueError(f'estimator is {self.estimator!r}; known: "network", "logistic"')
        UniformityPenalty(VoxelAssignment(), self.histogram, self.scale, self.dims, self.cover)
        VoxelRecipe(**self.network)

    def differences(self) -> dict[str, Any]:
        """The fields that differ from their defaults, and alpha."""
        default = asdict(PenaltySettings(self.alpha))
        return {"alpha": self.alpha} | {key: value for key, value in asdict(self).items() if value != default[key]}

    @property
    def recipe(self) -> VoxelRecipe:
        fields = dict(self.network)
        return VoxelRecipe(**fields | ({"hidden": tuple(fields["hidden"])} if "hidden" in fields else {}))

    def build(self, quiet: bool = True) -> UniformityPenalty:
        """The penalty; its network is trained if the store has none."""
        estimator = voxel_network(0, self.recipe, quiet) if self.estimator == "network" else None
        assignment = estimator or VoxelLogistic(self.temperature)
        return UniformityPenalty(assignment, self.histogram, self.scale, self.dims, self.cover)

    def fingerprint(self, train: bool = True, quiet: bool = True) -> dict[str, str]:
        """{"voxels": hash of the network's weights}, empty where there are none. Errors: see `network_folder`."""
        if self.estimator != "network":
            return {}
        return {"voxels": hashes.file_hash(network_folder(0, self.recipe, quiet, train) / "weights.safetensors")}


def read_settings(penalty: Mapping[str, Any]) -> PenaltySettings:
    """`PenaltySettings` of a mapping of its fields."""
    names = [name for name, entry in PenaltySettings.__dataclass_fields__.items() if entry.init]
    if unknown := sorted(set(penalty) - set(names)):
        raise ValueError(f"unknown {', '.join(unknown)}; known: {', '.join(names)}")
    if "alpha" not in penalty:
        raise ValueError('no "alpha"; write {"alpha": …}, or None for no penalty')
    return PenaltySettings(**penalty)
