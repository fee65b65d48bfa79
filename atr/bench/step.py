"""A step of fine-tuning as Mei et al. 2022 have it: ours, with each switch, the released one, and where time goes."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from atr.bench import needs
from atr.bench.harness import Case, ReleasedCode, once, timed
from atr.bench.released import NETWORKS, bert, definitions
from atr.config import RunConfig
from atr.losses import pair
from atr.system.devices import Switches
from atr.system.packed import Batch, InputRows
from atr.training.gradient_cache import BatchEncoder
from atr.training.identity import Inputs

SECONDS = 10.0  # of a clip
# pairs of a batch, seconds of a clip, networks; on a GPU, as the goals are stated, and on a CPU, which takes seconds
SIZES: dict[str, dict[str, Any]] = {
    "smoke": {"batch": 2, "seconds": 1.0, "network": "small"},
    "cpu": {"batch": 4, "seconds": SECONDS, "network": "paper"},
    "cuda": {"batch": 32, "seconds": SECONDS, "network": "paper"},
}
LARGE_BATCH = 128  # that has to fit into 24 GiB
# What is switched on one by one, and how precisely it computes. "plain": as the released code has it.
PLAIN = {"tf32": False, "channels_last": False, "fused": False, "compiled": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "fused optimiser": PLAIN | {"fused": True},
    "channels last": PLAIN | {"channels_last": True},
    "TF32": PLAIN | {"tf32": True},
    "compiled": PLAIN | {"compiled": True},
    "bf16": PLAIN | {"precision": "bf16"},
    "all but bf16": dict.fromkeys(PLAIN, True),
    "all": dict.fromkeys(PLAIN, True) | {"precision": "bf16"},
}
# All on but for compiling, which takes minutes, and each of them off.
UNCOMPILED = VARIANTS["all"] | {"compiled": False}
ONE_OFF: dict[str, dict[str, Any]] = {
    "all on, not compiled": UNCOMPILED,
    "bf16 off": UNCOMPILED | {"precision": "32"},
    "TF32 off": UNCOMPILED | {"tf32": False},
    "bf16 and TF32 off": UNCOMPILED | {"precision": "32", "tf32": False},
    "channels last off": UNCOMPILED | {"channels_last": False},
    "fused optimiser off": UNCOMPILED | {"fused": False},
    "all on, compiled": VARIANTS["all"],
}
ON_CPU = ("plain", "fused optimiser", "channels last", "bf16")  # TF32 is the GPU's, and compiling waits on a GPU
# Kernels and operators by what they do: the first pattern that a name contains.
KINDS = {
    "convolution": ("conv", "cudnn", "implicit", "winograd", "dgrad", "wgrad", "mkldnn"),
    "matrix products": ("gemm", "addmm", "bmm", "::mm", "matmul", "cutlass", "cublas"),
    "attention": ("attention", "softmax", "flash"),
    "batch and layer norm": ("norm", "bn_"),
    "optimiser": ("adam", "foreach", "multi_tensor", "addcmul", "addcdiv", "lerp", "sqrt"),
    "spectrogram": ("fft", "stft"),
    "copies": ("copy", "memcpy", "memset", "to_copy", "cat"),
}


def cases(scale: str, device: str, released: ReleasedCode) -> list[Case]:
    size = SIZES["smoke" if scale == "smoke" else device] | {"device": device}
    variants = VARIANTS if device == "cuda" else ON_CPU[: 2 if scale == "smoke" else None]
    result = [Case("step", f"atr, {name}", "step.ours", size | {"variant": name}) for name in variants]
    batches = (size["batch"] // 4, size["batch"] // 2, size["batch"]) if scale != "smoke" else (1, 2)
    result += [Case("step", "atr", "step.ours", size | {"batch": batch, "variant": "plain"}) for batch in batches]
    missing = "its networks have one size" if scale == "smoke" else released.missing("mei2022")
    theirs = size | {"folder": str(released.mei2022)}
    result.append(Case("step", "released code", "step.as_released", theirs, missing))
    gpu = "" if device == "cuda" else "needs a GPU"
    large = size | {"batch": LARGE_BATCH, "variant": "all"}
    result.append(Case("step", "atr, large batch", "step.ours", large, gpu))
    return result


class DeviceRows(InputRows):
    """Rows that lie on the device already: those of the batch `data`."""

    @property
    def lengths(self) -> np.ndarray:
        return self.data.lengths.cpu().numpy()

    def batch(self, rows: np.ndarray) -> Batch:
        return self.data.to(lambda tensor: tensor[rows])


def ours(
    batch: int, seconds: float, network: str, variant: str, device: str, chunk: int | None = None, detail: bool = True
) -> dict[str, Any]:
    """Seconds of a step and of the first one, which compiles. With `detail` its FLOPs, those of a large product of the
    same precision a second, and the share of each kind of work in its time.

    chunk: pairs embedded at a time, as `RunConfig` has it.
    """
    fields = dict((VARIANTS | ONE_OFF)[variant])
    precision = fields.pop("precision", "32")
    switches = Switches(**fields)
    name, sizes, dim = NETWORKS[network]
    text: dict[str, Any] = {"text_encoder": "bert-base-uncased", "text_pooling": "first", "text_layers": None}
    config = RunConfig(training="finetuned", embedding_dim=dim, precision=precision, audio_encoder=name, **text)
    torch.manual_seed(0)
    with switches.on():
        model, sound, words = needs.shell(config, sizes)
        model.to(device).train()
        model = switches.apply(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=switches.fused)
        loss_function = pair.build("nt_xent")
        ids = torch.arange(batch, device=device)
        audio, captions = (DeviceRows(it.kind, it) for it in (sound(batch, seconds, device), words(batch, device)))
        inputs = Inputs(audio, captions, np.arange(batch), np.arange(batch))

        def dual(*pairs: Any) -> Any:
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                return model(*pairs)

        embedder = BatchEncoder(dual, model, chunk=chunk)  # type: ignore[arg-type]

        def step() -> None:
            loss = loss_function(*embedder.embeddings(inputs, inputs.clip_of_caption), ids)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
            optimizer.step()

        first = once(step, device)
        row: dict[str, Any] = timed(step, device, repeats=3) | {"clips": batch, "first_seconds": first}
        if detail and not switches.compiled:  # whose kernels are not counted
            row |= {"flops": flops(step), "shares": shares(step, device)}
        if detail:
            row["product_flops_a_second"] = product(device, precision)
    return row


def flops(work: Callable[[], Any]) -> int:
    """Floating-point operations of `work`: of its products, convolutions and attention, two for each multiply-add."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def as_released(batch: int, seconds: float, network: str, device: str, folder: str) -> dict[str, Any]:
    """The model of `models/ASE_model.py` with ResNet38 and BERT, `NTXent` of `tools/loss.py` and the step of
    `trainer/trainer.py`, on weights drawn at random. Needs torchlibrosa.
    """
    from sentence_transformers import util
    from transformers import BertModel, BertTokenizer

    root = Path(folder)
    sys.path.insert(0, folder)
    try:
        from models import AudioEncoder, BERT_Config, TextEncoder
    except ImportError as error:
        raise ValueError(f"{folder}: {error}; pip install torchlibrosa, and give a clone of the code") from error
    TextEncoder.torch = SimpleNamespace(device=lambda _: torch.device(device))  # it asks for a GPU by name
    F = nn.functional
    helpers = definitions(root / "tools" / "utils.py", ("l2norm",), {"torch": torch})
    scope = {"nn": nn, "torch": torch, "MODELS": BERT_Config.MODELS, "W2VEncoder": None} | helpers
    scope |= {"BertEncoder": TextEncoder.BertEncoder} | {
        name: getattr(AudioEncoder, name) for name in ("Cnn10", "Cnn14", "ResNet38")
    }
    code = definitions(root / "models" / "ASE_model.py", ("AudioEnc", "ASE"), scope)
    code |= definitions(root / "tools" / "loss.py", ("NTXent",), {"nn": nn, "torch": torch, "util": util, "F": F})
    with tempfile.TemporaryDirectory() as temporary:
        text_encoder = str(bert(network, Path(temporary)))
        BERT_Config.MODELS[text_encoder] = (BertModel, BertTokenizer, 768)
        training = SimpleNamespace(spec_augmentation=True, dropout=0.2, freeze=False, l2=True)
        config = SimpleNamespace(
            cnn_encoder=SimpleNamespace(model="ResNet38", pretrained=False),
            bert_encoder=SimpleNamespace(type=text_encoder),
            text_encoder="bert",
            joint_embed=NETWORKS[network][2],
            wav=SimpleNamespace(sr=32_000, window_size=1024, hop_length=320, mel_bins=64),
            training=training,
        )
        torch.manual_seed(0)
        model = code["ASE"](config).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    criterion = code["NTXent"]()
    waveforms = 0.3 * torch.randn(batch, round(seconds * 32_000))
    captions = [" ".join(["rain"] * (needs.TOKENS - 2))] * batch
    ids = torch.arange(batch).float()

    def step() -> None:
        audio, text = model(waveforms.to(device), captions)
        loss = criterion(audio, text, ids.to(device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2)
        optimizer.step()
        loss.cpu().item()

    return timed(step, device, repeats=3) | {"clips": batch}


def product(device: str, precision: str, size: int = 8192) -> float:
    """FLOPs a second of a large matrix product: what the device comes to at that precision, by measurement."""
    size = size if device == "cuda" else size // 8
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    one, two = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / timed(lambda: one @ two, device, repeats=10)["fastest"]


def shares(step: Callable[[], None], device: str) -> dict[str, float]:
    """Of the time that a step's kernels (on a CPU: operators) take, the part of each kind of work."""
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=kinds, acc_events=True) as trace:
        step()
        if device == "cuda":
            torch.cuda.synchronize()
    total: dict[str, float] = {}
    for event in trace.key_averages():
        spent = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        kind = next((kind for kind, parts in KINDS.items() if any(p in event.key.lower() for p in parts)), "the rest")
        total[kind] = total.get(kind, 0.0) + spent
    whole = sum(total.values()) or 1.0
    return {kind: round(spent / whole, 4) for kind, spent in sorted(total.items(), key=lambda one: -one[1]) if spent}
