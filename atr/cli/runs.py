"""`atr runs`: list, show, export, verify and remove runs."""

import os
from pathlib import Path
from typing import Annotated

import typer

from atr.cli.console import ProfileOption, YesOption, console, fail, harmless, printed, say

app = typer.Typer(help="List, show and remove runs.", no_args_is_help=True)


def found_run(profile: str, address: str):
    from atr.experiments.profiles import get_profile
    from atr.training import records

    return records.find(address, get_profile(profile).runs)


def stored(profile: str) -> list:
    from atr.experiments.profiles import get_profile
    from atr.training import records

    return records.stored(get_profile(profile).runs)


@app.command("list")
def runs_list(profile: ProfileOption = "demo") -> None:
    """All runs of a profile: address, state, what it is, text-to-audio R@10."""
    import pandas as pd

    from atr.experiments.grid import describe
    from atr.training import records

    found = stored(profile)

    def row(run: records.Run) -> dict[str, str]:
        """Of one moment: a run may end, or be removed, meanwhile."""
        state, scored, what = run.status, "", ""
        try:
            if state == "stale":
                what = "by an older version: remove or run again"
            elif state == "newer":
                what = "by a newer version"
            elif state == "damaged":
                what = run.problem
            else:
                scored = f"{run.metrics['t2a_r10']:.1f}" if state == "finished" else ""
                what = describe(run.config)
        except (ValueError, OSError) as error:
            what = str(error)
        return {"address": run.address, "state": state, "run": what, "R@10": scored}

    rows = [row(run) for run in found if any((run.path / name).exists() for name in ("config.json", "metrics.json"))]
    if not rows:
        return say(f"no runs of profile {profile} yet: atr study --profile {profile}")
    printed(pd.DataFrame(rows))
    _name_damaged(found)


def _problem(run) -> str:
    """Of a run that came to its end: what keeps it from being used; nothing if it can be."""
    from atr.training.records import RecordError

    try:
        if run.finished:
            _ = run.config  # of another version, or it needs a file of extensions
        return run.problem
    except RecordError as error:
        return str(error)


def _name_damaged(found: list) -> bool:
    """A line for each damaged run on the error stream; whether there are any."""
    problems = [problem for run in found if (problem := _problem(run))]
    for problem in problems:
        say(f"damaged: {problem}", error=True)
    return bool(problems)


@app.command("show")
def runs_show(address: Annotated[str, typer.Argument(help="First digits.")], profile: ProfileOption = "demo") -> None:
    """One run: config, environment, metrics."""
    run = found_run(profile, address)
    say(str(run.path))
    for name in ("config.json", "environment.json", "metrics.json", "error.txt"):
        if os.path.lexists(run.path / name):
            console.print(f"[bold]{name}[/bold]", markup=True)
            try:
                text = (run.path / name).read_text(encoding="utf-8", errors="replace")
            except OSError as error:
                text = str(error)
            console.print(*text.split("\n"), sep="\n", soft_wrap=True)
    if _name_damaged([run]):
        raise typer.Exit(1)


@app.command("export")
def runs_export(
    target: Annotated[Path, typer.Argument(help="A file that ends in .csv or .parquet.")],
    profile: ProfileOption = "demo",
) -> None:
    """All finished runs as one table: one row per run, with its config, metrics and environment.

    Exit status 1 if damaged runs are left out.
    """
    from atr.experiments import export

    every = stored(profile)
    found = [run for run in every if run.status == "finished" and not _problem(run)]
    damaged = _name_damaged(every)
    if not found:
        raise ValueError(f"no finished runs of profile {profile}; make some: atr study --profile {profile}")
    export.export(found, target)
    say(f"{len(found)} runs → {target}")
    if damaged:
        raise typer.Exit(1)


@app.command("verify")
def runs_verify(
    profile: ProfileOption = "demo",
    repair: Annotated[
        bool, typer.Option("--repair", help="Set damaged runs aside, so that their study trains them anew.")
    ] = False,
) -> None:
    """Read all files of the runs and compare them with their hashes; exit status 1 if any is damaged."""
    found = stored(profile)
    damaged = [(run, problem) for run in found if (problem := run.damage())]
    for run, problem in damaged:
        words = f"damaged ({problem})"
        if repair:
            with run.lock("set aside", timeout=1):
                words += f"; set aside: {run.set_aside()}"
        else:
            words += "; --repair sets it aside, to be trained anew"
        say(f"{run.path}: {words}")
    if unknown := sum(run.finished and not (run.path / "sums.json").is_file() for run in found):
        say(f"{unknown} by an older version, which wrote no hashes")
    if damaged:
        console.print(f"[red]{len(damaged)} damaged[/red] of {len(found)} runs", markup=True)
        if repair:
            say(f"train them anew: atr study --profile {profile}")
        raise typer.Exit(1)
    say(f"{len(found)} runs, none is damaged")


def _needing(chosen: list, every: list) -> list:
    """Of the other runs those that start from one of the chosen, or are mined by it."""

    def config(run):
        try:
            return run.config
        except (ValueError, OSError):
            return None  # damaged, or by another version

    gone = [found.identity() for run in chosen if (found := config(run))]
    paths = {run.path for run in chosen}
    known = [(run, config(run)) for run in every if run.path not in paths]
    return [run for run, one in known if one and any(other.identity() in gone for other in one.needs().values())]


@app.command("remove")
def runs_remove(
    addresses: Annotated[list[str] | None, typer.Argument(help="First digits of each.")] = None,
    profile: ProfileOption = "demo",
    stale: Annotated[bool, typer.Option("--stale", help="Remove all runs of older versions.")] = False,
    yes: YesOption = False,
) -> None:
    """Remove runs from disk, after asking."""
    from atr.encoders.checkpoints import listed

    chosen = [found_run(profile, address) for address in addresses or ()]
    if stale:
        chosen += [run for run in stored(profile) if run.status == "stale"]
    chosen = list({run.path: run for run in chosen}.values())
    if not chosen:
        return say("nothing to remove")
    if not yes:
        needing = listed(run.address for run in _needing(chosen, stored(profile)))
        also = f" Needed to train {needing}." if needing else ""
        if not typer.confirm(f"Remove {harmless(', '.join(run.address for run in chosen))}?{also}"):
            raise typer.Exit(1)
    kept = 0
    for run in chosen:
        try:
            run.remove()
        except FileNotFoundError:
            say(f"{run.path}: gone already")
        except OSError as error:
            kept += 1
            fail(error)
    say(f"removed {len(chosen) - kept}")
    if kept:
        raise typer.Exit(1)
