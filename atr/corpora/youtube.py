"""AudioCaps's audio from YouTube, by yt-dlp and ffmpeg."""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from atr.corpora import audio, audiocaps, containers, files
from atr.system import atomic
from atr.system.download import DownloadError

SECONDS, RATE = 10, 32_000  # of AudioCaps's clips as they are fetched
GONE = re.compile(
    r"video (is )?(unavailable|not available|private|removed)|private video|been (removed|terminated|closed)|"
    r"copyright|no longer available|in your country|confirm your age|members.only|does not exist",
    re.IGNORECASE,
)
NOT_NOW = re.compile("try again later|rate.limit", re.IGNORECASE)  # YouTube says so of videos "unavailable" too
PATIENCE = 10  # failures in a row that are not the clips' fault, after which fetching stops


def gone(root: Path) -> dict[str, str]:
    """AudioCaps's clips that YouTube no longer gives, with its reason: root/gone.csv."""
    path = root / "gone.csv"
    rows = files.read_table("audiocaps", path, ("clip", "reason")) if path.exists() else []
    return {row["clip"]: row["reason"] for row in rows}


def wanted(root: Path, again: bool = False) -> list[tuple[str, float, Path]]:
    """Clips to fetch: id, start in seconds, target file."""
    lists = audiocaps.listed(root)
    here = audiocaps.found(root, {clip for rows in lists.values() for clip in rows})
    lost = {} if again else gone(root)
    return [
        (clip, float(start), root / "audio" / Path(audiocaps.TABLES[split][0]).stem / f"{clip}.wav")
        for split in ("test", "validation", "train")  # the small ones first: they can be evaluated early
        for clip, (start, _) in lists[split].items()
        if clip not in here and clip not in lost
    ]


def fetch(root: Path, workers: int = 4, again: bool = False, quiet: bool = False) -> dict[str, str]:
    """Fetch AudioCaps's clips that are not there from YouTube, as root/audio/<split>/<id>.wav: 10 s, 32 kHz, mono.

    Clips that are there are not fetched again; those that YouTube says are gone go to root/gone.csv and are only tried
    again with `again`. Returns the clips that failed otherwise, with the reason. Raises DownloadError if yt-dlp or
    ffmpeg is missing, and after PATIENCE such failures in a row.
    """
    todo = wanted(root, again)
    absent = [tool for tool in ("yt-dlp", "ffmpeg") if shutil.which(tool) is None]
    if todo and absent:
        mend = "install what is missing (pip install yt-dlp; ffmpeg from conda or your system), or use --from <folder>"
        raise DownloadError(f"audiocaps: no {' and no '.join(absent)} found; {mend}")
    for folder in {target.parent for *_, target in todo if target.parent.is_dir()}:
        atomic.sweep(folder)
    lost, failed, in_a_row = gone(root), {}, 0
    pool = ThreadPoolExecutor(workers)
    try:
        jobs = {pool.submit(_fetch_clip, *job): job[0] for job in todo}
        for job in tqdm(as_completed(jobs), "audiocaps", len(jobs), unit="clip", disable=quiet):
            clip, reason = jobs[job], job.result()
            lost.pop(clip, None)
            if not reason or (GONE.search(reason) and not NOT_NOW.search(reason)):
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
        if lost != gone(root):
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
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300)
            if done.returncode:
                lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
                return lines[-1] if lines else f"yt-dlp ended with status {done.returncode}"
            seconds = audio.duration(f"{folder}/clip.wav")
            if seconds > SECONDS + 1:
                return f"yt-dlp left {seconds:.1f} s of the video where {SECONDS} s were asked for"
        except subprocess.TimeoutExpired:
            return "no answer within 300 s"
        except containers.AudioError as error:
            return f"yt-dlp left no usable file: {error.problem}"
        os.replace(f"{folder}/clip.wav", target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ""
