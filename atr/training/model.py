"""The dual encoder: audio and captions into one space."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from atr.config import RunConfig
from atr.corpora.corpus import Corpus
from atr.encoders import checkpoints, registry
from atr.encoders.inputs import encode
from atr.encoders.pooling import FrameRows, TextAwarePooling
from atr.encoders.text import TextEncoder
from atr.system.packed import POOLED, Batch
from atr.training import CHECKPOINT
from atr.training.distributed import fabric_of, norms
from atr.training.identity import Inputs, Preparation
from atr.training.preparation import prepare
from atr.training.records import RecordError, Run


def head(inputs: int, hidden: int | None, outputs: int) -> nn.Sequential:
    """Linear, ReLU, Linear (Mei et al. 2022); with `hidden` None one Linear (Tymofieiev 2025)."""
    if hidden is None:
        return nn.Sequential(nn.Linear(inputs, outputs))
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class Adapter(nn.Module):
    """What the text encoder says of a caption, and a little beside it: (B, dim) → (B, dim).

    The caption's embedding of length 1 plus RATIO times what a bottleneck of a quarter of its width makes of it, at
    first nothing (Gao et al., *CLIP-Adapter*, IJCV 2024, arXiv:2110.04544, the residual blend of section 3.2). So words
    that no training caption holds stay near those that mean the same.
    """

    RATIO = 0.1

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.bottleneck = head(dim, dim // 4, dim)
        for parameter in self.bottleneck[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, pooled: Tensor) -> Tensor:
        caption = nn.functional.normalize(pooled, dim=-1)
        return caption + self.RATIO * self.bottleneck(caption)


class LabelHead(nn.Module):
    """A sound as the names of what its encoder's own classifier hears: pooled output (B, audio_dim) → (B, text_dim).

    The mean of the names, as the text encoder embeds them, less the mean of all, weighted by the square roots of the
    classes' posteriors. Nothing is trained: what a trained model has to beat. names: (classes, text_dim).
    """

    names: Tensor

    def __init__(self, classifier: nn.Module, names: Tensor) -> None:
        super().__init__()
        self.classifier = classifier.requires_grad_(False)
        names = nn.functional.normalize(names, dim=1)
        self.register_buffer("names", names - names.mean(0))

    def forward(self, pooled: Tensor) -> Tensor:
        return self.classifier(pooled).sigmoid().sqrt() @ self.names


class DualEncoder(nn.Module):
    """Audio encoder → pooling → head and text encoder → head, both L2-normalised (Mei et al. 2022, section 2.2).

    audio_encoder: an `atr.encoders.AudioEncoder`. A batch of kind POOLED is what an encoder gave, so that one that
    stays fixed need not run again; one that is None has run before.
    With `padding` "released", all clips of a batch count as long as its longest, zeros and all.
    text_aware: pools what the audio head makes of each frame by caption. A clip then has no embedding of its own:
    wherever it says audio (…, dim) below, there are `FrameRows` (…, T, dim) instead.
    fixed_norm: the audio encoder's batch-norms keep the statistics that they came with, in training too.
    """

    def __init__(
        self,
        audio_encoder: Any,
        text_encoder: nn.Module | None,
        audio_dim: int,
        text_dim: int,
        dim: int,
        audio_hidden: int = 1,
        padding: str = "masked",
        heads: str = "mlp",
        text_aware: TextAwarePooling | None = None,
        fixed_norm: bool = False,
    ) -> None:
        super().__init__()
        self.fixed_norm = fixed_norm
        self.padding = padding
        self.audio_encoder, self.text_encoder = audio_encoder, text_encoder
        if heads == "adapter" and dim != text_dim:
            raise ValueError(f"head: 'adapter' keeps the text encoder's width; set embedding_dim={text_dim}, not {dim}")
        mlp = heads == "mlp"
        self.audio_head: nn.Module = head(audio_dim, audio_hidden * dim if mlp else None, dim)
        self.text_head: nn.Module = (
            Adapter(dim) if heads == "adapter" else head(text_dim, 2 * dim if mlp else None, dim)
        )
        self.text_aware = text_aware

    def train(self, mode: bool = True) -> "DualEncoder":
        """As of any module, but that batch-norms of the audio encoder stay as they are with `fixed_norm`."""
        super().train(mode)
        if self.fixed_norm and self.audio_encoder is not None:
            for norm in norms(self.audio_encoder):
                norm.eval()
        return self

    def embed_audio(self, audio: Batch) -> Any:
        """Of any kind that `encode` reads, or POOLED (B, audio_dim) → (B, dim), of length 1."""
        if self.text_aware is not None:
            frames, mask = self._frames(audio)
            return FrameRows(self.audio_head(frames) * mask[:, :, None], mask)
        return nn.functional.normalize(self.audio_head(self.pool_audio(audio)), dim=-1)

    def embed_text(self, text: Batch) -> Tensor:
        """Of any kind that the text encoder reads, or POOLED (B, text_dim) → (B, dim), of length 1 unless the model is
        text-aware.
        """
        embedding = self.text_head(self.pool_text(text))
        return embedding if self.text_aware is not None else nn.functional.normalize(embedding, dim=-1)

    def similarity(self, audio: Any, text: Tensor) -> Tensor:
        """Cosines (texts, clips) of the embeddings of `forward`."""
        if self.text_aware is None:
            return text @ audio.T
        return self.text_aware.similarity(audio.values, audio.mask, text)

    def pool_audio(self, audio: Batch) -> Tensor:
        """Output (B, audio_dim) of the encoder."""
        return audio.values if audio.kind == POOLED else self.audio_encoder.pool(*self._frames(audio))

    def _frames(self, audio: Batch) -> tuple[Tensor, Tensor]:
        return encode(self.audio_encoder, audio._replace(lengths=None) if self.padding == "released" else audio)

    def pool_text(self, text: Batch) -> Tensor:
        """Output (B, text_dim) of the encoder."""
        if text.kind == POOLED:
            return text.values
        assert self.text_encoder is not None
        return self.text_encoder(text)

    def forward(
        self, audio: Batch | None, text: Batch | None, pooled: bool = False
    ) -> tuple[Tensor | FrameRows | None, Tensor | None]:
        """Embeddings of a batch of each side, or with `pooled` the encoders' outputs; None gives None."""
        if pooled:
            return audio and self.pool_audio(audio), text and self.pool_text(text)
        return audio and self.embed_audio(audio), text and self.embed_text(text)

    def trainable_state(self) -> dict[str, Tensor]:
        """The tensors that training changes: trained parameters, and buffers (batch statistics)."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        fixed = {name for name, _ in self.named_parameters()} - trained
        return {name: tensor for name, tensor in self.state_dict().items() if name not in fixed}


def build(config: RunConfig, prepared: Preparation) -> DualEncoder:
    """The model of a config, heads drawn from PyTorch's generator; seed that first."""
    sample = next(iter(prepared.splits.values()))
    if config.training in ("frozen", "external"):
        audio_dim, text_dim = sample.audio.data.shape[1], sample.text.data.shape[1]
        if config.training == "external":  # has had heads of its own
            network = DualEncoder(None, None, audio_dim, text_dim, config.embedding_dim)
            network.audio_head = network.text_head = nn.Sequential()
            return network
        if config.head == "labels":
            encoder = registry.with_labels(config.audio_encoder, prepared.audio_weights)
            words = prepared.words.get("labels")
            # Without words it is built to be restored: names are in its checkpoint.
            names = words.rows.data if words else torch.zeros(len(encoder.labels()), text_dim)
            network = DualEncoder(None, None, audio_dim, text_dim, text_dim)
            network.audio_head, network.text_head = LabelHead(encoder.classifier, names), nn.Sequential()
            return network
        hidden = registry.facts(config.audio_encoder).head_hidden
        return DualEncoder(None, None, audio_dim, text_dim, config.embedding_dim, hidden, heads=config.head)
    options = (config.augment, config.audio_dropout, config.pooling, config.audio_state_layers)
    audio = registry.build(config.audio_encoder, prepared.audio_weights, *options)
    released = config.training == "frozen_released"
    text = TextEncoder(prepared.text_folder, config.text_pooling, config.state_layers, config.text_dropout)
    if released:
        audio.requires_grad_(False)
        text.requires_grad_(False)
    else:
        text.keep_top()
    dim = config.embedding_dim
    pooling = TextAwarePooling(dim, **config.text_aware, variant=config.recipe) if config.text_aware else None
    widths = (audio.dim, text.dim, dim, audio.head_hidden)
    return DualEncoder(audio, text, *widths, config.padding, config.head, pooling, config.fixed_norm)


def parameter_groups(model: DualEncoder, loss: nn.Module, config: RunConfig) -> list[dict]:
    """Optimiser groups with their learning rates: heads, audio, text, pooling, loss; empty ones and what is fixed left
    out.
    """
    encoders = {"audio": model.audio_encoder, "text": model.text_encoder}
    heads = {"audio": model.audio_head, "text": model.text_head}
    if config.fixed is not None:
        encoders[config.fixed] = None
        if config.fixed_head:
            heads.pop(config.fixed)
    members = {"heads": [parameter for head in heads.values() for parameter in head.parameters()]}
    members |= {name: [] if encoder is None else list(encoder.parameters()) for name, encoder in encoders.items()}
    members["pooling"] = [] if model.text_aware is None else list(model.text_aware.parameters())
    members["loss"] = list(loss.parameters())
    trained = {name: [p for p in parameters if p.requires_grad] for name, parameters in members.items()}
    return [
        {"params": parameters, "lr": config.rate(name), "peak": config.rate(name), "name": name}
        for name, parameters in trained.items()
        if parameters
    ]


def restore(run: Run, prepared: Preparation, config: RunConfig | None = None) -> DualEncoder:
    """The network of a finished run's selected epoch, in evaluation mode, over what is prepared for its config, or for
    `config`, which says the same of the network. RecordError: the checkpoint does not fit.
    """
    config = config or run.config
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)  # as in training: a random encoder that stays random is in no checkpoint
        return load(build(config, prepared), run).eval()


def restore_split(
    run: Run,
    corpus: Corpus,
    split: str = "test",
    device: str = "cpu",
    quiet: bool = True,
    config: RunConfig | None = None,
) -> tuple[Any, DualEncoder, Inputs, Callable[[Tensor], Tensor]]:
    """A finished run's selected epoch over one split of a corpus: the network as its device and precision want it, the
    network as it is, what it reads, and what moves that to the device. config: as in `restore`.

    Through the inputs that training has: what runs share, such as a frozen encoder's output, is computed once.
    """
    config = config or run.config
    with torch.random.fork_rng():
        prepared = prepare(config, corpus, (split,), quiet, device)
    fabric, network = fabric_of(config, device), restore(run, prepared, config)
    return fabric.setup(network), network, prepared.splits[split], lambda tensor: tensor.to(fabric.device)


def load(network: DualEncoder, run: Run) -> DualEncoder:
    """The network with the weights of a finished run's selected epoch; ValueError if it is built otherwise."""
    path, saved, own = run.path / CHECKPOINT, run.checkpoint, network.trainable_state()
    mend = "train anew, with the run's folder moved away"
    shapes = [{name: list(tensor.shape) for name, tensor in tensors.items()} for tensors in (saved, own)]
    if shapes[0] != shapes[1]:
        differences = [
            f"{name} ({' instead of '.join(str(shape[name]) if name in shape else 'none' for shape in shapes)})"
            for name in {**shapes[0], **shapes[1]}
            if shapes[0].get(name) != shapes[1].get(name)
        ]
        raise RecordError(
            f"{path}: the checkpoint holds other tensors than the config builds: {checkpoints.name_list(differences)}; "
            f"{mend}"
        )
    try:
        checkpoints.check(path, saved, own, mend)
    except ValueError as error:
        raise RecordError(str(error)) from None
    network.load_state_dict(saved, strict=False)
    return network
