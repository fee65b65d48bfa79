"""Where and with what something was made: machine, versions, commit."""

import importlib.metadata
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from atr import __version__
from atr.system import places

PACKAGES = ("torch", "torchaudio", "transformers", "lightning-fabric", "numpy", "pandas", "atr")


def environment(device: str, threads: int) -> dict[str, Any]:
    """What a result hangs on beside its config: machine, versions, commit."""
    return {
        "device": device,
        "threads": threads,
        "cores": os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "python": platform.python_version(),
        "versions": versions(),
        "commit": commit(),
    }


@cache
def processor() -> str:
    """Name of the CPU as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@cache
def versions() -> dict[str, str]:
    """Of the packages that numbers depend on, and of this one, whose distribution has another name."""
    return {name: __version__ if name == "atr" else importlib.metadata.version(name) for name in PACKAGES}


def commit() -> str | None:
    """Commit of the checkout that `atr` runs from, "+" appended if it was changed; None outside of one."""
    git = ["git", "-C", str(places.PROJECT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "--", "atr"], capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
