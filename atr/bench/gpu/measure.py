"""All parts one after another, written anew after every row."""

import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from atr.bench import harness
from atr.bench.gpu import page
from atr.system import atomic
from atr.system.devices import resolve_device

# Dense products in bf16 with sums in float32, FLOPs a second, by the name that CUDA gives a card. Where a data sheet
# counts with sparsity, the half of it.
BF16_PEAKS = {
    "NVIDIA H200": 989.4e12,  # H200 data sheet: 1,979 with sparsity
    "NVIDIA H100 80GB HBM3": 989.4e12,  # H100 data sheet, SXM: 1,979 with sparsity; architecture paper: 989.4
    "NVIDIA H100 PCIe": 756e12,  # H100 data sheet, PCIe: 1,513 with sparsity; architecture paper: 756
    "NVIDIA A100-SXM4-80GB": 312e12,  # A100 data sheet; all of its forms have the same
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA L40S": 362.05e12,  # L40S data sheet: 362.05, and 733 with sparsity
    "NVIDIA L4": 121e12,  # L4 data sheet: 242 with sparsity
    "NVIDIA GeForce RTX 4090": 165.2e12,  # Ada architecture paper, appendix A: 165.2, and 330.4 with sparsity
    "NVIDIA GeForce RTX 3090": 71e12,  # GA102 architecture paper, table 9: 71, and 142 with sparsity
}


def run(folder: Path, smoke: bool = False, command: str = "", say: Callable[[str], Any] = print) -> dict[str, Any]:
    """Measure all parts, and write `gpu.json` and `gpu.md` into a folder after every row; `smoke`: in miniature, on the
    CPU, into `smoke.json` and `smoke.md`. Gives what was written. ValueError: there is no GPU.
    """
    if not smoke and not torch.cuda.is_available():
        raise ValueError("PyTorch sees no GPU here; every part in miniature, on the CPU: make gpu SMOKE=1")
    device = resolve_device("cpu" if smoke else "cuda")
    machine = harness.machine(device)
    content: dict[str, Any] = {
        "device": machine["device"],
        "bf16_peak": None if smoke else BF16_PEAKS.get(machine["device"]),
        "driver": "" if smoke else _driver(),
        "cuda": torch.version.cuda,
        "machine": machine,
        "command": command,
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "smoke": smoke,
        "seconds": 0.0,
        "parts": {},
    }
    began = time.monotonic()

    def write() -> None:
        content["seconds"] = round(time.monotonic() - began, 1)
        stem = folder / ("smoke" if smoke else "gpu")
        atomic.write_json(stem.with_suffix(".json"), content)
        atomic.write_text(stem.with_suffix(".md"), page.markdown(content))

    deadline = began
    for name, part in page.PARTS.items():
        now, deadline = time.monotonic(), deadline + part.seconds
        record: dict[str, Any] = {"title": part.title, "rows": []}
        content["parts"][name] = record
        try:
            for row in part.rows(content, deadline):
                record["rows"].append(row)
                say(f"{name}: {page.line(part, row)}")
                write()
        except Exception as error:
            record["error"] = f"{type(error).__name__}: {error}"
            say(f"{name}: {record['error']}")
        record["seconds"] = round(time.monotonic() - now, 1)
        write()
    return content


def failures(content: dict[str, Any]) -> list[str]:
    """What did not end as it should, a line each: tests, measurements and whole parts."""
    lines = []
    for name, record in content["parts"].items():
        lines += [f"{name}: {row['test']}: {row['outcome']}" for row in record["rows"] if row.get("failed")]
        lines += [f"{name}: {row['how']}: {row['error']}" for row in record["rows"] if "error" in row]
        lines += [f"{name}: {record['error']}"] if "error" in record else []
    return lines


def _driver() -> str:
    """Version of the card's driver, "" where nvidia-smi does not say."""
    try:
        ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(ask, capture_output=True, text=True, timeout=20).stdout.split("\n")[0].strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
