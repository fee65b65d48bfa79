"""Shared by all tests: caches and results in a folder of the session, and a corpus small enough to train on."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # the hub's client reads it when it is imported

import pytest  # noqa: E402

from atr.corpora import load_corpus  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def homes(tmp_path_factory):
    """A home for downloads and caches and one for results, both empty, so that no test touches real ones."""
    folder = tmp_path_factory.mktemp("atr")
    changes = {
        "ATR_HOME": str(folder / "data"),
        "ATR_RESULTS": str(folder / "results"),
        "ATR_PRETRAINING_EPOCHS": "2",
    }
    before = {name: os.environ.get(name) for name in [*changes, "ATR_CLIPS"]}
    os.environ.update(changes)
    os.environ.pop("ATR_CLIPS", None)
    yield folder
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def corpus():
    """Soundscapes of 4 s: 48 clips to train on, 12 to validate on, 16 to test on."""
    return load_corpus("soundscapes", train=48, validation=12, test=16, duration=4.0)
