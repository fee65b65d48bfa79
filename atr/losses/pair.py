"""Losses over a batch of paired audio and text embeddings.

Every loss is a function of the similarity matrix alone. Row i and column i are a pair, for i < min(audios, texts);
further rows or columns, such as embeddings gathered from other processes, are candidates that nobody asks for. `n`
below is the number of pairs. Each loss runs in both directions: an audio against all texts, a text against all audios.

`same_clip` says what a text is to an audio of the same clip when the two are not the pair itself, which happens as soon
as a batch holds several captions of one clip: "mask" (neither), "negative", or, where a loss can, "positive".
"""

from __future__ import annotations

import inspect
import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atr import register
from atr.register import LOSSES

Variant = Literal["text", "code"]
SameClip = Literal["mask", "negative", "positive"]


class PairLoss(nn.Module):
    """What all losses share: cosine similarity, and who is whose positive and negative.

    A `title` is what tables and figures call a loss; one without goes by the name that it is registered under.
    """

    same_clip_options: tuple[str, ...] = ("mask", "negative")

    def __init__(self, same_clip: str) -> None:
        super().__init__()
        if same_clip not in self.same_clip_options:
            raise ValueError(
                f"same_clip is {same_clip!r}; {type(self).__name__} knows {_quote(self.same_clip_options)}"
            )
        self.same_clip = same_clip

    def forward(self, audio: Tensor, text: Tensor, clip_ids: Tensor) -> Tensor:
        """Scalar loss of audio (B, D) and text (B, D), paired row by row; clip_ids (B,): rows of one clip share one."""
        similarity = F.normalize(audio, dim=1) @ F.normalize(text, dim=1).t()
        return self.from_similarity(similarity, clip_ids, clip_ids)

    def from_similarity(self, similarity: Tensor, audio_ids: Tensor, text_ids: Tensor) -> Tensor:
        """Scalar loss of a similarity matrix (audios, texts) with the clip ids (audios,) and (texts,).

        ValueError: the shapes do not fit, or (looked at on the CPU only, as it would stall a GPU) a pair's ids differ.
        """
        if similarity.shape != (len(audio_ids), len(text_ids)) or similarity.numel() == 0:
            raise ValueError(
                f"similarity is {tuple(similarity.shape)} for {len(audio_ids)} audio_ids and {len(text_ids)} text_ids; "
                "give a matrix (audios, texts) with at least one pair"
            )
        n = min(similarity.shape)
        if audio_ids.device.type == "cpu" and not torch.equal(audio_ids[:n], text_ids[:n]):
            raise ValueError(f"audio_ids and text_ids differ within the first {n}; put pair i at row i and column i")
        return self.compute(similarity, audio_ids[:, None] == text_ids[None, :])

    def compute(self, similarity: Tensor, same: Tensor) -> Tensor:
        """Scalar loss of similarity (audios, texts); same (audios, texts), bool: both are of one clip."""
        raise NotImplementedError

    def negatives(self, same: Tensor) -> Tensor:
        """(audios, texts) bool: the two are negatives of each other."""
        return ~(same if self.same_clip == "mask" else _pairs(same))


@register.loss("triplet_sum")
class TripletSum(PairLoss):
    """Hinge over every negative: Mei 2022, eq. 2. Text and code agree."""

    title = "Triplet-sum"

    def __init__(self, variant: Variant = "text", margin: float = 0.2, same_clip: SameClip = "mask") -> None:
        super().__init__(same_clip)
        self.margin = margin

    def hinges(self, similarity: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
        """How far each negative intrudes on the margin, or 0, with audios and texts as queries; (n, candidates)."""
        positive = similarity.diagonal()
        n = len(positive)
        no_negative = ~self.negatives(same)
        texts = (similarity[:n] - (positive - self.margin)[:, None]).clamp(min=0).masked_fill(no_negative[:n], 0)
        audios = (similarity[:, :n] - (positive - self.margin)).clamp(min=0).masked_fill(no_negative[:, :n], 0)
        return texts, audios.t()

    def compute(self, similarity: Tensor, same: Tensor) -> Tensor:
        texts, audios = self.hinges(similarity, same)
        return (texts.sum() + audios.sum()) / len(texts)


@register.loss("triplet_max")
class TripletMax(TripletSum):
    """Hinge over the hardest negative of each query: Mei 2022, eq. 3. Text and code agree."""

    title = "Triplet-max"

    def compute(self, similarity: Tensor, same: Tensor) -> Tensor:
        texts, audios = self.hinges(similarity, same)
        return (texts.amax(1) + audios.amax(1)).mean()


@register.loss("triplet_weighted")
class TripletWeighted(PairLoss):
    """Polynomials of the positive's and the negatives' similarity: Mei 2022, eq. 4 to 6, after Wei 2020.

    text: for each power, the largest of the negatives' powers; a hinge on the sum. Eq. 6 has no margin: unused.
    code: both polynomials at the positive and at the hardest negative, each clamped at 0. A query counts only if
    its hardest negative exceeds the positive minus the margin and the positive is below 1 - 1e-5.
    A query without a negative contributes 0 in both.

    positive, negative: coefficients, constant first.
    """

    title = "Triplet-weighted"

    def __init__(
        self,
        variant: Variant = "text",
        margin: float = 0.2,
        same_clip: SameClip = "mask",
        positive: tuple[float, ...] = (0.5, -0.7, 0.2),
        negative: tuple[float, ...] = (0.03, -0.4, 0.9),
    ) -> None:
        super().__init__(same_clip)
        self.variant, self.margin = variant, margin
        self.positive, self.negative = tuple(positive), tuple(negative)

    def compute(self, similarity: Tensor, same: Tensor) -> Tensor:
        positive = similarity.diagonal()
        n = len(positive)
        negatives = self.negatives(same)
        direction = self._text if self.variant == "text" else self._code
        texts = direction(positive, similarity[:n], negatives[:n])
        audios = direction(positive, similarity[:, :n].t(), negatives[:, :n].t())
        return (texts + audios).sum() / n

    def _text(self, positive: Tensor, candidates: Tensor, negatives: Tensor) -> Tensor:
        total = _polynomial(self.positive, positive) + self.negative[0]
        for power, coefficient in enumerate(self.negative[1:], start=1):
            largest = (candidates**power).masked_fill(~negatives, -torch.inf).amax(1)
            total = total + coefficient * largest
        return torch.where(negatives.any(1), total.clamp(min=0), 0)

    def _code(self, positive: Tensor, candidates: Tensor, negatives: Tensor) -> Tensor:
        hardest = candidates.masked_fill(~negatives, -torch.inf).amax(1)
        counts = (hardest > positive - self.margin) & (positive < 1 - 1e-5)
        # The 0 keeps an infinite `hardest` out of the polynomial; its gradient would be 0 · inf, a NaN on the way.
        hardest = torch.where(counts, hardest, 0)
        total = _polynomial(self.positive, positive).clamp(min=0) + _polynomial(self.negative, hardest).clamp(min=0)
        return torch.where(counts | positive.isnan(), total, 0)


@register.loss("nt_xent")
class NTXent(PairLoss):
    """Cross-entropy of the pair among all candidates: Mei 2022, eq. 7.

    weight: of the sum of both directions' means; by default 1 in `text` and 1/2 in `code`, as in eq. 3.2 of Tymofieiev
    2025.
    same_clip: by default "mask" in `text` and "negative" in `code`, whose code leaves the clip's other captions in
    the denominator. "positive", as in Tymofieiev 2025: the mean runs over all pairs of a clip with one of its captions.
    learned: the temperature is learned too, by its logarithm `log_temperature`, from `temperature` on.
    hardest: only so many negatives of each row and column stay in the denominator, the most similar ones: mining within
    the batch, as a control for mining over the whole training set (Chao 2022). None: all.
    """

    title = "NT-Xent"
    same_clip_options = ("mask", "negative", "positive")

    def __init__(
        self,
        variant: Variant = "text",
        temperature: float = 0.07,
        same_clip: SameClip | None = None,
        hardest: int | None = None,
        learned: bool = False,
        weight: float | None = None,
    ) -> None:
        super().__init__(same_clip or ("mask" if variant == "text" else "negative"))
        if hardest is not None and (hardest < 1 or self.same_clip == "positive"):
            raise ValueError(f"hardest is {hardest!r}; give 1 or more, and a same_clip other than 'positive'")
        self.hardest = hardest
        self.temperature = _above_zero(temperature)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature))) if learned else None
        self.weight = (1.0 if variant == "text" else 0.5) if weight is None else _above_zero(weight)

    def compute(self, similarity: Tensor, same: Tensor) -> Tensor:
        temperature = self.temperature if self.log_temperature is None else self.log_temperature.exp()
        logits = similarity / temperature
        n = min(logits.shape)
        if self.same_clip == "positive":
            texts, audios = same[:n], same[:, :n]
            total = (logits[:n].log_softmax(1) * texts).sum() / texts.sum()
            total = total + (logits[:, :n].log_softmax(0) * audios).sum() / audios.sum()
            return -self.weight * total
        if self.same_clip == "mask":
            logits = logits.masked_fill(same ^ _pairs(same), -torch.inf)
        target = torch.arange(n, device=logits.device)
        texts, audios = logits[:n], logits[:, :n].t()
        return self.weight * (
            F.cross_entropy(self._hardest_only(texts, target), target)
            + F.cross_entropy(self._hardest_only(audios, target), target)
        )

    def _hardest_only(self, rows: Tensor, target: Tensor) -> Tensor:
        """Rows with -inf for all but the pair, in column `target`, and its hardest negatives."""
        if self.hardest is None or self.hardest >= rows.shape[1] - 1:
            return rows
        negatives = rows.detach().scatter(1, target[:, None], -torch.inf)
        weakest = negatives.topk(self.hardest, dim=1).values[:, -1:]
        dropped = (negatives < weakest).scatter(1, target[:, None], False)
        return rows.masked_fill(dropped, -torch.inf)


@register.loss("sigmoid")
class Sigmoid(PairLoss):
    """Each audio and text judged paired or not, summed, divided by n: Tymofieiev 2025, eq. 3.3, after Zhai 2023.

    text: logits t · s + b. code: exp(t) · s / temperature + b, with temperature 0.05. t and b are learned.
    The sign of b is the one under which its start at -10 makes "not paired" likely; eq. 3.3 prints the opposite.
    same_clip: by default "positive" in `text`, whose label is 1 for "paired", and "negative" in `code`.
    """

    title = "Sigmoid"
    same_clip_options = ("mask", "negative", "positive")

    def __init__(
        self,
        variant: Variant = "text",
        temperature: float | None = None,
        same_clip: SameClip | None = None,
        t: float = 1.0,
        b: float = -10.0,
    ) -> None:
        super().__init__(same_clip or ("positive" if variant == "text" else "negative"))
        self.variant = variant
        self.temperature = _above_zero((1.0 if variant == "text" else 0.05) if temperature is None else temperature)
        self.t = nn.Parameter(torch.tensor(float(t)))
        self.b = nn.Parameter(torch.tensor(float(b)))

    def compute(self, similarity: Tensor, same: Tensor) -> Tensor:
        scale = self.t if self.variant == "text" else self.t.exp()
        logits = scale / self.temperature * similarity + self.b
        pairs = _pairs(same)
        log_likelihood = F.logsigmoid(torch.where(same if self.same_clip == "positive" else pairs, logits, -logits))
        if self.same_clip == "mask":
            log_likelihood = log_likelihood.masked_fill(same ^ pairs, 0)
        return -log_likelihood.sum() / min(similarity.shape)


def build(name: str, variant: str = "text", **parameters: Any) -> PairLoss:
    """A loss by name, in the form of the paper's text or of its released code; parameters: those of its class.

    `mask_same_clip` (True: same_clip="mask", False: same_clip="negative") is accepted by every loss.
    ValueError: an unknown name, variant or parameter, or a value that makes no sense.

    >>> loss = build("nt_xent", temperature=1.0)
    >>> audio = text = torch.eye(2)
    >>> round(float(loss(audio, text, torch.tensor([0, 1]))), 4)  # 2 log(1 + 1/e)
    0.6265
    """
    if name not in LOSSES:
        raise ValueError(f"no loss {name!r}; known: {_quote(LOSSES)}; one of your own: first atr.extend(<its file>)")
    if variant not in ("text", "code"):
        raise ValueError(f"{name}: no variant {variant!r}; known: 'text', 'code'")
    accepted = inspect.signature(LOSSES[name]).parameters
    names = [*(parameter for parameter in accepted if parameter != "variant"), "mask_same_clip"]
    if unknown := [parameter for parameter in parameters if parameter not in names]:
        raise ValueError(f"{name}: no parameter {_quote(unknown)}; known: {_quote(names)}")
    if "mask_same_clip" in parameters:
        if "same_clip" in parameters:
            raise ValueError(f"{name}: mask_same_clip and same_clip say the same thing; give one of them")
        parameters["same_clip"] = "mask" if parameters.pop("mask_same_clip") else "negative"
    form = {"variant": variant} if "variant" in accepted else {}
    return LOSSES[name](**form, **parameters)


def _pairs(same: Tensor) -> Tensor:
    return torch.eye(*same.shape, dtype=torch.bool, device=same.device)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    value = torch.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * x + coefficient
    return value


def _above_zero(temperature: float) -> float:
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; give a number above 0")
    return temperature


def _quote(names: Any) -> str:
    return ", ".join(repr(name) for name in names)
