"""What a run came to on its test split, and on other corpora: metrics, embeddings, ranks, and checks of them.

In the functions below `run` is an `atr.Run`, whose files `atr.training.records` reads with what stands here.
"""

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atr.corpora.corpus import Corpus
from atr.metrics.retrieval import Ranks, relevant_pairs, retrieval_metrics
from atr.system import atomic, hashes

SCORES = {
    f"{way}_{name}" for way in ("t2a", "a2t") for name in ("r1", "r5", "r10", "map10", "median_rank", "mean_rank")
}


@dataclass(frozen=True)
class ExternalTest:
    """What a finished run came to on another corpus: ranks, and relevance as in `Corpus`."""

    ranks: Ranks
    relevance: np.ndarray

    @cached_property
    def metrics(self) -> dict[str, float]:
        """As `Run.metrics`."""
        return retrieval_metrics(self.ranks)


def read_external(path: Path) -> ExternalTest:
    """What `write_external` wrote. ValueError, OSError, KeyError: it is not there, or not as it was written."""
    content, about = path.with_suffix(".npz").read_bytes(), atomic.read_object(path)
    if about.pop("sha256", "") != _digest(about, content):
        raise ValueError(f"it or {path.with_suffix('.npz').name} is not as it was written")
    arrays = np.load(io.BytesIO(content))
    return ExternalTest(Ranks(arrays["t2a"], arrays["a2t"]), arrays["relevance"])


def write_external(path: Path, test: ExternalTest, about: dict[str, Any]) -> None:
    """Write a test on another corpus: its metrics and what `about` says as JSON, its ranks beside that as .npz."""
    buffer = io.BytesIO()
    np.savez(buffer, t2a=test.ranks.t2a, a2t=test.ranks.a2t, relevance=test.relevance)
    content = buffer.getvalue()
    atomic.write_atomic(path.with_suffix(".npz"), lambda temporary: temporary.write_bytes(content))
    about = about | {"test": test.metrics}
    atomic.write_json(path, about | {"sha256": _digest(about, content)})


def _digest(about: dict[str, Any], ranks: bytes) -> str:
    """Of a test on another corpus: the two files that hold it."""
    return hashes.sha256(hashes.content_key(about) + hashes.sha256(ranks))


def check_kinds(record: dict[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The record. ValueError: a field of `kinds` is missing, or of another type; a bool is of none."""
    for name, kind in kinds.items():
        if not isinstance(record.get(name, ...), kind) or isinstance(record[name], bool):
            raise ValueError(f"{name}: {'of another type' if name in record else 'missing'}")
    return record


def check_metrics(record: dict[str, Any]) -> dict[str, Any]:
    """Results with all of their metrics, which are finite."""
    stages = record.get("stages", [])
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise ValueError("stages: not a list of objects")
    for part in (record, *stages):
        check_kinds(part, {"test": dict, "validation": dict, "best_epoch": int})
        for scores in (part["test"], part["validation"]):
            check_kinds(scores, dict.fromkeys(SCORES | set(scores), (int, float)))
            if not all(map(math.isfinite, scores.values())):
                raise ValueError("a metric is not finite")
    return record


def check_embeddings(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of `Run.embeddings` whose types and shapes agree."""
    other = "similarity" if "similarity" in tensors else "audio"
    missing = {"text", other, "relevance", "t2a", "a2t"} - set(tensors)
    if missing:
        raise ValueError(f"{', '.join(sorted(missing))}: missing")
    text, audio, t2a, a2t = (tensors[name] for name in ("text", other, "t2a", "a2t"))
    captions, clips = len(text), len(a2t)
    for name in ("text", other, "t2a", "a2t"):
        tensor = tensors[name]
        if tensor.ndim != 2 or tensor.dtype != (torch.int64 if name in ("t2a", "a2t") else torch.float32):
            raise ValueError(f"{name}: {tensor.dtype} of shape {tuple(tensor.shape)}")
    fitting = (captions, clips) if other == "similarity" else (clips, text.shape[1])
    if tuple(audio.shape) != fitting or len(t2a) != captions:
        raise ValueError("shapes do not agree")
    if not all(ranks.numel() and ranks.min() >= 0 for ranks in (t2a, a2t)):
        raise ValueError("a rank is missing or negative")
    if not (text.isfinite().all() and audio.isfinite().all()):
        raise ValueError("a number is not finite")
    relevant_pairs(tensors["relevance"], (captions, clips))
    return tensors


def pairs(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """`Run.pairs`, of `Run.embeddings`."""
    audio, text = tensors["audio"], tensors["text"]
    captions, clips = relevant_pairs(tensors["relevance"], (len(text), len(audio)))
    free, rows = np.ones(len(text), bool), []
    for clip in range(len(audio)):
        own = captions[clips == clip]
        rows.append(own[free[own].argmax()])  # its first, if none is free
        free[rows[-1]] = False
    return audio, text[torch.from_numpy(np.array(rows))]


def space(run: Any) -> tuple[Tensor, Tensor]:
    """Audio (clips, dim) and text (captions, dim) of the test split. ValueError: a run with text-aware pooling."""
    tensors = run.embeddings
    if "audio" not in tensors:
        raise ValueError(
            f"{run.path}: with text-aware pooling a clip has an embedding for each caption, and no place of its own; "
            "choose a run without"
        )
    return tensors["audio"], tensors["text"]


def test_split(run: Any, corpus: Corpus) -> Corpus:
    """The split that a finished run was tested on; validation where it had no test clips. corpus: what it was trained
    on. ValueError: it is another.
    """
    theirs, part = run.test_clips, corpus.split(run.tested_split)
    if part.clips["clip"].tolist() != theirs or len(part.captions) != len(run.embeddings["text"]):
        raise ValueError(
            f"{run.path}: embeddings of {len(theirs)} clips and {len(run.embeddings['text'])} captions; the corpus has "
            f"{len(part)} and {len(part.captions)}, or others; load what run.config.corpus names, or train again"
        )
    return part
