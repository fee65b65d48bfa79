import shutil
from dataclasses import replace

import made_models
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import atr
from atr import encoders, metrics
from atr.config import RunConfig
from atr.encoders import pretraining, text
from atr.encoders.clap import Clap
from atr.encoders.inputs import LOG_MELS, WAVEFORMS, log_mels, waveforms
from atr.encoders.text import TextEncoder
from atr.system import devices, hashes
from atr.system.packed import POOLED
from atr.training import identity
from atr.training.preparation import pool_features, prepare


@pytest.fixture(scope="module")
def config(tiny_bert):
    return RunConfig(text_encoder=str(tiny_bert), batch_size=16, embedding_dim=8)


@pytest.fixture(scope="module")
def part(corpus):
    return corpus.split("validation")


@pytest.fixture(scope="module")
def weights(config, corpus):
    return identity.weights(config, corpus, quiet=True).audio_weights


class Uneven:
    """The corpus's reader, every clip cut to a length of its own."""

    def __init__(self, read):
        self.read = read

    def __call__(self, clip):
        waveform, rate = self.read(clip)
        return waveform[: rate + 3000 * int(clip[-2:])], rate


@pytest.fixture(scope="module")
def uneven(part):
    digests = ["e" + digest for digest in part.clips["digest"]]
    return replace(part, clips=part.clips.assign(digest=digests), read=Uneven(part.read))


def refuse(*arguments, **options):
    raise AssertionError("computed again")


@pytest.mark.parametrize("which", ["part", "uneven"])
def test_log_mels_are_the_frontend_of_each_clip_alone(request, which):
    corpus = request.getfixturevalue(which)
    encoder = encoders.build("compact")
    packed = log_mels(corpus, encoder, quiet=True)
    assert len(packed) == len(corpus) and packed.data.dtype == np.float32
    for row, clip in enumerate(corpus.clips["clip"]):
        waveform = torch.from_numpy(corpus.read(clip)[0])[None]
        expected = encoder.frontend((waveform.clamp(-1, 1) * 32767).round() / 32767)[0].T
        assert packed[row].shape == expected.shape == (1 + waveform.shape[1] // 320, 64)
        # The frontend's own rounding is amplified where a band is nearly silent
        np.testing.assert_allclose(packed[row], expected, atol=0.05)


@pytest.mark.parametrize("which", ["part", "uneven"])
def test_pooled_features_are_the_encoder_in_evaluation_mode_on_each_clip_alone(request, which, weights):
    corpus = request.getfixturevalue(which)
    encoder = encoders.build("compact", weights).eval()
    ours = pool_features(RunConfig(), corpus, weights, quiet=True)
    mels = log_mels(corpus, encoder, quiet=True)
    with torch.no_grad():
        for row in range(len(corpus)):
            alone = encoder.pool(*encoder.encode(torch.from_numpy(mels[row].T[None].copy())))
            torch.testing.assert_close(ours[row], alone[0], atol=1e-4, rtol=1e-4)
    assert ours.shape == (len(corpus), encoder.dim)


def test_features_are_computed_once(part, weights, monkeypatch):
    encoder = encoders.build("compact")
    first = log_mels(part, encoder, quiet=True).data, pool_features(RunConfig(), part, weights, quiet=True)
    monkeypatch.setattr("atr.system.packed.pack", refuse)
    again = log_mels(part, encoder, quiet=True).data, pool_features(RunConfig(), part, weights, quiet=True)
    np.testing.assert_array_equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


def test_other_audio_and_other_weights_never_meet_the_old_features(part, weights, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    other = tmp_path / "other.safetensors"
    save_file({key: tensor + 0.01 for key, tensor in load_file(weights).items()}, other)
    first = pool_features(RunConfig(), part, weights, quiet=True)
    assert not torch.allclose(first, pool_features(RunConfig(), part, other, quiet=True))
    fewer = replace(part, clips=part.clips.iloc[1:].reset_index(drop=True))
    torch.testing.assert_close(pool_features(RunConfig(), fewer, weights, quiet=True), first[1:], atol=1e-4, rtol=1e-4)
    monkeypatch.setattr("atr.system.packed.pack", refuse)
    with pytest.raises(AssertionError, match="computed again"):
        changed = part.clips.assign(digest=["f" + digest for digest in part.clips["digest"]])
        pool_features(RunConfig(), replace(part, clips=changed), weights, quiet=True)


def test_features_do_not_depend_on_the_threads_of_whoever_asks(part, weights, monkeypatch, tmp_path):
    seen = []
    for number in (1, 2):
        monkeypatch.setenv("ATR_HOME", str(tmp_path / str(number)))
        with devices.threads(number):
            captions = ["a dog barks", "rain falls on a tin roof while the wind blows"] * 70
            encoder = TextEncoder(text.folder("minilm"))
            spoken = text.rows_from_store(captions, "any", lambda encoder=encoder: encoder, quiet=True)
            seen.append((pool_features(RunConfig(), part, weights, quiet=True).numpy(), spoken.data))
    np.testing.assert_array_equal(seen[0][0], seen[1][0])
    np.testing.assert_array_equal(seen[0][1], seen[1][1])


# --- what a config reads


def test_a_frozen_run_reads_pooled_features_and_captions(config, corpus, weights, tiny_bert):
    prepared = prepare(config, corpus, quiet=True)
    assert list(prepared.splits) == ["train", "validation", "test"]
    for name, inputs in prepared.splits.items():
        part = corpus.split(name)
        captions = part.captions["caption"].tolist()
        assert inputs.audio.kind == inputs.text.kind == POOLED
        assert inputs.audio.data.shape == (len(part), 192) and inputs.text.data.shape == (len(captions), 16)
        assert part.clips["clip"].iloc[inputs.clip_of_caption].tolist() == part.captions["clip"].tolist()
        np.testing.assert_array_equal(inputs.relevance, part.relevance())
        assert torch.equal(inputs.audio.data, pool_features(RunConfig(), part, weights, quiet=True))
    encoder = TextEncoder(tiny_bert).eval()
    chosen = [text.normalise(caption, "mei2022") for caption in captions[:3]]
    with torch.no_grad():
        expected = encoder(text.ids(chosen, encoder).batch(np.arange(3)))
    torch.testing.assert_close(inputs.text.data[:3], expected, atol=1e-5, rtol=0)
    clips = np.array([2, 0])
    kind, audio, no_lengths = inputs.audio.batch(clips)
    assert kind == POOLED and torch.equal(audio, inputs.audio.data[clips]) and no_lengths is None
    kind, spoken, no_lengths = inputs.text.batch(np.array([5, 1]))
    assert kind == POOLED and torch.equal(spoken, inputs.text.data[[5, 1]]) and no_lengths is None


@pytest.mark.parametrize("training", ["finetuned", "scratch"])
def test_a_fine_tuned_run_reads_log_mels_and_the_states_below_its_layers(config, corpus, training):
    inputs = prepare(config.replace(training=training), corpus, ("test",), quiet=True).splits["test"]
    kind, audio, frames = inputs.audio.batch(np.array([3, 1]))
    assert kind == LOG_MELS and audio.shape == (2, 201, 64) and frames.tolist() == [201, 201]
    np.testing.assert_array_equal(audio[1], inputs.audio.data[1])
    kind, states, tokens = inputs.text.batch(np.array([7, 0]))
    assert kind == text.STATES and states.shape == (2, int(tokens.max()), 16) and states.is_floating_point()


@pytest.mark.parametrize("changes", [{"training": "frozen_released"}, {"training": "finetuned", "text_layers": None}])
def test_a_run_that_needs_the_whole_text_encoder_reads_tokens(config, corpus, tiny_bert, changes):
    inputs = prepare(config.replace(**changes), corpus, ("test",), quiet=True).splits["test"]
    kind, ids, tokens = inputs.text.batch(np.array([7, 0]))
    caption = text.normalise(corpus.split("test").captions["caption"][7], "mei2022")
    expected = TextEncoder(tiny_bert).tokenize([caption])[0]
    assert kind == text.TOKENS and ids.dtype == torch.int64 and ids[0, : tokens[0]].tolist() == expected.tolist()


def test_a_frozen_run_does_not_mind_a_text_encoder_with_few_layers(config, corpus, tiny_bert, tmp_path):
    from transformers import AutoTokenizer, BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path)
    config = config.replace(text_encoder=str(tmp_path), text_layers=2)
    assert prepare(config, corpus, ("test",), quiet=True).splits["test"].text.data.shape[1] == 8
    with pytest.raises(ValueError, match="text_layers: cannot train the top 2 layers"):
        prepare(config.replace(training="finetuned"), corpus, ("test",), quiet=True)


def test_all_is_read_from_the_store_without_loading_a_text_model_again(config, corpus, monkeypatch):
    prepare(config, corpus, quiet=True)
    monkeypatch.setattr(text, "TextEncoder", refuse)
    monkeypatch.setattr("atr.system.packed.pack", refuse)
    prepare(config, corpus, quiet=True)


# --- weights


def test_weights_come_from_the_corpus_from_a_file_or_from_nowhere(config, corpus, weights):
    own = identity.weights(config, corpus, quiet=True)
    file = identity.weights(config.replace(audio_weights=str(weights)), corpus, quiet=True)
    assert own.audio_weights == file.audio_weights == weights and own.fingerprints == file.fingerprints
    assert own.fingerprints["audio"] == hashes.file_hash(weights)
    for changes in ({"training": "scratch"}, {"training": "finetuned", "audio_weights": None}):
        random = identity.weights(config.replace(**changes), corpus, quiet=True)
        assert random.audio_weights is None and random.fingerprints["audio"] == "random"
        assert random.fingerprints["text"] == own.fingerprints["text"]


def test_wrong_weights_are_errors_that_name_the_field(config, corpus, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"audio_weights: '{tmp_path}/none.safetensors': no such file"):
        identity.weights(config.replace(audio_weights=str(tmp_path / "none.safetensors")), corpus)
    with pytest.raises(ValueError, match="training 'frozen' needs audio_weights"):
        identity.weights(config.replace(audio_weights=None), corpus)
    with pytest.raises(ValueError, match="audio_encoder: unknown 'cnn99'; known: .*cnn6, "):
        identity.weights(config.replace(audio_encoder="cnn99"), corpus)


def test_weights_are_found_in_a_folder_by_the_encoders_name_and_below_the_home(
    config, corpus, weights, monkeypatch, tmp_path
):
    own = tmp_path / "checkpoints" / "mine" / "compact.safetensors"
    own.parent.mkdir(parents=True)
    shutil.copy(weights, own)
    monkeypatch.setenv("ATR_HOME", str(tmp_path))
    for name in ("mine", "mine/compact.safetensors", str(own.parent)):
        assert identity.weights(config.replace(audio_weights=name), corpus).audio_weights == own
    with pytest.raises(FileNotFoundError, match=r"'mine': no such file, nor a folder with a file compact_resnet\.\*"):
        identity.weights(config.replace(audio_weights="mine", audio_encoder="compact_resnet"), corpus)


def test_without_fetching_missing_weights_are_an_error_and_nothing_is_made(config, corpus, monkeypatch, tmp_path):
    monkeypatch.setenv("ATR_HOME", str(tmp_path))
    for name in ("compact", "resnet38"):
        with pytest.raises(FileNotFoundError):
            identity.weights(config.replace(audio_encoder=name), corpus, fetch=False)
    assert not any(tmp_path.iterdir())


def test_without_fetching_damaged_weights_count_as_missing(config, corpus, monkeypatch, tmp_path):
    monkeypatch.setenv("ATR_HOME", str(tmp_path))
    setting = config.replace(audio_encoder="compact", audio_weights="pretrained")
    made = pretraining.weights(corpus, "compact", epochs=1, quiet=True)
    monkeypatch.setenv("ATR_PRETRAINING_EPOCHS", "1")
    whole = identity.weights(setting, corpus).fingerprints
    assert identity.weights(setting, corpus, fetch=False).fingerprints == whole
    content = made.read_bytes()
    made.write_bytes(content[:-4] + bytes(4 * [65]))
    with pytest.raises(FileNotFoundError, match="weights.safetensors: not there, or damaged .the bytes of .* changed"):
        identity.weights(setting, corpus, fetch=False)
    with pytest.warns(UserWarning, match="made anew"):
        assert identity.weights(setting, corpus).fingerprints == whole


# --- encoders that read waveforms, and the external baseline


def test_a_published_encoder_reads_waveforms_cut_where_the_config_says(config, corpus):
    setting = config.replace(audio_encoder="cnn6", audio_weights=None, training="finetuned", max_seconds=2.5)
    inputs = prepare(setting, corpus, ("test",), quiet=True).splits["test"]
    kind, audio, samples = inputs.audio.batch(np.array([0, 3]))
    assert (
        kind == WAVEFORMS
        and audio.dtype == torch.int16
        and audio.shape == (2, 80_000)
        and samples.tolist() == [80_000] * 2
    )


def test_pooled_features_of_a_published_encoder_depend_on_pooling_and_length(config, corpus, part, tmp_path):
    torch.manual_seed(0)
    weights = tmp_path / "cnn6.safetensors"
    save_file(encoders.build("cnn6").state_dict(), weights)
    setting = config.replace(audio_encoder="cnn6", audio_weights=str(weights))
    whole = pool_features(setting, part, weights, quiet=True)
    assert whole.shape == (len(part), 512)
    for changes in ({"pooling": "frequency_max"}, {"max_seconds": 2.0}):
        assert not torch.allclose(
            pool_features(setting.replace(**changes), part, weights, quiet=True), whole, atol=1e-3
        )
    encoder = encoders.build("cnn6", weights).eval()
    waveform = waveforms(part, 32_000, quiet=True)[1]
    with torch.no_grad():
        alone = encoder.pool(*encoder(torch.from_numpy(waveform.copy())[None].float() / 32767))[0]
    torch.testing.assert_close(whole[1], alone, atol=1e-4, rtol=1e-4)


def test_an_external_model_is_evaluated_as_it_is(corpus, tmp_path):
    folder = made_models.clap(tmp_path / "clap")
    setting = RunConfig(
        training="external", audio_encoder="clap", text_encoder=str(folder), epochs=0, caption_style=None
    )
    run = atr.fit(setting, corpus, runs=tmp_path / "runs", device="cpu")
    model, test = Clap(folder), corpus.split("test")
    audio = model.audio(waveforms(test, model.sample_rate, quiet=True), seed=0, quiet=True)
    torch.testing.assert_close(run.embeddings["audio"], audio, atol=1e-6, rtol=0)
    text_embeddings = model.text(test.captions["caption"].tolist(), quiet=True)
    torch.testing.assert_close(run.embeddings["text"], text_embeddings, atol=1e-6, rtol=0)
    expected = metrics.retrieval_metrics(text_embeddings @ audio.T, test.relevance())
    assert run.metrics == pytest.approx(expected) and run.best_epoch == 0
