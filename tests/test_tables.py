import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from made_runs import made_run, ranks_with

from atr import RunConfig, get_profile, register
from atr.experiments.grid import Runs
from atr.losses.pair import LOSSES
from atr.reports import latex, names, output, tables, verdicts
from atr.reports.reference import as_printed, beside_published, differences, published
from atr.system import places

CLIPS = 60
COMMITTED = sorted((places.PROJECT / "results" / "reference").glob("*/tables"))


def results(**columns):
    """A frame of runs as `tables.run_table` gives it, columns by name."""
    return pd.DataFrame(columns)


def seeds(folder, share, name, count=3, clips=CLIPS, config=None):
    """Runs that differ by seed, each finding `share` of its queries at rank 1."""
    config = config or RunConfig()
    return [
        made_run(
            folder,
            f"{name}-{seed}",
            config.replace(seed=seed),
            ranks_with(share, 2 * clips, seed),
            ranks_with(share, clips, seed),
        )
        for seed in range(count)
    ]


def test_summary_gives_mean_and_sample_deviation_over_seeds():
    table = results(loss=["a", "a", "a", "b"], seed=[0, 1, 2, 0], t2a_r10=[1.0, 2.0, 6.0, 4.0])
    summary = tables.summary(table, ["loss"], ["t2a_r10"])
    assert summary.loc["a", "t2a_r10"] == 3 and summary.loc["a", "seeds"] == 3
    assert summary.loc["a", "t2a_r10_std"] == pytest.approx(math.sqrt(7))  # (4 + 1 + 9) / (3 - 1)
    assert summary.loc["b", "t2a_r10"] == 4 and math.isnan(summary.loc["b", "t2a_r10_std"])


def test_summary_of_nothing_is_an_empty_table():
    empty = pd.DataFrame({"loss": [], "t2a_r10": []})
    assert len(tables.summary(empty, ["loss"], ["t2a_r10"])) == 0


@pytest.mark.parametrize(
    "mean, deviation, text",
    [
        (17.24, 0.45, "17.2 ± 0.5"),
        (17.24, None, "17.2"),
        (17.24, float("nan"), "17.2"),
        (float("nan"), 0.5, "—"),
        (None, None, "—"),
    ],
)
def test_a_cell_is_mean_plus_minus_deviation(mean, deviation, text):
    assert names.plus_minus(mean, deviation) == text


def test_shown_names_columns_for_readers_and_keeps_the_number_of_seeds():
    table = results(loss=["a", "a", "b"], t2a_r10=[1.0, 3.0, 4.0])
    shown = tables.formatted(tables.summary(table, ["loss"], ["t2a_r10"]), ["t2a_r10"])
    assert shown.to_dict("index") == {
        "a": {"seeds": "2", "T→A R@10": "2.0 ± 1.4"},
        "b": {"seeds": "1", "T→A R@10": "4.0"},
    }


@pytest.mark.parametrize(
    "spans, verdict",
    [
        ([9, 3, 1], "holds"),
        ([3, 9, 27], "contradicted"),
        ([9, 3, 27], "undecided"),
        ([3, 3, 3], "contradicted"),
        ([1, 1, 1], "undecided"),
    ],
)
def test_sensitivity_holds_if_the_suspects_suit_fewer_rates(spans, verdict):
    table = pd.DataFrame({"span": spans}, index=pd.Index(["sum", "max", "weighted"], name="loss"))
    row = verdicts.sensitivity_claim(table, ["max", "weighted"])
    assert row["verdict"] == verdict and row["claim"].startswith("max and weighted")


@pytest.mark.parametrize(
    "least, verdict", [(0.0, "holds"), (60.0, "holds"), (72.0, "undecided"), (99.0, "contradicted")]
)
def test_a_claim_holds_by_its_effect_and_not_by_its_sign_alone(tmp_path, least, verdict):
    good, bad = seeds(tmp_path, 0.9, "good"), seeds(tmp_path, 0.2, "bad")
    judged = verdicts.claims([{"claim": "by far", "a": good, "b": bad, "least": least}])
    assert judged["difference"].item() == pytest.approx(70) and 72 < judged["high"].item() < 99
    assert judged["verdict"].item() == verdict


def test_no_verdict_rests_on_what_has_not_converged(tmp_path):
    good, bad = seeds(tmp_path, 0.9, "good"), seeds(tmp_path, 0.2, "bad")
    judged = verdicts.claims(verdicts.both_ways("better", good, bad, converged=False))
    assert judged["claim"].tolist() == ["better, T→A", "better, A→T"]
    assert set(judged["verdict"]) == {"not converged"} and (judged["difference"] > 50).all()


def test_a_clear_difference_holds_or_is_contradicted(tmp_path):
    good, bad = seeds(tmp_path, 0.9, "good"), seeds(tmp_path, 0.2, "bad")
    judged = verdicts.claims(
        [{"claim": "good first", "a": good, "b": bad}, {"claim": "bad first", "a": bad, "b": good}]
    )
    assert judged["verdict"].tolist() == ["holds", "contradicted"]
    assert judged["difference"].tolist() == pytest.approx([70, -70])
    assert (judged["low"] < judged["difference"]).all() and (judged["difference"] < judged["high"]).all()


def test_equal_systems_stay_undecided(tmp_path):
    same, other = seeds(tmp_path, 0.5, "same"), seeds(tmp_path, 0.5, "other")
    assert verdicts.claims([{"claim": "better", "a": same, "b": other}])["verdict"].tolist() == ["undecided"]


def test_p_values_are_corrected_over_the_ordered_claims_only(tmp_path):
    good, bad = seeds(tmp_path, 0.9, "good"), seeds(tmp_path, 0.2, "bad")
    alone = verdicts.claims([{"claim": "better", "a": good, "b": bad}])
    rows = [{"claim": "better", "a": good, "b": bad}] * 3 + [{"claim": "alike", "a": good, "b": bad, "within": 3.0}]
    together = verdicts.claims(rows)
    assert together["p (Holm)"][:3].tolist() == pytest.approx([3 * alone["p (Holm)"][0]] * 3)
    assert math.isnan(together["p (Holm)"][3])


@pytest.mark.parametrize("share, margin, verdict", [(0.5, 3.0, "holds"), (0.9, 3.0, "contradicted")])
def test_within_holds_if_the_interval_of_the_difference_lies_inside(tmp_path, share, margin, verdict):
    a, b = seeds(tmp_path, 0.5, "a"), seeds(tmp_path, share, "b")
    rows = [{"claim": "alike", "a": a, "b": b, "within": margin}, {"claim": "alike", "a": b, "b": a, "within": margin}]
    assert verdicts.claims(rows)["verdict"].tolist() == [verdict, verdict]


@pytest.mark.parametrize(
    "shift, verdict", [(0.0, "holds"), (-0.4, "holds"), (-0.5, "undecided"), (-0.6, "contradicted"), (3.0, "holds")]
)
def test_no_less_holds_if_the_interval_of_the_difference_lies_above_the_margin(shift, verdict):
    # Given losses of three seeds whose differences have an interval of ±0.05 around the shift
    theirs = np.array([1.0, 2.0, 3.0])
    ours = theirs + shift + 0.05 * np.sqrt(3) / 4.303 * np.array([-1, 0, 1])
    judged = verdicts.claims([{"claim": "no harm", "a": ours, "b": theirs, "no_less": 0.5}]).iloc[0]
    assert judged["verdict"] == verdict and np.isnan(judged["p (Holm)"])
    assert judged["high"] - judged["low"] == pytest.approx(0.1, abs=1e-4)


def test_within_is_undecided_if_the_interval_reaches_over_the_margin(tmp_path):
    a = [made_run(tmp_path, "a", RunConfig(), ranks_with(0.5, 20, 0), ranks_with(0.5, 10, 0))]
    b = [made_run(tmp_path, "b", RunConfig(), ranks_with(0.55, 20, 1), ranks_with(0.5, 10, 1))]
    judged = verdicts.claims([{"claim": "alike", "a": a, "b": b, "within": 3.0}])
    assert judged["low"][0] < -3 and judged["high"][0] > 3 and judged["verdict"][0] == "undecided"


def test_a_claim_may_ask_for_another_k_and_direction(tmp_path):
    a = [made_run(tmp_path, "a", RunConfig(), [1] * 8, [7] * 8)]
    b = [made_run(tmp_path, "b", RunConfig(), [20] * 8, [7] * 8)]
    row = {"claim": "a first", "a": a, "b": b}
    assert verdicts.claims([row])["difference"].tolist() == [100]
    assert verdicts.claims([row | {"direction": "a2t"}])["difference"].tolist() == [0]
    assert verdicts.claims([row | {"k": 20}])["difference"].tolist() == [0]


def test_frame_has_a_row_a_run_with_the_words_of_the_tables(tmp_path):
    smoke = get_profile("smoke")
    config = smoke.config("soundscapes", "frozen", "triplet_max", seed=4, rate=0.5)
    run = made_run(tmp_path, "one", config, [1, 2, 11, 1], [1, 30], validation_r10=12.5)
    row = tables.run_table([(config, run)], smoke).iloc[0]
    assert row[["corpus", "training", "loss", "seed"]].tolist() == ["soundscapes", "frozen", "Triplet-max", 4]
    assert row["rate"] == 5e-4 and row["batch"] == 16 and row["epochs"] == config.epochs and row["best_epoch"] == 3
    assert row["validation_t2a_r10"] == 12.5 and row["t2a_r10"] == 75 and row["t2a_r1"] == 50 and row["a2t_r10"] == 50
    assert row["run"] is run


def test_the_released_kind_of_frozen_training_is_called_frozen(tmp_path):
    paper = get_profile("paper")
    config = paper.config("Clotho", "frozen", "nt_xent", seed=0)
    table = tables.run_table([(config, made_run(tmp_path, "one", config, [1, 2], [1, 2]))], paper)
    assert config.training == "frozen_released" and table["training"].tolist() == ["frozen"]
    assert table["corpus"].tolist() == ["Clotho"]


def test_runs_by_gives_the_matching_runs_in_order_of_their_seeds():
    table = results(loss=["a", "b", "a", "a"], batch=[16, 16, 16, 32], seed=[1, 0, 0, 0], run=["a1", "b0", "a0", "big"])
    assert tables.runs_by(table, loss="a", batch=16) == ["a0", "a1"]


def test_losses_stand_in_the_order_of_the_papers():
    assert tables.in_order(["NT-Xent", "Triplet-max", "NT-Xent"]) == ["Triplet-max", "NT-Xent"]


def test_baselines_follow_below_the_results():
    table = results(corpus=["x"] * 2, training=["frozen"] * 2, loss=["NT-Xent"] * 2)
    for column in names.MEASURES:
        table[column] = [40.0, 42.0]
    untrained = results(corpus=["x"] * 2, **{column: [1.0, 3.0] for column in names.MEASURES})
    chance = {"x": dict.fromkeys(names.MEASURES, 0.5) | {"t2a_r5": 9.9}}
    summary = tables.summary(table, ["corpus", "training", "loss"])
    below = tables.with_baselines(summary, untrained, chance)
    assert below.index.tolist() == [("x", "frozen", "NT-Xent"), ("x", "", "untrained"), ("x", "", "chance")]
    assert below["t2a_r10"].tolist() == [41, 2, 0.5] and list(below.columns) == list(summary.columns)
    assert tables.formatted(below)["T→A R@10"].tolist() == ["41.0 ± 1.4", "2.0 ± 1.4", "0.5"]


def test_scores_hold_a_row_a_seed_and_a_column_a_clip(tmp_path):
    run = made_run(tmp_path, "one", RunConfig(), [1, 1, 1, 50], [1, 50])
    assert verdicts.scores([run, run]).tolist() == [[100, 50], [100, 50]]
    assert verdicts.scores([run], direction="a2t").tolist() == [[100, 0]]


# The paper's table 1, AudioCaps, frozen, T→A and A→T; and of table 2, batch size 128.
FROZEN_SUM = ["17.2 ± 0.5", "47.6 ± 0.2", "64.3 ± 0.1", "19.3 ± 1.5"]


def test_a_published_table_is_shown_as_it_was_printed():
    table = as_printed(published("mei2022_table1"), ["dataset", "training", "loss"])
    assert table.loc[("AudioCaps", "frozen", "Triplet-sum")].tolist()[:4] == FROZEN_SUM
    assert len(table) == 16 and list(table.columns) == [names.HEADINGS[column] for column in names.RECALLS]
    assert table.index[:2].tolist() == [("AudioCaps", "frozen", "Triplet-sum"), ("AudioCaps", "frozen", "Triplet-max")]
    assert table.index[4][1] == "finetuned" and table.index[8][0] == "Clotho"


def test_the_second_published_table_goes_by_batch_size():
    table = as_printed(published("mei2022_table2"), ["batch", "loss"])
    assert table.loc[(32, "Triplet-sum")].tolist()[:4] == FROZEN_SUM
    assert [batch for batch, _ in table.index] == [32] * 4 + [128] * 4


def test_an_unknown_published_table_is_refused_with_the_known_ones():
    with pytest.raises(FileNotFoundError, match="mei2022_table9.*known: .*mei2022_table1, mei2022_table2"):
        published("mei2022_table9")


def test_published_and_own_numbers_stand_side_by_side():
    ours = results(
        corpus=["soundscapes"] * 2, training=["frozen"] * 2, loss=["Triplet-sum"] * 2, seed=[0, 1], t2a_r1=[10.0, 12.0]
    )
    side = beside_published(ours, published("mei2022_table1"), ["training", "loss"], ["t2a_r1"])
    row = side.loc[("frozen", "Triplet-sum"), "T→A R@1"]
    assert row["AudioCaps, published"] == "17.2 ± 0.5" and row["soundscapes, ours"] == "11.0 ± 1.4"
    assert list(row.index) == ["AudioCaps, published", "Clotho, published", "soundscapes, ours"]
    assert side.loc[("finetuned", "Triplet-sum"), ("T→A R@1", "soundscapes, ours")] == "—"
    assert side.index.names == ["training", "loss"] and len(side) == 8


def test_rows_that_only_our_runs_have_are_not_lost_beside_the_published_ones():
    ours = results(corpus=["soundscapes"] * 2, batch=[16, 32], loss=["NT-Xent"] * 2, seed=[0, 0], t2a_r1=[10.0, 12.0])
    side = beside_published(ours, published("mei2022_table2"), ["batch", "loss"], ["t2a_r1"])["T→A R@1"]
    assert side.loc[(16, "NT-Xent")].tolist() == ["—", "10.0"]
    assert side.loc[(32, "NT-Xent"), "soundscapes, ours"] == "12.0"
    assert len(side) == 9


def test_beside_works_by_one_column():
    ours = results(corpus=["x"], loss=["NT-Xent"], t2a_r1=[12.0])
    reference = published("mei2022_table2").query("batch == 32")
    side = beside_published(ours, reference, ["loss"], ["t2a_r1"])
    assert side.loc["NT-Xent", ("T→A R@1", "x, ours")] == "12.0"


@pytest.mark.parametrize(
    "caption, tested",
    [
        ("The search of learning rates, by validation mAP@10.", False),
        ("Validation mAP@10 after the epochs and after twice as many.", False),
        ("Validation T→A R@10 by learning rate.", False),
        ("Batch sizes, each loss at its own learning rate by validation.", True),
    ],
)
def test_scores_of_validation_are_not_said_to_be_of_the_test_clips(caption, tested):
    told = output.legend(pd.DataFrame({"rate": [1.0]}), {"caption": caption, "measured": "500 test clips"})
    assert ("Measured on 500 test clips." in told) == tested and told.startswith(caption)


def test_a_saved_table_can_be_read_again_from_each_form(tmp_path):
    run = made_run(tmp_path / "runs", "0123456789abcdef", RunConfig(), [1, 2], [1, 2])
    table = tables.summary(results(loss=["a", "a", "b"], t2a_r10=[1.0, 2.0, 4.0]), ["loss"], ["t2a_r10"])
    path = output.save(table, tmp_path, "01_losses", "Losses.", [run, run])

    assert path == tmp_path / "tables" / "01_losses.csv"
    read = pd.read_csv(path).set_index("loss")
    pd.testing.assert_frame_equal(read, table, check_dtype=False)

    title, grid, origin = path.with_suffix(".md").read_text().strip().split("\n\n")
    told = "R@k in percent. Measured on 2 test clips of soundscapes. Mean ± standard deviation over 1 to 2 seeds."
    assert title == f"Losses. {told}"
    assert origin == "1 run, 0.50 h in sum; cpu, Linux x86_64; PyTorch 1.0."
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in grid.splitlines()]
    assert rows[0] == ["loss", "seeds", "T→A R@10"] and rows[2:] == [["a", "2", "1.5 ± 0.7"], ["b", "1", "4.0"]]

    latex = path.with_suffix(".tex").read_text()
    assert latex.count(r"\toprule") == 1 and r"\label{tab:01_losses}" in latex
    assert r"a & 2 & 1.5 $\pm$ 0.7 \\" in latex and latex.index("Losses.") < latex.index("toprule") < latex.index(
        "1 run"
    )

    record = json.loads(path.with_suffix(".json").read_text())
    assert record["caption"] == "Losses." and record["runs"] == ["0123456789abcdef"]
    assert record["commits"] == ["0123456789ab"] and record["versions"]["torch"] == ["1.0"]


@pytest.mark.parametrize(
    "row, text",
    [
        ((-12.14, -14.2, -10.1), ("-12.1", "-14.2 to -10.1")),
        ((-0.18, -1.83, 1.47), ("-0.18", "-1.83 to 1.47")),
        ((-0.01, -1.6461, 1.6261), ("-0.01", "-1.65 to 1.63")),  # not -0.0100: half the interval is 1.64
        ((-0.023, -0.784, 0.738), ("-0.02", "-0.78 to 0.74")),
        ((0.061, -0.19, 0.31), ("+0.061", "-0.190 to 0.310")),
        ((0.001, -12.3, 12.4), ("+0.0", "-12.3 to 12.4")),
        ((0.0264, 0.0171, 0.0359), ("+0.026", "0.017 to 0.036")),
        ((0.0264, 0.0264, 0.0264), ("+0.026", "0.026 to 0.026")),
        ((0.0, 0.0, 0.0), ("+0.0", "0.0 to 0.0")),
        ((np.nan, 0.2, 4.56), ("—", "0.20 to 4.56")),
        ((np.nan, np.nan, np.nan), ("—", "—")),
    ],
)
def test_a_difference_has_no_more_digits_than_its_interval_bears(row, text):
    assert names.effect(*row) == text


@pytest.mark.parametrize(
    "on, said",
    [
        (None, "Measured on 2 test clips of soundscapes."),
        ("65 recordings", "Measured on 65 recordings."),
        ("", None),
    ],
)
def test_a_table_says_what_it_was_measured_on(on, said, tmp_path):
    run = made_run(tmp_path / "runs", "0123456789abcdef", RunConfig(), [1, 2], [1, 2])
    table = pd.DataFrame({"batches": ["hard"], "first tenth": [0.5]})
    path = output.save(table, tmp_path, "05_batches", "Mined batches.", [run], on=on)
    for ending in ("md", "tex"):
        text = path.with_suffix(f".{ending}").read_text()
        assert (said or "Mined batches.") in text and ("Measured on" in text) == (said is not None)
    before = path.with_suffix(".md").read_text()
    output.render(path.parent)
    assert path.with_suffix(".md").read_text() == before


def test_a_table_of_runs_is_saved_without_the_run_objects(tmp_path):
    path = output.save(results(loss=["a"], run=[object()]), tmp_path, "one", "One.")
    assert path.read_text() == "loss\na\n"


def test_two_levels_of_columns_are_saved_as_one(tmp_path):
    side = pd.DataFrame([["17.2 ± 0.5", "—"]], index=pd.Index(["NT-Xent"], name="loss"))
    side.columns = pd.MultiIndex.from_tuples([("T→A R@1", "AudioCaps, published"), ("T→A R@1", "x, ours")])
    read = pd.read_csv(output.save(side, tmp_path, "side", "Side by side."))
    assert read.columns.tolist() == ["loss", "T→A R@1 AudioCaps, published", "T→A R@1 x, ours"]
    assert read.iloc[0].tolist() == ["NT-Xent", "17.2 ± 0.5", "—"]


def test_latex_escapes_what_would_not_compile(tmp_path):
    table = results(**{"R@1 in % of_all": ["5 % & more_{x}"], "b#c": ["~1^2 \\ $"]})
    path = output.save(table, tmp_path, "marks", "Half of R&D, 5 % in a_b, T→A, ± 3, #1 ~x^2 {y} \\z.")
    latex = path.with_suffix(".tex").read_text()
    assert r"5 \% \& more\_\{x\}" in latex and r"R@1 in \% of all & b\#c" in latex
    caption = re.search(r"\\caption\{(.*)\}", latex)[1]
    expected = r"Half of R\&D, 5 \% in a\_b, T$\rightarrow$A, $\pm$ 3, \#1 \textasciitilde{}x\textasciicircum{}2 \{y\} "
    assert caption == expected + r"\textbackslash{}z. R@k in percent."


def test_latex_holds_no_sign_that_plain_latex_lacks(tmp_path):
    side = results(**{"T→A R@1": ["17.2 ± 0.5", "—"]})
    latex = output.save(side, tmp_path, "signs", "T→A.").with_suffix(".tex").read_text()
    assert latex.isascii() and r"T$\rightarrow$A R@1" in latex and r"17.2 $\pm$ 0.5" in latex


# Column → its numbers, as they print, and what the file of all digits holds.
KINDS = {
    "loss": (["Triplet_max", "NT-Xent"], ["Triplet_max", "NT-Xent"], None),
    "rate": ([0.000333, 1e-05], ["0.000333", "0.00001"], None),
    "seeds": ([5.0, np.nan], ["5", "—"], ["5", ""]),
    "t2a_r1": ([26.552, 2.049], ["26.6 ± 0.4", "2.0"], ["26.552", "2.049"]),
    "t2a_r1_std": ([0.405364033925, np.nan], None, ["0.405364033925", ""]),
    "audio_h": ([4.8612239, -0.001], ["4.86", "0.00"], None),
    "seconds": ([2010.0, 0.0917], ["33.5 min", "91.7 ms"], ["2010.0", "0.0917"]),
    "memory_gib": ([3.370269775390625, 0.4581], ["3.4 GiB", "0.46 GiB"], ["3.37026977539", "0.4581"]),
    "steps": ([125_000, 80], ["125,000", "80"], ["125000", "80"]),
    "difference": ([1.7835555, -0.0584], ["+1.8", "-0.058"], None),
    "low": ([0.89, -0.0912], ["0.9 to 2.7", "-0.091 to 0.010"], None),
    "high": ([2.676, 0.0101], None, None),
    "p (Holm)": ([0.004, 2e-5], ["0.004", "< 0.001"], ["0.004", "2e-05"]),
    "converged": ([True, False], ["yes", "no"], ["True", "False"]),
}
TITLES = {"t2a_r1": "T→A R@1", "audio_h": "h, audio", "memory_gib": "memory", "low": "95 %"}


class Cells(HTMLParser):
    """The cells of a page's tables, row by row."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.cell = [], None
        self.feed(text)

    def handle_starttag(self, name, attributes):
        if name == "tr":
            self.rows.append([])
        if name in ("th", "td"):
            self.rows[-1].append("")

    def handle_data(self, words):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += words.strip()


def test_each_kind_of_number_prints_alike_in_all_five_forms(tmp_path):
    table = pd.DataFrame({name: column for name, (column, *_) in KINDS.items()})
    path = output.save(table, tmp_path, "kinds", "All kinds.")
    held = pd.read_csv(path, dtype=str, keep_default_na=False)
    for name, (column, _, text) in KINDS.items():
        assert held[name].tolist() == (text or list(map(str, column))), name
    printed = {TITLES.get(name, name): text for name, (_, text, _) in KINDS.items() if text}

    view = output.view(output.read(path))  # as the page shows it: two parts, as there are more than ten columns
    assert [list(part) for part in view.parts] == [list(part) for part in output.view(table).parts]
    assert all(len(part.columns) <= 10 for part in view.parts) and len(view.parts) == 2
    for part in view.parts:
        assert all(part[name].tolist() == printed[name] for name in part) and "loss" in part
    assert {name for part in view.parts for name in part} == set(printed)

    lines = [line for line in path.with_suffix(".md").read_text().splitlines() if line.startswith("|")]
    grid = [[cell.strip().replace("\\", "") for cell in line.strip("|").split("|")] for line in lines]
    tex = path.with_suffix(".tex").read_text()
    for head, row in ((grid[0], grid[2]), (grid[4], grid[6])):
        assert row == [printed[name][0] for name in head]
    for cells in zip(*([text[row] for text in printed.values()] for row in (0, 1)), strict=True):
        assert all(str(latex.table([pd.DataFrame({"x": [cell]})], "", "", "x")).count("tabular") == 2 for cell in cells)
        assert all(latex.escape(cell).translate(latex.SIGNS) in tex for cell in cells)
    assert not re.search(r"NaN|\bnan\b|0\.001000|e\+0|False|True", tex + path.with_suffix(".md").read_text())

    shown = Cells(output.show(table).to_html()).rows
    assert shown == [list(printed), *map(list, zip(*printed.values(), strict=True))]


def test_what_is_saved_prints_as_what_is_read_again(tmp_path):
    table = pd.DataFrame(
        {"rate": [0.001, ""], "published": ["34.4", "19.0"], "word": ["null", None], "ok": [True, None]}
    )
    path = output.save(table, tmp_path, "mixed", "Mixed.")
    before = path.with_suffix(".md").read_text()
    assert output.render(path.parent) == 1 and path.with_suffix(".md").read_text() == before
    assert names.readable(output.read(path)).to_numpy().tolist() == [
        ["0.001", "34.4", "null", "yes"],
        ["—", "19.0", "", ""],
    ]
    assert Cells(output.show(table).to_html()).rows[2] == ["—", "19.0", "", ""]


def test_a_wide_table_comes_in_parts_that_repeat_what_tells_rows_apart():
    columns = {f"t2a_r{k}": [float(k), 1.0] for k in range(1, 14)} | {
        "t2a_r13_low": [1.0, 2.0],
        "t2a_r13_high": [2.0, 3.0],
    }
    table = pd.DataFrame({"corpus": ["x", "x"], "loss": ["a", "b"], "seeds": [5, 5], **columns})
    view = output.view(table)
    assert view.note == "In all rows: corpus x." and [len(part.columns) for part in view.parts] == [9, 8]
    assert all(list(part)[0] == "loss" for part in view.parts)
    assert list(view.parts[1])[-2:] == ["t2a r13", "t2a r13, 95 %"]
    narrow = output.view(table, wide=60).parts
    assert len(narrow) > 2 and max(sum(latex.widths(part)) for part in narrow) <= 60


def test_no_column_is_lost_behind_another_of_its_name():
    with pytest.raises(ValueError, match="two columns are called 'a b'; rename 'a_b'"):
        names.readable(pd.DataFrame({"a b": [1], "a_b": [2]}))


def test_rows_stand_in_one_order_whatever_order_runs_came_in():
    table = results(
        training=["finetuned", "frozen", "finetuned", "frozen"],
        loss=["NT-Xent", "NT-Xent", "Triplet-sum", "Triplet-sum"],
        rate=[1e-3, 1e-4, 1e-4, 1e-3],
        t2a_r10=[1.0, 2.0, 3.0, 4.0],
    )
    by = ["training", "loss"]
    rows = [("frozen", "Triplet-sum"), ("frozen", "NT-Xent"), ("finetuned", "Triplet-sum"), ("finetuned", "NT-Xent")]
    for order in ([0, 1, 2, 3], [3, 0, 2, 1]):
        assert tables.summary(table.iloc[order], by, ["t2a_r10"]).index.tolist() == rows
    assert tables.sort_rows(table, ["rate", "loss"])["t2a_r10"].tolist() == [3, 2, 4, 1]


def test_a_system_is_called_by_the_encoder_that_ran():
    assert names.stand_in("compact", "CNN14") == "compact (in CNN14's place)"
    assert names.stand_in("cnn14_mei2022", "CNN14") == "CNN14" and names.stand_in("resnet38", "ResNet38") == "ResNet38"


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.parent.name)
def test_committed_tables_print_as_their_numbers_do(folder):
    mend = f"run: atr report --tables --results {folder.parent.relative_to(places.PROJECT)}"
    assert (paths := sorted(folder.glob("*.csv")))
    for path in paths:
        origin = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        for ending, text in output.drawings(output.read(path), path.stem, origin).items():
            assert path.with_suffix(f".{ending}").read_text(encoding="utf-8") == text, f"{path.name}: {mend}"


def test_tables_are_drawn_again_from_their_numbers_alone(tmp_path):
    path = output.save(results(rate=[0.000333], seeds=[3]), tmp_path, "01_rates", "Rates.")
    before = {ending: path.with_suffix(ending).read_text() for ending in (".csv", ".json", ".md", ".tex")}
    path.with_suffix(".tex").write_text("0.00")
    path.with_suffix(".md").unlink()
    assert output.render(path.parent) == 1
    assert {ending: path.with_suffix(ending).read_text() for ending in before} == before
    path.with_suffix(".json").write_text("{")
    with pytest.raises(ValueError, match=r"01_rates.csv: cannot be read .*; run its notebook again"):
        output.render(path.parent)


def test_saving_again_replaces_the_table_and_leaves_nothing_else(tmp_path):
    output.save(results(a=[1]), tmp_path, "one", "One.")
    output.save(results(a=[2]), tmp_path, "one", "One.")
    assert pd.read_csv(tmp_path / "tables" / "one.csv")["a"].tolist() == [2]
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == [
        f"one.{e}" for e in "csv json md tex".split()
    ]


def test_a_made_share_of_hits_is_what_the_metrics_count(tmp_path):
    run = made_run(tmp_path, "one", RunConfig(), ranks_with(0.3, 20), ranks_with(0.5, 10))
    assert run.metrics["t2a_r1"] == pytest.approx(30) and run.metrics["a2t_r10"] == pytest.approx(50)
    assert np.sort(run.ranks.best("t2a")).tolist() == [1] * 6 + [50] * 14


def test_rows_of_some_configs_are_found_in_a_frame_by_what_their_runs_are(tmp_path):
    configs = [RunConfig(seed=seed, epochs=5) for seed in range(3)]
    pairs = [(config, made_run(tmp_path, f"{config.seed}", config, [1, 2], [1, 2])) for config in configs]
    table = tables.run_table(pairs, get_profile("smoke"))
    assert tables.rows_of(table, [RunConfig(seed=2, epochs=5), RunConfig(seed=0, epochs=6)])["seed"].tolist() == [2]


def test_chance_is_that_of_each_corpus_of_a_frame(tmp_path):
    small = made_run(tmp_path, "small", RunConfig(), [1] * 20, [1] * 20)
    large = made_run(tmp_path, "large", RunConfig(), [1] * 40, [1] * 40)
    chance = tables.chance(results(corpus=["x", "x", "y"], run=[small, small, large]))
    assert {name: row["t2a_r10"] for name, row in chance.items()} == pytest.approx({"x": 50, "y": 25})


def test_runs_by_loss_goes_through_the_losses_in_order():
    table = results(loss=["NT-Xent", "Triplet-sum", "NT-Xent"], batch=[16, 16, 32], seed=[0, 0, 0], run=["a", "b", "c"])
    assert tables.runs_by_loss(table, batch=16) == {"Triplet-sum": ["b"], "NT-Xent": ["a"]}


@pytest.mark.parametrize("by", [["loss"], ["corpus", "loss"]], ids=" ".join)
def test_a_summary_may_carry_the_interval_over_seeds_and_clips(tmp_path, by):
    runs = {share: seeds(tmp_path, share, f"{share}-") for share in (0.5, 0.9)}
    table = results(
        corpus=["x"] * 6,
        loss=["a"] * 3 + ["b"] * 3,
        run=runs[0.5] + runs[0.9],
        t2a_r10=[run.metrics["t2a_r10"] for run in runs[0.5] + runs[0.9]],
    )
    found = tables.intervals(tables.summary(table, by, ["t2a_r10"]), table, "t2a_r10")
    assert found["t2a_r10"].tolist() == pytest.approx([50, 90])
    assert (found["t2a_r10_low"] < found["t2a_r10"]).all() and (found["t2a_r10"] < found["t2a_r10_high"]).all()
    low, high = found["t2a_r10_low"].iloc[0], found["t2a_r10_high"].iloc[0]
    assert tables.formatted(found, ["t2a_r10"])["T→A R@10, 95 %"].iloc[0] == f"{low:.1f} to {high:.1f}"


def test_a_comparison_says_of_each_method_whether_it_has_converged_and_what_other_corpora_make_of_it(tmp_path):
    runs = seeds(tmp_path, 0.5, "a", 4)
    recalls = [run.metrics["t2a_r1"] for run in runs]
    table = results(loss=["b", "b", "a", "c"], rate=[1.0, 1.0, 2.0, 2.0], run=runs, t2a_r1=recalls, t2a_map10=recalls)
    table = table.assign(people_t2a_r1=[1.0, 3.0, 5.0, 7.0], people_run=runs)
    table = table.assign(converged=[np.bool_(False), np.bool_(False), np.bool_(True), None])
    found = tables.comparison(table, ["loss", "rate"], ["t2a_r1", "t2a_map10"])
    assert found["converged"].to_dict() == {("b", 1.0): "no", ("a", 2.0): "yes", ("c", 2.0): ""}
    assert found["people_t2a_r1"].to_dict() == {("b", 1.0): 2.0, ("a", 2.0): 5.0, ("c", 2.0): 7.0}
    assert {f"{column}_low" for column in ("t2a_r1", "t2a_map10", "people_t2a_r1")} <= set(found)
    shown = tables.formatted(found)
    assert list(shown)[1:3] + list(shown)[-1:] == ["T→A R@1", "T→A R@1, 95 %", "converged"]
    assert not any("R@10" in heading for heading in shown)
    without = tables.comparison(table.drop(columns="converged"), ["loss", "rate"], ["t2a_r1", "t2a_map10"])
    pd.testing.assert_frame_equal(without, found.drop(columns="converged"))


def test_differences_from_published_cells_are_matched_by_rows():
    ours = results(
        corpus=["Clotho"] * 4,
        training=["frozen"] * 4,
        loss=["NT-Xent"] * 4,
        rate=[1e-4, 1e-4, 1e-4, 5e-5],
        batch=[24] * 4,
        t2a_r1=[7.0, 8.0, 9.0, 100.0],
    )
    reference = pd.DataFrame(
        {
            "dataset": ["clotho", "audiocaps"],
            "training": ["frozen"] * 2,
            "loss": ["NT-Xent"] * 2,
            "learning_rate": [1e-4] * 2,
            "batch": [24, 32],
            "metric": ["t2a_r1"] * 2,
            "mean": [7.0, 50.0],
            "std": [1.0, 0.1],
        }
    )
    (row,) = differences(ours, reference, ["corpus", "training", "loss", "rate"]).to_dict("records")
    assert (row["ours"], row["published"], row["metric"]) == ("8.0 ± 1.0", "7.0 ± 1.0", "T→A R@1")
    # Deviations of 1 with three seeds each: Welch's freedom is 4, t 2.776, the error sqrt(2 / 3).
    assert (row["difference"], row["high"]) == pytest.approx((1.0, 1.0 + 2.776 * math.sqrt(2 / 3)), abs=1e-3)
    assert row["low"] + row["high"] == pytest.approx(2.0)


def test_claims_on_numbers_are_paired_by_seed(tmp_path):
    high, low = [2.0, 2.1, 2.3], [1.0, 1.2, 1.2]
    rows = [
        {"claim": "numbers", "a": high, "b": low},
        {"claim": "runs", "a": seeds(tmp_path, 0.8, "a"), "b": seeds(tmp_path, 0.4, "b")},
        {"claim": "close", "a": [1.0, 1.01, 1.02], "b": [1.0, 1.0, 1.03], "within": 0.1},
        {"claim": "one seed", "a": [1.0], "b": [0.0]},
    ]
    judged = verdicts.claims(rows)
    assert judged["verdict"].tolist() == ["holds", "holds", "holds", "undecided"]
    assert judged["difference"][0] == pytest.approx(1.0) and judged["p (Holm)"].notna().tolist() == [
        True,
        True,
        False,
        True,
    ]


def test_a_published_table_by_dimension_and_one_by_weight():
    first = as_printed(published("tourbabin2023_table1"), ["dim"])
    assert first.index.tolist() == [128, 256, 512, 1024, 2048] and first.loc[512, "T→A R@1"] == "17.2"
    fourth = as_printed(published("tourbabin2023_table4"), ["alpha"])
    assert fourth.index.tolist() == [0, 0.1, 0.33, 1] and list(fourth.columns)[-2:] == ["h, audio", "h, text"]
    assert fourth.loc[0.1].tolist()[-3:] == ["83.6", "3.99", "3.97"]


def test_uniformity_is_shown_with_two_digits():
    table = tables.summary(
        results(alpha=[0, 0], audio_h=[3.999, 4.041], t2a_r1=[10.0, 12.0]), ["alpha"], ["audio_h", "t2a_r1"]
    )
    shown = tables.formatted(table, ["audio_h", "t2a_r1"])
    assert shown.iloc[0].tolist() == ["2", "4.02 ± 0.03", "11.0 ± 1.4"]
    assert tables.formatted(table, ["t2a_r1"], digits=2).iloc[0].tolist()[-1] == "11.00 ± 1.41"


def test_a_frame_knows_dimension_and_weight_of_the_penalty(tmp_path):
    penalty = {"alpha": 0.33, "estimator": "logistic"}
    configs = [RunConfig(embedding_dim=128), RunConfig(penalty=penalty)]
    runs = [(config, seeds(tmp_path, 0.5, f"r{place}", 1, config=config)[0]) for place, config in enumerate(configs)]
    frame = tables.run_table(runs, get_profile("smoke"))
    assert frame["dim"].tolist() == [128, 256] and frame["alpha"].tolist() == [0, 0.33]


def test_claims_on_scores_are_paired_by_seed_and_clip_as_those_on_runs(tmp_path):
    a, b = seeds(tmp_path, 0.8, "a"), seeds(tmp_path, 0.4, "b")
    by_runs = verdicts.claims([{"claim": "x", "a": a, "b": b}])
    by_scores = verdicts.claims([{"claim": "x", "a": verdicts.scores(a), "b": verdicts.scores(b)}])
    pd.testing.assert_frame_equal(by_runs, by_scores)


def test_average_precision_has_an_interval_too(tmp_path):
    runs = seeds(tmp_path, 0.5, "a")
    table = results(loss=["a"] * 3, run=runs, t2a_map10=[run.metrics["t2a_map10"] for run in runs])
    found = tables.intervals(tables.summary(table, ["loss"], ["t2a_map10"]), table, "t2a_map10")
    # Ranks are 1 or 50: the average precision at 10 is the recall.
    assert found["t2a_map10"].iloc[0] == pytest.approx(50) == verdicts.scores(runs, precision=True).mean()
    assert found["t2a_map10_low"].iloc[0] < 50 < found["t2a_map10_high"].iloc[0]


def test_a_run_that_two_parts_of_a_grid_ask_for_has_one_row(tmp_path):
    config = RunConfig()
    run = made_run(tmp_path, "one", config, [1, 2], [1, 2])
    assert len(tables.run_table([(config, run), (config, run)], get_profile("smoke"))) == 1


def test_differences_need_no_learning_rate():
    ours = results(corpus=["Clotho"], system=["CNN14"], t2a_r1=[7.0])
    reference = published("mei2022_dcase_table1")
    (row,) = differences(ours, reference, ["corpus", "system"], ["t2a_r1"], 1).to_dict("records")
    assert row["published"] == "14.7" and row["difference"] == pytest.approx(7.0 - 14.7) and math.isnan(row["low"])


def test_texts_of_others_are_only_printed_by_markdown(tmp_path):
    table = pd.DataFrame({"a|b": ["<b>x</b> | ![i](u)\n\n# y"]})
    text = output.save(table, tmp_path, "marks", "*c*").with_suffix(".md").read_text()
    assert text.startswith(r"\*c\*") and r"a\|b" in text and r"\<b\>x\</b\> \| !\[i\](u) # y |" in text


@pytest.mark.parametrize("name", ["a}b", "a b", "a%", "ä", "../a", ""])
def test_a_name_that_latex_would_not_take_is_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(ValueError, match="LaTeX needs a name of A to Z, digits"):
        output.save(pd.DataFrame({"a": [1]}), tmp_path, name, "A.")
    assert not any(tmp_path.iterdir())


def test_a_loss_goes_by_its_own_title_or_else_by_the_name_that_it_is_registered_under(monkeypatch):
    class Heir(LOSSES["nt_xent"]):
        """Whose parent has a title."""

    monkeypatch.setitem(LOSSES, "heir", Heir)
    monkeypatch.setitem(LOSSES, "own", type("Own", (LOSSES["nt_xent"],), {"title": "My loss"}))
    told = [names.loss_title(name) for name in ("triplet_sum", "sigmoid", "heir", "own", "gone")]
    assert told == ["Triplet-sum", "Sigmoid", "heir", "My loss", "gone"]
    assert tables.in_order(["x", "My loss", "NT-Xent"]) == ["NT-Xent", "My loss", "x"]
    monkeypatch.setitem(register.AUDIO_ENCODERS, "own", type("Encoder", (), {"title": "My encoder"}))
    assert names.display_title(register.AUDIO_ENCODERS, "own") == "My encoder"


def test_verdicts_by_a_p_value_by_an_interval_and_on_the_contrary():
    assert [verdicts.by_p(p) for p in (0.01, 0.05, math.nan)] == ["holds", "undecided", "undecided"]
    ends = [(0.8, 0.9), (0.7, 0.9), (0.6, 0.7), (math.nan, math.nan)]
    told = ["holds", "undecided", "contradicted", "undecided"]
    assert [verdicts.by_interval(*both, 0.8) for both in ends] == told
    assert list(map(verdicts.opposite, told)) == ["contradicted", "undecided", "holds", "undecided"]
    judged = results(claim=["a beats b"], verdict=["holds"], difference=[1.25])
    assert verdicts.in_words(judged) == ["- a beats b: holds (+1.2 points)."]
    assert verdicts.in_words(judged.drop(columns="difference")) == ["- a beats b: holds."]


def test_a_grid_runs_under_a_table_that_fills_and_failures_are_raised(tmp_path, monkeypatch):
    runs, shown = seeds(tmp_path, 0.5, "one", 2), []

    class Live:
        def display(self, text):
            assert text == "no run yet"

        def update(self, table):
            shown.append(table.to_html())

    def run_all(configs, on_run, **options):
        for config, run in zip(configs, runs, strict=True):
            on_run(config, run)
        return Runs(list(configs), runs, {})

    monkeypatch.setattr("IPython.display.DisplayHandle", Live)
    monkeypatch.setattr(tables, "run_all", run_all)
    configs = [run.config for run in runs]
    assert tables.run_grid(configs, get_profile("smoke"), ["loss"]).runs == runs
    assert ["partial: 1 of 2 runs" in shown[0], "complete: 2 of 2 runs" in shown[1]] == [True, True]
    table = tables.run_table(zip(configs, runs, strict=True), get_profile("smoke"))
    assert tables.runs_of(table, configs[::-1]) == runs
    assert tables.rows_of(table, configs[:1], way="this")["way"].tolist() == ["this"]
    assert verdicts.average_precision(runs).shape == (2, CLIPS)
