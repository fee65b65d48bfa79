"""One evaluation of any model: ranks in both directions, metrics with their intervals, and files to share."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from atr.corpora.corpus import Corpus
from atr.evaluation import doctor, models, zeroshot
from atr.evaluation.models import Model
from atr.evaluation.naming import RANKS
from atr.evaluation.protocols import OWN, Protocol
from atr.experiments.profiles import Profile
from atr.metrics import retrieval, statistics
from atr.metrics.retrieval import Direction, Ranks, Relevance
from atr.system import atomic, environment

DEEP = 100  # candidates a query in a TREC run
DIRECTIONS: tuple[Direction, Direction] = ("t2a", "a2t")
TITLES = {"t2a": "text to audio", "a2t": "audio to text"}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model came to under a protocol.

    own: (queries,) the clip that each query was made from; similarity: (queries, clips), or the embeddings of both
    where it is their cosine; missing: clips that the protocol names and that are not here; notes: as `doctor.examine`
    says it; seed: of the parts of sounds, where one was asked for.
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
    notes: tuple[str, ...] = ()
    seed: int | None = None

    @cached_property
    def ranks(self) -> Ranks:
        return retrieval.ranks(self.similarity, self.relevance)

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Both, but of classes, which are asked of sounds alone."""
        return ("a2t",) if self.protocol.template else DIRECTIONS

    @property
    def whole(self) -> bool:
        """Whether all clips and queries of the protocol are there, and heard as it says: published numbers compare."""
        expected = (self.protocol.clips, self.protocol.queries)
        return not self.missing and not self.otherwise and expected == (len(self.clips), len(self.queries))

    @property
    def otherwise(self) -> bool:
        """Whether longer sounds were heard in another way than the protocol says."""
        return self.windows not in (None, self.protocol.windows)

    @property
    def coverage(self) -> str:
        """What of the protocol is here, in words."""
        of_clips, of_queries = (f" of {n:,}" if n else "" for n in (self.protocol.clips, self.protocol.queries))
        words = f"{len(self.clips):,}{of_clips} clips, {len(self.queries):,}{of_queries} queries"
        if self.missing:
            words += f"; missing {', '.join(self.missing[:3])}{', …' if len(self.missing) > 3 else ''}"
        why = f"heard by --windows {self.windows}" if self.otherwise else "not all of it"
        return words + ("" if self.whole or not of_clips else f"; {why}, so published numbers do not compare")

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per direction and metric: value, and low and high of its 95 % interval over clips, of classes over
        recordings with all of their takes.
        """
        rows, classes = [], self.protocol.template is not None
        names = np.array([zeroshot.recording(clip) for clip in self.clips] if classes else self.clips)

        def add(way: Direction, metric: str, scores: np.ndarray, groups: np.ndarray) -> None:
            interval = statistics.grouped_bootstrap(scores, groups)
            rows.append((TITLES[way], metric, interval.mean, interval.low, interval.high))

        for way in self.directions:
            ranks = getattr(self.ranks, way)
            answerable = ranks[:, 0] > 0
            groups = names[self.own] if way == "t2a" else names
            for metric, scores in by_metric(ranks[answerable], classes, *self.protocol.cuts).items():
                add(way, metric, scores, groups[answerable])
            rows.append((TITLES[way], "median rank", median_rank(ranks[answerable]), np.nan, np.nan))
        if classes:
            right = by_metric(self.ranks.a2t, classes, *self.protocol.cuts)["accuracy"]
            folds = np.array(list(map(zeroshot.fold, self.clips)))
            for fold in sorted(set(folds) - {""}):
                add("a2t", f"accuracy, fold {fold}", right[folds == fold], names[folds == fold])
        return pd.DataFrame(rows, columns=["direction", "metric", "value", "low", "high"])

    @property
    def readable(self) -> pd.DataFrame:
        """One row per metric, a column per direction: `value (low to high)`."""
        cells = [
            f"{value:.1f} ({low:.1f} to {high:.1f})" if np.isfinite(low) else f"{value:.0f}"
            for value, low, high in self.table[["value", "low", "high"]].itertuples(index=False)
        ]
        wide = self.table.assign(cell=cells).pivot(index="metric", columns="direction", values="cell")
        return (
            wide.loc[self.table["metric"].unique(), [TITLES[way] for way in self.directions]]
            .reset_index()
            .rename_axis(columns=None)
        )

    def report(self) -> dict[str, Any]:
        """All but the ranks, in plain JSON types."""
        stated = {field.name: getattr(self.protocol, field.name) for field in fields(self.protocol)}
        protocol = {name: value for name, value in stated.items() if name != "folder" and value not in (None, ())}
        rows = self.table.astype(object).where(self.table.notna(), None)
        return {
            "model": {"name": self.model, "fingerprint": self.fingerprint, "windows": self.windows}
            | ({} if self.seed is None else {"seed": self.seed}),
            "protocol": protocol | {"corpus": dict(self.protocol.corpus), "hash": self.protocol.hash},
            "clips": len(self.clips),
            "queries": len(self.queries),
            "missing clips": list(self.missing),
            "comparable with published numbers": self.whole,
            "noticed": list(self.notes),
            "metrics": rows.to_dict("records"),
            "made with": environment.environment("cpu", torch.get_num_threads()),
        }

    def save(self, folder: str | Path) -> Path:
        """Write `<protocol>.json`, `.ranks.parquet` (one row per query of a direction) and, as trec_eval reads them,
        `.t2a.run`, `.t2a.qrels`, `.a2t.run` and `.a2t.qrels`; gives the first. In the last four a query's identifier is
        its number from 1 on, and a clip's its name, percent-encoded.
        """
        folder, base = Path(folder), self.protocol.name
        atomic.write_atomic(folder / f"{base}{RANKS}", lambda path: self.by_query().to_parquet(path, index=False))
        names = {
            "t2a": [quote(clip, safe="") for clip in self.clips],
            "a2t": [str(n + 1) for n in range(len(self.own))],
        }
        captions, clips = retrieval.relevant_pairs(self.relevance, (len(self.queries), len(self.clips)))
        to_audio, to_text, _ = retrieval.similarities(self.similarity)
        for way, other, query_of, right, blocks in (
            ("t2a", "a2t", captions, clips, to_audio),
            ("a2t", "t2a", clips, captions, to_text),
        ):
            if way not in self.directions:
                continue
            order = np.argsort(query_of, kind="stable")
            count = np.bincount(query_of, minlength=len(names[other]))
            answers = np.split(right[order], np.cumsum(count)[:-1])
            qrels = (
                f"{name} 0 {names[way][a]} 1\n" for name, own in zip(names[other], answers, strict=True) for a in own
            )
            atomic.write_atomic(folder / f"{base}.{way}.qrels", _writing(qrels))
            lines = _run(blocks, answers, names[other], names[way], quote(self.model, safe=""))
            atomic.write_atomic(folder / f"{base}.{way}.run", _writing(lines))
        atomic.write_json(folder / f"{base}.json", self.report())
        return folder / f"{base}.json"

    def by_query(self) -> pd.DataFrame:
        """One row per query of each direction: direction, query, clip (its own), rank of its best answer, and the ranks
        of all of them with blanks between.
        """
        parts = []
        for way in self.directions:
            ranks = getattr(self.ranks, way)
            own = [self.clips[clip] for clip in self.own] if way == "t2a" else self.clips
            query_texts = self.queries if way == "t2a" else self.clips
            texts = [" ".join(str(rank) for rank in row if rank) for row in ranks.tolist()]
            part = pd.DataFrame(
                {"direction": TITLES[way], "query": query_texts, "clip": own, "rank": ranks[:, 0], "ranks": texts}
            )
            parts.append(part[part["rank"] > 0])
        return pd.concat(parts, ignore_index=True)


def by_metric(
    ranks: np.ndarray, classes: bool, recalls: Sequence[int], precisions: Sequence[int]
) -> dict[str, np.ndarray]:
    """Scores of each query in percent by metric, of ranks (queries, most answers) as `metrics.Ranks` has them.

    classes: R@1 is the accuracy of a classification, and is called so.
    """
    scores = {"accuracy" if classes and k == 1 else f"R@{k}": 100.0 * (ranks[:, 0] <= k) for k in recalls}
    return scores | {f"mAP@{k}": 100 * retrieval.average_precision(ranks, k) for k in precisions}


def median_rank(ranks: np.ndarray) -> float:
    """Of each query's best answer, rounded down."""
    return float(np.floor(np.median(ranks[:, 0])))


def evaluate(
    model: Model,
    protocol: Protocol,
    part: Corpus,
    windows: str | None = None,
    quiet: bool = True,
    train: Path | None = None,
    seed: int | None = None,
) -> Evaluation:
    """A model under a protocol, on the clips that `protocol.load` found. train: as in `doctor.examine`; seed: of a run
    or CLAP model that draws parts of sounds.

    ValueError: embeddings that are not finite; errors of the model.
    """
    if seed is not None:
        model = model.with_seed(seed)
    queries, own, relevance = protocol.ask(part)
    text, audio = model.sentences(queries), model.sounds(part, quiet)
    for side, rows in (("text", text), ("audio", audio)):
        if not rows.isfinite().all():
            raise ValueError(f"{model.name}: its {side} embeddings are not finite; its weights may be damaged")
    similarity = model.similarity(text, audio)
    clips = part.clips["clip"].tolist()
    missing = tuple(protocol.missing(part))
    notes = tuple(doctor.examine(model, part, queries, own, relevance, text, audio, train, seed))
    named = model.name, model.fingerprint, protocol
    return Evaluation(*named, clips, queries, own, relevance, similarity, windows, missing, notes, seed)


def under(name: str, profile: Profile, windows: str | None, device: str) -> Callable[[Protocol], Model]:
    """`models.load` for a protocol, which may say how longer sounds are heard: windows, where they are given, overrule
    it. Embeddings count as made by it. A model is loaded once for each way.
    """
    loaded = cache(lambda way: models.load(name, profile, way, device))

    def model(protocol: Protocol) -> Model:
        default = None if protocol.windows == OWN or name.startswith("embeddings:") else protocol.windows
        return loaded(windows or default)

    return model


def across(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """Of one model and protocol by several seeds, one row per metric, a column per direction: mean ± sample standard
    deviation over seeds.
    """
    rows = pd.concat([one.table for one in evaluations]).groupby(["metric", "direction"], sort=False)["value"]
    cells = rows.mean().map("{:.1f}".format) + " ± " + rows.std().map("{:.1f}".format)
    order = evaluations[0].readable
    return cells.unstack().loc[order["metric"], list(order)[1:]].reset_index().rename_axis(columns=None)


def _run(
    blocks: Iterator[Tensor], answers: list[np.ndarray], query_names: list[str], candidates: list[str], tag: str
) -> Iterator[str]:
    """Lines of a TREC run: the DEEP best candidates of each query. blocks: (queries, candidates); answers: by query.

    trec_eval sorts by score and, where scores are equal, by name, whatever rank a line states. So scores fall strictly,
    in float32, which is what it reads them as: of candidates that tie, those that answer the query come last, as
    `metrics.retrieval` ranks them, and each is put lower by the least that makes a difference.
    """
    whole = (block.float() if block.dtype == torch.bfloat16 else block for block in blocks)
    rows = (row for block in whole for row in block.cpu().numpy())
    for query, (scores, right) in enumerate(zip(rows, answers, strict=True)):
        depth = min(DEEP, len(scores))
        among = np.flatnonzero(scores >= np.partition(scores, -depth)[-depth])
        best = among[np.lexsort((np.isin(among, right), -scores[among]))][:depth]
        last = np.float32(np.inf)
        for rank, (place, score) in enumerate(zip(best.tolist(), scores[best], strict=True), 1):
            last = min(np.float32(score), np.nextafter(last, np.float32(-np.inf)))
            yield f"{query_names[query]} Q0 {candidates[place]} {rank} {last:.9g} {tag}\n"


def _writing(lines: Iterable[str]) -> Callable[[Path], None]:
    """Line by line: a run of a large test set has more of them than memory holds."""

    def write(path: Path) -> None:
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(lines)

    return write
