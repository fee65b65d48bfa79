"""The page of findings, and the README's tables: as the committed tables have them, no effect told that is none."""

import re

import pandas as pd
import pytest

from atr.reports import findings
from atr.reports.verdicts import comparisons
from atr.system import places

REFERENCE = places.PROJECT / "results" / "reference"
COMMITTED = sorted(REFERENCE.glob("*/ranks/*.npz"))


def judged(**verdicts):
    rows = [
        {"claim": claim, "difference": 2.04, "low": 1.0, "high": 3.0, "verdict": verdict}
        for claim, verdict in verdicts.items()
    ]
    return pd.DataFrame(rows)


def test_a_size_is_told_of_an_effect_alone():
    table = judged(**{"a beats b, T→A": "holds", "a beats b, A→T": "undecided", "c beats d": "not converged"})
    assert [" ".join(line.split()) for line in findings.claims(table).splitlines()[2:]] == [
        "| a beats b | | holds: +2.0 (1.0 to 3.0) | undecided |",
        "| c beats d | not converged | | |",
    ]
    assert "2.0" not in findings.claims(judged(a="undecided", b="not converged"))
    small = pd.Series({"verdict": "contradicted", "difference": -0.021, "low": -0.03, "high": -0.01})
    assert findings.verdict(small) == "contradicted: -0.021 (-0.030 to -0.010)"


def test_claims_are_counted_by_verdict():
    found = findings.verdict_counts(judged(a="holds", b="undecided", c="undecided", d="not converged"))
    assert found == "4 comparisons: holds 1, undecided 2, not converged 1."
    assert findings.verdict_counts(judged(a="not judged", b="holds")) == "2 comparisons: holds 1, not judged 1."


def test_the_best_row_of_each_training_is_named_and_columns_that_tell_nothing_apart_are_left_out():
    columns = ["corpus", "training", "loss", "seeds", "t2a_map10", "t2a_map10_std"]
    rows = [
        ("a", "frozen", "NT-Xent", 5, 30, 1),
        ("a", "frozen", "Triplet", 5, 31, 2),
        ("a", "finetuned", "NT-Xent", 5, 40, 1),
    ]
    table = pd.DataFrame([*rows, ("a", None, "chance", None, 90, None)], columns=columns)
    assert findings.best(table) == "Highest T→A mAP@10: finetuned, NT-Xent 40.0 ± 1.0; frozen, Triplet 31.0 ± 2.0."
    bounds = table.assign(t2a_map10_low=table["t2a_map10"] - 3, t2a_map10_high=table["t2a_map10"] + 4)
    told = "Highest T→A mAP@10: finetuned, NT-Xent 40.0 (37.0 to 44.0); frozen, Triplet 31.0 (28.0 to 35.0)."
    assert findings.best(bounds, interval=True) == told
    assert findings.results(table).splitlines()[0].split() == "| training | loss | T→A mAP@10 |".split()


def test_a_conclusion_tells_the_best_the_counts_and_what_has_an_effect(tmp_path):
    folder = tmp_path / "demo" / "tables"
    folder.mkdir(parents=True)
    start = "**What we found** (`demo`)"
    assert findings.conclude(tmp_path / "demo", "07_sigmoid_loss") == f"{start}\n"
    judged(**{"a beats b": "holds", "c beats d": "undecided"}).to_csv(folder / "07_claims.csv", index=False)
    counts = "2 comparisons: holds 1, undecided 1."
    line = "- a beats b: holds: +2.0 (1.0 to 3.0)."
    assert findings.conclude(tmp_path / "demo", "07_sigmoid_loss") == f"{start} {counts}\n\n{line}"
    columns = ["loss", "seeds", "t2a_map10", "t2a_map10_std"]
    pd.DataFrame([("x", 5, 30, 1), ("y", 5, 31, 2)], columns=columns).to_csv(
        folder / "07_sigmoid_loss.csv", index=False
    )
    found = findings.conclude(tmp_path / "demo", "07_sigmoid_loss")
    assert found == f"{start} Highest T→A mAP@10: y 31.0 ± 2.0. {counts}\n\n{line}"
    judged(**{"b beats c": "contradicted"}).to_csv(folder / "07_training_claims.csv", index=False)
    found = findings.conclude(tmp_path / "demo", "07_sigmoid_loss")
    assert "3 comparisons: holds 1, contradicted 1, undecided 1." in found and "\n- b beats c: contradicted" in found
    written = findings.Conclusion("07_sigmoid_loss").write(tmp_path / "demo", ["- more"])
    assert written.data == f"{found}\n- more"


def test_what_stands_between_marks_is_replaced():
    page = "# a\n\n<!-- x: written by `atr reference` -->\n\nold\n\n<!-- end -->\n\nrest\n"
    found = findings.replace_parts(page, [("x", "new")])
    assert found == page.replace("old", "new") == findings.replace_parts(found, [("x", "new")])
    with pytest.raises(ValueError, match="README.md: 0 lines '<!-- y: written"):
        findings.replace_parts(page, [("y", "new")])


def test_a_verdict_of_before_stands_beside_those_of_now_and_its_words_are_theirs():
    before = pd.DataFrame(
        [{"notebook": "01", "profile": "demo", "claim": "a beats b", "before": "holds", "reason": "budgets"}]
    )
    now = judged(**{"a beats b, T→A": "undecided", "a beats b, A→T": "holds"})
    last = findings.changes(before, {("demo", "01"): now}).splitlines()[-1]
    assert " ".join(last.split()) == "| demo | 01 | a beats b | holds | undecided; holds: +2.0 (1.0 to 3.0) | budgets |"
    assert "beats" not in findings.changes(before, {("demo", "02"): now})
    elsewhere = {("demo", "01"): judged(other="holds"), ("esc50", "01"): now}
    assert "| not asked |" in " ".join(findings.changes(before, elsewhere).splitlines()[-1].split())
    with pytest.raises(ValueError, match="'a beats b' is no claim of notebook 01 now"):
        findings.changes(before, {("demo", "01"): judged(other="holds")})


def test_where_two_profiles_decide_and_differ_is_said():
    demo = {"soundscapes, frozen: a beats b": "holds", "c (in CNN14's place) beats d": "holds", "e beats f": "holds"}
    real = {"scenes of ESC-50, frozen: a beats b": "holds", "m (in CNN14's place) beats d": "contradicted"}
    made = {("demo", "01"): judged(**demo), ("esc50", "01"): judged(**real, **{"e beats f": "undecided"})}
    found = findings.apart(made)
    rows = [" ".join(line.split()) for line in found.splitlines() if line.startswith("| ")]
    assert "both decide: 1 of 2 alike" in found
    effect = "+2.0 (1.0 to 3.0)"
    assert rows[1:] == [f"| 01 | CNN14 beats d | holds: {effect} | contradicted: {effect} |"]
    alike = findings.apart({key: table.head(1) for key, table in made.items()})
    assert "1 of 1 alike" in alike and "none." in alike and "| " not in alike


@pytest.mark.skipif(not COMMITTED, reason="no results are committed yet by the protocol")
def test_the_committed_pages_are_what_the_committed_tables_say():
    again = "; run: atr reference, or atr.reports.findings.write"
    page = (places.PROJECT / "docs" / "findings.md").read_text(encoding="utf-8")
    assert page == findings.page(places.PROJECT), f"docs/findings.md is stale{again}"
    readme = (places.PROJECT / "README.md").read_text(encoding="utf-8")
    assert readme == findings.replace_parts(readme, findings.lead(places.PROJECT)), f"README.md is stale{again}"
    headings = {findings.anchor(line.lstrip("# ")) for line in page.splitlines() if line.startswith("#")}
    assert set(re.findall(r"docs/findings\.md#([\w-]+)", readme)) <= headings


def test_each_claim_of_a_paper_has_its_verdict_by_profile_or_says_why_not(tmp_path):
    columns = "paper,place,claim,direction,notebook,measure,rule,effect,note,comparisons,figure"
    rows = [
        "A 2001,table 1,One beats two,T→A,01,mAP@10,beats,1,,^one beats,",
        "A 2001,table 2,Two is not worse,T→A,01,mAP@10,no less,1,,not ^three,",
        "A 2001,section 3,Else,—,05,mAP@10,beats,1,pending: not run,,",
        "A 2001,section 4,Last,T→A,02,mAP@10,beats,1,,^last beats,",
        "B 2002,table 9,More,—,,,,,not here: a reason,,",
    ]
    (tmp_path / "claims.csv").write_text("\n".join([columns, *rows]))
    table = judged(**{"one beats two, T→A": "holds", "one beats two, A→T": "undecided", "three is worse": "holds"})
    made = {("demo", "01"): comparisons("01", table, ""), ("esc50", "02"): []}
    lines = findings.papers(tmp_path / "claims.csv", made).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    assert cells[0] == ["claim", "judged", "notebook", "demo", "esc50"]
    judgement = "by mAP@10; holds if ahead by 1 or more"
    assert cells[1] == ["One beats two (table 1)", judgement, "01", "holds in part (1 of 2 holds)", "—"]
    assert cells[2][3:] == ["contradicted", "—"]
    assert cells[3] == ["Else (section 3)", judgement, "05", "pending: not run", "pending: not run"]
    assert cells[4][3:] == ["—", "not asked"]
    assert cells[6] == ["More (table 9)", "—", "—", "not here: a reason", "not here: a reason"]
