"""The one form that every data set takes, and the checks that it must pass."""

import json
import math
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
from scipy import sparse
from tqdm.auto import tqdm

from atr.corpora.audio import MAX_PEAK
from atr.corpora.containers import AudioError
from atr.system import hashes

SPLITS = ("train", "validation", "test")
CLIP_COLUMNS = ("clip", "split", "duration", "digest", "description")
CAPTION_COLUMNS = ("clip", "caption")
EVENT_COLUMNS = ("clip", "event", "onset", "offset")
NUMBERS = ("duration", "onset", "offset")  # columns that hold seconds; all others hold texts
EVENT_TOLERANCE = 0.01  # seconds by which an annotated event may reach over its clip's end
MOST_PROBLEMS = 50
DENSE = 2**26  # pairs of a caption and a clip, from which their booleans are held sparsely


class Problem(NamedTuple):
    """What is wrong with a corpus, in words: the file or clip, what it has, and what to do."""

    where: str
    problem: str
    mend: str


class CorpusError(ValueError):
    """A corpus with problems. `problems` is the table of all of them; the message shows the first ones."""

    def __init__(self, name: str, problems: pd.DataFrame | Iterable[Problem]) -> None:
        problems = problems if isinstance(problems, pd.DataFrame) else problem_table(problems)
        self.name, self.problems = name, problems
        lines = [f"  {row.where}: {row.problem}; {row.mend}" for row in problems.head(MOST_PROBLEMS).itertuples()]
        lines = [line.replace("\n", "\\n") for line in lines]
        if len(problems) > MOST_PROBLEMS:
            lines.append(f"  and {len(problems) - MOST_PROBLEMS} more")
        super().__init__("\n".join([f"corpus {name!r} has {len(problems)} problem(s):", *lines]))

    def __reduce__(self) -> tuple:
        return type(self), (self.name, self.problems)


class Reader(Protocol):
    """Gives a clip's waveform, float32 (samples,), and its sample rate. Picklable, so that it can go to workers."""

    def __call__(self, clip: str) -> tuple[np.ndarray, int]: ...


def problem_table(problems: Iterable[Problem]) -> pd.DataFrame:
    """One row per problem; columns where, problem, mend."""
    return pd.DataFrame(list(problems), columns=list(Problem._fields), dtype="str")


def alike(captions: np.ndarray, clips: np.ndarray) -> np.ndarray | sparse.csr_array:
    """(captions, clips) bool: whose groups, integers (captions,) and (clips,), are equal; from `DENSE` on sparse."""
    if len(captions) * len(clips) < DENSE:
        return captions[:, None] == clips
    order = np.argsort(clips, kind="stable").astype(np.int32)
    first, last = (np.searchsorted(clips[order], captions, side) for side in ("left", "right"))
    places = np.concatenate([order[start:stop] for start, stop in zip(first, last, strict=True)])
    starts = np.concatenate([[0], np.cumsum(last - first)])
    return sparse.csr_array((np.ones(len(places), bool), places, starts), (len(captions), len(clips)))


def _table(columns: tuple[str, ...], rows: Iterable[tuple] = ()) -> pd.DataFrame:
    kinds = {column: "float64" if column in NUMBERS else "str" for column in columns}
    return pd.DataFrame(list(rows), columns=list(columns)).astype(kinds)


# The tables of a corpus, of a tuple per row in the order of their columns; of none where no events are known.
clip_table = partial(_table, CLIP_COLUMNS)
caption_table = partial(_table, CAPTION_COLUMNS)
event_table = partial(_table, EVENT_COLUMNS)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Clips with their captions, splits and known sound events.

    clips: one row per clip. clip (str, unique), split (one of SPLITS), duration (seconds), digest (hex: the hash of all
        that determines the clip's audio), description (str: clips of one split whose descriptions are equal and not
        empty are relevant to each other's captions).
    captions: clip, caption. One row or more per clip, in an order that counts.
    events: clip, event, onset, offset (seconds). Empty where unknown.
    read: gives a clip's audio.
    source: origin and licence in one line.
    loading_problems: problems that a loader met before it could build the tables; `problems` lists them with its own.
    repeats: a clip may have the same caption twice, as in published data sets; elsewhere that is a problem.
    pretraining_clips: those that an encoder of the corpus's own is pre-trained on; None: those of its training split.
    test_only: whether it is there to test on alone, and needs no clips to train on.
    doubts: what may well be a fault but spoils no use of the corpus; `problems` lists them with those of the audio.

    >>> corpus = atr.load_corpus("soundscapes", train=48, validation=12, test=16, duration=4.0)
    >>> test = corpus.split("test")
    >>> waveform, rate = test.read(test.clips["clip"][0])
    >>> waveform.shape, rate
    ((64000,), 16000)
    """

    name: str
    clips: pd.DataFrame
    captions: pd.DataFrame
    events: pd.DataFrame
    read: Reader
    source: str = ""
    loading_problems: tuple[Problem, ...] = field(default=(), repr=False)
    repeats: bool = False
    pretraining_clips: frozenset[str] | None = field(default=None, repr=False)
    doubts: tuple[Problem, ...] = field(default=(), repr=False)
    test_only: bool = False

    def __len__(self) -> int:
        return len(self.clips)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of clips, captions and events, rows in order; neither the name nor the source counts."""
        tables = (self.clips, CLIP_COLUMNS), (self.captions, CAPTION_COLUMNS), (self.events, EVENT_COLUMNS)
        return _hash([[_column(table[name]) for name in columns] for table, columns in tables])

    def audio_fingerprint(self, split: str) -> str:
        """Hash of one split's clips and their digests, in order: what packed audio depends on, and nothing else."""
        clips = self.split(split).clips
        return _hash([_column(clips["clip"]), _column(clips["digest"])])

    def split(self, name: str) -> "Corpus":
        """The corpus of one split. Rows keep their order."""
        if name not in SPLITS:
            raise ValueError(f"unknown split {name!r}; known: {', '.join(SPLITS)}")
        clips = self.clips[self.clips["split"] == name].reset_index(drop=True)
        captions, events = (table[table["clip"].isin(clips["clip"])] for table in (self.captions, self.events))
        captions, events = captions.reset_index(drop=True), events.reset_index(drop=True)
        return replace(self, clips=clips, captions=captions, events=events)

    def hold_out(self, count: int, seed: int = 0) -> "Corpus":
        """All clips for training, but for `count` drawn ones for validation: for a model whose test is elsewhere.

        They are drawn from what was not for training, where that suffices, and where it can be from clips whose bytes
        no other clip has. `pretraining_clips` stay what the corpus trained on, so that its own encoder, like a
        published one, is the same with and without clips held out.
        """
        if not 0 < count < len(self):
            raise ValueError(f"hold_out is {count}; hold out 1 to {len(self) - 1} of the {len(self)} clips")
        trained = self.clips["split"].eq("train").to_numpy(copy=True)
        among = np.flatnonzero(~trained) if count <= (~trained).sum() else np.arange(len(self))
        held_out = np.random.default_rng(seed).permutation(among)
        twins = self.clips["digest"].duplicated(keep=False).to_numpy()
        held_out = held_out[np.argsort(twins[held_out], kind="stable")][:count]
        trained[held_out] = False
        splits = np.full(len(self), "train", dtype=object)
        splits[held_out] = "validation"
        pretraining = frozenset(self.clips.loc[trained, "clip"])
        return replace(self, clips=self.clips.assign(split=splits), pretraining_clips=pretraining)

    def to_pretrain_on(self) -> "Corpus":
        """The clips that an encoder of the corpus's own is pre-trained on, as its training split."""
        part = self.split("train")
        if self.pretraining_clips is None:
            return part
        return replace(part, clips=part.clips[part.clips["clip"].isin(self.pretraining_clips)]).split("train")

    @cached_property
    def pretraining_key(self) -> tuple[str, list[list[str]]]:
        """What decides an encoder of the corpus's own: a hash of the clips that it is pre-trained on, their events."""
        part = self.to_pretrain_on()
        events = part.events[["clip", "event"]].drop_duplicates().sort_values(["clip", "event"])
        return part.audio_fingerprint("train"), events.to_numpy().tolist()

    def kinds(self) -> pd.Series:
        """Which kinds of sound are in each clip, a sorted tuple by clip; without those whose events are unknown."""
        return self.events.groupby("clip")["event"].agg(lambda names: tuple(sorted(set(names))))

    def relevance(self) -> np.ndarray | sparse.csr_array:
        """Which clips answer which caption, for a corpus of one split.

        (captions,) int: the row in `clips` of each caption's clip. Where clips share a description, a (captions, clips)
        bool matrix instead, true for the caption's own clip and for those described alike; sparse if it is large.
        """
        if self.clips["split"].nunique() > 1:
            raise ValueError(f"corpus {self.name!r}: relevance is defined within one split; take .split(name) first")
        own = self.clip_of_caption()
        groups, names = pd.factorize(self.clips["description"].fillna(""))
        alone = self.clips["description"].fillna("").to_numpy() == ""
        groups[alone] = len(names) + np.arange(alone.sum())
        if len(np.unique(groups)) == len(groups):
            return own
        return alike(groups[own], groups)

    def clip_of_caption(self) -> np.ndarray:
        """(captions,) the row in `clips` of each caption's clip. ValueError: a caption of an unknown clip."""
        own = pd.Index(self.clips["clip"]).get_indexer(pd.Index(self.captions["clip"]))
        if (own < 0).any():
            raise ValueError(f"corpus {self.name!r}: captions of unknown clips; .check() lists them")
        return own

    def problems(self, audio: bool = False) -> pd.DataFrame:
        """All problems at once: columns where, problem, mend; no rows if the corpus is sound. Never raises.

        audio: also read every clip, and list the doubts.
        """
        problems = list(self.loading_problems)
        malformed = [
            *_column_problems("clips", self.clips, CLIP_COLUMNS),
            *_column_problems("captions", self.captions, CAPTION_COLUMNS),
            *_column_problems("events", self.events, EVENT_COLUMNS),
        ]
        if malformed:
            return problem_table(problems + malformed)
        durations = dict(zip(_texts(self.clips["clip"]), _numbers(self.clips["duration"]), strict=True))
        problems += _clip_problems(self.clips, self.test_only)
        problems += _caption_problems(self.captions, set(durations), self.repeats)
        problems += _event_problems(self.events, durations)
        if audio:
            problems += [*self.doubts, *self._audio_problems(durations)]
        return problem_table(problems)

    def check(self, audio: bool = False) -> "Corpus":
        """The corpus itself; raises CorpusError listing every problem if it has any."""
        problems = self.problems(audio)
        if len(problems):
            raise CorpusError(self.name, problems)
        return self

    def _audio_problems(self, durations: dict[str, float]) -> Iterator[Problem]:
        def problem(clip: str) -> Problem | None:
            try:
                waveform, rate = self.read(clip)
                samples, finite = len(waveform), bool(np.isfinite(waveform).all())
            except AudioError as error:
                return Problem(error.where, error.problem, error.mend)
            except Exception as error:  # whatever a reader stumbles over is that clip's problem
                return Problem(f"clip {clip!r}", f"cannot be read ({type(error).__name__}: {error})", "replace it")
            if not samples or not finite:
                return Problem(f"clip {clip!r}", "no samples, or samples that are not finite", "replace it")
            if np.abs(waveform).max() > MAX_PEAK:
                peak = f"samples up to {np.abs(waveform).max():,.0f}, where 1 is full scale"
                return Problem(f"clip {clip!r}", peak, "scale it to the range -1 to 1")
            if abs(samples / rate - durations[clip]) > 0.1 + 0.01 * durations[clip]:
                lengths = f"{samples / rate:.2f} s of audio, {durations[clip]:.2f} s in the table"
                return Problem(f"clip {clip!r}", lengths, "correct the duration or replace the audio")
            return None

        clips = [clip for clip in durations if clip]
        with ThreadPoolExecutor() as pool:
            problems = tqdm(pool.map(problem, clips), total=len(clips), desc="reading audio", disable=None, leave=False)
            yield from (one for one in problems if one)


def _hash(content: object) -> str:
    return hashes.sha256(json.dumps(content, ensure_ascii=False))


def _column(column: pd.Series) -> list:
    """Plain values, the same for every dtype that holds them."""
    return [float(v) if isinstance(v, (int, float, np.number)) else str(v) for v in column.tolist()]


def _texts(column: pd.Series) -> list[str]:
    """The column's strings; empty where a value is blank or no string."""
    return [value if isinstance(value, str) and value.strip() else "" for value in column]


def _numbers(column: pd.Series) -> list[float]:
    return [float(v) if isinstance(v, (int, float, np.number)) else math.nan for v in column]


def _column_problems(name: str, table: pd.DataFrame, columns: tuple[str, ...]) -> Iterator[Problem]:
    present = list(table.columns)
    for column in columns:
        if present.count(column) != 1:
            problem = f"column {column!r} is there {present.count(column)} times"
            yield Problem(f"table {name}", problem, f"give it once; it has {', '.join(map(str, present)) or 'none'}")


def _clip_problems(clips: pd.DataFrame, test_only: bool) -> Iterator[Problem]:
    rows: dict[str, list[int]] = {}
    splits, digests = _texts(clips["split"]), _texts(clips["digest"])
    values = zip(_texts(clips["clip"]), splits, _numbers(clips["duration"]), digests, clips["description"], strict=True)
    for row, (clip, split, seconds, digest, description) in enumerate(values):
        where = f"clip {clip!r}" if clip else f"clips, row {row}"
        rows.setdefault(clip, []).append(row)
        if not clip:
            yield Problem(where, "no clip id", "give it a text that is unique over the corpus")
        if split not in SPLITS:
            yield Problem(where, f"unknown split {clips['split'].iloc[row]!r}", f"use one of {', '.join(SPLITS)}")
        if not (math.isfinite(seconds) and seconds > 0):
            yield Problem(where, f"duration {clips['duration'].iloc[row]!r}", "give a positive number of seconds")
        if not re.fullmatch("[0-9a-f]+", digest):
            yield Problem(where, f"digest {clips['digest'].iloc[row]!r}", "give the hexadecimal hash of its audio")
        if not isinstance(description, str):
            yield Problem(where, f"description {description!r}", "give a text, empty if there is none")
    for clip, places in rows.items():
        used = [split for split in SPLITS if split in {splits[row] for row in places}]
        if clip and len(used) > 1:
            yield Problem(f"clip {clip!r}", f"in {len(used)} splits: {', '.join(used)}", "keep it in one of them")
        elif clip and len(places) > 1:
            yield Problem(f"clip {clip!r}", f"listed {len(places)} times", "list it once")
    needed = "test" if test_only else "train"
    if needed not in splits:
        yield Problem("table clips", f"no clip in the split {needed!r}", "put most clips there")


def _caption_problems(captions: pd.DataFrame, clips: set[str], repeats: bool) -> Iterator[Problem]:
    pairs: set[tuple[str, str]] = set()
    captioned = set()
    for row, (clip, caption) in enumerate(zip(_texts(captions["clip"]), _texts(captions["caption"]), strict=True)):
        where = f"captions, row {row} (clip {clip!r})"
        captioned.add(clip)
        if clip not in clips or not clip:
            yield Problem(where, "caption of an unknown clip", "add the clip or remove the caption")
        if not caption:
            yield Problem(where, "empty caption", "write one or remove the row")
        elif re.search("[\0\ud800-\udfff]", caption):
            yield Problem(where, f"a character that is no text in {caption!r}", "write the caption again")
        elif (clip, caption) in pairs and not repeats:
            yield Problem(where, f"caption twice on one clip: {caption!r}", "keep it once")
        pairs.add((clip, caption))
    for clip in sorted(clips - captioned - {""}):
        yield Problem(f"clip {clip!r}", "no caption", "write one or remove the clip")


def _event_problems(events: pd.DataFrame, durations: dict[str, float]) -> Iterator[Problem]:
    columns = _texts(events["clip"]), _texts(events["event"]), _numbers(events["onset"]), _numbers(events["offset"])
    for row, (clip, event, onset, offset) in enumerate(zip(*columns, strict=True)):
        where = f"events, row {row} (clip {clip!r})"
        if clip not in durations or not clip:
            yield Problem(where, "event of an unknown clip", "add the clip or remove the event")
        if not event:
            yield Problem(where, "event without a name", "name it or remove it")
        seconds = durations.get(clip, math.inf)
        end = seconds if seconds > 0 else math.inf  # a bad duration is listed with its clip
        if not 0 <= onset < offset <= end + EVENT_TOLERANCE:
            problem = f"from {onset} to {offset} s in a clip of {seconds:.2f} s"
            yield Problem(where, problem, "give 0 <= onset < offset, both within the clip")
