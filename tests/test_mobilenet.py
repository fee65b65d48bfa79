import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_weights import GOLDEN, fill, keys, waveform
from typer.testing import CliRunner

import atr
from atr import RunConfig, encoders, fit
from atr.cli.app import app
from atr.encoders import checkpoints
from atr.encoders.audio.mobilenet import MobileNet, channels
from atr.system import download

SHARED = Path(__file__).parents[2] / "shared"
PUBLISHED = SHARED / "weights" / "mn04_as_mAP_432.pt"
has_weights = pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published weights of mn04 are not here")


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return MobileNet(0.1).eval()


def sounds(samples, clips=2, seed=0):
    return 0.1 * torch.randn(clips, samples, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def assert_parity(encoder, golden):
    features = encoder.frontend(waveform(golden["waveform_spec"]))
    torch.testing.assert_close(features[:, :, ::20], torch.from_numpy(golden["logmel"]), atol=1e-4, rtol=0)
    frames, mask = encoder.encode(features)
    assert frames.shape == (2, 32, encoder.dim) and mask.all()
    means = torch.from_numpy(golden["features"]).mean(2).transpose(1, 2)  # every fourth frame
    torch.testing.assert_close(frames[:, ::4], means, atol=1e-3, rtol=1e-3)
    pooled = encoder.pool(frames, mask)
    torch.testing.assert_close(pooled, torch.from_numpy(golden["embedding"]), atol=1e-3, rtol=0)
    torch.testing.assert_close(encoder.logits(pooled), torch.from_numpy(golden["logits"]), atol=1e-3, rtol=0)


def test_a_file_of_the_official_layout_gives_the_official_networks_numbers(tmp_path):
    torch.save(fill(keys("mn10")), tmp_path / "official.pt")
    assert_parity(encoders.build("mn10", tmp_path / "official.pt").eval(), np.load(GOLDEN / "mn10.npz"))


@has_weights
def test_the_published_weights_give_the_published_numbers():
    encoder = encoders.build("mn04", PUBLISHED).eval()
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 983_599
    assert_parity(encoder, np.load(SHARED / "golden" / "mn04.npz"))


@has_weights
def test_a_file_laid_by_hand_works_offline_and_is_listed(tmp_path, monkeypatch):
    monkeypatch.setenv("ATR_HOME", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / PUBLISHED.name).write_bytes(PUBLISHED.read_bytes())
    assert checkpoints.fetch("mn04") == tmp_path / "checkpoints" / PUBLISHED.name
    assert CliRunner().invoke(app, ["data", "mn04"], catch_exceptions=False).exit_code == 0
    (tmp_path / "checkpoints" / PUBLISHED.name).write_bytes(PUBLISHED.read_bytes()[:-1] + b"x")
    with pytest.raises(download.DownloadError, match=r"mn04_as_mAP_432\.pt: .*sha256"):
        checkpoints.fetch("mn04")


@pytest.mark.parametrize(("number", "rounded"), [(6.4, 8), (9.6, 16), (25.6, 24), (28.8, 32), (44.8, 48), (73.6, 72)])
def test_channels_are_multiples_of_eight_not_far_below(number, rounded):
    assert channels(number) == rounded


@torch.no_grad()
def test_a_clips_frames_do_not_depend_on_its_batch_nor_on_what_lies_behind_its_end(small):
    batch, lengths = sounds(64_000), torch.tensor([64_000, 41_000])
    batch[1, 41_000:] = 0.7
    frames, mask = small(batch, lengths)
    alone, whole = small(batch[1:, :41_000])
    assert whole.all() and mask.sum(1).tolist() == [frames.shape[1], alone.shape[1]]
    torch.testing.assert_close(frames[1, : alone.shape[1]], alone[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(small.pool(frames, mask)[1], small.pool(alone, whole)[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(small(batch[:1])[0][0], frames[0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_every_length_has_as_many_frames_as_it_says(small):
    for samples in (3200, 3201, 31_999, 32_000, 32_001):
        features = small.frontend(sounds(samples))
        assert features.shape[2] == int(small.feature_lengths(torch.tensor(samples)))
        assert small.encode(features)[0].shape[1] == -(-features.shape[2] // 32)


def test_a_clip_too_short_for_a_window_is_an_error(small):
    with pytest.raises(ValueError, match="500 samples are too few for a window of 1024: pad the clip with zeros"):
        small(sounds(1000), torch.tensor([1000, 500]))


def test_training_draws_stripes_and_band_edges_and_evaluation_neither():
    torch.manual_seed(0)
    encoder, batch = MobileNet(0.1, "specaugment"), sounds(64_000)
    assert not torch.equal(encoder.frontend(batch), encoder.frontend(batch))
    features = encoder.eval().frontend(batch)
    assert torch.equal(encoder.augment(features.transpose(1, 2)), features.transpose(1, 2))
    stripes = encoder.train().augment(features.transpose(1, 2)) == 0
    assert stripes.all(2).any() and stripes.all(1).any()


def test_the_classifier_of_audioset_stays_as_it_was_published(small):
    assert {name for name, parameter in small.named_parameters() if not parameter.requires_grad} == {
        *("classifier.2.weight", "classifier.2.bias", "classifier.5.weight", "classifier.5.bias")
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"augment": "patchout"}, "augment: 'patchout' is nothing for a CNN"),
        ({"dropout": 0.1}, "dropout: 0.1 is nothing for a MobileNet, which has none"),
    ],
)
def test_what_it_does_not_offer_is_an_error(options, words):
    with pytest.raises(ValueError, match=words):
        encoders.build("mn04", **options)


@pytest.mark.parametrize("file", ["width", "panns", "cut", "prefix"])
def test_other_files_are_refused_by_name_and_shared_prefixes_taken_off(file, tmp_path):
    path = tmp_path / "given.pt"
    tensors = fill(keys("panns_cnn10" if file == "panns" else "mn10"))
    torch.save({f"module.{name}": tensor for name, tensor in tensors.items()} if file == "prefix" else tensors, path)
    if file == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    if file == "prefix":
        assert torch.equal(encoders.build("mn10", path).features[0][0].weight, tensors["features.0.0.weight"])
        return
    words = {
        "width": r"given\.pt: not weights of this encoder: .*is \(\d+, .*, not .*; it has those of mn10$",
        "panns": r"given\.pt: not weights of this encoder: missing classifier.*; it has those of cnn10$",
        "cut": r"given\.pt: damaged, or not a checkpoint",
    }
    with pytest.raises(ValueError, match=words[file]):
        encoders.build("mn10" if file == "cut" else "mn04", path)


@pytest.mark.parametrize("training", ["frozen", "finetuned"])
def test_a_run_trains_over_it(training, corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(encoders.AUDIO_ENCODERS, "mn04", lambda augment=None, dropout=None: MobileNet(0.1, augment))
    torch.manual_seed(0)
    torch.save(MobileNet(0.1).state_dict(), tmp_path / "mn04.pt")
    fields = {"audio_encoder": "mn04", "audio_weights": str(tmp_path / "mn04.pt"), "training": training}
    soundscapes = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
    run = fit(RunConfig(corpus=soundscapes, epochs=1, batch_size=16, embedding_dim=16, **fields), corpus, runs=tmp_path)
    assert run.finished and not [name for name in run.checkpoint if "classifier" in name]


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 3, 9, 15])
def test_the_top_blocks_over_states_give_what_the_whole_gives(layers):
    torch.manual_seed(0)
    whole = MobileNet(0.1, "specaugment").eval()
    top = copy.deepcopy(whole)
    top.keep_top(layers)
    features, lengths = whole.frontend(sounds(32_000)), torch.tensor([100, 71])
    expected, valid = whole.encode(features, lengths)
    frames, mask = top.encode_states(*whole.states(features, lengths, layers))
    assert torch.equal(mask, valid)
    torch.testing.assert_close(frames, expected, atol=1e-5, rtol=1e-4)
    assert sum(map(torch.numel, top.features.parameters())) < sum(map(torch.numel, whole.features.parameters()))


def test_stripes_over_states_hold_each_channels_mean():
    torch.manual_seed(0)
    top = MobileNet(0.1, "specaugment")
    top.keep_top(3)
    states = torch.randn(64, 40, 8, 16)
    seen = []
    top.features[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].maps.permute(0, 3, 2, 1)))
    top.train().encode_states(states)
    changed = (seen[0] != states).any(3)
    means = states.mean((1, 2))[:, None, None].expand_as(states)
    assert 0.01 < changed.float().mean() < 0.3 and changed.any((1, 2)).sum() > 32
    torch.testing.assert_close(seen[0][changed], means[changed])
    top.eval().encode_states(states)
    assert torch.equal(seen[1], states)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.setitem(encoders.AUDIO_ENCODERS, "mn04", lambda augment=None, dropout=None: MobileNet(0.1, augment))
    torch.manual_seed(0)
    torch.save(MobileNet(0.1).state_dict(), tmp_path / "mn04.pt")
    soundscapes = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
    fields = {"corpus": soundscapes, "audio_encoder": "mn04", "audio_weights": str(tmp_path / "mn04.pt")}
    return RunConfig(**fields, training="finetuned", augment=None, epochs=1, batch_size=16, embedding_dim=16)


def test_fine_tuning_over_states_learns_what_fine_tuning_those_blocks_over_waveforms_learns(tiny, corpus, tmp_path):
    over = fit(tiny.replace(audio_layers=15), corpus, runs=tmp_path)
    whole = fit(tiny.replace(batch_norm="fixed"), corpus, runs=tmp_path)
    # All blocks train in both; the stem alone is fixed over states, and states have 16 bits.
    assert over.history["loss"].iloc[0] == pytest.approx(whole.history["loss"].iloc[0], rel=0.02)
    moved = (
        over.checkpoint["audio_encoder.features.3.block.0.0.weight"]
        - whole.checkpoint["audio_encoder.features.4.block.0.0.weight"]
    )
    assert moved.abs().max() < 0.05
    statistics = [name for name in over.checkpoint if name.endswith("running_mean")]
    weights = encoders.checkpoints.read(tiny.audio_weights)
    assert statistics and all(
        torch.equal(whole.checkpoint[name], weights[name.removeprefix("audio_encoder.")])
        for name in whole.checkpoint
        if name.endswith("running_mean")
    )
    sounds = [corpus.split("test").read(clip)[0] for clip in corpus.split("test").clips["clip"][:3]]
    embedder = atr.Embedder(over, corpus)
    heard = embedder.sounds([np.repeat(sound, 2) for sound in sounds])  # 16 to 32 kHz, roughly
    assert heard.shape == (3, 16) and heard.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"audio_layers": 16}, "audio_layers: 16; a MobileNet has 1 to 15 blocks"),
        (
            {"audio_layers": 2, "audio_encoder": "compact", "audio_weights": "pretrained"},
            "audio_layers: compact keeps no states",
        ),
        ({"audio_layers": 2, "audio_weights": None}, "audio_layers: random audio_weights have no states"),
    ],
)
def test_states_that_there_are_none_of_are_an_error(tiny, corpus, tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        fit(tiny.replace(**changes), corpus, runs=tmp_path)
