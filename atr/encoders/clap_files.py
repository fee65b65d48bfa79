"""CLAP models from the files that their authors publish, heard and read as their authors have it."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atr.corpora.audio import from_int16
from atr.encoders import checkpoints, clap, text
from atr.encoders.audio.frontends import LogMel
from atr.encoders.audio.panns import ConvBlock, Panns
from atr.encoders.clap import Clap
from atr.system import hashes, places

Tensors = dict[str, Tensor]
PREFIXES = ("laion:", "msclap:")
# How names in a file begin, what the file is then, and how it is given.
SIGNS = {
    "audio_branch.": ("LAION's CLAP", "as laion:<file>"),
    "audio_encoder.base.": ("Microsoft's CLAP", "as msclap:<file>"),
    "clap.base.": ("Microsoft's captioner clapcap, which embeds no sentences", "the file of a CLAP as msclap:<file>"),
    "audio_model.audio_encoder.": ("a ClapModel of transformers", "its folder as hf:<folder>"),
    "conv_block1.": ("an audio encoder of PANNs, which reads no sentences", "it to a run, as audio_weights"),
    "features.0.0.": ("an audio encoder of EfficientAT, which reads no sentences", "it to a run, as audio_weights"),
}


def load(name: str, device: str | torch.device = "cpu") -> "Laion | LaionPann | Microsoft":
    """A model by `laion:<file>` or `msclap:<file>`.

    ValueError names a file that is damaged, of another kind, or of a network that is not known here; FileNotFoundError
    one that is not there, or the tokenizer that it needs.
    """
    kind, path = locate(name)
    tensors = checkpoints.read(path)
    while all(name.startswith("module.") for name in tensors):
        tensors = _below("module.", tensors)
    none = ("no CLAP model", f"a file of LAION's or Microsoft's, where this holds {checkpoints.name_list(tensors)}")
    what, way = next((SIGNS[sign] for sign in SIGNS if _below(sign, tensors)), none)
    if way != f"as {kind}:<file>":
        raise ValueError(f"{path}: {what}; give {way}")
    try:
        if kind == "laion":
            return (LaionPann if _below("audio_branch.conv_block1.", tensors) else Laion)(path, tensors, device)
        of_2023 = _below("audio_encoder.base.htsat.", tensors)
        return (Microsoft2023 if of_2023 else Microsoft2022)(path, tensors, device)
    except (KeyError, IndexError, TypeError, ZeroDivisionError) as error:  # sizes are read off tensors as they come
        reason = f"without {error}" if isinstance(error, KeyError) else f"of other shapes ({error})"
        raise ValueError(f"{path}: {what} of a kind that is not known here, {reason}; give another file") from error


def locate(name: str) -> tuple[str, Path]:
    """Kind and path of `laion:<file>` or `msclap:<file>`: a name alone may lie among the checkpoints of ATR_HOME."""
    kind, _, file = name.partition(":")
    path = Path(file).expanduser()
    checkpoint = places.home() / "checkpoints" / path
    return kind, path if path.exists() or not checkpoint.exists() else checkpoint


def _below(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


class Laion(Clap):
    """LAION's CLAP (Wu et al. 2023), as a ClapModel: HTSAT of any width, with or without fusion, and RoBERTa.

    fingerprint: a hash of the file and of the tokenizer's vocabulary.
    """

    def __init__(self, path: Path, tensors: Tensors, device: str | torch.device) -> None:
        from transformers import ClapConfig, ClapModel

        check_mel(path, tensors, LogMel(48_000, 1024, 480, 64, 50, 14_000))
        hearing, audio = htsat(_below("audio_branch.", tensors))
        roberta, named = _reading(tensors)
        dim = len(tensors["text_projection.0.bias"])
        config = ClapConfig(audio_config=audio, text_config=roberta, projection_dim=dim)
        named |= {f"audio_model.audio_encoder.{name}": tensor for name, tensor in hearing.items()}
        named |= {name: tensors[name] for name in ("logit_scale_a", "logit_scale_t")} | _projection("audio", tensors)
        self._take(path, fill(ClapModel, config, path, named), roberta, audio["enable_fusion"], device)

    def _take(self, path: Path, model: Any, roberta: dict[str, Any], fused: bool, device: str | torch.device) -> None:
        from transformers import ClapFeatureExtractor

        tokenizer = tokenizer_of("roberta-base", path, roberta["vocab_size"])
        self.fingerprint = _fingerprint(path, tokenizer)
        truncation = "fusion" if fused else "rand_trunc"
        self._of(model, tokenizer, ClapFeatureExtractor(frequency_min=50, truncation=truncation), device)


class LaionPann(Laion):
    """LAION's CLAP with PANN-14 for an audio tower: CNN14 of any widths, with or without fusion, and RoBERTa."""

    def __init__(self, path: Path, tensors: Tensors, device: str | torch.device) -> None:
        from transformers import ClapTextConfig, ClapTextModelWithProjection

        check_mel(path, tensors, LogMel(48_000, 1024, 480, 64, 50, 14_000))
        hearing = _below("audio_branch.", tensors)
        self.hears: Any = FusedCnn14(path, hearing)
        roberta, named = _reading(tensors)
        config = ClapTextConfig(**roberta, projection_dim=len(tensors["text_projection.0.bias"]))
        model = fill(ClapTextModelWithProjection, config, path, named)
        names = {f"{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")}
        self.projection: Any = nn.Sequential(
            nn.Linear(*tensors["audio_projection.0.weight"].shape[::-1]),
            nn.ReLU(),
            nn.Linear(*tensors["audio_projection.2.weight"].shape[::-1]),
        )
        self.projection.load_state_dict({name: tensors[f"audio_projection.{name}"] for name in names})
        self.hears, self.projection = self.hears.to(device).eval(), self.projection.to(device).eval()
        self._take(path, model, roberta, self.hears.fused, device)

    def _sounds(self, clips: list[Any]) -> Tensor:
        features = torch.stack([one for one, _ in clips]).to(self.device)
        longer = torch.tensor([longer for _, longer in clips], device=self.device)
        return self.projection(self.hears(features, longer))


class FusedCnn14(nn.Module):
    """LAION's PANN-14: log-mels (B, 1, frames, bands) → (B, width).

    With fusion, (B, 4, frames, bands), of a longer sound the whole, shrunk, and three parts, which are mixed in behind
    the first block. LAION's code marks a sound at random as longer where none of a batch is, in evaluation too: not so
    here, where no sound's embedding depends on its batch.
    """

    def __init__(self, path: Path, tensors: Tensors) -> None:
        from transformers import ClapAudioConfig
        from transformers.models.clap.modeling_clap import ClapAudioAFFBlock

        super().__init__()
        self.network, self.fused = cnn14(path, tensors), "mel_conv2d.0.weight" in tensors
        if self.fused:
            width = len(tensors["mel_conv2d.0.weight"])
            convolution = nn.Conv2d(1, width, 5, stride=(6, 2), padding=2)
            self.mel_conv2d = nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())
            self.fusion_model = ClapAudioAFFBlock(ClapAudioConfig(patch_embeds_hidden_size=width))
            for name in ("mel_conv2d", "fusion_model"):
                part, held = self.get_submodule(name), _below(f"{name}.", tensors)
                checkpoints.fit(path, held, part.state_dict(), f"PANN-14's {name}")
                part.load_state_dict(held)

    def forward(self, features: Tensor, longer: Tensor) -> Tensor:
        bands = features.permute(0, 3, 1, 2)
        x = self.network.bn0(bands.flatten(2)).unflatten(2, bands.shape[2:]).permute(0, 2, 3, 1)
        parts = x[:, 1:]
        for number, name in enumerate(self.network.blocks):
            x, _ = self.network.get_submodule(name)(x[:, :1] if number == 0 else x, None)
            if number == 0 and self.fused and longer.any():
                local = self.mel_conv2d(parts[longer].flatten(0, 1)[:, None]).unflatten(0, (-1, parts.shape[1]))
                local = local.transpose(1, 2).flatten(2, 3)[:, :, : x.shape[2]]  # the three parts, one after another
                x[longer] = self.fusion_model(x[longer], local)
        return self.network.summary(x.mean(3).transpose(1, 2))


class Microsoft(Clap):
    """Microsoft's CLAP: an audio and a text tower with a `Projection` each. Its two years are subclasses.

    Of a sound longer than `seconds` a random part is heard; a shorter one again and again. Captions are read whole.
    fingerprint: a hash of the file and of the tokenizer's vocabulary.
    """

    sample_rate, speaker = 44_100, ""

    def __init__(self, path: Path, tensors: Tensors, device: str | torch.device) -> None:
        hearing, reading = _below("audio_encoder.base.", tensors), _below("caption_encoder.base.", tensors)
        hears, bands = self._hearing(path, hearing)
        reads, words, self.longest = self._reading(path, reading)
        logmel = LogMel(self.sample_rate, 1024, hop=320, bands=64, low=50, high=14_000)
        fb = logmel.mel.mel_scale.fb
        checkpoints.fit(path, {"logmel_extractor.melW": bands}, {"logmel_extractor.melW": fb}, "this frontend")
        fb.copy_(bands)  # the file's own: those of 2023 are for 32 kHz, though its sounds are not
        parts = {"logmel": logmel, "hears": hears, "reads": reads}
        for side in ("audio", "caption"):
            projection = _below(f"{side}_encoder.projection.", tensors)
            parts[side] = Projection(*projection["linear1.weight"].shape[::-1])
            checkpoints.fit(path, projection, parts[side].state_dict(), "Microsoft's projection")
            parts[side].load_state_dict(projection)
        self.parts: Any = nn.ModuleDict(parts).to(device).eval()
        self.device, self.dim = device, len(tensors["audio_encoder.projection.linear1.weight"])
        self.tokenizer = tokenizer_of(self.speaker, path, words)
        self.fingerprint = _fingerprint(path, self.tokenizer)

    def _hearing(self, path: Path, tensors: Tensors) -> tuple[nn.Module, Tensor]:
        """The audio tower, and the mel bands of its frontend (513, 64)."""
        raise NotImplementedError

    def _reading(self, path: Path, tensors: Tensors) -> tuple[nn.Module, int, int]:
        """The text tower, the words that it knows and the tokens that it reads."""
        raise NotImplementedError

    def _pool(self, features: Tensor) -> Tensor:
        """(B, bands, frames) in dB → (B, width)."""
        raise NotImplementedError

    def _sounds(self, clips: list[Any]) -> Tensor:
        samples = torch.from_numpy(np.stack(clips))
        features = self.parts["logmel"](from_int16(samples.to(self.device)))
        return self.parts["audio"](self._pool(features))

    def prepare(self, waveform: np.ndarray, seed: int) -> np.ndarray:
        size = round(self.seconds * self.sample_rate)
        if len(waveform) <= size:
            return np.resize(waveform, size)
        with clap.drawing_from(seed, waveform):
            start = np.random.randint(len(waveform) - size)
        return waveform[start : start + size]


class Microsoft2022(Microsoft):
    """CNN14 and BERT (Elizalde et al. 2022, "CLAP: Learning Audio Concepts From Natural Language Supervision")."""

    seconds, speaker = 5.0, "bert-base-uncased"

    def _hearing(self, path: Path, tensors: Tensors) -> tuple[nn.Module, Tensor]:
        return cnn14(path, tensors), tensors["logmel_extractor.melW"]

    def _reading(self, path: Path, tensors: Tensors) -> tuple[nn.Module, int, int]:
        from transformers import BertConfig, BertModel

        sizes = _transformer(tensors)
        model = fill(BertModel, BertConfig(**sizes), path, tensors, strict=False)
        return model, sizes["vocab_size"], sizes["max_position_embeddings"]

    def _pool(self, features: Tensor) -> Tensor:
        return self.parts["hears"].summary(self.parts["hears"].encode(features)[0])

    def _captions(self, batch: Any) -> Tensor:
        return self.parts["caption"](self.parts["reads"](**batch).last_hidden_state[:, 0])


class Microsoft2023(Microsoft):
    """HTSAT and GPT-2 (Elizalde et al. 2023, "Natural Language Supervision for General-Purpose Audio
    Representations")."""

    seconds, speaker = 7.0, "gpt2"

    def __init__(self, path: Path, tensors: Tensors, device: str | torch.device) -> None:
        super().__init__(path, tensors, device)
        self.tokenizer.add_special_tokens({"pad_token": "!"})  # which is token 0

    def _hearing(self, path: Path, tensors: Tensors) -> tuple[nn.Module, Tensor]:
        from transformers import ClapAudioConfig, ClapAudioModel

        tensors = _below("htsat.", tensors)
        named, sizes = htsat(tensors)
        named = {f"audio_encoder.{name}": tensor for name, tensor in named.items()}
        model = fill(ClapAudioModel, ClapAudioConfig(**sizes), path, named, strict=False)
        return model, tensors["logmel_extractor.melW"]

    def _reading(self, path: Path, tensors: Tensors) -> tuple[nn.Module, int, int]:
        from transformers import GPT2Config, GPT2Model

        words, places, width = len(tensors["wte.weight"]), len(tensors["wpe.weight"]), tensors["wte.weight"].shape[1]
        config = GPT2Config(
            vocab_size=words,
            n_positions=places,
            n_embd=width,
            n_layer=len({name.split(".")[1] for name in tensors if name.startswith("h.")}),
            n_head=width // 64,
            bos_token_id=None,
            eos_token_id=None,
        )
        return fill(GPT2Model, config, path, tensors, strict=False), words, places

    def _pool(self, features: Tensor) -> Tensor:
        return self.parts["hears"](input_features=features.transpose(1, 2)[:, None]).pooler_output

    def _tokens(self, captions: list[str]) -> list[list[int]]:
        return super()._tokens([f"{caption} <|endoftext|>" for caption in captions])

    def _captions(self, batch: Any) -> Tensor:
        """The state of the last token before padding, as the authors find it: each "!" moves it one to the left."""
        states = self.parts["reads"](**batch).last_hidden_state
        last = batch["input_ids"].ne(0).sum(1) - 1
        return self.parts["caption"](states[torch.arange(len(states)), last])


class Projection(nn.Module):
    """Microsoft's: (B, inputs) → (B, dim)."""

    def __init__(self, inputs: int, dim: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(inputs, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear1(x)
        return self.layer_norm(x + self.linear2(nn.functional.gelu(x)))


class Cnn14(Panns):
    """CNN14 of any widths, with the first layer of its head."""

    def __init__(self, blocks: dict[str, ConvBlock], dim: int, embedding: int) -> None:
        super().__init__(blocks, dim, None, "mean")
        self.fc1 = nn.Linear(dim, embedding)

    def summary(self, frames: Tensor) -> Tensor:
        """(B, T, dim) → (B, embedding)."""
        return self.fc1(frames.amax(1) + frames.mean(1)).relu()


def cnn14(path: Path, tensors: Tensors) -> Cnn14:
    widths = [1, *(len(tensors[f"conv_block{number}.conv1.weight"]) for number in range(1, 7))]
    with torch.device("meta"):
        blocks = {
            f"conv_block{number}": ConvBlock(inputs, outputs, dropout=0.0, pooled=number < 6)
            for number, (inputs, outputs) in enumerate(pairwise(widths), 1)
        }
        network = Cnn14(blocks, *tensors["fc1.weight"].shape[::-1])
    own = network.state_dict()
    checkpoints.fit(path, {name: tensor for name, tensor in tensors.items() if name in own}, own, "CNN14")
    network.load_state_dict({name: tensors[name].to(own[name].dtype, copy=True) for name in own}, assign=True)
    return network


def _fingerprint(path: Path, tokenizer: Any) -> str:
    return hashes.content_key(hashes.file_hash(path), sorted(tokenizer.get_vocab().items()))


def htsat(tensors: Tensors) -> tuple[Tensors, dict[str, Any]]:
    """HTSAT's tensors by the names of a ClapAudioEncoder, and what of a ClapAudioConfig their shapes tell."""
    stages = {name.split(".")[1] for name in tensors if name.startswith("layers.")}
    depths, heads = [], []
    for stage in range(len(stages)):
        blocks = {name.split(".")[3] for name in tensors if name.startswith(f"layers.{stage}.blocks.")}
        depths.append(len(blocks))
        heads.append(tensors[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"].shape[1])
    named = {}
    for name, tensor in tensors.items():
        unused = ("spectrogram_extractor.", "logmel_extractor.", "tscam_conv.", "head.")
        if name.startswith(unused) or name.endswith(".attn_mask"):
            continue
        for theirs, ours in (
            ("bn0.", "batch_norm."),
            (".norm1.", ".layernorm_before."),
            (".norm2.", ".layernorm_after."),
            (".mlp.fc1.", ".intermediate.dense."),
            (".mlp.fc2.", ".output.dense."),
            (".attn.proj.", ".attention.output.dense."),
            (".attn.", ".attention.self."),
        ):
            name = name.replace(theirs, ours)
        if ".qkv." in name:
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=False):
                named[name.replace("qkv", part)] = rows
        else:
            named[name] = tensor
    fused = "patch_embed.mel_conv2d.weight" in tensors
    return named, {
        "patch_embeds_hidden_size": len(tensors["patch_embed.proj.weight"]),
        "hidden_size": len(tensors["norm.weight"]),
        "depths": depths,
        "num_attention_heads": heads,
        "enable_fusion": fused,
        "fusion_type": "aff_2d" if fused else None,
    }


def _reading(tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """What of a ClapTextConfig the shapes of LAION's RoBERTa tell, and its tensors by the names of a ClapModel."""
    reading = _below("text_branch.", tensors)
    roberta = _transformer(reading) | {"layer_norm_eps": 1e-5}  # its own, not that of ClapConfig
    named = {f"text_model.{name}": tensor for name, tensor in reading.items()}
    # Some files hold these, of older versions of transformers; a ClapModel always does.
    places = torch.arange(roberta["max_position_embeddings"])[None]
    named["text_model.embeddings.position_ids"] = places
    named["text_model.embeddings.token_type_ids"] = torch.zeros_like(places)
    return roberta, named | _projection("text", tensors)


def _projection(side: str, tensors: Tensors) -> Tensors:
    """A side's projection by the names of a ClapModel."""
    layers = _below(f"{side}_projection.", tensors)
    return {f"{side}_projection.linear{name.replace('0', '1', 1)}": tensor for name, tensor in layers.items()}


def _transformer(tensors: Tensors) -> dict[str, Any]:
    """What of a BertConfig or RobertaConfig the shapes of its tensors tell; heads are 64 wide."""
    words = tensors["embeddings.word_embeddings.weight"]
    return {
        "vocab_size": len(words),
        "hidden_size": words.shape[1],
        "num_hidden_layers": len({name.split(".")[2] for name in tensors if name.startswith("encoder.layer.")}),
        "num_attention_heads": words.shape[1] // 64,
        "intermediate_size": len(tensors["encoder.layer.0.intermediate.dense.bias"]),
        "max_position_embeddings": len(tensors["embeddings.position_embeddings.weight"]),
        "type_vocab_size": len(tensors["embeddings.token_type_embeddings.weight"]),
    }


def check_mel(path: Path, tensors: Tensors, logmel: LogMel) -> None:
    """ValueError: a file's network was trained on other mel bands than `logmel` gives."""
    ours = logmel.mel.mel_scale.fb
    for name, theirs in tensors.items():
        if name.endswith("logmel_extractor.melW") and not (
            theirs.shape == ours.shape and torch.allclose(theirs.float(), ours, atol=1e-4)
        ):
            raise ValueError(f"{path}: trained on another frontend than is known here: {name}; give another file")


def fill(kind: Any, config: Any, path: Path, tensors: Tensors, strict: bool = True) -> Any:
    """A model of transformers with the tensors of a file. `OtherWeights`: not all of it, or, if strict, more."""
    with text.naming(path), torch.device("meta"):
        own = kind(config).state_dict()
    if not strict:
        tensors = {name: tensor for name, tensor in tensors.items() if name in own}
    checkpoints.fit(path, tensors, own, f"a {kind.__name__}")
    with text.naming(path):
        return kind.from_pretrained(None, config=config, state_dict=tensors, dtype=torch.float32)


def tokenizer_of(name: str, path: Path, words: int) -> Any:
    """The tokenizer that a file was trained with. ValueError unless it has as many words as the file has embeddings."""
    from transformers import AutoTokenizer

    folder = text.folder(name, role="tokenizer", weights=False)
    with text.naming(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if len(tokenizer) != words:
        raise ValueError(
            f"{folder}: a tokenizer of {len(tokenizer):,} words, where {path} has {words:,}; fetch it again"
        )
    return tokenizer
