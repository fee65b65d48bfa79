"""`atr report`: all results of a profile on one page, and as LaTeX."""

from pathlib import Path
from typing import Annotated

import typer

from atr.cli.console import ProfileOption, check_out, doing, say


def report(
    profile: ProfileOption = "demo",
    results: Annotated[
        Path | None, typer.Option(help="Folder with tables/ and figures/, if not the profile's own.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write, if not report/ within the results; replaced if it is there.")
    ] = None,
    allow_stale: Annotated[
        bool, typer.Option("--allow-stale", help="Write it although some results are stale, and mark them.")
    ] = False,
    tables: Annotated[
        bool, typer.Option("--tables", help="Write .md and .tex of each table anew from its .csv, and stop.")
    ] = False,
) -> None:
    """Gather the tables, figures and claims of a profile into one page (HTML) and a LaTeX bundle.

    Exit status 1, and nothing written, if a table or figure is not what its notebook would make today.
    """
    if results is not None and not results.is_dir():
        raise FileNotFoundError(f"--results: {results}: no such folder; give one that has tables/ and figures/")
    check_out(out)
    if out is not None and out.exists() and not (out.is_dir() and ((out / "latex").is_dir() or not any(out.iterdir()))):
        raise FileExistsError(f"--out: {out}: holds something other than a report; name a new folder, or remove it")
    doing("gathering the results")
    from atr.experiments.profiles import get_profile
    from atr.reports import output, render
    from atr.reports.report import gather
    from atr.system.units import count_of

    if tables:
        folder = (results or get_profile(profile).results) / "tables"
        return say(f"→ {folder}: {count_of(output.render(folder), 'table')} as .md and .tex")
    material = gather(profile, results)
    for line in material.notes:
        say(line)
    if material.stale and not allow_stale:
        raise ValueError(f"{material.stale} stale, nothing written; run the above, or mark them: --allow-stale")
    page, archive = render.write(material, out)
    say(str(material.counts), f"→ {page} ({page.stat().st_size / 1e6:.1f} MB)", f"→ {archive}")
