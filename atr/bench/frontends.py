"""Spectrograms of a batch of clips, as each encoder wants them."""

from typing import Any

import torch

from atr.bench.harness import Case, Released, timed
from atr.encoders import registry

SIZES = {"smoke": (2, 1.0), "demo": (32, 10.0), "paper": (32, 10.0)}
ENCODERS = ("resnet38", "passt_s", "atst_frame", "compact")


def cases(scale: str, device: str, released: Released) -> list[Case]:
    clips, seconds = SIZES[scale]
    size = {"clips": clips, "clip_seconds": seconds, "device": device}
    return [Case("frontends", name, "frontends.made", size | {"encoder": name}) for name in ENCODERS]


@torch.inference_mode()
def made(clips: int, clip_seconds: float, device: str, encoder: str) -> dict[str, Any]:
    network = registry.build(encoder).eval().to(device)
    longest = int(clip_seconds * network.sample_rate)
    waveform = 0.1 * torch.randn(clips, longest, device=device)
    lengths = torch.randint(longest * 9 // 10, longest, (clips,), device=device)
    return timed(lambda: network.frontend(waveform, lengths), device) | {"clips": clips}
