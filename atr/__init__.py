"""Audio-text retrieval: corpora, encoders, losses and training behind the numbered notebooks."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atr.config import RunConfig
    from atr.corpora import load_corpus
    from atr.corpora.corpus import Corpus
    from atr.experiments.grid import load_run, run_all
    from atr.experiments.profiles import get_profile
    from atr.inference.embedder import Embedder
    from atr.register import extend
    from atr.training.fit import fit
    from atr.training.records import Run

__version__ = "0.1.0"
__all__ = [
    "Corpus",
    "Embedder",
    "Run",
    "RunConfig",
    "extend",
    "fit",
    "get_profile",
    "load_corpus",
    "load_run",
    "run_all",
]

_HOMES = {
    "Corpus": "atr.corpora",
    "Embedder": "atr.inference.embedder",
    "Run": "atr.training.records",
    "RunConfig": "atr.config",
    "extend": "atr.register",
    "fit": "atr.training.fit",
    "load_corpus": "atr.corpora",
    "load_run": "atr.experiments.grid",
    "get_profile": "atr.experiments.profiles",
    "run_all": "atr.experiments.grid",
}
_FACES = ("corpora", "encoders", "losses", "metrics", "register", "reports")


def __getattr__(name: str) -> Any:
    """Load names and modules on first use: importing PyTorch takes seconds that `atr --help` need not wait for."""
    from importlib import import_module  # here, as it is no name of the package

    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _FACES:
        return import_module(f"atr.{name}")
    raise AttributeError(f"module 'atr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *_FACES]
