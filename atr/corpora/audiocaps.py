"""AudioCaps (Kim et al. 2019, github.com/cdjkim/audiocaps), v1 and 2.0: YouTube clips of 10 s, and fetching them."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from os import PathLike
from pathlib import Path, PurePosixPath

import pandas as pd
from tqdm.auto import tqdm

from atr import register
from atr.corpora import audio, containers, csvtable, files
from atr.corpora.corpus import Corpus, CorpusError, Problem
from atr.system import atomic
from atr.system.download import DownloadError
from atr.system.places import home

TABLES = {"train": ("train.csv",), "validation": ("val.csv", "validation.csv"), "test": ("test.csv",)}
BASES = ("", "dataset", "csv_files", "AudioCaps/csv_files", "csv_files_v1", "AUDIOCAPS/csv_files_v1")
LAYOUT = (
    "audio files named by YouTube id ([Y]<id>[_<start>[_<end>]].wav, .flac, .ogg or .mp3), in any folders, and "
    "train.csv, val.csv and test.csv, here or in dataset/ or csv_files/"
)
# With and without a Y in front; behind it, perhaps, the clip's start and end in the video.
NUMBER = r"(?:_(\d+(?:\.\d+)?))?"
NAMES = [re.compile(rf"{first}([A-Za-z0-9_-]{{11}}){NUMBER}{NUMBER}") for first in ("Y", "")]
SECONDS = 10.0
RATE = 32_000  # of clips as they are fetched
REMOVAL = re.compile(
    r"video (is )?(unavailable|not available|private|removed)|private video|been (removed|terminated|closed)|"
    r"copyright|no longer available|in your country|confirm your age|members.only|does not exist",
    re.IGNORECASE,
)
NOT_NOW = re.compile("try again later|rate.limit", re.IGNORECASE)  # YouTube says so of videos "unavailable" too
PATIENCE = 10  # failures in a row that are not the clips' fault, after which fetching stops


@register.corpus("audiocaps")
def load(root: str | PathLike[str] | None = None) -> Corpus:
    """AudioCaps from a folder, or from where `atr data audiocaps` put or found it.

    Clips are named by YouTube id, without the Y that some file names begin with. The tables are the official ones
    (one row per caption) or those of Mei et al. 2022 (one row per clip); where the folder has none, those that
    `atr data audiocaps` fetched. One caption a training clip, else five, as published: some repeat.
    Videos disappear, so listed clips without audio are left out: `atr.corpora.coverage` counts them. A clip that has
    several files is a problem; one that is not 10 s long, or as long as its file's name says, is a doubt.

    Raises FileNotFoundError if there is nothing, CorpusError for a folder or table that cannot be used.
    """
    folder = files.locate("audiocaps", root)
    source = "AudioCaps v1, github.com/cdjkim/audiocaps (MIT); audio from YouTube under the terms of its owners"
    return _corpus("audiocaps", folder, clip_lists(folder), source)


@register.corpus("audiocaps2")
def load_second(root: str | PathLike[str] | None = None) -> Corpus:
    """AudioCaps 2.0 (February 2025): its lists, which `atr data audiocaps2` fetched, over the sounds of `load`.

    91,256 training captions; the 495 and 975 clips of v1, with captions mostly in lower case: of 4,875 test captions
    190 are as in v1, 4,745 but for case. Clips, problems and errors: as in `load`.
    """
    folder, lists = files.locate("audiocaps", root), files.locate("audiocaps2", None)
    places = tables(lists)
    if places is None:
        raise files.unknown_layout("audiocaps2", lists, "train.csv, val.csv and test.csv")
    source = "AudioCaps 2.0, github.com/cdjkim/audiocaps (MIT); audio from YouTube under the terms of its owners"
    return _corpus("audiocaps2", folder, {split: _read(path) for split, path in places.items()}, source)


def _corpus(name: str, folder: Path, listing: Mapping[str, dict[str, tuple[str, list[str]]]], source: str) -> Corpus:
    lists = {split: {clip: texts for clip, (_, texts) in rows.items()} for split, rows in listing.items()}
    here = files_of_clips(folder, {clip for clips in lists.values() for clip in clips})
    if not here:
        raise files.unknown_layout("audiocaps", folder, LAYOUT)
    paths = {clip: places[0] for clip, places in here.items() if len(places) == 1}
    unclear = {clip: places for clip, places in here.items() if len(places) > 1}
    limits = {clip: (_seconds(clip, path),) * 2 for clip, path in paths.items()}
    return files.published_corpus(name, folder, lists, paths, source, unclear=unclear, limits=limits)


def tables(folder: Path) -> dict[str, Path] | None:
    """The three tables of the folder, by split; None if it has not all of them in one place."""
    for base in BASES:
        here = {split: files.first(folder, [base], names) for split, names in TABLES.items()}
        if all(here.values()):
            return {split: path for split, path in here.items() if path is not None}
    return None


def clip_lists(folder: Path) -> dict[str, dict[str, tuple[str, list[str]]]]:
    """Split → clip → its start in the video, in seconds as written (empty where unknown), and its captions."""
    places = tables(folder) or tables(home() / "audiocaps")
    if places is None:
        raise files.unknown_layout("audiocaps", folder, LAYOUT)
    return {split: _read(path) for split, path in places.items()}


def _read(path: Path) -> dict[str, tuple[str, list[str]]]:
    rows: dict[str, tuple[str, list[str]]] = {}
    for row in csvtable.read_table("audiocaps", path, ()):
        if {"youtube_id", "start_time", "caption"} <= row.keys():
            rows.setdefault(row["youtube_id"], (row["start_time"], []))[1].append(row["caption"])
            continue
        name = Path(row.get("file_name", "")).stem
        clip = next((clip for clip in _ids(name)), "")
        if not clip or not csvtable.captions_of(row) or clip in rows:
            problem = "listed twice" if clip in rows else "no YouTube id with captions"
            where = f"{path}, {name!r}"
            mend = "give youtube_id, start_time, caption, or file_name and captions, one row per clip"
            raise CorpusError("audiocaps", [Problem(where, problem, mend)])
        rows[clip] = "", csvtable.captions_of(row)
    return rows


def _ids(name: str) -> list[str]:
    """The YouTube ids that a file name without suffix may stand for, the likelier first."""
    return [match[1] for pattern in NAMES if (match := pattern.fullmatch(name))]


def _seconds(clip: str, path: str) -> float:
    """How long the clip should be: shorter than the others where its video ends and the file's name says so."""
    match = next(m for pattern in NAMES if (m := pattern.fullmatch(_stem(path))) and m[1] == clip)
    length = float(match[3]) - float(match[2]) if match[3] else SECONDS
    return length if 0 < length < SECONDS else SECONDS


def _stem(path: str) -> str:
    return PurePosixPath(path).stem.strip()


def files_of_clips(folder: Path, wanted: Iterable[str]) -> dict[str, list[str]]:
    """The audio files of each wanted clip that is there, relative to the folder."""
    wanted = set(wanted)
    paths: dict[str, list[str]] = {}
    for path in files.listing(folder):
        clip = next((clip for clip in _ids(_stem(path)) if clip in wanted), None)
        if clip is not None:
            paths.setdefault(clip, []).append(path)
    return paths


def lost_clips(root: Path) -> dict[str, str]:
    """AudioCaps's clips that YouTube no longer gives, with its reason: root/gone.csv."""
    path = root / "gone.csv"
    rows = csvtable.read_table("audiocaps", path, ("clip", "reason")) if path.exists() else []
    return {row["clip"]: row["reason"] for row in rows}


def clips_to_fetch(root: Path, again: bool = False) -> list[tuple[str, float, Path]]:
    """Clips to fetch: id, start in seconds, target file."""
    lists = clip_lists(root)
    here = files_of_clips(root, {clip for rows in lists.values() for clip in rows})
    missing = {} if again else lost_clips(root)
    return [
        (clip, float(start), root / "audio" / Path(TABLES[split][0]).stem / f"{clip}.wav")
        for split in ("test", "validation", "train")  # the small ones first: they can be evaluated early
        for clip, (start, _) in lists[split].items()
        if clip not in here and clip not in missing
    ]


def fetch(root: Path, workers: int = 4, again: bool = False, quiet: bool = False) -> dict[str, str]:
    """Fetch AudioCaps's clips that are not there from YouTube, as root/audio/<split>/<id>.wav: 10 s, 32 kHz, mono.

    Clips that are there are not fetched again; those that YouTube says are gone go to root/gone.csv and are only tried
    again with `again`. Returns the clips that failed otherwise, with the reason. Raises DownloadError if yt-dlp or
    ffmpeg is missing, and after PATIENCE such failures in a row.
    """
    todo = clips_to_fetch(root, again)
    absent = [tool for tool in ("yt-dlp", "ffmpeg") if shutil.which(tool) is None]
    if todo and absent:
        mend = "install what is missing (pip install yt-dlp; ffmpeg from conda or your system), or use --from <folder>"
        raise DownloadError(f"audiocaps: no {' and no '.join(absent)} found; {mend}")
    for folder in {target.parent for *_, target in todo if target.parent.is_dir()}:
        atomic.sweep(folder)
    lost, failed, in_a_row = lost_clips(root), {}, 0
    pool = ThreadPoolExecutor(workers)
    try:
        jobs = {pool.submit(_fetch_clip, *job): job[0] for job in todo}
        for job in tqdm(as_completed(jobs), "audiocaps", len(jobs), unit="clip", disable=quiet):
            clip, reason = jobs[job], job.result()
            lost.pop(clip, None)
            if not reason or (REMOVAL.search(reason) and not NOT_NOW.search(reason)):
                in_a_row = 0
                lost |= {clip: reason} if reason else {}
                continue
            failed[clip] = reason
            in_a_row += 1
            if in_a_row >= PATIENCE:
                mend = "wait or update yt-dlp, then run the same command again: it continues"
                raise DownloadError(f"audiocaps: {in_a_row} failures in a row, the last: {reason}; {mend}")
    finally:
        pool.shutdown(cancel_futures=True)
        if lost != lost_clips(root):
            atomic.write_csv(pd.DataFrame(sorted(lost.items()), columns=["clip", "reason"]), root / "gone.csv")
    return failed


def _fetch_clip(clip: str, start: float, target: Path) -> str:
    """Fetch one clip; why that failed, else an empty string."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = atomic.beside(target)
    folder.mkdir()
    try:
        command = ["yt-dlp", "--quiet", "--no-warnings", "--no-playlist", "--format", "bestaudio/best"]
        command += ["--download-sections", f"*{start:g}-{start + SECONDS:g}", "--force-keyframes-at-cuts"]
        command += ["--extract-audio", "--audio-format", "wav"]
        command += ["--postprocessor-args", f"ExtractAudio:-ar {RATE} -ac 1", "--output", f"{folder}/clip.%(ext)s"]
        command += [f"https://www.youtube.com/watch?v={clip}"]
        try:
            result = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300)
            if result.returncode:
                lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
                return lines[-1] if lines else f"yt-dlp ended with status {result.returncode}"
            seconds = audio.duration(f"{folder}/clip.wav")
            if seconds > SECONDS + 1:
                return f"yt-dlp left {seconds:.1f} s of the video where {SECONDS:g} s were asked for"
        except subprocess.TimeoutExpired:
            return "no answer within 300 s"
        except containers.AudioError as error:
            return f"yt-dlp left no usable file: {error.problem}"
        os.replace(f"{folder}/clip.wav", target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ""
