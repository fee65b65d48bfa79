"""What demo's small audio encoder costs: its runs beside those of `mn04`, which has heard AudioSet, on the same scenes.

    .venv/bin/atr data mn04
    .venv/bin/python benchmarks/encoders.py

NT-Xent, the seeds of `demo`; `mn04` is fine-tuned from block 13 on, at the rates of profile
esc50. The table goes to results/demo_mn04/tables/.
"""

import os

import pandas as pd

from atr import get_profile
from atr.encoders.checkpoints import REGISTRY, fetch
from atr.experiments.grid import run_all
from atr.reports import names, output, tables
from atr.system import places

ENCODERS = {
    "compact (0.13 million parameters, pre-trained on these scenes' events)": {},
    "mn04 (0.98 million, pre-trained on AudioSet)": {"audio_encoder": "mn04", "audio_layers": 3},
}

if __name__ == "__main__":
    os.environ.setdefault("ATR_COMMAND", "python benchmarks/encoders.py")  # what the table says made it
    fetch(REGISTRY["mn04"].encoder)
    demo, heard = get_profile("demo"), get_profile("esc50")
    corpus = next(iter(demo.corpora))
    configs = {
        (encoder, training): [
            demo.config(corpus, training, "nt_xent", seed, **fields, **rates)
            for seed in demo.seeds
            for rates in ([{"learning_rates": heard.rates[training]}] if fields else [{}])
        ]
        for encoder, fields in ENCODERS.items()
        for training in ("frozen", "finetuned")
    }
    outcome = run_all([config for group in configs.values() for config in group], runs=demo.runs)
    outcome.raise_failures()
    everything = tables.run_table(outcome, demo)
    rows = [
        tables.rows_of(everything, group, encoder=encoder, training=training)
        for (encoder, training), group in configs.items()
    ]
    found = tables.comparison(pd.concat(rows), ["encoder", "training"], ["t2a_r1", "t2a_r10", "t2a_map10", "a2t_map10"])
    folder = places.results_home() / "demo_mn04"
    output.save(found, folder, "encoders", "What the small audio encoder costs on demo's scenes.", everything["run"])
    print(names.readable(output.flat(found)).to_string(index=False))
