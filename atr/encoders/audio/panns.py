"""PANNs (Kong et al. 2020): CNN6, CNN10, CNN14 and ResNet38, under the names of the official checkpoint files."""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atr import register
from atr.encoders import checkpoints
from atr.encoders.audio.cnn import SpectrogramCNN
from atr.encoders.audio.frontends import LogMel
from atr.encoders.pooling import frame_mask

FREQUENCIES = ("mean", "mean_max", "max")
SAMPLE_RATE, WINDOW, BANDS, LOW, HIGH = 32_000, 1024, 64, 50, 14_000
FRONTEND = (
    "spectrogram_extractor.stft.conv_real.weight",
    "spectrogram_extractor.stft.conv_imag.weight",
    "logmel_extractor.melW",
)

# Blocks take and return maps (B, channels, frames, bands) with a mask (B, 1, frames, 1) of each clip's frames, or None
# where nothing is padded. Maps are zero behind a clip's end, which is what a convolution sees behind a clip alone.


def convolution(inputs: int, outputs: int, size: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    nn.init.xavier_uniform_(layer.weight)
    return layer


def rectify(x: Tensor, mask: Tensor | None) -> Tensor:
    """ReLU, zero behind the end. Works in place: neither a batch-norm nor a sum needs its output for gradients."""
    return (x if mask is None else x.mul_(mask)).relu_()


def halve(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Average over 2 × 2. A last frame without a partner is dropped: of the tensor, and of each clip."""
    x = F.avg_pool2d(x, 2)
    if mask is None:
        return x, None
    mask = mask[:, :, 1::2]
    return x.mul_(mask), mask


class ConvBlock(nn.Module):
    """Two 3 × 3 convolutions, or in CNN6 one of 5 × 5, with batch-norm and ReLU; average pooling; dropout."""

    def __init__(self, inputs: int, outputs: int, dropout: float, size: int = 3, pooled: bool = True) -> None:
        super().__init__()
        self.shrinks = 2 if pooled else 1
        self.conv1, self.bn1 = convolution(inputs, outputs, size), nn.BatchNorm2d(outputs)
        self.conv2 = None
        if size == 3:
            self.conv2, self.bn2 = convolution(outputs, outputs, size), nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = rectify(self.bn1(self.conv1(x)), mask)
        if self.conv2 is not None:
            x = rectify(self.bn2(self.conv2(x)), mask)
        if self.shrinks == 2:
            x, mask = halve(x, mask)
        return self.dropout(x), mask


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions beside a shortcut, dropout between them; `halved` pools first (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, dropout: float, halved: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(inputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2, self.bn2 = convolution(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        nn.init.zeros_(self.bn2.weight)
        self.downsample = None
        if halved:  # the official downsample.0 pools the same input a second time
            self.downsample = nn.Sequential(nn.Identity(), convolution(inputs, outputs, 1), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        shortcut = x
        if self.downsample is not None:
            x, mask = halve(x, mask)
            shortcut = self.downsample(x)
        inner = self.dropout(rectify(self.bn1(self.conv1(x)), mask))
        return rectify(self.bn2(self.conv2(inner)) + shortcut, mask), mask


class ResNet(nn.ModuleDict):
    """Four layers of basic blocks, each but the first at half the resolution; average pooling; dropout."""

    shrinks = 16

    def __init__(self, dropout: float, inner_dropout: float) -> None:
        layers, inputs = {}, 64
        for number, (blocks, outputs) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), 1):
            members = []
            for place in range(blocks):
                members.append(BasicBlock(inputs, outputs, inner_dropout, halved=place == 0 and number > 1))
                inputs = outputs
            layers[f"layer{number}"] = nn.ModuleList(members)
        super().__init__(layers)
        self.dropout = dropout

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        for layer in self.values():
            for block in layer.children():
                x, mask = block(x, mask)
        x, mask = halve(x, mask)
        return F.dropout(x, self.dropout, self.training), mask


def logmel() -> LogMel:
    return LogMel(SAMPLE_RATE, WINDOW, hop=320, bands=BANDS, low=LOW, high=HIGH)


def frontend_tensors() -> dict[str, Tensor]:
    """The frontend as official files hold it: windowed Fourier transform (513, 1, 1024) twice, mel bands (513, 64)."""
    mel = logmel().mel
    place = torch.arange(WINDOW)
    angle = 2 * math.pi / WINDOW * (place[: WINDOW // 2 + 1, None] * place % WINDOW)
    window = mel.spectrogram.window
    parts = (angle.cos() * window)[:, None], (-angle.sin() * window)[:, None], mel.mel_scale.fb
    return dict(zip(FRONTEND, parts, strict=True))


class Panns(SpectrogramCNN):
    """Log-mel at 32 kHz → batch-norm over bands → blocks → mean over bands: frames (B, T, dim).

    One frame covers `shrinks` frames of 10 ms. With `lengths`, a clip's frames are those of the clip alone (in
    evaluation mode). Without, zeros behind a clip's end enter as if they were sound, as in the released code of Mei
    et al. 2022.

    frequency  how a map's bands become one: "mean" (Kong et al. 2020), "mean_max" (mean plus maximum: the text of Mei
               et al. 2022, section 2.1), "max" (Tourbabin and Ben-Hur)
    """

    sample_rate = SAMPLE_RATE
    cached = False
    dropped = ("fc", "spectrogram_extractor", "logmel_extractor")

    def __init__(self, blocks: Mapping[str, ConvBlock | ResNet], dim: int, augment: str | None, frequency: str) -> None:
        if frequency not in FREQUENCIES:
            raise ValueError(f"frequency: unknown {frequency!r}; known: {', '.join(FREQUENCIES)}")
        super().__init__(logmel(), nn.BatchNorm1d(BANDS), augment, stripe=64)
        self.dim, self.head_hidden, self.frequency = dim, 2 if dim == 2048 else 1, frequency
        self.shrinks = math.prod(block.shrinks for block in blocks.values())
        self.blocks = tuple(blocks)  # their names: official files hold them side by side with bn0
        for name, block in blocks.items():
            self.add_module(name, block)

    def frame_times(self, count: int) -> Tensor:
        """Means of `shrinks` frames of 10 ms."""
        return 0.01 * (self.shrinks * torch.arange(count) + (self.shrinks - 1) / 2)

    @staticmethod
    def official(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official names are ours. ValueError where the file holds another frontend than `logmel`: the networks for 8,
        16 and 32 kHz have the same names and shapes.
        """
        for name, ours in frontend_tensors().items() if tensors.keys() & set(FRONTEND) else ():
            theirs = tensors.get(name, ours).to(torch.complex64).abs()  # of any type; squared, the sign does not count
            if theirs.shape == ours.shape and bool(((theirs - ours.abs()).abs() < 0.01 * ours.abs().max()).all()):
                continue
            window = 2 * (len(theirs) - 1) if theirs.ndim else 0
            what = f"not of {BANDS} bands from {LOW} to {HIGH:,} Hz in windows of {WINDOW} samples"
            if window != WINDOW:
                what = f"of windows of {window} samples, which PANNs has for {window * SAMPLE_RATE // WINDOW:,} Hz"
            raise ValueError(
                f"trained on another frontend: {name} {tuple(theirs.shape)} is {what}; take the file for "
                f"{SAMPLE_RATE:,} Hz and {BANDS} bands, which this encoder hears"
            )
        return tensors

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `SpectrogramCNN`; a clip too short for one frame of the last map is heard with zeros behind it."""
        least = self.shrinks * self.logmel.hop
        waveform = F.pad(waveform, (0, max(0, least - waveform.shape[1])))
        if lengths is not None and int(lengths.min()) < least:
            waveform = waveform.masked_fill(~frame_mask(lengths, waveform.shape[1]), 0)
            lengths = lengths.clamp(min=least)
        return super().forward(waveform, lengths)

    def feature_map(self, features: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, 64, frames) in dB, lengths (B,) in frames → the last block's map (B, dim, T, bands), mask (B, T).

        T is frames // `shrinks`. Raises ValueError if a clip has fewer frames than `shrinks`.
        """
        shortest = features.shape[2] if lengths is None else int(lengths.min())
        if shortest < self.shrinks:
            seconds = (self.shrinks - 1) * self.logmel.hop / self.sample_rate
            raise ValueError(
                f"a clip of {shortest} frames is too short, the encoder needs {self.shrinks}: "
                f"pad it with zeros to {seconds:.2f} s"
            )
        x, mask = self.normalise(features, lengths)
        mask = None if mask is None else mask[:, None, :, None]
        for name in self.blocks:
            x, mask = self.get_submodule(name)(x, mask)
        if mask is None:
            return x, torch.ones(len(x), x.shape[2], dtype=torch.bool, device=x.device)
        return x, mask[:, 0, :, 0]

    def encode(self, features: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, 64, frames) in dB, lengths (B,) in frames → frames (B, T, dim), mask (B, T)."""
        x, mask = self.feature_map(features, lengths)
        if self.frequency == "mean":
            x = x.mean(3)
        else:
            x = x.amax(3) + (x.mean(3) if self.frequency == "mean_max" else 0)
        return x.transpose(1, 2), mask


_PAGE, _LICENCE = "https://zenodo.org/records/3987831", "CC BY 4.0"
_CNN6 = ("Cnn6_mAP=0.343.pth", None, "e25e26b84585b14c7754c91e48efc9be")
_CNN10 = ("Cnn10_mAP=0.380.pth", 25_237_595, "bfb1f1f9968938fa8ef4012b8471f5f6")
_CNN14 = ("Cnn14_mAP=0.431.pth", 327_428_481, "541141fa2ee191a88f24a3219fff024e")
_RESNET38 = ("ResNet38_mAP=0.434.pth", 299_615_982, "bf12f36aaabac4e0855e22d3c3239c1b")
checkpoints.zenodo("PANNs CNN6", "cnn6", _PAGE, _LICENCE, *_CNN6)
checkpoints.zenodo("PANNs CNN10", "cnn10", _PAGE, _LICENCE, *_CNN10)
checkpoints.zenodo("PANNs CNN14", "cnn14", _PAGE, _LICENCE, *_CNN14)
checkpoints.zenodo("PANNs CNN14", "cnn14_mei2022", _PAGE, _LICENCE, *_CNN14)
checkpoints.zenodo("PANNs ResNet38", "resnet38", _PAGE, _LICENCE, *_RESNET38)


# Factories. augment: None or "specaugment". dropout: None for the official network's, 0.2 after each block and 0.1
# inside ResNet38's basic blocks; a number for all of them (Mei et al. 2022 train with 0.2). frequency: see `Panns`.


def _cnn(name: str, widths: tuple[int, ...], size: int = 3, last_pooled: bool = True) -> Callable[..., Panns]:
    """The factory, registered, of a network with a block for each of `widths`."""

    @register.encoder(name)
    def build(augment: str | None = None, dropout: float | None = None, frequency: str = "mean") -> Panns:
        blocks = {}
        for number, (inputs, outputs) in enumerate(pairwise((1, *widths)), 1):
            pooled = number < len(widths) or last_pooled
            block = ConvBlock(inputs, outputs, 0.2 if dropout is None else dropout, size, pooled)
            blocks[f"conv_block{number}"] = block
        return Panns(blocks, widths[-1], augment, frequency)

    return build


cnn6 = _cnn("cnn6", (64, 128, 256, 512), size=5)
cnn10 = _cnn("cnn10", (64, 128, 256, 512))
cnn14 = _cnn("cnn14", (64, 128, 256, 512, 1024, 2048), last_pooled=False)
# The last block is pooled too, as in the released code of Mei et al. 2022: the same weights fit.
cnn14_mei2022 = _cnn("cnn14_mei2022", (64, 128, 256, 512, 1024, 2048))


@register.encoder("resnet38")
def resnet38(augment: str | None = None, dropout: float | None = None, frequency: str = "mean") -> Panns:
    outer, inner = (0.2, 0.1) if dropout is None else (dropout, dropout)
    blocks: dict[str, ConvBlock | ResNet] = {
        "conv_block1": ConvBlock(1, 64, outer),
        "resnet": ResNet(outer, inner),
        "conv_block_after1": ConvBlock(512, 2048, outer, pooled=False),
    }
    return Panns(blocks, 2048, augment, frequency)
