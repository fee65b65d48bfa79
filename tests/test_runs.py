import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import made_models
import pytest
import torch
from processes import alive, wait_until

import atr
from atr import RunConfig, fit, register, run_all
from atr.corpora import load_corpus
from atr.encoders import pretraining
from atr.experiments.executors import default_workers
from atr.experiments.grid import Runs, describe
from atr.experiments.planning import preparation, seconds, size, speed
from atr.system import places
from atr.training import identity

TINY = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
DIVERGES = {"learning_rates": {"heads": 1e30}, "clip_norm": None}


def config(**changes):
    return RunConfig(**({"corpus": TINY, "epochs": 2, "batch_size": 16, "embedding_dim": 16} | changes))


@pytest.fixture(scope="module", autouse=True)
def prepared(corpus, tmp_path_factory):
    """Everything in the store, so that each test pays for its runs alone."""
    fit(config(epochs=0), corpus, runs=tmp_path_factory.mktemp("prepared"))


def test_two_side_by_side_give_what_each_gives_alone(tmp_path, corpus):
    configs = [config(seed=seed) for seed in range(2)]
    outcome = run_all(configs, runs=tmp_path / "many", workers=2, device="cpu", quiet=True)
    assert not outcome.failures and len(outcome) == 2 and [found for found, _ in outcome] == configs
    for found, run in outcome:
        alone = fit(found, corpus, runs=str(tmp_path / "alone"), device="cpu")
        assert alone.metrics == run.metrics and torch.equal(alone.embeddings["text"], run.embeddings["text"])


def test_equal_configs_run_once_and_finished_ones_not_at_all(tmp_path, corpus, monkeypatch):
    first = fit(config(seed=0), corpus, runs=tmp_path)
    made = (first.path / "metrics.json").stat().st_mtime_ns
    called = []
    configs = [config(seed=1), config(seed=0), config(seed=1)]
    outcome = run_all(configs, runs=tmp_path, quiet=True, on_run=lambda found, run: called.append((found, run.address)))
    assert [run.address for run in outcome.runs] == [called[1][1], first.address, called[1][1]]
    assert [found.seed for found, _ in called] == [0, 1, 1]  # what is finished comes first
    assert (first.path / "metrics.json").stat().st_mtime_ns == made
    assert len([path for path in tmp_path.iterdir() if (path / "config.json").is_file()]) == 2

    monkeypatch.setattr("atr.system.devices.worker_context", lambda: None)  # nothing may be started now
    again = run_all(configs, runs=str(tmp_path), quiet=True)
    assert [run.address for run in again.runs] == [run.address for run in outcome.runs]


def test_a_failing_run_is_reported_and_the_others_finish(tmp_path):
    configs = [config(**DIVERGES), config(), config(**DIVERGES)]
    outcome = run_all(configs, runs=tmp_path, workers=2, quiet=True)
    assert outcome.runs[1].finished and outcome.runs[0] is outcome.runs[2] is None
    assert [found for found, _ in outcome] == [configs[1]]
    assert set(outcome.failures) == {0, 2} and "lower learning_rates" in outcome.failures[0]
    assert "error.txt" in outcome.failures[0]
    with pytest.raises(RuntimeError, match=r"2 of 3 runs failed:\n.*nt_xent frozen D16 B16 lr 1e\+30 seed 0"):
        outcome.raise_failures()


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"corpus": "music"}, "ValueError: unknown corpus 'music'; known: "),
        ({"corpus": TINY | {"minutes": 3}}, "unknown option.* minutes"),
        ({"corpus": "csv"}, "lies in a folder: give root"),
        ({"audio_encoder": "cnn99"}, "cnn99"),
        ({"audio_weights": "nowhere.safetensors"}, "audio_weights: 'nowhere.safetensors': no such file"),
        ({"text_encoder": "nobody/nothing"}, "text encoder 'nobody/nothing'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_config_that_cannot_start_does_not_stop_the_others(changes, reason, tmp_path):
    outcome = run_all([config(**changes), config(epochs=1)], runs=tmp_path, workers=1, quiet=True)
    assert outcome.runs[0] is None and outcome.runs[1].finished and list(outcome.failures) == [0]
    with pytest.raises(RuntimeError, match=reason):
        outcome.raise_failures()


def test_a_worker_that_is_killed_is_reported_and_continued_the_next_time(tmp_path, corpus):
    long, short = config(epochs=60), config(epochs=1)
    folder = identity.locate(long, corpus, tmp_path / "cut").path
    killed = []

    def kill():
        end = time.monotonic() + 60
        while time.monotonic() < end and not (folder / "history.csv").is_file():
            time.sleep(0.001)
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGKILL)
            killed.append(process.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    outcome = run_all([long, short], runs=tmp_path / "cut", workers=1, quiet=True)
    thread.join()
    assert len(killed) == 1 and outcome.runs[0] is None and outcome.runs[1].finished
    assert "its process ended with -9" in outcome.failures[0] and "run again to continue it" in outcome.failures[0]
    reached = torch.load(folder / "state.pt", weights_only=True)["epoch"]
    assert 1 <= reached < 60

    again = run_all([long, short], runs=tmp_path / "cut", workers=1, quiet=True)
    again.raise_failures()
    whole = fit(long, corpus, runs=tmp_path / "whole")
    for name in ("history.csv", "metrics.json", "embeddings.safetensors"):
        assert (whole.path / name).read_bytes() == (again.runs[0].path / name).read_bytes()


@pytest.mark.parametrize("left", ["empty", "folder", "not UTF-8"])
def test_a_failure_is_told_whatever_becomes_of_its_error_file(left, tmp_path, corpus):
    # Given an error.txt of before that cannot be replaced, or was left as a full disk leaves it
    fails = config(**DIVERGES)
    folder = identity.locate(fails, corpus, tmp_path).path
    folder.mkdir()
    if left == "folder":
        (folder / "error.txt").mkdir()
    else:
        (folder / "error.txt").write_bytes({"empty": b"", "not UTF-8": b"\xff\xfe"}[left])
    outcome = run_all([fails, config(epochs=1)], runs=tmp_path, workers=1, quiet=True)
    assert outcome.runs[1].finished and list(outcome.failures) == [0]
    assert outcome.failures[0].startswith("Diverged: epoch 1: the loss is nan; lower learning_rates")


RAISES = """
from pathlib import Path
from atr import losses, register

def full(self, *_, **__):
    raise OSError(28, "No space left on device")

@register.loss("raises")
class Raises(losses.NTXent):
    def __init__(self, how="silent"):
        super().__init__()
        self.how = how

    def forward(self, *given):
        Path.write_text = full
        words = {"silent": AssertionError(), "long": ValueError("x" * 100_000)}
        raise words.get(self.how, ValueError("caf\\udce9 é\\nand"))
"""


@pytest.mark.parametrize(
    "how, reason", [("silent", "AssertionError"), ("long", "ValueError: xxx"), ("text", "ValueError: caf\udce9 é\nand")]
)
def test_on_a_full_disk_a_failure_is_told_and_the_others_finish(how, reason, tmp_path):
    (tmp_path / "own.py").write_text(RAISES)
    atr.extend(tmp_path / "own.py")
    try:
        configs = [config(loss={"name": "raises", "how": how}), config(epochs=1)]
        outcome = run_all(configs, runs=tmp_path / "runs", workers=1, quiet=True)
    finally:
        register.forget(next(iter(register._files)))
    assert outcome.runs[1].finished and list(outcome.failures) == [0]
    assert outcome.failures[0].startswith(reason) and "error.txt" not in outcome.failures[0]
    with pytest.raises(RuntimeError, match=f"1 of 2 runs failed:\n.*{reason[:10]}"):
        outcome.raise_failures()


def test_a_damaged_run_is_trained_anew(tmp_path, corpus):
    first = fit(config(epochs=1), corpus, runs=tmp_path, device="cpu")
    metrics = first.metrics
    (first.path / "metrics.json").write_text("{}")
    outcome = run_all([config(epochs=1)], runs=tmp_path, workers=1, device="cpu", quiet=True)
    outcome.raise_failures()
    assert outcome.runs[0].metrics == metrics
    assert (tmp_path / f"{first.address}.aside-1" / "metrics.json").read_text() == "{}"


def test_workers_end_with_a_caller_that_is_killed(tmp_path, corpus):
    long = config(epochs=100_000)
    script = tmp_path / "script.py"
    script.write_text(
        "import atr, sys\nfrom pathlib import Path\nif __name__ == '__main__':\n"
        f"    config = atr.RunConfig(**{long.to_dict()!r})\n"
        f"    atr.run_all([config], runs=Path({str(tmp_path)!r}), workers=1, device='cpu', quiet=True)\n"
    )
    folder = identity.locate(long, corpus, tmp_path).path
    environment = os.environ | {"PYTHONPATH": str(places.PROJECT)}
    process = subprocess.Popen([sys.executable, script], env=environment, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: (folder / "history.csv").is_file())
        said = (tmp_path / ".locks" / f"{folder.name}.holder").read_text()
        worker = int(said.split()[4])
        assert alive(worker) and worker != process.pid
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not alive(worker), 20)


def test_short_runs_come_first(tmp_path):
    order = []
    configs = [config(epochs=12), config(epochs=1), config(epochs=4)]
    run_all(configs, runs=tmp_path, workers=1, quiet=True, on_run=lambda found, run: order.append(found.epochs))
    assert order == [1, 4, 12]


def test_each_method_has_a_run_before_one_has_two(tmp_path):
    order = []
    configs = [config(seed=seed, learning_rates={"heads": rate}) for rate in (1e-3, 2e-3) for seed in (0, 1)]
    told = {"on_run": lambda found, run: order.append((found.seed, found.rate("heads")))}
    run_all(configs, runs=tmp_path, workers=1, quiet=True, **told)
    assert order == [(0, 1e-3), (0, 2e-3), (1, 1e-3), (1, 2e-3)]


def test_the_long_run_of_a_seed_is_not_left_to_train_alone_at_the_end(tmp_path):
    order = []
    configs = [config(seed=seed, epochs=epochs) for seed, epochs in [(1, 1), (0, 12), (0, 1)]]
    run_all(configs, runs=tmp_path, workers=1, quiet=True, on_run=lambda one, run: order.append((one.seed, one.epochs)))
    assert order == [(0, 1), (0, 12), (1, 1)]


def test_what_a_run_leads_to_joins_it_and_waits_for_no_other(tmp_path):
    """As in a search: the long run is under way while the short one brings a further one, and that the next."""
    order, long = [], config(epochs=60)

    def further():
        so_far = {epochs for epochs in order if epochs < 60}
        return [long, *(config(epochs=epochs) for epochs in (1, 2, 3) if epochs - 1 in {0, *so_far})]

    told = {"on_run": lambda found, run: order.append(found.epochs), "further": further}
    outcome = run_all([long, config(epochs=1)], runs=tmp_path, workers=2, quiet=True, **told)
    assert order == [1, 2, 3, 60] and [found.epochs for found, _ in outcome] == [60, 1, 2, 3]
    order.clear()
    again = run_all([config(epochs=1)], runs=tmp_path, quiet=True, **told)  # all of them finished
    assert sorted(order) == [1, 2, 3, 60] and len(again) == 4


def test_what_a_failed_run_leads_to_still_runs(tmp_path):
    bad = config(**DIVERGES)
    outcome = run_all([bad], runs=tmp_path, workers=1, quiet=True, further=lambda: [bad, config(epochs=1)])
    assert list(outcome.failures) == [0] and [found.epochs for found, _ in outcome] == [1]


def test_nothing_to_run_is_no_error(tmp_path):
    assert list(run_all([], runs=tmp_path, quiet=True)) == []


def test_an_unknown_executor_or_device_is_refused(tmp_path):
    with pytest.raises(ValueError, match="executor: unknown 'slurm'; known: local"):
        run_all([config()], executor="slurm", runs=tmp_path)
    with pytest.raises(ValueError, match="device: unknown 'tpu'"):
        run_all([config()], device="tpu", runs=tmp_path)


def test_the_corpus_of_a_folder_is_found_by_its_root(tmp_path, corpus):
    # Given a folder of sounds, its own captions and an encoder's weights from elsewhere
    soundfile = pytest.importorskip("soundfile")
    lines = ["file_name,split,caption"]
    for number, clip in enumerate(corpus.clips["clip"][:12]):
        waveform, rate = corpus.read(clip)
        soundfile.write(tmp_path / f"{clip}.wav", waveform, rate)
        split = "train" if number < 8 else "validation" if number < 10 else "test"
        lines.append(f'{clip}.wav,{split},"{corpus.captions.loc[corpus.captions["clip"] == clip, "caption"].iloc[0]}"')
    (tmp_path / "captions.csv").write_text("\n".join(lines) + "\n")
    weights = str(pretraining.weights(corpus, "compact", quiet=True))
    # When a run of it stands beside one that needs no folder
    own = config(corpus="csv", audio_weights=weights, batch_size=4, epochs=1)
    outcome = run_all([own, config(epochs=1)], root=tmp_path, runs=tmp_path / "runs", workers=1, quiet=True)
    # Then both finish, and the folder is no part of the address
    outcome.raise_failures()
    loaded = load_corpus("csv", tmp_path)
    assert outcome.runs[0].embeddings["audio"].shape == (2, 16)
    assert identity.locate(own, loaded, tmp_path / "runs").address == outcome.runs[0].address


class TestEstimates:
    def test_a_config_in_words(self):
        words = describe(config(loss={"name": "triplet_max"}, seed=3, learning_rates={"heads": 5e-4}))
        assert words == "triplet_max frozen D16 B16 lr 0.0005 seed 3 on soundscapes"

    def test_clips_held_out_are_not_trained_on(self):
        options = {"name": "soundscapes", "train": 10, "validation": 4, "test": 6}
        clips = [size(config(corpus=options | held), None).clips["train"] for held in ({}, {"hold_out": 3})]
        assert clips == [10, 17]

    def test_cost_grows_with_epochs_and_falls_with_the_batch_size(self):
        def rough(**changes):
            return seconds(config(**changes), size(config(), None))

        assert rough(epochs=0) < rough(epochs=5) < rough(epochs=5, batch_size=4)
        assert rough(epochs=5) < rough(epochs=5, sampler="all_captions")
        assert rough(training="finetuned") > rough()

    def test_preparation_grows_with_the_corpus_and_shrinks_with_cores(self):
        small, large = (size(config(corpus={"name": "soundscapes", "train": n}), None) for n in (100, 1000))
        assert preparation(small, 2) < preparation(large, 2) < preparation(large, 1)

    def test_speed_is_a_positive_factor(self):
        assert 0 < speed() < 1000

    def test_one_run_at_a_time_on_a_gpu_and_one_a_core_on_a_cpu(self, monkeypatch):
        assert default_workers("cuda") == 1 and default_workers("cpu") >= 1
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: 6)
        assert default_workers("cpu") == 6

    def test_no_failures_raise_nothing(self):
        assert Runs([config()], [None]).raise_failures() is None


def test_an_external_model_takes_its_place_in_a_grid(corpus, tmp_path):
    folder = made_models.clap(tmp_path / "clap")
    clap = RunConfig(corpus=TINY, training="external", audio_encoder="clap", text_encoder=str(folder), epochs=0)
    outcome = run_all([config(epochs=1), clap], runs=tmp_path / "runs", workers=1, quiet=True, device="cpu")
    outcome.raise_failures()
    assert [run.best_epoch for _, run in outcome] == [1, 0]
