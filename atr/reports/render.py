"""The report as a page and as LaTeX."""

import base64
import shutil
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from atr.reports.latex import SIGNS, check_name, escape, prose
from atr.reports.names import numeric
from atr.reports.output import drawings
from atr.reports.report import Report
from atr.system import atomic, hashes

ROWS = 45  # that fit on a page


def bundle(report: Report, folder: Path) -> None:
    """Fill `folder` with report.tex, the tables (.tex, .csv) and figures (.pdf) that it takes in, and their .json."""
    for output in report.outputs:
        check_name(output.name)
        target = folder / output.path.parent.name
        target.mkdir(parents=True, exist_ok=True)
        for suffix in (".pdf", ".json") if output.table is None else (".csv", ".json"):
            shutil.copyfile(output.path.with_suffix(suffix), target / f"{output.name}{suffix}")
        if output.table is not None:
            text = drawings(output.table, output.name, output.provenance)["tex"]
            (target / f"{output.name}.tex").write_text(text, encoding="utf-8")
    environment = _environment(
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
    )
    environment.filters |= {"prose": prose, "escape": lambda text: escape(" ".join(text.split())).translate(SIGNS)}
    text = environment.get_template("report.tex").render(report=report, rows=ROWS)
    (folder / "report.tex").write_text(text, encoding="utf-8")


def _environment(**own: Any) -> Environment:
    """Of the templates."""
    loader = PackageLoader("atr.reports")
    return Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, **own)


def page(report: Report) -> str:
    """The HTML of a report: images, style and script within it, nothing from elsewhere."""
    environment = _environment(autoescape=True)
    parts = {kind: Markup(environment.get_template(f"report.{kind}").render()) for kind in ("css", "js")}
    script = f"\n{parts['js']}".encode()  # no other one may run
    mark = base64.b64encode(bytes.fromhex(hashes.sha256(script))).decode()
    markdown = MarkdownIt("commonmark", {"html": False})
    environment.filters["markdown"] = lambda text: Markup(markdown.render(text))
    environment.filters["inline"] = lambda text: Markup(markdown.renderInline(text))
    environment.filters |= {"numeric": numeric}
    return environment.get_template("report.html").render(report=report, mark=mark, **parts)


def write(report: Report, target: Path | None = None) -> tuple[Path, Path]:
    """Write `target`, else `<results>/report/`: index.html, latex/ and the same as report-<profile>.zip; returns page
    and archive.

    What was there is replaced once everything is written. Raises WriteError.
    """
    target = target or report.results / "report"

    def fill(fresh: Path) -> None:
        (fresh / "index.html").write_text(page(report), encoding="utf-8")
        bundle(report, fresh / "latex")
        shutil.make_archive(str(fresh / f"report-{report.profile.name}"), "zip", fresh, "latex")

    atomic.replace_folder(target, fill)
    return target / "index.html", target / f"report-{report.profile.name}.zip"
