"""EfficientAT's MobileNetV3 (Schmid, Koutini and Widmer 2023): convolutions distilled from transformers, for a laptop.

F. Schmid, K. Koutini, G. Widmer: *Efficient Large-Scale Audio Tagging via Transformer-to-CNN Knowledge Distillation*,
ICASSP 2023; the network is MobileNetV3-Large (Howard et al. 2019) over log-mels, its width scaled.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from atr import register
from atr.encoders import checkpoints
from atr.encoders.audio.frontends import PaSSTMel, SpecAugment
from atr.encoders.pooling import frame_mask, mean


class Shape(NamedTuple):
    """A block at width 1: kernel, channels within and behind it, whether it squeezes and excites, Hardswish, stride."""

    kernel: int
    inner: int
    outer: int
    squeeze: bool
    swish: bool
    stride: int


BLOCKS = (  # Howard et al. 2019, table 1
    Shape(3, 16, 16, False, False, 1),
    Shape(3, 64, 24, False, False, 2),
    Shape(3, 72, 24, False, False, 1),
    Shape(5, 72, 40, True, False, 2),
    Shape(5, 120, 40, True, False, 1),
    Shape(5, 120, 40, True, False, 1),
    Shape(3, 240, 80, False, True, 2),
    Shape(3, 200, 80, False, True, 1),
    Shape(3, 184, 80, False, True, 1),
    Shape(3, 184, 80, False, True, 1),
    Shape(3, 480, 112, True, True, 1),
    Shape(3, 672, 112, True, True, 1),
    Shape(5, 672, 160, True, True, 2),
    Shape(5, 960, 160, True, True, 1),
    Shape(5, 960, 160, True, True, 1),
)
CLASSES = 527  # of AudioSet


def channels(number: float) -> int:
    """The nearest multiple of eight that is no less than nine tenths of a number."""
    rounded = max(8, int(number + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * number else rounded + 8


class Frames(NamedTuple):
    """Maps (B, C, bands, T), zero behind each clip's end; valid frames (B,), or None where all are."""

    maps: Tensor
    lengths: Tensor | None

    def ends(self) -> Tensor:
        """Valid frames (B,), also where all are."""
        full = torch.full((len(self.maps),), self.maps.shape[3], device=self.maps.device)
        return full if self.lengths is None else self.lengths

    def mask(self, maps: Tensor, stride: int = 1) -> "Frames":
        """What a layer has made of the maps, with zeros behind each clip's end."""
        if self.lengths is None:
            return Frames(maps, None)
        lengths = (self.lengths + stride - 1) // stride
        return Frames(maps * frame_mask(lengths, maps.shape[3])[:, None, None], lengths)


def convolution(inputs: int, outputs: int, kernel: int, stride: int, groups: int, act: type[nn.Module] | None):
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=0.001, momentum=0.01),
    ]
    return nn.Sequential(*layers, *([act(inplace=True)] if act else []))


class SqueezeExcitation(nn.Module):
    """Scales each channel by what a small network makes of all channels' means."""

    def __init__(self, width: int) -> None:
        super().__init__()
        bottleneck = channels(width // 4)
        inner = nn.ModuleDict({"fc1": nn.Linear(width, bottleneck), "fc2": nn.Linear(bottleneck, width)})
        self.conc_se_layers = nn.ModuleList([inner])  # as official files name it

    def forward(self, x: Frames) -> Tensor:
        maps, lengths = x
        if lengths is None:
            means = maps.mean((2, 3))
        else:
            means = maps.sum((2, 3)) / (lengths * maps.shape[2])[:, None]
        (inner,) = self.conc_se_layers
        return maps * inner["fc2"](inner["fc1"](means).relu()).sigmoid()[:, :, None, None]  # type: ignore[index]


class InvertedResidual(nn.Module):
    """Expansion, convolution of each channel, squeeze and excitation, projection; beside it what came in."""

    def __init__(self, inputs: int, shape: Shape, width: float) -> None:
        super().__init__()
        act = nn.Hardswish if shape.swish else nn.ReLU
        inner, outputs = channels(shape.inner * width), channels(shape.outer * width)
        expansion = [convolution(inputs, inner, 1, 1, 1, act)] if inner != inputs else []
        self.block = nn.ModuleList([*expansion, convolution(inner, inner, shape.kernel, shape.stride, inner, act)])
        self.block.extend([SqueezeExcitation(inner)] if shape.squeeze else [])
        self.block.append(convolution(inner, outputs, 1, 1, 1, None))
        self.stride, self.shortcut = shape.stride, shape.stride == 1 and inputs == outputs

    def forward(self, x: Frames) -> Frames:
        *expansion, projection = self.block
        squeeze = expansion.pop() if isinstance(expansion[-1], SqueezeExcitation) else None
        depthwise, inner = expansion.pop(), x
        for layer in expansion:
            inner = inner.mask(layer(inner.maps))
        inner = inner.mask(depthwise(inner.maps), self.stride)
        maps = projection(inner.maps if squeeze is None else squeeze(inner))
        return inner._replace(maps=inner.mask(maps).maps + x.maps if self.shortcut else inner.mask(maps).maps)


class MobileNet(nn.Module):
    """Log-mel → stem → 15 blocks → (frames, `dim`), one frame for 320 ms, at 32 kHz.

    With `lengths`, what lies behind a clip's end is zero before every convolution and counts in no mean, so that in
    evaluation a clip's frames do not depend on what else is in its batch. `classifier` gives AudioSet's logits (Schmid
    et al. 2023); it is kept as it was published. `keep_top` leaves its top blocks, which train over `states` of those
    below.
    augment: "specaugment" or None. Over states its stripes are a state wide at least (160 ms by 16 bands below the last
    three blocks), and hold each channel's mean over the clip, as a state of silence is not zero; other waveforms, band
    edges or mixtures there are none. Raises ValueError for another, and for a dropout, which the network has none of.
    """

    sample_rate = 32_000
    window, short = 10.0, "repeat"  # pre-trained on AudioSet's clips
    cached = False
    head_hidden = 1
    dropped: tuple[str, ...] = ()

    def __init__(self, width: float, augment: str | None = None, dropout: float | None = None) -> None:
        super().__init__()
        if augment not in (None, "specaugment"):
            raise ValueError(f"augment: {augment!r} is nothing for a CNN, which offers 'specaugment' and None")
        if dropout is not None:
            raise ValueError(f"dropout: {dropout} is nothing for a MobileNet, which has none; leave it at None")
        self.mel = PaSSTMel()
        self.augment = SpecAugment(time=64, bands=16) if augment else nn.Identity()
        first, last = channels(16 * width), channels(160 * width)
        self.dim = 6 * last
        inputs = [first, *(channels(shape.outer * width) for shape in BLOCKS)]
        blocks = [InvertedResidual(inputs[place], shape, width) for place, shape in enumerate(BLOCKS)]
        stem, top = convolution(1, first, 3, 2, 1, nn.Hardswish), convolution(last, self.dim, 1, 1, 1, nn.Hardswish)
        self.features = nn.ModuleList([stem, *blocks, top])
        hidden = channels(1280 * width)
        layers = {"2": nn.Linear(self.dim, hidden), "3": nn.Hardswish(), "5": nn.Linear(hidden, CLASSES)}
        self.classifier = nn.Sequential(OrderedDict(layers)).requires_grad_(False)  # numbered as in official files

    def frontend(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, samples), lengths (B,) in samples → (B, 128, frames); each clip ends where it does alone."""
        if lengths is None or bool((lengths == waveform.shape[1]).all()):
            return self.mel(waveform)
        shortest = int(lengths.min())
        if shortest <= 513:
            raise ValueError(f"{shortest} samples are too few for a window of 1024: pad the clip with zeros")
        features = waveform.new_zeros(len(waveform), self.mel.bands, int(self.feature_lengths(lengths).max()))
        for length in lengths.unique().tolist():
            rows = lengths == length
            part = self.mel(waveform[rows, :length])
            features[rows, :, : part.shape[2]] = part
        return features

    def feature_lengths(self, samples: Tensor) -> Tensor:
        return 1 + (samples - 1) // 320

    def frame_times(self, count: int) -> Tensor:
        """Five strides of 2 over frames of 10 ms, each centred on its first."""
        return 0.32 * torch.arange(count)

    def encode(self, features: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, 128, frames), lengths (B,) in frames → frames (B, T, dim), mask (B, T)."""
        return self._frames(self._below(features, lengths, self.features))

    def states(self, features: Tensor, lengths: Tensor | None, layers: int) -> tuple[Tensor, Tensor]:
        """What the top `layers` blocks take of (B, 128, frames), lengths (B,) in frames: (B, T, bands, channels), and
        how many of T are valid (B,).
        """
        x = self._below(features, lengths, self.features[: -1 - layers])
        return x.maps.permute(0, 3, 2, 1), x.ends()

    def keep_top(self, layers: int) -> None:
        """Drop what lies below the top `layers` blocks; from here on `encode_states` takes what `states` gave."""
        if not 0 < layers <= len(BLOCKS):
            raise ValueError(f"audio_layers: {layers}; a MobileNet has 1 to {len(BLOCKS)} blocks to train over states")
        below = self.features[: -1 - layers]
        del self.mel
        self.features = self.features[-1 - layers :]
        self.features.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a fifth faster on a CPU
        if isinstance(self.augment, SpecAugment):
            strides = [layer.stride if isinstance(layer, InvertedResidual) else 2 for layer in below]
            self.augment = self.augment.over(math.prod(strides))

    def encode_states(self, states: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, T, bands, channels), lengths (B,) → frames (B, T', dim), mask (B, T'), by what `keep_top` left."""
        states = states.float()
        if self.training and isinstance(self.augment, SpecAugment):
            counts = states.shape[1] if lengths is None else lengths[:, None]
            means = states.sum((1, 2)) / (counts * states.shape[2])
            keep = self.augment.keep(states[..., 0])
            states = torch.where(keep[..., None], states, means[:, None, None])
        maps = states.permute(0, 3, 2, 1).contiguous(memory_format=torch.channels_last)
        x = Frames(maps, None if lengths is None or bool((lengths == states.shape[1]).all()) else lengths)
        return self._frames(self._through(x.mask(x.maps), self.features))

    def _below(self, features: Tensor, lengths: Tensor | None, layers: Iterable[nn.Module]) -> Frames:
        if lengths is not None and bool((lengths == features.shape[2]).all()):
            lengths = None
        x = Frames(self.augment(features.transpose(1, 2)).transpose(1, 2)[:, None], lengths)
        x = x.mask(x.maps)
        few = len(features) if self.training or features.is_cuda else 4  # maps that fit a CPU's cache
        ends = [None] * -(-len(features) // few) if lengths is None else lengths.split(few)
        parts = [self._through(Frames(*part), layers) for part in zip(x.maps.split(few), ends, strict=True)]
        return Frames(
            torch.cat([part.maps for part in parts]),
            None if lengths is None else torch.cat([part.ends() for part in parts]),
        )

    def _through(self, x: Frames, layers: Iterable[nn.Module]) -> Frames:
        for layer in layers:
            x = layer(x) if isinstance(layer, InvertedResidual) else x.mask(layer(x.maps), layer[0].stride[0])  # type: ignore[index]
        return x

    def _frames(self, x: Frames) -> tuple[Tensor, Tensor]:
        frames = x.maps.mean(2).transpose(1, 2)
        return frames, frame_mask(x.ends(), frames.shape[1])

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        feature_lengths = None if lengths is None else self.feature_lengths(lengths)
        return self.encode(self.frontend(waveform, lengths), feature_lengths)

    pool = staticmethod(mean)  # over time; the published network takes it of all places

    @staticmethod
    def labels() -> list[str]:
        """AudioSet's names of the 527 classes, in order."""
        lines = (Path(__file__).parent / "audioset.txt").read_text(encoding="utf-8").splitlines()
        return lines[1:]

    def logits(self, pooled: Tensor) -> Tensor:
        """(B, dim) → (B, 527): of AudioSet's classes."""
        return self.classifier(pooled)


_RELEASE = ("fschmid56/EfficientAT", "v0.0.1")
_MN04 = "sha256:899a8c6217063f6941793102a2780b3dd788ab11fce468d9cf5f0577c453321c"  # of the file as published today
checkpoints.github("EfficientAT mn04", "mn04", *_RELEASE, "mn04_as_mAP_432.pt", "MIT", 4_066_513, _MN04)
checkpoints.github("EfficientAT mn10", "mn10", *_RELEASE, "mn10_as_mAP_471.pt", "MIT")


@register.encoder("mn04")
def mn04(augment: str | None = None, dropout: float | None = None) -> MobileNet:
    """Width 0.4: 0.98 million parameters."""
    return MobileNet(0.4, augment, dropout)


@register.encoder("mn10")
def mn10(augment: str | None = None, dropout: float | None = None) -> MobileNet:
    """Width 1: 4.9 million parameters."""
    return MobileNet(1.0, augment, dropout)
