import numpy as np
import pytest

from atr.training.batches import SAMPLERS, epoch_batches

# clips 0 to 9 with three captions each, not in order
CLIP_OF_CAPTION = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 3))


def batches(sampler="caption_per_clip", batch_size=4, seed=0, epoch=0, drop_last=False):
    return epoch_batches(CLIP_OF_CAPTION, batch_size, sampler, seed, epoch, drop_last)


def test_caption_per_clip_visits_every_clip_once():
    visited = np.concatenate(batches())
    assert sorted(CLIP_OF_CAPTION[visited]) == list(range(10))


def test_all_captions_visits_every_caption_once():
    assert sorted(np.concatenate(batches("all_captions"))) == list(range(30))


def test_every_caption_of_a_clip_is_drawn_equally_often_over_epochs():
    drawn = np.concatenate([np.concatenate(batches(epoch=epoch)) for epoch in range(900)])
    counts = np.bincount(drawn, minlength=30)
    assert counts.sum() == 9000
    assert np.abs(counts - 300).max() < 5 * np.sqrt(900 * 1 / 3 * 2 / 3)  # five deviations of a binomial


def test_every_clip_takes_every_place_in_an_epoch():
    first = [CLIP_OF_CAPTION[batches(epoch=epoch)[0][0]] for epoch in range(200)]
    assert set(first) == set(range(10))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_epoch_is_a_function_of_seed_and_epoch(sampler):
    def order(seed, epoch):
        return np.concatenate(batches(sampler, seed=seed, epoch=epoch)).tolist()

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(*place)) for place in [(1, 2), (1, 3), (2, 2), (2, 1)]}) == 4


def test_the_last_incomplete_batch_is_dropped_only_when_asked():
    assert [len(batch) for batch in batches(drop_last=False)] == [4, 4, 2]
    assert [len(batch) for batch in batches(drop_last=True)] == [4, 4]
    assert [len(batch) for batch in batches(batch_size=5, drop_last=True)] == [5, 5]


def test_the_only_batch_is_kept_however_small():
    assert [len(batch) for batch in batches(batch_size=64, drop_last=True)] == [10]


def test_an_unknown_sampler_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="sampler: unknown 'hard'; known: caption_per_clip, all_captions"):
        batches("hard")
