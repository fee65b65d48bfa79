"""Audio and text encoders by name."""

import importlib
from typing import Any

from atr.encoders.registry import AudioEncoder, Facts, build, facts
from atr.register import AUDIO_ENCODERS

__all__ = ["AUDIO_ENCODERS", "AudioEncoder", "Facts", "build", "facts"]


def __getattr__(name: str) -> Any:
    """`atr.encoders.pretraining`, `.text` and `.clap` on first use: they import transformers, which takes seconds."""
    if name in ("pretraining", "text", "clap"):
        return importlib.import_module(f"atr.encoders.{name}")
    raise AttributeError(f"module 'atr.encoders' has no attribute {name!r}")
