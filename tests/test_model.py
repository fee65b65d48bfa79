from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from atr import losses
from atr.config import RunConfig
from atr.system import packed
from atr.training import evaluation, model, preparation

DIM = 8
TEXT_DIM = 16
TRAININGS = ("frozen", "frozen_released", "finetuned", "scratch")


@pytest.fixture(scope="module")
def config(tiny_bert):
    def make(training, **changes):
        fields = {"text_encoder": str(tiny_bert), "embedding_dim": DIM, "batch_size": 4}
        return RunConfig(training=training, **fields | changes)

    return make


@pytest.fixture(scope="module")
def prepared(corpus):
    made = {}

    def get(setting):
        key = (setting.training, setting.text_layers)
        if key not in made:
            made[key] = preparation.prepare(setting, corpus, ("test",), quiet=True)
        return made[key]

    return get


@pytest.fixture(params=TRAININGS)
def case(request, config, prepared):
    """(config, model, inputs) of each kind of training."""
    setting = config(request.param)
    torch.manual_seed(0)
    return setting, model.build(setting, prepared(setting)), prepared(setting).splits["test"]


@pytest.fixture(scope="module")
def build(config, prepared):
    def make(training, **changes):
        torch.manual_seed(0)
        setting = config(training, **changes)
        return model.build(setting, prepared(setting)), prepared(setting).splits["test"]

    return make


def step(dual, inputs, loss, rate=0.1):
    """One step of gradient descent on the first clips."""
    captions = np.arange(0, 40, 5)
    clips = inputs.clip_of_caption[captions]
    optimizer = torch.optim.SGD([p for p in dual.parameters() if p.requires_grad], rate)
    audio, text = dual(inputs.audio.batch(clips), inputs.text.batch(captions))
    loss(audio, text, torch.from_numpy(clips)).backward()
    optimizer.step()


def test_embeddings_have_the_models_width_and_length_one(case):
    _, dual, inputs = case
    audio, text = dual(inputs.audio.batch(np.arange(3)), inputs.text.batch(np.arange(5)))
    assert audio.shape == (3, DIM) and text.shape == (5, DIM)
    torch.testing.assert_close(audio.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(text.norm(dim=1), torch.ones(5))


def test_one_side_alone_gives_one_side(case):
    _, dual, inputs = case
    dual.eval()
    audio, text = dual(inputs.audio.batch(np.arange(2)), inputs.text.batch(np.arange(2)))
    only_audio, nothing = dual(inputs.audio.batch(np.arange(2)), None)
    assert nothing is None and torch.equal(only_audio, audio)
    nothing, only_text = dual(None, inputs.text.batch(np.arange(2)))
    assert nothing is None and torch.equal(only_text, text)


def test_heads_are_linear_relu_linear_of_the_released_widths(case):
    _, dual, _ = case
    for head, widths in ((dual.audio_head, (192, DIM, DIM)), (dual.text_head, (TEXT_DIM, 2 * DIM, DIM))):
        first, relu, second = head
        assert isinstance(relu, torch.nn.ReLU)
        assert (first.in_features, first.out_features, second.out_features) == widths


@pytest.mark.parametrize("training", ["frozen", "finetuned"])
def test_an_adapter_begins_where_the_text_encoder_puts_a_caption(build, training):
    dual, inputs = build(training, head="adapter", embedding_dim=TEXT_DIM)
    captions = inputs.text.batch(np.arange(6))
    with torch.no_grad():
        assert torch.allclose(dual.eval().embed_text(captions), F.normalize(dual.pool_text(captions), dim=1), atol=1e-6)
    assert [type(layer) for layer in dual.audio_head] == [torch.nn.Linear]


def test_an_adapter_adds_a_tenth_of_what_its_bottleneck_says():
    adapter = model.Adapter(4)  # a bottleneck of one
    first, _, last = adapter.bottleneck
    with torch.no_grad():
        first.weight[:] = torch.tensor([[0.0, 2, 0, 0]])
        first.bias[:] = -0.6
        last.weight[:] = torch.tensor([[1.0], [0], [0], [-2]])
        last.bias[:] = torch.tensor([0.0, 0, 5, 0])
        said = adapter(torch.tensor([[3.0, 4, 0, 0], [4, -3, 0, 0]]))  # of length 5; the second stays below 0
    assert torch.allclose(said, torch.tensor([[0.7, 0.8, 0.5, -0.2], [0.8, -0.6, 0.5, 0]]))


def test_an_adapter_of_another_width_is_an_error(build):
    with pytest.raises(ValueError, match="'adapter' keeps the text encoder's width; set embedding_dim=16, not 8"):
        build("frozen", head="adapter")


def test_heads_depend_on_the_seed_alone(build, config, prepared):
    first, _ = build("frozen")
    torch.manual_seed(1)
    other = model.build(config("frozen"), prepared(config("frozen")))
    again, _ = build("frozen")
    assert torch.equal(first.audio_head[0].weight, again.audio_head[0].weight)
    assert not torch.equal(first.audio_head[0].weight, other.audio_head[0].weight)


def test_frozen_and_untrained_fine_tuned_models_agree(build):
    """Cached features under the same heads are the encoders in evaluation mode."""
    frozen, cached = build("frozen")
    for training, changes in [("finetuned", {}), ("finetuned", {"text_layers": None}), ("frozen_released", {})]:
        dual, inputs = build(training, **changes)
        dual.audio_head.load_state_dict(frozen.audio_head.state_dict())
        dual.text_head.load_state_dict(frozen.text_head.state_dict())
        for ours, theirs in zip(evaluation.embed(dual, inputs), evaluation.embed(frozen, cached), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_scratch_starts_from_a_random_audio_encoder_and_fine_tuning_from_the_pretrained(build):
    scratch, tuned = build("scratch")[0], build("finetuned")[0]
    assert scratch.audio_encoder.bn0.num_batches_tracked == 0
    assert tuned.audio_encoder.bn0.num_batches_tracked > 0


def test_augmentation_is_as_the_config_says(build):
    from atr.encoders.audio.frontends import SpecAugment

    assert isinstance(build("finetuned")[0].audio_encoder.augment, SpecAugment)
    assert not isinstance(build("finetuned", augment=None)[0].audio_encoder.augment, SpecAugment)


def test_text_dropout_is_as_the_config_says(build):
    dual, _ = build("frozen_released", text_dropout=0.2)
    assert dual.text_encoder.model.config.hidden_dropout_prob == 0.2


# --- what training changes


def test_training_changes_what_is_kept_and_nothing_else(case):
    _, dual, inputs = case
    before = {name: tensor.clone() for name, tensor in dual.state_dict().items()}
    dual.train()
    step(dual, inputs, losses.build("nt_xent"))
    changed = {name for name, tensor in dual.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed <= set(dual.trainable_state())
    assert {name for name in dual.trainable_state() if "head" in name} <= changed


def test_kept_tensors_are_those_of_each_kind_of_training(build):
    heads = {
        f"{side}_head.{place}.{kind}" for side in ("audio", "text") for place in (0, 2) for kind in ("weight", "bias")
    }
    assert set(build("frozen")[0].trainable_state()) == heads

    released = set(build("frozen_released")[0].trainable_state()) - heads
    assert released and {name.rsplit(".", 1)[1] for name in released} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    for training in ("finetuned", "scratch"):
        dual, _ = build(training)
        assert set(dual.trainable_state()) == set(dual.state_dict())
        layers = {name.split(".")[4] for name in dual.trainable_state() if name.startswith("text_encoder.")}
        assert layers == {"0", "1"}  # the top two of four
    whole, _ = build("finetuned", text_layers=None)
    assert "text_encoder.model.embeddings.word_embeddings.weight" in whole.trainable_state()


def test_frozen_released_fixes_parameters_but_not_batch_statistics_dropout_or_augmentation(build):
    dual, inputs = build("frozen_released")
    parameters = {name: p.clone() for name, p in dual.named_parameters() if "head" not in name}
    statistics = dual.audio_encoder.bn0.running_mean.clone()
    dual.train()
    step(dual, inputs, losses.build("nt_xent"))
    now = dict(dual.named_parameters())
    assert parameters and all(torch.equal(tensor, now[name]) for name, tensor in parameters.items())
    assert not torch.equal(statistics, dual.audio_encoder.bn0.running_mean)
    audio, text = inputs.audio.batch(np.arange(4)), inputs.text.batch(np.arange(4))
    first, second = dual(audio, text), dual(audio, text)
    assert not torch.equal(first[0], second[0])  # SpecAugment
    assert not torch.equal(first[1], second[1])  # dropout


def test_kept_tensors_restore_a_model(case, prepared):
    setting, dual, inputs = case
    dual.train()
    step(dual, inputs, losses.build("nt_xent"))
    kept = {name: tensor.clone() for name, tensor in dual.trainable_state().items()}
    torch.manual_seed(9)
    other = model.build(setting, prepared(setting))
    other.load_state_dict(kept, strict=False)
    if setting.training == "scratch":
        assert set(kept) == set(other.state_dict())
    for ours, theirs in zip(evaluation.embed(dual, inputs), evaluation.embed(other, inputs), strict=True):
        assert torch.equal(ours, theirs)


# --- optimiser groups


def test_every_trained_parameter_is_in_one_group_at_its_rate(case):
    setting, dual, _ = case
    rates = {"heads": 1e-3, "audio": 1e-4, "text": 1e-5, "loss": 0.1}
    groups = model.parameter_groups(dual, losses.build("sigmoid"), setting.replace(learning_rates=rates))
    present = ["heads", "loss"] if setting.training.startswith("frozen") else ["heads", "audio", "text", "loss"]
    assert [group["name"] for group in groups] == present
    assert [group["lr"] for group in groups] == [group["peak"] for group in groups] == [rates[n] for n in present]
    grouped = [id(p) for group in groups if group["name"] != "loss" for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in dual.parameters() if p.requires_grad}
    assert len(groups[-1]["params"]) == 2  # the sigmoid loss's scale and bias


def test_a_loss_without_parameters_has_no_group(build, config):
    groups = model.parameter_groups(build("frozen")[0], losses.build("nt_xent"), config("frozen"))
    assert [group["name"] for group in groups] == ["heads"]


# --- whole splits


def test_embedding_a_split_is_evaluation_in_the_splits_order(case):
    _, dual, inputs = case
    dual.train()
    audio, text = evaluation.embed(dual, inputs, batch_size=7)
    assert dual.training and not audio.requires_grad and audio.dtype == torch.float32
    assert audio.shape == (len(inputs.audio), DIM) and text.shape == (len(inputs.text), DIM)
    dual.eval()
    with torch.no_grad():
        for row in (0, 5, 15):
            place = np.array([row])
            alone = dual(inputs.audio.batch(place), inputs.text.batch(place))
            torch.testing.assert_close(audio[row], alone[0][0], atol=1e-5, rtol=0)
            torch.testing.assert_close(text[row], alone[1][0], atol=1e-5, rtol=0)


def test_a_split_is_moved_by_the_function_given(build):
    dual, inputs = build("finetuned")
    moved = []
    evaluation.embed(dual, inputs, lambda tensor: (moved.append(tensor.dtype), tensor)[1])
    assert moved.count(torch.float32) == 2 and moved.count(torch.int64) == 2  # features and lengths of both sides


def test_released_batches_are_those_of_a_loader_of_captions_in_order():
    # Clips 0 to 3 with 2, 1, 3 and 2 captions; three captions a batch: 0 0 1 | 2 2 2 | 3 3
    batches = evaluation.released_batches(np.array([0, 0, 1, 2, 2, 2, 3, 3]), 3)
    assert [(members.tolist(), wanted.tolist()) for members, wanted in batches] == [
        ([0, 1], [0, 1]),
        ([2], [2]),
        ([3], [3]),
    ]
    # Two a batch: clip 2's captions lie in two batches, and the first one counts; a batch that adds none is left out.
    batches = evaluation.released_batches(np.array([0, 0, 1, 2, 2, 2, 3, 3]), 2)
    assert [(members.tolist(), wanted.tolist()) for members, wanted in batches] == [
        ([0], [0]),
        ([1, 2], [1, 2]),
        ([3], [3]),
    ]


@given(
    counts=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    batch_size=st.integers(1, 9),
)
def test_every_clip_is_taken_from_one_released_batch_that_holds_it(counts, batch_size):
    batches = evaluation.released_batches(np.repeat(np.arange(len(counts)), counts), batch_size)
    assert sorted(clip for _, wanted in batches for clip in wanted) == list(range(len(counts)))
    assert all(set(wanted) <= set(members) for members, wanted in batches)


@pytest.fixture(scope="module")
def waveforms(corpus, config):
    """A fine-tuned CNN6 model and inputs whose clips differ in length."""
    setting = config("finetuned", audio_encoder="cnn6", audio_weights=None, augment=None)
    prepared = preparation.prepare(setting, corpus, ("test",), quiet=True)
    inputs = prepared.splits["test"]
    assert inputs.audio.kind == "waveforms"
    lengths = 32_000 + 4_000 * np.arange(len(inputs.audio))
    rows = [inputs.audio.data[row][:length] for row, length in enumerate(lengths)]
    ragged = replace(inputs.audio, data=packed.RaggedArray.of(rows))
    prepared.splits["test"] = replace(inputs, audio=ragged)
    return setting, prepared, prepared.splits["test"]


def test_with_masked_padding_a_clips_embedding_is_its_own(waveforms):
    setting, prepared, inputs = waveforms
    torch.manual_seed(0)
    dual = model.build(setting, prepared).eval()
    together, _ = evaluation.embed(dual, inputs)
    with torch.no_grad():
        alone = torch.cat([dual(inputs.audio.batch(np.array([clip])), None)[0] for clip in range(len(together))])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_with_released_padding_it_depends_on_the_longest_clip_of_its_batch(waveforms):
    setting, prepared, inputs = waveforms
    torch.manual_seed(0)
    dual = model.build(setting.replace(padding="released"), prepared).eval()
    embedded, _ = evaluation.embed(dual, inputs, released_batch=10)  # five captions a clip: two clips a batch
    with torch.no_grad():
        pairs = [dual(inputs.audio.batch(np.array([clip, clip + 1])), None)[0] for clip in range(0, len(embedded), 2)]
        alone, _ = dual(inputs.audio.batch(np.array([0])), None)
    torch.testing.assert_close(embedded, torch.cat(pairs), atol=1e-6, rtol=0)
    assert (embedded[0] - alone[0]).abs().max() > 1e-3  # padded to its neighbour's length


def test_released_padding_wants_waveforms(corpus, config):
    with pytest.raises(ValueError, match="padding 'released': compact reads cached log-mels, which hold no padding"):
        preparation.prepare(config("finetuned", padding="released"), corpus, ("test",), quiet=True)
