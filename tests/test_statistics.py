"""Statistics: values by hand, and what intervals and p values promise on simulated data."""

import numpy as np
import pytest
from scipy import stats

from atr.metrics import Ranks, ranks, retrieval_metrics, statistics
from atr.metrics.statistics import PairedTest, clip_scores, holm, judge, mean_std, nested_bootstrap


def simulated(rng, seeds=8, clips=60, mean=0.0):
    """Scores with an effect of the seed, of the clip, and of both."""
    seed, clip = rng.standard_normal((seeds, 1)), 3 * rng.standard_normal((1, clips))
    return mean + 0.5 * seed + clip + rng.standard_normal((seeds, clips))


def test_clip_scores_by_hand():
    # Captions 0 and 1 are of clip 0, 2 of clip 1.
    found = Ranks(t2a=np.array([[1], [7], [3]]), a2t=np.array([[2, 3], [6, 0]]))
    clip_of = np.array([0, 0, 1])
    np.testing.assert_array_equal(clip_scores(found, clip_of, k=5), [50, 100])
    np.testing.assert_array_equal(clip_scores(found, clip_of, k=5, direction="a2t"), [100, 0])


def test_a_caption_of_several_clips_counts_for_each():
    found = Ranks(t2a=np.array([[1, 2], [9, 0]]), a2t=np.array([[1, 2], [1, 0]]))
    np.testing.assert_array_equal(clip_scores(found, np.array([[True, True], [True, False]]), k=5), [50, 100])


@pytest.mark.parametrize("direction", ["t2a", "a2t"])
def test_the_mean_clip_score_is_recall(direction):
    rng = np.random.default_rng(0)
    clip_of = np.repeat(np.arange(12), 5)
    found = ranks(rng.standard_normal((60, 12)), clip_of)
    metrics = retrieval_metrics(found, ks=(3,))
    assert clip_scores(found, clip_of, k=3, direction=direction).mean() == pytest.approx(metrics[f"{direction}_r3"])


def test_mean_std_divides_by_one_less_and_knows_no_deviation_of_one_seed():
    assert mean_std([1, 2, 6]) == pytest.approx((3, np.sqrt(7)))
    mean, std = mean_std([4.0])
    assert mean == 4 and np.isnan(std)


def test_the_interval_holds_the_mean_and_repeats():
    values = simulated(np.random.default_rng(0))
    interval = nested_bootstrap(values)
    assert interval.low < interval.mean < interval.high
    assert interval.mean == pytest.approx(values.mean())
    assert interval == nested_bootstrap(values)
    assert interval != nested_bootstrap(values, seed=1)


def test_the_interval_of_one_seed_has_the_width_of_the_mean_over_clips():
    values = np.random.default_rng(0).standard_normal((1, 400))
    interval = nested_bootstrap(values, draws=4000)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(400), rel=0.08)


def test_seeds_are_resampled_too():
    # Given clips that do not differ, all uncertainty is the seeds'.
    values = np.tile([[0.0], [1.0], [2.0]], (1, 50))
    interval = nested_bootstrap(values)
    assert interval.low == pytest.approx(0) and interval.high == pytest.approx(2)  # 1 in 27 draws is one seed thrice
    constant = nested_bootstrap(np.full((3, 50), 7.0))
    assert (constant.low, constant.high) == pytest.approx((7, 7))


def test_blocks_do_not_bound_the_number_of_clips(monkeypatch):
    monkeypatch.setattr("atr.metrics.statistics.BLOCK", 100)
    values = np.random.default_rng(0).standard_normal((3, 30))
    assert nested_bootstrap(values, draws=500).low == pytest.approx(values.mean() - 0.35, abs=0.15)


def test_coverage_is_about_nominal():
    rng = np.random.default_rng(0)
    hits = 0
    for draw in range(300):
        interval = nested_bootstrap(simulated(rng, mean=2.0), draws=300, level=0.9, seed=draw)
        hits += interval.low <= 2.0 <= interval.high
    assert 0.82 <= hits / 300 <= 0.96


def test_pairing_by_clip_sees_through_the_clips_difficulty():
    # Given clips that differ far more than the systems, only the pairing shows the difference.
    rng = np.random.default_rng(0)
    clip = 30 * rng.standard_normal((1, 200))
    a, b = clip + 1 + rng.standard_normal((3, 200)), clip + rng.standard_normal((3, 200))
    comparison = statistics.crossed_test(a, b)
    assert 0.7 < comparison.low < comparison.difference < comparison.high < 1.3 and comparison.p < 1e-3
    alone = nested_bootstrap(a)
    assert alone.low < nested_bootstrap(b).mean


def test_p_of_resampled_groups_is_never_zero():
    assert statistics.grouped_test(np.ones(9), np.zeros(9), range(9), draws=99).p == pytest.approx(2 / 100)


def test_holm_by_hand():
    # 4 · 0.01; 3 · 0.02, 2 · 0.03 alike; 1 · 0.5.
    np.testing.assert_allclose(holm([0.03, 0.01, 0.5, 0.02]), [0.06, 0.04, 0.5, 0.06])
    # The second would fall to 0.05, but no p is adjusted below a smaller one's.
    np.testing.assert_allclose(holm([0.04, 0.05]), [0.08, 0.08])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1, 1])
    assert holm([]).size == 0


def test_verdicts():
    assert judge((1.0, 0.01)) == "holds"
    assert judge((-1.0, 0.01)) == "contradicted"
    assert judge((1.0, 0.2)) == "undecided"
    assert judge((1.0, 0.2), alpha=0.25) == "holds"
    assert judge(PairedTest(difference=2.0, low=1.0, high=3.0, p=0.001)) == "holds"


def test_errors_say_where_and_what_to_do():
    values = np.zeros((3, 5))
    values[1, 2] = np.nan
    with pytest.raises(ValueError, match="values: non-finite score at seed 1, clip 2"):
        nested_bootstrap(values)
    with pytest.raises(ValueError, match="give scores"):
        nested_bootstrap(np.zeros(5))
    with pytest.raises(ValueError, match="level is 95"):
        nested_bootstrap(np.zeros((3, 5)), level=95)
    with pytest.raises(ValueError, match="draws is 0"):
        nested_bootstrap(np.zeros((3, 5)), draws=0)
    with pytest.raises(ValueError, match="numbers from 0 to 1"):
        holm([0.1, np.nan])
    with pytest.raises(ValueError, match="p nan"):
        judge((1.0, np.nan))
    with pytest.raises(ValueError, match="one number per seed"):
        mean_std([])


def test_welchs_interval_is_scipys():
    rng = np.random.default_rng(0)
    a, b = rng.normal(3, 1, 5), rng.normal(1, 4, 3)
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.9)
    ours = statistics.welch_interval((a.mean(), a.std(ddof=1), 5), (b.mean(), b.std(ddof=1), 3), level=0.9)
    assert ours == pytest.approx((expected.low, expected.high))


def test_welchs_interval_without_deviations():
    low, high = statistics.welch_interval((1.0, np.nan, 1), (2.0, 0.5, 3))
    assert np.isnan(low) and np.isnan(high)
    assert statistics.welch_interval((1.0, 0.0, 3), (2.0, 0.0, 3)) == (-1.0, -1.0)


def test_paired_t_is_scipys():
    rng = np.random.default_rng(1)
    a, b = rng.normal(1, 1, 6), rng.normal(0, 1, 6)
    expected = stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.9)
    ours = statistics.paired_t(a, b, level=0.9)
    assert (ours.p, ours.low, ours.high) == pytest.approx((expected.pvalue, interval.low, interval.high))


def test_paired_t_without_spread_or_with_one_seed():
    one = statistics.paired_t([3.0], [1.0])
    assert one.difference == 2 and one.p == 1 and np.isnan(one.low) and np.isnan(one.high)
    assert judge(one) == "undecided"
    assert statistics.paired_t([1.0, 2.0], [1.0, 2.0]) == PairedTest(0, 0, 0, 1)
    assert statistics.paired_t([0.1 + 0.2] * 3, [0.3] * 3).p == 1
    assert statistics.paired_t([0.0] * 3, [0.0] * 3) == PairedTest(0, 0, 0, 1)
    shifted = statistics.paired_t([1.1, 2.2], [1.0, 2.1])
    assert shifted.p == 0 and shifted.low == shifted.high == pytest.approx(0.1)
    with pytest.raises(ValueError, match="a finite number for each of the same seeds"):
        statistics.paired_t([1.0, 2.0], [1.0])


def test_a_permutation_test_by_hand():
    # Two groups in three blocks: 8 ways to swap them, of which the data and its mirror are the most extreme.
    values, groups, blocks = [1, 2, 11, 12, 21, 23], list("ababab"), [0, 0, 1, 1, 2, 2]
    assert statistics.permutation_test(values, groups, blocks, draws=20_000) == pytest.approx(2 / 8, abs=0.01)


def test_permutations_stay_within_blocks_that_may_miss_groups():
    # Blocks differ by far more than groups; across them nothing could be seen.
    rng = np.random.default_rng(0)
    rows = [(group, block) for block in range(10) for group in range(3) if not (block > 2 and group == 2)]
    groups, blocks = map(np.array, zip(*rows, strict=True))
    noise = 100 * blocks + rng.normal(0, 0.1, len(blocks))
    assert statistics.permutation_test(noise + groups, groups, blocks, draws=999) == 1 / 1000
    assert statistics.permutation_test(noise, groups, blocks, draws=999) > 0.05


def test_permutation_p_values_of_noise_are_uniform():
    rng = np.random.default_rng(2)
    groups, blocks = np.tile(np.arange(4), 5), np.repeat(np.arange(5), 4)
    p = [statistics.permutation_test(rng.normal(size=20), groups, blocks, draws=99) for _ in range(200)]
    assert np.mean(np.array(p) <= 0.1) == pytest.approx(0.1, abs=0.06)
    assert np.mean(p) == pytest.approx(0.5, abs=0.06)


def test_the_best_of_single_runs_by_hand():
    shares = statistics.best_shares({"a": [1.0, 3.0], "b": [2.0], "c": [0.0]})
    assert shares == pytest.approx({"a": 50, "b": 50, "c": 0}, abs=1.5)
    assert statistics.best_shares({"a": [1.0], "b": [1.0]}) == {"a": 50.0, "b": 50.0}


def test_deviations_are_pooled_by_their_freedom():
    assert statistics.pooled_std([[1, 3], [0, 0, 3]]) == pytest.approx(np.sqrt((2 + 6) / 3))
    assert statistics.pooled_std([[5], [1, 3]]) == pytest.approx(np.sqrt(2))
    assert np.isnan(statistics.pooled_std([[1], [2]]))


def test_the_expected_range_is_that_of_the_tables():
    # Tippett 1925: 1.128, 1.693 and 2.326 standard deviations.
    assert [statistics.expected_range(size) for size in (2, 3, 5)] == pytest.approx([1.128, 1.693, 2.326], abs=5e-4)


def test_the_p_of_a_range_is_that_of_the_tables():
    assert statistics.range_p(3.877 * 2, 2.0, 3, 10) == pytest.approx(0.05, abs=5e-4)  # q(0.05; 3, 10) = 3.877
    assert np.isnan(statistics.range_p(1.0, 1.0, 3, 0))


def test_too_few_groups_are_refused():
    with pytest.raises(ValueError, match="two groups or more"):
        statistics.permutation_test([1.0, 2.0], ["a", "a"], [0, 1])


class TestCrossed:
    # Rows 2 and 4, columns 1.5, 3 and 4.5 on average; what is left ±0.5 in two cells of each row.
    VALUES = np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]])

    def test_the_mean_squares_and_the_interval_by_hand(self):
        assert statistics.mean_squares(self.VALUES) == pytest.approx((6, 4.5, 0.5))
        assert statistics.spreads(self.VALUES) == pytest.approx((np.sqrt(5.5 / 3), np.sqrt(2), np.sqrt(0.5)))
        freedom = 10**2 / (6**2 / 1 + 4.5**2 / 2 + 0.5**2 / 2)
        half = stats.t.ppf(0.975, freedom) * np.sqrt(10 / 6)
        interval = statistics.crossed_interval(self.VALUES)
        assert (interval.mean, interval.low, interval.high) == pytest.approx((3, 3 - half, 3 + half))

    def test_the_variance_is_at_least_that_of_either_side(self):
        # Rows are alike, columns too: 0 + 0 - 1.5 would be negative, and what is left decides nothing alone.
        values = np.array([[1.0, -1.0], [-1.0, 1.0]])
        assert statistics.mean_squares(values) == pytest.approx((0, 0, 4))
        assert statistics.crossed_interval(values) == statistics.Interval(0.0, 0.0, 0.0)
        values = values + [[0.0], [4.0]]  # MS_seed 16, MS_clip 0, error 4: the floor is 16, with one degree of freedom
        half = stats.t.ppf(0.975, 1) * np.sqrt(16 / 4)
        assert statistics.crossed_interval(values).high == pytest.approx(2 + half)

    def test_one_seed_speaks_of_the_clips_alone_and_one_clip_of_the_seeds(self):
        values = np.random.default_rng(0).standard_normal(40)
        expected = stats.ttest_1samp(values, 0).confidence_interval()
        for given in (values[None], values[:, None]):
            interval = statistics.crossed_interval(given)
            assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))

    def test_the_difference_of_equals_is_none_and_turns_its_sign(self):
        rng = np.random.default_rng(1)
        a, b = simulated(rng), simulated(rng, mean=0.4)
        there, back = statistics.crossed_test(a, b), statistics.crossed_test(b, a)
        assert (back.difference, back.low, back.high, back.p) == (-there.difference, -there.high, -there.low, there.p)
        assert statistics.crossed_test(a, a) == PairedTest(0.0, 0.0, 0.0, 1.0)
        assert statistics.crossed_test(np.ones((3, 9)) / 3, np.zeros((3, 9))).p == 0

    def test_the_p_value_is_that_of_the_interval(self):
        rng = np.random.default_rng(2)
        a, b = simulated(rng), simulated(rng)
        found = statistics.crossed_test(a, b)
        at = statistics.crossed_test(a, b, level=1 - found.p)
        assert min(abs(at.low), abs(at.high)) == pytest.approx(0, abs=1e-9)

    @pytest.mark.parametrize("seeds", [5, 10])
    @pytest.mark.parametrize("spread", [1.0, 2.1, 3.5, 6.0])
    def test_its_intervals_cover_at_seeds_that_spread_by_one_to_six_points(self, spread, seeds):
        held = statistics.coverage(statistics.crossed_interval, (spread, 40.0, 25.0), seeds, draws=3000)
        assert 93 <= held <= 97.5

    def test_the_bootstrap_covers_less_where_seeds_spread(self):
        spread = (6.0, 20.0, 15.0)
        bootstrap = statistics.coverage(lambda values: nested_bootstrap(values, 300), spread, draws=150)
        assert bootstrap < 89 < 93 < statistics.coverage(statistics.crossed_interval, spread, draws=1000)

    def test_it_refuses_what_is_no_score(self):
        with pytest.raises(ValueError, match="non-finite score at seed 0, clip 1"):
            statistics.crossed_interval(np.array([[0.0, np.nan]]))
        with pytest.raises(ValueError, match="compare the same seeds"):
            statistics.crossed_test(self.VALUES, self.VALUES[:, :2])
        with pytest.raises(ValueError, match="level is 95"):
            statistics.crossed_interval(self.VALUES, level=95)


def test_groups_are_drawn_with_all_that_is_theirs():
    """Three groups of one, two and two: all 27 samples of three are equally likely."""
    a, b, groups = np.array([9.0, 5, 5, 1, 2]), np.array([0.0, 5, 4, 3, 0]), np.array(list("xyyzz"))
    sums, counts = {"x": 9, "y": 1, "z": 0}, {"x": 1, "y": 2, "z": 2}
    drawn = np.array(np.meshgrid(*[list("xyz")] * 3)).reshape(3, -1).T
    means = [sum(map(sums.get, one)) / sum(map(counts.get, one)) for one in drawn.tolist()]
    found = statistics.grouped_test(a, b, groups, draws=20_000)
    assert found.difference == 2 and (found.low, found.high) == (min(means), max(means))
    assert found.p == pytest.approx(2 * np.mean([mean <= 0 for mean in means]), abs=0.02)
    same = statistics.grouped_bootstrap(a - b, groups, draws=20_000)
    assert (same.mean, same.low, same.high) == (found.difference, found.low, found.high)


def test_groups_of_one_are_clips():
    a, b = simulated(np.random.default_rng(0), seeds=2)
    found, known = statistics.grouped_test(a, b, np.arange(60)), nested_bootstrap((a - b)[None])
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=0.1)
    assert statistics.grouped_test(a, a, np.arange(60)).p == 1


def test_groups_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="2000 draws of 3 values in 2 groups; give a group for each value"):
        statistics.grouped_bootstrap(np.ones(3), [1, 2])
    with pytest.raises(ValueError, match="a has 3 scores, b has 2; compare the same queries"):
        statistics.grouped_test(np.ones(3), np.ones(2), [1, 2, 3])
    with pytest.raises(ValueError, match="values: non-finite score"):
        statistics.grouped_bootstrap(np.array([1, np.nan]), [1, 2])
