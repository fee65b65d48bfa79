"""`atr evaluate`: any model under a named protocol."""

import re
from pathlib import Path
from typing import Annotated

import typer

from atr.cli.console import DeviceOption, ProfileOption, QuietOption, WindowsOption, check_out, print_table, say
from atr.experiments.profiles import get_profile


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="A run's folder or address, a pack's folder, hf:<name or folder of a ClapModel or a pack>, "
            "laion:<file>, msclap:<file>, mteb:<name>, embeddings:<folder>, or a registered name."
        ),
    ],
    on: Annotated[
        list[str], typer.Option(help="Protocol, such as clotho-5225 or folder, or a .toml file; several times.")
    ],
    root: Annotated[Path | None, typer.Option(help="Folder of sounds with captions.csv, for protocol folder.")] = None,
    profile: ProfileOption = "demo",
    windows: WindowsOption = None,
    seeds: Annotated[str | None, typer.Option(help="Of parts that are drawn, such as 0,1,2; mean over them.")] = None,
    train: Annotated[
        Path | None, typer.Option(help="Folder of sounds, or table of captions, that the model was trained on.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for reports, ranks by query, and TREC files.")] = None,
    device: DeviceOption = "auto",
    quiet: QuietOption = False,
) -> None:
    """Evaluate a model under named protocols: the same clips, queries, ranks and metrics for everybody.

    Recalls, mean average precisions and median ranks in both directions, with 95 % intervals over clips.
    """
    from atr.evaluation import leaks, naming, protocols

    check_out(out)
    if train is not None and not train.exists():
        raise ValueError(f"--train: no {train}; name a folder of sounds, or a table of captions")
    if train is not None and train.is_file():
        leaks.captions(train)  # what is wrong with it is said before a model is loaded
    seed_list: list[int | None] = [None]
    if seeds is not None:
        if not re.fullmatch("[0-9]{1,9}(,[0-9]{1,9})*", seeds):
            raise ValueError(f"--seeds: {seeds!r}; give whole numbers with commas between, such as 0,1,2")
        seed_list = [int(seed) for seed in dict.fromkeys(seeds.split(","))]
    selected = protocols.several(on)
    naming.check(model, get_profile(profile).runs, windows, seeds is not None)
    parts = [protocol.load(root) for protocol in selected]  # all of them before a model is loaded
    from atr.evaluation.evaluate import across, evaluate, under  # takes seconds

    model_under = under(model, get_profile(profile), windows, device)
    for protocol, part in zip(selected, parts, strict=True):
        loaded = model_under(protocol)
        by_seed = [evaluate(loaded, protocol, part, windows, quiet, train, seed) for seed in seed_list]
        for one in by_seed:
            print_table(one.readable, loaded.name if one.seed is None else f"{loaded.name}, seed {one.seed}")
            say(f"{protocol.name} ({protocol.hash}): {one.coverage}", *(f"noticed: {line}" for line in one.notes))
            if out is not None:
                folder = out.expanduser() if one.seed is None else out.expanduser() / f"seed-{one.seed}"
                say(f"  → {one.save(folder)}")
        if len(by_seed) > 1:
            print_table(across(by_seed), f"{loaded.name}: mean ± standard deviation of {len(by_seed)} seeds")
