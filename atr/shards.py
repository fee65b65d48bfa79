"""Embeddings of many files on disk, in pieces that land at once: what an index of sounds is made of.

A shard is two files: `<number>.safetensors` has embeddings (rows, dim) float32 and times (rows, 2) float64, start and
end in seconds; `<number>.jsonl`, written last, has a line for each file, whose rows follow in this order. Of a path in
several shards the last one counts.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from atr.store import write_atomic

FULL = 1 << 16  # rows or files, whichever are more, that a shard is filled up to
# path: relative to the folder that is indexed; size in bytes; seconds and segments 0 where there is a problem.
COLUMNS = {"path": "object", "size": "int64", "mtime_ns": "int64", "seconds": "float64", "segments": "int64"}
COLUMNS |= {"problem": "object"}


class Part(NamedTuple):
    """Some files: a table of COLUMNS, embeddings and times of their rows."""

    table: pd.DataFrame
    embeddings: Tensor
    times: Tensor

    @property
    def size(self) -> int:
        return max(len(self.table), len(self.embeddings))


@dataclass(frozen=True)
class Shard:
    """One pair of files. ValueError: they do not fit each other."""

    folder: Path
    number: int

    @property
    def paths(self) -> tuple[Path, Path]:
        """Table and embeddings."""
        return tuple(self.folder / f"{self.number:08}.{suffix}" for suffix in ("jsonl", "safetensors"))  # type: ignore

    @cached_property
    def table(self) -> pd.DataFrame:
        """COLUMNS, a row a file."""
        try:
            with open(self.paths[0], encoding="utf-8") as file:
                return pd.DataFrame([json.loads(line) for line in file], columns=list(COLUMNS)).astype(COLUMNS)
        except (ValueError, TypeError) as error:
            raise self._damaged(error) from error

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        try:
            tensors = load_file(self.paths[1])
            rows = {len(tensors["embeddings"]), len(tensors["times"]), int(self.offsets[-1])}
        except (SafetensorError, OSError, KeyError) as error:
            raise self._damaged(error) from error
        if len(rows) > 1:
            raise self._damaged(f"{min(rows)} and {max(rows)} rows")
        return tensors

    @cached_property
    def offsets(self) -> np.ndarray:
        """(files + 1,): file i's rows are offsets[i] to offsets[i + 1]."""
        return np.cumsum([0, *self.table["segments"]])

    def part(self, files: np.ndarray) -> Part:
        """Of the chosen files, a mask (files,)."""
        rows = torch.from_numpy(np.repeat(files, self.table["segments"]))
        return Part(self.table[files], self.tensors["embeddings"][rows], self.tensors["times"][rows])

    def remove(self) -> None:
        for path in self.paths:
            path.unlink(missing_ok=True)

    def _damaged(self, problem: object) -> ValueError:
        return ValueError(f"{self.paths[1]}: damaged ({problem}); delete {self.folder} and index the folder again")


def stored(folder: Path) -> list[Shard]:
    """The complete shards of a folder, in order."""
    return [Shard(folder, int(path.stem)) for path in sorted(folder.glob("[0-9]*.jsonl"))]


def clean(folder: Path) -> None:
    """Remove what a killed process left unfinished."""
    for path in [*folder.glob(".[0-9]*"), *folder.glob("[0-9]*.safetensors")]:
        if path.name.startswith(".") or not path.with_suffix(".jsonl").is_file():
            path.unlink()


def write(folder: Path, parts: Sequence[Part]) -> None:
    """A further shard."""
    shard = Shard(folder, max([one.number for one in stored(folder)], default=0) + 1)
    embeddings, times = torch.cat([part.embeddings for part in parts]), torch.cat([part.times for part in parts])
    rows = pd.concat([part.table for part in parts]).to_dict("records")
    write_atomic(shard.paths[1], lambda path: save_file({"embeddings": embeddings, "times": times}, path))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomic(shard.paths[0], lambda path: path.write_text(lines))


def files(shards: Iterable[Shard]) -> pd.DataFrame:
    """COLUMNS of each path where it counts, with its shard's place and its line there."""
    tables = [shard.table.assign(shard=place, line=np.arange(len(shard.table))) for place, shard in enumerate(shards)]
    if not tables:
        return pd.DataFrame(columns=[*COLUMNS, "shard", "line"]).astype(COLUMNS | {"shard": "int64", "line": "int64"})
    return pd.concat(tables, ignore_index=True).drop_duplicates("path", keep="last", ignore_index=True)


def masks(shards: Sequence[Shard], kept: pd.DataFrame) -> list[np.ndarray]:
    """For each shard which of its files are in `kept`, rows of `files`."""
    starts = np.cumsum([0, *(len(shard.table) for shard in shards)])
    mask = np.zeros(starts[-1], bool)
    mask[starts[kept["shard"]] + kept["line"]] = True
    return np.split(mask, starts[1:-1])


def compact(folder: Path, shards: Sequence[Shard], kept: pd.DataFrame) -> None:
    """Write anew what is left in those of a folder's `shards` that are small or hold files outside of `kept`, rows of
    `files`.
    """
    loose = [
        (shard, mask)
        for shard, mask in zip(shards, masks(shards, kept), strict=True)
        if not mask.all() or max(len(mask), shard.offsets[-1]) < FULL // 2
    ]
    if len(loose) == 1 and loose[0][1].all():
        return
    parts: list[Part] = []
    for shard, mask in loose:
        part = Shard(folder, shard.number).part(mask)  # not to hold them all
        if parts and part.size + sum(one.size for one in parts) > FULL:
            write(folder, parts)
            parts = []
        if part.size:
            parts.append(part)
    if parts:
        write(folder, parts)
    for shard, _ in loose:
        shard.remove()
