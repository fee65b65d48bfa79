"""The notebooks as a reader runs them: from the command line, headless, under the smallest profile."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest

from atr.experiments import study
from atr.reports import findings
from atr.system import places

TABLES = {  # by notebook
    "00": "exhibits",
    "01": "loss_comparison published rates sensitivity budget coverage pairs claims",
    "02": "batch_size equal_steps rates budget published claims",
    "03": "embedding_dimension published finetuned rates rate_decides noise crowned cost claims",
    "04": "readings_sigma readings_h h_by_points by_dimension uniformity voxel_network voxel_scale published "
    "budget rates headroom gradients answer claims measures",
    "05": "curriculum published stages budget rates example_batches batches claims",
    "06": "dcase_system published budget rates ensembles ingredients submissions several claims",
    "07": "sigmoid_loss published batch_size temperature rates budget claims",
    "08": "audio_learning_rate published rates budget sweep claims",
    "09": "text_aware_pooling published attention attention_by_event rates budget cost claims",
    "10": "synthetic_captions training_claims budget rates rules words distinctive richness reasons closeness",
    "11": "topics_by_seed topics readings stability clips claims",
    "12": "measured goals agreement growth step search",
}
TABLES = {number: names.split() for number, names in TABLES.items()}
FIGURES = {
    "00": ["search", "map", "dual_encoder", "stages", "penalty"],
    "01": ["learning_curves", "rates", "summary"],
    "02": ["learning_curves", "rates", "summary"],
    "03": ["dimension", "rates", "loss"],
    "04": ["readings", "h_by_points", "four_sets", "voxel_network", "answer", "map"],
    "05": ["batches", "learning_curves", "rates", "summary"],
    "06": ["ensembles", "ingredients", "rates"],
    "07": ["learned", "learning_curves", "batch_size", "rates"],
    "08": ["learning_curves", "rates", "sweep"],
    "09": ["learning_curves", "rates", "attention"],
    "10": ["learning_curves", "rates", "words", "richness", "by_length"],
    "11": ["topics"],
    "12": ["growth", "step", "search"],
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory, homes):
    folder = tmp_path_factory.mktemp("study")
    found = os.environ | {
        "ATR_HOME": str(homes / "data"),
        "ATR_RESULTS": str(folder),
        "ATR_PRETRAINING_EPOCHS": "2",
        "OMP_NUM_THREADS": "1",
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(folder / "jupyter"),
    }
    found.pop("ATR_COMMAND", None)
    return found


@pytest.fixture(scope="module")
def run_study(environment):
    def run(numbers=tuple(TABLES)):
        command = [sys.executable, "-m", "atr", "study", *numbers, "--profile", "smoke", "--device", "cpu", "--quiet"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run, Path(environment["ATR_RESULTS"]) / "smoke"


def test_the_notebooks_run_and_a_second_time_train_nothing(run_study):
    run, results = run_study
    said = run()
    assert (
        "Profile smoke: 00_explore, 01_loss_comparison, 02_batch_size, 03_" in said
        and "11_caption_topics" in said
        and ", 0 of them finished" in said
    )

    for number, names in TABLES.items():
        for name in names:
            path = results / "tables" / f"{number}_{name}"
            table = pd.read_csv(path.with_suffix(".csv"))
            assert list(table), path
            assert path.with_suffix(".md").read_text().count("\n| ") >= len(table), path
            assert path.with_suffix(".tex").read_text().count(r"\\") > len(table), path
            assert json.loads(path.with_suffix(".json").read_text())["hashes"]["notebook"], path
    for number, names in FIGURES.items():
        for name in names:
            path = results / "figures" / f"{number}_{name}"
            assert plt.imread(path.with_suffix(".png"))[..., :3].std() > 0.01, path  # more than paper
            assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF"), path
    for path in study.notebooks(list(TABLES)):
        copy = results / "notebooks" / path.name
        cells = [cell for cell in nbformat.read(copy, as_version=4).cells if cell.cell_type == "code"]
        assert copy.stat().st_size < 2 * 2**20 and all(cell.execution_count for cell in cells)
        assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]

        if copy.stem[:2] not in ("00", "13"):
            (top,) = [cell for cell in cells if cell.get("id") == "conclusion"]
            assert top.outputs[0].data["text/markdown"].startswith(findings.conclude(results, copy.stem)), copy

    table = pd.read_csv(results / "tables" / "01_loss_comparison.csv")
    assert {"Triplet-sum", "Triplet-max", "Triplet-weighted", "NT-Xent", "untrained", "chance"} == set(table["loss"])
    trained = table[~table["loss"].isin(["untrained", "chance"])]
    assert len(trained) == 8 and trained["t2a_r10"].between(0, 100).all() and (trained["seeds"] == 2).all()
    verdicts = pd.read_csv(results / "tables" / "01_claims.csv")["verdict"]
    assert set(verdicts) <= {"holds", "contradicted", "undecided", "not converged"}

    runs = {path: path.stat().st_mtime_ns for path in (results / "runs").glob("*/metrics.json")}
    kept = (results / "tables" / "01_loss_comparison.csv").read_bytes()
    assert len(runs) == len(study.plan(study.notebooks(list(TABLES)), "smoke"))
    again = run(["01"])
    found = re.search(r"(\d+) runs, (\d+) of them finished", again)
    assert found and found[1] == found[2]
    assert {path: path.stat().st_mtime_ns for path in (results / "runs").glob("*/metrics.json")} == runs
    assert (results / "tables" / "01_loss_comparison.csv").read_bytes() == kept


def test_the_template_runs_and_its_loss_is_that_of_the_page_about_extending(environment):
    results = Path(environment["ATR_RESULTS"]) / "smoke"
    path = places.PROJECT / "notebooks" / "own_experiment.ipynb"
    (cell,) = [cell for cell in nbformat.read(path, as_version=4).cells if cell.source.startswith("%%writefile")]
    page = (places.PROJECT / "docs" / "extending.md").read_text()
    assert cell.source.split("\n", 1)[1].strip() in page
    code = "import pathlib, sys; from atr.experiments.study import execute; "
    code += "execute(pathlib.Path(*sys.argv[1:]), 'smoke', {})"
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(results / "tables" / "own_experiment.csv")
    assert table["loss"].tolist() == ["NT-Xent", "soft_margin"] and table["t2a_map10"].between(0, 100).all()
    assert len(pd.read_csv(results / "tables" / "own_claims.csv")) == 2
    assert set(pd.read_csv(results / "tables" / "own_rates.csv")["loss"]) == {"NT-Xent", "soft_margin"}


@pytest.mark.parametrize("number, tables", [("00", 5), ("01", 1), ("05", 1)])
def test_captions_and_clips_enter_no_notebook_as_html(number, tables):
    (path,) = Path("notebooks").glob(f"{number}_*.ipynb")
    source = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code")
    styled = [part.partition("\n\n")[0] for part in source.split(".style.")[1:]]
    assert len(styled) == tables and all(
        '.format(escape="html"' in "".join(one.split()) or 'escape="html")' in one for one in styled
    )
