"""Official checkpoints of the audio encoders: where they are published, and how to read one safely."""

import io
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._weights_only_unpickler import get_globals_in_pkl

from atr.system import download
from atr.system.places import home


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint: its name in prose, the audio encoder of `atr.encoders.build` that it is for, its file.

    licence is that of the weights; source is the page that publishes them.
    """

    name: str
    encoder: str
    file: download.File
    licence: str
    source: str


REGISTRY: dict[str, Checkpoint] = {}  # by audio encoder, from the modules that have them


def _add(checkpoint: Checkpoint) -> None:
    holder = REGISTRY.setdefault(checkpoint.encoder, checkpoint)
    if holder != checkpoint:
        raise ValueError(f"encoder {checkpoint.encoder!r} has a checkpoint, {holder.file.name}; choose another name")


def zenodo(name: str, encoder: str, page: str, licence: str, file_name: str, size: int | None, md5: str) -> None:
    """Register a checkpoint that a record of Zenodo publishes; page: of the record; size in bytes, if it is known.
    ValueError: its encoder has another one.
    """
    url = f"{page}/files/{file_name.replace('=', '%3D')}?download=1"
    _add(Checkpoint(name, encoder, download.File(file_name, url, size, f"md5:{md5}"), licence, page))


def github(
    name: str,
    encoder: str,
    repository: str,
    release: str,
    file_name: str,
    licence: str,
    size: int | None = None,
    checksum: str | None = None,
) -> None:
    """Register a checkpoint that a release on GitHub publishes, which states no checksums. ValueError: its encoder has
    another one.
    """
    page = f"https://github.com/{repository}/releases"
    file = download.File(file_name, f"{page}/download/{release}/{file_name}", size, checksum)
    _add(Checkpoint(name, encoder, file, licence, f"{page}/tag/{release}"))


def fetch(name: str, quiet: bool = False) -> Path:
    """`home()/checkpoints/<published file name>` of the audio encoder `name`, downloaded if it is not there.

    A file put there by hand is verified and used, offline. Raises ValueError for an encoder without a published
    checkpoint and DownloadError as `atr.system.download.fetch` does.
    """
    if name not in REGISTRY:
        raise ValueError(f"{name}: has no published checkpoint; those with one: {', '.join(REGISTRY)}")
    return download.fetch(REGISTRY[name].file, home() / "checkpoints", quiet)


WRAPPERS = ("model", "state_dict", "model_state_dict", "ema")  # under which a torch file may hold its state dict
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MOST_NAMES = 3  # names of a kind in an error


def read(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name of a .safetensors or torch file, on the CPU.

    A torch file is a state dict or holds one under one of `WRAPPERS` (PANNs as "model", Lightning as "state_dict").
    What else it holds is not built, and nothing it names is imported or run. Raises FileNotFoundError, and ValueError
    for a damaged file, one without a state dict or with several, and tensors that are not stored number by number.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:  # a header that is none ends in any error
            raise ValueError(f"{path}: damaged ({reason(error)}); delete it or fetch it again") from error
    state = _read_torch(path)
    while isinstance(state, dict):
        inner = [name for name in WRAPPERS if isinstance(state.get(name), dict)]
        if len(inner) > 1:
            raise ValueError(f"{path}: holds {' and '.join(map(repr, inner))}; save the one that you mean by itself")
        if not inner:
            break
        state = state[inner[0]]
    if not isinstance(state, dict) or not any(isinstance(tensor, Tensor) for tensor in state.values()):
        wrappers = " or ".join(map(repr, WRAPPERS))
        raise ValueError(f"{path}: holds no state dict, neither itself nor as {wrappers}; fetch it again")
    for name, tensor in state.items():
        if not isinstance(name, str):
            raise ValueError(
                f"{path}: a key is of type {type(name).__name__}; give every tensor a name and save it again"
            )
        if problem := _oddity(tensor):
            raise ValueError(f"{path}: {name[:100]} is {problem}; save it as a plain tensor")
    memory = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in state.values()}
    if sum(memory.values()) > path.stat().st_size:
        raise ValueError(f"{path}: states more numbers than it holds; fetch it again")
    return {name: tensor.detach() for name, tensor in state.items()}


def _oddity(tensor: Any) -> str | None:
    """What a value of a state dict is instead of a tensor whose numbers are all in the file."""
    if type(tensor) not in (Tensor, nn.Parameter):
        return f"of type {type(tensor).__name__}"
    if tensor.is_quantized:
        return "quantised"
    if tensor.is_nested or tensor.layout != torch.strided:
        return "nested" if tensor.is_nested else f"sparse ({str(tensor.layout).removeprefix('torch.')})"
    if tensor.is_meta:
        return "without numbers (on the meta device)"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "a view that repeats fewer numbers"
    return None


class _Inert:
    """Stands for an object of a class that a checkpoint names and that its tensors do not need."""

    def __new__(cls, *arguments: Any) -> Self:
        return super().__new__(cls)

    def __init__(self, *arguments: Any) -> None: ...
    def __setstate__(self, state: Any) -> None: ...


def _read_torch(path: Path) -> Any:
    with open(path, "rb") as file:
        zipped = file.read(2) == b"PK"
    try:
        names = _zip_globals(path) if zipped else _legacy_globals(path)
        if names & {"builtins.bytearray", "__builtin__.bytearray"}:  # torch.load makes it, of any size
            raise ValueError("it makes a bytearray")
        if not zipped and "torch._utils._rebuild_nested_tensor" in names:  # its sizes would be read from stray memory
            raise ValueError("a nested tensor; save it as plain tensors")
        with torch.serialization.safe_globals([(_Inert, name) for name in names]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # bytes that are not a checkpoint end in any error
        raise ValueError(
            f"{path}: damaged, or not a checkpoint ({reason(error)}); delete it or fetch it again"
        ) from error


def reason(error: Exception) -> str:
    """One line: torch's own message is long and advises to run the file's code."""
    match = re.search(r"(?:WeightsUnpickler error:\s*|\n\n)([^\n]+)", str(error))
    return (match[1] if match else str(error).partition("\n")[0] or type(error).__name__)[:200]


def _zip_globals(path: Path) -> set[str]:
    """As `_legacy_globals`, of a zip file; ValueError for one that is compressed or fails its own checksums.

    torch.load checks neither where it maps the file into memory. What torch.save writes is never compressed, so that
    it cannot take more memory than it has bytes.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not stored or sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("compressed; unpack it and save it again with torch.save")
        summed = any(member.CRC for member in members)  # torch.save can leave them out: all are 0 then
        if summed and (bad := archive.testzip()) is not None:
            raise ValueError(f"wrong checksum of {bad}")
    return get_globals_in_pkl(io.BytesIO(torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")))


def _legacy_globals(path: Path) -> set[str]:
    """What the pickles of a file from before PyTorch 1.6 name, PyTorch's own among it: torch.load knows those first."""
    with open(path, "rb") as file:  # magic number, protocol, platform, and then the object itself
        return set().union(*(get_globals_in_pkl(file) for _ in range(4)))


class OtherWeights(ValueError):
    """A file holds the weights of another encoder."""


def load(encoder: Any, path: str | Path) -> None:
    """Give `encoder`, an `AudioEncoder`, the tensors of a file in the official or in its own layout.

    Prefixes that all names share, such as `module.` (DataParallel) and `_orig_mod.` (torch.compile), are taken off.
    Raises ValueError for tensors which are missing, unexpected or of another shape, but for those that the encoder has
    no use for; as `check`; and as the encoder's `official`, for a file of another frontend. Counts of batches
    (`num_batches_tracked`) may be missing: files from before they existed.
    """
    own = encoder.state_dict()
    named = _official_names(encoder, path, own)
    tensors = {name: tensor for name, tensor in named.items() if not name.startswith(encoder.dropped)}
    fit(path, tensors, own)
    if any(tensor.is_meta for tensor in own.values()):  # laid out, but without memory of its own
        complete = {name: torch.zeros((), dtype=torch.int64) for name in own} | tensors
        copies = {name: tensor.to(own[name].dtype, copy=True) for name, tensor in complete.items()}
        encoder.load_state_dict(copies, assign=True)
    else:
        encoder.load_state_dict(tensors, strict=False)


def fit(path: str | Path, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], what: str = "this encoder") -> None:
    """`OtherWeights` unless the `tensors` of a file are those of a network's `own` state; and as `check`."""
    missing = [name for name in own.keys() - tensors.keys() if not name.endswith(".num_batches_tracked")]
    wrong = [f"missing {name_list(missing)}"] if missing else []
    if unexpected := tensors.keys() - own.keys():
        wrong.append(f"unexpected {name_list(unexpected)}")
    shapes = [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}"
        for name in own.keys() & tensors.keys()
        if own[name].shape != tensors[name].shape
    ]
    if shapes:
        wrong.append(name_list(shapes, "; "))
    if wrong:
        raise OtherWeights(f"{path}: not weights of {what}: {'; '.join(wrong)}")
    check(path, tensors, own)


def _official_names(encoder: Any, path: str | Path, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a file under the encoder's names; while none is one, less the first part that all of them share."""
    tensors = read(path)
    while True:
        try:
            named = getattr(encoder, "official", dict)(tensors)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        prefix = next(iter(tensors), "").partition(".")[0] + "."
        if not tensors or own.keys() & named.keys() or not all(name.startswith(prefix) for name in tensors):
            return named
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def check(
    path: str | Path, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], mend: str = "take another checkpoint"
) -> None:
    """ValueError, before `own` tensors take the `tensors` of a file: quantised, complex, NaN or infinite."""
    kinds, infinite = [], []
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS and (own[name].is_floating_point() or tensor.is_complex()):
            kinds.append(f"{name} is {str(tensor.dtype).removeprefix('torch.')}")
        elif not tensor.to(own[name].dtype if own[name].is_floating_point() else tensor.dtype).isfinite().all():
            infinite.append(name)
    if kinds:
        raise ValueError(
            f"{path}: not floating point, as of a quantised network: {name_list(kinds)}; save it as float32"
        )
    if infinite:
        raise ValueError(f"{path}: not finite, as of a diverged training: {name_list(infinite)}; {mend}")


def name_list(names: Iterable[str], separator: str = ", ") -> str:
    """The first `MOST_NAMES` names in order, and how many more."""
    ordered = sorted(names)
    more = f"{separator}and {len(ordered) - MOST_NAMES} more" if len(ordered) > MOST_NAMES else ""
    return separator.join(ordered[:MOST_NAMES]) + more
