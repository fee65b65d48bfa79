"""What a config says of a step and of an epoch, in numbers: the learning rate, and how good the epoch was."""

import math

from atr.config import RunConfig


def learning_rate(config: RunConfig, peak: float, step: int, steps_per_epoch: int) -> float:
    """The learning rate at optimiser step `step`, counted from 0, of a group whose peak is `peak`."""
    epoch = step / steps_per_epoch
    start = config.warmup_epochs
    if epoch < start:
        return peak * (epoch / start)
    if config.schedule == "step":
        return peak * config.step_factor ** (int(epoch) // config.step_epochs)
    if config.schedule == "cosine":
        end = config.cosine_epochs or config.epochs
        share = 0.5 * (1 + math.cos(math.pi * min(1.0, (epoch - start) / max(end - start, 1e-9))))
        return config.floor_rate + (peak - config.floor_rate) * share
    return peak


def selection_score(config: RunConfig, scores: dict[str, float], epoch: int) -> float:
    """What the best epoch has most of."""
    recalls = {way: sum(scores[f"{way}_r{k}"] for k in (1, 5, 10)) for way in ("t2a", "a2t")}
    return {
        "t2a_recall_sum": recalls["t2a"],
        "recall_sum": recalls["t2a"] + recalls["a2t"],
        "t2a_map10": scores["t2a_map10"],
        "last": float(epoch),
    }[config.select_by]
