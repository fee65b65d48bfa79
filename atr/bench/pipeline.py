"""How fast the store serves batches of waveforms, in random order."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from atr.bench.harness import Case, Released, timed
from atr.system import packed

RATE = 32_000
SIZES = {"smoke": ((2,), 4, 1.0), "demo": ((8, 32, 128), 256, 10.0), "paper": ((8, 32, 128), 256, 10.0)}


def cases(scale: str, device: str, released: Released) -> list[Case]:
    batches, clips, seconds = SIZES[scale]
    sizes = [{"batch": batch, "clips": clips, "seconds": seconds, "device": device} for batch in batches]
    return [Case("pipeline", "atr", "pipeline.served", size) for size in sizes]


def served(batch: int, clips: int, seconds: float, device: str) -> dict[str, Any]:
    """Batches padded, and on a GPU copied there; the files are in the system's memory by then, as after an epoch."""
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        samples = int(seconds * RATE)
        lengths = samples - generator.integers(samples // 10, size=clips)
        packed.pack(folder, (generator.integers(-9999, 9999, length, dtype=np.int16) for length in lengths))
        rows = packed.open_packed(folder)

        def epoch() -> None:
            order = generator.permutation(clips)
            for start in range(0, clips, batch):
                for tensor in rows.batch(order[start : start + batch]):
                    tensor.to(device, non_blocking=True)

        found = timed(epoch, device)
    return found | {"served": clips}
