"""All results of a profile on one page: what became of each paper's claims, then tables, figures, their origin."""

import base64
import io
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from PIL import Image

from atr.corpora import remember_corpora
from atr.experiments import study
from atr.experiments.profiles import Profile, get_profile
from atr.reports import freshness
from atr.reports.output import View, legend, read, view
from atr.reports.verdicts import VERDICTS, Claim, ComparisonRow, comparisons, paper_claims
from atr.system import places
from atr.training.records import Run

FILES = {"tables": (".csv", ".json"), "figures": (".png", ".json", ".pdf")}
COLORS = 128  # of a figure within the page: figures have few, and the page stays small
VERDICT_TITLES = {"holds": "Holds", "contradicted": "Contradicted"}
VERDICT_TITLES |= {f"{verdict} in part": f"{words} in part" for verdict, words in VERDICT_TITLES.items()}
EXPLORATION = "00"  # a notebook to look and listen; what it saves is no result
KINDS = {"note": str, "runs": list, "devices": list, "versions": dict, "commits": list, "hashes": dict}
PROVENANCE = {"note", "runs", "devices", "versions", "commits", "result_version", "command"}


@dataclass
class Output:
    """A table or a figure: its .csv or .png, what its .json says, and why it is stale, if it is."""

    path: Path
    provenance: dict[str, Any]
    table: pd.DataFrame | None = None
    stale: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def kind(self) -> str:
        return "figure" if self.table is None else "table"

    @property
    def image(self) -> str:
        """A figure within the page, in as few colours as it needs."""
        content = io.BytesIO()
        with Image.open(self.path) as figure:
            figure.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(content, "png", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"

    @cached_property
    def view(self) -> View:
        """A table as people read it."""
        assert self.table is not None
        return view(self.table)

    @property
    def legend(self) -> str:
        return "" if self.table is None else legend(self.table, self.provenance)

    @property
    def comparisons(self) -> list[ComparisonRow]:
        """The rows that have a verdict."""
        return [] if self.table is None else comparisons(self.name[:2], self.table, self.provenance["caption"])


@dataclass
class Section:
    """A section of a notebook that saves something: its heading, its words (Markdown), what it saves."""

    heading: str
    words: str
    names: list[re.Pattern[str]]
    outputs: list[Output] = field(default_factory=list)


@dataclass
class Study:
    """A notebook with what lies in the results of it; `parts` with the published tables first, empty if it was not run.

    facts: what its runs are; unchecked: what could not be checked, in words.
    """

    path: Path
    title: str
    words: str
    parts: list[Section] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    unchecked: str = ""

    @property
    def outputs(self) -> list[Output]:
        return [output for part in self.parts for output in part.outputs]

    @property
    def number(self) -> str:
        return self.path.stem[:2]


@dataclass
class Paper:
    """A paper, how to cite it (Markdown), the notebooks that repeat it, and its claims.

    name: as its claims have it, such as Mei et al. 2022; its title where none has.
    """

    title: str
    citation: str
    studies: list[Study]
    name: str = ""
    claims: list[Claim] = field(default_factory=list)

    @property
    def sentence(self) -> str:
        """What became of its claims."""
        of_paper = [one for one in self.claims if one.place]
        by = {verdict: [one.title for one in of_paper if one.verdict == verdict] for verdict in VERDICT_TITLES}
        parts = [f"{words}: {'; '.join(by[verdict])}." for verdict, words in VERDICT_TITLES.items() if by[verdict]]
        rest = Counter(one.verdict for one in of_paper if one.verdict not in VERDICT_TITLES)
        counts = ", ".join(f"{number} {verdict}" for verdict, number in rest.items())
        return " ".join([*parts, f"Of {len(of_paper)} claims {counts}." if rest else ""]).strip()


@dataclass
class Report:
    """What a page shows: papers in the README's order; strays are files that belong to no notebook."""

    profile: Profile
    results: Path
    papers: list[Paper]
    strays: list[str]

    @property
    def studies(self) -> list[Study]:
        return [one for paper in self.papers for one in paper.studies]

    @property
    def outputs(self) -> list[Output]:
        return [output for one in self.studies for output in one.outputs]

    @property
    def stale(self) -> int:
        return sum(bool(output.stale) for output in self.outputs)

    @property
    def claims(self) -> list[Claim]:
        return [claim for paper in self.papers for claim in paper.claims]

    @property
    def verdicts(self) -> Counter[str]:
        """Comparisons by verdict, in the order of `VERDICTS`; claims that none tests, too."""
        verdicts = [one.verdict for claim in self.claims for one in claim.comparisons]
        verdicts += [claim.verdict for claim in self.claims if not claim.comparisons]
        return Counter(sorted(verdicts, key=lambda name: [*VERDICTS, name].index(name)))

    @property
    def counts(self) -> str:
        kinds = Counter(output.kind for output in self.outputs)
        names = [*VERDICTS[:3], *(verdict for verdict in self.verdicts if verdict not in VERDICTS[:3])]
        verdicts = ", ".join(f"{self.verdicts[verdict]} {verdict}" for verdict in names)
        return f"{kinds['table']} tables, {kinds['figure']} figures; comparisons: {verdicts}"

    def command(self, *studies: Study) -> str:
        return f"atr study {' '.join(one.number for one in studies)} --profile {self.profile.name}"

    @property
    def notes(self) -> list[str]:
        """What is stale, not checked, not run or left out, a line each."""
        lines = []
        for one in self.studies:
            reasons: dict[str, list[str]] = {}
            for output in one.outputs:
                for why in output.stale:
                    reasons.setdefault(why, []).append(f"{output.kind} {output.name}")
            parts = [
                f"{why} ({'all' if len(names) == len(one.outputs) else ', '.join(names)})"
                for why, names in reasons.items()
            ]
            if parts:
                lines.append(f"{one.path.stem}: stale, run {self.command(one)}: {'; '.join(parts)}")
        for why in dict.fromkeys(one.unchecked for one in self.studies if one.unchecked):
            names = ", ".join(one.path.stem for one in self.studies if one.unchecked == why)
            lines.append(f"{names}: not checked: {why}")
        waiting = [one for one in self.studies if not one.outputs]
        if waiting:
            names = ", ".join(one.path.stem for one in waiting)
            lines.append(f"{names}: not run yet: {self.command(*waiting)}")
        return lines + [f"{name}: belongs to no notebook, left out" for name in self.strays]


def gather(profile_name: str, results: Path | None = None) -> Report:
    """Everything in the results of a profile, checked against its notebooks and runs. ValueError: files that cannot be
    read, or no results at all. results: folder with tables/ and figures/, and runs/ if there are any.
    """
    profile = get_profile(profile_name)
    results = results or profile.results
    files = {
        (folder, path.stem)
        for folder in FILES
        for path in (results / folder).glob("[0-9][0-9]_*")
        if path.suffix in FILES[folder] and path.name[:2] != EXPLORATION
    }
    if not files:
        raise ValueError(f"{results}: no tables or figures there; first: atr study --profile {profile_name}")
    notebooks = [path for path in study.notebooks((), profile) if path.stem[:2] != EXPLORATION]
    with remember_corpora():
        studies = [_study(path, profile, results, files) for path in notebooks]
    numbers = {one.number for one in studies}
    strays = sorted(f"{folder}/{name}" for folder, name in files if name[:2] not in numbers)
    papers = []
    for citation in citations():
        title = re.findall(r"\*(.+?)\.?\*", citation)[0]
        papers.append(Paper(title, citation, [one for one in studies if f"*{title}*" in one.words]))
    of_papers = {one.number for paper in papers for one in paper.studies}
    papers.append(Paper("Further notebooks", "", [one for one in studies if one.number not in of_papers]))
    claims = paper_claims(places.PROJECT / "data" / "reference" / "claims.csv")
    for paper in papers:
        numbers = {one.number for one in paper.studies}
        own = {name for name, rows in claims.items() if any(claim.notebook in numbers for claim in rows)}
        paper.name = next(iter(own), paper.title)
        paper.claims = [claim for name in own for claim in claims[name]]
        for one in paper.studies:
            comparisons = [row for output in one.outputs for row in output.comparisons]
            for claim in paper.claims:
                comparisons = claim.take(comparisons) if claim.notebook == one.number else comparisons
            if comparisons:
                title = f"Further comparisons of notebook {one.number}"
                paper.claims.append(Claim(title, "", "", one.number, "", comparisons))
    return Report(profile, results, [paper for paper in papers if paper.studies], strays)


def citations() -> list[str]:
    """The papers, as the README asks to cite them, in Markdown."""
    readme = (places.PROJECT / "README.md").read_text(encoding="utf-8")
    quotes = re.findall(r"(?:^> .+\n)+", readme.partition("\n## Citing\n")[2].partition("\n## ")[0], re.M)
    return [" ".join(line.removeprefix("> ") for line in block.splitlines()) for block in quotes]


def _study(path: Path, profile: Profile, results: Path, files: set[tuple[str, str]]) -> Study:
    """A notebook and what it made."""
    cells = nbformat.read(path, as_version=4).cells
    title, _, words = cells[0].source.partition("\n")
    result = Study(path, title.lstrip("# "), words.strip())
    own = sorted((name, folder) for folder, name in files if name[:2] == result.number)
    if not own:
        return result
    result.parts = _parts(cells, result.number)
    rest = Section("No longer in the notebook", "", [])
    for name, folder in own:
        output = _output(results / folder, name, f"atr study {result.number} --profile {profile.name}")
        home = next((part for part in result.parts if any(one.fullmatch(name) for one in part.names)), rest)
        home.outputs.append(output)
    result.parts = [part for part in (*result.parts, rest) if part.outputs]
    first = {part.heading for part in result.parts if any(one.name.endswith("_published") for one in part.outputs)}
    result.parts.sort(key=lambda part: part.heading not in first)
    copy = study.executed_copy(results / "notebooks" / path.name)
    grid, lacking = None, ""
    try:
        grid = study.grid(path, {"seeds": None, **study.parameters(copy), "profile_name": profile.name})
    except (ValueError, OSError) as error:
        lacking = f"what the grid needs is not here ({str(error).splitlines()[0]})"
    provenances = {output.path: output.provenance for output in result.outputs}
    runs = results / "runs"
    stale, unchecked = freshness.check(path, copy, provenances, grid, profile, runs)
    result.unchecked = "; ".join(filter(None, [unchecked, lacking]))
    for output in result.outputs:
        output.stale = stale[output.path]
    for output in rest.outputs:
        output.stale.append(f"its notebook no longer makes it (remove {output.path.parent.name}/{output.name}.*)")
    result.facts = _facts([output.provenance for output in result.outputs], grid or [], runs)
    return result


def _parts(cells: list, number: str) -> list[Section]:
    """The sections of a notebook, by its text cells; `names` match what the code cells below save, f-strings too."""
    parts, heading = [], ""
    for cell in cells:
        if cell.cell_type == "markdown":
            heading = next(iter(re.findall(r"^#+ (.+)", cell.source, re.M)), heading)
            parts.append(Section(heading, re.sub(r"^#+ .+\n*", "", cell.source).strip(), []))
        elif cell.cell_type == "code":
            for name in re.findall(rf'"({number}_[^"]+)"', cell.source):
                pattern = r"\w+".join(map(re.escape, re.split(r"\{[^}]*\}", name)))
                parts[-1].names.append(re.compile(pattern))
    return parts


def _output(folder: Path, name: str, command: str) -> Output:
    path = folder / f"{name}{FILES[folder.name][0]}"
    for suffix in FILES[folder.name]:
        if not (folder / f"{name}{suffix}").is_file():
            raise ValueError(f"{folder / name}{suffix}: missing; run {command}, or remove {name}.* there")
    reading = path.with_suffix(".json")
    try:
        provenance = json.loads(reading.read_text(encoding="utf-8"))
        needed = PROVENANCE | ({"caption"} if folder.name == "tables" else set())
        if not isinstance(provenance, dict) or not needed <= set(provenance):
            raise ValueError(f"not an object with {', '.join(sorted(needed))}")
        if not all(isinstance(provenance.get(name, kind()), kind) for name, kind in KINDS.items()):
            raise ValueError(f"{', '.join(KINDS)}: one of them is of another type")
        reading, table = path, None
        if folder.name == "tables":
            table = read(path)
    except ValueError as error:  # of json, pandas and Unicode
        raise ValueError(f"{reading}: cannot be read ({error}); run {command}") from error
    return Output(path, provenance, table)


def _facts(provenances: list[dict[str, Any]], grid: list, folder: Path) -> dict[str, str]:
    """Where a notebook's numbers come from; clips and hours from the runs where these are here."""
    addresses = list(dict.fromkeys(address for one in provenances for address in one["runs"]))
    runs = [Run(folder / address) for address in addresses]
    hours, clips = 0.0, {str(config.corpus): _options(config.corpus) for config in grid}
    if runs and all(run.finished for run in runs):
        hours = sum(run.environment["seconds"] for run in runs) / 3600
        each = {str(run.config.corpus): run for run in runs}
        clips = {key: f"{run.config.corpus['name']}: {_counts(run)}" for key, run in each.items()}
    versions = {
        f"{name} {one}" for made in provenances for name, numbers in made["versions"].items() for one in numbers
    }
    facts = {
        "runs": (f"{len(runs)}" + (f", {hours:.2f} h in sum" if hours else "")) if runs else "",
        "seeds": ", ".join(map(str, sorted({config.seed for config in grid}))),
        "clips": "; ".join(dict.fromkeys(clips.values())),
        "devices": "; ".join(sorted({device for made in provenances for device in made["devices"]})),
        "versions": ", ".join(sorted(versions)),
        "commits": ", ".join(sorted({commit for made in provenances for commit in made["commits"]})),
        "result version": ", ".join(sorted({str(made["result_version"]) for made in provenances})),
        "command": "; ".join(sorted({made["command"] for made in provenances if made["command"]})),
    }
    return {name: value for name, value in facts.items() if value}


def _options(corpus: Mapping[str, Any]) -> str:
    words = [
        f"{name} {value}" for name, value in corpus.items() if name != "name" and not isinstance(value, tuple | list)
    ]
    return f"{corpus['name']}: {', '.join(words)}" if words else corpus["name"]


def _counts(run: Run) -> str:
    return ", ".join(f"{count:,} {split}" for split, count in run.clips["split"].value_counts(sort=False).items())
