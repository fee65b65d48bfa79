"""Readings of the uniformity measures: what each field does, and a search that finds the reading behind the numbers."""

import math
import warnings
from dataclasses import replace

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

from atr.analysis import uniformity_readings
from atr.analysis.uniformity_readings import (
    Reading,
    bands,
    by_points,
    h_readings,
    nearest,
    nearest_points,
    search,
    sigma_readings,
    tree_point_to_point,
    values,
)
from atr.losses.voxels import VoxelLogistic
from atr.metrics.uniformity import gaussian_mixture, point_to_point, uniform_set, voxel_entropy

CROSS = torch.tensor([[1.0, 1.0], [1.0, 2.0], [-3.0, -1.0], [-3.0, -4.0]])


def published(reading, metric, dim=16, sets=3, **changed):
    """A table 3 as if `reading` had made it: one value a set, two decimals."""
    rows = [
        {"set": name, "metric": metric, "mean": round(value, 2)}
        for name in uniformity_readings.SETS
        for value in values(reading, metric, name, dim, sets, **changed)
    ]
    return pd.DataFrame(rows)


# Values by hand


def test_sigma_by_hand():
    """Nearest distances 1, 1, 3, 3: mean 2, deviation 1."""
    assert Reading(dims=2).sigma(CROSS, draws=3) == pytest.approx(0.5)
    assert Reading(dims=None).sigma(CROSS) == pytest.approx(0.5)


def test_sigma_of_normalised_points_by_hand():
    """On a line, normalising leaves -1 and 1, each with a duplicate; a point without one is 2 away from the rest."""
    line = torch.tensor([[2.0], [3.0], [-1.0]])
    assert Reading(dims=1).sigma(line, draws=1) == pytest.approx(np.std([1, 1, 3]) / np.mean([1, 1, 3]))
    for normalised in ("whole", "drawn"):
        expected = np.std([0, 0, 2]) / np.mean([0, 0, 2])
        assert Reading(dims=1, normalised=normalised).sigma(line, draws=1) == pytest.approx(expected)


def test_h_by_hand():
    """Two of the four quadrants hold two points each."""
    assert Reading(dims=2).h(CROSS, draws=2) == pytest.approx(math.log(2))
    assert Reading(dims=2, unit="bits").h(CROSS, draws=2) == pytest.approx(1)
    shares = np.array([math.e**2, math.e**2, 1, 1]) / (2 * math.e**2 + 2)
    expected = -(shares * np.log(shares)).sum()
    assert Reading(dims=2, histogram="softmax").h(CROSS, draws=2) == pytest.approx(expected)


def test_h_of_a_soft_assignment_by_hand():
    """In one dimension with temperature 1, points at ±log 3 lie to 3/4 and 1/4 on either side: 1.25 of 2 below 0."""
    x = torch.tensor([[math.log(3)], [-math.log(3)], [-math.log(3)]])
    shares = np.array([0.25 + 0.75 + 0.75, 0.75 + 0.25 + 0.25]) / 3
    soft = Reading(dims=1, assignment=VoxelLogistic(1.0, dims=1))
    assert soft.h(x, draws=1) == pytest.approx(-(shares * np.log(shares)).sum())
    assert replace(soft, unit="bits").h(x, draws=1) == pytest.approx(-(shares * np.log2(shares)).sum())


def test_bands_are_the_published_extremes_and_half_a_digit():
    found = bands("sigma")
    assert found["uniform"] == pytest.approx((0.185, 0.195)) and found["gaussians"] == pytest.approx((0.335, 0.355))
    assert bands("h")["uniform"] == pytest.approx((4.115, 4.135))
    assert bands("h", rounding=0)["gaussians"] == pytest.approx((2.75, 2.83))


# Fields


def test_reference_sets_are_those_of_uniformity():
    reading = Reading(30, low=0, high=2, std=0.3)
    assert torch.equal(reading.reference_set("uniform", 5, seed=4), uniform_set(30, 5, 0, 2, seed=4))
    mixture = gaussian_mixture(30, 5, std=0.3, low=0, high=2, seed=4)
    assert torch.equal(reading.reference_set("gaussians", 5, seed=4), mixture)


def test_balanced_components_hold_equally_many_points_and_differ():
    x = Reading(25, std=0.0, balanced=True).reference_set("gaussians", 6, seed=1)
    centroids, counts = torch.unique(x, dim=0, return_counts=True)
    assert len(centroids) == 10 and sorted(counts.tolist()) == [2] * 5 + [3] * 5
    other = Reading(25, std=0.0, balanced=True).reference_set("gaussians", 6, seed=2)
    assert not (x[:, None] == other).all(2).any()


def test_h_feels_neither_scale_nor_normalising_and_sigma_feels_normalising_alone():
    wide, plain = Reading(60, low=-3, high=3, std=0.3), Reading(60)
    for name in uniformity_readings.SETS:
        for metric in ("h", "sigma"):
            assert values(wide, metric, name, 12) == pytest.approx(values(plain, metric, name, 12), rel=1e-4)
        for normalised in ("whole", "drawn"):
            other = replace(plain, normalised=normalised)
            assert np.array_equal(values(other, "h", name, 12), values(plain, "h", name, 12))
            assert not np.isclose(values(other, "sigma", name, 12), values(plain, "sigma", name, 12)).any()


def test_a_cube_on_one_side_of_zero_lies_in_one_voxel_and_the_same_cube_around_zero_does_not():
    assert values(Reading(60, low=0, high=1), "h", "uniform", 12) == pytest.approx(0)
    centred, doubled = Reading(60, low=-0.5, high=0.5), Reading(60)
    assert np.array_equal(values(centred, "h", "uniform", 12), values(doubled, "h", "uniform", 12))


def test_a_sharp_assignment_is_the_indicator_and_a_soft_one_spreads():
    hard = values(Reading(60), "h", "uniform", 12, draws=10)
    sharp = values(Reading(60, assignment=VoxelLogistic(1e-6)), "h", "uniform", 12, draws=10)
    soft = values(Reading(60, assignment=VoxelLogistic(0.1)), "h", "uniform", 12, draws=10)
    assert sharp == pytest.approx(hard, abs=1e-3) and (soft > hard + 0.1).all()


def test_h_is_the_mean_over_draws_of_voxel_entropy():
    x = uniform_set(60, 12, seed=3)
    expected = voxel_entropy(x, 7, 8, "softmax", seed=5, unit="bits")
    assert Reading(histogram="softmax", unit="bits").h(x, 7, seed=5) == expected


def test_the_tree_gives_what_all_pairs_give():
    for x in (uniform_set(300, 8), gaussian_mixture(300, 8)):
        assert tree_point_to_point(x) == pytest.approx(point_to_point(x), rel=1e-5)


def test_values_repeat_by_seed_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    for reading, metric in ((Reading(20, balanced=True), "sigma"), (Reading(20), "h")):
        first = values(reading, metric, "gaussians", 10, sets=3, seed=1)
        assert len(set(first)) == 3
        assert np.array_equal(first, values(reading, metric, "gaussians", 10, sets=3, seed=1))
        assert np.array_equal(first[1:], values(reading, metric, "gaussians", 10, sets=2, seed=2))
    assert torch.equal(before, torch.get_rng_state())


# Search


def test_the_number_of_points_is_found_from_the_h_that_it_gives():
    for kind in ({}, {"histogram": "softmax"}, {"unit": "bits"}, {"assignment": VoxelLogistic(0.05)}):
        reading = Reading(37, **kind)
        target = values(reading, "h", "uniform", 12, sets=2, draws=10).mean()
        assert nearest_points(replace(reading, points=2), target, 12, sets=2, draws=10, most=64) == 37


def test_search_finds_the_reading_that_made_the_numbers():
    truth = Reading(40, std=0.3, normalised="drawn")
    others = [replace(truth, std=0.01), replace(truth, dims=None), replace(truth, low=0.0, high=4.0)]
    table = published(truth, "sigma")
    found = search("sigma", [*others, truth], table, dim=16, sets=3)
    assert found["fits"].tolist() == [False, False, False, True]
    assert found["uniform_fits"].tolist() == [True, False, False, True]  # Gaussians do not touch the uniform set
    assert found.loc[3, "uniform"] == pytest.approx(values(truth, "sigma", "uniform", 16, 3).mean())
    assert found.loc[3, "gaussians_std"] == pytest.approx(values(truth, "sigma", "gaussians", 16, 3).std(ddof=1))
    low, high = table.loc[table["set"] == "uniform", "mean"].agg(["min", "max"])
    assert found.loc[3, "uniform_published"] == f"{low:.2f} to {high:.2f}"


def test_search_of_h_finds_number_and_logarithm_that_made_the_numbers():
    truth = Reading(30)
    table = published(truth, "h", draws=10)
    found = search("h", h_readings((), table, dim=16, sets=3, draws=10), table, dim=16, sets=3, draws=10)
    fitting = found[found["fits"]]
    assert {("hard", "counts", "nats", 30, 0.1, False)} <= set(
        fitting[["assignment", "histogram", "unit", "points", "std", "balanced"]].itertuples(index=False, name=None)
    )
    assert found["uniform_fits"].sum() >= 12 and set(fitting["unit"]) == {"nats"}


def test_default_readings_cover_what_is_unsaid_once_each():
    sigma, h = sigma_readings(), h_readings((50,), dim=8, sets=2, draws=2)
    for found in (sigma, h):
        assert len(set(found)) == len(found)
        assert {reading.balanced for reading in found} == {False, True}
        assert {round(reading.std**2, 4) for reading in found} == {0.01, 0.1}
    assert {(reading.dims, reading.normalised) for reading in sigma} == {
        (None, "no"),
        (8, "no"),
        (8, "whole"),
        (8, "drawn"),
    }
    assert {(reading.histogram, reading.unit, reading.assignment is None) for reading in h} == {
        ("softmax", "nats", True),
        ("counts", "nats", True),
        ("counts", "bits", True),
        ("counts", "nats", False),
    }


def test_the_nearest_readings_miss_neither_set():
    found = pd.DataFrame(
        [("one", "a", 4.0, 1.0), ("one", "a", 2.0, 1.0), ("two", "a", 4.0, 2.4), ("two", "b", 3.0, 2.0)],
        columns=["measure", "width", "uniform", "gaussians"],
    )  # by the worse set, in parts of the band's middle: 0.5, 0.5; 0.2; 0.25
    limits = {"uniform": (3.9, 4.1), "gaussians": (1.9, 2.1)}
    assert nearest(found, limits) == [("two", "a"), ("two", "b")]
    assert nearest(found, limits, 3)[2] == ("one", "a")


def test_the_figure_shows_the_nearest_readings_and_the_published_bands():
    matplotlib.use("agg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tables = {
            "sigma": search("sigma", sigma_readings((16, 32), (40,)), dim=16, sets=2, draws=2),
            "h": search("h", [Reading(16), Reading(32), Reading(32, std=0.3, unit="bits")], dim=16, sets=2, draws=2),
        }
        figure = by_points(tables)
        figure.canvas.draw()
    try:
        shown = {text.get_text() for text in figure.findobj(matplotlib.text.Text)}
        for metric, found in tables.items():
            readings = nearest(found, bands(metric))
            assert {f"{measure};\n{width}" for measure, width in readings} <= shown
        assert sum(";\n" in text for text in shown) == 4
        assert {"points (shaded: published)", "σ", "h (nats or bits)", "uniform set", "Gaussian mixture"} <= shown
        spans = [axis.patches[0].get_extents().transformed(axis.transData.inverted()) for axis in figure.axes]
        expected = [bands(metric)[name] for metric in ("sigma", "h") for name in uniformity_readings.SETS]
        assert [(span.y0, span.y1) for span in spans] == [pytest.approx(band) for band in expected]
        drawn = figure.axes[1].containers[0].lines[0]
        measure, width = nearest(tables["sigma"], bands("sigma"))[0]
        first = tables["sigma"].query("measure == @measure and width == @width").sort_values("points")
        assert drawn.get_ydata().tolist() == first["gaussians"].tolist()
    finally:
        matplotlib.pyplot.close(figure)


# Errors


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: Reading(1), "points is 1"),
        (lambda: Reading(low=1.0, high=1.0), "low < high"),
        (lambda: Reading(std=-0.1), "std is -0.1"),
        (lambda: Reading(dims=0), "dims is 0"),
        (lambda: Reading(normalised="all"), "no, whole, drawn"),
        (lambda: Reading(histogram="count"), "softmax, counts"),
        (lambda: Reading(unit="dB"), "nats, bits"),
        (lambda: Reading().reference_set("sphere", 9), "uniform, gaussians"),
        (lambda: Reading(dims=None).h(CROSS), "h needs dimensions to draw"),
        (lambda: values(Reading(), "entropy", "uniform"), "metric is 'entropy'"),
        (lambda: bands("h", pd.DataFrame({"set": ["uniform"], "metric": ["h"], "mean": [4.0]})), "no h of gaussians"),
        (lambda: search("h", [Reading()], sets=1), "at least 2"),
        (lambda: nearest_points(Reading(), 5.6, dim=9, sets=2, draws=2), "never 5.60"),
    ],
)
def test_errors_say_what_to_change(call, words):
    with pytest.raises(ValueError, match=words):
        call()
