"""`atr runs`: list, show, export, verify and remove runs."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atr.cli.console import ProfileOption, YesOption, choice, console, doing, fail, harmless, print_table, say
from atr.config import TRAININGS, RunConfig
from atr.experiments.listing import STATES, Glance, differences, glances
from atr.experiments.notebooks import notebooks
from atr.experiments.profiles import Profile, get_profile
from atr.system import store
from atr.training import CONFIG, ENVIRONMENT, ERROR, METRICS, find

if TYPE_CHECKING:
    from atr.training.records import Run

app = typer.Typer(help="List, show and remove runs.", no_args_is_help=True)
ENDINGS = (".csv", ".parquet")
SORTS = ("age", "address", "state", "loss", "training", "seed", "R@10")


def run_of(profile: str, digits: str) -> "Run":
    """The run of a profile whose address begins so; ValueError if there is none, or several."""
    path = find(digits, get_profile(profile).runs)
    from atr.training.records import Run  # takes seconds

    return Run(path)


def every(profile: str) -> "list[Run]":
    from atr.training import records

    return records.runs_in(get_profile(profile).runs)


@app.command("list")
def runs_list(
    profile_name: ProfileOption = "demo",
    loss: Annotated[str | None, typer.Option(help="Only those with this loss, such as nt_xent.")] = None,
    training: Annotated[
        str | None, typer.Option(help=f"Only those trained so: {', '.join(TRAININGS)}.", callback=choice(TRAININGS))
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Only those of this seed.")] = None,
    state: Annotated[
        str | None, typer.Option(help=f"Only those that are {', '.join(STATES)}.", callback=choice(STATES))
    ] = None,
    notebook: Annotated[str | None, typer.Option(help="Only those that this notebook trains, such as 01.")] = None,
    sort: Annotated[str, typer.Option(help=f"By {', '.join(SORTS)}.", callback=choice(SORTS))] = "age",
) -> None:
    """The runs of a profile: address, state, what each is, text-to-audio R@10, the newest last.

    "differs in" has what each run has and most of the others listed do not.
    """
    profile = get_profile(profile_name)
    shown = glances(profile.runs)
    if not shown:
        return say(f"no runs of profile {profile_name} yet: atr study --profile {profile_name}")
    filters = {"loss.name": loss, "training": training, "seed": seed}
    shown = [run for run in shown if all(value in (None, run.fields.get(name)) for name, value in filters.items())]
    shown = [run for run in shown if state in (None, run.state)]
    if notebook is not None:
        own = _of_notebook(profile, notebook)
        shown = [run for run in shown if own(run)]
    if not shown:
        return say("no runs are like that; leave out some of the options")
    rows = []
    for run, words in zip(shown, differences([run.fields for run in shown]), strict=True):
        fields = run.fields if run.state not in ("stale", "newer") else {}
        by = {"stale": "by an older version: remove or run again", "newer": "by a newer version"}
        rows.append(
            {
                "address": run.path.name,
                "state": run.state,
                "loss": fields.get("loss.name", ""),
                "training": fields.get("training", ""),
                "seed": fields.get("seed", ""),
                "R@10": "" if run.r10 is None else run.r10,
                "differs in": by.get(run.state, run.problem or words),
            }
        )
    if sort != "age":
        rows.sort(key=lambda row: (isinstance(row[sort], str), row[sort]))
    print_table(rows)
    for run in shown:
        if run.problem:
            say(f"{run.state}: {run.problem}; its study trains it anew", error=True)


def _of_notebook(profile: Profile, number: str) -> Callable[[Glance], bool]:
    """Whether a run is of a notebook's grid."""
    (path,) = notebooks([number], profile)
    doing(f"reading what {path.stem} trains")
    from atr.config import from_dict
    from atr.experiments.study import grid

    own = [config.identity() for config in grid(path, {"profile_name": profile.name, "seeds": None})]

    def belongs(run: Glance) -> bool:
        with suppress(ValueError, TypeError):  # another version's
            return bool(run.config) and from_dict(run.config).identity() in own
        return False

    return belongs


def _problem(run) -> str:
    """Of a run that came to its end: what keeps it from being used; nothing if it can be."""
    from atr.training.records import RecordError

    try:
        if run.finished:
            _ = run.config  # of another version, or it needs a file of extensions
        return run.problem
    except RecordError as error:
        return str(error)


def _name_damage(runs: list) -> bool:
    """A line for each damaged run on the error stream; whether there are any."""
    problems = [problem for run in runs if (problem := _problem(run))]
    for problem in problems:
        say(f"damaged: {problem}", error=True)
    return bool(problems)


@app.command("show")
def runs_show(address: Annotated[str, typer.Argument(help="First digits.")], profile: ProfileOption = "demo") -> None:
    """One run: config, environment, metrics."""
    path = find(address, get_profile(profile).runs)
    say(str(path))
    for name in (CONFIG, ENVIRONMENT, METRICS, ERROR):
        if os.path.lexists(path / name):
            console.print(f"[bold]{name}[/bold]", markup=True)
            try:
                text = (path / name).read_text(encoding="utf-8", errors="replace")
            except OSError as error:
                text = str(error)
            console.print(*text.split("\n"), sep="\n", soft_wrap=True)
    if os.path.lexists(path / METRICS) and _name_damage([run_of(profile, path.name)]):
        raise typer.Exit(1)


@app.command("export")
def runs_export(
    target: Annotated[Path, typer.Argument(help="A file that ends in .csv or .parquet.")],
    profile: ProfileOption = "demo",
) -> None:
    """All finished runs as one table: one row per run, with its config, metrics and environment.

    Exit status 1 if damaged runs are left out.
    """
    if target.suffix not in ENDINGS:
        raise ValueError(f"{target}: ends neither in {' nor in '.join(ENDINGS)}; name the file so")
    doing("reading the runs")
    from atr.experiments import export

    runs = every(profile)
    whole = [run for run in runs if run.status == "finished" and not _problem(run)]
    damaged = _name_damage(runs)
    if not whole:
        raise ValueError(f"no finished runs of profile {profile}; make some: atr study --profile {profile}")
    export.export(whole, target)
    say(f"{len(whole)} runs → {target}")
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
    doing("reading all files of the runs")
    runs = every(profile)
    damaged = [(run, problem) for run in runs if (problem := run.damage())]
    for run, problem in damaged:
        words = f"damaged ({problem})"
        if repair:
            with run.lock("set aside", timeout=1):
                words += f"; set aside: {run.set_aside()}"
        else:
            words += "; --repair sets it aside, to be trained anew"
        say(f"{run.path}: {words}")
    if unknown := sum(run.finished and not (run.path / store.SUMS).is_file() for run in runs):
        say(f"{unknown} by an older version, which wrote no hashes")
    if damaged:
        console.print(f"[red]{len(damaged)} damaged[/red] of {len(runs)} runs", markup=True)
        if repair:
            say(f"train them anew: atr study --profile {profile}")
        raise typer.Exit(1)
    say(f"{len(runs)} runs, none is damaged")


def _needing(needs: list, runs: list) -> list:
    """Of the other runs those that start from one of these, or are mined by it."""

    def config(run: "Run") -> RunConfig | None:
        try:
            return run.config
        except (ValueError, OSError):
            return None  # damaged, or by another version

    missing = [own.identity() for run in needs if (own := config(run))]
    paths = {run.path for run in needs}
    others = [(run, config(run)) for run in runs if run.path not in paths]
    return [run for run, one in others if one and any(other.identity() in missing for other in one.needs().values())]


@app.command("remove")
def runs_remove(
    addresses: Annotated[list[str] | None, typer.Argument(help="First digits of each.")] = None,
    profile: ProfileOption = "demo",
    stale: Annotated[bool, typer.Option("--stale", help="Remove all runs of older versions.")] = False,
    yes: YesOption = False,
) -> None:
    """Remove runs from disk, after asking."""
    runs = [run_of(profile, address) for address in addresses or ()]
    if stale:
        runs += [run for run in every(profile) if run.status == "stale"]
    runs = list({run.path: run for run in runs}.values())
    if not runs:
        return say("nothing to remove")
    if not yes:
        from atr.encoders.checkpoints import name_list

        needing = name_list(run.address for run in _needing(runs, every(profile)))
        also = f" Needed to train {needing}." if needing else ""
        doing()
        if not typer.confirm(f"Remove {harmless(', '.join(run.address for run in runs))}?{also}"):
            raise typer.Exit(1)
    failures = 0
    for run in runs:
        try:
            run.remove()
        except FileNotFoundError:
            say(f"{run.path}: gone already")
        except OSError as error:
            failures += 1
            fail(error)
    say(f"removed {len(runs) - failures}")
    if failures:
        raise typer.Exit(1)
