"""What a comparison with released code needs: its functions as they stand, and networks of the papers' size.

Functions and classes are taken without the imports of their files, of trackers, loaders and downloads that a
measurement has no use for, and that need not be installed. Networks have random weights: what a step costs does not
depend on what was learned.
"""

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from atr.encoders import registry, text

SMALL_BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
# audio encoder, fields of BertConfig (None: bert-base-uncased), D
NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "paper": ("resnet38", {}, 1024),
    "cnn14": ("cnn14_mei2022", {}, 1024),
    "mn04": ("mn04", text.MINILM_SIZES, 1024),
    "small": ("cnn6", SMALL_BERT, 16),
    "smallest": ("compact", SMALL_BERT, 16),
}


def definitions(file: Path, names: Sequence[str], scope: dict[str, Any]) -> dict[str, Any]:
    """The functions, classes and methods ("Class.method") of a file by their names, run with the names of `scope`.

    ValueError: the file is not there or does not define one of them.
    """
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror}); give a clone of the released code") from error
    nodes: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            nodes[node.name] = node
        if isinstance(node, ast.ClassDef):
            nodes |= {f"{node.name}.{own.name}": own for own in node.body if isinstance(own, ast.FunctionDef)}
    if missing := [name for name in names if name not in nodes]:
        raise ValueError(f"{file}: does not define {', '.join(missing)}; give a clone of the released code")
    space = dict(scope)
    for name in names:
        exec(compile(ast.Module([nodes[name]], []), str(file), "exec"), space)
    return {name: space[name.rpartition(".")[2]] for name in names}


def random_networks(size: str, folder: Path) -> dict[str, Any]:
    """Fields of a RunConfig as Mei et al. 2022 have them, their weights drawn and kept below `folder`."""
    name, _, dim = NETWORKS[size]
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
    BertModel(BertConfig(vocab_size=words, **NETWORKS[size][1])).save_pretrained(folder)
    AutoTokenizer.from_pretrained(text.folder("minilm")).save_pretrained(folder)
    return folder
