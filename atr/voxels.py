"""The non-uniformity penalty: soft assignments of points to voxels, trained or exact, and the entropy of a batch.

Tourbabin and Ben-Hur 2023, "Audio-Text Cross-Modal Retrieval" (CS224N project), section 6.2. Voxels are numbered as in
`atr.uniformity`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from atr import store
from atr.uniformity import Histogram, draw, uniform_set, voxels

Cover = Literal["drawn", "all"]

VOXEL_NETWORK_VERSION = 1


class VoxelAssignment(nn.Module):
    """Points (…, dims) to probabilities (…, 2^dims) of lying in each voxel."""

    def logits(self, x: Tensor) -> Tensor:
        """(…, 2^dims): log probabilities up to a constant of each point."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x).softmax(-1)


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


def errors_by_distance(
    network: VoxelAssignment, points: int = 100_000, bins: int = 20, seed: int = 1, low: float = -1, high: float = 1
) -> pd.DataFrame:
    """Where the network errs: fresh uniform 8-vectors by the distance to the nearest voxel boundary, the least of their
    absolute entries.

    A row a bin of equally many points: distance (its mean), wrong (percent).
    """
    x = uniform_set(points, 8, low, high, seed)
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

    A row a scale: scale; right (percent of points whose voxel is named); certainty (mean of the largest probability,
    percent).
    """
    unit = F.normalize(x.float(), dim=1)
    rows = []
    for scale in scales:
        generator = torch.Generator().manual_seed(seed)
        parts = torch.stack([scale * unit[:, draw(x.shape[1], 8, generator)] for _ in range(draws)])
        with torch.no_grad():
            largest, named = assignment(parts).max(-1)
        right = (named == torch.stack([voxels(part) for part in parts])).double().mean()
        rows.append((scale, 100 * float(right), 100 * float(largest.mean())))
    return pd.DataFrame(rows, columns=["scale", "right", "certainty"])


def voxel_network(seed: int = 0, recipe: VoxelRecipe | None = None, quiet: bool = False) -> VoxelNetwork:
    """The network of `train_voxel_network`, trained the first time and kept in the store."""
    recipe = recipe or VoxelRecipe()
    with torch.random.fork_rng(devices=()):  # the initial weights are overwritten
        network = VoxelNetwork(recipe.hidden)
    network.load_state_dict(load_file(trained(seed, recipe, quiet) / "weights.safetensors"))
    return network.eval().requires_grad_(False)


def voxel_network_history(seed: int = 0, recipe: VoxelRecipe | None = None, quiet: bool = False) -> pd.DataFrame:
    """The history of `train_voxel_network`, kept beside the network; trains where that is not there yet."""
    return pd.read_csv(trained(seed, recipe, quiet) / "history.csv")


def trained(seed: int = 0, recipe: VoxelRecipe | None = None, quiet: bool = False, train: bool = True) -> Path:
    """Folder of the network's weights.safetensors and history.csv; FileNotFoundError where it is missing or damaged and
    `train` is not set.
    """
    recipe = recipe or VoxelRecipe()

    def build(folder: Path) -> None:
        network, history = train_voxel_network(seed, recipe, quiet)
        save_file(network.state_dict(), folder / "weights.safetensors")
        history.to_csv(folder / "history.csv", index=False)

    key = store.content_key(VOXEL_NETWORK_VERSION, seed, asdict(recipe))
    if not train and store.damage(store.home() / "cache" / "voxel_network" / key):
        raise FileNotFoundError("the voxel network is not trained yet; atr.voxels.voxel_network() trains it")
    return store.cached("voxel_network", key, build)


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
        self, embeddings: Tensor, chosen: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Scalar h of embeddings (B, D), or one (…,) of each of several batches (…, B, D).

        chosen: of `choose`; without it, chosen anew, from `generator` or torch's own, on the CPU. Pass one to both
        modalities to have them share it. ValueError: D is below dims.
        """
        width = embeddings.shape[-1]
        if width < self.dims:
            raise ValueError(f"cannot draw {self.dims} of {width} dimensions; lower dims")
        if chosen is None:
            chosen = self.choose(width, generator)
        with torch.autocast(embeddings.device.type, enabled=False):
            unit = F.normalize(embeddings if embeddings.dtype == torch.float64 else embeddings.float(), dim=-1)
            scale = math.sqrt(width) if self.scale is None else self.scale
            points = scale * unit[..., chosen.to(unit.device)]
            if chosen.ndim == 2:
                points = points.transpose(-3, -2)  # (…, groups, B, dims)
            assigned = self.estimator.logits(points).log_softmax(-1)
            # In logarithms: where a voxel's probability underflows to 0, the gradient of p log p would be NaN.
            logarithms = assigned.logsumexp(-2)
            if self.histogram == "softmax":
                logarithms = logarithms.exp()
            logarithms = logarithms.log_softmax(-1)
            h = -(logarithms.exp() * logarithms).sum(-1)
            return h.mean(-1) if chosen.ndim == 2 else h


def batch_estimate(penalty: UniformityPenalty, x: Tensor, batch_size: int, batches: int = 100, seed: int = 0) -> float:
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
    batches: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """Gradients of the loss and of each penalty, at α = 1, with respect to the normalised embeddings of a batch.

    audio, text: (N, D), paired row by row, of distinct clips; loss: as `atr.losses.build` makes it. A row a penalty:
    loss and penalty, mean norms of the gradient over the batch's audio and text together; ratio of the two; cosine
    between them: below 0 where raising h would raise the loss.
    """
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in penalties}
    for _ in range(batches):
        rows = torch.randperm(len(audio), generator=generator)[:batch_size]
        state = generator.get_state()
        pair = torch.stack([F.normalize(x[rows], dim=1) for x in (audio, text)]).requires_grad_()
        (down,) = torch.autograd.grad(loss(pair[0], pair[1], torch.arange(len(rows))), pair)
        for name, penalty in penalties.items():
            generator.set_state(state)  # the same dimensions for each
            (up,) = torch.autograd.grad(penalty(pair, generator=generator).sum(), pair)
            cosine = F.cosine_similarity(-down.flatten(), up.flatten(), dim=0)
            found[name].append((float(down.norm()), float(up.norm()), float(cosine)))
    means = {name: [sum(column) / batches for column in zip(*rows, strict=True)] for name, rows in found.items()}
    table = pd.DataFrame.from_dict(means, orient="index", columns=["loss", "penalty", "cosine"])
    table.insert(2, "ratio", table["penalty"] / table["loss"])
    return table.rename_axis("penalty by")


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

    def changed(self) -> dict[str, Any]:
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
        """{"voxels": hash of the network's weights}, empty where there are none; FileNotFoundError: see `trained`."""
        if self.estimator != "network":
            return {}
        return {"voxels": store.file_hash(trained(0, self.recipe, quiet, train) / "weights.safetensors")}


def settings(penalty: Mapping[str, Any]) -> PenaltySettings:
    """`PenaltySettings` of a mapping of its fields."""
    known = [name for name, entry in PenaltySettings.__dataclass_fields__.items() if entry.init]
    if unknown := sorted(set(penalty) - set(known)):
        raise ValueError(f"unknown {', '.join(unknown)}; known: {', '.join(known)}")
    if "alpha" not in penalty:
        raise ValueError('no "alpha"; write {"alpha": …}, or None for no penalty')
    return PenaltySettings(**penalty)
