"""What an unfinished run goes on from, after a kill or a pause: written after each epoch, sealed by its digest."""

import errno
import math
import pickle
import time
import warnings
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atr.system import atomic, hashes

SEAL, DIGEST_BYTES = b"SHA-256:", 32  # behind a state, before the digest of all before it


@dataclass
class State:
    """A run after so many epochs, counted over all of its stages.

    history, learned  one row per epoch, one per step: as `Run.history` and `Run.learned` have them
    stages            what each stage that has ended came to
    best, …           the weights of the selected epoch of the stage under way, and what it was selected by
    model, …          state of the network's trained tensors, of the loss and of the optimiser
    """

    epoch: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    learned: list[dict[str, float]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    best_score: float = -math.inf
    validation: dict[str, float] = field(default_factory=dict)
    model: dict[str, Tensor] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)

    def select(self, epoch: int, score: float, scores: dict[str, float], weights: dict[str, Tensor]) -> None:
        """Take an epoch for the best so far."""
        self.best_epoch, self.best_score, self.validation = epoch, score, scores
        self.best = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}


class Keeper:
    """Writes a run's state after each epoch, or, where writing takes longer than QUICK seconds, as often as keeps it
    below a tenth of the time.
    """

    QUICK = 0.3

    def __init__(self, path: Path) -> None:
        self.path, self.took, self.ended = path, 0.0, 0.0

    def keep(self, state: State) -> None:
        start = time.perf_counter()
        if self.took > self.QUICK and start - self.ended < 9 * self.took:
            return
        atomic.write_atomic(self.path, partial(_save, state))
        self.ended = time.perf_counter()
        self.took = self.ended - start


def _save(state: State, path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)  # slower than the digest, and not looked at when it is loaded
    try:
        torch.save(vars(state), path)
    finally:
        torch.serialization.set_crc32_options(before)
    digest = bytes.fromhex(hashes.file_sha256(path))
    with open(path, "ab") as file:
        file.write(SEAL + digest)


def load(path: Path) -> State | None:
    """The state that a run goes on from; None if there is none, and with a warning if it is damaged."""
    if not path.is_file():
        return None
    try:
        check(path)
        return State(**torch.load(path, map_location="cpu", weights_only=True))
    except ValueError as error:
        reason = str(error)
    except (RuntimeError, EOFError, TypeError, pickle.UnpicklingError):  # of an older version, or of none
        reason = "it cannot be read"
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        reason = str(error)
    warnings.warn(f"{path}: damaged ({reason}); the run starts again from its beginning", stacklevel=2)
    return None


def check(path: Path) -> None:
    """ValueError for a state whose bytes are not those that were written; older versions wrote no digest."""
    size = path.stat().st_size - len(SEAL) - DIGEST_BYTES
    with open(path, "rb") as file:
        file.seek(max(0, size))
        seal, digest = file.read(len(SEAL)), file.read()
    if seal == SEAL and hashes.file_sha256(path, max(0, size)) != digest.hex():
        raise ValueError("its bytes have changed")
