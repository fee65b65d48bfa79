"""Arrays of many lengths in one memory-mapped file."""

import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from atr.system.store import cached_folder

POOLED = "pooled"


def save_array(path: Path, array: np.ndarray) -> None:
    """`np.save` that notices a disk that is full."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    path.write_bytes(buffer.getbuffer())


@dataclass(frozen=True)
class RaggedArray:
    """Rows of unequal length in one memory-mapped array.

    data: (total length, ...); offsets: (rows + 1,) int64. Row i is `data[offsets[i]:offsets[i + 1]]`.
    """

    data: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[np.ndarray]) -> "RaggedArray":
        """Rows (length, ...) in memory."""
        return cls(np.concatenate(rows), np.cumsum([0, *map(len, rows)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.data[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """(B, longest, ...) padded with zeros, and lengths (B,) int64."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        padded = np.zeros((len(rows), int(lengths.max()), *self.data.shape[1:]), self.data.dtype)
        for place, row in enumerate(rows):
            padded[place, : lengths[place]] = self[row]
        return torch.from_numpy(padded), torch.from_numpy(lengths)


class Batch(NamedTuple):
    """Some `InputRows` side by side: values (B, dim) of kind POOLED, without lengths; of every other kind
    (B, longest, ...), padded with zeros, and lengths (B,) int64.
    """

    kind: str
    values: Tensor
    lengths: Tensor | None = None

    def to(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        return self._replace(values=move(self.values), lengths=None if self.lengths is None else move(self.lengths))


@dataclass(frozen=True)
class InputRows:
    """What one side of a model reads, one row per clip or caption.

    kind  POOLED, what an encoder would give; else in the words of the encoder that reads it
    data  of kind POOLED a tensor (rows, dim), else `RaggedArray`
    """

    kind: str
    data: Any

    def __len__(self) -> int:
        return len(self.data)

    @property
    def lengths(self) -> np.ndarray:
        return np.ones(len(self), np.int64) if self.kind == POOLED else self.data.lengths

    def batch(self, rows: np.ndarray) -> Batch:
        return Batch(self.kind, self.data[rows]) if self.kind == POOLED else Batch(self.kind, *self.data.batch(rows))


def pack(folder: Path, rows: Iterable[np.ndarray]) -> None:
    """Write rows (length, ...) of one dtype to `folder` as `raw`, `layout.json` and `offsets.npy`, one at a time."""
    offsets, shape, dtype = [0], None, None
    with open(folder / "raw", "wb") as file:
        for row in rows:
            row = np.ascontiguousarray(row)
            if shape is None:
                shape, dtype = row.shape[1:], row.dtype
            if row.shape[1:] != shape or row.dtype != dtype:
                raise ValueError(f"rows differ: {row.shape[1:]} {row.dtype} after {shape} {dtype}")
            file.write(row.tobytes())  # ndarray.tofile does not notice a disk that is full
            offsets.append(offsets[-1] + len(row))
    if shape is None:
        raise ValueError("nothing to pack: no rows")
    save_array(folder / "offsets.npy", np.array(offsets))
    (folder / "layout.json").write_text(json.dumps({"shape": [offsets[-1], *shape], "dtype": str(dtype)}))


def cached_rows(kind: str, key: str, rows: Callable[[], Iterable[np.ndarray]]) -> RaggedArray:
    """What `rows()` gives, as `pack` takes it, computed once: the entry `kind`/`key` of the store."""
    return open_packed(cached_folder(kind, key, lambda folder: pack(folder, rows())))


def open_packed(folder: Path) -> RaggedArray:
    """The rows that `pack` wrote, memory-mapped."""
    try:
        layout = json.loads((folder / "layout.json").read_text())
        data = np.memmap(folder / "raw", dtype=layout["dtype"], mode="c", shape=tuple(layout["shape"]))
        return RaggedArray(data, np.load(folder / "offsets.npy"))
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{folder}: files missing or cut short ({error}); delete it and run again") from error
