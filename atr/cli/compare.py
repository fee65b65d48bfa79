"""`atr compare`: two models under one protocol, query by query."""

from pathlib import Path
from typing import Annotated

import typer

from atr.cli.console import DeviceOption, ProfileOption, QuietOption, WindowsOption, check_out, print_table, say
from atr.experiments.profiles import get_profile

Side = "A folder that atr evaluate wrote (--out), one <protocol>.json of it, or a model, which needs --on."


def compare(
    a: Annotated[str, typer.Argument(help=Side)],
    b: Annotated[str, typer.Argument(help=Side)],
    on: Annotated[
        list[str] | None, typer.Option(help="Protocol; several times. Default: those of both folders.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of sounds with captions.csv, for protocol folder.")] = None,
    profile: ProfileOption = "demo",
    windows: WindowsOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder for JSON, a table of all queries, and a page.")] = None,
    device: DeviceOption = "auto",
    quiet: QuietOption = False,
) -> None:
    """Compare two models query by query: differences, with 95 % intervals over clips, wins, and what differs most."""
    from atr.evaluation import naming, protocols

    check_out(out)
    selected, to_load = protocols.several(on or ()), set()
    for side in (a, b):
        held = list(naming.results(Path(side).expanduser()))
        if not selected and not held:
            raise ValueError(f"{side}: no folder that atr evaluate --out wrote; for a model, name a protocol: --on")
        if absent := [one.name for one in selected if one.name not in held]:
            if held and naming.what_is(Path(side).expanduser()) in ("results", None):
                had = f"no result of {', '.join(absent)}, but of {', '.join(held)}"
                raise ValueError(f"{side}: {had}; evaluate its model under that, or leave --on out")
            naming.check(side, get_profile(profile).runs, windows)
            to_load |= set(absent)
    parts = {one.name: one.load(root) for one in selected if one.name in to_load}
    from atr.evaluation.compare import Result, compare, match, results, sounds_of  # takes seconds
    from atr.evaluation.evaluate import evaluate, under

    sides = [results(Path(side).expanduser()) for side in (a, b)]
    for side, own in zip((a, b), sides, strict=True):
        if lacking := [one for one in selected if one.name not in own]:
            model_under = under(side, get_profile(profile), windows, device)
            for protocol in lacking:
                one = evaluate(model_under(protocol), protocol, parts[protocol.name], windows, quiet)
                own[protocol.name] = Result.of(one)
    for pair in match(sides[0], sides[1], [one.name for one in selected]):
        both = compare(*pair)
        name = both.a.protocol["name"]
        print_table(both.readable, f"A {both.a.model}, B {both.b.model}")
        print_table(both.wins)
        if len(apart := both.apart(5)):
            print_table(apart[["direction", "query", "clip", "rank_a", "rank_b"]], "the queries that differ most")
        say(f"{name} ({both.a.protocol['hash']}): {both.a.report['clips']:,} clips, {len(both.queries):,} queries")
        if out is not None:
            part = parts[name] if name in parts else sounds_of(both.a, root)
            say(*(f"  → {path}" for path in both.save(out.expanduser(), part)))
