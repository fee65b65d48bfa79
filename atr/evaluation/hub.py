"""Public copies of Clotho and AudioCaps on the Hugging Face Hub: what they have of each protocol, and fetching it."""

import io
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pandas as pd
from tqdm.auto import tqdm

from atr.corpora import SPLITS, audiocaps, catalogue, clotho, csvtable, files
from atr.corpora.containers import SUFFIXES
from atr.evaluation import protocols
from atr.system import atomic, download, places
from atr.system.download import DownloadError, File

AUDIO = "audio.bytes"
READERS, BLOCK = 16, 1 << 16  # tables read at a time; bytes asked for at a time
REVISIONS = {
    "OpenSound/AudioCaps": "b29b3243d6ce49c2cd0d48d4b5f0701ae7969ded",
    "CLAPv2/Clotho": "b491ad6569dba180ca60a0e2d17a1d6a0d5d9f4a",
    "mteb/Clotho": "c44521cd4067f134e5f5bace4290b59ed773b451",
}
COPIES = {"audiocaps": ("OpenSound/AudioCaps",), "clotho": ("CLAPv2/Clotho", "mteb/Clotho")}  # the first by default


class Place(NamedTuple):
    """Where a clip belongs: its split, its folder below the data set's, its file's name but the suffix."""

    split: str
    folder: str
    stem: str


class HubShard(NamedTuple):
    """A Parquet file of a copy, and of each of its rows the clip, or None for what the data set does not list."""

    file: File
    clips: list[str | None]


@dataclass(frozen=True)
class HubCopy:
    """A data set as somebody has put it on the Hub, at one revision.

    data: the data set's name; repo: the copy's; revision: the commit. Clips are told by what identifies them, whatever
    split the copy has them in: AudioCaps's by `youtube_id`, Clotho's by their five captions, of which its official
    tables have the same (`raw_text`, or `text`, which joins them). Everything lies in `<home>/<data>/hub/`.
    """

    data: str
    repo: str
    revision: str

    @property
    def folder(self) -> Path:
        return places.home() / self.data / "hub"

    @cached_property
    def places(self) -> dict[str, Place]:
        """Of each clip that the data set's official tables list, which are fetched. DownloadError."""
        for file in catalogue.DATASETS[self.data].files:
            if not file.name.endswith(catalogue.ARCHIVES):
                download.fetch(file, self.folder, quiet=True)
        return {clip: place for clip, place, _ in self._official_clips()}

    def _official_clips(self) -> Iterator[tuple[str, Place, str]]:
        """Clip, place, and what identifies it in a copy."""
        if self.data == "audiocaps":
            for split, rows in audiocaps.clip_lists(self.folder).items():
                for clip in rows:
                    yield clip, Place(split, f"audio/{audiocaps.TABLES[split][0].removesuffix('.csv')}", clip), clip
            return
        paths = {split: self.folder / f"clotho_captions_{name}.csv" for split, name in clotho.OFFICIAL.items()}
        tables = {split: csvtable.read_table("clotho", path, clotho.COLUMNS) for split, path in paths.items()}
        for split, clips in clotho.by_clip(tables, paths).items():
            for clip, row in clips.items():
                stem = row["file_name"].rpartition(".")[0]
                yield clip, Place(split, clotho.OFFICIAL[split], stem), words(csvtable.captions_of(row))

    @cached_property
    def shards(self) -> list[HubShard]:
        """All of the copy; of its tables no more is read than what identifies clips. DownloadError."""
        parquet = self._files()
        clips = {key: clip for clip, _, key in self._official_clips()} if self.places else {}
        listing = self.folder / f"{self.revision}.json"
        try:
            keys = atomic.read_object(listing)
        except (OSError, ValueError):
            pool = ThreadPoolExecutor(READERS)
            try:
                rows = tqdm(
                    pool.map(self._keys, parquet), f"{self.repo}: clips", len(parquet), disable=None, leave=False
                )
                keys = {file.name: list(row) for file, row in zip(parquet, rows, strict=True)}
            finally:
                pool.shutdown(cancel_futures=True)
            atomic.write_json(listing, keys)
        return [HubShard(file, [clips.get(key) for key in keys[file.name]]) for file in parquet]

    def _files(self) -> list[File]:
        """The copy's Parquet files, with the sizes and hashes that the Hub states."""
        hub, revision = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/"), self.revision
        url = f"{hub}/api/datasets/{self.repo}/tree/{revision}?recursive=true"
        path = download.fetch(File(f"{revision}.files.json", url), self.folder, quiet=True)
        try:
            rows = [row for row in json.loads(path.read_text("utf-8")) if row["path"].endswith(".parquet")]
            names = [
                File(
                    row["path"].replace("/", "+"),
                    f"{hub}/datasets/{self.repo}/resolve/{revision}/{quote(row['path'])}",
                    int(row["size"]),
                    f"sha256:{row['lfs']['oid']}" if "lfs" in row else None,
                )
                for row in rows
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise DownloadError(f"{path}: no list of files ({error!r}); delete it and try again") from None
        if not names:
            raise DownloadError(f"{url}: no Parquet files; name another copy: --copy")
        return names

    def _keys(self, file: File) -> list[str]:
        """What identifies the clip of each row, read over the net without the sounds."""
        import fsspec

        column = "youtube_id" if self.data == "audiocaps" else "text"
        try:
            with fsspec.open(file.url, block_size=BLOCK, cache_type="readahead") as source:
                table = _table(file, source, [column])
                column = "raw_text" if "raw_text" in table.columns else column
                rows = table.to_pandas(columns=[column])[column]
        except OSError as error:
            raise DownloadError(f"{file.url}: cannot be read ({error}); try again") from error
        if self.data == "audiocaps":
            return list(rows)
        return [words([row] if isinstance(row, str) else row) for row in rows]

    def here(self) -> set[str]:
        """The clips that have been fetched."""
        stems = {folder: _stems(self.folder / folder) for folder in {place.folder for place in self.places.values()}}
        return {clip for clip, place in self.places.items() if place.stem in stems[place.folder]}

    def todo(self, splits: Sequence[str]) -> list[HubShard]:
        """The shards that hold clips of these splits of ours which are not here yet."""
        here, wanted = self.here(), {clip for clip, place in self.places.items() if place.split in splits}
        return [shard for shard in self.shards if (wanted - here) & set(shard.clips)]

    def coverage(self, clips: set[str]) -> pd.DataFrame:
        """How many of each split's, and of each protocol's, clips are among these: name, clips, of."""
        names = {f"split {split}": [c for c, place in self.places.items() if place.split == split] for split in SPLITS}
        for name in protocols.names():
            protocol = protocols.get(name)
            if protocol.corpus["name"] == self.data:
                try:
                    names[name] = protocol.names or names[f"split {protocol.split}"]
                except ValueError:  # its list is not here
                    continue
        rows = [(name, len(clips & set(listed)), len(listed)) for name, listed in names.items()]
        return pd.DataFrame(rows, columns=["", "clips", "of"])

    def fetch(self, splits: Sequence[str] = SPLITS, quiet: bool = False) -> None:
        """Fetch the clips of these splits that are not here yet, as the copy has them, and let the data set be what is
        here. Interrupt it whenever you like: the next call continues. DownloadError.
        """
        begun = self.folder / "shards"
        for shard in self.todo(splits):
            path = download.fetch(shard.file, begun, quiet)
            self._unpack(path, shard, splits)
            path.unlink()
        shutil.rmtree(begun, ignore_errors=True)
        for place in self.places.values():
            (self.folder / place.folder).mkdir(parents=True, exist_ok=True)
        catalogue.record(self.data, self.folder)

    def _unpack(self, path: Path, shard: HubShard, splits: Sequence[str]) -> None:
        here, row = self.here(), 0
        with open(path, "rb") as source:
            for group in _table(shard.file, source, [AUDIO]).iter_row_groups(columns=[AUDIO]):
                for content in group[AUDIO]:
                    clip, row = shard.clips[row], row + 1
                    if clip is not None and clip not in here and self.places[clip].split in splits:
                        place = self.places[clip]
                        target = f"{place.stem}{_suffix(content, f'{path}, row {row}, {clip!r}')}"
                        write = partial(Path.write_bytes, data=content)
                        atomic.write_atomic(self.folder / place.folder / target, write)
                        here.add(clip)


def copy_of(data: str, repo: str | None = None) -> HubCopy:
    """ValueError: no copy is known."""
    if data not in COPIES:
        raise ValueError(f"--hub: no copy of {data} is known; known: of {', '.join(COPIES)}")
    if repo not in (None, *COPIES[data]):
        raise ValueError(f"--copy: {repo!r} is no copy of {data}; known: {', '.join(COPIES[data])}")
    name = repo or COPIES[data][0]
    return HubCopy(data, name, REVISIONS[name])


def write_list(copy: HubCopy) -> Path | None:
    """The clips of MTEB's AudioCaps, which are those that the copy has in its own split test, for `audiocaps-883`;
    the file, unless it is there already.
    """
    path = places.home() / "protocols" / "audiocaps-883.txt"
    if copy.repo != "OpenSound/AudioCaps" or path.exists():
        return None
    tested = [shard for shard in copy.shards if re.search(r"(^|\+)test", shard.file.name)]
    atomic.write_text(path, "".join(f"{clip}\n" for clip in dict.fromkeys(c for s in tested for c in s.clips if c)))
    return path


def words(captions: Sequence[str]) -> str:
    """The words of a clip's captions, counted, in no order: those of Clotho's 5,929 clips all differ."""
    count = Counter(re.findall(r"\w+", " ".join(captions).casefold()))
    return " ".join(f"{word}:{number}" for word, number in sorted(count.items()))


def _table(file: File, source: object, columns: list[str]):
    import fastparquet

    try:
        table = fastparquet.ParquetFile(source)
    except (fastparquet.ParquetException, ValueError, AssertionError) as error:
        raise DownloadError(f"{file.name}: no Parquet file ({error}); delete it and try again") from error
    if lacking := set(columns) - set(table.columns):
        raise DownloadError(f"{file.url}: no column {', '.join(lacking)} among {', '.join(table.columns)}")
    return table


def _suffix(content: bytes | None, where: str) -> str:
    """By what the bytes are; DownloadError for what soundfile cannot decode to its end."""
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(content or b"")) as sound:
            if sound.format in SUFFIXES and len(sound.read()) == sound.frames:
                return SUFFIXES[sound.format]
            problem = f"{sound.format} that cannot be used"
    except soundfile.SoundFileError as error:
        problem = str(error)
    raise DownloadError(f"{where}: no sound ({problem}); try another copy: --copy, or without --hub")


def _stems(folder: Path) -> set[str]:
    return {path.stem for path in folder.iterdir() if files.is_audio(path.name)} if folder.is_dir() else set()
