"""What a model to evaluate may be called, told before anything is loaded: PyTorch takes seconds, an error need not."""

from pathlib import Path

from atr import register
from atr.experiments.listing import find

KINDS = (
    "a run's folder or address, hf:<name or folder of a ClapModel or a pack>, laion:<file>, msclap:<file>, "
    "mteb:<name>, embeddings:<folder>, a pack's folder, or a name that is registered (docs/evaluate.md)"
)


def kind_of(name: str, runs: Path) -> tuple[str, str]:
    """The kind of model that a name stands for ("hf", "laion", "msclap", "mteb", "embeddings", "own", or "folder" of a
    run or a pack), and what it names. runs: the store in which an address is looked for.

    ValueError: no such model; FileNotFoundError: no such file.
    """
    kind, _, rest = name.partition(":")
    if kind in ("hf", "mteb") and rest:
        return kind, rest
    if kind in ("embeddings", "laion", "msclap") and rest:
        if not Path(rest).expanduser().exists():
            what = "folder of embeddings" if kind == "embeddings" else "checkpoint"
            raise FileNotFoundError(f"{rest}: not there; name the {what}: {kind}:<path>")
        return kind, rest
    if name in register.MODELS:
        return "own", name
    if Path(name).expanduser().is_dir():
        return "folder", name
    if not (name.isalnum() and name.isascii()):
        raise ValueError(f"model {name!r}: unknown; give {KINDS}")
    return "folder", str(find(name, runs))
