import json
import os
import shutil
import sys

import numpy as np
import pytest
import soundfile
from made_models import clap
from typer.testing import CliRunner

from atr import RunConfig
from atr.cli import app
from atr.cli import search as commands
from atr.experiments import rates, study
from atr.experiments.profiles import get_profile
from atr.inference import indexes, neighbours, search
from atr.system import atomic, hashes, units
from atr.training import records

runner = CliRunner()
TINY = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
SETTINGS = {"corpus": TINY, "epochs": 1, "batch_size": 16, "embedding_dim": 16, "training": "frozen"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(autouse=True)
def surroundings(tmp_path, results, monkeypatch, terminal):
    """A small model for the default one, trained once for all tests; indexes of its own for each."""
    terminal(200)
    monkeypatch.setenv("ATR_RESULTS", str(results))
    for module, name in ((indexes, "home"), (commands, "indexes")):
        monkeypatch.setattr(module, name, lambda: tmp_path / "indexes")
    monkeypatch.setattr(commands, "default_model", lambda: (get_profile("demo"), RunConfig(**SETTINGS)))


@pytest.fixture
def folder(tmp_path, corpus):
    """Four scenes of the corpus, one twice as long, and a file that is no sound."""
    place = tmp_path / "my sounds"
    place.mkdir()
    waves = [corpus.read(clip)[0] for clip in corpus.split("test").clips["clip"][:4]]
    for number, wave in enumerate(waves[:3]):
        soundfile.write(place / f"{number}.wav", wave, 16_000)
    soundfile.write(place / "long.wav", np.concatenate([0 * waves[0], 0 * waves[0], 0 * waves[0], waves[3]]), 16_000)
    (place / "bad.wav").write_text("no sound")
    return place


def by(index, clap):
    return json.loads(index.read_text())["model"].get("clap") == str(clap)


def described(file, **changes):
    """What an index.json says, written anew with changes."""
    content = {name: value for name, value in json.loads(file.read_text()).items() if name != "checksum"} | changes
    atomic.write_json(file, content | {"checksum": hashes.content_key(content)})
    return content


def call(*words, status=0, **options):
    outcome = runner.invoke(app.app, [str(word) for word in words], **options)
    assert outcome.exit_code == status, outcome.output
    return outcome


class TestDefault:
    def test_it_is_a_run_of_notebook_06(self, monkeypatch):
        monkeypatch.undo()
        profile, config = commands.default_model()
        assert profile.name == "demo"
        planned = study.plan(study.notebooks(["06"]), "demo")["config"]
        assert config.to_dict() in [rates.at_step(one, -1).to_dict() for one in planned]
        assert config.audio_encoder == "compact_resnet" and config.seed == 0

    def test_it_has_heard_recordings_where_its_weights_and_clips_are_here(self, monkeypatch, tmp_path):
        monkeypatch.undo()
        monkeypatch.setenv("ATR_HOME", str(tmp_path))
        monkeypatch.setenv("ATR_CLIPS", str(tmp_path / "clips"))
        (tmp_path / "clips").mkdir()
        assert commands.default_model()[0].name == "demo"  # without the weights
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "mn04_as_mAP_432.pt").write_bytes(b"")
        profile, config = commands.default_model()
        assert profile.name == "esc50" and config.label_contrast == {"labels": 3, "weight": 2.0}
        assert config.training == "frozen" and config.text_contrast is None
        monkeypatch.setenv("ATR_CLIPS", str(tmp_path / "gone"))
        with pytest.raises(ValueError, match="ATR_CLIPS: .*gone: no such file or folder"):
            commands.default_model()
        monkeypatch.delenv("ATR_CLIPS")
        assert commands.default_model()[0].name == "demo"  # without the clips
        record = {"profile": "esc50", "trained_on": ["dog"] * 50, "r10": 92.6, "among": 500}
        assert "heard AudioSet" in commands._confession(record) and "50 kinds" in commands._confession(record)
        assert "R@10 93 % on scenes mixed from recordings of 50 kinds (" in commands._reminder(record, "rain")

    def test_it_is_trained_once_and_said_to_be_what_it_is(self, folder, results):
        shutil.rmtree(results / "demo", ignore_errors=True)
        first = call("index", folder, "--quiet").output
        assert "No model is named, so that of profile demo is trained first, once: about" in first
        (run,) = records.runs_in(get_profile("demo").runs)
        for words in (
            "trained on synthetic soundscapes alone",
            f"the right one of 16 among its first ten for {run.metrics['t2a_r10']:.0f} % of captions",
            "It has never heard a recording, and knows",
            "kinds of sound: alarm, bark, bees, ",
            "--clap",
        ):
            assert words in first
        assert "4 files, 0:28 of sound in 4 segments (5 new, 0 changed, 0 unchanged, 0 gone)" in first
        again = call("index", folder, "--quiet").output
        assert "trained first" not in again and "(0 new, 0 changed, 5 unchanged, 0 gone)" in again


class TestSearch:
    def test_a_table_of_files_with_the_time_of_the_best_segment(self, folder):
        call("index", folder, "--quiet")
        outcome = call("search", "rain falls", folder, "--top", 4)
        assert f"rain falls, in {folder}:" in outcome.stdout
        (line,) = [line for line in outcome.stdout.splitlines() if "long.wav" in line]
        assert "0:10 – 0:16" in line and outcome.stdout.count(".wav") == 4
        assert "it has never heard a recording" in outcome.stderr and "English" not in outcome.stderr

    def test_without_a_sentence_it_asks_for_one_after_the_other_and_loads_the_model_once(self, folder, monkeypatch):
        call("index", folder, "--quiet")
        models, load = [], commands._embedder
        monkeypatch.setattr(commands, "_embedder", lambda *given: models.append(load(*given)) or models[-1])
        outcome = call("search", "--top", 1, "--in", folder, input="rain falls\n?!\na dog barks\n\nnever asked\n")
        assert len(models) == 1 and outcome.stdout.count(".wav") == 2 and "never asked" not in outcome.output
        assert f"rain falls, in {folder}:" in outcome.stdout and f"a dog barks, in {folder}:" in outcome.stdout
        assert outcome.stderr.count("no words; describe a sound") == 1 and "an empty line ends" in outcome.stderr
        assert outcome.stderr.count("it has never heard a recording") == 1
        assert call("search", "--json", input="rain").stdout.count('"path"') == 4  # to the end of the input

    def test_json_is_all_that_goes_to_the_standard_output(self, folder):
        call("index", folder, "--quiet")
        rows = json.loads(call("search", "a dog", "--json", "--top", 2).stdout)
        assert [row["rank"] for row in rows] == [1, 2] and rows[0]["score"] >= rows[1]["score"]
        assert set(rows[0]) == {"query", "rank", "score", "path", "start", "end"}
        assert rows[0]["path"].startswith(str(folder))

    def test_the_last_indexed_folder_is_the_one_that_is_searched(self, folder, tmp_path):
        shutil.copytree(folder, tmp_path / "other")
        call("index", tmp_path / "other", "--quiet")
        call("index", folder, "--quiet")
        assert str(folder) in call("search", "rain").stdout
        call("index", tmp_path / "other", "--quiet")
        assert str(tmp_path / "other") in call("search", "rain").stdout

    def test_words_of_another_script_are_searched_with_a_remark(self, folder):
        call("index", folder, "--quiet")
        outcome = call("search", "Дождь стучит по крыше")
        assert "It was taught in English." in outcome.stderr and ".wav" in outcome.stdout

    def test_an_interrupted_index_is_searched_with_a_remark(self, folder, monkeypatch):
        call("index", folder, "--quiet")
        heard = search.Index._begin

        def begin(self, file):
            if file[0] == "new.wav":
                raise KeyboardInterrupt
            return heard(self, file)

        shutil.copy(folder / "0.wav", folder / "new.wav")
        monkeypatch.setattr(search.Index, "_begin", begin)
        outcome = call("index", folder, "--quiet", status=130)
        assert "Stopped. What is done is kept: the same command continues where it stopped." in outcome.stderr
        assert "Indexing was interrupted" in call("search", "rain").stderr

    def test_a_search_that_could_be_faster_says_so(self, folder, monkeypatch):
        call("index", folder, "--quiet")
        monkeypatch.setattr(neighbours, "LIMIT", 3)
        outcome = call("search", "rain", "--json")
        assert "4 embeddings searched exactly, in " in outcome.stderr and len(json.loads(outcome.stdout)) == 4

    def test_without_anything_indexed_the_command_is_named(self, folder, tmp_path):
        assert "no folder is indexed yet; run: atr index <folder>" in call("search", "rain", status=1).stderr
        missing = call("search", "dog", "barks", status=1).stderr
        assert 'barks: no such folder; a query of several words needs quotes: "dog barks"' in missing
        assert f"not indexed yet; run: atr index '{folder}'" in call("search", "rain", folder, status=1).stderr

    def test_an_empty_query_is_refused(self, folder):
        call("index", folder, "--quiet")
        assert "empty query; describe a sound" in call("search", "  ", status=1).stderr
        assert "no words; describe a sound" in call("search", "?!", status=1).stderr

    def test_an_index_of_another_version_is_to_be_made_anew(self, folder, monkeypatch):
        call("index", folder, "--quiet")
        monkeypatch.setattr(indexes, "INDEX_VERSION", 99)
        assert "indexed by another version of atr; run: atr index" in call("search", "rain", status=1).stderr

    def test_a_model_that_is_gone_is_named(self, folder, tmp_path):
        call("index", folder, "--quiet")
        (file,) = (tmp_path / "indexes").glob("*/index.json")
        model = described(file)["model"]
        described(file, model=model | {"run": "/none"})
        assert "/none: unfinished or gone; name another model" in call("search", "rain", status=1).stderr
        described(file, model=model, fingerprint="other")
        assert "as it is now; index it again" in call("search", "rain", status=1).stderr

    def test_one_damaged_index_is_named_and_takes_no_other_down(self, folder, tmp_path):
        shutil.copytree(folder, tmp_path / "other")
        call("index", tmp_path / "other", "--quiet")
        (damaged,) = (tmp_path / "indexes").glob("*/index.json")
        call("index", folder, "--quiet")
        for content in (b"", b'{"folder": 3}'):
            damaged.write_bytes(content)
            for words in (["rain"], ["rain", folder]):
                outcome = call("search", *words, "--json")
                assert json.loads(outcome.stdout)[0]["path"].startswith(str(folder))
                assert f"{damaged}: damaged (" in outcome.stderr and "options: atr index <its folder>" in outcome.stderr
            outcome = call("search", "rain", tmp_path / "other", status=1)
            assert f"{damaged}: damaged (" in outcome.stderr and "not indexed yet; run: atr index" in outcome.stderr
        call("index", tmp_path / "other", "--quiet")
        assert "damaged" not in call("search", "rain", folder).stderr

    def test_results_that_were_moved_are_found_where_they_are_now(self, folder, tmp_path, results, monkeypatch):
        call("index", folder, "--quiet")
        expected = call("search", "rain", "--json").stdout
        (file,) = (tmp_path / "indexes").glob("*/index.json")
        model = described(file)["model"]
        (run,) = records.runs_in(get_profile("demo").runs)
        assert model["run"] == str(run.path)
        described(file, model=model | {"run": f"/elsewhere/results/demo/runs/{run.address}"})
        assert call("search", "rain", "--json").stdout == expected

    def test_a_folder_that_is_no_longer_there_is_said(self, folder):
        call("index", folder, "--quiet")
        folder.rename(folder.with_name("renamed"))
        outcome = call("search", "rain")
        assert f"{folder}: not here; where it lies now, run: atr index <folder>" in outcome.stderr

    @pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take only UTF-8")
    def test_a_folder_whose_name_is_no_text_is_refused(self, folder, monkeypatch):
        place = folder.with_name(os.fsdecode(b"\xff"))
        folder.rename(place)
        monkeypatch.setattr(commands, "_model", None)
        assert "a name that is not UTF-8; rename it" in call("index", place, "--quiet", status=1).stderr


class TestIndex:
    def test_problems_are_counted_and_the_first_shown(self, folder):
        for number in range(9):
            (folder / f"bad{number}.wav").write_text("x")
        few, many = (call("index", folder, "--quiet", *words).output for words in ((), ("--problems",)))
        assert few.count("unreadable (Format not recognised.)") == 5 and many.count("unreadable") == 10
        assert "10 files cannot be used; --problems lists all." in few and "10 files cannot be used." in many

    def test_a_folder_of_bad_files_alone_is_an_error(self, tmp_path):
        (tmp_path / "s").mkdir()
        (tmp_path / "s" / "bad.wav").write_text("x")
        outcome = call("index", tmp_path / "s", "--quiet", status=1)
        assert "none of its sounds can be used; bad.wav: unreadable" in outcome.stderr
        assert "no sound in its index; atr index says why" in call("search", "rain", status=1).stderr

    @pytest.mark.parametrize(
        "words, message",
        [
            (["none"], "none: no such folder"),
            (["0.wav"], "0.wav: a file; give a folder"),
            (["empty"], "empty: no sounds here"),
            ([".", "--run", "a", "--clap", "b"], "--run and --clap: give one of them"),
            ([".", "--run", "zz"], "0 runs begin with 'zz'"),
            ([".", "--clap", "none/such"], "none/such"),
        ],
        ids=lambda value: " ".join(value)[:20] if isinstance(value, list) else "",
    )
    def test_what_cannot_be_done_is_said(self, folder, monkeypatch, words, message):
        (folder / "empty").mkdir()
        monkeypatch.chdir(folder)
        outcome = call("index", *words, status=1)
        assert message in outcome.stderr and "Traceback" not in outcome.output

    @pytest.mark.parametrize(
        "words, message",
        [
            (["index", ".", "--segment", value], "segment: ")
            for value in ("nan", "inf", "-inf", "0", "-1", "1801", "1e99")
        ]
        + [
            ([*command, option, value], message)
            for command in (["index", "."], ["search", "rain"])
            for option, value, message in (
                ("--profile", "none", "profile: unknown 'none'; known: "),
                ("--device", "tpu", "device: unknown 'tpu'; known: "),
                ("--run", "", "--run or --clap: empty"),
                ("--clap", "", "--run or --clap: empty"),
                ("--clap", __file__, "a file, and a CLAP model"),
                ("--clap", "none.pt", "none.pt: no such file, and a CLAP model (--clap) is the folder"),
                ("--clap", "empty", "empty: a folder without config.json; a CLAP model"),
            )
        ]
        + [(["index", "empty"], "no sounds here")]
        + [(["search", "rain", "--top", value], "--top") for value in ("0", "-1", "nan", "inf", "1.5")],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_what_is_no_option_is_refused_before_a_model_is_trained_or_loaded(
        self, folder, monkeypatch, words, message
    ):
        call("index", folder, "--quiet")
        (folder / "empty").mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.setattr(commands, "_default", None)
        monkeypatch.setattr(commands, "_embedder", None)
        monkeypatch.setattr(commands, "default_model", None)
        outcome = runner.invoke(app.app, words)
        assert outcome.exit_code in (1, 2) and message in outcome.stderr, outcome.output

    def test_what_clap_takes_is_said_before_what_is_not_indexed(self, folder):
        for name in ("none.pt", str(folder)):
            said = call("search", "rain", str(folder), "--clap", name, status=1).stderr
            assert "a CLAP model (--clap) is the folder" in said and "not indexed" not in said

    def test_a_clap_model_below_the_home_is_remembered_by_its_name(self, tmp_path, monkeypatch):
        monkeypatch.setenv("ATR_HOME", str(tmp_path / "home"))
        (tmp_path / "home" / "checkpoints" / "one").mkdir(parents=True)
        (tmp_path / "other").mkdir()
        models = {
            name: commands._model(None, "demo", str(tmp_path / name), "cpu", True)
            for name in ("home/checkpoints/one", "other")
        }
        assert [model["clap"] for model in models.values()] == ["one", str(tmp_path / "other")]

    def test_a_named_run_is_taken_and_remembered(self, folder, results):
        call("index", folder, "--quiet")
        (run,) = records.runs_in(get_profile("demo").runs)
        text = call("index", folder, "--quiet", "--run", run.address[:6]).output
        assert "Model:" not in text and "5 unchanged" in text
        outcome = call("search", "rain")
        assert "Model:" not in outcome.stderr and ".wav" in outcome.stdout

    def test_clap_is_taken_and_remembered(self, folder, tmp_path, monkeypatch):
        clap(tmp_path / "clap")
        monkeypatch.chdir(tmp_path)
        text = call("index", folder, "--quiet", "--clap", "clap", "--segment", "1").output
        assert "0:28 of sound in 16 segments" in text  # the silent ones are left out
        monkeypatch.chdir("/")
        outcome = call("search", "rain", "--json")
        assert len(json.loads(outcome.stdout)) == 4 and "Model:" not in outcome.stderr
        call("index", tmp_path / "my sounds", "--quiet")
        only = call("search", "rain", "--clap", tmp_path / "clap", "--json")
        assert json.loads(only.stdout) == json.loads(outcome.stdout)
        shutil.rmtree(next(path.parent for path in indexes.home().glob("*/index.json") if by(path, tmp_path / "clap")))
        assert "not by" in call("search", "rain", "--clap", tmp_path / "clap", status=1).stderr


@pytest.mark.skipif(sys.platform == "win32", reason="players are scripts here")
class TestPlay:
    @pytest.fixture
    def player(self, tmp_path, monkeypatch):
        """A player that keeps what it is given; it fails where there is a file `broken`."""
        place = tmp_path / "bin"
        place.mkdir()
        script = place / "aplay"
        script.write_text(
            f"#!{sys.executable}\nimport os, shutil, sys\n"
            f"sys.exit('no device') if os.path.exists({str(tmp_path / 'broken')!r}) else "
            f"shutil.copy(sys.argv[-1], {str(tmp_path / 'played.wav')!r})\n"
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(place))
        return tmp_path

    def test_the_best_segment_is_played(self, folder, player):
        call("index", folder, "--quiet")
        outcome = call("search", "rain", "--play", "--json", "--top", 4)
        best = json.loads(outcome.stdout)[0]
        wave, rate = soundfile.read(best["path"])
        played = soundfile.read(player / "played.wav")[0]
        np.testing.assert_array_equal(played, wave[round(best["start"] * rate) : round(best["end"] * rate)])
        assert "aplay: " in outcome.stderr

    def test_what_goes_wrong_is_said(self, folder, player, monkeypatch):
        call("index", folder, "--quiet")
        (player / "broken").touch()
        assert "aplay failed: no device; open" in call("search", "rain", "--play", status=1).stderr
        monkeypatch.setenv("PATH", str(folder))
        outcome = call("search", "rain", "--play", status=1)
        assert "no player found (ffplay, aplay, paplay, afplay, play): install one, or open" in outcome.stderr
        assert ".wav" in outcome.stdout

    def test_a_file_that_is_gone_is_said(self, folder, player):
        call("index", folder, "--quiet")
        for path in folder.glob("*.wav"):
            os.remove(path)
        assert "changed since it was indexed" in call("search", "rain", "--play", status=1).stderr


@pytest.mark.parametrize("seconds, words", [(0, "0:00"), (65.9, "1:05"), (3723, "1:02:03")])
def test_times_are_written_as_players_do(seconds, words):
    assert units.clock(seconds) == words


def test_names_are_shown_without_what_a_terminal_would_obey():
    assert commands._plain("a\x1b[31m\n\udcff.wav") == "a�[31m��.wav"
