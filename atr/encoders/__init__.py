"""Audio and text encoders by name."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from atr.encoders.compact import Compact, compact, compact_resnet


class AudioEncoder(Protocol):
    """What every audio encoder offers; see `atr.encoders.compact.Compact`."""

    sample_rate: int
    dim: int

    def frontend(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor: ...
    def feature_lengths(self, samples: Tensor) -> Tensor: ...
    def encode(self, features: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]: ...
    def pool(self, frames: Tensor, mask: Tensor) -> Tensor: ...


def __getattr__(name: str) -> Any:
    """`atr.encoders.pretraining` and `.text` on first use: they import this module."""
    if name in ("pretraining", "text"):
        return importlib.import_module(f"atr.encoders.{name}")
    raise AttributeError(f"module 'atr.encoders' has no attribute {name!r}")


AUDIO_ENCODERS: dict[str, Callable[..., Compact]] = {"compact": compact, "compact_resnet": compact_resnet}


def build(name: str, weights: str | Path | None = None, augment: bool = False) -> Compact:
    """An audio encoder by name; `weights` is a .safetensors file, None leaves it random.

    The compact encoders have no published weights: `atr.encoders.pretraining.weights` makes theirs.
    Raises ValueError for an unknown name and for weights that are missing tensors or hold others.
    """
    if name not in AUDIO_ENCODERS:
        raise ValueError(f"audio_encoder: unknown {name!r}; known: {', '.join(AUDIO_ENCODERS)}")
    encoder = AUDIO_ENCODERS[name](augment=augment)
    if weights == "pretrained":
        raise ValueError(
            f"{name}: has no published weights; atr.encoders.pretraining.weights(corpus, {name!r}) pre-trains it "
            "on a corpus's sound events and returns the file to pass"
        )
    if weights is not None:
        load_strict(encoder, Path(weights))
    return encoder


def load_strict(module: nn.Module, path: Path) -> None:
    """Load a .safetensors file whose tensors are exactly the module's."""
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: not a .safetensors file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged ({error}); delete it or fetch it again") from error
    own = module.state_dict()
    wrong = [f"missing {key}" for key in own.keys() - tensors.keys()]
    wrong += [f"unexpected {key}" for key in tensors.keys() - own.keys()]
    wrong += [
        f"{key} is {tuple(tensors[key].shape)}, not {tuple(own[key].shape)}"
        for key in own.keys() & tensors.keys()
        if own[key].shape != tensors[key].shape
    ]
    if wrong:
        raise ValueError(f"{path}: not weights of this encoder: {'; '.join(sorted(wrong)[:8])}")
    module.load_state_dict(tensors)
