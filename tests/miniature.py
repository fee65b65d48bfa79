"""Profiles `paper` and `esc50` with a step or two a run, over files of the true layout that tests make."""

import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch

import atr
from atr.encoders.audio.panns import ConvBlock, Panns
from atr.experiments import study
from atr.experiments.profiles import MIXTURE, PROFILES, scenes
from atr.experiments.recipes import MEI2022, THESIS_RECIPES

MINIATURE = replace(
    PROFILES["paper"],
    name="miniature",
    base=MEI2022 | {"audio_weights": "miniature", "audio_encoder": "narrow6"},
    cnns=("narrow6", "narrow10"),
    seeds=(0,),
    epochs={"frozen": 1, "finetuned": 1},
    batch_sizes={"AudioCaps": 4, "Clotho": 4},
    submission={"name": "clotho", "hold_out": 2},
    thesis_recipes={
        name: {**recipe, "PaSST": {}, "ATST": {}, "batch_size": 4, "epochs": 1, "precision": precision}
        # bf16 once: CPUs that lack it convolve thirty times as slowly
        for (name, recipe), precision in zip(THESIS_RECIPES.items(), ("bf16", "32"), strict=True)
    },
    tries=(0,),
    quick=True,
)
FEW = MIXTURE | scenes(24, 8, 12, "clipfolder") | {"duration": 4.0}
RECORDINGS = replace(
    PROFILES["esc50"],
    name="recordings",
    corpora={"recordings": FEW},
    base=PROFILES["esc50"].base | {"audio_weights": "miniature", "embedding_dim": 16},
    seeds=(0,),
    epochs={"frozen": 1, "finetuned": 1},
    source=scenes(24, 8, 12) | {"duration": 4.0},
    submission={**FEW, "test": 0, "hold_out": 4},
    external={},
    tries=(0,),
    quick=True,
)


WIDTHS = (4, 8, 16, 32)  # of CNN6's and CNN10's 64, 128, 256, 512
SIZES = {"narrow6": 5, "narrow10": 3}


def narrow(name, augment=None, dropout=None, frequency="mean"):
    """CNN6 or CNN10 of few channels."""
    blocks = {
        f"conv_block{number}": ConvBlock(*widths, 0.2 if dropout is None else dropout, SIZES[name], True)
        for number, widths in enumerate(pairwise((1, *WIDTHS)), 1)
    }
    return Panns(blocks, WIDTHS[-1], augment, frequency)


def register():
    """The profiles, and their encoders, in worker processes too."""
    PROFILES.update({profile.name: profile for profile in (MINIATURE, RECORDINGS)})
    atr.extend(Path(__file__).parent / "narrow.py")


def checkpoints(folder):
    """Files of random weights as PANNs publishes its own."""
    for name in SIZES:
        torch.manual_seed(0)
        torch.save({"iteration": 1, "model": narrow(name).state_dict()}, folder / f"{name}.pth")


# One process for all notebooks, which imports PyTorch once; test_notebooks.py has them in kernels of their own.
ONE_AFTER_ANOTHER = """
import sys
import miniature
import nbformat
from IPython.core.interactiveshell import InteractiveShell

miniature.register()
shell = InteractiveShell.instance()
for path in sys.argv[2:]:
    print(path, flush=True)
    shell.reset()
    shell.user_module.__spec__ = None  # which processes that are started look for
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            shell.run_cell(cell.source).raise_error()
        if "parameters" in cell.metadata.get("tags", []):
            shell.user_ns.update(profile_name=sys.argv[1], device="cpu")
"""


def run_notebooks(profile, numbers, results, **variables):
    """Notebooks, by a profile of here, with environment variables; AssertionError: one fails."""
    environment = os.environ | {
        "ATR_RESULTS": str(results),
        "IPYTHONDIR": str(results / "ipython"),
        "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]),
    }
    paths = study.notebooks(numbers)
    command = [sys.executable, "-c", ONE_AFTER_ANOTHER, profile, *map(str, paths)]
    done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
