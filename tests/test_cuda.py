"""A run on a GPU, where there is one: in a process of its own, as the rest of the suite hides it."""

import json
import os
import subprocess
import sys

import made_models
import pytest
from conftest import VISIBLE_GPUS

from atr.encoders import text

SCRIPT = """
import json, sys
import torch
from pathlib import Path
if not torch.cuda.is_available():
    sys.exit(77)
import atr
corpus = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
common = dict(corpus=corpus, epochs=2, batch_size=16, embedding_dim=16, training="finetuned", text_encoder=sys.argv[2])
said = {}
published = {"audio_encoder": "cnn6", "audio_weights": None, "text_layers": None, "padding": "released"}
thesis = {"precision": "bf16", "head": "linear", "text_aware": {"projection_dim": 32, "dropout": 0.1}}
thesis |= {"recipe": "text", "loss": {"name": "sigmoid"}, "learning_rates": {"heads": 1e-3, "loss": 0.1}}
kinds = {"first": {}, "again": {}, "bf16": {"precision": "bf16"}, "waveforms": published, "text-aware": thesis}
for name, fields in kinds.items():
    run = atr.fit(atr.RunConfig(**common, **fields), device="cuda", runs=Path(sys.argv[1]) / name)
    said[name] = [run.metrics, run.history["loss"].tolist(), run.environment["device"]]
print(json.dumps(said))
"""


def test_a_gpu_trains_the_same_twice_and_in_bf16(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    if VISIBLE_GPUS is not None:
        environment["CUDA_VISIBLE_DEVICES"] = VISIBLE_GPUS
    # of MiniLM's sizes, but not its weights, which a machine with a GPU may not have
    words = made_models.bert(tmp_path / "bert", spelt=True, **text.MINILM_SIZES)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode == 77:
        pytest.skip("no GPU")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["first"] == said["again"] and said["first"][2] != "cpu"
    assert said["bf16"][1] != said["first"][1]
    assert all(0 < loss < 10 for name in ("bf16", "waveforms") for loss in said[name][1])
    assert all(0 < loss < 100 for loss in said["text-aware"][1])
