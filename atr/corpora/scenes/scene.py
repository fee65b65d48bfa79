"""Scenes of one to three sound events: what they are, how they are described and mixed.

A scene is drawn without any audio: which events, in which relation, how often, how loud, when. Captions are worded
from it alone (`wording`). The corpora on top bring the sounds: synthesised (`soundscapes`) or recorded (`clipfolder`).
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TypeVar

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft

from atr.corpora.corpus import CorpusError, Problem
from atr.corpora.scenes.waveforms import RATE

Choice = TypeVar("Choice")
SECONDS = (4.0, 30.0)  # shortest and longest scene

# Levels in dB relative to full scale, of an event's louder parts.
LEVELS = {"soft": (-35.0, -31.0), "": (-28.0, -22.0), "loud": (-17.0, -13.0)}
BACKGROUND_LEVEL = (-36.0, -32.0)  # an event under others
NOISE_TILT = (-9.0, 0.0)  # its colour in dB per octave
REVERB_SECONDS = (0.1, 0.6)  # time to fall by 60 dB
REVERB_LEVEL = (-20.0, -6.0)  # energy of the reverberation relative to the direct sound, dB
MICROPHONE_TILT = (-1.5, 1.5)  # dB per octave
LOUDNESS_SHARE = 0.4  # of events whose loudness is remarkable (soft or loud)
PITCH_SHARE = 0.6  # of events with a pitch whose pitch is remarkable (low or high)
PITCHES = {"low": (0.58, 0.72), "": (0.92, 1.08), "high": (1.4, 1.7)}

RELATIONS = {
    1: {"alone": 1.0},
    2: {"then": 0.4, "while": 0.3, "over": 0.3},
    3: {"then then": 0.35, "then over": 0.4, "while over": 0.25},
}

MANY = 4  # counts from here on are only "many"
COUNTS = {1: "once", 2: "twice", 3: "three times", MANY: "many times"}


@dataclass(frozen=True)
class Difficulty:
    """How hard one source of sounds is made, so that systems differ: recordings are hard enough by themselves.

    noise: lowest and highest level of the steady noise under a scene, dB. say: chance that a caption mentions an
    attribute, by the number of events. vague: chance that a caption leaves the relation open. events: share of scenes
    with so many events.
    """

    noise: tuple[float, float]
    say: Mapping[int, float]
    vague: float
    events: Mapping[int, float] = field(default_factory=lambda: {1: 0.25, 2: 0.5, 3: 0.25})


SYNTHETIC = Difficulty(noise=(-48.0, -34.0), say={1: 0.6, 2: 0.45, 3: 0.2}, vague=0.3)
RECORDINGS = Difficulty(noise=(-70.0, -55.0), say={1: 0.9, 2: 0.8, 3: 0.6}, vague=0.05)


@dataclass(frozen=True)
class Kind:
    """How an event behaves in time.

    sustained: heard as one stretch (rain); else as separate occurrences that can be counted (a bark).
    seconds: shortest and longest stretch, or occurrence. step: shortest time between the onsets of two occurrences.
    loops: may fill a whole scene from end to end. source: the recording it comes from, if it is recorded.
    """

    sustained: bool
    seconds: tuple[float, float]
    step: float = 0.0
    pitched: bool = False
    loops: bool = False
    source: str = ""


@dataclass(frozen=True)
class Part:  # a clip's digest holds its name and fields
    """One event of a scene. spans: onset and offset of each occurrence, in seconds; level in dB; pitch as a factor."""

    event: str
    spans: tuple[tuple[float, float], ...]
    count: int = 0  # 0 for a sustained event
    loudness: str = ""
    register: str = ""
    level: float = 0.0
    pitch: float = 1.0
    source: str = ""

    @property
    def wording(self) -> str:
        words = (self.event, COUNTS[min(self.count, MANY)] if self.count else "", self.register, self.loudness)
        return " ".join(word for word in words if word)


@dataclass(frozen=True)
class Scene:
    """One to three parts in one of RELATIONS. The part under an "over" comes last."""

    relation: str
    parts: tuple[Part, ...]

    @property
    def description(self) -> str:
        """What is true of the scene and may be said. Events at the same time come in the order of their names."""
        joints = self.relation.split() if len(self.parts) > 1 else []
        words = [self.parts[0].wording]
        for joint, part in zip(joints, self.parts[1:], strict=True):
            words += [joint, part.wording]
        return " ".join(words)


def draw(
    rng: random.Random,
    names: Sequence[str],
    kind: Callable[[str], Kind],
    duration: float,
    difficulty: Difficulty = SYNTHETIC,
) -> Scene | None:
    """One scene of `duration` seconds from the events `names`; None if the draw does not fit, to be drawn again.

    kind(name) gives the event's behaviour, and may draw a recording for it.
    """
    number = _choose(rng, {n: share for n, share in difficulty.events.items() if n <= len(names)})
    relation = _choose(rng, RELATIONS[number])
    picks = rng.sample(list(names), number)
    if relation.startswith("while"):
        picks[:2] = sorted(picks[:2])
    kinds = [kind(name) for name in picks]
    if relation.endswith("over") and not kinds[-1].loops:
        return None
    front = kinds[:-1] if relation.endswith("over") else kinds
    shortest = min((one.seconds[1] for one in front if one.sustained), default=duration)
    slots = _slots(rng, relation, len(front), duration, shortest)
    # A soft event over another might not be heard; two at the same time come about equally loud.
    remarkable = () if "while" in relation else ("loud",) if "over" in relation else ("soft", "loud")
    parts = []
    for index, (name, one) in enumerate(zip(picks, kinds, strict=True)):
        if index == len(front):
            pitch, level = rng.uniform(*PITCHES[""]), rng.uniform(*BACKGROUND_LEVEL)
            parts.append(Part(name, ((0.0, duration),), level=level, pitch=pitch, source=one.source))
            continue
        spans = _spans(rng, one, slots[index], relation.startswith("while"))
        if spans is None:
            return None
        register = rng.choice(["low", "high"]) if one.pitched and rng.random() < PITCH_SHARE else ""
        degree = rng.choice(remarkable) if remarkable and rng.random() < LOUDNESS_SHARE else ""
        level, pitch = rng.uniform(*LEVELS[degree]), rng.uniform(*PITCHES[register])
        count = 0 if one.sustained else len(spans)
        parts.append(Part(name, spans, count, degree, register, level, pitch, one.source))
    return Scene(relation, tuple(parts))


def check(corpus: str, counts: Mapping[str, int], duration: float) -> None:
    """ValueError: no corpus has so many scenes by split, or scenes of so many seconds."""
    if not SECONDS[0] <= duration <= SECONDS[1]:
        raise ValueError(f"{corpus}: duration {duration} s; give {SECONDS[0]:.0f} to {SECONDS[1]:.0f} s")
    for split, count in counts.items():
        if count < 0:
            raise ValueError(f"{corpus}: {split}={count}; give 0 or more")


def distinct(scenes: Iterator[Scene | None], count: int, where: str, mend: str, repeats: bool = False) -> list[Scene]:
    """The first `count` scenes of the stream that differ in description, so that more scenes never change the earlier.

    repeats: accept equal descriptions once 300 draws in a row brought none that is new; else that is a CorpusError.
    """
    different: list[Scene] = []
    descriptions: set[str] = set()
    stale = 0
    while len(different) < count:
        scene = next(scenes)
        stale += 1
        if scene is not None and ((description := scene.description) not in descriptions or (repeats and stale > 300)):
            descriptions.add(description)
            different.append(scene)
            stale = 0
        if stale > 3_000:
            raise CorpusError(where, [Problem(where, f"{len(different)} different scenes found, {count} wanted", mend)])
    return different


def new_combinations(scenes: Iterator[Scene | None], training: Sequence[Scene]) -> Iterator[Scene | None]:
    """A stream less the scenes of one kind of sound, and those whose kinds all occur together in a known scene."""
    together = set()
    for kinds in (sorted({part.event for part in scene.parts}) for scene in training):
        together |= {some for size in range(2, len(kinds) + 1) for some in combinations(kinds, size)}
    for scene in scenes:
        kinds = sorted({part.event for part in scene.parts}) if scene else []
        yield scene if len(kinds) > 1 and tuple(kinds) not in together else None


def _choose(rng: random.Random, shares: Mapping[Choice, float]) -> Choice:
    return rng.choices(list(shares), list(shares.values()))[0]


def _slots(rng: random.Random, relation: str, number: int, duration: float, shortest: float) -> list:
    """Start and end in seconds of the stretch in which each of the front events lies.

    shortest: what the events can fill, in seconds; those at the same time share a stretch of about that length.
    """
    start, end = (0.02 + 0.04 * rng.random()) * duration, (1 - 0.02 - 0.04 * rng.random()) * duration
    if relation.startswith("then") and number > 1:
        cuts = [start + (end - start) * (k + rng.uniform(-0.12, 0.12)) / number for k in range(1, number)]
        edges = [start, *cuts, end]
        return [(a, b - 0.02 * duration) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    if relation.startswith("while"):
        length = min(rng.uniform(0.6, 1.0) * (end - start), max(1.1 * shortest, 2.0))
        start += rng.random() * (end - start - length)
        return [(start, start + length)] * 2
    return [(start, end)]


def _spans(rng: random.Random, kind: Kind, slot: tuple[float, float], fill: bool) -> tuple | None:
    """Onsets and offsets of an event inside its slot; None if it does not fit. fill: over the slot's whole length."""
    start, end = slot
    shortest, longest = kind.seconds
    if shortest > end - start:
        return None
    if kind.sustained:
        length = min(longest, (end - start) * (rng.uniform(0.9, 1.0) if fill else rng.uniform(0.6, 1.0)))
        length = max(length, shortest)
        onset = start + (rng.uniform(0.35, 0.65) if fill else rng.random()) * (end - start - length)
        return ((round(onset, 3), round(onset + length, 3)),)
    room = int((end - start - shortest) / kind.step) + 1
    count = rng.choices([1, 2, 3, MANY], [0.3, 0.25, 0.25, 0.2])[0]
    count = 2 if fill and count == 1 and room > 1 else count
    if count > room:
        return None
    count = min(rng.randint(MANY, 6), room) if count == MANY else count
    seconds = rng.uniform(shortest, min(longest, end - start - kind.step * (count - 1)))
    if count == 1:
        step = 0.0
    else:
        widest = (end - start - seconds) / (count - 1)
        bounds = (max(kind.step, 0.7 * widest), widest) if fill else (kind.step, min(widest, kind.step + 1.2))
        step = rng.uniform(*bounds)
        seconds = min(seconds, step - 0.05)
    onset = start + rng.random() * (end - start - seconds - step * (count - 1))
    onsets = [onset + step * k for k in range(count)]
    return tuple((round(o, 3), round(o + seconds, 3)) for o in onsets)


def mix(
    rng: np.random.Generator,
    sounds: Sequence[tuple[float, np.ndarray, float]],
    duration: float,
    noise: tuple[float, float],
    rate: int = RATE,
) -> np.ndarray:
    """Mix sounds, each (onset in seconds, waveform at `rate` Hz, level in dB), in a random room over noise (dB): peak
    below 1.
    """
    length = round(duration * rate)
    size = next_fast_len(length + round(REVERB_SECONDS[1] * rate), real=True)  # the last echo must not wrap around
    dry = np.zeros(size, np.float32)
    for onset, wave, level in sounds:
        start = min(max(round(onset * rate), 0), length - 1)
        wave = wave[: length - start]
        dry[start : start + len(wave)] += wave * (10 ** (level / 20) / loudness(wave, rate))
    frequency = np.arange(size // 2 + 1, dtype=np.float32) * (rate / size) + 20.0
    tail = round(rng.uniform(*REVERB_SECONDS) * rate)
    response = rng.standard_normal(tail, dtype=np.float32) * np.exp(np.linspace(0, -6.9, tail, dtype=np.float32))
    response *= 10 ** (rng.uniform(*REVERB_LEVEL) / 20) / np.sqrt(np.sum(response**2))
    response[0] = 1.0
    colour = (frequency / 1_000) ** np.float32(rng.uniform(*MICROPHONE_TILT) / 6.02)
    spectrum = rfft(dry) * rfft(response, size) * colour
    hiss = rng.standard_normal(2 * len(frequency), dtype=np.float32).view(np.complex64)
    hiss *= frequency ** np.float32(rng.uniform(*NOISE_TILT) / 6.02)
    power = np.sqrt(2 * np.sum(np.abs(hiss) ** 2)) / size  # RMS after the inverse transform
    spectrum += hiss * (10 ** (rng.uniform(*noise) / 20) / power)
    wave = irfft(spectrum, size)[:length]
    peak = np.abs(wave).max()
    return wave if peak < 0.7 else (np.tanh(wave / 0.9) * 0.9).astype(np.float32)  # an overloaded microphone


def loudness(wave: np.ndarray, rate: int = RATE) -> float:
    """RMS of the louder tenth-seconds of a sound (samples,): their 80th percentile, so that pauses do not count."""
    frames = len(wave) // (rate // 10)
    if frames < 3:
        return float(np.sqrt(np.mean(wave**2))) + 1e-9
    power = np.mean(wave[: frames * (rate // 10)].reshape(frames, -1) ** 2, axis=1)
    return float(np.sqrt(np.sort(power)[int(0.8 * frames)])) + 1e-9


def fade(wave: np.ndarray, attack: float, release: float, rate: int = RATE) -> np.ndarray:
    """The sound with linear ramps of so many seconds at its ends, so that it neither starts nor ends with a click."""
    wave = wave.astype(np.float32)
    rise, fall = (min(max(int(seconds * rate), 1), len(wave) // 2) for seconds in (attack, release))
    wave[:rise] *= np.linspace(0, 1, rise, dtype=np.float32)
    wave[len(wave) - fall :] *= np.linspace(1, 0, fall, dtype=np.float32)
    return wave
