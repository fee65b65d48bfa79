"""A config's networks on their device, an epoch's steps, and the run that they come to: a loop on Lightning Fabric."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atr.config import RunConfig
from atr.corpora.corpus import Corpus
from atr.losses import pair, penalty
from atr.losses.contrast import Contrast
from atr.system.devices import switches_for
from atr.system.environment import environment
from atr.system.packed import Batch
from atr.training import STATE, evaluation, identity, model, preparation
from atr.training.batches import epoch_batches
from atr.training.distributed import ALONE, Group, fabric_of, synchronise
from atr.training.evaluation import SplitResult
from atr.training.gradient_cache import BatchEncoder
from atr.training.records import Diverged, Run, TrainingError
from atr.training.state import Keeper, State, load

BROKEN_WEIGHTS = "embeddings are not finite before any training: check audio_weights and text_encoder"


class Trainer:
    """A config's networks on their device: what they see of the splits, one epoch's steps, and evaluation.

    mined_by  (captions, D) ancillary embeddings, where the config mines by some
    group     the processes that train together, each with a Trainer of its own. All see the same batches, losses,
              gradients and scores, and decide alike; the first one's random numbers are those of a single process
    """

    def __init__(
        self,
        config: RunConfig,
        corpus: Corpus,
        prepared: identity.Preparation,
        others: dict[str, Run],
        device: str,
        mined_by: Tensor | None = None,
        loggers: Sequence[Any] = (),
        group: Group = ALONE,
    ) -> None:
        self.started = time.perf_counter()
        self.config, self.corpus, self.prepared, self.group = config, corpus, prepared, group
        self.fabric = fabric_of(config, device, loggers, group.rank)
        self.mined_by = None if mined_by is None else mined_by.to(self.fabric.device)
        torch.manual_seed(config.seed)
        self.network = model.build(config, prepared)
        if config.start:
            model.load(self.network, others["start"])
        self.penalty_settings = penalty.read_settings(config.penalty) if config.penalty else None
        self.penalty = self.penalty_settings.build().to(self.fabric.device) if self.penalty_settings else None
        settings = {"captions": config.text_contrast, "labels": config.label_contrast}
        terms = {name: fields for name, fields in settings.items() if fields}
        self.contrast = Contrast(terms, prepared.words, config.recipe) if terms else None
        if self.contrast and group.size > 1:
            raise TrainingError("text_contrast and label_contrast train in one process; set processes to 1")
        synchronise(self.network, group)
        self.switches = switches_for(device)
        self.dual = self.fabric.setup(self.switches.apply(self.network))
        self.embedder = BatchEncoder(self.dual, self.network, self.to_device, group, config.chunk)
        self.released_batch = config.batch_size if config.padding == "released" else None
        self.last_epoch = sum(part.epochs for part in config.parts())

    def to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.fabric.device, non_blocking=True)

    def embed_text(self, batch: Batch) -> Tensor:
        """A batch of a text side → (B, dim), float32."""
        return self.dual(None, batch)[1].float()

    def evaluate(self, split: identity.Inputs) -> SplitResult:
        """A split as the network is now. TrainingError: embeddings that are not finite."""
        try:
            return evaluation.evaluate(self.dual, self.network, split, self.to_device, self.released_batch, self.group)
        except FloatingPointError as error:
            if self.last_epoch:
                raise Diverged(f"{error}: the run has diverged; lower its learning_rates") from error
            raise TrainingError(BROKEN_WEIGHTS) from error

    def optimizer(self, part: RunConfig, loss_function: pair.PairLoss) -> Any:
        """None for an external model, which has nothing to train."""
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        groups = model.parameter_groups(self.network, loss_function, part)
        if not groups:
            return None
        result = kinds[part.optimizer](
            groups, betas=part.betas, weight_decay=part.weight_decay, fused=self.switches.fused
        )
        return self.fabric.setup_optimizers(result)

    def splits(self, part: RunConfig, first: bool) -> tuple[identity.Inputs, identity.Inputs]:
        """Training and validation split as a stage sees them: of a fixed encoder, its output."""
        names = ("train", "validation")
        splits = [self.prepared.splits[name] for name in names]
        if part.fixed == "text" and first and not self.config.start:  # as it starts: other runs know its output
            texts = [preparation.pooled_text(self.config, self.corpus.split(name), self.device) for name in names]
            splits = [replace(split, text=text) for split, text in zip(splits, texts, strict=True)]
        elif part.fixed is not None:
            work = (self.to_device, self.released_batch, self.group)
            splits = [evaluation.precompute_side(self.dual, split, part.fixed, *work) for split in splits]
        return splits[0], splits[1]

    @property
    def device(self) -> str:
        return self.fabric.device.type

    def epoch(
        self, part: RunConfig, train: identity.Inputs, loss: pair.PairLoss, optimizer: Any, epoch: int, before: int
    ) -> tuple[dict[str, float], list[dict[str, float]]]:
        """Train for one epoch, counted from 0 over all stages, `before` of which were before this stage.

        Gives its row of the history, and what the loss has learned after each step.
        """
        seed = self.config.seed * 100_003 + epoch + 1  # dropout and SpecAugment: a function of seed and epoch
        torch.manual_seed(seed + (self.group.rank << 40))  # another for each process
        drawing = torch.Generator().manual_seed(seed)  # so that dropout is undisturbed
        order = (train.clip_of_caption, part.batch_size, part.sampler, part.seed, epoch)
        batches = epoch_batches(*order, drop_last=part.drop_last, mining=part.mining, embeddings=self.mined_by)
        self.network.train()
        total, evenness = torch.zeros((), device=self.fabric.device), torch.zeros(2, device=self.fabric.device)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        shared = set(loss.parameters())  # whose gradients are whole in every process
        learned = {name: parameter for name, parameter in loss.named_parameters() if parameter.ndim == 0}
        values = []
        for number, captions in enumerate(batches):
            for group in optimizer.param_groups:
                step = (epoch - before) * len(batches) + number
                group["lr"] = learning_rate(part, group["peak"], step, len(batches))
            value, h = self.objective(part, train, captions, loss, drawing)
            if number == epoch == 0 and not value.isfinite():
                raise TrainingError(BROKEN_WEIGHTS)
            total += value.detach()
            if h is not None and self.penalty_settings is not None:
                evenness += h.detach()
                value = value - self.penalty_settings.alpha * h.sum()
            optimizer.zero_grad()
            self.fabric.backward(value)
            self.group.sum_gradients(parameter for parameter in parameters if parameter not in shared)
            if part.clip_norm is not None:
                _clip(parameters, part.clip_norm)
            optimizer.step()
            if learned:
                values.append(torch.stack([parameter.detach().float() for parameter in learned.values()]))
        mean_loss = float(total) / len(batches)
        if not math.isfinite(mean_loss):
            raise Diverged(f"epoch {epoch + 1}: the loss is {mean_loss}; lower learning_rates and run again")
        rate = learning_rate(part, part.rate("heads"), (epoch - before) * len(batches), len(batches))
        row = {"epoch": epoch + 1, "loss": mean_loss, "learning_rate": rate}
        if self.penalty is not None:
            row |= dict(zip(("batch_h_audio", "batch_h_text"), (evenness / len(batches)).tolist(), strict=True))
        steps = torch.stack(values).tolist() if values else []
        return row, [dict(zip(learned, step, strict=True)) for step in steps]

    def objective(
        self, part: RunConfig, train: identity.Inputs, captions: np.ndarray, loss: pair.PairLoss, drawing: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Loss of a batch, and where embeddings are penalised their estimates of h, of audio and of text (2,)."""
        ids = self.to_device(torch.from_numpy(train.clip_of_caption[captions]))
        if part.text_aware:
            return loss.from_similarity(self.embedder.similarity(train, captions).T, ids, ids), None
        audio, text = self.embedder.embeddings(train, captions)
        value = loss(audio, text, ids)
        if self.contrast is not None:
            clips = train.clip_of_caption[captions]
            value = value + self.contrast(audio, clips, self.embed_text, self.to_device, drawing)
        if self.penalty is None:
            return value, None
        return value, self.penalty(torch.stack([audio, text]), self.penalty.choose(part.embedding_dim, drawing))

    def surroundings(self, threads: int, seconds: float) -> dict[str, Any]:
        """Where and with what a run was made, in so many seconds."""
        name = torch.cuda.get_device_name() if self.device == "cuda" else "cpu"
        work = {"processes": self.group.size, "switches": asdict(self.switches)}
        results = {"seconds": round(seconds, 3), "weights": self.prepared.fingerprints}
        return environment(name, threads) | work | results


def train(trainer: Trainer, run: Run, threads: int) -> None:
    """Train a run stage by stage, from its last epoch if it has one, and write what it comes to.

    Of several processes the first one writes, and all read the state that a run continues from.
    """
    config, network, splits = trainer.config, trainer.network, trainer.prepared.splits
    writes, parts = trainer.group.rank == 0, config.parts()
    keeper = Keeper(run.path / STATE)
    if (now := load(keeper.path)) is not None:
        network.load_state_dict(now.model, strict=False)
    else:
        now = State()
        if not trainer.last_epoch:  # else the first epoch is the best so far
            now.select(0, -math.inf, trainer.evaluate(splits["validation"]).scores, network.trainable_state())
    start = trainer.started - now.seconds
    for logger in trainer.fabric.loggers:
        logger.log_hyperparams(config.to_dict())

    for stage, part in enumerate(parts):
        if stage < len(now.stages):
            continue
        before = sum(part.epochs for part in parts[:stage])
        loss = pair.build(**part.loss, variant=part.recipe).to(trainer.fabric.device)
        optimizer = trainer.optimizer(part, loss)
        if now.epoch > before:
            loss.load_state_dict(now.loss)
            optimizer.load_state_dict(now.optimizer)
        else:
            now.best_score = -math.inf
            if stage:
                network.load_state_dict(now.best, strict=False)
        training, validation = trainer.splits(part, first=not stage)

        for epoch in range(now.epoch, before + part.epochs):
            row, learned = trainer.epoch(part, training, loss, optimizer, epoch, before)
            validation_result = trainer.evaluate(validation)
            row = {"stage": stage + 1} | row if config.stages else row
            row |= validation_result.scores | {"validation_loss": validation_result.loss(loss, part.batch_size)}
            now.history.append(row)
            now.learned += [{"stage": stage + 1, "epoch": epoch + 1, **step} for step in learned]
            score = selection_score(part, validation_result.scores, epoch + 1)
            if score >= now.best_score:
                now.select(epoch + 1, score, validation_result.scores, network.trainable_state())
            now.epoch, now.seconds = epoch + 1, time.perf_counter() - start
            now.model, now.loss, now.optimizer = network.trainable_state(), loss.state_dict(), optimizer.state_dict()
            if writes:
                if epoch + 1 < trainer.last_epoch:  # what follows the last epoch is short
                    keeper.keep(now)
                run.write_history(now)
            trainer.fabric.log_dict(row, step=epoch + 1)

        network.load_state_dict(now.best, strict=False)
        test_result = trainer.evaluate(splits["test"])
        now.stages.append({"test": test_result.scores, "best_epoch": now.best_epoch, "validation": now.validation})

    if writes:
        surroundings = trainer.surroundings(threads, time.perf_counter() - start)
        run.finish(now, test_result.to_tensors(), surroundings, {"stages": now.stages} if config.stages else {})
        trainer.fabric.log_dict({f"test_{name}": value for name, value in test_result.scores.items()}, step=now.epoch)
        for logger in trainer.fabric.loggers:
            logger.finalize("success")


def _clip(parameters: list[Tensor], largest: float) -> None:
    """`torch.nn.utils.clip_grad_norm_`; on a CPU gradients that are short enough are not multiplied by 1."""
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if norm.is_cuda or not norm < 0.999 * largest:  # a GPU would have to be waited for
        torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)


def learning_rate(config: RunConfig, peak: float, step: int, steps_per_epoch: int) -> float:
    """The learning rate at optimiser step `step`, counted from 0, of a group whose peak is `peak`."""
    epoch = step / steps_per_epoch
    start = config.warmup_epochs
    if epoch < start:
        return peak * (epoch / start)
    if config.schedule == "step":
        return peak * config.step_factor ** (int(epoch) // config.step_epochs)
    if config.schedule == "cosine":
        end = config.cosine_epochs or config.epochs
        share = 0.5 * (1 + math.cos(math.pi * min(1.0, (epoch - start) / max(end - start, 1e-9))))
        return config.floor_rate + (peak - config.floor_rate) * share
    return peak


def selection_score(config: RunConfig, scores: dict[str, float], epoch: int) -> float:
    """What the best epoch has most of."""
    recalls = {way: sum(scores[f"{way}_r{k}"] for k in (1, 5, 10)) for way in ("t2a", "a2t")}
    return {
        "t2a_recall_sum": recalls["t2a"],
        "recall_sum": recalls["t2a"] + recalls["a2t"],
        "t2a_map10": scores["t2a_map10"],
        "last": float(epoch),
    }[config.select_by]
