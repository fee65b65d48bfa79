"""The search of learning rates: which runs it asks for, as its own come in."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import atr
from atr.experiments.rates import RateSearch
from atr.reports import figures, tables, verdicts

DEMO = atr.get_profile("demo")
CONFIG = DEMO.config("soundscapes", "finetuned", "nt_xent", 0).replace(
    epochs=20, step_epochs=8, learning_rates={"heads": 2e-3, "audio": 1e-3, "loss": 0.1}
)


@dataclass(frozen=True)
class Known(RateSearch):
    """A search whose runs come to what `score(config)` says: NaN, it diverged; None, it has not ended."""

    def _run(self, config):
        score = self.score(config)
        if score is None:
            return None
        return SimpleNamespace(config=config, diverged=np.isnan(score), validation={"t2a_map10": score})


def search(score, methods=("a",), profile=DEMO, seeds=(0, 1, 2), **options):
    made = Known(
        profile, {name: CONFIG.replace(embedding_dim=64 * (1 + n)) for n, name in enumerate(methods)}, seeds, **options
    )
    object.__setattr__(made, "score", score)
    return made


def peak(rate):
    """Scores that fall by 2 points for each step of three from a rate of the heads."""
    return lambda config: 50 - 2 * abs(np.log(config.rate("heads") / rate) / np.log(3))


def test_four_rates_a_factor_of_three_apart_for_a_quarter_of_the_epochs_and_one_seed():
    tries = search(lambda config: None).tries("a")
    assert list(tries) == [-2, -1, 0, 1]
    assert [config.rate("heads") for config in tries.values()] == pytest.approx([2.22e-4, 6.67e-4, 2e-3, 6e-3])
    assert {(config.epochs, config.step_epochs, config.seed) for config in tries.values()} == {(5, 2, 0)}
    assert tries[1].rate("audio") == pytest.approx(3e-3) and tries[1].rate("loss") == 0.1


def test_nothing_but_tries_can_run_before_a_search_has_ended_and_a_plan_takes_the_usual_rate():
    waiting = search(lambda config: None)
    assert waiting.best("a") is None and waiting.todo() == list(waiting.tries("a").values())
    assert waiting.grid()[:3] == waiting.seeded("a", 0) and len(waiting.grid()) == 3 + 4 + 1


def test_the_seeds_train_at_the_best_rate_and_one_of_them_for_twice_the_epochs():
    found = search(peak(6.67e-4))
    assert found.best("a") == -1
    assert found.finals() == found.seeded("a", -1)  # neither tries nor the doubled one
    assert [config.seed for config in found.seeded("a")] == [0, 1, 2]
    assert {config.rate("heads") for config in found.seeded("a")} == {6.67e-4}
    double = found.double_epochs("a")
    assert (double.epochs, double.step_epochs, double.seed) == (40, 16, 0)
    assert found.todo() == found.grid() and len(found.grid()) == 3 + 4 + 1


@pytest.mark.parametrize("rate, best, steps", [(7.4e-5, -3, 6), (0.018, 2, 6), (1e-9, -5, 7), (1e3, 5, 8)])
def test_a_search_goes_on_while_the_best_lies_at_an_edge_but_not_for_ever(rate, best, steps):
    found = search(peak(rate))
    assert found.best("a") == best and len(found.tries("a")) == steps


def test_a_rate_at_which_runs_diverge_is_tried_once_and_not_chosen():
    found = search(lambda config: np.nan if config.rate("heads") > 1e-3 else peak(1)(config))
    assert found.best("a") == -1
    assert all(config.rate("heads") < 1e-3 for config in found.todo())
    table = found.table(["method"])
    assert table["validation mAP@10"].isna().sum() == 2 and table["best"].tolist() == ["", "yes", "", ""]


def test_a_control_shares_the_search_of_its_method():
    found = search(peak(6.67e-4), ("a", "control"), like={"control": "a"})
    assert found.tries("control") == found.tries("a") and found.best("control") == -1
    assert {config.embedding_dim for config in found.seeded("control")} == {128}
    assert set(found.table(["method"]).index) == {"a"}


def test_methods_may_have_different_seeds():
    found = search(peak(6.67e-4), ("a", "b"), seeds={"a": (3, 4), "b": (0, 1, 2)})
    assert [[config.seed for config in found.seeded(name)] for name in "ab"] == [[3, 4], [0, 1, 2]]
    assert {config.seed for config in found.tries("a").values()} == {3} == {found.double_epochs("a").seed}
    assert len(found.grid()) == 2 + 3 + 2 * (4 + 1)


def test_where_the_published_experiment_is_reproduced_its_rate_stays():
    found = search(peak(6.67e-4), profile=replace(DEMO, published=True))
    assert found.best("a") == 0 and len(found.tries("a")) == 4


def test_with_two_rates_there_is_no_going_on():
    assert list(search(peak(1e-9), profile=replace(DEMO, tries=(-1, 0))).tries("a")) == [-1, 0]


def test_other_runs_come_along_once_and_methods_can_go_undoubled():
    other = CONFIG.replace(epochs=0)
    found = search(peak(2e-3), ("a", "b"), others=[other, other], twice=["b"])
    assert found.grid().count(other) == 1
    assert found.double_epochs("b") in found.grid() and found.double_epochs("a") not in found.grid()
    assert found.budget(["method"]).index.tolist() == ["b"]
    quick = search(peak(2e-3), ("a", "b"), replace(DEMO, quick=True))
    assert quick.budget(["method"]).index.tolist() == ["a"] and quick.double_epochs("b") not in quick.grid()


def test_the_span_counts_rates_within_three_points_and_failures_count_seeds():
    def score(config):
        return 4.0 if config.seed == 2 and config.epochs == 20 else peak(6.67e-4)(config)

    row = search(score).sensitivity(["method"]).loc["a"]
    assert row["span"] == 9  # one step either side, 2 points below
    assert (row["failed"], row["seeds"]) == (1, 3)
    assert (row["failed_low"], row["failed_high"]) == pytest.approx((0.84, 90.57), abs=0.01)  # Clopper-Pearson, 1 of 3


def test_where_nothing_is_doubled_nothing_is_said_of_the_epochs():
    budget = search(peak(2e-3), twice=[]).budget(["method"])
    assert budget.empty and budget["converged"].get("a", True)


@pytest.mark.parametrize("gain, converged", [(0.9, True), (1.0, False), (-2.0, True)])
def test_a_method_has_converged_if_twice_its_epochs_bring_less_than_a_point(gain, converged):
    row = search(lambda config: 40.0 + gain * (config.epochs > 20)).budget(["method"]).loc["a"]
    assert (row["epochs"], row["once"], row["twice"], row["converged"]) == (20, 40.0, 40.0 + gain, converged)


def test_the_figure_rings_the_best_rate():
    names = [("frozen", "a"), ("tuned", "a"), ("tuned", "b")]
    table = search(peak(6.67e-4), names).table(["training", "loss"])
    axes = figures.tries(table).axes
    assert [axis.get_title() for axis in axes] == ["frozen", "tuned"]
    both = figures.tries(
        search(peak(2e-3), [("frozen", "a"), ("frozen", "b"), ("tuned", "b")]).table(["training", "loss"])
    )
    assert [text.get_text() for text in both.legends[0].get_texts()] == ["a", "b"]
    rings = [line.get_xdata().tolist() for line in axes[0].lines if line.get_markersize() == 8]
    assert rings == [[6.67e-4]]
    single = search(peak(2e-3), [("new", "as many"), ("both", "as many")]).table(["captions", "steps"])
    (together,) = figures.tries(single).axes
    assert together.get_legend_handles_labels()[1] == ["new", "both"] and together.get_title() == "as many"
    (alone,) = figures.tries(search(peak(2e-3), [0.2, 1.0]).table(["share"])).axes
    assert alone.get_legend_handles_labels()[1] == ["share 0.2", "share 1"]


TINY = {"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0}


def test_it_runs_to_its_end_through_the_store_and_a_second_time_trains_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("ATR_RESULTS", str(tmp_path))
    config = atr.RunConfig(corpus=TINY, training="frozen", epochs=4, batch_size=16, embedding_dim=16)
    profile = replace(atr.get_profile("smoke"), tries=(0, 70), external={"other": TINY | {"seed": 1}})  # 3^70 times
    found = RateSearch(profile, {"a": config}, (0, 1))
    outcome = tables.run_grid(found, profile, ["loss"], "cpu")
    assert found.best("a") == 0 and len(outcome) == len(found.grid()) and not outcome.failures
    table = tables.run_table(outcome, profile)
    assert sorted(table.loc[table["other_t2a_r1"].notna(), "seed"]) == [0, 1] and len(table) == len(found.grid()) == 4
    tried = found.table(["method"])["validation mAP@10"]
    assert tried.notna().tolist()[0]
    runs = {path: path.stat().st_mtime_ns for path in profile.runs.glob("*/metrics.json")}
    tables.run_grid(RateSearch(profile, {"a": config}, (0, 1)), profile, ["loss"], "cpu")
    assert {path: path.stat().st_mtime_ns for path in profile.runs.glob("*/metrics.json")} == runs
    assert isinstance(found.sensitivity(["method"]), pd.DataFrame)


def test_what_came_of_two_methods_is_compared_by_the_seeds_that_both_have(tmp_path, monkeypatch):
    monkeypatch.setenv("ATR_RESULTS", str(tmp_path))
    config = atr.RunConfig(corpus=TINY, training="frozen", epochs=2, batch_size=16, embedding_dim=16)
    profile = replace(atr.get_profile("smoke"), tries=(0, 1))
    methods = {"a": config, "b": config.replace(embedding_dim=8)}
    found = RateSearch(profile, methods, {"a": (0, 1, 2), "b": (2, 0)}, twice=["a"])
    results = tables.Results(found, tables.run_grid(found, profile, ["loss"], "cpu"), profile, ["method"])
    assert [run.config.seed for run in results.runs("a")] == [0, 1, 2] and len(results.all_runs()) == 5
    rows = results.rows("b", "a", kind="own")
    assert rows["method"].tolist() == [*"bbaaa"] and set(rows["kind"]) == {"own"} and results.rows().empty
    assert tables.comparison(rows, ["method"])["converged"].to_dict() == {"a": "yes", "b": ""}

    ours, theirs = results.runs("a")[::2], results.runs("b")  # of seeds 0 and 2
    row = results.compare("a beats b", "a", "b", least=1.0)
    assert (row["claim"], row["least"]) == ("a beats b", 1.0)
    assert np.array_equal(row["a"], verdicts.average_precision(ours))
    assert np.array_equal(row["b"], verdicts.average_precision(theirs))
    both = results.compare_both_ways("a beats b", "a", "b", least=1.0)
    assert [row["claim"] for row in both] == ["a beats b, T→A", "a beats b, A→T"]
    for row, way in zip(both, ("t2a", "a2t"), strict=True):
        assert row["converged"] and row["least"] == 1.0
        assert np.array_equal(row["b"], verdicts.scores(theirs, 10, way, precision=True))
    by_recall = results.compare("a beats b", "a", "b", k=5)
    assert (by_recall["a"], by_recall["b"], by_recall["k"]) == (ours, theirs, 5)
    row = results.compare("a beats b", "b", "a", lambda run: run.validation["t2a_r10"], within=1.0)
    assert row["a"] == [run.validation["t2a_r10"] for run in theirs]

    search = RateSearch(profile, methods, {"a": (0, 1), "b": (2,)}, twice=[])
    apart = tables.Results(search, tables.run_grid(search, profile, ["loss"], "cpu"), profile, ["method"])
    with pytest.raises(ValueError, match=r"a beats b: a has seeds \[0, 1\], b has seeds \[2\]; give both a common one"):
        apart.compare("a beats b", "a", "b")
    results.budget["converged"] = False
    assert results.converged("b") and not results.converged("a") and not results.converged("a", "b")
    assert results.compare("a beats b", "a", "b")["converged"] is False
    figure = results.save_search("99")
    saved = pd.read_csv(profile.results / "tables" / "99_rates.csv")
    assert saved["method"].unique().tolist() == ["a", "b"] and len(figure.axes) == 1
    assert pd.read_csv(profile.results / "tables" / "99_budget.csv")["method"].tolist() == ["a"]
    assert (profile.results / "figures" / "99_rates.png").is_file()
