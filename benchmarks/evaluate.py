"""What `atr evaluate` costs beside the model itself: python benchmarks/evaluate.py. One JSON line.

start_s    `atr evaluate` in a process of its own, to its first number: a small random CLAP, 60 sounds of 10 s
model_pct  of the time in which sounds are embedded, the share within the model: a random CLAP of the size of
           laion/clap-htsat-unfused, `--sounds` files of 10 s at 44.1 kHz
ranks_s    metrics, intervals (2,000 draws) and checks of 5,225 captions and 1,045 clips from embeddings (512 wide)
streamed   ranks of `--captions` captions and `--clips` clips from embeddings `--dim` wide: seconds and peak GiB

Nothing is fetched; models are made in a temporary folder. Run it on an idle machine.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers import AutoTokenizer, ClapConfig, ClapFeatureExtractor, ClapModel

from atr.bench.harness import peak_memory
from atr.corpora import load_corpus
from atr.encoders import text
from atr.evaluation import models, protocols
from atr.evaluation.evaluate import evaluate
from atr.experiments.profiles import get_profile
from atr.metrics import retrieval

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def clap(folder: Path, small: bool) -> Path:
    """A random ClapModel with MiniLM's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(text.folder("minilm"))
    audio = {"depths": [1, 1], "num_attention_heads": [1, 2], "patch_embeds_hidden_size": 8, "hidden_size": 16}
    config = ClapConfig(
        text_config={"vocab_size": len(tokenizer), **(SMALL if small else {})}, audio_config=audio if small else {}
    )
    torch.manual_seed(0)
    ClapModel(config).save_pretrained(folder)
    ClapFeatureExtractor(truncation="rand_trunc").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sounds(folder: Path, number: int) -> Path:
    folder.mkdir()
    rng, lines = np.random.default_rng(0), ["file_name,caption"]
    for row in range(number):
        soundfile.write(folder / f"{row}.wav", 0.1 * rng.standard_normal(441_000), 44_100)
        lines.append(f"{row}.wav,sound number {row}")
    (folder / "captions.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder


def start(folder: Path) -> float:
    """Seconds to the first number."""
    small, heard = clap(folder / "small", True), sounds(folder / "sixty", 60)
    command = [sys.executable, "-m", "atr", "evaluate", f"hf:{small}", "--on", "folder", "--root", heard, "--quiet"]
    began = time.monotonic()
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    return time.monotonic() - began


def share(folder: Path, number: int) -> tuple[float, float]:
    """Percent of the time within the model, and sounds a second."""
    model = models.load(f"hf:{clap(folder / 'large', False)}", get_profile("demo"))
    part = load_corpus("csv", sounds(folder / "many", number), check=False, split="test")
    network, within, began = model.embedder._clap.model, [0.0], [0.0]
    for module in (network.audio_model, network.audio_projection):
        module.register_forward_pre_hook(lambda *_: began.__setitem__(0, time.monotonic()))
        module.register_forward_hook(lambda *_: within.__setitem__(0, within[0] + time.monotonic() - began[0]))
    model.sounds(part, quiet=True)
    within[0], whole = 0.0, time.monotonic()
    model.sounds(part, quiet=True)
    whole = time.monotonic() - whole
    return 100 * within[0] / whole, number / whole


def ranks(folder: Path) -> float:
    rng = np.random.default_rng(0)
    heard = folder / "made"
    heard.mkdir()
    clips = [f"{row}.wav" for row in range(1045)]
    lines = [f"{clip},caption {number} of {clip}" for clip in clips for number in range(5)]
    (heard / "captions.csv").write_text("\n".join(["file_name,caption", *lines]), encoding="utf-8")
    for clip in clips:
        soundfile.write(heard / clip, np.full(8000, 0.1), 8000)
    part = load_corpus("csv", heard, check=False, split="test")
    np.save(heard / "audio.npy", rng.standard_normal((len(clips), 512), dtype=np.float32))
    np.save(heard / "text.npy", rng.standard_normal((len(lines), 512), dtype=np.float32))
    (heard / "clips.txt").write_text("\n".join(part.clips["clip"]), encoding="utf-8")
    (heard / "captions.txt").write_text("\n".join(part.captions["caption"]), encoding="utf-8")
    began = time.monotonic()
    evaluate(models.load(f"embeddings:{heard}", get_profile("demo")), protocols.get("folder"), part).report()
    return time.monotonic() - began


def streamed(clips: int, captions: int, dim: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    audio, words = (torch.randn(rows, dim, generator=generator) for rows in (clips, captions))
    began = time.monotonic()
    found = retrieval.ranks((words, audio), torch.arange(captions) % clips)
    assert found.t2a.shape == (captions, 1)
    return {"s": round(time.monotonic() - began), "peak_gib": round(peak_memory(), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in {"sounds": 96, "clips": 100_000, "captions": 500_000, "dim": 64}.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--streamed", action="store_true", help="the last part alone, for its own peak of memory")
    asked = parser.parse_args()
    size = (asked.clips, asked.captions, asked.dim)
    if asked.streamed:
        return print(json.dumps(streamed(*size)))
    words = ["--streamed", *(f"--{n}={v}" for n, v in zip(("clips", "captions", "dim"), size, strict=True))]
    # First: a process begins with the peak of what starts it.
    done = subprocess.run([sys.executable, __file__, *words], check=True, capture_output=True, text=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        percent, pace = share(folder, asked.sounds)
        row = {"start_s": start(folder), "model_pct": percent, "sounds_per_s": pace, "ranks_s": ranks(folder)}
    print(json.dumps({name: round(value, 2) for name, value in row.items()} | {"streamed": json.loads(done.stdout)}))


if __name__ == "__main__":
    main()
