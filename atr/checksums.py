"""Checksums of a file's blocks: bits that flipped on disk are noticed, by reading all of it or a sample."""

import random
import zlib
from functools import partial
from os import SEEK_END
from pathlib import Path

BLOCK = 1 << 20  # bytes
SAMPLE = 64  # blocks


def blocks(path: Path) -> list[int]:
    """A file's size in bytes and the CRC-32 of each of its blocks."""
    with open(path, "rb") as file:
        sums = [zlib.crc32(block) for block in iter(partial(file.read, BLOCK), b"")]
        return [file.tell(), *sums]


def check(path: Path, known: list[int], sample: bool = False, rest: int = 0) -> None:
    """ValueError: the file is not what `blocks` gave, with `rest` bytes behind it. OSError: it cannot be read.

    sample: of a large file read the first block and SAMPLE others, other ones each time.
    """
    size, *sums = known
    places = range(len(sums))
    with open(path, "rb") as file:
        if (there := file.seek(0, SEEK_END)) != size + rest:
            raise ValueError(f"{there:,} bytes instead of {size + rest:,}")
        for place in [0, *random.sample(places[1:], SAMPLE)] if sample and len(sums) > SAMPLE + 1 else places:
            file.seek(place * BLOCK)
            block = file.read(min(BLOCK, size - place * BLOCK))
            if zlib.crc32(block) != sums[place]:
                raise ValueError(f"other bytes than were written, from byte {place * BLOCK:,} on")
