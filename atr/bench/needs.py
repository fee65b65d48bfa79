"""What the runs of a plan need: steps, disk, memory and hours, by a few steps of their networks, timed at hand with
random weights.
"""

import copy
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from atr.bench.harness import warm_seconds
from atr.config import RunConfig
from atr.encoders import inputs, pooling, registry, text
from atr.encoders.audio.vit import SegmentEncoder
from atr.experiments import study
from atr.experiments.planning import Measurement, cost
from atr.experiments.profiles import get_profile
from atr.system import devices, hashes
from atr.system.packed import POOLED, Batch, RaggedArray
from atr.system.units import duration, gigabytes
from atr.training import model
from atr.training.distributed import PRECISIONS

TOKENS = 16  # of a caption, special ones included
ALIKE = ("audio_encoder", "text_encoder", "text_layers", "head", "precision")
# Text encoders that can be planned for before they are downloaded: architecture, and what differs from its defaults.
ARCHITECTURES: dict[str, tuple[str, dict[str, int]]] = {
    "bert-base-uncased": ("bert", {}),
    text.MINILM: ("bert", text.MINILM_SIZES),
    "roberta-base": ("roberta", {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}),
    "roberta-large": (
        "roberta",
        {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
        | {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    ),
}


def summary(plan: pd.DataFrame, device: str, side_by_side: int, cluster: str = "") -> tuple[pd.DataFrame, str]:
    """What the runs of a plan need: a row for each group of like runs, and the sum in words.

    plan: as `study.plan` makes it. Columns: runs, finished, steps of a run, memory of a run, disk of all when done,
    time of those not finished, one after another; `.attrs["seconds"]` is the sum of that.
    cluster: in words, where the runs are not for this machine alone.
    """
    measured: dict[str, Measurement] = {}
    rows, audio = [], {}
    state = 0.0
    for notebooks, finished, config, data in plan[["notebooks", "finished", "config", "size"]].itertuples(index=False):
        if config.training == "external":
            continue  # nothing is trained
        kind = json.dumps(cost_fields(config) | {"embedding_dim": config.embedding_dim}, sort_keys=True)
        if kind not in measured:
            measured[kind] = measure(config, device)
        one = cost(config, measured[kind], data)
        state = max(state, 0.0 if finished else one.state)
        rate = registry.facts(config.audio_encoder).sample_rate
        seconds = min(data.seconds, config.max_seconds or data.seconds)
        audio[hashes.content_key(dict(config.corpus)), rate] = 2.0 * rate * seconds * sum(data.clips.values())
        rows.append(
            {
                "notebooks": notebooks,
                "corpus": config.corpus["name"],
                "recipe": config.recipe,
                "training": config.training,
                "batch": config.batch_size,
                "epochs": sum(part.epochs for part in config.parts()),
                "runs": 1,
                "finished": int(finished),
                "steps": one.steps,
                "memory": one.memory,
                "disk": one.disk,
                "time": 0.0 if finished else one.seconds,
            }
        )
    by = ["notebooks", "corpus", "recipe", "training", "batch", "epochs"]
    how = {"runs": "sum", "finished": "sum", "steps": "max", "memory": "max", "disk": "sum", "time": "sum"}
    groups = pd.DataFrame(rows).groupby(by, sort=False).agg(how).reset_index()
    total, disk = groups["time"].sum() / side_by_side, groups["disk"].sum()
    where = torch.cuda.get_device_name() if device == "cuda" else f"{side_by_side} runs side by side on the CPU"
    where = f"{cluster}, {side_by_side} runs at a time" if cluster else f"this machine ({where})"
    time_in_words = duration(total) if total else "nothing"
    words = (
        f"About {time_in_words} in sum on {where}, by a few measured steps; decoding and frozen features, made "
        f"once, on top. Disk: {gigabytes(disk)} of runs, {gigabytes(state)} more for each one under "
        f"way, and {gigabytes(sum(audio.values()))} of packed audio."
    )
    groups.attrs["seconds"] = float(groups["time"].sum())
    groups["time"] = [duration(seconds) if seconds else "" for seconds in groups["time"]]
    groups[["memory", "disk"]] = groups[["memory", "disk"]].map(gigabytes)
    return groups, words


def plans(profile: str, numbers: Sequence[str] = ()) -> dict[Path, pd.DataFrame]:
    """By notebook of a profile, of these numbers or of any: the runs that it trains, as `study.plan` has them."""
    every = {path: study.plan([path], profile) for path in study.notebooks(numbers, get_profile(profile))}
    some = {path: plan[[one.training != "external" for one in plan["config"]]] for path, plan in every.items()}
    return {path: plan for path, plan in some.items() if len(plan)}


def cost_fields(config: RunConfig) -> dict[str, Any]:
    """What decides what a step of a config costs, but for the width of its heads: fields of a RunConfig. From scratch
    costs what fine-tuning does, SpecAugment and dropout next to nothing.
    """
    training = "finetuned" if config.training == "scratch" else config.training
    patchout = config.augment == "patchout" and training != "frozen"
    pooling = config.text_aware and {**config.text_aware, "dropout": 0.1}
    fields = {name: getattr(config, name) for name in ALIKE}
    fields |= {"training": training, "audio_layers": config.audio_state_layers}
    return fields | {"augment": "patchout" if patchout else None, "text_aware": pooling}


def measure(config: RunConfig, device: str) -> Measurement:
    """Time a few steps of a config's networks, with random weights, on random sound and words.

    On a CPU with one thread, as runs have, on a few short clips; on a GPU with its switches, on clips of 10 s.
    """
    switches = devices.switches_for(device)
    with torch.random.fork_rng(), devices.threads(1), switches.on():
        torch.manual_seed(0)
        network, audio, spoken = shell(config)
        network = switches.apply(network.to(device))
        has_audio = network.audio_encoder is not None
        small = device == "cpu" and has_audio
        probe = 2.0 if small and not isinstance(network.audio_encoder, SegmentEncoder) else 10.0
        counts = (2, 4) if small else (8, 32)
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trained, fused=switches.fused)
        kind = PRECISIONS[config.precision]
        half = torch.autocast(device, torch.bfloat16, enabled=kind != "32-true")
        saved: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        def step(pairs: int) -> None:
            saved.clear()
            with half, torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                one, two = network(audio(pairs, probe, device), spoken(pairs, device))
                loss = network.similarity(one.float(), two.float()).T.logsumexp(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        @torch.no_grad()
        def embed(which: int) -> None:
            pairs = (audio(counts[0], probe, device), None), (None, spoken(counts[0], device))
            with half:
                network(*pairs[which])

        own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
        network.train()
        few, many = (warm_seconds(lambda n=n: step(n), device) for n in counts)  # type: ignore[misc]
        pair = max(many - few, 0.0) / (counts[1] - counts[0])
        fixed = max(few - counts[0] * pair, 0.0)
        network.eval()
        clip, caption = (warm_seconds(lambda which=which: embed(which), device) / counts[0] for which in (0, 1))  # type: ignore[misc]
    checkpoint = sum(tensor.nbytes for tensor in network.trainable_state().values())
    whole, changed = (sum(parameter.nbytes for parameter in some) for some in (network.parameters(), trained))
    sizes = sum(saved.values()) / counts[1], float(whole), float(changed), float(checkpoint)
    copies = float(checkpoint) if device == "cpu" else 0.0  # the best epoch's copy lies on the CPU
    return Measurement(fixed, pair, clip, caption, *sizes, copies, seconds=probe if has_audio else 0.0)


def shell(
    config: RunConfig, text_sizes: Mapping[str, int] | None = None
) -> tuple[model.DualEncoder, Callable[..., Any], Callable[..., Any]]:
    """A config's networks with random weights, and makers of random batches for them: sound(clips, seconds, device) and
    words(captions, device). text_sizes: fields of the text encoder's architecture to change.
    """
    frozen = config.training == "frozen"
    language, width = _language(config, text_sizes)
    audio = registry.build(config.audio_encoder, augment=config.augment, dropout=config.audio_dropout)
    if config.training == "frozen_released":
        audio.requires_grad_(False)
        language.requires_grad_(False)
    layers = config.audio_state_layers
    below = copy.deepcopy(registry.with_states(audio, config.audio_encoder)).eval() if layers is not None else None
    if layers is not None:
        audio.keep_top(layers)
    dim = config.embedding_dim
    network = model.DualEncoder(
        None if frozen else audio,
        None if frozen else language,
        audio.dim,
        width,
        dim,
        audio.head_hidden,
        heads=config.head,
        text_aware=pooling.TextAwarePooling(dim, **config.text_aware) if config.text_aware else None,
        fixed_norm=config.fixed_norm,
    )

    @functools.cache
    def states(seconds: float) -> Tensor:
        waveform = np.zeros(int(seconds * audio.sample_rate), np.int16)
        assert below is not None and layers is not None
        return torch.from_numpy(next(inputs.states(below, RaggedArray.of([waveform]), layers)))

    def sound(clips: int, seconds: float, device: str) -> Batch:
        if frozen:
            return Batch(POOLED, torch.randn(clips, audio.dim, device=device))
        samples = torch.full((clips,), int(seconds * audio.sample_rate), device=device)
        waveform = torch.randint(-9999, 9999, (clips, int(samples[0])), dtype=torch.int16, device=device)
        if below is not None:
            row = states(seconds)
            frames = torch.full((clips,), len(row), device=device)
            return Batch(inputs.STATES, row.to(device).expand(clips, *row.shape), frames)
        if not audio.cached:
            return Batch(inputs.WAVEFORMS, waveform, samples)
        frames = audio.feature_lengths(samples)
        return Batch(inputs.LOG_MELS, torch.randn(clips, int(frames[0]), 64, device=device), frames)

    def words(captions: int, device: str) -> Batch:
        if frozen:
            return Batch(POOLED, torch.randn(captions, width, device=device))
        lengths = torch.full((captions,), TOKENS, device=device)
        if config.state_layers is not None:
            return Batch(text.STATES, torch.randn(captions, TOKENS, width, device=device), lengths)
        return Batch(text.TOKENS, torch.randint(5, 1000, (captions, TOKENS), device=device), lengths)

    return network, sound, words


class _Language(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Batch) -> Tensor:
        kind = "inputs_embeds" if batch.kind == text.STATES else "input_ids"
        return self.network(**{kind: batch.values}).last_hidden_state[:, 0]


def _language(config: RunConfig, sizes: Mapping[str, int] | None = None) -> tuple[nn.Module, int]:
    """A text encoder of a config's architecture with random weights, and its width; no download."""
    from transformers import AutoConfig, AutoModel

    entry = ARCHITECTURES.get(config.text_encoder.rpartition("/")[2])
    if entry is not None:
        architecture = AutoConfig.for_model(entry[0], **entry[1] | dict(sizes or {}))
    else:
        architecture = AutoConfig.from_pretrained(text.folder(config.text_encoder, fetch=False), local_files_only=True)
    layers = 0 if config.training == "frozen" else config.state_layers  # frozen: only its width counts
    if layers is not None:
        architecture.num_hidden_layers = layers
    network = AutoModel.from_config(architecture)
    network.pooler = None
    return _Language(network), architecture.hidden_size


def head_parameters(config: RunConfig) -> int:
    """Parameters of both heads of a config's model."""
    network = shell(config)[0]
    return sum(p.numel() for head in (network.audio_head, network.text_head) for p in head.parameters())


def queries_a_second(dim: int, clips: int, queries: int = 50, top: int = 10) -> float:
    """Exact searches for the `top` of so many clips, a query at a time, on one thread of the CPU."""
    generator = torch.Generator().manual_seed(0)
    index = torch.randn(clips, dim, generator=generator)
    with devices.threads(1):

        def search() -> None:
            for row in range(queries):
                (index @ index[row]).topk(top)

        return queries / warm_seconds(search, "cpu")
