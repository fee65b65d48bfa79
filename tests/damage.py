"""Ways in which a run's file is damaged: (name, function of its path), and what of them applies to which file."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

RECORDS = ("config.json", "metrics.json", "environment.json", "history.csv", "clips.csv")
TENSORS = ("embeddings.safetensors", "checkpoint.safetensors")


def write(data):
    return lambda path: path.write_bytes(data)


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def folder(path):
    path.unlink()
    path.mkdir()


def dangling(path):
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def changed(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def inner(content):
    """The objects within an object, itself last."""
    return [one for value in content.values() if isinstance(value, dict) for one in inner(value)] + [content]


def for_every_key(value):
    """A mutation for each key of a JSON file, however deep, of the objects that this package reads by name."""

    def keys(path):
        content = json.loads(path.read_text())
        return [(place, key) for place, part in enumerate(inner(content)) for key in part]

    def mutation(place, key):
        def change(path):
            def put(content):
                part = inner(content)[place]
                if value is ...:
                    del part[key]
                else:
                    part[key] = value

            changed(path, put)

        return change

    return lambda path: [(f"{key}-{value}", mutation(place, key)) for place, key in keys(path)]


def tensors(change):
    def mutation(path):
        found = load_file(path)
        change(found)
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, path)

    return mutation


def of_each_tensor(path):
    for name in load_file(path):
        yield f"without {name}", tensors(lambda found, name=name: found.pop(name))
        yield (
            f"{name} halved",
            tensors(lambda found, name=name: found.update({name: found[name][: len(found[name]) // 2]})),
        )
        yield f"{name} of bytes", tensors(lambda found, name=name: found.update({name: found[name].to(torch.uint8)}))
        if load_file(path)[name].is_floating_point():
            yield f"{name} NaN", tensors(lambda found, name=name: found.update({name: found[name] * torch.nan}))


MUTATIONS = [
    ("empty", write(b"")),
    ("half", half),
    ("garbage", write(bytes(range(256)) * 8)),
    ("null", write(b"null\n")),
    ("list", write(b"[]\n")),
    ("object", write(b"{}\n")),
    ("NaN", write(b'{"x": NaN}\n')),
    ("deep", write(b"[" * 100_000)),
    ("not UTF-8", write(b"\xff\xfe\xe4\n")),
    ("folder", folder),
    ("dangling link", dangling),
    ("deleted", Path.unlink),
]


def mutations(path):
    """(name, function) of all that can happen to a file of a run."""
    yield from MUTATIONS
    if path.suffix == ".json":
        for value in (..., None, "x", [], {}, True, float("nan")):
            yield from for_every_key(value)(path)
    if path.suffix == ".safetensors":
        yield from of_each_tensor(path)


def copy(run, folder):
    """Another folder with the files of a run, under its address, without their hashes: the rest has to notice."""
    return type(run)(Path(shutil.copytree(run.path, folder / run.address, ignore=shutil.ignore_patterns("sums.json"))))
