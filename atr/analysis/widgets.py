"""Finished runs to explore in JupyterLab: search in words, a clip and its captions, failed queries, a map.

A tab is filled when it is first seen, a sound is read when somebody wants to hear it.
"""

import base64
import functools
import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ipywidgets import HTML, Audio, Button, Dropdown, HBox, Layout, Tab, Text, VBox, Widget
from matplotlib.figure import Figure

from atr.analysis import explore, maps, spectrograms
from atr.analysis.maps import CorpusOf
from atr.corpora.corpus import Corpus
from atr.training.records import Run

WORST = 50  # failed queries to choose from
AHEAD = 3  # clips shown before the right one of a failed query
BUSY = "atr-busy"  # the style of results while others are made
FADE = f"<style>.{BUSY} {{ opacity: 0.35; pointer-events: none; }}</style>"
MARK = "#009e73"  # beside a right clip; the third of the figures' palette
WIDE = Layout(width="95%")


def show(
    runs: Mapping[str, Run],
    corpus_of: CorpusOf | None = None,
    sentence: str = "",
    folder: Path | None = None,
    name: str = "search",
    device: str = "auto",
) -> "Figure | VBox":
    """What a notebook's cell ends with: the box of an `Explorer` where somebody looks on (`maps.live`), otherwise the
    `gallery` of what the first run finds for the sentence. With `folder` that picture is saved there in either case, as
    `figures.save` does. ValueError: as `explore.rank_clips`.

    The other parameters are those of `Explorer`.
    """
    corpus_of = corpus_of or explore.corpora()
    run = next(iter(runs.values()))
    corpus = corpus_of(run.config)
    table = explore.rank_clips(run, corpus, sentence, device=device)
    still = spectrograms.gallery(table, corpus, f"{explore.kind(run)}: “{sentence}”")
    return maps.live_or_still(still, lambda: Explorer(runs, corpus_of, sentence, device).box, folder, name, [run])


class Explorer:
    """Widgets over finished runs, together in `box`: which run, which other one to compare with, and four tabs.

    runs: label → finished run. corpus_of: gives the corpus that a config names; None: `explore.corpora()`. sentence:
    what is searched for first. What cannot be done is said in its place, in words. ValueError: no runs.
    """

    def __init__(
        self, runs: Mapping[str, Run], corpus_of: CorpusOf | None = None, sentence: str = "", device: str = "auto"
    ) -> None:
        if not runs:
            raise ValueError("no runs to explore; give at least one that is finished")
        self.runs, self.corpus_of, self.device = dict(runs), corpus_of or explore.corpora(), device
        self._full: set[str] = set()
        self._busy = False
        self._map_run: str | None = None  # the run on the canvas
        self._near = ""  # the clip or caption whose neighbours are shown
        self._draws = 0  # test captions

        self.run = Dropdown(options=list(runs), description="run", layout=WIDE)
        self.other = Dropdown(options=[("no other", ""), *zip(runs, runs, strict=True)], description="beside it")
        self.other.layout = WIDE
        self.status = HTML()
        # Typing ends with Enter, or where the box is left.
        self.sentence = Text(sentence, description="sentence", placeholder="a dog barks", continuous_update=False)
        self.sentence.layout = Layout(flex="1 1 auto")
        self.search = Button(description="search", tooltip="search for the sentence")
        self.draw = Button(description="a test caption", tooltip="search for a caption whose right clip is known")
        self.clip, self.query, self.point = (Dropdown(description=n, layout=WIDE) for n in ("clip", "query", "near to"))
        self.fit = HTML(maps.FIT)
        self.canvas: Any = None  # until the map is looked at: it takes 5 MB of scripts to the browser
        self.pages = {title: VBox() for title in ("search", "clips", "failures", "map")}
        controls: dict[str, list[Widget]] = {
            "search": [HBox([self.sentence, self.search, self.draw], layout=WIDE)],
            "clips": [self.clip],
            "failures": [self.query],
            "map": [self.point],
        }
        self.tabs = Tab([VBox([*above, self.pages[title]]) for title, above in controls.items()], titles=list(controls))
        self.box = VBox([HTML(FADE), self.run, self.other, self.status, self.tabs])

        for menu in (self.run, self.other):
            menu.observe(self._empty, "value")
        for title, control in zip(controls, (self.sentence, self.clip, self.query), strict=False):
            control.observe(functools.partial(self._fill, title), "value")
        self.search.on_click(functools.partial(self._fill, "search"))
        self.draw.on_click(self._draw_caption)
        self.point.observe(lambda change: self._go_near(change["new"]), "value")
        self.tabs.observe(self._on_tab, "selected_index")
        self._on_tab()

    @property
    def _title(self) -> str:
        return list(self.pages)[self.tabs.selected_index]

    def _empty(self, change: Any = None) -> None:
        self._full.clear()
        self._fill(self._title)

    def _on_tab(self, change: Any = None) -> None:
        if self._title not in self._full:
            self._fill(self._title)

    def _fill(self, title: str, change: Any = None) -> None:
        """Make anew what a tab shows under its controls."""
        if self._busy:  # new options of a menu choose one of them
            return
        makers = {"search": self._results, "clips": self._captions, "failures": self._failures, "map": self._nearest}
        self._busy = True
        self._full.add(title)
        self.pages[title].add_class(BUSY)  # what is there answers another question
        self.pages[title].children = self._attempt(makers[title]) or ()
        self.pages[title].remove_class(BUSY)
        self._busy = False

    def _attempt(self, work: Callable[[], Any]) -> Any:
        """What `work` gives; where it fails, why is said above the tabs: else it went to a log that nobody reads."""
        self.status.value = _status("working …")
        try:
            result = work()
        except Exception as error:
            self.status.value = _status(error)
            return None
        self.status.value = ""
        return result

    def _first(self) -> tuple[Run, Corpus, Corpus]:
        """The run, its corpus, and the split that it was tested on."""
        run = self.runs[self.run.value]
        corpus = self.corpus_of(explore.config_of(run))
        return run, corpus, explore.split_of(run, corpus)

    def _columns(self, make: Callable[[Run, Corpus], Sequence[Widget]]) -> list[Widget]:
        """What `make` gives for the run and for the other one, side by side; in place of either, why it cannot."""
        columns = []
        for label in dict.fromkeys([self.run.value, self.other.value or self.run.value]):
            try:
                run = self.runs[label]
                inside = make(run, self.corpus_of(explore.config_of(run)))
            except Exception as error:  # the other column still says what it has
                inside = [HTML(_status(error))]
            columns.append(VBox([HTML(_heading(label)), *inside], layout=Layout(flex="1 1 420px")))
        return [HBox(columns, layout=Layout(flex_flow="row wrap"))]

    def _results(self) -> list[Widget]:
        sentence = self.sentence.value
        if not sentence.strip():
            return [HTML("Describe a sound in a few words, then press Enter.")]

        def make(run: Run, corpus: Corpus) -> list[Widget]:
            table = explore.rank_clips(run, corpus, sentence, device=self.device)
            return [HTML(_remark(run, corpus, table, sentence)), *cards(corpus, table)]

        return [HTML(_heading(f"“{sentence}”")), *self._columns(make)]

    def _draw_caption(self, button: Any = None) -> None:
        if first := self._attempt(self._first):
            captions = first[2].captions["caption"]
            self.sentence.value = captions.iloc[np.random.default_rng(self._draws).integers(len(captions))]
            self._draws += 1

    def _captions(self) -> list[Widget]:
        _, corpus, part = self._first()
        _offer(self.clip, _clips(part))
        clip = self.clip.value

        def make(run: Run, corpus: Corpus) -> list[Widget]:
            return [HTML(_table(explore.rank_captions(run, corpus, clip)))]

        return [card(corpus, clip), *self._columns(make)]

    def _failures(self) -> list[Widget]:
        run, corpus, part = self._first()
        table = explore.failures(run, corpus, WORST)
        captions = table["caption"].tolist()
        options = [(f"rank {rank} of {len(part)}: {c}", c) for rank, c in zip(table["rank"], captions, strict=True)]
        _offer(self.query, options)
        caption = self.query.value
        if caption is None:
            return [HTML("Every test caption finds its clip first.")]

        def make(run: Run, corpus: Corpus) -> list[Widget]:
            return cards(corpus, explore.rank_clips(run, corpus, caption, AHEAD, self.device))

        return self._columns(make)

    def _nearest(self) -> list[Widget]:
        run, corpus, part = self._first()
        clips, captions = part.clips["clip"].tolist(), part.captions["caption"].tolist()
        _offer(self.point, _clips(part))
        if self._near not in (*clips, *captions):
            self._near = self.point.value
        table = explore.neighbours(run, corpus, self._near)
        layers = explore.map_of(run, corpus)
        if self.canvas is None:
            self.canvas = _canvas(self._on_click)
        if self._map_run != self.run.value:
            maps.put(self.canvas, layers, self.run.value)
            self._map_run = self.run.value
        is_clip = self._near in clips
        own = layers.audio[clips.index(self._near)] if is_clip else layers.text[captions.index(self._near)]
        with self.canvas.batch_update():
            for trace, points in zip(self.canvas.data[2:], (explore.places(layers, table), own[None]), strict=True):
                trace.x, trace.y = points.t().numpy()
        if is_clip:
            self.point.value = self._near
        shown = [card(corpus, self._near)] if is_clip else [HTML(f"“{html.escape(self._near)}”")]
        near, texts = (table[table["kind"] == kind] for kind in ("clip", "caption"))
        return [
            self.canvas,
            self.fit,
            *shown,
            HTML(_heading("nearest clips")),
            *(card(corpus, str(row.clip), f"{row.similarity:z.2f} · ") for row in near.itertuples()),
            HTML(_heading("nearest captions") + _table(texts[["caption", "clip", "similarity"]])),
        ]

    def _go_near(self, point: str) -> None:
        if not self._busy:
            self._near = point
            self._fill("map")

    def _on_click(self, trace: Any, points: Any, state: Any = None) -> None:
        if points.point_inds and (first := self._attempt(self._first)):
            names = first[2].clips["clip"] if trace.name == "clips" else first[2].captions["caption"]
            self._go_near(names.iloc[points.point_inds[0]])


def cards(corpus: Corpus, table: pd.DataFrame) -> list[Widget]:
    """A `card` for each row of a table of `explore.rank_clips`."""
    return [
        card(corpus, str(row.clip), f"{row.rank} · {row.similarity:z.2f} · ", bool(row.right))
        for row in table.itertuples()
    ]


def card(corpus: Corpus, clip: str, before: str = "", right: bool = False) -> HBox:
    """A clip's spectrogram, name, captions and a button that plays it; a right one says so."""
    picture = base64.b64encode(spectrograms.thumbnail(corpus, clip)).decode()
    name = html.escape(clip)
    first, *others = map(html.escape, corpus.captions.loc[corpus.captions["clip"] == clip, "caption"])
    mark = " <b style='white-space: nowrap'>✓ right clip</b>" if right else ""
    more = f"<details><summary>{len(others)} more</summary>{'<br>'.join(others)}</details>" if others else ""
    image = f'<img src="data:image/png;base64,{picture}" alt="spectrogram of {name}" width="300" height="120">'
    words = f'<div style="line-height: 1.35">{before}{name}{mark}<br>{first}{more}</div>'
    sides = HTML(image, layout=Layout(flex="0 0 auto")), VBox([HTML(words), player(corpus, clip)])
    return HBox(sides, layout=Layout(margin="0 0 8px 0", border_left=f"4px solid {MARK if right else 'transparent'}"))


def player(corpus: Corpus, clip: str) -> VBox:
    """A button that becomes the player of a clip, which is read then."""
    button = Button(description="play", icon="play", tooltip=f"play {clip}")
    place = VBox([button])

    def play(_: Any) -> None:
        try:
            place.children = (Audio(value=spectrograms.wav(corpus, clip), format="wav", loop=False),)
        except (ValueError, OSError) as error:
            place.children = (HTML(_status(error)),)

    button.on_click(play)
    return place


def _canvas(on_click: Callable[[Any, Any, Any], None]) -> Any:
    canvas = maps.canvas(520)
    for trace in canvas.data:
        trace.on_click(on_click)
    ring = {"color": "black", "size": 13, "symbol": "circle-open", "line": {"width": 2}}
    star = {"color": "white", "size": 17, "symbol": "star", "line": {"width": 1, "color": "black"}}
    for name, marker in (("nearest", ring), ("this one", star)):
        canvas.add_scatter(mode="markers", name=name, marker=marker, hoverinfo="skip")
    return canvas


def _offer(menu: Dropdown, options: list[tuple[str, str]]) -> None:
    """Give a menu its options; what was chosen stays, where it is still among them."""
    if list(menu.options) != options:
        before = menu.value
        menu.options = options
        values = [value for _, value in options]
        menu.value = before if before in values else next(iter(values), None)


def _clips(part: Corpus) -> list[tuple[str, str]]:
    first = explore.first_captions(part)
    return [(f"{clip}: {caption}", clip) for clip, caption in zip(first.index, first, strict=True)]


def _remark(run: Run, corpus: Corpus, table: pd.DataFrame, sentence: str) -> str:
    if table["right"].any():
        clips = len(explore.split_of(run, corpus))
        return f"A test caption; its right clip is at rank {table.loc[table['right'], 'rank'].min()} of {clips}."
    words = [] if run.config.training == "external" else explore.unknown_words(corpus, sentence)
    return f"No training caption has: {html.escape(', '.join(words))}." if words else ""


def _heading(words: str) -> str:
    return f'<h4 style="margin: 8px 0 0 0">{html.escape(words)}</h4>'


def _status(words: object) -> str:
    return f'<p role="status">{html.escape(str(words))}</p>'


def _table(table: pd.DataFrame) -> str:
    if "right" in table:
        table = table.assign(right=table["right"].map({True: "✓", False: ""}))
    inside = table.to_html(index=False, border=0, float_format="{:z.2f}".format, justify="left")
    left = inside.replace("<td>", '<td style="text-align: left">').replace("<th>", '<th style="text-align: left">')
    return f'<div class="jp-RenderedHTMLCommon">{left}</div>'
