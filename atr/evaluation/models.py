"""What can be evaluated: a finished run, a CLAP model, one's own, embeddings that something else has made."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from atr import register
from atr.corpora.audio import resample
from atr.corpora.corpus import Corpus
from atr.encoders.pooling import FrameRows
from atr.evaluation import embeddings
from atr.evaluation.mteb import Mteb
from atr.evaluation.naming import KINDS, check_ways, kind_of
from atr.experiments.profiles import Profile
from atr.inference import pack
from atr.inference.embedder import Embedder
from atr.system import devices, hashes
from atr.training import identity
from atr.training.records import Run

SOUNDS = 32  # embedded at a time


class Model(Protocol):
    """name: for tables; fingerprint: a hash of what its numbers depend on."""

    name: str
    fingerprint: str

    def sounds(self, part: Corpus, quiet: bool = False) -> Any:
        """The clips of a one-split corpus, in order: (clips, D), or `FrameRows` (clips, T, D)."""
        ...

    def sentences(self, texts: Sequence[str]) -> Tensor:
        """(texts, D)."""
        ...

    def similarity(self, sentences: Tensor, sounds: Any) -> Tensor | tuple[Tensor, Tensor]:
        """(texts, clips), or the two themselves where it is their cosine."""
        ...

    def with_seed(self, seed: int) -> "Model":
        """The same, drawing parts of sounds by this seed. ValueError: it draws none."""
        ...


class Seedless:
    """A model that draws no part here, and whose similarity is the cosine."""

    name: str

    def similarity(self, sentences: Tensor, sounds: Tensor) -> tuple[Tensor, Tensor]:
        return sentences, sounds

    def with_seed(self, seed: int) -> Model:
        raise ValueError(f"--seeds: {self.name} draws nothing here; leave it out")


def _batches(part: Corpus, name: str, quiet: bool) -> Iterator[list[tuple[np.ndarray, int]]]:
    """The clips of a one-split corpus, SOUNDS at a time: of each its waveform (samples,) and its rate in Hz."""
    clips = part.clips["clip"].tolist()
    for start in tqdm(range(0, len(clips), SOUNDS), f"{name}: sounds", disable=quiet):
        yield [part.read(clip) for clip in clips[start : start + SOUNDS]]


class EmbedderModel:
    """A run or a CLAP model, which hears the sounds itself."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder, self.name, self.fingerprint = embedder, embedder.name, embedder.fingerprint

    def with_seed(self, seed: int) -> Model:
        return EmbedderModel(self.embedder.with_seed(seed))

    def sounds(self, part: Corpus, quiet: bool = False) -> Any:
        """(clips, dim) of a one-split corpus, in its order; of a text-aware model `FrameRows`."""
        clips = part.clips["clip"].tolist()
        order = np.argsort(part.clips["duration"].to_numpy(), kind="stable")  # of like length
        ahead = devices.prefetch(lambda row: self.embedder.prepare(part.read(clips[row])), order, 2 * SOUNDS)
        batches = iter(lambda: list(islice(ahead, SOUNDS)), [])
        count = -(-len(clips) // SOUNDS)
        rows = [self.embedder.embed(b) for b in tqdm(batches, f"{self.name}: sounds", count, disable=quiet)]
        join = FrameRows.cat if self.embedder.text_aware else torch.cat
        return join(rows)[torch.from_numpy(np.argsort(order))]

    def sentences(self, texts: Sequence[str]) -> Tensor:
        return self.embedder.sentences(texts)

    def similarity(self, sentences: Tensor, sounds: Any) -> Tensor | tuple[Tensor, Tensor]:
        return self.embedder.similarity(sentences, sounds) if self.embedder.text_aware else (sentences, sounds)


class Own(Seedless):
    """A model of one's own, by the name that it is registered under (`atr.register.model`).

    It has a `sample_rate` in Hz, `sounds`, which takes a list of waveforms (samples,) float32 at that rate, and
    `sentences`, which takes a list of captions; both give (N, D), as an array or a tensor. The fingerprint is of the
    file that registers it, not of what that reads. ValueError: rows that are not as many as what they are of.
    """

    def __init__(self, name: str) -> None:
        self.model, self.name = register.MODELS[name](), name
        rate = getattr(self.model, "sample_rate", None)
        if not isinstance(rate, int | float) or not rate > 0:
            raise ValueError(f"{name}: its sample_rate is {rate!r}; give Hz, as the sounds are to come")
        self.fingerprint = hashes.content_key("own", name, register.code("model", name))

    def sounds(self, part: Corpus, quiet: bool = False) -> Tensor:
        return torch.cat([self._rows("sounds", self._sounds_of(batch)) for batch in _batches(part, self.name, quiet)])

    def _sounds_of(self, batch: list[tuple[np.ndarray, int]]) -> list:
        return [resample(*sound, self.model.sample_rate) for sound in batch]

    def sentences(self, texts: Sequence[str]) -> Tensor:
        return self._rows("sentences", list(texts))

    def _rows(self, side: str, inputs: list) -> Tensor:
        with torch.no_grad():
            output = getattr(self.model, side)(inputs)
        try:
            rows = torch.as_tensor(output).float().cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{self.name}: its {side} gave no array of numbers ({error}); give (N, D)") from None
        if rows.ndim != 2 or len(rows) != len(inputs) or not rows.shape[1]:
            raise ValueError(f"{self.name}: its {side} gave {tuple(rows.shape)} for {len(inputs)} of them; give (N, D)")
        return rows


class OfMteb(Own):
    """A model of MTEB's, which takes sounds at their own rates."""

    def __init__(self, name: str, device: str | None) -> None:
        self.model, self.name = Mteb(name, device), f"mteb:{name}"
        self.fingerprint = self.model.fingerprint

    def _sounds_of(self, batch: list[tuple[np.ndarray, int]]) -> list:
        return batch


class Embeddings(Seedless):
    """A folder of embeddings: audio.npy (clips, D) and text.npy (captions, D), or both in embeddings.safetensors.

    Beside them clips.txt and captions.txt say, a line for each row, what it is of: a clip by the corpus's name for it,
    a caption by its words.

    Errors: as in `embeddings.read`; while it is evaluated, ValueError for a clip or a caption that has no row.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.resolve().name
        sides = embeddings.read(folder)
        self.rows = {side: torch.from_numpy(one.rows) for side, one in sides.items()}
        self.places = {side: one.places for side, one in sides.items()}
        content = [one.rows.tobytes() for one in sides.values()]
        self.fingerprint = hashes.content_key(*map(hashes.sha256, content), *map(list, self.places.values()))

    def _of(self, side: str, names: Sequence[str]) -> Tensor:
        places = self.places[side]
        if gaps := [name for name in names if name not in places]:
            listing = self.folder / embeddings.LISTS[side]
            raise ValueError(f"{listing}: {len(gaps)} of {len(names)} are not in it, as {gaps[0]!r}; embed them too")
        return self.rows[side][[places[name] for name in names]]

    def sounds(self, part: Corpus, quiet: bool = False) -> Tensor:
        return self._of("audio", part.clips["clip"].tolist())

    def sentences(self, texts: Sequence[str]) -> Tensor:
        return self._of("text", texts)


def load(name: str, profile: Profile, windows: str | None = None, device: str = "auto") -> Model:
    """A model by what `naming.KINDS` lists. ValueError: no such model.

    profile: in whose store an address is looked for, and whose clips a run's own encoder was pre-trained on; windows:
    as `Embedder` has it.
    """
    kind, what = kind_of(name, profile.runs)
    check_ways(kind, windows)
    if kind == "embeddings":
        return Embeddings(Path(what).expanduser())
    if kind == "mteb":
        return OfMteb(what, None if device == "auto" else device)
    if kind == "own":
        return Own(what)
    folder = pack.locate(what) if kind == "hf" else Path(what).expanduser()
    if folder is not None and (folder / pack.PACK).is_file():
        return EmbedderModel(Embedder.packed(folder, windows=windows, device=device))
    if kind != "folder":
        return EmbedderModel(Embedder.clap(what if kind == "hf" else name, windows=windows, device=device))
    run = Run(Path(what).expanduser())
    run.require_finished(f", no finished run; give {KINDS}")
    own = identity.pretraining_corpus(run.config, profile.root)
    return EmbedderModel(Embedder(run, own, windows=windows, device=device))
