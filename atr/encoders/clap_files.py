"""CLAP models from the files that their authors publish, heard and read as their authors have it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atr.encoders import checkpoints, text
from atr.encoders.audio.frontends import LogMel
from atr.encoders.clap import Clap
from atr.system import hashes

Tensors = dict[str, Tensor]
GIVEN = ("laion:", "msclap:")
# How names in a file begin, what the file is then, and how it is given.
SIGNS = {
    "audio_branch.": ("LAION's CLAP", "as laion:<file>"),
    "audio_encoder.base.": ("Microsoft's CLAP", "as msclap:<file>"),
    "clap.base.": ("Microsoft's captioner clapcap, which embeds no sentences", "the file of a CLAP as msclap:<file>"),
    "audio_model.audio_encoder.": ("a ClapModel of transformers", "its folder as hf:<folder>"),
    "conv_block1.": ("an audio encoder of PANNs, which reads no sentences", "it to a run, as audio_weights"),
    "features.0.0.": ("an audio encoder of EfficientAT, which reads no sentences", "it to a run, as audio_weights"),
}


def load(name: str, device: str | torch.device = "cpu") -> "Laion":
    """A model by `laion:<file>` or `msclap:<file>`.

    ValueError names a file that is damaged, of another kind, or of a network that is not known here; FileNotFoundError
    one that is not there, or the tokenizer that it needs.
    """
    kind, _, file = name.partition(":")
    path = Path(file).expanduser()
    tensors = checkpoints.read(path)
    while all(name.startswith("module.") for name in tensors):
        tensors = _below("module.", tensors)
    none = ("no CLAP model", f"a file of LAION's or Microsoft's, where this holds {checkpoints.listed(tensors)}")
    what, way = next((SIGNS[sign] for sign in SIGNS if _below(sign, tensors)), none)
    if way != f"as {kind}:<file>":
        raise ValueError(f"{path}: {what}; give {way}")
    try:
        return Laion(path, tensors, device)
    except KeyError as error:
        raise ValueError(f"{path}: {what} of a kind that is not known here, without {error}; give another") from error


def _below(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


class Laion(Clap):
    """LAION's CLAP (Wu et al. 2023), as a ClapModel: HTSAT of any width, with or without fusion, and RoBERTa.

    fingerprint: a hash of the file and of the tokenizer's vocabulary.
    """

    def __init__(self, path: Path, tensors: Tensors, device: str | torch.device) -> None:
        from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

        check_mel(path, tensors, LogMel(48_000, 1024, 480, 64, 50, 14_000))
        hearing, audio = htsat(_below("audio_branch.", tensors))
        reading = _below("text_branch.", tensors)
        roberta = _transformer(reading) | {"layer_norm_eps": 1e-5}  # its own, not that of ClapConfig
        dim = len(tensors["text_projection.0.bias"])
        config = ClapConfig(audio_config=audio, text_config=roberta, projection_dim=dim)
        named = {f"audio_model.audio_encoder.{name}": tensor for name, tensor in hearing.items()}
        named |= {f"text_model.{name}": tensor for name, tensor in reading.items()}
        places = torch.arange(roberta["max_position_embeddings"])[None]  # in files of some ages alone
        named["text_model.embeddings.position_ids"] = places
        named["text_model.embeddings.token_type_ids"] = torch.zeros_like(places)
        named |= {name: tensors[name] for name in ("logit_scale_a", "logit_scale_t")}
        for side in ("audio_projection", "text_projection"):
            for name, tensor in _below(f"{side}.", tensors).items():
                named[f"{side}.linear{name.replace('0', '1', 1)}"] = tensor
        model = filled(ClapModel, config, path, named)
        tokenizer = tokenizer_of("roberta-base", path, roberta["vocab_size"])
        truncation = "fusion" if audio["enable_fusion"] else "rand_trunc"
        self.fingerprint = hashes.content_key(hashes.file_hash(path), sorted(tokenizer.get_vocab().items()))
        self._of(model, tokenizer, ClapFeatureExtractor(frequency_min=50, truncation=truncation), device)


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
        if name.startswith(("spectrogram_extractor.", "logmel_extractor.", "tscam_conv.", "head.")):
            continue
        if name.endswith(".attn_mask"):  # a function of the sizes
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
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
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


def _transformer(tensors: Tensors) -> dict[str, Any]:
    """What of a BertConfig or RobertaConfig the shapes of its tensors tell; heads are 64 wide."""
    words, width = tensors["embeddings.word_embeddings.weight"].shape
    return {
        "vocab_size": words,
        "hidden_size": width,
        "num_hidden_layers": len({name.split(".")[2] for name in tensors if name.startswith("encoder.layer.")}),
        "num_attention_heads": width // 64,
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


def filled(kind: Any, config: Any, path: Path, tensors: Tensors) -> Any:
    """A model of transformers with the tensors of a file. `OtherWeights`: they are not all of it, or others."""
    with torch.device("meta"):
        own = kind(config).state_dict()
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
