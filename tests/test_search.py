import json
import os
import re
import shutil
import sys
import time
import traceback
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_models import clap
from safetensors.torch import load_file, save_file

from atr import Embedder, RunConfig, fit
from atr.corpora import audio
from atr.inference import indexes, lookup, neighbours, search, shards
from atr.inference.folder import OTHER_SUFFIXES, SUFFIXES, check, scan, walk
from atr.inference.lookup import Lookup
from atr.inference.search import Index
from atr.system import hashes
from atr.training.records import Run

RATE = 100
TINY = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}
TONES = (5, 10, 15, 20, 25, 30)  # Hz
needs_faiss = pytest.mark.skipif(sys.platform == "darwin", reason="FAISS is not used on macOS")


class Tones:
    """Hears tones: an embedding is the share of each, a sentence names one of them by its number."""

    name, fingerprint, sample_rate, seconds, dim, text_aware = "tones", "t1", RATE, None, len(TONES), False

    def __init__(self, patience=10**9):
        self.patience, self.heard = patience, []

    def sounds(self, sounds):
        rows = []
        for wave in sounds:
            if len(self.heard) == self.patience:
                raise KeyboardInterrupt
            phases = np.exp(-2j * np.pi * np.outer(TONES, np.arange(len(wave))) / RATE)
            rows.append(np.abs(phases @ wave))
            self.heard.append(len(wave))
        return torch.nn.functional.normalize(torch.tensor(np.array(rows), dtype=torch.float32))

    def sentences(self, sentences):
        if not all(sentences):
            raise ValueError("no words")
        return torch.eye(len(TONES))[[int(sentence) for sentence in sentences]]

    def similarity(self, sentences, sounds):
        return sentences @ sounds.T


def tone(number, seconds=2.0, rate=RATE):
    return (0.4 * np.sin(2 * np.pi * TONES[number] * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write(path, *numbers, seconds=2.0, rate=RATE):
    """A sound of one tone after another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.concatenate([tone(number, seconds, rate) for number in numbers]), rate)
    return path


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ATR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path):
    """Six sounds, one of each tone, in two folders."""
    for number in range(len(TONES)):
        write(tmp_path / "sounds" / "ab"[number % 2] / f"{number}.wav", number)
    return tmp_path / "sounds"


def updated(folder, embedder=None, **options):
    index = Index(folder, embedder or Tones(), **options)
    return index, index.update(quiet=True)


def found(index, query, top=10):
    return [Path(path).name for path in index.search(query, top)["path"]]


def state(index):
    """All that an index knows: its files, and each query's hits."""
    hits = index.search([str(number) for number in range(len(TONES))], top=100)
    hits = hits.assign(score=hits["score"].round(5))
    return index.files, hits.sort_values(["query", "path"]).drop(columns="rank").reset_index(drop=True)


def assert_equal(one, other):
    for a, b in zip(state(one), state(other), strict=True):
        pd.testing.assert_frame_equal(a, b)


class TestSearch:
    def test_each_query_finds_its_sound_first(self, folder):
        index, report = updated(folder)
        hits = index.search(["3", "0"], top=2)
        assert hits.columns.tolist() == ["query", "rank", "score", "path", "start", "end"]
        assert hits["query"].tolist() == ["3", "3", "0", "0"] and hits["rank"].tolist() == [1, 2, 1, 2]
        assert hits["path"][0] == str(folder / "b" / "3.wav") and hits["path"][2] == str(folder / "a" / "0.wav")
        assert hits["score"][0] == pytest.approx(1, abs=1e-3) and hits["score"][1] < 0.1
        assert (report.new, report.usable, report.segments, report.seconds) == (6, 6, 6, 12.0)

    def test_a_string_is_one_query_and_no_more_files_are_given_than_there_are(self, folder):
        index, _ = updated(folder)
        assert len(index.search("1", top=100)) == 6

    @given(place=st.integers(0, 40), length=st.floats(41.0, 59.0))
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_the_best_segment_is_where_the_sound_is(self, tmp_path, place, length):
        wave = tone(0, length)
        wave[place * RATE : (place + 1) * RATE] += tone(4, 1.0)
        (tmp_path / "long").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "long" / "a.wav", wave, RATE)
        index, _ = updated(tmp_path / "long", segment=5.0)
        (hit,) = index.search("4").itertuples()
        assert hit.start <= place < hit.end and hit.start % 5 == 0
        assert hit.end == pytest.approx(hit.start + 5) or hit.end == pytest.approx(len(wave) / RATE)

    def test_a_file_counts_once_by_its_best_segment_however_many_match(self, tmp_path):
        write(tmp_path / "s" / "long.wav", *[2] * 50)
        write(tmp_path / "s" / "short.wav", 2, 3)
        index, report = updated(tmp_path / "s", segment=2.0)
        hits = index.search("2", top=2)
        assert found(index, "2", top=2) == ["long.wav", "short.wav"] and report.segments == 52
        assert hits["start"].tolist() == [0, 0] and hits["end"].tolist() == [2, 2]

    def test_it_is_exact_over_many_shards_and_queries(self, tmp_path, monkeypatch):
        generator = np.random.default_rng(0)
        mixes = generator.uniform(0, 1, (30, len(TONES))).astype(np.float32)
        (tmp_path / "s").mkdir()
        for number, mix in enumerate(mixes):
            wave = sum(share * tone(place) for place, share in enumerate(mix)) / len(TONES)
            soundfile.write(tmp_path / "s" / f"{number:02}.wav", wave, RATE, subtype="FLOAT")
        monkeypatch.setattr(search, "SHARD_SECONDS", 0.0)
        monkeypatch.setattr(lookup, "QUERIES", 4)
        monkeypatch.setattr(shards, "FULL", 7)
        index, _ = updated(tmp_path / "s")
        assert len(shards.shards_in(index.path)) > 3
        hits = index.search([str(number) for number in range(len(TONES))], top=5)
        normal = mixes / np.linalg.norm(mixes, axis=1, keepdims=True)
        for number in range(len(TONES)):
            expected = np.argsort(-normal[:, number])[:5]
            rows = hits[hits["query"] == str(number)]
            assert [int(Path(path).stem) for path in rows["path"]] == expected.tolist()
            np.testing.assert_allclose(rows["score"], normal[expected, number], atol=1e-3)

    def test_what_cannot_be_asked_is_said(self, folder, home):
        index = Index(folder, Tones())
        assert index.path.parent == home / "indexes"
        with pytest.raises(FileNotFoundError, match="sounds: not indexed by tones yet; update"):
            index.search("1")
        index.update(quiet=True)
        with pytest.raises(ValueError, match="no words"):
            index.search("")
        with pytest.raises(ValueError, match="top: 0; give 1 or more"):
            index.search("1", top=0)
        for top in (float("nan"), float("inf"), 1.5, -1):
            with pytest.raises(ValueError, match="top: .* give 1 or more, a whole number"):
                index.search("1", top=top)

    def test_a_run_ranks_files_as_its_embeddings_do(self, corpus, homes, tmp_path, monkeypatch):
        monkeypatch.setenv("ATR_HOME", str(homes / "data"))  # what other tests prepared
        monkeypatch.setattr(indexes, "home", lambda: tmp_path / "indexes")
        run = fit(RunConfig(corpus=TINY, epochs=1, batch_size=16, embedding_dim=16), corpus, runs=tmp_path / "runs")
        part, embedder = corpus.split("test"), Embedder(run, corpus, device="cpu")
        waves = [corpus.read(clip)[0] for clip in part.clips["clip"]]
        (tmp_path / "s").mkdir()
        for number, wave in enumerate(waves):
            soundfile.write(tmp_path / "s" / f"{number:02}.wav", wave, embedder.sample_rate, subtype="FLOAT")
        soundfile.write(tmp_path / "s" / "click.wav", waves[0][:50], embedder.sample_rate)
        index, report = updated(tmp_path / "s", embedder)
        assert report.usable == 17
        queries = part.captions["caption"].tolist()[:3]
        hits = index.search(queries, top=17)
        hits = hits[~hits["path"].str.endswith("click.wav")]
        expected = embedder.similarity(embedder.sentences(queries), embedder.sounds(waves)).numpy()
        for query, scores in zip(queries, expected, strict=True):
            rows = hits[hits["query"] == query]
            np.testing.assert_allclose(
                rows["score"], scores[[int(Path(path).stem) for path in rows["path"]]], atol=1e-5
            )
            assert rows["score"].is_monotonic_decreasing and len(rows) == 16


@needs_faiss
class TestManySegments:
    @pytest.fixture(autouse=True)
    def small(self, monkeypatch):
        """FAISS from 20 segments on."""
        monkeypatch.setattr(neighbours, "LIMIT", 19)

    class Cosines(Tones):
        similarity = Embedder.similarity

    def folder(self, folder):
        for number in range(20):
            write(folder / f"{number}.wav", number % 6, number % 5)
        return folder

    def test_an_update_makes_what_faiss_searches_and_a_change_makes_it_anew(self, tmp_path, monkeypatch, recwarn):
        folder = self.folder(tmp_path / "s")
        index, _ = updated(folder, self.Cosines(), segment=2.0)
        (file,) = index.path.glob("*.faiss")
        state = file.stat().st_mtime_ns
        monkeypatch.setattr(Lookup, "_exactly", None)
        assert set(found(index, "5", 3)) == {"5.wav", "11.wav", "17.wav"}
        index, _ = updated(folder, self.Cosines(), segment=2.0)
        assert file.stat().st_mtime_ns == state
        write(folder / "new.wav", 5, 5)
        index, _ = updated(folder, self.Cosines(), segment=2.0)
        (other,) = index.path.glob("*.faiss")
        assert other != file and "new.wav" in found(index, "5", 4) and not recwarn.list

    def test_an_interrupted_update_leaves_what_was_searched_before_it(self, tmp_path, monkeypatch, recwarn):
        folder = self.folder(tmp_path / "s")
        updated(folder, self.Cosines(), segment=2.0)
        for number in range(20):
            write(folder / f"0{number}.wav", 4)
        monkeypatch.setattr(search, "SHARD_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            Index(folder, self.Cosines(patience=3), segment=2.0).update(quiet=True)
        index = Index(folder, self.Cosines(), segment=2.0)
        assert len(index.search("4", 100)) == 20 and not recwarn.list
        _, report = updated(folder, self.Cosines(), segment=2.0)
        assert report.new == 17 and len(Index(folder, self.Cosines(), segment=2.0).search("4", 100)) == 40

    def test_nothing_of_it_is_made_for_few_segments_or_left_when_they_become_few(self, tmp_path):
        folder = self.folder(tmp_path / "s")
        index, _ = updated(folder, self.Cosines(), segment=2.0)
        for path in sorted(folder.iterdir())[:12]:
            path.unlink()
        updated(folder, self.Cosines(), segment=2.0)
        assert not list(index.path.glob("*.faiss"))
        assert len(updated(folder, self.Cosines(), segment=2.0)[0].search("3")) == 8


class TestSegments:
    @given(frames=st.integers(1, 700), segment=st.integers(1, 5))
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_they_are_the_whole_file_in_order_none_short_but_of_a_short_file(self, tmp_path, frames, segment):
        wave = np.random.default_rng(frames).uniform(-0.5, 0.5, frames).astype(np.float32)
        soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
        pieces = list(audio.segments(tmp_path / "a.wav", segment))
        np.testing.assert_array_equal(np.concatenate([piece for _, piece, _ in pieces]), wave)
        assert {rate for _, _, rate in pieces} == {RATE}
        lengths = [len(piece) for _, piece, _ in pieces]
        assert [start for start, _, _ in pieces] == pytest.approx([segment * place for place in range(len(pieces))])
        assert all(length == segment * RATE for length in lengths[:-1])
        assert len(pieces) == 1 or lengths[-1] >= RATE
        assert lengths[-1] < (segment + 1) * RATE

    def test_a_long_file_is_never_in_memory_whole(self, tmp_path, monkeypatch):
        write(tmp_path / "s" / "long.wav", *[1] * 300, rate=1000)
        monkeypatch.setattr(search, "BATCH", 4)
        waiting = []

        class Watching(Tones):
            sample_rate = 1000

            def sounds(self, sounds):
                waiting.append(len(sounds))
                return super().sounds(sounds)

        _, report = updated(tmp_path / "s", Watching())
        assert report.segments == 60 and set(waiting) == {4}

    def test_silence_between_sounds_is_left_out(self, tmp_path):
        (tmp_path / "s").mkdir()
        wave = np.concatenate([np.zeros(1000, np.float32), tone(2, 10.0), np.zeros(1000, np.float32)])
        soundfile.write(tmp_path / "s" / "a.wav", wave, RATE)
        index, report = updated(tmp_path / "s")
        assert report.segments == 1 and report.seconds == 30
        assert index.search("0")[["start", "end"]].to_numpy().tolist() == [[10, 20]]

    def test_other_rates_and_channels_are_heard_alike(self, tmp_path):
        write(tmp_path / "s" / "a.wav", 1, seconds=4, rate=RATE)
        stereo = np.stack([tone(1, 4, 8000)] * 2, 1)
        soundfile.write(tmp_path / "s" / "b.FLAC", stereo, 8000, format="FLAC")
        index, _ = updated(tmp_path / "s")
        scores = index.search("1").set_index("path")["score"]
        assert len(scores) == 2 and scores.min() > 0.99


class TestScan:
    def test_hidden_and_other_files_are_left_out_and_endings_may_be_capital(self, folder):
        write(folder / ".hidden" / "x.wav", 0)
        write(folder / ".x.wav", 0)
        (folder / "notes.txt").write_text("x")
        (folder / "folder.wav").mkdir()
        write(folder / "folder.wav" / "deep" / "er" / "C.WAV", 0)
        paths = scan(folder, True)[0]["path"].tolist()
        assert paths == ["a/0.wav", "a/2.wav", "a/4.wav", "b/1.wav", "b/3.wav", "b/5.wav", "folder.wav/deep/er/C.WAV"]

    def test_links_are_followed_once_and_loops_end(self, folder, tmp_path):
        elsewhere = write(tmp_path / "elsewhere" / "z.wav", 0).parent
        (folder / "0loop").symlink_to(folder)
        (folder / "0again").symlink_to(folder / "a")
        (folder / "self").symlink_to(folder / "self")
        (folder / "out").symlink_to(elsewhere)
        (folder / "out2").symlink_to(elsewhere)
        (folder / "link.wav").symlink_to(elsewhere / "z.wav")
        (folder / "gone.wav").symlink_to(elsewhere / "none.wav")
        paths = scan(folder, True)[0]["path"].tolist()
        assert paths == ["a/0.wav", "a/2.wav", "a/4.wav", "b/1.wav", "b/3.wav", "b/5.wav", "link.wav", "out/z.wav"]

    def test_a_folder_is_listed_as_it_is_read_however_many_files_it_has(self, folder, monkeypatch):
        read = []

        class Endless(cycle):
            def __enter__(self):
                return self

            def __exit__(self, *_):
                read.append("closed")

            def __next__(self):
                read.append("entry")
                assert len(read) < 5000, "listed beyond what was asked for"
                return super().__next__()

        listed = os.scandir
        monkeypatch.setattr(os, "scandir", lambda path: Endless(listed(path)))
        assert len(list(islice(walk(folder / "a", {}), 1000))) == 1000
        seen = len(read)
        check(folder / "a")
        assert len(read) < seen + 10 and read[-1] == "closed"

    def test_formats_of_libsndfile_count_as_sounds(self):
        assert {".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".au", ".w64", ".caf", ".opus"} <= SUFFIXES
        assert not SUFFIXES & {".mat4", ".raw", ".txt"} and not SUFFIXES & OTHER_SUFFIXES

    def test_what_is_no_folder_of_sounds_is_named(self, folder, tmp_path):
        with pytest.raises(FileNotFoundError, match="none: no such folder"):
            updated(tmp_path / "none")
        with pytest.raises(NotADirectoryError, match=r"0.wav: a file; give a folder, such as .*sounds/a$"):
            updated(folder / "a" / "0.wav")
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match="empty: no sounds here .* give a folder that has some"):
            updated(tmp_path / "empty")


class TestUpdate:
    def test_only_what_is_new_or_changed_is_embedded(self, folder):
        first, _ = updated(folder)
        write(folder / "new.wav", 5)
        write(folder / "a" / "0.wav", 3, seconds=3.0)
        (folder / "b" / "1.wav").unlink()
        embedder = Tones()
        second, report = updated(folder, embedder)
        assert len(embedder.heard) == 2
        assert (report.new, report.changed, report.unchanged, report.gone) == (1, 1, 4, 1)
        assert "6 files, 0:13 of sound in 6 segments (1 new, 1 changed, 4 unchanged, 1 gone)" == str(report)
        assert found(second, "5", 2) == ["5.wav", "new.wav"] and found(second, "1", 9).count("1.wav") == 0
        again = Tones()
        _, report = updated(folder, again)
        assert not again.heard and (report.new, report.changed, report.unchanged, report.gone) == (0, 0, 6, 0)

    def test_a_file_of_the_same_length_but_a_later_time_is_heard_again(self, folder):
        updated(folder)
        path = write(folder / "a" / "0.wav", 1)
        os.utime(path, ns=(1, 1))
        index, report = updated(folder)
        assert report.changed == 1 and found(index, "1", 2) == ["0.wav", "1.wav"]

    steps = st.lists(
        st.tuples(st.sampled_from("abcd"), st.one_of(st.none(), st.lists(st.integers(0, 5), min_size=1, max_size=4))),
        max_size=4,
    )

    @given(rounds=st.lists(steps, min_size=1, max_size=4), full=st.integers(2, 12))
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_after_any_changes_it_equals_an_index_made_anew(self, tmp_path_factory, rounds, full):
        folder = tmp_path_factory.mktemp("sounds")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(search, "SHARD_SECONDS", 0.0)
            patch.setattr(shards, "FULL", full)
            patch.setenv("ATR_HOME", str(tmp_path_factory.mktemp("one")))
            write(folder / "always.wav", 0)
            clock = 0
            for steps in rounds:
                for name, tones in steps:
                    path = folder / f"{name}.wav"
                    path.unlink(missing_ok=True)
                    clock += 1
                    if tones:
                        os.utime(write(path, *tones), ns=(clock, clock))
                index, _ = updated(folder, segment=2.0)
            patch.setenv("ATR_HOME", str(tmp_path_factory.mktemp("other")))
            assert_equal(index, updated(folder, segment=2.0)[0])

    @pytest.mark.parametrize("patience", range(6))
    def test_interrupted_and_continued_it_is_as_if_nothing_had_happened(self, folder, home, monkeypatch, patience):
        monkeypatch.setattr(search, "SHARD_SECONDS", 0.0)
        index = Index(folder, Tones(patience))
        with pytest.raises(KeyboardInterrupt):
            index.update(quiet=True)
        assert not indexes.descriptions(folder)[0]["complete"]
        if patience:
            assert len(Index(folder, Tones()).search("1")) == patience
        embedder = Tones()
        index, report = updated(folder, embedder)
        assert len(embedder.heard) == len(TONES) - patience and report.unchanged == patience
        assert indexes.descriptions(folder)[0]["complete"]
        monkeypatch.setenv("ATR_HOME", str(home / "other"))
        assert_equal(index, updated(folder)[0])

    def test_what_a_killed_process_left_is_cleared_away(self, folder):
        index, _ = updated(folder)
        before = sorted(path.name for path in index.path.iterdir())
        for name in (".index.json.abc", ".new.safetensors", ".new.safetensors.abc", "0123.safetensors", "0123.jsonl"):
            (index.path / name).write_bytes(b"half")
        assert_equal(index, updated(folder)[0])
        assert sorted(path.name for path in index.path.iterdir()) == before and len(before) == 3

    def test_many_small_shards_become_few(self, folder, monkeypatch):
        monkeypatch.setattr(search, "SHARD_SECONDS", 0.0)
        written = []
        monkeypatch.setattr(
            shards, "write", lambda *given, write=shards.write: written.append(write(*given)) or written[-1]
        )
        index, _ = updated(folder)
        assert len(written) == 7 and len(shards.shards_in(index.path)) == 1

    def test_full_shards_are_left_alone(self, folder, monkeypatch):
        monkeypatch.setattr(shards, "FULL", 4)
        updated(folder)
        before = {path.name: path.stat().st_mtime_ns for path in Index(folder, Tones()).path.glob("*[ls]")}
        write(folder / "one.wav", 1)
        write(folder / "two.wav", 1)
        index, _ = updated(folder)
        after = {path.name: path.stat().st_mtime_ns for path in index.path.glob("*[ls]")}
        assert before.items() < after.items() and len(after) == 4

    def test_two_processes_do_not_write_at_once(self, folder):
        index, _ = updated(folder)
        with FileLock(index.path.with_name(f".{index.path.name}.lock")):
            with pytest.raises(OSError, match="another process is writing this index; wait for it, or stop it"):
                index.update(quiet=True)
            assert len(index.search("1")) == 6

    def test_folders_that_cannot_be_listed_keep_what_is_known_of_them(self, folder, monkeypatch):
        updated(folder)
        listed = os.scandir

        def scandir(path):
            if Path(path).name == "b":
                raise PermissionError(13, "Permission denied")
            return listed(path)

        monkeypatch.setattr(os, "scandir", scandir)
        index, report = updated(folder)
        assert report.gone == 0 and found(index, "1", 1) == ["1.wav"]
        assert report.problems.to_numpy().tolist() == [["b", "Permission denied; make it readable"]]

    def test_names_of_all_kinds_are_kept(self, tmp_path):
        names = ["naïve файл 音.wav", 'a "b", c.wav', "new\nline.wav", "[red]x[bold].wav"]
        for number, name in enumerate(names):
            write(tmp_path / "s" / name, number)
        index, _ = updated(tmp_path / "s")
        assert [found(index, str(number), 1)[0] for number in range(4)] == names

    @pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take only UTF-8")
    def test_a_name_that_is_no_text_is_a_problem(self, folder):
        (folder / os.fsdecode(b"\xff.wav")).write_bytes((folder / "a" / "0.wav").read_bytes())
        _, report = updated(folder)
        assert report.problems.to_numpy().tolist() == [["\udcff.wav", "a name that is not UTF-8; rename it"]]
        assert updated(folder)[1].unchanged == 7


class TestProblems:
    def bad(self, folder):
        (folder / "text.wav").write_text("no sound")
        (folder / "empty.flac").write_bytes(b"")
        soundfile.write(folder / "silent.wav", np.zeros(300), RATE)
        soundfile.write(folder / "none.wav", np.zeros(0), RATE)
        (folder / "song.m4a").write_bytes(b"\0\0\0 ftypM4A ")
        wave = tone(1, 40.0)
        wave[-5] = np.nan
        soundfile.write(folder / "nan.wav", wave, RATE, subtype="FLOAT")
        return 6

    def test_bad_files_stop_nothing_and_are_listed_with_their_reasons(self, folder):
        number = self.bad(folder)
        index, report = updated(folder)
        problems = report.problems.set_index("path")["problem"]
        assert len(problems) == number and report.usable == 6 and len(index.search("1", 100)) == 6
        for name, words in {
            "text.wav": "unreadable",
            "empty.flac": "0 bytes; delete it or fetch it again",
            "silent.wav": "silent: every sample is 0",
            "none.wav": "0 samples",
            "song.m4a": "convert it to WAV, FLAC, OGG or MP3",
            "nan.wav": "NaN or infinite",
        }.items():
            assert words in problems[name]
        bad = index.files[index.files["problem"] != ""]
        assert not bad["segments"].any() and not bad["seconds"].any()

    def test_they_are_tried_again_only_once_they_change(self, folder, monkeypatch):
        self.bad(folder)
        updated(folder)
        tried = []
        header = audio.header
        monkeypatch.setattr(audio, "header", lambda path: tried.append(path.name) or header(path))
        _, report = updated(folder)
        assert not tried and len(report.problems) == 6
        write(folder / "text.wav", 2)
        index, report = updated(folder)
        assert set(tried) == {"text.wav"} and report.changed == 1 and found(index, "2", 2) == ["2.wav", "text.wav"]

    def test_a_file_that_may_not_be_read_is_tried_each_time(self, folder, monkeypatch):
        monkeypatch.setattr(Index, "_begin", lambda self, file: (file, 0.0, PermissionError(13, "Permission denied")))
        _, report = updated(folder)
        assert report.usable == 0 and set(report.problems["problem"]) == {"Permission denied; make it readable"}
        monkeypatch.undo()

    def test_one_that_vanishes_while_the_folder_is_read_is_a_problem_until_the_next_time(self, folder, monkeypatch):
        def vanishing(*given):
            result = scan(*given)
            (folder / "a" / "0.wav").unlink()
            return result

        monkeypatch.setattr(search, "scan", vanishing)
        _, report = updated(folder)
        assert report.problems.to_numpy().tolist() == [["a/0.wav", "gone before it was read; index the folder again"]]
        monkeypatch.setattr(search, "scan", scan)
        _, report = updated(folder)
        assert report.gone == 1 and not len(report.problems)

    def test_a_home_that_cannot_be_written_is_said_with_the_mend(self, folder, home, monkeypatch):
        home.write_text("a file")
        with pytest.raises(ValueError, match=f"ATR_HOME: {home}: {home} is not a folder; name a folder"):
            updated(folder)
        home.unlink()

        def full(*given):
            raise shards.SafetensorError("I/O error: No space left on device (os error 28)")

        monkeypatch.setattr(shards, "save_file", full)
        with pytest.raises(OSError, match="cannot be written: No space left on device .*; free some space"):
            updated(folder)
        monkeypatch.undo()

    def test_a_model_without_finite_embeddings_is_refused(self, folder):
        class Diverged(Tones):
            def sounds(self, sounds):
                return super().sounds(sounds) * float("nan")

        with pytest.raises(ValueError, match="tones: embeddings that are NaN or infinite; name another model"):
            updated(folder, Diverged())


def toggle(folder, place):
    """One of two states of a folder: another sound of the same name, one file more or less."""
    os.utime(write(folder / "a" / "0.wav", place, 3), ns=(1 + place, 1 + place))
    if place:
        write(folder / "more.wav", 5)
    else:
        (folder / "more.wav").unlink(missing_ok=True)


def forked(work):
    """A process of its own for `work`; its exit status says whether it failed."""
    child = os.fork()
    if not child:
        try:
            torch.set_num_threads(1)
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return child


def status(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def answers(folder, embedder=None, **options):
    hits = Index(folder, embedder or Tones(), **options).search(["0", "3", "5"], top=20)
    return hits.round({"score": 5}).to_csv(index=False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here")
class TestGenerations:
    @pytest.mark.parametrize("many", [False, pytest.param(True, marks=needs_faiss)], ids=["exact", "FAISS"])
    def test_searches_beside_a_process_that_updates_see_one_generation_or_another(
        self, folder, monkeypatch, recwarn, many
    ):
        monkeypatch.setattr(search, "SHARD_SECONDS", 0.0)
        if many:
            monkeypatch.setattr(neighbours, "LIMIT", 19)
            monkeypatch.setattr(Tones, "similarity", Embedder.similarity)
            for number in range(20):
                write(folder / f"{number}.wav", number % 6)
        expected = []
        for place in (0, 1):
            toggle(folder, place)
            updated(folder)
            expected.append(answers(folder))
        stop = folder.parent / "stop"

        def write_on():
            place = 0
            while not stop.exists() and time.monotonic() < end + 90:
                toggle(folder, place)
                updated(folder)
                place = 1 - place

        seen, end = [], time.monotonic() + 2
        writer = forked(write_on)
        while time.monotonic() < end or (len(set(seen)) < 2 and time.monotonic() < end + 30):
            seen.append(answers(folder))
        stop.touch()
        assert status(writer) == 0
        assert set(seen) == set(expected) and len(expected[0]) != len(expected[1])
        assert not [str(one.message) for one in recwarn.list if issubclass(one.category, UserWarning)]

    def test_embeddings_that_go_while_they_are_opened_are_those_of_the_next_generation(self, folder, monkeypatch):
        toggle(folder, 0)
        updated(folder)
        load = shards.load_file

        def replaced(path):
            monkeypatch.setattr(shards, "load_file", load)
            toggle(folder, 1)
            updated(folder)
            raise RuntimeError(f"unable to open file <{path}> in read-only mode: No such file or directory (2)")

        monkeypatch.setattr(shards, "load_file", replaced)
        seen = answers(folder)
        assert shards.load_file is load and seen == answers(folder)

        def fails(path):
            raise RuntimeError("Cannot allocate memory")

        monkeypatch.setattr(shards, "load_file", fails)
        with pytest.raises(ValueError, match="Cannot allocate memory"):
            answers(folder)

    def test_killed_at_any_write_it_leaves_a_whole_generation_and_continues(self, folder, home, monkeypatch):
        monkeypatch.setattr(search, "SHARD_SECONDS", 0.0)
        toggle(folder, 0)
        updated(folder)
        one = answers(folder)
        shutil.copytree(home, home.parent / "kept")
        toggle(folder, 1)
        monkeypatch.setenv("ATR_HOME", str(home.parent / "fresh"))
        updated(folder)
        other = answers(folder)
        monkeypatch.setenv("ATR_HOME", str(home))

        def killed(place):
            calls = iter(range(1000))

            def dying(function):
                return lambda *given, **options: os._exit(9) if next(calls) == place else function(*given, **options)

            for owner, name in ((os, "replace"), (os, "unlink"), (os, "fsync"), (shards, "save_file")):
                setattr(owner, name, dying(getattr(owner, name)))
            updated(folder)

        states = []
        for place in range(1000):
            ended = status(forked(lambda place=place: killed(place)))
            assert ended in (0, 9)
            states.append(answers(folder))
            assert indexes.verify(home / "indexes") == []
            updated(folder)
            assert answers(folder) == other
            assert {path.suffix for path in home.glob("indexes/*/*")} == {".json", ".jsonl", ".safetensors"}
            assert len(list(home.glob("indexes/*/*"))) == 3
            shutil.rmtree(home)
            shutil.copytree(home.parent / "kept", home)
            if not ended:
                break
        assert states == sorted(states, key=[one, other].index) and len(states) > 10 and states[0] == one

    def test_an_index_is_opened_whole_so_that_later_updates_do_not_change_its_answers(self, folder):
        toggle(folder, 0)
        updated(folder)
        index = Index(folder, Tones())
        before = index.search("5", 20)
        toggle(folder, 1)
        updated(folder)
        pd.testing.assert_frame_equal(index.search("5", 20), before)
        assert len(Index(folder, Tones()).search("5", 20)) == len(before) + 1

    @pytest.mark.parametrize("place", range(6))
    def test_a_full_disk_leaves_the_generation_before_and_the_next_update_mends(self, folder, monkeypatch, place):
        updated(folder)
        before = answers(folder)
        toggle(folder, 1)
        calls = iter(range(100))

        def fsync(handle):
            if next(calls) >= place:
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="indexes.*: cannot be written: No space left on device.*free some") as caught:
            updated(folder)
        assert caught.value.errno == 28
        assert answers(folder) == before
        monkeypatch.undo()
        monkeypatch.setenv("ATR_HOME", str(folder.parent / "home"))
        updated(folder)
        assert len(answers(folder)) > len(before)

    def test_a_search_writes_nothing_and_an_update_says_where_it_cannot(self, folder, monkeypatch):
        updated(folder)
        before = answers(folder)

        def refuse(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(search, "FileLock", refuse)
        monkeypatch.setattr(os, "replace", refuse)
        assert answers(folder) == before
        with pytest.raises(OSError, match="indexes/.*: cannot be written .*make it writable, or set ATR_HOME"):
            updated(folder)


MUTATIONS = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:-40],
    "half": lambda content: content[: len(content) // 2],
    "longer": lambda content: content + b"{}\n",
    "zeros": lambda content: bytes(len(content)),
    "no text": lambda content: b"\xff\xfe" + content,
    "list": lambda content: b"[]",
    "number": lambda content: b"3",
    "null": lambda content: b"null",
    "object": lambda content: b"{}",
    "deep": lambda content: b"[" * 100_000,
    "other numbers": lambda content: re.sub(rb"\d", lambda digit: b"%d" % (9 - int(digit[0])), content),
    "NaN": lambda content: re.sub(rb"\d+", b"NaN", content),
    "a name more": lambda content: content.replace(b"e", b"E", 1),
}


class TestDamage:
    def assert_harmless(self, folder, file, before):
        """The same answer, or an error that names the file; one update makes it good."""
        try:
            assert answers(folder) == before
        except (ValueError, FileNotFoundError) as error:
            assert f"{file}: damaged (" in str(error) and f"options: atr index {folder}" in str(error)
            assert "delete" not in str(error)
            (problem,) = indexes.verify(file.parent)
            assert problem.startswith(f"{file}: damaged (") and "atr index" in problem
        updated(folder)
        assert answers(folder) == before and indexes.verify(file.parent) == []

    @pytest.mark.parametrize("suffix", [".json", ".jsonl", ".safetensors"])
    @pytest.mark.parametrize("change", MUTATIONS.values(), ids=MUTATIONS)
    def test_each_file_that_is_not_as_it_was_written_is_named_and_made_anew(self, folder, suffix, change):
        index, _ = updated(folder)
        before = answers(folder)
        (file,) = index.path.glob(f"*{suffix}")
        file.write_bytes(change(file.read_bytes()))
        with pytest.raises(ValueError, match=re.escape(f"{file}: damaged (")):
            answers(folder)
        self.assert_harmless(folder, file, before)

    @pytest.mark.parametrize("suffix", [".jsonl", ".safetensors"])
    def test_a_file_that_is_gone_is_named(self, folder, suffix):
        index, _ = updated(folder)
        before = answers(folder)
        (file,) = index.path.glob(f"*{suffix}")
        file.unlink()
        with pytest.raises(ValueError, match="No such file"):
            answers(folder)
        self.assert_harmless(folder, file, before)

    @pytest.mark.parametrize("suffix", [".json", ".jsonl", ".safetensors"])
    def test_no_bit_changes_an_answer_silently(self, folder, suffix):
        index, _ = updated(folder)
        before = answers(folder)
        (file,) = index.path.glob(f"*{suffix}")
        content = file.read_bytes()
        for place in np.random.default_rng(0).integers(0, 8 * len(content), 60).tolist():
            changed = bytearray(content)
            changed[place // 8] ^= 1 << place % 8
            file.write_bytes(changed)
            with pytest.raises(ValueError, match=re.escape(f"{file}: damaged (")):
                answers(folder)
        self.assert_harmless(folder, file, before)

    def test_tensors_of_other_shapes_and_values_are_damage(self, folder):
        index, _ = updated(folder)
        before = answers(folder)
        (file,) = index.path.glob("*.safetensors")
        tensors = load_file(file)
        for change in (
            {"embeddings": tensors["embeddings"][:-1]},
            {"embeddings": tensors["embeddings"][:, :-1].contiguous()},
            {"embeddings": tensors["embeddings"] * float("nan")},
            {"times": tensors["times"].float()},
        ):
            save_file(tensors | change, file)
            self.assert_harmless(folder, file, before)

    def test_the_rest_of_a_damaged_index_is_not_embedded_again(self, folder, monkeypatch):
        monkeypatch.setattr(shards, "FULL", 4)
        monkeypatch.setattr(search, "SHARD_SECONDS", 0.0)
        index, _ = updated(folder)
        before = answers(folder)
        file = sorted(index.path.glob("*.safetensors"))[0]
        lost = len(load_file(file)["times"])
        file.write_bytes(b"")
        embedder = Tones()
        updated(folder, embedder)
        assert len(embedder.heard) == lost < 6 and answers(folder) == before
        (index.path / "index.json").write_text("{")
        embedder = Tones()
        updated(folder, embedder)
        assert not embedder.heard and answers(folder) == before

    def test_an_index_json_of_another_index_is_not_taken(self, folder):
        index, _ = updated(folder)
        other, _ = updated(folder, segment=5.0)
        shutil.copy(other.path / "index.json", index.path)
        with pytest.raises(ValueError, match="index.json: damaged .it is of another index"):
            Index(folder, Tones()).search("1")

    def test_others_are_found_beside_a_damaged_one_which_is_named(self, folder):
        healthy, _ = updated(folder)
        damaged, _ = updated(folder / "a")
        (damaged.path / "index.json").write_text('{"version": 2}')
        (indexes.home() / "empty").mkdir()
        with pytest.warns(UserWarning, match=f"{damaged.path}/index.json: damaged .*run again, .* atr index <its fold"):
            (one,) = indexes.descriptions()
        assert one["folder"] == str(folder)
        assert [problem.split(":")[0] for problem in indexes.verify(indexes.home())] == [f"{damaged.path}/index.json"]
        (damaged.path / "index.json").unlink()
        assert "index.json: No such file or directory; run" in indexes.verify(indexes.home())[0]
        assert indexes.verify(healthy.path) == [] == indexes.verify(folder / "none")

    def test_large_files_are_sampled_by_a_search_and_read_whole_by_verify_and_update(self, folder, monkeypatch):
        monkeypatch.setattr(hashes, "BLOCK", 8)
        monkeypatch.setattr(hashes, "SAMPLE", 2)
        monkeypatch.setattr(neighbours, "LIMIT", 3)
        index, _ = updated(folder)
        before = answers(folder)
        (file,) = index.path.glob("*.safetensors")
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        monkeypatch.setattr(hashes.random, "sample", lambda places, number: list(places)[:number])
        answers(folder)
        (problem,) = indexes.verify(index.path)
        assert f"{file}: damaged (other bytes than were written, from byte {len(content) - 8:,} on)" in problem
        updated(folder)
        assert answers(folder) == before and indexes.verify(index.path) == []

    def test_an_index_of_the_first_version_is_described_as_such_and_made_anew_beside_it(self, folder, home):
        old = {"version": 1, "folder": str(folder), "segment": 10.0, "name": "x", "fingerprint": "y", "complete": True}
        (home / "indexes" / "0").mkdir(parents=True)
        (home / "indexes" / "0" / "index.json").write_text(json.dumps(old | {"model": {}}))
        (one,) = indexes.descriptions(folder)
        assert one["version"] == 1
        assert indexes.verify(home / "indexes") == []
        updated(folder)
        assert [one["version"] for one in indexes.descriptions(folder)] == [indexes.INDEX_VERSION, 1]


class TestMoved:
    def test_an_index_moves_with_its_home(self, folder, home, monkeypatch):
        updated(folder)
        before = answers(folder)
        os.rename(home, home.parent / "elsewhere")
        monkeypatch.setenv("ATR_HOME", str(home.parent / "elsewhere"))
        assert answers(folder) == before
        _, report = updated(folder)
        assert report.unchanged == 6

    def test_a_folder_that_moved_is_to_be_indexed_where_it_lies(self, folder):
        updated(folder)
        os.rename(folder, folder.parent / "renamed")
        with pytest.raises(FileNotFoundError, match="renamed: not indexed by tones yet"):
            answers(folder.parent / "renamed")
        updated(folder.parent / "renamed")
        assert "renamed/a/0.wav" in answers(folder.parent / "renamed")

    def test_models_are_known_by_their_contents_not_by_where_they_lie(self, corpus, homes, tmp_path, monkeypatch):
        monkeypatch.setenv("ATR_HOME", str(homes / "data"))
        config = RunConfig(corpus=TINY, epochs=1, batch_size=16, embedding_dim=16)
        run = fit(config, corpus, runs=tmp_path / "runs")
        known = Embedder(run, corpus, device="cpu").fingerprint
        (tmp_path / "moved").symlink_to(homes / "data")
        monkeypatch.setenv("ATR_HOME", str(tmp_path / "moved"))
        assert Embedder(run, corpus, device="cpu").fingerprint == known
        shutil.copytree(run.path, tmp_path / "copied" / run.address, ignore=shutil.ignore_patterns("sums.json"))
        checkpoint = tmp_path / "copied" / run.address / "checkpoint.safetensors"
        assert Embedder(Run(checkpoint.parent), corpus, device="cpu").fingerprint == known
        save_file({name: tensor * 2 for name, tensor in load_file(checkpoint).items()}, checkpoint)
        assert Embedder(Run(checkpoint.parent), corpus, device="cpu").fingerprint != known
        clap(tmp_path / "one")
        shutil.copytree(tmp_path / "one", tmp_path / "other")
        one, other = (Embedder.clap(tmp_path / name, device="cpu") for name in ("one", "other"))
        assert one.fingerprint == other.fingerprint


class TestWhichIndex:
    def test_folder_model_and_segment_each_have_an_index_of_their_own(self, folder, tmp_path):
        other = Tones()
        other.fingerprint = "t2"
        indexes = [
            Index(folder, Tones()),
            Index(folder, other),
            Index(folder, Tones(), segment=5.0),
            Index(folder / "a", Tones()),
        ]
        assert len({index.path for index in indexes}) == 4
        (tmp_path / "link").symlink_to(folder)
        assert Index(tmp_path / "link", Tones()).path == indexes[0].path
        indexes[0].update(quiet=True)
        with pytest.raises(FileNotFoundError, match="not indexed by tones yet"):
            indexes[1].search("1")

    def test_what_is_indexed_is_described_the_last_first(self, folder):
        assert indexes.descriptions() == []
        for place, made in enumerate([updated(folder, model={"clap": "x"})[0], updated(folder / "a")[0]]):
            os.utime(made.path / "index.json", ns=(place, place))
        first, second = indexes.descriptions()
        assert first["folder"] == str(folder / "a") and second["model"] == {"clap": "x"}
        assert [one["segment"] for one in indexes.descriptions(folder)] == [10.0]
        assert second["version"] == indexes.INDEX_VERSION and second["name"] == "tones" and second["complete"]

    def test_models_and_segments_that_do_not_go_with_an_index_are_refused(self, folder):
        embedder = Tones()
        embedder.text_aware = True
        with pytest.raises(ValueError, match="tones: text-aware, .* name another run"):
            Index(folder, embedder)
        for segment in (0.5, 0, -3, 4000, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="segment: .* give 1 to 1800"):
                Index(folder, Tones(), segment=segment)
        embedder = Tones()
        embedder.seconds = 5.0
        with pytest.raises(ValueError, match="segment: 10 s, but tones hears only 5 s"):
            Index(folder, embedder, segment=10)
        assert (Index(folder, embedder).segment, Index(folder, Tones()).segment) == (5, 10)

    def test_a_rest_that_the_embedder_cannot_hear_with_the_segment_before_has_one_that_ends_with_the_file(self, folder):
        write(folder / "long.wav", 0, 1, seconds=5.4)
        embedder = Tones()
        embedder.seconds = 5.0
        pieces = list(Index(folder, embedder)._pieces(folder / "long.wav"))
        assert [(start, end) for start, end, _ in pieces] == [(0, 5), (5, 10), (pytest.approx(5.8), 10.8)]
        assert {len(waveform) for *_, waveform in pieces} == {5 * RATE}
