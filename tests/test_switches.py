"""Switches change how fast, not what: names and numbers stay, and a run says which were on."""

import pytest
import torch

import atr
from atr import encoders
from atr.encoders.inputs import WAVEFORMS
from atr.system import devices
from atr.system.devices import CPU, GPU, Switches
from atr.system.packed import Batch
from atr.training import model


def network():
    torch.manual_seed(0)
    return model.DualEncoder(encoders.build("cnn6").eval(), None, 512, 8, 4).eval()


def test_a_cpu_has_none_but_the_fused_optimiser_and_a_gpu_what_is_its_own(monkeypatch):
    monkeypatch.delenv("ATR_SWITCHES", raising=False)
    assert devices.switches_for("cpu") == CPU == Switches(tf32=False, channels_last=False, fused=True, compiled=False)
    assert devices.switches_for("cuda") == GPU == Switches(tf32=True, channels_last=True, fused=True, compiled=False)


def test_the_environment_switches_on_and_off(monkeypatch):
    monkeypatch.setenv("ATR_SWITCHES", "compiled, no-tf32")
    assert devices.switches_for("cuda") == Switches(tf32=False, channels_last=True, fused=True, compiled=True)
    monkeypatch.setenv("ATR_SWITCHES", "fast")
    with pytest.raises(ValueError, match="ATR_SWITCHES: unknown 'fast'; known: tf32, channels_last, fused, compiled"):
        devices.switches_for("cpu")


def test_channels_last_lays_out_weights_and_leaves_names_and_embeddings_as_they_are():
    plain, laid_out = network(), Switches(channels_last=True).apply(network())
    weights = [p for p in laid_out.audio_encoder.parameters() if p.ndim == 4 and p.shape[1] > 1]
    assert weights and all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    assert list(plain.state_dict()) == list(laid_out.state_dict())
    noise = torch.randint(-9999, 9999, (2, 32_000), dtype=torch.int16)
    sounds = Batch(WAVEFORMS, noise, torch.tensor([32_000, 20_000]))
    with torch.no_grad():
        one, two = plain.embed_audio(sounds), laid_out.embed_audio(sounds)
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


def test_a_compiled_encoder_keeps_its_names():
    compiled = Switches(compiled=True).apply(network())
    assert list(compiled.state_dict()) == list(network().state_dict())
    assert compiled.audio_encoder._compiled_call_impl is not None


def test_process_wide_settings_are_set_back():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with Switches(tf32=True).on():
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", True)
        with Switches().on():
            assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_a_run_says_what_was_switched_on_and_its_address_does_not(monkeypatch, tmp_path):
    soundscapes = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
    config = atr.RunConfig(corpus=soundscapes, epochs=1)
    plain = atr.fit(config, device="cpu", runs=tmp_path / "plain")
    monkeypatch.setenv("ATR_SWITCHES", "no-fused")
    other = atr.fit(config, device="cpu", runs=tmp_path / "other")
    assert (plain.environment["switches"]["fused"], other.environment["switches"]["fused"]) == (True, False)
    assert plain.address == other.address
    untrained = atr.fit(config.replace(epochs=0), device="cpu", runs=tmp_path / "untrained").checkpoint
    for name, weights in plain.checkpoint.items():  # the fused optimiser rounds elsewhere, by far less than it moves
        moved = (weights - untrained[name]).norm()
        assert moved > 0 and (weights - other.checkpoint[name]).norm() < 1e-3 * moved


def test_gradients_that_are_short_enough_are_left_alone_and_others_are_cut_as_pytorch_cuts_them():
    from atr.training.trainer import _clip

    for largest in (0.5, 5.0, 50.0):
        ours, theirs = (torch.nn.Parameter(torch.zeros(100)) for _ in range(2))
        ours.grad = torch.randn(100, generator=torch.Generator().manual_seed(1))
        theirs.grad = ours.grad.clone()
        _clip([ours], largest)
        torch.nn.utils.clip_grad_norm_([theirs], largest)
        assert torch.equal(ours.grad, theirs.grad)
