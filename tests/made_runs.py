"""Finished runs written by hand, so that tables and figures have numbers that are known beforehand."""

import json

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from atr import RunConfig, metrics
from atr.config import RESULT_VERSION
from atr.corpora.corpus import Corpus, event_table
from atr.metrics import Ranks
from atr.system.environment import PACKAGES
from atr.training.records import Run

ENVIRONMENT = {"device": "cpu", "platform": "Linux x86_64", "seconds": 1800.0, "commit": "0123456789ab", "weights": {}}


def made_run(folder, name, config, t2a, a2t, validation_r10=50.0, epochs=3, relevance=None):
    """A finished run whose test ranks are t2a (captions,) and a2t (clips,): as many captions of each clip, in order."""
    path = folder / name
    path.mkdir(parents=True)
    t2a, a2t = np.asarray(t2a, dtype=np.int64), np.asarray(a2t, dtype=np.int64)
    if relevance is None:
        relevance = np.repeat(np.arange(len(a2t)), len(t2a) // len(a2t))
    ranks = Ranks(t2a[:, None], a2t[:, None])
    (path / "config.json").write_text(json.dumps({"result_version": RESULT_VERSION, "config": config.to_dict()}))
    (path / "environment.json").write_text(json.dumps({**ENVIRONMENT, "versions": dict.fromkeys(PACKAGES, "1.0")}))
    scores = metrics.retrieval_metrics(ranks)
    validation = {**scores, "t2a_r10": validation_r10}
    (path / "metrics.json").write_text(json.dumps({"test": scores, "best_epoch": epochs, "validation": validation}))
    history = {"epoch": range(1, epochs + 1), "loss": np.linspace(2, 1, epochs), "t2a_r10": np.linspace(10, 50, epochs)}
    history["learning_rate"] = [1e-3] * epochs
    pd.DataFrame(history).to_csv(path / "history.csv", index=False)
    clips = pd.DataFrame({"clip": [f"clip{number}" for number in range(len(a2t))], "split": "test"})
    clips.to_csv(path / "clips.csv", index=False)
    save_file({"weight": torch.zeros(1)}, path / "checkpoint.safetensors")
    tensors = {"t2a": ranks.t2a, "a2t": ranks.a2t, "relevance": np.asarray(relevance)}
    tensors |= {"text": np.ones((len(t2a), 2), np.float32), "audio": np.ones((len(a2t), 2), np.float32)}
    save_file(
        {key: torch.from_numpy(value).contiguous() for key, value in tensors.items()}, path / "embeddings.safetensors"
    )
    return Run(path)


def ranks_with(share, queries, seed=0):
    """(queries,) ranks of which `share` are 1 and the rest 50, in an order drawn from `seed`."""
    ranks = np.full(queries, 50)
    ranks[: round(share * queries)] = 1
    return np.random.default_rng(seed).permutation(ranks)


def three_clips():
    """A corpus with a clip to train on and three to test on, two captions each, of which one is shared."""
    clips = ["seen", "rain.wav", "<dog>.wav", "bell.wav"]
    captions = ["a car, somebody's car", "rain falls", "it rains", "a dog barks & barks", "barking"]
    captions += ["a bell rings", "it rains"]
    table = pd.DataFrame({"clip": clips, "split": ["train", *["test"] * 3], "duration": 0.5})
    own = ["seen", *np.repeat(clips[1:], 2)]
    return Corpus(
        "made",
        table.assign(digest="0", description=""),
        pd.DataFrame({"clip": own, "caption": captions}),
        event_table(),
        beep,
    )


def beep(clip):
    """Half a second of a tone at 8 kHz, of a frequency for each clip."""
    return 0.5 * np.sin(np.arange(4000) * (0.2 + 0.1 * len(clip))).astype(np.float32), 8000


def run_on_three_clips(folder, name, corpus, config=None, turned=False):
    """A finished run on the test clips of `three_clips`; turned: clips and captions the other way round."""
    audio = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8], [0.0, 1.0]])
    text = text.flip(1) if turned else text
    relevance = np.repeat(np.arange(3), 2)
    ranks = metrics.ranks((text, audio), relevance)
    run = made_run(folder, name, config or RunConfig(), ranks.t2a[:, 0], ranks.a2t[:, 0], relevance=relevance)
    corpus.clips[["clip", "split"]].to_csv(run.path / "clips.csv", index=False)
    change_embeddings(run, audio=audio, text=text, a2t=torch.from_numpy(ranks.a2t))
    return run


def change_embeddings(run, **changes):
    """None takes one away."""
    known = load_file(run.path / "embeddings.safetensors") | changes
    save_file({name: value for name, value in known.items() if value is not None}, run.path / "embeddings.safetensors")
