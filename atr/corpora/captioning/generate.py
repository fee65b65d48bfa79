"""New captions of a corpus's training clips from a language model: asked, recorded at once, and audited.

The record (`atr.corpora.captioning.record`) is all the state there is: whatever stops a run, the next one asks
only for what the record lacks.
"""

import errno
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from atr.corpora import csvtable, files
from atr.corpora.captioning.answers import CAPTIONS, MOST_WORDS
from atr.corpora.captioning.language_models import CaptioningError, LanguageModel, RefusalError, Reply
from atr.corpora.captioning.record import REQUEST_REFUSAL, Answer, read
from atr.corpora.corpus import Corpus
from atr.system.atomic import writing
from atr.system.hashes import content_key

REFUSALS = 10  # so many requests refused in a row, without an answer between, end a run
ALIKE = 10  # and so many first answers of which none has captions, all for the same reason


def messages(captions: Sequence[str], keywords: Sequence[str] = ()) -> list[dict[str, str]]:
    """The request for a clip's new captions, in the chat format: rules, then captions and tags as JSON.

    The rules are those of the thesis (section 3.7), in other words. All stands in one message of the user, since not
    every model's template knows a system's.
    """
    content = json.dumps({"captions": list(captions), "tags": list(keywords)}, ensure_ascii=False, indent=1)
    rules = f"""The JSON below holds the captions that people wrote of one sound recording, and the recording's tags.
Write {CAPTIONS} new captions of the same recording, and keep to these rules:
- Give exactly {CAPTIONS} captions, none of them longer than {MOST_WORDS} words.
- Each means the same as the captions below, in a wording of its own.
- No sound, source or event may come in that the captions do not have.
- No numbers and no digits.
- No names of people, places, brands or organisations.
Answer with a JSON list of {CAPTIONS} strings and with nothing else."""
    return [{"role": "user", "content": f"{rules}\n\n{content}"}]


def keywords_of(table: Path, clips: Iterable[str]) -> dict[str, list[str]]:
    """Keywords of those of the clips that a table has: columns file_name and keywords (between semicolons).

    Clotho's metadata tables are such. A file is joined to its clip by name, with the suffix or without, and a split in
    front of the clip's does not count. UTF-8 or Latin-1. Raises ValueError for another table, or if it has no clip.
    """
    sheet = csvtable.frame(table, latin=True)
    if missing := {"file_name", "keywords"} - set(sheet.columns):
        columns = csvtable.column_list(sheet.columns.tolist())
        raise ValueError(f"{table}: no column {', '.join(sorted(missing))}; it has {columns}")
    by_name = {}
    for name, text in zip(sheet["file_name"], sheet["keywords"], strict=True):
        by_name[Path(name).stem] = by_name[name] = [word.strip() for word in text.split(";") if word.strip()]
    names = {clip: clip if clip in by_name else clip.rpartition("/")[2] for clip in clips}
    matches, _ = files.join(names.values(), {name: name for name in by_name})
    keywords = {clip: by_name[matches[name]] for clip, name in names.items() if name in matches}
    if not keywords:
        raise ValueError(f"{table}: has none of the {len(names)} clips among its files; is it of this corpus?")
    return keywords


@dataclass
class CaptioningReport:
    """What a run did. requests, replies: of this run; a refused request has no reply. tokens: used by them.

    clips: wanted. valid: of them with valid captions. missing: the others, by the reason. bad_lines: of the record,
    that cannot be read.
    """

    record: Path
    clips: int = 0
    requests: int = 0
    replies: int = 0
    tokens: int = 0
    valid: int = 0
    missing: dict[str, list[str]] = field(default_factory=dict)
    bad_lines: list[tuple[int, str]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{self.record}: {self.valid:,} of {self.clips:,} clips have valid captions",
            f"asked {self.requests:,} times, {self.replies:,} answers, {self.tokens:,} tokens",
        ]
        for reason, clips in sorted(self.missing.items()):
            shown = ", ".join(map(repr, clips[:3])) + (", …" if len(clips) > 3 else "")
            lines.append(f"missing, {reason}: {len(clips):,} ({shown})")
        if self.bad_lines:
            numbers = ", ".join(str(number) for number, _ in self.bad_lines[:9])
            lines.append(f"{len(self.bad_lines)} damaged lines, left out: {numbers}")
        return "\n".join(lines)


def generate(
    source: Corpus | pd.DataFrame,
    ask: LanguageModel,
    record: Path,
    *,
    keywords: Mapping[str, Sequence[str]] | None = None,
    concurrency: int = 4,
    attempts: int = 3,
    quiet: bool = False,
) -> CaptioningReport:
    """Have new captions written for every clip, and record every answer, valid or not, as soon as it is there.

    source: a corpus, of which the training split is meant, or a table with the columns clip and caption.
    keywords: by clip; the kinds of its known events if None. concurrency: requests at a time. attempts: requests for a
    clip before it is given up, those of earlier runs counted; refused ones and answers of reasoning alone are not.
    A clip whose valid answer to the same request by the same model is in the record is not asked for again. One process
    at a time writes a record, and a record holds one model's answers.

    Raises CaptioningError when the model cannot be asked, or if its first answers all lack captions for one reason;
    answers that were under way are recorded first. The same call later goes on from there, as it does after an
    interruption of any kind.
    """
    if concurrency < 1 or attempts < 1:
        raise ValueError(f"concurrency {concurrency}, attempts {attempts}: give 1 or more")
    table = source.split("train").captions if isinstance(source, Corpus) else source
    if keywords is None:
        keywords = {str(clip): kinds for clip, kinds in source.kinds().items()} if isinstance(source, Corpus) else {}
    originals = {str(clip): texts.tolist() for clip, texts in table.groupby("clip", sort=False)["caption"]}
    requests = {clip: messages(texts, keywords.get(clip, ())) for clip, texts in originals.items()}
    with _writing(record) as (content, append):
        if others := {answer.model for answer in content.answers} - {ask.model}:
            raise CaptioningError(f"{record}: holds answers of {', '.join(sorted(others))}; name another record")
        run = _Run(ask, originals, requests, content.answers, append, attempts)
        failure = run.ask_all(concurrency, quiet)
    report = run.report(record, content.bad_lines)
    if failure is not None:
        state = f"{report.valid:,} of {report.clips:,} clips are done and kept in {record}"
        raise CaptioningError(f"{failure}. {state}; the same command goes on from there") from failure
    return report


class _Run:
    """Asks for the clips whose captions a record lacks, from several threads, and adds each answer to it."""

    def __init__(
        self,
        ask: LanguageModel,
        originals: Mapping[str, list[str]],
        requests: Mapping[str, list[dict[str, str]]],
        recorded: Iterable[Answer],
        append: Callable[[bytes], None],
        attempts: int,
    ) -> None:
        self.ask, self.originals, self.requests, self.append, self.attempts = ask, originals, requests, append, attempts
        self.keys = {clip: content_key(request, ask.model) for clip, request in requests.items()}
        self.answers: dict[str, list[Answer]] = {clip: [] for clip in originals}
        for answer in recorded:
            if self.keys.get(answer.clip) == answer.key:
                self.answers[answer.clip].append(answer)
        self.sent = self.answered = self.tokens = self.refused_in_a_row = 0
        self.first: list[str] | None = []  # why the answers so far have no captions; None as soon as they differ
        self.stop, self.counting = threading.Event(), threading.Lock()

    def ask_all(self, concurrency: int, quiet: bool) -> CaptioningError | None:
        """Ask for every clip that needs it. Returns why the model cannot be asked on."""
        wanted = [clip for clip in self.originals if self._state(clip) == ""]
        pool = ThreadPoolExecutor(concurrency)
        try:
            waiting = [pool.submit(self._ask_for, clip) for clip in wanted]
            bar = tqdm(as_completed(waiting), total=len(wanted), desc="captions", unit="clip", disable=quiet or None)
            for finished in bar:
                finished.result()
        except CaptioningError as error:
            return error
        finally:  # what is under way is paid for: it is waited for and recorded
            self.stop.set()
            pool.shutdown(cancel_futures=True)
        return None

    def report(self, record: Path, damaged: list[tuple[int, str]]) -> CaptioningReport:
        missing: dict[str, list[str]] = {}
        for clip, answers in self.answers.items():
            if self._state(clip) != "valid":
                missing.setdefault(_reason(answers[-1]) if answers else "not asked", []).append(clip)
        clips, lacking = len(self.originals), sum(map(len, missing.values()))
        return CaptioningReport(record, clips, self.sent, self.answered, self.tokens, clips - lacking, missing, damaged)

    def _state(self, clip: str) -> str:
        """ "valid", "given up", or "" if the clip is still to be asked for."""
        if any(not answer.problems for answer in self.answers[clip]):
            return "valid"
        return "given up" if sum(answer.counts for answer in self.answers[clip]) >= self.attempts else ""

    def _ask_for(self, clip: str) -> None:
        try:
            while not self.stop.is_set() and self._state(clip) == "" and self._ask_once(clip):
                pass
        except BaseException:
            self.stop.set()  # before another clip is begun
            raise

    def _ask_once(self, clip: str) -> bool:
        """Ask and record; false if asking again would bring the same: refused, or reasoning alone."""
        with self.counting:
            self.sent += 1
        try:
            reply = self.ask(self.requests[clip])
        except RefusalError as error:
            reply = Reply(str(error), REQUEST_REFUSAL, {})
        number = 1 + sum(answer.counts for answer in self.answers[clip])
        now = datetime.now(UTC).isoformat(timespec="seconds")
        answer = Answer(clip, tuple(self.originals[clip]), self.ask.model, self.keys[clip], number, *reply, now)
        self.append(answer.line())
        self.answers[clip].append(answer)
        with self.counting:
            self._count(answer)
        return answer.counts

    def _count(self, answer: Answer) -> None:
        """CaptioningError: one refusal after another, or all first answers without captions for one reason."""
        self.tokens += answer.usage.get("total_tokens", 0)
        if answer.finish == REQUEST_REFUSAL:
            self.refused_in_a_row += 1
            if self.refused_in_a_row >= REFUSALS:
                raise CaptioningError(answer.text)
            return
        self.answered += 1
        self.refused_in_a_row = 0
        if self.first is not None:
            self.first.append("" if answer.whole else _reason(answer))
            if len(set(self.first)) > 1 or self.first == [""]:
                self.first = None
            elif len(self.first) >= ALIKE:
                raise CaptioningError(f"{answer.model}: the first {ALIKE} answers fail alike, {self.first[0]}")


def _reason(answer: Answer) -> str:
    return answer.problems[0].partition(":")[0]


@contextmanager
def _writing(record: Path):
    """The record as it is, its end mended, and a function that appends a line; no other process can do so meanwhile."""
    lock = FileLock(record.with_name(f".{record.name}.lock"), timeout=0)
    try:
        with writing(record):
            record.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
    except Timeout:
        raise CaptioningError(
            f"{record}: another process is writing to it; wait for it or name another record"
        ) from None
    try:
        with writing(record):
            _mend(record)
            file = open(record, "ab", buffering=0)
        with file:
            yield read(record), _appender(file)
    finally:
        lock.release()


def _appender(file: Any) -> Callable[[bytes], None]:
    lock = threading.Lock()

    def append(line: bytes) -> None:
        """On disk when it returns; a line that cannot be written whole is taken back."""
        with lock:
            size = os.fstat(file.fileno()).st_size
            try:
                with writing(Path(file.name)):
                    if file.write(line) < len(line):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    os.ftruncate(file.fileno(), size)
                raise

    return append


def _mend(record: Path) -> None:
    """End a last line that a crash left without its end: what is not whole goes to `<record>.damaged`."""
    content = record.read_bytes() if record.exists() else b""
    whole, fragment = content[: content.rfind(b"\n") + 1], content[content.rfind(b"\n") + 1 :]
    if not fragment:
        return
    with open(record, "r+b") as file:
        try:
            json.loads(fragment)
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
        except ValueError:
            with open(record.with_name(f"{record.name}.damaged"), "ab") as aside:
                aside.write(fragment + b"\n")
                aside.flush()
                os.fsync(aside.fileno())
            file.truncate(len(whole))
        file.flush()
        os.fsync(file.fileno())
