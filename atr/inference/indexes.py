"""The indexes that are here: where they lie, what their `index.json` says, and whether their files are whole."""

import json
import os
import shlex
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atr.inference import neighbours, shards
from atr.inference.lookup import PREFIX
from atr.inference.shards import DamageError, Shard
from atr.system import hashes, places

INDEX_VERSION = 2  # raised when the same files would be kept or embedded otherwise
DESCRIPTION = "index.json"


def resolve(folder: str | os.PathLike[str]) -> Path:
    """A folder of sounds by its whole path, which names its index."""
    return Path(folder).expanduser().resolve()


def home() -> Path:
    """Where all indexes lie."""
    return places.home() / "indexes"


def descriptions(folder: str | os.PathLike[str] | None = None) -> list[dict[str, Any]]:
    """What `index.json` of each index says, the one that was updated last first; of one folder if it is given. Warns of
    those that are damaged.

    version, folder, segment, name and fingerprint of the embedder, model, shards that are searched, complete: whether
    no update was interrupted, time: when it was written.
    """
    rows = []
    for file in home().glob(f"*/{DESCRIPTION}"):
        try:
            content = read(file)
            rows.append((file.stat().st_mtime_ns, content))
        except DamageError as error:
            warnings.warn(f"{error}; {mend()}", stacklevel=2)
        except FileNotFoundError:  # removed meanwhile
            pass
    rows.sort(key=lambda one: one[0], reverse=True)
    return [one for _, one in rows if folder is None or one["folder"] == str(resolve(folder))]


def verify(path: str | os.PathLike[str]) -> list[str]:
    """Read all files of an index, `<home>/indexes/<key>/`, or of all indexes in a folder: what is damaged, a sentence
    each, with the file and the mend. Indexes of other versions of atr are left out.
    """
    path, content, problems = Path(path), dict[str, Any](), list[str]()
    if not path.is_dir():
        return problems
    by_name = {shard.name: shard for shard in shards.shards_in(path)}
    try:
        content = read(path / DESCRIPTION)
    except FileNotFoundError as error:
        if not by_name:
            return [problem for below in sorted(path.iterdir()) if below.is_dir() for problem in verify(below)]
        problems.append(f"{path / DESCRIPTION}: {error.strerror}; {mend()}")
    except DamageError as error:
        problems.append(f"{error}; {mend()}")
    if content and content["version"] != INDEX_VERSION:
        return problems
    for shard in (by_name | {shard.name: shard for shard in shards_of(path, content)}).values():
        try:
            shard.check()
        except DamageError as error:
            problems.append(f"{error}; {mend(content.get('folder'))}")
    for file in path.glob(f"{PREFIX}*"):
        try:
            neighbours.check(file)
        except (ValueError, OSError) as error:
            problems.append(f"{DamageError(file, error)}; {mend(content.get('folder'))}")
    replaced = bool(problems and content) and read(path / DESCRIPTION) != content
    return verify(path) if replaced else problems


def read(file: Path) -> dict[str, Any]:
    """What an `index.json` says, of an older version's one at least version and folder. FileNotFoundError,
    DamageError.
    """
    try:
        content = json.loads(file.read_bytes())
        checksum = content.pop("checksum", None)
        older = checksum is None and content["version"] == 1 and isinstance(content["folder"], str)
        if not older and checksum != hashes.content_key(content):
            raise ValueError("other content than was written")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamageError(file, error.strerror) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamageError(file, error) from error
    return content


def shards_of(path: Path, content: Mapping[str, Any]) -> list[Shard]:
    """The shards that what an `index.json` says names."""
    return [Shard(path, name) for name in content.get("shards", [])]


def mend(folder: str | os.PathLike[str] | None = None) -> str:
    """What to do about an index that cannot be used, in words."""
    words = "<its folder>" if folder is None else shlex.quote(str(folder))
    return f"run again, with the same options: atr index {words}"
