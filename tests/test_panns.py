"""PANNs: the released networks' vectors, and what must hold for clips of unequal length."""

import numpy as np
import pytest
import torch
from golden_weights import GOLDEN, fill, keys, transform, waveform
from torch import nn

from atr import encoders
from atr.encoders.audio import panns
from atr.encoders.audio.frontends import SpecAugment

RATE = 32_000
NAMES = ("cnn6", "cnn10", "cnn14", "resnet38")
SHRINKS = {"cnn6": 16, "cnn10": 16, "cnn14": 32, "cnn14_mei2022": 64, "resnet38": 32}
# Frames around multiples of the networks' strides, odd and even at every depth.
LENGTHS = torch.tensor([131, 64, 65, 66, 79, 95, 96, 111, 127, 128])


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def tensors(name):
    """An official file's tensors, drawn from their names."""
    return fill(keys(f"panns_{name}"))


@pytest.fixture(scope="module")
def released(name, tensors, tmp_path_factory):
    """The encoder in evaluation mode, out of a file of the official layout."""
    path = tmp_path_factory.mktemp("panns") / f"{name}.pth"
    torch.save({"model": tensors}, path)
    encoder = encoders.build(name, path).eval()
    path.unlink()
    return encoder


@pytest.fixture(scope="module")
def golden(name):
    return {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / f"panns_{name}.npz").items()}


def assert_close(ours, released):
    torch.testing.assert_close(ours, released, rtol=1e-3, atol=1e-3 * float(released.abs().max()))


# --- the released networks


def test_names_and_shapes_are_the_official_files_less_what_is_dropped(name):
    dropped = ("fc1.", "fc_audioset.", "spectrogram_extractor.", "logmel_extractor.")
    official = {entry: tuple(shape) for entry, shape, _ in keys(f"panns_{name}") if not entry.startswith(dropped)}
    encoder = encoders.build(name)
    assert {entry: tuple(tensor.shape) for entry, tensor in encoder.state_dict().items()} == official
    assert not any(entry.startswith(encoder.dropped) for entry in official)


@torch.no_grad()
def test_outputs_are_the_released_networks(name, released, tensors, golden):
    features = released.frontend(waveform(golden["waveform_spec"].tolist()))
    torch.testing.assert_close(features[:, :, ::10], golden["logmel"].transpose(1, 2), rtol=1e-4, atol=2e-3)
    feature_map, _ = released.feature_map(features)
    assert_close(feature_map[:, ::16], golden["feature_map"])
    frames = feature_map.mean(3).transpose(1, 2)
    pooled = released.pool(frames, torch.ones(frames.shape[:2], dtype=torch.bool))
    assert_close(pooled, golden["pooled"])
    embedding = nn.functional.linear(pooled, tensors["fc1.weight"], tensors["fc1.bias"]).relu()
    assert_close(embedding, golden["embedding"])
    logits = nn.functional.linear(embedding, tensors["fc_audioset.weight"], tensors["fc_audioset.bias"])
    assert_close(logits.sigmoid(), golden["clipwise_output"])


@pytest.mark.parametrize("name", ["cnn14"], indirect=True)
@torch.no_grad()
def test_mei_2022s_cnn14_pools_the_last_map_of_the_official_one(released):
    features = released.frontend(noise(2, 3 * RATE))
    mei2022 = encoders.build("cnn14_mei2022").eval()
    mei2022.load_state_dict(released.state_dict())
    theirs, mask = mei2022.feature_map(features)
    torch.testing.assert_close(theirs, nn.functional.avg_pool2d(released.feature_map(features)[0], 2))
    assert mei2022.shrinks == 64 and theirs.shape == (2, 2048, 301 // 64, 1) and mask.shape == (2, 301 // 64)


# --- files for another frontend


@pytest.fixture(scope="module")
def cnn6():
    """Tensors of CNN6's official file."""
    return fill(keys("panns_cnn6"))


def frontend(name):
    return name.startswith(("spectrogram_extractor", "logmel_extractor"))


FOREIGN = {
    "16 kHz": ({"window": 512, "rate": 16_000, "high": 8000}, r"\(257, 1, 512\) is of windows of 512 .* for 16,000 Hz"),
    "8 kHz": ({"window": 256, "rate": 8000, "high": 4000}, r"\(129, 1, 256\) is of windows of 256 .* for 8,000 Hz"),
    "other bands": ({"low": 0, "high": 16_000}, r"melW \(513, 64\) is not of 64 bands from 50 to 14,000 Hz"),
    "more bands": ({"bands": 128}, r"melW \(513, 128\) is not of 64 bands from 50 to 14,000 Hz"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_for_another_frontend_is_refused(tmp_path, cnn6, kind):
    settings, message = FOREIGN[kind]
    torch.save({"model": cnn6 | transform(**settings)}, tmp_path / "foreign.pth")
    with pytest.raises(
        ValueError, match=f"foreign.pth: trained on another frontend: .*{message}.*; take the file for 32,"
    ):
        encoders.build("cnn6", tmp_path / "foreign.pth")


@pytest.mark.parametrize("part", ["conv_real.weight", "melW"])
def test_each_part_of_a_foreign_frontend_alone_is_enough(tmp_path, cnn6, part):
    foreign = transform(window=512, rate=16_000, high=8000)
    kept = {name: tensor for name, tensor in cnn6.items() if not frontend(name)}
    torch.save(kept | {name: foreign[name] for name in foreign if name.endswith(part)}, tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match=f"foreign.pth: .*{part} .*windows of 512 samples.*16,000 Hz"):
        encoders.build("cnn6", tmp_path / "foreign.pth")


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_file_wrapped_halved_or_without_its_frontend_is_loaded(tmp_path, cnn6, kind):
    torch.save({f"module.{name}": tensor.to(kind) for name, tensor in cnn6.items()}, tmp_path / "wrapped.pth")
    torch.save({name: tensor.to(kind) for name, tensor in cnn6.items() if not frontend(name)}, tmp_path / "bare.pth")
    for name in ("wrapped.pth", "bare.pth"):
        encoder = encoders.build("cnn6", tmp_path / name)
        assert torch.equal(encoder.conv_block1.conv1.weight, cnn6["conv_block1.conv1.weight"].to(kind).float())


# --- shapes


def test_shapes_and_attributes_are_as_stated(name, released):
    dim, hidden = (512, 1) if name in ("cnn6", "cnn10") else (2048, 2)
    frames, mask = released(noise(2, RATE))
    assert (released.sample_rate, released.dim, released.cached, released.head_hidden) == (RATE, dim, False, hidden)
    assert released.shrinks == SHRINKS[name] and frames.shape == (2, 101 // SHRINKS[name], dim)
    assert mask.shape == frames.shape[:2] and mask.all() and released.pool(frames, mask).shape == (2, dim)


@pytest.mark.parametrize("name", ["cnn10"], indirect=True)
@torch.no_grad()
def test_bands_become_one_by_their_mean_their_maximum_or_both(name, released):
    features = released.frontend(noise(1, RATE))
    feature_map, mask = released.feature_map(features)
    assert feature_map.shape == (1, 512, 6, 4) and mask.shape == (1, 6)
    mean, highest = feature_map.mean(3).transpose(1, 2), feature_map.amax(3).transpose(1, 2)
    for frequency, expected in {"mean": mean, "max": highest, "mean_max": mean + highest}.items():
        encoder = panns.cnn10(frequency=frequency).eval()
        encoder.load_state_dict(released.state_dict())
        torch.testing.assert_close(encoder.encode(features)[0], expected)
    with pytest.raises(ValueError, match="frequency: unknown 'min'; known: mean, mean_max, max"):
        panns.cnn10(frequency="min")


# --- clips of unequal length


@torch.no_grad()
def test_frames_of_a_clip_depend_neither_on_its_batch_nor_on_what_lies_behind_its_end(name, released):
    assert_alone_as_in_a_batch(released)


@pytest.mark.parametrize("name", ["cnn14"], indirect=True)
@torch.no_grad()
def test_so_do_those_of_mei_2022s_cnn14(released):
    mei2022 = encoders.build("cnn14_mei2022").eval()
    mei2022.load_state_dict(released.state_dict())
    assert_alone_as_in_a_batch(mei2022)


def assert_alone_as_in_a_batch(encoder):
    features = 10 * noise(len(LENGTHS), 64, int(LENGTHS.max())) - 3
    for row, length in enumerate(LENGTHS):
        features[row, :, length:] = torch.nan
    frames, mask = encoder.encode(features, LENGTHS)
    pooled = encoder.pool(frames, mask)
    assert torch.equal(mask.sum(1), LENGTHS // encoder.shrinks)
    assert (frames[~mask] == 0).all()
    for row, length in enumerate(LENGTHS):
        alone, whole = encoder.encode(features[row : row + 1, :, :length])
        assert whole.all()
        torch.testing.assert_close(frames[row][mask[row]], alone[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(pooled[row], encoder.pool(alone, whole)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["cnn6"], indirect=True)
@torch.no_grad()
def test_a_waveform_alone_is_as_in_a_batch(released):
    lengths = torch.tensor([40_000, 4800, 5120, 20_001, 31_999])
    batch = noise(len(lengths), 40_000)
    for row, samples in enumerate(lengths):
        batch[row, samples:] = torch.nan
    frames, mask = released(batch, lengths)
    for row, samples in enumerate(lengths):
        alone, whole = released(batch[row : row + 1, :samples])
        assert int(mask[row].sum()) == alone.shape[1] and whole.all()
        torch.testing.assert_close(frames[row][mask[row]], alone[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["cnn10"], indirect=True)
@torch.no_grad()
def test_without_lengths_padding_is_heard_as_in_the_released_code(released):
    padded, lengths = noise(2, RATE), torch.tensor([RATE, RATE // 2])
    padded[1, RATE // 2 :] = 0
    frames, mask = released(padded)
    heard = released.pool(frames, mask)
    assert mask.all()
    torch.testing.assert_close(heard, released.pool(*released(padded, torch.tensor([RATE, RATE]))))
    masked = released.pool(*released(padded, lengths))
    torch.testing.assert_close(masked[0], heard[0])
    assert (masked[1] - heard[1]).abs().max() > 0.1


def test_a_clip_that_leaves_no_frame_is_an_error_that_says_how_long_it_must_be():
    encoder = encoders.build("cnn10").eval()
    seconds = 0.15  # as the message says
    frames, mask = encoder(noise(1, int(seconds * RATE)))
    assert frames.shape[1] == 1
    for lengths in (None, torch.tensor([100, 15])):
        with pytest.raises(ValueError, match=f"15 frames is too short, .* needs 16: pad it with zeros to {seconds} s"):
            encoder.encode(noise(2, 64, 15 if lengths is None else 100), lengths)


def test_padding_does_not_enter_the_batch_statistics_of_the_bands():
    features, lengths = noise(2, 64, 100), torch.tensor([100, 40])
    features[1, :, 40:] = 1e6
    encoder = encoders.build("cnn6").train()
    encoder.encode(features, lengths)
    heard = torch.cat([features[0], features[1, :, :40]], 1)  # (bands, frames)
    torch.testing.assert_close(encoder.bn0.running_mean, 0.1 * heard.mean(1))
    torch.testing.assert_close(encoder.bn0.running_var, 0.9 + 0.1 * heard.var(1))


# --- training


@pytest.mark.parametrize("given", [None, 0.2])
def test_dropout_is_the_official_networks_or_one_number_everywhere(given):
    encoder = encoders.build("resnet38", dropout=given)
    assert {encoder.conv_block1.dropout.p, encoder.resnet.dropout, encoder.conv_block_after1.dropout.p} == {0.2}
    inner = [block.dropout.p for layer in encoder.resnet.values() for block in layer]
    assert inner == [0.1 if given is None else 0.2] * 16
    cnn = encoders.build("cnn6", dropout=given)
    assert [module.p for module in cnn.modules() if isinstance(module, nn.Dropout)] == [0.2] * 4


def test_dropout_acts_in_training_alone():
    features = noise(2, 64, 64)
    for dropout in (0.9, 0.0):
        torch.manual_seed(0)
        encoder = encoders.build("cnn6", dropout=dropout).train()
        with torch.no_grad():
            trained, again = encoder.feature_map(features)[0], encoder.feature_map(features)[0]
            zeros = float((trained == 0).float().mean())
            assert zeros > 0.85 if dropout else zeros < 0.5  # a ReLU's average over 2 × 2 is seldom 0
            assert torch.equal(trained, again) == (dropout == 0)
            encoder.eval()
            assert torch.equal(encoder.feature_map(features)[0], encoder.feature_map(features)[0])


def test_spec_augment_covers_panns_stripes_after_the_normalisation_and_in_training_alone():
    torch.manual_seed(0)
    encoder = encoders.build("cnn6", augment="specaugment", dropout=0.0).train()
    assert isinstance(encoder.augment, SpecAugment) and (encoder.augment.time, encoder.augment.bands) == (64, 8)
    seen = []
    encoder.conv_block1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    features = noise(1, 64, 400) + 50
    with torch.no_grad():
        encoder.encode(features)
        encoder.eval().encode(features)
    zeros = [int((x == 0).sum()) for x in seen]
    assert zeros[0] > 400 and zeros[1] == 0  # at least a stripe of one band, zeros of what is about 0 in the mean
    with pytest.raises(ValueError, match="augment: 'patchout' is nothing for a CNN"):
        encoders.build("cnn10", augment="patchout")


@pytest.mark.parametrize("name", ["cnn6", "resnet38"], indirect=True)
def test_gradients_reach_every_parameter(released):
    released.train()
    before = {entry: tensor.clone() for entry, tensor in released.state_dict().items()}
    frames, mask = released.encode(10 * noise(3, 64, 70), torch.tensor([70, 33, 64]))
    released.pool(frames, mask).square().sum().backward()
    without = [entry for entry, p in released.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == [] and all(p.grad.isfinite().all() for p in released.parameters())
    released.zero_grad()
    released.load_state_dict(before)
    released.eval()


def test_residual_branches_start_closed():
    encoder = encoders.build("resnet38")
    closed = [block.bn2.weight for layer in encoder.resnet.values() for block in layer]
    assert len(closed) == 16 and not torch.cat(closed).any()


@pytest.mark.parametrize("name", ["cnn10"], indirect=True)
@torch.no_grad()
def test_the_frontend_computes_in_single_precision_under_autocast(released):
    clips, lengths = noise(2, RATE), torch.tensor([RATE, 20_000])
    features, frames = released.frontend(clips, lengths), released(clips, lengths)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(released.frontend(clips, lengths), features)
        mixed = released(clips, lengths)[0]
    assert not torch.equal(mixed.float(), frames)
    torch.testing.assert_close(mixed.float(), frames, rtol=0.1, atol=0.05 * float(frames.max()))


def test_a_clip_shorter_than_one_frame_is_heard_with_zeros_behind_it():
    torch.manual_seed(0)
    encoder = encoders.build("cnn10").eval()
    least = 16 * 320  # frames of the log-mel under one of the last map, of 320 samples each
    batch = 0.1 * torch.randn(2, 32_000)
    lengths = torch.tensor([700, 32_000])
    padded = torch.zeros(1, least)
    padded[0, :700] = batch[0, :700]
    with torch.no_grad():
        expected = encoder.pool(*encoder(padded))[0]
        torch.testing.assert_close(encoder.pool(*encoder(batch, lengths))[0], expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(encoder.pool(*encoder(batch[:1, :700]))[0], expected, atol=1e-4, rtol=1e-4)
