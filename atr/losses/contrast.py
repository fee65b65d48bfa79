"""Terms of the loss that need no further sounds: people's captions among each other, and the names of what is heard."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from atr.losses import pair
from atr.system.packed import Batch, InputRows

Embed = Callable[[Batch], Tensor]  # a batch of a text side to embeddings (rows, dim) of length 1


@dataclass(frozen=True)
class WordRows:
    """What `Contrast` draws from: rows of a text side, and of each clip the rows that are its captions (`clips`, the
    first row of each and how many), or the chance (clips, rows) that it is named by a row (`posteriors`).
    """

    rows: InputRows
    clips: np.ndarray | None = None
    posteriors: Tensor | None = None


class Contrast:
    """Two terms beside a batch's loss, each NT-Xent at the temperature TEMPERATURE.

    `captions`: among captions of as many clips as `text_contrast` has for its batch, two of each clip find each other.
    No sound is needed, so a model learns how people say the same in other words. `labels`: each clip of the batch finds
    the names of `label_contrast`'s number of classes, drawn by the posterior that the audio encoder's own classifier
    has of the clip, as the mean of the names' embeddings.
    """

    TEMPERATURE = 0.07

    def __init__(self, settings: Mapping[str, Mapping[str, Any]], words: Mapping[str, WordRows], variant: str) -> None:
        """settings: `text_contrast` as "captions", `label_contrast` as "labels"; words: what each draws from."""
        self.settings, self.words = settings, words
        self.loss = pair.build(name="nt_xent", temperature=self.TEMPERATURE, variant=variant)

    def __call__(
        self, audio: Tensor, clips: np.ndarray, embed: Embed, to: Callable[[Tensor], Tensor], drawing: torch.Generator
    ) -> Tensor:
        """Weighted sum of the terms for a batch's sounds (B, dim), of the training clips `clips` (B,)."""
        total = audio.new_zeros(())
        if (captions := self.words.get("captions")) is not None and captions.clips is not None:
            settings = self.settings["captions"]
            some = torch.randperm(len(captions.clips), generator=drawing)[: settings.get("batch_size", 256)]
            first, count = torch.from_numpy(captions.clips)[some].T
            one = (torch.rand(len(some), generator=drawing) * count).long()
            other = (one + 1 + (torch.rand(len(some), generator=drawing) * (count - 1)).long()) % count
            both = embed(captions.rows.batch(torch.cat([first + one, first + other]).numpy()).to(to))
            ids = torch.arange(len(some), device=both.device)
            total = total + settings.get("weight", 1.0) * self.loss(*both.chunk(2), ids)
        if (labels := self.words.get("labels")) is not None and labels.posteriors is not None:
            settings, number = self.settings["labels"], self.settings["labels"]["labels"]
            classes = torch.multinomial(labels.posteriors[torch.from_numpy(clips)], number, generator=drawing)
            names = embed(labels.rows.batch(classes.flatten().numpy()).to(to)).unflatten(0, (-1, number))
            ids = to(torch.from_numpy(clips))
            total = total + settings.get("weight", 1.0) * self.loss(audio, F.normalize(names.mean(1), dim=1), ids)
        return total
