"""`atr runs`: list, show, export and remove runs."""

from pathlib import Path
from typing import Annotated

import typer

from atr.commands import ProfileOption, console, fail, printed

app = typer.Typer(help="List, show and remove runs.", no_args_is_help=True)


def found_run(profile: str, address: str):
    from atr import records
    from atr.profiles import profile as profile_of

    return records.find(address, profile_of(profile).runs)


@app.command("list")
def runs_list(profile: ProfileOption = "demo") -> None:
    """All runs of a profile: address, state, what it is, text-to-audio R@10."""
    import pandas as pd

    from atr import records
    from atr import runs as many
    from atr.profiles import profile as profile_of

    try:
        found = records.stored(profile_of(profile).runs)
    except ValueError as error:
        raise fail(error) from error

    def described(run: records.Run) -> str:
        if run.status == "stale":
            return "by an older version: remove or run again"
        try:
            return many.describe(run.config)
        except ValueError as error:
            return f"{run.path / 'config.json'}: {error}"

    rows = [
        {
            "address": run.address,
            "state": run.status,
            "run": described(run),
            "R@10": f"{run.metrics['t2a_r10']:.1f}" if run.status == "finished" else "",
        }
        for run in found
        if (run.path / "config.json").is_file()
    ]
    if not rows:
        console.print(f"no runs of profile {profile} yet: atr study --profile {profile}")
        return
    printed(pd.DataFrame(rows))


@app.command("show")
def runs_show(address: Annotated[str, typer.Argument(help="First digits.")], profile: ProfileOption = "demo") -> None:
    """One run: config, environment, metrics."""
    try:
        run = found_run(profile, address)
    except ValueError as error:
        raise fail(error) from error
    console.print(str(run.path), soft_wrap=True, markup=False, highlight=False)
    for name in ("config.json", "environment.json", "metrics.json", "error.txt"):
        if (run.path / name).is_file():
            console.print(f"[bold]{name}[/bold]")
            console.print((run.path / name).read_text(), markup=False, soft_wrap=True)


@app.command("export")
def runs_export(
    target: Annotated[Path, typer.Argument(help="A file that ends in .csv or .parquet.")],
    profile: ProfileOption = "demo",
) -> None:
    """All finished runs as one table: a row a run, with its config, metrics and environment."""
    from atr import records
    from atr.profiles import profile as profile_of

    try:
        found = [run for run in records.stored(profile_of(profile).runs) if run.status == "finished"]
        if not found:
            raise ValueError(f"no finished runs of profile {profile}; make some: atr study --profile {profile}")
        records.export(found, target)
    except (ValueError, OSError) as error:
        raise fail(error) from error
    console.print(f"{len(found)} runs → {target}", soft_wrap=True)


@app.command("remove")
def runs_remove(
    addresses: Annotated[list[str] | None, typer.Argument(help="First digits of each.")] = None,
    profile: ProfileOption = "demo",
    stale: Annotated[bool, typer.Option("--stale", help="Remove all runs of older versions.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove runs from disk, after asking."""
    from atr import records
    from atr.profiles import profile as profile_of

    try:
        chosen = [found_run(profile, address) for address in addresses or ()]
        if stale:
            chosen += [run for run in records.stored(profile_of(profile).runs) if run.status == "stale"]
        chosen = list({run.path: run for run in chosen}.values())
        if not chosen:
            console.print("nothing to remove")
            return
    except ValueError as error:
        raise fail(error) from error
    if not yes and not typer.confirm(f"Remove {', '.join(run.address for run in chosen)}?"):
        raise typer.Exit(1)
    for run in chosen:
        run.remove()
    console.print(f"removed {len(chosen)}")
