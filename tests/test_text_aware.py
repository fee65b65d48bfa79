"""Text-aware pooling: the released module's numbers, attention by hand, exact scoring however it is cut up."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_weights import GOLDEN, fill, keys
from hypothesis import given, settings
from hypothesis import strategies as st

from atr import metrics
from atr.encoders.inputs import LOG_MELS
from atr.encoders.pooling import FrameRows, TextAwarePooling, frame_mask
from atr.system.packed import POOLED, InputRows, RaggedArray
from atr.training.evaluation import embed, evaluate
from atr.training.gradient_cache import BatchEncoder
from atr.training.identity import Inputs
from atr.training.model import DualEncoder


def golden(variant):
    module = TextAwarePooling(64, 128, variant=variant).eval()
    module.load_state_dict(fill(keys("tap_tymofieiev2025")))
    vectors = np.load(GOLDEN / "tap_tymofieiev2025.npz")
    audio, text, mask = (torch.from_numpy(vectors[name]) for name in ("audio", "text", "mask"))
    return module, vectors, (audio, mask.bool(), text)


def unfolded(module, frames, mask, text):
    """Section 3.6 word for word, a pair at a time: (texts, clips, D)."""
    norm = module.layer_norm
    result = torch.empty(len(text), len(frames), frames.shape[2])
    for row, caption in enumerate(text):
        for column, (clip, valid) in enumerate(zip(frames, mask, strict=True)):
            query, heard = module.w_q(norm(caption)), norm(clip[valid])
            weights = (module.w_k(heard) @ query / module.w_q.out_features**0.5).softmax(0)
            result[row, column] = norm(module.w_0(weights @ module.w_v(heard)))
    return result


def drawn(clips=3, frames=5, texts=4, dim=8, projection=6, variant="text"):
    torch.manual_seed(0)
    module = TextAwarePooling(dim, projection, variant=variant).eval()
    mask = torch.arange(frames) < torch.tensor([frames, 1, 3])[:clips, None]
    return module, torch.randn(clips, frames, dim), mask, torch.randn(texts, dim)


def test_pooled_sounds_and_similarities_are_those_of_the_released_module():
    module, vectors, inputs = golden("paper")
    with torch.no_grad():
        assert (module(*inputs) - torch.from_numpy(vectors["pooled"])).abs().max() < 1e-4
        assert (module.similarity(*inputs) - torch.from_numpy(vectors["similarity"])).abs().max() < 1e-5


def test_folding_changes_nothing():
    module, frames, mask, text = drawn()
    with torch.no_grad():
        assert torch.allclose(
            module(frames, mask, text).transpose(0, 1), unfolded(module, frames, mask, text), atol=1e-5
        )


@settings(deadline=None, max_examples=30)
@given(memory=st.integers(1, 5000), variant=st.sampled_from(["text", "code"]))
def test_similarity_is_the_same_however_it_is_cut_up(memory, variant):
    module, frames, mask, text = drawn(variant=variant)
    whole = module.similarity(frames, mask, text)  # with gradients: at once
    assert whole.shape == (4, 3) and whole.requires_grad
    with torch.no_grad():
        assert torch.allclose(module.similarity(frames, mask, text, memory), whole, atol=1e-5)


def test_similarity_is_the_cosine_of_caption_and_pooled_sound():
    module, frames, mask, text = drawn()
    with torch.no_grad():
        expected = F.cosine_similarity(unfolded(module, frames, mask, text), text[:, None], dim=2)
        assert torch.allclose(module.similarity(frames, mask, text), expected, atol=1e-5)


def test_released_scoring_hands_on_captions_of_length_one_to_all_clips_but_the_first():
    module, frames, mask, text = drawn(variant="code")
    long = 0.01 * text  # small enough for the layer norm's epsilon to count
    unit = F.normalize(long, dim=1)
    with torch.no_grad():
        first = F.cosine_similarity(unfolded(module, frames, mask, long), long[:, None], dim=2)
        others = F.cosine_similarity(unfolded(module, frames, mask, unit), long[:, None], dim=2)
        found = module.similarity(frames, mask, long, memory=1)
    assert not torch.allclose(first, others, atol=1e-3)
    assert torch.allclose(found[:, 0], first[:, 0], atol=1e-5)
    assert torch.allclose(found[:, 1:], others[:, 1:], atol=1e-5)


def test_attention_sums_to_one_and_ignores_padding():
    module, frames, mask, text = drawn()
    with torch.no_grad():
        weights = module.attention(frames, mask, text)
        loud = torch.where(mask[:, :, None], frames, 1e3)
        assert torch.allclose(module.attention(loud, mask, text), weights, atol=1e-6)
        assert torch.allclose(module.similarity(loud, mask, text), module.similarity(frames, mask, text), atol=1e-5)
    assert torch.allclose(weights.sum(2), torch.ones(3, 4)) and (weights[~mask[:, None].expand(-1, 4, -1)] == 0).all()
    assert (weights[1, :, 0] == 1).all()  # a clip of one frame


def test_a_frame_like_the_query_gets_the_greatest_weight():
    module = TextAwarePooling(4, 4).eval()
    with torch.no_grad():
        for layer in (module.w_q, module.w_k):
            layer.weight.copy_(3 * torch.eye(4))
            layer.bias.zero_()
        frames = torch.eye(4)[None]
        weights = module.attention(frames, torch.ones(1, 4, dtype=torch.bool), torch.eye(4))[0]
    assert weights.argmax(1).tolist() == [0, 1, 2, 3]


def test_dropout_acts_in_training_only():
    module, frames, mask, text = drawn()
    module.dropout.p = 0.5
    with torch.no_grad():
        calm = module.similarity(frames, mask, text)
        assert torch.equal(module.similarity(frames, mask, text), calm)
        assert not torch.allclose(module.train().similarity(frames, mask, text), calm)


def test_gradients_reach_every_parameter_but_the_bias_of_the_keys():
    module, frames, mask, text = drawn()
    module.train().similarity(frames, mask, text).sum().backward()
    still = {name for name, one in module.named_parameters() if one.grad is None or not one.grad.abs().sum() > 0}
    assert still == {"w_k.bias"}  # it adds the same to all frames of a clip


def test_a_clip_without_frames_is_refused():
    module, frames, mask, text = drawn()
    mask[1] = False
    with pytest.raises(ValueError, match="a clip without a frame cannot be heard"):
        module.similarity(frames, mask, text)


class AsTheyAre(torch.nn.Module):
    """An encoder whose frames are its inputs, with anything but zeros behind a clip's end."""

    def encode(self, features, lengths):
        frames, mask = features.transpose(1, 2), frame_mask(lengths, features.shape[2])
        return torch.where(mask[:, :, None], frames, 7.0), mask


@pytest.mark.parametrize("silent", [[0, 2], [1, 4], [1, 3], [2, 0]], ids=["first", "last", "middle", "only"])
def test_a_frame_of_zeros_counts_as_any_other(silent):
    clip, frame = silent
    torch.manual_seed(0)
    sounds, text = [torch.randn(count, 8) for count in (4, 5, 1)], torch.randn(3, 8)
    sounds[clip][frame] = 0
    network = DualEncoder(AsTheyAre(), None, 8, 8, 8, text_aware=TextAwarePooling(8, 6)).eval()
    network.audio_head = network.text_head = torch.nn.Sequential()
    audio = InputRows(LOG_MELS, RaggedArray.of([sound.numpy() for sound in sounds]))
    inputs = Inputs(audio, InputRows(POOLED, text), np.arange(3), np.arange(3))
    with torch.no_grad():
        alone = [network.text_aware.similarity(x[None], torch.ones(1, len(x), dtype=bool), text) for x in sounds]
        expected = torch.cat(alone, 1)
        whole = evaluate(network, network, inputs)
        torch.testing.assert_close(whole.tensors["similarity"], expected)
        np.testing.assert_array_equal(whole.ranks.t2a, metrics.ranks(expected, np.arange(3)).t2a)
        torch.testing.assert_close(network.similarity(embed(network, inputs, batch_size=1)[0], text), expected)
        for chunk in (None, 2):
            scores = BatchEncoder(network, network, chunk=chunk).similarity(inputs, np.arange(3))
            torch.testing.assert_close(scores, expected)


def test_clips_of_several_batches_are_joined_by_their_own_lengths():
    torch.manual_seed(0)
    parts = [FrameRows(torch.randn(2, size, 4), frame_mask(torch.tensor([size, 1]), size)) for size in (3, 5)]
    whole = FrameRows.cat(parts)
    assert len(whole) == 4 and whole.shape == (4, 5, 4) and whole.mask.sum(1).tolist() == [3, 1, 5, 1]
    torch.testing.assert_close(whole.mean(1)[1], parts[0].values[1, 0])
    room = parts[0].new_zeros(4, 3, 4)
    room[np.array([0, 1])], room[np.array([2, 3])] = parts
    assert torch.equal(room.values, whole.values) and torch.equal(room.mask, whole.mask)
