"""Embedded corpus: synthesised scenes of one to three sound events, with five captions each. Nothing is downloaded.

Each clip is a pure function of (seed, split, index): asking for more clips never changes the earlier ones, and the
audio is generated when it is read.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from atr import register
from atr.corpora.corpus import SPLITS, Corpus
from atr.corpora.scenes.scene import RATE, SYNTHETIC, Kind, Scene, check, draw, fade, mix
from atr.corpora.scenes.splits import draw_splits
from atr.corpora.scenes.synthesis import synthesise
from atr.corpora.scenes.wording import Words, minimal_pairs, sentence

GENERATOR_VERSION = 1  # raise it when the same scene sounds different


def stretch(shortest: float, *phrases: str, pitched: bool = False, loops: bool = True) -> tuple[Kind, Words]:
    """An event of one stretch, of `shortest` to 60 s; phrases as in `Words`."""
    return Kind(True, (shortest, 60.0), pitched=pitched, loops=loops), Words(phrases)


def occurrences(seconds: tuple[float, float], step: float, *phrases: str, pitched: bool = False, **adjectives):
    """An event of occurrences of so many seconds, their onsets at least `step` seconds apart."""
    return Kind(False, seconds, step, pitched), Words(phrases, **adjectives)


EVENTS: dict[str, tuple[Kind, Words]] = {
    "rain": stretch(
        1.5, "rain|falling|falls", "rain|pouring down|pours down", "raindrops|pattering|patter",
        "a *shower of rain|coming down|comes down",
    ),
    "wind": stretch(
        2.0, "wind|blowing|blows", "the wind|howling|howls", "gusts of wind|sweeping by|sweep by",
        "a *wind|blowing|blows",
    ),
    "thunder": occurrences(
        (2.2, 3.5), 2.3, "thunder|rumbling|rumbles", "a *clap of thunder|rolling|rolls", "thunder|booming|booms",
        "a thunderstorm|rumbling|rumbles",
    ),
    "waves": stretch(
        3.0, "waves|crashing|crash", "waves|rolling onto a beach|roll onto a beach", "the sea|surging|surges",
        "ocean waves|breaking|break",
    ),
    "fire": stretch(
        1.5, "a *fire|crackling|crackles", "flames|crackling and popping|crackle and pop",
        "burning wood|crackling|crackles", "a *campfire|burning|burns",
    ),
    "engine": stretch(
        1.5, "a *engine|running|runs", "a *motor|humming|hums", "a *engine|idling|idles", "a *motor|rattling|rattles",
        pitched=True,
    ),
    "helicopter": stretch(
        2.0, "a *helicopter|flying|flies", "a *helicopter|hovering|hovers", "a *chopper|flying overhead|flies overhead",
        "helicopter blades|whirring|whir",
    ),
    "siren": stretch(
        2.0, "a *siren|wailing|wails", "a *siren|sounding|sounds", "a *police siren|blaring|blares",
        "a *ambulance siren|going off|goes off", pitched=True, loops=False,
    ),
    "alarm": stretch(
        1.5, "a *alarm|beeping|beeps", "a *alarm|going off|goes off", "a *electronic alarm|sounding|sounds",
        "a *smoke detector|beeping|beeps", pitched=True, loops=False,
    ),
    "telephone": occurrences(
        (0.9, 1.5), 1.4, "a *telephone|ringing|rings", "a *phone|ringing|rings", "a *landline phone|ringing|rings",
        pitched=True,
    ),
    "bell": occurrences(
        (1.2, 2.8), 1.2, "a *bell|ringing|rings", "a *bell|tolling|tolls", "a *church bell|chiming|chimes", pitched=True
    ),
    "clock": stretch(
        1.5, "a *clock|ticking|ticks", "a *wall clock|ticking away|ticks away", "a *watch|ticking|ticks",
        "the *tick-tock of a clock|going on|goes on",
    ),
    "footsteps": stretch(
        2.0, "*footsteps|sounding|sound", "someone|walking|walks", "a person|walking along|walks along",
        "someone|taking steps|takes steps", loops=False,
    ),
    "knocking": occurrences(
        (0.2, 0.3), 0.3, "someone|knocking on a door|knocks on a door", "a hand|knocking on wood|knocks on wood",
        "a person|rapping on a door|raps on a door", "a visitor|knocking at the door|knocks at the door",
    ),
    "clapping": stretch(
        1.5, "people|clapping|clap", "hands|clapping|clap", "a *group of people|applauding|applauds",
        "*applause|sounding|sounds", loops=False,
    ),
    "bark": occurrences(
        (0.2, 0.4), 0.45, "a *dog|barking|barks", "a *dog|woofing|woofs", "a *hound|yapping|yaps", pitched=True,
        low=("big", "deep-voiced", "large"), high=("small", "little", "high-pitched"),
    ),
    "birdsong": stretch(
        2.0, "birds|singing|sing", "a bird|chirping|chirps", "birds|twittering|twitter", "a *songbird|singing|sings"
    ),
    "crickets": stretch(
        2.0, "crickets|chirping|chirp", "insects|chirping|chirp", "a *cricket|chirping|chirps", "crickets|singing|sing"
    ),
    "frog": occurrences(
        (0.3, 0.6), 0.6, "a *frog|croaking|croaks", "a *toad|croaking|croaks", "a *frog|ribbiting|ribbits",
        pitched=True, low=("deep-voiced", "big", "low-pitched"), high=("high-pitched", "small", "little"),
    ),
    "bees": stretch(
        1.5, "bees|buzzing|buzz", "a *swarm of bees|humming|hums", "insects|buzzing around|buzz around",
        "a *swarm of flies|buzzing|buzzes",
    ),
    "whistle": occurrences(
        (0.4, 1.0), 0.7, "a *whistle|blowing|blows", "a *whistle|sounding|sounds", "a *whistle|being blown|is blown",
        pitched=True,
    ),
    "dripping": stretch(
        2.0, "water|dripping|drips", "drops of water|falling|fall", "a tap|dripping|drips",
        "a leaky faucet|dripping|drips",
    ),
    "saw": stretch(
        2.0, "someone|sawing wood|saws wood", "a *saw|cutting wood|cuts wood", "a *handsaw|rasping|rasps",
        "a person|sawing|saws", loops=False,
    ),
    "horn": occurrences(
        (0.3, 1.1), 0.6, "a *car horn|honking|honks", "a *horn|blowing|blows", "a *car|honking|honks",
        "a *horn|beeping|beeps", pitched=True,
    ),
}  # fmt: skip


@register.corpus("soundscapes")
def load(
    *,
    seed: int = 0,
    train: int = 1200,
    validation: int = 200,
    test: int = 500,
    duration: float = 10.0,
    events: Sequence[str] | None = None,
    unseen: bool = False,
) -> Corpus:
    """Scenes of `duration` seconds at 16 kHz, mono. Scenes of one split differ in description.

    events: names from EVENTS to use; all by default. unseen: test scenes combine sounds that occur together in no scene
    to train on. Raises ValueError for unknown names and impossible numbers, and CorpusError if so few events do not
    make so many different scenes.
    """
    names = tuple(sorted(EVENTS if events is None else set(events)))
    unknown = sorted(set(names) - set(EVENTS))
    if unknown or not names:
        raise ValueError(f"soundscapes: unknown events {unknown}; known: {', '.join(EVENTS)}")
    counts = dict(zip(SPLITS, (train, validation, test), strict=True))
    check("soundscapes", counts, duration)

    def content(split: str, index: int, scene: Scene) -> tuple:
        return GENERATOR_VERSION, SYNTHETIC.noise, seed, split, index, names, duration, scene.description, scene

    def stream(split: str) -> Iterator[Scene | None]:
        rng = random.Random(f"scenes {seed} {split}")
        while True:
            yield draw(rng, names, lambda name: EVENTS[name][0], duration, SYNTHETIC)

    mend = "ask for fewer clips in '{split}' or use more events"
    key = ("soundscapes", counts, seed, duration, stream, content, WORDS, SYNTHETIC)
    scenes, tables = draw_splits(*key, mend=mend, unseen=unseen)
    source = f"synthesised scenes of {len(names)} kinds of sound, generator {GENERATOR_VERSION}, seed {seed}; MIT"
    source += "; test scenes of combinations that occur in none to train on" * unseen
    return Corpus("soundscapes", *tables, SoundscapeReader(seed, duration, scenes), source)


WORDS = {name: words for name, (_, words) in EVENTS.items()}


@dataclass(frozen=True)
class SoundscapeReader:
    """Generates the audio of a clip, (samples,) float32 at 16 kHz. KeyError: a clip that the corpus has not."""

    seed: int
    duration: float
    scenes: dict[str, Scene]

    def __call__(self, clip: str) -> tuple[np.ndarray, int]:
        if clip not in self.scenes:
            raise KeyError(f"soundscapes: no clip {clip!r} among {len(self.scenes)}; ask load() for more")
        split, index = clip.rsplit("-", 1)
        rng = np.random.default_rng([GENERATOR_VERSION, self.seed, SPLITS.index(split), int(index)])
        sounds = []
        for part in self.scenes[clip].parts:
            timbre = int(rng.integers(1 << 32))  # one dog barks three times, not three dogs
            for onset, offset in part.spans:
                wave = synthesise(part.event, np.random.default_rng(timbre), offset - onset, part.pitch)
                ends = (0.15, 0.4) if EVENTS[part.event][0].sustained else (0.001, 0.02)
                sounds.append((onset, fade(wave, *ends), part.level + float(rng.uniform(-1, 1))))
        return mix(rng, sounds, self.duration, SYNTHETIC.noise), RATE

    def minimal_pairs(self, clip: str) -> dict[str, tuple[str, str, str, str]]:
        """As `wording.minimal_pairs`."""
        return minimal_pairs(random.Random(f"pairs {self.seed} {clip}"), self.scenes[clip], WORDS)

    def sentence(self, event: str) -> str:
        """As `wording.sentence`."""
        return sentence(event, WORDS[event])
