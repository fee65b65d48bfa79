"""The package's folders: how many, and that imports run one way, in the order that atr/README.md states."""

import ast
import importlib
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import atr

ROOT = Path(atr.__file__).parent


def modules():
    """Dotted name → file, of every module and package."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports():
    """Module → the modules of this package that it imports, anywhere in its file."""
    known, found = modules(), defaultdict(set)
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "atr":
                # The version is a word in `atr` itself, which leads nowhere.
                whole = {f"{node.module}.{alias.name}" for alias in node.names if alias.name != "__version__"}
                found[name] |= {one if one in known else node.module for one in whole} - {name}
            elif isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names if alias.name in known}
    return found


def test_imports_run_in_the_order_that_the_page_states():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    (line,) = [line for line in page.splitlines() if line.startswith("    ") and "→" in line]
    floors = [[name.strip() for name in floor.split(",")] for floor in line.split("→")]
    level = {name: number for number, floor in enumerate(floors) for name in floor}
    rooms = {name.split(".")[1] for name in modules() if "." in name} - {"__main__"}
    assert set(level) == rooms
    wrong = []
    for name, others in imports().items():
        here = name.split(".")[1] if "." in name else ""
        if here in level:
            # `atr` itself hands on names of inference and below
            there = [(other, other.split(".")[1] if "." in other else "inference") for other in others]
            wrong += [(name, other) for other, room in there if room != here and level[room] >= level[here]]
    assert not wrong


def test_no_files_import_one_another_in_a_circle():
    pairs = {name: {other for other in others if other != "atr"} for name, others in imports().items()}
    faces = {name: {o for o in others if not name.startswith(f"{o}.")} for name, others in pairs.items()}
    assert list(TopologicalSorter(faces).static_order())  # CycleError names the files


def test_folders_and_files_are_few():
    folders = [path for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"]
    files = {path.name for path in ROOT.iterdir() if path.is_file()}
    assert len(folders) <= 13 and files == {"README.md", "__init__.py", "__main__.py", "config.py", "register.py"}
    for folder in [path for path in ROOT.rglob("*") if path.is_dir() and path.name != "__pycache__"]:
        count = len([path for path in folder.glob("*.py") if path.name != "__init__.py"])
        assert count <= 12, folder


def test_a_corpus_and_an_encoder_with_its_checkpoint_are_a_file_each(tmp_path):
    shutil.copytree(ROOT, tmp_path / "atr", ignore=shutil.ignore_patterns("__pycache__"))
    corpus = "from atr import register\n\n\n@register.corpus('tones')\ndef load(root: str, *, seed: int = 0): ...\n"
    (tmp_path / "atr" / "corpora" / "tones").mkdir()  # one that is a folder
    (tmp_path / "atr" / "corpora" / "tones" / "__init__.py").write_text(corpus.replace("'", '"'))
    encoder = """from atr import register
from atr.encoders import checkpoints

checkpoints.github("Ear", "ear", "someone/ear", "v1", "ear.pt", "MIT")


@register.encoder("ear")
class Ear: ...
"""
    (tmp_path / "atr" / "encoders" / "audio" / "ear.py").write_text(encoder)
    code = """from atr.cli import console
assert "tones" in console.CORPORA and "tones" in console.ROOT_CORPORA and "ear" in console.DATA
import atr
from atr.encoders import checkpoints
assert atr.corpora.in_folder("tones") and "ear" in atr.encoders.AUDIO_ENCODERS
print(atr.__file__, checkpoints.REGISTRY["ear"].file.url)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    where, address = done.stdout.split()
    assert Path(where).is_relative_to(tmp_path)
    assert address == "https://github.com/someone/ear/releases/download/v1/ear.pt"


def test_the_page_on_upgrading_names_modules_that_are_there():
    page = (ROOT.parent / "docs" / "upgrading.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(atr\.[\w.]+)`.* \| `(atr\.[\w.]+)`.*\|$", page, re.M)
    assert len(rows) > 100
    for _, new in rows:
        module, _, name = (new, "", "") if new in modules() else new.rpartition(".")
        assert not name or hasattr(importlib.import_module(module), name), new


def test_what_the_page_says_that_inference_and_the_studies_do_not_know():
    for name, others in imports().items():
        if name.startswith("atr.inference"):
            assert not others & {"atr.training.trainer", "atr.training.fit", "atr.training.batches"}, name
        if name.startswith("atr.analysis."):
            studies = {other.removeprefix("atr.analysis.") for other in others if other.startswith("atr.analysis.")}
            assert studies <= {"lexical", "maps", "spectrograms"} or name == "atr.analysis.widgets", name
