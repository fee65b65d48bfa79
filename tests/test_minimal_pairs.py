"""Captions that differ in one aspect, and what a model makes of them."""

import numpy as np
import pytest
import torch

from atr import RunConfig, fit
from atr.analysis import minimal_pairs
from atr.corpora import load_corpus
from atr.corpora.corpus import Corpus


@pytest.fixture(scope="module")
def asked(corpus):
    return minimal_pairs.pairs(corpus)


def test_each_pair_is_of_a_test_scene_and_no_words_are_right_more_often_than_wrong():
    many = load_corpus("soundscapes", train=2, validation=2, test=300)
    table = minimal_pairs.pairs(many)
    assert set(table["aspect"]) == set(minimal_pairs.ASPECTS)
    assert set(table["clip"]) <= set(many.split("test").clips["clip"])
    overlap = table[table["aspect"] == "overlap"]
    at_once = overlap["right"].str.contains(" while | together with | at the same time")
    assert at_once.mean() == 0.5 and len(overlap) > 100


def test_a_corpus_that_is_not_mixed_has_none(corpus):
    other = Corpus("other", corpus.clips, corpus.captions, corpus.events, lambda clip: corpus.read(clip))
    assert minimal_pairs.pairs(other).empty


class Ear:
    """Prefers what `rule(caption)` says."""

    text_aware = False

    def __init__(self, rule):
        self.rule = rule

    def sentences(self, texts, keep):
        return torch.tensor([[self.rule(text)] for text in texts])

    def similarity(self, texts, sounds):
        return texts @ sounds.T


@pytest.mark.parametrize("rule, expected", [(lambda right: 1.0, 100), (lambda right: -1.0, 0), (lambda right: 0.0, 50)])
def test_accuracy_counts_pairs_whose_right_caption_is_nearer(corpus, asked, monkeypatch, rule, expected):
    rights = set(asked["right"])
    monkeypatch.setattr(
        minimal_pairs, "Embedder", lambda *_, **__: Ear(lambda text: rule(1) if text in rights else 0.0)
    )
    run = type("Run", (), {"embeddings": {"audio": torch.ones(len(corpus.split("test")), 1)}})()
    table = minimal_pairs.accuracy([run, run], corpus, asked)
    assert (table["accuracy"] == expected).all() and table["pairs"].sum() == len(asked)
    assert (table["accuracy_low"] == expected).all()


@pytest.mark.parametrize("fields", [{}, {"text_aware": {"projection_dim": 8}, "head": "linear", "pooling": "mean"}])
def test_a_real_run_answers_with_its_own_embeddings(corpus, asked, tmp_path, fields):
    config = RunConfig(corpus={"name": "soundscapes", "train": 48, "validation": 12, "test": 16, "duration": 4.0})
    config = config.replace(training="scratch", audio_weights=None, epochs=1, embedding_dim=16, **fields)
    run = fit(config, corpus, runs=tmp_path)
    found = minimal_pairs.answers(run, corpus, asked, "cpu")
    assert found.shape == (len(asked),) and set(np.unique(found)) <= {0.0, 50.0, 100.0} and 0 < found.mean() < 100
