"""How long a folder of sounds takes to index and to search, as a user sees it: python benchmarks/folder.py.

Makes `--files` files of 1 to 12 s, cut from soundscapes, in eight formats, six rates, one and two channels, and one of
an hour, in a temporary folder; then runs `atr index` on them, again, with one file changed, killed (SIGKILL) half-way,
continued, and `atr search`. One JSON line with the seconds and the peak memory of each command, which include starting
it and loading the model. ATR_HOME and ATR_RESULTS are used as they are, so that a model that is there is not trained
again; the indexes that are made are removed.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch

import atr
from atr.corpora import audio

FORMATS = {
    ".wav": {"subtype": "PCM_16"},
    ".WAV": {"format": "WAV", "subtype": "FLOAT"},
    ".flac": {"subtype": "PCM_16"},
    ".aiff": {"subtype": "PCM_24"},
    ".au": {"subtype": "PCM_16"},
    ".ogg": {"format": "OGG", "subtype": "VORBIS"},
    ".opus": {"format": "OGG", "subtype": "OPUS"},
    ".mp3": {"format": "MP3"},
}
RATES = {".opus": (8000, 16_000, 48_000)}
OTHER_RATES = (8000, 16_000, 22_050, 32_000, 44_100, 48_000)
QUERY = "a dog barks"
MAC = sys.platform == "darwin"  # which counts in bytes, not in KiB


def make(folder: Path, files: int, long: float) -> float:
    """Seconds of sound that are written."""
    corpus = atr.load_corpus("soundscapes", train=1, validation=1, test=60)
    test = corpus.split("test")
    scenes = [corpus.read(clip) for clip in test.clips["clip"]]
    (rate,) = {rate for _, rate in scenes}
    sound = np.concatenate([wave for wave, _ in scenes])
    generator, total = np.random.default_rng(0), 0.0
    for number in range(files):
        ending = list(FORMATS)[number % len(FORMATS)]
        length = int(generator.uniform(1, 12) * rate)
        start = generator.integers(0, len(sound) - length)
        new = int(generator.choice(RATES.get(ending, OTHER_RATES)))
        wave = audio.resample(sound[start : start + length], rate, new)
        if number % 3 == 0:
            wave = np.stack([wave, 0.5 * wave], 1)
        place = folder / f"{number % 50:02}"
        place.mkdir(exist_ok=True)
        soundfile.write(place / f"{number:06}{ending}", wave, new, **FORMATS[ending])
        total += length / rate
    with soundfile.SoundFile(folder / "long.flac", "w", rate, 1) as file:
        for _ in range(round(long * rate / len(sound))):
            file.write(sound)
            total += len(sound) / rate
    return total


def call(*words: object, kill_after: float | None = None) -> tuple[dict[str, float], str]:
    """Seconds and peak memory of `atr <words>`, and what it said."""
    with tempfile.TemporaryFile("w+") as out:
        started = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "atr", *map(str, words)], stdout=out)
        if kill_after is not None:
            time.sleep(kill_after)
            process.kill()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read()
    if process.returncode and kill_after is None:
        raise SystemExit(f"atr {' '.join(map(str, words))}: {process.returncode}")
    return {"s": round(seconds, 1), "peak_gb": round(usage.ru_maxrss * 2.0 ** (-30 if MAC else -20), 2)}, text


def indexes(folder: Path) -> list[Path]:
    return [
        path.parent
        for path in indexes.home().glob("*/index.json")
        if Path(json.loads(path.read_text())["folder"]).is_relative_to(folder.resolve())
    ]


def measured(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    few, sounds = folder / "few", folder / "sounds"
    few.mkdir()
    sounds.mkdir()
    make(few, 8, 0.0)
    call("index", few, "--quiet")  # trains the model, if it is not there
    started = time.perf_counter()
    total = make(sounds, options.files, options.long)
    result: dict[str, object] = {"hours": round(total / 3600, 2), "made_in_s": round(time.perf_counter() - started, 1)}
    size = sum(path.stat().st_size for path in sounds.rglob("*") if path.is_file())
    result["gb"] = round(size / 1e9, 3)
    first, said = call("index", sounds, "--quiet")
    result |= {"said": next(line for line in said.splitlines() if " of sound in " in line), "index": first}
    (path,) = indexes(sounds)
    result["index_gb"] = round(sum(file.stat().st_size for file in path.iterdir()) / 1e9, 4)
    result["again"], _ = call("index", sounds, "--quiet")
    changed = next(sounds.rglob("*.flac"))
    shutil.copy(next(file for file in sounds.rglob("*.flac") if file != changed), changed)
    result["one_changed"], said = call("index", sounds, "--quiet")
    assert "(0 new, 1 changed" in said, said
    result["search"], whole = call("search", QUERY, sounds, "--json", "--top", 20)
    shutil.rmtree(path)
    result["killed"], _ = call("index", sounds, "--quiet", kill_after=first["s"] / 2)
    kept = sum(len(file.read_text().splitlines()) - 1 for file in path.glob("*.jsonl")) if path.exists() else 0
    result["kept_files"] = kept
    result["continued"], said = call("index", sounds, "--quiet")
    assert f" {kept:,} unchanged" in said, said
    _, again = call("search", QUERY, sounds, "--json", "--top", 20)
    one, other = ([(hit["path"], round(hit["score"], 3)) for hit in json.loads(text)] for text in (whole, again))
    result["same_answer_as_uninterrupted"] = sorted(one) == sorted(other)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--files", type=int, default=3000)
    parser.add_argument("--long", type=float, default=3600.0, help="seconds of the long file")
    parser.add_argument("--out", type=Path, help="file that the line is added to")
    options = parser.parse_args()
    context = {
        "command": " ".join(["python", *sys.argv]),
        "device": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "files": options.files + 1,
    }
    with tempfile.TemporaryDirectory() as folder:
        try:
            line = json.dumps(context | measured(Path(folder), options) | {"load": round(os.getloadavg()[0], 1)})
        finally:
            for path in indexes(Path(folder)):
                shutil.rmtree(path)
    print(line)
    if options.out:
        with open(options.out, "a") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
