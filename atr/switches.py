"""What makes a GPU faster without changing a result by more than its noise: switches that `ATR_SWITCHES` sets.

`precision` is no switch but a field of the config, since bf16 is part of what a run is. On a CPU all of them are off,
where a run's numbers are the same to the bit on every machine of a kind.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Switches:
    """
    tf32           float32 products and convolutions of a GPU round their factors to TF32's 10 bits
    channels_last  images are kept with their channels last, as the GPU's kernels for convolutions want them
    fused          the optimiser's step is one kernel; on a CPU too
    compiled       encoders go through torch.compile, which takes minutes before the first step
    """

    tf32: bool = False
    channels_last: bool = False
    fused: bool = True
    compiled: bool = False

    @contextmanager
    def on(self) -> Iterator[None]:
        """Set what PyTorch keeps for the whole process, and set it back."""
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = self.tf32
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]

    def apply(self, network: Any) -> Any:
        """The network with its weights laid out, and its encoders compiled, as the switches say; its parameters keep
        their names.
        """
        if self.channels_last and network.audio_encoder is not None:
            network.audio_encoder.to(memory_format=torch.channels_last)
        for encoder in (network.audio_encoder, network.text_encoder) if self.compiled else ():
            if isinstance(encoder, nn.Module):
                encoder.compile(dynamic=True)
        return network


CPU = Switches()
GPU = Switches(tf32=True, channels_last=True)


def chosen(device: str) -> Switches:
    """Those of the device, changed by ATR_SWITCHES: names to switch on, with "no-" before it to switch off, as in
    "compiled,no-tf32". ValueError: an unknown name.
    """
    found = {switch.name: getattr(GPU if device == "cuda" else CPU, switch.name) for switch in fields(Switches)}
    for word in os.environ.get("ATR_SWITCHES", "").replace(",", " ").split():
        name = word.removeprefix("no-")
        if name not in found:
            raise ValueError(f"ATR_SWITCHES: unknown {name!r}; known: {', '.join(found)}, each also with no- before it")
        found[name] = not word.startswith("no-")
    return Switches(**found)
