import hashlib
import json
import os
import threading
import zipfile
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import dataset_layouts
import py7zr
import pytest
import soundfile
from typer.testing import CliRunner

from atr.cli import app, data
from atr.corpora import audiocaps, catalogue, clotho, load_corpus
from atr.corpora.corpus import CorpusError
from atr.corpora.scenes import clipfolder
from atr.encoders import checkpoints
from atr.experiments.profiles import get_profile
from atr.inference import indexes
from atr.system import download, store

runner = CliRunner()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch, terminal):
    """An empty home, and a terminal wide enough that no line of a table is folded."""
    monkeypatch.setenv("ATR_HOME", str(tmp_path / "home"))
    terminal(250)
    return tmp_path / "home"


def call(*words, status=0, **options):
    outcome = runner.invoke(app.app, ["data", *map(str, words)], **options)
    assert outcome.exit_code == status, outcome.output
    return outcome.output


@pytest.fixture
def server(tmp_path):
    """A server on this machine for the files in tmp_path/published; counts what it was asked for."""
    (tmp_path / "published").mkdir()
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, *_):
            asked.append(self.path.removeprefix("/"))

    handler = partial(Handler, directory=str(tmp_path / "published"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}", tmp_path / "published", asked
        httpd.shutdown()


def publish(monkeypatch, name, server):
    """Let the data set's files be those that the server has."""
    address, folder, _ = server
    files = []
    for file in catalogue.DATASETS[name].files:
        content = (folder / file.name).read_bytes()
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        files.append(download.File(file.name, f"{address}/{file.name}", len(content), f"md5:{md5}"))
    monkeypatch.setitem(catalogue.DATASETS, name, replace(catalogue.DATASETS[name], files=tuple(files)))


@pytest.fixture
def published_clotho(server, tmp_path, monkeypatch):
    """Clotho as Zenodo has it: three archives, six tables."""
    source = dataset_layouts.clotho(tmp_path / "source", {"train": 3, "validation": 2, "test": 2}, seconds=0.1)
    for split in ("development", "validation", "evaluation"):
        with py7zr.SevenZipFile(server[1] / f"clotho_audio_{split}.7z", "w") as archive:
            archive.writeall(source / split, split)
        (source / f"clotho_captions_{split}.csv").rename(server[1] / f"clotho_captions_{split}.csv")
        (server[1] / f"clotho_metadata_{split}.csv").write_text("file_name,keywords\n")
    publish(monkeypatch, "clotho", server)
    return server


def test_the_published_files_have_names_https_addresses_and_checksums():
    for name, set_ in catalogue.DATASETS.items():
        assert set_.licence and set_.source.startswith("https://") and 0 < set_.download <= set_.disk
        assert len({file.name for file in set_.files}) == len(set_.files), name
        for file in set_.files:
            assert file.url.startswith("https://") and file.checksum


@pytest.mark.parametrize("columns", [80, 120])
def test_all_data_sets_and_checkpoints_are_listed_with_size_licence_and_state(columns, home, terminal):
    terminal(columns)
    (home / "clotho").mkdir(parents=True)
    (home / "clotho" / "clotho_captions_development.csv").write_text("")
    text = call()
    for name in (*catalogue.DATASETS, *checkpoints.REGISTRY):
        assert sum(f"│ {name} " in line for line in text.splitlines()) == 1, text
    states = data.status().set_index("name")["here"]
    assert states["clotho"] == "partial" and states["audiocaps"] == "absent" and states["cnn14"] == "absent"
    assert "7.0 GB" in text and ("CC BY-NC 3.0" in text or columns == 80)  # licences are broken, numbers are not


def test_it_says_how_large_where_to_and_under_which_licence_before_it_asks(home):
    text = call("clotho", input="n\n", status=1)
    for words in ("download: about 7.0 GB", "on disk: about 11.8 GB", str(home / "clotho"), "Tampere", "Go on? [y/N]"):
        assert words in text
    assert not home.exists()


def test_clotho_is_fetched_verified_unpacked_and_counted(home, published_clotho):
    text = call("clotho", "--yes", "--quiet")
    assert "Go on?" not in text
    for split, here, paper in (("train", 3, 3839), ("validation", 2, 1045), ("test", 2, 1045)):
        assert [part.strip() for part in next(x for x in text.splitlines() if f" {split} " in x).split("│")[1:-1]] == [
            split, str(here), str(here), str(paper)
        ]  # fmt: skip
    assert len(load_corpus("clotho")) == 7 and catalogue.state("clotho") == "ready"
    assert not list(home.rglob("*.7z"))
    asked = len(published_clotho[2])
    call("clotho", "--quiet")  # nothing to ask and nothing to fetch
    assert len(published_clotho[2]) == asked


def test_an_interrupted_fetch_continues_with_what_is_missing(home, published_clotho):
    archive = published_clotho[1] / "clotho_audio_validation.7z"
    content = archive.read_bytes()
    archive.write_bytes(content[:-1] + b"x")
    assert "clotho_audio_validation.7z" in call("clotho", "--yes", "--quiet", status=1)
    assert catalogue.state("clotho") == "partial"
    archive.write_bytes(content)
    (home / "clotho" / "clotho_audio_validation.7z.part").unlink()
    before = published_clotho[2].count("clotho_audio_evaluation.7z")
    call("clotho", "--yes", "--quiet")
    assert (
        before == published_clotho[2].count("clotho_audio_evaluation.7z") == 1 and catalogue.state("clotho") == "ready"
    )


def test_a_folder_of_the_archives_is_verified_and_unpacked(home, published_clotho):
    folder = published_clotho[1]
    text = call("clotho", "--from", folder, "--quiet")
    assert "3839" in text and len(load_corpus("clotho")) == 7 and published_clotho[2] == []
    assert (folder / "clotho_audio_evaluation.7z").exists()
    (folder / "clotho_captions_evaluation.csv").unlink()
    assert "the archives together with clotho_captions_evaluation.csv" in call("clotho", "--from", folder, status=1)


def test_a_folder_is_recorded_and_not_copied(home, tmp_path):
    folder = dataset_layouts.clotho(tmp_path / "mine", seconds=0.1)
    text = call("clotho", "--from", folder, "--quiet")
    assert f"clotho: {folder}" in text and "3839" in text
    assert json.loads((home / "clotho" / "location.json").read_text()) == {"folder": str(folder)}
    assert [path.name for path in (home / "clotho").iterdir()] == ["location.json"]
    assert len(load_corpus("clotho")) == 12 and catalogue.state("clotho") == f"ready, in {folder}"
    assert "3839" in call("clotho")


def test_a_folder_that_is_not_recognised_is_refused_and_not_recorded(home, tmp_path):
    (tmp_path / "empty").mkdir()
    text = call("clotho", "--from", tmp_path / "empty", status=1)
    assert "looked for clotho_captions_<split>.csv" in text and "found nothing" in text
    assert "no such folder" in call("clotho", "--from", tmp_path / "absent", status=1)
    assert not (home / "clotho").exists()


def test_what_is_wrong_with_a_recorded_folder_is_listed_below_the_counts(home, tmp_path):
    folder = dataset_layouts.clotho(tmp_path / "mine", seconds=0.1)
    (folder / "evaluation" / "Bus(Drive_Reverse)_1-2.wav").unlink()
    text = call("clotho", "--from", folder, status=1)
    assert "'test/Bus(Drive_Reverse)_1-2': no audio file in" in text and "1 problems" in text


def test_audiocaps_from_a_folder_without_tables_fetches_them(home, server, tmp_path, monkeypatch):
    dataset_layouts.audiocaps(server[1], seconds=0.1)
    (server[1] / "audio").rename(tmp_path / "sounds")
    publish(monkeypatch, "audiocaps", server)
    assert "49274" in call("audiocaps", "--from", tmp_path / "sounds", "--quiet")
    assert sorted(server[2]) == ["test.csv", "train.csv", "val.csv"] and len(load_corpus("audiocaps")) == 12


def test_audiocaps_is_ready_when_all_that_can_be_had_is_here(home, server, monkeypatch):
    dataset_layouts.audiocaps(server[1], seconds=0.1)
    publish(monkeypatch, "audiocaps", server)
    clips = [dataset_layouts.youtube_id(number) for number in range(12)]

    def fetched(clip, start, target):
        if clip == clips[1]:
            return "ERROR: Video unavailable"
        if clip == clips[2]:
            return "ERROR: HTTP Error 503"
        dataset_layouts.sound(target, clips.index(clip), seconds=0.1, rate=32000)
        return ""

    monkeypatch.setattr(audiocaps.shutil, "which", lambda tool: tool)
    monkeypatch.setattr(audiocaps, "_fetch_clip", fetched)
    text = call("audiocaps", "--yes", "--quiet")
    assert "1 clips are gone from YouTube" in text and f"1 clips failed, such as {clips[2]} (ERROR: HTTP" in text
    assert catalogue.state("audiocaps") == "partial" and len(load_corpus("audiocaps")) == 10
    monkeypatch.setattr(audiocaps, "_fetch_clip", lambda *job: fetched(clips[0], *job[1:]))
    call("audiocaps", "--yes", "--quiet")
    assert catalogue.state("audiocaps") == "ready" and len(load_corpus("audiocaps")) == 11


def test_wavcaps_gives_its_lists_and_the_commands_for_its_audio(home, server, tmp_path, monkeypatch):
    for file in catalogue.DATASETS["wavcaps"].files:
        (server[1] / file.name).write_text('{"data": [{"id": "17", "caption": "A dog", "duration": 0.1}]}')
    publish(monkeypatch, "wavcaps", server)
    text = call("wavcaps", "--yes", "--quiet")
    for words in ("hf download cvssp/WavCaps", "zip -s 0 Zip_files/", f'cd "{home / "wavcaps"}"', "--from <folder>"):
        assert words in text
    assert catalogue.state("wavcaps") == "partial"
    (tmp_path / "sounds").mkdir()
    assert "looked for as_final.json" in call("wavcaps", "--from", tmp_path / "sounds", status=1)
    dataset_layouts.sound(tmp_path / "sounds" / "SoundBible" / "17.flac", 1, seconds=0.1)
    assert "403050" in call("wavcaps", "--from", tmp_path / "sounds", "--quiet")


def test_esc50_becomes_a_folder_of_labelled_clips(home, server, tmp_path, monkeypatch):
    top = tmp_path / "ESC-50-0123"
    rows = []
    for fold in range(1, 6):
        for number, event in enumerate(("dog", "rain")):
            name = f"{fold}-{number}-A-{number}.wav"
            dataset_layouts.sound(top / "audio" / name, 10 * fold + number, seconds=0.5)
            rows.append([name, str(fold), str(number), event, "True", "1", "A"])
    header = ["filename", "fold", "target", "category", "esc10", "src_file", "take"]
    dataset_layouts.table(top / "meta" / "esc50.csv", header, rows)
    with zipfile.ZipFile(server[1] / "ESC-50.zip", "w") as archive:
        for path in sorted(top.rglob("*.*")):
            archive.write(path, path.relative_to(tmp_path))
    publish(monkeypatch, "esc50", server)
    text = call("esc50", "--yes", "--quiet")
    assert f"esc50: {home / 'esc50' / 'ESC-50' / 'ESC-50-0123'}" in text and "1200" in text
    assert len(clipfolder.load(catalogue.folder("esc50"), train=2, validation=1, test=1)) == 4
    next(home.rglob("1-0-A-0.wav")).unlink()
    assert "1-0-A-0.wav: no such file; run: atr data esc50" in call("esc50", status=1)


def test_the_dcase_evaluation_set_is_counted_in_clips_and_queries(home, server, tmp_path, monkeypatch):
    dataset_layouts.sound(tmp_path / "test" / "a: b.wav", 1, seconds=0.1)
    with py7zr.SevenZipFile(server[1] / "retrieval_audio.7z", "w") as archive:
        archive.write(tmp_path / "test" / "a: b.wav", "test/a_b.wav")
    dataset_layouts.table(server[1] / "retrieval_captions.csv", ["caption"], [["A dog"], ["Rain"]])
    (server[1] / "retrieval_audio_metadata.csv").write_text("file_name\n")
    publish(monkeypatch, "dcase2022", server)
    text = call("dcase2022", "--yes", "--quiet")
    assert "queries here" in text and "1000" in text and catalogue.state("dcase2022") == "ready"


def test_the_answers_of_dcase_2025_are_fetched_or_taken_from_a_folder(home, server, tmp_path, monkeypatch):
    rows = [["Rain falls.", "['a.wav', 'b c.wav']"], ["A dog", "['a.wav']"]]
    dataset_layouts.table(server[1] / "metadata_eval.csv", ["query", "audio_filenames"], rows)
    publish(monkeypatch, "dcase2025", server)
    text = call("dcase2025", "--yes", "--quiet")
    assert "pairs here" in text and "3116" in text and catalogue.state("dcase2025") == "ready"
    assert clotho.answers() == {"Rain falls.": ["a", "b c"], "A dog": ["a"]}
    assert "looked for metadata_eval.csv" in call("dcase2025", "--from", tmp_path, status=1)
    call("dcase2025", "--from", server[1])
    assert catalogue.state("dcase2025") == f"ready, in {server[1]}"


def test_generated_captions_are_fetched_and_found_by_their_profile(home, server, monkeypatch):
    columns = ["file_name", *(f"caption_{number}" for number in range(1, 11))]
    dataset_layouts.table(server[1] / catalogue.PHI4.name, columns, [["a.wav", *"abcdefghij"]])
    setting = get_profile("captions")
    with pytest.raises(ValueError, match="atr data phi4, or pass the table: make study PROFILE=captions CAPTIONS="):
        setting.captions  # noqa: B018
    publish(monkeypatch, "phi4", server)
    text = call("phi4", "--yes", "--quiet")
    assert "captions here" in text and "3840" in text and setting.captions == home / "phi4" / catalogue.PHI4.name
    monkeypatch.setenv("ATR_CAPTIONS", str(home / "mine.csv"))
    with pytest.raises(ValueError, match=f"ATR_CAPTIONS: {home / 'mine.csv'}: no such file"):
        setting.captions  # noqa: B018
    (home / "mine.csv").touch()
    assert setting.captions == home / "mine.csv" and get_profile("demo").captions is None


def test_a_checkpoint_is_fetched_by_the_same_command(home, server, monkeypatch):
    (server[1] / "weights.pth").write_bytes(b"weights")
    file = download.File("weights.pth", f"{server[0]}/weights.pth", 7, None)
    monkeypatch.setitem(checkpoints.REGISTRY, "cnn14", replace(checkpoints.REGISTRY["cnn14"], file=file))
    text = call("cnn14", input="y\n")
    assert "weights.pth" in text and "licence: " in text and "Go on?" in text
    assert (home / "checkpoints" / "weights.pth").read_bytes() == b"weights"
    assert data.status().set_index("name")["here"]["cnn14"] == "ready" and "Go on?" not in call("cnn14")


def test_an_unknown_name_lists_the_known_ones():
    text = call("cloto", status=1)
    assert "unknown data set 'cloto'; known: clotho, audiocaps" in text and "cnn14" in text
    assert "cnn14 is a checkpoint, which is fetched" in call("cnn14", "--from", ".", status=1)


def test_a_damaged_esc50_table_and_a_folder_without_one_are_errors(tmp_path):
    with pytest.raises(CorpusError, match="looked for meta/esc50.csv and audio/"):
        catalogue.adopt("esc50", tmp_path)
    dataset_layouts.table(tmp_path / "meta" / "esc50.csv", ["filename"], [["a.wav"]])
    with pytest.raises(CorpusError, match="no column 'fold'"):
        catalogue.adopt("esc50", tmp_path)


def test_the_miniatures_are_sounds_that_differ_and_hold_what_real_tables_hold(tmp_path):
    folder = dataset_layouts.clotho(tmp_path / "clotho", seconds=0.1)
    assert soundfile.info(folder / "development" / "Bus(Drive_Reverse)_1-2.wav").samplerate == 44100
    dataset_layouts.audiocaps(tmp_path / "audiocaps", seconds=0.1)
    lines = (tmp_path / "audiocaps" / "val.csv").read_text().splitlines()
    assert lines[0] == "audiocap_id,youtube_id,start_time,caption" and len(lines) == 16


def test_a_recorded_folder_that_is_gone_is_said_with_both_ways_out(home, tmp_path):
    folder = dataset_layouts.clotho(tmp_path / "mine", seconds=0.1)
    call("clotho", "--from", folder, "--quiet")
    folder.rename(tmp_path / "moved")
    text = call("clotho", "--yes", status=1)
    assert f"delete {home / 'clotho' / 'location.json'} and run: atr data clotho" in text
    assert catalogue.state("clotho").startswith("unusable: clotho: no folder") and "unusable" in call()
    call("clotho", "--from", tmp_path / "moved", "--quiet")
    assert len(load_corpus("clotho")) == 12


def flip(path):
    """Change a bit, and neither size nor time of change."""
    state, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_verify_reads_all_that_has_hashes_and_removes_what_can_be_made_anew(home, published_clotho, monkeypatch):
    call("clotho", "--yes", "--quiet")
    folder = store.cached_folder("kind", "key", lambda folder: (folder / "file").write_bytes(b"content"))
    (home / "indexes" / "one").mkdir(parents=True)
    assert call("verify", "--quiet").strip() == "nothing is damaged"
    monkeypatch.setattr(indexes, "verify", lambda path: [f"{path}: damaged"], raising=False)
    table, sound = home / "clotho" / "clotho_captions_validation.csv", next((home / "clotho").rglob("*.wav"))
    for path in (table, sound, folder / "file"):
        flip(path)
    said = call("verify", "--quiet", status=1)
    assert f"{table}: md5 " in said and f"{sound}: its bytes have changed since it was first read" in said
    assert f"{folder}: damaged (the bytes of file have changed); removed, it is made anew when it is needed" in said
    assert f"{home / 'indexes' / 'one'}: damaged" in said and "4 damaged" in said
    assert table.exists() and sound.exists() and not folder.exists()
