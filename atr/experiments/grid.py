"""Many configs: skip what is finished, continue what was cut off, run several side by side, survive what fails."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from atr.config import RunConfig
from atr.corpora import corpus_of, remember_corpora
from atr.experiments import executors, planning
from atr.experiments.executors import Executor, Task
from atr.experiments.listing import leaves
from atr.experiments.profiles import get_profile
from atr.experiments.progress import note
from atr.system import devices, hashes, tracking
from atr.training import ERROR, find, fit, identity
from atr.training.preparation import prepare
from atr.training.records import RecordError, Run, error_text


@dataclass
class Runs:
    """What `run_all` brings back: a run for each config, None where it failed, and the failures' reasons.

    trials  addresses of runs that a search made for its own ends, and no table reports
    """

    configs: list[RunConfig]
    runs: list[Run | None]
    failures: dict[int, str] = field(default_factory=dict)
    trials: set[str] = field(default_factory=set)

    def __iter__(self):
        """Pairs (config, run) of those that finished."""
        return iter([(c, run) for c, run in zip(self.configs, self.runs, strict=True) if run is not None])

    def __len__(self) -> int:
        return len(self.configs)

    def __add__(self, other: "Runs") -> "Runs":
        """Those of both; what is no trial of both is none."""
        reported = {run.address for part in (self, other) for _, run in part if run.address not in part.trials}
        later = {len(self) + place: reason for place, reason in other.failures.items()}
        trials = (self.trials | other.trials) - reported
        return Runs(self.configs + other.configs, self.runs + other.runs, self.failures | later, trials)

    def raise_failures(self) -> None:
        if self.failures:
            lines = [f"{describe(self.configs[place])}: {reason}" for place, reason in self.failures.items()]
            raise RuntimeError(f"{len(lines)} of {len(self)} runs failed:\n" + "\n".join(lines))


def load_run(address: str, profile: str = "demo") -> Run:
    """A finished run of a profile by the first digits of its address, as `atr runs list` shows them.

    ValueError: no such run, or several; RecordError: its files are damaged. FileNotFoundError: it is not finished, or
    by another version.

    >>> soundscapes = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
    >>> run = atr.fit(atr.RunConfig(corpus=soundscapes, epochs=2), runs=atr.get_profile("demo").runs)
    >>> load_run(run.address[:8]) == run
    True
    """
    run = Run(find(address, get_profile(profile).runs))
    status = run.status
    if status == "newer":
        raise FileNotFoundError(f"{run.path}: made by a newer version of atr; load it with that one")
    if status == "damaged":
        raise RecordError(run.problem)
    if status != "finished":
        raise FileNotFoundError(f"{run.path}: {status}; run its study again: atr study --profile {profile}")
    return run


def describe(config: RunConfig) -> str:
    """A config in a few words."""
    encoder = f" {config.audio_encoder}" if config.audio_encoder != RunConfig.audio_encoder else ""
    penalty = f" α {config.penalty['alpha']:g}" if config.penalty else ""
    stages = f" in {len(config.stages)} stages" if config.stages else ""
    mined = f" {config.mining} batches" if config.mining else ""
    source = f" from {config.needs()['start'].corpus['name']}" if config.start else ""
    size = f" but {config.corpus['hold_out']} clips" if "hold_out" in config.corpus else ""
    use = {"both": " with {}", "synthetic": " by {}"}[config.corpus.get("use", "both")]
    size += use.format(config.corpus["synthetic"]) if "synthetic" in config.corpus else ""
    pooling = " text-aware" if config.text_aware else ""
    return (
        f"{config.loss['name']}{penalty}{encoder}{pooling} {config.training}{stages}{mined} D{config.embedding_dim} "
        f"B{config.batch_size} lr {config.rate('heads'):g} seed {config.seed} on {config.corpus['name']}{size}{source}"
    )


def key(config: RunConfig) -> str:
    """Names a config, wherever its data lies; the address of its run takes that, and weights, to be known."""
    return hashes.content_key(config.to_dict())[:16]


def overview(configs: Sequence[RunConfig]) -> pd.DataFrame:
    """One row per group of configs that differ by their seed alone: what it trains with, each field in which groups
    differ, empty where it is at its default; its name is how many runs it has.

    >>> overview([atr.RunConfig(epochs=epochs, seed=seed) for epochs in (5, 9) for seed in (0, 1)]).reset_index()
       runs  batch_size  epochs learning_rates.heads
    0     2          32       5                0.001
    1     2          32       9                0.001
    """
    rows = []
    for config in {key(config): config for config in configs}.values():
        always = {name: config.to_dict()[name] for name in ("batch_size", "epochs", "learning_rates")}
        needs = {name: describe(needed.replace(seed=0)) for name, needed in config.needs().items()}
        fields = leaves(always | config.identity() | always | needs)
        rows.append({name: value for name, value in fields.items() if name != "seed"})
    table = pd.DataFrame(rows, dtype=object)
    differing = [name for name in table if str(name).split(".")[0] in always or table[name].nunique(dropna=False) > 1]
    return (
        table.groupby(differing, sort=False, dropna=False)
        .size()
        .rename("runs")
        .reset_index()
        .fillna("")
        .map(lambda value: f"{value:.3g}" if isinstance(value, float) else value)
        .set_index("runs")
    )


def run_all(
    configs: Sequence[RunConfig],
    *,
    root: str | Path | None = None,
    device: str = "auto",
    runs: str | Path | None = None,
    workers: int | None = None,
    executor: str = "local",
    track: Sequence[str] | str | None = None,
    on_run: Callable[[RunConfig, Run], Any] | None = None,
    further: Callable[[], Sequence[RunConfig]] = tuple,
    quiet: bool = False,
) -> Runs:
    """Fit every config, each in a process of its own, `workers` at a time; equal configs are run once.

    root      folder of the corpora that lie in one
    executor  "local", or "ray": over a cluster, see `executors.Ray`
    track     "tensorboard" or "wandb", as in `atr.fit`
    on_run    called in this process as each run is at hand, finished ones first
    further   called once all finished ones are at hand, and after each run that has ended: what can run by now; of
              that, what is not yet among the configs joins them
    A run that fails, even one whose process is killed, does not touch the others: see `Runs.failures`.

    >>> soundscapes = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
    >>> grid = [atr.RunConfig(corpus=soundscapes, epochs=2, seed=seed) for seed in (0, 1)]
    >>> outcome = run_all(grid, quiet=True)
    >>> [(config.seed, run.status) for config, run in outcome]
    [(0, 'finished'), (1, 'finished')]
    """
    executors.check_executor(executor)
    # A cluster may have a GPU where this machine has none.
    here = devices.resolve_device("auto" if executor == "ray" and device == "cuda" else device)
    options = {"root": root, "runs": runs, "track": tracking.trackers_of(track)}
    outcome, tasks, new, keys = Runs([], []), dict[str, Task](), list[Task](), set[str]()
    start = partial(executors.EXECUTORS[executor], device, workers, runs)
    with tqdm(total=len(configs), desc="runs", unit="run", disable=quiet) as bar, remember_corpora():
        for config in configs:
            _join(config, outcome, tasks, new, root, runs, quiet)
        keys.update(map(key, configs))
        bar.update(len(outcome.failures))
        with closing(_run_tasks(new, start, here, options, quiet)) as ended:
            for task, reason in ended:
                run = Run(tasks.pop(task.run.address).run.path)
                done = fit.at_hand(run, task.config)
                for place in task.places:
                    _note("ended", outcome.configs[place])
                    if done:
                        outcome.runs[place] = run
                    else:
                        outcome.failures[place] = _where(run, reason or run.problem or f"{run.path}: {run.status}")
                    bar.update()
                    if done and on_run is not None:
                        on_run(outcome.configs[place], run)
                for config in () if new else further():  # once after all that is at hand
                    if key(config) not in keys:
                        keys.add(key(config))
                        _join(config, outcome, tasks, new, root, runs, quiet)
                        bar.total = len(outcome)
    return outcome


def _join(
    config: RunConfig,
    outcome: Runs,
    tasks: dict[str, Task],
    new: list[Task],
    root: str | Path | None,
    runs: str | Path | None,
    quiet: bool,
) -> None:
    """Take a config in: each distinct run is one task, by its address; a config whose run cannot be named fails."""
    place = len(outcome)
    outcome.configs.append(config)
    outcome.runs.append(None)
    try:
        corpus = corpus_of(config.corpus, root)
        _note("prepared", config)
        run = identity.locate(config, corpus, runs, quiet, root=root)
        if run.address not in tasks:
            needed = identity.requirements(config, corpus, root).values()
            needs = {identity.locate(*one, runs, quiet, root=root).address for one in needed}
            tasks[run.address] = Task(config, corpus, run, [], needs)
            new.append(tasks[run.address])
        tasks[run.address].places.append(place)
    except Exception as error:
        outcome.failures[place] = error_text(error)


def _run_tasks(
    new: list[Task], start: Callable[[], Executor], here: str, options: dict[str, Any], quiet: bool
) -> Generator[tuple[Task, str]]:
    """Each task as it ends, finished ones first, and why if it failed; `start` starts an executor if one is needed.
    Tasks are taken out of `new`, to which others may be added after each.
    """
    unfinished, ready = list[Task](), list[Task]()

    def at_hand() -> Generator[tuple[Task, str]]:
        while new:
            task = new.pop(0)
            if fit.at_hand(task.run, task.config):
                yield task, ""
            else:
                unfinished.append(task)

    yield from at_hand()
    if not unfinished:
        return
    with closing(start()) as executor:

        def make_ready() -> Generator[tuple[Task, str]]:
            """Have what can run ready, in order; what cannot is at its end."""
            yield from at_hand()
            while unfinished:
                task = unfinished.pop(0)
                _note("prepared", task.config)
                device = executor.device if executor.device == here else "cpu"
                try:
                    prepare(task.config, task.corpus, quiet=quiet, device=device)  # once, here, on all cores or the GPU
                    ready.append(task)
                except Exception as error:
                    yield task, error_text(error)
                yield from at_hand()
            if here == "cuda":
                torch.cuda.empty_cache()  # what preparing took is the runs' now
            ready.sort(key=_order)

        options = options | {"device": executor.device}
        yield from make_ready()
        for ended in executors.side_by_side(ready, executor, options, lambda task: _note("trains", task.config)):
            yield ended
            yield from make_ready()


def _note(event: str, config: RunConfig) -> None:
    note(event, describe(config), key(config))


def _order(task: Task) -> tuple:
    """The released recipe first, heads before encoders, then seed by seed, its shortest first: a table soon has all
    rows, and a first seed's run for twice the epochs does not train alone at the end.
    """
    seconds = planning.seconds(task.config, planning.size(task.config, task.corpus))
    encoders = task.config.training in ("finetuned", "scratch")
    return task.config.recipe != "code", encoders, task.config.seed, seconds, task.places[0]


def _where(run: Run, reason: str) -> str:
    """Why a run failed, and where its traceback lies, if the disk had room for it."""
    error = run.path / ERROR
    return f"{reason} (see {error})" if error.is_file() and error.stat().st_size else reason
