import json
import math

import pytest

from atr.config import CHOICES, ConfigError, RunConfig, from_dict
from atr.experiments import profiles
from atr.experiments.profiles import PROFILES, get_profile


def test_a_config_is_fixed():
    with pytest.raises(AttributeError):
        RunConfig().seed = 1


def test_the_corpus_may_be_given_by_its_name_alone():
    assert RunConfig(corpus="csv").corpus == {"name": "csv"}
    assert RunConfig(corpus="csv") == RunConfig(corpus={"name": "csv"})


def test_a_config_survives_json():
    config = RunConfig(
        loss={"name": "triplet_max", "margin": 0.1}, learning_rates={"heads": 1e-3, "text": 1e-5}, seed=7
    )
    assert from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_replace_changes_what_it_names_and_checks_it():
    config = RunConfig(seed=3)
    changed = config.replace(batch_size=64)
    assert (changed.batch_size, changed.seed, config.batch_size) == (64, 3, 32)
    with pytest.raises(ConfigError, match="unknown field bach_size"):
        config.replace(bach_size=64)


def test_a_group_without_a_rate_uses_that_of_the_heads():
    config = RunConfig(learning_rates={"heads": 1e-3, "text": 1e-5})
    assert [config.rate(group) for group in ("heads", "audio", "text", "loss")] == [1e-3, 1e-3, 1e-5, 1e-3]


def test_zero_epochs_are_allowed():
    assert RunConfig(epochs=0).epochs == 0


@pytest.mark.parametrize("name", CHOICES)
def test_an_unknown_choice_names_the_field_and_the_known_ones(name):
    with pytest.raises(ConfigError, match=f"{name}: unknown 'nonsense'; known: .*{CHOICES[name][0]!r}"):
        RunConfig(**{name: "nonsense"})


FAULTS = [
    ("batch_size", 0, "batch_size: 0 is not a whole number of 1 or more"),
    ("batch_size", 32.0, "batch_size: 32.0"),
    ("embedding_dim", True, "embedding_dim: True"),
    ("epochs", -1, "epochs: -1 is not a whole number of 0 or more"),
    ("step_epochs", 0, "step_epochs: 0"),
    ("seed", -1, "seed: -1"),
    ("seed", True, "seed: True"),
    ("seed", 1.5, "seed: 1.5"),
    ("corpus", {"train": 3}, 'corpus: .* has no "name"'),
    ("corpus", None, 'corpus: None has no "name"'),
    ("loss", "nt_xent", "loss: 'nt_xent' has no \"name\""),
    ("loss", {"name": "nt_xnt"}, "loss: .*nt_xnt.*nt_xent"),
    ("loss", {"name": "nt_xent", "temprature": 0.1}, "loss: nt_xent: no parameter 'temprature'; known: 'temperature'"),
    ("loss", {"name": "nt_xent", "temperature": "hot"}, "loss: "),
    ("loss", {"name": "nt_xent", "variant": "text"}, "loss: .*variant"),
    ("learning_rates", {"audio": 1e-3}, "learning_rates: no heads; known groups: heads, audio, text, pooling, loss"),
    ("learning_rates", {"heads": 1e-3, "haeds": 1e-3}, "learning_rates: 'haeds'"),
    ("learning_rates", {"heads": -1e-3}, "learning_rates: heads: -0.001"),
    ("learning_rates", {"heads": math.nan}, "learning_rates: heads: nan"),
    ("learning_rates", {"heads": math.inf}, "learning_rates: heads: inf"),
    ("learning_rates", {"heads": "1e-3"}, "learning_rates: heads: '1e-3'"),
    ("learning_rates", 1e-3, "learning_rates: 0.001; write"),
    ("clip_norm", "2", "clip_norm: '2'"),
    ("clip_norm", math.inf, "clip_norm: inf"),
    ("weight_decay", None, "weight_decay: None"),
    ("betas", (0.9,), "betas: \\(0.9,\\)"),
    ("betas", (0.9, 1.0), "betas: \\(0.9, 1.0\\)"),
    ("betas", 0.9, "betas: 0.9"),
    ("weight_decay", math.nan, "weight_decay: nan"),
    ("step_factor", -0.1, "step_factor: -0.1"),
    ("warmup_epochs", -1, "warmup_epochs: -1"),
    ("text_dropout", 1.0, "text_dropout: 1.0 is not a number from 0 and below 1.0"),
    ("text_layers", 0, "text_layers: 0"),
    ("text_layers", 1.5, "text_layers: 1.5"),
    ("audio_dropout", -0.1, "audio_dropout: -0.1 is not a number from 0 and below 1.0"),
    ("max_seconds", 0, "max_seconds: 0 is not a positive number, nor None"),
    ("max_seconds", math.inf, "max_seconds: inf"),
    ("penalty", {}, 'penalty: no "alpha"'),
    ("penalty", {"alpha": 0}, "penalty: alpha is 0"),
    ("penalty", {"alpha": True}, "penalty: alpha is True"),
    ("penalty", {"alpha": 1, "beta": 2}, "penalty: unknown beta; known: alpha, estimator"),
    ("penalty", {"alpha": 1, "dims": 4}, "penalty: unknown dims"),
    ("penalty", {"alpha": 1, "estimator": "netwrok"}, "penalty: estimator is 'netwrok'"),
    ("penalty", {"alpha": 1, "histogram": "hard"}, "penalty: histogram is 'hard'"),
    ("penalty", {"alpha": 1, "scale": -1}, "penalty: scale is -1"),
    ("penalty", {"alpha": 1, "network": {"epoch": 1}}, "penalty: .*epoch"),
    ("padding", "zeros", "padding: unknown 'zeros'; known: 'masked', 'released'"),
    ("padding", "released", "padding: 'released' needs batches"),
    ("training", "external", "training: 'external' evaluates as it is; set audio_encoder='clap' and epochs=0"),
    ("audio_encoder", None, "audio_encoder: None"),
    ("text_encoder", "", "text_encoder: ''"),
]


@pytest.mark.parametrize(("name", "value", "message"), FAULTS)
def test_a_wrong_value_is_an_error_that_names_its_field(name, value, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        RunConfig(**{name: value})


@pytest.mark.parametrize(
    "name", ["audio_dropout", "max_seconds", "text_dropout", "clip_norm", "text_layers", "audio_weights", "augment"]
)
def test_what_can_be_switched_off_takes_none(name):
    assert getattr(RunConfig(**{name: None}), name) is None


def test_a_penalty_draws_from_the_dimensions_there_are():
    with pytest.raises(ConfigError, match="^penalty: draws 8 dimensions; embedding_dim is 4"):
        RunConfig(penalty={"alpha": 1}, embedding_dim=4)


def test_a_penalty_is_held_without_what_is_at_its_default():
    spelled = {"alpha": 1, "estimator": "network", "histogram": "counts", "scale": None, "temperature": 0.1}
    assert RunConfig(penalty=spelled) == RunConfig(penalty={"alpha": 1.0})
    assert RunConfig(penalty={"alpha": 1, "estimator": "logistic"}).penalty == {"alpha": 1.0, "estimator": "logistic"}
    network = {"hidden": [16], "epochs": 2}
    config = RunConfig(penalty={"alpha": 1, "network": network})
    assert from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.identity()["penalty"] == {"alpha": 1.0, "network": network}


def test_an_unknown_field_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ConfigError, match="unknown field learning_rate; known: .*learning_rates"):
        from_dict({"learning_rate": 1e-3})


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("training", ["frozen", "finetuned"])
def test_every_profile_makes_configs_for_its_corpora(name, training):
    setting = get_profile(name)
    for corpus in setting.corpora:
        config = setting.config(corpus, training, "nt_xent", seed=5)
        assert config.corpus == setting.corpora[corpus] and setting.name_of(config) == corpus
        assert (config.epochs, config.seed, config.loss) == (setting.epochs[training], 5, {"name": "nt_xent"})
        frozen = setting.recipes["code"]["frozen"]
        assert config.training == (frozen if training == "frozen" else training)


def test_the_paper_profile_is_the_published_experiment():
    paper = get_profile("paper")
    frozen = paper.config("AudioCaps", "frozen", "nt_xent", 0)
    tuned = paper.config("Clotho", "finetuned", "nt_xent", 0, rate=0.5)
    assert (frozen.training, frozen.batch_size, tuned.batch_size) == ("frozen_released", 32, 24)
    assert (frozen.embedding_dim, frozen.epochs, frozen.step_epochs, frozen.step_factor) == (1024, 50, 20, 0.1)
    assert (frozen.optimizer, frozen.clip_norm, frozen.select_by) == ("adam", 2.0, "t2a_recall_sum")
    assert (frozen.text_pooling, frozen.text_dropout, frozen.sampler) == ("first", 0.2, "all_captions")
    assert frozen.rate("heads") == 1e-4 and {tuned.rate(group) for group in ("heads", "audio", "text")} == {5e-5}
    assert (frozen.padding, frozen.audio_dropout, frozen.augment, frozen.max_seconds) == (
        "released",
        0.2,
        "specaugment",
        30.0,
    )
    assert [name for name in PROFILES if PROFILES[name].published] == ["paper"]


def test_the_texts_recipe_differs_from_the_released_one_where_the_two_do():
    paper = get_profile("paper")
    for training in ("frozen", "finetuned"):
        released = paper.config("Clotho", training, "nt_xent", 0).to_dict()
        text = paper.config("Clotho", training, "nt_xent", 0, recipe="text").to_dict()
        changed = {name: text[name] for name in text if text[name] != released[name]}
        expected = {"recipe": "text", "pooling": "frequency_mean_max", "padding": "masked", "augment": None}
        expected |= {"audio_dropout": None, "text_dropout": None, "clip_norm": None, "select_by": "recall_sum"}
        assert changed == expected | ({"training": "frozen"} if training == "frozen" else {})


def test_a_field_at_its_default_does_not_name_a_run():
    config = RunConfig(seed=3, corpus="csv")
    assert config.identity() == {"seed": 3, "corpus": {"name": "csv"}}
    assert from_dict(config.identity()) == config and RunConfig().identity() == {}


def test_a_rate_scales_every_group_and_changes_win():
    demo = get_profile("demo")
    half = demo.config("soundscapes", "finetuned", "nt_xent", 0, rate=0.5, batch_size=128)
    whole = demo.config("soundscapes", "finetuned", "nt_xent", 0)
    assert half.learning_rates == {group: rate / 2 for group, rate in whole.learning_rates.items()}
    assert (half.batch_size, whole.batch_size) == (128, 32)


def test_a_corpus_of_no_profile_goes_by_its_own_name():
    assert get_profile("demo").name_of(RunConfig(corpus="csv")) == "csv"


def test_results_lie_in_a_folder_of_the_profile(monkeypatch, tmp_path):
    monkeypatch.setenv("ATR_RESULTS", str(tmp_path))
    assert get_profile("demo").results == tmp_path / "demo" and get_profile("demo").runs == tmp_path / "demo" / "runs"


def test_only_the_profile_of_real_clips_asks_for_their_folder(monkeypatch, tmp_path):
    assert get_profile("demo").root is None
    with pytest.raises(ValueError, match="profile esc10: needs a folder .* CLIPS=<folder>"):
        _ = get_profile("esc10").root
    monkeypatch.setenv("ATR_CLIPS", str(tmp_path))
    assert get_profile("esc10").root == tmp_path


def test_an_unknown_profile_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="profile: unknown 'demmo'; known: smoke, demo, esc50, paper, esc10"):
        profiles.get_profile("demmo")


def test_top_blocks_train_over_states_in_fine_tuning_alone():
    config = RunConfig(training="finetuned", audio_layers=3)
    assert config.audio_state_layers == 3 and config.fixed_norm
    assert not config.replace(batch_norm="batch").fixed_norm
    for training in ("scratch", "frozen", "frozen_released"):
        other = config.replace(training=training)
        assert other.audio_state_layers is None and not other.fixed_norm
