"""Which recordings count as copies of one another: formats, rates and levels do, other takes do not."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import soundfile

from atr.corpora import audio, copies

RATE = 44_100
ESC10 = Path(__file__).parents[2] / "shared" / "data" / "esc10"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ATR_HOME", str(tmp_path / "home"))


def take(seed, seconds=2.0):
    """Knocks in noise, at other times in every take."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    knocks = sum(np.exp(-40 * np.maximum(time - at, 0)) * (time > at) for at in rng.uniform(0, seconds, 5))
    return 0.2 * knocks * rng.normal(0, 1, len(time)) + 0.01 * rng.normal(0, 1, len(time))


def grouped(folder):
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
    return copies.groups(folder, digests)


FORMS = {
    "same samples.flac": {},
    "float.wav": {"subtype": "FLOAT"},
    "coarse.wav": {"subtype": "PCM_U8"},
    "encoded.mp3": {},
    "encoded.ogg": {},
    "encoded again.ogg": {"compression_level": 1.0},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_recording_in_another_format_is_a_copy(tmp_path, form):
    (tmp_path / "clips").mkdir()
    for seed in range(4):
        soundfile.write(tmp_path / "clips" / f"a{seed}.wav", take(seed), RATE)
    soundfile.write(tmp_path / "clips" / form, take(2), RATE, **FORMS[form])
    first, errors = grouped(tmp_path / "clips")
    assert not errors and {name: one for name, one in first.items() if name != one} == {form: "a2.wav"}


@pytest.mark.parametrize("level, rate", [(0.1, RATE), (-1.0, RATE), (1.0, 16_000), (0.5, 8_000)])
def test_a_recording_at_another_level_or_rate_is_a_copy(tmp_path, level, rate):
    (tmp_path / "clips").mkdir()
    for seed in range(4):
        soundfile.write(tmp_path / "clips" / f"a{seed}.wav", take(seed), RATE)
    soundfile.write(tmp_path / "clips" / "b.wav", level * audio.resample(take(2), RATE, rate), rate)
    assert grouped(tmp_path / "clips")[0]["b.wav"] == "a2.wav"


def test_sounds_that_are_alike_are_no_copies(tmp_path):
    (tmp_path / "clips").mkdir()
    rng = np.random.default_rng(0)
    time = np.arange(RATE) / RATE
    for number in range(6):
        soundfile.write(tmp_path / "clips" / f"noise{number}.wav", rng.normal(0, 0.1, RATE), RATE)
        for start in (850, 5_000):  # in one band, and above all bands
            tone = 0.5 * np.sin(2 * np.pi * (start + 10 * number) * time)
            soundfile.write(tmp_path / "clips" / f"tone{start}{number}.wav", tone, RATE)
    first, _ = grouped(tmp_path / "clips")
    assert all(name == one for name, one in first.items()) and copies.in_words(first) == ""


def test_copies_of_copies_belong_together_and_are_found_again_without_decoding(tmp_path, monkeypatch):
    (tmp_path / "clips").mkdir()
    for name, level in (("c.wav", 1.0), ("a.wav", 0.5), ("b.flac", 0.25)):
        soundfile.write(tmp_path / "clips" / name, level * take(0), RATE)
    (tmp_path / "clips" / "d.wav").write_bytes((tmp_path / "clips" / "c.wav").read_bytes())
    first, _ = grouped(tmp_path / "clips")
    assert set(first.values()) == {"a.wav"}
    assert copies.in_words(first) == "; 3 copies (1 recordings), each in the split of the first"
    monkeypatch.setattr(copies.files, "read", lambda path, digest: pytest.fail(f"{path} was decoded again"))
    assert grouped(tmp_path / "clips")[0] == first


def test_a_file_that_cannot_be_decoded_is_named_and_nothing_is_kept(tmp_path):
    (tmp_path / "clips").mkdir()
    soundfile.write(tmp_path / "clips" / "a.wav", take(0), RATE)
    soundfile.write(tmp_path / "clips" / "b.wav", np.zeros(RATE), RATE)
    for _ in range(2):
        assert [error.where for error in grouped(tmp_path / "clips")[1]] == [str(tmp_path / "clips" / "b.wav")]


@pytest.mark.skipif(not ESC10.is_dir(), reason="needs ESC-10 beside the project")
def test_real_recordings_of_a_class_are_no_copies(tmp_path):
    digests = {}
    for path in sorted((ESC10 / "rain").iterdir()) + sorted((ESC10 / "dog_bark").iterdir()):
        digests[path.relative_to(ESC10).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    first, errors = copies.groups(ESC10, digests)
    assert len(digests) == 80 and not errors and all(name == one for name, one in first.items())
