"""Files and folders that are whole or not there, whatever stops the process that writes them."""

import csv
import errno
import json
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from safetensors import SafetensorError

from atr.system.hashes import content_key

if TYPE_CHECKING:  # it takes a second to import
    import pandas as pd


DEVICES = r"c(?=on\b)|p(?=rn\b)|a(?=ux\b)|n(?=ul\b)|c(?=om\d)|l(?=pt\d)"  # Windows has them whatever their ending
UNSAFE_NAME = re.compile(rf"""[%/\\:*?"<>|\x00-\x1f\x7f]|^\.|[. ]$|^(?i:{DEVICES})""")
LONGEST = 200  # bytes of a name, which leaves room for what a temporary one adds; file systems take 255
DAY = 86_400.0  # seconds


AGAIN = "run the same command again; nothing is lost"
ELSEWHERE = "make it writable, or set ATR_HOME or ATR_RESULTS to another folder"
MENDS = {
    errno.ENOSPC: f"free some space and {AGAIN}",
    errno.EDQUOT: f"free some space or have your quota raised, and {AGAIN}",
    errno.EFBIG: f"raise the limit of a file's size (ulimit -f) or use another file system, and {AGAIN}",
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), ELSEWHERE),
    errno.ENAMETOOLONG: "choose a shorter name",
}
WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # come of writing alone, the others of reading too


class WriteError(OSError):
    """Something cannot be written: errno says why, the message also where and what to do."""

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def writing(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Whatever keeps `path` from being written raises WriteError.

    temporary: what is filled meanwhile; written to once more where a library does not tell why it failed.
    """
    try:
        yield
    except WriteError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        number = _number(error, temporary)
        file = Path(getattr(error, "filename", None) or path)
        near = file.is_relative_to(path.parent) or path.is_relative_to(file)
        if number not in MENDS or not (near or number in WRITING):
            raise
        free = ""
        if number == errno.ENOSPC:
            there = next(one for one in path.absolute().parents if one.is_dir())
            free = f" ({shutil.disk_usage(there).free / 1e6:,.1f} MB free)"
        message = f"{path}: cannot be written: {os.strerror(number)}{free}; {MENDS[number]}"
        raise WriteError(number, message) from error


def _number(error: Exception, temporary: Path | None) -> int | None:
    """The errno of an error, where only its text has it, or none, too."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if match := re.search(r"(?:os error|Errno) (\d+)", str(error)):  # safetensors; shutil.copytree
        return int(match[1])
    files = [temporary] if temporary and temporary.is_file() else list(temporary.rglob("*")) if temporary else []
    for file in sorted((file for file in files if file.is_file()), key=lambda file: -file.stat().st_size)[:1]:
        try:
            with open(file, "ab") as target:
                target.write(bytes(1 << 20))
                os.fsync(target.fileno())
        except OSError as cause:
            return cause.errno
    return None


@cache
def _machine() -> str:
    """Names the machine, and the container, within which a process has its number alone."""
    with suppress(OSError):
        return content_key(platform.node(), os.readlink("/proc/self/ns/pid"))[:8]
    return content_key(platform.node())[:8]


def beside(path: Path) -> Path:
    """A fresh hidden name beside `path`, which says whose it is: `sweep` removes what its process leaves behind."""
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def sweep(folder: Path, locked: str | None = None) -> None:
    """Remove files and folders in `folder` under names of `beside` whose process is dead: where another machine's are
    concerned, those that have not changed for a DAY. All those of `locked`, whose lock the caller holds.
    """
    for path in folder.iterdir():
        if locked is not None and path.name.startswith(f".{locked}.") and path.name.endswith(".tmp"):
            _remove(path)
            continue
        if not (name := re.fullmatch(r"\..+\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.tmp", path.name)):
            continue
        with suppress(OSError):
            parts = [path, *path.rglob("*")]
            dead = name[1] == _machine() and not _alive(int(name[2]))
            if dead or time.time() - DAY > max(part.lstat().st_mtime for part in parts):
                _remove(path)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, then rename it to `path`; or WriteError."""
    temporary = beside(path)
    try:
        with writing(path, temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path.parent)
            open(temporary, "xb").close()  # with the permissions that a new file has here
            write(temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str, newline: str | None = None) -> None:
    """A text into a file, in UTF-8, which is there as a whole or not at all."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline=newline))


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file's object. ValueError: it holds something else, or a number that JSON does not know."""

    def refuse(constant: str) -> None:
        raise ValueError(f"holds {constant}")

    content = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    if not isinstance(content, dict):
        raise ValueError("not an object")
    return content


def make_folder(target: Path, write: Callable[[Path], object], usable: Callable[[], bool] | None = None) -> None:
    """Let `write` fill a new folder that becomes `target`, one process at a time; nothing where it is `usable` by then.

    usable: that it is there, unless given; one that says no has removed it. Raises WriteError.
    """
    temporary = beside(target)
    try:
        with writing(target, temporary):
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(target.with_name(f".{target.name}.lock")):
                if not (usable or target.exists)():
                    sweep(target.parent, target.name)
                    temporary.mkdir()
                    write(temporary)
                    os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a new folder, then put it in the place of `target`. Raises WriteError.

    What was there lies beside it, as `.<name>.before`, while the two change places: the next call after a kill there
    brings it back.
    """
    temporary, before = beside(target), target.with_name(f".{target.name}.before")

    def restore() -> None:
        if before.exists() and not target.exists():
            os.rename(before, target)
        shutil.rmtree(before, ignore_errors=True)

    try:
        with writing(target, temporary):
            (target.parent / ".locks").mkdir(parents=True, exist_ok=True)
            with FileLock(target.parent / ".locks" / target.name):
                restore()
                sweep(target.parent)
                try:
                    temporary.mkdir()
                    write(temporary)
                    if target.exists():
                        os.rename(target, before)
                    os.rename(temporary, target)
                finally:
                    restore()
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def file_name(text: str, ending: str = "") -> str:
    """A name for a file of its own for each text, on every system: characters that one of them reserves stand as %XX,
    as in addresses, and a long text ends in a hash. Capitals and composed letters are left to the caller to tell apart.
    """
    name = UNSAFE_NAME.sub(lambda match: f"%{ord(match[0]):02X}", text)
    if len(name.encode() + ending.encode()) > LONGEST:
        name = f"{name.encode()[: LONGEST - 40].decode(errors='ignore')}%{content_key(text)[:16]}"
    return name + ending


def as_csv(table: "pd.DataFrame") -> str:
    """A table, without its index, as CSV that reads back cell for cell."""
    text = table.to_csv(index=False, lineterminator="\n")
    # csv before Python 3.11.9 leaves a cell with a lone \r without quotes, and readers end the line there.
    return table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC) if "\r" in text else text


def write_csv(table: "pd.DataFrame", path: Path) -> None:
    """`as_csv` into a file, which is there as a whole or not at all."""
    write_text(path, as_csv(table), newline="")
