import numpy as np
import pytest
import torch
from golden_weights import GOLDEN, fill, keys, waveform

from atr import encoders
from atr.encoders.audio.atst import ATSTFrame
from atr.encoders.audio.frontends import ATSTMel

KEYS = keys("atst_frame_base")


@torch.no_grad()
def test_an_official_file_gives_the_official_networks_numbers(tmp_path):
    golden = np.load(GOLDEN / "atst_frame_base.npz")
    tensors = {f"model.teacher.encoder.{name}": tensor for name, tensor in fill(KEYS).items()}
    torch.save({"state_dict": tensors}, tmp_path / "official.ckpt")
    encoder = encoders.build("atst_frame", tmp_path / "official.ckpt").eval()
    features = encoder.frontend(waveform(golden["waveform_spec"]))
    assert features.shape[2] == golden["mel_frames"]
    torch.testing.assert_close(features[:, :, ::10], torch.from_numpy(golden["mel"]), atol=1e-4, rtol=0)
    frames, mask = encoder.encode(features)
    assert frames.shape == tuple(golden["frames_shape"]) and mask.all()
    torch.testing.assert_close(frames[:, ::5], torch.from_numpy(golden["frames"]), atol=1e-3, rtol=0)


# --- official layouts


def test_tensors_are_named_and_shaped_as_in_official_files_but_for_the_mask_token():
    scaled = {768: 12, 2304: 36, 3072: 48}
    expected = {name: tuple(scaled.get(size, size) for size in shape) for name, shape, _ in KEYS}
    del expected["mask_embed"]
    own = ATSTFrame(width=12).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in own.items()} == expected


def after(names):
    """What of a checkpoint with these names the encoder is given."""
    renamed = ATSTFrame.official({name: torch.zeros(()) for name in names})
    return sorted(name for name in renamed if not name.startswith(ATSTFrame.dropped))


@pytest.mark.parametrize(
    ("prefix", "beside"),
    [
        (
            "model.teacher.encoder.",
            [
                "model.teacher.encoder.cls_token",
                "model.teacher.projector.0.weight",
                "model.student.encoder.blocks.0.norm1.weight",
                "model.student.projector.0.weight",
                "model.student.predictor.0.weight",
            ],
        ),
        (
            "encoder.encoder.frame_encoder.",
            ["encoder.encoder.teacher_module.encoder.encoder.pos_embed", "head.linear.weight"],
        ),
        ("encoder.encoder.", ["head.linear.weight", "head.linear_softmax.bias"]),
        ("", []),
    ],
)
def test_a_layout_gives_the_networks_names_and_nothing_else(prefix, beside):
    own = sorted(name for name, *_ in KEYS if name != "mask_embed")
    assert after([prefix + name for name, *_ in KEYS] + beside) == own


def test_the_pre_trained_layouts_final_norm_is_norm_frame_and_the_blocks_norms_stay():
    names = ("norm.weight", "norm.bias", "blocks.3.norm1.weight", "blocks.3.norm2.bias")
    expected = ["blocks.3.norm1.weight", "blocks.3.norm2.bias", "norm_frame.bias", "norm_frame.weight"]
    assert after(f"model.teacher.encoder.{name}" for name in names) == expected


def test_tensors_that_nobody_knows_stay_to_be_reported():
    names = ["encoder.encoder.clip_encoder.pos_embed", "model.other.weight", "rnn.weight"]
    assert after(names) == ["clip_encoder.pos_embed", "model.other.weight", "rnn.weight"]


# --- frontend


def tone(level, seconds=1.0):
    time = torch.arange(int(seconds * 16_000)) / 16_000
    return 10 ** (level / 20) * torch.sin(2 * torch.pi * 1000 * time)[None]


def decibels(features):
    return (features + 1) / 2 * (50.6842 + 79.6482) - 79.6482


def test_ten_times_the_amplitude_is_20_decibels_more():
    mel = ATSTMel()
    quiet, loud = (decibels(mel(tone(level))).amax() for level in (-40, -20))
    torch.testing.assert_close(loud - quiet, torch.tensor(20.0), atol=1e-3, rtol=0)


def test_nothing_is_more_than_80_decibels_below_the_loudest_or_below_minus_50():
    mel = ATSTMel()
    for level, floor in ((0, None), (-60, -50.0)):
        heard = decibels(mel(torch.cat((tone(level, 0.5), torch.zeros(1, 8000)), 1)))
        expected = float(heard.max()) - 80 if floor is None else floor
        assert float(heard.min()) == pytest.approx(expected, abs=1e-3)


def test_silence_is_minus_50_decibels():
    torch.testing.assert_close(decibels(ATSTMel()(torch.zeros(1, 1600))), torch.full((1, 64, 11), -50.0))


def test_a_loud_neighbour_changes_nothing():
    quiet = tone(-50) + 1e-4 * torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))
    mel = ATSTMel()
    torch.testing.assert_close(mel(torch.cat((quiet, tone(20))))[:1], mel(quiet), atol=1e-6, rtol=0)
