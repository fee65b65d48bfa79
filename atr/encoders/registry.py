"""Audio and text encoders by name."""

import inspect
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from atr import register
from atr.encoders import checkpoints
from atr.encoders.pooling import mean
from atr.register import AUDIO_ENCODERS

register.import_built_in("encoder", "atr.encoders.audio")


class AudioEncoder(Protocol):
    """What every audio encoder offers; each is an nn.Module.

    One that was trained on sounds of one length may also state `window`, that length in seconds, and `short`, what it
    prefers of a shorter sound: "repeat" it to the window, "pad" it with zeros, or None: hear it as it is. Both count
    where sounds are heard in windows alone (`atr.Embedder`). What attention looks at (`atr.analysis.attention`) is
    known of one that also has `frame_times(count)`, the time of each frame's centre in seconds, (count,). Where
    official checkpoint files name tensors otherwise, a static `official(tensors)` gives them under the encoder's names.

    With `lengths`, in evaluation mode, a clip's frames depend neither on what else is in its batch nor on what lies
    behind its end. Without, every clip is as long as the tensor.
    """

    sample_rate: int  # Hz
    dim: int  # width of frames and of the pooled embedding
    cached: bool  # training reads cached features of the frontend, not waveforms
    head_hidden: int  # hidden width of the audio head, in units of the shared dimension (Mei et al. 2022)
    dropped: tuple[str, ...]  # how names of official tensors begin that this encoder has no use for

    def frontend(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, samples), lengths (B,) in samples → (B, bands, frames), as the official model sees it."""
        ...

    def feature_lengths(self, samples: Tensor) -> Tensor:
        """Frames that the frontend makes of clips of `samples` samples."""
        ...

    def encode(self, features: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, bands, frames), lengths (B,) in frames → frames (B, T, dim), mask (B, T) bool."""
        ...

    def __call__(self, waveform: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, samples), lengths (B,) in samples → frames (B, T, dim), mask (B, T) bool."""
        ...

    def pool(self, frames: Tensor, mask: Tensor) -> Tensor:
        """(B, T, dim), (B, T) → (B, dim)."""
        ...


def build(
    name: str,
    weights: str | Path | None = None,
    augment: str | None = None,
    dropout: float | None = None,
    pooling: str = "max_mean",
    layers: int | None = None,
) -> Any:
    """An audio encoder by name.

    weights  None leaves it random; "pretrained" fetches its published checkpoint; a path: an official checkpoint file
             or a .safetensors file
    augment  "specaugment" (PANNs, compact), "patchout" (PaSST), None
    dropout  None: the encoder's published values
    pooling  see `RunConfig`
    layers   keep so many top blocks alone, for states of those below (`with_states`); None keeps all

    The compact encoders have no published weights: `atr.encoders.pretraining.weights` makes theirs.
    Raises ValueError for an unknown name, for what an encoder does not offer, and for weights that are missing
    tensors or hold others.
    """
    if name not in AUDIO_ENCODERS:
        names = ", ".join(AUDIO_ENCODERS)
        raise ValueError(
            f"audio_encoder: unknown {name!r}; known: {names}; one of your own: first atr.extend(<its file>)"
        )
    options = {}
    if pooling not in ("max_mean", "mean"):
        if "frequency" not in inspect.signature(AUDIO_ENCODERS[name]).parameters:
            raise ValueError(f"pooling: {pooling!r} is a way of the PANNs; {name} knows 'max_mean' and 'mean'")
        options["frequency"] = pooling.removeprefix("frequency_")
    if weights == "pretrained":
        if name not in checkpoints.REGISTRY:
            raise ValueError(
                f"{name}: has no published weights; atr.encoders.pretraining.weights(corpus, {name!r}) pre-trains it "
                "on a corpus's sound events and returns the file to pass"
            )
        weights = checkpoints.fetch(name)
    # A published network of 70 million numbers is not drawn at random only to be overwritten.
    with torch.device("meta") if weights is not None and name in checkpoints.REGISTRY else nullcontext():
        encoder = AUDIO_ENCODERS[name](augment=augment, dropout=dropout, **options)
    if weights is not None:
        try:
            checkpoints.load(encoder, Path(weights))
        except checkpoints.OtherWeights as error:
            if not (
                others := [other for other in checkpoints.REGISTRY if other != name and _fits(other, Path(weights))]
            ):
                raise
            raise checkpoints.OtherWeights(f"{error}; it has those of {' or '.join(others)}") from error
    if pooling == "mean":
        encoder.pool = mean
    if layers is not None:
        with_states(encoder, name).keep_top(layers)
    return encoder


def _fits(name: str, weights: Path) -> bool:
    """Whether a file holds the weights of an encoder, by names and shapes."""
    try:
        with torch.device("meta"):
            encoder = AUDIO_ENCODERS[name]()
        checkpoints.load(encoder, weights)
    except ValueError:
        return False
    return True


def with_states(encoder: Any, name: str) -> Any:
    """An encoder that can train its top blocks alone, with `states`, `keep_top` and `encode_states` as
    `atr.encoders.audio.mobilenet.MobileNet` has them. ValueError: it cannot.
    """
    if not hasattr(encoder, "encode_states"):
        raise ValueError(f"audio_layers: {name} keeps no states between its blocks; use None, which trains all of it")
    return encoder


def with_labels(name: str, weights: Path | None) -> Any:
    """An encoder in evaluation mode with the classifier that it was trained by: `logits`, `labels` and `classifier` as
    `atr.encoders.audio.mobilenet.MobileNet` has them. ValueError: it has none, or random weights.
    """
    encoder = build(name, weights).eval()
    if not hasattr(encoder, "labels") or weights is None:
        raise ValueError(f"{name} has no classifier that was trained; take mn04 or mn10 with weights")
    return encoder


class Facts(NamedTuple):
    """What is known of an encoder without its weights; fields as in `AudioEncoder`. mean_pooled: its own way of pooling
    is the mean of its frames.
    """

    sample_rate: int
    dim: int
    cached: bool
    head_hidden: int
    window: float | None = None
    short: str | None = None
    mean_pooled: bool = False


def facts(name: str) -> Facts:
    """The facts of an encoder by name."""
    return _facts(name, AUDIO_ENCODERS.get(name))


@cache
def _facts(name: str, factory: Any) -> Facts:
    """factory: what is registered under the name now, which may change with a file of one's own."""
    with torch.device("meta"):
        encoder = build(name)
    needed = encoder.sample_rate, encoder.dim, encoder.cached, encoder.head_hidden
    window = getattr(encoder, "window", None), getattr(encoder, "short", None)
    return Facts(*needed, *window, encoder.pool is mean)
