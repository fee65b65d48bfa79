"""Embeddings that something else has made, read and looked at without PyTorch, which takes seconds to import."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

FILE = "embeddings.safetensors"
LISTS = {"audio": "clips.txt", "text": "captions.txt"}
SMALL, LARGE = 1e-9, 1e15  # largest entries of rows whose length is computed as it stands
APART = 1e-3  # of the largest entry, from which two embeddings are not the same but for rounding


class EmbeddingTable(NamedTuple):
    """Embeddings (rows, D) float32, and of each name on their list which row it is."""

    rows: np.ndarray
    places: dict[str, int]


def read(folder: Path) -> dict[str, EmbeddingTable]:
    """A folder's "audio" and "text".

    ValueError, FileNotFoundError: a file that is missing or damaged; rows that are not finite numbers, or not as many
    as their list says; a name with two embeddings; unlike widths.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: a file; give the folder that holds it, with {' and '.join(LISTS.values())}")
    arrays = _safetensors(folder / FILE) if (folder / FILE).is_file() else {side: _npy(folder, side) for side in LISTS}
    sides = {side: _read_side(folder, side, arrays[side]) for side in LISTS}
    widths = {side: one.rows.shape[1] for side, one in sides.items()}
    if widths["audio"] != widths["text"]:
        raise ValueError(f"{folder}: audio has {widths['audio']} dimensions, text {widths['text']}; give one space's")
    return sides


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import safe_open

    try:
        with safe_open(path, "np") as tensors:
            if lacking := set(LISTS) - set(tensors.keys()):
                names = ", ".join(sorted(tensors.keys())[:5]) or "nothing"
                raise ValueError(f"without {' and '.join(sorted(lacking))}, it holds {names}")
            if any(tensors.get_slice(side).get_dtype() == "BF16" for side in LISTS):  # which NumPy does not know
                from safetensors.torch import load_file

                return {side: tensor.float().numpy() for side, tensor in load_file(path).items() if side in LISTS}
            return {side: tensors.get_tensor(side) for side in LISTS}
    except Exception as error:  # a header that is none ends in any error
        raise ValueError(f"{path}: damaged, or without 'audio' and 'text' ({error}); write it again") from error


def _npy(folder: Path, side: str) -> np.ndarray:
    path = folder / f"{side}.npy"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; give audio.npy and text.npy, or {FILE}")
    try:
        array = np.load(path, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("an archive of several")
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path}: not an array of numbers ({error}); write it by numpy.save") from error
    return array


def _read_side(folder: Path, side: str, array: np.ndarray) -> EmbeddingTable:
    path, what = folder / LISTS[side], ""
    if array.dtype.kind not in "fiu":
        what = f"{side} of type {array.dtype}"
    elif array.ndim != 2 or array.shape[1] == 0:
        what = f"{side} of shape {array.shape}"
    else:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            lost = int((~np.isfinite(array).all(axis=1)).sum())
            what = f"{side} that is not finite in float32 in {lost:,} of {len(array):,} rows"
        largest = np.abs(array).max(axis=1, keepdims=True)
        if not what and ((largest > LARGE) | ((largest > 0) & (largest < SMALL))).any():  # their squares would not fit
            array = np.ldexp(array, -np.frexp(largest)[1])  # by powers of two: directions stay to the bit
    if what:
        raise ValueError(f"{folder}: {what}; give (rows, D) finite numbers")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; it says on a line for each row of {side} what it is of")
    try:
        lines = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")  # other line ends are in texts
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}); save it as that") from None
    lines = lines if lines != [""] else []
    if len(lines) != len(array):
        raise ValueError(f"{path}: {len(lines)} lines for {len(array)} rows of {side}; give a line for each row")
    places: dict[str, int] = {}
    for row, line in enumerate(lines):
        if (first := places.setdefault(line, row)) != row and not _alike(array[first], array[row]):
            raise ValueError(
                f"{path}: {line!r} is on lines {first + 1} and {row + 1}, with two embeddings; keep one of them"
            )
    return EmbeddingTable(array, places)


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one - other).max() <= APART * np.abs(one).max())
