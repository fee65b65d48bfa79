"""A finished run and what it starts from in one folder, which loads without its corpus and without the store.

| file | holds |
| --- | --- |
| pack.json | the format's number, the run's address, fingerprints of what it started from, SHA-256 of each file below |
| config.json | the run's |
| checkpoint.safetensors | the run's: what training changed |
| audio.safetensors | what its audio encoder started from, unless that was random |
| text/ | what its text encoder started from, as transformers saves it |
| README.md | the model card, which is its owner's to edit |
"""

import os
import re
import shutil
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from atr.config import RESULT_VERSION, ConfigError, RunConfig, from_dict
from atr.corpora.catalogue import DATASETS
from atr.encoders import checkpoints, text
from atr.metrics import statistics
from atr.metrics.retrieval import Direction
from atr.system import atomic, hashes
from atr.training import CHECKPOINT, CONFIG, identity
from atr.training.identity import Preparation
from atr.training.records import Run

FORMAT = 1
PACK, CARD, AUDIO, TEXT = "pack.json", "README.md", "audio.safetensors", "text"
NAMES = {PACK, CARD, CONFIG, CHECKPOINT, AUDIO, TEXT}
# Fields that say how a run was trained, by losses and runs that need not be here, and nothing of its network.
TRAINING = {"loss", "penalty", "text_contrast", "label_contrast", "mining", "ancillary", "start", "stages"}
WAYS: dict[Direction, str] = {"t2a": "text to audio", "a2t": "audio to text"}
AGAIN = "copy or fetch it again, or pack it again"


@dataclass(frozen=True)
class PackedRun(Run):
    """A pack in the place of its run, under the run's address."""

    name: str

    @property
    def address(self) -> str:
        return self.name


def locate(name: str | os.PathLike[str]) -> Path | None:
    """The folder of a pack: a path, or a name on the Hugging Face Hub, which is fetched; None if it is no pack."""
    path = Path(name).expanduser()
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        from huggingface_hub import snapshot_download

        with suppress(Exception):  # not on the Hub, or out of reach
            path = Path(snapshot_download(str(name), allow_patterns=[PACK]))
        if (path / PACK).is_file():
            path = Path(snapshot_download(str(name)))
    return path if (path / PACK).is_file() else None


def open_pack(folder: Path) -> tuple[RunConfig, Preparation, Run]:
    """What `Embedder` makes a model of: a pack's config, the weights that it starts from, and the pack as its run.

    FileNotFoundError, ValueError: a file that is missing or has changed, a pack by a newer version of atr, an encoder
    of one's own that is not here or is another.
    """
    about = _about(folder)
    for name, digest in about["files"].items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: missing; {AGAIN}")
        if hashes.file_hash(folder / name) != digest:
            raise ValueError(f"{folder / name}: damaged (not the bytes that were packed); {AGAIN}")
    content = atomic.read_object(folder / CONFIG)
    if content["result_version"] > RESULT_VERSION:
        raise ValueError(f"{folder / CONFIG}: by a newer version of atr, whose results differ; update atr")
    if content["result_version"] < RESULT_VERSION:
        warnings.warn(f"{folder}: by an older version of atr, so that its card may not hold; evaluate it", stacklevel=3)
    try:
        config = from_dict({name: value for name, value in content["config"].items() if name not in TRAINING})
    except ConfigError as error:
        raise ValueError(f"{folder / CONFIG}: {error}; update atr if a newer version wrote it") from error
    for part, code in identity.fingerprints(config).items():
        if code != about["fingerprints"].get(part):
            raise ValueError(f"{folder}: packed with another code of {part} than is here; extend atr by that")
    audio = folder / AUDIO if AUDIO in about["files"] else None
    if audio is not None:
        config = config.replace(audio_weights=str(audio))
    return config, Preparation(audio, folder / TEXT, about["fingerprints"]), PackedRun(folder, about["name"])


def _about(folder: Path) -> dict[str, Any]:
    """The content of pack.json."""
    path, kinds = folder / PACK, {"name": str, "fingerprints": dict, "files": dict}
    try:
        about = atomic.read_object(path)
        newer = about["format"] > FORMAT
        whole = newer or all(isinstance(about[name], kind) for name, kind in kinds.items())
    except (ValueError, LookupError, TypeError):
        newer = whole = False
    if newer:
        raise ValueError(f"{path}: of format {about['format']}, newer than {FORMAT}, which this atr knows; update atr")
    if not whole:
        raise ValueError(f"{path}: damaged; {AGAIN}")
    return about


def pack(run: Run, start: Preparation, target: Path, source: str = "") -> None:
    """Write a finished run as a pack, which is there as a whole or not at all; a pack of the same run is replaced, but
    for its card.

    start: as `embedder.beginning` gives it; source: of the corpus, in its own words (`Corpus.source`).
    ValueError: not a finished run, a damaged one, CLAP as published. FileExistsError: `target` is something else than a
    pack of this run, or holds more. WriteError.
    """
    run.require_finished("; only a finished run can be packed: atr runs list")
    if problem := run.damage():
        raise ValueError(f"{run.path}: damaged ({problem}); restore it, or train it anew")
    if run.config.training == "external":
        raise ValueError(f"{run.path}: CLAP as it is published; share that by its name, {run.config.text_encoder}")
    texts = text.files(start.text_folder)
    if pickles := [file for file in texts if file.name == text.PICKLED]:
        raise ValueError(f"{pickles[0]}: a pickle, which no pack holds; save the model there as safetensors")
    _check(target, run)
    written = target / CARD
    described = written.read_bytes() if written.is_file() else card(run, source).encode()

    def write(folder: Path) -> None:
        for name in (CONFIG, CHECKPOINT):
            shutil.copyfile(run.path / name, folder / name)
        if start.audio_weights is not None and start.audio_weights.suffix == ".safetensors":
            shutil.copyfile(start.audio_weights, folder / AUDIO)
        elif start.audio_weights is not None:
            tensors = checkpoints.read(start.audio_weights)
            own = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
            save_file(own, folder / AUDIO)  # which takes no tensors that share memory
        (folder / TEXT).mkdir()
        for file in texts:
            shutil.copyfile(file, folder / TEXT / file.name)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        digests = {file.relative_to(folder).as_posix(): hashes.file_sha256(file) for file in files}
        about = {"format": FORMAT, "name": run.address, "fingerprints": start.fingerprints, "files": digests}
        atomic.write_json(folder / PACK, about)
        (folder / CARD).write_bytes(described)

    atomic.replace_folder(target, write)


def _check(target: Path, run: Run) -> None:
    """FileExistsError: what is there is not a pack of the run, or would lose something."""
    if not os.path.lexists(target):
        return
    name = None
    with suppress(OSError, ValueError):
        name = _about(target)["name"]
    if name != run.address:
        raise FileExistsError(f"{target}: there already, and no pack of run {run.address}; name another folder: --out")
    if others := sorted({path.name for path in target.iterdir()} - NAMES):
        raise FileExistsError(f"{target / others[0]}: no part of a pack, and would be lost; move it elsewhere")


def card(run: Run, source: str = "") -> str:
    """The model card of a finished run, in Markdown with the fields that the Hub reads at its head. source: as in
    `pack`.
    """
    config, name = run.config, f"atr-{run.address}"
    clips = run.clips["split"].value_counts(sort=False)
    counts = ", ".join(f"{count} {split}" for split, count in clips.items())
    origins = "\n".join(f"- {line}" for line in _origins(config, source))
    own = "".join(
        f"\nIt needs the file that registers {part}: `atr.extend(<file>)` comes first.\n"
        for part in identity.fingerprints(config)
        if part.startswith("encoder")
    )
    rows = "\n".join(f"| {title} | {' | '.join(_scores(run, way))} |" for way, title in WAYS.items())
    return f"""---
library_name: atr
pipeline_tag: feature-extraction
tags:
- audio
- audio-text-retrieval
- language-based-audio-retrieval
# license: yours to choose; the licences below have a say in it
---

# {name}

A dual encoder of sounds and sentences, made by `atr`: it finds sounds by sentences, and sentences by sounds.

```python
import atr

embedder = atr.Embedder.packed("{name}")  # this folder, or its name on the Hub
print(embedder.similarity(embedder.sentences(["A dog barks."]), embedder.sounds(["sound.wav"])))
```
{own}
## What it was trained on

Corpus `{config.corpus["name"]}`: {counts} clips. Training: {config.training}, loss {config.loss["name"]}, seed
{config.seed}, epoch {run.best_epoch} selected; `config.json` has the rest. Audio encoder: {config.audio_encoder};
embeddings of {config.embedding_dim} numbers.

## What it comes to

In percent, on its {clips[run.tested_split]} {run.tested_split} clips; in brackets 95 % intervals over clips,
which speak of this seed alone.

| | R@1 | R@5 | R@10 | mAP@10 |
| --- | --- | --- | --- | --- |
{rows}

## Licences of what it was made from

{origins}
"""


def _scores(run: Run, way: Direction) -> list[str]:
    """R@1, R@5, R@10 and mAP@10, each with its interval."""
    recall, precision, cells = statistics.clip_scores, statistics.clip_precision, []
    for name, scores, k in (("r1", recall, 1), ("r5", recall, 5), ("r10", recall, 10), ("map10", precision, 10)):
        interval = statistics.crossed_interval(scores(run.ranks, run.relevance, k, way)[None])
        cells.append(f"{run.metrics[f'{way}_{name}']:.1f} ({interval.low:.1f} to {interval.high:.1f})")
    return cells


def _origins(config: RunConfig, source: str) -> list[str]:
    """A line for each thing that a run was made from, with its licence as far as it is known here."""
    unknown = "its licence is not known here"
    sources = [source] if source else []
    names = [] if source else [config.corpus["name"], config.corpus.get("synthetic")]
    if config.start is not None:
        names.append(config.needs()["start"].corpus["name"])
    if config.text_contrast is not None:
        names.append(Path(config.text_contrast["captions"]).name)
    for name in names:
        if name in DATASETS:
            sources.append(f"{DATASETS[name].title}. {DATASETS[name].licence}. {DATASETS[name].source}")
        elif name is not None:
            sources.append(f"`{name}`: {unknown}")
    if config.training == "scratch" or config.audio_weights is None:
        audio = "began at random"
    elif config.audio_weights != "pretrained":
        audio = f"weights of a file, {Path(config.audio_weights).name}: {unknown}"
    elif config.audio_encoder in checkpoints.REGISTRY:
        entry = checkpoints.REGISTRY[config.audio_encoder]
        audio = f"{entry.name}. {entry.licence}. {entry.source}"
    else:
        audio = "pre-trained on the sound events of the corpus"
    words = f"{Path(config.text_encoder).name}: {unknown}"
    if config.text_encoder in (text.MINILM, text.MINILM_HUB):
        words = f"all-MiniLM-L6-v2. Apache 2.0. https://huggingface.co/{text.MINILM_HUB}"
    return [*(f"Corpus: {line}" for line in sources), f"Audio encoder: {audio}", f"Text encoder: {words}"]
