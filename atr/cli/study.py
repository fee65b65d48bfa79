"""`atr study`: the numbered notebooks from the command line."""

import os
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atr.cli.console import DeviceOption, ProfileOption, QuietOption, fail, printed, say

if TYPE_CHECKING:
    import pandas as pd

    from atr.experiments.executors import Ray
    from atr.experiments.profiles import Profile


def study(
    numbers: Annotated[list[str] | None, typer.Argument(help="Notebooks, such as 01 03; all but 12 if none.")] = None,
    profile: ProfileOption = "demo",
    seeds: Annotated[str | None, typer.Option(help="Seeds, such as 0,1,2; the profile's own if not given.")] = None,
    device: DeviceOption = "auto",
    executor: Annotated[str, typer.Option(help="Where runs execute: local, or ray (docs/scale.md).")] = "local",
    clips: Annotated[Path | None, typer.Option(help="Folder of labelled clips, for profiles esc10 and esc50.")] = None,
    without: Annotated[
        Path | None, typer.Option(help="File of ids, one a line, of recordings that no scene of esc50 is mixed from.")
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
        bool, typer.Option("--plan", help="Print the runs, what they need and how long they take, and stop.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Run the numbered notebooks: trains what is missing, then writes tables, figures and the executed notebooks.

    Interrupt it whenever you like: the same command continues where it stopped.
    """
    from atr.experiments import executors
    from atr.experiments.profiles import get_profile
    from atr.experiments.study import StudyError, execute_all, plan
    from atr.system.devices import resolve_device

    with ExitStack() as stack:
        try:
            executors.check_executor(executor)
            hand_on("--without", without, "ATR_WITHOUT")
            setting = get_profile(profile)
            seed_list = whole_numbers(seeds)
            paths = asked_for(numbers, setting)
            hand_on("--captions", captions, "ATR_CAPTIONS")
            hand_on("--clips", clips, "ATR_CLIPS", folder=True)
            table = plan(paths, profile, seed_list, strict=not dry)
            if dry and not len(table):
                return say(f"Profile {profile}: nothing to train.")
            cluster = None
            if executor == "ray" and (dry or not table["finished"].all()):
                cluster = stack.enter_context(closing(executors.Ray(device, runs=setting.runs)))
                os.environ["RAY_ADDRESS"] = cluster.address  # for the notebooks: all on the same one
            where = cluster.device if cluster else resolve_device(device)
            if dry:
                return show_plan(table, profile, where, cluster)
            assert not setting.needs_clips or setting.root is not None  # or they say what is missing
            assert not setting.needs_captions or setting.captions is not None
            jobs, words = workload(table, setting, len(paths), where, cluster, jobs)
            say(f"Profile {profile}: {', '.join(path.stem for path in paths)}; {words}.")
            os.environ["ATR_COMMAND"] = " ".join(["atr study", *(numbers or []), "--profile", profile])
            parameters = {"seeds": seed_list, "device": device, "executor": executor}
            execute_all(paths, profile, parameters, jobs, quiet, lambda path: say(f"  → {path}"))
            say(f"Tables: {setting.results / 'tables'}   figures: {setting.results / 'figures'}")
        except StudyError as error:
            raise fail(error) from error


def whole_numbers(seeds: str | None) -> list[int] | None:
    """Of "0,1,2"; None for what is not given."""
    try:
        return [int(seed) for seed in seeds.split(",")] if seeds else None
    except ValueError:
        raise ValueError(f"--seeds: {seeds!r}; give whole numbers, such as 0,1,2") from None


def asked_for(numbers: Sequence[str] | None, profile: "Profile") -> list[Path]:
    """The notebooks of these numbers; without any, all but the one that must have the machine to itself."""
    from atr.experiments.study import TIMED, notebooks

    paths = notebooks(numbers or (), profile)
    return paths if numbers else [path for path in paths if path.stem[:2] != TIMED]


def hand_on(option: str, path: Path | None, variable: str, folder: bool = False) -> None:
    """Name a path to the notebooks by a variable of the environment, where it is given."""
    if path is None:
        return
    if not (path.is_dir() if folder else path.is_file()):
        raise ValueError(f"{option}: {path}: no such {'folder' if folder else 'file'}")
    os.environ[variable] = str(path.resolve())


def show_plan(table: "pd.DataFrame", profile: str, where: str, cluster: "Ray | None") -> None:
    """Print the runs of a plan (`experiments.study.plan`), and what they need."""
    from atr.experiments import executors, planning

    printed(table.drop(columns=["config", "seconds", "size"]), f"{len(table)} runs of profile {profile}")
    if cluster:
        groups, words = cluster.call(planning.summary, table, where, cluster.slots(), str(cluster))
    else:
        groups, words = planning.summary(table, where, executors.default_workers(where))
    say("What they need", *groups.to_string(index=False).split("\n"), *words.split("\n"))


def workload(
    table: "pd.DataFrame", profile: "Profile", notebooks: int, where: str, cluster: "Ray | None", jobs: int | None
) -> tuple[int, str]:
    """How many notebooks run at a time, `jobs` if given, and in words how much there is to do."""
    from atr.experiments import executors
    from atr.experiments.study import LITTLE, NOTEBOOK_SECONDS, estimate
    from atr.system import units

    cores, finished = executors.default_workers("cpu"), int(table["finished"].sum())
    known = where == "cpu" and not profile.published
    training = estimate(table, cores, cluster.slots() if cluster else None) if known else 0.0
    little = training < LITTLE if known else finished == len(table)
    jobs = min(jobs or (cores if little else 1), notebooks)
    words = f"{len(table)} runs, {finished} of them finished"
    if known:
        seconds = training + NOTEBOOK_SECONDS * notebooks / jobs
        words += f"; about {units.duration(seconds)} on {cluster or f'{cores} cores here'}"
    return jobs, words
