"""Mining: what every partition keeps to, a construction by hand, and how far from the best partition it stays."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from atr.training.batches import HOW, ancillary, epoch_batches, false_negatives, mine, report, same_kind

quickly = settings(deadline=None, derandomize=True, max_examples=60)


def noise(pairs, dimensions=6, seed=0):
    return torch.randn(pairs, dimensions, generator=torch.Generator().manual_seed(seed))


def clustered(pairs, clusters, seed=0, dimensions=16, spread=0.7):
    """Embeddings around random directions, of which the first is the most frequent."""
    generator = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(clusters, dimensions, generator=generator), dim=1)
    of = torch.multinomial(1 / torch.arange(1.0, clusters + 1), pairs, replacement=True, generator=generator)
    return centres[of] + spread * torch.randn(pairs, dimensions, generator=generator) / dimensions**0.5


def lists(batches):
    return [batch.tolist() for batch in batches]


def mean_cosine(embeddings, batches):
    found = report(embeddings, batches)
    weights = found["size"] * (found["size"] - 1)
    return float((weights * found["mean_cosine"].fillna(0)).sum() / weights.sum())


@st.composite
def pairs_with_clips(draw):
    """(N, D) embeddings and the clips of N pairs, from all of one clip to all of different clips."""
    pairs, seed = draw(st.integers(1, 40)), draw(st.integers(0, 10_000))
    clips = draw(st.lists(st.integers(0, draw(st.integers(0, 40))), min_size=pairs, max_size=pairs))
    return noise(pairs, seed=seed), np.array(clips)


# --- What every partition keeps to


@quickly
@given(pairs_with_clips(), st.sampled_from(HOW), st.integers(1, 9), st.integers(0, 99), st.sampled_from([None, 1, 3]))
def test_every_pair_is_in_one_batch_and_no_clip_twice_in_a_batch(given, how, batch_size, seed, parallel):
    embeddings, clips = given
    batches = mine(embeddings, clips, batch_size, how, seed, parallel)
    assert sorted(np.concatenate(batches)) == list(range(len(clips)))
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert len(set(clips[batch])) == len(batch)


@quickly
@given(st.integers(1, 60), st.sampled_from(HOW), st.integers(1, 9), st.sampled_from([None, 1, 3]))
def test_with_one_caption_a_clip_all_batches_are_full_but_the_last(pairs, how, batch_size, parallel):
    batches = mine(noise(pairs), np.arange(pairs), batch_size, how, 0, parallel)
    full, rest = divmod(pairs, batch_size)
    assert [len(batch) for batch in batches] == [batch_size] * full + [rest] * (rest > 0)


@quickly
@given(pairs_with_clips(), st.sampled_from(HOW), st.integers(2, 9), st.integers(1, 4))
def test_a_batch_is_short_only_where_it_holds_the_clip_of_all_that_is_left(given, how, batch_size, parallel):
    embeddings, clips = given
    batches = mine(embeddings, clips, batch_size, how, 0, parallel)
    for number, batch in enumerate(batches):
        if len(batch) < batch_size:
            for later in batches[number + parallel :]:  # those before it grew side by side with this one
                assert set(clips[later]) <= set(clips[batch])


@pytest.mark.parametrize("how", HOW)
def test_pairs_that_are_all_of_one_clip_are_batches_of_their_own(how):
    assert sorted(lists(mine(noise(4), np.zeros(4), 3, how, 0))) == [[0], [1], [2], [3]]


@pytest.mark.parametrize("how", HOW)
def test_five_captions_a_clip_leave_few_batches_short(how):
    embeddings = clustered(60, 6).repeat_interleave(5, 0) + 0.1 * noise(300, 16)
    sizes = [len(batch) for batch in mine(embeddings, np.repeat(np.arange(60), 5), 16, how, 0)]
    assert sum(size < 16 for size in sizes) <= 5


def test_no_pairs_no_batches():
    assert mine(torch.empty(0, 4), np.array([]), 8, "hard", 0) == mine(torch.empty(0, 4), [], 8, "random", 0) == []


# --- What a result depends on


@pytest.mark.parametrize("how", HOW)
def test_batches_are_a_function_of_the_seed(how):
    embeddings, clips = noise(40), np.arange(40) // 2
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    seeds = [0, 1, (0, 1), (1, 1), (0, 1, 1)]
    first, again = ([lists(mine(embeddings, clips, 8, how, seed)) for seed in seeds] for _ in range(2))
    assert first == again
    assert all(a != b for a, b in itertools.combinations(first, 2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


@pytest.mark.parametrize("how", HOW)
def test_neither_the_length_of_an_embedding_nor_the_name_of_a_clip_matters(how):
    embeddings, clips = noise(40), np.arange(40) // 2
    lengths = 2.0 ** torch.randint(-4, 5, (40, 1), generator=torch.Generator().manual_seed(0))
    names = np.array([f"clip {99 - clip}" for clip in clips])
    assert lists(mine(embeddings * lengths, names, 8, how, 0)) == lists(mine(embeddings, clips, 8, how, 0))


@pytest.mark.parametrize("seed", range(5))
def test_hard_batches_find_clusters_as_large_as_a_batch_in_whatever_order_pairs_come(seed):
    cluster_of = np.random.default_rng(seed).permutation(np.repeat(np.arange(6), 4))
    embeddings = torch.eye(6)[cluster_of] + 0.05 * noise(24, seed=seed)
    batches = mine(embeddings, np.arange(24), 4, "hard", seed)
    assert sorted(cluster_of[batch].tolist() for batch in batches) == [[cluster] * 4 for cluster in range(6)]


@pytest.mark.parametrize("seed", range(5))
def test_easy_batches_take_one_pair_of_each_cluster_in_whatever_order_pairs_come(seed):
    cluster_of = np.random.default_rng(seed).permutation(np.repeat(np.arange(4), 6))
    embeddings = torch.eye(4)[cluster_of] + 0.05 * noise(24, 4, seed)
    batches = mine(embeddings, np.arange(24), 4, "easy", seed, parallel=1)
    assert all(set(cluster_of[batch]) == {0, 1, 2, 3} for batch in batches)


def test_random_batches_of_one_caption_a_clip_are_those_of_the_sampler():
    clips = np.random.default_rng(0).permutation(70)
    expected = epoch_batches(clips, 16, "all_captions", seed=3, epoch=5, drop_last=False)
    assert lists(mine(noise(70), clips, 16, "random", (3, 5, 1))) == lists(expected)


# --- The construction


def by_hand(embeddings, clips, batch_size, how, seed, parallel):
    """The batches that a plain loop builds: groups start with the next pairs of a permutation and pick in turn.

    parallel: how many batches grow side by side where so many are still to come
    """
    rows = F.normalize(embeddings.double(), dim=1).numpy()
    score = rows @ rows.T * (1 if how == "hard" else -1)
    unused = np.random.default_rng(seed).permutation(len(clips)).tolist()
    batches = []
    while unused:
        left = max(1, len(unused) // batch_size)
        group = [[pair] for pair in unused[: min(parallel(left), left)]]
        unused = unused[len(group) :]
        for _ in range(batch_size - 1):
            for batch in group:
                allowed = [pair for pair in unused if clips[pair] not in clips[batch]]
                if allowed:
                    batch.append(max(allowed, key=lambda pair: score[pair, batch].sum()))
                    unused.remove(batch[-1])
        batches += group
    return batches


@quickly
@given(pairs_with_clips(), st.sampled_from(["easy", "hard"]), st.integers(1, 9), st.integers(1, 6))
def test_every_pick_is_the_best_unused_pair_of_a_new_clip(given, how, batch_size, parallel):
    embeddings, clips = given
    found = lists(mine(embeddings, clips, batch_size, how, 7, parallel))
    assert found == by_hand(embeddings, clips, batch_size, how, 7, lambda left: parallel)


@pytest.mark.parametrize("how, parallel", [("easy", lambda left: left), ("hard", lambda left: math.ceil(left / 16))])
def test_by_default_easy_batches_all_grow_side_by_side_and_hard_ones_a_sixteenth_at_a_time(how, parallel):
    embeddings, clips = noise(160), np.arange(160)
    assert lists(mine(embeddings, clips, 4, how, 0)) == by_hand(embeddings, clips, 4, how, 0, parallel)


# --- How good the batches are


@pytest.mark.parametrize("seed", range(4))
def test_hard_batches_are_more_alike_than_random_ones_and_those_than_easy_ones(seed):
    embeddings, clips = clustered(320, 30, seed), np.arange(320)
    easy, random, hard = (mean_cosine(embeddings, mine(embeddings, clips, 16, how, seed)) for how in HOW)
    assert easy < 0.7 * random
    assert hard > 3 * random


def test_easy_batches_one_by_one_are_worse_than_random_as_the_last_are_left_with_what_is_alike():
    embeddings, clips = clustered(320, 30), np.arange(320)
    one_by_one = mine(embeddings, clips, 16, "easy", 0, parallel=1)
    means = report(embeddings, one_by_one)["mean_cosine"]
    assert means.iloc[-5:].mean() > 5 * means.iloc[:15].mean()
    assert mean_cosine(embeddings, one_by_one) > mean_cosine(embeddings, mine(embeddings, clips, 16, "random", 0))
    side_by_side = report(embeddings, mine(embeddings, clips, 16, "easy", 0))["mean_cosine"]
    assert side_by_side.max() < means.iloc[-5:].mean()


def partitions(pairs, batch_size):
    if not pairs:
        yield []
        return
    for others in itertools.combinations(pairs[1:], batch_size - 1):
        rest = [pair for pair in pairs[1:] if pair not in others]
        yield from ([[pairs[0], *others], *more] for more in partitions(rest, batch_size))


@pytest.mark.parametrize("how", ["easy", "hard"])
@pytest.mark.parametrize("pairs, batch_size, count", [(8, 4, 35), (9, 3, 280)])
def test_small_sets_gain_most_of_what_the_best_partition_gains_over_the_mean_of_all(pairs, batch_size, count, how):
    every = np.array(list(partitions(list(range(pairs)), batch_size)))
    assert len(every) == count
    shares = []
    for seed in range(20):
        embeddings = F.normalize(clustered(pairs, 4, seed), dim=1)
        cosines = (embeddings @ embeddings.t()).numpy()
        sums = cosines[every[..., :, None], every[..., None, :]].sum((1, 2, 3))
        batches = np.array(lists(mine(embeddings, np.arange(pairs), batch_size, how, seed)))
        found = cosines[batches[..., :, None], batches[..., None, :]].sum()
        best = sums.max() if how == "hard" else sums.min()
        shares.append((found - sums.mean()) / (best - sums.mean()))
    assert np.mean(shares) > 0.6


# --- Ancillary embeddings, report, false negatives


def test_an_ancillary_embedding_is_the_direction_between_the_two_however_long_they_are():
    audio, text = (
        torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 0.0]]),
        torch.tensor([[0.0, 0.5], [0.0, 7.0], [-4.0, 0.0]]),
    )
    torch.testing.assert_close(ancillary(audio, text), torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, 1.0], [0.0, 0.0]]))


def test_report_gives_size_and_mean_cosine_over_distinct_pairs():
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [1.0, 1.0]])
    found = report(embeddings, [np.array([0, 1, 2]), np.array([3]), np.array([0, 3])])
    assert found["size"].tolist() == [3, 1, 2]
    np.testing.assert_allclose(found["mean_cosine"], [(0 - 1 + 0) / 3, np.nan, 0.5**0.5], atol=1e-12)


def test_false_negatives_are_pairs_of_a_batch_with_captions_as_near_as_the_threshold():
    # Cosines of 1 (0 and 1), 0.8 (0 and 2, 1 and 2) and 0.6 (2 and 3)
    captions = torch.tensor([[1.0, 0.0], [5.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    together, apart = [np.arange(4)], [np.array([0, 3]), np.array([1, 2])]
    for threshold, count in [(0.9999, 1), (0.79, 3), (0.59, 4)]:
        assert false_negatives(captions, together, threshold).tolist() == [count]
    assert false_negatives(captions, apart, 0.79).tolist() == [0, 1]


def test_pairs_of_the_same_kind_are_counted_among_those_of_known_kind():
    kinds = np.array([0, 0, 1, -1, -1, 1])
    # 0-0 of 0-0, 0-1, 0-1; none of no pair; 1-1 of 1-1
    assert same_kind(kinds, [np.arange(4), np.array([3, 4]), np.array([2, 4, 5])]) == 50.0
    assert np.isnan(same_kind(kinds, [np.array([0, 3]), np.array([3, 4])]))


def test_hard_mining_seeks_false_negatives_and_easy_mining_shuns_them():
    embeddings = noise(100, 8).repeat(2, 1)
    easy, random, hard = (
        false_negatives(embeddings, mine(embeddings, np.arange(200), 8, how, 0), 0.9999).sum() for how in HOW
    )
    assert easy == 0 < random < 20 < 60 < hard <= 100


# --- Bad input


def test_what_cannot_be_mined_is_an_error_that_says_what_to_give():
    embeddings, clips = noise(4), np.arange(4)
    with pytest.raises(ValueError, match=r"embeddings are \(4, 6\), clips \(3,\); give \(pairs, dimensions\) and the"):
        mine(embeddings, clips[:3], 2, "hard", 0)
    with pytest.raises(ValueError, match="how: unknown 'median'; known: easy, random, hard"):
        mine(embeddings, clips, 2, "median", 0)
    with pytest.raises(ValueError, match="batch_size is 0; give at least one pair a batch"):
        mine(embeddings, clips, 0, "hard", 0)
    with pytest.raises(ValueError, match="parallel is 0; let at least one batch grow at a time"):
        mine(embeddings, clips, 2, "hard", 0, parallel=0)
    with pytest.raises(ValueError, match="embeddings are not finite; train a model that has not diverged"):
        mine(embeddings.log(), clips, 2, "hard", 0)
    with pytest.raises(ValueError, match=r"audio is \(4, 6\), text \(3, 6\); give both as \(pairs, dimensions\)"):
        ancillary(embeddings, embeddings[:3])
