"""What a language model answered when it was asked for new captions, and which of the rules they break."""

import ast
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from atr.corpora.captioning.language_models import whole, without_thoughts

CAPTIONS = 5
MOST_WORDS = 20
NEAR_COPY = 0.8  # share of words in common from which a caption is a near copy

# What an answer must keep to, and what is only counted.
RULES = ("count", "empty", "words", "digits", "names", "repeated")
REMARKS = ("number words", "near copies")
COMMON = set("tv tvs am fm cd cds dvd dvds lp pa dj djs mc ac hvac pc pcs suv suvs atm atv rv vcr vhs id ok".split())


class Finding(NamedTuple):
    """What is wrong with an answer by one of RULES, or remarkable by one of REMARKS. caption: its place, from 0."""

    rule: str
    caption: int | None
    detail: str


class _Plain(dict):
    """For str.translate: marks and blanks become a space, control and format characters nothing."""

    def __missing__(self, code: int) -> str:
        category = unicodedata.category(chr(code))[0]
        blank = category in "PZ" or chr(code).isspace()
        self[code] = " " if blank else "" if category == "C" else chr(code)
        return self[code]


_PLAIN = _Plain()
_WORD = re.compile(r"[^\W\d_]+")
_BEGINNING = re.compile(r"(?:^|[.!?…:])[\s\"'“‘(\[]*$")
_NUMBER_WORDS = re.compile(
    r"\b(two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|"
    r"eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|million|dozen)s?\b",
    re.IGNORECASE,
)


def plain(text: str) -> str:
    """A caption's words in small letters with single spaces: captions that agree in them are the same."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().translate(_PLAIN).split())


def _words(text: str) -> list[tuple[str, int]]:
    """The words of a text, letters alone, with their places."""
    return [(match[0], match.start()) for match in _WORD.finditer(text)]


def names(caption: str, vocabulary: set[str]) -> list[str]:
    """Words that look like names: with a capital inside a sentence, or of capitals alone anywhere.

    vocabulary: words in small letters that are no new names. A heuristic for English: a name that begins a sentence is
    not seen, and neither is one in small letters. Single letters, and so "I", are never names, nor are the
    abbreviations of things in COMMON, such as TV.
    """
    text = unicodedata.normalize("NFKC", caption)
    words = []
    for word, place in _words(text):
        small = word.casefold()
        if len(word) == 1 or word == word.lower() or small in vocabulary or small in COMMON:
            continue
        if word.isupper() or not _BEGINNING.search(text[:place]):
            words.append(word)
    return words


def findings(captions: Sequence[str], originals: Sequence[str]) -> Iterator[Finding]:
    """All that breaks a rule or is remarkable in new captions of a clip that has the captions `originals`.

    count: not exactly five. empty: no word. words: more than 20. digits: any numeral of any script. names: see `names`;
    what the originals mention is no new name. repeated: the words of an original or of an earlier caption.
    Remarks: number words ("one" is left out, mostly a pronoun); near copies, which share at least 80 % of their words
    with an original (twice the common words by the words of both, whatever their order).
    """
    if len(captions) != CAPTIONS:
        yield Finding("count", None, f"{len(captions)} captions, not {CAPTIONS}")
    vocabulary = {word.casefold() for text in originals for word, _ in _words(unicodedata.normalize("NFKC", text))}
    earlier = {plain(text) for text in originals}
    bags = [(Counter(words), len(words)) for words in (plain(text).split() for text in originals)]
    for place, caption in enumerate(captions):
        text = plain(caption)
        if not text:
            yield Finding("empty", place, "no words")
            continue
        if (number := len(caption.split())) > MOST_WORDS:
            yield Finding("words", place, f"{number} words, at most {MOST_WORDS}")
        if digits := [letter for letter in caption if unicodedata.category(letter)[0] == "N"]:
            yield Finding("digits", place, f"digits: {''.join(digits)}")
        if new := names(caption, vocabulary):
            yield Finding("names", place, f"names: {', '.join(new)}")
        if spelt := [match[0] for match in _NUMBER_WORDS.finditer(caption)]:
            yield Finding("number words", place, f"number words: {', '.join(spelt)}")
        if text in earlier:
            yield Finding("repeated", place, "the same as an original or an earlier one")
        else:
            words = Counter(text.split())
            size = words.total()
            common = max((2 * (words & bag).total() / (size + length) for bag, length in bags if length), default=0.0)
            if common >= NEAR_COPY:
                yield Finding("near copies", place, f"{100 * common:.0f} % of its words are those of an original")
        earlier.add(text)


def problems(captions: Sequence[str], originals: Sequence[str]) -> list[str]:
    """The rules that new captions of a clip break, one text each; empty if they keep to all. See `findings`."""
    return [
        f"{rule}: {detail}" if place is None else f"{rule}: caption {place + 1}: {detail}"
        for rule, place, detail in findings(captions, originals)
        if rule in RULES
    ]


_FENCE = re.compile(r"```\w*")
_ITEM = re.compile(
    r"\s*(?:[-*•–]\s+|[*_(#]{0,3}(?:(?:caption|description)\s+)?\d{1,2}\s*[.):][*_]{0,2}\s*)(?=\S)", re.IGNORECASE
)
_OPENING = re.compile(r"[\[{]")
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»"}
_HOLDERS = re.compile("caption|description", re.IGNORECASE)


def parse(text: str) -> list[str]:
    """The captions in a model's answer: none if there are none to be seen.

    Understood are the JSON list or object that holds most texts, the last of several (Python's quotes and a comma too
    many are forgiven), wherever it stands in the answer, and else lines: those numbered or bulleted if there are such,
    or all. What a model thought aloud, code fences, item numbers and quotes around a caption are left out.
    """
    text = _FENCE.sub("", without_thoughts(text))
    lists = [captions for value in _json_values(text) if (captions := _texts(value))]
    if lists:
        return [_bare(whole(caption)) for caption in max(reversed(lists), key=len)]
    if text.lstrip().startswith(("[", "{")):
        return []  # JSON cut short: its lines are no captions
    lines = [line for line in text.split("\n") if line.strip()]
    items = [line for line in lines if _ITEM.match(line)]
    return [_bare(line) for line in items or lines if not line.rstrip(" *").endswith(":")]


def _json_values(text: str) -> Iterator[Any]:
    """The lists and objects in the text, those inside others left out; given up after many brackets that open none."""
    decoder, place, failures = json.JSONDecoder(strict=False), 0, 0
    while (match := _OPENING.search(text, place)) and failures < 100:
        place = match.start()
        try:
            value, place = decoder.raw_decode(text, place)
            yield value
        except (ValueError, RecursionError):
            end = text.rfind("]" if match[0] == "[" else "}") + 1
            try:
                yield ast.literal_eval(text[place:end])
                return
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                place, failures = place + 1, failures + 1


def _texts(value: Any) -> list[str]:
    """The captions in a decoded list or object."""
    if isinstance(value, Mapping):
        lists = {key: one for key, one in value.items() if isinstance(one, list | dict)}
        holders = [one for key, one in lists.items() if _HOLDERS.search(str(key))] or list(lists.values())
        texts = [one for one in value.values() if isinstance(one, str)]
        return next((nested for one in holders if (nested := _texts(one))), texts)
    if not isinstance(value, list | tuple):
        return []
    inner = [max(_texts(item), key=len, default="") if isinstance(item, Mapping) else item for item in value]
    return [item for item in inner if isinstance(item, str)]


def _bare(caption: str) -> str:
    """Without the number or bullet before it and the quotes around either."""
    caption = _unquote(caption.strip())
    return _unquote(_ITEM.sub("", caption, count=1)) if _ITEM.match(caption) else caption


def _unquote(text: str) -> str:
    whole = len(text) > 1 and _QUOTES.get(text[0]) == text[-1]
    return text[1:-1].strip() if whole else text


def audit(captions: pd.DataFrame, originals: pd.DataFrame) -> pd.DataFrame:
    """How often new captions break each rule: columns rule, kind, captions, clips, share.

    captions, originals: columns clip and caption, as a corpus has them. kind: "rule", or "remark" for what is counted
    only; the last row counts what breaks any rule. captions: that do so; for "count" all of such a clip. share: of all
    new captions, in percent.
    """
    own = {clip: texts.tolist() for clip, texts in originals.groupby("clip", sort=False)["caption"]}
    broken: dict[str, set[tuple[str, int]]] = {rule: set() for rule in (*RULES, *REMARKS)}
    for clip, texts in captions.groupby("clip", sort=False)["caption"]:
        for finding in findings(texts.tolist(), own.get(clip, [])):
            places = range(len(texts)) if finding.caption is None else [finding.caption]
            broken[finding.rule] |= {(str(clip), place) for place in places}
    kinds = {rule: "rule" if rule in RULES else "remark" for rule in broken}
    broken["any rule"] = set().union(*(places for rule, places in broken.items() if kinds[rule] == "rule"))
    number = max(1, len(captions))
    rows = [
        (rule, kinds.get(rule, "rule"), len(places), len({clip for clip, _ in places}), 100 * len(places) / number)
        for rule, places in broken.items()
    ]
    return pd.DataFrame(rows, columns=["rule", "kind", "captions", "clips", "share"])
