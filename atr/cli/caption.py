"""`atr caption`: new captions by a language model."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from atr.cli.console import CorpusArgument, QuietOption, RootOption, check_corpus, doing, say


def caption(
    corpus: CorpusArgument,
    endpoint: Annotated[
        str | None, typer.Option(help="OpenAI-compatible address, such as http://localhost:11434/v1 of Ollama.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model there, such as phi4.")] = None,
    local: Annotated[str | None, typer.Option(help="Instead: a transformers model, its folder or name.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the record; made of the corpus and the model if not given.")
    ] = None,
    root: RootOption = None,
    keywords: Annotated[
        Path | None, typer.Option(help="Table of file_name and keywords, as clotho_metadata_development.csv.")
    ] = None,
    hold_out: Annotated[int | None, typer.Option(help="Hold so many clips out and caption all others.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many clips: to try it out.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 4,
    attempts: Annotated[int, typer.Option(min=1, help="Requests for a clip before it is given up.")] = 3,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for an answer.")] = 60.0,
    quiet: QuietOption = False,
) -> None:
    """Have a language model write five new captions for each training clip; exit status 1 if clips are left without.

    Every answer is recorded at once: interrupt it whenever you like, the same command continues where it stopped.
    A key, where one is needed, comes from the environment: ATR_API_KEY or OPENAI_API_KEY.
    """
    if (local is None) == (endpoint is None) or (endpoint is None) != (model is None):
        raise ValueError("give --endpoint <address> with --model <name>, or --local <folder>")
    check_corpus(corpus, root)
    doing(f"loading {corpus}")
    from atr.corpora import load_corpus
    from atr.corpora.captioning import generate, language_models
    from atr.corpora.captioning.record import path

    clips = load_corpus(corpus, root, hold_out=hold_out).split("train")
    tags = None
    if keywords is not None:
        tags = generate.keywords_of(keywords, clips.clips["clip"])
        say(f"keywords of {len(tags):,} of {len(clips):,} clips")
    if name is None:
        name = re.sub(r"[^\w.-]+", "-", f"{corpus}-{model or Path(str(local)).name}")
    record = path(name)
    ask: language_models.LanguageModel
    if local is not None:
        ask = language_models.LocalModel(local)
    else:
        ask = language_models.Endpoint(str(endpoint), str(model), timeout=timeout)
    if limit is not None:
        first = clips.clips.head(limit)
        clips = replace(clips, clips=first, captions=clips.captions[clips.captions["clip"].isin(first["clip"])])
    report = generate.generate(
        clips, ask, record, keywords=tags, concurrency=concurrency, attempts=attempts, quiet=quiet
    )
    say(*str(report).split("\n"))
    if report.missing:
        raise typer.Exit(1)
    say(f'train on them: load_corpus("{corpus}", …, synthetic="{name}")')
