"""The `paper` grids end to end, in miniature: true layouts, official checkpoint files, two steps a run."""

import shutil
import subprocess
import sys

import dataset_layouts
import made_models
import miniature
import pandas as pd
import pytest
import torch
from golden_weights import fill, keys

from atr import fit, get_profile


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """What `atr data` and the Hub would have brought: both data sets, PANNs files, a BERT, a RoBERTa."""
    folder = tmp_path_factory.mktemp("home")
    dataset_layouts.audiocaps(folder / "audiocaps", clips={"train": 8, "validation": 2, "test": 2}, seconds=0.25)
    dataset_layouts.clotho(folder / "clotho", clips={"train": 2, "validation": 2, "test": 2}, seconds=0.25)
    checkpoints = folder / "checkpoints"
    (checkpoints / "miniature").mkdir(parents=True)
    miniature.checkpoints(checkpoints / "miniature")
    torch.save({"model": fill(keys("panns_resnet38"))}, checkpoints / "miniature" / "resnet38.pth")
    dataset_layouts.evaluation(folder / "dcase2022", clips=12, seconds=0.25)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    made_models.bert(checkpoints / "bert-base-uncased", **sizes)
    made_models.roberta(checkpoints / "roberta-large", **sizes)
    return folder


def test_every_paper_grid_runs_from_published_files_to_tables(home, tmp_path):
    numbers = [f"{number:02}" for number in range(10)]  # the others are about captions
    miniature.run_notebooks("miniature", numbers, tmp_path, ATR_HOME=str(home))

    setting, results = miniature.MINIATURE, tmp_path / "miniature"
    assert setting.recipes == get_profile("paper").recipes and setting.corpora == get_profile("paper").corpora
    compared = pd.read_csv(results / "tables" / "01_differences.csv")
    assert len(compared) == 2 * 2 * 4 * 6  # each published cell of table 1 beside one of ours
    assert (
        compared["difference"]
        - (compared["ours"].astype(float) - compared["published"].str.split(" ± ").str[0].astype(float))
    ).abs().max() < 0.06
    assert set(pd.read_csv(results / "tables" / "01_recipes.csv")["recipe"]) == {"code", "text"}
    (clips,) = {path.read_text() for path in (results / "runs").glob("*/clips.csv") if "_bC-" in path.read_text()}
    assert clips.count("train") == 8  # each AudioCaps run knows which clips it had
    published = pd.read_csv(results / "tables" / "06_published.csv")["system"]
    assert set(published) == {"DCASE baseline", "CNN14", "ResNet38", "CNN14, transfer", "CNN14, no SpecAugment"}
    for number, column in (("07", "loss"), ("08", "audio_share"), ("09", "pooling")):
        apart = pd.read_csv(results / "tables" / f"{number}_differences.csv")
        assert set(apart["recipe"]) == {"code", "text"} and apart[column].nunique() == 2
        assert len(apart) == 2 * 2 * 4  # each published cell in both recipes
    for number in range(1, 5):
        assert len(pd.read_csv(results / "submissions" / f"submission_{number}.csv")) == 3


@pytest.mark.parametrize("training", ["frozen", "finetuned"])
def test_a_cell_of_the_paper_profile_with_its_own_network(home, tmp_path, monkeypatch, training):
    monkeypatch.setenv("ATR_HOME", str(home))
    config = get_profile("paper").config("Clotho", training, "nt_xent", 0)
    small = config.replace(audio_weights="miniature", epochs=1, batch_size=4)
    run = fit(small, runs=tmp_path)
    assert config.audio_encoder == "resnet38" and run.config.training == (
        "finetuned" if training == "finetuned" else "frozen_released"
    )
    assert run.history["loss"].between(0, 10).all() and run.embeddings["audio"].shape == (2, 1024)


LARGE = """
import sys
from pathlib import Path
import numpy as np
import torch
from atr.encoders import text

encoder = text.TextEncoder(Path(sys.argv[1]), "first", dropout=0.2).train()
optimizer = torch.optim.AdamW(encoder.parameters(), 2e-5, fused=True)
batch = text.ids(["a dog barks", "rain falls on a roof, then birds sing"], encoder).batch(np.arange(2))
before = encoder.eval()(batch).detach()
loss = encoder.train()(batch).square().mean()
loss.backward()
optimizer.step()
after = encoder.eval()(batch)
assert encoder.dim == 1024 and before.shape == (2, 1024) and len(encoder.model.encoder.layer) == 24
assert after.isfinite().all() and not torch.equal(before, after)
"""


def test_roberta_large_takes_a_step(tmp_path):
    sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 512}
    made_models.roberta(tmp_path, **sizes)
    command = [sys.executable, "-c", LARGE, str(tmp_path)]  # a process of its own, which gives its memory back
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path)
