"""What is computed once and kept: packed waveforms, features, token states, under content hashes.

An entry is a folder `<home>/cache/<kind>/<key>/`. It is built under a temporary name and renamed when complete, behind
a lock file, so a kill, a full disk or a second process leaves either the whole entry or none. Its `sums.json` has the
size of each file and the SHA-256 of each BLOCK of it, by which a damaged entry is known and made anew.
"""

import errno
import io
import json
import os
import random
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import IO

from atr.system import hashes
from atr.system.atomic import beside, make_folder, write_text, writing
from atr.system.places import home

SUMS = "sums.json"
BLOCK = 4 << 20  # bytes
CHECK_BYTES = 64 << 20  # of an entry, read when it is opened: all of a smaller one, of a larger one a sample


def digests(file: IO[bytes]) -> list[str]:
    """SHA-256 of each BLOCK of a file."""
    return [hashes.sha256(block) for block in iter(partial(file.read, BLOCK), b"")]


def write_sums(folder: Path, names: Iterable[str], contents: Mapping[str, bytes] | None = None) -> None:
    """Write `sums.json` of the files `names` of a folder, and of `contents` of files that are still to be written."""
    sums = {}
    for name in names:
        with open(folder / name, "rb") as file:
            sums[name] = (os.fstat(file.fileno()).st_size, digests(file))
    for name, content in (contents or {}).items():
        sums[name] = (len(content), digests(io.BytesIO(content)))
    write_text(folder / SUMS, json.dumps(sums))


def damage(folder: Path, name: str | None = None, whole: bool = False) -> str:
    """What is wrong with the files of a folder, or one of them, by its `sums.json`; "" if nothing is, or it has none.

    Of more than CHECK_BYTES bytes a sample of blocks is read, unless `whole`.
    """
    try:
        sums = json.loads((folder / SUMS).read_text(encoding="utf-8"))
        if name is not None:
            if name not in sums:
                return f"{SUMS} does not list {name}" if (folder / name).exists() else ""
            sums = {name: sums[name]}
        for one, (size, _) in sums.items():
            if (there := (folder / one).stat().st_size) != size:
                return f"{one} has {there:,} bytes instead of {size:,}"
        blocks = [(one, number) for one, (_, entry) in sums.items() for number in range(len(entry))]
        if not whole and sum(size for size, _ in sums.values()) > CHECK_BYTES:
            blocks = random.SystemRandom().sample(blocks, CHECK_BYTES // BLOCK)
        for one, number in blocks:
            with open(folder / one, "rb") as file:
                file.seek(number * BLOCK)
                if hashes.sha256(file.read(BLOCK)) != sums[one][1][number]:
                    return f"the bytes of {one} have changed"
    except FileNotFoundError as error:
        gone = Path(error.filename).name
        return "" if gone == SUMS and folder.is_dir() else f"{gone} is missing"
    except (ValueError, TypeError, LookupError, AttributeError):
        return f"{SUMS} cannot be read"
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return f"{error.filename or folder}: {error.strerror}"
    return ""


_intact: dict[Path, list] = {}  # entries that this process has checked, with the state that they were in


def _damage(path: Path) -> str:
    """`damage` of an entry, looked for once while its files stay as they are."""
    try:
        files = [(file.name, state.st_size, state.st_ctime_ns) for file in path.iterdir() for state in [file.stat()]]
    except FileNotFoundError:
        return "gone"
    if _intact.get(path) == files:
        return ""
    problem = damage(path)
    newest = max((changed for *_, changed in files), default=0)
    if not problem and time.time_ns() - newest > 1e9:  # clocks of file systems are coarse
        _intact[path] = files
    return problem


def discard(path: Path) -> None:
    """Remove an entry; nobody sees half of it."""
    aside = beside(path)
    with writing(path):
        os.rename(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def cached_folder(kind: str, key: str, build: Callable[[Path], object]) -> Path:
    """Folder of the entry `kind`/`key`; `build(folder)` fills it the first time, and again, with a warning, where it is
    damaged. Raises WriteError.
    """
    path = home() / "cache" / kind / key

    def usable() -> bool:
        if path.exists() and (problem := _damage(path)):
            warnings.warn(f"{path}: damaged ({problem}); made anew", stacklevel=4)  # of whoever called `cached_folder`
            discard(path)
        return path.exists()

    def write(folder: Path) -> None:
        build(folder)
        files = (file for file in folder.rglob("*") if file.is_file())
        write_sums(folder, sorted(file.relative_to(folder).as_posix() for file in files))

    if not path.exists() or _damage(path):
        make_folder(path, write, usable)
    return path
