"""What columns, losses and data sets are called in tables and figures."""

from collections.abc import Mapping
from typing import Any

from atr.losses.pair import LOSSES

RECALLS = ("t2a_r1", "t2a_r5", "t2a_r10", "a2t_r1", "a2t_r5", "a2t_r10")
HEADINGS = {
    **{f"t2a_r{k}": f"T→A R@{k}" for k in (1, 5, 10)},
    **{f"a2t_r{k}": f"A→T R@{k}" for k in (1, 5, 10)},
    "t2a_map10": "T→A mAP@10",
    "a2t_map10": "A→T mAP@10",
    "validation_t2a_r10": "validation T→A R@10",
    **{f"{name}_sigma": f"σ, {name}" for name in ("audio", "text")},
    **{f"{name}_h": f"h, {name}" for name in ("audio", "text")},
    **{f"{name}_uniformity": f"uniformity, {name}" for name in ("audio", "text")},
    "alignment": "alignment",
    "modality_gap": "modality gap",
}
UNIFORMITY = tuple(HEADINGS)[-8:]  # as `uniformity.measures` names them
DIGITS = dict.fromkeys(UNIFORMITY, 2)  # after the point; 1 for all others
DATASETS = {"audiocaps": "AudioCaps", "clotho": "Clotho"}


def heading(column: str) -> str:
    return HEADINGS.get(column, column)


def display_title(registry: Mapping[str, Any], name: str) -> str:
    """What a registered loss or audio encoder is called: its own `title`, not one that it inherits, or else the name
    that it is registered under.
    """
    return vars(registry[name]).get("title", name) if name in registry else name


def loss_title(name: str) -> str:
    return display_title(LOSSES, name)
