"""What PaSST and ATST-Frame have in common, on small instances: segments of ten seconds, lengths, precision."""

import math

import pytest
import torch

from atr.encoders.audio.atst import ATSTFrame
from atr.encoders.audio.passt import PaSST

SMALL = {"width": 32, "depth": 2, "heads": 2}


def small(name, **options):
    torch.manual_seed(0)
    if name == "passt":
        return PaSST(stride=16, **SMALL, **options).eval()
    return ATSTFrame(**SMALL, **options).eval()


@pytest.fixture(params=["passt", "atst"])
def name(request):
    return request.param


@pytest.fixture
def encoder(name):
    return small(name)


def noise(clips, samples, seed=0):
    return torch.randn(clips, samples, generator=torch.Generator().manual_seed(seed)) * 0.1


def seconds(encoder, *times):
    return torch.tensor([max(1, int(time * encoder.sample_rate)) for time in times])


def test_a_segment_of_ten_seconds_has_one_frame_in_passt_and_250_in_atst(name, encoder):
    expected = {"passt": (1000, 1), "atst": (1001, 250)}[name]
    assert (encoder.frames_in, encoder.frames_out) == expected
    features = encoder.frontend(noise(2, 10 * encoder.sample_rate))
    assert features.shape == (2, encoder.mel.bands, expected[0])
    with torch.no_grad():
        frames, mask = encoder.encode(features)
    assert frames.shape == (2, expected[1], encoder.dim) and mask.shape == frames.shape[:2] and mask.all()
    assert encoder.pool(frames, mask).shape == (2, encoder.dim)


@torch.no_grad()
def test_frames_and_embedding_of_a_clip_depend_neither_on_its_batch_nor_on_what_lies_behind_its_end(encoder):
    lengths = seconds(encoder, 21.3, 10, 3.217, 0, 10.0001)  # "0": a single sample
    batch = noise(len(lengths), int(lengths.max()))
    batch[0] *= 100  # a loud neighbour
    frames, mask = encoder(batch, lengths)
    pooled = encoder.pool(frames, mask)
    assert frames.shape[1] == 3 * encoder.frames_out
    for row, samples in enumerate(lengths.tolist()):
        alone, own = encoder(batch[row : row + 1, :samples])
        assert int(own.sum()) == int(mask[row].sum())
        torch.testing.assert_close(frames[row][mask[row]], alone[own], atol=1e-4, rtol=0)
        torch.testing.assert_close(pooled[row], encoder.pool(alone, own)[0], atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_frame_counts_when_any_of_its_time_lies_inside_the_clip(encoder):
    segment = 10 * encoder.sample_rate
    step = segment // encoder.frames_out
    lengths = torch.tensor([1, step - 1, step, step + 1, 99_999, segment - 1, segment, segment + 1, 2 * segment])
    features = torch.zeros(len(lengths), encoder.mel.bands, 2 * encoder.frames_in)
    mask = encoder.encode(features, encoder.feature_lengths(lengths))[1]
    assert mask.sum(1).tolist() == [math.ceil(samples / step) for samples in lengths.tolist()]
    assert torch.equal(mask, mask.sort(1, descending=True).values)  # the first of them


@torch.no_grad()
def test_segments_are_heard_one_by_one(encoder):
    waveform = noise(1, 30 * encoder.sample_rate)
    parts = waveform.view(3, -1)
    torch.testing.assert_close(encoder(waveform)[0], encoder(parts)[0].flatten(0, 1)[None], atol=1e-5, rtol=0)


@torch.no_grad()
def test_segments_behind_a_clips_end_cost_nothing_and_are_zero(encoder, monkeypatch):
    heard = []
    monkeypatch.setattr(encoder, "network", lambda x, network=encoder.network: (heard.append(len(x)), network(x))[1])
    frames, mask = encoder(noise(2, 30 * encoder.sample_rate), seconds(encoder, 30, 5))
    assert heard == [4]
    assert not frames[1, encoder.frames_out :].any() and frames[mask].any(1).all()


def test_pooling_is_the_mean_of_the_frames_that_count(encoder):
    frames = torch.tensor([[[1.0, -2.0], [3.0, -4.0], [100.0, 100.0]]])
    assert encoder.pool(frames, torch.tensor([[True, True, False]])).tolist() == [[2.0, -3.0]]


def test_a_clip_without_samples_is_an_error(encoder):
    for waveform, lengths in ((noise(1, 0), None), (noise(2, 9), torch.tensor([9, 0]))):
        with pytest.raises(ValueError, match="a clip of 0 samples cannot be heard: leave it out"):
            encoder.frontend(waveform, lengths)


@torch.no_grad()
def test_bfloat16_agrees_with_float32_and_the_frontend_stays_in_float32(encoder):
    waveform = noise(2, 10 * encoder.sample_rate)
    features, frames = encoder.frontend(waveform), encoder(waveform)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.frontend(waveform.bfloat16().float()), encoder.frontend(waveform.bfloat16()))
        assert torch.equal(encoder.frontend(waveform), features)
        half, mask = encoder(waveform)
    torch.testing.assert_close(half.float(), frames, atol=0.05, rtol=0)  # frames have deviation 1 over the width
    assert not torch.equal(half.float(), frames)


def test_gradients_reach_every_parameter(encoder):
    encoder.train()
    encoder.pool(*encoder(noise(2, 12 * encoder.sample_rate), seconds(encoder, 12, 4)))[:, 0].sum().backward()
    assert [key for key, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_dropout_acts_in_training_only_and_is_off_unless_asked_for(name):
    features = torch.randn(1, 128 if name == "passt" else 64, 1001 if name == "atst" else 1000)
    for rate, differs in ((None, False), (0.0, False), (0.2, True)):
        encoder = small(name, dropout=rate)
        assert torch.equal(encoder.encode(features)[0], encoder.encode(features)[0])
        encoder.train()
        assert torch.equal(encoder.encode(features)[0], encoder.encode(features)[0]) is not differs


def test_an_augmentation_that_is_not_offered_is_an_error(name):
    with pytest.raises(ValueError, match="augment: .* does not offer 'specaugment'; it offers"):
        small(name, augment="specaugment")
