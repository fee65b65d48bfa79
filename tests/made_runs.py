"""Finished runs written by hand, so that tables and figures have numbers that are known beforehand."""

import json

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from atr import metrics, records
from atr.metrics import Ranks
from atr.records import Run

ENVIRONMENT = {"device": "cpu", "platform": "Linux x86_64", "seconds": 1800.0, "commit": "0123456789ab"}


def made_run(folder, name, config, t2a, a2t, validation_r10=50.0, epochs=3, relevance=None):
    """A finished run whose test ranks are t2a (captions,) and a2t (clips,): as many captions of each clip, in order."""
    path = folder / name
    path.mkdir(parents=True)
    t2a, a2t = np.asarray(t2a, dtype=np.int64), np.asarray(a2t, dtype=np.int64)
    if relevance is None:
        relevance = np.repeat(np.arange(len(a2t)), len(t2a) // len(a2t))
    ranks = Ranks(t2a[:, None], a2t[:, None])
    (path / "config.json").write_text(
        json.dumps({"result_version": records.RESULT_VERSION, "config": config.to_dict()})
    )
    (path / "environment.json").write_text(
        json.dumps({**ENVIRONMENT, "versions": dict.fromkeys(records.RECORDED, "1.0")})
    )
    scores = metrics.retrieval_metrics(ranks)
    validation = {**scores, "t2a_r10": validation_r10}
    (path / "metrics.json").write_text(json.dumps({"test": scores, "best_epoch": epochs, "validation": validation}))
    history = {"epoch": range(1, epochs + 1), "loss": np.linspace(2, 1, epochs), "t2a_r10": np.linspace(10, 50, epochs)}
    history["learning_rate"] = [1e-3] * epochs
    pd.DataFrame(history).to_csv(path / "history.csv", index=False)
    tensors = {"t2a": ranks.t2a, "a2t": ranks.a2t, "relevance": np.asarray(relevance)}
    save_file(
        {key: torch.from_numpy(value).contiguous() for key, value in tensors.items()}, path / "embeddings.safetensors"
    )
    return Run(path)


def ranks_with(share, queries, seed=0):
    """(queries,) ranks of which `share` are 1 and the rest 50, in an order drawn from `seed`."""
    ranks = np.full(queries, 50)
    ranks[: round(share * queries)] = 1
    return np.random.default_rng(seed).permutation(ranks)
