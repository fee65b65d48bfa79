import copy
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from filelock import SoftFileLock
from made_runs import made_run

import atr
from atr import RunConfig, fit, register, run_all
from atr.experiments import executors
from atr.experiments.executors import Ray, Task, side_by_side
from atr.system import hashes, places
from atr.training import identity
from atr.training.records import Run

TINY = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
DIVERGES = {"learning_rates": {"heads": 1e30}, "clip_norm": None}
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # or it writes a token to the user's home
    "RAY_memory_monitor_refresh_ms": "0",  # it kills processes when others fill the memory
}
SMALL = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
TELLING = """
import os
from pathlib import Path
from atr import losses, register

@register.loss("telling")
class Telling(losses.NTXent):
    def __init__(self):
        super().__init__()
        Path({folder!r}, str(os.getpid())).touch()
"""


def config(**changes):
    return RunConfig(**({"corpus": TINY, "epochs": 2, "batch_size": 16, "embedding_dim": 16} | changes))


@pytest.fixture(autouse=True)
def deadline():
    """No test waits for a cluster for ever."""

    def late(*_):
        raise TimeoutError("took more than five minutes")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def no_extensions():
    yield
    for path in list(register._files):
        register.forget(path)


@pytest.fixture(scope="module")
def prepared(corpus, tmp_path_factory):
    """Everything in the store, so that each test pays for its runs alone."""
    fit(config(epochs=0), corpus, runs=tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of one machine with one CPU, which RAY_ADDRESS names."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # a socket's path must be short
        patch.setenv("RAY_TMPDIR", folder)  # neither needs nor meets the clusters of others
        from ray.cluster_utils import Cluster

        for attempt in range(3):  # Ray gives a machine 30 s to start, which a busy one may not make
            try:
                cluster = Cluster(True, head_node_args=SMALL)
                break
            except Exception:
                if attempt == 2:
                    raise
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def connected(cluster):
    import logging

    import ray

    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    yield ray
    ray.shutdown()


def workers(folder):
    """The other processes that have made the loss of `TELLING`; this one has, to check its config."""
    return {int(path.name) for path in folder.iterdir() if path.name.isdigit()} - {os.getpid()}


def same(one, other):
    for name in ("history.csv", "metrics.json", "embeddings.safetensors"):
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes()


def test_a_cluster_gives_what_this_machine_gives_and_says_what_failed(cluster, prepared, tmp_path, monkeypatch):
    # Given a run, one that starts from it, one that diverges, and a loss of one's own; paths relative to this folder
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(TELLING.format(folder=str(tmp_path)))
    atr.extend("own.py")
    configs = [
        config(start=config().identity(), seed=1),
        config(),
        config(**DIVERGES),
        config(loss={"name": "telling"}),
    ]
    # When they run on both
    order = []
    ray = run_all(configs, runs=Path("ray"), executor="ray", quiet=True, on_run=lambda found, run: order.append(found))
    local = run_all(configs, runs=tmp_path / "local", device="cpu", workers=1, quiet=True)
    # Then nothing tells them apart
    assert set(ray.failures) == set(local.failures) == {2}
    assert ray.failures[2].split(" (see")[0] == local.failures[2].split(" (see")[0]
    assert "lower learning_rates" in ray.failures[2] and "error.txt" in ray.failures[2]
    for place in (0, 1, 3):
        same(ray.runs[place], local.runs[place])
    assert order.index(configs[1]) < order.index(configs[0])
    assert len(workers(tmp_path)) == 2 and not list(Path("ray").glob(".probe*"))
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


def test_a_cluster_without_a_gpu_or_with_another_version_is_refused(connected, prepared, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"'cuda' asked for, but a Ray cluster of 1 machine\(s\), 1 CPUs and 0 GPUs"):
        Ray("cuda", runs=tmp_path)
    here = executors.software()
    monkeypatch.setattr(executors, "software", lambda: here | {"torch": "1.0"})
    with pytest.raises(ValueError, match=rf"executor 'ray': .*: has torch {here['torch']}, not 1.0; use the same"):
        run_all([config()], runs=tmp_path, executor="ray", quiet=True)
    assert not list(tmp_path.iterdir())


def test_a_run_whose_process_is_killed_and_whose_machine_is_gone_is_continued_elsewhere(
    cluster, connected, prepared, corpus, tmp_path
):
    (tmp_path / "own.py").write_text(TELLING.format(folder=str(tmp_path)))
    atr.extend(tmp_path / "own.py")
    long = config(epochs=60, loss={"name": "telling"})
    folder = identity.locate(long, corpus, tmp_path / "ray").path
    # Given a second machine, while the first one is busy
    go_on = tmp_path / "go on"
    second = cluster.add_node(**SMALL)

    @connected.remote(num_cpus=1, label_selector={"ray.io/node-id": cluster.head_node.node_id})
    def occupy():
        while not go_on.exists():
            time.sleep(0.05)

    occupied = occupy.remote()
    # When the run's process is killed after an epoch, and its machine taken away
    killed = []

    def kill():
        while not (folder / "history.csv").is_file():
            time.sleep(0.001)
        killed.extend(workers(tmp_path))
        os.kill(killed[0], signal.SIGKILL)
        cluster.remove_node(second)
        go_on.touch()

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    outcome = run_all([long], runs=tmp_path / "ray", executor="ray", device="cpu", quiet=True)
    thread.join()
    connected.get(occupied)
    # Then another process has finished it, to the bits of one that was never cut off
    outcome.raise_failures()
    assert len(killed) == 1 and len(workers(tmp_path)) == 2
    same(outcome.runs[0], fit(long, corpus, runs=tmp_path / "whole", device="cpu"))


def test_a_missing_package_is_named(monkeypatch, tmp_path, prepared):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match="executor: 'ray' needs the package ray; .*pip install ray .*'cluster'"):
        run_all([config(seed=7)], executor="ray", runs=tmp_path, quiet=True)


def task(name, needs=(), folder=Path("runs")):
    return Task(None, None, Run(folder / name), [0], set(needs))


class Pretended:
    """Runs that take a step each, at most two at a time."""

    device = "cpu"

    def __init__(self):
        self.events, self.stopped = [], None

    def slots(self):
        return 2

    def start(self, task, options):
        self.events.append(f"+{task.run.address}")
        return task.run.address

    def wait(self, running):
        first = min(running)
        self.events.append(f"-{first}")
        yield first, ""

    def stop(self, running):
        self.stopped = list(running)


def test_runs_start_in_their_order_and_none_beside_one_that_it_needs():
    executor = Pretended()
    tasks = [task("a", {"c"}), task("b"), task("c", {"b"}), task("d")]
    assert [task.run.address for task, _ in side_by_side(tasks, executor, {})] == ["b", "c", "a", "d"]
    assert " ".join(executor.events) == "+b +d -b +c -c +a -a -d" and executor.stopped == []


def test_a_run_that_cannot_be_started_is_told_and_the_others_run():
    class Exhausted(Pretended):
        def start(self, task, options):
            if task.run.address in ("a", "d"):
                raise BlockingIOError(11, "Resource temporarily unavailable") if task.run.address == "a" else OSError()
            return super().start(task, options)

    told = {task.run.address: reason for task, reason in side_by_side([task(name) for name in "abcd"], Exhausted(), {})}
    assert told["a"] == "BlockingIOError: [Errno 11] Resource temporarily unavailable" and told["d"] == "OSError"
    assert told["b"] == told["c"] == ""


def test_what_is_under_way_is_stopped_with_the_caller():
    executor = Pretended()
    steps = side_by_side([task(name) for name in "abc"], executor, {})
    next(steps)
    steps.close()
    assert executor.stopped == ["b"]


class Cluster:
    """What `Ray` asks of the package: two machines with GPUs, one without, one that is gone."""

    exceptions = types.SimpleNamespace(RayError=ConnectionAbortedError)
    util = MagicMock()

    def __init__(self, *kinds):
        self.kinds = kinds

    def nodes(self):
        return [{"Alive": alive, "Resources": {"CPU": cpus, "GPU": gpus}} for alive, cpus, gpus in self.kinds]

    def wait(self, handles, timeout):
        return handles[:1], handles[1:]

    def get(self, handle):
        if isinstance(handle, Exception):
            raise handle
        return handle


class OtherMachine(Cluster):
    """A cluster of one machine, which is this one after `before` has been done to it."""

    def __init__(self, before=lambda: None):
        self.before = before

    def is_initialized(self):
        return True

    def cluster_resources(self):
        return {"CPU": 1}

    def nodes(self):
        return [{"Alive": True, "NodeID": "1", "NodeManagerHostname": "far", "NodeManagerAddress": "10.0.0.2"}]

    def put(self, content):
        return copy.deepcopy(content)

    def get(self, handle, timeout=None):
        return handle

    def remote(self, function):
        def call(*arguments):
            self.before()
            return function(*arguments)

        return types.SimpleNamespace(options=lambda **_: types.SimpleNamespace(remote=call))


@pytest.fixture
def connect(tmp_path, monkeypatch):
    """Connects to a cluster of another machine, whose state `before` changes before anything is called there."""

    def ray(before=lambda: None):
        monkeypatch.setitem(sys.modules, "ray", OtherMachine(before))
        return Ray("cpu", runs=tmp_path / "runs")

    monkeypatch.chdir(tmp_path)
    return ray


class TestOnTheOtherMachine:
    def test_a_process_becomes_like_the_callers(self, connect, tmp_path, monkeypatch):
        monkeypatch.setattr(hashes, "file_hashes", {("file", 1, 2): "hash"})
        monkeypatch.setenv("ATR_HOME", str(tmp_path / "home"))

        def elsewhere():
            os.chdir("/")
            os.environ["ATR_HOME"] = "/elsewhere"
            hashes.file_hashes.clear()

        def surroundings(*arguments):
            return arguments, os.getcwd(), os.environ["ATR_HOME"], hashes.file_hashes

        there = connect(elsewhere).call(surroundings, 1, 2)
        assert there == ((1, 2), str(tmp_path), str(tmp_path / "home"), {("file", 1, 2): "hash"})

    def test_a_folder_that_is_not_there_is_left_out(self, connect, tmp_path):
        ray = connect()
        (tmp_path / "gone").mkdir()
        os.chdir(tmp_path / "gone")

        def elsewhere():
            os.chdir("/")
            (tmp_path / "gone").rmdir()

        ray.ray.before = elsewhere
        assert ray.call(os.getcwd) == "/"

    def test_an_exception_becomes_a_reason(self, connect, prepared, corpus, tmp_path):
        ray, options = connect(), {"runs": tmp_path, "device": "cpu"}
        whole, broken = (Task(one, corpus, task("a").run, [0], set()) for one in (config(epochs=1), config(**DIVERGES)))
        assert ray.start(whole, options) == "" and "lower learning_rates" in ray.start(broken, options)

    def test_it_must_see_the_folders_hold_their_locks_and_have_the_same_software(self, connect, tmp_path, monkeypatch):
        def hide():
            for probe in (tmp_path / "runs").glob(".probe.*"):
                probe.unlink()

        with pytest.raises(ValueError, match=f"far .10.0.0.2.: does not see {tmp_path}/runs; set ATR_HOME"):
            connect(hide)
        versions = executors.software()
        other = lambda: monkeypatch.setattr(executors, "software", lambda: versions | {"atr's code": "0"})  # noqa: E731
        with pytest.raises(ValueError, match="far .10.0.0.2.: has atr's code 0, not "):
            connect(other)
        no_lock = lambda: monkeypatch.setattr(executors, "FileLock", lambda *_, **__: nullcontext())  # noqa: E731
        with pytest.raises(ValueError, match="far .10.0.0.2.: .*file locks do not hold across machines"):
            connect(no_lock)


def ray_on(cluster, workers=None, resources=("CPU",)):
    ray = Ray.__new__(Ray)
    ray.ray, ray.workers, ray.resources = cluster, workers, dict.fromkeys(resources, 1)
    return ray


def test_there_are_as_many_runs_at_a_time_as_cpus_or_gpus():
    cluster = Cluster((True, 8, 2), (True, 1, 4), (True, 4, 0), (False, 8, 8))
    assert ray_on(cluster).slots() == 13 and ray_on(cluster, resources=("CPU", "GPU")).slots() == 3
    assert ray_on(cluster, workers=5).slots() == 5
    assert ray_on(Cluster((False, 8, 8))).slots() == 1  # it waits in the cluster until there is a machine


def test_a_file_system_without_locks_is_refused(connect, tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "FileLock", SoftFileLock)  # what FileLock turns into there
    with pytest.raises(ValueError, match=f"executor 'ray': {tmp_path}/runs: file locks do not hold across machines"):
        connect()
    assert not list((tmp_path / "runs").iterdir())


def test_a_run_that_dies_again_and_again_is_given_up(tmp_path):
    died = ConnectionAbortedError()
    assert list(ray_on(Cluster()).wait({died: task("a")})) == [
        (died, "its process died (ConnectionAbortedError), after 3 retries at most; run again to continue it")
    ]


def test_what_another_machine_has_written_is_waited_for(tmp_path, monkeypatch):
    late = task("late", folder=tmp_path)
    late.run.path.mkdir()
    late.run.path.rmdir()
    whole = made_run(tmp_path, "whole", config(), [1, 2], [1, 2])
    threading.Timer(0.2, lambda: whole.path.rename(late.run.path)).start()
    assert list(ray_on(Cluster()).wait({"": late})) == [("", "")] and late.run.finished
    monkeypatch.setattr(executors, "LATE_SECONDS", 0.1)
    ((_, reason),) = ray_on(Cluster()).wait({"": task("never", folder=tmp_path)})
    assert "never does not show it; run again when it does" in reason


def test_the_script_for_slurm_is_sound_and_is_the_one_of_the_page():
    script = places.PROJECT / "docs" / "slurm_ray.sh"
    subprocess.run(["bash", "-n", script], check=True)
    assert "slurm_ray.sh" in (places.PROJECT / "docs" / "scale.md").read_text()
