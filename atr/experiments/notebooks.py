"""Which numbered notebooks there are."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from atr.system import places

if TYPE_CHECKING:
    from atr.experiments.profiles import Profile

TIMED = "12"  # measures the machine: nothing may run beside it
EXTERNAL = "13"  # asks what a test on another corpus says of each option


class StudyError(RuntimeError):
    """A notebook did not run to its end."""


def paths(profile: "Profile | None" = None) -> dict[str, Path]:
    """Number → path of the numbered notebooks, all that a profile serves."""
    folder = places.PROJECT / "notebooks"
    every = {path.stem[:2]: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    served = (profile.notebooks if profile else ()) or every
    return {number: path for number, path in every.items() if number in served}


def notebooks(numbers: Sequence[str] = (), profile: "Profile | None" = None) -> list[Path]:
    """Paths of the numbered notebooks, all that the profile serves, or those whose number is listed: "01", "1", or the
    whole name.
    """
    every, served = paths(), paths(profile)
    names = {path.stem: path for path in every.values()}
    wanted = []
    for number in numbers or served:
        path = names.get(number) or every.get(str(number).zfill(2))
        if path is None:
            raise StudyError(f"no notebook {number!r} in {places.PROJECT / 'notebooks'}; known: {', '.join(names)}")
        if profile and path not in served.values():
            raise StudyError(f"{path.stem}: profile {profile.name} serves notebooks {', '.join(served)} only")
        if profile and path.stem[:2] == EXTERNAL and "people" not in profile.external:
            if numbers:
                raise StudyError(f"{path.stem}: profile {profile.name} has no test in people's words; esc50 has")
            continue
        wanted.append(path)
    return wanted
