"""Embeddings of many files on disk, in pieces that land at once: what an index of sounds is made of.

A shard is two files: `<name>.safetensors` has embeddings (rows, dim) float32 and times (rows, 2) float64, start and end
in seconds; `<name>.jsonl`, written last, has a line of the first file's checksums, then a line for each sound, whose
rows follow in this order. The name is the hash of the second file: no shard is ever written over by another, and each
tells whether it is whole. Of a path in several shards the last one counts.
"""

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
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

from atr.system import hashes
from atr.system.atomic import write_atomic

FULL = 1 << 16  # rows or files, whichever are more, that a shard is filled up to
# path: relative to the folder that is indexed; size in bytes; seconds and segments 0 where there is a problem.
COLUMNS = {"path": "object", "size": "int64", "mtime_ns": "int64", "seconds": "float64", "segments": "int64"}
COLUMNS |= {"problem": "object"}


class FileRows(NamedTuple):
    """Some files: a table of COLUMNS, embeddings and times of their rows."""

    table: pd.DataFrame
    embeddings: Tensor
    times: Tensor

    @property
    def size(self) -> int:
        return max(len(self.table), len(self.embeddings))


class DamageError(ValueError):
    """A file that is not as it was written."""

    def __init__(self, path: Path, problem: object) -> None:
        super().__init__(f"{path}: damaged ({problem})")


@dataclass(frozen=True)
class Shard:
    """One pair of files. DamageError: one of them is gone, or not as it was written."""

    folder: Path
    name: str

    @property
    def paths(self) -> tuple[Path, Path]:
        """Table and embeddings."""
        return tuple(self.folder / f"{self.name}.{suffix}" for suffix in ("jsonl", "safetensors"))  # type: ignore

    @cached_property
    def _content(self) -> tuple[list[int], pd.DataFrame]:
        """Checksums of the embeddings, and the table."""
        try:
            content = self.paths[0].read_bytes()
        except OSError as error:
            raise DamageError(self.paths[0], error.strerror) from error
        if hashes.sha256(content)[:24] != self.name:
            raise DamageError(self.paths[0], "other bytes than were written")
        sums, *rows = map(json.loads, content.splitlines())
        return sums, pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)

    @property
    def table(self) -> pd.DataFrame:
        """COLUMNS, one row per file."""
        return self._content[1]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        try:
            return load_file(self.paths[1])
        except (SafetensorError, OSError, RuntimeError) as error:  # the last is torch's, of a file removed meanwhile
            raise DamageError(self.paths[1], error) from error

    def check(self, sample: bool = False) -> None:
        """Read both files; with `sample` only a part of the second, if it is large."""
        sums, _ = self._content
        try:
            hashes.check(self.paths[1], sums, sample)
        except (ValueError, OSError) as error:
            raise DamageError(self.paths[1], getattr(error, "strerror", error)) from error

    @cached_property
    def offsets(self) -> np.ndarray:
        """(files + 1,): file i's rows are offsets[i] to offsets[i + 1]."""
        return np.cumsum([0, *self.table["segments"]])

    def part(self, files: np.ndarray) -> FileRows:
        """Of the chosen files, a mask (files,)."""
        rows = torch.from_numpy(np.repeat(files, self.table["segments"]))
        return FileRows(self.table[files], self.tensors["embeddings"][rows], self.tensors["times"][rows])


def shards_in(folder: Path) -> list[Shard]:
    """The complete shards of a folder, the last written one last."""
    stamps = []
    for path in folder.glob("*.jsonl"):
        with suppress(FileNotFoundError):  # replaced meanwhile
            stamps.append((path.stat().st_mtime_ns, path.stem))
    return [Shard(folder, name) for _, name in sorted(stamps)]


def clean(folder: Path, live: Iterable[Shard]) -> None:
    """Remove the shards that are not in `live`, and what a killed process left unfinished."""
    names = {shard.name for shard in live}
    for path in sorted(folder.iterdir()):  # a table before its embeddings, as without it they are no shard
        if path.name.startswith(".") or (path.suffix in (".jsonl", ".safetensors") and path.stem not in names):
            path.unlink()


def write(folder: Path, parts: Sequence[FileRows]) -> Shard:
    """A further shard; no other process may be writing one to this folder."""
    embeddings, times = torch.cat([part.embeddings for part in parts]), torch.cat([part.times for part in parts])
    rows = pd.concat([part.table for part in parts]).to_dict("records")
    temporary = folder / ".new.safetensors"
    write_atomic(temporary, lambda path: save_file({"embeddings": embeddings, "times": times}, path))
    table = "".join(json.dumps(line) + "\n" for line in [hashes.blocks(temporary), *rows]).encode()
    shard = Shard(folder, hashes.sha256(table)[:24])
    os.replace(temporary, shard.paths[1])
    write_atomic(shard.paths[0], lambda path: path.write_bytes(table))
    return shard


def files(shards: Iterable[Shard]) -> pd.DataFrame:
    """COLUMNS of each path where it counts, with its shard's place and its line there."""
    tables = [shard.table.assign(shard=place, line=np.arange(len(shard.table))) for place, shard in enumerate(shards)]
    if not tables:
        return pd.DataFrame(columns=[*COLUMNS, "shard", "line"]).astype(COLUMNS | {"shard": "int64", "line": "int64"})
    return pd.concat(tables, ignore_index=True).drop_duplicates("path", keep="last", ignore_index=True)


def masks(shards: Sequence[Shard], rows: pd.DataFrame) -> list[np.ndarray]:
    """For each shard which of its files are in `rows`, rows of `files`."""
    starts = np.cumsum([0, *(len(shard.table) for shard in shards)])
    mask = np.zeros(starts[-1], bool)
    mask[starts[rows["shard"]] + rows["line"]] = True
    return np.split(mask, starts[1:-1])


def compact(folder: Path, shards: Sequence[Shard], rows: pd.DataFrame) -> list[Shard]:
    """Shards of the files in `rows`, rows of `files`, alone: those of a folder's `shards` that are small or hold others
    are written anew, none is removed.
    """
    loose = [
        (shard, mask)
        for shard, mask in zip(shards, masks(shards, rows), strict=True)
        if not mask.all() or max(len(mask), shard.offsets[-1]) < FULL // 2
    ]
    if len(loose) == 1 and loose[0][1].all():
        return list(shards)
    result = [shard for shard in shards if all(shard is not other for other, _ in loose)]
    parts: list[FileRows] = []
    for shard, mask in loose:
        part = Shard(folder, shard.name).part(mask)  # not to hold them all
        if parts and part.size + sum(one.size for one in parts) > FULL:
            result.append(write(folder, parts))
            parts = []
        if part.size:
            parts.append(part)
    if parts:
        result.append(write(folder, parts))
    return result
