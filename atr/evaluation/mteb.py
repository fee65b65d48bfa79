"""MTEB's models here, `atr evaluate mteb:<name>`, and ours there, `mteb.evaluate(Encoder(embedder), tasks)`."""

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from atr.inference.embedder import Embedder
from atr.system import hashes

BATCH, TASK = 16, "ClothoT2ARetrieval.v2"  # the task whose prompts a model may have


def _mteb() -> Any:
    try:
        return import_module("mteb")
    except ImportError as error:
        raise ValueError(f"MTEB: {error}; it does not come with atr: pip install 'mteb[audio]'") from None


class Encoder:
    """A run or CLAP model as MTEB takes one (its `EncoderProtocol`). ValueError: a text-aware one; no MTEB."""

    def __init__(self, embedder: Embedder) -> None:
        if embedder.text_aware:
            raise ValueError(f"{embedder.name}: text-aware, its sounds have no embedding that MTEB could compare")
        stated = {"name": f"atr/{embedder.name}", "revision": embedder.fingerprint, "modalities": ["audio", "text"]}
        self.embedder, self.mteb_model_meta = embedder, _mteb().models.ModelMeta.create_empty(stated)

    def encode(self, inputs: Iterable[dict[str, Any]], **_: Any) -> np.ndarray:
        """(rows, dim) of batches of texts, or of sounds with "array" (samples,) and "sampling_rate"."""
        return torch.cat([self._batch(**batch) for batch in inputs]).numpy()

    def _batch(self, text: Sequence[str] = (), audio: Sequence[Any] | None = None, **_: Any) -> Tensor:
        if audio is None:
            return self.embedder.sentences(text)
        return self.embedder.sounds([(np.asarray(one["array"], np.float32), one["sampling_rate"]) for one in audio])

    def similarity(self, one: Any, other: Any) -> Tensor:
        return torch.as_tensor(one) @ torch.as_tensor(other).T

    def similarity_pairwise(self, one: Any, other: Any) -> Tensor:
        return functional.cosine_similarity(torch.as_tensor(one), torch.as_tensor(other), dim=-1)


class MtebDataset(list):
    """What MTEB's models take for a data set: `features` names what its rows have."""

    features = property(lambda self: self[0].keys())


class Mteb:
    """A model of MTEB's list as `register.model` takes one, but for rates. ValueError: no MTEB, other modalities."""

    def __init__(self, name: str, device: str | None = None) -> None:
        mteb = _mteb()
        meta = mteb.get_model_meta(name)
        if not {"audio", "text"} <= set(meta.modalities):
            raise ValueError(f"mteb:{name}: embeds {', '.join(meta.modalities)}; name a model of audio and text")
        self.model = mteb.get_model(name, device=device)
        self.about = {"task_metadata": mteb.get_task(TASK).metadata, "hf_split": "test", "hf_subset": "default"}
        self.fingerprint = hashes.content_key("mteb", meta.name, meta.revision, mteb.__version__)

    def sounds(self, sounds: Sequence[tuple[np.ndarray, int]]) -> Any:
        return self._encode("document", [{"audio": {"array": w, "sampling_rate": rate}} for w, rate in sounds])

    def sentences(self, texts: Sequence[str]) -> Any:
        return self._encode("query", [{"text": text} for text in texts])

    def _encode(self, role: str, rows: list[dict[str, Any]]) -> Any:
        loader: Any = DataLoader(cast(Any, MtebDataset(rows)), BATCH, collate_fn=columns)
        part = _mteb().types.PromptType(role)
        return self.model.encode(loader, **self.about, prompt_type=part, show_progress_bar=False)


def columns(batch: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in batch] for name in batch[0]}
