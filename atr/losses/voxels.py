"""Assignments of points to voxels, trained or exact, and how the network that makes them is trained.

Tourbabin and Ben-Hur 2023, "Audio-Text Cross-Modal Retrieval" (CS224N project), section 6.2. Voxels are numbered as in
`atr.metrics.uniformity`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from atr.metrics.uniformity import voxels
from atr.system import devices, hashes, places, store

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

    Returns the network after its last epoch, in evaluation mode and frozen, and one row per epoch: epoch, learning_rate
    (at its end), loss (mean cross-entropy in nats), training_accuracy (while training) and validation_accuracy, both
    in percent.
    """
    recipe = recipe or VoxelRecipe()
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(recipe.examples, 8, generator=generator) * (recipe.high - recipe.low) + recipe.low
    y = voxels(x)
    cut = recipe.examples - round(recipe.validation * recipe.examples)
    with torch.random.fork_rng(devices=()), devices.threads(1), _flush_denormals():
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
            for batch in torch.randperm(cut, generator=generator).split(recipe.batch_size):
                logits = network.logits(x[batch])
                loss = F.cross_entropy(logits, y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                loss_sum += loss.item() * len(batch)
                correct += int((logits.argmax(1) == y[batch]).sum())
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
def _flush_denormals() -> Iterator[None]:
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


def voxel_network(seed: int = 0, recipe: VoxelRecipe | None = None, quiet: bool = False) -> VoxelNetwork:
    """The network of `train_voxel_network`, trained the first time and kept in the store."""
    recipe = recipe or VoxelRecipe()
    with torch.random.fork_rng(devices=()):  # the initial weights are overwritten
        network = VoxelNetwork(recipe.hidden)
    network.load_state_dict(load_file(network_folder(seed, recipe, quiet) / "weights.safetensors"))
    return network.eval().requires_grad_(False)


def voxel_network_history(seed: int = 0, recipe: VoxelRecipe | None = None, quiet: bool = False) -> pd.DataFrame:
    """The history of `train_voxel_network`, kept beside the network; trains where that is not there yet."""
    return pd.read_csv(network_folder(seed, recipe, quiet) / "history.csv")


def network_folder(seed: int = 0, recipe: VoxelRecipe | None = None, quiet: bool = False, train: bool = True) -> Path:
    """Folder of the network's weights.safetensors and history.csv; FileNotFoundError where it is missing or damaged and
    `train` is not set.
    """
    recipe = recipe or VoxelRecipe()

    def build(folder: Path) -> None:
        network, history = train_voxel_network(seed, recipe, quiet)
        save_file(network.state_dict(), folder / "weights.safetensors")
        history.to_csv(folder / "history.csv", index=False)

    key = hashes.content_key(VOXEL_NETWORK_VERSION, seed, asdict(recipe))
    if not train and store.damage(places.home() / "cache" / "voxel_network" / key):
        raise FileNotFoundError("the voxel network is not trained yet; atr.losses.voxels.voxel_network() trains it")
    return store.cached_folder("voxel_network", key, build)
