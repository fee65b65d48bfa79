"""The dual encoder: audio and captions into one space."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atr import encoders
from atr.config import RunConfig
from atr.distributed import ALONE, Group
from atr.encoders import checkpoints
from atr.encoders.text import TextEncoder
from atr.features import AUDIO_BATCH, Inputs, Prepared, encode
from atr.records import RecordError, Run
from atr.store import Packed
from atr.text_aware import TextAwarePooling

SIDES = ("audio", "text")


def head(inputs: int, hidden: int | None, outputs: int) -> nn.Sequential:
    """Linear, ReLU, Linear (Mei et al. 2022); with `hidden` None one Linear (Tymofieiev 2025)."""
    if hidden is None:
        return nn.Sequential(nn.Linear(inputs, outputs))
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class DualEncoder(nn.Module):
    """Audio encoder → pooling → head and text encoder → head, both L2-normalised (Mei et al. 2022, section 2.2).

    audio_encoder: an `atr.encoders.AudioEncoder`. Inputs without lengths are an encoder's pooled output, so that an
    encoder that stays fixed need not run again; one that is None has run before.
    With `padding` "released", all clips of a batch count as long as its longest, zeros and all.
    text_aware: pools what the audio head makes of each frame by caption. A clip then has no embedding of its own:
    wherever it says audio (…, dim) below, there are frames (…, T, dim) instead, zeros behind a clip's end.
    """

    def __init__(
        self,
        audio_encoder: Any,
        text_encoder: nn.Module | None,
        audio_dim: int,
        text_dim: int,
        dim: int,
        audio_hidden: int = 1,
        padding: str = "masked",
        heads: str = "mlp",
        text_aware: TextAwarePooling | None = None,
    ) -> None:
        super().__init__()
        self.padding = padding
        self.audio_encoder, self.text_encoder = audio_encoder, text_encoder
        self.audio_head = head(audio_dim, audio_hidden * dim if heads == "mlp" else None, dim)
        self.text_head = head(text_dim, 2 * dim if heads == "mlp" else None, dim)
        self.text_aware = text_aware

    def embed_audio(self, audio: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Pooled features (B, audio_dim), or a batch of `features.audio_input` with lengths → (B, dim), of length 1."""
        if self.text_aware is not None:
            frames, mask = self._frames(audio, lengths)
            return self.audio_head(frames) * mask[:, :, None]
        return nn.functional.normalize(self.audio_head(self.pool_audio(audio, lengths)), dim=-1)

    def embed_text(self, text: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Pooled features (B, text_dim), or states or ids (B, tokens, …) with lengths → (B, dim), of length 1."""
        embedding = self.text_head(self.pool_text(text, lengths))
        return embedding if self.text_aware is not None else nn.functional.normalize(embedding, dim=-1)

    def similarity(self, audio: Tensor, text: Tensor) -> Tensor:
        """Cosines (texts, clips) of the embeddings of `forward`."""
        if self.text_aware is None:
            return text @ audio.T
        return self.text_aware.similarity(audio, audio.any(2), text)

    def pool_audio(self, audio: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Output (B, audio_dim) of the encoder; without lengths, what comes in is that already."""
        return audio if lengths is None else self.audio_encoder.pool(*self._frames(audio, lengths))

    def _frames(self, audio: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        return encode(self.audio_encoder, audio, None if self.padding == "released" else lengths)

    def pool_text(self, text: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Output (B, text_dim) of the encoder; without lengths, what comes in is that already."""
        if lengths is None:
            return text
        assert self.text_encoder is not None
        return self.text_encoder(text, lengths)

    def forward(
        self,
        audio: tuple[Tensor, Tensor | None] | None,
        text: tuple[Tensor, Tensor | None] | None,
        pooled: bool = False,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Embeddings of a batch of each kind, or with `pooled` the encoders' outputs; None gives None."""
        if pooled:
            return audio and self.pool_audio(*audio), text and self.pool_text(*text)
        return audio and self.embed_audio(*audio), text and self.embed_text(*text)

    def kept(self) -> dict[str, Tensor]:
        """The tensors that training changes: trained parameters, and buffers (batch statistics)."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        fixed = {name for name, _ in self.named_parameters()} - trained
        return {name: tensor for name, tensor in self.state_dict().items() if name not in fixed}


def build(config: RunConfig, prepared: Prepared) -> DualEncoder:
    """The model of a config, heads drawn from PyTorch's generator; seed that first."""
    sample = next(iter(prepared.splits.values()))
    if config.training in ("frozen", "external"):
        assert isinstance(sample.audio, Tensor) and isinstance(sample.text, Tensor)
        audio_dim, text_dim = sample.audio.shape[1], sample.text.shape[1]
        if config.training == "external":  # has had heads of its own
            network = DualEncoder(None, None, audio_dim, text_dim, config.embedding_dim)
            network.audio_head = network.text_head = nn.Sequential()
            return network
        hidden = encoders.facts(config.audio_encoder).head_hidden
        return DualEncoder(None, None, audio_dim, text_dim, config.embedding_dim, hidden, heads=config.head)
    audio = encoders.build(
        config.audio_encoder, prepared.audio_weights, config.augment, config.audio_dropout, config.pooling
    )
    released = config.training == "frozen_released"
    text = TextEncoder(
        prepared.text_folder, config.text_pooling, None if released else config.text_layers, config.text_dropout
    )
    if released:
        audio.requires_grad_(False)
        text.requires_grad_(False)
    else:
        text.keep_top()
    dim = config.embedding_dim
    pooling = TextAwarePooling(dim, **config.text_aware, variant=config.recipe) if config.text_aware else None
    return DualEncoder(audio, text, audio.dim, text.dim, dim, audio.head_hidden, config.padding, config.head, pooling)


def groups(model: DualEncoder, loss: nn.Module, config: RunConfig) -> list[dict]:
    """Optimiser groups with their learning rates: heads, audio, text, pooling, loss; empty ones and what is fixed left
    out.
    """
    encoders = {"audio": model.audio_encoder, "text": model.text_encoder}
    heads = {"audio": model.audio_head, "text": model.text_head}
    if config.fixed is not None:
        encoders[config.fixed] = None
        if config.fixed_head:
            heads.pop(config.fixed)
    members = {"heads": [parameter for head in heads.values() for parameter in head.parameters()]}
    members |= {name: [] if encoder is None else list(encoder.parameters()) for name, encoder in encoders.items()}
    members["pooling"] = [] if model.text_aware is None else list(model.text_aware.parameters())
    members["loss"] = list(loss.parameters())
    trained = {name: [p for p in parameters if p.requires_grad] for name, parameters in members.items()}
    return [
        {"params": parameters, "lr": config.rate(name), "peak": config.rate(name), "name": name}
        for name, parameters in trained.items()
        if parameters
    ]


def load(network: DualEncoder, run: Run) -> DualEncoder:
    """The network with the weights of a finished run's selected epoch; ValueError if it is built otherwise."""
    path, kept, own = run.path / "checkpoint.safetensors", run.checkpoint, network.kept()
    mend = "train anew, with the run's folder moved away"
    shapes = [{name: list(tensor.shape) for name, tensor in tensors.items()} for tensors in (kept, own)]
    if shapes[0] != shapes[1]:
        told = [
            f"{name} ({' instead of '.join(str(shape[name]) if name in shape else 'none' for shape in shapes)})"
            for name in {**shapes[0], **shapes[1]}
            if shapes[0].get(name) != shapes[1].get(name)
        ]
        raise RecordError(
            f"{path}: the checkpoint holds other tensors than the config builds: {checkpoints.listed(told)}; {mend}"
        )
    try:
        checkpoints.check(path, kept, own, mend)
    except ValueError as error:
        raise RecordError(str(error)) from None
    network.load_state_dict(kept, strict=False)
    return network


def embed(
    model: nn.Module,
    inputs: Inputs,
    to: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    batch_size: int = 256,
    released_batch: int | None = None,
    group: Group = ALONE,
) -> tuple[Tensor, Tensor]:
    """Embeddings of a whole split in evaluation mode: audio (clips, dim), text (captions, dim), float32 on the CPU.
    Audio of a text-aware model is (clips, T, dim), T that of the longest clip.

    `to` moves a tensor to the model's device. With `released_batch`, audio is batched as Mei et al. 2022 released it,
    which decides how far each clip is padded: see `released_batches`. The processes of `group` share the work, and all
    have the result.
    """
    audio, text = (one_side(model, inputs, side, to, batch_size, released_batch, group=group) for side in SIDES)
    return audio, text


def fix(
    model: nn.Module,
    inputs: Inputs,
    side: str,
    to: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    released_batch: int | None = None,
    group: Group = ALONE,
) -> Inputs:
    """A split with the output of one side's encoder, "audio" or "text", in evaluation mode, in place of its input."""
    if isinstance(getattr(inputs, side), Tensor):
        return inputs
    pooled = one_side(model, inputs, side, to, 256, released_batch, True, group)
    return replace(inputs, audio=pooled) if side == "audio" else replace(inputs, text=pooled)


@torch.no_grad()
def one_side(
    model: nn.Module,
    inputs: Inputs,
    side: str,
    to: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    batch_size: int = 256,
    released_batch: int | None = None,
    pooled: bool = False,
    group: Group = ALONE,
) -> Tensor:
    """`embed` for "audio" or "text" alone; with `pooled` what the encoder gives, before the head."""
    rows: Tensor | Packed = getattr(inputs, side)
    batch = inputs.audio_batch if side == "audio" else inputs.text_batch
    waveforms = isinstance(rows, Packed) and rows.data.dtype == np.int16
    if side == "audio" and waveforms and released_batch is not None:
        batches = released_batches(inputs.clip_of_caption, released_batch)
    else:  # rows of like length together: less padding to compute
        order = np.argsort(rows.lengths, kind="stable") if isinstance(rows, Packed) else np.arange(len(rows))
        size = min(batch_size, AUDIO_BATCH) if waveforms else batch_size
        batches = [(part, part) for part in np.split(order, range(size, len(order), size))][::-1]
    shared = len(batches) >= group.size
    training = model.training
    model.eval()
    result = None
    for members, wanted in batches[group.rank :: group.size] if shared else batches:
        tensor, lengths = batch(members)
        pair = (to(tensor), None if lengths is None else to(lengths))
        done = model(**({side: pair, "pooled": pooled} | {other: None for other in SIDES if other != side}))
        done = done[SIDES.index(side)].float().cpu()
        if result is None:
            result = torch.zeros(len(rows), *done.shape[1:])
        if done.ndim == 3:  # frames: the longest clips come first, so that there is room for all others
            result = nn.functional.pad(result, (0, 0, 0, max(0, done.shape[1] - result.shape[1])))
            result[wanted, : done.shape[1]] = done[np.isin(members, wanted)]
        else:
            result[wanted] = done[np.isin(members, wanted)]
    model.train(training)
    assert result is not None
    if not shared or group.size == 1:
        return result
    if result.ndim == 3:
        result = nn.functional.pad(result, (0, 0, 0, group.largest(result.shape[1]) - result.shape[1]))
    return group.sum(result)


def released_batches(clip_of_caption: np.ndarray, batch_size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(clips of a batch, those whose embedding is taken from it), as the released evaluation of Mei et al. 2022 loads
    them: captions in order, `batch_size` at a time, each with its clip, which is embedded anew for every caption; the
    embedding of its first caption counts.
    """
    clips, first = np.unique(clip_of_caption, return_index=True)
    starts = range(0, len(clip_of_caption), batch_size)
    return [
        (np.unique(clip_of_caption[start : start + batch_size]), clips[first // batch_size == start // batch_size])
        for start in starts
        if (first // batch_size == start // batch_size).any()
    ]
