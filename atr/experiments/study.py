"""Run the numbered notebooks headless, say beforehand what they will do and how long it takes."""

import ast
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec

from atr.config import RunConfig
from atr.corpora import corpus_of, remember_corpora
from atr.corpora.corpus import Corpus, CorpusError
from atr.experiments import executors, planning
from atr.experiments.grid import describe, key
from atr.experiments.notebooks import TIMED, StudyError, notebooks
from atr.experiments.profiles import Profile, get_profile
from atr.experiments.progress import Progress, note
from atr.experiments.reported import addresses, write
from atr.system import atomic, hashes, places
from atr.training import distributed, fit, identity
from atr.training.records import Run

TICK = 0.5  # seconds between two looks at how far a study is
THREADED = ("OMP", "MKL", "OPENBLAS", "NUMBA")
LITTLE = 300  # seconds of training below which notebooks run side by side, as they then are mostly imports and figures


def grid(notebook: Path, parameters: dict[str, Any]) -> list[RunConfig]:
    """The configs of a notebook: what its cells tagged "parameters" and "grid" define as `grid`."""
    return list(namespace(notebook, parameters)["grid"])


def namespace(notebook: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """What the cells of a notebook that are tagged "parameters" and "grid" define, run here."""
    space: dict[str, Any] = {}
    for cell in nbformat.read(notebook, as_version=4).cells:
        tags = cell.metadata.get("tags", [])
        if "parameters" in tags or "grid" in tags:
            exec(compile(cell.source, str(notebook), "exec"), space)
        if "parameters" in tags:
            space.update(parameters)
    if "grid" not in space:
        raise StudyError(f"{notebook}: no cell tagged 'grid' that defines `grid`")
    return space


def plan(
    paths: Sequence[Path], profile_name: str, seeds: Sequence[int] | None = None, strict: bool = False
) -> pd.DataFrame:
    """One row per distinct run of the notebooks: what it is, whether it is finished, its estimated seconds on one core.

    Trains and fetches nothing. strict: CorpusError for a corpus that is there and has problems.
    """
    profile = get_profile(profile_name)
    rows: dict[str, dict[str, Any]] = {}
    with remember_corpora():
        for path in paths:
            for config in grid(path, {"profile_name": profile_name, "seeds": list(seeds) if seeds else None}):
                if (own := key(config)) not in rows:
                    corpus = _corpus(config, profile, strict)
                    size = planning.size(config, corpus)
                    rows[own] = {
                        "notebooks": "",
                        "run": describe(config),
                        "epochs": sum(part.epochs for part in config.parts()),
                        "finished": _is_finished(config, corpus, profile),
                        "seconds": planning.seconds(config, size),
                        "config": config,
                        "size": size,
                    }
                if path.stem[:2] not in rows[own]["notebooks"].split():
                    rows[own]["notebooks"] = f"{rows[own]['notebooks']} {path.stem[:2]}".strip()
    columns = ["notebooks", "run", "epochs", "finished", "seconds", "config", "size"]
    return pd.DataFrame(list(rows.values()), columns=columns).astype({"finished": bool})


def _corpus(config: RunConfig, profile: Profile, strict: bool) -> Corpus | None:
    """The corpus of a config, None if it cannot be had: a plan needs no data."""
    try:
        return corpus_of(config.corpus, profile.root)
    except (ValueError, OSError) as error:
        if strict and isinstance(error, CorpusError):
            raise
        return None


def _is_finished(config: RunConfig, corpus: Corpus | None, profile: Profile) -> bool:
    """Whether a run is in the store, without making or fetching the weights that it would start from."""
    if corpus is None or not profile.runs.is_dir():
        return False
    try:
        run = identity.locate(config, corpus, profile.runs, fetch=False, root=profile.root)
        return fit.at_hand(run, config)
    except (ValueError, OSError):
        return False


def estimate(table: pd.DataFrame, cores: int, slots: int | None = None) -> float:
    """Seconds that the runs of a plan take on CPUs like this one: so many side by side, one a core if not given, after
    the preparation of unseen corpora here.
    """
    todo = table[~table["finished"]] if len(table) else table
    seconds = float(todo["seconds"].sum()) / (slots or cores)
    if len(todo):
        started = {json.dumps(config.to_dict()["corpus"]) for config in table.loc[table["finished"], "config"]}
        pairs = zip(todo["config"], todo["size"], strict=True)
        sizes = {json.dumps(config.to_dict()["corpus"]): size for config, size in pairs}
        seconds += sum(planning.preparation(size, cores) for key, size in sizes.items() if key not in started)
    return seconds * planning.speed()


def progress(file: Path, table: pd.DataFrame, notebooks: int, jobs: int, guess: float | None) -> Progress:
    """Of a plan whose notebooks, `jobs` at a time, note in a file how far they are; guess: as `Progress` has it."""
    todo = table[~table["finished"]] if len(table) else table
    costs = {key(config): seconds for config, seconds in zip(todo["config"], todo["seconds"], strict=True)}
    finished = {key(config) for config in table["config"]} - set(costs) if len(table) else set()
    return Progress(file, costs, finished, guess, notebooks, jobs)


def execute_all(
    paths: Sequence[Path],
    profile: str,
    parameters: dict[str, Any],
    jobs: int = 1,
    on_done: Callable[[Path], Any] | None = None,
    watch: Callable[[], Any] | None = None,
) -> None:
    """Run notebooks, `jobs` at a time, in processes of their own if several; runs that two of them need are made once.
    The one that measures the machine comes last, by itself.

    on_done: called with each executed copy; watch: called again and again meanwhile. The first failure is raised when
    those under way have ended; further notebooks are not begun.
    """
    timed = [path for path in paths if path.stem[:2] == TIMED]
    paths = [path for path in paths if path not in timed]
    if jobs > 1 and len(paths) > 1:
        context = multiprocessing.get_context("spawn")
        threads = max(1, executors.default_workers("cpu") // jobs)
        # The first and the second need the same preparation and the same runs: rather the first beside the last.
        paths = [paths[0], *paths[:0:-1]]
        with ProcessPoolExecutor(jobs, context, _share_cores, (threads,)) as pool:
            _execute(pool, jobs, paths, profile, parameters, on_done, watch)
        paths = []
    with ThreadPoolExecutor(1) as pool:  # nbclient would have the main thread's signals
        _execute(pool, 1, [*paths, *timed], profile, parameters, on_done, watch)


def _execute(
    pool: Executor,
    jobs: int,
    paths: Sequence[Path],
    profile: str,
    parameters: dict[str, Any],
    on_done: Callable[[Path], Any] | None,
    watch: Callable[[], Any] | None,
) -> None:
    waiting, running, failure = list(paths), set[Future[Path]](), None
    while running or waiting and failure is None:
        while waiting and failure is None and len(running) < jobs:
            with _block_interrupts():
                running.add(pool.submit(execute, waiting.pop(0), profile, parameters))
        ended, running = wait(running, TICK, FIRST_COMPLETED)
        if watch is not None:
            watch()
        for future in ended:
            failure = failure or future.exception()
            if on_done is not None and future.exception() is None:
                on_done(future.result())
    if failure is not None:
        raise failure


@contextmanager
def _block_interrupts() -> Iterator[None]:
    """A process that is started within it does not get the terminal's Ctrl-C: it ends with the one that started it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _share_cores(threads: int) -> None:
    """Have this process and its kernels compute on so many threads: more than there are cores wait for one another."""
    distributed.end_with_parent()
    for library in THREADED:
        os.environ.setdefault(f"{library}_NUM_THREADS", str(threads))


class OwnKernel(AsyncKernelManager):
    """Starts this interpreter with this package, whatever kernels are installed under the name of the notebook's."""

    environment: dict[str, str] = {}

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python", env=self.environment)


def execute(path: Path, profile: str, parameters: dict[str, Any]) -> Path:
    """Run one notebook through papermill into `results/<profile>/notebooks/`; returns the executed copy.

    A failure keeps what was executed as `<name>.failed.ipynb`; the last good copy stays.
    """
    import papermill

    folder = get_profile(profile).results / "notebooks"
    target, partial = folder / path.name, folder / f"{path.stem}.failed.ipynb"
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    folders = [str(places.PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(folders), "ATR_NOTEBOOK": code(nbformat.read(path, as_version=4))}
    note("opened", path.stem)
    try:
        with atomic.writing(target):
            folder.mkdir(parents=True, exist_ok=True)
            papermill.execute_notebook(
                path,
                partial,
                parameters={"profile_name": profile, **parameters},
                kernel_name="python3",
                language="python",
                kernel_manager_class=type("Kernel", (OwnKernel,), {"environment": own}),
                progress_bar=False,
                cwd=str(path.parent),
                # it logs the interrupt that its own shutdown sends; what a cell raises comes back as its output
                extra_arguments=["--log-level=CRITICAL"],
            )
    except papermill.exceptions.PapermillExecutionError as error:
        raise StudyError(f"{path.name}: {error.ename}: {error.evalue}\nexecuted so far: {partial}") from error
    notebook = nbformat.read(partial, as_version=4)
    notebook.metadata.pop("papermill", None)  # where the files lay, which is nobody's business in a committed copy
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
    with atomic.writing(target):
        nbformat.write(notebook, partial)
        os.replace(partial, target)
    note("closed", path.stem)
    return target


def commit_reference(profile_name: str, numbers: Sequence[str] = ()) -> Path:
    """Copy a profile's tables, figures and executed notebooks to `results/reference/<profile>/`, and the ranks of the
    runs that they report (`experiments.reported`); those of the numbered notebooks alone leave the others' there as
    they are.
    """
    profile = get_profile(profile_name)
    source = profile.results
    target = places.results_home() / "reference" / profile_name
    parts = ("tables", "figures", "notebooks")
    paths = [path for path in notebooks(numbers, profile) if numbers or path.stem[:2] != TIMED]
    missing = [path.name for path in paths if not (source / "notebooks" / path.name).is_file()]
    if missing:
        raise StudyError(f"{source}: not run yet: {', '.join(missing)}; first: atr study --profile {profile_name}")
    own = {path.stem[:2] for path in paths}
    reported = {path.stem[:2]: [Run(profile.runs / name) for name in addresses(source, path.stem)] for path in paths}
    gone = [run.path for runs in reported.values() for run in runs if not run.finished]
    if gone:
        raise StudyError(
            f"{gone[0]}: {len(gone)} runs behind the tables are gone; first: atr study --profile {profile_name}"
        )

    def fill(fresh: Path) -> None:
        for part in parts:
            (fresh / part).mkdir()
            outputs = [path for path in (source / part).iterdir() if not numbers or path.name[:2] in own]
            others = [path for path in (target / part).glob("*") if numbers and path.name[:2] not in own]
            for path in outputs + others:
                if path.is_file() and not path.name.startswith(".") and not path.name.endswith(".failed.ipynb"):
                    shutil.copy2(path, fresh / part)
        (fresh / "ranks").mkdir()
        for path in (target / "ranks").glob("*.npz"):
            if numbers and path.stem not in own:
                shutil.copy2(path, fresh / "ranks")
        for number, runs in reported.items():
            if runs:
                write(runs, fresh / "ranks" / f"{number}.npz")

    atomic.replace_folder(target, fill)
    return target


def executed_copy(path: Path) -> nbformat.NotebookNode | None:
    """The executed copy of a notebook, None where there is none; ValueError if it cannot be read."""
    if not path.is_file():
        return None
    try:
        return nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({type(error).__name__}); delete it and run the notebook") from error


def parameters(copy: nbformat.NotebookNode | None) -> dict[str, Any]:
    """What a notebook was executed with."""
    injected = [cell.source for cell in copy.cells if "injected-parameters" in _tags(cell)] if copy else []
    lines = ast.parse("\n".join(injected)).body
    return {line.targets[0].id: ast.literal_eval(line.value) for line in lines}  # type: ignore[attr-defined]


def code(notebook: nbformat.NotebookNode) -> str:
    """A hash of a notebook's code, whatever it is executed with."""
    own = [cell for cell in notebook.cells if cell.cell_type == "code" and "injected-parameters" not in _tags(cell)]
    return hashes.content_key([cell.source for cell in own])


def _tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])
