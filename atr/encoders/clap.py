"""CLAP as published, an external baseline: its embeddings of audio and captions under this project's evaluation."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from atr.corpora.audio import from_int16
from atr.encoders import text
from atr.system import hashes
from atr.system.packed import RaggedArray

AUDIO_BATCH, TEXT_BATCH = 32, 128
CLAP_VERSION = 2  # raised when the same model would give other embeddings
FILES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
TAKES = (
    "a CLAP model (--clap) is the folder, or the name on the Hugging Face Hub, of a ClapModel of transformers, such as "
    "laion/clap-htsat-unfused"
)


def folder(name: str, fetch: bool = True) -> Path:
    """Local folder of a CLAP model, as `text.folder`; ValueError for what is no ClapModel of transformers."""
    path = Path(name).expanduser()
    if path.is_file() or path.suffix in FILES:
        raise ValueError(
            f"{name}: {'a file' if path.is_file() else 'no such file'}, and {TAKES}; convert LAION's files by "
            "convert_clap_original_pytorch_to_hf.py of transformers' repository, or take them converted from the Hub "
            "(or name them as they are, laion:<file>, and Microsoft's msclap:<file>)"
        )
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(f"{name}: a folder without config.json; {TAKES}")
    place = text.folder(name, fetch, "CLAP model")
    try:
        config = json.loads((place / "config.json").read_text(encoding="utf-8"))
        kind = config.get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{place / 'config.json'}: not the configuration of a model ({error}); {TAKES}") from None
    if "training" in config and kind is None:
        raise ValueError(f"{name}: the folder of a run, which --run takes; {TAKES}")
    if kind != "clap":
        raise ValueError(f"{name}: {f'a model of type {kind!r}' if kind else 'no model of transformers'}; {TAKES}")
    return place


class Clap:
    """A ClapModel of transformers (Wu et al. 2023, "Large-Scale Contrastive Language-Audio Pretraining"), in evaluation
    mode and float32, with or without feature fusion.

    folder: the model with its tokenizer and preprocessor_config.json, as `folder` gives it. `seconds`: of the longest
    clip that it hears whole. ValueError, and FileNotFoundError for a missing file, name the folder.
    """

    longest = 77  # tokens, as LAION cuts captions

    def __init__(self, folder: Path, device: str | torch.device = "cpu") -> None:
        from transformers import ClapFeatureExtractor, ClapModel

        if not (folder / "preprocessor_config.json").is_file():
            raise FileNotFoundError(f"{folder}: no preprocessor_config.json; fetch or save the whole CLAP processor")
        model: Any = text.load_model(ClapModel, folder)
        tokenizer = text.tokenizer(folder, model.config.text_config.vocab_size)
        with text.naming(folder):
            extractor = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
        hears = model.config.audio_config
        fused = hears.enable_fusion
        if fused != (extractor.truncation == "fusion"):
            raise ValueError(
                f"{folder}: enable_fusion {fused} of config.json does not go with truncation "
                f"{extractor.truncation!r} of preprocessor_config.json; both must be of one model"
            )
        frames, most = extractor.nb_max_samples // extractor.hop_length + 1, hears.spec_size**2 // hears.num_mel_bins
        if extractor.feature_size != hears.num_mel_bins or frames > most:
            raise ValueError(
                f"{folder}: preprocessor_config.json gives {extractor.feature_size} mel bands and {frames:,} frames, "
                f"where the model of config.json hears {hears.num_mel_bins} and up to {most:,}; both must be of one "
                "model"
            )
        self._of(model, tokenizer, extractor, device)

    def _of(self, model: Any, tokenizer: Any, extractor: Any, device: str | torch.device) -> None:
        self.model, self.tokenizer, self.extractor, self.device = model.to(device).eval(), tokenizer, extractor, device
        self.fused = extractor.truncation == "fusion"
        self.sample_rate, self.dim = extractor.sampling_rate, model.config.projection_dim
        self.seconds = extractor.nb_max_samples / self.sample_rate

    @torch.no_grad()
    def audio(self, waveforms: RaggedArray, seed: int, quiet: bool = False) -> Tensor:
        """(clips, dim) float32 of length 1, on the CPU.

        waveforms: rows (samples,) int16 at `sample_rate`. Of a clip longer than `seconds`, random parts are seen, drawn
        from the seed and the clip's samples alone.
        """
        rows = []
        with tqdm(total=len(waveforms), desc="CLAP audio", unit="clip", disable=quiet) as bar:
            for start in range(0, len(waveforms), AUDIO_BATCH):
                batch = range(start, min(start + AUDIO_BATCH, len(waveforms)))
                rows.append(self.embed([self.prepare(waveforms[row], seed) for row in batch]))
                bar.update(len(batch))
        return torch.cat(rows)

    def prepare(self, waveform: np.ndarray, seed: int) -> Any:
        """Of one clip as `audio` takes it, what the network is given; threads may do it."""
        return self._features(waveform, seed), self._longer(waveform)

    @torch.no_grad()
    def embed(self, clips: list[Any]) -> Tensor:
        """Of what `prepare` gave, (clips, dim) as `audio` gives it."""
        rows = [self._sounds(clips[start : start + AUDIO_BATCH]) for start in range(0, len(clips), AUDIO_BATCH)]
        return functional.normalize(torch.cat(rows)).cpu()

    @torch.no_grad()
    def text(self, captions: list[str], quiet: bool = False) -> Tensor:
        """(captions, dim) float32 of length 1, on the CPU."""
        tokens = self._tokens(captions)
        order = np.argsort([len(row) for row in tokens], kind="stable")  # batches of like length
        result = torch.empty(len(captions), self.dim)
        with tqdm(total=len(captions), desc="CLAP captions", unit="caption", disable=quiet) as bar:
            for start in range(0, len(order), TEXT_BATCH):
                rows = order[start : start + TEXT_BATCH]
                batch = self.tokenizer.pad({"input_ids": [tokens[row] for row in rows]}, return_tensors="pt")
                result[torch.from_numpy(rows)] = functional.normalize(self._captions(batch.to(self.device))).cpu()
                bar.update(len(rows))
        return result

    def _sounds(self, clips: list[Any]) -> Tensor:
        """(clips, dim) of any length."""
        features, longer = torch.stack([one for one, _ in clips]), torch.tensor([[longer] for _, longer in clips])
        output = self.model.audio_model(input_features=features.to(self.device), is_longer=longer)
        return self.model.audio_projection(output.pooler_output)

    def _tokens(self, captions: list[str]) -> list[list[int]]:
        return self.tokenizer(captions, truncation=True, max_length=self.longest)["input_ids"]

    def _captions(self, batch: Any) -> Tensor:
        """The tokenizer's `input_ids` and `attention_mask` (captions, T) → (captions, dim) of any length."""
        return self.model.text_projection(self.model.text_model(**batch).pooler_output)

    def _features(self, waveform: np.ndarray, seed: int) -> Tensor:
        """Log-mel (1 or 4, frames, bands) of one clip, as the extractor gives it."""
        with drawing_from(seed, waveform):
            output = self.extractor(from_int16(waveform), sampling_rate=self.sample_rate, return_tensors="pt")
        return output["input_features"][0]

    def _longer(self, waveform: np.ndarray) -> bool:
        """Whether the clip's log-mel has more frames than the model takes, which is when parts of it are fused in.

        The extractor's own `is_longer` marks a clip at random where none of a batch is longer. LAION does so only in
        training (`HTSAT_Swin_Transformer.forward`), and here it would let batch mates count.
        """
        hop = self.extractor.hop_length
        return len(waveform) // hop > self.extractor.nb_max_samples // hop


_DRAWING = Lock()  # there is one such generator


@contextmanager
def drawing_from(seed: int, waveform: np.ndarray) -> Iterator[None]:
    """Numpy's global generator, which the extractor draws from, seeded by seed and samples; put back afterwards."""
    content = bytes.fromhex(hashes.sha256(waveform.tobytes()))
    with _DRAWING:
        state = np.random.get_state()
        np.random.seed(np.random.SeedSequence([seed, int.from_bytes(content, "little")]).generate_state(4))
        try:
            yield
        finally:
            np.random.set_state(state)
