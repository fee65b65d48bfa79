import pytest
import torch
import torchaudio
from safetensors.torch import save_file

from atr import encoders
from atr.encoders.audio.frontends import LogMel, SpecAugment
from atr.encoders.audio.mobilenet import MobileNet

NAMES = ("compact", "compact_resnet")
RATE = 16_000


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.fixture(params=NAMES)
def encoder(request):
    """An encoder in evaluation mode whose batch-norms have seen something."""
    torch.manual_seed(0)
    encoder = encoders.build(request.param)
    with torch.no_grad():
        for _ in range(3):
            encoder(noise(4, RATE))
    return encoder.eval()


# --- frontend


def test_log_mel_is_torchaudios_centred_mel_spectrogram_in_decibels():
    waveform = noise(2, 12_345)
    ours = LogMel(RATE, window=1024, hop=320, bands=64, low=50, high=8000)(waveform)
    power = torchaudio.transforms.MelSpectrogram(
        RATE, 1024, hop_length=320, f_min=50, f_max=8000, n_mels=64, norm="slaney", mel_scale="slaney", center=True
    )(waveform)
    assert ours.shape == (2, 64, 1 + 12_345 // 320)
    torch.testing.assert_close(ours, 10 * torch.log10(power.clamp(min=1e-10)), atol=1e-3, rtol=1e-5)


def test_silence_is_minus_100_decibels_and_ten_times_the_amplitude_is_20_more():
    logmel = LogMel(RATE, 1024, 320, 64, 50, 8000)
    assert torch.equal(logmel(torch.zeros(1, 2000)), torch.full((1, 64, 7), -100.0))
    torch.testing.assert_close(logmel(noise(1, 2000) * 10), logmel(noise(1, 2000)) + 20, atol=1e-3, rtol=0)


def test_a_tone_is_loudest_in_the_band_of_its_frequency():
    logmel = LogMel(RATE, 1024, 320, 64, 50, 8000)
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(RATE) / RATE)[None]
    bands = logmel.mel.mel_scale.fb  # (frequencies, bands)
    frequency_of = torch.linspace(0, RATE / 2, len(bands))[bands.argmax(0)]
    loudest = int(logmel(tone)[0].mean(1).argmax())
    assert loudest == int((frequency_of - 1000).abs().argmin())


def test_the_frontend_of_a_clip_does_not_depend_on_what_it_is_padded_with():
    logmel = LogMel(RATE, 1024, 320, 64, 50, 8000)
    lengths = torch.tensor([8000, 513, 5121])
    batch = noise(3, 8000)
    features = logmel(batch, lengths)  # what lies after a clip's end is noise here
    for row, samples in enumerate(lengths.tolist()):
        alone = logmel(batch[row : row + 1, :samples])[0]
        frames = int(logmel.lengths(lengths)[row])
        assert alone.shape[1] == frames == 1 + samples // 320
        torch.testing.assert_close(features[row, :, :frames], alone, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("lengths", [None, torch.tensor([512, 400])])
def test_a_clip_shorter_than_half_a_window_is_an_error(lengths):
    with pytest.raises(ValueError, match="too few for a window of 1024: pad the clip"):
        LogMel(RATE, 1024, 320, 64, 50, 8000)(noise(2, 512), lengths)


def test_the_frontend_holds_no_tensors_of_a_checkpoint():
    assert LogMel(RATE, 1024, 320, 64, 50, 8000).state_dict() == {}


# --- SpecAugment


def stripes(keep):
    """Widths of the runs of False in a row of bools."""
    text = "".join("x."[bool(one)] for one in keep)
    return [len(run) for run in text.split(".") if run]


def test_spec_augment_zeroes_two_stripes_each_way_narrower_than_its_limits():
    torch.manual_seed(0)
    out = SpecAugment(time=64, bands=8)(torch.ones(400, 500, 64))
    keep_time, keep_bands = out.amax(2) > 0, out.amax(1) > 0
    assert torch.equal(out, (keep_time[:, :, None] & keep_bands[:, None]).float())
    for keep, widest in ((keep_time, 63), (keep_bands, 7)):
        found = [stripes(row) for row in keep]
        zeroed = torch.tensor([sum(widths) for widths in found]).float()
        assert max(len(widths) for widths in found) == 2
        assert zeroed.max() <= 2 * widest and max(widths[0] for widths in found if len(widths) == 2) <= widest
        assert zeroed.mean() == pytest.approx(widest, rel=0.1)  # two stripes of half the limit, seldom overlapping
    assert len({tuple(row) for row in keep_time.tolist()}) > 390  # drawn for each clip


def test_the_widest_stripe_is_one_less_than_the_limit():
    torch.manual_seed(0)
    keep = SpecAugment(time=4, bands=1, stripes=1)(torch.ones(500, 50, 8)).amax(2) > 0
    assert set((~keep).sum(1).tolist()) == {0, 1, 2, 3}
    assert keep.all(0).tolist() == [False] * 49 + [True]  # as in PANNs' code, no stripe reaches the last frame


def test_clips_shorter_than_a_stripe_keep_something():
    torch.manual_seed(0)
    out = SpecAugment(stripes=1)(torch.ones(200, 5, 3))
    assert (out.sum((1, 2)) > 0).all() and (out == 0).any()


def test_spec_augment_does_nothing_in_evaluation():
    features = noise(2, 50, 64)
    assert torch.equal(SpecAugment().eval()(features), features)


# --- encoders


def test_shapes_are_as_stated(encoder):
    frames, mask = encoder(noise(2, 4 * RATE))
    assert encoder.sample_rate == RATE and encoder.frontend(noise(2, 4 * RATE)).shape == (2, 64, 201)
    assert frames.shape == (2, 7, encoder.dim) and mask.shape == (2, 7) and mask.all()  # one frame covers 640 ms
    assert encoder.pool(frames, mask).shape == (2, encoder.dim)


@pytest.mark.parametrize("longest", [20_000, 20_480, 31_999, 64_000])
def test_the_frames_of_a_clip_do_not_depend_on_its_batch(encoder, longest):
    lengths = torch.tensor([longest, 513, 2559, 5120, 12_345, 19_999])
    batch = noise(len(lengths), longest)
    with torch.no_grad():
        frames, mask = encoder(batch, lengths)
        pooled = encoder.pool(frames, mask)
        for row, samples in enumerate(lengths.tolist()):
            alone, whole = encoder(batch[row : row + 1, :samples])
            assert whole.all() and int(mask[row].sum()) == alone.shape[1] and mask[row, : alone.shape[1]].all()
            torch.testing.assert_close(frames[row][mask[row]], alone[0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(pooled[row], encoder.pool(alone, whole)[0], atol=1e-4, rtol=1e-4)


def test_every_frame_hears_its_time_and_not_the_far_end(encoder):
    waveform = noise(1, 8 * RATE)
    changed = waveform.clone()
    changed[:, 4 * RATE :] = noise(1, 4 * RATE, seed=1)
    with torch.no_grad():
        frames, other = encoder(waveform)[0][0], encoder(changed)[0][0]
    same = torch.isclose(frames, other, atol=1e-5).all(1)
    assert same[:4].all() and not same[8:].any()


def test_padding_does_not_enter_the_batch_statistics_of_the_bands():
    features, lengths = noise(2, 64, 100), torch.tensor([100, 40])
    features[1, :, 40:] = 1e6
    encoder = encoders.build("compact").train()
    encoder.encode(features, lengths)
    heard = torch.cat([features[0], features[1, :, :40]], 1)  # (bands, frames)
    torch.testing.assert_close(encoder.bn0.running_mean, 0.1 * heard.mean(1))
    torch.testing.assert_close(encoder.bn0.running_var, 0.9 + 0.1 * heard.var(1))


def test_pooling_is_maximum_plus_mean_over_valid_frames():
    frames = torch.tensor([[[1.0, -2.0], [3.0, -4.0], [100.0, 100.0]], [[5.0, 6.0], [7.0, 0.0], [0.0, 3.0]]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    pooled = encoders.build("compact").pool(frames, mask)
    torch.testing.assert_close(pooled, torch.tensor([[3.0 + 2.0, -2.0 - 3.0], [7.0 + 4.0, 6.0 + 3.0]]))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name):
    torch.manual_seed(0)
    encoder = encoders.build(name, augment="specaugment").train()
    encoder.pool(*encoder(noise(4, RATE), torch.tensor([RATE, 9000, 12_000, 4000]))).square().sum().backward()
    without = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_augmentation_changes_training_and_not_evaluation():
    torch.manual_seed(0)
    encoder = encoders.build("compact", augment="specaugment").train()
    features = encoder.frontend(noise(2, 4 * RATE))
    assert not torch.equal(encoder.encode(features)[0], encoder.encode(features)[0])
    encoder.eval()
    assert torch.equal(encoder.encode(features)[0], encoder.encode(features)[0])


@pytest.mark.parametrize("name", NAMES)
def test_the_compact_encoders_offer_spec_augment_and_no_dropout(name):
    encoder = encoders.build(name)
    assert encoder.cached and encoder.head_hidden == 1 and encoder.dropped == ()
    with pytest.raises(ValueError, match="augment: 'patchout' is nothing for a CNN, which offers 'specaugment'"):
        encoders.build(name, augment="patchout")
    with pytest.raises(ValueError, match="dropout: 0.2 is nothing for a compact encoder, which has none"):
        encoders.build(name, dropout=0.2)


# --- weights


def test_weights_are_loaded_from_a_file(tmp_path, encoder):
    name = "compact" if "blocks.0.convolution.0.weight" in encoder.state_dict() else "compact_resnet"
    path = tmp_path / "weights.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in encoder.state_dict().items()}, path)
    loaded = encoders.build(name, path).eval()
    waveform = noise(1, RATE)
    assert torch.equal(loaded(waveform)[0], encoder(waveform)[0])


def altered(change):
    tensors = {key: tensor.contiguous() for key, tensor in encoders.build("compact").state_dict().items()}
    change(tensors)
    return tensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("stem.0.weight"), "missing stem.0.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), "unexpected extra"),
        (lambda t: t.update({"bn0.running_mean": torch.zeros(3)}), r"bn0.running_mean is \(3,\), not \(64,\)"),
    ],
)
def test_weights_that_do_not_fit_are_an_error_that_names_the_tensor(tmp_path, change, message):
    path = tmp_path / "weights.safetensors"
    save_file(altered(change), path)
    with pytest.raises(ValueError, match=f"{path}: not weights of this encoder: {message}"):
        encoders.build("compact", path)


def test_weights_of_the_other_encoder_are_an_error(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(altered(lambda tensors: None), path)
    with pytest.raises(ValueError, match="not weights of this encoder: missing .*"):
        encoders.build("compact_resnet", path)


def test_a_file_that_is_missing_or_damaged_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.safetensors: no such weights"):
        encoders.build("compact", tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(ValueError, match="cut.safetensors: damaged"):
        encoders.build("compact", tmp_path / "cut.safetensors")


def test_unknown_names_and_weights_that_nobody_published_are_errors():
    with pytest.raises(ValueError, match="audio_encoder: unknown 'compct'; known: .*, compact, compact_resnet"):
        encoders.build("compct")
    with pytest.raises(ValueError, match=r"compact: has no published weights; .*pretraining.weights"):
        encoders.build("compact", "pretrained")


def test_which_encoders_pool_by_the_mean_themselves():
    own = {name: encoders.facts(name).mean_pooled for name in ("compact", "cnn14", "mn04", "atst_frame", "passt_s")}
    assert own == {"compact": False, "cnn14": False, "mn04": True, "atst_frame": True, "passt_s": True}


def test_the_facts_of_an_encoder_are_those_of_what_is_registered_now(monkeypatch):
    wide = encoders.facts("mn04").dim
    with monkeypatch.context() as patch:
        patch.setitem(encoders.AUDIO_ENCODERS, "mn04", lambda augment=None, dropout=None: MobileNet(0.1, augment))
        assert encoders.facts("mn04").dim < wide
    assert encoders.facts("mn04").dim == wide
