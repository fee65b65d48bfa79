import json
import operator
import os
import re
import shutil
import subprocess
import threading
import time
import warnings

import damage
import pandas as pd
import pytest
import torch
from fastparquet import ParquetFile
from safetensors.torch import save_file
from typer.testing import CliRunner

import atr
from atr import RunConfig, fit, load_corpus
from atr.analysis import explore
from atr.cli.app import app
from atr.config import RESULT_VERSION
from atr.experiments import export
from atr.inference import ensembles
from atr.reports import output, tables, verdicts
from atr.system import atomic, environment, places, store
from atr.training import identity, records, results
from atr.training.records import RecordError, Run

TINY = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
WEIGHTS = {"audio": "a", "text": "t"}


def config(**changes):
    return RunConfig(**({"corpus": TINY, "epochs": 1, "batch_size": 16, "embedding_dim": 16} | changes))


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    return fit(config(), corpus, runs=tmp_path_factory.mktemp("runs"), device="cpu")


class TestAddress:
    def test_it_is_sixteen_hexadecimal_digits_and_always_the_same(self):
        address = records.address(config(), "corpus", WEIGHTS)
        assert re.fullmatch("[0-9a-f]{16}", address)
        assert address == records.address(config(), "corpus", dict(reversed(WEIGHTS.items())))

    @pytest.mark.parametrize(
        "changes",
        [
            {"seed": 1},
            {"precision": "bf16"},
            {"epochs": 2},
            {"loss": {"name": "nt_xent", "temperature": 0.05}},
            {"learning_rates": {"heads": 1e-3, "text": 1e-3}},
        ],
        ids=lambda changes: next(iter(changes)),
    )
    def test_every_field_of_the_config_changes_it(self, changes):
        assert records.address(config(**changes), "corpus", WEIGHTS) != records.address(config(), "corpus", WEIGHTS)

    def test_the_corpus_and_the_weights_change_it(self):
        known = records.address(config(), "corpus", WEIGHTS)
        assert records.address(config(), "other", WEIGHTS) != known
        assert records.address(config(), "corpus", WEIGHTS | {"audio": "b"}) != known
        assert records.address(config(), "corpus", WEIGHTS | {"text": "u"}) != known

    def test_the_version_of_the_results_changes_it(self, monkeypatch):
        known = records.address(config(), "corpus", WEIGHTS)
        monkeypatch.setattr(records, "RESULT_VERSION", RESULT_VERSION + 1)
        assert records.address(config(), "corpus", WEIGHTS) != known

    def test_another_corpus_under_the_same_name_gives_another_run(self, corpus, run):
        larger = load_corpus("soundscapes", **{key: TINY[key] for key in TINY if key != "name"} | {"test": 17})
        assert identity.locate(config(), larger, run.path.parent).address != run.address

    def test_device_and_threads_do_not_change_it(self, corpus, run):
        again = fit(config(), corpus, runs=run.path.parent, device="auto", threads=2)
        assert again.address == run.address and again.environment["threads"] == 1


class TestRun:
    def test_it_gives_back_what_was_recorded(self, run):
        assert run.config == config() and run.finished and run.status == "finished"
        assert run.best_epoch in (0, 1) and run.history["epoch"].tolist() == [1]
        assert set(run.metrics) == set(run.validation) and 0 <= run.metrics["t2a_r10"] <= 100
        assert run.ranks.t2a.shape == (80, 1) and run.ranks.best("a2t").min() >= 1
        assert run.metrics["t2a_r10"] == pytest.approx(100 * (run.ranks.best("t2a") <= 10).mean())

    def test_pairs_are_clips_and_the_first_caption_of_each(self, run):
        audio, text = run.pairs
        assert torch.equal(audio, run.embeddings["audio"]) and len(text) == len(audio)
        for clip in range(len(audio)):
            first = int((run.embeddings["relevance"] == clip).nonzero()[0])
            assert torch.equal(text[clip], run.embeddings["text"][first])

    def test_clips_described_alike_take_a_caption_each(self, tmp_path):
        relevance = torch.tensor([[True, True, False]] * 4 + [[False, False, True]] * 2)
        text = torch.arange(18.0).reshape(6, 3)
        ranks = {"t2a": torch.ones(6, 2, dtype=torch.int64), "a2t": torch.ones(3, 4, dtype=torch.int64)}
        tensors = {"audio": torch.eye(3), "text": text, "relevance": relevance, **ranks}
        save_file(tensors, tmp_path / "embeddings.safetensors")
        assert torch.equal(Run(tmp_path).pairs[1], text[[0, 1, 4]])

    def test_the_environment_says_where_and_with_what(self, run):
        made = run.environment
        assert made["device"] == "cpu" and made["seconds"] > 0 and set(made["versions"]) == set(environment.PACKAGES)
        assert made["processor"] == environment.processor() and "\n" not in made["processor"]
        (device,) = output.provenance([run])["devices"]
        assert device == f"cpu ({made['processor']}), {made['platform']}"
        assert set(made["weights"]) == {"audio", "text"} and len(made["weights"]["audio"]) == 64

    def test_a_run_that_is_not_finished_says_how_to_continue(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="not finished; atr.fit"):
            _ = Run(tmp_path).metrics
        assert Run(tmp_path).status == "unfinished"

    @pytest.mark.parametrize(
        "files, status",
        [
            ([], "unfinished"),
            (["error.txt"], "failed"),
            (["metrics.json"], "damaged"),
            (["metrics.json", "error.txt"], "damaged"),
        ],
    )
    def test_status(self, files, status, tmp_path):
        atomic.write_json(tmp_path / "config.json", {"result_version": RESULT_VERSION, "config": config().to_dict()})
        for name in files:
            (tmp_path / name).write_text("{}")
        assert Run(tmp_path).status == status

    def test_a_run_of_an_older_version_is_stale_even_if_its_config_is_not_understood_any_more(self, tmp_path):
        atomic.write_json(tmp_path / "config.json", {"result_version": 0, "config": {"gone": 1}})
        (tmp_path / "metrics.json").write_text("{}")
        assert Run(tmp_path).status == "stale"


class TestStore:
    def test_runs_are_listed_oldest_first(self, tmp_path):
        for place, name in enumerate(["b0", "a1", "c2"]):
            (tmp_path / name).mkdir()
            records.os.utime(tmp_path / name, (place, place))
        (tmp_path / ".locks").mkdir()
        (tmp_path / "0file").touch()
        assert [run.address for run in records.runs_in(tmp_path)] == ["b0", "a1", "c2"]

    def test_a_folder_that_is_not_there_holds_no_runs(self, tmp_path):
        assert records.runs_in(tmp_path / "none") == []

    def test_the_default_folder_lies_in_the_results(self):
        assert records.default_folder() == places.results_home() / "runs"
        assert records.runs_in() == records.runs_in(records.default_folder())

    def test_a_removed_run_is_gone(self, tmp_path):
        (tmp_path / "a1").mkdir()
        Run(tmp_path / "a1").remove()
        assert records.runs_in(tmp_path) == []


class TestProvenance:
    def test_it_names_each_run_once_with_devices_versions_and_time(self, run, monkeypatch):
        monkeypatch.setenv("ATR_COMMAND", "atr study 01")
        found = output.provenance([run, run, Run(run.path)])
        versions = run.environment["versions"]
        assert found["runs"] == [run.address] and found["command"] == "atr study 01"
        assert found["versions"] == {name: [version] for name, version in versions.items()}
        assert found["note"].startswith("1 run, ") and found["note"].endswith(f"PyTorch {versions['torch']}.")
        assert found["result_version"] == RESULT_VERSION
        assert found["devices"][0].startswith(f"cpu ({environment.processor()}), ")

    def test_without_runs_it_names_what_computes_here(self):
        found, here = output.provenance([]), environment.environment("cpu", 1)
        device = f"cpu ({here['processor']}), {here['platform']}"
        assert found["note"] == f"{device}; PyTorch {here['versions']['torch']}." and found["runs"] == []
        assert found["versions"] == {name: [version] for name, version in here["versions"].items()}
        assert found["commits"] == ([here["commit"]] if here["commit"] else [])

    def test_outside_of_a_checkout_there_is_no_commit(self, tmp_path, monkeypatch):
        monkeypatch.setattr(places, "PROJECT", tmp_path)
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
        assert environment.commit() is None

    def test_in_a_checkout_changed_code_is_marked(self, tmp_path, monkeypatch):
        def git(*words):
            subprocess.run(["git", "-C", tmp_path, *words], check=True, capture_output=True)

        monkeypatch.setattr(places, "PROJECT", tmp_path)
        for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"):
            monkeypatch.setenv(name, "someone")
        git("init")
        (tmp_path / "atr").mkdir()
        (tmp_path / "atr" / "code.py").write_text("1\n")
        git("add", ".")
        git("commit", "-m", "first")
        clean = environment.commit()
        (tmp_path / "atr" / "code.py").write_text("2\n")
        assert len(clean) == 12 and environment.commit() == f"{clean}+"


@pytest.fixture(scope="module")
def several(corpus, run):
    hard = {"training": "finetuned", "mining": "hard", "ancillary": run.config.identity(), "epochs": 0}
    return [
        run,
        fit(config(**hard, loss={"name": "sigmoid", "t": 2.0}), corpus, runs=run.path.parent, device="cpu"),
    ]


class TestExport:
    @pytest.mark.parametrize("ending", ["csv", "parquet"])
    def test_a_row_a_run_holds_config_metrics_and_environment(self, several, tmp_path, ending):
        export.export(several, tmp_path / f"runs.{ending}")
        if ending == "csv":
            table = pd.read_csv(tmp_path / "runs.csv")
        else:
            table = ParquetFile(str(tmp_path / "runs.parquet")).to_pandas()
        table = table.set_index("address")
        assert table.index.tolist() == [run.address for run in several]
        for run in several:
            row = table.loc[run.address]
            assert row["config.loss.name"] == run.config.loss["name"] and row["config.seed"] == 0
            assert row["test.t2a_r10"] == pytest.approx(run.metrics["t2a_r10"])
            assert row["validation.a2t_map10"] == pytest.approx(run.validation["a2t_map10"])
            assert row["run.versions.torch"] == torch.__version__ or row["run.versions.torch"] in torch.__version__
            assert row["run.seconds"] == pytest.approx(run.environment["seconds"])
        first, second = table.loc[several[0].address], table.loc[several[1].address]
        assert second["config.loss.t"] == 2 and pd.isna(first["config.loss.t"]) and pd.isna(first["config.ancillary"])
        assert json.loads(second["config.ancillary"]) == several[0].config.identity()

    def test_another_ending_is_refused_and_nothing_is_written(self, several, tmp_path):
        with pytest.raises(ValueError, match="runs.xlsx: ends neither in .csv nor in .parquet; name the file so"):
            export.export(several, tmp_path / "runs.xlsx")
        assert not list(tmp_path.iterdir())


def test_json_is_replaced_as_a_whole(tmp_path):
    atomic.write_json(tmp_path / "a.json", {"number": 1})
    with pytest.raises(TypeError):
        atomic.write_json(tmp_path / "a.json", {"number": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"number": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def uses(corpus, other):
    """What a finished run is used for: name → function of it."""
    names = "config metrics validation stages best_epoch environment clips history embeddings checkpoint pairs ranks"
    names += " address status finished problem"
    return {name: operator.attrgetter(name) for name in names.split()} | {
        "load_run": lambda run: atr.load_run(run.address[:6], "smoke"),
        "flat": export.flat,
        "provenance": lambda run: output.provenance([run]),
        "frame": lambda run: tables.chance(tables.run_table([(config(), run)], atr.get_profile("smoke"))),
        "scores": lambda run: verdicts.scores([run]),
        "tested": lambda run: results.test_split(run, corpus),
        "embedder": lambda run: atr.Embedder(run, corpus, device="cpu"),
        "ensemble": lambda run: ensembles.ensemble([other, run]),
        "explore": lambda run: explore.split_of(run, corpus),
        "listed": lambda run: explore.run_menu(run.path.parent),
    }


class TestDamage:
    """Of damage.py; `at` is a copy of a finished run in the store of profile smoke."""

    @pytest.fixture
    def at(self, run, tmp_path, monkeypatch):
        monkeypatch.setenv("ATR_RESULTS", str(tmp_path))
        atr.get_profile("smoke").runs.mkdir(parents=True)
        return damage.copy(run, atr.get_profile("smoke").runs)

    @pytest.mark.parametrize("name", damage.RECORDS + damage.TENSORS)
    def test_every_use_ends_right_or_names_the_file(self, name, run, at, corpus, tmp_path):
        for what, mutate in damage.MUTATIONS:
            shutil.rmtree(at.path)
            damage.copy(run, at.path.parent)
            mutate(at.path / name)
            unfinished = what == "deleted" and name == "metrics.json"
            for use, call in uses(corpus, run).items():
                try:
                    call(Run(at.path))
                except (ValueError, FileNotFoundError) as error:
                    assert str(at.path if unfinished else at.path / name) in str(error), (what, use)
            assert Run(at.path).status == ("unfinished" if unfinished else "damaged"), what

    @pytest.mark.parametrize("name", [*damage.RECORDS[:3], damage.TENSORS[0]])
    def test_every_attribute_survives_wrong_values_or_names_the_file(self, name, run, at):
        whole = (at.path / name).read_bytes()
        checked = 0
        for what, mutate in damage.mutations(run.path / name):
            if (what, mutate) in damage.MUTATIONS:
                continue
            mutate(at.path / name)
            checked += 1
            for attribute in ("config", "metrics", "validation", "environment", "embeddings", "ranks", "status"):
                try:
                    getattr(Run(at.path), attribute)
                except RecordError as error:
                    assert str(at.path / name) in str(error), (what, attribute)
            (at.path / name).write_bytes(whole)
        assert checked > 10

    @pytest.mark.parametrize(
        "change, said",
        [
            (lambda found: found["test"].pop("t2a_r10"), "t2a_r10: missing"),
            (lambda found: found["test"].update(t2a_r10="75"), "t2a_r10: of another type"),
            (lambda found: found["validation"].update(t2a_r10=float("inf")), "holds Infinity"),
            (lambda found: found.update(best_epoch=None), "best_epoch: of another type"),
            (lambda found: found.update(stages=[{}]), "test: missing"),
        ],
        ids=["missing", "text", "infinite", "null", "stages"],
    )
    def test_finished_means_that_all_metrics_are_there(self, at, change, said):
        damage.changed(at.path / "metrics.json", change)
        assert not at.finished and at.status == "damaged"
        assert (
            f"{at.path / 'metrics.json'}: cannot be read (ValueError: {said}); run its study or atr.fit" in at.problem
        )

    def test_a_history_or_clips_that_end_too_soon_are_damage(self, at):
        for name, said in (("history.csv", "ends before the selected epoch"), ("clips.csv", "other clips than the 16")):
            whole = (at.path / name).read_text()
            lines = whole.splitlines(keepends=True)
            (at.path / name).write_text("".join(lines[:1] if name == "history.csv" else lines[:-1]))
            assert said in at.problem or at.best_epoch == 0
            (at.path / name).write_text(whole)
        assert at.finished

    def test_what_the_loss_learned_is_whole_or_damage(self, at):
        with pytest.raises(FileNotFoundError, match="learned.csv: missing, as the loss of the run learns nothing"):
            _ = at.learned
        text = "stage,epoch,step,t\n1,1,1,2.5\n1,1,2,2.6\n"
        (at.path / "learned.csv").write_text(text)
        assert at.finished and Run(at.path).learned["t"].tolist() == [2.5, 2.6]
        for broken in ("", text[:-2], text.replace("1,1,1", "1,1,3"), text.replace("2.5", "")):
            (at.path / "learned.csv").write_text(broken)
            assert at.status == "damaged" and str(at.path / "learned.csv") in at.problem

    def test_a_run_of_a_newer_version_is_neither_finished_nor_removed_as_stale(self, at):
        damage.changed(at.path / "config.json", lambda found: found.update(result_version=RESULT_VERSION + 1))
        assert at.status == "newer" and not at.finished
        with pytest.raises(FileNotFoundError, match="made by a newer version of atr; load it with that one"):
            atr.load_run(at.address, "smoke")

    @pytest.mark.parametrize("name", damage.RECORDS + damage.TENSORS)
    def test_it_is_trained_anew_and_what_was_there_is_kept(self, name, run, at, corpus):
        damage.half(at.path / name)
        left = (at.path / name).read_bytes()
        with pytest.warns(UserWarning, match=f"{name}: .*Now trained anew; kept as .*{at.address}.aside-1"):
            again = fit(config(), corpus, runs=at.path.parent, device="cpu")
        assert again == at and again.finished and again.metrics == run.metrics
        assert (at.path.with_name(f"{at.address}.aside-1") / name).read_bytes() == left
        assert records.runs_in(at.path.parent) == [at]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert fit(config(), corpus, runs=at.path.parent, device="cpu") == at

    def test_another_config_at_its_address_is_no_finished_run(self, at, corpus):
        damage.changed(at.path / "config.json", lambda found: found["config"].update(seed=5))
        with pytest.warns(UserWarning, match="config.json: not what this version writes for the run. Now trained anew"):
            assert fit(config(), corpus, runs=at.path.parent, device="cpu").config == config()

    def test_commands_serve_the_whole_runs_and_name_the_damaged_ones(self, run, at, tmp_path):
        whole, strange = (
            Run(damage.copy(run, tmp_path).path.rename(at.path.parent / name)) for name in ("abc1", "abc2")
        )
        for one in (at, whole, strange):
            store.write_sums(one.path, [path.name for path in one.path.iterdir()])
        (at.path / "environment.json").write_text("{}")
        damage.changed(strange.path / "config.json", lambda found: found["config"].update(epochs="x"))

        def call(*words):
            done = CliRunner().invoke(app, ["runs", *words, "--profile", "smoke"], env={"COLUMNS": "300"})
            return done.exit_code, re.sub(r"[│\s]", "", done.output)

        status, said = call("list")
        assert status == 0 and "abc1finished" in said and f"{at.address}damaged" in said
        for path in (at.path / "environment.json", strange.path / "config.json"):
            assert f"damaged:{path}:" in said
        status, said = call("export", str(tmp_path / "runs.csv"))
        assert status == 1 and "1runs→" in said and f"{at.path / 'environment.json'}:damaged(" in said
        assert pd.read_csv(tmp_path / "runs.csv")["address"].tolist() == [whole.address]
        status, said = call("show", at.address)
        assert status == 1 and str(at.path / "environment.json") in said
        assert call("remove", "--stale", "--yes") == (0, "nothingtoremove")
        assert call("remove", at.address, "--yes") == (0, "removed1") and not at.path.exists()


class TestRemoval:
    def test_a_run_that_is_trained_is_not_removed(self, tmp_path):
        run = Run(tmp_path / "runs" / "a1")
        run.path.mkdir(parents=True)
        with run.lock("trained"):
            said = f"{run.path}: is being trained by process {os.getpid()} on .*; stop it first"
            with pytest.raises(BlockingIOError, match=said):
                run.remove()
        assert run.path.is_dir()
        run.remove()
        assert not run.path.exists() and records.runs_in(run.path.parent) == []

    def test_a_run_that_is_gone_and_what_a_killed_removal_left(self, tmp_path):
        run = Run(tmp_path / "a1")
        with pytest.raises(FileNotFoundError):
            run.remove()
        run.path.mkdir()
        (tmp_path / ".a1.removed").mkdir()
        (tmp_path / ".a1.removed" / "metrics.json").touch()
        run.remove()
        assert [path.name for path in tmp_path.iterdir()] == [".locks"]

    def test_training_waits_for_a_removal_and_starts_from_nothing(self, corpus, tmp_path):
        run = identity.locate(config(), corpus, tmp_path)
        run.path.mkdir()
        (run.path / "left").touch()
        with run.lock("removed"):
            thread = threading.Thread(target=lambda: fit(config(), corpus, runs=tmp_path, device="cpu"))
            thread.start()
            time.sleep(0.3)
            shutil.rmtree(run.path)
        thread.join()
        assert run.finished and not (run.path / "left").exists()
