"""Every `paper` grid with two steps a run and narrow PANNs, over files of the true layout that tests make."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch

import atr
from atr.encoders.audio.panns import ConvBlock, Panns
from atr.experiments.profiles import PROFILES
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
    """The profile, and its encoders, in worker processes too."""
    PROFILES[MINIATURE.name] = MINIATURE
    atr.extend(Path(__file__).parent / "narrow.py")


def checkpoints(folder):
    """Files of random weights as PANNs publishes its own."""
    for name in SIZES:
        torch.manual_seed(0)
        torch.save({"iteration": 1, "model": narrow(name).state_dict()}, folder / f"{name}.pth")
