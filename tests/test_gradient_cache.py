"""A batch embedded in chunks, twice: the gradient of the batch as a whole, with the memory of a chunk."""

import weakref

import numpy as np
import pytest
import torch
from test_distributed import STEADY, inputs, network
from test_training import assert_same, config
from torch import nn

from atr import RunConfig, fit, losses
from atr.config import ConfigError
from atr.system import devices
from atr.training import gradient_cache, records
from atr.training.gradient_cache import BatchEncoder

PAIRS = 20


def with_dropout(kind):
    """A network whose audio head drops a third, and whose pooling by caption, if it has one, drops attention."""
    dual = network(**kind)
    dual.audio_head.insert(1, nn.Dropout(1 / 3))
    if dual.text_aware is not None:
        dual.text_aware.dropout.p = 0.2
    return dual


def gradients(kind, chunk, dual=None):
    """Loss, gradients, batch statistics and what the random numbers are after a step."""
    dual, data = dual or with_dropout(kind), inputs(kind.get("frames", False))
    embedder = BatchEncoder(dual, dual, chunk=chunk)
    captions = np.random.default_rng(4).permutation(48)[:PAIRS]
    ids = torch.from_numpy(data.clip_of_caption[captions])
    loss_function = losses.build("nt_xent")
    torch.manual_seed(7)
    with devices.threads(1):
        if kind.get("text_aware"):
            loss = loss_function.from_similarity(embedder.similarity(data, captions).T, ids, ids)
        else:
            loss = loss_function(*embedder.embeddings(data, captions), ids)
        loss.backward()
    found = {name: parameter.grad for name, parameter in dual.named_parameters() if parameter.grad is not None}
    buffers = {name: buffer.clone() for name, buffer in dual.named_buffers()}
    return {"loss": loss.detach(), **found, **buffers, "random": torch.get_rng_state()}


@pytest.fixture
def once(monkeypatch):
    """Embeds each chunk once and keeps all activations, as plain PyTorch does."""

    def use():
        monkeypatch.setattr(gradient_cache, "checkpoint", lambda function, *arguments, **_: function(*arguments))

    return use


KINDS = {
    "pooled features": {},
    "batch-norm": {"frames": True},
    "text-aware": {"frames": True, "text_aware": True},
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("chunk", [1, 7, 10])
class TestTwice:
    def test_with_dropout_the_gradient_is_that_of_the_chunks_embedded_once(self, name, chunk, once):
        cached = gradients(KINDS[name], chunk)
        once()
        plain = gradients(KINDS[name], chunk)
        assert cached.keys() == plain.keys()
        for key, value in plain.items():
            torch.testing.assert_close(cached[key], value, rtol=1e-5, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")

    def test_running_statistics_move_once_a_chunk(self, name, chunk, once):
        counts = {key: value for key, value in gradients(KINDS[name], chunk).items() if "num_batches" in key}
        assert bool(counts) == ("frames" in KINDS[name])
        assert all(count == -(-PAIRS // chunk) for count in counts.values())


@pytest.mark.parametrize("chunk", [1, 7, 19])
def test_without_dropout_and_batch_norm_the_gradient_is_that_of_the_whole_batch(chunk):
    whole, cached = (gradients({}, size, dual=network()) for size in (None, chunk))
    for key, value in whole.items():
        torch.testing.assert_close(cached[key], value, rtol=1e-5, atol=1e-6)


def test_a_chunk_of_the_whole_batch_is_embedded_once(monkeypatch):
    monkeypatch.setattr(gradient_cache, "checkpoint", None)
    whole, chunk = (gradients({}, size) for size in (None, PAIRS))
    assert all(torch.equal(whole[key], chunk[key]) for key in whole)


class Watched(nn.Module):
    """Squares what comes in, and counts how many of its results are alive, in rows."""

    def __init__(self):
        super().__init__()
        self.rows, self.alive, self.most = [], 0, 0

    def forward(self, x):
        result = (x @ torch.ones(x.shape[1], x.shape[1])).square()
        self.rows.append(len(x))
        self.alive += len(x)
        self.most = max(self.most, self.alive)
        weakref.finalize(result, self.forget, len(x))
        return result

    def forget(self, rows):
        self.alive -= rows


def test_no_more_than_a_chunks_activations_are_kept(once):
    def watched():
        dual = network()
        dual.audio_head = nn.Sequential(dual.audio_head[0], Watched(), nn.Linear(6, 6))
        gradients({}, 5, dual)
        return dual.audio_head[1]

    cached = watched()
    assert cached.rows == [5] * 8 and cached.most == 5
    once()
    plain = watched()
    assert plain.rows == [5] * 4 and plain.most == PAIRS


class TestRuns:
    @pytest.mark.parametrize("changes", [{}, {"penalty": {"alpha": 1.0, "estimator": "logistic"}}])
    def test_a_run_in_chunks_is_that_of_whole_batches(self, changes, corpus, tmp_path):
        whole, chunked = (fit(config(chunk=chunk, **changes), corpus, runs=tmp_path) for chunk in (None, 5))
        np.testing.assert_allclose(chunked.history.to_numpy(), whole.history.to_numpy(), atol=1e-4)

    @pytest.mark.parametrize("training", ["finetuned", "frozen_released"])
    def test_a_run_with_dropout_and_batch_norm_repeats(self, training, corpus, tmp_path):
        kind = config(training=training, chunk=5, epochs=1)
        first, again = (fit(kind, corpus, runs=tmp_path / name) for name in "ab")
        assert_same(first, again)
        assert first.history["loss"][0] != fit(kind.replace(chunk=8), corpus, runs=tmp_path).history["loss"][0]

    def test_a_run_embedded_twice_is_that_embedded_once(self, corpus, tmp_path, once):
        kind = config(**STEADY | {"augment": "specaugment", "text_dropout": None}, chunk=5)
        twice = fit(kind, corpus, runs=tmp_path / "twice")
        once()
        plain = fit(kind, corpus, runs=tmp_path / "once")
        np.testing.assert_allclose(twice.history.to_numpy(), plain.history.to_numpy(), atol=1e-4)


class TestConfig:
    def test_runs_without_chunks_have_the_addresses_that_they_had(self):
        plain = RunConfig(batch_size=64, loss={"name": "sigmoid"}, seed=1)
        assert records.address(plain, "corpus", {"audio": "a", "text": "b"}) == "5d86ccb764212f15"
        assert "chunk" not in plain.identity()

    def test_a_chunk_is_part_of_the_address_where_it_divides_a_batch(self):
        def address(chunk):
            return records.address(RunConfig(chunk=chunk), "corpus", {})

        assert address(None) == address(32) == address(100) != address(31)
        assert address(31) != address(16)

    @pytest.mark.parametrize("chunk", [0, -1, 2.5, True, "8"])
    def test_what_is_no_number_of_pairs_is_refused(self, chunk):
        with pytest.raises(ConfigError, match=f"chunk: {chunk!r} is not a whole number of 1 or more, nor None"):
            RunConfig(chunk=chunk)
