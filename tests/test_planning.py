import itertools
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch

from atr import get_profile
from atr.bench import harness, needs
from atr.config import RunConfig
from atr.experiments import planning, study
from atr.experiments.planning import CorpusSize, Measurement
from atr.system import units

DATA = CorpusSize({"train": 100, "validation": 10, "test": 20}, {"train": 500, "validation": 50, "test": 100}, 5.0)
FROZEN = Measurement(
    fixed=1.0,
    pair=0.1,
    clip=0.03,
    caption=0.01,
    activations=1e6,
    parameters=4e6,
    trained=2e6,
    checkpoint=2e6,
    copy=2e6,
    seconds=0.0,
)
MEASURED = replace(FROZEN, seconds=10.0)


def test_steps_and_seconds_of_a_run_by_hand():
    config = RunConfig(sampler="all_captions", batch_size=32, epochs=3)
    cost = planning.cost(config, FROZEN, DATA)
    assert cost.steps == 3 * (500 // 32)
    validation, test = 10 * 0.03 + 50 * 0.01, 20 * 0.03 + 100 * 0.01
    # validated after each epoch, tested once
    assert cost.seconds == pytest.approx(45 * (1.0 + 32 * 0.1) + 3 * validation + test)
    assert planning.cost(config.replace(sampler="caption_per_clip"), FROZEN, DATA).steps == 3 * (100 // 32)
    # tested after each stage; mined batches keep the last one
    staged = planning.cost(config.replace(stages=[{}, {"epochs": 1, "mining": "random"}]), FROZEN, DATA)
    assert staged.steps == 3 * 15 + 16
    assert staged.seconds == pytest.approx(61 * (1.0 + 32 * 0.1) + 4 * validation + 2 * test)


def test_memory_and_disk_of_a_run_by_hand():
    cost = planning.cost(RunConfig(batch_size=32, embedding_dim=256), FROZEN, DATA)
    # weights; gradients and Adam's two moments; the best epoch's copy; activations
    assert cost.memory == 4e6 + 3 * 2e6 + 2e6 + 32 * 1e6
    # while unfinished: weights, the best epoch's, two moments, beside those of the epoch before
    assert cost.disk == 2e6 + 4 * 256 * (20 + 100) and cost.state == 2 * (2 * 2e6 + 2 * 2e6)


def test_what_sound_costs_grows_with_its_length_and_words_do_not():
    twice = MEASURED.at(20.0)
    assert (twice.clip, twice.caption, twice.fixed) == (0.06, 0.01, 1.0)
    assert twice.pair == pytest.approx(0.1 * (2 * 0.75 + 0.25))  # three quarters of a pair are sound
    assert FROZEN.at(20.0) == FROZEN
    config = RunConfig(max_seconds=2.0)
    short, long = (CorpusSize(DATA.clips, DATA.captions, seconds) for seconds in (2.0, 30.0))
    assert planning.cost(config, MEASURED, short) == planning.cost(config, MEASURED, long)


def test_batches_are_as_long_as_their_longest_clip():
    uneven = replace(DATA, seconds=20.0, longest=30.0)
    cost, even = (planning.cost(RunConfig(epochs=1), MEASURED, data) for data in (uneven, replace(DATA, seconds=20.0)))
    steps = 100 // 32
    assert cost.seconds - even.seconds == pytest.approx(steps * 32 * (MEASURED.at(30.0).pair - MEASURED.at(20.0).pair))
    assert cost.memory - even.memory == pytest.approx(32 * 1e6 * 0.75)


def test_sizes_are_of_the_corpus_at_hand_else_published_else_what_its_options_say(corpus):
    assert planning.size(RunConfig(), corpus) == CorpusSize(
        {"train": 48, "validation": 12, "test": 16}, {"train": 240, "validation": 60, "test": 80}, 4.0, 4.0
    )
    clotho = planning.size(RunConfig(corpus="clotho"), None)
    assert clotho.clips == {"train": 3839, "validation": 1045, "test": 1045} and clotho.captions["train"] == 5 * 3839
    held = planning.size(RunConfig(corpus={"name": "clotho", "hold_out": 100}), None)
    assert held.clips == {"train": 5829, "validation": 100} and held.captions == {"train": 29145, "validation": 500}
    for use, captions in (("both", 10), ("synthetic", 5)):
        both = planning.size(RunConfig(corpus={"name": "clotho", "synthetic": "paraphrase", "use": use}), None)
        assert both.captions == {"train": captions * 3839, "validation": 5225, "test": 5225}
    asked = planning.size(RunConfig(corpus={"name": "soundscapes", "train": 7, "validation": 2, "test": 3}), None)
    assert asked.clips == {"train": 7, "validation": 2, "test": 3} and asked.seconds == 10.0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"training": "finetuned"},
        {"training": "finetuned", "head": "linear", "text_aware": {"projection_dim": 64}},
        {"training": "finetuned", "audio_encoder": "cnn6", "text_layers": None},
        {"training": "frozen_released", "audio_encoder": "cnn6"},
    ],
)
def test_a_measurement_is_positive_and_knows_what_is_trained(changes, tiny_bert):
    config = RunConfig(text_encoder=str(tiny_bert), embedding_dim=16, **changes)
    measured = needs.measure(config, "cpu")
    assert min(measured.clip, measured.caption, measured.activations) > 0 and measured.fixed + measured.pair > 0
    assert (measured.trained < measured.parameters) == (config.training == "frozen_released")
    assert measured.checkpoint >= measured.trained and (measured.seconds > 0) == (config.training != "frozen")
    if config.training == "frozen":  # two heads: 192 to 16 to 16, and 16 to 32 to 16, with biases
        assert measured.parameters == 4 * (192 * 16 + 16 + 16 * 16 + 16 + 16 * 32 + 32 + 32 * 16 + 16)


def test_more_activations_are_kept_for_more_of_the_network(tiny_bert):
    config = RunConfig(text_encoder=str(tiny_bert), embedding_dim=16, audio_encoder="cnn6", text_layers=None)
    tuned = needs.measure(config.replace(training="finetuned"), "cpu")
    fixed = needs.measure(config.replace(training="frozen_released"), "cpu")
    assert tuned.activations > 100 * fixed.activations


def test_known_text_encoders_are_planned_for_without_a_download():
    for name, width in (("bert-base-uncased", 768), ("FacebookAI/roberta-base", 768)):
        _, _, words = needs.shell(RunConfig(text_encoder=name))
        assert words(3, "cpu").values.shape == (3, width)


def test_like_runs_are_summed(monkeypatch):
    monkeypatch.setattr(needs, "measure", lambda config, device: FROZEN)
    path = study.notebooks(["02"])[0]
    configs = study.grid(path, {"profile_name": "paper", "seeds": [0]})
    finished = [config.loss["name"] == "nt_xent" for config in configs]
    plan = pd.DataFrame({"notebooks": "02", "finished": finished, "config": configs})
    plan["size"] = [planning.size(config, None) for config in configs]
    groups, words = needs.summary(plan, "cpu", 2)
    assert groups["runs"].tolist() == [4, 4, 4, 4] and groups["finished"].tolist() == [1, 1, 1, 1]
    assert groups["batch"].tolist() == [32, 128, 32, 128] and groups["steps"].iloc[0] == 50 * (49274 // 32)
    one = planning.cost(configs[0], FROZEN, planning.size(configs[0], None))
    assert groups["time"].iloc[0] == units.duration(3 * one.seconds)
    assert groups["disk"].iloc[0] == units.gigabytes(4 * one.disk)
    packed = 2 * 32_000 * 10.0 * (49274 + 494 + 957)  # 16 bit, 32 kHz, 10 s
    assert f"and {units.gigabytes(packed)} of packed audio" in words and "2 runs side by side" in words


def test_finished_runs_and_external_models_take_nothing(monkeypatch):
    monkeypatch.setattr(needs, "measure", lambda config, device: FROZEN)
    trained = RunConfig()
    clap = RunConfig(training="external", audio_encoder="clap", text_encoder="someone/clap", epochs=0)
    plan = pd.DataFrame({"notebooks": "01", "finished": [True, False], "config": [trained, clap], "size": [DATA] * 2})
    groups, words = needs.summary(plan, "cpu", 1)
    assert groups["runs"].tolist() == [1] and groups["time"].tolist() == [""] and words.startswith("About nothing")


def test_planning_fetches_no_text_encoder(monkeypatch):
    monkeypatch.setattr(needs.text, "folder", lambda name, fetch: fetch and pytest.fail("fetched"))
    with pytest.raises((OSError, TypeError, ValueError)):
        needs.shell(RunConfig(text_encoder="someone/unknown"))


def test_the_corpora_at_hand_count(corpus, monkeypatch):
    monkeypatch.setattr(needs, "measure", lambda config, device: FROZEN)
    config = get_profile("smoke").config("soundscapes", "frozen", "nt_xent", 0)
    size = planning.size(config, corpus)
    plan = pd.DataFrame({"notebooks": ["01"], "finished": [False], "config": [config], "size": [size]})
    groups, _ = needs.summary(plan, "cpu", 1)
    assert groups["steps"].tolist() == [config.epochs * (48 // config.batch_size)]


@pytest.mark.parametrize(("dim", "audio"), [(8, 192), (256, 192)])
def test_parameters_of_both_heads_by_hand(dim, audio):
    def layers(*widths):
        return sum(inputs * outputs + outputs for inputs, outputs in zip(widths, widths[1:], strict=False))

    expected = layers(audio, dim, dim) + layers(384, 2 * dim, dim)
    assert needs.head_parameters(RunConfig(embedding_dim=dim)) == expected


def test_searches_are_counted_a_second(monkeypatch):
    monkeypatch.setattr(harness.time, "process_time", itertools.count(0.0, 2.0).__next__)  # each pass takes two seconds
    assert needs.queries_a_second(8, clips=100, queries=3) == 1.5


@pytest.mark.parametrize(("training", "seconds"), [("frozen", 0.101), ("frozen_released", 7.3), ("finetuned", 5.6)])
def test_an_epoch_of_the_small_encoders_takes_what_was_measured(training, seconds):
    """Of 31 steps of 32 pairs, and 200 clips and 1,000 captions of validation; nothing is tested."""
    data = CorpusSize({"train": 1000, "validation": 200}, {"train": 5000, "validation": 1000}, 10.0)
    one, three = (planning.seconds(RunConfig(training=training, epochs=epochs), data) for epochs in (1, 3))
    assert (three - one) / 2 == pytest.approx(seconds, rel=0.05)


@pytest.mark.parametrize(("dim", "took"), [(8, 3.3), (64, 4.8), (256, 10.8), (512, 21.5), (1024, 52.1), (2048, 165.5)])
def test_a_frozen_run_takes_what_was_measured_by_its_dimension(dim, took):
    """Medians of 80 epochs in batches of 64, where a fine-tuned run took 1.35 times what is planned."""
    clips = {"train": 1000, "validation": 200, "test": 500}
    data = CorpusSize(clips, {split: 5 * number for split, number in clips.items()}, 10.0)
    config = RunConfig(training="frozen", epochs=80, batch_size=64, embedding_dim=dim)
    assert 1.35 * planning.seconds(config, data) == pytest.approx(took, rel=0.2)


@pytest.mark.parametrize(("epochs", "took"), [(2, 37.9), (10, 175.7), (20, 342.6)])
def test_a_fine_tuned_run_over_states_takes_what_was_measured(epochs, took):
    """Medians of 97 runs of esc50, where a frozen one took 1.35 times what is planned."""
    clips = {"train": 2000, "validation": 300, "test": 500}
    data = CorpusSize(clips, {split: 5 * number for split, number in clips.items()}, 10.0)
    fields = {"audio_encoder": "mn04", "audio_layers": 3, "text_layers": 1}
    config = RunConfig(training="finetuned", epochs=epochs, **fields)
    assert 1.35 * planning.seconds(config, data) == pytest.approx(took, rel=0.05)


def test_what_runs_beside_it_does_not_lengthen_a_measurement_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "topk", lambda *_: time.sleep(0.01))
    assert needs.queries_a_second(8, clips=100, queries=20) > 200
