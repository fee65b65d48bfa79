"""Where runs execute: in processes of this machine, or on a Ray cluster of several."""

import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from filelock import FileLock, SoftFileLock, Timeout

from atr import register
from atr.config import RunConfig
from atr.corpora.corpus import Corpus
from atr.system import devices, hashes
from atr.system.environment import versions
from atr.system.places import home, results_home
from atr.training import default_folder, distributed, fit
from atr.training.records import Run, error_text

RETRIES = 3  # of a run whose process or machine dies
PROBE_SECONDS = 300.0  # for a machine to start a process and to import PyTorch
LONGEST = 2000  # letters of a reason: a pipe holds them before anybody reads
LATE_SECONDS = 90.0  # for a shared file system to show here what another machine has written
LOCK_NOTE = "file locks do not hold across machines; mount it so that flock works (docs/scale.md)"


@dataclass
class Task:
    """A run to be made, and the places of the configs that ask for it."""

    config: RunConfig
    corpus: Corpus
    run: Run
    places: list[int]
    needs: set[str]  # addresses of other runs


class Executor(Protocol):
    """Trains on `device`."""

    device: str

    def slots(self) -> int:
        """How many runs at a time."""
        ...

    def start(self, task: Task, options: dict[str, Any]) -> Any:
        """Have `training.fit` make a run, with these options; a handle of it."""
        ...

    def wait(self, running: dict[Any, Task]) -> Iterator[tuple[Any, str]]:
        """Wait; handles of what has ended, and why it may have ended without a result."""
        ...

    def stop(self, running: dict[Any, Task]) -> None:
        """End what is under way."""
        ...

    def close(self) -> None: ...


def side_by_side(
    waiting: list[Task],
    executor: Executor,
    options: dict[str, Any],
    on_start: Callable[[Task], Any] = lambda task: None,
) -> Iterator[tuple[Task, str]]:
    """Run tasks in their order, none beside a run that it needs; give each as it ends, and why if it failed. Those that
    start are taken out of the list, and others may be added after each that ends.
    """
    running = dict[Any, Task]()
    try:
        while waiting or running:
            while len(running) < executor.slots():
                under_way = {task.run.address for task in [*waiting, *running.values()]}
                task = next((task for task in waiting if not task.needs & under_way), None)
                if task is None:
                    break
                waiting.remove(task)
                try:
                    running[executor.start(task, options)] = task
                    on_start(task)
                except Exception as error:  # memory, disk or processes are exhausted, or a part cannot be pickled
                    yield task, error_text(error)
            if not running:
                break
            for handle, reason in executor.wait(running):
                yield running.pop(handle), reason
    finally:
        executor.stop(running)


def default_workers(device: str) -> int:
    """Runs side by side: one a core on a CPU, where a run has one thread; one on a GPU."""
    if device == "cuda":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalExecutor:
    """A process of this machine for each run, forked from a clean server."""

    def __init__(self, device: str = "auto", workers: int | None = None, runs: str | Path | None = None) -> None:
        self.device = devices.resolve_device(device)
        self.workers = workers or default_workers(self.device)
        self.context = devices.worker_context()
        self.reasons: dict[Any, Connection] = {}  # by process, its failure's: error.txt needs a disk with room

    def slots(self) -> int:
        return self.workers

    def start(self, task: Task, options: dict[str, Any]) -> Any:
        reasons, sender = self.context.Pipe(duplex=False)
        with sender:
            work = (register.Extensions(), task.config, task.corpus, options, hashes.file_hashes, sender)
            process = self.context.Process(target=_work, args=work, daemon=True)
            process.start()
        self.reasons[process] = reasons
        return process

    def wait(self, running: dict[Any, Task]) -> Iterator[tuple[Any, str]]:
        processes = {process.sentinel: process for process in running}
        for sentinel in wait(list(processes)):
            process = processes[sentinel]
            process.join()
            reason = f"its process ended with {process.exitcode}, as when it is killed or memory runs out"
            reason += "; run again to continue it"
            with self.reasons.pop(process) as pipe, suppress(EOFError, OSError):  # that of a process that said nothing
                reason = pipe.recv()
            yield process, reason if process.exitcode else ""

    def stop(self, running: dict[Any, Task]) -> None:
        for process in running:
            process.terminate()

    def close(self) -> None:
        pass


def _work(
    extensions: None, config: RunConfig, corpus: Corpus, options: dict[str, Any], file_hashes: dict, sender: Connection
) -> None:
    distributed.end_with_parent()
    hashes.file_hashes.update(file_hashes)
    reason = _fit(corpus, config, options)
    if reason:
        sender.send(reason)
        raise SystemExit(1)


class Ray:
    """The Ray cluster that RAY_ADDRESS names, else one that runs on this machine, else one of this machine alone.

    A run takes a CPU, and a GPU where the cluster has any and `device` is not "cpu". One whose process or machine dies
    is continued elsewhere.

    runs: folder of the run store, which all machines must share, like that of caches. ValueError: ray is not installed,
    the cluster lacks what is asked for, or a machine of it does not share them or has another version of this package.
    ConnectionError: nothing answers.
    """

    def __init__(self, device: str = "auto", workers: int | None = None, runs: str | Path | None = None) -> None:
        try:
            import ray
        except ImportError:
            install = ".venv/bin/python -m pip install ray (the extra 'cluster' of atr)"
            raise ValueError(f"executor: 'ray' needs the package ray; {install}") from None
        self.ray, self.workers, self.shared = ray, workers, dict[Corpus, Any]()
        self.connected_here = not ray.is_initialized()
        if self.connected_here:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        try:
            gpus = bool(ray.cluster_resources().get("GPU"))
            if device == "cuda" and not gpus:
                raise ValueError(f"device: 'cuda' asked for, but {self} has no GPU; use 'cpu' or 'auto'")
            self.device = "cuda" if gpus and device != "cpu" else "cpu"
            self.resources = {"CPU": 1, "GPU": 1} if self.device == "cuda" else {"CPU": 1}
            self._check([Path(runs or default_folder()).resolve(), home().resolve()])
        except BaseException:
            self.close()
            raise

    def __str__(self) -> str:
        total = self.ray.cluster_resources()
        return (
            f"a Ray cluster of {len(self._machines())} machine(s), {total.get('CPU', 0):g} CPUs and "
            f"{total.get('GPU', 0):g} GPUs"
        )

    @property
    def address(self) -> str:
        return self.ray.get_runtime_context().gcs_address

    def _machines(self) -> list[dict[str, Any]]:
        return [node for node in self.ray.nodes() if node["Alive"]]

    def slots(self) -> int:
        """As many as there are CPUs or GPUs for now, or the number of workers asked for."""
        free = (min(node["Resources"].get(kind, 0) for kind in self.resources) for node in self._machines())
        return self.workers or max(1, sum(map(int, free)))

    def call(self, function: Callable, *arguments: Any) -> Any:
        """What a function gives on a machine of the cluster that has what a run takes."""
        return self.ray.get(self._submit(self._share(*arguments), function))

    def start(self, task: Task, options: dict[str, Any]) -> Any:
        if task.corpus not in self.shared:
            self.shared[task.corpus] = self._share(task.corpus)
        paths = {name: path and Path(path).resolve() for name, path in options.items() if name in ("root", "runs")}
        return self._submit(self.shared[task.corpus], _fit, task.config, options | paths, name=task.run.address)

    def wait(self, running: dict[Any, Task]) -> Iterator[tuple[Any, str]]:
        ready, _ = self.ray.wait(list(running), timeout=10)  # then look again whether machines have joined
        for handle in ready:
            try:
                reason = self.ray.get(handle) or _wait_for(running[handle].run)
            except self.ray.exceptions.RayError as error:
                died = f"its process died ({type(error).__name__}), after {RETRIES} retries at most"
                reason = f"{died}; run again to continue it"
            yield handle, reason

    def stop(self, running: dict[Any, Task]) -> None:
        for handle in running:
            self.ray.cancel(handle, force=True)

    def close(self) -> None:
        if self.connected_here:
            self.ray.shutdown()

    def _share(self, *contents: Any) -> Any:
        """Put what several calls are given into the cluster once, with what a process needs to be like this one."""
        environment = {"ATR_HOME": str(home().resolve()), "ATR_RESULTS": str(results_home().resolve())}
        if "ATR_PRETRAINING_EPOCHS" in os.environ:
            environment["ATR_PRETRAINING_EPOCHS"] = os.environ["ATR_PRETRAINING_EPOCHS"]
        return self.ray.put((register.Extensions(), environment, os.getcwd(), hashes.file_hashes, contents))

    def _submit(self, shared: Any, function: Callable, *arguments: Any, **options: Any) -> Any:
        takes = {"num_cpus": 1, "num_gpus": self.resources.get("GPU", 0), "max_retries": RETRIES}
        return self.ray.remote(_there).options(**takes | options).remote(shared, function, *arguments)

    def _check(self, folders: list[Path]) -> None:
        on = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        problems = []
        with ExitStack() as stack:
            probes = [folder / f".probe.{uuid4().hex}" for folder in folders]
            for probe in probes:
                probe.parent.mkdir(parents=True, exist_ok=True)
                stack.callback(probe.unlink, missing_ok=True)
                if isinstance(stack.enter_context(FileLock(probe)), SoftFileLock):
                    raise ValueError(f"executor 'ray': {probe.parent}: {LOCK_NOTE}")
            shared, looks = self._share(probes, software()), {}
            for node in self._machines():
                there = {"num_cpus": 0, "num_gpus": 0, "scheduling_strategy": on(node["NodeID"], soft=False)}
                looks[self._submit(shared, _look, **there)] = node
            for look, node in looks.items():
                try:
                    problem = self.ray.get(look, timeout=PROBE_SECONDS)
                except self.ray.exceptions.RayError as error:
                    lines = str(error).strip().splitlines() or [type(error).__name__]
                    problem = f"cannot start a process with this package ({lines[-1]}); "
                    problem += "install it and the files of atr.extend there as they are here"
                if problem:
                    problems.append(f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}): {problem}")
        if problems:
            raise ValueError("executor 'ray': " + "; ".join(problems))


def _there(shared: tuple, function: Callable, *arguments: Any) -> Any:
    """Call a function on another machine as it would be called on that of the caller."""
    _, environment, folder, file_hashes, contents = shared
    os.environ.update(environment)
    with suppress(OSError):
        os.chdir(folder)
    hashes.file_hashes.update(file_hashes)
    return function(*contents, *arguments)


def _fit(corpus: Corpus, config: RunConfig, options: dict[str, Any]) -> str:
    """Why a run failed, nothing if it did not: an exception would pass for that of a process, or not be picklable."""
    try:
        fit.fit(config, corpus, **options)
    except Exception as error:
        traceback.print_exc()
        return error_text(error)[:LONGEST]
    return ""


def _look(probes: list[Path], expected: dict[str, str]) -> str:
    """What keeps this machine from making runs for one that holds the locks `probes`, nothing if it can."""
    for probe in probes:
        folder = probe.parent
        if not probe.is_file():
            return f"does not see {folder}; set ATR_HOME and ATR_RESULTS to folders that all machines share"
        with suppress(Timeout), FileLock(probe, timeout=0):
            return f"{folder}: {LOCK_NOTE}"
    other = [
        f"{name} {version}, not {expected[name]}" for name, version in software().items() if version != expected[name]
    ]
    return f"has {', '.join(other)}; use the same checkout and environment on all machines" if other else ""


def software() -> dict[str, str]:
    """Versions that numbers depend on, and a hash of this package's code."""
    folder = Path(__file__).parents[1]
    code = [(str(path.relative_to(folder)), path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py"))]
    return versions() | {"atr's code": hashes.content_key(code)[:12]}


def _wait_for(run: Run) -> str:
    """Wait until a run that was finished elsewhere shows here."""
    end = time.monotonic() + LATE_SECONDS
    while not run.finished:
        if time.monotonic() > end:
            return f"finished elsewhere, but {run.path} does not show it; run again when it does"
        time.sleep(0.5)
    return ""


EXECUTORS: dict[str, Callable[..., Executor]] = {"local": LocalExecutor, "ray": Ray}


def check_executor(name: str) -> None:
    """ValueError for an unknown executor."""
    if name not in EXECUTORS:
        raise ValueError(f"executor: unknown {name!r}; known: {', '.join(EXECUTORS)}")
