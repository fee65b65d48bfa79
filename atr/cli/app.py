"""The command line: `atr study`, `atr data`, `atr check`, `atr caption`, `atr index`, `atr search`, `atr runs`,
`atr pack`, `atr evaluate`, `atr compare`, `atr bench`, `atr gpu`, `atr report`, `atr reference`.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from atr import __version__
from atr.cli import bench, caption, report, runs, study
from atr.cli.compare import compare
from atr.cli.console import (
    DATA,
    Commands,
    CorpusArgument,
    ProfileOption,
    QuietOption,
    RootOption,
    YesOption,
    beginning,
    check_corpus,
    complain,
    console,
    doing,
    print_table,
    say,
)
from atr.cli.evaluate import evaluate
from atr.cli.pack import pack
from atr.cli.search import index, search
from atr.experiments.notebooks import notebooks
from atr.experiments.profiles import get_profile
from atr.system import devices, places

app = typer.Typer(
    cls=Commands,
    help="Audio-text retrieval: run the studies, check a corpus, look after the runs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(runs.app, name="runs")
app.command()(study.study)


def _version(asks: bool) -> None:
    if asks:
        say(f"atr {__version__}")
        raise typer.Exit


@app.callback()
def prepare(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Before any command: see whether the variables ATR_* can be what they are, run what ATR_EXTENSIONS names."""
    if "--help" in sys.argv:  # which need not wait for extensions
        return
    from atr.register import extend
    from atr.system import tracking

    places.home()
    places.results_home()
    tracking.trackers_of()
    devices.switches_for("cpu")
    if "ATR_PRETRAINING_EPOCHS" in os.environ:
        from atr.encoders import pretraining  # takes seconds

        pretraining.default_epochs()
    for file in filter(None, os.environ.get("ATR_EXTENSIONS", "").split(os.pathsep)):
        try:
            extend(file)
        except Exception as error:
            raise ValueError(f"ATR_EXTENSIONS: {file}: {type(error).__name__}: {error}") from error


@app.command()
def check(
    corpus: CorpusArgument,
    root: RootOption = None,
    audio: Annotated[bool, typer.Option("--audio/--no-audio", help="Read every sound file too.")] = True,
    write_clean: Annotated[
        Path | None, typer.Option(help="csv: write the table without the rows that have problems here.")
    ] = None,
) -> None:
    """List all problems of a corpus at once; exit status 1 if there are any."""
    if write_clean is not None and (corpus != "csv" or root is None):
        raise ValueError("--write-clean goes with: atr check csv --root <folder>")
    check_corpus(corpus, root)
    doing(f"loading {corpus}")
    from atr.corpora import csvfolder, load_corpus
    from atr.corpora.corpus import CorpusError
    from atr.system.atomic import write_csv

    try:
        if write_clean is not None:
            assert root is not None
            clean = csvfolder.clean_table(root)
            write_csv(clean, write_clean)
            say(f"{write_clean}: {len(clean)} rows without problems")
        loaded = load_corpus(corpus, root, check=False)
        if audio:
            doing(f"reading {len(loaded):,} sounds of {corpus}")
        problems = loaded.problems(audio=audio)
    except CorpusError as error:
        problems, loaded = error.problems, None
    complain([f"{where}: {problem}; {mend}" for where, problem, mend in problems.itertuples(index=False)], "problems")
    assert loaded is not None
    counts = loaded.clips["split"].value_counts(sort=False).to_dict()
    console.print(f"{loaded.name}: no problems; {counts}, {len(loaded.captions)} captions. {loaded.source}")


@app.command()
def data(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A data set or checkpoint, or verify; without one, all are listed.", autocompletion=beginning(DATA)
        ),
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="A folder that holds the data set: it is recorded, not copied.")
    ] = None,
    yes: YesOption = False,
    hub: Annotated[
        bool, typer.Option("--hub", help="clotho, audiocaps: from a public copy on the Hugging Face Hub.")
    ] = False,
    copy: Annotated[str | None, typer.Option(help="With --hub: which copy, such as mteb/Clotho.")] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="With --hub: train, validation or test; several times; all if none.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="audiocaps: clips fetched at a time.")] = 4,
    again: Annotated[bool, typer.Option("--again", help="audiocaps: try clips again that were gone.")] = False,
    quiet: QuietOption = False,
) -> None:
    """List the papers' data sets and checkpoints; fetch, verify and unpack one; or take it from a folder.

    verify: read again all that is kept (downloads, caches, indexes) and compare it with its hashes. Damaged entries of
    the cache are removed, to be made anew; exit status 1 if anything is damaged.
    """
    _check_data(name, source, hub, copy, split)
    from atr.cli.data import adopt, fetch_checkpoint, from_hub, obtain, status, verify
    from atr.encoders.checkpoints import REGISTRY

    if name is None:
        print_table(status())
    elif name == "verify":
        complain(verify(quiet), "damaged")
        say("nothing is damaged")
    elif source is not None:
        adopt(name, source, quiet)
    elif name in REGISTRY:
        fetch_checkpoint(name, yes, quiet)
    elif hub:
        from_hub(name, copy, split, yes, quiet)
    else:
        obtain(name, yes, workers, again, quiet)


def _check_data(name: str | None, source: Path | None, hub: bool, copy: str | None, split: list[str] | None) -> None:
    """ValueError, FileNotFoundError: options of `data` that cannot be, or not together."""
    if name is not None and name not in (*DATA, "verify"):
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(DATA)}, and verify")
    if source is not None and not source.expanduser().is_dir():
        raise FileNotFoundError(f"--from: {source}: no such folder; give the one that holds the data set")
    if hub:
        from atr.corpora import SPLITS
        from atr.evaluation.hub import copy_of

        if source is not None:
            raise ValueError("--from: a folder is recorded as it is, with nothing to fetch; leave --hub out, or --from")
        copy_of(name or "no data set", copy)
        if unknown := set(split or ()) - set(SPLITS):
            raise ValueError(f"--split: {', '.join(sorted(unknown))}; known: {', '.join(SPLITS)}")
    elif copy is not None or split:
        raise ValueError(
            "--copy and --split: of a copy on the Hub they say what to fetch; add --hub, or leave them out"
        )


@app.command()
def reference(
    numbers: Annotated[list[str] | None, typer.Argument(help="Notebooks, such as 01 03; all if none.")] = None,
    profile: ProfileOption = "demo",
) -> None:
    """Copy a profile's tables, figures and executed notebooks to results/reference/, to be committed, and write from
    them docs/findings.md and what README.md shows of them.
    """
    notebooks(numbers or (), get_profile(profile))
    doing("gathering the results")
    from atr.experiments.study import commit_reference
    from atr.reports import findings

    say(f"→ {commit_reference(profile, numbers or ())}")
    say(*(f"→ {path}" for path in findings.write(places.PROJECT)))


for command in (caption.caption, index, search, pack, evaluate, compare, report.report, bench.bench, bench.gpu):
    app.command()(command)
