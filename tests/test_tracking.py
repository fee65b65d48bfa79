import sys
from types import ModuleType, SimpleNamespace

import pytest
from lightning_fabric.loggers import Logger

from atr import RunConfig, fit
from atr.experiments import grid
from atr.system import tracking

TINY = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}


class Notes(Logger):
    """What a run says to its logger."""

    name, version = "notes", 0

    def __init__(self, said):
        self.said = said

    def log_metrics(self, metrics, step=None):
        self.said.append((step, dict(metrics)))

    def log_hyperparams(self, params, *args, **kwargs):
        self.said.append(("config", params))

    def finalize(self, status):
        self.said.append(("end", status))


def config(**changes):
    return RunConfig(corpus=TINY, epochs=3, batch_size=16, embedding_dim=16, **changes)


@pytest.fixture
def said(monkeypatch):
    heard = []
    monkeypatch.setitem(tracking.TRACKERS, "json", lambda folder: Notes(heard))  # a name that can be imported
    return heard


def test_each_epoch_is_logged_with_its_row_of_the_history_and_the_test_at_last(corpus, said, tmp_path):
    run = fit(config(), corpus, runs=tmp_path / "runs", track="json")
    assert said[0] == ("config", run.config.to_dict()) and said[-1] == ("end", "success")
    rows = said[1:-2]
    assert [step for step, _ in rows] == [1, 2, 3] == run.history["epoch"].tolist()
    for (_, row), known in zip(rows, run.history.to_dict("records"), strict=True):
        assert row == pytest.approx(known)
    assert said[-2] == (3, {f"test_{name}": value for name, value in run.metrics.items()})


def test_being_tracked_changes_neither_the_address_nor_the_numbers(corpus, said, tmp_path):
    tracked = fit(config(seed=1), corpus, runs=tmp_path / "tracked", track=["json"])
    plain = fit(config(seed=1), corpus, runs=tmp_path / "plain")
    assert tracked.address == plain.address and tracked.metrics == plain.metrics
    assert len(said) == 6
    fit(config(seed=1), corpus, runs=tmp_path / "tracked", track="json")
    assert len(said) == 6  # a finished run has nothing more to say


def test_the_environment_chooses_and_what_cannot_track_is_refused_before_any_training(monkeypatch, tmp_path):
    assert tracking.trackers_of() == []
    monkeypatch.setenv("ATR_TRACK", "tensorboard, wandb")
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: object())
    assert tracking.trackers_of() == ["tensorboard", "wandb"] and tracking.trackers_of([]) == []
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="ATR_TRACK: tensorboard is not installed; .* -m pip install tensorboard"):
        grid.run_all([config()], runs=tmp_path / "runs", quiet=True)
    with pytest.raises(ValueError, match="track: unknown 'mlflow'; known: tensorboard, wandb"):
        fit(config(), runs=tmp_path / "runs", track="mlflow")
    assert not (tmp_path / "runs").exists()


def test_tensorboard_writes_beside_the_runs_one_folder_a_run(monkeypatch, tmp_path):
    monkeypatch.setattr("lightning_fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", True)
    (logger,) = tracking.loggers(["tensorboard"], tmp_path / "runs" / "0a1b")
    assert logger.log_dir == str(tmp_path / "tensorboard" / "0a1b")


def test_weights_and_biases_has_one_run_a_run_that_is_continued(monkeypatch, tmp_path, corpus):
    calls = []

    def init(**options):
        calls.append(("init", options))
        return SimpleNamespace(
            log=lambda metrics, step: calls.append((step, metrics)),
            config=SimpleNamespace(update=lambda params, **_: calls.append(("config", params))),
            finish=lambda code: calls.append(("finish", code)),
        )

    module = ModuleType("wandb")
    module.__spec__ = SimpleNamespace(name="wandb")
    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    run = fit(config(), corpus, runs=tmp_path / "runs", track="wandb")
    kind, options = calls[0]
    assert kind == "init" and options["id"] == run.address and options["resume"] == "allow"
    assert options["project"] == "atr" and options["dir"] == tmp_path
    assert calls[1] == ("config", run.config.to_dict()) and calls[-1] == ("finish", 0)
    assert [step for step, _ in calls[2:-1]] == [1, 2, 3, 3]
