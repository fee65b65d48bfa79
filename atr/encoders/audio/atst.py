"""ATST-Frame base (Li, Shao and Li 2024), as Tymofieiev (2025) uses it."""

from collections import OrderedDict

from torch import Tensor, nn

from atr import register
from atr.encoders import checkpoints
from atr.encoders.audio.frontends import ATSTMel
from atr.encoders.audio.vit import Block, SegmentEncoder, initialise, layer_norm, table

# How the network's tensors are called in the released Lightning checkpoints: pre-trained, distilled, fine-tuned.
LAYOUTS = ("model.teacher.encoder.", "encoder.encoder.frame_encoder.", "encoder.encoder.")

# Its authors publish it through Google Drive, for browsers; the release of another group's code holds it too.
checkpoints.github("ATST-Frame base", "atst_frame", "CPJKU/cpjku_dcase24", "files", "atst_base.ckpt", "CC BY 4.0")


@register.encoder("atst_frame")
class ATSTFrame(SegmentEncoder):
    """Log-mel → four frames a patch → transformer → 250 frames for each segment of 10 s, 768 wide: one every 40 ms.

    Nothing is masked inside a segment: a short clip's frames also attend to the zeros behind it, as in the released
    code. augment: None. dropout: after the positions, the attention and each layer of the MLP; published for
    fine-tuning: 0. Raises ValueError for another `augment`.
    """

    sample_rate = 16_000
    frames_in, frames_out = 1001, 250  # the last feature frame fills no patch
    dropped = (
        "mask_embed",  # takes the place of masked patches in pre-training
        "cls_token",
        "model.student.",
        "model.teacher.projector.",
        "teacher_module.",
        "head.",
    )

    def __init__(
        self,
        augment: str | None = None,
        dropout: float | None = None,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
    ) -> None:
        super().__init__()
        if augment is not None:
            raise ValueError(f"augment: ATST-Frame does not offer {augment!r}; it offers None")
        self.dim = width
        rate = 0.0 if dropout is None else dropout
        self.mel = ATSTMel()
        self.patch_embed = nn.Sequential(OrderedDict(patch_embed=nn.Linear(4 * ATSTMel.bands, width)))
        self.pos_embed = table(1, 1 + self.frames_out, width)  # the first row is of a class token that is not there
        self.dropout = nn.Dropout(rate)
        self.blocks = nn.Sequential(*(Block(width, heads, bias=False, dropout=rate) for _ in range(depth)))
        self.norm_frame = layer_norm(width)
        self.apply(initialise)

    @staticmethod
    def official(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of the three layouts, less their prefix; a final `norm` becomes `norm_frame`."""
        renamed = {}
        for name, tensor in tensors.items():
            prefix = next((layout for layout in LAYOUTS if name.startswith(layout)), "")
            name = name.removeprefix(prefix)
            renamed[f"norm_frame.{name[5:]}" if prefix and name.startswith("norm.") else name] = tensor
        return renamed

    def network(self, features: Tensor) -> Tensor:
        patches = features[:, :, : 4 * self.frames_out].unflatten(2, (-1, 4)).transpose(1, 2).flatten(2)
        x = self.patch_embed(patches) + self.pos_embed[:, 1:]
        return self.norm_frame(self.blocks(self.dropout(x)))
