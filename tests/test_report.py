"""A project of two small notebooks, whose results are reported, go stale, break."""

import base64
import dataclasses
import hashlib
import json
import os
import re
import shutil
import zipfile
from datetime import UTC, datetime
from html.parser import HTMLParser
from io import BytesIO

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from made_runs import made_run
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image
from typer.testing import CliRunner

from atr.cli.app import app
from atr.config import RESULT_VERSION
from atr.corpora import corpus_of
from atr.experiments import profiles, study
from atr.experiments.notebooks import EXTERNAL
from atr.reports import figures, freshness, latex, output, render, report, verdicts
from atr.reports.names import readable
from atr.system import places
from atr.training import identity, records

GRID = """
import atr
profile = atr.get_profile(profile_name)
corpus = {"name": "soundscapes", "train": 8, "validation": 2, "test": 4, "duration": 4.0}
configs = [profile.config("soundscapes", "scratch", "nt_xent", seed) for seed in seeds or profile.seeds]
grid = [config.replace(corpus=corpus) for config in configs]
"""
README = """# small

## Citing

> A. First: *A First Paper.* Somewhere
> 2001.
>
> B. Second: *A Second Paper: More.* 2002.

## Licence
> not a paper
"""
CLAIMS = """paper,place,claim,direction,notebook,measure,rule,effect,note,comparisons,figure
A 2001,table 1,A is better,both,01,mAP@10,beats,1,,^a beats,01_all
A 2001,table 2,Sizes are alike,T→A,01,R@10,within,3,,sizes,01_gone
A 2001,section 3,Nothing gets worse,T→A,01,loss,no less,0,pending,not gets worse,
B 2002,figure 1,Else,—,02,,,,not here: a reason,,
"""
VOID = {"meta", "input", "img", "br", "hr", "link"}


def notebook(title, paper, *saving):
    parameters = new_code_cell('profile_name = "demo"\nseeds = None', metadata={"tags": ["parameters"]})
    grid = new_code_cell(GRID, metadata={"tags": ["grid"]})
    opening = new_markdown_cell(f"# {title}\n\nThem 2001, *{paper}*, table 1.\n\nLet *x* < 5 & so. **Is it so?**")
    cells = [opening, parameters, new_markdown_cell("## The grid"), grid]
    for heading, code in saving:
        cells += [new_markdown_cell(heading), new_code_cell(code)]
    return new_notebook(cells=cells)


def execute(results, path, seeds=None):
    """The executed copy of a notebook, as papermill leaves it."""
    copy = nbformat.read(path, as_version=4)
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    copy.cells[1].metadata["execution"] = {"iopub.execute_input": now}
    injected = new_code_cell(f'# Parameters\nprofile_name = "smoke"\nseeds = {seeds}\n')
    injected.metadata["tags"] = ["injected-parameters"]
    copy.cells.insert(2, injected)
    (results / "notebooks").mkdir(parents=True, exist_ok=True)
    nbformat.write(copy, results / "notebooks" / path.name)


def later(path, seconds):
    at = path.stat().st_mtime + seconds
    os.utime(path, (at, at))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The project's notebooks; nothing is run yet."""
    folder = tmp_path / "project" / "notebooks"
    folder.mkdir(parents=True)
    (folder.parent / "README.md").write_text(README)
    (folder.parent / "data" / "reference").mkdir(parents=True)
    (folder.parent / "data" / "reference" / "claims.csv").write_text(CLAIMS)
    monkeypatch.setattr(places, "PROJECT", folder.parent)
    monkeypatch.setenv("ATR_RESULTS", str(tmp_path / "results"))
    first = notebook(
        "01 First?",
        "A First Paper",
        ("## All of them\n\nWhat *all* came to.", 'tables.save(t, r, "01_all", "All.")\nfigures.save(f, r, "01_all")'),
        ("## Judged", 'tables.save(t, r, "01_claims", "Claims.", runs)'),
        ("Below the same heading.", 'for n in "ab":\n    tables.save(t, r, f"01_each_{n}", "Each.")'),
        ("## Beside ours", 'tables.save(t, r, "01_published", "Published.")'),
    )
    nbformat.write(first, folder / "01_first.ipynb")
    nbformat.write(notebook("02 Second?", "A Second Paper: More"), folder / "02_second.ipynb")
    return folder


@pytest.fixture
def results(project, monkeypatch):
    """Fresh results of notebook 01: two runs, four tables and a figure."""
    folder = places.results_home() / "smoke"
    path = project / "01_first.ipynb"
    execute(folder, path)
    monkeypatch.setenv("ATR_COMMAND", "atr study 01 --profile smoke")
    monkeypatch.setenv("ATR_NOTEBOOK", study.code(nbformat.read(path, as_version=4)))
    runs = []
    for config in study.grid(path, {"profile_name": "smoke", "seeds": None}):
        corpus = corpus_of(config.corpus)
        place = identity.locate(config, corpus, folder / "runs")
        runs.append(made_run(folder / "runs", place.address, config, [1, 2, 3, 4], [1, 2, 3, 4]))
        corpus.clips[["clip", "split"]].to_csv(place.path / "clips.csv", index=False)
    plain = pd.DataFrame({"loss": ["a_1 & <b>", "50 %"], "t2a_r10": [76.84, 9.96], "t2a_r10_std": [1.126, 0.5]})
    output.save(plain, folder, "01_all", "All & <i>some</i>, T→A.", runs)
    output.save(plain, folder, "01_each_a", "Each.", runs[:1])
    output.save(pd.DataFrame({"loss": ["a"], "ours": ["76.8 ± 1.1"]}), folder, "01_published", "Published.", runs)
    claims = ["a beats b, T→A", "a beats b, A→T", "it gets worse", "b beats a"]
    judged = {"claim": claims, "difference": [1.5, 0.5, -2.0, -70.123], "low": [0.5, -1.0, -3.0, -71.0]}
    judged |= {"high": [2.5, 2.0, -1.0, -69.0], "p (Holm)": [0.004, 0.3, 1e-5, 0.5]}
    judged["verdict"] = ["holds", "undecided", "contradicted", "holds"]
    output.save(pd.DataFrame(judged), folder, "01_claims", "Claims.", runs)
    figures.save(plt.figure(figsize=(1, 1)), folder, "01_all", runs)
    return folder


def outputs(gathered):
    return {f"{one.kind} {one.name}": one for one in gathered.outputs}


class Reader(HTMLParser):
    """Elements of a page: (name, attributes); `balanced` if each is closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.balanced, self.words = [], [], True, []
        self.feed(text)
        self.balanced &= not self.open

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        self.balanced &= bool(self.open) and self.open.pop() == name

    def handle_data(self, words):
        self.words.append(words.strip())

    def all(self, name):
        return [attributes for one, attributes in self.elements if one == name]


class TestThePage:
    def test_it_stands_alone_and_can_be_read_by_anyone(self, results):
        text = render.page(report.gather("smoke"))
        page = Reader(text)
        assert page.balanced and page.all("html") == [{"lang": "en"}] and "<title>" in text
        names = {name for name, _ in page.elements}
        assert not names & {"link", "iframe", "object", "base"} and text.count("<script>") == 1
        script = text.partition("<script>")[2].partition("</script>")[0]
        mark = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{mark}'" in text
        assert {"nav", "main", "h1", "h2", "h3", "caption", "details"} <= names
        assert not re.search(r"(https?:)?//\w", text) and "@import" not in text and "url(" not in text
        assert all(one["src"].startswith("data:image/png;base64,") and one["alt"] for one in page.all("img"))
        assert all(one["scope"] in ("col", "row", "rowgroup") for one in page.all("th"))
        ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        links = [one["href"] for one in page.all("a")]
        assert len(links) > 4 and {link[0] for link in links} == {"#"} and {link[1:] for link in links} <= set(ids)
        boxes = [one for _, one in page.elements if one.get("class", "").startswith("box")]
        assert len(boxes) == len(page.all("table")) and all(one["tabindex"] == "0" for one in boxes)

    def test_the_figure_is_in_it_as_it_was_drawn(self, results):
        figure, axis = plt.subplots(figsize=(2, 2))
        axis.plot([1, 2], color="C3")
        runs = [records.Run(path) for path in (results / "runs").iterdir()]
        figures.save(figure, results, "01_all", runs)
        [image] = Reader(render.page(report.gather("smoke"))).all("img")
        held, drawn = (
            np.asarray(Image.open(one).convert("RGB"), float)
            for one in (BytesIO(base64.b64decode(image["src"].partition(",")[2])), results / "figures" / "01_all.png")
        )
        assert held.shape == drawn.shape and np.abs(held - drawn).mean() < 1 < np.ptp(held)

    def test_a_table_shows_mean_and_deviation_and_its_caption_as_text(self, results):
        page = Reader(render.page(report.gather("smoke")))
        assert "76.8 ± 1.1" in page.words and "10.0 ± 0.5" in page.words
        assert "T→A R@10" in page.words and "t2a_r10_std" not in page.words
        assert "a_1 & <b>" in page.words  # not markup
        assert "All & <i>some</i>, T→A. R@k in percent. Measured on 4 test clips of soundscapes." in page.words
        assert "Let" in page.words and not page.all("i") and not page.all("b")

    def test_the_words_of_the_notebook_and_its_paper_are_around_it(self, results):
        text = render.page(report.gather("smoke"))
        assert "<strong>Is it so?</strong>" in text and "A. First: <em>A First Paper.</em> Somewhere 2001." in text
        assert "What <em>all</em> came to." in text and "Below the same heading." in text

    def test_where_the_numbers_come_from(self, results):
        [first, _] = report.gather("smoke").studies
        assert first.facts["runs"] == "2, 1.00 h in sum" and first.facts["seeds"] == "0, 1"
        assert first.facts["clips"] == "soundscapes: 8 train, 2 validation, 4 test"
        assert first.facts["devices"] == "cpu, Linux x86_64" and first.facts["commits"] == "0123456789ab"
        assert "torch 1.0" in first.facts["versions"] and first.facts["command"] == "atr study 01 --profile smoke"
        page = render.page(report.gather("smoke"))
        assert all(address in page for address in first.outputs[0].provenance["runs"])

    def test_the_same_results_give_the_same_page(self, results):
        assert render.page(report.gather("smoke")) == render.page(report.gather("smoke"))


class TestWhatIsGathered:
    def test_published_tables_first_then_the_notebooks_order(self, results):
        [first, _] = report.gather("smoke").studies
        assert [part.heading for part in first.parts] == ["Beside ours", "All of them", "Judged", "Judged"]
        names = [one.name for one in first.outputs]
        assert names == ["01_published", "01_all", "01_all", "01_claims", "01_each_a"]

    def test_each_comparison_stands_by_the_claim_that_it_tests(self, results):
        gathered = report.gather("smoke")
        first, second = gathered.papers
        assert (first.name, second.name) == ("A 2001", "B 2002")
        better, alike, worse, further = first.claims
        assert [(one.direction, one.verdict, one.difference, one.interval, one.p) for one in better.comparisons] == [
            ("T→A", "holds", "+1.5", "0.5 to 2.5", "0.004"),
            ("A→T", "undecided", "+0.50", "-1.00 to 2.00", "0.300"),
        ]
        assert better.verdict == "holds in part" and better.count == "1 of 2 holds"
        assert better.context == "by mAP@10; holds if ahead by 1 or more" and alike.verdict == "not tested"
        assert [(one.words, one.verdict) for one in worse.comparisons] == [("not: it gets worse", "holds")]
        assert worse.context == "by loss; holds if behind by less than 0; pending"
        assert further.title == "Further comparisons of notebook 01" and further.comparisons[0].words == "b beats a"
        assert first.sentence == "Holds: Nothing gets worse. Holds in part: A is better. Of 3 claims 1 not tested."
        assert second.sentence == "Of 1 claims 1 not tested."
        assert gathered.counts == (
            "4 tables, 1 figures; comparisons: 3 holds, 0 contradicted, 1 undecided, 2 not tested"
        )

    @pytest.mark.parametrize(
        "verdict_words, verdict",
        [
            (["holds", "holds"], "holds"),
            (["holds", "contradicted"], "holds in part"),
            (["undecided", "contradicted"], "contradicted in part"),
            (["undecided", "not converged"], "undecided"),
            ([], "not tested"),
        ],
    )
    def test_a_claim_s_verdict_is_that_of_all_its_comparisons(self, verdict_words, verdict):
        rows = [verdicts.ComparisonRow("01", "", "", word, "", "", "") for word in verdict_words]
        assert verdicts.Claim("", "table 1", "", "01", "", rows).verdict == verdict

    def test_verdicts_on_something_else_than_claims_stand_there_too(self, results):
        table = pd.DataFrame({"measure": ["MTLD"], "verdict": ["contradicted"]})
        output.save(table, results, "01_each_b", "Richer?", [records.Run(next((results / "runs").iterdir()))])
        gathered = report.gather("smoke")
        further = gathered.papers[0].claims[-1].comparisons
        assert [(one.words, one.verdict) for one in further][1] == ("Richer? MTLD", "contradicted")

    def test_what_was_found_stands_first_and_what_is_missing_last(self, results):
        text = render.page(report.gather("smoke"))
        order = [
            "Holds: Nothing gets worse.",
            'id="filters"',
            ">A is better",
            "<em>all</em>",
            'id="notes"',
            "not run yet",
        ]
        at = [text.index(part) for part in order]
        assert at == sorted(at)
        page = Reader(text)
        assert {"href": "#f01_all"} in page.all("a")  # a claim's figure; of another, which is not drawn, its notebook
        kinds = [one.get("class") for one in page.all("td")]
        assert "number" in kinds

    def test_papers_in_the_readmes_order_with_their_notebooks(self, results, project):
        nbformat.write(notebook("03 Mine?", "Nothing Cited"), project / "03_mine.ipynb")
        papers = report.gather("smoke").papers
        assert [paper.title for paper in papers] == ["A First Paper", "A Second Paper: More", "Further notebooks"]
        assert [[one.number for one in paper.studies] for paper in papers] == [["01"], ["02"], ["03"]]

    def test_a_notebook_that_was_not_run_is_named_with_its_command(self, results):
        gathered = report.gather("smoke")
        assert gathered.notes == ["02_second: not run yet: atr study 02 --profile smoke"] and not gathered.stale
        assert "Not run yet: <code>atr study 02 --profile smoke</code>" in render.page(gathered)

    def test_files_of_no_notebook_are_left_out_and_named(self, results):
        shutil.copy(results / "tables" / "01_all.csv", results / "tables" / "77_all.csv")
        assert "tables/77_all: belongs to no notebook, left out" in report.gather("smoke").notes

    def test_exploring_is_no_result(self, results, project):
        before = report.gather("smoke")
        nbformat.write(notebook("00 Look", "A First Paper"), project / "00_look.ipynb")
        shutil.copy(results / "tables" / "01_all.csv", results / "tables" / "00_all.csv")
        assert report.gather("smoke").notes == before.notes and report.gather("smoke").counts == before.counts

    def test_no_results_at_all_is_an_error_with_the_mend(self, project):
        with pytest.raises(ValueError, match="smoke: no tables or figures there; first: atr study --profile smoke"):
            report.gather("smoke")
        with pytest.raises(ValueError, match="unknown 'nope'; known: smoke"):
            report.gather("nope")


def unfinish(results, project):
    next((results / "runs").glob("*/metrics.json")).unlink()
    return "1 of its 2 runs are not finished", "table 01_all"


def other_run(results, project):
    path = results / "tables" / "01_all.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"runs": [content["runs"][0], "0" * 16]}))
    return "1 of its 2 runs are no longer in the grid", "table 01_all"


def change_code(results, project):
    path = project / "01_first.ipynb"
    path.write_text(path.read_text().replace("for n in", "for  n in"))
    return "its notebook has changed since it was run", "figure 01_all"


def run_again(results, project):
    path = next((results / "runs").glob("*/metrics.json"))
    path.write_text(path.read_text().replace("100.0", "99.0", 1))
    return "a run of it was made again, and came out differently", "table 01_claims"


def not_written(results, project):
    path = results / "figures" / "01_all.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"hashes": content["hashes"] | {"notebook": "another"}}))
    return "its notebook did not write it when it was last run", "figure 01_all"


def older_version(results, project):
    path = results / "tables" / "01_published.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"result_version": 0}))
    return f"made by result version 0, now {RESULT_VERSION}", "table 01_published"


def left_over(results, project):
    for path in (results / "tables").glob("01_all.*"):
        shutil.copy2(path, path.with_stem("01_former"))
    return "its notebook no longer makes it (remove tables/01_former.*)", "table 01_former"


def fewer_seeds(results, project):
    execute(results, project / "01_first.ipynb", seeds=[1])
    return "1 of its 2 runs are no longer in the grid", "table 01_all"


class TestStaleness:
    def test_fresh_results_are_not_stale(self, results):
        assert not any(one.stale for one in report.gather("smoke").outputs)

    @pytest.mark.parametrize("when", ["runs", "tables", "notebooks"])
    def test_times_of_files_say_nothing(self, results, when):
        for path in (results / when).rglob("*"):  # copied without their times, or a clock was set back
            later(path, 86400)
        gathered = report.gather("smoke")
        assert not gathered.stale and not gathered.studies[0].unchecked

    def test_results_saved_without_hashes_are_not_told_apart_and_it_is_said(self, results, project):
        for path in results.glob("*/01_*.json"):
            content = json.loads(path.read_text())
            del content["hashes"]
            path.write_text(json.dumps(content))
        run_again(results, project)
        gathered = report.gather("smoke")
        assert not gathered.stale and "cannot tell what code and runs made it" in gathered.studies[0].unchecked

    def test_without_the_executed_notebook_the_code_that_was_run_is_known(self, results, project):
        shutil.rmtree(results / "notebooks")
        why, where = change_code(results, project)
        assert why in outputs(report.gather("smoke"))[where].stale

    def test_a_damaged_run_is_named(self, results):
        path = next((results / "runs").glob("*/environment.json"))
        path.write_text("{")
        (stale,) = {tuple(one.stale) for one in report.gather("smoke").outputs if len(one.stale) == 2}
        assert stale[0] == "1 of its 2 runs are not finished" and str(path) in stale[1]

    @pytest.mark.parametrize(
        "change",
        [unfinish, other_run, change_code, run_again, not_written, older_version, left_over, fewer_seeds],
        ids=lambda change: change.__name__,
    )
    def test_what_the_notebook_would_not_make_today_is_marked(self, results, project, change):
        why, where = change(results, project)
        gathered = report.gather("smoke")
        assert why in outputs(gathered)[where].stale
        assert any(note.startswith("01_first: stale, run atr study 01 --profile smoke: ") for note in gathered.notes)
        assert why in " ".join(gathered.notes) and why in " ".join(Reader(render.page(gathered)).words)

    def test_runs_that_a_grid_has_gained_make_all_of_it_stale(self, results, monkeypatch):
        larger = dataclasses.replace(profiles.PROFILES["smoke"], seeds=(0, 1, 2))
        monkeypatch.setitem(profiles.PROFILES, "smoke", larger)
        reasons = [one.stale for one in report.gather("smoke").outputs]
        assert reasons == [["the grid has 1 runs that nothing here rests on"]] * 5

    def test_the_seeds_that_a_notebook_was_run_with_are_its_grid(self, results, project, monkeypatch):
        execute(results, project / "01_first.ipynb", seeds=[0, 1])
        monkeypatch.setitem(
            profiles.PROFILES, "smoke", dataclasses.replace(profiles.PROFILES["smoke"], seeds=(0, 1, 2))
        )
        assert not report.gather("smoke").stale

    def test_changed_words_of_a_notebook_change_no_number(self, results, project):
        path = project / "01_first.ipynb"
        path.write_text(path.read_text().replace("Below the same", "Under the same"))
        assert not report.gather("smoke").stale

    def test_results_without_their_runs_are_not_checked(self, results, tmp_path):
        shutil.move(results / "runs", tmp_path / "elsewhere")
        gathered = report.gather("smoke")
        assert not gathered.stale and "01_first: not checked: the runs are not here" in gathered.notes
        assert gathered.studies[0].facts["clips"] == "soundscapes: train 8, validation 2, test 4, duration 4.0"
        assert "<li>01_first: not checked: the runs are not here</li>" in render.page(gathered)

    def test_clips_that_a_grid_asks_for_and_nobody_has_leave_it_unchecked(self, results, monkeypatch):
        def grid(*_):
            raise ValueError("profile smoke: needs a folder\nof clips")

        monkeypatch.setattr(report.study, "grid", grid)
        gathered = report.gather("smoke")
        assert not gathered.stale and gathered.studies[0].facts["runs"]
        assert gathered.studies[0].unchecked == "what the grid needs is not here (profile smoke: needs a folder)"

    def test_a_corpus_that_is_not_here_leaves_the_grid_unchecked(self, results, monkeypatch):
        def gone(config, root):
            raise FileNotFoundError("clotho: no such folder\nand more")

        monkeypatch.setattr(freshness, "corpus_of", gone)
        gathered = report.gather("smoke")
        assert not gathered.stale
        assert gathered.studies[0].unchecked == "what the grid needs is not here (clotho: no such folder)"
        unfinish(results, None)
        assert report.gather("smoke").stale == 4  # the runs of what is there are looked for all the same

    def test_results_without_an_executed_notebook_are_not_checked_against_it(self, results):
        shutil.rmtree(results / "notebooks")
        gathered = report.gather("smoke")
        assert not gathered.stale and "no executed copy" in gathered.studies[0].unchecked

    def test_tables_without_runs_need_none(self, results, project, monkeypatch):
        path = project / "02_second.ipynb"
        changed = notebook("02 Second?", "A Second Paper: More", ("## Words", 'tables.save(t, r, "02_words", "")'))
        changed.cells[3].source = "grid = []"
        nbformat.write(changed, path)
        execute(results, path)
        monkeypatch.setenv("ATR_NOTEBOOK", study.code(changed))
        output.save(pd.DataFrame({"word": ["rain"]}), results, "02_words", "Words.")
        gathered = report.gather("smoke")
        assert not gathered.notes and list(gathered.studies[1].facts)[0] == "devices"


class TestBrokenFiles:
    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("tables/01_all.json", "{", r"01_all.json: cannot be read \(.*\); run atr study 01 --profile smoke"),
            ("tables/01_all.json", "[]", r"01_all.json: cannot be read \(not an object with caption, command"),
            ("tables/01_all.csv", "", r"01_all.csv: cannot be read \(No columns"),
            ("tables/01_all.csv", "a,b\n1,2\n1,2,3\n", r"01_all.csv: cannot be read \(Error tokenizing"),
            ("tables/01_all.csv", None, r"01_all.csv: missing; run atr study 01 --profile smoke, or remove 01_all.\*"),
            ("figures/01_all.pdf", None, "01_all.pdf: missing"),
            ("notebooks/01_first.ipynb", "{", "01_first.ipynb: cannot be read .*; delete it and run the notebook"),
        ],
    )
    def test_they_are_named_with_the_mend(self, results, name, content, said):
        path = results / name
        path.unlink()
        if content is not None:
            path.write_text(content)
        with pytest.raises(ValueError, match=said):
            report.gather("smoke")


class TestWriting:
    def test_the_report_lands_in_its_folder_and_replaces_the_last_one(self, results):
        (results / "report").mkdir()
        (results / "report" / "old").touch()
        page, archive = render.write(report.gather("smoke"))
        assert (page, archive) == (results / "report" / "index.html", results / "report" / "report-smoke.zip")
        names = {path.name for path in (results / "report").iterdir()}
        assert names == {"index.html", "latex", "report-smoke.zip"} and not list(results.glob(".report*"))

    def test_a_failure_leaves_the_last_report_as_it_was(self, results, monkeypatch):
        page, _ = render.write(report.gather("smoke"))
        page.write_text("the last one")

        def full(*_):
            raise OSError("No space left on device")

        monkeypatch.setattr(render, "bundle", full)
        with pytest.raises(OSError, match="No space"):
            render.write(report.gather("smoke"))
        assert page.read_text() == "the last one" and not list(results.glob(".report*"))

    def test_a_folder_that_cannot_be_written_is_named(self, results, monkeypatch):
        gathered = report.gather("smoke")

        def refuse(path, *_, **__):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(type(results), "mkdir", refuse)
        with pytest.raises(OSError, match=r"report: cannot be written: Permission denied; make it writable"):
            render.write(gathered)


def bundle_is_sound(folder):
    """Every file that report.tex takes in is there; environments and braces close; no sign is unknown to LaTeX."""
    main = (folder / "report.tex").read_text(encoding="utf-8")
    body = main.partition(r"\begin{document}")[2]
    inputs = re.findall(r"\\input\{(.+?)\}", body)
    images = re.findall(r"\\includegraphics\[.*?\]\{(.+?)\}", body)
    assert all((folder / name).is_file() for name in inputs + images)
    for text in [r"\begin{document}" + body, *((folder / name).read_text(encoding="utf-8") for name in inputs)]:
        opened = []
        for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
            if kind == "begin":
                opened.append(name)
            else:
                assert opened.pop() == name
        assert not opened
        bare = re.sub(r"\\[\\{}%&_#$]", "", text)
        assert bare.count("{") == bare.count("}") and not re.search(r"(?<!\\)[%#]", text)
        assert not set(re.sub(r"[\x00-\x7f]", "", text)) - set("äöüéèńßÄÖÜ…–’“”")
    assert not re.search(r"(?<!\\)[&_]", re.sub(r"\\(input|includegraphics|label).*", "", body))
    return inputs, images


class TestLatex:
    def test_the_bundle_holds_what_it_takes_in(self, results):
        render.write(report.gather("smoke"))
        inputs, images = bundle_is_sound(results / "report" / "latex")
        assert inputs == [f"tables/01_{name}.tex" for name in ("published", "all", "claims", "each_a")]
        assert images == ["figures/01_all.pdf"]
        with zipfile.ZipFile(results / "report" / "report-smoke.zip") as archive:
            held = {name for name in archive.namelist() if not name.endswith("/")}
        there = results / "report"
        assert held == {str(path.relative_to(there)) for path in there.glob("latex/**/*") if path.is_file()}
        assert {"latex/tables/01_all.csv", "latex/tables/01_all.json", "latex/figures/01_all.json"} <= held

    def test_its_tables_read_as_those_of_the_page(self, results):
        render.write(report.gather("smoke"))
        text = (results / "report" / "latex" / "tables" / "01_all.tex").read_text()
        assert r"a\_1 \& <b> & 76.8 $\pm$ 1.1 \\" in text and r"loss & T$\rightarrow$A R@10 \\" in text
        assert (
            r"\label{tab:01_all}" in text and r"All \& <i>some</i>, T$\rightarrow$A. R@k in percent. Measured" in text
        )
        assert text.index("Measured") < text.index("toprule") < text.index("2 runs, 1.00 h in sum")

    @pytest.mark.parametrize("ending", ["csv", "pdf"])
    def test_a_file_name_that_latex_would_read_is_refused(self, results, ending):
        folder = results / ("tables" if ending == "csv" else "figures")
        for path in folder.glob("01_all.*"):
            path.rename(path.with_name("01_all}\\evil{" + path.suffix))
        with pytest.raises(ValueError, match="LaTeX needs a name of A to Z"):
            render.write(report.gather("smoke"))

    def test_long_headings_take_several_lines(self):
        part = pd.DataFrame({"T→A R@1 AudioCaps, published": ["1.5"], "short": ["words"]})
        text = latex.table([part], "Both.", "", "both")
        assert r"\shortstack[r]{T$\rightarrow$A R@1 \\ AudioCaps, \\ published} & short \\" in text
        assert r"\begin{tabular}{rl}" in text

    def test_each_part_of_a_wide_table_is_a_float_and_long_cells_take_several_lines(self):
        part = pd.DataFrame({"claim": ["a long claim, " * 8], "p": ["0.004"]})
        text = latex.table([part, part[["p"]]], "Claims.", "2 runs.", "wide")
        assert text.count(r"\begin{table}") == text.count(r"\caption{") == text.count(r"\label{") == 2
        assert r"\label{tab:wide-2}" in text and text.count("(continued)") == 1 and text.count("2 runs.") == 1
        assert text.index("2 runs.") > text.index("tab:wide-2") and r"p{0." in text and "resizebox" not in text

    def test_a_cell_and_a_heading_stay_on_one_line(self):
        text = latex.table([pd.DataFrame({"a\nb": ["c\r\n\u2028d\te"]})], "One\n\ntwo.", "", "lines")
        assert "\na b \\\\\n" in text and "\nc d e \\\\\n" in text and r"\caption{One two.}" in text

    @pytest.mark.parametrize("mark", ["[1mm] x", "* x", " [x"])
    def test_what_begins_as_an_option_of_a_line_s_end_is_none(self, mark):
        heading = f"a long heading {mark.strip().replace(' ', '')} follows"
        text = latex.table([pd.DataFrame({mark: [mark, mark], heading: ["a", "b"]})], "Marks.", "", "marks")
        assert text.count(f"{{}}{mark.strip()} & ") == 3 and not re.search(r"(\\\\|rule)\s*[\[*]", text)

    def test_a_note_that_begins_with_a_bracket_is_no_label(self, results, tmp_path, monkeypatch):
        monkeypatch.setattr(report.Report, "notes", ["[x] is missing"])
        render.bundle(report.gather("smoke"), tmp_path)
        assert r"\item {}[x] is missing" in (tmp_path / "report.tex").read_text()

    @pytest.mark.parametrize(
        "text, printed",
        [
            ("a\x1b[31m\x00b", "aU+001B[31mU+0000b"),
            ("a\u202eb\u2066c\u200bd", "aU+202EbU+2066cU+200Bd"),
            ("日本 ж μ ħ 🔊", "U+65E5U+672C U+0436 U+03BC U+0127 U+1F50A"),
            ("Łódź, Čech’s œuvre – “naïve” 5 µs…", "Łódź, Čech’s œuvre – “naïve” 5 µs…"),
            ("e\u0301 q\u0301\u00a0x\u2028y", "é qU+0301 x y"),
            ("\ud800", "U+D800"),
        ],
    )
    def test_what_the_fonts_lack_is_a_number(self, text, printed):
        assert latex.escape(text) == printed
        assert latex.prose(f"{text}\n") == f"{printed}\n"

    def test_a_table_longer_than_a_page_is_pointed_at(self, results):
        run = records.Run(next((results / "runs").iterdir()))
        output.save(pd.DataFrame({"row": range(60)}), results, "01_each_b", "Long.", [run])
        render.write(report.gather("smoke"))
        main = (results / "report" / "latex" / "report.tex").read_text()
        assert r"has 60 rows: \texttt{tables/01\_each\_b.csv}" in main and r"\input{tables/01_each_b" not in main

    def test_stale_results_are_marked(self, results):
        why, _ = unfinish(results, None)
        render.write(report.gather("smoke"))
        main = (results / "report" / "latex" / "report.tex").read_text()
        assert main.count(rf"\textbf{{Stale: {why}; run \texttt{{atr study 01 --profile smoke}}}}") == 4

    def test_markdown_becomes_latex(self):
        text = '1. **Is** *it* `a_b`, "so"?\n- 5 % ± 1'
        expected = "\\par \\textbf{Is} \\emph{it} \\texttt{a\\_b}, ``so''?\n\\par 5 \\% $\\pm$ 1"
        assert latex.prose(text) == expected


class TestReadable:
    def read(self, tmp_path, **columns):
        path = tmp_path / "table.csv"
        pd.DataFrame(columns, dtype="str").to_csv(path, index=False)
        return readable(output.read(path)).to_dict("list")

    def test_numbers_of_a_column_have_the_same_digits_and_small_ones_two_that_count(self, tmp_path):
        assert self.read(tmp_path, x=["67.84000001", "-3.373333", "0.0648123", ""]) == {
            "x": ["67.8", "-3.4", "0.065", "—"]
        }
        assert self.read(tmp_path, p=["0.2938530734632684", "5.928574715001615e-60"]) == {"p": ["0.294", "< 0.001"]}

    def test_deviations_and_intervals_join_their_mean(self, tmp_path):
        table = {"t2a_r10": ["76.839999"], "t2a_r10_std": ["1.126"], "t2a_r10_low": ["73.8"], "t2a_r10_high": ["79.85"]}
        assert self.read(tmp_path, **table) == {"T→A R@10": ["76.8 ± 1.1"], "T→A R@10, 95 %": ["73.8 to 79.8"]}
        assert self.read(tmp_path, h=["4.8312345"], h_std=[""]) == {"h": ["4.83"]}
        assert self.read(tmp_path, x=["0.2", "40.0"], x_std=["3e-17", "0.0123456"]) == {
            "x": ["0.2 ± 0.0", "40.0 ± 0.0"]
        }

    def test_whole_numbers_and_words_stay(self, tmp_path):
        assert self.read(tmp_path, a=["317.0", "3.0", ""]) == {"a": ["317", "3", "—"]}
        assert self.read(tmp_path, rate=["0.001", "0.0005"], loss=["NT-Xent", "7.0 ± 0.2"]) == {
            "rate": ["0.001", "0.0005"],
            "loss": ["NT-Xent", "7.0 ± 0.2"],
        }


class TestCommand:
    def run(self, *options):
        return CliRunner().invoke(app, ["report", "--profile", "smoke", *options])

    def test_it_says_what_it_wrote_and_what_is_missing(self, results):
        done = self.run()
        assert done.exit_code == 0, done.output
        assert "02_second: not run yet" in done.output and "4 tables, 1 figures" in done.output
        assert f"→ {results / 'report' / 'index.html'} (" in done.output

    def test_stale_results_are_refused_unless_allowed(self, results):
        why, _ = unfinish(results, None)
        done = self.run()
        assert done.exit_code == 1 and why in done.output and "--allow-stale" in done.output
        assert not (results / "report").exists()
        assert self.run("--allow-stale").exit_code == 0
        assert why in (results / "report" / "index.html").read_text(encoding="utf-8")

    def test_results_elsewhere(self, results, tmp_path):
        shutil.copytree(results, tmp_path / "copy", ignore=shutil.ignore_patterns("runs"))
        done = self.run("--results", str(tmp_path / "copy"))
        assert done.exit_code == 0 and "not checked: the runs are not here" in done.output
        assert (tmp_path / "copy" / "report" / "index.html").is_file()

    def test_another_folder_is_written_unless_it_holds_something_else(self, results, tmp_path):
        for _ in range(2):
            done = self.run("--out", str(tmp_path / "page"))
            assert done.exit_code == 0 and (tmp_path / "page" / "index.html").is_file(), done.output
        assert not (results / "report").exists()
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "letter.txt").write_text("dear")
        done = self.run("--out", str(tmp_path / "mine"))
        assert done.exit_code == 1 and "holds something other than a report" in " ".join(done.output.split())
        assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
        assert "letter.txt: a file; name a folder" in self.run("--out", str(tmp_path / "mine" / "letter.txt")).output

    def test_tables_are_drawn_again(self, results):
        for path in (results / "tables").glob("*.tex"):
            path.unlink()
        done = self.run("--tables")
        assert done.exit_code == 0 and "4 tables as .md and .tex" in done.output
        assert len(list((results / "tables").glob("*.tex"))) == 4 and not (results / "report").exists()

    def test_errors_are_said_in_plain_words(self, project):
        done = self.run()
        assert done.exit_code == 1 and "no tables or figures there" in done.output


class TestThisProject:
    def test_each_study_belongs_to_a_paper_that_the_readme_cites(self):
        assert [one.split(",")[0].split(":")[0].split()[-1] for one in report.citations()] == [
            "Mei",
            "Tourbabin",
            "Chao",
            "Mei",
            "Tymofieiev",
        ]
        titles = [re.findall(r"\*(.+?)\.?\*", citation)[0] for citation in report.citations()]
        exploration, *notebooks, performance, people = study.notebooks()
        numbers = [path.stem[:2] for path in (exploration, performance, people)]
        assert numbers == [report.EXPLORATION, study.TIMED, EXTERNAL]
        for path in notebooks:
            opening = nbformat.read(path, as_version=4).cells[0].source
            assert sum(f"*{title}*" in opening for title in titles) == 1, path

    @pytest.mark.parametrize("name", ["demo", "captions"])
    def test_the_committed_results_make_a_sound_report(self, name, tmp_path):
        gathered = report.gather(name, places.PROJECT / "results" / "reference" / name)
        text = render.page(gathered)
        page = Reader(text)
        assert page.balanced and len(page.all("img")) == sum(one.kind == "figure" for one in gathered.outputs) > 3
        render.bundle(gathered, tmp_path)
        bundle_is_sound(tmp_path)
        assert len(text.encode()) < 4e6
