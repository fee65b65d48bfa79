import gzip
import hashlib
import io
import re
import shutil
import tarfile
import time
import zipfile
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler

import numpy as np
import py7zr
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from local_server import serving

from atr.system import download
from atr.system.download import DownloadError, File

CONTENT = np.random.default_rng(0).bytes(100_000)


class Site:
    """What the local server serves, and how badly."""

    def __init__(self):
        self.content, self.etag, self.modified = CONTENT, '"one"', None
        self.ranges = True  # False: answers every request with the whole file
        self.heeds_if_range = True
        self.shift = 0  # answers ranges this many bytes off
        self.cuts = []  # bytes sent before the connection breaks, one a request
        self.statuses = []  # answered before anything is served, one a request
        self.headers = {}
        self.after_cut = lambda: None
        self.asked = []  # Range header of each request


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        site = self.server.site
        site.asked.append(self.headers.get("Range"))
        if site.statuses:
            self.send_response(site.statuses.pop(0))
            for name, value in site.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start, size = 0, len(site.content)
        same = self.headers.get("If-Range") in (site.etag, site.modified) or not site.heeds_if_range
        if self.headers.get("Range") and site.ranges and same:
            start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1]) + site.shift
        body = site.content[start:]
        if start and not body:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            body = b""
        elif start:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        else:
            self.send_response(200)
        for name, value in {"ETag": site.etag, "Last-Modified": site.modified, **site.headers}.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if site.cuts:
            self.wfile.write(body[: site.cuts.pop(0)])
            site.after_cut()
        else:
            self.wfile.write(body)

    def log_message(self, *arguments):
        """Keep the tests' output clean."""


@pytest.fixture(scope="module")
def server():
    with serving(Handler) as server:
        yield server


@pytest.fixture
def site(server, monkeypatch):
    monkeypatch.setattr(download, "PAUSES", (0, 0, 0))
    server.site = Site()
    return server.site


@pytest.fixture
def file(server):
    return File("clips.bin", f"http://127.0.0.1:{server.server_port}/clips.bin", 100_000, checksum("sha256"))


def checksum(algorithm, content=CONTENT):
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def without_facts(file):
    return File(file.name, file.url)


# --- fetch


def test_a_file_is_downloaded_under_its_name_and_nothing_else_is_left_to_see(site, file, tmp_path):
    path = download.fetch(file, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "clips.bin" and path.read_bytes() == CONTENT
    there = {path.name for path in path.parent.iterdir() if path.suffix != ".lock"}
    assert there == {"clips.bin", ".clips.bin.verified"} and site.asked == [None]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 60_000), max_size=8), facts=st.booleans())
def test_however_often_it_is_cut_the_result_equals_the_source(site, file, tmp_path, monkeypatch, cuts, facts):
    monkeypatch.setattr(download, "PAUSES", (0,) * 9)
    site.cuts = list(cuts)
    path = download.fetch(file if facts else without_facts(file), tmp_path, quiet=True)
    assert path.read_bytes() == CONTENT and visible(tmp_path) == ["clips.bin"]
    path.unlink()


def test_an_interrupted_download_goes_on_where_it_stopped_in_the_next_call(site, file, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PAUSES", ())
    site.cuts = [30_000]
    with pytest.raises(DownloadError, match=r"clips.bin: cannot be fetched from http://127.*what has arrived is kept"):
        download.fetch(file, tmp_path)
    assert (tmp_path / "clips.bin.part").read_bytes() == CONTENT[:30_000] and not (tmp_path / "clips.bin").exists()
    assert download.fetch(file, tmp_path).read_bytes() == CONTENT
    assert site.asked == [None, "bytes=30000-"]


def test_a_server_that_knows_only_the_time_of_change_is_resumed_too(site, file, tmp_path):
    site.etag, site.modified, site.cuts = 'W/"weak"', "Sat, 15 Aug 2020 10:00:00 GMT", [30_000]
    assert download.fetch(file, tmp_path).read_bytes() == CONTENT
    assert site.asked == [None, "bytes=30000-"]


def test_a_server_that_ignores_ranges_is_read_from_the_start(site, file, tmp_path):
    site.ranges, site.cuts = False, [30_000, 60_000]
    assert download.fetch(file, tmp_path).read_bytes() == CONTENT
    assert site.asked == [None, "bytes=30000-", "bytes=60000-"]


def test_a_server_that_does_not_name_its_content_is_not_resumed(site, file, tmp_path):
    site.etag, site.cuts = None, [30_000]
    assert download.fetch(file, tmp_path).read_bytes() == CONTENT
    assert site.asked == [None, None]


@pytest.mark.parametrize("heeds_if_range", [True, False])
def test_a_file_that_changed_meanwhile_is_read_from_its_start(site, file, tmp_path, heeds_if_range):
    def change():
        site.content, site.etag = CONTENT[::-1], '"two"'

    site.heeds_if_range, site.cuts, site.after_cut = heeds_if_range, [30_000], change
    assert download.fetch(without_facts(file), tmp_path).read_bytes() == CONTENT[::-1]


def test_bytes_of_another_place_than_asked_for_are_not_appended(site, file, tmp_path):
    site.cuts, site.shift = [30_000], 7
    assert download.fetch(without_facts(file), tmp_path).read_bytes() == CONTENT
    assert site.asked == [None, "bytes=30000-", None]


def test_a_download_that_was_killed_before_its_last_step_is_finished(site, file, tmp_path):
    (tmp_path / "clips.bin.part").write_bytes(CONTENT)
    assert download.fetch(file, tmp_path).read_bytes() == CONTENT and site.asked == []


def test_a_whole_part_of_a_file_of_unknown_size_is_found_whole(site, file, tmp_path, monkeypatch):
    def fail(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(download, "verify", fail)
        download.fetch(without_facts(file), tmp_path)
    assert download.fetch(without_facts(file), tmp_path).read_bytes() == CONTENT
    assert site.asked == [None, "bytes=100000-"] and visible(tmp_path) == ["clips.bin"]


def test_bytes_are_kept_as_the_server_holds_them(site, file, tmp_path):
    site.content, site.headers = gzip.compress(CONTENT), {"Content-Encoding": "gzip"}
    assert download.fetch(without_facts(file), tmp_path).read_bytes() == site.content


def test_a_busy_server_is_asked_again_and_given_up_in_the_end(site, file, tmp_path):
    site.statuses = [503, 429]
    assert download.fetch(file, tmp_path).read_bytes() == CONTENT
    site.asked, site.statuses = [], [503] * 9
    with pytest.raises(DownloadError, match=r"HTTP 503.*fetch it by hand and put it at .*other.clips.bin"):
        download.fetch(file, tmp_path / "other")
    assert len(site.asked) == 4


def test_a_missing_file_is_an_error_at_once_that_names_file_address_and_mend(site, file, tmp_path):
    site.statuses = [404]
    where = re.escape(str(tmp_path / "clips.bin"))
    with pytest.raises(
        DownloadError, match=f"clips.bin: HTTP 404 for {file.url}; fetch it by hand and put it at {where}"
    ):
        download.fetch(file, tmp_path)
    assert len(site.asked) == 1 and visible(tmp_path) == []


def test_pauses_grow_while_nothing_arrives_and_start_again_when_something_does(site, file, tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(download, "PAUSES", (1, 2, 4))
    monkeypatch.setattr(download.time, "sleep", slept.append)
    site.cuts = [0, 0, 5000, 0]
    download.fetch(file, tmp_path)
    assert slept == [1, 2, 1, 2]


def test_wrong_bytes_are_an_error_that_keeps_them_beside(site, file, tmp_path):
    site.content = CONTENT[::-1]
    mend = f"delete clips.bin.part and try again, or fetch {file.url} by hand and put it at"
    for _ in range(2):  # the second call says so again
        with pytest.raises(DownloadError, match=f"clips.bin.part: sha256 .*, not .*; {mend}"):
            download.fetch(file, tmp_path)
        assert (tmp_path / "clips.bin.part").read_bytes() == CONTENT[::-1] and not (tmp_path / "clips.bin").exists()
    (tmp_path / "clips.bin.part").unlink()
    site.content = CONTENT
    assert download.fetch(file, tmp_path).read_bytes() == CONTENT


def test_another_size_than_the_published_is_an_error_before_anything_is_written(site, file, tmp_path):
    (tmp_path / "clips.bin.part").write_bytes(CONTENT[:10])
    site.content = b"please log in"
    with pytest.raises(DownloadError, match=r"offers 13 bytes instead of the published 100,000; try again later"):
        download.fetch(file, tmp_path)
    assert (tmp_path / "clips.bin.part").read_bytes() == CONTENT[:10]


PAGE = b"\n<!DOCTYPE html><title>Log in</title>"


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "Text/HTML", "application/xhtml+xml", None])
def test_a_web_page_is_not_taken_for_a_file_of_which_nothing_is_known(site, file, tmp_path, kind):
    site.content, site.headers = PAGE, {"Content-Type": kind}
    with pytest.raises(DownloadError, match=r"clips.bin.*: .*a web page, such as a login.* fetch .*by hand"):
        download.fetch(without_facts(file), tmp_path)
    assert not (tmp_path / "clips.bin").exists() and len(site.asked) == 1
    (tmp_path / "clips.bin").write_bytes(PAGE)
    with pytest.raises(DownloadError, match=r"clips.bin: a web page, such as a login, and not the file"):
        download.fetch(without_facts(file), tmp_path)


@pytest.mark.parametrize("facts", [{"size": 100_000}, {"checksum": checksum("md5")}])
def test_the_right_bytes_pass_whatever_the_server_calls_them(site, file, tmp_path, facts):
    site.headers = {"Content-Type": "text/html"}
    assert download.fetch(File(file.name, file.url, **facts), tmp_path).read_bytes() == CONTENT


def test_a_web_page_in_place_of_a_file_with_a_checksum_fails_it(site, file, tmp_path):
    site.content, site.headers = PAGE, {"Content-Type": "text/html"}
    with pytest.raises(DownloadError, match=r"clips.bin.part: sha256 .*, not "):
        download.fetch(File(file.name, file.url, None, file.checksum), tmp_path)


def test_only_https_is_spoken_beyond_this_machine(site, server, file, tmp_path):
    with pytest.raises(DownloadError, match=r"clips.bin: http://example.org/clips.bin is not https"):
        download.fetch(File("clips.bin", "http://example.org/clips.bin"), tmp_path)
    with pytest.raises(DownloadError, match="is not https"):
        download.fetch(File("clips.bin", "file:///etc/hostname"), tmp_path)
    site.statuses, site.headers = [302], {"Location": f"http://127.0.0.1@localhost:{server.server_port}/"}
    with pytest.raises(DownloadError, match=r"http://127.0.0.1@localhost:\d+/ is not https"):
        download.fetch(file, tmp_path)
    assert len(site.asked) == 1


def test_a_redirect_is_followed(site, server, file, tmp_path):
    site.statuses, site.headers = [302], {"Location": f"http://127.0.0.1:{server.server_port}/elsewhere"}
    assert download.fetch(file, tmp_path).read_bytes() == CONTENT


def test_a_full_disk_is_noticed_before_anything_is_written(site, file, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(0, 0, 99_999)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DownloadError, match=r"clips.bin: .* GiB free, and .* are needed; free some, or set ATR_HOME"):
        download.fetch(file, tmp_path)
    assert visible(tmp_path) == []


def test_many_at_once_download_it_once(site, file, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: download.fetch(file, tmp_path, quiet=True), range(4)))
    assert paths == [tmp_path / "clips.bin"] * 4 and site.asked == [None]


# --- a file that is there


def test_a_file_put_there_by_hand_is_verified_and_used_offline(tmp_path):
    file = File("clips.bin", "https://nowhere.invalid/clips.bin", checksum=checksum("md5"))
    (tmp_path / "clips.bin").write_bytes(CONTENT)
    assert download.fetch(file, tmp_path) == tmp_path / "clips.bin"
    (tmp_path / "clips.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(DownloadError, match=r"clips.bin: md5 .*; delete clips.bin and try again, or fetch https://now"):
        download.fetch(file, tmp_path)
    assert (tmp_path / "clips.bin").read_bytes() == CONTENT[:-1]


def test_a_file_is_verified_once_while_it_and_what_is_published_stay_the_same(site, file, tmp_path, monkeypatch):
    verified = []
    verify = download.verify
    monkeypatch.setattr(download, "verify", lambda *arguments: [verified.append(arguments[0].name), verify(*arguments)])
    path = download.fetch(file, tmp_path)
    download.fetch(file, tmp_path)
    assert verified == ["clips.bin.part"]
    path.touch()
    download.fetch(file, tmp_path)
    download.fetch(file, tmp_path)
    assert verified == ["clips.bin.part", "clips.bin"]
    download.fetch(File(file.name, file.url, 100_000, checksum("md5")), tmp_path)
    assert verified == ["clips.bin.part", "clips.bin", "clips.bin"]


def test_a_file_in_a_folder_that_cannot_be_written_is_used(tmp_path, monkeypatch):
    def read_only(*arguments):
        raise PermissionError(13, "read-only")

    monkeypatch.setattr(download, "write_text", read_only)
    (tmp_path / "clips.bin").write_bytes(CONTENT)
    file = File("clips.bin", "https://nowhere.invalid/", 100_000)
    assert download.fetch(file, tmp_path).parent == tmp_path and [*tmp_path.iterdir()] == [tmp_path / "clips.bin"]


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_verify_compares_size_and_checksum(tmp_path, algorithm):
    path = tmp_path / "clips.bin"
    path.write_bytes(CONTENT)
    download.verify(path, File("clips.bin", "https://x/"))
    download.verify(path, File("clips.bin", "https://x/", 100_000, checksum(algorithm)))
    with pytest.raises(DownloadError, match="clips.bin: 100,000 bytes instead of the published 99,999"):
        download.verify(path, File("clips.bin", "https://x/", 99_999, checksum(algorithm)))
    with pytest.raises(DownloadError, match=f"{algorithm} .*, not {checksum(algorithm, b'')[len(algorithm) + 1 :]}"):
        download.verify(path, File("clips.bin", "https://x/", None, checksum(algorithm, b"")))


def test_a_blob_of_git_is_verified_by_the_hash_that_git_has_of_it(tmp_path):
    path = tmp_path / "clips.csv"
    path.write_bytes(b"what is up, doc?")
    download.verify(path, File(path.name, "https://x", None, "git:bd9dbf5aae1a3862dd1526723246b20206e5fc37"))
    with pytest.raises(DownloadError, match="git bd9dbf5aae1a3862dd1526723246b20206e5fc37, not 0000"):
        download.verify(path, File(path.name, "https://x", None, f"git:{'0' * 40}"))


def test_names_that_lead_elsewhere_and_checksums_of_no_known_kind_are_errors():
    with pytest.raises(ValueError, match=r"name: '../clips.bin' is not the name of a file"):
        File("../clips.bin", "https://x/")
    with pytest.raises(ValueError, match=r"clips.bin: checksum: 'MD5:00' is none"):
        File("clips.bin", "https://x/", None, "MD5:00")


def test_progress_is_shown_unless_quiet(site, file, tmp_path, capfd):
    download.fetch(file, tmp_path / "loud")
    shown = capfd.readouterr().err
    download.fetch(file, tmp_path / "quiet", quiet=True)
    assert "clips.bin: 100%" in shown and "97.7k/97.7k" in shown and capfd.readouterr().err == ""


# --- extract

MEMBERS = {"development/Dog.wav": CONTENT, "development/deep/Rain & wind.wav": b"rain", "captions.csv": b"file_name\n"}


def make_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)


def make_tar(path, members):
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def make_7z(path, members):
    with py7zr.SevenZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writef(io.BytesIO(content), "harmless")
            archive.header.files_info.files[-1]["filename"] = name  # the writer refuses names that lead out


MAKE = {".zip": make_zip, ".tar": make_tar, ".tar.gz": make_tar, ".tgz": make_tar, ".7z": make_7z}


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("suffix", MAKE)
def test_an_archive_becomes_a_folder_once(tmp_path, suffix, capfd):
    archive = tmp_path / f"clips{suffix}"
    MAKE[suffix](archive, MEMBERS)
    folder = download.extract(archive, tmp_path / "home" / "clips")
    assert folder == tmp_path / "home" / "clips" and tree(folder) == MEMBERS and visible(folder.parent) == ["clips"]
    assert "unpacking" in capfd.readouterr().err
    assert folder.stat().st_mode == folder.parent.stat().st_mode
    archive.unlink()
    assert download.extract(archive, folder, quiet=True) == folder and capfd.readouterr().err == ""


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".7z"])
@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..\\evil", "C:\\evil", "C:evil", "\\evil"])
def test_a_member_that_leads_out_of_the_folder_is_refused_and_nothing_is_unpacked(tmp_path, suffix, name):
    archive = tmp_path / "in" / f"clips{suffix}"
    archive.parent.mkdir()
    MAKE[suffix](archive, {"good": b"good", name: b"evil"})
    with pytest.raises(DownloadError, match=r"clips\S+: member .*evil' is a link or leads out of the folder"):
        download.extract(archive, tmp_path / "out" / "clips", quiet=True)
    there = {path.name for path in tmp_path.rglob("*") if path.suffix != ".lock"}
    assert there == {"in", "out", archive.name}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_tar_with_a_link_or_a_device_is_refused(tmp_path, kind):
    info = tarfile.TarInfo("link")
    info.type, info.linkname = kind, "../../secret"
    with tarfile.open(tmp_path / "clips.tar", "w") as archive:
        archive.addfile(info)
    with pytest.raises(DownloadError, match="member 'link' is a link"):
        download.extract(tmp_path / "clips.tar", tmp_path / "clips", quiet=True)
    assert visible(tmp_path) == ["clips.tar"]


def test_rights_that_a_tar_would_give_its_members_are_not_given(tmp_path):
    info = tarfile.TarInfo("tool")
    info.mode = 0o4777
    with tarfile.open(tmp_path / "clips.tar", "w") as archive:
        archive.addfile(info)
    folder = download.extract(tmp_path / "clips.tar", tmp_path / "clips", quiet=True)
    assert (folder / "tool").stat().st_mode & 0o7022 == 0


def test_a_zip_and_a_7z_with_a_link_are_refused(tmp_path):
    info = zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "clips.zip", "w") as archive:
        archive.writestr(info, "/etc/hostname")
    (tmp_path / "link").symlink_to("/etc/hostname")
    with py7zr.SevenZipFile(tmp_path / "clips.7z", "w") as archive:
        archive.write(tmp_path / "link", "link")
    for name in ("clips.zip", "clips.7z"):
        with pytest.raises(DownloadError, match="member 'link' is a link"):
            download.extract(tmp_path / name, tmp_path / "clips", quiet=True)
    assert not (tmp_path / "clips").exists()


@pytest.mark.parametrize("suffix", MAKE)
def test_an_archive_cut_short_leaves_nothing_under_the_final_name(tmp_path, suffix):
    archive = tmp_path / f"clips{suffix}"
    MAKE[suffix](archive, MEMBERS)
    archive.write_bytes(archive.read_bytes()[:60_000])
    with pytest.raises(DownloadError, match=rf"clips{suffix}: damaged.*delete it and fetch it again; nothing was unp"):
        download.extract(archive, tmp_path / "clips", quiet=True)
    assert visible(tmp_path) == [archive.name] and [path.name for path in tmp_path.glob(".*.tmp")] == []


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".tgz", ".7z"])
def test_a_wrong_byte_in_a_compressed_archive_is_noticed(tmp_path, suffix):
    archive = tmp_path / f"clips{suffix}"
    MAKE[suffix](archive, MEMBERS)
    content = bytearray(archive.read_bytes())
    content[50_000] ^= 255
    archive.write_bytes(content)
    with pytest.raises(DownloadError, match="damaged"):
        download.extract(archive, tmp_path / "clips", quiet=True)
    assert not (tmp_path / "clips").exists()


def test_an_encrypted_7z_is_an_error_that_says_so(tmp_path):
    with py7zr.SevenZipFile(tmp_path / "clips.7z", "w", password="secret") as archive:
        archive.writestr("rain", "rain.wav")
    with pytest.raises(DownloadError, match="clips.7z: damaged, or packed in a way that cannot be read .*assword"):
        download.extract(tmp_path / "clips.7z", tmp_path / "clips", quiet=True)


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    make_zip(tmp_path / "clips.zip", MEMBERS)
    (tmp_path / ".clips.abc.tmp" / "half").mkdir(parents=True)
    download.extract(tmp_path / "clips.zip", tmp_path / "clips", quiet=True)
    assert [path.name for path in tmp_path.glob(".*.tmp")] == []


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".7z"])
def test_an_archive_that_does_not_fit_the_disk_is_noticed_first(tmp_path, monkeypatch, suffix):
    MAKE[suffix](tmp_path / f"clips{suffix}", MEMBERS)
    usage = shutil.disk_usage(tmp_path)._replace(free=50_000)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DownloadError, match=f"clips{suffix}: .* GiB free"):
        download.extract(tmp_path / f"clips{suffix}", tmp_path / "clips", quiet=True)
    assert not (tmp_path / "clips").exists()


def test_an_archive_of_another_kind_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"clips.rar: not one of .zip, .tar, .tar.gz, .tgz, .7z"):
        download.extract(tmp_path / "clips.rar", tmp_path / "clips")


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
@pytest.mark.parametrize("damage", ["header", "first zero block", "no end", "one block", "behind"])
def test_a_tar_that_would_lose_members_silently_is_damaged(tmp_path, suffix, damage):
    packed = tmp_path / "plain.tar"
    make_tar(packed, {"a": b"a", "b": b"b"})
    content = bytearray(packed.read_bytes())
    if damage == "header":
        content[1024 + 150] ^= 255
    elif damage == "first zero block":
        content[1024:1536] = bytes(512)
    elif damage == "behind":
        content += packed.read_bytes()
    else:
        del content[2048 + 512 * (damage == "one block") :]
    packed.unlink()
    archive = tmp_path / f"clips{suffix}"
    archive.write_bytes(gzip.compress(content) if suffix == ".tar.gz" else content)
    with pytest.raises(DownloadError, match="damaged.*fetch it again; nothing was unpacked"):
        download.extract(archive, tmp_path / "clips", quiet=True)
    assert visible(tmp_path) == [archive.name]


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_two_members_of_one_name_are_refused(tmp_path, suffix):
    archive = tmp_path / f"clips{suffix}"
    MAKE[suffix](archive, {"a/b": b"one", "a//b": b"two"})
    with pytest.raises(DownloadError, match="2 files made 1 on disk: some share a name"):
        download.extract(archive, tmp_path / "clips", quiet=True)
    assert visible(tmp_path) == [archive.name]


def refused(archive, message):
    """Whether an archive is refused by name and leaves nothing."""
    with pytest.raises(DownloadError, match=f"{archive.name}: .*{message}.*; nothing was unpacked"):
        download.extract(archive, archive.parent / "clips", quiet=True)
    return visible(archive.parent) == [archive.name]


END = {"members": 10, "size of the list": 12, "place of the list": 16}  # bytes of a zip's end


@pytest.mark.parametrize(
    "field, change", [("members", 1), ("size of the list", -75), ("size of the list", 99_999), ("place of the list", 9)]
)
def test_a_zip_whose_list_of_members_is_damaged_is_an_error(tmp_path, field, change):
    archive = tmp_path / "clips.zip"
    MAKE[".zip"](archive, {"a": b"a", "b" * 29: b"b"})  # the last entry of the list has 75 bytes
    content = bytearray(archive.read_bytes())
    place, length = len(content) - 22 + END[field], 2 if field == "members" else 4
    number = int.from_bytes(content[place : place + length], "little") + change
    content[place : place + length] = number.to_bytes(length, "little")
    archive.write_bytes(content)
    assert refused(archive, "damaged")


def test_a_zip_whose_names_are_no_utf_8_is_an_error(tmp_path):
    archive = tmp_path / "clips.zip"
    make_zip(archive, {"Dög.wav": b"a"})
    archive.write_bytes(archive.read_bytes().replace("ö".encode(), b"o\xf6"))
    assert refused(archive, "damaged")


@pytest.mark.parametrize("zip64", [False, True])
@pytest.mark.parametrize("comment", [b"", b"PK\5 of the year", b"x" * 65535])
@pytest.mark.parametrize("before", [b"", b"#!/bin/sh\n"])
def test_zips_of_every_layout_are_read(tmp_path, monkeypatch, zip64, comment, before):
    if zip64:
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    with zipfile.ZipFile(tmp_path / "clips.zip", "w") as archive:
        for name, content in MEMBERS.items():
            archive.writestr(name, content)
        archive.comment = comment
    (tmp_path / "clips.zip").write_bytes(before + (tmp_path / "clips.zip").read_bytes())
    assert tree(download.extract(tmp_path / "clips.zip", tmp_path / "clips", quiet=True)) == MEMBERS


def test_a_zip_that_counts_its_members_modulo_65536_is_read(tmp_path, monkeypatch):
    make_zip(tmp_path / "clips.zip", MEMBERS)
    counted = zipfile._EndRecData
    monkeypatch.setattr(zipfile, "_EndRecData", lambda file: (end := counted(file)) and [*end[:4], 3 + 65536, *end[5:]])
    assert tree(download.extract(tmp_path / "clips.zip", tmp_path / "clips", quiet=True)) == MEMBERS


def test_a_folder_of_a_zip_that_holds_data_is_an_error(tmp_path):
    make_zip(tmp_path / "clips.zip", {"rain/": b"rain"})
    assert refused(tmp_path / "clips.zip", "folder 'rain/' holds data")


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".7z"])
@pytest.mark.parametrize("name", ["", "."])
def test_a_file_without_a_name_is_refused(tmp_path, suffix, name):
    MAKE[suffix](tmp_path / f"clips{suffix}", {"good": b"good", name: b"x"})
    assert refused(tmp_path / f"clips{suffix}", "")


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".7z"])
@pytest.mark.parametrize("names", ["a a/b", "a/b a"])
def test_a_name_that_is_a_file_and_a_folder_is_refused(tmp_path, suffix, names):
    MAKE[suffix](tmp_path / f"clips{suffix}", dict.fromkeys(names.split(), b"x"))
    assert refused(tmp_path / f"clips{suffix}", "damaged")


@pytest.mark.parametrize("kinds", [(tarfile.REGTYPE, tarfile.DIRTYPE), (tarfile.DIRTYPE, tarfile.REGTYPE)])
def test_an_empty_folder_and_a_file_of_one_name_are_refused(tmp_path, kinds):
    with tarfile.open(tmp_path / "clips.tar", "w") as archive:
        for kind in kinds:
            info = tarfile.TarInfo("rain")
            info.type = kind
            archive.addfile(info)
    assert refused(tmp_path / "clips.tar", "damaged")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE])
def test_a_tar_member_without_a_name_or_with_a_zero_in_it_is_refused(tmp_path, kind):
    info = tarfile.TarInfo("")
    info.type = kind
    with tarfile.open(tmp_path / "clips.tar", "w") as archive:
        archive.addfile(info)
    assert refused(tmp_path / "clips.tar", "member '' is a link or leads out of the folder, or is no name")
    info.name, info.pax_headers = "x", {"path": "a\0b"}
    with tarfile.open(tmp_path / "clips.tar", "w") as archive:
        archive.addfile(info)
    assert refused(tmp_path / "clips.tar", "or is no name")


def test_a_7z_with_one_name_twice_is_refused(tmp_path):
    with py7zr.SevenZipFile(tmp_path / "clips.7z", "w") as archive:
        for content in (b"one", b"two"):
            archive.writef(io.BytesIO(content), "rain")
    assert refused(tmp_path / "clips.7z", "two members share a name")


class Odd(BaseHTTPRequestHandler):
    """Sends without saying how much: b"x" at a time, `pause` seconds apart."""

    pause, bytes = 0.0, 2000
    head = False  # also of its headers

    def do_GET(self):
        with suppress(OSError):
            for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200 if self.head else b"":
                self.wfile.write(byte.to_bytes())
                time.sleep(self.pause)
            self.send_response(200)
            self.end_headers()
            for _ in range(self.bytes):
                self.wfile.write(b"x")
                time.sleep(self.pause)

    def log_message(self, *arguments):
        """Keep the tests' output clean."""


@pytest.mark.parametrize("pause, message", [(0.0, "sends more than 100 bytes"), (0.02, "less than 1,024 bytes a sec")])
def test_a_server_that_sends_too_much_or_too_slowly_is_given_up(tmp_path, monkeypatch, pause, message):
    monkeypatch.setattr(Odd, "pause", pause)
    monkeypatch.setattr(download, "SPAN", 0.2)
    with serving(Odd) as running:
        file = File("a.bin", f"http://127.0.0.1:{running.server_port}/a.bin", 100)
        with pytest.raises(DownloadError, match=f"a.bin: .*{message}"):
            download.fetch(file, tmp_path, quiet=True)
    assert visible(tmp_path) == ["a.bin.part"]


def test_headers_that_come_byte_by_byte_are_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(Odd, "head", True)
    monkeypatch.setattr(Odd, "pause", 0.05)
    monkeypatch.setattr(download, "TIMEOUT", (0.1, 0.1))
    monkeypatch.setattr(download, "PAUSES", (0,))
    begun = time.monotonic()
    with serving(Odd) as running:
        file = File("a.bin", f"http://127.0.0.1:{running.server_port}/a.bin", 100)
        with pytest.raises(DownloadError, match=r"a.bin: cannot be fetched .*no whole answer within 0.4 s"):
            download.fetch(file, tmp_path, quiet=True)
    assert time.monotonic() - begun < 3 and visible(tmp_path) == []


def test_a_body_of_unknown_size_stops_before_the_disk_is_full(tmp_path, monkeypatch):
    part, room = tmp_path / "a.bin.part", download.SPARE + 1000

    def usage(folder):
        return namedtuple("usage", "free")(room - (part.stat().st_size if part.exists() else 0))

    monkeypatch.setattr(Odd, "bytes", 1 << 20)
    monkeypatch.setattr(download, "CHUNK", 100)
    monkeypatch.setattr(download.shutil, "disk_usage", usage)
    with serving(Odd) as running:
        with pytest.raises(DownloadError, match=r"a.bin: .* GiB free, and .* are needed; free some, or set ATR_HOME"):
            download.fetch(File("a.bin", f"http://127.0.0.1:{running.server_port}/a.bin"), tmp_path, quiet=True)
    assert 1000 < part.stat().st_size < 100_000


def test_a_body_that_ends_before_the_published_size_is_asked_for_again(tmp_path, monkeypatch):
    monkeypatch.setattr(Odd, "bytes", 50)
    monkeypatch.setattr(download, "PAUSES", (0, 0))
    with serving(Odd) as running:
        file = File("a.bin", f"http://127.0.0.1:{running.server_port}/a.bin", 100, checksum("md5", b"x" * 100))
        with pytest.raises(DownloadError, match="ended early.*try again, what has arrived is kept") as caught:
            download.fetch(file, tmp_path, quiet=True)
        assert "delete" not in str(caught.value)
        monkeypatch.setattr(Odd, "bytes", 100)
        assert download.fetch(file, tmp_path, quiet=True).read_bytes() == b"x" * 100
