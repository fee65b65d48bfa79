"""The published tables in data/reference: their structure, and every cell against the paper where it is at hand."""

import json
import re
from itertools import product
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from atr.experiments.study import notebooks

ROOT = Path(__file__).parents[1]
PAPERS = sorted((ROOT / "../shared/papers").glob("000_*.txt"))
UNIFORMITY_PAPERS = sorted((ROOT / "../shared/papers").glob("002_*.txt"))
COLUMNS = ["dataset", "fine_tuned", "loss", "learning_rate", "batch_size", "metric", "mean", "std"]
LOSSES = ["triplet_sum", "triplet_max", "triplet_weighted", "nt_xent"]
METRICS = ["t2a_r1", "t2a_r5", "t2a_r10", "a2t_r1", "a2t_r5", "a2t_r10"]
DIMENSIONS = [128, 256, 512, 1024, 2048]
SETTING = ["dataset", "fine_tuned", "loss", "learning_rate", "batch_size"]
CELL = ["metric", "mean", "std"]


def table(number):
    return pd.read_csv(ROOT / f"data/reference/mei2022_table{number}.csv")


@pytest.mark.parametrize(
    "number, columns, levels",
    [
        (1, ["dataset", "fine_tuned", "loss", "metric"], (["audiocaps", "clotho"], [False, True], LOSSES, METRICS)),
        (2, ["batch_size", "loss", "metric"], ([32, 128], LOSSES, METRICS)),
    ],
)
def test_every_cell_is_there_once_in_the_papers_order(number, columns, levels):
    cells = table(number)
    assert list(cells.columns) == COLUMNS
    assert list(cells[columns].itertuples(index=False, name=None)) == list(product(*levels))


@pytest.mark.parametrize("number", [1, 2])
def test_cells_are_percentages_that_grow_with_k(number):
    cells = table(number)
    assert cells["mean"].between(5, 90).all() and cells["std"].between(0.1, 3).all()
    runs = cells.pivot(columns="metric", values="mean", index=["dataset", "fine_tuned", "loss", "batch_size"])
    for direction in ("t2a", "a2t"):
        assert (runs[f"{direction}_r1"] < runs[f"{direction}_r5"]).all()
        assert (runs[f"{direction}_r5"] < runs[f"{direction}_r10"]).all()


def test_settings_are_those_of_the_paper():
    first, second = table(1), table(2)
    assert first.groupby("dataset")["batch_size"].unique().map(list).to_dict() == {"audiocaps": [32], "clotho": [24]}
    halved = first[first["learning_rate"] == 5e-5][["dataset", "fine_tuned", "loss"]].drop_duplicates()
    assert sorted(halved.itertuples(index=False, name=None)) == [
        ("clotho", False, "triplet_weighted"),
        ("clotho", True, "triplet_max"),
        ("clotho", True, "triplet_weighted"),
    ]
    assert set(first["learning_rate"]) == {1e-4, 5e-5} and set(second["learning_rate"]) == {1e-4}
    assert set(second["dataset"]) == {"audiocaps"} and not second["fine_tuned"].any()


def test_batch_size_32_repeats_the_frozen_rows_of_table_1():
    first, second = table(1), table(2)
    frozen = first[(first["dataset"] == "audiocaps") & ~first["fine_tuned"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(second[second["batch_size"] == 32].reset_index(drop=True), frozen)


def published(caption):
    """The lines of the paper's table that stands next to its caption: its loss, its star, its twelve numbers."""
    lines = PAPERS[0].read_text().splitlines()
    header = next(k for k, line in enumerate(lines) if line.startswith(caption))
    for line in lines[header + 1 :]:
        if found := re.search(r"(Triplet-sum|Triplet-max|Triplet-weighted|NT-Xent)(\*?)\t(.*)", line):
            numbers = [float(number) for number in re.findall(r"\d+\.\d", found[3])]
            yield found[1].lower().replace("-", "_"), bool(found[2]), numbers
        elif not line.strip():
            return


@pytest.mark.skipif(not PAPERS, reason="needs the paper's text")
@pytest.mark.parametrize("number, caption, rows", [(1, "Dataset\tFine-tune", 16), (2, "Batch size\tObjective", 8)])
def test_every_cell_is_the_papers(number, caption, rows):
    cells = table(number)
    lines = list(published(caption))
    assert len(lines) == rows and len(cells) == 6 * rows
    for start, (loss, star, numbers) in zip(range(0, len(cells), 6), lines, strict=True):
        row = cells.iloc[start : start + 6]
        assert row["loss"].unique().tolist() == [loss] and row["metric"].tolist() == METRICS
        assert row["learning_rate"].unique().tolist() == [5e-5 if star else 1e-4]
        assert row[["mean", "std"]].to_numpy().ravel().tolist() == numbers


def uniformity_table(number):
    """A table of Tourbabin and Ben-Hur, who ran everything once: `mean` is the number printed, `std` is empty."""
    return pd.read_csv(ROOT / f"data/reference/tourbabin2023_table{number}.csv")


@pytest.mark.parametrize(
    "number, columns, levels",
    [
        (1, [*SETTING, "embedding_dim", *CELL], {"embedding_dim": DIMENSIONS, "metric": METRICS}),
        (2, [*SETTING, "embedding_dim", *CELL, "source"], {"embedding_dim": [512, 1024], "metric": METRICS}),
        (
            3,
            ["embedding_dim", "set", *CELL],
            {"embedding_dim": DIMENSIONS, "metric": ["sigma", "h"], "set": ["text", "audio", "uniform", "gaussians"]},
        ),
        (
            4,
            [*SETTING, "embedding_dim", "alpha", *CELL],
            {"alpha": [0, 0.1, 0.33, 1], "metric": [*METRICS, "audio_h", "text_h"]},
        ),
    ],
)
def test_every_cell_of_the_uniformity_paper_is_there_once_in_its_order(number, columns, levels):
    cells = uniformity_table(number)
    assert list(cells.columns) == columns
    assert list(cells[list(levels)].itertuples(index=False, name=None)) == list(product(*levels.values()))
    assert cells["std"].isna().all()


@pytest.mark.parametrize("number, fine_tuned, batch_size", [(1, False, 64), (2, True, 32), (4, True, 32)])
def test_settings_are_those_of_the_uniformity_paper(number, fine_tuned, batch_size):
    cells = uniformity_table(number)
    settings = cells[SETTING].drop_duplicates().values.tolist()
    assert settings == [["audiocaps", fine_tuned, "nt_xent", 1e-4, batch_size]]
    recalls = cells[cells["metric"].isin(METRICS)]
    assert recalls["mean"].between(10, 90).all()
    rows = recalls["mean"].to_numpy().reshape(-1, 2, 3)
    assert (rows[:, :, 0] < rows[:, :, 1]).all() and (rows[:, :, 1] < rows[:, :, 2]).all()


def test_dimension_1024_of_the_uniformity_paper_is_quoted_from_mei():
    cells, theirs = uniformity_table(2), table(1)
    assert cells.groupby("source", sort=False)["embedding_dim"].unique().map(list).to_dict() == {
        "tourbabin2023": [512],
        "mei2022": [1024],
    }
    quoted = theirs[(theirs["dataset"] == "audiocaps") & theirs["fine_tuned"] & (theirs["loss"] == "nt_xent")]
    assert cells[cells["source"] == "mei2022"]["mean"].tolist() == quoted["mean"].tolist()


def test_no_penalty_repeats_dimension_512_of_table_2():
    without, second = uniformity_table(4), uniformity_table(2)
    without = without[(without["alpha"] == 0) & without["metric"].isin(METRICS)]
    assert without["mean"].tolist() == second[second["embedding_dim"] == 512]["mean"].tolist()
    assert set(uniformity_table(4)["embedding_dim"]) == {512}


def printed(caption, before):
    """Rows of the paper's table nearest its caption: their label, their numbers."""
    lines = UNIFORMITY_PAPERS[0].read_text(encoding="utf-8").splitlines()
    at = next(k for k, line in enumerate(lines) if line.startswith(caption))
    rows = lines[:at][::-1] if before else lines[at:]
    found = [line.split("\t") for line in rows if re.match(r"\d[^\t]*\t\d+\.\d", line)]
    return found[::-1] if before else found


@pytest.mark.skipif(not UNIFORMITY_PAPERS, reason="needs the paper's text")
@pytest.mark.parametrize(
    "number, caption, before, labels",
    [
        (1, "Table 1", False, ["128", "256", "512", "1024", "2048"]),
        (2, "Table 2", False, ["512", "1024 (From [6])"]),
        (3, "Table 3", True, ["128", "256", "512", "1024", "2048"]),
        (4, "Table 4", True, ["0", "0.10", "0.33", "1.00"]),
    ],
)
def test_every_cell_is_the_uniformity_papers(number, caption, before, labels):
    rows = printed(caption, before)
    rows = rows[-len(labels) :] if before else rows[: len(labels)]
    assert [label for label, *_ in rows] == labels
    lines = (ROOT / f"data/reference/tourbabin2023_table{number}.csv").read_text().splitlines()
    column = lines[0].split(",").index("mean")
    assert [line.split(",")[column] for line in lines[1:]] == [number for _, *numbers in rows for number in numbers]
    name = "alpha" if number == 4 else "embedding_dim"
    column, cells = lines[0].split(",").index(name), len(rows[0]) - 1
    assert [line.split(",")[column] for line in lines[1:]] == [
        label.split()[0] for label in labels for _ in range(cells)
    ]


CURRICULUM_PAPERS = sorted((ROOT / "../shared/papers").glob("001_*.txt"))
DCASE_PAPERS = sorted((ROOT / "../shared/papers").glob("003_*.txt"))
ENCODERS = ["scratch", "pretrained"]


def curriculum_table(number):
    return pd.read_csv(ROOT / f"data/reference/chao2022_table{number}.csv", keep_default_na=False)


@pytest.mark.parametrize(
    "number, levels",
    [
        (2, {"audio_encoder": ENCODERS, "stage": [1, 2, 3], "metric": METRICS}),
        (3, {"audio_encoder": ENCODERS, "batch_size": [16, 32, 64], "metric": METRICS}),
    ],
)
def test_every_cell_of_the_curriculum_paper_is_there_once_in_its_order(number, levels):
    cells = curriculum_table(number)
    assert list(cells.columns) == ["dataset", *list(levels)[:-1], *CELL] and set(cells["dataset"]) == {"audiocaps"}
    assert list(cells[list(levels)].itertuples(index=False, name=None)) == list(product(*levels.values()))
    assert (cells["std"] == "").all()


def test_the_systems_of_the_curriculum_paper_stand_in_its_order():
    cells = curriculum_table(1)
    rows = cells[["model", "audio_encoder", "mining", "source"]].drop_duplicates().values.tolist()
    ours = [["3CMLF", encoder, mining, "chao2022"] for encoder in ENCODERS for mining in ("no", "yes")]
    baselines = [["baseline", encoder, "", "chao2022"] for encoder in ENCODERS]
    assert rows == [["CE", "", "", "koepke2022"], ["MoEE", "", "", "koepke2022"], *baselines, *ours]
    assert cells["metric"].tolist() == 8 * METRICS


def test_the_last_stage_and_batch_size_32_repeat_table_1():
    first, second, third = map(curriculum_table, (1, 2, 3))
    expected = first[(first["model"] == "3CMLF") & (first["mining"] == "yes")]["mean"].tolist()
    assert second[second["stage"] == 3]["mean"].tolist() == expected
    assert third[third["batch_size"] == 32]["mean"].tolist() == expected


@pytest.mark.skipif(not CURRICULUM_PAPERS, reason="needs the paper's text")
@pytest.mark.parametrize(
    "number, caption, rows", [(1, "Model\tAudio encoder\tWith CHM", 8), (2, "TABLE II", 6), (3, "TABLE III", 6)]
)
def test_every_cell_is_the_curriculum_papers(number, caption, rows):
    lines = CURRICULUM_PAPERS[0].read_text(encoding="utf-8").splitlines()
    at = next(k for k, line in enumerate(lines) if re.match(rf"\s*{caption}( |$|\t)", line))
    found = [re.findall(r"\b\d+\.\d\b", line) for line in lines[at:]]
    printed = [float(value) for numbers in found if len(numbers) == 6 for value in numbers]
    assert curriculum_table(number)["mean"].tolist() == printed[: 6 * rows]


@pytest.mark.skipif(not DCASE_PAPERS, reason="needs the paper's text")
def test_every_cell_is_the_dcase_papers_in_percent():
    cells = pd.read_csv(ROOT / "data/reference/mei2022_dcase_table1.csv")
    lines = [line.split("\t") for line in DCASE_PAPERS[0].read_text(encoding="utf-8").splitlines()]
    printed = [[100 * float(value) for value in row[1:]] for row in lines if re.fullmatch(r"0\.\d+", row[-1])]
    assert cells["mean"].to_numpy().reshape(4, 4) == pytest.approx(pd.DataFrame(printed).to_numpy())
    assert cells["metric"].tolist() == 4 * ["t2a_r1", "t2a_r5", "t2a_r10", "t2a_map10"]
    assert list(dict.fromkeys(cells["system"])) == ["DCASE baseline", "CNN14", "ResNet38", "CNN14, transfer"]
    assert list(dict.fromkeys(cells["source"])) == ["dcase2022", "mei2022"] and set(cells["dataset"]) == {"clotho"}


THESIS = sorted((ROOT / "../shared/papers").glob("004_*.txt"))
THESIS_TABLES = {
    1: ("loss", ["NT-Xent", "Sigmoid"]),
    2: ("audio_share", [1.0, 0.2]),
    3: ("pooling", ["mean", "text-aware"]),
}


@pytest.mark.parametrize("number", THESIS_TABLES)
def test_tables_of_the_thesis_have_each_cell_once(number):
    cells = pd.read_csv(ROOT / f"data/reference/tymofieiev2025_table4_{number}.csv")
    column, rows = THESIS_TABLES[number]
    assert list(cells.columns) == ["dataset", column, *CELL] and set(cells["dataset"]) == {"clotho"}
    metrics = ["t2a_r1", "t2a_r5", "t2a_r10", "t2a_map10"]
    assert list(cells[[column, "metric"]].itertuples(index=False, name=None)) == list(product(rows, metrics))
    assert cells["std"].isna().all() if number == 1 else cells["std"].between(0.05, 1).all()


def test_the_slower_rate_and_mean_pooling_are_the_same_runs():
    second, third = (pd.read_csv(ROOT / f"data/reference/tymofieiev2025_table4_{number}.csv") for number in (2, 3))
    slow, mean = second[second["audio_share"] == 0.2][CELL], third[third["pooling"] == "mean"][CELL]
    pd.testing.assert_frame_equal(slow.reset_index(drop=True), mean.reset_index(drop=True))


@pytest.mark.skipif(not THESIS, reason="needs the thesis's text")
@pytest.mark.parametrize("number", THESIS_TABLES)
def test_every_cell_is_what_the_thesis_prints(number):
    lines = THESIS[0].read_text().splitlines()
    cells = pd.read_csv(ROOT / f"data/reference/tymofieiev2025_table4_{number}.csv")
    column, rows = THESIS_TABLES[number]
    printed = {}
    if number == 1:
        for name, start in (("NT-Xent", "NT-Xent\t"), ("Sigmoid", "Sigmoid Loss\t")):
            line = next(line for line in lines if line.startswith(start))
            for metric, value in zip(("t2a_r1", "t2a_r5", "t2a_r10", "t2a_map10"), line.split("\t")[1:], strict=True):
                printed[name, metric] = (value, "")
    else:
        header = next(
            k for k, line in enumerate(lines) if line.startswith("Metric\tATST" + (":" if number == 2 else "+"))
        )
        for line in lines[header + 1 : header + 5]:
            name, *values = line.split("\t")
            metric = "t2a_" + name.lower().replace("@", "")
            for row, value in zip(rows, values, strict=True):
                printed[row, metric] = tuple(value.split(" ± "))
    for row in cells.itertuples():
        mean, deviation = printed[getattr(row, column), row.metric]
        assert row.mean == pytest.approx(100 * float(mean)) and (
            pd.isna(row.std) if deviation == "" else row.std == pytest.approx(100 * float(deviation))
        )
    assert len(printed) == len(cells)


def test_the_claims_say_of_each_paper_what_where_and_how_it_is_judged():
    claims = pd.read_csv(ROOT / "data/reference/claims.csv", dtype=str, keep_default_na=False)
    columns = "paper place claim direction notebook measure rule effect note comparisons figure"
    assert list(claims) == columns.split()
    assert claims["paper"].nunique() == 5 and not claims.duplicated(["paper", "claim"]).any()
    assert (claims[["paper", "place", "claim", "direction"]] != "").all(axis=None)
    assert set(claims["direction"]) <= {"T→A", "both", "—"} and set(claims["rule"]) <= {
        "beats",
        "within",
        "no less",
        "span",
        "range",
        "",
    }
    judged = claims[claims["notebook"] != ""]
    assert (claims.loc[claims["notebook"] == "", "note"].str.startswith("not here: ")).all()
    assert {path.stem[:2] for path in notebooks()} >= set(judged["notebook"]) and (judged["measure"] != "").all()
    assert pd.to_numeric(judged.loc[~judged["rule"].isin(["span", "range"]), "effect"]).ge(0).all()


def test_comparisons_and_figures_of_the_claims_are_those_of_the_committed_results():
    claims = pd.read_csv(ROOT / "data/reference/claims.csv", dtype=str, keep_default_na=False)
    committed, drawn = {}, {path.stem for path in (ROOT / "results/reference").glob("*/figures/*.png")}
    for path in (ROOT / "results/reference").glob("*/tables/*.csv"):
        table = pd.read_csv(path)
        if "verdict" in table:
            caption = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["caption"]
            words = table["claim"] if "claim" in table else [caption]
            committed.setdefault(path.name[:2], set()).update(words)
    assert set(claims["figure"]) - {""} <= drawn
    for number, rows in claims[claims["comparisons"] != ""].groupby("notebook"):
        patterns = [re.compile(pattern.removeprefix("not ")) for pattern in rows["comparisons"]]
        found = {words: sum(bool(one.search(words)) for one in patterns) for words in committed[number]}
        assert max(found.values()) == 1, found
        here = ~rows["note"].str.startswith(("pending", "in profile paper"))
        assert all(
            any(map(one.search, committed[number])) for one, wanted in zip(patterns, here, strict=True) if wanted
        ), number


@pytest.mark.parametrize("number", [f"0{number}" for number in range(1, 10)])
def test_the_notebooks_judge_by_the_effect_that_the_claims_name(number):
    claims = pd.read_csv(ROOT / "data/reference/claims.csv", dtype={"notebook": str})
    mine = claims[(claims["notebook"] == number) & claims["rule"].isin(["beats", "within", "no less"])]
    named = {(rule, effect) for rule, effect in zip(mine["rule"], mine["effect"].astype(float), strict=True)}
    source = "\n".join(cell.source for cell in nbformat.read(notebooks([number])[0], 4).cells)
    found = re.findall(r"\b(least|within|no_less)\"?[=:] ?(\d+\.\d+)", source)
    judged = {({"least": "beats", "no_less": "no less"}.get(rule, rule), float(effect)) for rule, effect in found}
    if number in ("01", "02"):
        assert judged == named
    else:  # the others ask more than is claimed; that one is just ahead needs no number, the voxel network no interval
        needed = {one for one in named if one[1]} - ({("within", 1.0)} if number == "04" else set())
        assert needed and judged >= needed
