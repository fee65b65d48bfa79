"""The command line: `atr study`, `atr data`, `atr check`, `atr caption`, `atr index`, `atr search`, `atr runs`,
`atr bench`, `atr report`, `atr reference`.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from atr.cli import bench, caption, report, runs
from atr.cli import search as searching
from atr.cli.console import Commands, DeviceOption, ProfileOption, console, fail, printed

app = typer.Typer(
    cls=Commands,
    help="Audio-text retrieval: run the studies, check a corpus, look after the runs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(runs.app, name="runs")


@app.callback()
def extended() -> None:
    """Before any command: see whether the variables ATR_* can be what they are, run what ATR_EXTENSIONS names."""
    if "--help" in sys.argv:  # which need not wait for PyTorch
        return
    from atr.encoders import pretraining
    from atr.register import extend
    from atr.system import devices, places
    from atr.training import tracking

    try:
        places.home()
        places.results_home()
        tracking.chosen()
        devices.chosen("cpu")
        pretraining.default_epochs()
        for file in filter(None, os.environ.get("ATR_EXTENSIONS", "").split(os.pathsep)):
            try:
                extend(file)
            except Exception as error:
                raise ValueError(f"ATR_EXTENSIONS: {file}: {type(error).__name__}: {error}") from error
    except ValueError as error:
        raise fail(error) from error


@app.command()
def study(
    numbers: Annotated[list[str] | None, typer.Argument(help="Notebooks, such as 01 03; all but 12 if none.")] = None,
    profile: ProfileOption = "demo",
    seeds: Annotated[str | None, typer.Option(help="Seeds, such as 0,1,2; the profile's own if not given.")] = None,
    device: DeviceOption = "auto",
    executor: Annotated[str, typer.Option(help="Where runs execute: local, or ray (docs/scale.md).")] = "local",
    clips: Annotated[Path | None, typer.Option(help="Folder of labelled clips, for profile esc10.")] = None,
    captions: Annotated[
        Path | None, typer.Option(help="Table of people's and generated captions, for profile captions.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Notebooks at a time; if not given, one a core where little is left to train, else 1."
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print the runs, what they need and how long they take, and stop.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Run the numbered notebooks: trains what is missing, then writes tables, figures and the executed notebooks.

    Interrupt it whenever you like: the same command continues where it stopped.
    """
    from atr.experiments import executors, planning
    from atr.experiments import study as studies
    from atr.experiments.profiles import profile as profile_of
    from atr.system import units
    from atr.system.devices import resolve_device

    cluster = None
    try:
        executors.known(executor)
        chosen = profile_of(profile)
        try:
            chosen_seeds = [int(seed) for seed in seeds.split(",")] if seeds else None
        except ValueError:
            raise ValueError(f"--seeds: {seeds!r}; give whole numbers, such as 0,1,2") from None
        paths = studies.notebooks(numbers or (), chosen)
        if not numbers:  # half an hour with nothing beside it: when it is asked for
            paths = [path for path in paths if path.stem[:2] != studies.TIMED]
        if captions is not None:
            if not captions.is_file():
                raise ValueError(f"--captions: {captions}: no such file")
            os.environ["ATR_CAPTIONS"] = str(captions.resolve())
        if clips is not None:
            if not clips.is_dir():
                raise ValueError(f"--clips: {clips}: no such folder")
            os.environ["ATR_CLIPS"] = str(clips.resolve())
        corpora: dict = {}
        table = studies.plan(paths, profile, chosen_seeds, corpora, strict=not plan)
        if plan and not len(table):
            console.print(f"Profile {profile}: nothing to train.")
            return
        if executor == "ray" and not (table["finished"].all() and not plan):
            cluster = executors.Ray(device, runs=chosen.runs)
            os.environ["RAY_ADDRESS"] = cluster.address  # for the notebooks: all on the same one
        where = cluster.device if cluster else resolve_device(device)
        if plan:
            printed(table.drop(columns=["config", "seconds"]), f"{len(table)} runs of profile {profile}")
            if cluster:
                groups, words = cluster.call(planning.summary, table, corpora, where, cluster.slots(), str(cluster))
            else:
                groups, words = planning.summary(table, corpora, where, executors.default_workers(where))
            lines = ["What they need", *groups.to_string(index=False).split("\n"), *words.split("\n")]
            console.print(*lines, sep="\n", soft_wrap=True, highlight=False)
            return
        assert not chosen.needs_clips or chosen.root is not None  # or they say what is missing
        assert not chosen.needs_captions or chosen.captions is not None
        cores = executors.default_workers("cpu")
        finished = int(table["finished"].sum())
        said = f"{len(table)} runs, {finished} of them finished"
        little = finished == len(table)
        if where == "cpu" and not chosen.published:
            training = studies.estimate(table, cores, cluster.slots() if cluster else None)
            little = training < studies.LITTLE
        jobs = min(jobs or (cores if little else 1), len(paths))
        if where == "cpu" and not chosen.published:
            seconds = training + studies.NOTEBOOK_SECONDS * len(paths) / jobs
            said += f"; about {units.duration(seconds)} on {cluster or f'{cores} cores here'}"
        console.print(f"Profile {profile}: {', '.join(path.stem for path in paths)}; {said}.", soft_wrap=True)
        os.environ["ATR_COMMAND"] = f"atr study {' '.join(numbers or [])} --profile {profile}".replace("  ", " ")
        parameters = {"seeds": chosen_seeds, "device": device, "executor": executor}
        studies.execute_all(
            paths,
            profile,
            parameters,
            jobs,
            quiet,
            lambda done: console.print(f"  → {done}", soft_wrap=True),
        )
        console.print(f"Tables: {chosen.results / 'tables'}   figures: {chosen.results / 'figures'}", soft_wrap=True)
    except (ValueError, OSError, studies.StudyError) as error:
        raise fail(error) from error
    finally:
        if cluster:
            cluster.close()


@app.command()
def check(
    corpus: Annotated[str, typer.Argument(help="soundscapes, clipfolder, csv, clotho, audiocaps, wavcaps.")],
    root: Annotated[Path | None, typer.Option(help="Folder of the corpus, for clipfolder and csv.")] = None,
    audio: Annotated[bool, typer.Option("--audio/--no-audio", help="Read every sound file too.")] = True,
    write_clean: Annotated[
        Path | None, typer.Option(help="csv: write the table without the rows that have problems here.")
    ] = None,
) -> None:
    """List all problems of a corpus at once; exit status 1 if there are any."""
    from atr.corpora import csvfolder, load_corpus
    from atr.corpora.corpus import CorpusError
    from atr.system.atomic import write_csv

    try:
        if write_clean is not None:
            if corpus != "csv" or root is None:
                raise ValueError("--write-clean goes with: atr check csv --root <folder>")
            clean = csvfolder.cleaned(root)
            write_csv(clean, write_clean)
            console.print(f"{write_clean}: {len(clean)} rows without problems", soft_wrap=True, markup=False)
        loaded = load_corpus(corpus, root, check=False)
        problems = loaded.problems(audio=audio)
    except CorpusError as error:
        problems, loaded = error.problems, None
    except (ValueError, OSError) as error:
        raise fail(error) from error
    if len(problems):
        for where, problem, mend in problems.itertuples(index=False):
            console.print(f"{where}: {problem}; {mend}", soft_wrap=True, markup=False, highlight=False)
        console.print(f"[red]{len(problems)} problems[/red]", markup=True)
        raise typer.Exit(1)
    assert loaded is not None
    counts = loaded.clips["split"].value_counts(sort=False).to_dict()
    console.print(
        f"{loaded.name}: no problems; {counts}, {len(loaded.captions)} captions. {loaded.source}", markup=False
    )


@app.command()
def data(
    name: Annotated[
        str | None, typer.Argument(help="A data set or checkpoint, or verify; without one, all are listed.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="A folder that holds the data set: it is recorded, not copied.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="audiocaps: clips fetched at a time.")] = 4,
    again: Annotated[bool, typer.Option("--again", help="audiocaps: try clips again that were gone.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """List the papers' data sets and checkpoints; fetch, verify and unpack one; or take it from a folder.

    verify: read again all that is kept (downloads, caches, indexes) and compare it with its hashes. Damaged entries of
    the cache are removed, to be made anew; exit status 1 if anything is damaged.
    """
    from atr.cli.data import checkpoint_state, status, verify
    from atr.corpora import catalogue as sets
    from atr.encoders import checkpoints
    from atr.system import units

    def agreed(state: str) -> None:
        if not state.startswith("ready") and not yes and not typer.confirm("Go on?"):
            raise typer.Exit(1)

    try:
        if name is None:
            printed(status())
            return
        if name == "verify":
            found = verify(quiet)
            for problem in found:
                console.print(problem, soft_wrap=True, markup=False, highlight=False)
            console.print(f"[red]{len(found)} damaged[/red]" if found else "nothing is damaged", markup=True)
            raise typer.Exit(1 if found else 0)
        if name in checkpoints.REGISTRY and source is None:
            entry = checkpoints.REGISTRY[name]
            size = "unknown" if entry.file.size is None else units.human(entry.file.size)
            said = [f"download: {size}", f"licence: {entry.licence}", f"source: {entry.source}"]
            console.print(f"{name}: {entry.file.name}", *said, sep="\n", soft_wrap=True, highlight=False)
            agreed(checkpoint_state(entry.file))
            console.print(f"→ {checkpoints.fetch(name, quiet)}", soft_wrap=True, markup=False, highlight=False)
            return
        if name not in sets.DATASETS:
            known = ", ".join(sets.DATASETS) + ("" if source else f"; checkpoints: {', '.join(checkpoints.REGISTRY)}")
            raise ValueError(f"unknown data set {name!r}; known: {known}")
        left, counts = "", None
        if source is not None:
            counts = sets.adopt(name, source, quiet)
        else:
            console.print(*sets.announcement(name).split("\n"), sep="\n", soft_wrap=True, highlight=False)
            agreed(sets.state(name))
            left, counts = sets.obtain(name, workers, again, quiet)
        console.print(*left.split("\n"), sep="\n", soft_wrap=True, highlight=False, end="\n" if left else "")
        if counts is None:
            return
        console.print(f"{name}: {sets.folder(name)}", soft_wrap=True, markup=False, highlight=False)
        printed(counts.clips)
    except (ValueError, OSError) as error:
        raise fail(error) from error
    for problem in counts.problems[:50]:
        console.print(problem, soft_wrap=True, markup=False, highlight=False)
    if counts.problems:
        console.print(f"[red]{len(counts.problems)} problems[/red]", markup=True)
        raise typer.Exit(1)


@app.command()
def reference(profile: ProfileOption = "demo") -> None:
    """Copy a profile's tables, figures and executed notebooks to results/reference/, to be committed."""
    from atr.experiments import study as studies

    try:
        console.print(f"→ {studies.commit_reference(profile)}", soft_wrap=True)
    except (ValueError, OSError, studies.StudyError) as error:
        raise fail(error) from error


for command in (caption.caption, searching.index, searching.search, report.report, bench.bench):
    app.command()(command)

if __name__ == "__main__":
    sys.exit(app())
