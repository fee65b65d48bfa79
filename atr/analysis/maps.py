"""Pictures of an embedding space: principal components, and maps of clips and captions together, still or to explore.

Maps are UMAP's (McInnes et al. 2018). Their axes have no unit, and a distance across a map says little; neighbours do.
"""

import functools
import html
import os
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import Tensor

from atr import corpora
from atr.config import RunConfig
from atr.corpora.corpus import Corpus
from atr.metrics.uniformity import matrix
from atr.reports import figures
from atr.system import devices
from atr.training.records import Run
from atr.training.results import space, test_split

if TYPE_CHECKING:
    import ipywidgets
    from plotly.graph_objects import FigureWidget


CorpusOf = Callable[[RunConfig], Corpus]

WIDTH = 60  # characters of a line that shows where the pointer rests
ROWS, BLOCK = 1024, 2**26  # at most so many points' similarities to all others, and so many similarities, at a time
COLOURS = 6  # kinds of sound that have a colour, besides all others; more are not told apart
OTHERS = "other kinds"
# What stands beside a canvas: plotly draws before there is a page, 700 pixels wide, and again where a window changes.
FIT = (
    '<img src="data:," alt="" hidden onerror="for (const wait of [200, 1000, 3000]) '
    "setTimeout(() => window.dispatchEvent(new Event('resize')), wait)\">"
)
EPOCHS = 200  # UMAP's own choice for large sets; its 500 for small ones take twice as long and gain hardly anything


def components(x: Tensor, number: int = 2) -> Tensor:
    """(N, number) coordinates of x (N, D) along its principal components, the centre at 0.

    From the singular value decomposition of the centred points. Each direction is turned so that its largest weight is
    positive, so results repeat. ValueError: no such matrix, not finite, or fewer points or dimensions than `number`.
    """
    x = matrix(x, "x")
    if not 1 <= number <= min(x.shape):
        raise ValueError(f"x is {tuple(x.shape)}, number {number}; ask for 1 to {min(x.shape)} components")
    centred = x - x.mean(0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:number]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return centred @ (directions * largest.sign()).t()


def four_sets(sets: Mapping[str, Tensor]) -> Figure:
    """The first two principal components of each set: figure 3 of Tourbabin and Ben-Hur 2023.

    sets: title → points (N, D); the paper's are text, audio, uniform and a mixture of Gaussians. One panel per set,
    each to its own scale, both axes alike; in it the share of the set's variance that the two components hold.
    ValueError: as `components`, or a set whose points all coincide.
    """
    figure, axes = figures.subplots(1, len(sets), 2.3, figures.PAGE)
    for axis, (title, x) in zip(axes[0], sets.items(), strict=True):
        points = components(x)
        if (x == x[0]).all():
            raise ValueError(f"{title}: its {len(x)} points coincide; give a set that spreads")
        share = float(points.var(0).sum() / x.to(points).var(0).sum())
        first, second = points.cpu().t()
        axis.scatter(first, second, 4, lw=0, alpha=0.5, rasterized=True)
        reach = 1.08 * float(points.abs().max())
        axis.set(title=title, aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach), xlabel="component 1")
        axis.locator_params(nbins=3)
        axis.annotate(
            f"{100 * share:.1f} % of variance", (1, 1), xycoords="axes fraction", ha="right", va="top", size=7
        )
    axes[0, 0].set_ylabel("component 2")
    return figure


def project(audio: Tensor, text: Tensor, seed: int = 0, neighbours: int = 15) -> tuple[Tensor, Tensor]:
    """One UMAP of both modalities by cosine distance: (clips, 2) and (captions, 2), float32.

    audio: (clips, D); text: (captions, D). The same seed gives the same map. neighbours: how many of its nearest points
    each is drawn to, itself counted; small sets take what they have. Neighbours are exact, and the start is the first
    two principal components, which any set has, however small or parted.
    ValueError: no such matrices, dimensions that differ, not finite, a row of zeros, fewer than 4 points in all, or
    neighbours below 2.
    """
    audio, text = matrix(audio, "audio"), matrix(text, "text")
    if audio.shape[1] != text.shape[1]:
        raise ValueError(f"audio has {audio.shape[1]} dimensions, text {text.shape[1]}; give embeddings of one space")
    x = torch.cat([audio.cpu(), text.cpu()])
    if len(x) < 4 or not (len(audio) and len(text)):
        raise ValueError(f"{len(audio)} clips and {len(text)} captions; a map needs 4 points or more in all, of both")
    if neighbours < 2:
        raise ValueError(f"neighbours is {neighbours}; give 2 or more, as a point counts among its own")
    if (x == 0).all(1).any():
        raise ValueError("an embedding is all zeros and has no direction; look for the clip or caption that is empty")
    x = F.normalize(x.double(), dim=1)  # in single precision, last bits that vary by process change the map
    noise = torch.randn(len(x), 2, generator=torch.Generator().manual_seed(seed))  # parts points that coincide
    start = components(x) + 1e-4 * noise
    neighbours = min(neighbours, len(x) - 1)
    indices, distances = nearest(x, neighbours)
    # Numba, at its first parallel call, sets the number of threads of the whole process, PyTorch's too.
    with devices.threads(torch.get_num_threads()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)
        warnings.filterwarnings("ignore", "precomputed_knn", UserWarning)  # no later points will be mapped
        from umap import UMAP

        # Its own search calls Python for each pair of a small set, and compiles an index for a large one.
        points = UMAP(
            n_neighbors=neighbours,
            n_epochs=EPOCHS,
            metric="cosine",
            precomputed_knn=(indices.int().numpy(), distances.float().numpy()),
            disconnection_distance=torch.inf,  # opposite points stay
            init=start.float().numpy(),
            random_state=seed,
            n_jobs=1,
        ).fit_transform(x.float().numpy())
    first, second = torch.from_numpy(points).split([len(audio), len(text)])
    return first, second


def nearest(x: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Indices and cosine distances (N, number) of the points nearest to each of x (N, D), itself first, at 0."""
    parts = []
    rows = max(1, min(ROWS, BLOCK // len(x)))
    for start in range(0, len(x), rows):
        similarity = x[start : start + rows] @ x.t()
        similarity.diagonal(start).fill_(2)  # ahead of its duplicates, and not at a rounding error's distance
        parts.append(similarity.topk(number))
    similarities, indices = (torch.cat(part) for part in zip(*parts, strict=True))
    return indices, (1 - similarities).clamp(min=0)


def picture(
    audio: Tensor, text: Tensor, title: str = "", audio_kinds: Sequence[str] = (), text_kinds: Sequence[str] = ()
) -> Figure:
    """A map at rest, as wide as a page: captions (captions, 2) below, clips (clips, 2) above them; by kinds of sound
    where those are given, by layers otherwise.
    """
    figure, ((axis,),) = figures.subplots(height=0.62 * figures.PAGE, width=figures.PAGE)
    colors = palette(audio_kinds)
    below: Any = [colors[kind] for kind in text_kinds] if colors else "C0"
    above: Any = [colors[kind] for kind in audio_kinds] if colors else "C1"
    dots: dict[str, Any] = {"lw": 0, "alpha": 0.6, "rasterized": True}
    axis.scatter(text[:, 0], text[:, 1], 6, below, **dots, label=f"{len(text):,} captions")
    # hollow, or they would hide the captions that they should meet
    diamonds: dict[str, Any] = {"marker": "D", "facecolors": "none", "lw": 0.8, "rasterized": True}
    axis.scatter(audio[:, 0], audio[:, 1], 14, edgecolors=above, **diamonds, label=f"{len(audio):,} clips")
    for kind, color in legend(colors).items():
        axis.plot([], [], "s", ms=4, color=color, label=kind)
    axis.set_title(title)
    bare(axis)
    figures.legend_below(figure, axis, 5, markerscale=1.6)
    return figure


def palette(kinds: Sequence[str]) -> dict[str, str]:
    """Kind → colour: one each for the COLOURS that most clips have, grey for all others; empty if none is known."""
    counts = Counter(kind for kind in kinds if kind)
    most = sorted(counts, key=lambda kind: (-counts[kind], kind))[:COLOURS]
    figures.style()
    colors = {kind: to_hex(f"C{number}") for number, kind in enumerate(most)}
    return colors | {kind: to_hex("0.6") for kind in kinds if kind not in colors} if counts else {}


def legend(colors: Mapping[str, str]) -> dict[str, str]:
    """What a `palette` says: its coloured kinds, and what the others are."""
    grey = to_hex("0.6")
    own = {kind: color for kind, color in colors.items() if color != grey}
    return own | {OTHERS: grey} if len(own) < len(colors) else own


def kinds_of(part: Corpus) -> tuple[list[str], list[str]]:
    """(clips,) and (captions,): the kind of sound that a clip begins with, "" where none is known."""
    first = part.events.sort_values(["clip", "onset"], kind="stable").drop_duplicates("clip")
    kind = dict(zip(first["clip"], first["event"], strict=True))
    return [kind.get(clip, "") for clip in part.clips["clip"]], [kind.get(clip, "") for clip in part.captions["clip"]]


def bare(axis: Axes) -> None:
    """No frame and no numbers, which mean nothing on a map, and both directions to the same scale."""
    axis.set(xticks=[], yticks=[])
    axis.set_aspect("equal", adjustable="datalim")
    axis.spines[:].set_visible(False)


@dataclass(frozen=True, eq=False)
class Map:
    """A run's test split in the plane: audio (clips, 2), text (captions, 2), what each point says of itself, and what
    kind of sound it is of (`kinds_of`).
    """

    audio: Tensor
    text: Tensor
    audio_labels: list[str]
    text_labels: list[str]
    audio_kinds: list[str]
    text_kinds: list[str]


def map_of(run: Run, corpus: Corpus, seed: int = 0, neighbours: int = 15) -> Map:
    """The map of a finished run; corpus: what it was trained on. ValueError: as `labels`, `space` and `project`."""
    audio_labels, text_labels = labels(run, corpus)
    audio, text = project(*space(run), seed, neighbours)
    return Map(audio, text, audio_labels, text_labels, *kinds_of(test_split(run, corpus)))


def labels(run: Run, corpus: Corpus) -> tuple[list[str], list[str]]:
    """What points say of themselves, as the HTML that plotly knows: (clips,) and (captions,) of the test split.

    A clip says its name and its captions, a caption itself and where its best-ranked right clip stands. Texts are
    escaped, lines broken at `WIDTH` characters. ValueError: as `test_split`.
    """
    test = test_split(run, corpus)
    clips = test.clips["clip"].tolist()
    own = test.captions.groupby("clip")["caption"].agg(list)
    audio = ["<br>".join([f"<b>{wrap(clip)}</b>", *(f"– {wrap(one)}" for one in own[clip])]) for clip in clips]
    ranks = run.ranks.best("t2a").tolist()
    pairs = zip(test.captions["caption"], ranks, strict=True)
    text = [hover(caption, f"right clip at rank {rank} of {len(clips)}") for caption, rank in pairs]
    return audio, text


def hover(text: str, remark: str) -> str:
    """What a caption says where the pointer rests."""
    return f"{wrap(text)}<br><i>{escape(remark)}</i>"


def wrap(text: str) -> str:
    return "<br>".join(escape(line) for line in textwrap.wrap(text, WIDTH))


def escape(text: str) -> str:
    """Text as the HTML that plotly knows; where a page has MathJax, plotly takes what stands between $ for TeX."""
    # Quotes stay: plotly does not know their entities, and nothing here is an attribute.
    return html.escape(text, quote=False).replace("$", "&#36;")


def maps_of(runs: Mapping[str, Run], corpus_of: CorpusOf, seed: int = 0, neighbours: int = 15) -> Callable[[str], Map]:
    """Label → map, made once. runs: label → finished run; corpus_of: gives the corpus that a config names. ValueError:
    no runs.
    """
    if not runs:
        raise ValueError("no runs to map; give at least one that is finished")
    return functools.cache(lambda label: map_of(runs[label], corpus_of(runs[label].config), seed, neighbours))


def explorer(names: Sequence[str], maps: Callable[[str], Map]) -> "ipywidgets.VBox":
    """A map to explore: a menu of runs, clips and captions as layers that the legend toggles, and their texts where the
    pointer rests.

    names, maps: of the runs (`maps_of`). A run is mapped when it is first selected. One that cannot be mapped says why
    beside the menu, and the map stays as it was. ValueError: as `map_of` for the first.
    """
    import ipywidgets

    figure = canvas()
    menu = ipywidgets.Dropdown(options=names, description="run", layout={"width": "max-content"})
    message = ipywidgets.Label()

    def draw(change: dict[str, Any]) -> None:
        message.value = "mapping …"
        try:
            put(figure, maps(change["new"]), change["new"])
            message.value = ""
        except (ValueError, OSError) as error:  # what a callback raises goes to a log that nobody reads
            message.value = str(error)

    put(figure, maps(menu.value), menu.value)
    menu.observe(draw, "value")
    return ipywidgets.VBox([ipywidgets.HBox([menu, message]), figure, ipywidgets.HTML(FIT)])


def canvas(height: int = 640) -> "FigureWidget":
    """An empty map to explore, as wide as what it stands in: two traces, captions and clips. height in pixels."""
    from plotly import graph_objects

    figures.style()
    looks = {
        "captions": {"color": to_hex("C0"), "size": 4, "opacity": 0.6},
        "clips": {"color": to_hex("C1"), "size": 7, "symbol": "diamond-open"},
    }
    traces = [
        graph_objects.Scatter(mode="markers", hoverinfo="text", name=name, marker=marker)
        for name, marker in looks.items()
    ]
    figure = graph_objects.FigureWidget(traces, layout(height, top=60, orientation="h"))
    figure._config = {**figure._config, "responsive": True}
    return figure


def layout(height: int, top: int, **legend: str) -> dict[str, Any]:
    """What plotly draws a map by; height and the margin at the top in pixels."""
    return {
        "template": "plotly_white",
        "height": height,
        "autosize": True,
        "margin": {"l": 10, "r": 10, "t": top, "b": 10},
        "legend": {"itemsizing": "constant", **legend},
        "hoverlabel": {"align": "left"},
        "hovermode": "closest",
        "xaxis": {"visible": False},
        "yaxis": {"visible": False, "scaleanchor": "x"},
    }


def put(figure: "FigureWidget", one: Map, title: str) -> None:
    """Show a map on a `canvas`, all of it."""
    colors = palette(one.audio_kinds)
    layers = (one.text, one.text_labels, one.text_kinds), (one.audio, one.audio_labels, one.audio_kinds)
    # Zooming ends autorange in the browser alone; what is no change here would not be sent there.
    figure.update_layout(xaxis_autorange=False, yaxis_autorange=False)
    with figure.batch_update():
        for trace, (points, texts, kinds), plain in zip(figure.data[:2], layers, ("C0", "C1"), strict=True):
            trace.x, trace.y = points.t().numpy()
            trace.hovertext = texts
            trace.marker.color = [colors[kind] for kind in kinds] if colors else to_hex(plain)
        entries = "  ".join(
            f'<span style="color:{color}">■ {escape(kind)}</span>' for kind, color in legend(colors).items()
        )
        figure.layout.title.text = escape(title) + f"<br><sup>{entries}</sup>" * bool(entries)
        figure.layout.xaxis.autorange = figure.layout.yaxis.autorange = True


def live() -> bool:
    """Whether somebody looks on: a frontend that shows widgets has this kernel.

    Jupyter Server sets JPY_SESSION_NAME for the kernels of its notebooks, not for its terminals; VS Code sets
    VSCODE_PID. papermill and nbconvert start kernels by themselves and set neither. `atr study` sets ATR_COMMAND, which
    counts more, as what a notebook's cell starts inherits the variables of its kernel: there, set it for a papermill
    of your own.
    """
    if os.environ.get("ATR_COMMAND"):
        return False
    return "JPY_SESSION_NAME" in os.environ or "VSCODE_PID" in os.environ


def show(
    runs: Mapping[str, Run],
    corpus_of: CorpusOf = lambda config: corpora.corpus_of(config.corpus),
    folder: Path | None = None,
    name: str = "map",
    seed: int = 0,
    neighbours: int = 15,
) -> "Figure | ipywidgets.VBox":
    """What a notebook's cell ends with: the `explorer` where somebody looks on (`live`), otherwise the `picture` of the
    first run. With `folder` that picture is saved there in either case, as `figures.save` does.

    corpus_of: for a corpus that lies in a folder, `explore.corpora(folder)`. The other parameters are those of
    `maps_of`.
    """
    maps = maps_of(runs, corpus_of, seed, neighbours)
    label, run = next(iter(runs.items()))
    one = maps(label)
    still = picture(one.audio, one.text, label, one.audio_kinds, one.text_kinds)
    return live_or_still(still, lambda: explorer(list(runs), maps), folder, name, [run])


def live_or_still(
    still: Figure, explore: Callable[[], Any], folder: Path | None, name: str, runs: Sequence[Run] = ()
) -> Any:
    """What a notebook's cell ends with: what `explore` gives where somebody looks on (`live`), otherwise the picture.
    With `folder` it is saved there in either case, as `figures.save` does.
    """
    if folder is not None:
        figures.save(still, folder, name, runs)
    plt.close(still)  # or the cell shows it twice
    return explore() if live() else still
