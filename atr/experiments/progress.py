"""How far a study is: what trains runs notes it in a file, what shows it to somebody reads along."""

import json
import os
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from atr.system.units import count_of, duration

VARIABLE = "ATR_PROGRESS"  # the environment's name for the file, which processes inherit
NOTEBOOK_SECONDS = 20  # imports, tables and figures of a notebook
TRUST = 0.2  # the share of all work that a plan's guess of its time counts for, beside what was measured


def note(event: str, what: str, key: str = "") -> None:
    """Note that a run `trains` or has `ended`, that one's data is `prepared` next, or that a notebook is `opened` or
    `closed`; nothing where nobody reads along.
    """
    if file := os.environ.get(VARIABLE):
        with suppress(OSError), open(file, "a", encoding="utf-8") as lines:  # a full disk is no reason to fail
            lines.write(json.dumps([event, what, key]) + "\n")


@dataclass
class Progress:
    """Of a study, read from the file that its processes `note` in. Runs of no plan, such as seeds at the rate that a
    search has found, stand for as many of it that are not trained then, each for an average one.

    costs     run's key → rough seconds, of those still to be made
    finished  the keys of the plan's others
    guess     seconds that all of `costs` take here; None: not known
    notebooks how many there are, `jobs` at a time
    """

    file: Path
    costs: Mapping[str, float]
    finished: Collection[str] = ()
    guess: float | None = None
    notebooks: int = 1
    jobs: int = 1
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._place = 0  # in the file
        self._training, self._open = dict[str, str](), dict[str, None]()
        self._ended, self._others = set[str](), dict[str, bool]()  # of the plan; of none: whether it was at hand
        self._preparing, self._closed, self._last = "", 0, self.began

    def read(self) -> bool:
        """Take in what was noted since; whether that was anything."""
        with suppress(FileNotFoundError), open(self.file, encoding="utf-8") as file:
            file.seek(self._place)
            lines = file.read().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]  # the last may be half written
            self._place += sum(len(line.encode()) for line in whole)
            self._take(json.loads(line) for line in whole)
            return bool(whole)
        return False

    def _take(self, notes: Iterable[tuple[str, str, str]]) -> None:
        for event, what, key in notes:
            self._preparing = what if event == "prepared" else ""
            if event == "trains":
                self._training[key] = what
            elif event == "ended":
                trained = self._training.pop(key, None) is not None
                if key in self.costs and key not in self._ended:
                    self._ended.add(key)
                    self._last = time.monotonic()
                elif key not in (*self.costs, *self.finished, *self._others):
                    self._others[key] = not trained
                    self._last = time.monotonic()
            elif event == "opened":
                self._open[what] = None
            elif event == "closed":
                self._open.pop(what, None)
                self._closed += 1

    @property
    def done(self) -> int:
        return len(self.finished) + len(self._ended) + len(self._others)

    @property
    def total(self) -> int:
        return max(len(self.finished) + len(self.costs), self.done)

    def left(self, now: float | None = None) -> float | None:
        """Seconds to go, by what the runs that have ended took and by the guess; None: nothing to go by."""
        now = time.monotonic() if now is None else now
        work = sum(self.costs.values())
        average = work / max(len(self.costs), 1)
        done = sum(self.costs[key] for key in self._ended) + average * list(self._others.values()).count(False)
        to_do = work - done - average * list(self._others.values()).count(True)
        tables = NOTEBOOK_SECONDS * max(self.notebooks - self._closed, 0) / self.jobs
        if to_do < 1e-9 * work or not work:
            return tables
        trust = 0.0 if self.guess is None else TRUST
        if not trust and not done:
            return None
        pace = (trust * (self.guess or 0.0) + self._last - self.began) / (trust * work + done)
        return max(pace * to_do - (now - self._last), 0.0) + tables

    def __str__(self) -> str:
        runs = f"{self.done} of {self.total} runs" if self.total else ""
        left = self.left()
        time_left = "" if left is None else f"about {duration(left)} left"
        if self._training:
            first, *others = self._training.values()
            doing = f"training {first}" + f" and {count_of(len(others), 'other')}" * bool(others)
        else:
            doing = f"preparing {self._preparing}" if self._preparing else ", ".join(self._open)
        return "; ".join(filter(None, [", ".join(filter(None, [runs, time_left])), doing]))
