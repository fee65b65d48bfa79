"""Networks of the papers' size with random weights: what a step costs does not depend on what was learned."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from atr.encoders import registry, text

# audio encoder, fields of BertConfig (None: bert-base-uncased), D
SIZES: dict[str, tuple[str, dict[str, Any], int]] = {
    "paper": ("resnet38", {}, 1024),
    "small": (
        "cnn6",
        {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
        16,
    ),
}


def fields(size: str, folder: Path) -> dict[str, Any]:
    """Fields of a RunConfig as Mei et al. 2022 have them, their weights drawn and kept below `folder`."""
    name, _, dim = SIZES[size]
    torch.manual_seed(0)
    weights = folder / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in registry.build(name).state_dict().items()}, weights)
    return {
        "audio_encoder": name,
        "audio_weights": str(weights),
        "text_encoder": str(bert(size, folder / "bert")),
        "text_pooling": "first",
        "text_layers": None,
        "embedding_dim": dim,
        "sampler": "all_captions",
    }


def bert(size: str, folder: Path) -> Path:
    """A BertModel of BERT-base's architecture with its vocabulary, which MiniLM shares."""
    from transformers import AutoTokenizer, BertConfig, BertModel
    from transformers.utils import logging

    logging.disable_progress_bar()

    vocabulary = text.folder("minilm") / "vocab.txt"
    words = len(vocabulary.read_text(encoding="utf-8").splitlines())
    BertModel(BertConfig(vocab_size=words, **SIZES[size][1])).save_pretrained(folder)
    AutoTokenizer.from_pretrained(text.folder("minilm")).save_pretrained(folder)
    return folder
