"""Synthetic captions of training clips, made by rules or by a language model, and the record of a model's answers.

A model's answers stand in `captions/<name>.jsonl` of the home folder, one JSON object a line;
`atr.corpora.captioning.generate` writes them. What their captions are, and whether they keep to the rules, is decided
anew at each reading, from the answers.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from atr.corpora import clotho
from atr.corpora.captioning.answers import parse, problems
from atr.corpora.captioning.language_models import ONLY_REASONING, REFUSAL, without_thoughts
from atr.corpora.captioning.paraphrase import paraphrase
from atr.corpora.corpus import Corpus, caption_table
from atr.system import places

PARAPHRASE = "paraphrase"  # the name of the captions made by rules
PHI4 = "phi-4"  # that of those which Tymofieiev 2025 published, for Clotho
WORDS = {PARAPHRASE: "of rules", PHI4: "by phi-4"}
USES = ("synthetic", "both")
CUT_OFF = ("length", "content_filter")  # finish reasons of an answer that is not whole
REQUEST_REFUSAL = "refused"  # finish reason recorded where the server refused the request itself


@dataclass(frozen=True)
class Answer:
    """One line of a record: what a model answered for a clip.

    given: the clip's captions in the request. key: names the request and the model by their content. attempt: from 1.
    text: the answer as it came. finish: the server's reason to end it, or REQUEST_REFUSAL. usage: tokens, as the server
    counts. time: ISO 8601, UTC.
    """

    clip: str
    given: tuple[str, ...]
    model: str
    key: str
    attempt: int
    text: str
    finish: str | None = None
    usage: Mapping[str, int] = field(default_factory=dict)
    time: str = ""

    @property
    def unspoken(self) -> bool:
        """Whether the model thought aloud and did not answer."""
        return self.finish == ONLY_REASONING or bool(self.text.strip() and not without_thoughts(self.text))

    @property
    def counts(self) -> bool:
        """Whether it is an attempt at captions: neither a request refused by the server nor reasoning alone."""
        return self.finish != REQUEST_REFUSAL and not self.unspoken

    @property
    def whole(self) -> bool:
        """Whether it came to its end and holds captions, good or bad."""
        return self.counts and self.finish not in (*CUT_OFF, REFUSAL) and bool(self.captions)

    @cached_property
    def captions(self) -> list[str]:
        return parse(self.text)

    @cached_property
    def problems(self) -> list[str]:
        """The rules it breaks, as `problems` words them; nothing else counts in an answer that is not whole."""
        if self.finish == REQUEST_REFUSAL:
            return [f"{REQUEST_REFUSAL}: {self.text}"]
        if self.unspoken:
            mend = "switch the model's thinking off, or raise the limit of tokens at its server"
            return [
                f"only reasoning ({mend}, or longest of atr.corpora.captioning.language_models.LocalModel): no answer"
            ]
        if self.finish == REFUSAL:
            return [f"{REFUSAL}: {self.text}"]
        if self.finish in CUT_OFF:
            return [f"cut off: the answer ended by {self.finish!r}"]
        return problems(self.captions, self.given)

    def line(self) -> bytes:
        """As it stands in a record; captions and problems are there for people, and never read again."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return json.dumps(fields | {"captions": self.captions, "problems": self.problems}).encode() + b"\n"


@dataclass(frozen=True)
class Record:
    """The answers of a record, in order, and its damaged lines: their numbers from 1, and what is wrong."""

    path: Path
    answers: list[Answer]
    bad_lines: list[tuple[int, str]]

    @cached_property
    def valid(self) -> dict[str, Answer]:
        """The latest answer of each clip that keeps to all rules."""
        return {answer.clip: answer for answer in self.answers if not answer.problems}

    @property
    def captions(self) -> dict[str, list[str]]:
        """Five new captions by clip."""
        return {clip: answer.captions for clip, answer in self.valid.items()}


def path(name: str) -> Path:
    """The file of a record. ValueError for a name that leads elsewhere, or one of captions that come otherwise."""
    if not re.fullmatch(r"\w[\w.-]*", name) or name in WORDS:
        others = " and ".join(map(repr, WORDS))
        raise ValueError(f"record {name!r}: give a name of letters, digits, '.', '-' and '_' other than {others}")
    return places.home() / "captions" / f"{name}.jsonl"


def read(record: Path) -> Record:
    """The record in a file; lines that cannot be read are listed, whatever they hold. Raises FileNotFoundError."""
    answers, damaged = [], []
    for number, line in enumerate(record.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            answers.append(answer_of(json.loads(line)))
        except (ValueError, RecursionError) as error:
            damaged.append((number, str(error)))
    return Record(record, answers, damaged)


def answer_of(entry: Any) -> Answer:
    """The answer in a line's decoded JSON; ValueError if it is none."""
    if not isinstance(entry, dict):
        raise ValueError("no JSON object")
    kinds = {"clip": str, "given": list, "model": str, "key": str, "attempt": int, "text": str, "usage": dict}
    for name, kind in kinds.items():
        if not isinstance(entry.get(name), kind):
            raise ValueError(f"field {name!r} is missing or no {kind.__name__}")
    if not all(isinstance(text, str) for text in entry["given"]):
        raise ValueError("field 'given' holds other things than texts")
    fields = {name: entry[name] for name in Answer.__dataclass_fields__ if name in entry}
    return Answer(**fields | {"given": tuple(entry["given"])})


def with_synthetic(corpus: Corpus, name: str, use: str = "both") -> Corpus:
    """The corpus with new captions for its training clips; those of other splits stay.

    name: "paraphrase" makes them by rules, "phi-4" has those that `atr data phi4` brought for Clotho, any other is a
    record's. use: "synthetic" replaces the clip's captions, "both" puts the new ones after them. Raises ValueError if
    the record lacks valid captions of a training clip. An answer that was given for other captions than the clip has
    now does not count.
    """
    if use not in USES:
        raise ValueError(f"use: unknown {use!r}; known: {', '.join(USES)}")
    training = set(corpus.clips.loc[corpus.clips["split"] == "train", "clip"])
    texts = {str(clip): captions.tolist() for clip, captions in corpus.captions.groupby("clip", sort=False)["caption"]}
    originals = {clip: captions for clip, captions in texts.items() if clip in training}
    if name == PARAPHRASE:
        new = {clip: paraphrase(captions, clip) for clip, captions in originals.items()}
    elif name == PHI4:
        new = clotho.phi4_captions(originals)
    else:
        new = _captions_of(path(name), originals)
    for clip, captions in new.items():
        texts[clip] = captions if use == "synthetic" else texts[clip] + captions
    table = caption_table([(clip, caption) for clip, captions in texts.items() for caption in captions])
    words = WORDS.get(name, f"of the record {name}")
    source = f"{corpus.source}; training captions {'' if use == 'synthetic' else 'and those '}{words}"
    return replace(corpus, captions=table, source=source)


def _captions_of(record: Path, originals: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The record's captions of each clip that were made from its captions."""
    if not record.exists():
        raise ValueError(f"{record}: no such record of captions; make it: atr caption <corpus> --name {record.stem}")
    content = read(record)
    answers: dict[str, Answer] = {}
    for answer in content.answers:
        if answer.clip in originals and list(answer.given) == originals[answer.clip] and not answer.problems:
            answers[answer.clip] = answer
    missing = [clip for clip in originals if clip not in answers]
    if missing:
        shown = ", ".join(map(repr, missing[:3])) + (", …" if len(missing) > 3 else "")
        numbers = [number for number, _ in content.bad_lines]
        damaged = f" ({len(numbers)} damaged lines, the first is line {numbers[0]})" if numbers else ""
        raise ValueError(
            f"{record}{damaged}: no valid captions for {len(missing)} of {len(originals)} training clips ({shown}); "
            f"run `atr caption` again with --name {record.stem}, with more --attempts if it has used them up"
        )
    return {clip: answers[clip].captions for clip in originals}
