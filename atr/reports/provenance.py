"""Where numbers come from, and a hash of the runs that they rest on."""

import os
from collections.abc import Iterable
from typing import Any

import torch

from atr.system import hashes
from atr.system.credentials import without_credentials
from atr.training.origin import RECORDED, RESULT_VERSION, environment
from atr.training.records import Run


def content(runs: Iterable[Run]) -> str:
    """A hash of what finished runs came to, in any order."""
    names = ("metrics.json", "history.csv", "embeddings.safetensors")
    return hashes.content_key(
        sorted([run.address, *(run._read(name, hashes.file_hash) for name in names)] for run in runs)
    )


def provenance(runs: Iterable[Run]) -> dict[str, Any]:
    """Where numbers come from: addresses of the runs, devices, versions and commits, and a note in words; without runs,
    of what computes here and now. hashes: of what the runs were, and of the code of the notebook that `atr study` runs.
    """
    runs = list({run.address: run for run in runs}.values())
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    made = [run.environment for run in runs] or [environment(here, torch.get_num_threads())]
    devices = sorted({f"{one['device']}, {one['platform']}" for one in made})
    versions = {name: sorted({one["versions"][name] for one in made}) for name in RECORDED}
    hours = sum(one["seconds"] for one in made) / 3600 if runs else 0.0
    said = f"{len(runs)} runs, {hours:.2f} h in sum; " if runs else ""
    note = f"{said}{'; '.join(devices)}; PyTorch {', '.join(versions['torch'])}."
    commits = sorted({one["commit"] for one in made if one["commit"]})
    return {
        "note": note,
        "runs": [run.address for run in runs],
        "devices": devices,
        "versions": versions,
        "commits": commits,
        "result_version": RESULT_VERSION,
        "command": without_credentials(os.environ.get("ATR_COMMAND", "")),
        "hashes": {"runs": content(runs), "notebook": os.environ.get("ATR_NOTEBOOK", "")},
    }
