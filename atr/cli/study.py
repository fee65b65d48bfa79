"""`atr study`: the numbered notebooks from the command line."""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from tqdm import tqdm

from atr.cli.console import DeviceOption, ProfileOption, QuietOption, choice, doing, harmless, print_table, say
from atr.experiments import notebooks
from atr.experiments.progress import NOTEBOOK_SECONDS, VARIABLE, Progress

if TYPE_CHECKING:
    import pandas as pd

    from atr.experiments.executors import Ray
    from atr.experiments.profiles import Profile

EXECUTORS = ("local", "ray")
PAUSE = 60.0  # seconds between two lines of progress where no terminal shows one that changes


def _whole_numbers(seeds: str | None) -> str | None:
    if seeds and not all(seed.strip().isdecimal() for seed in seeds.split(",")):
        raise ValueError(f"--seeds: {seeds!r}; give whole numbers from 0, such as 0,1,2")
    return seeds


def _numbers(incomplete: str) -> list[tuple[str, str]]:
    """For the shell's completion: notebooks by number, and what each is called."""
    return [(number, path.stem) for number, path in notebooks.paths().items() if number.startswith(incomplete)]


def study(
    numbers: Annotated[
        list[str] | None, typer.Argument(help="Notebooks, such as 01 03; all but 12 if none.", autocompletion=_numbers)
    ] = None,
    profile_name: ProfileOption = "demo",
    seeds: Annotated[
        str | None, typer.Option(help="Seeds, such as 0,1,2; the profile's own if not given.", callback=_whole_numbers)
    ] = None,
    device: DeviceOption = "auto",
    executor: Annotated[
        str, typer.Option(help="Where runs execute: local, or ray (docs/scale.md).", callback=choice(EXECUTORS))
    ] = "local",
    clips: Annotated[Path | None, typer.Option(help="Folder of labelled clips, for profiles esc50 and esc10.")] = None,
    without: Annotated[
        Path | None, typer.Option(help="File of ids, one per line, of recordings that no scene of esc50 is mixed from.")
    ] = None,
    captions: Annotated[
        Path | None, typer.Option(help="Table of people's and generated captions, for profile captions.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Notebooks at a time; if not given, one a core where little is left to train, else 1."
        ),
    ] = None,
    dry: Annotated[
        bool, typer.Option("--plan", help="Print how many runs there are, what they need and how long, and stop.")
    ] = False,
    rows: Annotated[bool, typer.Option("--rows", help="With --plan: list the runs, too.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Run the numbered notebooks: trains what is missing, then writes tables, figures and the executed notebooks.

    Interrupt it whenever you like: the same command continues where it stopped.
    """
    from atr.experiments.profiles import get_profile

    with ExitStack() as stack:
        hand_on("--without", without, "ATR_WITHOUT")
        profile = get_profile(profile_name)
        seed_list = [int(seed) for seed in seeds.split(",")] if seeds else None
        paths = notebooks_for(numbers, profile)
        hand_on("--captions", captions, "ATR_CAPTIONS")
        hand_on("--clips", clips, "ATR_CLIPS", folder=True)
        if not dry:
            _ = profile.root, profile.captions  # which say what is missing
        doing(f"profile {profile_name}: looking for what is done already")
        from atr.experiments import executors
        from atr.experiments.study import execute_all, plan
        from atr.system.devices import resolve_device

        table = plan(paths, profile_name, seed_list, strict=not dry)
        if dry and not len(table):
            return say(f"Profile {profile_name}: nothing to train.")
        cluster = None
        if executor == "ray" and (dry or not table["finished"].all()):
            cluster = stack.enter_context(closing(executors.Ray(device, runs=profile.runs)))
            os.environ["RAY_ADDRESS"] = cluster.address  # for the notebooks: all on the same one
        where = cluster.device if cluster else resolve_device(device)
        if dry:
            return show_plan(table, profile_name, where, cluster, rows)
        jobs, guess, words = workload(table, profile, len(paths), where, cluster, jobs)
        say(f"Profile {profile_name}: {', '.join(path.stem for path in paths)}; {words}.")
        os.environ["ATR_COMMAND"] = " ".join(["atr study", *(numbers or []), "--profile", profile_name])
        parameters = {"seeds": seed_list, "device": device, "executor": executor}
        with show_progress(table, len(paths), jobs, guess, quiet) as (watch, done):
            execute_all(paths, profile_name, parameters, jobs, done, watch)
        say(f"Tables: {profile.results / 'tables'}   figures: {profile.results / 'figures'}")


@contextmanager
def show_progress(
    table: "pd.DataFrame", count: int, jobs: int, guess: float | None, quiet: bool
) -> Iterator[tuple[Callable[[], None], Callable[[Path], None]]]:
    """While the notebooks of a plan run, `count`: what shows how far they are, and what says that one is done.

    On a terminal that is a line that changes; elsewhere one every PAUSE seconds, where something has changed.
    """
    from atr.experiments.study import progress

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "progress"
        os.environ[VARIABLE] = str(file)
        state = progress(file, table, count, jobs, guess)
        try:
            if sys.stderr.isatty() and not quiet:
                looks: Any = {"bar_format": "|{bar:20}| {desc}", "dynamic_ncols": True, "leave": False}
                with tqdm(total=state.total, initial=state.done, **looks) as line:
                    yield lambda: _draw(line, state), lambda path: line.write(f"  → {harmless(str(path))}")
            else:
                yield _lines(state, quiet), lambda path: say(f"  → {path}")
        finally:
            del os.environ[VARIABLE]


def _draw(line: Any, state: Progress) -> None:
    state.read()
    line.n = state.done
    line.set_description_str(harmless(str(state)))  # and draws it


def _lines(state: Progress, quiet: bool) -> Callable[[], None]:
    last, changed = time.monotonic(), False

    def watch() -> None:
        nonlocal last, changed
        changed |= state.read()
        if changed and not quiet and time.monotonic() - last >= PAUSE:
            say(str(state), error=True)
            last, changed = time.monotonic(), False

    return watch


def notebooks_for(numbers: Sequence[str] | None, profile: "Profile") -> list[Path]:
    """The notebooks of these numbers; without any, all but the one that must have the machine to itself."""
    paths = notebooks.notebooks(numbers or (), profile)
    return paths if numbers else [path for path in paths if path.stem[:2] != notebooks.TIMED]


def hand_on(option: str, path: Path | None, variable: str, folder: bool = False) -> None:
    """Name a path to the notebooks by a variable of the environment, where it is given."""
    if path is None:
        return
    if not (path.is_dir() if folder else path.is_file()):
        raise ValueError(f"{option}: {path}: no such {'folder' if folder else 'file'}")
    os.environ[variable] = str(path.resolve())


def show_plan(table: "pd.DataFrame", profile: str, where: str, cluster: "Ray | None", rows: bool) -> None:
    """Print what the runs of a plan (`experiments.study.plan`) need, and the runs themselves if `rows`."""
    from atr.bench import needs
    from atr.experiments import executors

    doing(f"measuring how long {len(table)} runs take here")
    if cluster:
        groups, words = cluster.call(needs.summary, table, where, cluster.slots(), str(cluster))
    else:
        groups, words = needs.summary(table, where, executors.default_workers(where))
    finished = int(table["finished"].sum())
    say(f"{len(table)} runs of profile {profile}, {finished} of them finished.", *words.split("\n"))
    say(*groups.to_string(index=False).split("\n"))
    if rows:
        print_table(table.drop(columns=["config", "seconds", "size"]))
    else:
        say("Each run in a line: --rows")


def workload(
    table: "pd.DataFrame", profile: "Profile", count: int, where: str, cluster: "Ray | None", jobs: int | None
) -> tuple[int, float | None, str]:
    """How many of `count` notebooks run at a time, `jobs` if given, rough seconds of training, if known, and in words
    how much there is to do.
    """
    from atr.experiments import executors
    from atr.experiments.study import LITTLE, estimate
    from atr.system import units

    cores, finished = executors.default_workers("cpu"), int(table["finished"].sum())
    guess = None
    if where == "cpu" and not profile.published:
        guess = estimate(table, cores, cluster.slots() if cluster else None)
    little = finished == len(table) if guess is None else guess < LITTLE
    jobs = min(jobs or (cores if little else 1), count)
    words = f"{len(table)} runs, {finished} of them finished"
    if guess is not None:
        seconds = guess + NOTEBOOK_SECONDS * count / jobs
        words += f"; about {units.duration(seconds)} on {cluster or f'{cores} cores here'}"
    return jobs, guess, words
