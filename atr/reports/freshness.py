"""Whether tables and figures are what their notebook would make today: by its code, its grid and the runs' store.

By content alone, as hashes tell it that were saved beside each table; when a file was written says nothing, as it
changes where results are copied, and clocks are set.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat

from atr.config import RESULT_VERSION, RunConfig
from atr.corpora import corpus_of
from atr.experiments.profiles import Profile
from atr.experiments.study import code
from atr.reports.output import content
from atr.training import identity
from atr.training.records import Run


def check(
    notebook: Path,
    copy: nbformat.NotebookNode | None,
    origins: Mapping[Path, dict[str, Any]],
    configs: Sequence[RunConfig] | None,
    profile: Profile,
    runs: Path,
) -> tuple[dict[Path, list[str]], str]:
    """For each file why it is stale, nothing if it is not; and what could not be checked, in words.

    copy: the notebook as it was executed; origins: file → its provenance, of all that this notebook made; configs: its
    grid today, None where that cannot be told; runs: folder of the run store.
    """
    stale: dict[Path, list[str]] = {path: [] for path in origins}
    unchecked = [] if copy else ["no executed copy of the notebook lies beside its results"]
    today_code = code(nbformat.read(notebook, as_version=4))
    by = {path: provenance.get("hashes", {}).get("notebook") for path, provenance in origins.items()}
    if not all(by.values()):
        unchecked.append("some of it was saved by hand or by an older version: cannot tell what code and runs made it")
    for path, provenance in origins.items():
        if (code(copy) if copy else by[path] or today_code) != today_code:
            stale[path].append("its notebook has changed since it was run")
        if copy and by[path] and by[path] != code(copy):
            stale[path].append("its notebook did not write it when it was last run")
        if provenance["result_version"] != RESULT_VERSION:
            stale[path].append(f"made by result version {provenance['result_version']}, now {RESULT_VERSION}")
    used = {address for provenance in origins.values() for address in provenance["runs"]}
    if not used and configs == []:
        return stale, "; ".join(unchecked)
    if not runs.is_dir():
        return stale, "; ".join([*unchecked, "the runs are not here"])
    try:
        today = None if configs is None else _addresses(configs, profile)
    except (ValueError, OSError) as error:
        today = None
        unchecked.append(f"what the grid needs is not here ({str(error).splitlines()[0]})")
    status = {address: Run(runs / address).status for address in used}
    for path, provenance in origins.items():
        its_runs = [Run(runs / address) for address in provenance["runs"]]
        if missing := [run for run in its_runs if status[run.address] != "finished"]:
            stale[path].append(f"{len(missing)} of its {len(its_runs)} runs are not finished")
            stale[path] += [run.problem for run in missing if run.problem]
        elif provenance.get("hashes", {}).get("runs") not in (None, content(its_runs)):
            stale[path].append("a run of it was made again, and came out differently")
        if today is not None and (other := {run.address for run in its_runs} - today):
            stale[path].append(f"{len(other)} of its {len(its_runs)} runs are no longer in the grid")
        if today is not None and (new := today - used):
            stale[path].append(f"the grid has {len(new)} runs that nothing here rests on")
    return stale, "; ".join(unchecked)


def _addresses(configs: Sequence[RunConfig], profile: Profile) -> set[str]:
    """Of the runs of a grid; nothing is made or fetched for it."""
    root = profile.root
    pairs = [(config, corpus_of(config.corpus, root)) for config in configs]
    return {identity.locate(*pair, fetch=False, root=root).address for pair in pairs}
