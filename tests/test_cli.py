import os
import re
import subprocess
import sys
import time
import warnings

import numpy as np
import pandas as pd
import pytest
import soundfile
from made_runs import made_run
from processes import wait_until
from typer.testing import CliRunner

import atr
from atr import get_profile
from atr.cli import app, console
from atr.cli import study as commands
from atr.cli.study import workload
from atr.corpora import LOADERS, catalogue, in_folder
from atr.corpora.corpus import CorpusError
from atr.encoders import checkpoints
from atr.experiments import executors, profiles, study
from atr.system import atomic, store
from atr.system.places import PROJECT
from atr.training import state

runner = CliRunner()


@pytest.fixture(autouse=True)
def wide(terminal):
    """No line of a table is folded."""
    terminal(200)


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("ATR_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


def call(*words, status=0, **options):
    outcome = runner.invoke(app.app, [str(word) for word in words], **options)
    assert outcome.exit_code == status, outcome.output
    return outcome.output


class TestHelp:
    def test_the_commands_are_explained(self):
        text = call("--help")
        for word in ("study", "check", "runs", "reference", "Run the numbered notebooks"):
            assert word in text

    @pytest.mark.parametrize(
        "command, words",
        [
            (["study"], ["--profile", "--seeds", "--device", "--plan", "--clips", "continues where it stopped"]),
            (["check"], ["--root", "--write-clean", "List all problems"]),
            (["runs"], ["list", "show", "remove"]),
            (["runs", "remove"], ["--stale", "--yes"]),
        ],
        ids=lambda value: " ".join(value[:2]),
    )
    def test_each_command_explains_its_options(self, command, words):
        text = call(*command, "--help")
        assert all(word in text for word in words)

    def test_python_m_atr_is_the_same(self):
        done = subprocess.run([sys.executable, "-m", "atr", "runs", "--help"], capture_output=True, text=True)
        assert done.returncode == 0 and "List, show and remove runs" in done.stdout

    def test_the_version_is_said_whatever_the_variables_hold(self, monkeypatch):
        monkeypatch.setenv("ATR_EXTENSIONS", "nowhere.py")
        assert call("--version").strip() == f"atr {atr.__version__}"

    def test_every_profile_is_named(self):
        for command in (["study"], ["runs", "list"], ["search"]):
            text = re.sub(r"[│\s]+", " ", call(*command, "--help"))
            assert f"Data and encoders: {', '.join(profiles.PROFILES)}." in text

    @pytest.mark.parametrize(
        "typed, expected",
        [
            ("study --profile es", ["esc50", "esc10"]),
            ("study 0", [path.stem[:2] for path in study.notebooks() if path.stem < "1"]),
            ("check c", ["clotho", "csv", "clipfolder"]),
            ("data mn", ["mn04", "mn10"]),
            ("search rain --device c", ["cpu", "cuda"]),
        ],
    )
    def test_the_shell_completes_names(self, typed, expected):
        asked = {"_ATR_COMPLETE": "complete_bash", "COMP_WORDS": f"atr {typed}", "COMP_CWORD": str(len(typed.split()))}
        outcome = runner.invoke(app.app, [], prog_name="atr", env=asked)
        assert outcome.output.split() == expected
        assert "--install-completion" in call("--help")


HEAVY = {"torch", "transformers", "pandas", "numpy", "scipy", "soundfile", "matplotlib", "papermill", "nbformat", "ray"}
LIGHT = [  # commands, and errors, with what they say
    ["--version", "atr "],
    ["--help", "Run the numbered notebooks"],
    ["runs list --profile smoke", "finished"],
    ["runs list --profile esc10", "no runs of profile esc10 yet"],
    ["runs list --profile big", "--profile: unknown 'big'"],
    ["runs list --sort size", "--sort: unknown 'size'"],
    ["runs show zz --profile smoke", "0 runs begin with 'zz'"],
    ["runs remove zz --profile demo", "0 runs begin with 'zz'"],
    ["runs export runs.txt", "ends neither in .csv nor in .parquet"],
    ["study 77", "no notebook '77'"],
    ["study --profile big", "--profile: unknown 'big'"],
    ["study --seeds one", "--seeds: 'one'; give whole numbers"],
    ["study --device tpu", "--device: unknown 'tpu'"],
    ["study --executor slurm", "--executor: unknown 'slurm'"],
    ["study --clips nowhere", "--clips: nowhere: no such folder"],
    ["check music", "unknown corpus 'music'"],
    ["check csv", "name it with --root"],
    ["check csv --root nowhere", "--root: nowhere: no such folder"],
    ["data music", "unknown data set 'music'"],
    ["data clotho --from nowhere", "--from: nowhere: no such folder"],
    ["index nowhere", "nowhere: no such folder"],
    ["index . --run zz", "0 runs begin with 'zz'"],
    ["search rain", "no folder is indexed yet"],
    ["search rain nowhere", "nowhere: no such folder"],
    ["search --device tpu", "--device: unknown 'tpu'"],
    ["caption csv --root nowhere", "--root: nowhere: no such folder"],
    ["caption soundscapes", "give --endpoint <address> with --model <name>, or --local <folder>"],
    ["report --profile big", "--profile: unknown 'big'"],
    ["report --results nowhere", "--results: nowhere: no such folder"],
    ["reference --profile big", "--profile: unknown 'big'"],
    ["reference 77", "no notebook '77'"],
]
EACH = """
import sys
from typer.testing import CliRunner
from atr.cli.app import app
for line in sys.stdin.read().splitlines():
    words, said = line.split("|")
    outcome = CliRunner().invoke(app, words.split())
    heavy = set(sys.argv[1:]) & set(sys.modules)
    assert said in "".join(outcome.output.splitlines()) and not heavy, (words, heavy, outcome.output, outcome.exception)
"""


def test_what_needs_no_computing_waits_for_no_import(results, tmp_path):
    smoke = get_profile("smoke")
    made_run(smoke.runs, "aa0", smoke.config("soundscapes", "frozen", "nt_xent", 0), [1, 2], [1, 2])
    environment = os.environ | {"COLUMNS": "200", "ATR_HOME": str(tmp_path / "home"), "PYTHONPATH": str(PROJECT)}
    environment.pop("ATR_PRETRAINING_EPOCHS")  # whose value is looked at where it is used
    lines = "\n".join("|".join(words) for words in LIGHT)
    done = subprocess.run(
        [sys.executable, "-c", EACH, *HEAVY], input=lines, env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_names_that_the_command_line_knows_by_itself_are_those_of_the_registries():
    assert set(console.CORPORA) == set(LOADERS) and console.ROOT_CORPORA == tuple(filter(in_folder, console.CORPORA))
    assert console.DATA == (*catalogue.DATASETS, *checkpoints.REGISTRY)
    assert commands.EXECUTORS == tuple(executors.EXECUTORS)


def test_what_takes_long_says_so_once_it_has(monkeypatch, capsys):
    said = []
    monkeypatch.setattr(console.SafeConsole, "print", lambda self, *words, **_: said.append((*words, self.stderr)))
    monkeypatch.setattr(console, "PATIENCE", 0.01)
    console.doing("reading 9 sounds")
    wait_until(lambda: said, 10)
    assert said == [("reading 9 sounds …", True)]
    monkeypatch.setattr(console, "PATIENCE", 0.3)
    console.doing("reading 8 sounds")
    console.say("done")  # then it need not be said
    time.sleep(0.6)
    assert said[1:] == [("done", False)]


class TestVariables:
    @pytest.mark.parametrize(
        "variable, value, said",
        [
            ("ATR_HOME", "file", "{folder}/file is not a folder; name a folder"),
            ("ATR_RESULTS", "file/below", "{folder}/file is not a folder; name a folder"),
            ("ATR_TRACK", "tensorbord", "ATR_TRACK: unknown 'tensorbord'; known: tensorboard, wandb"),
            ("ATR_SWITCHES", "fast", "ATR_SWITCHES: unknown 'fast'; known: "),
            ("ATR_PRETRAINING_EPOCHS", "many", "ATR_PRETRAINING_EPOCHS: 'many'; give a whole number from 1"),
            ("ATR_PRETRAINING_EPOCHS", "0", "ATR_PRETRAINING_EPOCHS: '0'; give a whole number from 1"),
            ("ATR_EXTENSIONS", "gone.py", "ATR_EXTENSIONS: gone.py: FileNotFoundError: "),
            ("ATR_EXTENSIONS", "broken.py", "ATR_EXTENSIONS: broken.py: SyntaxError: "),
        ],
    )
    def test_a_bad_value_is_said_in_a_line_before_any_work(self, tmp_path, monkeypatch, variable, value, said):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "file").touch()
        (tmp_path / "broken.py").write_text("def\n")
        monkeypatch.setenv(variable, value)
        text = call("runs", "list", status=1)
        assert f"error: {variable}: " in text and said.format(folder=tmp_path) in text and text.count("\n") == 1

    @pytest.mark.parametrize(
        "variable, name, said",
        [
            ("ATR_CLIPS", "esc10", "no such file or folder"),
            ("ATR_CAPTIONS", "captions", "is not a folder; name a file"),
        ],
    )
    def test_a_bad_place_of_a_profiles_data_is_said_before_any_work(
        self, tmp_path, results, monkeypatch, variable, name, said
    ):
        monkeypatch.setenv(variable, str(tmp_path / "gone"))
        if variable == "ATR_CAPTIONS":
            (tmp_path / "gone").mkdir()
        text = call("study", "--profile", name, status=1)
        assert f"error: {variable}: {tmp_path / 'gone'}: " in text and said in text

    def test_relative_places_are_handed_on_as_absolute_ones(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "clips").mkdir()
        places = {"ATR_HOME": "home", "ATR_RESULTS": "results", "ATR_CLIPS": "clips"}
        for variable, value in places.items():
            monkeypatch.setenv(variable, value)
        seen = {}
        monkeypatch.setattr(study, "execute", lambda *_: seen.update(app.os.environ) or tmp_path / "done")
        assert f"Tables: {tmp_path}/results/smoke/tables" in call("study", "01", "--profile", "smoke")
        assert {name: seen[name] for name in places} == {name: str(tmp_path / value) for name, value in places.items()}


class TestPackage:
    def test_names_and_modules_are_loaded_on_use(self):
        assert atr.reports.__name__ == "atr.reports" and atr.get_profile is get_profile and callable(atr.fit)
        faces = {"corpora", "encoders", "losses", "metrics", "register", "reports"}
        assert set(dir(atr)) == faces | set(atr.__all__) and len(atr.__all__) == 10

    def test_an_unknown_name_is_an_attribute_error(self):
        with pytest.raises(AttributeError, match="module 'atr' has no attribute 'train'"):
            _ = atr.train


class TestStudy:
    def test_the_plan_lists_the_runs_and_trains_nothing(self, results, monkeypatch):
        monkeypatch.setattr(study, "execute", None)
        text = call("study", "2", "--profile", "smoke", "--plan", "--seeds", "5", "--rows")
        runs = len(study.grid(study.notebooks(["02"])[0], {"profile_name": "smoke", "seeds": [5]}))
        assert f"{runs} runs of profile smoke, 0 of them finished" in text and text.count("seed 5") == runs
        assert not results.exists()
        short = call("study", "2", "--profile", "smoke", "--plan", "--seeds", "5")
        assert short.startswith(f"{runs} runs of profile smoke") and "seed 5" not in short and "--rows" in short

    def test_notebooks_are_run_with_what_was_asked_for(self, results, monkeypatch):
        monkeypatch.setenv("ATR_COMMAND", "")
        called = []

        def execute(path, *given):
            called.append((path.stem, *given))
            return results / path.name

        monkeypatch.setattr(study, "execute", execute)
        text = call("study", "01", "--profile", "smoke", "--seeds", "3,4", "--device", "cpu", "--quiet")
        parameters = {"seeds": [3, 4], "device": "cpu", "executor": "local"}
        assert called == [("01_loss_comparison", "smoke", parameters)]
        assert "Profile smoke: 01_loss_comparison; 23 runs, 0 of them finished; about" in text
        assert "Tables: " in text and app.os.environ["ATR_COMMAND"] == "atr study 01 --profile smoke"

    def test_a_cluster_is_asked_how_much_it_has_and_is_the_notebooks_too(self, results, monkeypatch):
        made = []

        class Cluster:
            device, address = "cpu", "10.0.0.1:6379"
            closed = False

            def __init__(self, device, runs):
                made.append((self, device, runs))

            def __str__(self):
                return "a Ray cluster of 3 machine(s), 12 CPUs and 0 GPUs"

            def slots(self):
                return 12

            def call(self, function, *given):
                return function(*given)

            def close(self):
                self.closed = True

        monkeypatch.setattr(executors, "Ray", Cluster)
        monkeypatch.setenv("RAY_ADDRESS", "")
        monkeypatch.setenv("ATR_COMMAND", "")
        asked = ("study", "01", "--profile", "smoke", "--seeds", "5", "--executor", "ray", "--device", "cpu")
        text = call(*asked, "--plan")
        assert "in sum on a Ray cluster of 3 machine(s), 12 CPUs and 0 GPUs, 12 runs at a time, by a few" in text
        monkeypatch.setattr(study, "execute", lambda path, profile, parameters: path.with_name(str(parameters)))
        text = call(*asked)
        assert (
            re.search(r"about .*(seconds|minutes?) on a Ray cluster of 3 machine\(s\)", text)
            and "'executor': 'ray'" in text
        )
        assert app.os.environ["RAY_ADDRESS"] == "10.0.0.1:6379"
        assert [(one.closed, *given) for one, *given in made] == [(True, "cpu", get_profile("smoke").runs)] * 2

    @pytest.mark.parametrize(
        "words, message",
        [
            (["--profile", "big"], "profile: unknown 'big'; known: smoke, demo, esc50, paper, esc10"),
            (["77"], "no notebook '77'"),
            (["--device", "tpu", "--profile", "smoke"], "device: unknown 'tpu'"),
            (["--executor", "slurm", "--profile", "smoke"], "executor: unknown 'slurm'; known: local, ray"),
            (["--profile", "esc10"], "pass it: make study PROFILE=esc10 CLIPS=<folder>"),
            (["--profile", "esc10", "--clips", "/no/such/folder"], "--clips: /no/such/folder: no such folder"),
            (["--seeds", "one", "--profile", "smoke"], "--seeds: 'one'; give whole numbers from 0, such as 0,1,2"),
            (["--seeds", "0,-1", "--profile", "smoke", "--plan"], "--seeds: '0,-1'; give whole numbers from 0"),
        ],
        ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
    )
    def test_what_cannot_be_done_is_said_in_plain_words(self, words, message, results, monkeypatch):
        monkeypatch.setattr(study, "execute", None)
        text = call("study", *words, status=1)
        assert message in text.replace("\n", "") and "Traceback" not in text

    def test_a_notebook_that_fails_ends_with_its_error(self, results, monkeypatch):
        def execute(path, *given):
            raise study.StudyError(f"{path.name}: ValueError: no")

        monkeypatch.setattr(study, "execute", execute)
        assert "error: 00_explore.ipynb: ValueError: no" in call("study", "--profile", "smoke", "--jobs", "1", status=1)

    def test_the_notebook_that_measures_the_machine_runs_when_it_is_asked_for(self, results, monkeypatch):
        ran = []
        monkeypatch.setattr(study, "execute", lambda path, *given: ran.append(path.stem[:2]) or path)
        call("study", "--profile", "smoke", "--jobs", "1")
        assert "01" in ran and study.TIMED not in ran
        ran.clear()
        call("study", "12", "1", "--profile", "smoke", "--jobs", "1")
        assert ran == ["01", "12"]

    def test_notebooks_run_side_by_side_where_nothing_is_left_to_train(self, monkeypatch):
        monkeypatch.setattr(executors, "default_workers", lambda device: 4)
        left, done = (pd.DataFrame({"finished": [True, finished]}) for finished in (False, True))
        paper = get_profile("paper")
        said = [workload(table, paper, 3, "cpu", None, jobs) for table, jobs in ((left, None), (done, None), (left, 2))]
        assert said[:2] == [(1, None, "2 runs, 1 of them finished"), (3, None, "2 runs, 2 of them finished")]
        assert said[2] == (2, None, said[0][2])

    def test_a_reference_needs_results(self, results):
        assert "not run yet: 00_explore.ipynb" in call("reference", "--profile", "smoke", status=1)

    def test_a_reference_is_copied(self, results):
        for part in ("tables", "figures", "notebooks"):
            (results / "smoke" / part).mkdir(parents=True)
        for path in study.notebooks():
            (results / "smoke" / "notebooks" / path.name).write_text("{}")
        assert "reference" in call("reference", "--profile", "smoke")
        assert (results / "reference" / "smoke" / "notebooks" / "01_loss_comparison.ipynb").is_file()


def folder_of_sounds(folder, extra=""):
    """A csv corpus of five sounds, with `extra` lines below them."""
    lines = ["file_name,split,caption"]
    splits = ["train", "train", "train", "validation", "test"]
    for number, split in enumerate(splits):
        wave = 0.3 * np.sin(2 * np.pi * (300 + 50 * number) * np.arange(8000) / 8000)
        soundfile.write(folder / f"{number}.wav", wave, 8000)
        lines.append(f"{number}.wav,{split},a tone of kind {number}")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n" + extra)
    return folder


class TestCheck:
    BAD = "0.wav,train,\ngone.wav,train,a missing sound\n1.wav,test,a tone elsewhere\nbroken.wav,train,noise\n"

    def test_a_good_corpus(self, tmp_path):
        text = call("check", "csv", "--root", folder_of_sounds(tmp_path))
        assert "csv: no problems; {'train': 3, 'validation': 1, 'test': 1}, 5 captions" in text

    def test_all_problems_at_once(self, tmp_path):
        folder_of_sounds(tmp_path, self.BAD)
        (tmp_path / "broken.wav").write_bytes(b"no sound")
        text = call("check", "csv", "--root", tmp_path, status=1)
        for words in ("line 7, caption: empty caption", "gone.wav", "1.wav' is in 2 splits", "broken.wav"):
            assert words in text
        assert f"{len(text.splitlines()) - 1} problems" in text.splitlines()[-1]

    def test_a_cleaned_copy_has_no_problems(self, tmp_path):
        folder_of_sounds(tmp_path, self.BAD)
        (tmp_path / "broken.wav").write_bytes(b"no sound")
        before = (tmp_path / "captions.csv").read_bytes()
        text = call("check", "csv", "--root", tmp_path, "--write-clean", tmp_path / "clean.csv", status=1)
        assert "4 rows without problems" in text and (tmp_path / "captions.csv").read_bytes() == before
        clean = pd.read_csv(tmp_path / "clean.csv")
        assert clean["file_name"].tolist() == ["0.wav", "2.wav", "3.wav", "4.wav"]
        (tmp_path / "clean.csv").replace(tmp_path / "captions.csv")
        assert "no problems" in call("check", "csv", "--root", tmp_path)

    def test_a_table_that_cannot_be_read_at_all(self, tmp_path):
        (tmp_path / "captions.csv").write_text("name,text\na.wav,x\n")
        text = call("check", "csv", "--root", tmp_path, status=1)
        assert "no column 'file_name'" in text and "no caption column" in text and "2 problems" in text
        again = call("check", "csv", "--root", tmp_path, "--write-clean", tmp_path / "clean.csv", status=1)
        assert "no column 'file_name'" in again and not (tmp_path / "clean.csv").exists()

    @pytest.mark.parametrize(
        "words, message",
        [
            (["csv"], "lies in a folder: name it with --root"),
            (["music"], "unknown corpus 'music'; known: audiocaps, audiocaps2, clotho, csv"),
            (["soundscapes", "--root", "."], "--root: .: soundscapes are computed, not read; leave it out"),
            (["csv", "--root", "nowhere"], "--root: nowhere: no such folder; name that of the corpus"),
            (["soundscapes", "--write-clean", "x.csv"], "--write-clean goes with: atr check csv --root <folder>"),
        ],
        ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
    )
    def test_wrong_words(self, words, message):
        assert message in call("check", *words, status=1).replace("\n", "")


class TestTerminals:
    """Of an encoding that lacks what tables are made of."""

    @pytest.mark.parametrize("words", [["--help"], ["runs", "list", "--help"], ["data"], ["runs", "list"], ["nothing"]])
    def test_what_it_cannot_show_is_spelled(self, results, words):
        smoke = get_profile("smoke")
        made_run(smoke.runs, "aa0", smoke.config("soundscapes", "frozen", "nt_xent", 0), [1, 2], [1, 2])
        if words == ["runs", "list"]:
            words = [*words, "--profile", "smoke"]
        environment = os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "COLUMNS": "100"}
        call = [sys.executable, "-m", "atr", *words]
        done = subprocess.run(call, env=environment, capture_output=True, cwd=PROJECT)
        said = (done.stdout + done.stderr).decode("ascii")
        assert done.returncode == (2 if words == ["nothing"] else 0), said
        assert len(said) > 100 and "Traceback" not in said and "UnicodeEncodeError" not in said

    def test_signs_that_matter_are_spelled(self):
        assert "76.8 ± 1.1 → x…, é語".encode("ascii", "spelled") == b"76.8 +- 1.1 > x..., ??"


class TestRuns:
    @pytest.fixture
    def stored(self, results):
        """Two finished runs of smoke, one that failed, one of an older version."""
        smoke = get_profile("smoke")
        made = []
        for seed, name in enumerate(["aa0" + "0" * 13, "ab1" + "0" * 13, "ac2" + "0" * 13, "ad3" + "0" * 13]):
            config = smoke.config("soundscapes", "frozen", "nt_xent", seed)
            made.append(made_run(smoke.runs, name, config, [1, 2, 30, 1], [1, 2]))
        (made[2].path / "metrics.json").unlink()
        (made[2].path / "error.txt").write_text("TrainingError: [diverged]\n")
        atomic.write_json(made[3].path / "config.json", {"result_version": 0, "config": {"gone": 1}})
        return made

    def test_list(self, stored):
        lines = call("runs", "list", "--profile", "smoke").splitlines()
        (first,) = [line for line in lines if "aa00" in line]
        assert [cell.strip() for cell in first.strip("│ ").split("│")][1:6] == [
            "finished",
            "nt_xent",
            "frozen",
            "0",
            "75.0",
        ]
        assert "failed" in next(line for line in lines if "ac20" in line)
        assert "stale" in next(line for line in lines if "ad30" in line)

    def test_the_list_is_filtered_sorted_and_says_in_what_a_run_differs(self, stored):
        smoke = get_profile("smoke")
        for name, loss, changes in (("ba", "triplet_max", {}), ("bb", "nt_xent", {"batch_size": 24})):
            config = smoke.config("soundscapes", "finetuned", loss, 0, **changes)
            made_run(smoke.runs, name, config, [1, 30, 30, 30], [1, 2])

        def listed(*words):
            lines = call("runs", "list", "--profile", "smoke", *words).splitlines()
            return [line.strip("│ ").split()[0][:2] for line in lines if line.startswith("│")]

        assert listed("--loss", "triplet_max") == ["ba"] and listed("--training", "finetuned") == ["ba", "bb"]
        assert listed("--seed", "0", "--state", "finished") == ["aa", "ba", "bb"]
        assert listed("--state", "finished", "--sort", "R@10") == ["ba", "bb", "aa", "ab"]
        assert listed("--notebook", "01") == ["aa", "ab", "ba"]  # not of another seed or batch size
        text = call("runs", "list", "--profile", "smoke")
        assert "batch_size 24" in next(line for line in text.splitlines() if line.startswith("│ bb"))
        assert "no runs are like that" in call("runs", "list", "--profile", "smoke", "--loss", "sigmoid")
        assert "--state: unknown 'done'; known: finished" in call("runs", "list", "--state", "done", status=1)

    def test_an_empty_list_says_how_to_fill_it(self, results):
        assert "no runs of profile smoke yet: atr study --profile smoke" in call("runs", "list", "--profile", "smoke")

    def test_show(self, stored):
        text = call("runs", "show", "aa", "--profile", "smoke")
        assert "config.json" in text and '"embedding_dim": 64' in text and '"t2a_r10": 75.0' in text
        assert "TrainingError: [diverged]" in call("runs", "show", "ac", "--profile", "smoke")

    @pytest.mark.parametrize("digits, count", [("a", 4), ("b", 0)])
    def test_show_wants_one_run(self, stored, digits, count):
        text = call("runs", "show", digits, "--profile", "smoke", status=1)
        assert f"results/smoke/runs: {count} runs begin with '{digits}'; list them: atr runs list" in text.replace(
            "\n", ""
        )

    def test_remove_asks_first(self, stored):
        call("runs", "remove", "aa", "--profile", "smoke", status=1, input="n\n")
        assert stored[0].finished
        assert "removed 1" in call("runs", "remove", "aa", "--profile", "smoke", input="y\n")
        assert not stored[0].path.exists() and stored[1].finished

    def test_remove_names_the_runs_that_need_the_one_removed(self, stored):
        first = stored[0].config
        stages = {"training": "finetuned", "start": first.identity()}
        needing = made_run(stored[0].path.parent, "ba" + "0" * 14, first.replace(**stages), [1, 2], [1, 2])
        asked = call("runs", "remove", "aa", "--profile", "smoke", status=1, input="n\n")
        assert f"Remove {stored[0].address}? Needed to train {needing.address}." in asked
        for digits in (["ab"], ["ba"], ["aa", "ba"]):
            assert "Needed" not in call("runs", "remove", *digits, "--profile", "smoke", status=1, input="n\n")

    def test_remove_what_is_stale(self, stored):
        assert "removed 1" in call("runs", "remove", "--stale", "--yes", "--profile", "smoke")
        assert [run.path.exists() for run in stored] == [True, True, True, False]
        assert "nothing to remove" in call("runs", "remove", "--stale", "--yes", "--profile", "smoke")

    def test_a_run_named_twice_is_removed_once(self, stored):
        assert "removed 1" in call("runs", "remove", "ad", "ad3", "--stale", "--yes", "--profile", "smoke")

    def test_verify_names_what_is_damaged_and_sets_it_aside_to_be_made_anew(self, stored):
        text = call("runs", "verify", "--profile", "smoke")
        assert "2 by an older version, which wrote no hashes" in text and "4 runs, none is damaged" in text
        store.write_sums(stored[0].path, ["config.json"], {"metrics.json": b"{}"})
        (stored[2].path / "state.pt").write_bytes(b"state" + state.SEAL + bytes(32))
        text = call("runs", "verify", "--profile", "smoke", status=1)
        size = (stored[0].path / "metrics.json").stat().st_size
        assert f"{stored[0].path}: damaged (metrics.json has {size} bytes instead of 2); --repair sets it aside" in text
        assert f"{stored[2].path}: damaged (state.pt: its bytes have changed)" in text and "2 damaged of 4 runs" in text
        assert stored[0].path.exists() and "damaged" in call("runs", "list", "--profile", "smoke")
        assert call("runs", "verify", "--profile", "smoke", "--repair", status=1).count("set aside: ") == 2
        aside = [path.name[:3] for path in stored[0].path.parent.glob("*.aside-*")]
        assert sorted(aside) == ["aa0", "ac2"] and not stored[0].path.exists()
        assert "2 runs, none is damaged" in call("runs", "verify", "--profile", "smoke")

    @pytest.mark.parametrize("command", [["list"], ["show", "aa"], ["remove", "aa"], ["remove", "--stale"], ["verify"]])
    def test_an_unknown_profile_is_refused(self, command):
        assert "profile: unknown 'big'" in call("runs", *command, "--profile", "big", status=1)


class TestCaption:
    """The endpoint's and the model's own behaviour is in test_captioning.py."""

    @pytest.fixture
    def asked(self, tmp_path, monkeypatch):
        """Requests to a model that answers well, but for the first request."""
        from atr.corpora.captioning import language_models
        from atr.corpora.captioning.language_models import Reply

        requests = []

        class Model:
            def __init__(self, url, model, timeout):
                self.model, self.where = model, (url, timeout)

            def __call__(self, messages):
                requests.append((self.where, messages[0]["content"]))
                good = "[" + ", ".join(f'"new wording {letter}"' for letter in "vwxyz") + "]"
                return Reply("no" if len(requests) == 1 else good, "stop", {"total_tokens": 10})

        monkeypatch.setattr(language_models, "Endpoint", Model)
        monkeypatch.setenv("ATR_HOME", str(tmp_path / "home"))
        return requests

    def caption(self, folder, *words, **options):
        ask = ("--endpoint", "http://localhost:11434/v1", "--model", "phi4:14b", "--quiet", "--concurrency", 1)
        return call("caption", "csv", "--root", folder, *ask, *words, **options)

    def test_training_clips_get_captions_under_a_name_made_of_corpus_and_model(self, tmp_path, asked):
        text = self.caption(folder_of_sounds(tmp_path), "--timeout", 7)
        assert "csv-phi4-14b.jsonl: 3 of 3 clips have valid captions" in text and "asked 4 times, 4 answers" in text
        assert 'load_corpus("csv", …, synthetic="csv-phi4-14b")' in text
        assert (tmp_path / "home" / "captions" / "csv-phi4-14b.jsonl").read_text().count("\n") == 4
        assert {where for where, _ in asked} == {("http://localhost:11434/v1", 7.0)}
        loaded = atr.load_corpus("csv", tmp_path, synthetic="csv-phi4-14b")
        assert len(loaded.captions) == 3 * 6 + 2
        assert "asked 0 times" in self.caption(tmp_path)

    def test_clips_left_without_captions_are_a_failure_that_says_which(self, tmp_path, asked):
        text = self.caption(folder_of_sounds(tmp_path), "--attempts", 1, "--name", "mine", status=1)
        assert "mine.jsonl: 2 of 3 clips" in text and "missing, count: 1 ('0.wav')" in text and "train on" not in text

    def test_a_few_to_try_and_more_where_clips_are_held_out(self, tmp_path, asked):
        folder_of_sounds(tmp_path)
        assert "1 of 1 clips" in self.caption(tmp_path, "--limit", 1)
        assert "4 of 4 clips" in self.caption(tmp_path, "--hold-out", 1)

    def test_keywords_go_along(self, tmp_path, asked):
        folder_of_sounds(tmp_path)
        table = tmp_path / "keywords.csv"
        table.write_text("file_name,keywords\n0.wav,hum;beep\n9.wav,x\n")
        assert "keywords of 1 of 3 clips" in self.caption(tmp_path, "--keywords", table)
        assert '"hum"' in asked[0][1] and '"beep"' in asked[0][1]

    @pytest.mark.parametrize(
        "words, message",
        [
            ([], "give --endpoint <address> with --model <name>, or --local <folder>"),
            (["--endpoint", "http://x/v1"], "give --endpoint <address> with --model <name>"),
            (["--local", "x", "--endpoint", "http://x/v1", "--model", "m"], "or --local <folder>"),
            (["--endpoint", "http://x/v1", "--model", "m", "--name", "../x"], "record '../x': give a name of letters"),
        ],
        ids=lambda value: " ".join(value)[:20] if isinstance(value, list) else "",
    )
    def test_wrong_words(self, words, message, asked):
        assert message in call("caption", "soundscapes", *words, status=1) and not asked

    def test_the_key_is_no_option(self):
        text = call("caption", "--help")
        assert "ATR_API_KEY" in text and "--key " not in text and "continues where it stopped" in text


FOREIGN = "a\x1b[31m\x07[red]b[/red] \u202ec\r:dog: http://me:pass@x.y/v1?api_key=hush \udcff"
PRINTED = r"a\x1b[31m\x07[red]b[/red] \u202ec\r:dog: http://x.y/v1?api_key=… \udcff"


def test_texts_of_others_are_only_printed(capsys, monkeypatch):
    console.fail(ValueError(FOREIGN))
    assert PRINTED in capsys.readouterr().err
    monkeypatch.setattr(console.console, "_width", 200)
    console.print_table(pd.DataFrame({"[b]n\x1b": [FOREIGN]}), title="[i]t\x1b")
    shown = capsys.readouterr().out
    assert PRINTED in shown and r"[b]n\x1b" in shown and r"[i]t\x1b" in shown and "\x1b" not in shown
    console.console.print("Héllo 👩\u200d🔬\u00a0→\tx\ny", soft_wrap=True)
    assert "Héllo 👩\u200d🔬\u00a0→" in capsys.readouterr().out
    console.console.print("[red]a\nb", "c", sep="\n")
    assert capsys.readouterr().out == "[red]a\\nb\nc\n"


FORGED = "a\nforged\r\x1b[2K[bold]b"
SPELT = r"a\nforged\r\x1b[2K[bold]b"


class TestNames:
    """Of files and folders, with a line end, a control character and markup in them: they make no line of their own."""

    def said(self, *words, status):
        shown = call(*words, status=status)
        assert SPELT in shown and "\x1b" not in shown and "\r" not in shown
        assert not any(line.lstrip().startswith("forged") for line in shown.splitlines())
        return shown

    @pytest.mark.parametrize(
        "words", ["index", "search rain", "data clotho --from", "report --results", "check csv --root"]
    )
    def test_of_a_folder_that_is_not_there(self, results, tmp_path, words):
        self.said(*words.split(), tmp_path / FORGED, status=1)

    def test_of_a_file_with_problems(self, tmp_path):
        folder = folder_of_sounds(tmp_path, f'"{FORGED}.wav",train,a sound\n')
        self.said("check", "csv", "--root", folder, status=1)

    def test_of_what_is_written(self, results, tmp_path, monkeypatch):
        smoke = get_profile("smoke")
        made_run(smoke.runs, "aa0", smoke.config("soundscapes", "frozen", "nt_xent", 0), [1, 2], [1, 2])
        self.said("runs", "export", tmp_path / f"{FORGED}.csv", "--profile", "smoke", status=0)
        folder_of_sounds(tmp_path)
        clean = tmp_path / f"{FORGED}.csv"
        self.said("check", "csv", "--root", tmp_path, "--write-clean", clean, status=0)
        monkeypatch.setattr("atr.bench.harness.run", lambda *arguments: {"rows": []})
        monkeypatch.setattr("atr.bench.goals.table", lambda *arguments: pd.DataFrame({"factor": [1.0]}))
        self.said("bench", "--out", tmp_path / f"{FORGED}.json", status=0)

    def test_in_a_warning(self, monkeypatch):
        def warned(*arguments):
            shown.append(warnings.formatwarning(FORGED, UserWarning, "x.py", 1, ""))
            return pd.DataFrame({"a": [1]})

        shown = []
        monkeypatch.setattr("atr.cli.data.status", warned)
        call("data")
        assert SPELT in shown[0] and warnings.formatwarning(FORGED, UserWarning, "x.py", 1, "").count("\n") > 1

    def test_in_an_error_of_several_lines(self, capsys):
        console.fail(RuntimeError("failed:\n[bold]x"))
        assert capsys.readouterr().err == "error: failed:\n[bold]x\n"
        problems = pd.DataFrame({"where": [FORGED], "problem": ["gone"], "mend": ["fetch it"]})
        console.fail(CorpusError("csv", problems))
        assert capsys.readouterr().err == f"error: corpus 'csv' has 1 problem(s):\n  {SPELT}: gone; fetch it\n"
