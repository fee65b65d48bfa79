"""`atr pack`: a run in one folder, which embeds as the run did where nothing else of it is left."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import made_models
import numpy as np
import pytest
import soundfile
import torch
import yaml
from made_runs import made_run
from typer.testing import CliRunner

from atr import Embedder, RunConfig, encoders, extend, fit, register
from atr.cli import app
from atr.config import RESULT_VERSION
from atr.corpora import corpus_of
from atr.encoders import text
from atr.encoders.audio.mobilenet import MobileNet
from atr.evaluation import naming
from atr.inference import pack
from atr.inference.embedder import beginning
from atr.inference.search import Index
from atr.system import atomic, hashes
from atr.training import identity, records
from atr.training.records import Run

TINY = {"name": "soundscapes", "train": 12, "validation": 4, "test": 4, "duration": 4.0}
SETTINGS = {"corpus": TINY, "epochs": 1, "batch_size": 6, "embedding_dim": 16}
LOSS = """
from atr import losses, register

@register.loss("gentle")
class Gentle(losses.PairLoss):
    def compute(self, similarity, same):
        return (similarity * self.negatives(same)).mean() - similarity.diagonal().mean()
"""
SENTENCES = ["A dog barks.", "rain falls on a roof while thunder rolls far away"]
KINDS = {
    "frozen": None,
    "from scratch, by a loss of its own": {
        "training": "scratch",
        "audio_weights": None,
        "audio_encoder": "compact_resnet",
        "epochs": 0,
        "loss": {"name": "gentle", "same_clip": "mask"},
    },
    "fine-tuned over states": {"training": "finetuned", "audio_encoder": "mn04", "audio_layers": 3, "max_seconds": 1.0},
    "text-aware": {"training": "finetuned", "text_aware": {"projection_dim": 16}, "text_layers": None},
}


def call(*words, status=0):
    outcome = CliRunner().invoke(app.app, [str(word) for word in words])
    assert outcome.exit_code == status, outcome.output
    return " ".join(outcome.output.split())


def packed(run, corpus, target):
    _, start = beginning(run, corpus)
    pack.pack(run, start, target, corpus.source)
    return target


@pytest.fixture(scope="module")
def corpus():
    return corpus_of(TINY)


@pytest.fixture(scope="module")
def sounds(corpus):
    return [corpus.read(clip)[0] for clip in corpus.split("test").clips["clip"][:3]]


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    return fit(RunConfig(**SETTINGS), corpus, runs=tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def made(run, corpus, tmp_path_factory):
    return packed(run, corpus, tmp_path_factory.mktemp("packs") / "one")


@pytest.fixture
def own(made, tmp_path):
    return shutil.copytree(made, tmp_path / "one")


def test_evaluation_knows_a_pack_by_its_file():
    assert naming.PACK == pack.PACK


@pytest.mark.parametrize("kind", KINDS)
def test_it_embeds_bit_for_bit_as_its_run_did_where_nothing_else_is_left(
    run, corpus, sounds, tmp_path, monkeypatch, kind
):
    home = tmp_path / "home"
    if changes := KINDS[kind]:
        changes = changes | {"text_encoder": str(made_models.bert(home / "bert"))}
        if "audio_layers" in changes:
            small = lambda augment=None, dropout=None: MobileNet(0.1, augment)  # noqa: E731
            monkeypatch.setitem(encoders.AUDIO_ENCODERS, "mn04", small)
            torch.manual_seed(0)
            torch.save({"model": MobileNet(0.1).state_dict()}, home / "own.pt")
            changes["audio_weights"] = str(home / "own.pt")
        if "loss" in changes:
            (home / "own.py").write_text(LOSS)
            extend(home / "own.py")
        run = fit(RunConfig(**SETTINGS | changes), corpus, runs=home / "runs", device="cpu")
    before = Embedder(run, corpus, device="cpu")
    heard, read = before.sounds(sounds), before.sentences(SENTENCES)
    moved = packed(run, corpus, home / "pack").rename(tmp_path / "elsewhere")
    shutil.rmtree(home)
    register.forget(home / "own.py")
    monkeypatch.setenv("ATR_HOME", str(tmp_path / "nothing"))
    monkeypatch.setenv("ATR_RESULTS", str(tmp_path / "nothing"))
    monkeypatch.setattr(text, "folder", None)
    monkeypatch.setattr(identity, "weights", None)
    after = Embedder.packed(moved, device="cpu")
    again = after.sounds(sounds)
    if after.text_aware:
        assert torch.equal(again.mask, heard.mask)
    same = (again.values, heard.values) if after.text_aware else (again, heard)
    assert torch.equal(*same) and torch.equal(after.sentences(SENTENCES), read)
    assert torch.equal(after.similarity(read, heard), before.similarity(read, heard))
    assert (after.name, after.fingerprint) == (before.name, before.fingerprint)
    assert not [file for file in moved.rglob("*") if file.suffix in (".pt", ".bin", ".pkl")]


def test_the_commands_take_it_by_its_folder(run, corpus, sounds, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "default_folder", lambda: tmp_path / "none")
    monkeypatch.chdir(tmp_path)
    assert f"atr-{run.address}" in call("pack", run.path, "--quiet")
    shutil.move(f"atr-{run.address}", "moved")
    (tmp_path / "sounds").mkdir()
    for number, sound in enumerate(sounds):
        soundfile.write(tmp_path / "sounds" / f"{number}.wav", sound, 16_000)
    (tmp_path / "sounds" / "captions.csv").write_text("file_name,caption\n0.wav,a dog\n1.wav,rain\n2.wav,a bell\n")
    told = [
        call("evaluate", model, "--on", "folder", "--root", "sounds", "--quiet")
        for model in (run.path, "moved", "hf:moved")
    ]
    assert told[0] == told[1] == told[2] and "3 clips, 3 queries" in told[0] and run.address in told[0]
    assert "a pack already" in call("pack", "moved", status=1)
    call("index", "sounds", "--run", "moved", "--quiet")
    found = json.loads(CliRunner().invoke(app.app, ["search", "rain falls", "sounds", "--json"]).stdout)
    embedder = Embedder(run, corpus, device="cpu")
    files = [tmp_path / "sounds" / f"{number}.wav" for number in range(3)]
    scores = embedder.similarity(embedder.sentences(["rain falls"]), embedder.sounds(files))[0]
    assert Path(found[0]["path"]) == files[int(scores.argmax())]
    assert found[0]["score"] == pytest.approx(float(scores.max()), abs=1e-3)
    assert Index("sounds", embedder).update(quiet=True).unchanged == 3  # one index for both


def test_it_comes_from_the_hub_by_its_name(made, tmp_path, monkeypatch):
    """From the Hub's cache, laid out as huggingface_hub does."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name, folder in (("somebody/a-pack", made), ("somebody/a-clap", made_models.clap(tmp_path / "clap"))):
        place, commit = tmp_path / f"models--{name.replace('/', '--')}", "0" * 40
        shutil.copytree(folder, place / "snapshots" / commit)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(commit)
    assert pack.locate("somebody/a-clap") is None and pack.locate("somebody/nothing") is None
    assert Embedder.packed("somebody/a-pack", device="cpu").name == Embedder.packed(made, device="cpu").name
    with pytest.raises(FileNotFoundError, match="somebody/a-clap: no pack; give a folder with pack.json"):
        Embedder.packed("somebody/a-clap")


class TestDamage:
    @pytest.mark.parametrize("name", ["config.json", "checkpoint.safetensors", "audio.safetensors", "text/vocab.txt"])
    def test_a_file_that_has_changed_or_is_missing_is_named(self, own, name):
        content = bytearray((own / name).read_bytes())
        content[-2] ^= 1
        (own / name).write_bytes(content)
        with pytest.raises(
            ValueError, match=f"{re.escape(name)}: damaged .*; copy or fetch it again, or pack it again"
        ):
            Embedder.packed(own)
        (own / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"{re.escape(name)}: missing; .*pack it again"):
            Embedder.packed(own)

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "1"}', '{"format": 1, "name": 2}'])
    def test_so_is_what_lists_them(self, own, content):
        (own / "pack.json").write_text(content)
        with pytest.raises(ValueError, match=r"pack\.json: damaged; copy or fetch"):
            Embedder.packed(own)

    def test_newer_versions_are_refused_and_older_ones_told(self, own):
        about = json.loads((own / "pack.json").read_text())
        atomic.write_json(own / "pack.json", {"format": 2})
        with pytest.raises(ValueError, match=r"pack\.json: of format 2, newer than 1, .*; update atr"):
            Embedder.packed(own)

        def versioned(version, **fields):
            kept = json.loads((own / "config.json").read_text())
            kept = {"result_version": version, "config": kept["config"] | fields}
            atomic.write_json(own / "config.json", kept)
            about["files"]["config.json"] = hashes.file_sha256(own / "config.json")
            atomic.write_json(own / "pack.json", about)

        versioned(RESULT_VERSION + 1)
        with pytest.raises(ValueError, match=r"config\.json: by a newer version of atr.*; update atr"):
            Embedder.packed(own)
        versioned(RESULT_VERSION - 1)
        with pytest.warns(UserWarning, match="by an older version of atr"):
            pack.open_pack(own)
        versioned(RESULT_VERSION, hue=1)
        with pytest.raises(ValueError, match=r"config\.json: unknown field hue; .*; update atr"):
            Embedder.packed(own)

    def test_another_code_of_its_encoder_is_refused(self, own, monkeypatch):
        monkeypatch.setattr(identity, "fingerprints", lambda config: {"encoder compact": "0"})
        with pytest.raises(ValueError, match="packed with another code of encoder compact than is here"):
            pack.open_pack(own)


class TestTarget:
    def test_a_pack_of_the_run_is_replaced_but_for_its_card(self, run, corpus, own):
        (own / "README.md").write_text("mine")
        (own / "checkpoint.safetensors").unlink()
        packed(run, corpus, own)
        assert (own / "README.md").read_text() == "mine" and Embedder.packed(own).name == run.address

    def test_nothing_else_is(self, run, corpus, own):
        (own / ".git").mkdir()
        with pytest.raises(FileExistsError, match=r"\.git: no part of a pack, and would be lost; move it elsewhere"):
            packed(run, corpus, own)
        (own / ".git").rmdir()
        about = json.loads((own / "pack.json").read_text())
        for change in (lambda: atomic.write_json(own / "pack.json", about | {"name": "0" * 16}), lambda: None):
            change()
            with pytest.raises(FileExistsError, match=f"there already, and no pack of run {run.address}"):
                packed(run, corpus, own)
            (own / "pack.json").unlink(missing_ok=True)
        assert "no pack of run" in call("pack", run.path, "--out", own, status=1)

    def test_a_pickle_is_not_packed(self, run, corpus, tmp_path):
        _, start = beginning(run, corpus)
        (tmp_path / text.PICKLED).touch()
        with pytest.raises(ValueError, match=f"{text.PICKLED}: a pickle, which no pack holds; save the model there as"):
            pack.pack(run, replace(start, text_folder=tmp_path), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_what_is_no_finished_run_is_not_packed(self, run, tmp_path):
        (tmp_path / "0123").mkdir()
        shutil.copy(run.path / "config.json", tmp_path / "0123")
        assert "not finished; atr.fit" in call("pack", tmp_path / "0123", "--out", tmp_path / "out", status=1)
        broken = shutil.copytree(run.path, tmp_path / run.address)
        (broken / "checkpoint.safetensors").write_bytes(b"x")
        assert "checkpoint.safetensors has 1 bytes" in call("pack", broken, "--out", tmp_path / "out", status=1)
        clap = RunConfig(training="external", audio_encoder="clap", epochs=0, text_encoder="laion/clap")
        external = made_run(tmp_path, "4567", clap, [1, 2], [1, 2])
        with pytest.raises(ValueError, match="CLAP as it is published; share that by its name, laion/clap"):
            pack.pack(external, None, tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestCard:
    def test_its_head_is_yaml_and_its_lines_load_the_model(self, run, made, sounds, tmp_path, monkeypatch, capsys):
        card = (made / "README.md").read_text()
        _, head, body = card.split("---\n", 2)
        fields = yaml.safe_load(head)
        assert fields["library_name"] == "atr" and "audio" in fields["tags"] and "license" not in fields
        for words in (
            "12 train, 4 validation, 4 test clips",
            "synthesised scenes",
            "; MIT",
            "all-MiniLM-L6-v2. Apache 2.0",
        ):
            assert words in body
        assert "pre-trained on the sound events of the corpus" in body
        monkeypatch.chdir(tmp_path)
        soundfile.write("sound.wav", sounds[0], 16_000)
        (code,) = re.findall(r"```python\n(.*?)```", body, re.S)
        exec(code.replace(f"atr-{run.address}", str(made)), space := {})
        assert space["embedder"].name == run.address and "tensor([[" in capsys.readouterr().out

    def test_its_numbers_have_intervals_over_clips(self, tmp_path):
        t2a, a2t = np.repeat([1, 1, 1, 20], 2), [1, 1, 1, 20]
        body = pack.card(made_run(tmp_path, "89ab", RunConfig(), t2a, a2t))
        half = 3.182446 * 50 / 2  # Student's t of three degrees of freedom; 100, 100, 100 and 0 deviate by 50
        cell = f"75.0 ({75 - half:.1f} to {75 + half:.1f})"
        for title in ("text to audio", "audio to text"):
            assert f"| {title} | {' | '.join([cell] * 4)} |" in body

    def test_it_states_the_licences_that_are_known_and_names_no_folders(self, tmp_path):
        changes = {
            "corpus": {"name": "clotho", "synthetic": "mine"},
            "audio_encoder": "cnn14",
            "text_encoder": "/a/bert",
        }
        body = pack.card(made_run(tmp_path, "cdef", RunConfig(**changes), [1, 2], [1, 2]))
        for words in (
            "Clotho v2.1: 5,929 Freesound clips of 15 to 30 s, five captions each. audio: each file's Freesound",
            "`mine`: its licence is not known here",
            "PANNs CNN14. CC BY 4.0. https://zenodo.org/records/3987831",
            "Text encoder: bert: its licence is not known here",
        ):
            assert words in body
        assert "/a/bert" not in body
        started = RunConfig(start={"corpus": "wavcaps"}, text_contrast={"captions": "/c/told"})
        found = pack._origins(started, "mine; MIT")
        assert "WavCaps: 403,050 clips" in found[1] and found[2] == "Corpus: `told`: its licence is not known here"
        found = pack._origins(RunConfig(audio_weights="/b/own.pt"), "mine; MIT")
        assert found[:2] == [
            "Corpus: mine; MIT",
            "Audio encoder: weights of a file, own.pt: its licence is not known here",
        ]


def test_a_run_that_is_packed_stays_as_it_is(run, made):
    assert Run(run.path).damage() == "" and run.finished and made.parent != run.path.parent
