import pickle
import struct
from io import BytesIO

import numpy as np
import pytest
import soundfile

from atr import audio, containers
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


CONTAINERS = [("WAV", "PCM_16", "LITTLE"), ("WAV", "FLOAT", "BIG"), ("WAV", "IMA_ADPCM", "FILE")] + [
    (name, "PCM_16", "FILE") for name in ("WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "SVX", "AVR", "NIST", "FLAC")
]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95, 0.995])
@pytest.mark.parametrize("kind", [*CONTAINERS, ("OGG", "VORBIS", "FILE"), ("OGG", "OPUS", "FILE")], ids="-".join)
def test_a_file_cut_short_is_refused_and_the_whole_one_read(tmp_path, kind, share):
    form, subtype, endian = kind
    path = tmp_path / "a.audio"
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 48_000)
    soundfile.write(path, samples, 16000, format=form, subtype=subtype, endian=endian)
    assert abs(len(audio.read(path)[0]) - 48_000) < 1000
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(AudioError, match="cut short|unreadable.*fetch it again"):
        audio.read(path)


def test_a_wav_cut_short_says_what_is_there_and_what_was_to_be(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(2.0), 16000)
    path.write_bytes(path.read_bytes()[: 44 + 32_000])
    for use in (audio.header, audio.duration, audio.read):
        with pytest.raises(AudioError, match="cut short: 1.00 s of the 2.00 s that its header states; fetch it again"):
            use(path)


@pytest.mark.parametrize("stated", [0, 0x7FFFF000, -1])
@pytest.mark.parametrize("form", ["WAV", "RF64", "W64", "AIFF", "AU", "CAF"])
def test_a_header_that_states_no_length_loses_no_sound(tmp_path, form, stated):
    path = tmp_path / "a.audio"
    soundfile.write(path, tone(), 16000, format=form, subtype="PCM_16")
    expected = audio.read(path)[0]
    where, code = containers.promise(path)[3].split(":")
    if stated > 0 and code[1] == "Q":
        stated = -1  # the placeholder is one of 32 bits
    content = bytearray(path.read_bytes())
    top = (1 << 8 * struct.calcsize(code)) - 1
    struct.pack_into(code, content, int(where), (24 if form == "W64" and not stated else stated) & top)
    path.write_bytes(content)
    np.testing.assert_array_equal(audio.read(path)[0], expected)
    assert audio.duration(path) == 0.5


def test_chunks_behind_no_sound_are_not_sound(tmp_path):
    write_no_samples(tmp_path / "a.wav")
    with open(tmp_path / "a.wav", "ab") as file:
        file.write(b"LIST" + struct.pack("<I", 4) + b"INFO")
    with pytest.raises(AudioError, match="0 samples"):
        audio.read(tmp_path / "a.wav")


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_files_joined_are_read_to_the_end(tmp_path, subtype):
    for name, hertz in (("a", 440.0), ("b", 880.0)):
        soundfile.write(tmp_path / name, tone(hertz=hertz), 16000, format="OGG", subtype=subtype)
    both = tmp_path / "both.ogg"
    both.write_bytes((tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes())
    expected = np.concatenate([audio.read(tmp_path / name)[0] for name in "ab"])
    np.testing.assert_array_equal(audio.read(both)[0], expected)
    assert audio.duration(both) == 1.0


def mp3(rate=44100, channels=1, mode="VARIABLE"):
    """Five seconds, soft at first, in MP3 with an Info frame."""
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (5 * rate, channels))
    samples[: 3 * rate] *= 1e-4
    buffer = BytesIO()
    soundfile.write(buffer, samples, rate, format="MP3", bitrate_mode=mode, compression_level=0.5)
    return buffer.getvalue()


def bare(content):
    return content[containers._frame(content, 0)[0] :]


PICTURE = b"ID3\3\0\0" + bytes([0, 6, 13, 32]) + np.random.default_rng(1).bytes((6 << 14) + (13 << 7) + 32)
TAIL = b"TAG".ljust(128, b"x")
MP3S = {
    "whole": (lambda one: one, 5),
    "without Info": (bare, 5),
    "joined": (lambda one: one + one, 10),
    "without Info, joined": (lambda one: bare(one) * 2, 10),
    "a picture": (lambda one: PICTURE + one + TAIL, 5),
    "a picture, without Info": (lambda one: PICTURE + bare(one), 5),
    "pictures, joined": (lambda one: (PICTURE + one + TAIL) * 2, 10),
    "junk between": (lambda one: one + b"junk" * 500 + one, 10),
    "zeros behind": (lambda one: one + bytes(3000), 5),
}


@pytest.mark.parametrize("case", MP3S)
@pytest.mark.parametrize(
    "rate, channels, mode", [(44100, 1, "VARIABLE"), (16000, 2, "VARIABLE"), (11025, 1, "CONSTANT")]
)
def test_an_mp3_is_as_long_as_its_frames(tmp_path, capfd, case, rate, channels, mode):
    make, seconds = MP3S[case]
    path = tmp_path / "a.mp3"
    path.write_bytes(make(mp3(rate, channels, mode)))
    waveform = audio.read(path)[0]
    assert audio.duration(path) == len(waveform) / rate
    assert seconds <= len(waveform) / rate < seconds + 0.35
    assert np.abs(waveform[-rate:]).max() > 0.2
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("make", [lambda one: one, bare, lambda one: PICTURE + one, lambda one: one + one])
@pytest.mark.parametrize("bytes_missing", [20, 3000])
def test_an_mp3_cut_short_is_refused(tmp_path, make, bytes_missing):
    content = make(mp3())
    if make is bare and bytes_missing == 3000:
        bytes_missing = 2999  # else a whole number of frames may be missing, which nothing tells
    (tmp_path / "a.mp3").write_bytes(content[:-bytes_missing])
    with pytest.raises(AudioError, match="cut short: .* fetch it again"):
        audio.duration(tmp_path / "a.mp3")


@pytest.mark.parametrize("form", ["WAV", "AIFF", "CAF", "AU"])
def test_integers_as_floats_are_refused_and_what_a_codec_overshoots_is_not(tmp_path, form):
    path = tmp_path / "a.audio"
    soundfile.write(path, tone() * 2 * 16_384, 16000, format=form, subtype="FLOAT")
    with pytest.raises(AudioError, match="samples up to 16,384, where 1 is full scale; scale it to the range -1 to 1"):
        audio.read(path)
    soundfile.write(path, tone() * 2.02, 16000, format=form, subtype="FLOAT")
    assert 1 < np.abs(audio.read(path)[0]).max() < 1.02


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
