"""Shared by all tests: caches and results in a folder of the session, and a corpus small enough to train on."""

import os
import shutil
from pathlib import Path

VISIBLE_GPUS = os.environ.get("CUDA_VISIBLE_DEVICES")
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the suite says the same everywhere; test_cuda.py has the GPU
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # the workers share the cores
    share = str(max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))
    os.environ |= {"OMP_NUM_THREADS": share, "NUMBA_NUM_THREADS": share}
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # a thread that waits leaves its core to the others' tests
os.environ["HF_HUB_OFFLINE"] = "1"  # the hub's client reads it when it is imported

import pytest  # noqa: E402

from atr import register  # noqa: E402
from atr.cli import console as speech  # noqa: E402
from atr.cli.console import console  # noqa: E402
from atr.corpora import load_corpus  # noqa: E402
from atr.encoders import text  # noqa: E402

speech.PATIENCE = 1e6  # what a command says does not depend on how busy this machine is


@pytest.fixture(scope="session", autouse=True)
def homes(tmp_path_factory):
    """A home for downloads and caches and one for results, both empty, so that no test touches real ones."""
    folder = tmp_path_factory.mktemp("atr")
    changes = {
        "ATR_HOME": str(folder / "data"),
        "ATR_RESULTS": str(folder / "results"),
        "ATR_PRETRAINING_EPOCHS": "2",
    }
    before = {name: os.environ.get(name) for name in [*changes, "ATR_CLIPS", "ATR_PEOPLE", "ATR_WITHOUT"]}
    os.environ.update(changes)
    for name in ("ATR_CLIPS", "ATR_PEOPLE", "ATR_WITHOUT"):
        os.environ.pop(name, None)
    yield folder
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(autouse=True, scope="module")
def extensions_of_a_file():
    """What a test file registers, its worker processes are sent, too: the next file's have to do without."""
    yield from _extensions()


@pytest.fixture(autouse=True)
def extensions(extensions_of_a_file):
    """The same of one test."""
    yield from _extensions()


def _extensions():
    before = set(register._files)
    yield
    for path in set(register._files) - before:
        register.forget(path)


@pytest.fixture(scope="session")
def corpus():
    """Soundscapes of 4 s: 48 clips to train on, 12 to validate on, 16 to test on."""
    return load_corpus("soundscapes", train=48, validation=12, test=16, duration=4.0)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """Folder of a BERT of four layers with random weights, saved as transformers saves one."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_bert")
    vocabulary = shutil.copy(text.folder("minilm") / "vocab.txt", folder)
    words = len(Path(vocabulary).read_text(encoding="utf-8").splitlines())
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(BertConfig(vocab_size=words, **sizes)).save_pretrained(folder)
    BertTokenizerFast(str(vocabulary)).save_pretrained(folder)
    return folder


@pytest.fixture
def terminal(monkeypatch):
    """`terminal(columns)`: from now on commands print for a window so wide, whatever the environment says."""

    def window(columns):
        monkeypatch.setattr(console, "_width", columns)
        monkeypatch.setattr(console, "_height", 50)  # Rich measures unless it has both

    return window
