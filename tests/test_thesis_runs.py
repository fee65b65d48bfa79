"""Runs by the recipes of the thesis: text-aware pooling, a learned loss, linear heads, validation loss, schedules."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from atr import RunConfig, fit, get_profile, losses, metrics
from atr.analysis import attention
from atr.config import ConfigError
from atr.corpora import corpus_of
from atr.training import evaluation, model, preparation
from atr.training.records import Run
from atr.training.trainer import learning_rate

TINY = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
BASE = {"corpus": TINY, "epochs": 2, "batch_size": 20, "embedding_dim": 16, "training": "finetuned"}
TEXT_AWARE = {"projection_dim": 24, "dropout": 0.1}


def config(**changes):
    return RunConfig(**(BASE | changes))


@pytest.fixture(scope="module")
def corpus():
    return corpus_of(config().corpus)


@pytest.fixture(scope="module")
def pooled(corpus, tmp_path_factory):
    return fit(config(text_aware=TEXT_AWARE, head="linear"), corpus, runs=tmp_path_factory.mktemp("runs"))


class TestTextAware:
    def test_a_run_keeps_similarities_and_its_metrics_come_from_them(self, pooled):
        similarity = pooled.embeddings["similarity"]
        assert similarity.shape == (80, 16) and "audio" not in pooled.embeddings
        found = metrics.retrieval_metrics(metrics.ranks(similarity, pooled.embeddings["relevance"]))
        assert found == pooled.metrics
        assert similarity.abs().max() <= 1 + 1e-5

    def test_its_checkpoint_gives_the_same_similarities(self, pooled, corpus):
        prepared = preparation.prepare(pooled.config, corpus, ("test",), True)
        network = model.load(model.build(pooled.config, prepared), pooled)
        again = evaluation.evaluate(network, network, prepared.splits["test"])
        assert torch.allclose(again.tensors["similarity"], pooled.embeddings["similarity"], atol=1e-5)

    def test_pooling_has_a_learning_rate_of_its_own(self, corpus):
        kind = config(text_aware=TEXT_AWARE, learning_rates={"heads": 1e-3, "pooling": 1e-4})
        network = model.build(kind, preparation.prepare(kind, corpus, ("test",), True))
        groups = model.parameter_groups(network, losses.build("nt_xent"), kind)
        assert {group["name"]: group["peak"] for group in groups}["pooling"] == 1e-4
        count = sum(p.numel() for group in groups if group["name"] == "pooling" for p in group["params"])
        assert count == 3 * (16 * 24 + 24) + 24 * 16 + 16 + 2 * 16

    @pytest.mark.parametrize(
        "changes, words",
        [
            ({"training": "frozen"}, "needs frames"),
            ({"fixed": "audio"}, "a fixed audio encoder leaves one vector"),
            ({"penalty": {"alpha": 0.1}}, "no embedding of its own"),
            ({"text_aware": {"projection": 3}}, "write"),
            ({"text_aware": {"projection_dim": 0}}, "write"),
            ({"text_aware": {"projection_dim": 8, "dropout": 1}}, "from 0 and below 1"),
        ],
    )
    def test_what_cannot_be_is_refused(self, changes, words):
        with pytest.raises(ConfigError, match=words):
            config(**{"text_aware": TEXT_AWARE} | changes)

    def test_nothing_is_mined_by_it(self):
        other = config(text_aware=TEXT_AWARE)
        with pytest.raises(ConfigError, match="ancillary: a text-aware model"):
            config(mining="hard", ancillary=other.identity())


class TestAttention:
    def test_weights_are_compared_with_when_a_sound_is_heard(self, pooled, corpus):
        heard = attention.restore_frames(pooled, corpus)
        table = attention.looks(heard)
        assert len(table) and table["coverage"].between(0, 0.8, inclusive="right").all()
        assert table["attention"].between(0, 1).all() and set(table["hit"]) <= {True, False}
        clip, event = table.loc[0, ["clip", "event"]]
        weights = heard.attention(heard.captions([event]))
        row = corpus.split("test").clips["clip"].tolist().index(clip)
        assert weights.shape == (16, 1, 7) and weights[row].sum() == pytest.approx(1, abs=1e-5)
        spans = corpus.events.query("clip == @clip and event == @event")[["onset", "offset"]].to_numpy()
        inside = np.any([(heard.times >= low) & (heard.times <= high) for low, high in spans], axis=0)
        assert table.loc[0, "attention"] == pytest.approx(weights[row, 0, inside].sum())
        assert table.loc[0, "hit"] == inside[weights[row, 0].argmax()]
        others = sorted(set(corpus.events.query("clip == @clip")["event"]) - {event})
        given = heard.attention(heard.captions(others))[row]
        assert others and table.loc[0, "others"] == pytest.approx(given[:, inside].sum(1).mean(), abs=1e-6)
        assert table.loc[0, "others_hit"] == pytest.approx(inside[given.argmax(1)].mean())

    def test_attention_that_does_not_ask_finds_as_much_for_the_others(self, pooled, corpus, monkeypatch):
        heard = attention.restore_frames(pooled, corpus)
        loud = torch.rand(heard.mask.shape, generator=torch.Generator().manual_seed(0)) * heard.mask
        flat = (loud / loud.sum(1, keepdim=True)).numpy()[:, None]
        monkeypatch.setattr(attention.ClipFrames, "attention", lambda self, words: flat.repeat(len(words), 1))
        table = attention.looks(heard)
        np.testing.assert_allclose(table["attention"], table["others"], rtol=1e-5)
        assert (table["hit"] == table["others_hit"]).all()

    def test_attention_of_encoders_that_stay_as_they_are(self, corpus, tmp_path):
        kind = config(training="frozen_released", text_aware=TEXT_AWARE, head="linear", epochs=0)
        clips = attention.restore_frames(fit(kind, corpus, runs=tmp_path), corpus)
        assert clips.attention(["rain falls"]).sum(2) == pytest.approx(np.ones((16, 1)), abs=1e-5)

    def test_scoring_by_a_mean_holds_one_embedding_a_clip_and_attention_one_per_frame(self, pooled, corpus):
        cost = attention.scoring_cost(pooled, corpus, "cpu")
        dim = pooled.config.embedding_dim
        assert cost["numbers a clip"].to_dict() == {"mean": dim, "text-aware": 7 * dim}
        size = sum(tensor.numel() for name, tensor in pooled.checkpoint.items() if name.startswith("text_aware."))
        assert cost["parameters of the pooling"].to_dict() == {"mean": 0, "text-aware": size} and size
        assert (cost["queries a second"] > 0).all()

    def test_its_picture_shows_each_clip(self, pooled, corpus):
        heard = attention.restore_frames(pooled, corpus)
        clips = corpus.split("test").clips["clip"][:2].tolist()
        assert len(attention.picture(heard, clips).axes) == 4

    @pytest.mark.parametrize("name, close", [("compact", 0.33), ("mn04", 0.17), ("cnn6", 0.1), ("cnn10", 0.17)])
    def test_frames_of_an_impulse_lie_where_it_is_heard(self, name, close):
        """The frame that differs most from silence is the one whose centre is nearest to a click."""
        from atr import encoders

        torch.manual_seed(0)
        encoder = encoders.build(name).eval()
        rate = encoder.sample_rate
        silence = torch.zeros(1, rate * 10)
        for second in (1.28, 4.48, 8.32):
            click = silence.clone()
            click[0, int(second * rate)] = 1.0
            with torch.no_grad():
                change = (encoder(click)[0] - encoder(silence)[0]).norm(dim=2)[0]
            times = attention.frame_times(encoder, len(change))
            assert abs(times[change.argmax()] - second) <= close

    def test_other_runs_have_no_attention(self, corpus, tmp_path):
        run = fit(config(epochs=0), corpus, runs=tmp_path)
        with pytest.raises(ValueError, match="no text-aware pooling"):
            attention.restore_frames(run, corpus)
        with pytest.raises(ValueError, match="no text-aware pooling"):
            attention.scoring_cost(run, corpus)
        with pytest.raises(ValueError, match="where its frames lie"):
            attention.frame_times(object(), 3)


class TestLearnedLoss:
    def test_what_the_loss_learns_is_kept_by_step(self, corpus, tmp_path):
        kind = config(loss={"name": "sigmoid"}, learning_rates={"heads": 1e-3, "loss": 0.1}, training="frozen")
        run = fit(kind, corpus, runs=tmp_path)
        assert run.learned.columns.tolist() == ["stage", "epoch", "step", "t", "b"]
        assert run.learned["step"].tolist() == [1, 2, 3, 4] and run.learned["epoch"].tolist() == [1, 1, 2, 2]
        assert run.learned["t"].iloc[0] == pytest.approx(0.9, abs=1e-3)  # Adam's first step is its rate

    def test_a_rate_of_zero_keeps_it(self, corpus, tmp_path):
        kind = config(loss={"name": "sigmoid"}, learning_rates={"heads": 1e-3, "loss": 0.0}, training="frozen")
        learned = fit(kind, corpus, runs=tmp_path).learned
        assert (learned["t"] == 1).all() and (learned["b"] == -10).all()

    def test_a_continued_run_keeps_the_steps_before(self, corpus, tmp_path, monkeypatch):
        kind = config(loss={"name": "sigmoid"}, learning_rates={"heads": 1e-3, "loss": 0.1}, training="frozen")
        whole = fit(kind, corpus, runs=tmp_path / "whole")
        real, calls = Run.write_history, []

        def stop(folder, history):
            real(folder, history)
            calls.append(1)
            if len(calls) == 1:
                raise KeyboardInterrupt

        monkeypatch.setattr(Run, "write_history", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(kind, corpus, runs=tmp_path / "cut")
        monkeypatch.undo()
        pd.testing.assert_frame_equal(fit(kind, corpus, runs=tmp_path / "cut").learned, whole.learned)

    def test_a_learned_temperature_starts_where_it_is_put_and_is_learned(self):
        loss, fixed = (losses.build("nt_xent", temperature=0.05, learned=learned) for learned in (True, False))
        torch.manual_seed(0)
        audio, text, ids = torch.randn(6, 4), torch.randn(6, 4), torch.arange(6)
        assert loss(audio, text, ids).item() == pytest.approx(fixed(audio, text, ids).item(), rel=1e-6)
        assert dict(loss.named_parameters())["log_temperature"].item() == pytest.approx(math.log(0.05))
        assert not list(fixed.parameters())
        loss(audio, text, ids).backward()
        step = 1e-3
        values = [
            losses.build("nt_xent", temperature=0.05 * math.exp(sign * step))(audio.double(), text.double(), ids)
            for sign in (1, -1)
        ]
        slope = (values[0] - values[1]).item() / (2 * step)
        assert loss.log_temperature.grad.item() == pytest.approx(slope, rel=1e-3)

    def test_other_losses_learn_nothing(self, corpus, tmp_path):
        run = fit(config(training="frozen"), corpus, runs=tmp_path)
        with pytest.raises(FileNotFoundError):
            run.learned  # noqa: B018


class TestValidationLoss:
    def test_it_is_the_mean_loss_over_batches_of_all_validation_pairs(self, corpus, tmp_path):
        kind = config(training="frozen", epochs=1, learning_rates={"heads": 0.0})
        run = fit(kind, corpus, runs=tmp_path)
        prepared = preparation.prepare(kind, corpus, quiet=True)
        network = model.load(model.build(kind, prepared), run)
        split = prepared.splits["validation"]
        audio, text = evaluation.embed(network, split)
        order = np.random.default_rng([0, 0, 1]).permutation(60)
        values = []
        for start in range(0, 60, 20):
            captions = order[start : start + 20]
            clips = split.clip_of_caption[captions]
            loss = losses.build(**kind.loss, variant=kind.recipe)
            values.append(loss(audio[clips], text[captions], torch.from_numpy(clips)).item())
        assert run.history["validation_loss"].iloc[0] == pytest.approx(np.mean(values), rel=1e-5)

    def test_of_a_text_aware_model_it_comes_from_its_similarities(self, pooled):
        assert pooled.history["validation_loss"].between(0, 10).all()
        assert pooled.history["validation_loss"].nunique() == 2


class TestRecipe:
    def test_heads_can_be_linear(self, pooled, corpus):
        network = model.build(pooled.config, preparation.prepare(pooled.config, corpus, ("test",), True))
        assert [type(layer).__name__ for layer in network.audio_head] == ["Linear"]
        assert [type(layer).__name__ for layer in network.text_head] == ["Linear"]

    def test_any_encoder_can_take_the_mean_of_its_frames(self):
        from atr import encoders

        frames, mask = torch.arange(12.0).reshape(1, 4, 3), torch.tensor([[True, True, False, False]])
        for name in ("compact", "cnn6"):
            assert encoders.build(name, pooling="mean").pool(frames, mask).tolist() == [[1.5, 2.5, 3.5]]

    def test_the_last_incomplete_batch_can_be_kept(self, corpus, tmp_path):
        kind = config(training="frozen", loss={"name": "sigmoid"}, drop_last=False)
        assert fit(kind, corpus, runs=tmp_path).learned["step"].max() == 2 * 3  # 20, 20 and 8 of 48

    def test_cosine_falls_to_its_floor_at_its_epoch(self):
        """The schedule of the thesis: up over the first epoch, down to 1e-7 at epoch 15, then level."""
        kind = get_profile("paper").thesis(0)
        rates = [learning_rate(kind, 2e-5, step, 100) for step in (0, 50, 100, 800, 1500, 1900)]
        assert rates == pytest.approx([0, 1e-5, 2e-5, 1e-7 + (2e-5 - 1e-7) / 2, 1e-7, 1e-7])
        assert learning_rate(kind, 0.1, 800, 100) == pytest.approx(1e-7 + (0.1 - 1e-7) / 2)

    @pytest.mark.parametrize("value", [1.0, 0, "15", math.inf, True])
    def test_a_cosine_that_ends_before_it_begins_is_refused(self, value):
        with pytest.raises(ConfigError, match="cosine_epochs"):
            config(schedule="cosine", warmup_epochs=1.0, cosine_epochs=value)

    def test_paper_grids_are_those_of_the_thesis(self):
        setting = get_profile("paper")
        released, text = (setting.thesis(1, "PaSST", "sigmoid", recipe=recipe) for recipe in ("code", "text"))
        assert (released.audio_encoder, released.augment, released.select_by) == (
            "passt_s_stride16",
            "patchout",
            "last",
        )
        assert (text.audio_encoder, text.augment, text.select_by) == ("passt_s", None, "t2a_map10")
        assert (released.betas, text.betas) == ((0.9, 0.999), (0.9, 0.99))
        weights = [setting.thesis(1, recipe=recipe).loss.get("weight") for recipe in ("code", "text")]
        assert weights == [None, 0.5]  # equation 3.2, which the code's form has by itself
        for run in (released, text):
            assert run.corpus == {"name": "clotho"} and run.text_encoder == "roberta-large" and run.head == "linear"
            assert (run.batch_size, run.epochs, run.embedding_dim, run.optimizer) == (16, 20, 1024, "adamw")
            assert run.rate("loss") == 0.1 and run.rate("text") == run.rate("audio") == 2e-5
            assert run.padding == "masked" and run.clip_norm is None and not run.drop_last
        slow = setting.thesis(0, audio_share=0.2, text_aware=True)
        assert slow.rate("audio") == 4e-6 and slow.rate("pooling") == 2e-5 and slow.audio_encoder == "atst_frame"
        assert slow.text_aware == {"projection_dim": 2048, "dropout": 0.1}
        assert slow.loss == {"name": "nt_xent", "temperature": 0.05, "same_clip": "positive"}
