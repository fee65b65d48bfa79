import json
import warnings

import matplotlib
import numpy as np
import pandas as pd
import pytest
from made_runs import made_run, ranks_with

from atr import RunConfig, figures

PNG, PDF = b"\x89PNG\r\n\x1a\n", b"%PDF"


@pytest.fixture(autouse=True)
def quiet_figures():
    """No window, and no warning of matplotlib's goes unnoticed."""
    matplotlib.use("agg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    figures.plt.close("all")


@pytest.fixture
def panels(tmp_path):
    def seeds(name, share):
        return [
            made_run(
                tmp_path / "runs", f"{name}{seed}", RunConfig(), ranks_with(share, 40, seed), ranks_with(share, 20)
            )
            for seed in range(2)
        ]

    return {
        "soundscapes, frozen": {"Triplet-sum": seeds("a", 0.5), "NT-Xent": seeds("b", 0.8)},
        "soundscapes, finetuned": {"Triplet-sum": seeds("c", 0.6), "NT-Xent": seeds("d", 0.9)},
    }


@pytest.fixture
def points():
    rows = [
        {"how": how, "batch": batch, "loss": loss, "t2a_r10": 10.0 + batch, "t2a_r10_std": 1.0}
        for how in ("the recipe's", "the better")
        for batch in (16, 32, 128)
        for loss in ("Triplet-sum", "NT-Xent")
    ]
    return pd.DataFrame(rows)


def texts(figure):
    """All text that the figure shows."""
    figure.canvas.draw()
    return {item.get_text() for item in figure.findobj(matplotlib.text.Text) if item.get_text()}


def drawn(kind, panels, points):
    return {
        "curves": lambda: figures.curves(panels, {"loss": "training loss", "t2a_r10": "validation R@10 (%)"}),
        "dots": lambda: figures.dots(panels, marks={"chance": 2.0}),
        "lines": lambda: figures.lines(
            points, "batch", "loss", "t2a_r10", panels="how", labels={"batch": "batch size"}
        ),
    }[kind]()


@pytest.mark.parametrize(
    "kind, labels",
    [
        ("curves", {"training loss", "validation R@10 (%)", "epoch", "Triplet-sum", "NT-Xent", "soundscapes, frozen"}),
        ("dots", {"T→A R@10 (%)", "A→T R@10 (%)", "chance", "Triplet-sum", "NT-Xent", "soundscapes, finetuned"}),
        ("lines", {"T→A R@10 (%)", "batch size", "16", "32", "128", "NT-Xent", "the recipe's", "the better"}),
    ],
)
def test_a_figure_says_what_it_shows_with_its_units(kind, labels, panels, points):
    assert labels <= texts(drawn(kind, panels, points))


def test_curves_show_the_mean_over_seeds_and_a_band_around_it(panels):
    axis = figures.curves(panels, {"loss": "training loss"}).axes[0]
    np.testing.assert_allclose(axis.lines[0].get_ydata(), [2, 1.5, 1])
    assert axis.lines[0].get_xdata().tolist() == [1, 2, 3] and len(axis.collections) == 2
    assert axis.get_title() == "soundscapes, frozen" and axis.get_xlabel() == "epoch"


def test_curves_leave_out_what_was_not_trained(tmp_path):
    untrained = made_run(tmp_path, "none", RunConfig(), [1, 2], [1, 2], epochs=0)
    trained = made_run(tmp_path, "some", RunConfig(), [1, 2], [1, 2])
    figure = figures.curves({"all": {"untrained": [untrained], "trained": [trained]}}, {"t2a_r10": "R@10 (%)"})
    assert [line.get_label() for line in figure.axes[0].lines] == ["trained"]


def test_dots_stand_at_each_seeds_recall_and_the_interval_holds_the_mean(panels):
    axis = figures.dots(panels).axes[0]
    interval, seeds, mean = axis.lines[:3]
    assert seeds.get_xdata().tolist() == [50, 50] and mean.get_xdata() == 50
    low, high = interval.get_xdata()
    assert low < 50 < high
    assert axis.get_xlim()[0] == 0


def test_lines_go_through_the_means_on_a_logarithmic_axis(points):
    figure = figures.lines(points.query("how == 'the better'"), "batch", "loss", "t2a_r10")
    axis = figure.axes[0]
    assert axis.get_xscale() == "log" and axis.get_ylabel() == "T→A R@10 (%)" and axis.get_xlabel() == "batch"
    assert [float(value) for value in axis.lines[0].get_ydata()] == [26, 42, 138]
    assert figure.get_figwidth() == figures.COLUMN


@pytest.mark.parametrize("kind", ["curves", "dots", "lines"])
def test_a_saved_figure_is_the_same_file_each_time_and_carries_its_origin(kind, tmp_path, panels, points):
    runs = [run for lines in panels.values() for many in lines.values() for run in many]
    for name in "ab":
        figures.save(drawn(kind, panels, points), tmp_path / name, f"01_{kind}", runs)
    first, second = (tmp_path / name / "figures" for name in "ab")
    assert sorted(path.name for path in first.iterdir()) == [f"01_{kind}.{ending}" for ending in ("json", "pdf", "png")]
    for ending, start in (("png", PNG), ("pdf", PDF)):
        written = (first / f"01_{kind}.{ending}").read_bytes()
        assert written.startswith(start) and written == (second / f"01_{kind}.{ending}").read_bytes()
    record = json.loads((first / f"01_{kind}.json").read_text())
    assert record["runs"] == [run.address for run in runs] and "8 runs" in record["note"]
    assert b"8 runs" in (first / f"01_{kind}.png").read_bytes()


def test_a_saved_figure_is_closed(tmp_path, points):
    figures.save(figures.lines(points, "batch", "loss", "t2a_r10", panels="how"), tmp_path, "one")
    assert figures.plt.get_fignums() == []


def test_labels_lie_within_the_figure(panels, points):
    for kind in ("curves", "dots", "lines"):
        figure = drawn(kind, panels, points)
        figure.canvas.draw()
        box = figure.bbox
        for label in figure.findobj(matplotlib.text.Text):
            if label.get_text() and label.get_visible() and label.axes is not None and label in label.axes.texts:
                extent = label.get_window_extent()
                assert extent.x0 >= box.x0 and extent.x1 <= box.x1, (kind, label.get_text())
