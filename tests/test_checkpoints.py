import argparse
import hashlib
import os
import pickle
import random
import re
import resource
import subprocess
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from atr.encoders import checkpoints
from atr.register import AUDIO_ENCODERS
from atr.system import download


class Encoder(nn.Module):
    """Two layers and a batch-norm; its official file calls the first layer `stem` and holds a classifier too."""

    dropped = ("fc.", "extractor")

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

    @staticmethod
    def official(tensors):
        return {name.replace("stem.", "first."): tensor for name, tensor in tensors.items()}


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Encoder()


@pytest.fixture
def official():
    """An official state dict, drawn with another seed than the encoder."""
    torch.manual_seed(1)
    tensors = {name.replace("first.", "stem."): tensor for name, tensor in Encoder().state_dict().items()}
    return OrderedDict(tensors, **{"fc.weight": torch.ones(5, 2), "extractor.window": torch.ones(7)})


class Callback:
    """A class that only the code which wrote a checkpoint has."""

    def __init__(self):
        self.best = torch.tensor(0.5)


def panns(tensors):
    sampler = {"indexes": np.arange(500), "pointers": [np.int64(3), 4], "names": np.array(["a", "b"])}
    return {"iteration": 600_000, "model": tensors, "sampler": sampler}


def lightning(tensors):
    return {
        "epoch": 3,
        "state_dict": tensors,
        "hyper_parameters": {"args": argparse.Namespace(arch="base", scale=np.float64(2))},
        "callbacks": {Callback: {"best_model_score": torch.tensor(0.5), "callback": Callback()}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "kinds": {1, 2}, "type": set}],
    }


LAYOUTS = {"plain": lambda tensors: tensors, "panns": panns, "lightning": lightning}


def assert_holds(encoder, official):
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, official[name.replace("first.", "stem.")])


# --- read and load


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_official_files_of_every_layout_are_loaded(tmp_path, encoder, official, layout, zipped):
    path = tmp_path / "official.pth"
    torch.save(LAYOUTS[layout](official), path, _use_new_zipfile_serialization=zipped)
    tensors = checkpoints.read(path)
    assert list(tensors) == list(official) and all(torch.equal(tensors[name], official[name]) for name in official)
    checkpoints.load(encoder, path)
    assert_holds(encoder, official)


def test_safetensors_in_the_official_and_in_our_own_layout_are_loaded(tmp_path, encoder, official):
    save_file(official, tmp_path / "official.safetensors")
    checkpoints.load(encoder, str(tmp_path / "official.safetensors"))
    save_file(encoder.state_dict(), tmp_path / "own.safetensors")
    other = Encoder()
    checkpoints.load(other, tmp_path / "own.safetensors")
    assert_holds(other, official)


def test_what_was_read_outlives_the_file_and_holds_no_gradient(tmp_path, encoder, official):
    torch.save(
        {name: nn.Parameter(tensor, tensor.is_floating_point()) for name, tensor in official.items()}, tmp_path / "a"
    )
    tensors = checkpoints.read(tmp_path / "a")
    (tmp_path / "a").unlink()
    assert torch.equal(tensors["stem.weight"], official["stem.weight"]) and not tensors["stem.weight"].requires_grad


def test_counts_of_batches_may_be_missing(tmp_path, encoder, official):
    del official["norm.num_batches_tracked"]
    torch.save(official, tmp_path / "official.pth")
    checkpoints.load(encoder, tmp_path / "official.pth")
    assert torch.equal(encoder.norm.running_mean, official["norm.running_mean"])
    assert encoder.norm.num_batches_tracked == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("stem.weight"), "missing first.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), "unexpected extra"),
        (lambda t: t.update({"last.bias": torch.zeros(3)}), r"last.bias is \(3,\), not \(2,\)"),
        (lambda t: t.update({"fc_other.weight": torch.zeros(1)}), "unexpected fc_other.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_an_error_that_names_them_and_nothing_is_loaded(
    tmp_path, encoder, official, change, message
):
    change(official)
    torch.save(official, tmp_path / "official.pth")
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    with pytest.raises(ValueError, match=f"official.pth: not weights of this encoder: {message}$"):
        checkpoints.load(encoder, tmp_path / "official.pth")
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_an_error_lists_three_tensors_of_a_kind_and_how_many_more(tmp_path, encoder, official):
    for part in ("weight", "bias", "running_mean"):
        official[f"x{part}"] = official.pop(f"norm.{part}")
    save_file(official | {"y": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError) as error:
        checkpoints.load(encoder, tmp_path / "a.safetensors")
    assert str(error.value).partition("encoder: ")[2] == (
        "missing norm.bias, norm.running_mean, norm.weight; unexpected xbias, xrunning_mean, xweight, and 1 more"
    )


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "_orig_mod.module.", "net.encoder."])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_prefixes_that_all_names_share_are_taken_off(tmp_path, encoder, official, prefix, layout):
    torch.save(LAYOUTS[layout]({prefix + name: tensor for name, tensor in official.items()}), tmp_path / "a.pth")
    checkpoints.load(encoder, tmp_path / "a.pth")
    assert_holds(encoder, official)


def test_a_prefix_that_some_names_have_is_an_error_that_shows_it(tmp_path, encoder, official):
    wrapped = {f"module.{name}": tensor for name, tensor in official.items()} | {"loss.weight": torch.zeros(1)}
    torch.save(wrapped, tmp_path / "a.pth")
    with pytest.raises(
        ValueError, match="missing first.bias, first.weight, last.bias, and 5 more; unexpected .*module.f"
    ):
        checkpoints.load(encoder, tmp_path / "a.pth")


@pytest.mark.parametrize("wrapper", ["model_state_dict", "ema"])
def test_a_state_dict_is_found_under_the_usual_names_alone(tmp_path, encoder, official, wrapper):
    torch.save({"epoch": 3, wrapper: official, "optimizer": {"state": {}}}, tmp_path / "a.pth")
    checkpoints.load(encoder, tmp_path / "a.pth")
    assert_holds(encoder, official)
    torch.save({"model": official, wrapper: official}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match=f"b.pth: holds 'model' and '{wrapper}'; save the one that you mean by itself"):
        checkpoints.read(tmp_path / "b.pth")


# --- numbers that an encoder cannot take


@pytest.mark.parametrize("kind", ["int8", "uint8", "bool", "int64", "complex64", "float8_e4m3fn"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_that_are_not_floating_point_are_refused(tmp_path, encoder, official, kind, suffix):
    official["last.weight"] = torch.ones(2, 4).to(getattr(torch, kind))
    path = tmp_path / f"quantised.{suffix}"
    (torch.save if suffix == "pth" else save_file)(dict(official), path)
    before = encoder.last.weight.clone()
    with pytest.raises(
        ValueError, match=f"quantised.{suffix}: not floating point, .*: last.weight is {kind}; save it as"
    ):
        checkpoints.load(encoder, path)
    assert torch.equal(encoder.last.weight, before)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_floating_point_become_float32(tmp_path, encoder, official, kind):
    torch.save({name: tensor.to(kind) for name, tensor in official.items()}, tmp_path / "a.pth")
    checkpoints.load(encoder, tmp_path / "a.pth")
    assert encoder.last.weight.dtype == torch.float32
    assert torch.equal(encoder.last.weight, official["last.weight"].to(kind).float())


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf, 1e300])
@pytest.mark.parametrize("name", ["last.weight", "norm.running_var"])
def test_weights_that_are_not_finite_are_refused(tmp_path, encoder, official, number, name):
    official[name] = official[name].double()
    official[name].view(-1)[-1] = number
    torch.save(official, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=f"a.pth: not finite, .*: {name}; take another checkpoint"):
        checkpoints.load(encoder, tmp_path / "a.pth")


# --- files that are no checkpoints


class Malicious:
    """Unpickled by Python, it runs a function of Python's or of the system's on a path."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "attack",
    [
        lambda target: Malicious(eval, f"open({str(target)!r}, 'w')"),
        lambda target: Malicious(open, str(target), "w"),
        lambda target: Malicious(subprocess.getoutput, f"touch {target}"),
        lambda target: Malicious(os.mkdir, str(target)),
    ],
    ids=["eval", "open", "subprocess", "os"],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_file_that_would_run_code_does_not(tmp_path, official, attack, zipped):
    path, target = tmp_path / "malicious.pth", tmp_path / "ran"
    torch.save({"model": official, "sampler": attack(target)}, path, _use_new_zipfile_serialization=zipped)
    try:
        tensors = checkpoints.read(path)
        assert list(tensors) == list(official)
    except ValueError as error:
        assert "malicious.pth: damaged, or not a checkpoint (Trying to load unsupported GLOBAL" in str(error)
    assert not target.exists()
    attack(target).function(*attack(target).arguments)  # the attack is one
    assert target.exists()


def test_a_plain_pickle_is_not_run(tmp_path):
    path, target = tmp_path / "plain.pth", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Malicious(os.mkdir, str(target))))
    with pytest.raises(ValueError, match=r"plain.pth: damaged, or not a checkpoint .*; delete it or fetch it again"):
        checkpoints.read(path)
    assert not target.exists()


def test_nothing_stays_allowed_after_a_file_is_read(tmp_path, official):
    before = set(torch.serialization.get_safe_globals())
    torch.save(lightning(official), tmp_path / "official.ckpt")
    checkpoints.read(tmp_path / "official.ckpt")
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("keep", [0.0, 0.001, 0.05, 0.5, 0.95])
def test_a_file_cut_short_is_an_error_that_names_it_and_the_mend(tmp_path, official, keep, zipped):
    path = tmp_path / "cut.pth"
    torch.save(panns(official), path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"cut.pth: damaged, or not a checkpoint \(.+\); delete it or fetch it again"):
        checkpoints.read(path)


def test_noise_is_an_error_that_names_the_file(tmp_path):
    for seed in range(50):
        noise = random.Random(seed).randbytes(400)
        (tmp_path / "noise.pth").write_bytes(noise if seed % 2 else b"PK\x03\x04" + noise)
        with pytest.raises(ValueError, match=r"noise.pth: damaged, or not a checkpoint"):
            checkpoints.read(tmp_path / "noise.pth")
    (tmp_path / "noise.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(ValueError, match=r"noise.safetensors: damaged \(.+\); delete it or fetch it again"):
        checkpoints.read(tmp_path / "noise.safetensors")


@pytest.mark.parametrize("content", [[torch.ones(1)], {}, {"model": {"a": 1}}, {"epoch": 1, "weights": {}}])
def test_a_file_without_a_state_dict_is_an_error(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth: holds no state dict, neither itself nor as 'model' or 'state"):
        checkpoints.read(tmp_path / "other.pth")


@pytest.mark.parametrize("name", ["none.pth", "none.safetensors"])
def test_a_missing_file_is_an_error_that_names_it(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f"{name}: no such weights"):
        checkpoints.read(tmp_path / name)


def zipped_again(path, compression=zipfile.ZIP_STORED, **changes):
    """Rewrite a torch file; changes: of a member's bytes, by the last part of its name."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, changes.get(name.rpartition("/")[2], lambda same: same)(content))


class Bytes:
    """Unpickled it takes three gigabytes."""

    def __reduce__(self):
        return bytearray, (3_000_000_000,)


BOMBS = {
    "expanded": (lambda: {"a": torch.ones(1).expand(10**10)}, "a is a view that repeats fewer numbers"),
    "strided": (lambda: {"a": torch.ones(9).as_strided((10**6, 3), (0, 1))}, "a is a view that repeats fewer numbers"),
    "bytes": (lambda: {"a": torch.ones(1), "b": Bytes()}, r"\(it makes a bytearray\)"),
    "constructed": (lambda: {"a": Malicious(torch.FloatTensor, 10**9)}, "states more numbers than it holds"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_takes_little_memory(tmp_path, bomb):
    content, message = BOMBS[bomb]
    torch.save(content(), tmp_path / "small.pth")
    assert (tmp_path / "small.pth").stat().st_size < 10_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=f"small.pth: .*{message}"):
        checkpoints.read(tmp_path / "small.pth")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_a_compressed_file_is_refused(tmp_path):
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "small.pth")
    zipped_again(tmp_path / "small.pth")
    assert torch.equal(checkpoints.read(tmp_path / "small.pth")["a"], torch.zeros(10**6))
    zipped_again(tmp_path / "small.pth", zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"small.pth: .*\(compressed; unpack it and save it again with torch.save\)"):
        checkpoints.read(tmp_path / "small.pth")


def test_a_view_of_numbers_that_are_in_the_file_is_read(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": whole.t(), "b": whole[1], "c": whole}, tmp_path / "a.pth")
    read = checkpoints.read(tmp_path / "a.pth")
    assert torch.equal(read["a"], whole.t()) and torch.equal(read["b"], whole[1]) and torch.equal(read["c"], whole)


STRANGE = {
    "integer key": (lambda: {"a": torch.ones(1), 7: torch.ones(1)}, "a key is of type int; give every tensor a name"),
    "no tensor": (lambda: {"a": torch.ones(1), "b": 3}, "b is of type int; save it as a plain tensor"),
    "nested dict": (lambda: {"a": torch.ones(1), "b": {"c": torch.ones(1)}}, "b is of type dict"),
    "sparse": (lambda: {"a": torch.eye(3).to_sparse()}, r"a is sparse \(sparse_coo\)"),
    "sparse rows": (lambda: {"a": torch.eye(3).to_sparse_csr()}, r"a is sparse \(sparse_csr\)"),
    "nested": (lambda: {"a": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}, "a is nested"),
    "meta": (lambda: {"a": torch.ones(3, device="meta")}, "a is without numbers"),
    "quantised": (lambda: {"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, "a is quantised"),
}


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_plain_tensor_is_an_error_that_names_file_and_key(tmp_path, kind, zipped):
    content, message = STRANGE[kind]
    if kind == "nested" and not zipped:  # PyTorch itself reads other sizes from it
        message = r"damaged, or not a checkpoint \(a nested tensor; save it as plain tensors\)"
    torch.save(content(), tmp_path / "strange.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=f"strange.pth: {message}"):
        checkpoints.read(tmp_path / "strange.pth")


def test_checksums_of_a_zip_are_checked_if_it_has_any(tmp_path, official):
    path = tmp_path / "a.pth"
    torch.save(official, path)
    whole, weights = path.read_bytes(), official["stem.weight"].numpy().tobytes()
    path.write_bytes(whole.replace(weights, weights[:-1] + bytes([weights[-1] ^ 1])))
    assert path.read_bytes() != whole
    with pytest.raises(ValueError, match=r"a.pth: damaged, or not a checkpoint \(wrong checksum of a/data/0\)"):
        checkpoints.read(path)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(official, path)
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(checkpoints.read(path)["stem.weight"], official["stem.weight"])


@pytest.mark.parametrize("layout", ["zip", "legacy", "safetensors"])
def test_a_damaged_file_gives_the_same_numbers_or_an_error_that_names_it(tmp_path, official, layout):
    path = tmp_path / "mutant.pth"
    if layout == "safetensors":
        path = tmp_path / "mutant.safetensors"
        save_file(official, path)
    else:
        torch.save(panns(official), path, _use_new_zipfile_serialization=layout == "zip")
    whole = path.read_bytes()
    if layout == "legacy":  # its tensors are named, and ordered, by where they lay in memory
        for number, address in enumerate(sorted({*re.findall(rb"\d{8,}", whole)}, key=whole.find)):
            whole = whole.replace(address, hashlib.sha256(b"%d" % number).hexdigest()[: len(address)].encode())
    # only a zip has checksums of the numbers: elsewhere what comes before them is damaged
    ends = {
        "zip": len(whole),
        "safetensors": 8 + int.from_bytes(whole[:8], "little"),
        "legacy": len(whole) - sum(8 + tensor.nbytes for tensor in official.values()),
    }
    refused = 0
    for seed in range(150):
        rng = random.Random(seed)
        place, mutant = rng.randrange(ends[layout]), bytearray(whole)
        mutant[place : place + rng.choice([0, 1, 1, 9])] = rng.randbytes(rng.choice([0, 1, 1, 9]))
        path.write_bytes(mutant)
        encoder = Encoder()
        try:
            checkpoints.load(encoder, path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ") and len(str(error)) < 1000
            refused += 1
        else:
            assert_holds(encoder, official)
    assert 50 < refused < 150


# --- the registry


def test_every_published_checkpoint_has_an_https_address_a_licence_and_a_source():
    names = "cnn6 cnn10 cnn14 cnn14_mei2022 resnet38 passt_s passt_s_stride16 mn04 mn10 atst_frame".split()
    assert set(checkpoints.REGISTRY) == set(names) == set(AUDIO_ENCODERS) - {"compact", "compact_resnet"}
    for encoder, checkpoint in checkpoints.REGISTRY.items():
        assert checkpoint.encoder == encoder and checkpoint.licence and checkpoint.name
        assert checkpoint.source.startswith("https://") and checkpoint.file.url.startswith("https://")
        assert checkpoint.file.name.replace("=", "%3D") in checkpoint.file.url


def test_a_checkpoint_of_another_does_not_take_its_place():
    with pytest.raises(ValueError, match="encoder 'cnn14' has a checkpoint, Cnn14_mAP=0.431.pth; choose another name"):
        checkpoints.github("Ear", "cnn14", "someone/ear", "v1", "ear.pt", "MIT")
    assert checkpoints.REGISTRY["cnn14"].licence == "CC BY 4.0"


def test_two_encoders_share_the_file_of_cnn14():
    assert checkpoints.REGISTRY["cnn14"].file == checkpoints.REGISTRY["cnn14_mei2022"].file


def test_a_checkpoint_put_into_its_folder_by_hand_is_used(tmp_path, monkeypatch, encoder, official):
    monkeypatch.setenv("ATR_HOME", str(tmp_path))
    path = tmp_path / "checkpoints" / "passt-s-kd-ap.486.pt"
    path.parent.mkdir()
    torch.save(official, path)
    assert checkpoints.fetch("passt_s") == path
    checkpoints.load(encoder, path)
    assert_holds(encoder, official)


def test_a_wrong_file_put_there_by_hand_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("ATR_HOME", str(tmp_path))
    path = tmp_path / "checkpoints" / "Cnn10_mAP=0.380.pth"
    path.parent.mkdir()
    path.write_bytes(b"<html>")
    with pytest.raises(download.DownloadError, match=r"Cnn10_mAP=0.380.pth: 6 bytes instead of the published 25,2"):
        checkpoints.fetch("cnn10")


def test_a_missing_checkpoint_is_downloaded_to_the_folder_of_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setenv("ATR_HOME", str(tmp_path))
    asked = []
    monkeypatch.setattr(download, "fetch", lambda *arguments: asked.append(arguments))
    checkpoints.fetch("resnet38", quiet=True)
    assert asked == [(checkpoints.REGISTRY["resnet38"].file, tmp_path / "checkpoints", True)]


def test_an_encoder_without_a_published_checkpoint_is_an_error():
    with pytest.raises(ValueError, match="compact: has no published checkpoint; those with one: atst_frame, mn04"):
        checkpoints.fetch("compact")
