"""A split as a model sees it: ranks, the embeddings or similarities they come from, and the loss over it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atr.encoders.inputs import AUDIO_BATCH, WAVEFORMS
from atr.encoders.pooling import FrameRows
from atr.metrics import retrieval
from atr.metrics.retrieval import Ranks
from atr.system.packed import POOLED, InputRows
from atr.training.batches import epoch_batches
from atr.training.distributed import ALONE, Group
from atr.training.identity import Inputs
from atr.training.model import DualEncoder


@dataclass(frozen=True)
class SplitResult:
    """ranks, and on the CPU in float32: audio (clips, dim) and text (captions, dim) of length 1; of a text-aware model
    similarity (captions, clips) and text (captions, dim), since a clip has no embedding of its own.
    """

    split: Inputs
    ranks: Ranks
    tensors: dict[str, Tensor]

    @cached_property
    def scores(self) -> dict[str, float]:
        """As `metrics.retrieval_metrics` names them."""
        return retrieval.retrieval_metrics(self.ranks)

    def to_tensors(self) -> dict[str, Tensor]:
        """What a run keeps of its test split: see `Run.embeddings`."""
        arrays = {"relevance": retrieval.dense(self.split.relevance), "t2a": self.ranks.t2a, "a2t": self.ranks.a2t}
        return self.tensors | {name: torch.from_numpy(array) for name, array in arrays.items()}

    @torch.no_grad()
    def loss(self, loss_function: nn.Module, batch_size: int) -> float:
        """Mean over batches of all the split's pairs, in one order for all models."""
        clip_of_caption = self.split.clip_of_caption
        device = next((parameter.device for parameter in loss_function.parameters()), torch.device("cpu"))
        values = []
        for captions in epoch_batches(clip_of_caption, batch_size, "all_captions", 0, 0, drop_last=False):
            ids = torch.from_numpy(clip_of_caption[captions])
            if "similarity" in self.tensors:
                similarity = self.tensors["similarity"][captions][:, ids]
            else:
                similarity = self.tensors["text"][captions] @ self.tensors["audio"][ids].T
            values.append(loss_function.from_similarity(similarity.T.to(device), ids.to(device), ids.to(device)))  # type: ignore[operator]
        return float(torch.stack(values).mean())


@torch.no_grad()
def evaluate(
    dual: nn.Module,
    network: DualEncoder,
    split: Inputs,
    to: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    released_batch: int | None = None,
    group: Group = ALONE,
) -> SplitResult:
    """Embed a whole split in evaluation mode and rank it. `dual` is `network`, wrapped for its device and precision;
    for the others see `embed`. FloatingPointError: embeddings that are not finite.
    """
    audio, text = embed(dual, split, to, released_batch=released_batch, group=group)
    if not (audio.isfinite().all() and text.isfinite().all()):
        raise FloatingPointError("embeddings are not finite")
    if network.text_aware is None:
        return SplitResult(split, retrieval.ranks((text, audio), split.relevance), {"audio": audio, "text": text})
    training = network.training
    network.eval()
    own = network.similarity(to(audio), to(text[group.own_rows(len(text))]))
    similarity = group.gather(own.cpu(), len(text))
    network.train(training)
    return SplitResult(split, retrieval.ranks(similarity, split.relevance), {"similarity": similarity, "text": text})


SIDES = ("audio", "text")


def embed(
    model: nn.Module,
    inputs: Inputs,
    to: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    batch_size: int = 256,
    released_batch: int | None = None,
    group: Group = ALONE,
) -> tuple[Any, Tensor]:
    """Embeddings of a whole split in evaluation mode: audio (clips, dim), text (captions, dim), float32 on the CPU.
    Audio of a text-aware model is `FrameRows` (clips, T, dim), T that of the longest clip.

    `to` moves a tensor to the model's device. With `released_batch`, audio is batched as Mei et al. 2022 released it,
    which decides how far each clip is padded: see `released_batches`. The processes of `group` share the work, and all
    have the result.
    """
    audio, text = (one_side(model, inputs, side, to, batch_size, released_batch, group=group) for side in SIDES)
    return audio, text


def precompute_side(
    model: nn.Module,
    inputs: Inputs,
    side: str,
    to: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    released_batch: int | None = None,
    group: Group = ALONE,
) -> Inputs:
    """A split with the output of one side's encoder, "audio" or "text", in evaluation mode, in place of its input."""
    if getattr(inputs, side).kind == POOLED:
        return inputs
    pooled = InputRows(POOLED, one_side(model, inputs, side, to, 256, released_batch, True, group))
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
) -> Any:
    """`embed` for "audio" or "text" alone; with `pooled` what the encoder gives, before the head."""
    rows: InputRows = getattr(inputs, side)
    if rows.kind == WAVEFORMS and released_batch is not None:
        batches = released_batches(inputs.clip_of_caption, released_batch)
    else:  # rows of like length together: less padding to compute
        order = np.argsort(rows.lengths, kind="stable")
        on_cpu = not any(parameter.is_cuda for parameter in model.parameters())
        maps = side == "audio" and rows.kind != POOLED and on_cpu  # few at a time, which fit its cache
        size = min(batch_size, AUDIO_BATCH) if maps or rows.kind == WAVEFORMS else batch_size
        batches = [(part, part) for part in np.split(order, range(size, len(order), size))][::-1]
    shared = len(batches) >= group.size
    training = model.training
    model.eval()
    result: Any = None
    for members, wanted in batches[group.rank :: group.size] if shared else batches:
        batch = rows.batch(members).to(to)
        output = model(**(dict.fromkeys(SIDES) | {side: batch, "pooled": pooled}))
        output = output[SIDES.index(side)].float().to("cpu")
        if result is None:  # of frames, the longest clips come first, so that there is room for all others
            result = output.new_zeros(len(rows), *output.shape[1:])
        result[wanted] = output[np.isin(members, wanted)]
    model.train(training)
    if not shared or group.size == 1:
        return result
    if isinstance(result, FrameRows):
        return result.pad(group.largest(result.shape[1])).exchange(group.sum)
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
