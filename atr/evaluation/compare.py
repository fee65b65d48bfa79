"""Two models under one protocol, query by query: what differs, how sure that is, and where."""

import base64
import html
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from atr.corpora import audio
from atr.corpora.containers import AudioError
from atr.corpora.corpus import Corpus
from atr.evaluation import naming, protocols, zeroshot
from atr.evaluation.evaluate import TITLES, Evaluation, by_metric, median_rank
from atr.metrics import statistics
from atr.system import atomic

MOST = 20  # queries shown of each direction
SECONDS, RATE, ROOM = 10.0, 32_000, 4_000_000  # of a sound that is shown; bytes of all of them on a page
MEND = "evaluate it again: atr evaluate <model> --on <protocol> --out <folder>"


@dataclass(frozen=True, eq=False)
class Result:
    """What `atr evaluate --out` keeps of a model under a protocol: its report, and `Evaluation.by_query`."""

    report: dict[str, Any]
    queries: pd.DataFrame

    @property
    def model(self) -> str:
        """Its name, and how it heard longer sounds where that was asked for: it may be held against itself."""
        about = self.report["model"]
        options = (f"{what} {about[what]}" for what in ("windows", "seed") if about.get(what) is not None)
        return ", ".join([about["name"], *options])

    @property
    def protocol(self) -> dict[str, Any]:
        return self.report["protocol"]

    @classmethod
    def of(cls, one: Evaluation) -> "Result":
        return cls(one.report(), one.by_query())


def results(path: Path) -> dict[str, Result]:
    """By the protocol's name, those of a folder, or that of one `<protocol>.json`. ValueError: a file that is damaged,
    or that an earlier version wrote. Empty: the path holds none.
    """
    return {name: _read(*files) for name, files in naming.results(path).items()}


def _read(path: Path, ranks: Path) -> Result:
    """A result that may be another's: what it says is looked at before anything is made of it."""
    try:
        report = atomic.read_object(path)
        texts = report["model"]["name"], report["protocol"]["name"], report["protocol"]["hash"]
        cuts = [*report["protocol"]["recalls"], *report["protocol"]["precisions"]]
        table = pd.read_parquet(ranks)[["direction", "query", "clip", "ranks"]]
        sound = table["ranks"].str.fullmatch("[1-9][0-9]{0,8}( [1-9][0-9]{0,8})*")
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"{path}: no result of this version ({type(error).__name__}: {error}); {MEND}") from None
    whole = all(isinstance(text, str) for text in texts) and isinstance(report["clips"], int) and len(table) > 0
    whole = whole and all(type(cut) is int and cut > 0 for cut in cuts)
    if not whole or not sound.all() or not set(table["direction"]) <= set(TITLES.values()):
        raise ValueError(f"{path}: no result of this version; {MEND}")
    if Path(texts[1]).name != texts[1]:
        raise ValueError(f"{path}: a protocol named {texts[1]!r}, which is no file name; {MEND}")
    table["rank"] = table["ranks"].str.split().str[0].astype(int)
    return Result(report, table)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two results of one protocol, A and B.

    queries: one row per query of each direction: direction, query, clip, rank_a, rank_b, ranks_a, ranks_b, and gap, the
    reciprocal rank of A less that of B.
    """

    a: Result
    b: Result
    queries: pd.DataFrame

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per direction and metric: A, B, their difference, low and high of its 95 % interval over clips, p."""
        rows: list[tuple] = []
        classes, cuts = "template" in self.a.protocol, (self.a.protocol["recalls"], self.a.protocol["precisions"])
        group = zeroshot.recording if classes else str  # as in `Evaluation.table`
        for direction, part in self.queries.groupby("direction", sort=False):
            a, b = (_pad(part[column]) for column in ("ranks_a", "ranks_b"))
            of_b = by_metric(b, classes, *cuts)
            for metric, of_a in by_metric(a, classes, *cuts).items():
                test = statistics.grouped_test(of_a, of_b[metric], part["clip"].map(group).to_numpy())
                values = of_a.mean(), of_b[metric].mean(), test.difference, test.low, test.high, test.p
                rows.append((direction, metric, *map(float, values)))
            medians = median_rank(a), median_rank(b)
            rows.append((direction, "median rank", *medians, medians[0] - medians[1], np.nan, np.nan, np.nan))
        return pd.DataFrame(rows, columns=["direction", "metric", "A", "B", "difference", "low", "high", "p"])

    @property
    def readable(self) -> pd.DataFrame:
        """`table` with `difference (low to high)` in one column."""
        cells = [
            f"{difference:+.1f} ({low:+.1f} to {high:+.1f})" if np.isfinite(low) else f"{difference:+.0f}"
            for difference, low, high in self.table[["difference", "low", "high"]].to_numpy()
        ]
        p = ["" if np.isnan(p) else f"{p:.3f}" if p >= 0.001 else "< 0.001" for p in self.table["p"]]
        return self.table[["direction", "metric", "A", "B"]].assign(**{"A less B": cells, "p": p})

    @cached_property
    def wins(self) -> pd.DataFrame:
        """One row per direction: of how many queries A ranks the best answer higher, B does, or both rank it alike."""
        rows = [
            (direction, int((part["gap"] > 0).sum()), int((part["gap"] < 0).sum()), int((part["gap"] == 0).sum()))
            for direction, part in self.queries.groupby("direction", sort=False)
        ]
        return pd.DataFrame(rows, columns=["direction", "A wins", "B wins", "alike"])

    def apart(self, most: int = MOST) -> pd.DataFrame:
        """The queries of each direction whose reciprocal ranks differ most; none that are alike."""
        differ = self.queries[self.queries["gap"] != 0]
        differ = differ.loc[differ["gap"].abs().sort_values(ascending=False, kind="stable").index]
        parts = [differ[differ["direction"] == title].head(most) for title in TITLES.values()]
        return pd.concat(parts, ignore_index=True)

    def report(self) -> dict[str, Any]:
        """All but the queries, in plain JSON types."""
        table = self.table.astype(object).where(self.table.notna(), None)
        return {
            "A": self.a.report["model"],
            "B": self.b.report["model"],
            "protocol": self.a.protocol,
            "clips": self.a.report["clips"],
            "metrics": table.to_dict("records"),
            "queries": self.wins.to_dict("records"),
        }

    def save(self, folder: str | Path, part: Corpus | str) -> list[Path]:
        """Write `<protocol>.compare.json`, `.compare.csv` (`queries`) and `.compare.html`; their paths.

        part: the clips, for their sounds, or why they are not at hand.
        """
        paths = [Path(folder) / f"{self.a.protocol['name']}.compare.{kind}" for kind in ("json", "csv", "html")]
        atomic.write_json(paths[0], self.report())
        atomic.write_csv(self.queries, paths[1])
        atomic.write_text(paths[2], "".join(self._page(part)))
        return paths

    def show(self, part: Corpus | str) -> Any:
        """The page of `save`, with its players, in a notebook. part: as there, see `sounds_of`."""
        from IPython.display import HTML

        return HTML(f'<iframe srcdoc="{html.escape("".join(self._page(part)))}" width="100%" height="600"></iframe>')

    def _page(self, part: Corpus | str) -> Iterator[str]:
        name, shown = self.a.protocol["name"], self.apart()
        yield HEAD.format(title=html.escape(f"{self.a.model} and {self.b.model} under {name}"))
        yield f"<p>A is {html.escape(self.a.model)}, B is {html.escape(self.b.model)}; protocol {html.escape(name)}, "
        yield f"hash {html.escape(self.a.protocol['hash'])}; intervals of 95 % over clips.</p>\n"
        for table in (self.readable, self.wins):
            yield table.to_html(index=False, border=0, float_format="{:.1f}".format) + "\n"
        yield "<h2>Queries that differ most</h2>\n"
        if isinstance(part, str):
            yield f"<p>Without sounds: {html.escape(part)}</p>\n"
            sounds: dict[str, str] = {}
        else:
            sounds = _players(part, shown["clip"].tolist())
            silent = len(set(shown["clip"]) - set(sounds))
            yield f"<p>Players have the first {SECONDS:.0f} s of a query's clip; {silent} clips are without.</p>\n"
        yield "<table><tr><th>direction<th>query<th>clip<th>rank by A<th>rank by B</tr>\n"
        for row in shown.itertuples():
            cells = [html.escape(str(cell)) for cell in (row.direction, row.query, row.clip, row.rank_a, row.rank_b)]
            cells[2] += sounds.get(str(row.clip), "")
            yield "<tr>" + "".join(f"<td>{cell}" for cell in cells) + "</tr>\n"
        yield "</table>\n"


def match(a: dict[str, Result], b: dict[str, Result], names: Sequence[str] = ()) -> list[tuple[Result, Result]]:
    """Which of two folders' results to hold against each other: those of the protocols `names`; by default the only
    ones, whatever they are named, or those of one name. ValueError: there are none.
    """
    if not names and len(a) == len(b) == 1:
        return list(zip(a.values(), b.values(), strict=True))
    names = names or [name for name in a if name in b]
    if not names:
        raise ValueError(f"no protocol in both: {', '.join(a)}; {', '.join(b)}; {MEND}")
    return [(a[name], b[name]) for name in names]


def compare(a: Result, b: Result) -> Pair:
    """ValueError: results of two protocols, or of other clips or queries."""
    one, other = a.protocol, b.protocol
    if one["hash"] != other["hash"]:
        raise ValueError(
            f"{a.model} was evaluated under {one['name']} ({one['hash']}), {b.model} under {other['name']} "
            f"({other['hash']}): two protocols; {MEND}"
        )
    keys = ["direction", "query", "clip", "copy"]  # a clip may have one caption twice
    tables = [r.queries.assign(copy=r.queries.groupby(keys[:3]).cumcount()) for r in (a, b)]
    merged = tables[0].merge(tables[1], how="outer", on=keys, suffixes=("_a", "_b"), indicator="side", sort=False)
    if len(lone := merged[merged["side"] != "both"]) or a.report["clips"] != b.report["clips"]:
        example = f", as {lone['query'].iloc[0]!r}" if len(lone) else ""
        raise ValueError(
            f"{a.model} was asked {len(tables[0]):,} queries over {a.report['clips']:,} clips, {b.model} "
            f"{len(tables[1]):,} over {b.report['clips']:,}, and {len(lone):,} are of one alone{example}; evaluate "
            "both where the same clips are"
        )
    order = tables[0].reset_index(drop=True).reset_index(names="place")[["place", *keys]]
    merged = merged.merge(order, on=keys).sort_values("place")
    table = merged[["direction", "query", "clip", "rank_a", "rank_b", "ranks_a", "ranks_b"]].reset_index(drop=True)
    table = table.astype({"rank_a": int, "rank_b": int})
    return Pair(a, b, table.assign(gap=1 / table["rank_a"] - 1 / table["rank_b"]))


def sounds_of(result: Result, root: Path | None = None) -> Corpus | str:
    """The clips of a result's protocol, or why they are not at hand. root: as in `Protocol.load`."""
    name = result.protocol["name"]
    try:
        protocol = protocols.get(name)
        if protocol.hash != result.protocol["hash"]:
            return f"{name} is another protocol here, {protocol.hash}"
        return protocol.load(root)
    except (ValueError, OSError) as error:
        return str(error).split("\n")[0]


def _pad(ranks: pd.Series) -> np.ndarray:
    """(queries, most answers) int, 0 behind the last, of texts with blanks between ranks."""
    rows = [[int(rank) for rank in text.split()] for text in ranks]
    table = np.zeros((len(rows), max(map(len, rows))), int)
    for place, row in enumerate(rows):
        table[place, : len(row)] = row
    return table


def _players(part: Corpus, clips: list[str]) -> dict[str, str]:
    """A player with the beginning of each clip in it, as far as there is room; none for a file that cannot be read."""
    import soundfile

    players: dict[str, str] = {}
    room, here = ROOM, set(part.clips["clip"])
    for clip in dict.fromkeys(clips):
        if clip not in here:
            continue
        try:
            waveform, rate = part.read(clip)
        except AudioError:
            continue
        buffer = io.BytesIO()
        shown = audio.resample(waveform[: round(SECONDS * rate)], rate, RATE)
        soundfile.write(buffer, shown, RATE, format="MP3")
        if (room := room - len(buffer.getbuffer())) < 0:
            break
        data = base64.b64encode(buffer.getvalue()).decode()
        players[clip] = f'<br><audio controls preload="none" src="data:audio/mpeg;base64,{data}"></audio>'
    return players


HEAD = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; }}
table {{ border-collapse: collapse; margin: 1em 0; }}
th, td {{ text-align: left; vertical-align: top; padding: 0.3em 1em 0.3em 0; border-bottom: 1px solid #ccc; }}
</style>
<h1>{title}</h1>
"""
