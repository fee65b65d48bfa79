"""Hashes of contents, and checksums of a file's blocks, by which bits that flipped on disk are noticed."""

import hashlib
import json
import random
import zlib
from functools import partial
from os import SEEK_END
from pathlib import Path
from typing import Any

BLOCK = 1 << 20  # bytes
SAMPLE = 64  # blocks


def blocks(path: Path) -> list[int]:
    """A file's size in bytes and the CRC-32 of each of its blocks."""
    with open(path, "rb") as file:
        sums = [zlib.crc32(block) for block in iter(partial(file.read, BLOCK), b"")]
        return [file.tell(), *sums]


def check(path: Path, record: list[int], sample: bool = False, rest: int = 0) -> None:
    """ValueError: the file is not what `blocks` gave, with `rest` bytes behind it. OSError: it cannot be read.

    sample: of a large file read the first block and SAMPLE others, other ones each time.
    """
    size, *sums = record
    places = range(len(sums))
    with open(path, "rb") as file:
        if (there := file.seek(0, SEEK_END)) != size + rest:
            raise ValueError(f"{there:,} bytes instead of {size + rest:,}")
        for place in [0, *random.sample(places[1:], SAMPLE)] if sample and len(sums) > SAMPLE + 1 else places:
            file.seek(place * BLOCK)
            block = file.read(min(BLOCK, size - place * BLOCK))
            if zlib.crc32(block) != sums[place]:
                raise ValueError(f"other bytes than were written, from byte {place * BLOCK:,} on")


def content_key(*parts: Any) -> str:
    """24 hexadecimal digits that name JSON-serialisable `parts` by their content."""
    return sha256(json.dumps(parts, sort_keys=True))[:24]


def sha256(content: str | bytes) -> str:
    """SHA-256 of bytes, or of a text in UTF-8, in hexadecimal."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def file_sha256(path: Path, size: int | None = None) -> str:
    """SHA-256 of a file's bytes, or of so many at its beginning, read now."""
    with open(path, "rb") as file:
        if size is None:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        for start in range(0, size, BLOCK):
            digest.update(file.read(min(BLOCK, size - start)))
        return digest.hexdigest()


file_hashes: dict[tuple[str, int, int], str] = {}  # (path, size, time of change) → SHA-256; workers are sent it


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, computed once while its size and time of change stay the same."""
    state = path.stat()
    key = (str(path), state.st_size, state.st_mtime_ns)
    if key not in file_hashes:
        file_hashes[key] = file_sha256(path)
    return file_hashes[key]
