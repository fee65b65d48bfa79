import numpy as np
import pytest
import torch
from golden_weights import GOLDEN, fill, keys, waveform
from torch import nn

from atr import encoders
from atr.encoders.audio.frontends import PaSSTMel
from atr.encoders.audio.passt import PaSST


def small(**options):
    torch.manual_seed(0)
    return PaSST(stride=16, width=32, depth=2, heads=2, **options)


def spectrogram(clips=1, seed=0):
    return torch.randn(clips, 128, 1000, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_an_official_file_gives_the_official_networks_numbers(tmp_path):
    golden, tensors = np.load(GOLDEN / "passt_s.npz"), fill(keys("passt_s"))
    torch.save(tensors, tmp_path / "official.pt")
    encoder = encoders.build("passt_s", tmp_path / "official.pt").eval()
    features = encoder.frontend(waveform(golden["waveform_spec"]))
    assert features.shape[2] == golden["mel_frames"]
    torch.testing.assert_close(features[:, :, ::10], torch.from_numpy(golden["mel"]), atol=1e-4, rtol=0)
    embedding = encoder.pool(*encoder.encode(features[:1]))  # the second clip would cost four seconds
    torch.testing.assert_close(embedding, torch.from_numpy(golden["embedding"][:1]), atol=1e-3, rtol=0)
    normed = nn.functional.layer_norm(embedding, (768,), tensors["head.0.weight"], tensors["head.0.bias"])
    logits = nn.functional.linear(normed, tensors["head.1.weight"], tensors["head.1.bias"])
    torch.testing.assert_close(logits, torch.from_numpy(golden["logits"][:1]), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("stride", "bands", "times"), [(10, 12, 99), (16, 8, 62)])
def test_tensors_are_named_and_shaped_as_in_official_files_but_for_the_dropped_classifiers(stride, bands, times):
    encoder = PaSST(stride, depth=12, width=12)
    official = {name: shape for name, shape, _ in keys("passt_s")}
    assert {name for name in official if name.startswith(encoder.dropped)} == {
        *("head.0.weight", "head.0.bias", "head.1.weight", "head.1.bias", "head_dist.weight", "head_dist.bias")
    }
    scaled = {768: 12, 2304: 36, 3072: 48}
    expected = {
        name: tuple(scaled.get(size, size) for size in shape)
        for name, shape in official.items()
        if not name.startswith(encoder.dropped)
    }
    expected |= {"freq_new_pos_embed": (1, 12, bands, 1), "time_new_pos_embed": (1, 12, 1, times)}
    assert {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()} == expected


@torch.no_grad()
@pytest.mark.parametrize("stride", [10, 16])
def test_no_patch_reaches_the_last_four_of_1000_frames(stride):
    torch.manual_seed(0)
    encoder = PaSST(stride, width=8, depth=1, heads=1).eval()
    features, changed = spectrogram(), spectrogram()
    changed[..., 996:] += 1
    assert torch.equal(encoder.encode(features)[0], encoder.encode(changed)[0])
    changed[..., 0] += 1
    assert not torch.equal(encoder.encode(features)[0], encoder.encode(changed)[0])


# --- patchout


@torch.no_grad()
def test_patchout_leaves_out_15_times_and_2_bands_of_the_whole_batch_in_training():
    encoder = small(augment="patchout")
    seen = []
    encoder.blocks[0].register_forward_pre_hook(lambda block, inputs: seen.append(inputs[0]))
    times, bands = torch.arange(62.0), torch.arange(8.0)  # a patch's place, in its first two numbers
    nn.init.zeros_(encoder.patch_embed.proj.weight)
    nn.init.zeros_(encoder.patch_embed.proj.bias)
    encoder.time_new_pos_embed.zero_()[0, 0, 0] = times
    encoder.freq_new_pos_embed.zero_()[0, 1, :, 0] = bands
    kept = []
    for _ in range(40):
        encoder.train().encode(spectrogram(3))
        places = seen[-1][:, 2:, :2]
        assert torch.equal(places[0], places[1]) and torch.equal(places[0], places[2])
        times_kept, bands_kept = places[0, :47, 0], places[0, ::47, 1]
        assert len(set(times_kept.tolist())) == 47 and torch.equal(times_kept, times_kept.sort().values)
        assert len(set(bands_kept.tolist())) == 6 and torch.equal(bands_kept, bands_kept.sort().values)
        assert torch.equal(places[0], torch.cartesian_prod(bands_kept, times_kept).flip(1))
        kept.append((set(times_kept.tolist()), set(bands_kept.tolist())))
    assert set.union(*(times for times, _ in kept)) == set(times.tolist())
    assert set.union(*(bands for _, bands in kept)) == set(bands.tolist())
    encoder.eval().encode(spectrogram(3))
    assert seen[-1].shape[1] == 2 + 8 * 62


@torch.no_grad()
def test_without_patchout_training_hears_every_patch():
    encoder = small().train()
    assert torch.equal(encoder.encode(spectrogram())[0], encoder.eval().encode(spectrogram())[0])


# --- frontend


def test_a_tone_is_loudest_in_the_band_of_its_frequency():
    time = torch.arange(32_000) / 32_000
    mel = PaSSTMel().eval()
    loudest = mel(torch.sin(2 * torch.pi * 1000 * time)[None])[0].mean(1).argmax()
    frequencies = torch.arange(513) * 31.25
    centres = (mel.banks * frequencies).sum(1) / mel.banks.sum(1)
    assert loudest == (centres - 1000).abs().argmin()


def test_silence_is_the_logarithm_of_its_floor():
    silence = PaSSTMel().eval()(torch.zeros(1, 3200))
    torch.testing.assert_close(silence, torch.full((1, 128, 10), (np.log(1e-5) + 4.5) / 5, dtype=torch.float32))


def test_band_edges_are_drawn_anew_in_training_within_10_and_1000_hertz(monkeypatch):
    torch.manual_seed(0)
    edges, mel = [], PaSSTMel().train()
    monkeypatch.setattr(mel, "mel_banks", lambda low, high: (edges.append((low, high)), mel.banks)[1])
    for _ in range(1000):
        mel(torch.zeros(1, 1000))
    low, high = map(set, zip(*edges, strict=True))
    assert low == set(range(10))
    assert 14_001 <= min(high) < 14_050 and 15_950 < max(high) <= 16_000
    mel.eval()(torch.zeros(1, 1000))
    assert len(edges) == 1000


def test_training_hears_the_drawn_bands_and_a_seed_repeats_them():
    torch.manual_seed(0)
    sound, mel = torch.randn(1, 3200), PaSSTMel()
    plain = mel.eval()(sound)
    mel.train()
    drawn = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        drawn.append(mel(sound))
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], plain)
    torch.manual_seed(1)
    low, high = int(torch.randint(10, ())), 16_000 - int(torch.randint(2000, ()))
    mel.banks = mel.mel_banks(low, high)
    assert torch.equal(mel.eval()(sound), drawn[0])
