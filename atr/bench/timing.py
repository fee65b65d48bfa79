"""Seconds and memory of a piece of work."""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch


def timed(work: Callable[[], Any], device: str = "cpu", repeats: int = 5, least: float = 0.2) -> dict[str, float]:
    """Median, fastest and slowest seconds of `work`, over at least `repeats` runs and `least` seconds, fewer if they
    come to half a minute, after one to warm up. Work that takes a minute or more runs once, cold.
    """
    times = [_once(work, device)]
    if times[0] < 60:
        times = []
        while not times or (len(times) < repeats or sum(times) < least) and sum(times) < 30:
            times.append(_once(work, device))
    return {
        "seconds": statistics.median(times),
        "fastest": min(times),
        "slowest": max(times),
        "repeats": len(times),
    }


def _once(work: Callable[[], Any], device: str) -> float:
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_memory(device: str = "cpu") -> float:
    """GiB that this process has held at most, on a GPU the tensors there (`max_memory_allocated`)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2.0 ** (-30 if sys.platform == "darwin" else -20)
