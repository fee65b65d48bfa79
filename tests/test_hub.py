"""Public copies on the Hub: what they have of each protocol, fetching it, and what is no copy to use.

The Parquet files were written by `datasets` 5.2.0: two clips of AudioCaps's test split with five rows each, two of its
training split, and three of Clotho's validation split with one that Clotho does not have, all by dataset_layouts.
"""

import hashlib
import json
import re
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote

import dataset_layouts
import golden_weights
import pytest
import soundfile
from dataset_layouts import youtube_id
from local_server import serving
from typer.testing import CliRunner

from atr import load_corpus
from atr.cli import app
from atr.corpora import catalogue
from atr.evaluation import hub, protocols
from atr.system import download

TABLES = {
    "audiocaps": ["train.csv", "val.csv", "test.csv"],
    "clotho": [f"clotho_captions_{split}.csv" for split in ("development", "validation", "evaluation")],
}


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A Hub on this machine: put(copy, path, content) uploads; asked: what was sent, as (path, bytes)."""
    published, asked = {}, []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = unquote(self.path)
            content = published.get(path)
            if content is None:
                return self.send_error(404)
            first, last = 0, len(content) - 1
            if asks := self.headers.get("Range"):
                first, _, end = asks.removeprefix("bytes=").partition("-")
                first, last = int(first), min(last, int(end or last))
            part = content[first : last + 1]
            self.send_response(206 if asks else 200)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Accept-Ranges", "bytes")
            if asks:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            self.end_headers()
            if self.command == "GET":
                asked.append((path, len(part)))
                self.wfile.write(part)

        do_HEAD = do_GET

        def log_message(self, *_):
            return None

    def put(repo, path, content, oid=None):
        revision = hub.REVISIONS[repo]
        published[f"/datasets/{repo}/resolve/{revision}/{path}"] = content
        listing = f"/api/datasets/{repo}/tree/{revision}?recursive=true"
        rows = json.loads(published.get(listing, '[{"type": "file", "path": "README.md", "size": 9, "oid": "x"}]'))
        lfs = {"oid": oid or hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        row = {"type": "file", "oid": "0" * 40, "size": len(content), "path": path, "lfs": lfs}
        published[listing] = json.dumps([*(other for other in rows if other["path"] != path), row]).encode()

    with serving(Handler) as httpd:
        address = f"http://127.0.0.1:{httpd.server_port}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("ATR_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(download, "PAUSES", ())
        for name, tables in TABLES.items():
            getattr(dataset_layouts, name)(tmp_path / name, seconds=0.01)
            files = []
            for table in tables:
                published[f"/{table}"] = (tmp_path / name / table).read_bytes()
                files.append(download.File(table, f"{address}/{table}"))
            monkeypatch.setitem(catalogue.DATASETS, name, replace(catalogue.DATASETS[name], files=tuple(files)))
        put("OpenSound/AudioCaps", "data/test-00000-of-00001.parquet", parquet("audiocaps_test"))
        put("OpenSound/AudioCaps", "data/train-00000-of-00001.parquet", parquet("audiocaps_train"))
        put("mteb/Clotho", "data/test-00000-of-00001.parquet", parquet("clotho"))
        yield put, asked


def parquet(name):
    return (golden_weights.GOLDEN / f"hub_{name}.parquet").read_bytes()


def call(*words, status=0, **options):
    outcome = CliRunner().invoke(app.app, ["data", *words], **options)
    assert outcome.exit_code == status, outcome.output
    return " ".join(re.sub("[─-╿]", " ", outcome.output).split())


def test_coverage_is_said_before_anything_large_is_fetched(server, tmp_path):
    said = call("audiocaps", "--hub", status=1, input="n\n")
    assert "OpenSound/AudioCaps at b29b3243d6ce has" in said and "in 2 files" in said and "Go on?" in said
    assert "split train 2 6" in said and "split validation 0 3" in said and "split test 2 3" in said
    assert "audiocaps-975 0 975" in said and "audiocaps-957 0 957" in said  # the miniature's ids are others


def test_coverage_of_mtebs_clips_is_said_though_their_list_comes_with_the_copy(server, monkeypatch):
    listed = protocols.get

    def of_two(name):
        return replace(listed(name), clips=2) if name == "audiocaps-883" else listed(name)

    monkeypatch.setattr(protocols, "get", of_two)
    assert "audiocaps-883 2 2" in call("audiocaps", "--hub", status=1, input="n\n")


def test_nothing_large_is_fetched_before_one_agrees(server, tmp_path):
    call("audiocaps", "--hub", status=1, input="n\n")
    assert not (tmp_path / "home" / "audiocaps" / "hub" / "audio").exists()
    sounds = len(parquet("audiocaps_test")) + len(parquet("audiocaps_train"))
    assert sum(size for path, size in server[1] if "/resolve/" in path) < 2 * sounds  # small files, read whole


def test_audiocaps_is_fetched_by_split_and_then_the_rest(server, tmp_path):
    folder = tmp_path / "home" / "audiocaps" / "hub"
    call("audiocaps", "--hub", "--split", "test", "--yes", "--quiet")
    assert sorted(path.name for path in folder.glob("audio/*/*")) == sorted(f"{youtube_id(n)}.wav" for n in (9, 10))
    corpus = load_corpus("audiocaps", check=False)
    assert sorted(corpus.clips["clip"]) == sorted(youtube_id(n) for n in (9, 10))
    assert corpus.captions["caption"][0] in dataset_layouts.captions(9)  # the tables' words, not the copy's
    asked = len(server[1])
    said = call("audiocaps", "--hub", "--yes", "--quiet")
    assert "split train 2 6" in said and len(list(folder.glob("audio/train/*.wav"))) == 2
    assert not [path for path, _ in server[1][asked:] if "test-" in path], "fetched again"
    assert not (folder / "shards").exists()
    assert "in 0 files" in call("audiocaps", "--hub", "--quiet")


def test_mtebs_list_of_clips_comes_with_the_copy_that_it_was_made_of(server, tmp_path):
    call("audiocaps", "--hub", status=1, input="n\n")
    listed = (tmp_path / "home" / "protocols" / "audiocaps-883.txt").read_text().splitlines()
    assert listed == [youtube_id(9), youtube_id(10)]
    with pytest.raises(ValueError, match="names 2 clips where protocol audiocaps-883 has 883"):
        protocols.get("audiocaps-883").hash  # noqa: B018


def test_clothos_clips_are_told_by_their_captions_whatever_the_copy_calls_their_split(server, tmp_path):
    said = call("clotho", "--hub", "--copy", "mteb/Clotho", "--yes", "--quiet")
    assert "split validation 3 3" in said and "split test 0 3" in said and "mteb-clotho 3 3" in said
    here = sorted((tmp_path / "home" / "clotho" / "hub").glob("*/*.flac"))
    there = sorted((tmp_path / "clotho" / "validation").glob("*.wav"))
    assert [path.stem for path in here] == [path.stem for path in there] and len(here) == 3
    assert [path.parent.name for path in here] == ["validation"] * 3
    corpus = load_corpus("clotho", check=False).split("validation")
    assert len(corpus) == 3 and len(corpus.captions) == 15
    (waveform, rate), (expected, _) = corpus.read(corpus.clips["clip"].iloc[0]), soundfile.read(here[0])
    assert rate == 8000 and len(waveform) == len(expected) == 400


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["esc50", "--hub"], "--hub: no copy of esc50 is known; known: of audiocaps, clotho"),
        (["clotho", "--hub", "--copy", "x/y"], "--copy: 'x/y' is no copy of clotho; known: CLAPv2/Clotho, mteb/Clotho"),
        (["audiocaps", "--hub", "--split", "tset"], "--split: tset; known: train, validation, test"),
        (["--hub"], "--hub: no copy of no data set is known; known: of audiocaps, clotho"),
        (["clotho", "--hub", "--from", "."], "--from: a folder is recorded as it is, with nothing to fetch"),
        (
            ["clotho", "--copy", "mteb/Clotho", "--yes"],
            "--copy and --split: of a copy on the Hub they say what to fetch",
        ),
        (["clotho", "--split", "test", "--yes"], "--copy and --split: of a copy on the Hub they say what to fetch"),
        (["clotho", "--hub"], "HTTP 404 for"),  # not put there
    ],
)
def test_what_is_no_copy_is_an_error(server, words, said):
    assert said in call(*words, status=1)


def test_a_data_set_that_is_here_is_not_fetched(server, tmp_path):
    catalogue.record("audiocaps", tmp_path / "audiocaps")
    assert "nothing to fetch" in call("audiocaps", "--hub", status=1)


@pytest.mark.parametrize("kind", ["damaged", "sound", "columns", "changed"])
def test_a_copy_that_is_not_as_it_should_be_is_an_error(server, tmp_path, kind):
    put, content = server[0], parquet("audiocaps_test")
    name, oid = "data/test-00000-of-00001.parquet", None
    if kind == "damaged":
        content, said = content[:-9], "no Parquet file"
    elif kind == "sound":
        content, said = content.replace(b"WAVEfmt ", b"WAVEfmf "), "no sound"
    elif kind == "columns":
        content, said = parquet("clotho"), "no column youtube_id among index"
    else:
        oid, said = "0" * 64, "not 000"
    put("OpenSound/AudioCaps", name, content, oid)
    output = call("audiocaps", "--hub", "--yes", "--quiet", status=1)
    assert said in output and "test-00000" in output
