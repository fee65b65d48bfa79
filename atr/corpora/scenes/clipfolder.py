"""Scenes mixed from a folder of labelled recordings: ESC-10, ESC-50 or any folder of the shape root/<class>/<clip>.

Captions state only what the mixer controls: class, order, overlap, repetition and gain.
"""

import os
import random
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from os import PathLike
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from atr import register
from atr.corpora import audio, containers, copies, csvtable, files
from atr.corpora.corpus import Corpus, CorpusError, Problem
from atr.corpora.scenes.scene import MANY, RATE, RECORDINGS, SECONDS, Kind, Scene, check, draw, fade, mix
from atr.corpora.scenes.splits import draw_splits
from atr.corpora.scenes.wording import Words, minimal_pairs, sentence
from atr.system.hashes import sha256

CLOTHO_SOURCES = tuple(
    line
    for line in Path(__file__).parents[1].joinpath("described.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
)  # Freesound ids of the recordings of ESC-50 that people described in Clotho
MIXER_VERSION = 1  # raise it when the same scene sounds different
FOLDS = {1: "train", 2: "train", 3: "train", 4: "validation", 5: "test"}
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}  # where file names carry no folds
HOP = 0.01  # seconds in which pauses are looked for
SILENCE = 0.015  # of a recording's peak: cut at the ends
PAUSE = 0.02  # of a recording's peak: quieter is a pause
LONGEST_PAUSE = 0.4  # seconds; with longer pauses a recording may be heard as several events
COUNTABLE = 2.0  # seconds; longer recordings are not repeated
TIMES = {
    2: ("twice over", "on two occasions", "two separate times"),
    3: ("on three occasions", "three separate times"),
    MANY: ("again and again", "repeatedly", "on many occasions"),
}  # a recording may hold more than one bark: repetitions are counted, not barks

# Wordings of the ESC-50 and ESC-10 classes; folder names that differ share a line.
WORDINGS: dict[str, tuple[str, ...]] = {
    "dog dog_bark": ("a *dog|barking|barks", "a *hound|barking|barks", "*barking|coming from a dog|comes from a dog"),
    "rooster": ("a *rooster|crowing|crows", "a *cockerel|calling|calls", "a *cock|crowing|crows"),
    "pig": ("a *pig|grunting|grunts", "a *hog|oinking|oinks"),
    "cow": ("a *cow|mooing|moos", "*cattle|lowing|lows"),
    "frog": ("a *frog|croaking|croaks", "*frogs|calling|call"),
    "cat": ("a *cat|meowing|meows", "a *kitten|mewing|mews"),
    "hen": ("a *hen|clucking|clucks", "a *chicken|clucking|clucks"),
    "insects": ("*insects|buzzing|buzz", "a *fly|buzzing around|buzzes around"),
    "sheep": ("a *sheep|bleating|bleats", "a *lamb|baaing|baas"),
    "crow": ("a *crow|cawing|caws", "a *raven|calling|calls"),
    "rain": ("*rain|falling|falls", "*rain|pouring down|pours down", "*raindrops|pattering|patter"),
    "sea_waves": ("*sea waves|crashing|crash", "*waves|rolling ashore|roll ashore", "the *sea|surging|surges"),
    "crackling_fire fire_crackling": (
        "a *fire|crackling|crackles", "*flames|crackling|crackle", "*burning wood|crackling|crackles",
    ),
    "crickets": ("*crickets|chirping|chirp", "*crickets|singing|sing"),
    "chirping_birds": ("*birds|chirping|chirp", "*birds|singing|sing"),
    "water_drops": ("*water|dripping|drips", "*drops of water|falling|fall"),
    "wind": ("*wind|blowing|blows", "the *wind|howling|howls"),
    "pouring_water": ("*water|being poured|is poured", "someone|pouring water|pours water"),
    "toilet_flush": ("a *toilet|flushing|flushes", "a *toilet|being flushed|is flushed"),
    "thunderstorm": ("*thunder|rumbling|rumbles", "a *thunderstorm|raging|rages"),
    "crying_baby baby_cry": ("a *baby|crying|cries", "an *infant|wailing|wails", "a *small child|crying|cries"),
    "sneezing person_sneeze": (
        "a person|sneezing|sneezes", "someone|sneezing|sneezes", "a *sneeze|bursting out|bursts out",
    ),
    "clapping": ("*people|clapping|clap", "*applause|sounding|sounds"),
    "breathing": ("someone|breathing|breathes", "a person|breathing heavily|breathes heavily"),
    "coughing": ("someone|coughing|coughs", "a person|coughing|coughs"),
    "footsteps": ("*footsteps|sounding|sound", "someone|walking|walks"),
    "laughing": ("someone|laughing|laughs", "a person|laughing|laughs"),
    "brushing_teeth": ("someone|brushing teeth|brushes teeth", "a *toothbrush|scrubbing|scrubs"),
    "snoring": ("someone|snoring|snores", "a sleeper|snoring|snores"),
    "drinking_sipping": ("someone|drinking|drinks", "a person|sipping a drink|sips a drink"),
    "door_wood_knock": ("someone|knocking on a door|knocks on a door", "a *knock on wood|sounding|sounds"),
    "mouse_click": ("a computer mouse|clicking|clicks", "someone|clicking a mouse|clicks a mouse"),
    "keyboard_typing": ("someone|typing on a keyboard|types on a keyboard", "a *keyboard|clattering|clatters"),
    "door_wood_creaks": ("a *door|creaking|creaks", "a *wooden door|squeaking|squeaks"),
    "can_opening": ("someone|opening a can|opens a can", "a *can|being opened|is opened"),
    "washing_machine": ("a *washing machine|running|runs", "a *washer|spinning|spins"),
    "vacuum_cleaner": ("a *vacuum cleaner|running|runs", "someone|vacuuming|vacuums"),
    "clock_alarm": ("an *alarm clock|going off|goes off", "an *alarm clock|ringing|rings"),
    "clock_tick": ("a *clock|ticking|ticks", "a *watch|ticking|ticks", "the *ticking of a clock|going on|goes on"),
    "glass_breaking": ("*glass|breaking|breaks", "*glass|shattering|shatters"),
    "helicopter": ("a *helicopter|flying|flies", "a *helicopter|hovering|hovers", "a *chopper|whirring|whirs"),
    "chainsaw": ("a *chainsaw|running|runs", "a *chainsaw|buzzing|buzzes", "a *power saw|roaring|roars"),
    "siren": ("a *siren|wailing|wails", "an *emergency siren|sounding|sounds"),
    "car_horn": ("a *car horn|honking|honks", "a *car|honking|honks"),
    "engine": ("an *engine|running|runs", "a *motor|running|runs"),
    "train": ("a *train|going by|goes by", "a *train|rattling along|rattles along"),
    "church_bells": ("*church bells|ringing|ring", "*bells|tolling|toll"),
    "airplane": ("an *airplane|flying|flies", "an *aircraft|passing|passes"),
    "fireworks": ("*fireworks|exploding|explode", "*fireworks|banging|bang"),
    "hand_saw": ("someone|sawing wood|saws wood", "a *handsaw|cutting|cuts"),
}  # fmt: skip
SYNONYMS = {name: phrases for names, phrases in WORDINGS.items() for name in names.split()}


@dataclass(frozen=True)
class Source:
    """One recording: its class, its split, its file, and what the scenes need to know of it."""

    event: str
    split: str
    path: str
    sha256: str
    kind: Kind


@register.corpus("clipfolder")
def load(
    root: str | PathLike[str],
    *,
    seed: int = 0,
    train: int = 1200,
    validation: int = 200,
    test: int = 500,
    duration: float = 10.0,
    rate: int = RATE,
    without: str | Sequence[str | int] = (),
    unseen: bool = False,
    difficulty: str = "plain",
) -> Corpus:
    """Scenes of `duration` seconds at `rate` Hz from recordings under root/<class>/, or ESC-50's audio/ and meta/.

    Folds, the digit before the first "-" of every file name, decide the split: 1 to 3 train, 4 validation, 5 test.
    Without them each class is split 60/20/20 by the hash of the file names, with a warning, and copies of a recording
    (`copies`) go where the first of them goes; `source` says how many there are. A split's scenes have
    different descriptions as long as its classes allow; `source` says how many have not.

    without: ids of recordings, the second field of a file's name, that no scene is mixed from, or "described": those of
    ESC-50 that people described in Clotho (CLOTHO_SOURCES). unseen: test scenes combine classes that occur together in
    no scene to train on. difficulty: as configs of before name what all scenes have, "plain".

    Raises CorpusError for a folder that cannot be used, naming the class or file and the mend.
    """
    root, wanted = Path(root).resolve(), {"train": train, "validation": validation, "test": test}
    check("clipfolder", wanted, duration)
    if rate < RATE:
        raise ValueError(f"clipfolder: rate {rate} Hz; give {RATE:,} or more")
    if difficulty != "plain":
        raise ValueError(f"clipfolder: difficulty {difficulty!r}; all scenes are 'plain': leave it out")
    entries, apart = _entries(root, without)
    sources, together = _sources(root, entries, [split for split, count in wanted.items() if count], rate)
    digests = {source.path: source.sha256 for source in sources}
    words = _words_of_classes(root, sources)

    def content(split: str, index: int, scene: Scene) -> tuple:
        used = [(digests[part.source], *part.spans, part.level) for part in scene.parts]
        at = () if rate == RATE else (rate,)
        return MIXER_VERSION, RECORDINGS.noise, seed, split, index, duration, scene.description, used, *at

    stream = partial(_scenes, seed, sources, duration)
    key = (str(root), wanted, seed, duration, stream, content, words, RECORDINGS)
    mend = "add classes or recordings, or ask for fewer clips"
    scenes, tables = draw_splits(*key, mend=mend, times=TIMES, unseen=unseen, repeats=True)
    mixes = {clip: (int(sha256(f"{seed} {clip}")[:16], 16), scene) for clip, scene in scenes.items()}
    licence = next((file.name for file in sorted(root.iterdir()) if file.name.lower().startswith("licen")), "unknown")
    counts = _counts(wanted, sources, tables[0])
    origin = f"scenes of {len(words)} classes in {root.name}: {counts}{apart}{copies.in_words(together)}"
    origin += "; test scenes of combinations that occur in none to train on" * unseen
    reader = ClipSceneReader(str(root), duration, mixes, digests, rate, RECORDINGS.noise)
    return Corpus(f"clipfolder-{root.name}", *tables, reader, f"{origin}; seed {seed}; licence: {licence}")


def _words_of_classes(root: Path, sources: list[Source]) -> dict[str, Words]:
    """By class. CorpusError: two that are worded alike."""
    owner: dict[Words, str] = {}
    words = {name: _words(name) for name in sorted({source.event for source in sources})}
    for name, own in words.items():
        if (other := owner.setdefault(own, name)) != name:
            problem = "worded alike, so that a caption of one would fit the other"
            twins = Problem(f"{root}, classes {other!r} and {name!r}", problem, "put them into one folder")
            raise CorpusError(f"clipfolder-{root.name}", [twins])
    return words


def _counts(wanted: Mapping[str, int], sources: list[Source], clips: pd.DataFrame) -> str:
    """Scenes and recordings of each split, in words."""
    words = []
    for split, count in wanted.items():
        recordings = sum(source.split == split for source in sources)
        alike = count - clips.loc[clips["split"] == split, "description"].nunique()
        repeats = f" ({alike} repeat a description)" if alike else ""
        words.append(f"{split} {count} scenes of {recordings} recordings{repeats}")
    return ", ".join(words)


@dataclass(frozen=True)
class ClipSceneReader:
    """Mixes the audio of a clip; recordings are decoded once a process."""

    root: str
    duration: float
    scenes: dict[str, tuple[int, Scene]]  # the seed of a clip's mixing, and what to mix
    hashes: dict[str, str]  # SHA-256 of each recording's file
    rate: int
    noise: tuple[float, float]

    def __call__(self, clip: str) -> tuple[np.ndarray, int]:
        if clip not in self.scenes:
            raise KeyError(f"clipfolder: no clip {clip!r} among {len(self.scenes)}; ask load() for more")
        seed, scene = self.scenes[clip]
        sounds = []
        for part in scene.parts:
            path = Path(self.root) / part.source
            wave = audio.from_int16(recording(str(path), self.hashes[part.source], self.rate))
            for onset, offset in part.spans:
                piece = _stretch(wave, round((offset - onset) * self.rate), self.rate)
                sounds.append((onset, fade(piece, 0.005, 0.05, self.rate), part.level))
        return mix(np.random.default_rng(seed), sounds, self.duration, self.noise, self.rate), self.rate

    def minimal_pairs(self, clip: str) -> dict[str, tuple[str, str, str, str]]:
        """As `wording.minimal_pairs`."""
        seed, scene = self.scenes[clip]
        words = {part.event: _words(part.event) for part in scene.parts}
        return minimal_pairs(random.Random(f"pairs {seed}"), scene, words, TIMES)

    def sentence(self, event: str) -> str:
        """As `wording.sentence`."""
        return sentence(event, _words(event))


@lru_cache(maxsize=2_000)
def recording(path: str, sha256: str, rate: int = RATE) -> np.ndarray:
    """A recording at `rate` Hz, its silent ends cut, at most 30 s, peak 1: int16 (samples,).

    Raises AudioError, also if the file is not the one of this SHA-256.
    """
    wave = audio.resample(*files.read(Path(path), sha256), rate)
    wave = wave / max(np.abs(wave).max(), 1e-9)
    sounding = np.flatnonzero(np.abs(wave) > SILENCE)
    wave = wave[sounding[0] : sounding[-1] + 1][: int(SECONDS[1] * rate)]
    return (wave * audio.FULL_SCALE).astype(np.int16)  # not rounded: as the clips of MIXER_VERSION 1 are


def _stretch(wave: np.ndarray, length: int, rate: int) -> np.ndarray:
    """The first `length` samples; a shorter recording is looped with cross-fades of a quarter second."""
    overlap = min(rate // 4, len(wave) // 4)
    loop = wave
    while len(loop) < length:
        ramp = np.linspace(0, 1, overlap, dtype=np.float32)
        joint = loop[-overlap:] * np.sqrt(1 - ramp) + wave[:overlap] * np.sqrt(ramp)
        loop = np.concatenate([loop[:-overlap], joint, wave[overlap:]])
    return loop[:length].copy()


def _kind(wave: np.ndarray, rate: int) -> Kind:
    """How a recording (int16) can be used: repeated if short, as a background if long and without pauses."""
    seconds, hop = len(wave) / rate, round(HOP * rate)
    frames = np.abs(wave[: len(wave) // hop * hop].astype(np.float32)).reshape(-1, hop).max(axis=1, initial=0)
    loud = np.flatnonzero(frames > PAUSE * audio.FULL_SCALE)
    pause = np.diff(loud).max(initial=1) * hop / rate
    if seconds < COUNTABLE and pause < LONGEST_PAUSE:
        return Kind(False, (seconds, seconds), step=seconds + 0.5)
    return Kind(True, (min(seconds, 1.5), seconds), loops=seconds >= COUNTABLE and pause < LONGEST_PAUSE)


def _words(name: str) -> Words:
    composed = unicodedata.normalize("NFC", name.lower())
    key = "_".join("".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in composed).split())
    key = re.sub(r"^\d+_+(?=\D)", "", key)  # "001 - Dog bark"
    plain = key.replace("_", " ")
    sound, general = f"the sound of {plain}|being heard|is heard", f"a *{plain} sound|playing|plays"
    return Words(SYNONYMS.get(key, (sound, general, f"{plain}|sounding|sounds")))


def _scenes(seed: int, sources: list[Source], duration: float, split: str) -> Iterator[Scene | None]:
    rng = random.Random(f"scenes {seed} {split}")
    kinds: dict[str, list[Kind]] = {}
    for source in sources:
        if source.split == split:
            kinds.setdefault(source.event, []).append(source.kind)
    while True:
        yield draw(rng, list(kinds), lambda name: rng.choice(kinds[name]), duration, RECORDINGS)


def _sources(
    root: Path, entries: list[tuple[str, str, Path]], splits: list[str], rate: int
) -> tuple[list[Source], dict[str, str]]:
    """The recordings of a listing, decoded once, and the first of each one's copies if the splits are drawn here;
    raises CorpusError listing all that is wrong.
    """
    facts = files.index(root, (path.relative_to(root).as_posix() for _, _, path in entries))
    problems, sources = [], []
    owner: dict[str, tuple[str, Path]] = {}
    for event, split, path in tqdm(entries, desc=f"reading {root.name}", disable=None, leave=False):
        relative = path.relative_to(root).as_posix()
        try:
            fact = facts[relative]
            if isinstance(fact, containers.AudioError):
                raise fact
            kind = _kind(recording(str(path), fact.digest, rate), rate)
        except containers.AudioError as error:
            problems.append(Problem(error.where, error.problem, error.mend))
            continue
        twin_split, twin = owner.setdefault(fact.digest, (split, path))
        if twin_split != split:
            problems.append(Problem(str(path), f"the same recording as {twin}, in another split", "delete one of them"))
        sources.append(Source(event, split, relative, fact.digest, replace(kind, source=relative)))
    together: dict[str, str] = {}
    if not problems and not all(source.split for source in sources):
        together, errors = copies.groups(root, {source.path: source.sha256 for source in sources})
        problems += [Problem(error.where, error.problem, error.mend) for error in errors]
        sources = _assign_splits(sources, together)
    mend = "add recordings of this class (of the folds 1-3, 4 and 5 if names carry folds) or remove its folder"
    for event in sorted({event for event, _, _ in entries}):
        for split in splits:
            if not any(source.event == event and source.split in (split, "") for source in sources):
                problems.append(Problem(f"{root}, class {event!r}", f"no recording for the split {split!r}", mend))
    if problems:
        raise CorpusError(f"clipfolder-{root.name}", problems)
    return sources, together


def _entries(root: Path, without: str | Sequence[str | int]) -> tuple[list[tuple[str, str, Path]], str]:
    """The recordings that scenes are mixed from, as in `_listing`, and in words how many are held out."""
    if isinstance(without, str) and without != "described":
        raise ValueError(f"clipfolder: without {without!r}; give ids of recordings, or 'described'")
    held_out = frozenset(CLOTHO_SOURCES if without == "described" else map(str, without))
    listing = _listing(root)
    entries = [entry for entry in listing if _id(entry[2]) not in held_out]
    left_out = len(listing) - len(entries)
    if held_out and not left_out and without != "described":
        few = ", ".join(sorted(held_out)[:3])
        raise ValueError(f"{root}: has no recordings to be held out ({few}, …); correct the list or leave it out")
    return entries, f", {left_out} recordings held out" if held_out else ""


def _listing(root: Path) -> list[tuple[str, str, Path]]:
    """Class, split and path of each recording, in an order that does not depend on the file system; no split where
    neither a table nor the file names have one.
    """

    def failure(problem: str, mend: str) -> CorpusError:
        return CorpusError(f"clipfolder-{root.name}", [Problem(str(root), problem, mend)])

    if not root.is_dir():
        raise failure("no such folder", "give the folder that holds one folder of recordings a class")
    table = root / "meta" / "esc50.csv"
    if table.is_file():
        return [(row["category"], split, root / path) for row, split, path in esc50(root)]
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    by_event = {folder.name: sorted(p for p in folder.iterdir() if files.is_audio(p.name)) for folder in folders}
    by_event = {event: paths for event, paths in by_event.items() if paths}
    if not by_event:
        problem = f"no class folders with {', '.join(sorted(files.SUFFIXES))} files"
        raise failure(problem, "lay the recordings out as <root>/<class>/<clip>.wav")
    everything = [(event, path) for event, paths in by_event.items() for path in paths]
    if all(re.match("[1-5]-", path.name) for _, path in everything):
        return [(event, FOLDS[int(path.name[0])], path) for event, path in everything]
    warnings.warn(
        f"{root}: file names carry no folds (1-… to 5-…); split 60/20/20 by their hashes, so that recordings "
        "of one origin may lie in several splits",
        stacklevel=4,
    )
    return [(event, "", path) for event, paths in by_event.items() for path in sorted(paths, key=_name_hash)]


def _id(path: Path) -> str:
    """Of a recording: the second field of `<fold>-<id>-<take>`, else the name without its suffix."""
    fields = path.stem.split("-")
    return fields[1] if len(fields) > 1 else path.stem


def _name_hash(path: Path) -> str:
    return sha256(os.fsencode(unicodedata.normalize("NFC", path.name)))


def _assign_splits(sources: list[Source], together: dict[str, str]) -> list[Source]:
    """Sources with splits, a class's in order, where no copy comes before its original; every split has one where there
    are three different ones.
    """
    originals: dict[str, list[str]] = {}
    for source in sources:
        if together[source.path] == source.path:
            originals.setdefault(source.event, []).append(source.path)
    split_of: dict[str, str] = {}
    for paths in originals.values():
        tests = max(1, round(SHARES["test"] * len(paths)))
        training = len(paths) - 2 * tests
        splits = ["train"] * max(1, training) + ["validation"] * tests + ["test"] * tests
        split_of |= dict(zip(paths, splits, strict=False))
    return [replace(source, split=split_of[together[source.path]]) for source in sources]


def esc50(root: Path) -> list[tuple[dict[str, str], str, str]]:
    """The rows of root/meta/esc50.csv by file name, each with its split and its file below the root, there or not."""
    table = root / "meta" / "esc50.csv"
    rows = csvtable.read_table("esc50", table, ("filename", "fold", "category"))
    rows.sort(key=lambda row: row["filename"])
    there = {f"audio/{path}": path for path in files.listing(root / "audio")} if (root / "audio").is_dir() else {}
    matches, unclear = files.join((row["filename"] for row in rows), there)
    problems = [files.unclear_problem(f"{table}, {name!r}", paths) for name, paths in unclear.items()]
    for row in rows:
        if row["fold"] not in map(str, FOLDS):
            where = f"{table}, {row['filename']!r}"
            problems.append(Problem(where, f"fold {row['fold']!r}", "correct it to one of 1 to 5, or fetch it again"))
    if problems:
        raise CorpusError("esc50", problems)
    return [(row, FOLDS[int(row["fold"])], matches.get(row["filename"], f"audio/{row['filename']}")) for row in rows]
