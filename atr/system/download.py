"""Fetch published files: resumed after an interruption, verified, unpacked without trusting the archive."""

import gzip
import hashlib
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import threading
import time
import zipfile
import zlib
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Self
from urllib.parse import urlsplit

import py7zr
import requests
import urllib3
from filelock import FileLock
from py7zr.callbacks import ExtractCallback
from tqdm.auto import tqdm

from atr.system.atomic import make_folder, write_text, writing

PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before each further attempt while nothing new arrives
BUSY = (408, 429, 500, 502, 503, 504)  # answers that may be others a moment later
TIMEOUT = (10, 60)  # seconds to connect, seconds of silence
CHUNK = 1 << 18
SLOWEST = 1 << 10  # bytes a second, over SPAN
SPAN = 60.0  # seconds
RESUME_NOTE = "what has arrived is kept"
SPARE = 1 << 26  # bytes of the disk that a file of unknown size leaves free


class DownloadError(ValueError):
    """A file cannot be fetched, is not the published one, or cannot be unpacked; the message says what to do."""


@dataclass(frozen=True)
class File:
    """A published file under the name it has on disk.

    size: bytes; checksum: "md5:…", "sha256:…" or "git:…" (of a blob) in hexadecimal; None where none is published.
    """

    name: str
    url: str
    size: int | None = None
    checksum: str | None = None

    def __post_init__(self) -> None:
        if Path(self.name).name != self.name:
            raise ValueError(f"name: {self.name!r} is not the name of a file in a folder")
        if self.checksum is not None and not re.fullmatch(
            "md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}|git:[0-9a-f]{40}", self.checksum
        ):
            raise ValueError(f"{self.name}: checksum: {self.checksum!r} is none of 'md5:…', 'sha256:…' and 'git:…'")


def fetch(file: File, folder: Path, quiet: bool = False) -> Path:
    """`folder/file.name`, downloaded if it is not there, and verified once while its size and time stay the same.

    An interrupted download leaves `<name>.part`, which the next call continues if the server can and still has the
    same file. Raises DownloadError; a file that fails its check is kept, as `<name>.part` or as it was put there.
    """
    path = Path(folder) / file.name
    if not path.exists():
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_name(f".{path.name}.lock")):
                if not path.exists():
                    part = path.with_name(f"{path.name}.part")
                    _download(file, part, quiet)
                    verify(part, file, quiet)
                    os.replace(part, path)
                    _validator_file(part).unlink(missing_ok=True)
                    _note(path, file)
    if not _has_note(path, file):
        verify(path, file, quiet)
        _note(path, file)
    return path


def verify(path: Path, file: File, quiet: bool = False) -> None:
    """Raise DownloadError unless the file at `path` has the size and the checksum of `file`; of none, a web page."""
    size = path.stat().st_size
    with open(path, "rb") as source:
        beginning = source.read(256).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if _unknown(file) and beginning.startswith((b"<!doctype html", b"<html")):
        raise DownloadError(f"{path}: a web page, such as a login, and not the file; {_mend(file, path)}")
    if file.size is not None and size != file.size:
        raise DownloadError(f"{path}: {size:,} bytes instead of the published {file.size:,}; {_mend(file, path)}")
    if file.checksum is None:
        return
    algorithm, expected = file.checksum.split(":")
    digest = hashlib.new({"git": "sha1"}.get(algorithm, algorithm), usedforsecurity=False)
    if algorithm == "git":
        digest.update(f"blob {size}\0".encode())
    with open(path, "rb") as source, _bar(f"{file.name}: verifying", size, quiet or size < 1 << 28) as bar:
        while chunk := source.read(1 << 22):
            digest.update(chunk)
            bar.update(len(chunk))
    if digest.hexdigest() != expected:
        raise DownloadError(f"{path}: {algorithm} {digest.hexdigest()}, not {expected}; {_mend(file, path)}")


def _unknown(file: File) -> bool:
    """Whether nothing is published that would tell the file from a web page."""
    return file.size is None and file.checksum is None


def _mend(file: File, path: Path) -> str:
    return f"delete {path.name} and try again, or fetch {file.url} by hand and put it at {path.parent / file.name}"


def _bar(title: str, total: int | None, quiet: bool) -> tqdm:
    return tqdm(total=total, desc=title, unit="B", unit_scale=True, unit_divisor=1024, disable=quiet)


def _note_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.verified")


def _state(path: Path, file: File) -> str:
    return f"{path.stat().st_size} {path.stat().st_mtime_ns} {file.size} {file.checksum}"


def _has_note(path: Path, file: File) -> bool:
    with suppress(OSError):
        return _note_file(path).read_bytes() == _state(path, file).encode()
    return False


def _note(path: Path, file: File) -> None:
    with suppress(OSError):  # a folder that can only be read: verified again by the next process
        write_text(_note_file(path), _state(path, file))


class _Member(tarfile.TarInfo):
    """tarfile takes a damaged header, and a file that just ends, for the end of the archive; here they are errors."""

    @classmethod
    def fromtarfile(cls, source: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(source)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # a block of zeros
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"member at byte {source.offset:,}: {error}") from error


class _Session(requests.Session):
    """Speaks https, and http to this machine; redirects ask here too."""

    def get_adapter(self, url: str) -> requests.adapters.BaseAdapter:
        parts = urlsplit(url)
        if parts.scheme != "https" and (parts.scheme, parts.hostname) not in (("http", "127.0.0.1"), ("http", "::1")):
            raise requests.exceptions.InvalidSchema(f"{url} is not https")
        return super().get_adapter(url)


def _download(file: File, part: Path, quiet: bool) -> None:
    """Fill `part` with the whole file, beginning where an earlier attempt stopped."""
    farthest, failures = _size(part), 0
    if file.size is not None and farthest >= file.size:
        return
    with _Session() as session, _bar(file.name, file.size, quiet) as bar:
        while True:
            try:
                if _attempt(session, file, part, bar):
                    return
                reason = "the connection ended early"
            except requests.exceptions.InvalidSchema as error:
                raise _failure(file, part, str(error)) from error
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                reason = str(error)
            if _size(part) > farthest:
                farthest, failures = _size(part), 0
            if failures == len(PAUSES):
                raise _failure(
                    file, part, f"cannot be fetched from {file.url} ({reason})", f"try again, {RESUME_NOTE}, or "
                )
            time.sleep(PAUSES[failures])
            failures += 1


def _attempt(session: requests.Session, file: File, part: Path, bar: tqdm) -> bool:
    """One request: append to `part` what arrives. True when the file is whole, False when to ask again."""
    have = _size(part)
    validator = _validator_file(part).read_text() if _validator_file(part).exists() else ""
    headers = {"Accept-Encoding": "identity"}
    if have and validator:  # without one nothing says that the rest belongs to the same file
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    with _answer(session, file.url, headers) as response:
        span = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+)", response.headers.get("Content-Range", ""))
        if response.status_code in BUSY:
            raise requests.HTTPError(f"HTTP {response.status_code}")
        if response.status_code == 416 and span and int(span[2]) == have:
            return True
        if response.status_code in (206, 416):
            if not span or span[1] != str(have) or _validator(response) not in ("", validator):
                _validator_file(part).unlink(missing_ok=True)  # another file than the one begun: from its start then
                return False
            total: int | None = int(span[2])
        elif response.status_code == 200:
            length = response.headers.get("Content-Length", "")
            have, total = 0, int(length) if length.isdecimal() else None
        else:
            raise _failure(file, part, f"HTTP {response.status_code} for {file.url}")
        kind = response.headers.get("Content-Type", "").lower()
        if _unknown(file) and ("text/html" in kind or "application/xhtml" in kind):
            problem = f"{file.url} answers with a web page, such as a login, and not with the file"
            raise _failure(file, part, problem)
        if file.size is not None and total not in (None, file.size):
            problem = f"{file.url} offers {total:,} bytes instead of the published {file.size:,}"
            raise _failure(file, part, problem, "try again later, or ")
        total = file.size if total is None else total
        _check_room(part.parent, (total or 0) - _size(part), file.name)
        if not have:
            part.write_bytes(b"")  # before the validator: bytes of an earlier file never meet a later one's
            _validator_file(part).write_text(_validator(response))
        bar.reset(total)
        bar.n = bar.initial = have
        _receive(response, file, part, have, total, bar)
    return total is None or _size(part) >= total


def _receive(response: requests.Response, file: File, part: Path, have: int, total: int | None, bar: tqdm) -> None:
    """Append the body of an answer to `part`, which has `have` of `total` bytes; DownloadError if it cannot be that."""
    begun, start, came = time.monotonic(), have, have
    with open(part, "ab") as output:
        try:
            while chunk := response.raw.read1(CHUNK, decode_content=False):
                output.write(chunk)
                came += len(chunk)
                if total is None:  # a body that may have no end
                    _check_room(part.parent, SPARE, file.name)
                elif came > total:
                    output.truncate(have)
                    raise _failure(file, part, f"{file.url} sends more than {total:,} bytes")
                if time.monotonic() - begun > SPAN:
                    if came - start < SLOWEST * SPAN:
                        problem = f"{file.url} sends less than {SLOWEST:,} bytes a second"
                        raise _failure(file, part, problem, f"try again later, {RESUME_NOTE}, or ")
                    begun, start = time.monotonic(), came
                bar.update(len(chunk))
        finally:
            output.flush()
            os.fsync(output.fileno())


def _answer(session: requests.Session, url: str, headers: dict[str, str]) -> requests.Response:
    """The answer as soon as its headers are whole: requests limits each read of them, and not their sum."""
    answer: Future[requests.Response] = Future()

    def ask() -> None:
        try:
            answer.set_result(session.get(url, headers=headers, stream=True, timeout=TIMEOUT))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.result(2 * sum(TIMEOUT))
    except TimeoutError:
        raise requests.Timeout(f"no whole answer within {2 * sum(TIMEOUT)} s") from None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _validator_file(part: Path) -> Path:
    return part.with_name(f".{part.name}.validator")


def _validator(response: requests.Response) -> str:
    """What names this content in If-Range: a strong ETag, else the time of change, else nothing."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _failure(file: File, part: Path, problem: str, mend: str = "") -> DownloadError:
    return DownloadError(f"{file.name}: {problem}; {mend}fetch it by hand and put it at {part.parent / file.name}")


def _check_room(folder: Path, needed: int, name: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{name}: {folder} has {free / 2**30:.1f} GiB free, and {needed / 2**30:.1f} GiB more are needed; "
            "free some, or set ATR_HOME to a folder on a larger disk"
        )


def extract(archive: Path, folder: Path, quiet: bool = False) -> Path:
    """Unpack a .zip, .tar, .tar.gz, .tgz or .7z archive as `folder`, which appears only when complete.

    Returns `folder`, at once if it exists. Raises DownloadError for a damaged archive and for a member that is a link
    or leads out of the folder.
    """
    archive, folder = Path(archive), Path(folder)
    unpack = next((unpack for suffix, unpack in UNPACK.items() if archive.name.lower().endswith(suffix)), None)
    if unpack is None:
        raise ValueError(f"{archive}: not one of {', '.join(UNPACK)}")

    def write(temporary: Path) -> None:
        try:
            files = unpack(archive, temporary, quiet)
        except _DAMAGE as error:
            raise DownloadError(
                f"{archive}: damaged, or packed in a way that cannot be read ({error}); delete it and fetch it again; "
                "nothing was unpacked"
            ) from error
        there = sum(path.is_file() for path in temporary.rglob("*"))
        if there != files:
            raise DownloadError(
                f"{archive}: {files:,} files made {there:,} on disk: some share a name, or differ only in small and "
                "capital letters, which this disk does not tell apart; nothing was unpacked"
            )

    if not folder.exists():
        make_folder(folder, write)
    return folder


_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    py7zr.exceptions.ArchiveError,
    py7zr.exceptions.PasswordRequired,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    gzip.BadGzipFile,
    struct.error,
    IndexError,
    OverflowError,
    RuntimeError,  # zipfile: encrypted, or packed in a way it does not know
    UnicodeDecodeError,  # a name
    FileExistsError,  # a name that is a file's and a folder's
    IsADirectoryError,
    NotADirectoryError,
)


def _check_member(archive: Path, name: str, plain: bool) -> None:
    """`plain`: the member is a file or a folder. Windows' rules for names contain the others': both slashes, drives."""
    path = PureWindowsPath(name)
    if not plain or path.anchor or ".." in path.parts or not name or "\0" in name:
        raise DownloadError(
            f"{archive}: member {name!r} is a link or leads out of the folder, or is no name: this is "
            "not an archive to trust; nothing was unpacked"
        )


def _unpack_zip(archive: Path, into: Path, quiet: bool) -> int:
    with zipfile.ZipFile(archive) as source, open(archive, "rb") as file:
        members = source.infolist()
        listed = zipfile._EndRecData(file)[4]  # type: ignore[attr-defined]  # zipfile reads what it finds, be it fewer
        if (listed - len(members)) % (1 << 16):  # some programs count no further
            raise zipfile.BadZipFile(f"{len(members):,} members found of {listed:,}")
        if not all(0 <= member.header_offset < archive.stat().st_size for member in members):
            raise zipfile.BadZipFile("its list of members points outside the file")
        for member in members:
            mode = member.external_attr >> 16
            _check_member(archive, member.filename, stat.S_IFMT(mode) in (0, stat.S_IFREG, stat.S_IFDIR))
            if member.is_dir() and member.file_size:
                raise zipfile.BadZipFile(f"folder {member.filename!r} holds data")
        total = sum(member.file_size for member in members)
        _check_room(into, total, archive.name)
        with _bar(f"{archive.name}: unpacking", total, quiet) as bar:
            for member in members:
                source.extract(member, into)
                bar.update(member.file_size)
    return sum(not member.is_dir() for member in members)


def _unpack_tar(archive: Path, into: Path, quiet: bool) -> int:
    files = 0
    opened = open(archive, "rb") if archive.suffix == ".tar" else gzip.open(archive)
    with opened as stream, tarfile.open(fileobj=stream, mode="r:", tarinfo=_Member) as source:
        with _bar(f"{archive.name}: unpacking", None, quiet) as bar:
            for member in source:
                _check_member(archive, member.name, member.isfile() or member.isdir())
                _check_room(into, member.size, archive.name)
                if member.isdir() and (into / member.name).is_file():  # tarfile would leave the folder out
                    raise tarfile.ReadError(f"member {member.name!r} is a file and a folder")
                source.extract(member, into, filter="data")
                bar.update(member.size)
                files += member.isfile()
        rest = 0  # gzip's checksum stands behind the last member, and tar ends with two blocks of zeros
        while chunk := stream.read(CHUNK):
            rest += len(chunk)
            if chunk.strip(b"\0"):
                raise tarfile.ReadError("more stands behind its end")
        if rest < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("it does not end as tar does: cut short")
        return files


def _unpack_7z(archive: Path, into: Path, quiet: bool) -> int:
    with py7zr.SevenZipFile(archive) as source:
        members = source.list()
        if len({member.filename for member in members}) < len(members):  # py7zr would rename one
            raise py7zr.exceptions.Bad7zFile("two members share a name")
        for member in members:
            _check_member(archive, member.filename, member.is_file or member.is_directory)
        total = sum(member.uncompressed for member in members)
        _check_room(into, total, archive.name)
        with _bar(f"{archive.name}: unpacking", total, quiet) as bar:
            source.extractall(into, callback=_Update(bar))
    return sum(not member.is_directory for member in members)


class _Update(ExtractCallback):
    """Tells a bar how many bytes py7zr has unpacked."""

    def __init__(self, bar: tqdm) -> None:
        self.bar = bar

    def report_update(self, decompressed_bytes: str) -> None:
        self.bar.update(int(decompressed_bytes))

    def report_start_preparation(self) -> None: ...
    def report_start(self, processing_file_path: str, processing_bytes: str) -> None: ...
    def report_end(self, processing_file_path: str, wrote_bytes: str) -> None: ...
    def report_warning(self, message: str) -> None: ...
    def report_postprocess(self) -> None: ...


UNPACK = {
    ".zip": _unpack_zip,
    ".tar": _unpack_tar,
    ".tar.gz": _unpack_tar,
    ".tgz": _unpack_tar,
    ".7z": _unpack_7z,
}
