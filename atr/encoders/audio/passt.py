"""PaSST-S, the Patchout faSt Spectrogram Transformer (Koutini et al. 2022), as Tymofieiev (2025) uses it."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from atr import register
from atr.encoders import checkpoints
from atr.encoders.audio.frontends import PaSSTMel
from atr.encoders.audio.vit import Block, SegmentEncoder, initialise, layer_norm, table

PATCHOUT_TIME, PATCHOUT_BANDS = 15, 2  # positions left out (Tymofieiev 2025, released command)


class PaSST(SegmentEncoder):
    """Log-mel → patches of 16 bands × 16 frames → transformer → one frame for each segment of 10 s, 768 wide.

    A frame is the mean of the class and the distillation token after the last norm. `stride` lies between patches, in
    bands and in frames; with 10 as with 16 no patch reaches the last frames of the 1,000.
    augment: "patchout" leaves out `PATCHOUT_TIME` positions of time and `PATCHOUT_BANDS` of frequency in training,
    drawn once a batch (structured patchout, section 2.2), or None.
    dropout: after the positions, the attention and each layer of the MLP; published: 0.
    Raises ValueError for another `augment`.
    """

    sample_rate = 32_000
    frames_in, frames_out = 1000, 1
    dropped = ("head.", "head_dist.")  # the classifiers of AudioSet

    def __init__(
        self,
        stride: int = 10,
        augment: str | None = None,
        dropout: float | None = None,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
    ) -> None:
        super().__init__()
        if augment not in (None, "patchout"):
            raise ValueError(f"augment: PaSST does not offer {augment!r}; it offers 'patchout' and None")
        self.dim, self.augment = width, augment
        rate = 0.0 if dropout is None else dropout
        self.mel = PaSSTMel()
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(1, width, 16, stride)))
        self.cls_token, self.dist_token = table(1, 1, width), table(1, 1, width)
        self.new_pos_embed = table(1, 2, width)
        self.freq_new_pos_embed = table(1, width, (PaSSTMel.bands - 16) // stride + 1, 1)
        self.time_new_pos_embed = table(1, width, 1, (self.frames_in - 16) // stride + 1)
        self.dropout = nn.Dropout(rate)
        self.blocks = nn.Sequential(*(Block(width, heads, bias=True, dropout=rate) for _ in range(depth)))
        self.norm = layer_norm(width)
        self.apply(initialise)

    def network(self, features: Tensor) -> Tensor:
        x = self.patch_embed(features[:, None]) + self.time_new_pos_embed + self.freq_new_pos_embed
        if self.training and self.augment == "patchout":
            x = x[..., _survivors(x.shape[3], PATCHOUT_TIME).to(x.device)]
            x = x[:, :, _survivors(x.shape[2], PATCHOUT_BANDS).to(x.device)]
        tokens = torch.cat((self.cls_token, self.dist_token), 1) + self.new_pos_embed
        x = torch.cat((tokens.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)), 1)
        return self.norm(self.blocks(self.dropout(x))[:, :2]).mean(1, keepdim=True)


def _survivors(positions: int, left_out: int) -> Tensor:
    return torch.randperm(positions)[: positions - left_out].sort().values


_LICENCE = "Apache 2.0"
_FINE, _COARSE = ("v.0.0.9", "passt-s-kd-ap.486.pt"), ("v0.0.2-audioset", "passt-s-f128-p16-s16-ap.468.pt")
checkpoints.github("PaSST-S, stride 10", "passt_s", "kkoutini/PaSST", *_FINE, _LICENCE)
checkpoints.github("PaSST-S, stride 16", "passt_s_stride16", "kkoutini/PaSST", *_COARSE, _LICENCE)


@register.encoder("passt_s")
def passt_s(augment: str | None = None, dropout: float | None = None) -> PaSST:
    """Patches every 10 bands and frames: 12 × 99 of them."""
    return PaSST(10, augment, dropout)


@register.encoder("passt_s_stride16")
def passt_s_stride16(augment: str | None = None, dropout: float | None = None) -> PaSST:
    """Patches that do not overlap: 8 × 62 of them."""
    return PaSST(16, augment, dropout)
