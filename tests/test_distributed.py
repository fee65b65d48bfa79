"""Several processes come to the numbers of one, and end together."""

import multiprocessing
import os
import shutil
import signal
import time
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_training import assert_same, config

from atr import encoders, extend, fit, losses, metrics
from atr.encoders.inputs import LOG_MELS
from atr.encoders.pooling import TextAwarePooling
from atr.losses import voxels
from atr.losses.penalty import UniformityPenalty
from atr.system import devices
from atr.system.packed import POOLED, InputRows, RaggedArray
from atr.training import distributed, identity
from atr.training.distributed import ALONE, Group, synchronise
from atr.training.evaluation import embed
from atr.training.gradient_cache import BatchEncoder
from atr.training.identity import Inputs
from atr.training.model import DualEncoder

PAIRS = 33  # of 12 clips, so that captions of one clip fall to different processes; no two processes have as many


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(lengths, width, seed):
    rows = [random(length, width, seed=seed + length).numpy() for length in lengths]
    return RaggedArray(np.concatenate(rows), np.concatenate([[0], np.cumsum(lengths)]))


def inputs(frames=False):
    """Twelve clips with four captions each: pooled features, or log-mels of unequal lengths."""
    audio = InputRows(POOLED, random(12, 10, seed=1))
    if frames:
        audio = InputRows(LOG_MELS, packed(range(40, 64, 2), 64, 1))
    return Inputs(audio, InputRows(POOLED, random(48, 10, seed=2)), np.arange(48) % 12, np.arange(48) % 12)


def network(frames=False, text_aware=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = encoders.build("compact") if frames else None
        pooling = TextAwarePooling(6, 8) if text_aware else None
        return DualEncoder(encoder, None, encoder.dim if frames else 10, 10, 6, text_aware=pooling).train()


def step(group, loss="nt_xent", variant="code", pairs=PAIRS, chunk=None, frames=False, text_aware=False, alpha=0.0):
    """Loss, gradients and batch statistics of one step."""
    dual, data = network(frames, text_aware), inputs(frames)
    loss_function = losses.build(loss, variant)
    synchronise(dual, group)
    embedder = BatchEncoder(dual, dual, group=group, chunk=chunk)
    captions = np.random.default_rng(3).permutation(48)[:pairs]
    ids = torch.from_numpy(data.clip_of_caption[captions])
    if text_aware:
        value = loss_function.from_similarity(embedder.similarity(data, captions).T, ids, ids)
    else:
        audio, text = embedder.embeddings(data, captions)
        value = loss_function(audio, text, ids)
        if alpha:
            chosen = torch.arange(3)
            penalty = UniformityPenalty(voxels.VoxelLogistic(dims=3), dims=3)
            value = value - alpha * penalty(torch.stack([audio, text]), chosen).sum()
    value.backward()
    group.sum_gradients(dual.parameters())
    learned = {f"loss.{name}": parameter.grad for name, parameter in loss_function.named_parameters()}
    gradients = {name: parameter.grad for name, parameter in dual.named_parameters()} | learned
    gradients = {name: gradient for name, gradient in gradients.items() if gradient is not None}
    return {"value": value.detach(), **gradients, **{name: buffer.clone() for name, buffer in dual.named_buffers()}}


def evaluation(group, text_aware):
    """Embeddings of a split in evaluation mode, in batches of eight: of clips three, of captions six."""
    dual = network(True, text_aware)
    audio, text = embed(dual, inputs(True), batch_size=5, group=group)
    return {"audio": audio.values, "mask": audio.mask, "text": text} if text_aware else {"audio": audio, "text": text}


CASES = {
    f"{loss} {variant}": {"loss": loss, "variant": variant} for loss in losses.LOSSES for variant in ("text", "code")
}
CASES |= {
    "equal shares": {"pairs": 32},
    "penalty": {"alpha": 0.5},
    "fewer pairs than processes": {"pairs": 1, "loss": "sigmoid"},
    "chunks": {"chunk": 8},
    "a last chunk of one pair": {"chunk": 8, "loss": "sigmoid"},
    "batch-norm": {"frames": True},
    "batch-norm by chunk": {"frames": True, "chunk": 10},
    "text-aware": {"frames": True, "text_aware": True, "pairs": 16},
    "text-aware by chunk": {"frames": True, "text_aware": True, "pairs": 19, "chunk": 8},
}
STEPS = {name: partial(step, **case) for name, case in CASES.items()}
STEPS |= {f"evaluation {aware}": partial(evaluation, text_aware=aware) for aware in (False, True)}


def save_steps(group, folder):
    for name, made in STEPS.items():
        with devices.threads(1):
            save_file({key: value.contiguous() for key, value in made(group).items()}, folder / f"{name} {group.rank}")


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """Folder of what each of two processes came to."""
    folder = tmp_path_factory.mktemp("steps")
    distributed.start(save_steps, 2, "cpu", folder)
    return folder


class TestSteps:
    @pytest.mark.parametrize("name", STEPS)
    def test_two_processes_come_to_the_loss_and_gradient_of_one(self, name, steps):
        with devices.threads(1):
            expected = STEPS[name](ALONE)
        for rank in range(2):
            found = load_file(steps / f"{name} {rank}")
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(
                    found[key], value, rtol=1e-5, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}"
                )

    @pytest.mark.parametrize("name", STEPS)
    def test_both_processes_have_the_same_bits(self, name, steps):
        first, second = (load_file(steps / f"{name} {rank}") for rank in range(2))
        assert all(torch.equal(first[key], second[key]) for key in first)


class TestGroup:
    @pytest.mark.parametrize("size", [1, 2, 3, 5])
    @pytest.mark.parametrize("count", [5, 6, 31, 32])
    def test_shares_hold_each_row_once_and_differ_by_one_row_at_most(self, size, count):
        shares = [range(count)[Group(rank, size).own_rows(count)] for rank in range(size)]
        assert [row for share in shares for row in share] == list(range(count))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1

    def test_every_process_has_all_of_fewer_rows_than_processes(self):
        assert [range(2)[Group(rank, 3).own_rows(2)] for rank in range(3)] == [range(2)] * 3

    def test_alone_nothing_is_exchanged(self):
        rows = torch.ones(3, 2, requires_grad=True)
        assert ALONE.gather(rows, 3) is rows and ALONE.sum(rows) is rows and ALONE.largest(7) == 7
        dual = network(True)
        before = [dict(vars(module)) for module in dual.modules()]
        synchronise(dual, ALONE)
        assert before == [vars(module) for module in dual.modules()]


# Without dropout and SpecAugment, which draw other numbers; encoders learn slowly enough for rounding to stay small.
STEADY = {"training": "finetuned", "augment": None, "text_dropout": 0.0}
STEADY |= {"learning_rates": {"heads": 1e-3, "audio": 1e-4, "text": 1e-4}}
STAGES = [{"epochs": 1, "fixed": "text"}, {"epochs": 1, "fixed": "audio"}]


def assert_close(run, other):
    """The same but for rounding, which may swap near ties: ranks are held against the run's own scores instead."""
    assert run.history.columns.equals(other.history.columns)
    for name in ("epoch", "learning_rate"):
        assert run.history[name].equals(other.history[name])
    for name in ("loss", "validation_loss"):
        np.testing.assert_allclose(run.history[name], other.history[name], atol=1e-3)
    kept, expected = dict(run.embeddings), other.embeddings
    assert kept.keys() == expected.keys()
    for name, value in expected.items():
        if value.is_floating_point():
            torch.testing.assert_close(kept[name], value, rtol=0, atol=0.02, msg=lambda m, name=name: f"{name}: {m}")
    scores = kept["similarity"] if "similarity" in kept else (kept["text"], kept["audio"])
    assert run.metrics == pytest.approx(metrics.retrieval_metrics(scores, kept["relevance"]))


class TestRuns:
    @pytest.mark.parametrize(
        "changes",
        [
            {"loss": {"name": "sigmoid"}, "sampler": "all_captions", "drop_last": False, "batch_size": 17},
            STEADY,
            STEADY | {"text_aware": {"projection_dim": 8}, "chunk": 8},
            STEADY | {"stages": STAGES, "mining": "random", "batch_size": 15},
        ],
        ids=["frozen", "finetuned", "text-aware", "staged"],
    )
    def test_a_run_of_two_processes_is_that_of_one(self, changes, corpus, tmp_path):
        one = fit(config(**changes), corpus, runs=tmp_path / "one")
        two = fit(config(**changes), corpus, runs=tmp_path / "two", processes=2)
        assert two.address == one.address
        assert (one.environment["processes"], two.environment["processes"]) == (1, 2)
        assert_close(two, one)
        assert sorted(path.name for path in two.path.iterdir()) == sorted(path.name for path in one.path.iterdir())

    def test_dropout_differs_between_processes_and_a_run_repeats(self, corpus, tmp_path):
        kind = config(training="finetuned", epochs=1)
        first, again = (fit(kind, corpus, runs=tmp_path / name, processes=2) for name in "ab")
        assert_same(first, again)
        assert first.history["loss"][0] != fit(kind, corpus, runs=tmp_path / "c").history["loss"][0]

    def test_a_run_of_which_a_process_is_killed_continues(self, corpus, tmp_path):
        armed = tmp_path / "armed"
        (tmp_path / "deadly.py").write_text(DEADLY.format(armed=str(armed)))
        extend(tmp_path / "deadly.py")
        kind = config(epochs=3, loss={"name": "deadly"})
        complete = fit(kind, corpus, runs=tmp_path / "whole", processes=2)
        armed.touch()
        with pytest.raises(ChildProcessError, match="process . of 2 was killed by signal 9"):
            fit(kind, corpus, runs=tmp_path / "cut", processes=2)
        assert not armed.exists()
        run = identity.locate(kind, corpus, tmp_path / "cut")
        assert run.status == "failed" and "killed by signal 9" in (run.path / "error.txt").read_text()
        assert torch.load(run.path / "state.pt", weights_only=True)["epoch"] == 1
        shutil.copytree(tmp_path / "cut", tmp_path / "alone")
        assert_same(complete, fit(kind, corpus, runs=tmp_path / "cut", processes=2))
        alone = fit(kind, corpus, runs=tmp_path / "alone")  # with another number of processes
        assert alone.environment["processes"] == 1 and alone.address == complete.address
        assert_close(alone, complete)

    def test_a_run_that_diverges_says_so(self, corpus, tmp_path):
        kind = config(learning_rates={"heads": 1e30}, clip_norm=None)
        with pytest.raises(ChildProcessError, match="process . of 2: .*Diverged: epoch 1: the loss is nan; lower"):
            fit(kind, corpus, runs=tmp_path, processes=2)
        run = identity.locate(kind, corpus, tmp_path)
        assert run.status == "failed" and "in epoch" in (run.path / "error.txt").read_text()


# A loss that kills one process in the second epoch, of three steps each, where a file says so.
DEADLY = """import os, signal
import torch
from atr import losses, register

@register.loss("deadly")
class Deadly(losses.LOSSES["nt_xent"]):
    steps = 0

    def compute(self, similarity, same):
        self.steps += torch.is_grad_enabled()
        if self.steps > 3 and os.path.exists({armed!r}):
            os.unlink({armed!r})
            os.kill(os.getpid(), signal.SIGKILL)
        return super().compute(similarity, same)
"""


def wait_for(happened, seconds=300):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.005)


def leave(group, how):
    if group.rank == 1:
        if how == "error":
            raise ValueError("the second one cannot go on")
        if how == "exit":
            raise SystemExit(3)
        os.kill(os.getpid(), signal.SIGKILL)
    group.sum(torch.zeros(1))  # of what never comes, so that it fails too, later


def stay(group, folder):
    (folder / str(group.rank)).write_text(str(os.getpid()))
    time.sleep(600)


def start_stay(folder):
    distributed.start(stay, 2, "cpu", folder)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class TestEnding:
    @pytest.mark.parametrize(
        "how, said",
        [
            ("error", "process 2 of 2: ValueError: the second one cannot go on"),
            ("kill", "process 2 of 2 was killed by signal 9, as when memory runs out; run again to continue"),
            ("exit", "process 2 of 2 ended with 3"),
        ],
    )
    def test_a_process_that_fails_ends_the_others_and_says_why(self, how, said):
        with pytest.raises(ChildProcessError, match=said) as failure:
            distributed.start(leave, 2, "cpu", how)
        assert how != "error" or str(failure.value.__cause__).startswith("Traceback")

    def test_processes_end_with_the_one_that_started_them(self, tmp_path):
        process = devices.worker_context().Process(target=start_stay, args=(tmp_path,))
        process.start()
        wait_for(lambda: all((tmp_path / name).is_file() and (tmp_path / name).read_text() for name in "01"))
        pids = [int((tmp_path / name).read_text()) for name in "01"]
        assert all(map(alive, pids))
        process.kill()
        process.join(60)
        wait_for(lambda: not any(map(alive, pids)))

    @pytest.mark.parametrize(
        "processes, said",
        [(0, "0 is not a whole number"), (True, "True is not a whole"), (17, "17 for a batch_size of 16; each needs")],
    )
    def test_numbers_of_processes_that_make_no_sense_are_refused(self, processes, said, corpus, tmp_path):
        with pytest.raises(ValueError, match=f"processes: {said}"):
            fit(config(), corpus, runs=tmp_path, processes=processes)

    def test_a_script_that_its_processes_would_run_again_is_refused(self, corpus, tmp_path, monkeypatch):
        monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
        with pytest.raises(RuntimeError, match='put its calls below if __name__ == "__main__":'):
            fit(config(), corpus, runs=tmp_path, processes=2)

    def test_more_processes_than_gpus_are_refused(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        distributed.check(1, "cuda", 16)
        with pytest.raises(ValueError, match="processes: 2, a GPU each, but PyTorch sees 1"):
            distributed.check(2, "cuda", 16)
