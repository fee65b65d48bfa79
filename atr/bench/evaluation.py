"""Ranks and metrics of a test split: ours, the obvious loop, and the released one of Mei et al. 2022."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from atr.bench.harness import Case, ReleasedCode, timed
from atr.bench.released import definitions
from atr.metrics import retrieval

CAPTIONS = 5  # of a clip
SIZES = {"smoke": (20, 40)} | dict.fromkeys(("demo", "paper"), (105, 331, 1045, 3300, 10_000))
LARGEST_LOOP = 1045  # Clotho's test split: what the loops are given at most
DIM = 1024
METRICS = ("t2a_r1", "t2a_r5", "t2a_r10", "t2a_median_rank", "t2a_mean_rank")


def cases(scale: str, device: str, released: ReleasedCode) -> list[Case]:
    result = []
    for clips in SIZES[scale]:
        size = {"clips": clips, "dim": DIM if scale != "smoke" else 32}
        result.append(Case("evaluation", "atr", "evaluation.ours", size | {"device": device}))
        if clips <= LARGEST_LOOP:
            result.append(Case("evaluation", "one query at a time, sorted", "evaluation.loop", size))
            theirs = size | {"folder": str(released.mei2022)}
            missing = released.missing("mei2022")
            result.append(Case("evaluation", "released code", "evaluation.as_released", theirs, missing))
    return result


def random_embeddings(clips: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Text (captions, D), audio (clips, D) and each caption's clip: clips at random, captions around them, so that
    about half of them find theirs first.
    """
    generator = torch.Generator().manual_seed(0)
    audio = F.normalize(torch.randn(clips, dim, generator=generator), dim=1)
    clip_of = torch.arange(clips).repeat_interleave(CAPTIONS)
    noise = torch.randn(len(clip_of), dim, generator=generator) * 4 / dim**0.5
    return F.normalize(audio[clip_of] + 2 * noise, dim=1), audio, clip_of


def _scores(metrics: dict[str, float]) -> dict[str, float]:
    return {name: round(float(metrics[name]), 3) for name in METRICS}


def ours(clips: int, dim: int, device: str) -> dict[str, Any]:
    text, audio, clip_of = random_embeddings(clips, dim)
    text, audio = text.to(device), audio.to(device)
    seconds = timed(lambda: retrieval.retrieval_metrics((text, audio), clip_of), device)
    return seconds | {"scores": _scores(retrieval.retrieval_metrics((text, audio), clip_of))}


def loop(clips: int, dim: int) -> dict[str, Any]:
    """The obvious way: for each query the cosines to all candidates, sorted, and where the right one lies."""
    text, audio, clip_of = random_embeddings(clips, dim)
    best = np.zeros(len(text))

    def work() -> None:
        for row, query in enumerate(text):
            order = torch.argsort(audio @ query, descending=True)
            best[row] = 1 + int((order == clip_of[row]).nonzero())
        for row, query in enumerate(audio):
            order = clip_of[torch.argsort(text @ query, descending=True)]
            int((order == row).nonzero()[0])

    seconds = timed(work)
    recalls = {f"t2a_r{k}": 100 * float((best <= k).mean()) for k in (1, 5, 10)}
    middle = {"t2a_median_rank": float(np.floor(np.median(best))), "t2a_mean_rank": float(best.mean())}
    return seconds | {"scores": _scores(recalls | middle)}


def as_released(folder: str, clips: int, dim: int) -> dict[str, Any]:
    """`t2a` and `a2t` of `tools/utils.py`, given what `validate` of `trainer/trainer.py` gives them: arrays of
    float64 with one row per caption, a clip's embedding repeated for each.
    """
    from sentence_transformers import util

    scope = {"np": np, "torch": torch, "util": util}
    code = definitions(Path(folder) / "tools" / "utils.py", ("t2a", "a2t"), scope)
    text, audio, clip_of = random_embeddings(clips, dim)
    sounds, captions = audio[clip_of].double().numpy(), text.double().numpy()
    both: list[Any] = []

    def work() -> None:
        both[:] = [code["t2a"](sounds, captions), code["a2t"](sounds, captions)]

    seconds = timed(work)
    r1, r5, r10, _, median, mean = both[0]
    return seconds | {"scores": _scores(dict(zip(METRICS, (r1, r5, r10, median, mean), strict=True)))}
