"""`RunConfig`: everything that decides a run's numbers, and nothing else."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

RESULT_VERSION = 2  # raised when a fix or another default changes results
WINDOWS = ("mean", "first", "random")  # of a longer sound, what `Embedder` hears
TRAININGS = ("frozen", "frozen_released", "finetuned", "scratch", "external")
CHOICES: dict[str, tuple] = {
    "recipe": ("code", "text"),
    "training": TRAININGS,
    "text_pooling": ("mean", "first"),
    "caption_style": ("mei2022", "tymofieiev2025", None),
    "pooling": ("max_mean", "frequency_mean_max", "frequency_max", "mean"),
    "head": ("mlp", "linear", "adapter", "labels"),
    "padding": ("masked", "released"),
    "sampler": ("caption_per_clip", "all_captions"),
    "mining": ("easy", "random", "hard", None),
    "fixed": ("audio", "text", None),
    "augment": ("specaugment", "patchout", None),
    "optimizer": ("adam", "adamw"),
    "schedule": ("step", "cosine", "constant"),
    "select_by": ("t2a_recall_sum", "recall_sum", "t2a_map10", "last"),
    "precision": ("32", "bf16"),
    "batch_norm": ("batch", "fixed", None),
}
RECIPES_BEFORE = {"released": "code", "paper": "text"}  # what records and addresses call them
GROUPS = ("heads", "audio", "text", "pooling", "loss")
MINING_KINDS = ("easy", "hard")  # by embeddings
# What a stage of training may have of its own.
STAGE_FIELDS = (
    "epochs",
    "sampler",
    "mining",
    "fixed",
    "fixed_head",
    "learning_rates",
    "schedule",
    "step_epochs",
    "loss",
)
WHOLE = dict.fromkeys(("embedding_dim", "batch_size", "step_epochs", "audio_layers", "text_layers", "chunk"), 1)
WHOLE |= {"epochs": 0, "seed": 0}  # whole numbers, from this one on; 0 epochs: the untrained model
OPTIONAL = ("audio_layers", "text_layers", "chunk", "text_dropout", "audio_dropout", "clip_norm")  # may be None
BELOW = {
    "text_dropout": 1.0,
    "audio_dropout": 1.0,
    **dict.fromkeys(("weight_decay", "step_factor", "warmup_epochs", "floor_rate", "clip_norm"), math.inf),
}


class ConfigError(ValueError):
    """A field of a RunConfig is unknown or holds what it cannot."""


@dataclass(frozen=True)
class RunConfig:
    """One training run. Device, processes, workers and loggers are not part of it: they do not change the numbers, but
    for what `atr.fit` says of processes.

    corpus          name, or {"name": …, options of its loader}; the folder it lies in is not part of it
    recipe          "code" or "text": the variant of the loss (see `atr.losses.pair`)
    audio_encoder   name for `atr.encoders.build`
    audio_weights   "pretrained" (published checkpoint; compact encoders: on this corpus's events), None (random), a
                    checkpoint file, or a folder with a file named after the encoder; relative paths also below
                    `ATR_HOME/checkpoints`
    audio_layers    how many top blocks of the audio encoder `finetuned` trains, over cached 16-bit states of what lies
                    below; None: all, over waveforms or spectrograms, as `scratch` does. Of mn04 and mn10: 3 (47 KB for
                    10 s in mn04) to 15
    batch_norm      of an audio encoder that trains: "batch" (a batch's statistics, as is usual), "fixed" (those that it
                    came with, as in evaluation); None: "fixed" over cached states, else "batch"
    audio_dropout   overrides the audio encoder's own dropout
    text_encoder    "minilm", a Hub name, or a folder; relative paths also below `ATR_HOME/checkpoints`
    text_layers     how many top layers `finetuned` trains, over cached states of the layer below; None: all
    text_dropout    overrides the text encoder's own dropout
    training        "frozen" (evaluation mode, cached features), "frozen_released" (parameters fixed, but training
                    mode: batch statistics, dropout and augmentation stay on), "finetuned", "scratch" (random audio
                    encoder, everything trained), "external" (`text_encoder` is a CLAP model with both towers, evaluated
                    as it is: 0 epochs)
    pooling         of the PANNs: "max_mean" (mean over mel bands; maximum plus mean over time), "frequency_mean_max"
                    (mean plus maximum over bands, as the text of Mei et al. 2022 has it), "frequency_max" (maximum
                    over bands, as Tourbabin & Ben-Hur have it); the other encoders know "max_mean", their own way.
                    "mean", of any encoder: mean of its frames
    text_aware      {"projection_dim": …, "dropout": …}: frames go through the audio head, and each caption pools them
                    by attention (`atr.encoders.pooling.TextAwarePooling`); None: `pooling`
    head            "mlp" (Linear, ReLU, Linear), "linear", "adapter": sounds by one Linear go to where the text encoder
                    puts captions, which move little (`model.Adapter`; embedding_dim is the text encoder's width, 384
                    of "minilm"), or "labels": a sound is the names of what its encoder's own classifier hears (mn04,
                    mn10; `model.LabelHead`), and nothing is trained: frozen, 0 epochs
    padding         "masked": a clip's embedding is its own (but while training, where a batch's zeros enter the
                    statistics of the inner batch-norms); "released": they enter every batch-norm and the pooling, in
                    evaluation too, as in the released code of Mei et al. 2022
    max_seconds     longer clips are cut there; None: never
    loss            {"name": …, parameters}
    penalty         {"alpha": …, further fields of `atr.losses.penalty.PenaltySettings`}, held without those at their
                    defaults; None: the loss alone
    text_contrast   {"captions": name of a table (`atr.corpora.captioning.language`), "weight": 1.0, "batch_size": 256}:
                    captions of one clip find each other, without sounds (`atr.losses.contrast`); None: not
    label_contrast  {"labels": 3, "weight": 1.0}: sounds find the names of classes that their encoder's own classifier
                    hears (mn04, mn10); None: not
    sampler         see `atr.training.batches`
    drop_last       an epoch's last incomplete batch is left out
    mining          "easy", "random", "hard": each epoch's pairs in batches by `atr.training.batches.mine`, which keeps
                    the last incomplete one; None: as `sampler` draws them
    ancillary       fields of the config of the run, on the same corpus, by whose embeddings batches are mined
    start           fields of the config of the run, with the same networks, whose selected epoch this one starts from
    fixed           "audio" or "text": this encoder stays as it is, in evaluation mode, its output computed once
    fixed_head      its head stays as well; else it trains with the other side
    stages          one after another, each from the best epoch of the one before and with a schedule of its own: the
                    fields in which each differs from this config, of `STAGE_FIELDS`; None: one stage
    learning_rates  by group: heads, audio, text, pooling (text-aware), loss (its learned parameters); missing groups
                    use heads'
    betas           of Adam and AdamW
    schedule        "step" (× step_factor every step_epochs), "cosine" (from the end of warm-up to floor_rate at
                    cosine_epochs, None: the last epoch), "constant"
    warmup_epochs   linear rise from 0, by step
    clip_norm       largest gradient norm, None: no clipping
    chunk           pairs of a batch embedded at a time, for batches too large for the memory
                    (`atr.training.gradient_cache`): loss and gradient are of the whole batch, batch-norm's statistics
                    of each chunk; None, or as many as a batch has: the whole batch
    select_by       validation metric of the best epoch, ties to the later; "last" takes the last epoch

    >>> config = RunConfig(training="finetuned", loss={"name": "sigmoid"}, learning_rates={"heads": 2e-3, "loss": 0.1})
    >>> config.replace(batch_size=64).rate("audio")
    0.002
    >>> RunConfig(optimiser="adam")
    Traceback (most recent call last):
    TypeError: RunConfig.__init__() got an unexpected keyword argument 'optimiser'
    """

    corpus: Any = "soundscapes"  # a mapping once the config is built
    recipe: str = "code"
    audio_encoder: str = "compact"
    audio_weights: str | None = "pretrained"
    audio_layers: int | None = None
    batch_norm: str | None = None
    audio_dropout: float | None = None
    text_encoder: str = "minilm"
    text_pooling: str = "mean"
    text_layers: int | None = 2
    text_dropout: float | None = None
    caption_style: str | None = "mei2022"
    training: str = "frozen"
    pooling: str = "max_mean"
    text_aware: Mapping[str, Any] | None = None
    head: str = "mlp"
    padding: str = "masked"
    max_seconds: float | None = None
    embedding_dim: int = 256
    loss: Mapping[str, Any] = field(default_factory=lambda: {"name": "nt_xent", "temperature": 0.07})
    penalty: Mapping[str, Any] | None = None
    text_contrast: Mapping[str, Any] | None = None
    label_contrast: Mapping[str, Any] | None = None
    sampler: str = "caption_per_clip"
    drop_last: bool = True
    mining: str | None = None
    ancillary: Mapping[str, Any] | None = None
    start: Mapping[str, Any] | None = None
    fixed: str | None = None
    fixed_head: bool = False
    stages: Sequence[Mapping[str, Any]] | None = None
    augment: str | None = "specaugment"
    optimizer: str = "adam"
    learning_rates: Mapping[str, float] = field(default_factory=lambda: {"heads": 1e-3})
    betas: Sequence[float] = (0.9, 0.999)
    weight_decay: float = 0.0
    schedule: str = "step"
    step_epochs: int = 20
    step_factor: float = 0.1
    cosine_epochs: float | None = None
    floor_rate: float = 0.0
    warmup_epochs: float = 0.0
    clip_norm: float | None = 2.0
    batch_size: int = 32
    chunk: int | None = None
    epochs: int = 50
    select_by: str = "t2a_recall_sum"
    precision: str = "32"
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.corpus, str):
            object.__setattr__(self, "corpus", {"name": self.corpus})
        self._check_fields()
        self._check_training()
        self._check_rates()
        self._check_loss()
        self._check_contrast()
        self._check_text_aware()
        for name, needed in self.needs().items():
            object.__setattr__(self, name, needed.identity())  # as many words for one run name one run
        self._check_stages()

    def _check_fields(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name}: unknown {getattr(self, name)!r}; known: {', '.join(map(repr, choices))}")
        for name, least in WHOLE.items():
            value = getattr(self, name)
            if not _is_whole(value, least) and not (value is None and name in OPTIONAL):
                none = ", nor None" if name in OPTIONAL else ""
                raise ConfigError(f"{name}: {value!r} is not a whole number of {least} or more{none}")
        for name, limit in BELOW.items():
            value = getattr(self, name)
            if not (_is_number(value) and 0 <= value < limit) and not (value is None and name in OPTIONAL):
                raise ConfigError(f"{name}: {value!r} is not a number from 0 and below {limit}")
        for name in ("corpus", "loss"):
            if not isinstance(getattr(self, name), Mapping) or "name" not in getattr(self, name):
                raise ConfigError(f'{name}: {getattr(self, name)!r} has no "name"; write {{"name": …, parameters}}')
        if self.max_seconds is not None:
            if not _is_number(self.max_seconds) or not 0 < self.max_seconds < math.inf:
                raise ConfigError(f"max_seconds: {self.max_seconds!r} is not a positive number, nor None")
            object.__setattr__(self, "max_seconds", float(self.max_seconds))  # 30 and 30.0 name one run
        if self.audio_weights is not None and not isinstance(self.audio_weights, (str, os.PathLike)):
            raise ConfigError(f"audio_weights: {self.audio_weights!r} is not a name, nor None")
        for name in ("audio_encoder", "text_encoder"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ConfigError(f"{name}: {getattr(self, name)!r} is not a name")

    def _check_training(self) -> None:
        if self.padding == "released" and self.training == "frozen":
            raise ConfigError("padding: 'released' needs batches, and 'frozen' caches each clip's features by itself")
        if self.training == "external" and (self.epochs, self.audio_encoder) != (0, "clap"):
            raise ConfigError("training: 'external' evaluates as it is; set audio_encoder='clap' and epochs=0")
        if self.head == "labels" and (self.epochs, self.training) != (0, "frozen"):
            raise ConfigError("head: 'labels' has nothing to train; set training='frozen' and epochs=0")

    def _check_rates(self) -> None:
        if not isinstance(self.learning_rates, Mapping):
            raise ConfigError(f'learning_rates: {self.learning_rates!r}; write {{"heads": …}}, a rate per group')
        unknown = set(self.learning_rates) - set(GROUPS)
        if unknown or "heads" not in self.learning_rates:
            raise ConfigError(
                f"learning_rates: {', '.join(map(repr, sorted(unknown))) or 'no heads'}; "
                f"known groups: {', '.join(GROUPS)}, heads is needed"
            )
        for group, rate in self.learning_rates.items():
            if not _is_number(rate) or not 0 <= rate < math.inf:
                raise ConfigError(f"learning_rates: {group}: {rate!r} is not a finite number of 0 or more")
        betas = tuple(self.betas) if isinstance(self.betas, Sequence) else ()
        if len(betas) != 2 or not all(_is_number(beta) and 0 <= beta < 1 for beta in betas):
            raise ConfigError(f"betas: {self.betas!r}; give two numbers from 0 and below 1")
        object.__setattr__(self, "betas", betas)
        if self.cosine_epochs is not None and not (
            _is_number(self.cosine_epochs) and self.warmup_epochs < self.cosine_epochs < math.inf
        ):
            raise ConfigError(
                f"cosine_epochs: {self.cosine_epochs!r} is not a number above warmup_epochs, {self.warmup_epochs}"
            )

    def _check_loss(self) -> None:
        from atr.losses.pair import build

        try:
            build(**self.loss, variant=self.recipe)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"loss: {error}") from error
        if self.penalty is not None:
            from atr.losses.penalty import read_settings

            try:
                settings = read_settings(self.penalty)
            except (ValueError, TypeError) as error:
                raise ConfigError(f"penalty: {error}") from error
            if self.embedding_dim < settings.dims:
                raise ConfigError(f"penalty: draws {settings.dims} dimensions; embedding_dim is {self.embedding_dim}")
            object.__setattr__(self, "penalty", settings.differences())

    def _check_contrast(self) -> None:
        for name, required in (("text_contrast", {"captions"}), ("label_contrast", {"labels"})):
            settings = getattr(self, name)
            if settings is None:
                continue
            allowed = required | {"weight"} | ({"batch_size"} if name == "text_contrast" else set())
            if not isinstance(settings, Mapping) or not required <= set(settings) <= allowed:
                raise ConfigError(f"{name}: {settings!r}; it has {', '.join(sorted(allowed))}")
            whole = settings.get("batch_size", settings.get("labels", 2))
            if not _is_whole(whole, 2 if name == "text_contrast" else 1):
                raise ConfigError(f"{name}: {whole!r} is too few, or no whole number")
            weight = settings.get("weight", 1.0)
            if not _is_number(weight) or not 0 < weight < math.inf:
                raise ConfigError(f"{name}: weight: {weight!r} is not a positive number")
            if self.text_aware is not None or self.chunk is not None or self.training == "external":
                raise ConfigError(
                    f"{name}: needs an embedding of each clip, of a whole batch; unset text_aware and chunk"
                )

    def _check_text_aware(self) -> None:
        if self.text_aware is None:
            return
        size, dropout = (self.text_aware.get(name, 0.0) for name in ("projection_dim", "dropout"))
        if set(self.text_aware) - {"projection_dim", "dropout"} or not _is_whole(size, 1):
            raise ConfigError(f'text_aware: {self.text_aware!r}; write {{"projection_dim": 512, "dropout": 0.05}}')
        if not _is_number(dropout) or not 0 <= dropout < 1:
            raise ConfigError(f"text_aware: dropout: {dropout!r} is not a number from 0 and below 1")
        if self.training in ("frozen", "external"):
            raise ConfigError(f"text_aware: needs frames, and training {self.training!r} knows a clip by one vector")
        if self.fixed == "audio":
            raise ConfigError("text_aware: a fixed audio encoder leaves one vector per clip; fix 'text', or nothing")
        if self.penalty is not None:
            raise ConfigError("text_aware: a clip has no embedding of its own, which penalty needs")

    def _check_stages(self) -> None:
        if self.stages is None:
            if self.mining in MINING_KINDS and self.ancillary is None:
                raise ConfigError("mining: needs ancillary, the fields of the config of the run to mine by")
            if self.fixed_head and self.fixed is None:
                raise ConfigError("fixed_head: no encoder is fixed; set fixed as well")
        elif isinstance(self.stages, (str, Mapping)) or not self.stages:
            raise ConfigError(f"stages: {self.stages!r} is not a list of one stage or more")
        parts = []
        for number, stage in enumerate(self.stages or (), start=1):
            unknown = sorted(set(stage) - set(STAGE_FIELDS))
            if unknown:
                raise ConfigError(f"stages: {number}: unknown {', '.join(unknown)}; known: {', '.join(STAGE_FIELDS)}")
            try:
                parts.append(self._part(stage))
            except ConfigError as error:
                raise ConfigError(f"stages: {number}: {error}") from error
            if not parts[-1].epochs:
                raise ConfigError(f"stages: {number}: epochs: 0; a stage trains for one epoch or more")
        if self.ancillary is not None and not any(part.mining in MINING_KINDS for part in parts or [self]):
            raise ConfigError("ancillary: nothing is mined by it; set mining, or leave it out")

    def _part(self, stage: Mapping[str, Any]) -> "RunConfig":
        mined = stage.get("mining", self.mining) in MINING_KINDS
        own: dict[str, Any] = {"stages": None, "start": None, "ancillary": self.ancillary if mined else None}
        return self.replace(**own, **stage)

    def parts(self) -> list["RunConfig"]:
        """The config of each stage: this one, if it has a single stage."""
        return [self._part(stage) for stage in self.stages] if self.stages else [self]

    def needs(self) -> dict[str, "RunConfig"]:
        """The configs of the runs that this one needs, by the field that holds them."""
        configs = {}
        for name in ("ancillary", "start"):
            fields = getattr(self, name)
            if fields is None:
                continue
            try:
                configs[name] = from_dict(fields)
            except (ConfigError, TypeError) as error:
                raise ConfigError(f"{name}: {error}") from error
            if name == "ancillary" and configs[name].text_aware:
                raise ConfigError("ancillary: a text-aware model has no embedding of a clip to mine by")
            alike = ("corpus",) if name == "ancillary" else ("audio_encoder", "text_encoder", "embedding_dim")
            for field_name in alike:
                theirs, ours = getattr(configs[name], field_name), getattr(self, field_name)
                if theirs != ours:
                    raise ConfigError(f"{name}: its {field_name} is {theirs!r}, here {ours!r}; they must be the same")
        return configs

    def replace(self, **changes: Any) -> "RunConfig":
        """A copy with some fields changed."""
        return from_dict({**self.to_dict(), **changes})

    @property
    def state_layers(self) -> int | None:
        """How many top text layers read cached states of the one below; None: the text encoder reads token ids."""
        return self.text_layers if self.training in ("finetuned", "scratch") else None

    @property
    def audio_state_layers(self) -> int | None:
        """How many top audio blocks read cached states; None: the audio encoder reads waveforms or spectrograms."""
        return self.audio_layers if self.training == "finetuned" else None

    @property
    def fixed_norm(self) -> bool:
        """Whether batch-norms of the audio encoder keep their statistics in training."""
        return self.audio_state_layers is not None if self.batch_norm is None else self.batch_norm == "fixed"

    def rate(self, group: str) -> float:
        return self.learning_rates.get(group, self.learning_rates["heads"])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))

    def identity(self) -> dict[str, Any]:
        """The fields that differ from their defaults: what names a run, so that a new field renames none.

        Whoever changes a default raises RESULT_VERSION.
        """
        default, own = RunConfig().to_dict(), self.to_dict()
        if self.chunk is not None and self.chunk >= self.batch_size:
            own["chunk"] = None
        changed = {name: value for name, value in own.items() if value != default[name]}
        return changed | {"recipe": "paper"} if self.recipe == "text" else changed  # as runs have been addressed by it


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def from_dict(fields: Mapping[str, Any]) -> RunConfig:
    """A config from plain fields; an unknown one is an error."""
    names = {entry.name for entry in dataclasses.fields(RunConfig)}
    unknown = sorted(set(fields) - names)
    if fields.get("recipe") in RECIPES_BEFORE:
        fields = {**fields, "recipe": RECIPES_BEFORE[fields["recipe"]]}
    if unknown:
        raise ConfigError(f"unknown field {', '.join(unknown)}; known: {', '.join(sorted(names))}")
    return RunConfig(**fields)
