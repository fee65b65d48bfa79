"""What columns, losses and data sets are called in tables and figures."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from atr.losses.pair import LOSSES

RECALLS = ("t2a_r1", "t2a_r5", "t2a_r10", "a2t_r1", "a2t_r5", "a2t_r10")  # the papers'
# R@10 saturates where all sounds of a scene are told apart, so others lead.
MEASURES = ("t2a_r1", "t2a_map10", "t2a_r10", "a2t_r1", "a2t_map10", "a2t_r10")
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
EXTERNAL = ("t2a_r1", "t2a_r10", "t2a_map10")  # shown of a test on another corpus, its title in front
UNIFORMITY = tuple(HEADINGS)[-8:]  # as `uniformity.measures` names them
DIGITS = dict.fromkeys(UNIFORMITY, 2)  # after the point; 1 for all others
DATASETS = {"audiocaps": "AudioCaps", "clotho": "Clotho"}


def heading(column: str) -> str:
    title, metric = parts_of(column)
    return f"{title}: {HEADINGS[metric]}" if title else HEADINGS.get(column, column)


def parts_of(column: str) -> tuple[str, str]:
    """Title and metric of a column of a test on another corpus, such as people_t2a_r10; "" and the column of others."""
    metric = next((name for name in EXTERNAL if column.endswith(f"_{name}")), "")
    return (column.removesuffix(f"_{metric}"), metric) if metric and column not in HEADINGS else ("", column)


def measures(table: pd.DataFrame) -> tuple[str, ...]:
    """The columns that a table shows unless told: `MEASURES`, and those of tests on other corpora that it has."""
    return (*MEASURES, *(column for column in map(str, table.columns) if parts_of(column)[0]))


def display_title(registry: Mapping[str, Any], name: str) -> str:
    """What a registered loss or audio encoder is called: its own `title`, not one that it inherits, or else the name
    that it is registered under.
    """
    return vars(registry[name]).get("title", name) if name in registry else name


def loss_title(name: str) -> str:
    return display_title(LOSSES, name)
