"""One evaluation of any model: ranks in both directions, metrics with their intervals, and files to share."""

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from atr.corpora.corpus import Corpus
from atr.evaluation.models import Model
from atr.evaluation.protocols import Protocol
from atr.metrics import retrieval
from atr.metrics.retrieval import Direction, Ranks, Relevance
from atr.system import atomic, environment

CUTS, PRECISIONS, DEEP = (1, 5, 10), (10, 16), 100  # DEEP: candidates a query in a TREC run
DIRECTIONS: tuple[Direction, Direction] = ("t2a", "a2t")
TITLES = {"t2a": "text to audio", "a2t": "audio to text"}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model came to under a protocol.

    own: (queries,) the clip that each query was made from; similarity: (queries, clips), or the embeddings of both
    where it is their cosine; missing: clips that the protocol names and that are not here.
    """

    model: str
    fingerprint: str
    protocol: Protocol
    clips: list[str]
    queries: list[str]
    own: np.ndarray
    relevance: Relevance
    similarity: Tensor | tuple[Tensor, Tensor]
    windows: str | None = None
    missing: tuple[str, ...] = ()

    @cached_property
    def ranks(self) -> Ranks:
        return retrieval.ranks(self.similarity, self.relevance)

    @property
    def whole(self) -> bool:
        """Whether all clips and queries of the protocol are there, so that published numbers compare."""
        expected = (self.protocol.clips, self.protocol.queries)
        return not self.missing and expected == (len(self.clips), len(self.queries))

    @property
    def coverage(self) -> str:
        """What of the protocol is here, in words."""
        of_clips, of_queries = (f" of {n:,}" if n else "" for n in (self.protocol.clips, self.protocol.queries))
        said = f"{len(self.clips):,}{of_clips} clips, {len(self.queries):,}{of_queries} queries"
        if self.missing:
            said += f"; missing {', '.join(self.missing[:3])}{', …' if len(self.missing) > 3 else ''}"
        return said + ("" if self.whole or not of_clips else "; not all of it, so published numbers do not compare")

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per direction and metric: value, and low and high of its 95 % interval over clips."""
        rows = []
        for way in DIRECTIONS:
            found = getattr(self.ranks, way)
            asked = found[:, 0] > 0
            group = self.own if way == "t2a" else np.arange(len(self.clips))
            values = {f"R@{k}": 100.0 * (found[:, 0] <= k) for k in CUTS}
            count = np.maximum((found > 0).sum(1), 1)
            values |= {f"mAP@{k}": 100 * retrieval.precision_sums(found, k) / count for k in PRECISIONS}
            for metric, scores in values.items():
                rows.append((TITLES[way], metric, *_interval(scores[asked], group[asked])))
            median = float(np.floor(np.median(found[asked, 0])))
            rows.append((TITLES[way], "median rank", median, np.nan, np.nan))
        return pd.DataFrame(rows, columns=["direction", "metric", "value", "low", "high"])

    @property
    def readable(self) -> pd.DataFrame:
        """One row per metric, a column per direction: `value (low to high)`."""
        told = [
            f"{value:.1f} ({low:.1f} to {high:.1f})" if np.isfinite(low) else f"{value:.0f}"
            for value, low, high in self.table[["value", "low", "high"]].itertuples(index=False)
        ]
        wide = self.table.assign(told=told).pivot(index="metric", columns="direction", values="told")
        return wide.loc[self.table["metric"].unique(), list(TITLES.values())].reset_index().rename_axis(columns=None)

    def report(self) -> dict[str, Any]:
        """All but the ranks, in plain JSON types."""
        stated = {field.name: getattr(self.protocol, field.name) for field in fields(self.protocol)}
        protocol = {name: value for name, value in stated.items() if name != "folder" and value not in (None, ())}
        told = self.table.astype(object).where(self.table.notna(), None)
        return {
            "model": {"name": self.model, "fingerprint": self.fingerprint, "windows": self.windows},
            "protocol": protocol | {"corpus": dict(self.protocol.corpus), "hash": self.protocol.hash},
            "clips": len(self.clips),
            "queries": len(self.queries),
            "missing clips": list(self.missing),
            "comparable with published numbers": self.whole,
            "metrics": told.to_dict("records"),
            "made with": environment.environment("cpu", torch.get_num_threads()),
        }

    def save(self, folder: Path) -> Path:
        """Write `<protocol>.json`, `.ranks.parquet` (one row per query of a direction) and, as trec_eval reads them,
        `.t2a.run`, `.t2a.qrels`, `.a2t.run` and `.a2t.qrels`; gives the first. In the last four a query's identifier is
        its number from 1 on, and a clip's its name, percent-encoded.
        """
        base = self.protocol.name
        atomic.write_atomic(
            folder / f"{base}.ranks.parquet", lambda path: self.by_query().to_parquet(path, index=False)
        )
        names = {
            "t2a": [quote(clip, safe="") for clip in self.clips],
            "a2t": [str(n + 1) for n in range(len(self.own))],
        }
        captions, clips = retrieval.relevant_pairs(self.relevance, (len(self.queries), len(self.clips)))
        pairs = {"t2a": (captions, clips), "a2t": (clips, captions)}
        for way, other in (("t2a", "a2t"), ("a2t", "t2a")):
            asked, answers = pairs[way]
            qrels = [f"{names[other][q]} 0 {names[way][a]} 1\n" for q, a in zip(asked, answers, strict=True)]
            atomic.write_atomic(folder / f"{base}.{way}.qrels", _writing(qrels))
            atomic.write_atomic(folder / f"{base}.{way}.run", _writing(self._run(way, names[other], names[way])))
        atomic.write_json(folder / f"{base}.json", self.report())
        return folder / f"{base}.json"

    def by_query(self) -> pd.DataFrame:
        """One row per query of each direction: direction, query, clip (its own), rank of its best answer."""
        parts = []
        for way in DIRECTIONS:
            best = self.ranks.best(way)
            own = [self.clips[clip] for clip in self.own] if way == "t2a" else self.clips
            asked = self.queries if way == "t2a" else self.clips
            part = pd.DataFrame({"direction": TITLES[way], "query": asked, "clip": own, "rank": best})
            parts.append(part[part["rank"] > 0])
        return pd.concat(parts, ignore_index=True)

    def _run(self, way: str, asked: list[str], answers: list[str]) -> list[str]:
        """Lines of a TREC run: the DEEP best candidates of each query."""
        lines = []
        for start in range(0, len(asked), 256):
            scores = self._scores(way, slice(start, start + 256))
            best = scores.topk(min(DEEP, scores.shape[1]))
            for row, (values, places) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
                for rank, (value, place) in enumerate(zip(values, places, strict=True), 1):
                    lines.append(f"{asked[start + row]} Q0 {answers[place]} {rank} {value:.8g} {self.model}\n")
        return lines

    def _scores(self, way: str, rows: slice) -> Tensor:
        if isinstance(self.similarity, Tensor):
            return (self.similarity if way == "t2a" else self.similarity.T)[rows]
        text, audio = (F.normalize(side, dim=1) for side in self.similarity)
        return text[rows] @ audio.T if way == "t2a" else audio[rows] @ text.T


def evaluate(
    model: Model, protocol: Protocol, part: Corpus, windows: str | None = None, quiet: bool = True
) -> Evaluation:
    """A model under a protocol, on the clips that `protocol.load` found.

    ValueError: embeddings that are not finite; errors of the model.
    """
    queries, own, relevance = protocol.ask(part)
    text, audio = model.sentences(queries), model.sounds(part, quiet)
    for side, rows in (("text", text), ("audio", audio)):
        if not rows.isfinite().all():
            raise ValueError(f"{model.name}: its {side} embeddings are not finite; its weights may be damaged")
    similarity = model.similarity(text, audio)
    clips = part.clips["clip"].tolist()
    missing = tuple(protocol.missing(part))
    return Evaluation(
        model.name, model.fingerprint, protocol, clips, queries, own, relevance, similarity, windows, missing
    )


def _interval(scores: np.ndarray, groups: np.ndarray, draws: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Mean of scores (queries,), and its 95 % percentile interval, the clips (`groups`) resampled with replacement."""
    _, place = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(place, scores), np.bincount(place)
    rng, means = np.random.default_rng(seed), []
    size = max(1, 2**22 // len(sums))
    for start in range(0, draws, size):
        drawn = rng.integers(len(sums), size=(min(size, draws - start), len(sums)))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return float(scores.mean()), float(low), float(high)


def _writing(lines: list[str]) -> Any:
    return lambda path: path.write_text("".join(lines), encoding="utf-8")
