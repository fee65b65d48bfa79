import io
import pickle
import re
import struct

import numpy as np
import pytest
import soundfile

from atr.corpora import audio
from atr.corpora.containers import AudioError, mpeg


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


def encoded(kind, samples=None, rate=16000, **options):
    """The bytes of a file; kind: "WAV", "WAV PCM_24", "OGG OPUS"."""
    name, _, subtype = kind.partition(" ")
    file = io.BytesIO()
    samples = noise() if samples is None else samples
    soundfile.write(file, samples, rate, format=name, subtype=subtype or None, **options)
    return file.getvalue()


def noise(seconds=2.0, rate=16000, soft=0.0):
    """Noise of some level; MP3 encoders give its first `soft` seconds the fewest bits they can."""
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, int(seconds * rate)).astype(np.float32)
    samples[: int(soft * rate)] *= 1e-3
    return samples


def decoded(content):
    with soundfile.SoundFile(io.BytesIO(content)) as file:
        return file.read(1 << 18, dtype="float32")  # as much at a time as `read`, which decides on an MP3's last bits


def read_bytes(folder, content, name="sound.bin"):
    """What `read` gives for a file of this content, and that all else agrees with it on its length."""
    path = folder / name
    path.write_bytes(content)
    waveform, rate = audio.read(path)
    assert audio.header(path) == (len(waveform), rate) and audio.duration(path) == len(waveform) / rate
    parts = [part for _, part, _ in audio.segments(path, 1.0)]
    np.testing.assert_array_equal(np.concatenate(parts), waveform)
    return waveform


STATED = [f"{kind} {subtype}" for kind in ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF") for subtype in ("PCM_16", "FLOAT")]  # fmt: skip  # noqa: E501
STATED += ["WAV PCM_24", "WAV IMA_ADPCM", "W64 MS_ADPCM", "AIFF GSM610", "CAF ALAC_16"]


@pytest.mark.parametrize("missing", [0.7, 0.4, 0.05, 300, 2])
@pytest.mark.parametrize("kind", [*STATED, "FLAC", "OGG VORBIS", "OGG OPUS", "MP3"])
def test_a_file_that_was_cut_off_is_an_error(tmp_path, kind, missing):
    content = encoded(kind)
    left = len(content) - missing if missing >= 2 else int(len(content) * (1 - missing))
    with pytest.raises(AudioError, match="cut short.*; fetch it again"):
        read_bytes(tmp_path, content[:left])


def test_the_seconds_that_are_there_and_those_that_should_be_are_named(tmp_path):
    content = encoded("WAV PCM_16")
    with pytest.raises(AudioError, match="cut short: 1.50 s of the 2.00 s that its header states; fetch it again"):
        read_bytes(tmp_path, content[: 44 + 2 * 24000])
    with pytest.raises(AudioError, match="cut short: 0.00 s|cut short: 0 of the 64000 bytes"):
        read_bytes(tmp_path, content[:44])


@pytest.mark.parametrize("kind", sorted({*STATED, "FLAC", "OGG VORBIS", "OGG OPUS", "MP3"} - {"AIFF GSM610"}))
def test_what_follows_a_whole_file_is_not_heard(tmp_path, kind):  # libsndfile decodes GSM610 block by block
    content = encoded(kind)
    np.testing.assert_array_equal(read_bytes(tmp_path, content + b"rubbish " * 50), read_bytes(tmp_path, content))


def test_a_missing_pad_byte_is_none_of_the_sound(tmp_path):
    content = encoded("WAV PCM_U8", noise()[:31999])
    assert len(content) % 2 == 0
    np.testing.assert_array_equal(read_bytes(tmp_path, content[:-1]), decoded(content))


def unstated(kind, value):
    """A file whose writer left `value` where the bytes of its sound belong."""
    content = bytearray(encoded(kind))
    name = {"AIFF": b"SSND", "RF64": b"ds64"}.get(kind.split()[0], b"data")
    skipped = {"CAF": 4, "RF64": 16, "W64": 16, "AU": 8}.get(kind.split()[0], 4)
    order = "<" if kind.split()[0] in ("WAV", "WAVEX", "RF64", "W64") else ">"
    place = (0 if kind.startswith("AU") else content.index(name, 20 if kind.startswith("CAF") else 0)) + skipped
    struct.pack_into(f"{order}{'Q' if kind.split()[0] in ('CAF', 'RF64', 'W64') else 'I'}", content, place, value)
    return bytes(content)


@pytest.mark.parametrize(
    "kind, values",
    [
        ("WAV PCM_16", [0, 0xFFFFFFFF, 0x7FFFF000, 0x7FFFFFFF, 0x80000000]),
        ("WAV FLOAT", [0, 0xFFFFFFFF]),
        ("WAVEX PCM_16", [0, 0xFFFFFFFF]),
        ("AIFF PCM_16", [0, 8, 0xFFFFFFFF, 0x7F000000]),
        ("AU PCM_16", [0, 0xFFFFFFFF, 0x7FFFFFFF]),
        ("CAF PCM_16", [4, 0xFFFFFFFFFFFFFFFF]),
        ("W64 PCM_16", [0, 24, 0xFFFFFFFFFFFFFFFF]),
        ("RF64 PCM_16", [0, 0xFFFFFFFFFFFFFFFF]),
    ],
)
def test_sound_whose_length_was_never_stated_is_read_to_the_end(tmp_path, kind, values):
    expected = decoded(encoded(kind))
    for value in values:
        waveform = read_bytes(tmp_path, unstated(kind, value))
        assert abs(len(waveform) - len(expected)) <= 30  # chunks behind the sound cannot be told from it
        np.testing.assert_array_equal(waveform[:32000], expected)


def test_a_recording_that_never_began_holds_no_samples_even_with_notes_behind_it(tmp_path):
    content = encoded("WAV PCM_16", noise()[:0]) + b"LIST" + struct.pack("<I", 12) + b"INFOabcdefgh"
    with pytest.raises(AudioError, match="0 samples"):
        read_bytes(tmp_path, content)


def flac_of_unknown_length():
    content = bytearray(encoded("FLAC"))
    content[21] &= 0xF0  # STREAMINFO: 36 bits of total samples, 0 if unknown
    content[22:26] = bytes(4)
    return bytes(content)


def test_flac_that_does_not_say_how_long_it_is_is_read_to_the_end(tmp_path):
    np.testing.assert_array_equal(read_bytes(tmp_path, flac_of_unknown_length()), decoded(encoded("FLAC")))
    with pytest.raises(AudioError, match="fetch it again"):
        read_bytes(tmp_path, flac_of_unknown_length()[:-300])


@pytest.mark.parametrize("kind", ["FLAC", "OGG VORBIS", "OGG OPUS", "MP3"])
def test_files_joined_to_one_are_heard_one_after_another(tmp_path, kind):
    first, second = encoded(kind), encoded(kind, tone(1.0))
    expected = np.concatenate([decoded(first), decoded(second)])
    np.testing.assert_array_equal(read_bytes(tmp_path, first + second), expected)


@pytest.mark.parametrize("kind", ["FLAC", "OGG VORBIS", "MP3"])
def test_files_of_two_rates_joined_to_one_are_an_error(tmp_path, kind):
    with pytest.raises(AudioError, match="joined of parts at 16000 and 44100 Hz"):
        read_bytes(tmp_path, encoded(kind) + encoded(kind, rate=44100))


def test_an_ogg_file_without_one_of_its_pages_is_an_error(tmp_path):
    content = encoded("OGG VORBIS")
    pages = [match.start() for match in re.finditer(b"OggS", content)]
    with pytest.raises(AudioError, match="page 2 is missing; fetch it again"):
        read_bytes(tmp_path, content[: pages[2]] + content[pages[3] :])
    with pytest.raises(AudioError, match="cut short: its last page is missing; fetch it again"):
        read_bytes(tmp_path, content[: pages[-1]])


def frames(content):
    """Where the frames of an MP3 without tags begin; the first holds its length."""
    return [begin for begin, _ in mpeg_runs(content)]


def mpeg_runs(content):
    at = 0
    while at < len(content):
        _, size = mpeg._frame(int.from_bytes(content[at : at + 4]))
        yield at, size
        at += size


PICTURE = b"ID3\x03\0\0\0\x01\0\0" + b"APIC\0\0\x3f\xf6\0\0" + bytes(16374)
LYRICS = b"APETAGEX" + struct.pack("<4I8x", 2000, 1032, 1, 0xA0000000) + bytes(1000) + b"APETAGEX" + struct.pack("<4I8x", 2000, 1032, 1, 0x80000000)  # fmt: skip  # noqa: E501
TITLE = b"TAG" + b"a title".ljust(125)
RATES = {44100: 1152, 16000: 576, 8000: 576}  # MPEG-1, 2 and 2.5, samples of a frame


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
@pytest.mark.parametrize("rate", RATES)
def test_an_mp3_is_as_long_as_its_frames_whatever_lies_around_and_between_them(tmp_path, capfd, rate, mode):
    content = encoded("MP3", noise(4.0, rate, soft=2.0), rate, bitrate_mode=mode)
    begins, expected = frames(content), decoded(content)
    assert len(expected) == 4 * rate
    for whole in (content, PICTURE + content + TITLE, LYRICS + content, content + LYRICS + TITLE, content + bytes(999)):
        np.testing.assert_array_equal(read_bytes(tmp_path, whole), expected)
    both = read_bytes(tmp_path, PICTURE + content + TITLE + PICTURE + content + LYRICS)
    np.testing.assert_array_equal(both, np.concatenate([expected, expected]))
    parted = content[: begins[30]] + b"\xff\xfbrubbish" * 50 + content[begins[30] :]
    np.testing.assert_array_equal(read_bytes(tmp_path, parted), expected)

    bare = content[begins[1] :]  # without the frame that says how many there are
    samples = (len(begins) - 1) * RATES[rate]
    for many, length in ((bare, 1), (PICTURE + bare + TITLE, 1), (bare + bare, 2), (bare + LYRICS + bare, 2)):
        waveform = read_bytes(tmp_path, many)
        assert len(waveform) == length * samples
        np.testing.assert_allclose(
            waveform[1105 : 1105 + 3 * rate], expected[: 3 * rate], atol=1e-6
        )  # the coder's delay
    fraunhofer = content[:4] + bytes(32) + b"VBRI" + struct.pack(">3H2I", 1, 0, 0, len(content), len(begins) - 1)
    fraunhofer = fraunhofer.ljust(begins[1], b"\0") + bare
    assert len(read_bytes(tmp_path, fraunhofer)) == samples

    for cut in (content[: begins[-1]], content[: begins[-1] + 20], content[:-1], bare[:-1], bare[:-50], bare[: begins[-1] - begins[1] + 2], fraunhofer[: begins[-9]]):  # fmt: skip  # noqa: E501
        with pytest.raises(AudioError, match="cut short.*; fetch it again"):
            read_bytes(tmp_path, PICTURE + cut)
    assert "Note" not in capfd.readouterr().err


def test_an_mp3_is_one_by_its_content(tmp_path):
    content = encoded("MP3")
    np.testing.assert_array_equal(read_bytes(tmp_path, content, "sound.wav"), decoded(content))
    np.testing.assert_array_equal(read_bytes(tmp_path, b"rubbish" * 99 + content, "sound.mp3"), decoded(content))
    bare = content[frames(content)[1] :]
    form = struct.pack("<2H2I4HI3H", 0x55, 1, 16000, 4000, 1, 0, 12, 1, 2, 576, 1, 1393)
    chunks = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(bare)) + bare
    waveform = read_bytes(tmp_path, b"RIFF" + struct.pack("<I", len(chunks)) + chunks)
    assert len(waveform) == 576 * (len(frames(content)) - 1)


@pytest.mark.parametrize("version", [3, 2, 0])  # MPEG-1, 2, 2.5
@pytest.mark.parametrize("layer, samples", [(1, 384), (2, 1152)])
def test_the_older_layers_of_mpeg_are_counted_too(tmp_path, layer, samples, version):
    header = 0xFFE00000 | version << 19 | (4 - layer) << 17 | 1 << 16 | 8 << 12 | 3 << 6
    size = mpeg._frame(header)[1]
    if layer == 1:
        bits = "0011" * 8 + "0" * 96 + "100000" * 8
    else:  # 4 of the 30 subbands, a factor each
        bits = ("0001" * 4).ljust(94 if version == 3 else 75, "0") + "10" * 4 + "100000" * 4
    body = int((bits + "0110100111" * size * 8)[: (size - 4) * 8], 2).to_bytes(size - 4)
    content = 40 * (header.to_bytes(4) + body)
    assert len(read_bytes(tmp_path, content, "sound.mp2")) == 40 * samples
    with pytest.raises(AudioError, match="its last frame, after .* s, is incomplete"):
        read_bytes(tmp_path, content[:-9], "sound.mp2")


def test_a_container_that_does_not_show_whether_it_is_whole_is_refused(tmp_path):
    with pytest.raises(AudioError, match="of the format VOC, which does not show.*; convert it to WAV"):
        read_bytes(tmp_path, encoded("VOC"))


@pytest.mark.parametrize("kind", ["WAV FLOAT", "WAV DOUBLE", "RF64 FLOAT", "W64 FLOAT", "AIFF FLOAT", "AU FLOAT", "CAF DOUBLE"])  # fmt: skip  # noqa: E501
def test_floats_in_the_scale_of_integers_are_refused_and_those_a_coder_overshot_are_not(tmp_path, kind):
    loud = noise() * 2.02
    np.testing.assert_array_equal(read_bytes(tmp_path, encoded(kind, loud)), loud)
    with pytest.raises(AudioError, match="a peak of 16,384, where full scale is 1; scale it to the range -1 to 1"):
        read_bytes(tmp_path, encoded(kind, noise() / np.abs(noise()).max() * 16384))
    stereo = np.stack([tone() * 9000, -tone() * 9000 + 0.1], 1)  # which cancel in the mean
    with pytest.raises(AudioError, match="a peak of 4,500"):
        read_bytes(tmp_path, encoded(kind, stereo))


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
