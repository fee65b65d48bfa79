"""The order in which an epoch visits (clip, caption) pairs."""

import numpy as np
import torch
from torch import Tensor

from atr.mining import mine

SAMPLERS = ("caption_per_clip", "all_captions")


def epoch_batches(
    clip_of_caption: np.ndarray,
    batch_size: int,
    sampler: str,
    seed: int,
    epoch: int,
    drop_last: bool = True,
    mining: str | None = None,
    embeddings: Tensor | None = None,
) -> list[np.ndarray]:
    """Batches of caption indices for one epoch, a pure function of its arguments.

    clip_of_caption: (captions,) clip index of each caption. "caption_per_clip" visits every clip once with one of its
    captions drawn at random; "all_captions" visits every pair (Mei et al. 2022). The last incomplete batch is dropped
    unless it is the only one or `drop_last` is False.

    mining: "easy", "random" or "hard" puts the epoch's pairs into batches by `mining.mine`, so that no batch holds a
    clip twice, keeps them all, and visits them in random order, since those built last are leftovers.
    embeddings: (captions, D) ancillary embeddings, needed for "easy" and "hard".
    """
    generator = np.random.default_rng([seed, epoch, 1])
    if sampler == "all_captions":
        order = generator.permutation(len(clip_of_caption))
    elif sampler == "caption_per_clip":
        shuffled = generator.permutation(len(clip_of_caption))
        _, first = np.unique(clip_of_caption[shuffled], return_index=True)
        order = generator.permutation(shuffled[first])
    else:
        raise ValueError(f"sampler: unknown {sampler!r}; known: {', '.join(SAMPLERS)}")
    if mining is not None:
        if embeddings is None and mining != "random":
            raise ValueError(f"mining {mining!r} needs the embeddings to mine by")
        rows = torch.zeros(len(order), 1) if embeddings is None else embeddings[torch.from_numpy(order)]
        mined = mine(rows, clip_of_caption[order], batch_size, mining, (seed, epoch, 2))
        places = np.random.default_rng([seed, epoch, 3]).permutation(len(mined))
        return [order[mined[place]] for place in places]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if drop_last and len(batches) > 1 and len(batches[-1]) < batch_size:
        batches.pop()
    return batches
