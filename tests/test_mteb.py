"""MTEB's models here and ours there, over a double of what mteb 2.26.24 has of names and of its encoders' protocol."""

import sys
from enum import Enum
from types import SimpleNamespace

import dataset_layouts
import made_models
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from atr import Embedder
from atr.cli import app
from atr.evaluation.mteb import Encoder, Mteb

PromptType = Enum("PromptType", {"query": "query", "document": "document"})


class Levels:
    """A model as MTEB's are: it looks at `features`, sets the loader's `collate_fn`, and takes keywords alone."""

    def __init__(self):
        self.asked = []
        self.mteb_model_meta = SimpleNamespace(name="who/levels", revision="1", modalities=["audio", "text"])

    def encode(self, inputs, *, task_metadata, hf_split, hf_subset, prompt_type=None, **_):
        assert (task_metadata, hf_split, hf_subset) == ("ClothoT2ARetrieval.v2", "test", "default")
        self.asked.append((prompt_type, len(inputs.dataset)))
        if "text" in inputs.dataset.features:
            return np.array([[len(text), 1] for batch in inputs for text in batch["text"]])
        inputs.collate_fn = lambda rows: {"audio": [row["audio"] for row in rows]}
        sounds = [sound for batch in inputs for sound in batch["audio"]]
        return np.array([[len(one["array"]) / one["sampling_rate"], np.abs(one["array"]).mean()] for one in sounds])


@pytest.fixture
def mteb(monkeypatch):
    model = Levels()
    double = SimpleNamespace(
        __version__="2.26.24",
        get_model_meta=lambda name: SimpleNamespace(
            name=name, revision="1", modalities=["text"] if "words" in name else ["audio", "text"]
        ),
        get_model=lambda name, device=None: model,
        get_task=lambda name: SimpleNamespace(metadata=name),
        models=SimpleNamespace(ModelMeta=SimpleNamespace(create_empty=lambda stated: SimpleNamespace(**stated))),
        types=SimpleNamespace(PromptType=PromptType),
    )
    monkeypatch.setitem(sys.modules, "mteb", double)
    return model


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clap")
    made_models.clap(folder)
    return Embedder.clap(folder, device="cpu")


def test_a_model_of_ours_embeds_what_mteb_gives_it(mteb, embedder):
    encoder, texts = Encoder(embedder), ["rain falls", "A dog barks!", "waves"]
    rows = [{"text": text} for text in texts]
    loader = DataLoader(rows, 2, collate_fn=lambda batch: {"text": [row["text"] for row in batch]})
    found = encoder.encode(loader, task_metadata=None, hf_split="test", hf_subset="default", prompt_type=None)
    torch.testing.assert_close(torch.from_numpy(found), embedder.sentences(texts), atol=1e-6, rtol=0)
    sounds = [0.1 * np.random.default_rng(n).standard_normal(8000) for n in range(3)]
    batches = [{"audio": [{"array": one, "sampling_rate": 8000}], "id": ["x"]} for one in sounds]
    audio = encoder.encode(batches)
    expected = embedder.sounds([one.astype(np.float32) for one in sounds])
    torch.testing.assert_close(torch.from_numpy(audio), expected, atol=1e-6, rtol=0)
    assert encoder.similarity(found, audio).shape == (3, 3)
    torch.testing.assert_close(encoder.similarity_pairwise(found, audio), encoder.similarity(found, audio).diagonal())
    assert encoder.mteb_model_meta.name == f"atr/{embedder.name}"
    assert encoder.mteb_model_meta.revision == embedder.fingerprint


def test_a_model_of_mteb_is_evaluated(mteb, tmp_path):
    for number in range(20):
        dataset_layouts.sound(tmp_path / f"{number}.wav", number, 0.05 * (number + 1), rate=8000)
    dataset_layouts.table(
        tmp_path / "captions.csv", ["file_name", "caption"], [[f"{n}.wav", "x" * (n + 1)] for n in range(20)]
    )
    words = ["evaluate", "mteb:who/levels", "--on", "folder", "--root", str(tmp_path), "--quiet"]
    outcome = CliRunner().invoke(app.app, words)
    assert outcome.exit_code == 0 and "20 clips, 20 queries" in " ".join(outcome.output.split()), outcome.output
    assert (PromptType.query, 20) in mteb.asked
    assert [number for role, number in mteb.asked if role is PromptType.document][0] == 20


def test_its_fingerprint_is_of_revision_and_version(mteb, monkeypatch):
    before = Mteb("who/levels").fingerprint
    assert Mteb("who/levels").fingerprint == before
    sys.modules["mteb"].__version__ = "3"
    assert Mteb("who/levels").fingerprint != before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mteb:who/words"], "mteb:who/words: embeds text; name a model of audio and text"),
        (["mteb:who/levels", "--windows", "mean"], "windows 'mean': mteb models hear longer sounds in their own way"),
    ],
)
def test_what_cannot_be_evaluated_is_said(mteb, tmp_path, words, said):
    dataset_layouts.sound(tmp_path / "a.wav", 0, 0.1)
    dataset_layouts.table(tmp_path / "captions.csv", ["file_name", "caption"], [["a.wav", "rain"]])
    outcome = CliRunner().invoke(app.app, ["evaluate", *words, "--on", "folder", "--root", str(tmp_path), "--quiet"])
    assert outcome.exit_code == 1 and said in " ".join(outcome.output.split())


def test_without_mteb_the_command_that_installs_it_is_named(monkeypatch, embedder):
    monkeypatch.setitem(sys.modules, "mteb", None)
    for make in (lambda: Mteb("who/levels"), lambda: Encoder(embedder)):
        with pytest.raises(ValueError, match=r"it does not come with atr: pip install 'mteb\[audio\]'"):
            make()
