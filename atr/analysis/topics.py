"""What captions are about: topics by BERTopic (Grootendorst 2022), as in figure 3.1 of Tymofieiev 2025.

Embeddings of sentences are reduced to five dimensions by UMAP, and dense regions of those found by HDBSCAN: the topics.
Captions in none are outliers, labelled -1. How many topics there are is not chosen: it follows from the number of
captions and from the smallest size of a topic, and a little from the seed of UMAP (`counts`, `stability`).
"""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from itertools import combinations, count, pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from matplotlib import patheffects
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import Tensor

from atr.analysis import lexical, maps
from atr.reports import figures
from atr.system import atomic, devices, hashes, packed, store

if TYPE_CHECKING:
    from plotly.graph_objects import FigureWidget

TOPICS_VERSION = 1
WORDS_VERSION = 2  # raise it when captions give other keywords
PACKAGES = ("bertopic", "umap-learn", "hdbscan", "scikit-learn")  # another version of theirs may find other topics
SMALLEST = 10  # captions of a topic
TITLE_WORDS = 3  # keywords that name a topic
COLORS = 6  # of the palette, taken in turn
BLANKS = str.maketrans(dict.fromkeys(string.punctuation, " "))


@dataclass(frozen=True, eq=False)
class Topics:
    """Topics of captions. labels: (captions,) int64, -1 for an outlier, topics from 0 on in order of their size. table:
    topic, size (captions), share (% of all captions), name, keywords.
    """

    seed: int
    labels: np.ndarray
    table: pd.DataFrame

    @property
    def number(self) -> int:
        return len(self.table)

    @property
    def outliers(self) -> float:
        """Percent of the captions that are in no topic."""
        return 100 * float((self.labels < 0).mean())


def fit(captions: list[str], embeddings: Tensor, seed: int = 0, smallest: int = SMALLEST) -> Topics:
    """BERTopic's topics of captions with embeddings (captions, D), from the store.

    Its defaults: UMAP to 5 dimensions by cosine, 15 neighbours, minimal distance 0; HDBSCAN, Euclidean, by excess of
    mass, `smallest` captions a topic or more. UMAP is seeded, which keeps it to one core. Keywords are the words of
    largest class-based tf-idf; stop words are left out of them, which has no bearing on the topics.
    ValueError: not one embedding per caption, fewer captions than `smallest`, or only stop words.
    """
    if len(captions) != len(embeddings):
        raise ValueError(f"{len(embeddings)} embeddings of {len(captions)} captions; give one of each, in order")
    if len(captions) < smallest:
        raise ValueError(f"{len(captions)} captions; a topic has {smallest} or more, so give at least as many")
    if not any(map(words, captions)):
        raise ValueError(f"{len(captions)} captions without a word to name a topic by, such as {captions[0]!r}")

    def build(folder: Path) -> None:
        labels, table = _topics(captions, reduce(embeddings, seed), smallest)
        packed.save_array(folder / "labels.npy", labels)
        atomic.write_csv(table, folder / "table.csv")

    folder = store.cached_folder("topics", _key(embeddings, captions, seed, smallest, WORDS_VERSION), build)
    table = pd.read_csv(folder / "table.csv", keep_default_na=False, dtype={"name": "str", "keywords": "str"})
    return Topics(seed, np.load(folder / "labels.npy"), table)


def _topics(captions: list[str], points: np.ndarray, smallest: int) -> tuple[np.ndarray, pd.DataFrame]:
    """Labels (captions,) and the table of topics of reduced embeddings (captions, 5)."""
    from bertopic import BERTopic  # takes 12 seconds or more
    from bertopic.dimensionality import BaseDimensionalityReduction
    from sklearn.feature_extraction.text import CountVectorizer

    model = BERTopic(
        umap_model=BaseDimensionalityReduction(),  # done already
        hdbscan_model=_clusters(smallest),
        vectorizer_model=CountVectorizer(analyzer=words),
        language="multilingual",  # "english" deletes all letters but A to Z
    )
    labels = np.array(model.fit_transform(captions, points)[0], dtype=np.int64)
    rows = []
    for topic in range(labels.max() + 1):
        size = int((labels == topic).sum())
        keywords = [word for word, _ in model.get_topic(topic) if word]
        rows.append((topic, size, 100 * size / len(labels), ", ".join(keywords[:TITLE_WORDS]), " ".join(keywords)))
    return labels, pd.DataFrame(rows, columns=["topic", "size", "share", "name", "keywords"])


def words(caption: str) -> list[str]:
    """What a caption may give to the keywords: its words of two characters or more in small letters, but stop words.

    Apostrophes and hyphens are deleted, other punctuation parts words. Of scripts that write no blanks between words
    (`lexical.WITHOUT_SPACES`) each two characters that follow one another count as a word, as in search engines.
    """
    plain = re.sub(r"['-]", "", lexical.ascii_signs(caption)).lower().translate(BLANKS)
    pairs = lexical.WITHOUT_SPACES.sub(lambda run: f" {' '.join(map(''.join, pairwise(run[0]))) or run[0]} ", plain)
    left_out = _stop_words()
    return [
        word for word in pairs.split() if word not in left_out and (len(word) > 1 or lexical.WITHOUT_SPACES.match(word))
    ]


_stop_words = cache(lexical.stop_words)


def _clusters(smallest: int) -> Any:
    from hdbscan import HDBSCAN

    return HDBSCAN(smallest, metric="euclidean", cluster_selection_method="eom", core_dist_n_jobs=1)


def reduce(embeddings: Tensor, seed: int = 0) -> np.ndarray:
    """(captions, 5) float32, from embeddings (captions, D) by UMAP as BERTopic has it; from the store.

    ValueError: fewer than 7 captions, which UMAP cannot spread over five dimensions.
    """
    if len(embeddings) < 7:
        raise ValueError(f"{len(embeddings)} captions; give 7 or more, as topics are sought in five dimensions")

    def build(folder: Path) -> None:
        from umap import UMAP

        neighbours = min(15, len(embeddings) - 1)
        mapped = UMAP(neighbours, n_components=5, min_dist=0.0, metric="cosine", random_state=seed, n_jobs=1)
        with devices.threads(torch.get_num_threads()):  # which Numba would change, as in `maps.project`
            points = mapped.fit_transform(embeddings.numpy())
        packed.save_array(folder / "points.npy", points)

    return np.load(store.cached_folder("reduced", _key(embeddings, seed), build) / "points.npy")


def plane(embeddings: Tensor, seed: int = 0) -> np.ndarray:
    """(captions, 2) float32: a map of embeddings (captions, D) by UMAP (`maps.project`), from the store."""

    def build(folder: Path) -> None:
        parts = maps.project(embeddings[:1], embeddings[1:], seed)  # it maps two sets as one; here both are of one kind
        packed.save_array(folder / "points.npy", torch.cat(parts).numpy())

    return np.load(store.cached_folder("planes", _key(embeddings, seed), build) / "points.npy")


def _key(embeddings: Tensor, *parts: Any) -> str:
    """Of the store: what is computed from embeddings, by these packages, with these parts."""
    digest = hashes.sha256(embeddings.numpy().tobytes())
    return hashes.content_key(TOPICS_VERSION, [metadata.version(name) for name in PACKAGES], digest, *parts)


def counts(embeddings: Tensor, seeds: Sequence[int], smallest: Sequence[int] = (SMALLEST,)) -> pd.DataFrame:
    """How many topics there are, one row per seed and smallest size: seed, smallest, captions, number, outliers (%).

    Only the sizes, without BERTopic and its keywords: HDBSCAN's clusters are BERTopic's topics.
    """
    rows = []
    for seed, size in product(seeds, smallest):
        labels = _clusters(size).fit_predict(reduce(embeddings, seed))
        rows.append((seed, size, len(labels), int(labels.max()) + 1, 100 * float((labels < 0).mean())))
    return pd.DataFrame(rows, columns=["seed", "smallest", "captions", "number", "outliers"])


def agreement(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """How far two labellings (captions,) of the same captions agree, whatever their numbers: 1 if they do throughout, 0
    as far as by chance. NaN without a caption to compare.

    placed: percent of the captions that both put into a topic; ami, ari: adjusted mutual information (Vinh et al. 2010)
    and adjusted Rand index of those. ami_all, ari_all: of all captions, outliers as a topic of their own.
    """
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

    if len(first) != len(second):
        raise ValueError(f"labels of {len(first)} and {len(second)} captions; give labels of the same ones")
    both = (first >= 0) & (second >= 0)
    result = {"placed": 100 * float(both.mean())}
    for ending, rows in (("", both), ("_all", np.ones_like(both))):
        pair = first[rows], second[rows]
        result[f"ami{ending}"] = float(adjusted_mutual_info_score(*pair)) if rows.any() else np.nan
        result[f"ari{ending}"] = float(adjusted_rand_score(*pair)) if rows.any() else np.nan
    return result


def stability(fits: Sequence[Topics]) -> pd.DataFrame:
    """`agreement` of the topics of each two seeds, one row per pair: first, second (seeds), and its columns."""
    rows = [{"first": a.seed, "second": b.seed, **agreement(a.labels, b.labels)} for a, b in combinations(fits, 2)]
    columns = ["first", "second", "placed", "ami", "ari", "ami_all", "ari_all"]
    return pd.DataFrame(rows, columns=columns)


def together(clips: Sequence[Any], labels: np.ndarray, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Do the captions of one clip share a topic? Outliers are left out, and clips with a single caption then left.

    clips, labels: (captions,). A row for "pairs", of captions of one clip, and one for "clips", all of whose captions
    must share a topic: number, percent that do, chance (the same where topics are dealt to captions at random, mean of
    the draws), p (of a share as high by chance, the data counted as one draw).
    """
    in_topic = labels >= 0
    topic = labels[in_topic]
    rows = pd.Series(np.arange(len(topic))).groupby(pd.factorize(np.asarray(clips)[in_topic])[0])
    pairs = np.array([pair for own in rows.indices.values() for pair in combinations(own, 2)], dtype=int).reshape(-1, 2)
    _, clip = np.unique(rows.ngroup().to_numpy()[pairs[:, 0]], return_inverse=True)
    sizes = np.bincount(clip)

    def shares(topic: np.ndarray) -> np.ndarray:
        alike = topic[pairs[:, 0]] == topic[pairs[:, 1]]
        return np.array([alike.mean(), (np.bincount(clip, alike) == sizes).mean()])

    result = pd.DataFrame({"number": [len(pairs), len(sizes)]}, index=pd.Index(["pairs", "clips"], name="of"))
    if not len(pairs):
        return result.assign(percent=np.nan, chance=np.nan, p=np.nan)
    rng = np.random.default_rng(seed)
    actual, by_chance = shares(topic), np.stack([shares(rng.permutation(topic)) for _ in range(draws)])
    beyond = 1 + (by_chance >= actual).sum(0)
    return result.assign(percent=100 * actual, chance=100 * by_chance.mean(0), p=beyond / (draws + 1))


def picture(points: np.ndarray, topics: Topics, number: int = 25) -> Figure:
    """The largest topics in a plane (captions, 2), named at the median of their captions, or above or below it where
    names would meet; all other captions in grey. Neighbours differ in colour.
    """
    top = topics.table.head(number)
    figure, ((axis,),) = figures.subplots(1, 1, 5.2, figures.PAGE)
    rest = points[~np.isin(topics.labels, top["topic"])]
    axis.scatter(*rest.T, 1.5, "0.85", lw=0, rasterized=True)
    middles = np.array([np.median(points[topics.labels == topic], 0) for topic in top["topic"]])
    colors = spread_colors(middles)
    for topic, color in zip(top["topic"], colors, strict=True):
        axis.scatter(*points[topics.labels == topic].T, 4, f"C{color}", lw=0, alpha=0.7, rasterized=True)
    maps.bare(axis)
    names = [", ".join(name.split(", ")[:2]) for name in top["name"]]
    halo = [patheffects.withStroke(linewidth=2, foreground="w")]
    figure.draw_without_rendering()  # for its limits
    places = axis.transData.transform(middles) * 72 / figure.dpi
    for name, color, middle, move in zip(names, colors, middles, apart(places, names), strict=True):
        look = {"size": 6.5, "weight": "bold", "ha": "center", "va": "center", "color": f"C{color}"}
        line = {"arrowprops": {"arrowstyle": "-", "lw": 0.5, "color": "0.4"}} if abs(move) > 6 else {}
        words = axis.annotate(name, middle, (0, move), "data", "offset points", **look, **line)
        words.set_path_effects(halo)
    return figure


def spread_colors(middles: np.ndarray) -> list[int]:
    """A number of the palette per place (n, 2): of those used least near by, so that neighbours differ."""
    colors: list[int] = []
    for place, middle in enumerate(middles):
        distances = np.linalg.norm(middles[:place] - middle, axis=1)
        near = [min(distances[np.equal(colors, color)], default=np.inf) for color in range(COLORS)]
        colors.append(int(np.argmax(near)))
    return colors


def apart(places: np.ndarray, names: Sequence[str], height: float = 8.0, letter: float = 3.9) -> np.ndarray:
    """How far to move each of several names up (below 0: down), so that none lies over one before it: as little as
    half lines allow.

    places: (n, 2) their middles, in points; height, letter: of a line and of a letter's width.
    """
    widths, moves = letter * np.array([len(name) for name in names]), np.zeros(len(places))
    for row, (x, y) in enumerate(places):
        beside = np.abs(places[:row, 0] - x) < (widths[:row] + widths[row]) / 2
        blocking = (places[:row, 1] + moves[:row])[beside]
        tries = (sign * number * height / 2 for number in count() for sign in (1, -1))
        moves[row] = next(move for move in tries if (np.abs(blocking - y - move) >= height).all())
    return moves


def explorer(points: np.ndarray, topics: Topics, captions: list[str], number: int = 25) -> "FigureWidget":
    """The `picture` to explore: one layer per topic, which the legend toggles, and where the pointer rests the caption
    and its topic.
    """
    from plotly import graph_objects

    figures.style()
    top = topics.table.head(number)
    names = {row.topic: f"{place + 1} {row.name}" for place, row in enumerate(top.itertuples(index=False))}
    every = dict(zip(topics.table["topic"], topics.table["name"], strict=True)) | {-1: "no topic"}
    layers = [("others", ~np.isin(topics.labels, top["topic"]), "lightgrey")]
    layers += [
        (names[topic], topics.labels == topic, to_hex(f"C{place % COLORS}")) for place, topic in enumerate(top["topic"])
    ]
    traces = []
    for name, rows, color in layers:
        texts = [maps.hover(captions[row], every[topics.labels[row]]) for row in np.flatnonzero(rows)]
        x, y = points[rows].T
        look = {"color": color, "size": 4, "opacity": 0.7}
        traces.append(
            graph_objects.Scattergl(  # which draws twenty thousand points; Scatter does not
                x=x, y=y, mode="markers", name=maps.escape(name), marker=look, hovertext=texts, hoverinfo="text"
            )
        )
    return graph_objects.FigureWidget(traces, maps.layout(680, top=20))


def show(
    points: np.ndarray, topics: Topics, captions: list[str], folder: Path, name: str, number: int = 25
) -> "Figure | FigureWidget":
    """What a notebook's cell ends with: the `explorer` where somebody looks on (`maps.live`), otherwise the `picture`,
    which is saved in either case, as `figures.save` does.
    """
    still = picture(points, topics, number)
    return maps.live_or_still(still, lambda: explorer(points, topics, captions, number), folder, name)
