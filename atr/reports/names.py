"""What columns, losses and data sets are called in tables and figures."""

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
LOSS_NAMES = {
    "triplet_sum": "Triplet-sum",
    "triplet_max": "Triplet-max",
    "triplet_weighted": "Triplet-weighted",
    "nt_xent": "NT-Xent",
    "sigmoid": "Sigmoid",
}
