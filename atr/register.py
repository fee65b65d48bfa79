"""Losses, audio encoders, corpora and models by name: those of this package, and one's own, without a change to it.

A file registers them under names of their own, and `atr.extend` runs it:

    from atr import register

    @register.loss("circle")
    class Circle(losses.PairLoss): ...

From then on a config may name them. The file's content is part of the address of each run that trains with its loss or
its encoder, so a changed file makes new runs; what else the file imports is not. docs/extending.md has examples.
"""

import hashlib
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

Factory = TypeVar("Factory")

LOSSES: dict[str, Any] = {}
AUDIO_ENCODERS: dict[str, Any] = {}
LOADERS: dict[str, Any] = {}
MODELS: dict[str, Any] = {}
_KINDS: dict[str, dict[str, Any]] = {"loss": LOSSES, "encoder": AUDIO_ENCODERS, "corpus": LOADERS, "model": MODELS}
_files: dict[Path, str] = {}  # what `extend` has run, in order, with the hash of its content
_owners: dict[tuple[str, str], Path] = {}  # (kind, name) → the file that registered it
_running: Path | None = None


def extend(*files: str | os.PathLike[str]) -> None:
    """Run Python files that register losses, encoders, corpora and models; one that has changed since replaces its own.

    FileNotFoundError: no such file. ValueError: a name that is taken. Errors of the file itself pass through.

    >>> from pathlib import Path
    >>> code = '''
    ... from atr import losses, register
    ...
    ... @register.loss("gentle")
    ... class Gentle(losses.PairLoss):
    ...     def compute(self, similarity, same):
    ...         return (similarity * self.negatives(same)).mean() - similarity.diagonal().mean()
    ... '''
    >>> _ = Path("gentle.py").write_text(code)
    >>> extend("gentle.py")
    >>> atr.RunConfig(loss={"name": "gentle", "same_clip": "mask"}).loss["name"]
    'gentle'
    """
    global _running
    for file in files:
        path = Path(file).expanduser().resolve()
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; give a Python file that registers a loss, say")
        code = path.read_bytes()
        digest = hashlib.sha256(code).hexdigest()
        if _files.get(path) == digest:
            continue
        forget(path)
        module = ModuleType(f"atr_extension_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}")
        module.__file__ = str(path)
        sys.modules[module.__name__] = module  # where workers look for its classes
        _running = path
        try:
            exec(compile(code, str(path), "exec"), module.__dict__)
        except BaseException:
            forget(path)
            raise
        finally:
            _running = None
        _files[path] = digest


def import_built_in(kind: str, package: str) -> None:
    """Import the modules of a package of `atr` that register a kind, so that a new one is a file and nothing else."""
    root = Path(__file__).parents[1]
    for path in sorted(root.joinpath(*package.split(".")).rglob("*.py")):
        if f"@register.{kind}(" in path.read_text(encoding="utf-8"):
            module = path.parent if path.stem == "__init__" else path.with_suffix("")
            importlib.import_module(".".join(module.relative_to(root).parts))


def forget(path: Path) -> None:
    """Take back what a file has registered, so that it can be imported anew."""
    for kind, name in [what for what, owner in _owners.items() if owner == path]:
        del _KINDS[kind][name], _owners[kind, name]
    _files.pop(path, None)


def loss(name: str) -> Callable[[Factory], Factory]:
    """Register a loss: an `atr.losses.PairLoss`, whose `__init__` takes the config's parameters."""
    return _registering("loss", name)


def encoder(name: str) -> Callable[[Factory], Factory]:
    """Register an audio encoder: what makes an `atr.encoders.AudioEncoder` from `augment` and `dropout`."""
    return _registering("encoder", name)


def corpus(name: str) -> Callable[[Factory], Factory]:
    """Register a loader: what makes an `atr.Corpus` from the config's options, and from `root` if it has no default."""
    return _registering("corpus", name)


def model(name: str) -> Callable[[Factory], Factory]:
    """Register a model to evaluate: what makes one without arguments, as `atr.evaluation.models.Own` takes it."""
    return _registering("model", name)


def _registering(kind: str, name: str) -> Callable[[Factory], Factory]:
    def add(item: Factory) -> Factory:
        own = getattr(item, "__module__", "").startswith("atr.")
        if _running is None and not own:
            raise ValueError(
                f"{kind} {name!r}: register it in a file of its own and call atr.extend(<file>), so that worker "
                "processes find it and runs are addressed by its code"
            )
        if name in _KINDS[kind]:
            owner = _owners.get((kind, name), "atr")
            raise ValueError(
                f"{_running or item.__module__}: {kind} {name!r} is taken, by {owner}; choose another name"
            )
        _KINDS[kind][name] = item
        if _running is not None and not own:
            _owners[kind, name] = _running
        return item

    return add


def code(kind: str, name: str) -> str | None:
    """Hash of the file that registered a name; None for what comes with this package."""
    owner = _owners.get((kind, name))
    return None if owner is None else _files[owner]


class Extensions:
    """Sent to a worker process before anything that needs it, it runs there what `extend` has run here."""

    def __reduce__(self) -> tuple:
        return extend, tuple(map(str, _files))
