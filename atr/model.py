"""The dual encoder: audio and captions into one space."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from atr import encoders
from atr.config import RunConfig
from atr.encoders.compact import Compact
from atr.encoders.text import TextEncoder
from atr.features import Inputs, Prepared
from atr.store import Packed

AUDIO_HIDDEN = {
    "compact": 1,
    "compact_resnet": 1,
}  # hidden width of the audio head in D: 1 as for CNN10, 2 as for CNN14


def head(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Linear, ReLU, Linear (Mei et al. 2022)."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class DualEncoder(nn.Module):
    """Audio encoder → pooling → head and text encoder → head, both L2-normalised (Mei et al. 2022, section 2.2).

    An encoder that is None has run already: its pooled output comes in.
    """

    def __init__(
        self,
        audio_encoder: Compact | None,
        text_encoder: TextEncoder | None,
        audio_dim: int,
        text_dim: int,
        dim: int,
        audio_hidden: int = 1,
    ) -> None:
        super().__init__()
        self.audio_encoder, self.text_encoder = audio_encoder, text_encoder
        self.audio_head = head(audio_dim, audio_hidden * dim, dim)
        self.text_head = head(text_dim, 2 * dim, dim)

    def embed_audio(self, audio: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Pooled features (B, audio_dim), or log-mels (B, bands, frames) with lengths → (B, dim), of length 1."""
        if self.audio_encoder is not None:
            audio = self.audio_encoder.pool(*self.audio_encoder.encode(audio, lengths))
        return nn.functional.normalize(self.audio_head(audio), dim=-1)

    def embed_text(self, text: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Pooled features (B, text_dim), or states or ids (B, tokens, …) with lengths → (B, dim), of length 1."""
        if self.text_encoder is not None:
            assert lengths is not None
            text = self.text_encoder(text, lengths)
        return nn.functional.normalize(self.text_head(text), dim=-1)

    def forward(
        self, audio: tuple[Tensor, Tensor | None] | None, text: tuple[Tensor, Tensor | None] | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Embeddings of a batch of each kind; None gives None."""
        return audio and self.embed_audio(*audio), text and self.embed_text(*text)

    def kept(self) -> dict[str, Tensor]:
        """The tensors that training changes: trained parameters, and buffers (batch statistics)."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        fixed = {name for name, _ in self.named_parameters()} - trained
        return {name: tensor for name, tensor in self.state_dict().items() if name not in fixed}


def build(config: RunConfig, prepared: Prepared) -> DualEncoder:
    """The model of a config, heads drawn from PyTorch's generator; seed that first."""
    sample = next(iter(prepared.splits.values()))
    if config.training == "frozen":
        assert isinstance(sample.audio, Tensor) and isinstance(sample.text, Tensor)
        audio_dim, text_dim = sample.audio.shape[1], sample.text.shape[1]
        return DualEncoder(None, None, audio_dim, text_dim, config.embedding_dim, AUDIO_HIDDEN[config.audio_encoder])
    audio = encoders.build(config.audio_encoder, prepared.audio_weights, augment=config.augment == "specaugment")
    released = config.training == "frozen_released"
    text = TextEncoder(
        prepared.text_folder, config.text_pooling, None if released else config.text_layers, config.text_dropout
    )
    if released:
        audio.requires_grad_(False)
        text.requires_grad_(False)
    else:
        text.keep_top()
    hidden = AUDIO_HIDDEN[config.audio_encoder]
    return DualEncoder(audio, text, audio.dim, text.dim, config.embedding_dim, hidden)


def groups(model: DualEncoder, loss: nn.Module, config: RunConfig) -> list[dict]:
    """Optimiser groups with their learning rates: heads, audio, text, loss; empty ones left out."""
    members = {
        "heads": [*model.audio_head.parameters(), *model.text_head.parameters()],
        "audio": list(model.audio_encoder.parameters()) if model.audio_encoder is not None else [],
        "text": list(model.text_encoder.parameters()) if model.text_encoder is not None else [],
        "loss": list(loss.parameters()),
    }
    trained = {name: [p for p in parameters if p.requires_grad] for name, parameters in members.items()}
    return [
        {"params": parameters, "lr": config.rate(name), "peak": config.rate(name), "name": name}
        for name, parameters in trained.items()
        if parameters
    ]


@torch.no_grad()
def embed(
    model: nn.Module, inputs: Inputs, to: Callable[[Tensor], Tensor] = lambda tensor: tensor, batch_size: int = 256
) -> tuple[Tensor, Tensor]:
    """Embeddings of a whole split in evaluation mode: audio (clips, dim), text (captions, dim), float32 on the CPU.

    `to` moves a tensor to the model's device.
    """
    training = model.training
    model.eval()

    def run(rows: Tensor | Packed, batch: Callable, kind: int) -> Tensor:
        # Rows of like length together: less padding to compute.
        order = np.argsort(rows.lengths, kind="stable") if isinstance(rows, Packed) else np.arange(len(rows))
        done = []
        for start in range(0, len(order), batch_size):
            tensor, lengths = batch(order[start : start + batch_size])
            pair = (to(tensor), None if lengths is None else to(lengths))
            done.append(model(*((pair, None) if kind == 0 else (None, pair)))[kind].float().cpu())
        embedded = torch.cat(done)
        return torch.empty_like(embedded).index_copy_(0, torch.from_numpy(order), embedded)

    result = run(inputs.audio, inputs.audio_batch, 0), run(inputs.text, inputs.text_batch, 1)
    model.train(training)
    return result
