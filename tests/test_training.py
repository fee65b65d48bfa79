import errno
import json
import math
import os
import shutil
import signal
import time

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from atr import RunConfig, encoders, fit, losses, metrics
from atr.encoders import pretraining
from atr.losses import voxels
from atr.losses.penalty import PenaltySettings, UniformityPenalty, read_settings
from atr.system import atomic, devices
from atr.training import distributed, evaluation, identity, model, preparation, state
from atr.training.records import Run, TrainingError
from atr.training.trainer import learning_rate, selection_score

TINY = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}


def config(**changes):
    """Frozen encoders, three batches an epoch; quick enough to train a few times a second."""
    return RunConfig(**({"corpus": TINY, "epochs": 2, "batch_size": 16, "embedding_dim": 16} | changes))


def assert_same(run, other):
    """Bit by bit the same numbers."""
    for name in ("history.csv", "metrics.json", "embeddings.safetensors", "checkpoint.safetensors"):
        assert (run.path / name).read_bytes() == (other.path / name).read_bytes(), name


class TestRates:
    def test_step_schedule_divides_by_ten_every_step_epochs(self):
        steps = config(schedule="step", step_epochs=2, step_factor=0.1, epochs=5)
        factors = [learning_rate(steps, 1.0, step, 10) for step in (0, 19, 20, 39, 40)]
        assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01])

    def test_cosine_schedule_falls_to_zero_at_the_last_epoch(self):
        cosine = config(schedule="cosine", epochs=4)
        factors = [learning_rate(cosine, 1.0, step, 10) for step in (0, 10, 20, 30, 40)]
        assert factors == pytest.approx([1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0])

    def test_constant_schedule_stays(self):
        assert [learning_rate(config(schedule="constant"), 1.0, step, 3) for step in (0, 100)] == [1, 1]

    def test_warm_up_rises_from_zero_by_step_then_hands_over(self):
        warm = config(schedule="step", warmup_epochs=0.5, step_epochs=1, epochs=3)
        assert [learning_rate(warm, 1.0, step, 4) for step in (0, 1, 2, 4)] == pytest.approx([0, 0.5, 1, 0.1])

    def test_each_group_has_its_own_rate_and_the_missing_ones_that_of_the_heads(self, corpus):
        kind = config(training="finetuned", learning_rates={"heads": 1e-3, "text": 1e-5}, loss={"name": "sigmoid"})
        network = model.build(kind, preparation.prepare(kind, corpus, quiet=True))
        groups = model.parameter_groups(network, losses.build("sigmoid"), kind)
        assert {group["name"]: group["peak"] for group in groups} == {
            "heads": 1e-3,
            "audio": 1e-3,
            "text": 1e-5,
            "loss": 1e-3,
        }

    def test_the_history_holds_the_rate_that_each_epoch_began_with(self, corpus, tmp_path):
        run = fit(config(epochs=3, step_epochs=2, learning_rates={"heads": 2e-3}), corpus, runs=tmp_path)
        assert run.history["learning_rate"].tolist() == pytest.approx([2e-3, 2e-3, 2e-4])


class TestSelection:
    SCORES = {f"{way}_r{k}": base + k for way, base in (("t2a", 10.0), ("a2t", 20.0)) for k in (1, 5, 10)} | {
        "t2a_map10": 33.0
    }

    @pytest.mark.parametrize(
        "select_by, score", [("t2a_recall_sum", 46), ("recall_sum", 122), ("t2a_map10", 33), ("last", 7)]
    )
    def test_the_score_of_an_epoch(self, select_by, score):
        assert selection_score(config(select_by=select_by), self.SCORES, 7) == score

    @pytest.mark.parametrize("select_by", ["t2a_recall_sum", "recall_sum", "t2a_map10", "last"])
    def test_the_best_epoch_on_validation_is_kept(self, select_by, corpus, tmp_path):
        kind = config(select_by=select_by, epochs=6, learning_rates={"heads": 0.02})
        run = fit(kind, corpus, runs=tmp_path)
        rows = run.history.to_dict("records")
        scores = [selection_score(kind, row, row["epoch"]) for row in rows]
        best = max(place for place, score in enumerate(scores) if score == max(scores))
        assert run.best_epoch == best + 1
        assert run.validation == {key: rows[best][key] for key in run.validation}

    def test_ties_go_to_the_later_epoch(self, corpus, tmp_path):
        run = fit(config(epochs=3, learning_rates={"heads": 0.0}), corpus, runs=tmp_path)
        assert run.history["t2a_r10"].nunique() == 1 and run.best_epoch == 3

    def test_metrics_embeddings_and_checkpoint_are_those_of_the_best_epoch(self, corpus, tmp_path):
        kind = config(epochs=6, learning_rates={"heads": 0.02})
        run = fit(kind, corpus, runs=tmp_path)
        prepared = preparation.prepare(kind, corpus, quiet=True)
        network = model.build(kind, prepared)
        network.load_state_dict(load_file(run.path / "checkpoint.safetensors"))
        with devices.threads(1):
            audio, text = evaluation.embed(network, prepared.splits["test"])
        assert torch.equal(audio, run.embeddings["audio"]) and torch.equal(text, run.embeddings["text"])
        found = metrics.retrieval_metrics((text, audio), run.embeddings["relevance"])
        assert found == run.metrics


class TestKinds:
    @pytest.mark.parametrize("kind", ["frozen", "finetuned", "scratch", "frozen_released"])
    def test_each_kind_of_training_runs_and_learns(self, kind, corpus, tmp_path):
        run = fit(config(training=kind), corpus, runs=tmp_path)
        assert run.finished and run.history["epoch"].tolist() == [1, 2]
        assert run.history["loss"][1] < run.history["loss"][0]
        audio, text = run.embeddings["audio"], run.embeddings["text"]
        assert audio.shape == (16, 16) and text.shape == (80, 16)
        assert torch.allclose(audio.norm(dim=1), torch.ones(16), atol=1e-5)

    @pytest.mark.parametrize(
        "kind, groups",
        [("frozen", set()), ("frozen_released", set()), ("finetuned", {"audio_encoder", "text_encoder"})],
    )
    def test_only_what_a_kind_trains_is_changed(self, kind, groups, corpus, tmp_path):
        changes = config(training=kind, epochs=1)
        run = fit(changes, corpus, runs=tmp_path)
        torch.manual_seed(0)
        before = model.build(changes, preparation.prepare(changes, corpus, quiet=True))
        kept = load_file(run.path / "checkpoint.safetensors")
        fixed = dict(before.named_parameters())
        changed = {name.split(".")[0] for name in kept if name in fixed and not torch.equal(kept[name], fixed[name])}
        assert changed == groups | {"audio_head", "text_head"}

    def test_released_training_goes_on_with_batch_statistics_of_the_encoder(self, corpus, tmp_path):
        run = fit(config(training="frozen_released", epochs=1), corpus, runs=tmp_path)
        weights = load_file(pretraining.weights(corpus, "compact", quiet=True))
        kept = load_file(run.path / "checkpoint.safetensors")
        statistics = [name for name in weights if "running_mean" in name]
        assert statistics
        assert any(not torch.equal(kept[f"audio_encoder.{name}"], weights[name]) for name in statistics)

    @pytest.mark.parametrize(
        "changes",
        [
            {"optimizer": "adamw", "weight_decay": 0.1},
            {"betas": (0.5, 0.9)},
            {"precision": "bf16"},
            {"sampler": "all_captions"},
            {"schedule": "cosine", "warmup_epochs": 1},
            {"learning_rates": {"heads": 1e-2}},
            {"loss": {"name": "triplet_max", "margin": 0.2}},
            {"recipe": "text"},
            {"seed": 1},
        ],
        ids=lambda changes: next(iter(changes)),
    )
    def test_fields_of_the_config_change_the_numbers(self, changes, corpus, tmp_path):
        plain = fit(config(epochs=1), corpus, runs=tmp_path)
        other = fit(config(epochs=1, **changes), corpus, runs=tmp_path)
        assert other.address != plain.address
        if changes != {"recipe": "text"}:  # NT-Xent is the same in both on pairs of distinct clips
            assert not torch.equal(other.embeddings["text"], plain.embeddings["text"])

    def test_a_penalty_raises_its_estimate_and_the_loss_is_logged_without_it(self, corpus, tmp_path):
        def penalised(alpha):
            penalty = {"alpha": alpha, "estimator": "logistic"}
            return fit(config(penalty=penalty, training="finetuned", epochs=6), corpus, runs=tmp_path)

        weak, strong = penalised(1e-9), penalised(10)
        plain = fit(config(training="finetuned", epochs=6), corpus, runs=tmp_path)  # its dropout is the same
        assert weak.history["loss"].tolist() == pytest.approx(plain.history["loss"].tolist(), abs=1e-3)
        assert "batch_h_audio" not in plain.history
        rewarded = ["batch_h_audio", "batch_h_text"]  # their sum is
        assert strong.history[rewarded].iloc[-1].sum() > weak.history[rewarded].iloc[-1].sum()
        for column in rewarded:
            assert strong.history[column].between(0, math.log(256)).all()

    def test_the_logged_entropy_is_that_of_the_batch(self, corpus, tmp_path):
        setting = config(penalty={"alpha": 1.0, "estimator": "logistic"}, epochs=1, learning_rates={"heads": 0.0})
        seen = []

        def h(self, embeddings, chosen):
            points = embeddings.shape[-1] ** 0.5 * torch.nn.functional.normalize(embeddings, dim=-1)[..., chosen]
            counts = self.estimator.logits(points).softmax(-1).sum(-2)
            shares = counts / counts.sum(-1, keepdim=True)
            seen.append(-(shares * shares.log()).sum(-1))
            return seen[-1]

        made = fit(setting, corpus, runs=tmp_path / "package")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(UniformityPenalty, "forward", h)
            fit(setting, corpus, runs=tmp_path / "direct")
        expected = torch.stack(seen).mean(0).tolist()
        assert made.history[["batch_h_audio", "batch_h_text"]].iloc[0].tolist() == pytest.approx(expected, rel=1e-5)

    def test_a_penalty_by_the_network_continues_with_the_same_draws(self, corpus, tmp_path, monkeypatch):
        kind = config(penalty={"alpha": 1.0, "network": {"hidden": [8], "examples": 500, "epochs": 1}}, epochs=3)
        complete = fit(kind, corpus, runs=tmp_path / "whole")
        assert complete.history["batch_h_text"].nunique() == 3
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt_after(patch, 2)
            fit(kind, corpus, runs=tmp_path / "cut")
        assert_same(complete, fit(kind, corpus, runs=tmp_path / "cut"))

    def test_the_network_behind_a_penalty_is_part_of_the_address(self, corpus, tmp_path, monkeypatch):
        penalty = {"alpha": 1.0, "network": {"hidden": [4], "examples": 100, "epochs": 1}}
        with pytest.raises(FileNotFoundError, match="voxel network is not trained"):
            identity.locate(config(penalty=penalty), corpus, tmp_path, fetch=False)
        first = identity.locate(config(penalty=penalty), corpus, tmp_path)
        assert identity.locate(config(penalty=penalty), corpus, tmp_path, fetch=False).address == first.address
        made = voxels.network_folder(recipe=read_settings(penalty).recipe, train=False) / "weights.safetensors"
        made.write_bytes(made.read_bytes()[:-1])
        with pytest.raises(FileNotFoundError, match="voxel network is not trained"):
            identity.locate(config(penalty=penalty), corpus, tmp_path, fetch=False)
        monkeypatch.setattr(PenaltySettings, "fingerprint", lambda *_: {"voxels": "another network"})
        assert identity.locate(config(penalty=penalty), corpus, tmp_path).address != first.address

    def test_clipping_bounds_the_first_step(self, corpus, tmp_path):
        plain = {"optimizer": "adamw", "learning_rates": {"heads": 1e-3}, "epochs": 2}
        free = fit(config(clip_norm=None, **plain), corpus, runs=tmp_path)
        bounded = fit(config(clip_norm=1e-9, **plain), corpus, runs=tmp_path)
        assert bounded.history["loss"][1] > free.history["loss"][1]

    def test_no_epochs_give_the_untrained_model(self, corpus, tmp_path):
        run = fit(config(epochs=0), corpus, runs=tmp_path)
        assert run.best_epoch == 0 and len(run.history) == 0 and run.history.columns[0] == "epoch"
        assert 0 <= run.validation["t2a_r10"] <= 100 and run.metrics["t2a_r10"] < 100

    def test_a_run_finds_its_corpus_by_its_config(self, corpus, tmp_path):
        assert fit(config(epochs=1), runs=tmp_path).address == fit(config(epochs=1), corpus, runs=tmp_path).address

    def test_a_random_encoder_cannot_stay_frozen(self, corpus, tmp_path):
        with pytest.raises(ValueError, match="needs audio_weights"):
            fit(config(audio_weights=None), corpus, runs=tmp_path)

    def test_weights_that_are_missing_are_named(self, corpus, tmp_path):
        with pytest.raises(FileNotFoundError, match="audio_weights: .*none.safetensors': no such file"):
            fit(config(audio_weights=str(tmp_path / "none.safetensors")), corpus, runs=tmp_path)


class TestRepeating:
    def test_a_run_knows_which_clips_it_had(self, corpus, tmp_path):
        clips = fit(config(), corpus, runs=tmp_path).clips
        assert clips.to_numpy().tolist() == corpus.clips[["clip", "split"]].to_numpy().tolist()

    def test_the_same_config_gives_the_same_bits(self, corpus, tmp_path):
        assert_same(fit(config(), corpus, runs=tmp_path / "a"), fit(config(), corpus, runs=tmp_path / "b"))

    def test_fine_tuning_gives_the_same_bits(self, corpus, tmp_path):
        kind = config(training="finetuned")
        assert_same(fit(kind, corpus, runs=tmp_path / "a"), fit(kind, corpus, runs=tmp_path / "b"))

    def test_caches_made_anew_give_the_same_bits(self, corpus, tmp_path, monkeypatch):
        first = fit(config(), corpus, runs=tmp_path / "a")
        monkeypatch.setenv("ATR_HOME", str(tmp_path / "home"))
        again = fit(config(), corpus, runs=tmp_path / "b")
        assert (tmp_path / "home" / "cache" / "pooled").is_dir() and again.address == first.address
        assert_same(first, again)

    def test_the_number_of_threads_around_a_run_does_not_matter(self, corpus, tmp_path):
        before = torch.get_num_threads()
        first = fit(config(), corpus, runs=tmp_path / "a")
        with devices.threads(2):
            assert_same(first, fit(config(), corpus, runs=tmp_path / "b"))
        assert torch.get_num_threads() == before

    def test_a_finished_run_is_not_trained_again(self, corpus, tmp_path):
        first = fit(config(), corpus, runs=tmp_path)
        written = {path: path.stat().st_mtime_ns for path in first.path.iterdir()}
        assert fit(config(), corpus, runs=tmp_path).path == first.path
        assert {path: path.stat().st_mtime_ns for path in first.path.iterdir()} == written

    def test_a_finished_run_leaves_no_state_behind(self, corpus, tmp_path):
        run = fit(config(), corpus, runs=tmp_path)
        assert sorted(path.name for path in run.path.iterdir()) == [
            "checkpoint.safetensors",
            "clips.csv",
            "config.json",
            "embeddings.safetensors",
            "environment.json",
            "history.csv",
            "metrics.json",
            "sums.json",
        ]


def child(kind, corpus, runs, environment, dies_at=None):
    """Train in this process; with dies_at, be killed just before the file of that number is put in place."""
    os.environ.update(environment)
    replace, count = os.replace, 0

    def deadly(source, target):
        nonlocal count
        count += 1
        if count == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = deadly
    fit(kind, corpus, runs=runs)


def start(kind, corpus, runs, dies_at=None):
    environment = {name: value for name, value in os.environ.items() if name.startswith("ATR_")}
    process = devices.worker_context().Process(
        target=child, args=(kind, corpus, runs, environment, dies_at), daemon=True
    )
    process.start()
    return process


def kill_at(kind, corpus, runs, epoch):
    """Start a process that trains, and kill it once its saved state has seen `epoch`."""
    folder = identity.locate(kind, corpus, runs).path
    process = start(kind, corpus, runs)
    end = time.monotonic() + 60
    while time.monotonic() < end and process.is_alive():
        history = folder / "history.csv"  # written after the state, a line an epoch below its header
        if history.is_file() and history.read_text().count("\n") > epoch:
            break
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it ended before it could be killed"
    return torch.load(folder / "state.pt", weights_only=True)["epoch"]


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """Three epochs without interruption."""
    return fit(config(epochs=3), corpus, runs=tmp_path_factory.mktemp("whole"))


class TestKilled:
    def test_killed_three_times_and_continued(self, corpus, tmp_path):
        kind = config(epochs=40, step_epochs=20)
        whole = fit(kind, corpus, runs=tmp_path / "whole")
        reached = [kill_at(kind, corpus, tmp_path / "cut", epoch) for epoch in (1, 5, 12)]
        assert reached == sorted(reached) and 12 <= reached[-1] < 40
        assert_same(whole, fit(kind, corpus, runs=tmp_path / "cut"))

    def test_fine_tuning_killed_and_continued(self, corpus, tmp_path):
        kind = config(training="finetuned", epochs=3, select_by="last")
        whole = fit(kind, corpus, runs=tmp_path / "whole")
        assert 1 <= kill_at(kind, corpus, tmp_path / "cut", 1) < 3
        assert_same(whole, fit(kind, corpus, runs=tmp_path / "cut"))

    # Files in the order in which they are put in place: clips, config, then state and history of two epochs and the
    # history of the third, then embeddings, checkpoint, history, environment, metrics.
    @pytest.mark.parametrize(
        "dies_at, left",
        [
            (1, []),
            (2, ["clips.csv"]),
            (3, ["clips.csv", "config.json"]),
            (4, ["clips.csv", "config.json", "state.pt"]),
            (7, ["clips.csv", "config.json", "history.csv", "state.pt"]),
            (9, ["clips.csv", "config.json", "embeddings.safetensors", "history.csv", "state.pt"]),
        ],
    )
    def test_killed_while_a_file_is_put_in_place(self, dies_at, left, corpus, tmp_path, whole):
        process = start(config(epochs=3), corpus, tmp_path, dies_at)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        run = identity.locate(config(epochs=3), corpus, tmp_path)
        assert sorted(path.name for path in run.path.iterdir() if not path.name.startswith(".")) == left
        assert not run.finished and run.status == "unfinished"
        assert_same(whole, fit(config(epochs=3), corpus, runs=tmp_path))

    def test_killed_before_the_metrics(self, corpus, tmp_path, whole):
        process = start(config(epochs=3), corpus, tmp_path, 12)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not identity.locate(config(epochs=3), corpus, tmp_path).finished
        assert_same(whole, fit(config(epochs=3), corpus, runs=tmp_path))


def interrupt_after(monkeypatch, epochs):
    """Let training be interrupted from the keyboard once it has saved so many epochs."""
    write = Run.write_history

    def interrupted(run, now):
        write(run, now)
        if len(now.history) == epochs:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "write_history", interrupted)


class TestInterrupted:
    def test_an_interrupted_run_is_unfinished_not_failed(self, corpus, tmp_path, monkeypatch):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt_after(patch, 1)
            fit(config(), corpus, runs=tmp_path)
        run = identity.locate(config(), corpus, tmp_path)
        assert run.status == "unfinished" and pd.read_csv(run.path / "history.csv")["epoch"].tolist() == [1]
        with pytest.raises(FileNotFoundError, match="not finished; atr.fit"):
            _ = run.metrics
        assert fit(config(), corpus, runs=tmp_path).status == "finished"

    def test_the_losss_own_parameters_are_trained_and_restored(self, corpus, tmp_path, monkeypatch):
        kind = config(epochs=3, loss={"name": "sigmoid"}, learning_rates={"heads": 1e-3, "loss": 0.3})
        whole = fit(kind, corpus, runs=tmp_path / "whole")
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt_after(patch, 2)
            fit(kind, corpus, runs=tmp_path / "cut")
        state = torch.load(identity.locate(kind, corpus, tmp_path / "cut").path / "state.pt", weights_only=True)
        initial = losses.build("sigmoid", "code").state_dict()
        learned = dict(losses.build("sigmoid", "code").named_parameters())
        assert learned and all(not torch.equal(state["loss"][name], initial[name]) for name in learned)
        assert_same(whole, fit(kind, corpus, runs=tmp_path / "cut"))

    def test_dropout_augmentation_and_batch_statistics_continue_too(self, corpus, tmp_path, monkeypatch):
        kind = config(training="frozen_released", select_by="last")
        complete = fit(kind, corpus, runs=tmp_path / "whole")
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt_after(patch, 1)
            fit(kind, corpus, runs=tmp_path / "cut")
        assert_same(complete, fit(kind, corpus, runs=tmp_path / "cut"))

    def test_a_full_disk_leaves_the_last_epoch_readable(self, corpus, tmp_path, monkeypatch, whole):
        save, saved = torch.save, []

        def full(state, path):
            if len(saved) == 1:
                path.write_bytes(b"the beginning of a sta")
                raise OSError(errno.ENOSPC, "No space left on device")
            saved.append(path)
            save(state, path)

        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr(torch, "save", full)
            fit(config(epochs=3), corpus, runs=tmp_path / "cut")
        run = identity.locate(config(epochs=3), corpus, tmp_path / "cut")
        assert torch.load(run.path / "state.pt", weights_only=True)["epoch"] == 1
        assert not [path for path in run.path.iterdir() if path.name.startswith(".state")]
        assert run.status == "failed" and "No space left" in (run.path / "error.txt").read_text()
        again = fit(config(epochs=3), corpus, runs=tmp_path / "cut")
        assert again.status == "finished" and not (again.path / "error.txt").exists()
        assert_same(whole, again)

    def cut(self, corpus, folder, monkeypatch):
        """The state of a run interrupted after two of three epochs."""
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt_after(patch, 2)
            fit(config(epochs=3), corpus, runs=folder)
        return identity.locate(config(epochs=3), corpus, folder).path / "state.pt"

    @pytest.mark.parametrize("damage", ["bit", "cut", "text", "nothing"])
    def test_a_damaged_state_is_not_gone_on_from(self, corpus, tmp_path, monkeypatch, whole, damage):
        path = self.cut(corpus, tmp_path, monkeypatch)
        content = bytearray(path.read_bytes())
        if damage == "bit":  # of a weight: the file still reads as a state
            place = content.find(state.load(path).model["text_head.0.weight"].numpy().tobytes()[:64])
            content[place + 3] ^= 64
        kept = {"bit": content, "cut": content[:-100], "text": b"not a state", "nothing": b""}[damage]
        path.write_bytes(kept)
        with pytest.warns(UserWarning, match=r"state\.pt: damaged \(.*\); the run starts again from its beginning"):
            assert_same(whole, fit(config(epochs=3), corpus, runs=tmp_path))

    def test_the_state_of_an_older_version_is_gone_on_from(self, corpus, tmp_path, monkeypatch, whole):
        path = self.cut(corpus, tmp_path, monkeypatch)
        path.write_bytes(path.read_bytes()[: -len(state.SEAL) - 32])
        (path.parent / "history.csv").unlink()
        assert state.load(path).epoch == 2
        assert_same(whole, fit(config(epochs=3), corpus, runs=tmp_path))


class TestDamage:
    READ = {
        "config.json": lambda run: run.config,
        "environment.json": lambda run: run.environment,
        "clips.csv": lambda run: run.clips,
        "history.csv": lambda run: run.history,
        "metrics.json": lambda run: run.metrics,
        "embeddings.safetensors": lambda run: run.embeddings,
        "checkpoint.safetensors": lambda run: model.load(None, run),
    }

    @pytest.mark.parametrize("name", READ)
    def test_no_file_of_a_finished_run_is_read_when_a_bit_of_it_has_changed(self, corpus, tmp_path, name):
        run = fit(config(epochs=1), corpus, runs=tmp_path)
        assert run.damage() == "" and set(json.loads((run.path / "sums.json").read_text())) == set(self.READ)
        content = bytearray((run.path / name).read_bytes())
        content[len(content) // 2] ^= 1
        (run.path / name).write_bytes(content)
        assert run.damage() == f"the bytes of {name} have changed"
        with pytest.raises(ValueError, match=rf"{run.path / name}: damaged .*; run its study or atr.fit again"):
            self.READ[name](Run(run.path))

    def test_a_run_of_an_older_version_has_no_hashes_and_is_read_as_it_is(self, corpus, tmp_path):
        run = fit(config(epochs=1), corpus, runs=tmp_path)
        (run.path / "sums.json").unlink()
        assert run.damage() == "" and Run(run.path).metrics == run.metrics


class TestDiverging:
    def failed(self, kind, corpus, tmp_path):
        with pytest.raises(TrainingError) as caught:
            fit(kind, corpus, runs=tmp_path)
        run = identity.locate(kind, corpus, tmp_path)
        assert run.status == "failed" and str(caught.value) in (run.path / "error.txt").read_text()
        assert run.diverged == (type(caught.value) is not TrainingError)
        return str(caught.value)

    def test_a_loss_that_is_not_finite(self, corpus, tmp_path):
        message = self.failed(config(learning_rates={"heads": 1e30}, clip_norm=None), corpus, tmp_path)
        assert "epoch 1: the loss is nan; lower learning_rates" in message

    def test_embeddings_that_are_not_finite(self, corpus, tmp_path):
        # One step an epoch: its loss is still that of the initial model.
        message = self.failed(config(learning_rates={"heads": 1e30}, clip_norm=None, batch_size=48), corpus, tmp_path)
        assert "embeddings are not finite: the run has diverged; lower its learning_rates" in message

    def test_weights_that_are_not_finite_are_not_taken_for_a_rate_too_high(self, corpus, tmp_path):
        encoder = encoders.build("compact", pretraining.weights(corpus, "compact", quiet=True))
        state = {
            name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in encoder.state_dict().items()
        }
        name = next(name for name in state if name.endswith("weight"))
        state[name].view(-1)[0] = float("nan")
        save_file(state, tmp_path / "broken.safetensors")
        kind = config(audio_weights=str(tmp_path / "broken.safetensors"))
        with pytest.raises(ValueError, match="broken.safetensors: not finite"):
            fit(kind, corpus, runs=tmp_path / "runs")


class TestDevice:
    def test_an_unknown_device_is_refused(self, corpus, tmp_path):
        with pytest.raises(ValueError, match="device: unknown 'tpu'; known: 'auto', 'cpu', 'cuda'"):
            fit(config(), corpus, device="tpu", runs=tmp_path)

    def test_a_gpu_that_is_not_there_is_refused(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(ValueError, match="PyTorch sees no GPU; use 'cpu' or 'auto'"):
            devices.resolve_device("cuda")
        with pytest.raises(ValueError, match="'mps' is not supported: no result was checked.*use 'cpu'"):
            devices.resolve_device("mps")
        assert devices.resolve_device() == "cpu"

    def test_auto_takes_a_gpu_if_there_is_one(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert [devices.resolve_device(name) for name in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]


def test_two_processes_that_want_the_same_run_train_it_once(corpus, tmp_path):
    kind = config(epochs=30)
    first, second = start(kind, corpus, tmp_path), start(kind, corpus, tmp_path)
    first.join()
    second.join()
    assert [first.exitcode, second.exitcode] == [0, 0]
    run = identity.locate(kind, corpus, tmp_path)
    assert run.finished and run.history["epoch"].tolist() == list(range(1, 31))
    shutil.rmtree(run.path)
    assert np.array_equal(fit(kind, corpus, runs=tmp_path).history["epoch"], np.arange(1, 31))


def test_a_state_is_kept_after_each_epoch_unless_that_takes_more_than_a_tenth_of_the_time(monkeypatch, tmp_path):
    clock, written = [0.0], []

    def writing(seconds):
        def write(path, fill):
            clock[0] += seconds
            written.append(clock[0])

        return write

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    for seconds, expected in ((0.2, 10), (1.0, 2)):
        written.clear()
        keeper = state.Keeper(tmp_path / "state.pt")
        monkeypatch.setattr(atomic, "write_atomic", writing(seconds))
        for _ in range(10):
            clock[0] += 1.0
            keeper.keep(state.State())
        assert len(written) == expected
    assert written[1] - written[0] == pytest.approx(10)  # nine seconds of training for each second of writing


@pytest.mark.filterwarnings("error")
def test_slurm_is_not_asked_how_many_processes_train(monkeypatch, tmp_path):
    """Lightning refuses a job of several tasks, and warns of an srun that did not start it."""
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/sh\n")
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert distributed.fabric_of(config(), "cpu").world_size == 1
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert distributed.fabric_of(config(), "cpu").world_size == 1
