"""Several models as one: their mean similarity.

The mean of the members' cosines is the cosine of their embeddings laid side by side, each made of unit length first. So
an ensemble is a pair of embeddings like any other, whatever dimensions its members have, and its similarity matrix need
never be held: `metrics.ranks` and `dcase.write` take some queries at a time.

Mei et al. 2022 (DCASE 2022 task 6b) submitted ensembles, but describe neither their members nor how these were
combined; the mean, over models that differ by seed, is our choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from atr.metrics import retrieval
from atr.metrics.retrieval import Ranks
from atr.training.records import Run


def join(members: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Embeddings whose cosine is the mean of the members' cosines: text (captions, sum of D), audio (clips, sum of D).

    members: text (captions, D), audio (clips, D) of each model; D is the model's own.
    ValueError: no member, members with different numbers of captions or clips, or one that is not finite.
    """
    pairs = [(F.normalize(text, dim=1), F.normalize(audio, dim=1)) for text, audio in members]
    if not pairs:
        raise ValueError("an ensemble of no models; give at least one")
    sizes = [(len(text), len(audio)) for text, audio in pairs]
    if len(set(sizes)) > 1:
        raise ValueError(f"members have {sizes} (captions, clips); embed the same captions and clips with each")
    for number, pair in enumerate(pairs, 1):
        if not all(part.isfinite().all() for part in pair):
            raise ValueError(f"member {number} of {len(pairs)} has embeddings that are not finite; leave it out")
    text, audio = (torch.cat(parts, dim=1) for parts in zip(*pairs, strict=True))
    return text, audio


def embeddings(runs: Sequence[Run]) -> tuple[Tensor, Tensor]:
    """`join` over the test embeddings of finished runs: text (captions, sum of D), audio (clips, sum of D).

    ValueError: no run, a text-aware one, or runs with different test clips, by name and order, or different relevance.
    """
    for run in runs:
        if "audio" not in run.embeddings:
            raise ValueError(
                f"run {run.address} pools each sound anew for each sentence, so that there is nothing to "
                "join; leave it out"
            )
    for run in runs[1:]:
        if run.test_clips != runs[0].test_clips:
            what = "test clips"
        elif not np.array_equal(run.embeddings["relevance"].numpy(), runs[0].embeddings["relevance"].numpy()):
            what = "relevance"
        else:
            continue
        raise ValueError(
            f"run {run.address} has other {what} than run {runs[0].address}; join runs of one corpus and one test split"
        )
    return join((run.embeddings["text"], run.embeddings["audio"]) for run in runs)


def ensemble(runs: Sequence[Run]) -> Ranks:
    """Ranks by the mean similarity of finished runs over their common test split; for `metrics.retrieval_metrics`.

    Raises what `embeddings` raises. Intervals: `statistics.crossed_interval(scores[None])`, scores (clips,) from
    `statistics.clip_scores` or `clip_precision`; they speak of the clips alone, as there is one ensemble.
    """
    return retrieval.ranks(embeddings(runs), runs[0].embeddings["relevance"])
