"""The page of published numbers: made from its table, and the table from published ones."""

import pandas as pd
import pytest

from atr.evaluation import leaderboard
from atr.system import places

METRICS = {"t2a_r1": "t2a R@1", "t2a_r5": "t2a R@5", "t2a_r10": "t2a R@10", "t2a_map10": "t2a mAP@10"}
METRICS |= {"a2t_r1": "a2t R@1", "a2t_r5": "a2t R@5", "a2t_r10": "a2t R@10"}


def test_the_page_is_what_the_table_makes():
    made = leaderboard.page(leaderboard.read())
    assert leaderboard.PAGE.read_text(encoding="utf-8") == made, "run: python -m atr.evaluation.leaderboard"


def test_every_row_that_names_a_published_table_is_a_row_of_it():
    rows = leaderboard.read()
    assert (rows["table"] != "").sum() > 30 and not rows.duplicated(["model", "protocol", "source", "note"]).any()
    for name, part in rows[rows["table"] != ""].groupby("table"):
        published = pd.read_csv(places.PROJECT / "data" / "reference" / f"{name}.csv", dtype=str, keep_default_na=False)
        keys = [column for column in published if column not in ("metric", "mean", "std")]
        known = [dict(zip(group["metric"], group["mean"], strict=True)) for _, group in published.groupby(keys)]
        for row in part.to_dict("records"):
            found = {metric: row[column] for metric, column in METRICS.items() if row[column]}
            assert found in known, (name, row["model"])
            dataset = row["protocol"].split("-")[0].replace("dcase2022", "clotho")
            assert dataset in {*published["dataset"], "not stated"}


def test_the_best_stands_first_and_blanks_are_told():
    cells = dict.fromkeys([*leaderboard.WORDS, *leaderboard.NUMBERS], "") | {
        "protocol": "folder",
        "by": "us",
        "source": "a|b",
    }
    table = pd.DataFrame([cells | {"model": str(r10), "t2a R@10": str(r10)} for r10 in (9.5, 10.5, 10.0)])
    lines = [line for line in leaderboard.page(table).splitlines() if line.startswith("| ")]
    assert lines[2:] == [f"| {r10} | {r10} | — | us | a\\|b |" for r10 in (10.5, 10.0, 9.5)]


def test_rows_with_few_numbers_have_a_place():
    """By what most rows have; the others last; where no protocol is stated, by data set."""
    cells = dict.fromkeys([*leaderboard.WORDS, *leaderboard.NUMBERS], "") | {"by": "us", "source": "s"}
    rows = [("a", "40", "80", "B"), ("b", "50", "", "A"), ("c", "", "", "A"), ("d", "45", "", "A; x")]
    columns = ("model", "t2a R@1", "t2a R@10", "note")
    for protocol, order in {"folder": "bdac", leaderboard.UNKNOWN: "bdca"}.items():
        table = pd.DataFrame(
            [cells | {"protocol": protocol, "a2t R@1": "1"} | dict(zip(columns, row, strict=True)) for row in rows]
        )
        lines = [line for line in leaderboard.page(table).splitlines() if line.startswith("| ")]
        assert "".join(line[2] for line in lines[2:]) == order


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("protocol", "clotho", "'CE': protocol 'clotho'; known: audiocaps-883"),
        ("source", "", "'CE': needs numbers from 0 to 100, a source"),
        ("t2a R@1", "236", "'CE': needs numbers from 0 to 100"),
    ],
)
def test_rows_that_cannot_be_held_against_others_are_refused(tmp_path, column, value, words):
    table = leaderboard.read()
    table.loc[table["model"] == "CE", column] = value
    table.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(ValueError, match=words):
        leaderboard.read(tmp_path / "t.csv")
    table.drop(columns="note").to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(ValueError, match="columns model, .*; give model, protocol, t2a R@1"):
        leaderboard.read(tmp_path / "t.csv")
