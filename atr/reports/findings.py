"""What was found, written from the committed tables: `docs/findings.md`, and the parts of README.md that hold numbers.

A section per notebook and profile whose runs' ranks are committed (`experiments.reported`): those that keep to
docs/protocol.md. No number and no verdict is typed by hand.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from atr.experiments.profiles import PROFILES
from atr.reports import names
from atr.reports.output import legend, markdown, read
from atr.reports.verdicts import DIRECTIONS, VERDICTS, ComparisonRow, comparisons, paper_claims, split_direction
from atr.system import atomic

HEAD = """# What was found

Written by `atr reference` from the tables in [results/reference](../results/reference); nothing here is typed by hand.
How methods are compared and claims judged: [protocol.md](protocol.md). *Holds* and *contradicted* are told with the
difference and its 95 % interval in points; where a claim is *undecided* or a method has *not converged*, no effect is
told. R@k and mAP@10 are in percent, means over seeds ± their standard deviation.
"""
CHANGES = """## What changed

Verdicts before methods had equal chances, beside those of now (two where both directions are judged: T→A, then A→T).
Those of `esc50` were made on ten of its classes, with the encoder of `demo` trained on them; *not asked* as above.
"""
APART = """## Where synthesised and recorded sounds disagree

Comparisons that `demo` (sounds synthesised on the spot, an encoder trained on them) and `esc50` (scenes of recordings,
an encoder that has heard AudioSet) both decide: {} of {} alike. The others:
"""
PAPERS = """## What the papers claim

In our words, with how each is judged: the smallest effect that counts was settled before its results, but for the
evenness that the penalty rewards, where equality was asked first, and for spans of learning rates, where equal spans
contradicted first if they were of a single rate, too. By profile the verdict, and of how many comparisons it is where
these differ (*in part*); *not asked* where a profile runs the notebook without it: `esc50` has one audio encoder, and
its ten epochs are too few for what only fine-tuned encoders can tell; a dash where it does not run the notebook.
"""
NOT_ASKED = "not asked"
PAGE = "docs/findings.md"
OTHERWISE = f"[which ones]({PAGE}#where-synthesised-and-recorded-sounds-disagree)"
COLUMNS = ("t2a_r1", "t2a_map10", "t2a_r10", "a2t_map10", "audio_h", "text_h")
BEST = names.HEADINGS["t2a_map10"]
START, END = "<!-- {}: written by `atr reference` -->", "<!-- end -->"


def page(project: Path) -> str:
    """The whole page, from the committed results, the notebooks and the verdicts of before."""
    parts, by_notebook, comparisons = [HEAD], {}, {}
    for folder, notebook in sections(project):
        parts.append(section(folder, notebook))
        by_notebook[folder.name, notebook.stem[:2]] = _claims(folder, notebook)
    for folder, notebook in [*sections(project), *sections_without_runs(project)]:
        comparisons[folder.name, notebook.stem[:2]] = _comparisons(folder, notebook)
    parts.append(apart(by_notebook))
    reference = project / "data" / "reference"
    before = pd.read_csv(reference / "verdicts_before.csv", dtype=str)
    return "\n".join([*parts, papers(reference / "claims.csv", comparisons), changes(before, by_notebook)])


def papers(table: Path, made: Mapping[tuple[str, str], Sequence[ComparisonRow]]) -> str:
    """What became of each paper's claims, a column per profile. made: comparisons by profile and notebook."""
    parts, profiles = [PAPERS], list(dict.fromkeys(profile for profile, _ in made))
    results = {profile: paper_claims(table) for profile in profiles}
    for paper, claims_of in paper_claims(table).items():
        rows = []
        for place, claim in enumerate(claims_of):
            how = claim.context.removesuffix(claim.note).removesuffix("; ") or "—"
            row = {"claim": f"{claim.title} ({claim.place})", "judged": how, "notebook": claim.notebook or "—"}
            for profile in profiles:
                entry = results[profile][paper][place]
                entry.take(made.get((profile, claim.notebook), []))
                counts = f" ({entry.count})" if "part" in entry.verdict else ""
                otherwise = claim.note or (NOT_ASKED if (profile, claim.notebook) in made else "—")
                row[profile] = f"{entry.verdict}{counts}" if entry.comparisons else otherwise
            rows.append(row)
        parts.append(f"### {paper}\n\n{markdown(pd.DataFrame(rows))}\n")
    return "\n".join(parts)


def apart(by_notebook: Mapping[tuple[str, str], pd.DataFrame]) -> str:
    """What comes out otherwise on recordings than on synthesised sounds. by_notebook: by profile and notebook."""
    both, other = disagreements(by_notebook)
    return f"{APART.format(both - len(other), both)}\n{markdown(other) if len(other) else 'none.'}\n"


def disagreements(by_notebook: Mapping[tuple[str, str], pd.DataFrame]) -> tuple[int, pd.DataFrame]:
    """How many comparisons `demo` and `esc50` both decide, and those that they decide otherwise, one per row."""
    by_profile: dict[str, dict[tuple[str, str], str]] = {"demo": {}, "esc50": {}}
    for (profile, notebook), table in by_notebook.items():
        for row in table[table["verdict"].isin(VERDICTS[:2])].to_dict("records"):
            by_profile.setdefault(profile, {})[notebook, _anywhere(profile, row["claim"])] = verdict(row)
    both = [key for key in by_profile["demo"] if key in by_profile["esc50"]]
    rows = [(*key, by_profile["demo"][key], by_profile["esc50"][key]) for key in both]
    other = [row for row in rows if row[2].partition(":")[0] != row[3].partition(":")[0]]
    return len(rows), pd.DataFrame(other, columns=["notebook", "claim", "demo", "esc50"])


def _anywhere(profile: str, claim: str) -> str:
    """A claim less the names of a profile's corpus and encoders."""
    for title in PROFILES[profile].corpora:
        claim = claim.removeprefix(f"{title}, ")
    return re.sub(r"\w+ \(in (\w+)'s place\)", r"\1", claim)


def _comparisons(folder: Path, notebook: Path) -> list[ComparisonRow]:
    """All of a notebook that have a verdict."""
    rows = []
    for path in sorted((folder / "tables").glob(f"{notebook.stem[:2]}_*.csv")):
        caption = atomic.read_object(path.with_suffix(".json"))["caption"]
        rows += comparisons(notebook.stem[:2], read(path), caption)
    return rows


def sections(project: Path) -> list[tuple[Path, Path]]:
    """Folder of results and notebook of each section, by notebook and profile."""
    files = (project / "results" / "reference").glob("*/ranks/*.npz")
    ordered = sorted(files, key=lambda path: (path.stem, path.parts[-3]))
    return [(path.parents[1], next((project / "notebooks").glob(f"{path.stem}_*.ipynb"))) for path in ordered]


def sections_without_runs(project: Path) -> list[tuple[Path, Path]]:
    """Folder and notebook of the results in which nothing is trained, so that no ranks are kept: of captions alone."""
    executed = sorted((project / "results" / "reference").glob("*/notebooks/*.ipynb"))
    ours = [path for path in executed if path.parts[-3] in PROFILES and not PROFILES[path.parts[-3]].corpora]
    return [(path.parents[1], project / "notebooks" / path.name) for path in ours]


def changes(before: pd.DataFrame, by_notebook: Mapping[tuple[str, str], pd.DataFrame]) -> str:
    """Verdicts of before beside those of now, with what was wrong with the old ones: of notebooks that were run again.

    before: notebook, profile, claim in the words of now, verdict, reason. by_notebook: by profile and notebook.
    """
    rows = []
    today = {(number, _anywhere(name, one)) for (name, number), table in by_notebook.items() for one in table["claim"]}
    for row in before.to_dict("records"):
        if (table := by_notebook.get((row["profile"], row["notebook"]))) is None:
            continue
        claim = row["claim"]
        words = {claim, *(f"{claim}, {title}" for title in DIRECTIONS.values())}
        now = table[table["claim"].isin(words)]
        if not today & {(row["notebook"], _anywhere(row["profile"], one)) for one in words}:
            raise ValueError(f"verdicts_before.csv: {claim!r} is no claim of notebook {row['notebook']} now")
        after = "; ".join(verdict(one) for one in now.to_dict("records")) or NOT_ASKED
        rows.append((row["profile"], row["notebook"], claim, row["before"], after, row["reason"]))
    columns = ["profile", "notebook", "claim", "before", "now", "what was wrong before"]
    return f"{CHANGES}\n{markdown(pd.DataFrame(rows, columns=columns))}\n"


def section(folder: Path, notebook: Path) -> str:
    """One notebook's results in one profile: its question, main table and claims."""
    about = atomic.read_object(folder / "tables" / f"{notebook.stem}.json")
    table, own = _main(folder, notebook), _claims(folder, notebook)
    return "\n\n".join(
        [
            f"## {heading(folder, notebook)}",
            f"{verdict_counts(own)} {best(table)}",
            results(table),
            claims(own),
            f"{legend(table, about)} {about['note']}\n",
        ]
    )


def heading(folder: Path, notebook: Path) -> str:
    """The heading of a section."""
    return f"{question(notebook)} (notebook {notebook.stem[:2]}, `{folder.name}`)"


def question(notebook: Path) -> str:
    """What it asks: its title, less its number."""
    first = atomic.read_object(notebook)["cells"][0]["source"]
    return re.sub(r"^# (\d+ )?", "", "".join(first).partition("\n")[0])


def _main(folder: Path, notebook: Path) -> pd.DataFrame:
    return read(folder / "tables" / f"{notebook.stem}.csv")


def _claims(folder: Path, notebook: Path) -> pd.DataFrame:
    """All that a notebook judged, in one table or several."""
    return pd.concat(map(read, sorted((folder / "tables").glob(f"{notebook.stem[:2]}_*claims.csv"))), ignore_index=True)


class Conclusion:
    """What a notebook found, at its top: a line that `write` fills once its tables are there.

    stem: the notebook's file name, less its ending.
    """

    def __init__(self, stem: str) -> None:
        from IPython.display import Markdown, display

        self.stem = stem
        self.place = display(Markdown("*What we found stands here once the last cell has run.*"), display_id=stem)

    def write(self, results: Path, lines: Sequence[str] = ()) -> Any:
        """Fill the place at the top; the same again, for the end. results: as `conclude` takes it; lines: further ones,
        in Markdown.
        """
        from IPython.display import Markdown

        written = Markdown("\n".join([conclude(results, self.stem), *lines]))
        if self.place is not None:  # outside of a notebook there is none
            self.place.update(written)
        return written


def conclude(results: Path, stem: str) -> str:
    """A notebook's answer in Markdown, from its tables in `results`/tables: the best row, how many claims hold, and
    those that hold or are contradicted, with their effects.
    """
    table = results / "tables" / f"{stem}.csv"
    parts = [f"**What we found** (`{results.name}`)"]
    if table.exists() and "t2a_map10" in (scores := pd.read_csv(table)):
        parts.append(best(scores))
    if not any(table.parent.glob(f"{stem[:2]}_*claims.csv")):
        return " ".join(parts) + "\n"
    own = _claims(results, Path(stem))
    effects = [row for row in own.to_dict("records") if row["verdict"] in VERDICTS[:2]]
    return "\n".join(
        [" ".join([*parts, verdict_counts(own)]), "", *(f"- {row['claim']}: {verdict(row)}." for row in effects)]
    )


def verdict_counts(table: pd.DataFrame) -> str:
    """How many claims hold, and so on."""
    numbers = table["verdict"].value_counts().to_dict()
    ordered = [name for name in dict.fromkeys([*VERDICTS, *numbers]) if name in numbers]
    return f"{len(table)} comparisons: {', '.join(f'{name} {numbers[name]}' for name in ordered)}."


def best(table: pd.DataFrame, interval: bool = False) -> str:
    """The row with the highest mAP@10, text to audio, of each kind of training: with its deviation over seeds, or with
    its 95 % interval.
    """
    labels = [label for label in _labels(table) if label not in ("corpus", "rate")]
    ordered = table.sort_values("t2a_map10", ascending=False)
    # What has no training is a baseline.
    first = ordered.dropna(subset="training").drop_duplicates("training") if "training" in table else ordered.head(1)
    text = names.readable(first)
    words = {label: f"{names.heading(label)} " for label in labels if pd.api.types.is_numeric_dtype(table[label])}
    rows = [
        f"{', '.join(words.get(label, '') + row[names.heading(label)] for label in labels)} {row[BEST]}"
        for row in text.to_dict("records")
    ]
    if interval:
        rows = [
            f"{row.rpartition(' ± ')[0] or row} ({ends})" for row, ends in zip(rows, text[f"{BEST}, 95 %"], strict=True)
        ]
    return f"Highest {BEST}: {'; '.join(rows)}."


def results(table: pd.DataFrame) -> str:
    """The main table in Markdown: what tells its rows apart, the scores that lead, and of mAP@10 the interval."""
    columns = list(map(str, table))
    shown = [*_labels(table), *(name for name in columns if name in COLUMNS or name.endswith("_t2a_map10"))]
    shown += [name for name in columns if name.removesuffix("_std") in shown and name not in shown]
    shown += [name for name in ("t2a_map10_low", "t2a_map10_high", "converged") if name in table]
    text = names.readable(table[shown])
    return markdown(text.loc[:, [not text[name].isin(["", "—"]).all() for name in text]])


def claims(table: pd.DataFrame) -> str:
    """Each claim with its verdicts in Markdown, a column per direction of retrieval where it speaks of both."""
    rows: dict[str, dict[str, str]] = {}
    for row in table.to_dict("records"):
        claim, way = split_direction(row["claim"])
        rows.setdefault(claim, {})[way] = verdict(row)
    ways = [way for way in ("", *DIRECTIONS.values()) if any(way in verdicts for verdicts in rows.values())]
    table = pd.DataFrame(
        [
            {"claim": claim} | {way or "verdict": verdicts.get(way, "") for way in ways}
            for claim, verdicts in rows.items()
        ]
    )
    return markdown(table)


def verdict(row: dict) -> str:
    """A verdict, and where there is an effect its size."""
    if row["verdict"] not in VERDICTS[:2] or pd.isna(row.get("low")):
        return row["verdict"]
    difference, ends = names.effect(row.get("difference", math.nan), row["low"], row["high"])
    return f"{row['verdict']}: {ends}" if difference == "—" else f"{row['verdict']}: {difference} ({ends})"


def _labels(table: pd.DataFrame) -> list[str]:
    """The columns before the scores, but for those that are the same in all rows."""
    labels = list(table.columns[: list(table.columns).index("seeds")])
    return [label for label in labels if table[label].nunique(dropna=False) > 1]


def replace_parts(text: str, parts: Sequence[tuple[str, str]]) -> str:
    """A page with what stands between its marks written anew. ValueError: a mark is not there once."""
    for name, content in parts:
        start = START.format(name)
        if text.count(start) != 1:
            raise ValueError(f"README.md: {text.count(start)} lines {start!r}; write one, and {END!r} below")
        before, _, rest = text.partition(start)
        text = f"{before}{start}\n\n{content}\n\n{END}{rest.partition(END)[2]}"
    return text


def write(project: Path) -> list[Path]:
    """Write docs/findings.md and the marked parts of README.md; the paths written."""
    readme, target = project / "README.md", project / PAGE
    texts = {target: page(project), readme: replace_parts(readme.read_text(encoding="utf-8"), lead(project))}
    for path, text in texts.items():
        atomic.write_text(path, text)
    return list(texts)


def lead(project: Path) -> list[tuple[str, str]]:
    """What README.md shows, a table: by question and profile that judges claims on it, the best row, the first claim
    that holds or is contradicted, and how many do; below it how many of them depend on the sounds.
    """
    rows: dict[str, dict[str, str]] = {}
    by_notebook: dict[tuple[str, str], pd.DataFrame] = {}
    for folder, notebook in sections(project):
        own = by_notebook[folder.name, notebook.stem[:2]] = _claims(folder, notebook)
        if not own["verdict"].isin(VERDICTS).any():
            continue
        decided = own[own["verdict"].isin(VERDICTS[:2]) & own["difference"].notna()].to_dict("records")
        lines = [best(_main(folder, notebook), interval=True).removeprefix(f"Highest {BEST}: ")]
        lines += [f'"{row["claim"]}" {verdict(row)}.' for row in decided[:1]]
        link = f"[{question(notebook)}]({PAGE}#{anchor(heading(folder, notebook))}) ({notebook.stem[:2]})"
        row = rows.setdefault(notebook.stem, {"question": link})
        row[f"`{folder.name}`"] = "<br>".join([*lines, verdict_counts(own)])
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    cells = [columns, ["---"] * len(columns), *([row.get(name, "—") for name in columns] for row in rows.values())]
    both, other = disagreements(by_notebook)
    agree = f"Do synthesised and recorded sounds agree? Of {both} comparisons that both profiles decide, {len(other)}"
    lines = [*(f"| {' | '.join(row)} |" for row in cells), "", f"{agree} come out otherwise: {OTHERWISE}."]
    return [("findings", "\n".join(lines))]


def anchor(heading: str) -> str:
    """Where a heading of a page is found, as GitHub names it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
