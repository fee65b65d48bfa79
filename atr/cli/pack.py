"""`atr pack`: a finished run in one folder, to be shared."""

from pathlib import Path
from typing import Annotated

import typer

from atr.cli.console import ProfileOption, QuietOption, check_out, say
from atr.experiments.profiles import get_profile
from atr.training import find


def pack(
    run: Annotated[str, typer.Argument(help="A finished run: its folder, or its address's first digits.")],
    out: Annotated[Path | None, typer.Option(help="Folder to make; atr-<address>, here, if none is named.")] = None,
    profile: ProfileOption = "demo",
    quiet: QuietOption = False,
) -> None:
    """Write a finished run as one folder that loads without its corpus: weights, tokenizer, config, a model card.

    atr evaluate, atr index --run and atr.Embedder.packed take it, wherever it lies. A pack of the same run is written
    anew, but for its card.
    """
    from atr.evaluation import naming

    check_out(out)
    path = Path(run).expanduser()
    if not path.is_dir():
        path = find(run, get_profile(profile).runs)
    elif (path / naming.PACK).is_file():
        raise ValueError(f"{path}: a pack already; copy it, or give the run that it was made from")
    elif (what := naming.what_is(path)) != "folder":
        raise ValueError(naming.otherwise(path, what))
    from atr.corpora import corpus_of  # takes seconds
    from atr.inference.embedder import beginning
    from atr.inference.pack import CARD, pack
    from atr.system.units import human
    from atr.training import identity
    from atr.training.records import Run

    finished = Run(path.resolve())
    corpus = None
    try:
        corpus = corpus_of(finished.config.corpus, get_profile(profile).root)
    except (ValueError, OSError):
        if identity.pretrained_on_corpus(finished.config):
            raise  # else only its source, which the card would state, stays unknown
    _, start = beginning(finished, corpus, quiet)
    target = out.expanduser() if out else Path(f"atr-{finished.address}")
    pack(finished, start, target, corpus.source if corpus else "")
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    say(f"{human(size)} → {target}", f"{target / CARD}: the model card; look through it, and state a licence")
