"""What the loss of a batch needs, from a batch that is embedded in parts: one chunk after another, each divided over
the processes.

A loss that compares each pair with all others of its batch wants the embeddings of the whole batch, but not the
activations behind them. Of a batch in chunks these are not kept: each chunk is embedded a second time, with the same
dropout and augmentation, when the gradient of its embeddings is known (GradCache: Gao et al. 2021,
https://arxiv.org/abs/2101.06983). Embeddings, loss and gradient are those of the chunks embedded once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from atr.encoders.pooling import FrameRows
from atr.system.packed import POOLED
from atr.training.distributed import ALONE, Group, norms
from atr.training.identity import Inputs
from atr.training.model import DualEncoder


@dataclass(frozen=True)
class BatchEncoder:
    """Embeds batches of pairs by `dual`, which is `network`, wrapped for its device and precision.

    to     moves a tensor to that device
    chunk  pairs, of all processes together, that are embedded at a time; None: the whole batch. Each chunk is padded
           as its batch would be. Batch-norms take their statistics from a chunk, over all processes, and their running
           statistics move once a chunk
    """

    dual: nn.Module
    network: DualEncoder
    to: Callable[[Tensor], Tensor] = lambda tensor: tensor
    group: Group = ALONE
    chunk: int | None = None

    def embeddings(self, inputs: Inputs, captions: np.ndarray) -> tuple[Tensor, Tensor]:
        """Audio and text (B, dim), float32, of the pairs of `captions` (B,) with their clips; the same on all
        processes.
        """
        audio, text = [], []
        for count, sound, words in self._parts(inputs, captions):
            audio.append(self.group.gather(sound, count))
            text.append(self.group.gather(words, count))
        return _cat(audio), _cat(text)

    def similarity(self, inputs: Inputs, captions: np.ndarray) -> Tensor:
        """Of a text-aware model: (captions, clips) of a batch; the same on all processes, of which each scores its own
        captions.
        """
        parts = list(self._parts(inputs, captions))
        frames = FrameRows.cat(
            [sound.exchange(partial(self.group.gather, count=count, summed=True)) for count, sound, _ in parts]
        )
        run = self._runner(len(parts))
        return _cat([self.group.gather(run(self.network.similarity, frames, words), n) for n, _, words in parts])

    def _parts(self, inputs: Inputs, captions: np.ndarray) -> Iterator[tuple[int, Any, Tensor]]:
        """Of each chunk: its number of pairs, and what the network makes of this process's share of them."""
        clips = inputs.clip_of_caption
        chunks = np.split(captions, range(self.chunk, len(captions), self.chunk)) if self.chunk else [captions]
        run = self._runner(len(chunks))
        longest = 0 if inputs.audio.kind == POOLED else int(inputs.audio.lengths[clips[captions]].max())
        for chunk in chunks:
            own = chunk[self.group.own_rows(len(chunk))]
            sound = inputs.audio.batch(clips[own])
            if sound.values.shape[1] < longest:
                whole = sound.values.new_zeros(len(own), longest, *sound.values.shape[2:])
                whole[:, : sound.values.shape[1]] = sound.values
                sound = sound._replace(values=whole)
            audio, text = run(self.dual, sound.to(self.to), inputs.text.batch(own).to(self.to))
            yield len(chunk), audio.float(), text.float()

    def _runner(self, chunks: int) -> Callable[..., Any]:
        """Calls a function so that, of several chunks, what it keeps for its gradient is computed again then."""
        if chunks == 1:
            return lambda function, *arguments: function(*arguments)

        def twice(function: Callable[..., Any], *arguments: Any) -> Any:
            contexts = (nullcontext(), hold_statistics(self.network))
            return checkpoint(function, *arguments, use_reentrant=False, context_fn=lambda: contexts)

        return twice


def _cat(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@contextmanager
def hold_statistics(network: nn.Module) -> Iterator[None]:
    """Running statistics stay as they are, whatever a network in training mode is given."""
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms(network)]
    for norm, _, _ in before:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, tracked in before:
            norm.momentum, norm.num_batches_tracked = momentum, tracked
