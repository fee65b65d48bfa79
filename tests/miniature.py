"""Every `paper` grid with two steps a run and the smallest PANNs, over files of the true layout that tests make."""

from dataclasses import replace

from atr.experiments.profiles import PROFILES
from atr.experiments.recipes import MEI2022, THESIS_RECIPES

MINIATURE = replace(
    PROFILES["paper"],
    name="miniature",
    base=MEI2022 | {"audio_weights": "miniature", "audio_encoder": "cnn6"},
    cnns=("cnn6", "cnn10"),
    seeds=(0,),
    epochs={"frozen": 1, "finetuned": 1},
    batch_sizes={"AudioCaps": 4, "Clotho": 4},
    submission={"name": "clotho", "hold_out": 2},
    thesis_recipes={
        name: {**recipe, "PaSST": {}, "ATST": {}, "batch_size": 4, "epochs": 1, "precision": precision}
        # bf16 once: CPUs that lack it convolve thirty times as slowly
        for (name, recipe), precision in zip(THESIS_RECIPES.items(), ("bf16", "32"), strict=True)
    },
    quick=True,
)


def register():
    PROFILES[MINIATURE.name] = MINIATURE
