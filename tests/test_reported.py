"""Ranks that are kept of reported runs: whole, and enough to compute a table again."""

import json

import numpy as np
import pandas as pd
import pytest
from made_runs import made_run

from atr import RunConfig
from atr.experiments import reported, study
from atr.metrics import Ranks
from atr.reports import verdicts
from atr.system import places
from atr.training.results import ExternalTest

COMMITTED = sorted((places.PROJECT / "results" / "reference").glob("*/ranks/*.npz"))


@pytest.fixture
def runs(tmp_path):
    """Two seeds, the second one tested on another corpus, too."""
    made = [
        made_run(tmp_path / "runs", f"seed{seed}", RunConfig(seed=seed), [1, 300 + seed, 2, 70_000], [3, 1])
        for seed in range(2)
    ]
    other = ExternalTest(Ranks(np.array([[2], [1]]), np.array([[1, 2]])), np.array([0, 0]))
    made[1].write_external("people", other, {"corpus": "made"})
    return made


def test_what_is_read_is_what_the_runs_came_to(runs, tmp_path):
    reported.write(runs, tmp_path / "ranks.npz")
    found = reported.read(tmp_path / "ranks.npz")
    assert list(found) == ["seed0", "seed1"] and [len(one.tests) for one in found.values()] == [1, 2]
    for run, one in zip(runs, found.values(), strict=True):
        assert one.config == run.config and one.tests[""].metrics == run.metrics
        np.testing.assert_array_equal(one.tests[""].ranks.t2a, run.ranks.t2a)
        np.testing.assert_array_equal(one.tests[""].relevance, run.relevance)
    assert found["seed1"].tests["people"].ranks.a2t.tolist() == [[1, 2]]
    np.testing.assert_array_equal(
        verdicts.scores([one.tests[""] for one in found.values()]), verdicts.scores(runs)
    )  # a claim can be tested again


def test_a_damaged_file_is_named(runs, tmp_path):
    path = tmp_path / "ranks.npz"
    reported.write(runs, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    for damaged in (bytes(content), bytes(content[:100]), b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"ranks\.npz: cannot be read"):
            reported.read(path)


def test_the_runs_of_the_main_table_and_of_the_claims_go_with_the_committed_results(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("ATR_RESULTS", str(tmp_path))
    results = tmp_path / "smoke"
    for part in ("tables", "figures", "notebooks"):
        (results / part).mkdir(parents=True)
    (tmp_path / "runs").rename(results / "runs")
    (path,) = study.notebooks(["1"])
    (results / "notebooks" / path.name).write_bytes(path.read_bytes())
    for name, seeds in ((path.stem, [0]), ("01_claims", [0, 1]), ("01_rates", [2])):
        (results / "tables" / f"{name}.json").write_text(json.dumps({"runs": [f"seed{seed}" for seed in seeds]}))
    target = study.commit_reference("smoke", ["1"])
    assert list(reported.read(target / "ranks" / "01.npz")) == ["seed0", "seed1"]
    (results / "runs" / "seed1" / "metrics.json").unlink()
    with pytest.raises(study.StudyError, match="seed1: 1 runs behind the tables are gone; first: atr study"):
        study.commit_reference("smoke", ["1"])


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parent.parent.name} {path.stem}")
def test_committed_tables_follow_from_the_committed_ranks(path):
    methods: dict[str, list] = {}
    for one in reported.read(path).values():
        methods.setdefault(json.dumps(one.config.replace(seed=0).to_dict()), []).append(one.tests[""].metrics)
    means = np.array(
        [[np.mean([run[name] for run in runs]) for name in ("t2a_r1", "t2a_r10")] for runs in methods.values()]
    )
    (notebook,) = study.notebooks([path.stem])
    table = pd.read_csv(path.parent.parent / "tables" / f"{notebook.stem}.csv")
    table = table[~table.get("loss", pd.Series(index=table.index)).isin(["untrained", "chance"])]
    assert len(table) > 1
    for row in table[["t2a_r1", "t2a_r10"]].to_numpy():
        assert np.isclose(means, row, atol=1e-9).all(1).any()
