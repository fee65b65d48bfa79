"""New wordings of captions by rules, where no language model is at hand."""

import random
import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import product

from atr.corpora.captioning.answers import CAPTIONS, MOST_WORDS, plain
from atr.system import hashes

# Words and phrases that say the same about a sound: `|` between equals, `>` where only the left may become the right.
# One that stands alone is kept as it is, so that its words are not exchanged singly.
SYNONYMS = """
barking|woofing; barks|woofs; talking|speaking; talks|speaks; talk|speak; shouting|yelling; shouts|yells
beeping|bleeping; beeps|bleeps; beep|bleep; honking|tooting; honks|toots; crying|weeping
birds chirping|birds tweeting; birds chirp|birds tweet; bird chirping|bird tweeting; bird chirps|bird tweets
birds are chirping|birds are tweeting; bird is chirping|bird is tweeting
starts to|begins to; start to|begin to; gets louder|grows louder; getting louder|growing louder; noises>sounds
accelerates|speeds up; accelerating|speeding up; decelerates|slows down; decelerating|slowing down
passes by|goes by|goes past; passing by|going by|going past; drives by|drives past; driving by|driving past
flying overhead|flying above; flies overhead|flies above; rain falling>rain coming down; rain falls|rain comes down
rain pouring down|rain pouring; rain pours down|rain pours; waves crashing|waves breaking; waves crash|waves break
thunder rumbling|thunder rolling; thunder rumbles|thunder rolls; siren wailing|siren howling; siren wails|siren howls
siren going off|siren sounding; siren goes off|siren sounds; alarm going off|alarm sounding; alarm goes off|alarm sounds
people clapping|people applauding; people clap|people applaud
knocking on a door|knocking at a door|rapping on a door; knocks on a door|knocks at a door|raps on a door
knocking at the door|knocking on the door; knocks at the door|knocks on the door
someone|somebody; a person>someone; children|kids; child|kid; telephone|phone; insects|bugs; insect|bug
fire engine; car|automobile; cars|automobiles; truck|lorry; trucks|lorries; airplane|aeroplane|plane; airplanes|planes
motorcycle|motorbike; motorcycles|motorbikes; helicopter|chopper; helicopters|choppers; faucet>tap; infant|baby
the ocean|the sea; ocean waves|sea waves; drops of water|water drops; a crowd>a group of people; rocks|stones
the forest|the woods; liquid|fluid; starting to|beginning to; the noise of|the sound of; a lot of|lots of; street|road
loudly|noisily; softly|quietly; a loud|a noisy; quickly|rapidly; slowly|at a slow pace; continuously|constantly
repeatedly|again and again|over and over; several times|many times|a number of times; two times|twice
a single time|just once; large|big; small|little; continuous|constant; several|a number of; nearby|close by
in the distance|far away; at the same time|simultaneously; together with|along with|alongside; each other|one another
mixed with|combined with; is followed by|precedes; outdoors>outside; indoors>inside; the whole time|all the while
can be heard|can be made out; one can hear|you can hear; a recording of|an audio recording of; listen to>hear
and nothing else|and nothing more; and finally|and lastly|and in the end; against a background of|over a backdrop of
"""


def _groups() -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for group in re.split(r"[;\n]", SYNONYMS.strip()):
        left, _, right = group.strip().partition(">")
        words = left.split("|")
        for word in words:
            groups[word] = [other for other in words if other != word] + ([right] if right else [])
    return groups


_OTHERS = _groups()
_SYNONYMS = re.compile(
    r"(?<![\w'’-])(?:(an?) )?(" + "|".join(map(re.escape, sorted(_OTHERS, key=len, reverse=True))) + r")(?![\w'’-])"
)
_JOINT = re.compile(
    r",? (and meanwhile|while|as|and then|then|and afterwards|and later|followed by|before|after) (?=\S)"
)
_STICKING = re.compile(  # words after which a joint is none: "for a while", "one after another", "as well as"
    r"\b(\w+ly|a|an|the|one|time|day|soon|right|just|ever|such|same|well|known|used|so|as|far|long|short|little|since|by"
    r"|until|every|now|and|or|is|are|was|were|being|been|then|but)$"
)
_UNJOINING = re.compile(
    r"(well|if|though|many|much|that|which|another|the other|a result|a whole|usual|it were|in|on|at)\b"
)
_SUBJECT = re.compile(
    r"(an?|the|some|someone|somebody|several|many|another|people|birds|insects|crickets|rain|raindrops|wind|thunder|waves"
    r"|water|footsteps|children|cars|flames|hands|applause|helicopter|music|traffic|voices)\b(?=.* )"
)
_PLACE = re.compile(r"([^,]+) (in the background|in the distance|outside|outdoors|nearby)")
_FIRST = re.compile(r"an? (?!(?:lot|few|number|bit|variety|couple|series|single|little|while|group|pair)\b)(?=\w)")
_WEAK_END = re.compile(
    r"[\s,;:–-]+(a|an|the|and|or|of|in|on|at|to|with|by|from|into|onto|over|under|as|while|then|before|after|is|are|being"
    r"|followed|that|which|for|some|it|its|his|her|their|very)$"
)
PREFIXES = (
    "", "in this recording, ", "in the recording, ", "on this recording, ", "in this clip, ", "in this audio clip, ",
    "audible here: ", "heard here: ", "what is heard: ",
)  # fmt: skip
SUFFIXES = (
    "",
    ", as heard in this recording",
    ", as can be heard",
    ", as the recording lets one hear",
    ", it sounds like",
)
DIGITS = dict(zip("0 1 2 3 4 5 6 7 8 9 10 11 12".split(), (
    "no one two three four five six seven eight nine ten eleven twelve"
).split(), strict=True))  # fmt: skip
ROUNDS = 8  # with every caption, first without and then with a frame around it


def paraphrase(captions: Sequence[str], seed_text: str, count: int = CAPTIONS) -> list[str]:
    """New wordings of a clip's captions by rules, in place of a language model: `count` different ones.

    A pure function of its input; seed_text, such as the clip's name, goes into the draws. Each rewords one of the
    captions: words of like meaning, clauses in another order, "the" for a first "a", a frame that names the recording;
    it adds no event. All keep to RULES. Captions longer than 20 words lose their end, and digits become words or are
    left out. Raises ValueError if no caption has a word, or if `count` is more than the rules can make.
    """
    bodies = list(dict.fromkeys(body for caption in captions if (body := _body(caption))))
    if not bodies:
        raise ValueError(f"{seed_text!r}: no caption with a word in it, so there is nothing to paraphrase")
    rng = random.Random(hashes.content_key(seed_text, list(captions)))
    texts = {plain(caption) for caption in captions}
    result: list[str] = []
    for candidate in _candidates(rng, bodies):
        if len(result) == count:
            break
        if plain(candidate) not in texts and len(candidate.split()) <= MOST_WORDS:
            texts.add(plain(candidate))
            result.append(candidate)
    if len(result) < count:
        raise ValueError(f"{seed_text!r}: {count} paraphrases wanted, the rules make {len(result)}; ask for fewer")
    return result


def _candidates(rng: random.Random, bodies: Sequence[str]) -> Iterator[str]:
    order = rng.sample(bodies, len(bodies))
    for attempt in range(2 * ROUNDS):
        for body in order:
            text = _definite(rng, _exchange_words(rng, rng.choice([body, *_arrangements(body)])))
            yield _sentence(rng.choice(PREFIXES[1:]) + text if attempt >= ROUNDS else text)
    for suffix, prefix, body in product(SUFFIXES, PREFIXES, order):
        room = MOST_WORDS + 1 - len(f"{prefix}x{suffix}".split())
        yield _sentence(prefix + _cut(body, room) + suffix)


def _body(caption: str) -> str:
    """A caption as it may stand inside another: small first letter, no full stop, no digits, at most 20 words."""
    printable = "".join(" " if unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in caption)
    words = [DIGITS.get(word, word) for word in printable.split()]
    words = [word for word in words if not any(unicodedata.category(letter)[0] == "N" for letter in word)]
    text = _cut(" ".join(words).rstrip(" .!?,;:…"), MOST_WORDS)
    first = text.split(" ")[0]
    if first[1:] == first[1:].lower() and first != "I" and not first.startswith(("I'", "I’")):
        text = text[:1].lower() + text[1:]
    return text if plain(text) else ""


def _cut(text: str, most: int) -> str:
    """At most so many words: up to the last comma or joint if half of them remain, and never ending on a weak word."""
    words = text.split(" ")
    if len(words) <= most:
        return text
    text = " ".join(words[:most])
    ends = [match.start() for match in re.finditer(r",? (?:(?<!a )while|and then|then|followed by) |[,;.] ", text)]
    if ends and len(text[: ends[-1]].split()) >= most // 2:
        text = text[: ends[-1]]
    while (shorter := _WEAK_END.sub("", text)) != text:
        text = shorter
    return text


def _arrangements(body: str) -> list[str]:
    """Other orders of the clauses that say the same; none where the build of the caption is not understood."""
    if re.search(r"[.!?;:()\"“”]", body):
        return []
    clause = re.fullmatch(r"(while|as|after|before) ([^,]+), ([^,]+)", body)
    if clause:
        joint, other, main = clause.groups()
        return [] if _JOINT.search(f" {other} {main}") else [f"{main} {joint} {other}"]
    parts = _JOINT.split(body)
    if len(parts) == 3:
        first, joint, second = parts
        first = first.removeprefix("first ")
        if _STICKING.search(first) or _UNJOINING.match(second) or " " not in second or second.count(","):
            return []
        subject = _SUBJECT.match(second)
        if joint in ("while", "as", "and meanwhile"):
            texts = [f"{first} while {second}", f"while {second}, {first}", f"as {second}, {first}"]
            texts += [f"{second} while {first}", f"{second} as {first}"] if subject and _SUBJECT.match(first) else []
        elif joint in ("before", "after"):
            texts = [f"{joint} {second}, {first}"]
        else:
            texts = [f"{first}, then {second}", f"{first} and then {second}", f"{first}, and afterwards {second}"]
            if subject:
                texts += [f"first {first}, then {second}", f"{second} after {first}", f"after {first}, {second}"]
        return [text for text in texts if text != body]
    if len(parts) > 3:
        return []
    if behind := re.fullmatch(r"([^,]+),? (with [^,]+ in the background)", body):
        return [] if " and " in behind[2] else [f"{behind[2]}, {behind[1]}"]
    if (pair := body.split(" and ")) and len(pair) == 2 and "," not in body:
        both = all(_SUBJECT.match(side) and re.search(r"\w\wing\b", side) for side in pair)
        return [f"{pair[1]} and {pair[0]}"] if both else []
    if (place := _PLACE.fullmatch(body)) and not re.search(r"\b(and|with|or)\b", body):
        return [f"{place[2]}, {place[1]}"]
    return []


def _exchange_words(rng: random.Random, text: str) -> str:
    """Half of the known words and phrases exchanged for one of like meaning, with "a" or "an" as it then must be."""

    def exchange(match: re.Match) -> str:
        article, word = match.groups()
        if not _OTHERS[word] or rng.random() < 0.5:
            return match[0]
        other = rng.choice(_OTHERS[word])
        if article is None:
            return other
        return other if other.startswith(("a ", "lots")) else f"{'an' if other[0] in 'aeiou' else 'a'} {other}"

    return _SYNONYMS.sub(exchange, text)


def _definite(rng: random.Random, text: str) -> str:
    return _FIRST.sub("the ", text, count=1) if _FIRST.match(text) and rng.random() < 0.3 else text


def _sentence(text: str) -> str:
    capital = text[0].upper()
    return f"{capital if len(capital) == 1 else text[0]}{text[1:]}."
