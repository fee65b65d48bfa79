"""`atr caption`: new captions by a language model."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from atr.cli.console import console, fail


def caption(
    corpus: Annotated[str, typer.Argument(help="soundscapes, clipfolder, csv, clotho, audiocaps, wavcaps.")],
    endpoint: Annotated[
        str | None, typer.Option(help="OpenAI-compatible address, such as http://localhost:11434/v1 of Ollama.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model there, such as phi4.")] = None,
    local: Annotated[str | None, typer.Option(help="Instead: a transformers model, its folder or name.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the record; made of the corpus and the model if not given.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the corpus, for clipfolder and csv.")] = None,
    keywords: Annotated[
        Path | None, typer.Option(help="Table of file_name and keywords, as clotho_metadata_development.csv.")
    ] = None,
    hold_out: Annotated[int | None, typer.Option(help="Hold so many clips out and caption all others.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many clips: to try it out.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 4,
    attempts: Annotated[int, typer.Option(min=1, help="Requests for a clip before it is given up.")] = 3,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for an answer.")] = 60.0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Have a language model write five new captions for each training clip; exit status 1 if clips are left without.

    Every answer is recorded at once: interrupt it whenever you like, the same command continues where it stopped.
    A key, where one is needed, comes from the environment: ATR_API_KEY or OPENAI_API_KEY.
    """
    from atr.corpora import load_corpus
    from atr.corpora.captioning import generate, language_models
    from atr.corpora.captioning.record import path

    try:
        if (local is None) == (endpoint is None) or (endpoint is None) != (model is None):
            raise ValueError("give --endpoint <address> with --model <name>, or --local <folder>")
        loaded = load_corpus(corpus, root, hold_out=hold_out).split("train")
        tags = None
        if keywords is not None:
            tags = generate.keywords_of(keywords, loaded.clips["clip"])
            console.print(f"keywords of {len(tags):,} of {len(loaded):,} clips", soft_wrap=True, highlight=False)
        if name is None:
            name = re.sub(r"[^\w.-]+", "-", f"{corpus}-{model or Path(str(local)).name}")
        record = path(name)
        ask: language_models.Model
        if local is not None:
            ask = language_models.Local(local)
        else:
            ask = language_models.Endpoint(str(endpoint), str(model), timeout=timeout)
        if limit is not None:
            chosen = loaded.clips["clip"].head(limit)
            loaded = replace(
                loaded, clips=loaded.clips.head(limit), captions=loaded.captions[loaded.captions["clip"].isin(chosen)]
            )
        report = generate.generate(
            loaded, ask, record, keywords=tags, concurrency=concurrency, attempts=attempts, quiet=quiet
        )
    except (ValueError, OSError) as error:
        raise fail(error) from error
    console.print(*str(report).split("\n"), sep="\n", soft_wrap=True, highlight=False)
    if report.missing:
        raise typer.Exit(1)
    console.print(
        f'train on them: load_corpus("{corpus}", …, synthetic="{name}")', soft_wrap=True, markup=False, highlight=False
    )
