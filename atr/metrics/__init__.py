"""Retrieval metrics, uniformity and statistics: pure functions of arrays."""

from atr.metrics.retrieval import Ranks, chance, ranks, relevant_pairs, retrieval_metrics

__all__ = ["Ranks", "chance", "ranks", "relevant_pairs", "retrieval_metrics"]
