"""What a model to evaluate may be called, told before anything is loaded: PyTorch takes seconds, an error need not."""

import importlib.util
import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from atr import register, training
from atr.evaluation import embeddings
from atr.system import places

KINDS = (
    "a run's folder or address, hf:<name or folder of a ClapModel or a pack>, laion:<file>, msclap:<file>, "
    "mteb:<name>, embeddings:<folder>, a pack's folder, or a name that is registered (docs/evaluate.md)"
)
PACK, RANKS = "pack.json", ".ranks.parquet"  # the first as `inference.pack` has it, which takes PyTorch


def kind_of(name: str, runs: Path) -> tuple[str, str]:
    """The kind of model that a name stands for ("hf", "laion", "msclap", "mteb", "embeddings", "own", or "folder" of a
    run or a pack), and what it names. runs: the store in which an address is looked for.

    ValueError: no such model, or one of another kind; FileNotFoundError: no such file.
    """
    kind, _, rest = name.partition(":")
    path = Path(rest).expanduser()
    if kind == "mteb" and rest:
        if "mteb" not in sys.modules and importlib.util.find_spec("mteb") is None:
            raise ValueError("MTEB: it is not here, and does not come with atr: pip install 'mteb[audio]'")
        return kind, rest
    if kind == "hf" and rest:
        if path.is_dir() and not (path / PACK).is_file() and (what := what_is(path)) != "hf":
            raise ValueError(otherwise(path, what))
        return kind, rest
    if kind in ("embeddings", "laion", "msclap") and rest:
        checkpoint = places.home() / "checkpoints" / rest  # where a checkpoint's name alone is enough
        if not path.exists() and (kind == "embeddings" or not checkpoint.exists()):
            named = "folder of embeddings" if kind == "embeddings" else "checkpoint"
            raise FileNotFoundError(f"{rest}: not there; name the {named}: {kind}:<path>")
        what = what_is(path) if path.is_dir() else None
        if path.is_dir() and (kind != "embeddings" or what in ("hf", "folder")):
            raise ValueError(otherwise(path, what))
        return kind, rest
    if name in register.MODELS:
        return "own", name
    path = Path(name).expanduser()
    if name and path.is_dir():
        if (what := what_is(path)) != "folder":
            raise ValueError(otherwise(path, what))
        return "folder", name
    if not (name.isalnum() and name.isascii()):
        raise ValueError(f"model {name!r}: unknown; give {KINDS}")
    return "folder", str(training.find(name, runs))


def what_is(path: Path) -> str | None:
    """The kind of model that a folder holds by its files, as in `kind_of`, "results" for what `atr evaluate --out` has
    written, or None.
    """
    if (path / PACK).is_file():
        return "folder"
    with suppress(OSError, ValueError, AttributeError):
        if json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type"):
            return "hf"
    if any(os.path.lexists(path / file) for file in (training.CONFIG, training.METRICS)):
        return "folder"
    if any((path / file).is_file() for file in (embeddings.FILE, "audio.npy", "text.npy")):
        return "embeddings"
    return "results" if results(path) else None


def results(path: Path) -> dict[str, tuple[Path, Path]]:
    """By the protocol's name, what `atr evaluate --out` wrote into a folder, or that of one `<protocol>.json`: the
    report and the ranks.
    """
    reports = [path] if path.suffix == ".json" else sorted(path.glob("*.json")) if path.is_dir() else []
    pairs = {report.stem: (report, report.with_name(report.stem + RANKS)) for report in reports}
    return {name: files for name, files in pairs.items() if files[1].is_file()}


def otherwise(path: Path, what: str | None) -> str:
    """That a folder holds another kind of model than it was given as, and how to give it."""
    words = {
        "hf": f"a model of transformers; give it as hf:{path}",
        "embeddings": f"a folder of embeddings; give it as embeddings:{path}",
        "folder": f"a folder of a run or a pack; give it as {path}",
        "results": "what atr evaluate --out wrote, which atr compare takes",
    }
    return f"{path}: {words.get(what or '', f'no model and no finished run; give {KINDS}')}"


def check_ways(kind: str, windows: str | None, seeds: bool = False) -> None:
    """ValueError: a model of that kind, heard so, cannot be told how it hears longer sounds, or draws no part of them
    by seeds that are asked for.
    """
    fixed = kind in ("embeddings", "mteb", "own")
    if windows is not None and fixed:
        why = "have been made already" if kind == "embeddings" else "hear longer sounds in their own way"
        raise ValueError(f"windows {windows!r}: {kind} models {why}; leave --windows out")
    if seeds and (fixed or windows in ("mean", "first")):
        raise ValueError(f"--seeds: {f'--windows {windows}' if windows else kind} draws nothing here; leave it out")


def check(name: str, runs: Path, windows: str | None = None, seeds: bool = False) -> None:
    """All that can be told of a model before PyTorch is loaded. Errors: as in `kind_of`, `check_ways`, and
    `embeddings.read`.
    """
    kind, what = kind_of(name, runs)
    check_ways(kind, windows, seeds)
    if kind == "embeddings":
        embeddings.read(Path(what).expanduser())
