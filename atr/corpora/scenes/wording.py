"""Captions of scenes: worded from what a scene fixes, and saying no more than that."""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

from atr.corpora.scenes.scene import COUNTS, MANY, Difficulty, Part, Scene

CAPTIONS = 5  # of a scene
WORDS = (5, 16)  # fewest and most words of a caption


@dataclass(frozen=True)
class Words:
    """Wordings of an event: "subject|doing|does" each. A * in the subject is where an adjective fits."""

    phrases: tuple[str, ...]
    low: tuple[str, ...] = ("low-pitched", "deep", "low")
    high: tuple[str, ...] = ("high-pitched", "shrill", "high")


SOFTLY = ("softly", "quietly", "faintly")
LOUDLY = ("loudly", "noisily")
SOFT = ("soft", "quiet", "faint")
LOUD = ("loud", "noisy")
TIMES: dict[int, tuple[str, ...]] = {
    1: ("once", "a single time", "just once"),
    2: ("twice", "two times"),
    3: ("three times",),
    MANY: ("repeatedly", "several times", "again and again", "many times"),
}

# {a} is the first event as "a dog barking", {A} as "a dog barks"; {z} and {Z} the background.
TEMPLATES = {
    "alone": (
        "{a}", "{A}", "the sound of {a}", "{a} can be heard", "only {a}", "one can hear {a}", "{A} and nothing else",
        "a recording of {a}", "listen to {a}",
    ),
    "then": (
        "{a}, then {b}", "{a} followed by {b}", "{A} and then {B}", "first {A}, then {B}", "{b} after {a}",
        "after {a}, {B}", "{A} before {B}", "{A}, and afterwards {B}", "{a} and later {b}", "{b} preceded by {a}",
    ),
    "while": (
        "{A} while {B}", "{a} and {b} at the same time", "{A} as {B}", "{a} together with {b}", "{a} along with {b}",
        "{a} mixed with {b}", "as {A}, {B}", "{A} and meanwhile {B}", "{B} while {A}", "{B} as {A}",
    ),
    "over": (
        "{a} with {z} in the background", "{A} while {Z} in the background", "{a} over {z}",
        "in the background {Z}, {A}", "{A}, with {z} behind it", "{a} against a background of {z}",
        "{Z} in the background as {A}", "{z} throughout, and {a}", "{Z} the whole time and {A}",
    ),
    "then then": (
        "{a}, then {b}, then {c}", "{a} followed by {b} and finally {c}", "first {A}, then {B} and lastly {C}",
        "{a}, {b} and then {c}", "{A}, {B} and finally {C}", "{a} before {b} and then {c}", "{c} after {a} and {b}",
    ),
    "then over": (
        "{a} then {b}, with {z} in the background", "{a} followed by {b} over {z}", "over {z}, {A} and then {B}",
        "{A} before {B} while {Z} in the background", "in the background {Z}, {A}, then {B}",
        "{b} after {a}, against {z}", "{z} throughout, with {a} and then {b}",
    ),
    "while over": (
        "{a} and {b} together over {z}", "{A} while {B}, with {z} in the background", "over {z}, {A} as {B}",
        "{a} along with {b}, {z} in the background", "{Z} in the background as {A} and {B}",
        "{z} throughout, {a} mixed with {b}",
    ),
}  # fmt: skip
OPEN_TEMPLATES = {
    2: ("{a} and {b}", "{b} and {a}", "the sounds of {a} and {b}", "{A} and {B}", "{B} and {A}"),
    3: ("{a}, {b} and {c}", "{c}, {a} and {b}", "{a} and {b}", "{a} and {c}", "{b} and {c}"),
}


def caption(
    rng: random.Random, scene: Scene, words: Mapping[str, Words], difficulty: Difficulty, times: Mapping = TIMES
) -> str:
    """One caption in lower case without final punctuation."""
    number = len(scene.parts)
    templates = TEMPLATES[scene.relation]
    if number > 1 and rng.random() < difficulty.vague:
        templates = OPEN_TEMPLATES[number]
    letters = dict(zip("abc", scene.parts, strict=False)) | {"z": scene.parts[-1]}

    def fill(match: re.Match) -> str:
        letter = match[1]
        part = letters[letter.lower()]
        return _clause(rng, part, words[part.event], letter.isupper(), difficulty.say[number], times)

    return re.sub(r"{(\w)}", fill, rng.choice(templates))


def captions(
    rng: random.Random, scene: Scene, words: Mapping[str, Words], difficulty: Difficulty, times: Mapping = TIMES
) -> list[str]:
    """CAPTIONS captions of a scene in different wordings and styles of writing."""
    result: dict[str, str] = {}
    attempts = 0
    while len(result) < CAPTIONS:
        text = caption(rng, scene, words, difficulty, times)
        attempts += 1
        # Long class names may leave no wording within the limits.
        if text in result or not (WORDS[0] <= text.count(" ") + 1 <= WORDS[1] or attempts > 200):
            continue
        style = rng.random()
        result[text] = text[0].upper() + text[1:] + "." if style < 0.6 else text + "." if style < 0.75 else text
    return list(result.values())


def sentence(event: str, words: Words) -> str:
    """A caption of an event by itself, of which nothing else is said: "a dog barks"."""
    return _clause(random.Random(event), Part(event, ()), words, True, 0.0, {})


# Captions of two sounds that differ in nothing but when they are heard: one after the other, or at once.
JOINTS = (
    ("{A} and then {B}", "{A} while {B}"),
    ("{a} followed by {b}", "{a} together with {b}"),
    ("{a}, then {b}", "{a} and {b} at the same time"),
)


def minimal_pairs(
    rng: random.Random, scene: Scene, words: Mapping[str, Words], times: Mapping = TIMES
) -> dict[str, tuple[str, str, str, str]]:
    """Aspect → a caption that is true of the scene, a false one that differs from it in that alone, and what either
    says: the "order" of two sounds that follow each other, the "number" of one that `times` has words for, and the
    "overlap" of two, which follow each other or sound at once. A scene has those that it has the sounds for.
    """
    pairs = {}

    def fill(template: str, first: Part, second: Part) -> str:
        parts = {"a": first, "b": second}
        return re.sub(r"{(\w)}", lambda match: clause(parts[match[1].lower()], match[1].isupper()), template)

    def clause(part: Part, finite: bool) -> str:
        return _clause(random.Random(wording + part.event), part, words[part.event], finite, 0.0, times)

    wording = str(rng.random())
    if scene.relation.startswith("then"):
        template = rng.choice(TEMPLATES["then"])
        pairs["order"] = fill(template, *scene.parts[:2]), fill(template, *scene.parts[1::-1]), "", ""
    if counted := [part for part in scene.parts if part.count and min(part.count, MANY) in times]:
        part = rng.choice(counted)
        true = min(part.count, MANY)
        false = rng.choice([number for number in times if number != true and {number, true} != {3, MANY}])
        right, wrong = (f"{clause(part, True)} {times[number][0]}" for number in (true, false))
        pairs["number"] = right, wrong, COUNTS[true], COUNTS[false]
    if scene.relation.startswith(("then", "while")):
        order = ("then", "while") if scene.relation.startswith("then") else ("while", "then")
        texts = dict(zip(("then", "while"), rng.choice(JOINTS), strict=True))
        right, wrong = (fill(texts[one], *scene.parts[:2]) for one in order)
        pairs["overlap"] = right, wrong, *order
    return pairs


def _clause(rng: random.Random, part: Part, words: Words, finite: bool, say: float, times: Mapping) -> str:
    phrases = words.phrases
    adjective = manner = ""
    if part.register and rng.random() < say:
        adjective = rng.choice(words.low if part.register == "low" else words.high)
        phrases = tuple(phrase for phrase in phrases if "*" in phrase)
    subject, doing, does = rng.choice(phrases).split("|")
    if part.loudness and rng.random() < say:
        if "*" in subject and not adjective and rng.random() < 0.5:
            adjective = rng.choice(SOFT if part.loudness == "soft" else LOUD)
        else:
            manner = rng.choice(SOFTLY if part.loudness == "soft" else LOUDLY)
    count = times.get(min(part.count, MANY)) if rng.random() < say else None
    subject = subject.replace("*", adjective + " " if adjective else "")
    if subject.startswith("a ") and subject[2] in "aeiou":
        subject = "an" + subject[1:]
    clause = [subject, does if finite else doing]
    if manner:
        clause.insert(1 if count or rng.random() < 0.4 else 2, manner)
    if count:
        clause.append(rng.choice(count))
    return " ".join(clause)
