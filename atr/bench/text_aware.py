"""All pairs scored by text-aware pooling: ours, clip by clip as the thesis writes it, and its released loop."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atr.bench.harness import Case, ReleasedCode, timed
from atr.bench.released import definitions
from atr.encoders.pooling import TextAwarePooling

# Clotho's test split with ATST's frames (Tymofieiev 2025); ours at each number of clips, the loops at the second.
SIZES: dict[str, dict[str, Any]] = {
    "smoke": {"clips": (2, 4), "captions": 10, "frames": 20, "dim": 16, "projection": 32},
    "paper": {"clips": (4, 12, 36, 1045), "captions": 5225, "frames": 750, "dim": 1024, "projection": 2048},
}
SIZES["demo"] = SIZES["paper"]
NORMALISED = "code"  # its loop hands on captions of length 1 from the second clip on; ours is told to do so too


def cases(scale: str, device: str, released: ReleasedCode) -> list[Case]:
    sizes = dict(SIZES[scale])
    result = []
    for clips in sizes.pop("clips"):
        size = {"clips": clips, **sizes, "device": device}
        result.append(Case("text_aware", "atr", "text_aware.ours", size))
    size = size | {"clips": SIZES[scale]["clips"][1]}
    result.append(Case("text_aware", "clip by clip", "text_aware.loop", size))
    theirs, missing = size | {"folder": str(released.tymofieiev2025)}, released.missing("tymofieiev2025")
    result.append(Case("text_aware", "released code", "text_aware.as_released", theirs, missing))
    return result


def random_inputs(
    clips: int, captions: int, frames: int, dim: int, projection: int, device: str
) -> tuple[TextAwarePooling, Tensor, Tensor, Tensor]:
    """Random weights, frames (clips, T, D), mask (clips, T) and captions (texts, D)."""
    torch.manual_seed(0)
    module = TextAwarePooling(dim, projection, variant=NORMALISED).to(device).eval()
    sounds = torch.randn(clips, frames, dim, device=device)
    mask = torch.ones(clips, frames, dtype=torch.bool, device=device)
    return module, sounds, mask, torch.randn(captions, dim, device=device)


def _corner(scores: Tensor) -> list[float]:
    """A few scores, by which ways are compared."""
    return scores[:3, :2].flatten().double().tolist()


@torch.no_grad()
def ours(**size: Any) -> dict[str, Any]:
    module, sounds, mask, text = random_inputs(**size)
    seconds = timed(lambda: module.similarity(sounds, mask, text), size["device"], repeats=3)
    return seconds | {"scores": _corner(module.similarity(sounds[:2], mask[:2], text))}


@torch.no_grad()
def loop(**size: Any) -> dict[str, Any]:
    """Section 3.6 word for word: every caption's query meets every clip's keys, then values, then W_0."""
    module, sounds, _, text = random_inputs(**size)

    def work() -> Tensor:
        columns = []
        for number, frames in enumerate(module.layer_norm(sounds)):
            target = F.normalize(text, dim=1) if number else text
            queries, keys, values = module.w_q(module.layer_norm(target)), module.w_k(frames), module.w_v(frames)
            weights = (queries @ keys.T / keys.shape[1] ** 0.5).softmax(1)
            pooled = module.layer_norm(module.w_0(weights @ values))
            columns.append(F.cosine_similarity(pooled, text, dim=1))
        return torch.stack(columns, 1)

    seconds = timed(work, size["device"], repeats=3)
    return seconds | {"scores": _corner(work())}


@torch.no_grad()
def as_released(folder: str, **size: Any) -> dict[str, Any]:
    """`rank_sequences` of `experiments/ex_dcase24.py` with its `TextAwareAttentionPooling`, in float32."""
    module, sounds, mask, text = random_inputs(**size)
    names = ("TextAwareAttentionPooling", "AudioRetrievalModel.rank_sequences")
    code = definitions(Path(folder) / "experiments" / "ex_dcase24.py", names, {"torch": torch, "nn": nn, "F": F})
    pooling = code[names[0]](size["dim"], size["projection"], 0.0, 0.0).to(size["device"]).eval()
    pooling.load_state_dict(module.state_dict())
    model = SimpleNamespace(
        kwargs={"audio_features": {"aggregate": "TAP"}, "normalize": True},
        device=torch.device(size["device"]),
        text_aware_pooling=pooling,
        training=False,
    )
    here, captions = mask.float(), text[:, None]

    def work(clips: int = size["clips"]) -> Tensor:
        return code[names[1]](model, sounds[:clips], here[:clips], captions, None)

    seconds = timed(work, size["device"], repeats=3)
    return seconds | {"scores": _corner(work(2))}
