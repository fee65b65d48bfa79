"""A split as a model sees it: ranks, the embeddings or similarities they come from, and the loss over it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from atr import metrics, model
from atr.distributed import ALONE, Group
from atr.features import Inputs
from atr.metrics import Ranks
from atr.model import DualEncoder
from atr.sampling import epoch_batches


@dataclass(frozen=True)
class Evaluated:
    """ranks, and on the CPU in float32: audio (clips, dim) and text (captions, dim) of length 1; of a text-aware model
    similarity (captions, clips) and text (captions, dim), since a clip has no embedding of its own.
    """

    split: Inputs
    ranks: Ranks
    tensors: dict[str, Tensor]

    @cached_property
    def scores(self) -> dict[str, float]:
        """As `metrics.retrieval_metrics` names them."""
        return metrics.retrieval_metrics(self.ranks)

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
) -> Evaluated:
    """Embed a whole split in evaluation mode and rank it. `dual` is `network`, wrapped for its device and precision;
    for the others see `model.embed`. FloatingPointError: embeddings that are not finite.
    """
    audio, text = model.embed(dual, split, to, released_batch=released_batch, group=group)
    if not (audio.isfinite().all() and text.isfinite().all()):
        raise FloatingPointError("embeddings are not finite")
    if network.text_aware is None:
        return Evaluated(split, metrics.ranks((text, audio), split.relevance), {"audio": audio, "text": text})
    training = network.training
    network.eval()
    own = network.similarity(to(audio), to(text[group.share(len(text))]))
    similarity = group.whole(own.cpu(), len(text))
    network.train(training)
    return Evaluated(split, metrics.ranks(similarity, split.relevance), {"similarity": similarity, "text": text})
