"""A folder of sounds, found by words: an index of an embedding for every ten seconds of each file, kept up to date."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from tqdm.auto import tqdm

from atr.corpora import audio
from atr.corpora.containers import AudioError
from atr.inference import indexes, shards
from atr.inference.embedder import Embedder
from atr.inference.folder import scan
from atr.inference.lookup import Lookup
from atr.inference.shards import DamageError, Shard
from atr.system import atomic, devices, hashes
from atr.system.atomic import write_json
from atr.system.units import clock, count_of

SEGMENT = 10.0  # seconds
BATCH = 32  # segments embedded at a time
SHARD_SECONDS = 20.0  # of work that an interruption may cost
AHEAD = 30.0  # seconds; longer files are not decoded ahead of time but as they are embedded
RETRY = -1  # for a time of change: of no file
GENERATIONS = 100  # that may be replaced, one after another, while a search opens its files

Piece = tuple[float, float, np.ndarray]  # start, end, waveform at the embedder's rate


@dataclass(frozen=True)
class IndexUpdate:
    """What an update came to. Files: new, changed, unchanged, gone, usable; segments; seconds of sound; problems: path
    and problem of what cannot be used.
    """

    new: int
    changed: int
    unchanged: int
    gone: int
    usable: int
    segments: int
    seconds: float
    problems: pd.DataFrame

    def __str__(self) -> str:
        return (
            f"{count_of(self.usable, 'file')}, {clock(self.seconds)} of sound in {count_of(self.segments, 'segment')} "
            f"({self.new:,} new, {self.changed:,} changed, {self.unchanged:,} unchanged, {self.gone:,} gone)"
        )


class Index:
    """The sounds of a folder, embedded in segments.

    folder: searched with all below it; hidden files and folders are left out, a folder that links lead to is entered
    once. embedder: any but a text-aware one. segment: seconds, by default 10, or what the embedder hears if that is
    less; a rest below one second belongs to the segment before, or, where the embedder cannot hear that whole, to one
    more that ends with the file; a file below one second is heard with silence behind it, silent segments are left out.
    model: what says to others how to make the embedder again, kept in `index.json`.

    It lies in `<home>/indexes/<key>/`, where the key is made of the folder, the embedder's fingerprint and the segment.
    What is searched are the shards that `index.json` names, which an update replaces in one step when it is done: a
    search that goes on meanwhile sees all of it or nothing. Only the first update is searched before it is done.

    A search is exact up to a million segments, beyond it asks FAISS first (`atr.inference.neighbours`). ValueError: an
    embedder or segment that does not go with it, or a damaged file, with its name; another `update` makes that anew.

    >>> import soundfile
    >>> for number, name in enumerate(["rain.wav", "dog.wav"]):
    ...     soundfile.write(name, np.random.default_rng(number).normal(0, 0.1, 64_000), 16_000)
    >>> soundscapes = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
    >>> run = atr.fit(atr.RunConfig(corpus=soundscapes, epochs=2))
    >>> index = Index(".", atr.Embedder(run))
    >>> print(index.update())
    2 files, 0:08 of sound in 2 segments (2 new, 0 changed, 0 unchanged, 0 gone)
    >>> index.search("rain on a tin roof", top=3)[["path", "start", "end"]].shape
    (2, 3)
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        embedder: Embedder,
        segment: float | None = None,
        model: Mapping[str, Any] | None = None,
    ) -> None:
        if embedder.text_aware:
            raise ValueError(
                f"{embedder.name}: text-aware, it has an embedding a frame, too many to keep; name another run"
            )
        if segment is None:
            segment = min(SEGMENT, embedder.seconds or SEGMENT)
        check_segment(segment)
        if embedder.seconds is not None and segment > embedder.seconds:
            raise ValueError(
                f"segment: {segment:g} s, but {embedder.name} hears only {embedder.seconds:g} s; give at most those"
            )
        self.folder, self.embedder, self.segment = indexes.resolve(folder), embedder, float(segment)
        self.model = dict(model or {})
        key = hashes.content_key(indexes.INDEX_VERSION, str(self.folder), embedder.fingerprint, self.segment)
        self.path = indexes.home() / key

    @cached_property
    def _lookup(self) -> Lookup:
        """The generation that `index.json` names. Where a file of it is gone because there is another one by now, that
        is opened instead.
        """
        for _ in range(GENERATIONS):
            content, damage = self._description(), None
            if content is None:
                raise FileNotFoundError(f"{self.folder}: not indexed by {self.embedder.name} yet; update() does it")
            try:
                parts = indexes.shards_of(self.path, content) or shards.shards_in(self.path)
                lookup = Lookup(self.path, parts, shards.files(parts), self.embedder)
                complete = not lookup.open()
            except DamageError as error:
                complete, damage = False, error
            if complete or content == self._description():
                break
        if damage:
            raise ValueError(f"{damage}; {indexes.mend(self.folder)}") from damage
        return lookup

    @property
    def files(self) -> pd.DataFrame:
        """One row per file: path relative to the folder, size, mtime_ns, seconds, segments, problem ("" if none).
        Errors as in `search`.
        """
        return self._lookup.table[list(shards.COLUMNS)].sort_values("path", ignore_index=True)

    def update(self, quiet: bool = False) -> IndexUpdate:
        """Embed the files that are new or changed by size or time, or whose embeddings are damaged; forget those that
        are gone.

        What is done stays done when it is interrupted. A file that cannot be used is kept with its problem, and tried
        again when it changes.

        FileNotFoundError, NotADirectoryError, ValueError: no folder with sounds. OSError: nothing can be written; or
        another process is indexing the same.
        """
        here, closed = scan(self.folder, quiet)
        with _writing(self.path):
            before, parts = self._usable()
            old = shards.files(parts)
            both = here.merge(old, "left", ["path", "size", "mtime_ns"])
            todo = both.loc[both["segments"].isna(), ["path", "size", "mtime_ns"]]
            hidden = old["path"].str.startswith(tuple(f"{below}/" for below in closed))
            missing = ~old["path"].isin(here["path"]) & ~hidden.astype(bool)
            new = int((~todo["path"].isin(old["path"])).sum())
            if len(todo):
                self._describe(before, complete=False)
                parts += self._embed(todo, quiet)
            files = shards.files(parts)
            parts = shards.compact(self.path, parts, files[~files["path"].isin(old["path"][missing])])
            files = shards.files(parts)
            lookup = Lookup(self.path, parts, files, self.embedder)
            lookup.build(quiet)
            self._describe(parts, complete=True)
            shards.clean(self.path, parts)
            lookup.clean()
            self.__dict__.pop("_lookup", None)
        bad = files.loc[files["problem"] != "", ["path", "problem"]]
        return IndexUpdate(
            new=new,
            changed=len(todo) - new,
            unchanged=len(files) - len(todo),
            gone=int(missing.sum()),
            usable=len(files) - len(bad),
            segments=int(files["segments"].sum()),
            seconds=float(files["seconds"].sum()),
            problems=pd.concat([pd.DataFrame(closed.items(), columns=bad.columns), bad], ignore_index=True),
        )

    def search(self, queries: str | Sequence[str], top: int = 10) -> pd.DataFrame:
        """The `top` files for each query, by their best segments: query, rank from 1, score (cosine), path, start and
        end in seconds. Warns where it had to be exact among more than a million segments.

        FileNotFoundError: the folder is not indexed. ValueError: a query without words, a damaged index.
        """
        if top < 1 or top % 1:  # of NaN and infinity the rest is NaN
            raise ValueError(f"top: {top}; give 1 or more, a whole number")
        lookup = self._lookup
        queries = [queries] if isinstance(queries, str) else list(queries)
        sentences = self.embedder.sentences(queries)
        rows = [
            (query, rank, hit.score, str(self.folder / hit.path), hit.start, hit.end)
            for query, hits in zip(queries, lookup.best(sentences, int(top)), strict=True)
            for rank, hit in enumerate(hits, 1)
        ]
        return pd.DataFrame(rows, columns=["query", "rank", "score", "path", "start", "end"])

    def _description(self) -> dict[str, Any] | None:
        """What `index.json` says, None if it is not there."""
        file = self.path / indexes.DESCRIPTION
        try:
            content = indexes.read(file)
            own = (indexes.INDEX_VERSION, str(self.folder), self.embedder.fingerprint, self.segment)
            if tuple(map(content.get, ("version", "folder", "fingerprint", "segment"))) != own:
                raise DamageError(file, "it is of another index")
        except FileNotFoundError:
            return None
        except DamageError as error:
            raise ValueError(f"{error}; {indexes.mend(self.folder)}") from error
        return content

    def _usable(self) -> tuple[list[Shard], list[Shard]]:
        """Shards that are searched now, and sound ones, of which an interrupted update may have left more."""
        try:
            content = self._description() or {}
        except ValueError:
            content = {}
        searched = indexes.shards_of(self.path, content)
        shards.clean(self.path, searched if content.get("complete") else [*searched, *shards.shards_in(self.path)])
        sound = []
        for shard in shards.shards_in(self.path):
            with suppress(DamageError):
                shard.check()
                sound.append(shard)
        return searched, sound

    def _describe(self, parts: Iterable[Shard], complete: bool) -> None:
        content = {
            "version": indexes.INDEX_VERSION,
            "folder": str(self.folder),
            "segment": self.segment,
            "name": self.embedder.name,
            "fingerprint": self.embedder.fingerprint,
            "model": self.model,
            "complete": complete,
            "time": time.time_ns(),  # equal shards may come back
            "shards": [shard.name for shard in parts],
        }
        write_json(self.path / indexes.DESCRIPTION, content | {"checksum": hashes.content_key(content)})

    def _embed(self, todo: pd.DataFrame, quiet: bool) -> list[Shard]:
        """Embed files, path, size and mtime_ns, shard by shard."""
        shard = _Filling(self.path, self.embedder)
        rows = todo.itertuples(index=False, name=None)
        with tqdm(total=int(todo["size"].sum()), unit="B", unit_scale=True, disable=quiet) as bar:
            for number, (file, seconds, pieces) in enumerate(devices.prefetch(self._begin, rows), 1):
                bar.set_description(f"file {number:,} of {len(todo):,}", refresh=False)
                path, size, mtime_ns = file
                before, problem = bar.n, ""
                try:
                    if isinstance(pieces, Exception):
                        raise pieces
                    for start, end, waveform in pieces:
                        shard.add(start, end, waveform)
                        bar.update(before + round(size * min(1, end / seconds)) - bar.n)
                except AudioError as error:
                    problem = f"{error.problem}; {error.mend}"
                except FileNotFoundError:
                    problem, mtime_ns = "gone before it was read; index the folder again", RETRY
                except OSError as error:
                    problem, mtime_ns = f"{error.strerror}; make it readable", RETRY
                bar.update(before + size - bar.n)
                shard.end(path, size, mtime_ns, seconds, problem)
        shard.land()
        return shard.landed

    def _begin(self, file: tuple[str, int, int]) -> tuple[tuple[str, int, int], float, Iterable[Piece] | Exception]:
        """A file, its length in seconds, and its pieces or why there are none."""
        path = self.folder / file[0]
        try:
            open(path, "rb").close()  # its reason is clearer than the decoder's
            frames, rate = audio.header(path)
            pieces = self._pieces(path)
            return file, frames / rate, pieces if frames / rate > AHEAD else list(pieces)
        except (AudioError, OSError) as error:
            return file, 0.0, error

    def _pieces(self, path: Path) -> Iterator[Piece]:
        new = self.embedder.sample_rate
        for begin, piece, rate in audio.segments(path, self.segment):
            size = min(len(piece), round(self.embedder.seconds * rate)) if self.embedder.seconds else len(piece)
            for place in sorted({0, len(piece) - size}):
                waveform, start = piece[place : place + size], begin + place / rate
                if waveform.any():
                    end, waveform = start + len(waveform) / rate, audio.resample(waveform, rate, new)
                    yield start, end, np.pad(waveform, (0, max(0, round(audio.SHORTEST * new) - len(waveform))))


class _Filling:
    """The shard that is being filled; it lands every SHARD_SECONDS, between two files."""

    def __init__(self, folder: Path, embedder: Embedder) -> None:
        self.folder, self.embedder = folder, embedder
        self.landed: list[Shard] = []
        self._empty()

    def _empty(self) -> None:
        self.entries: list[tuple] = []
        self.waiting: list[np.ndarray] = []
        self.embedded = [torch.empty(0, self.embedder.dim)]
        self.times: list[tuple[float, float]] = []
        self.owners: list[int] = []  # each row's entry
        self.before = 0  # rows of whole files
        self.started = time.monotonic()

    def add(self, start: float, end: float, waveform: np.ndarray) -> None:
        self.waiting.append(waveform)
        self.times.append((start, end))
        self.owners.append(len(self.entries))
        if len(self.waiting) == BATCH:
            self._embed()

    def _embed(self) -> None:
        if self.waiting:
            embeddings = self.embedder.sounds(self.waiting)
            if not embeddings.isfinite().all():
                raise ValueError(f"{self.embedder.name}: embeddings that are NaN or infinite; name another model")
            self.embedded.append(embeddings)
            self.waiting = []

    def end(self, path: str, size: int, mtime_ns: int, seconds: float, problem: str) -> None:
        rows = len(self.owners) - self.before
        self.entries.append((path, size, mtime_ns, *((0.0, 0) if problem else (seconds, rows)), problem))
        self.before = len(self.owners)
        if time.monotonic() - self.started >= SHARD_SECONDS:
            self.land()

    def land(self) -> None:
        if not self.entries:
            return
        self._embed()
        table = pd.DataFrame(self.entries, columns=list(shards.COLUMNS))
        rows = torch.tensor([not self.entries[owner][-1] for owner in self.owners], dtype=torch.bool)
        times = torch.tensor(self.times, dtype=torch.float64).reshape(-1, 2)
        part = shards.FileRows(table, torch.cat(self.embedded)[rows], times[rows])
        self.landed.append(shards.write(self.folder, [part]))
        self._empty()


def check_segment(seconds: float | None) -> None:
    """ValueError: no index has segments so long; None is any."""
    if seconds is not None and not audio.SHORTEST <= seconds <= audio.MAX_SECONDS:
        raise ValueError(f"segment: {seconds:g} s; give {audio.SHORTEST:g} to {audio.MAX_SECONDS:g}")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Alone, and with clear words where it cannot be done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=0):
            yield
    except Timeout:
        raise OSError(f"{path}: another process is writing this index; wait for it, or stop it") from None
    except atomic.WriteError:
        raise
    except (OSError, SafetensorError) as error:
        mend = "make room or make it writable, or set ATR_HOME to another folder"
        raise OSError(f"{path}: cannot be written ({error}); {mend}") from error
