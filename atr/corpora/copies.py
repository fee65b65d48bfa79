"""Recordings that are in a folder more than once: where a loader draws the splits, their copies stay in one.

Copies have the same bytes or sound the same: in another format, at another rate or level. Those are found in two steps.
The energies of 16 bands below 3.7 kHz in 64 equal parts of the file, relative to the loudest, differ by less than
LEVELS; and the waveforms correlate by more than ALIKE at some lag. Of the two million pairs of ESC-50's recordings four
pass the first step and one both, which is one sound under two numbers; the others correlate by less than 0.4. As MP3
and Vorbis of any quality, as Opus and at 8 kHz a recording differs by up to 0.16 from itself, and correlates by more
than 0.5, but for one in a hundred; not as Opus of 6 kbit/s.
"""

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
from tqdm.auto import tqdm

from atr.corpora import audio, containers, files
from atr.system import devices, hashes, store

COPIES_VERSION = 1
MOST = 30_000  # different files; among more only the same bytes are found, since every pair is compared
RATE = 16_000
SHORTEST = 0.1  # seconds; what is shorter has copies of its bytes alone
SECONDS = 30  # that are compared of what is longer
PARTS, FRAME, HOP = 64, 512, 256
BARK = (100, 200, 300, 400, 510, 630, 770, 920, 1080, 1270, 1480, 1720, 2000, 2320, 2700, 3150, 3700)  # edges in Hz
FLOOR = 1e-4  # of the largest energy
LEVELS = 0.2  # decades, root mean square
ALIKE = 0.5
BLOCK = 1_024


def groups(folder: Path, digests: Mapping[str, str]) -> tuple[dict[str, str], list[containers.AudioError]]:
    """For each file the first of its copies, itself where it is the first; and why files cannot be decoded, if any.

    digests: the SHA-256 of each file below the folder, in the order that decides which is first.
    """
    from scipy.cluster.hierarchy import DisjointSet  # half a second to import

    names: dict[str, str] = {}
    for name, digest in digests.items():
        names.setdefault(digest, name)
    errors: list[containers.AudioError] = []

    def build(target: Path) -> None:
        pairs = _pairs(folder, names, same, errors) if len(names) <= MOST else []
        if errors:
            raise errors[0]  # nothing is kept
        (target / "pairs.json").write_text(json.dumps(pairs))

    order = {digest: place for place, digest in enumerate(names)}
    same = DisjointSet(names)
    try:
        store_folder = store.cached_folder("copies", hashes.content_key(COPIES_VERSION, MOST, sorted(names)), build)
        for pair in json.loads((store_folder / "pairs.json").read_text()):
            same.merge(*pair)
    except containers.AudioError as error:
        errors = errors or [error]
    first: dict[str, str] = {}
    for copies in same.subsets():
        first |= dict.fromkeys(copies, min(copies, key=order.__getitem__))
    return {name: names[first[digest]] for name, digest in digests.items()}, errors


def in_words(first: Mapping[str, str]) -> str:
    """How many copies there are, in words to put behind others; none if there are none."""
    originals = [original for name, original in first.items() if name != original]
    many = f"; {len(originals)} copies ({len(set(originals))} recordings), each in the split of the first"
    return many if originals else ""


def _pairs(
    folder: Path, names: Mapping[str, str], same: Any, errors: list[containers.AudioError]
) -> list[tuple[str, str]]:
    """Digests of copies that differ in bytes, two at a time, as many as join them all in the disjoint set `same`; files
    that cannot be decoded go to `errors`.
    """

    def beginning(digest: str) -> tuple[float, np.ndarray]:
        waveform, rate = files.read(folder / names[digest], digest)
        return len(waveform) / rate, audio.resample(waveform[: SECONDS * rate], rate, RATE)

    def energies(digest: str) -> tuple[float, np.ndarray] | None:
        try:
            seconds, waveform = beginning(digest)
        except containers.AudioError as error:
            errors.append(error)
            return None
        return seconds, _energies(waveform)

    results = tqdm(devices.prefetch(energies, names), "looking for copies", len(names), disable=None, leave=False)
    described = [one for one in results if one]
    if errors or not described:
        return []
    again = lru_cache(maxsize=256)(beginning)
    digests, pairs = list(names), []
    seconds, table = (np.array(column) for column in zip(*described, strict=True))
    for pair in _candidates(seconds, table):
        one, other = (digests[place] for place in pair)
        if same.connected(one, other) or seconds[pair[0]] < SHORTEST:
            continue
        if _correlation(again(one)[1], again(other)[1]) > ALIKE:
            same.merge(one, other)
            pairs.append((one, other))
    return pairs


def _energies(waveform: np.ndarray) -> np.ndarray:
    """(bands * PARTS,) float32: decades of energy below the loudest, of a waveform (samples,) at RATE."""
    padded = np.pad(waveform, (0, max(0, FRAME - len(waveform))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FRAME)[::HOP]
    spectrum = np.abs(scipy.fft.rfft(frames * np.hanning(FRAME).astype(np.float32))) ** 2
    edges = np.searchsorted(np.fft.rfftfreq(FRAME, 1 / RATE), BARK)
    bands = np.add.reduceat(spectrum, edges, axis=1)[:, :-1].astype(np.float64)
    ends = np.linspace(0, len(bands), PARTS + 1)
    sums = np.pad(bands.cumsum(axis=0), ((1, 0), (0, 0)))
    parts = np.diff([np.interp(ends, np.arange(len(sums)), column) for column in sums.T])
    return np.log10(parts / max(parts.max(), 1e-30) + FLOOR).astype(np.float32).ravel()


def _candidates(seconds: np.ndarray, energies: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs of files of about one length whose energies differ by less than LEVELS."""
    order = np.argsort(seconds, kind="stable")
    seconds, energies = seconds[order], energies[order]
    squares = (energies**2).sum(axis=1)
    longest = np.searchsorted(seconds, 1.02 * seconds + 0.1, side="right")
    for start in range(0, len(order), BLOCK):
        stop = min(start + BLOCK, len(order))
        for column in range(start, longest[stop - 1], BLOCK):
            end = min(column + BLOCK, longest[stop - 1])
            products = energies[start:stop] @ energies[column:end].T
            distances = squares[start:stop, None] + squares[None, column:end] - 2 * products
            for row, other in np.argwhere(distances < LEVELS**2 * energies.shape[1]):
                one, other = start + row, column + other
                if one < other < longest[one]:
                    yield int(order[one]), int(order[other])


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """The largest of two waveforms' normalised cross-correlation, whatever its sign."""
    size = scipy.fft.next_fast_len(len(one) + len(other), real=True)
    product = scipy.fft.irfft(scipy.fft.rfft(one, size) * np.conj(scipy.fft.rfft(other, size)), size)
    return float(np.abs(product).max() / max(np.linalg.norm(one) * np.linalg.norm(other), 1e-9))
