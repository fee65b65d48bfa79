import csv
import errno
import hashlib
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from atr.corpora.containers import AudioError
from atr.corpora.corpus import Corpus, event_table
from atr.encoders import inputs
from atr.system import atomic, devices, hashes, places, store
from atr.system.packed import open_packed, pack, save_array

RATE = 8000


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("ATR_HOME", str(tmp_path))
    return tmp_path


def entries(home):
    """What lies in the cache, but for the files of the locks."""
    return [path for path in home.rglob("*") if path.is_file() and path.suffix != ".lock"]


# --- where things lie


def test_folders_come_from_the_environment_else_from_the_checkout(monkeypatch, tmp_path):
    monkeypatch.setenv("ATR_HOME", "~/there")
    monkeypatch.setenv("ATR_RESULTS", str(tmp_path))
    assert places.home() == Path.home() / "there" and places.results_home() == tmp_path
    monkeypatch.delenv("ATR_HOME")
    monkeypatch.delenv("ATR_RESULTS")
    assert places.home() == places.PROJECT / "data" and places.results_home() == places.PROJECT / "results"


def test_an_installed_package_keeps_its_files_out_of_the_package(monkeypatch, tmp_path):
    monkeypatch.delenv("ATR_HOME")
    monkeypatch.delenv("ATR_RESULTS")
    monkeypatch.setattr(places, "CHECKOUT", False)
    monkeypatch.chdir(tmp_path)
    assert places.home() == Path.home() / ".cache" / "atr" and places.results_home() == tmp_path / "results"


# --- keys


def test_a_key_is_a_function_of_content_and_of_order():
    assert hashes.content_key({"a": 1, "b": [2]}, "x") == hashes.content_key({"b": [2], "a": 1}, "x")
    keys = [hashes.content_key(*parts) for parts in [(1, 2), (2, 1), ([1, 2],), ("1", 2), (1,), ("12",)]]
    assert len(set(keys)) == len(keys) and all(len(key) == 24 for key in keys)


def test_a_key_of_something_without_a_fixed_text_is_an_error():
    with pytest.raises(TypeError):
        hashes.content_key(np.arange(10_000))


def test_a_file_hash_is_that_of_its_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert (
        hashes.file_hash(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )  # FIPS 180-2, appendix B.1


# --- writing a file


def test_a_written_file_has_its_content_and_the_usual_permissions(tmp_path):
    path = tmp_path / "new" / "file"
    atomic.write_atomic(path, lambda temporary: temporary.write_text("new"))
    (tmp_path / "plain").write_text("")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_keeps_the_old_file_and_leaves_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("ne")
        raise error

    with pytest.raises(type(error)):
        atomic.write_atomic(path, write)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


# --- entries of the cache


def build_number(folder):
    (folder / "number").write_text("7")


def test_an_entry_is_built_once(home):
    built = []

    def build(folder):
        built.append(folder)
        build_number(folder)

    first, second = store.cached_folder("kind", "key", build), store.cached_folder("kind", "key", build)
    assert first == second == home / "cache" / "kind" / "key"
    assert (first / "number").read_text() == "7" and len(built) == 1


def test_entries_of_other_kinds_and_keys_are_others(home):
    folders = {store.cached_folder(kind, key, build_number) for kind in "ab" for key in "xy"}
    assert len(folders) == 4


def test_others_may_read_an_entry_as_they_may_read_the_cache(home):
    folder = store.cached_folder("kind", "key", build_number)
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(folder.parent.stat().st_mode)


def test_a_build_that_raises_leaves_nothing_and_may_be_tried_again(home):
    def full_disk(folder):
        (folder / "half").write_text("7")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        store.cached_folder("kind", "key", full_disk)
    assert entries(home) == []
    assert (store.cached_folder("kind", "key", build_number) / "number").read_text() == "7"


def build_and_wait(home):
    os.environ["ATR_HOME"] = str(home)

    def build(folder):
        (folder / "half").write_text("7")
        time.sleep(60)

    store.cached_folder("kind", "key", build)


def test_the_leftover_of_a_killed_build_is_no_entry_and_is_cleaned_up(home):
    process = multiprocessing.get_context("fork").Process(target=build_and_wait, args=(home,))
    process.start()
    while not any(home.rglob("half")):
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    leftover = next(home.rglob("half"))
    folder = store.cached_folder("kind", "key", build_number)
    assert sorted(path.name for path in folder.iterdir()) == ["number", "sums.json"]
    assert not leftover.parent.exists() and len(entries(home)) == 2


def build_slowly(home, barrier, results):
    os.environ["ATR_HOME"] = str(home)

    def build(folder):
        with open(home / "builds", "a") as file:
            file.write("one\n")
        (folder / "pid").write_text(str(os.getpid()))
        time.sleep(0.2)

    barrier.wait()
    results.put((store.cached_folder("kind", "key", build) / "pid").read_text())


def test_processes_that_want_the_same_entry_at_once_build_it_once_and_agree(home):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=build_slowly, args=(home, barrier, results)) for _ in range(4)]
    for process in processes:
        process.start()
    seen = {results.get(timeout=30) for _ in processes}
    for process in processes:
        process.join()
    assert len(seen) == 1 and (home / "builds").read_text() == "one\n"
    assert [process.exitcode for process in processes] == [0] * 4


# --- packed rows


ROWS = [np.arange(6, dtype=np.int16).reshape(3, 2), np.full((1, 2), -9, np.int16), np.ones((4, 2), np.int16)]


def test_packed_rows_come_back_as_they_were(tmp_path):
    pack(tmp_path, iter(ROWS))
    packed = open_packed(tmp_path)
    assert len(packed) == 3 and packed.lengths.tolist() == [3, 1, 4] and packed.data.dtype == np.int16
    for number, row in enumerate(ROWS):
        np.testing.assert_array_equal(packed[number], row)


def test_a_row_that_is_not_contiguous_is_packed_in_its_own_order(tmp_path):
    row = np.arange(12.0).reshape(3, 4)
    pack(tmp_path, [row.T])
    np.testing.assert_array_equal(open_packed(tmp_path)[0], row.T)


def test_a_batch_is_padded_with_zeros_to_its_longest_row_in_the_order_asked_for(tmp_path):
    pack(tmp_path, ROWS)
    batch, lengths = open_packed(tmp_path).batch(np.array([1, 0]))
    expected = [[[-9, -9], [0, 0], [0, 0]], [[0, 1], [2, 3], [4, 5]]]
    assert batch.tolist() == expected and batch.dtype == torch.int16
    assert lengths.tolist() == [1, 3] and lengths.dtype == torch.int64


def test_a_batch_is_a_copy(tmp_path):
    pack(tmp_path, ROWS)
    packed = open_packed(tmp_path)
    packed.batch(np.array([0]))[0].fill_(5)
    np.testing.assert_array_equal(packed[0], ROWS[0])


@pytest.mark.parametrize("other", [np.ones((2, 3), np.int16), np.ones((2, 2), np.int32), np.ones(2, np.int16)])
def test_rows_of_another_shape_or_type_are_an_error(tmp_path, other):
    with pytest.raises(ValueError, match="rows differ: "):
        pack(tmp_path, [ROWS[0], other])


def test_no_rows_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing to pack"):
        pack(tmp_path, [])


@pytest.mark.parametrize("damage", ["cut", "missing"])
@pytest.mark.parametrize("name", ["raw", "offsets.npy", "layout.json"])
def test_a_damaged_entry_is_reported_with_its_folder_and_the_mend(tmp_path, name, damage):
    pack(tmp_path, ROWS)
    path = tmp_path / name
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-2])
    else:
        path.unlink()
    with pytest.raises(ValueError, match=f"^{tmp_path}: files missing or cut short .*; delete it and run again"):
        open_packed(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("samples", [10, 1_000_000])
def test_a_disk_that_is_full_stops_packing(tmp_path, samples):
    (tmp_path / "raw").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        pack(tmp_path, [np.ones(samples, np.int16)])


# --- waveforms


class Tone:
    """A reader whose clips are tones of as many tenths of a second as their names say; it counts what it reads."""

    def __init__(self):
        self.reads = 0

    def __call__(self, clip):
        self.reads += 1
        if clip == "broken":
            raise AudioError("broken.wav", "0 samples", "delete it or fetch it again")
        samples = int(clip.split("-")[0]) * RATE // 10
        return np.sin(np.arange(samples) / 3).astype(np.float32) * 1.5, RATE


def tones(names, read=None, digests=None):
    clips = pd.DataFrame({"clip": names, "split": "train", "duration": 1.0, "description": ""})
    clips["digest"] = digests or [f"{number:02x}" for number in range(len(names))]
    captions = pd.DataFrame({"clip": names, "caption": "a tone"})
    return Corpus("tones", clips, captions, event_table(), read or Tone())


def test_waveforms_are_the_clips_in_order_clipped_to_16_bit_and_resampled(home):
    corpus = tones(["3", "1", "2"])
    same, half = (inputs.waveforms(corpus, rate, quiet=True) for rate in (RATE, RATE // 2))
    assert same.lengths.tolist() == [2400, 800, 1600] and half.lengths.tolist() == [1200, 400, 800]
    expected = np.clip(np.sin(np.arange(800) / 3) * 1.5, -1, 1) * 32767
    assert same.data.dtype == np.int16 and np.abs(same[1] - expected).max() <= 0.6
    assert same.data.max() == 32767 and same.data.min() == -32767
    # 1.5 sin, clipped after resampling: the same tone at every second sample, away from the ends
    assert np.abs(half[0][100:-100] - same[0][::2][100:-100]).max() < 0.02 * 32767


def test_waveforms_are_decoded_once(home):
    read = Tone()
    first = inputs.waveforms(tones(["1", "2"], read), RATE, quiet=True)
    again = inputs.waveforms(tones(["1", "2"], read), RATE, quiet=True)
    assert read.reads == 2
    np.testing.assert_array_equal(first.data, again.data)


def test_a_changed_corpus_or_sample_rate_never_meets_the_old_waveforms(home):
    read = Tone()
    inputs.waveforms(tones(["1", "2"], read), RATE, quiet=True)
    for corpus, rate in [
        (tones(["2", "1"], read), RATE),
        (tones(["1", "2"], read, ["00", "ff"]), RATE),
        (tones(["1"], read), RATE),
        (tones(["1", "2"], read), RATE // 2),
    ]:
        before = read.reads
        packed = inputs.waveforms(corpus, rate, quiet=True)
        assert read.reads == before + len(corpus) == before + len(packed)


def test_captions_and_the_corpus_name_do_not_decode_anew(home):
    read = Tone()
    corpus = tones(["1", "2"], read)
    inputs.waveforms(corpus, RATE, quiet=True)
    inputs.waveforms(replace(corpus, name="other", captions=corpus.captions.assign(caption="a hum")), RATE, quiet=True)
    assert read.reads == 2


def test_a_clip_that_cannot_be_read_stops_the_packing_and_leaves_nothing(home):
    with pytest.raises(AudioError, match="broken.wav: 0 samples; delete it"):
        inputs.waveforms(tones(["1", "broken"]), RATE, quiet=True)
    assert entries(home) == []


def test_many_clips_are_decoded_on_several_threads_to_the_same_waveforms(home, monkeypatch):
    names = [f"{1 + number % 3}-{number}" for number in range(200)]
    meeting = threading.Barrier(2, timeout=30)

    class Together(Tone):
        def __call__(self, clip):
            if clip == "1-0" or clip == "2-1":
                meeting.wait()  # breaks unless two clips are decoded at once
            return super().__call__(clip)

    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    together = inputs.waveforms(tones(names, Together()), RATE, quiet=True)
    assert together.lengths.tolist() == [800 * (1 + number % 3) for number in range(200)]
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setenv("ATR_HOME", str(home / "alone"))
    alone = inputs.waveforms(tones(names), RATE, quiet=True)
    np.testing.assert_array_equal(together.data, alone.data)


def test_decoding_does_not_run_ahead_of_writing(home, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    read, leads = Tone(), []

    def slow(folder, rows):
        def slowly():
            for number, row in enumerate(rows):
                time.sleep(0.005)
                leads.append(read.reads - number)
                yield row

        pack(folder, slowly())

    monkeypatch.setattr("atr.system.packed.pack", slow)
    inputs.waveforms(tones([f"1-{number}" for number in range(60)], read), RATE, quiet=True)
    assert len(leads) == 60 and max(leads) <= 4 * 2


def test_clips_behind_one_that_cannot_be_read_are_left_alone(home):
    read = Tone()
    names = ["broken", *(f"1-{number}" for number in range(1000))]
    with pytest.raises(AudioError, match="broken.wav"):
        inputs.waveforms(tones(names, read), RATE, quiet=True)
    assert read.reads <= 4 * (os.cpu_count() or 1)


def test_seconds_keeps_the_beginning_of_each_clip(home):
    names, shorter = ["3", "1", "5"], ["2", "1", "2"]
    cut = inputs.waveforms(tones(names), RATE // 2, quiet=True, seconds=0.2)
    expected = inputs.waveforms(tones(shorter), RATE // 2, quiet=True)
    assert cut.lengths.tolist() == [800, 400, 800]
    np.testing.assert_array_equal(cut.data, expected.data)


def test_waveforms_of_other_seconds_are_others_and_equal_seconds_meet(home):
    read = Tone()
    lengths = [
        inputs.waveforms(tones(["3"], read), RATE, quiet=True, seconds=seconds).lengths.tolist()
        for seconds in (None, 0.1, 1, 1.0)
    ]
    assert lengths == [[2400], [800], [2400], [2400]] and read.reads == 3


def test_all_of_each_clip_is_kept_under_the_address_without_seconds(home):
    corpus = tones(["3"])
    inputs.waveforms(corpus, RATE, quiet=True)
    key = hashes.content_key(corpus.audio_fingerprint("train"), RATE, inputs.WAVEFORM_VERSION)
    assert [folder.name for folder in (home / "cache" / "waveforms").glob("[!.]*")] == [key]


@pytest.mark.parametrize("seconds", [0, -1.0])
def test_no_or_negative_seconds_are_an_error(home, seconds):
    with pytest.raises(ValueError, match="seconds must be positive"):
        inputs.waveforms(tones(["3"]), RATE, quiet=True, seconds=seconds)


# --- threads


def test_the_number_of_threads_is_put_back_also_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="stop"), devices.threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError("stop")
    assert torch.get_num_threads() == before


def test_a_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    path.write_bytes(b"first")
    before = hashes.file_hash(path)
    assert before == hashlib.sha256(b"first").hexdigest()
    monkeypatch.setattr(hashlib, "file_digest", None)  # a second reading would fail
    assert hashes.file_hash(path) == before
    monkeypatch.undo()
    path.write_bytes(b"other content")
    assert hashes.file_hash(path) == hashlib.sha256(b"other content").hexdigest()


# --- bit rot


def flip(path, place=None):
    """Flip a bit of a file, in the middle if no place is given, and leave its size and time of change as they are."""
    state, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 4
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def packed_entry():
    return open_packed(store.cached_folder("kind", "key", lambda folder: pack(folder, ROWS)))


@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(path.read_bytes()[:-2]), Path.unlink])
@pytest.mark.parametrize("name", ["raw", "offsets.npy", "layout.json"])
def test_a_damaged_entry_is_named_and_made_anew(home, name, damage):
    packed_entry()
    damage(home / "cache" / "kind" / "key" / name)
    with pytest.warns(UserWarning, match=rf"^{home}/cache/kind/key: damaged \(.*{name}.*\); made anew$"):
        again = packed_entry()
    for number, row in enumerate(ROWS):
        np.testing.assert_array_equal(again[number], row)
    assert store.damage(home / "cache" / "kind" / "key", whole=True) == ""
    assert not [path for path in (home / "cache" / "kind").iterdir() if path.name.endswith(".tmp")]


@pytest.mark.parametrize("place", [0, 5, 20, -3])
def test_no_bit_of_the_hashes_themselves_may_change(home, place):
    packed_entry()
    flip(home / "cache" / "kind" / "key" / "sums.json", place)
    with pytest.warns(UserWarning, match="key: damaged .*; made anew"):
        packed_entry()


def test_a_copied_entry_is_intact_without_its_times_and_one_without_hashes_is_taken_as_it_is(home, monkeypatch):
    packed_entry()
    for kind in ("copied", "older"):
        shutil.copytree(home / "cache" / "kind", home / "cache" / kind, copy_function=shutil.copyfile)
    (home / "cache" / "older" / "key" / "sums.json").unlink()
    with warnings.catch_warnings(action="error"):
        for kind in ("copied", "older"):
            folder = store.cached_folder(kind, "key", lambda folder: pytest.fail("built again"))
            np.testing.assert_array_equal(open_packed(folder)[0], ROWS[0])


def test_a_large_entry_is_sampled_when_it_is_opened_and_read_whole_when_it_is_verified(home, monkeypatch):
    monkeypatch.setattr(store, "BLOCK", 1024)
    monkeypatch.setattr(store, "CHECK_BYTES", 4096)
    content = np.random.default_rng(0).bytes(100_000)
    folder = store.cached_folder("kind", "key", lambda folder: (folder / "raw").write_bytes(content))
    assert store.damage(folder) == store.damage(folder, whole=True) == ""
    flip(folder / "raw", 99_999)
    assert store.damage(folder, whole=True) == "the bytes of raw have changed"
    (folder / "raw").write_bytes(bytes(100_000))
    assert store.damage(folder) == "the bytes of raw have changed"  # whichever blocks are drawn


def test_an_entry_is_read_once_in_a_process_while_it_stays_as_it_is(home, monkeypatch):
    looked, damage = [], store.damage
    monkeypatch.setattr(store, "damage", lambda path: looked.append(path) or damage(path))
    packed_entry()
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 10**10)
    packed_entry()
    packed_entry()
    assert len(looked) == 1
    flip(home / "cache" / "kind" / "key" / "raw")
    with pytest.warns(UserWarning, match="made anew"):
        packed_entry()


# --- what cannot be written


WAYS = {
    "array": lambda path: save_array(path, np.zeros(10**6)),
    "text": lambda path: path.write_text("x" * 10**6),
    "table": lambda path: pd.DataFrame({"x": np.zeros(10**6)}).to_csv(path),
    "safetensors": lambda path: save_file({"x": torch.zeros(10**6)}, path),
    "torch": lambda path: torch.save({"x": torch.zeros(10**6)}, path),
    "sound": lambda path: soundfile.write(path, np.zeros(10**6), 16_000, format="WAV"),
    "figure": lambda path: plt.imsave(path, np.random.default_rng(0).random((900, 900)), format="png"),
}


def limited(path, kind, results):
    torch.set_num_threads(1)  # those of the parent are not there after a fork
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    results.put(said(path, kind))


def said(path, kind):
    try:
        if kind == "entry":
            os.environ["ATR_HOME"] = str(path.parent)
            store.cached_folder("kind", "key", lambda folder: pack(folder, [np.zeros(10**6)] * 2))
        else:
            atomic.write_atomic(path, WAYS[kind])
    except OSError as error:
        return error.errno, str(error)


@pytest.mark.parametrize("kind", [*WAYS, "entry"])
def test_a_file_larger_than_allowed_is_said_with_its_path_and_the_mend(tmp_path, kind):
    results = multiprocessing.get_context("fork").SimpleQueue()
    process = multiprocessing.get_context("fork").Process(target=limited, args=(tmp_path / "file", kind, results))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    number, text = results.get()
    path = tmp_path / ("cache/kind/key" if kind == "entry" else "file")
    assert number == errno.EFBIG and text.startswith(f"{path}: cannot be written: File too large; raise the limit")
    assert not [one for one in tmp_path.rglob("*") if one.is_file() and one.suffix != ".lock"]


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("kind", [*WAYS, "entry"])
def test_a_disk_that_is_full_is_said_with_its_path_and_the_mend(small_disk, kind, monkeypatch):
    monkeypatch.setenv("ATR_HOME", str(small_disk))
    number, text = said(small_disk / "file", kind)
    path = small_disk / ("cache/kind/key" if kind == "entry" else "file")
    assert number == errno.ENOSPC and re.fullmatch(
        rf"{path}: cannot be written: No space left on device \(\d\.\d MB free\); free some space and run the same "
        "command again; nothing is lost",
        text,
    )
    assert not [one for one in small_disk.rglob("*") if one.is_file() and one.suffix != ".lock"]


@pytest.mark.parametrize("number", sorted(atomic.MENDS))
def test_each_reason_has_its_mend_and_stays_the_systems_error(tmp_path, number):
    def write(path):
        raise OSError(number, os.strerror(number), str(path))

    with pytest.raises(OSError) as error:
        atomic.write_atomic(tmp_path / "file", write)
    assert error.value.errno == number and str(error.value).startswith(f"{tmp_path / 'file'}: cannot be written")
    assert str(error.value).endswith(atomic.MENDS[number]) and "[Errno" not in str(error.value)
    again = pickle.loads(pickle.dumps(error.value))
    assert again.errno == number and str(again) == str(error.value)


def test_what_cannot_be_read_or_computed_is_not_taken_for_it(home, tmp_path):
    def unreadable(folder):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "sounds" / "dog.wav"))

    def diverged(folder):
        (folder / "half").write_text("7")
        raise RuntimeError("it has diverged")

    with pytest.raises(PermissionError, match="dog.wav"):
        store.cached_folder("kind", "key", unreadable)
    with pytest.raises(RuntimeError, match="^it has diverged$"):
        store.cached_folder("kind", "key", diverged)


# --- what a kill leaves behind


def write_and_wait(path):
    atomic.write_atomic(path, lambda temporary: (temporary.write_text("half"), time.sleep(60)))


def test_the_next_file_written_to_a_folder_removes_what_killed_processes_left_there_and_nothing_else(tmp_path):
    writers = [multiprocessing.get_context("fork").Process(target=write_and_wait, args=(tmp_path / n,)) for n in "ab"]
    for writer in writers:
        writer.start()
    while len([path for path in tmp_path.iterdir() if path.read_text()]) < 2:
        time.sleep(0.01)
    os.kill(writers[0].pid, signal.SIGKILL)
    writers[0].join()
    young, old = tmp_path / ".c.00000000-1-00000000.tmp", tmp_path / ".d.00000000-1-00000000.tmp"  # another machine's
    foreign = tmp_path / ".hidden.tmp"
    for path in (young, old, foreign):
        path.touch()
    os.utime(old, (0, 0))
    atomic.write_atomic(tmp_path / "file", lambda path: path.write_text("x"))
    left = {path.name.split(".")[1] for path in tmp_path.iterdir() if path.name.startswith(".")}
    assert left == {"b", "c", "hidden"}
    writers[1].kill()


def test_the_permissions_of_others_files_are_left_alone_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("umask changed"))
    atomic.write_atomic(tmp_path / "file", lambda temporary: temporary.write_text("x"))


def test_a_written_file_heeds_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        atomic.write_atomic(tmp_path / "file", lambda temporary: temporary.write_text("x"))
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    finally:
        os.umask(before)


def replace_and_die(target):
    rename = os.rename

    def once(*paths):
        rename(*paths)
        os._exit(9)

    os.rename = once
    atomic.replace_folder(target, lambda folder: (folder / "new").touch())


def test_a_kill_between_the_old_folder_and_the_new_one_loses_neither(tmp_path):
    target = tmp_path / "report"
    atomic.replace_folder(target, lambda folder: (folder / "old").touch())
    process = multiprocessing.get_context("fork").Process(target=replace_and_die, args=(target,))
    process.start()
    process.join()
    assert process.exitcode == 9
    with pytest.raises(KeyError):
        atomic.replace_folder(target, lambda folder: {}["fails"])
    assert (target / "old").exists()
    atomic.replace_folder(target, lambda folder: (folder / "new").touch())
    assert [path.name for path in target.iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".locks", "report"]


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one_there(tmp_path, monkeypatch):
    target, rename = tmp_path / "report", os.rename
    atomic.replace_folder(target, lambda folder: (folder / "old").touch())

    def refuse(source, to):
        if to == target and source.name.endswith(".tmp"):
            raise OSError(errno.EACCES, "Permission denied", str(source))
        rename(source, to)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match=rf"^{target}: cannot be written: Permission denied; make it writable"):
        atomic.replace_folder(target, lambda folder: (folder / "new").touch())
    assert [path.name for path in target.iterdir()] == ["old"]


# --- places that the environment names


@pytest.mark.parametrize("variable, get", [("ATR_HOME", places.home), ("ATR_RESULTS", places.results_home)])
def test_a_relative_place_is_the_same_one_for_processes_in_other_folders(tmp_path, monkeypatch, variable, get):
    monkeypatch.chdir(tmp_path)
    for name in places.PLACES:
        monkeypatch.setenv(name, "mine")
    assert get() == tmp_path / "mine"
    assert {os.environ[name] for name in places.PLACES} == {str(tmp_path / "mine")}
    monkeypatch.chdir("/")
    assert get() == tmp_path / "mine"


@pytest.mark.parametrize("below", ["", "/sub/folder"])
def test_a_place_where_a_file_lies_is_refused(tmp_path, monkeypatch, below):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ATR_HOME", f"{tmp_path}/file{below}")
    with pytest.raises(ValueError, match=f"ATR_HOME: {tmp_path}/file{below}: {tmp_path}/file is not a folder; name a"):
        places.home()


def test_a_place_of_an_unknown_user_is_refused(monkeypatch):
    monkeypatch.setenv("ATR_RESULTS", "~nobody-of-that-name/results")
    with pytest.raises(ValueError, match="ATR_RESULTS: ~nobody-of-that-name/results: no such user's folder"):
        places.results_home()


def test_a_table_reads_back_cell_for_cell(tmp_path):
    cells = ["a\rb", "NA", "null", "", " blanks ", 'a "quote", a comma', "two\r\nlines", "é"]
    table = pd.DataFrame({"name": cells, "other\r": cells[::-1], "number": range(8)})
    atomic.write_csv(table, tmp_path / "table.csv")
    again = pd.read_csv(tmp_path / "table.csv", dtype={"name": "str", "other\r": "str"}, keep_default_na=False)
    assert again.to_dict("list") == table.to_dict("list")
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        assert [row[0] for row in csv.reader(file, strict=True)] == ["name", *cells]


def test_a_table_without_odd_cells_has_no_quotes():
    assert atomic.as_csv(pd.DataFrame({"name": ["a", "b, c"], "number": [1, 2]})) == 'name,number\na,1\n"b, c",2\n'
