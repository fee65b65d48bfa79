"""Kills, disks that fill and damaged files, for so many minutes, or until so many kills, drawn by a seed:
`make torture`.

Each trial has a child process, ended where the draw says, or a file changed as the draw says; what follows has to be
what an undisturbed process gives, or an error that names the file. Prints its figures; exit status 1 if one is bad.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ATR_PRETRAINING_EPOCHS": "1"}

import damage  # noqa: E402
import numpy as np  # noqa: E402
import soundfile  # noqa: E402
from tqdm import tqdm  # noqa: E402

import atr  # noqa: E402
from atr.corpora import audio, containers
from atr.encoders import inputs  # noqa: E402
from atr.inference import search

CORPUS = {"name": "soundscapes", "train": 24, "validation": 6, "test": 8, "duration": 4.0}
CONFIG = atr.RunConfig(corpus=CORPUS, epochs=4, batch_size=8, embedding_dim=8)
FILES = ("metrics.json", "embeddings.safetensors", "checkpoint.safetensors", "history.csv")


def fit(home: Path) -> str:
    """A run from nothing, or from what a killed process left: what it came to."""
    run = atr.fit(CONFIG, runs=home / "runs", device="cpu")
    return hashlib.sha256(b"".join((run.path / name).read_bytes() for name in FILES)).hexdigest()


def index(home: Path) -> str:
    """A folder of sounds embedded, or gone on with: what a search finds."""
    found = search.Index(home / "sounds", atr.Embedder(atr.Run(MADE)))
    found.update(quiet=True)
    table = found.search(["rain", "a dog barks"], top=20)
    return table.round({"score": 5}).to_csv(index=False).replace(str(home), "")


def cache(home: Path) -> str:
    """Waveforms packed in the store."""
    packed = inputs.waveforms(atr.load_corpus("soundscapes", **LARGER).split("test"), 16000, quiet=True)
    return hashlib.sha256(np.ascontiguousarray(packed.data)).hexdigest()


def make(home: Path) -> str:
    """The run that others damage or embed with."""
    return str(atr.fit(CONFIG, runs=home / "runs", device="cpu").path)


LARGER = {key: value for key, value in CORPUS.items() if key != "name"} | {"test": 40}
tqdm.monitor_interval = 0  # its thread would be lost in a fork
TASKS = {"fit": fit, "index": index, "cache": cache}


def prepare(home: Path, warm: bool) -> None:
    """A home of its own for a trial; warm: with the corpora and weights that the undamaged run has made."""
    os.environ |= {"ATR_HOME": str(home / "data"), "ATR_RESULTS": str(home / "results")}
    (home / "sounds").mkdir(parents=True)
    if warm:
        shutil.copytree(MADE.parents[1] / "data", home / "data")
    for number in range(6):
        wave = 0.1 * np.random.default_rng(number).standard_normal(32000 * (2 + 7 * number))
        soundfile.write(home / "sounds" / f"{number}.wav", wave.clip(-1, 1), 32000)


def child(work, home: Path, ends_at: float | None = None, limit: int | None = None) -> tuple[int, str]:
    """A task in a process of its own, killed after so many seconds, or with files of no more than so many bytes: its
    signal or exit status, and what it gave or said.
    """
    said = home / "said"
    said.unlink(missing_ok=True)
    process = os.fork()
    if process == 0:
        try:
            sys.stdout = open(os.devnull, "w")
            if limit is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            text, status = work(home), 0
        except BaseException as error:
            text, status = f"{type(error).__name__}: {error}\n{traceback.format_exc()}", 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        said.write_text(text)
        os._exit(status)
    if ends_at is not None:
        time.sleep(ends_at)
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    return status, said.read_text() if said.exists() else ""


def at_home(task: str, folder: Path, warm: bool = True) -> Path:
    home = Path(tempfile.mkdtemp(dir=folder, prefix=f"{task}-"))
    prepare(home, warm)
    return home


def reference(task: str, folder: Path, warm: bool) -> tuple[str, float]:
    """What an undisturbed process gives, and its seconds."""
    home, started = at_home(task, folder, warm), time.monotonic()
    status, text = child(TASKS[task], home)
    if status:
        sys.exit(f"{task}, undisturbed: {text}")
    return text, time.monotonic() - started


def killed(home: Path, task: str, draw: random.Random, right: str, seconds: float, figures: Counter) -> None:
    """Kill a task several times, then let it end by itself: it has to give what it gives undisturbed."""
    kills = 0
    for _ in range(draw.randint(3, 9)):
        status, _ = child(TASKS[task], home, ends_at=draw.uniform(0, 1.1 * seconds))
        kills += os.WIFSIGNALED(status)
    status, text = child(TASKS[task], home)
    figures[f"{task}: kills"] += kills
    if status or text != right:
        figures[f"{task}: lost by a kill"] += 1
        print(f"{task}, after {kills} kills: {text[:2000]}", file=sys.stderr)
    left = [path for path in home.rglob(".*.tmp")]
    figures[f"{task}: temporary files that stay"] += len(left)


def filled(home: Path, task: str, draw: random.Random, right: str, seconds: float, figures: Counter) -> None:
    """Let no file grow beyond a size: an error has to name a path and what to do; afterwards all is well."""
    status, text = child(TASKS[task], home, limit=int(2 ** draw.uniform(0, 21)))
    figures[f"{task}: full disks"] += 1
    first = text.split("Traceback")[0]
    if status and not (str(home) in first and "again" in first):
        figures[f"{task}: full disks without path or mend"] += 1
        print(f"{task}, full: {text[:2000]}", file=sys.stderr)
    if not status and text != right:
        figures[f"{task}: silently wrong"] += 1
    status, text = child(TASKS[task], home)
    if status or text != right:
        figures[f"{task}: lost by a full disk"] += 1
        print(f"{task}, after a full disk: {text[:2000]}", file=sys.stderr)


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def cut(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size or 1)])


def uses(run: atr.Run) -> list:
    return [
        lambda: repr(sorted(run.metrics.items())),
        lambda: run.history.to_csv(),
        lambda: run.clips.to_csv(),
        lambda: repr(run.config),
        lambda: repr({name: tensor.sum().item() for name, tensor in run.embeddings.items()}),
        lambda: repr(atr.Embedder(run).sentences(["Rain."]).tolist()),
    ]


def damaged_run(folder: Path, seed: int) -> Counter:
    """Every use of a run with a damaged file gives what it gave, or an error with the file's path."""
    draw, figures, whole = random.Random(seed), Counter(), atr.Run(MADE)
    right = [use() for use in uses(whole)]
    for _ in range(10):
        shutil.rmtree(folder / "damaged", ignore_errors=True)
        run = atr.Run(Path(shutil.copytree(whole.path, folder / "damaged")))
        path = run.path / draw.choice(sorted(one.name for one in run.path.iterdir() if one.is_file()))
        if draw.random() < 0.5:
            draw.choice([flip, cut])(path, draw)
        else:
            draw.choice(list(damage.mutations(path)))[1](path)
        figures["records: damaged"] += 1
        for use, known in zip(uses(run), right, strict=True):
            try:
                if use() != known:
                    figures["records: silently wrong"] += 1
                    print(f"{path}: another answer", file=sys.stderr)
            except Exception as error:
                if str(run.path) not in str(error):
                    figures["records: errors without the file"] += 1
                    print(f"{path}: {error!r}", file=sys.stderr)
    return figures


def damaged_entry(home: Path, draw: random.Random, task: str, right: str, figures: Counter) -> None:
    """A flipped bit or a cut in what is kept: the same answer, made anew if need be, or an error with the file."""
    kept = [path for path in (home / "data").rglob("*") if path.is_file() and not path.name.endswith(".lock")]
    path = draw.choice(sorted(path for path in kept if path.stat().st_size))
    draw.choice([flip, cut])(path, draw)
    figures["kept files: damaged"] += 1
    status, text = child(TASKS[task], home)
    if not status and text != right:
        figures["kept files: silently wrong"] += 1
        print(f"{path}: another answer", file=sys.stderr)
    if status and str(home) not in text.split("Traceback")[0]:
        figures["kept files: errors without the file"] += 1
        print(f"{path}: {text[:2000]}", file=sys.stderr)


def damaged_sounds(folder: Path, seed: int) -> Counter:
    """A sound cut short is refused, by its name."""
    draw, figures = random.Random(seed), Counter()
    for _ in range(10):
        format, subtype = draw.choice(SOUNDS)
        path = folder / f"sound.{format.lower()}"
        wave = 0.3 * np.random.default_rng(draw.randrange(1000)).standard_normal(draw.randrange(40000, 90000))
        soundfile.write(path, wave.clip(-1, 1), 32000, format=format, subtype=subtype)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * draw.uniform(0.05, 0.97))])
        figures["sounds: cut short"] += 1
        try:
            audio.read(path)
            figures["sounds: read as whole"] += 1
            print(f"{path}: cut short, and read", file=sys.stderr)
        except containers.AudioError as error:
            figures["sounds: errors without the file"] += str(path) not in str(error)
    return figures


SOUNDS = [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", None)]
SOUNDS += [("AIFF", "PCM_24"), ("AU", "PCM_16"), ("CAF", "PCM_16"), ("W64", "PCM_16"), ("RF64", "PCM_16")]
BAD = ("lost", "wrong", "without", "read as whole", "stay")


def main() -> int:
    global MADE
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--kills", type=int, help="kill so many times, however long it takes, and try nothing else")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw, figures = random.Random(given.seed), Counter()
    warnings.simplefilter("ignore")
    ends, rounds = time.monotonic() + 60 * given.minutes, 0

    def kills() -> int:
        return sum(number for what, number in figures.items() if what.endswith(": kills"))

    with tempfile.TemporaryDirectory(prefix="atr-torture-") as name:
        folder = Path(name)
        MADE = Path(child(make, at_home("made", folder, warm=False))[1])
        right = {(task, warm): reference(task, folder, warm) for task in TASKS for warm in (False, True)}
        while kills() < given.kills if given.kills else time.monotonic() < ends:
            task, warm = draw.choice(list(TASKS)), draw.random() < 0.8
            trial = killed if given.kills else draw.choice([killed, killed, filled])
            trial(home := at_home(task, folder, warm), task, draw, *right[task, warm], figures)
            shutil.rmtree(home)
            rounds += 1
            print(f"\r{rounds} rounds, {kills()} kills", end="", file=sys.stderr, flush=True)
            if given.kills:
                continue
            for trial in (damaged_run, damaged_sounds):
                seed = draw.getrandbits(32)
                status, text = child(lambda _, trial=trial, seed=seed: json.dumps(trial(folder, seed)), folder)
                if status:
                    sys.exit(text)
                figures.update(json.loads(text))
            task = draw.choice(["index", "cache"])
            home = at_home(task, folder)
            child(TASKS[task], home)
            damaged_entry(home, draw, task, right[task, True][0], figures)
            shutil.rmtree(home)
    bad = {what: number for what, number in figures.items() if number and any(word in what for word in BAD)}
    for what, number in sorted(figures.items()):
        print(f"{number:6}  {what}{'   <--' if what in bad else ''}")
    length = f"{given.kills} kills" if given.kills else f"{given.minutes:g} minutes"
    print(f"seed {given.seed}, {length}, {rounds} rounds: {sum(bad.values())} bad")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
