"""Losses: the released code's vectors, values by hand, and what must hold for any batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atr import losses

GOLDEN = Path(__file__).parent / "golden"
TRIPLETS = ("triplet_sum", "triplet_max", "triplet_weighted")
CONFIGURED = [(name, variant) for name in losses.LOSSES for variant in ("text", "code")]


def batch(seed=0, size=8, dim=5, clips=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    audio, text = torch.randn(2, size, dim, generator=generator, dtype=dtype)
    return audio, text, torch.randint(clips, (size,), generator=generator)


def from_rows(loss, rows, audio_ids=None, text_ids=None):
    similarity = torch.tensor(rows, dtype=torch.float64)
    audios, texts = similarity.shape
    audio_ids = torch.arange(audios) if audio_ids is None else torch.tensor(audio_ids)
    text_ids = torch.arange(texts) if text_ids is None else torch.tensor(text_ids)
    return loss.from_similarity(similarity, audio_ids, text_ids).item()


@pytest.mark.parametrize("case", range(4))
@pytest.mark.parametrize("name", ["triplet_sum", "triplet_max", "triplet_weighted", "nt_xent"])
def test_released_losses_match_the_released_code(name, case):
    golden = np.load(GOLDEN / "losses_mei2022.npz")
    audio = torch.tensor(golden[f"{case}/audio"], requires_grad=True)
    text = torch.tensor(golden[f"{case}/text"], requires_grad=True)
    loss = losses.build(name, "code")(audio, text, torch.tensor(golden[f"{case}/audio_id"]))
    loss.backward()
    assert loss.item() == pytest.approx(float(golden[f"{case}/{name}"]), rel=1e-4)
    for side, tensor in (("audio", audio), ("text", text)):
        expected = golden[f"{case}/{name}_grad_{side}"]
        np.testing.assert_allclose(tensor.grad, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("scaling", ["by the loss", "beforehand"])
def test_released_sigmoid_matches_the_released_module(case, scaling):
    # The recorded module takes a similarity already divided by the temperature.
    golden = np.load(GOLDEN / "sigmoid_tymofieiev2025.npz")
    temperature = 1.0 if scaling == "beforehand" else 0.05
    similarity = torch.tensor(golden[f"{case}/similarity"], requires_grad=True)
    loss = losses.build("sigmoid", "code", temperature=temperature)
    ids = torch.arange(len(similarity))
    value = loss.from_similarity(similarity * temperature, ids, ids)
    value.backward()
    assert value.item() == pytest.approx(float(golden[f"{case}/loss"]), rel=1e-4)
    assert loss.t.grad.item() == pytest.approx(float(golden[f"{case}/grad_t"]), rel=1e-4)
    assert loss.b.grad.item() == pytest.approx(float(golden[f"{case}/grad_b"]), rel=1e-4)
    expected = golden[f"{case}/grad"]
    np.testing.assert_allclose(similarity.grad, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


# Row 0: texts 0.9 | 0.8, 0.1; row 1: 0.5 | 0.2, 0.4; row 2: 0.3 | -0.5, 0.6. The positives are on the diagonal.
SIMILARITY = [[0.9, 0.8, 0.1], [0.2, 0.5, 0.4], [-0.5, 0.6, 0.3]]


def test_triplet_sum_by_hand():
    texts = 0.1 + 0.1 + 0.5  # 0.2 + 0.8 - 0.9; 0.2 + 0.4 - 0.5; 0.2 + 0.6 - 0.3
    audios = 0.5 + 0.3 + 0.3  # 0.2 + 0.8 - 0.5 and 0.2 + 0.6 - 0.5 for text 1; 0.2 + 0.4 - 0.3 for text 2
    assert from_rows(losses.build("triplet_sum"), SIMILARITY) == pytest.approx((texts + audios) / 3)


def test_triplet_max_by_hand():
    texts, audios = 0.1 + 0.1 + 0.5, 0.5 + 0.3
    assert from_rows(losses.build("triplet_max"), SIMILARITY) == pytest.approx((texts + audios) / 3)


def test_a_wider_margin_reaches_more_negatives():
    # 0.2 - 0.5 + 0.4 joins row 1, and 0.1 - 0.3 + 0.4 text 2; the other 6 hinges grow by 0.2.
    texts, audios = 0.3 + 0.3 + 0.7 + 0.1, 0.7 + 0.5 + 0.5 + 0.2
    assert from_rows(losses.build("triplet_sum", margin=0.4), SIMILARITY) == pytest.approx((texts + audios) / 3)


def test_triplet_weighted_paper_takes_each_powers_largest():
    # Row 2's negatives are -0.5 and 0.1: their largest is 0.1, their largest square 0.25.
    rows = [[0.5, -0.5, 0.1], [-0.9, 0.5, -0.9], [-0.9, -0.9, 0.5]]
    positive = 0.5 - 0.7 * 0.5 + 0.2 * 0.25
    row0 = positive + 0.03 - 0.4 * 0.1 + 0.9 * 0.25
    far = positive + 0.03 + 0.4 * 0.9 + 0.9 * 0.81
    text1 = positive + 0.03 + 0.4 * 0.5 + 0.9 * 0.81  # audios -0.5 and -0.9
    text2 = positive + 0.03 - 0.4 * 0.1 + 0.9 * 0.81  # audios 0.1 and -0.9
    expected = (row0 + 2 * far + far + text1 + text2) / 3
    assert from_rows(losses.build("triplet_weighted"), rows) == pytest.approx(expected)


def test_triplet_weighted_released_counts_only_rows_with_a_hard_negative():
    # Texts of row 0 and audios of text 1 meet 0.6 > 0.7 - 0.2; the other two queries meet 0.1.
    rows = [[0.7, 0.6], [0.1, 0.7]]
    one = (0.5 - 0.7 * 0.7 + 0.2 * 0.49) + (0.03 - 0.4 * 0.6 + 0.9 * 0.36)
    assert from_rows(losses.build("triplet_weighted", "code"), rows) == pytest.approx(2 * one / 2)


def test_triplet_weighted_released_clamps_the_two_polynomials_apart():
    # At 0.2 the negative's polynomial is -0.014: it must not lower the positive's 0.392.
    rows = [[0.2, 0.2], [-0.5, 0.2]]
    one = 0.5 - 0.7 * 0.2 + 0.2 * 0.04
    assert 0.03 - 0.4 * 0.2 + 0.9 * 0.04 < 0
    assert from_rows(losses.build("triplet_weighted", "code"), rows) == pytest.approx(2 * one / 2)


def test_triplet_weighted_released_skips_a_perfect_positive():
    assert from_rows(losses.build("triplet_weighted", "code"), [[1.0, 0.9], [0.9, 1.0]]) == 0


def test_nt_xent_by_hand_and_half_of_it_as_released():
    rows = [[0.14, 0.0], [0.07, 0.14]]
    texts = np.log(1 + np.exp(-2)) + np.log(1 + np.exp(-1))
    assert from_rows(losses.build("nt_xent"), rows) == pytest.approx(texts)  # the audios give the same two terms
    assert from_rows(losses.build("nt_xent", "code"), rows) == pytest.approx(texts / 2)


def test_nt_xent_of_the_hardest_negatives_by_hand():
    rows = [[0.9, 0.2, 0.1], [0.3, 0.8, 0.7], [0.0, 0.6, 0.5]]  # audio by text
    loss = losses.build("nt_xent", "text", temperature=0.1, hardest=1)

    def one(positive, negative):
        return np.log1p(np.exp((negative - positive) / 0.1))

    of_audio = one(0.9, 0.2) + one(0.8, 0.7) + one(0.5, 0.6)
    of_text = one(0.9, 0.3) + one(0.8, 0.6) + one(0.5, 0.7)
    assert from_rows(loss, rows) == pytest.approx((of_audio + of_text) / 3)
    everything = losses.build("nt_xent", "text", temperature=0.1)
    assert from_rows(losses.build("nt_xent", "text", temperature=0.1, hardest=2), rows) == from_rows(everything, rows)
    assert from_rows(loss, rows) < from_rows(everything, rows)


def test_a_masked_caption_is_no_hardest_negative():
    rows = [[0.9, 0.8, 0.1], [0.8, 0.9, 0.2], [0.1, 0.2, 0.9]]
    loss = losses.build("nt_xent", "text", temperature=0.1, hardest=1)
    shared = from_rows(loss, rows, [0, 0, 1], [0, 0, 1])
    assert shared == pytest.approx(2 / 3 * sum(np.log1p(np.exp((n - 0.9) / 0.1)) for n in (0.1, 0.2, 0.2)))


def test_hardest_has_to_be_one_or_more():
    for wrong in ({"hardest": 0}, {"hardest": 2, "same_clip": "positive"}):
        with pytest.raises(ValueError, match="hardest is"):
            losses.build("nt_xent", **wrong)


def test_nt_xent_positive_averages_all_pairs_of_a_clip():
    rows = [[0.5, 0.2, 0.1], [0.3, 0.4, 0.0], [0.2, 0.1, 0.6]]
    value = from_rows(losses.build("nt_xent", "code", same_clip="positive", temperature=0.05), rows, *[[7, 7, 9]] * 2)
    exps = np.exp(np.array(rows) / 0.05)
    pairs = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 2)]
    texts, audios = (-np.log(exps / exps.sum(axis, keepdims=True)) for axis in (1, 0))
    assert value == pytest.approx(np.mean([texts[p] for p in pairs]) / 2 + np.mean([audios[p] for p in pairs]) / 2)


@pytest.mark.parametrize("variant, scale", [("text", 1.0), ("code", np.e / 0.05)])
def test_sigmoid_by_hand(variant, scale):
    rows = [[0.8, 0.1], [0.2, 0.5]]
    loss = losses.build("sigmoid", variant, b=-2.0)
    positive = sum(np.log1p(np.exp(-(scale * s - 2))) for s in (0.8, 0.5))
    negative = sum(np.log1p(np.exp(scale * s - 2)) for s in (0.1, 0.2))
    assert from_rows(loss, rows) == pytest.approx((positive + negative) / 2, rel=1e-6)


def test_sigmoid_learns_t_and_b_from_one_and_minus_ten():
    for variant in ("text", "code"):
        start = {name: value.item() for name, value in losses.build("sigmoid", variant).named_parameters()}
        assert start == {"t": 1.0, "b": -10.0}


@pytest.mark.parametrize("name", [*TRIPLETS, "nt_xent", "sigmoid"])
@pytest.mark.parametrize("variant", ["text", "code"])
def test_mask_leaves_captions_of_one_clip_out_and_false_makes_them_negatives(name, variant):
    # Given two rows of one clip beside a third clip, the similarity across the two must matter only unmasked.
    def value(across, **parameters):
        rows = [[0.5, across, 0.4], [across, 0.5, 0.4], [0.4, 0.4, 0.5]]
        return from_rows(losses.build(name, variant, **parameters), rows, [3, 3, 8], [3, 3, 8])

    assert value(0.45, mask_same_clip=True) == pytest.approx(value(0.8, mask_same_clip=True))
    assert value(0.45, mask_same_clip=False) < value(0.8, mask_same_clip=False)
    assert value(0.8, mask_same_clip=False) == value(0.8, same_clip="negative")


@pytest.mark.parametrize(
    "name, variant, same_clip",
    [(name, variant, "mask") for name in TRIPLETS for variant in ("text", "code")]
    + [("nt_xent", "text", "mask"), ("nt_xent", "code", "negative")]
    + [("sigmoid", "text", "positive"), ("sigmoid", "code", "negative")],
)
def test_what_captions_of_one_clip_are_by_default(name, variant, same_clip):
    audio, text, ids = batch(clips=3)
    default = losses.build(name, variant)(audio, text, ids)
    assert default.item() == losses.build(name, variant, same_clip=same_clip)(audio, text, ids).item()


@pytest.mark.parametrize("name, variant", CONFIGURED)
def test_further_candidates_are_negatives_of_the_pairs(name, variant):
    # Given three pairs and two gathered texts, audios meet five texts, but only the three paired texts ask.
    loss = losses.build(name, variant)
    rng = np.random.default_rng(0)
    square = 0.2 * rng.standard_normal((3, 3)) + 0.3 * np.eye(3)
    near = np.hstack([square, np.full((3, 2), 0.9)])
    assert from_rows(loss, near) > from_rows(loss, square)
    assert from_rows(loss, near.T) == pytest.approx(from_rows(loss, near))  # the two directions play the same part


def test_further_candidates_by_hand():
    rows = [[0.5, 0.1, 0.4], [0.1, 0.5, 0.6]]
    assert from_rows(losses.build("triplet_sum"), rows) == pytest.approx((0.1 + 0.3) / 2)
    assert from_rows(losses.build("triplet_max"), rows, [4, 5], [4, 5, 5]) == pytest.approx(0.1 / 2)


@pytest.mark.parametrize("name, variant", CONFIGURED)
def test_a_batch_of_one_has_no_negative(name, variant):
    audio, text, ids = batch(size=1)
    audio.requires_grad_()
    loss = losses.build(name, variant)(audio, text, ids)
    loss.backward()
    assert audio.grad.isfinite().all()
    if name != "sigmoid":  # which judges the pair itself
        assert loss.item() == 0


@pytest.mark.parametrize("name, variant", CONFIGURED)
def test_a_batch_of_one_clip_stays_finite(name, variant):
    audio, text, _ = batch(size=4)
    audio.requires_grad_()
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way either
        loss = losses.build(name, variant, mask_same_clip=True)(audio, text, torch.zeros(4, dtype=torch.long))
        loss.backward()
    assert loss.isfinite() and audio.grad.isfinite().all()


@pytest.mark.parametrize(
    "name, variant, same_clip",
    [(*config, option) for config in CONFIGURED for option in losses.LOSSES[config[0]].same_clip_options],
)
def test_gradients_are_those_of_the_value(name, variant, same_clip):
    loss = losses.build(name, variant, same_clip=same_clip).double()
    audio, text, ids = batch(seed=3)
    assert torch.autograd.gradcheck(
        lambda a, t, *_: loss(a, t, ids), (audio.requires_grad_(), text.requires_grad_(), *loss.parameters())
    )


@pytest.mark.parametrize("name, variant", CONFIGURED)
@settings(deadline=None, derandomize=True, max_examples=20)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100))
def test_neither_order_nor_scale_nor_the_name_of_a_clip_matters(name, variant, seed, scale):
    audio, text, ids = batch(seed)
    loss = losses.build(name, variant).double()
    value = loss(audio, text, ids).item()
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    assert loss(audio[order], text[order], ids[order]).item() == pytest.approx(value)
    assert loss(scale * audio, text / scale, ids).item() == pytest.approx(value)
    assert loss(audio, text, 1000 - ids).item() == pytest.approx(value)
    assert loss(text, audio, ids).item() == pytest.approx(value)


@pytest.mark.parametrize("name, variant", CONFIGURED)
def test_a_non_finite_embedding_is_not_hidden(name, variant):
    audio, text, ids = batch()
    audio[2, 1] = torch.nan
    assert losses.build(name, variant)(audio, text, ids).isnan()


def test_the_thesis_halves_what_equation_7_sums():
    audio, text, _ = batch()
    ids = torch.arange(len(audio))
    whole, half = (losses.build("nt_xent", "text", weight=weight)(audio, text, ids) for weight in (None, 0.5))
    torch.testing.assert_close(whole, 2 * half)
    with pytest.raises(ValueError, match="0"):
        losses.build("nt_xent", weight=0.0)


def test_errors_name_what_is_known():
    with pytest.raises(ValueError, match=r"'ntxent'; known: 'triplet_sum'.*'nt_xent', 'sigmoid'"):
        losses.build("ntxent")
    with pytest.raises(ValueError, match=r"variant 'paper'; known: 'text', 'code'"):
        losses.build("nt_xent", "paper")
    with pytest.raises(
        ValueError,
        match=r"'margin'; known: 'temperature', 'same_clip', 'hardest', 'learned', 'weight', 'mask_same_clip'",
    ):
        losses.build("nt_xent", margin=0.2)
    with pytest.raises(ValueError, match=r"'positive'; TripletSum knows 'mask', 'negative'"):
        losses.build("triplet_sum", same_clip="positive")
    with pytest.raises(ValueError, match="give one of them"):
        losses.build("nt_xent", same_clip="mask", mask_same_clip=True)
    with pytest.raises(ValueError, match="above 0"):
        losses.build("nt_xent", temperature=0)


def test_errors_name_the_shapes_and_the_order():
    loss = losses.build("nt_xent")
    with pytest.raises(ValueError, match=r"\(2, 3\) for 2 audio_ids and 2 text_ids"):
        loss.from_similarity(torch.zeros(2, 3), torch.arange(2), torch.arange(2))
    with pytest.raises(ValueError, match="at least one pair"):
        loss.from_similarity(torch.zeros(0, 3), torch.arange(0), torch.arange(3))
    with pytest.raises(ValueError, match="put pair i at row i and column i"):
        loss.from_similarity(torch.zeros(2, 3), torch.arange(2), torch.tensor([1, 0, 2]))
