import pickle
import struct

import numpy as np
import pytest
import soundfile

from atr import audio
from atr.audio import AudioError


def tone(seconds=0.5, rate=16000, hertz=440.0):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("rate", [8000, 16000, 44101, 96000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_and_channel_count_reads_as_the_mean_of_channels(tmp_path, rate, channels):
    samples = np.stack([tone(rate=rate) * (k + 1) / channels for k in range(channels)], axis=1)
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    waveform, read_rate = audio.read(tmp_path / "a.wav")
    assert waveform.dtype == np.float32 and read_rate == rate
    np.testing.assert_allclose(waveform, samples.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_the_mean_of_channels_has_the_bits_of_numpys(tmp_path, channels):
    samples = np.random.default_rng(0).normal(0, 0.3, (20_000, channels)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    assert audio.read(tmp_path / "a.wav")[0].tobytes() == samples.mean(axis=1).tobytes()


def test_a_file_longer_than_a_block_reads_whole(tmp_path):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 300_000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 32000, subtype="FLOAT")
    np.testing.assert_array_equal(audio.read(tmp_path / "a.wav")[0], samples)


@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.mp3"])
def test_compressed_formats_read(tmp_path, name):
    soundfile.write(tmp_path / name, tone(), 16000)
    assert len(audio.read(tmp_path / name)[0]) == 8000
    assert audio.duration(tmp_path / name) == 0.5


def write_text(path):
    path.write_text("no audio")


def write_no_samples(path):
    soundfile.write(path, np.zeros(0, np.float32), 16000)


def write_zeros(path):
    soundfile.write(path, np.zeros(800, np.float32), 16000)


def write_opposite_channels(path):
    soundfile.write(path, np.stack([tone(), -tone()], axis=1), 16000, subtype="FLOAT")


def write_nan(path):
    soundfile.write(path, np.array([0.1, np.nan, 0.2], np.float32), 16000, subtype="FLOAT")


def write_opposite_infinities(path):
    soundfile.write(path, np.array([[0.1, 0.1], [np.inf, -np.inf]], np.float32), 16000, subtype="FLOAT")


BAD = {
    "no such file": lambda path: None,
    "0 bytes": lambda path: path.touch(),
    "unreadable (Format not recognised.)": write_text,
    "unreadable": write_text,
    "0 samples": write_no_samples,
    "silent": write_zeros,
    "silent: every sample is 0 once channels are averaged": write_opposite_channels,
    "NaN or infinite": write_nan,
    "that are NaN or infinite": write_opposite_infinities,
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("problem", BAD)
def test_a_bad_file_is_an_error_with_file_problem_and_mend(tmp_path, problem):
    path = tmp_path / "bad.wav"
    BAD[problem](path)
    with pytest.raises(AudioError) as caught:
        audio.read(path)
    assert caught.value.where == str(path) and problem in caught.value.problem and caught.value.mend
    assert str(caught.value) == f"{path}: {caught.value.problem}; {caught.value.mend}"


def test_an_absurd_length_is_refused_by_the_header_before_anything_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "long.wav"
    size = 2 * 8000 * 1801  # a sparse file: silence that is never read
    header = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, 1, 8000, 16000, 2, 16, b"data", size)  # fmt: skip  # noqa: E501
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(len(header) + size)
    monkeypatch.delattr(soundfile.SoundFile, "read")
    with pytest.raises(AudioError, match="1801 s long, more than 1800 s; cut it"):
        audio.read(path)


def test_segments_of_a_file_that_does_not_say_how_long_it_is_are_refused(tmp_path):
    path = tmp_path / "stream.flac"
    soundfile.write(path, tone(), 16000)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # STREAMINFO: 36 bits of total samples, 0 if unknown
    content[22:26] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(AudioError, match="its header does not state its length; convert it"):
        list(audio.segments(path, 10.0))


@pytest.mark.parametrize("extension, problem", [("mp3", "cut short"), ("flac", "unreadable")])
def test_a_file_that_was_cut_off_is_an_error(tmp_path, extension, problem):
    whole = tmp_path / f"whole.{extension}"
    soundfile.write(whole, np.random.default_rng(0).uniform(-0.5, 0.5, 48000), 16000)
    half = tmp_path / f"half.{extension}"
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(AudioError, match=problem):
        audio.read(half)


def test_an_audio_error_survives_the_way_from_a_worker_process():
    error = pickle.loads(pickle.dumps(AudioError("a.wav", "silent", "remove it")))
    assert str(error) == "a.wav: silent; remove it" and error.mend == "remove it"


@pytest.mark.parametrize("orig, new", [(44101, 16000), (8000, 16000), (48000, 32000)])
def test_resampling_keeps_a_tone_where_it_was(orig, new):
    result = audio.resample(tone(1.0, orig), orig, new)
    assert result.dtype == np.float32 and abs(len(result) - new) <= 1
    middle = slice(new // 10, -new // 10)
    np.testing.assert_allclose(result[middle], tone(1.0, new)[: len(result)][middle], atol=1e-3)


def test_resampling_removes_what_the_new_rate_cannot_hold():
    assert np.abs(audio.resample(tone(1.0, 44100, 12000.0), 44100, 16000)[1000:-1000]).max() < 1e-3


def test_equal_rates_leave_the_waveform_as_it_is():
    np.testing.assert_array_equal(audio.resample(tone(), 16000, 16000), tone())


@pytest.mark.parametrize("orig, new", [(0, 16000), (16000, -1)])
def test_rates_must_be_positive(orig, new):
    with pytest.raises(ValueError, match="must be positive"):
        audio.resample(tone(), orig, new)
