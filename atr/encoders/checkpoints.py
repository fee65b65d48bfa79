"""Official checkpoints of the audio encoders: where they are published, and how to read one safely."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch._weights_only_unpickler import get_globals_in_pkl

from atr import download
from atr.store import home


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


def _panns(name: str, encoder: str, file_name: str, size: int | None, md5: str) -> Checkpoint:
    url = f"https://zenodo.org/records/3987831/files/{file_name.replace('=', '%3D')}?download=1"
    file = download.File(file_name, url, size, f"md5:{md5}")
    return Checkpoint(name, encoder, file, "CC BY 4.0", "https://zenodo.org/records/3987831")


def _github(name: str, encoder: str, repository: str, release: str, file_name: str, licence: str) -> Checkpoint:
    page = f"https://github.com/{repository}/releases"
    file = download.File(file_name, f"{page}/download/{release}/{file_name}")
    return Checkpoint(name, encoder, file, licence, f"{page}/tag/{release}")


_CNN14 = ("Cnn14_mAP=0.431.pth", 327_428_481, "541141fa2ee191a88f24a3219fff024e")
_ALL = (
    _panns("PANNs CNN6", "cnn6", "Cnn6_mAP=0.343.pth", None, "e25e26b84585b14c7754c91e48efc9be"),
    _panns("PANNs CNN10", "cnn10", "Cnn10_mAP=0.380.pth", 25_237_595, "bfb1f1f9968938fa8ef4012b8471f5f6"),
    _panns("PANNs CNN14", "cnn14", *_CNN14),
    _panns("PANNs CNN14", "cnn14_mei2022", *_CNN14),
    _panns("PANNs ResNet38", "resnet38", "ResNet38_mAP=0.434.pth", 299_615_982, "bf12f36aaabac4e0855e22d3c3239c1b"),
    # The releases on GitHub state no checksums.
    _github("PaSST-S, stride 10", "passt_s", "kkoutini/PaSST", "v.0.0.9", "passt-s-kd-ap.486.pt", "Apache 2.0"),
    _github(
        "PaSST-S, stride 16",
        "passt_s_stride16",
        "kkoutini/PaSST",
        "v0.0.2-audioset",
        "passt-s-f128-p16-s16-ap.468.pt",
        "Apache 2.0",
    ),
    # Its authors publish it through Google Drive, for browsers; the release of another group's code holds it too.
    _github("ATST-Frame base", "atst_frame", "CPJKU/cpjku_dcase24", "files", "atst_base.ckpt", "CC BY 4.0"),
)
REGISTRY: dict[str, Checkpoint] = {checkpoint.encoder: checkpoint for checkpoint in _ALL}


def fetch(name: str, quiet: bool = False) -> Path:
    """`home()/checkpoints/<published file name>` of the audio encoder `name`, downloaded if it is not there.

    A file put there by hand is verified and used, offline. Raises ValueError for an encoder without a published
    checkpoint and DownloadError as `atr.download.fetch` does.
    """
    if name not in REGISTRY:
        raise ValueError(f"{name}: has no published checkpoint; those with one: {', '.join(REGISTRY)}")
    return download.fetch(REGISTRY[name].file, home() / "checkpoints", quiet)


def read(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name of a .safetensors or torch file, on the CPU.

    A torch file is a state dict or holds one as "model" (PANNs) or "state_dict" (Lightning). What else it holds is not
    built, and nothing it names is imported or run. Raises FileNotFoundError, and ValueError for a damaged file or one
    without a state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: damaged ({error}); delete it or fetch it again") from error
    found = _read_torch(path)
    for wrapper in ("model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not found or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise ValueError(f"{path}: holds no state dict, neither itself nor as 'model' or 'state_dict'; fetch it again")
    return {name: tensor.detach() for name, tensor in found.items()}


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
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped else _legacy_globals(path)
        with torch.serialization.safe_globals([(_Inert, name) for name in names]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # bytes that are not a checkpoint end in any error
        # torch's own message is long and advises to run the file's code
        found = re.search(r"(?:WeightsUnpickler error:\s*|\n\n)([^\n]+)", str(error))
        reason = found[1] if found else str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path}: damaged, or not a checkpoint ({reason}); delete it or fetch it again") from error


def _legacy_globals(path: Path) -> set[str]:
    """What the pickles of a file from before PyTorch 1.6 name, PyTorch's own among it: torch.load knows those first."""
    with open(path, "rb") as file:  # magic number, protocol, platform, and then the object itself
        return set().union(*(get_globals_in_pkl(file) for _ in range(4)))


def load(encoder: Any, path: str | Path) -> None:
    """Give `encoder`, an `AudioEncoder`, the tensors of a file in the official or in its own layout.

    Raises ValueError that lists the tensors which are missing, unexpected or of another shape, but for those that the
    encoder has no use for. Counts of batches (`num_batches_tracked`) may be missing: files from before they existed.
    """
    own = encoder.state_dict()
    tensors = {
        name: tensor for name, tensor in encoder.official(read(path)).items() if not name.startswith(encoder.dropped)
    }
    wrong = [f"missing {name}" for name in own.keys() - tensors.keys() if not name.endswith(".num_batches_tracked")]
    wrong += [f"unexpected {name}" for name in tensors.keys() - own.keys()]
    wrong += [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}"
        for name in own.keys() & tensors.keys()
        if own[name].shape != tensors[name].shape
    ]
    if wrong:
        more = f"; and {len(wrong) - 12} more" if len(wrong) > 12 else ""
        raise ValueError(f"{path}: not weights of this encoder: {'; '.join(sorted(wrong)[:12])}{more}")
    if any(tensor.is_meta for tensor in own.values()):  # laid out, but without memory of its own
        complete = {name: torch.zeros((), dtype=torch.int64) for name in own} | tensors
        encoder.load_state_dict(
            {name: tensor.to(own[name].dtype, copy=True) for name, tensor in complete.items()}, assign=True
        )
    else:
        encoder.load_state_dict(tensors, strict=False)
