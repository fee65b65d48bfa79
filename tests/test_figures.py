import json
import warnings
from contextlib import nullcontext

import matplotlib
import numpy as np
import pandas as pd
import pytest
from made_runs import made_run, ranks_with

from atr import RunConfig
from atr.analysis import penalty
from atr.reports import figures

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
        "dots": lambda: figures.dots(panels, marks={"chance": {"t2a_map10": 2.0, "a2t_map10": 3.0}}),
        "lines": lambda: figures.lines(
            points, "batch", "loss", "t2a_r10", panels="how", labels={"batch": "batch size"}
        ),
    }[kind]()


@pytest.mark.parametrize(
    "kind, labels",
    [
        ("curves", {"training loss", "validation R@10 (%)", "epoch", "Triplet-sum", "NT-Xent", "soundscapes, frozen"}),
        ("dots", {"T→A mAP@10 (%)", "A→T mAP@10 (%)", "chance", "Triplet-sum", "NT-Xent", "soundscapes, finetuned"}),
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


def test_chance_stands_where_it_is_in_either_direction(panels):
    figure = figures.dots(panels, marks={"chance": {"t2a_map10": 12.2, "a2t_map10": 2.6}})
    dotted = [[line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == ":"] for axis in figure.axes]
    assert dotted == [[12.2], [2.6]]


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


def test_steps_of_the_learning_rate_are_marked_between_epochs(tmp_path):
    run = made_run(tmp_path, "a", RunConfig(), ranks_with(0.5, 40), ranks_with(0.5, 20), epochs=4)
    history = run.history.assign(learning_rate=[1e-3, 1e-3, 1e-4, 1e-4])
    history.to_csv(run.path / "history.csv", index=False)
    runs = {"frozen": {"D 8": [type(run)(run.path)]}}
    marked = figures.curves(runs, {"loss": "training loss"})
    (line,) = [line for line in marked.axes[0].lines if line.get_linestyle() == ":"]
    assert line.get_xdata()[0] == 2.5
    smooth = made_run(tmp_path, "b", RunConfig(schedule="cosine"), ranks_with(0.5, 40), ranks_with(0.5, 20), epochs=4)
    history.to_csv(smooth.path / "history.csv", index=False)
    falling = figures.curves({"frozen": {"D 8": [type(run)(smooth.path)]}}, {"loss": "training loss"})
    assert not [line for line in falling.axes[0].lines if line.get_linestyle() == ":"]


def test_a_label_has_one_colour_in_all_panels_and_a_scale_goes_from_dark_to_light(panels):
    few = {
        "a": dict(list(panels["soundscapes, frozen"].items())),
        "b": {"NT-Xent": panels["soundscapes, frozen"]["NT-Xent"]},
    }
    for ordered in (False, True):
        figure = figures.curves(few, {"loss": "training loss"}, ordered=ordered)
        first, second = figure.axes
        colors = [matplotlib.colors.to_rgb(line.get_color()) for line in first.lines]
        assert matplotlib.colors.to_rgb(second.lines[0].get_color()) == colors[1] != colors[0]
    assert sum(colors[0]) < sum(colors[1])


def test_responses_stand_at_the_means_over_seeds_with_levels_marked():
    rows = [("0", "network", 1.0), ("0", "network", 3.0), ("1", "network", 5.0), ("1", "logistic", 7.0)]
    table = pd.DataFrame(rows, columns=["α", "by", "h"])
    figure = figures.responses(table, "α", "by", {"h": "h (nats)"}, {"h": {"log 32": 3.47}})
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_xticklabels()] == ["0", "1"]
    lines = [container.lines[0] for container in axis.containers]
    assert [line.get_ydata().tolist() for line in lines] == [[2.0, 5.0], [7.0]]
    assert np.round(lines[1].get_xdata()).tolist() == [1]
    assert axis.get_ylabel() == "h (nats)" and "log 32" in [text.get_text() for text in axis.texts]


def test_h_by_points_stands_beside_its_ceiling_and_the_published_bands():
    table = pd.DataFrame(
        {"points": [16, 64, 16, 64], "set": ["text", "text", "other", "other"], "h": [2.0, 3.0, 1.0, 2.0]}
    )
    published = pd.DataFrame({"set": ["text", "text"], "mean": [3.94, 3.98]})
    (axis,) = penalty.h_by_points(table, published).axes
    *sets, ceiling = axis.lines
    assert [line.get_ydata().tolist() for line in sets] == [[2, 3], [1, 2]]
    assert ceiling.get_ydata() == pytest.approx(np.log([16, 64]))
    (band,) = axis.patches
    assert (band.get_y(), band.get_height()) == pytest.approx((3.935, 0.05))


def test_a_voxel_network_is_shown_by_epoch_distance_and_scale():
    history = pd.DataFrame({"epoch": [1, 2], "training_accuracy": [50, 90], "validation_accuracy": [40, 80]})
    errors = pd.DataFrame({"distance": [0.01, 0.1], "wrong": [20.0, 1.0]})
    scales = {"network": pd.DataFrame({"scale": [1.0, 16.0], "right": [30.0, 96.0], "certainty": [10.0, 90.0]})}
    accuracy, distance, scale = penalty.voxel_network(history, errors, scales, usual=16).axes
    assert accuracy.lines[1].get_ydata().tolist() == [40, 80] and accuracy.lines[2].get_ydata()[0] == 97
    assert distance.lines[0].get_ydata().tolist() == [20, 1]
    assert [line.get_ydata().tolist() for line in scale.lines[:2]] == [[30, 96], [10, 90]]
    assert {line.get_xdata()[0] for line in scale.lines[2:]} == {1, 16}


def test_batches_are_shown_in_the_order_of_their_construction():
    reports = {how: pd.DataFrame({"size": 4, "mean_cosine": values}) for how, values in CONSTRUCTED.items()}
    (axis,) = figures.batches(reports).axes
    assert [line.get_ydata().tolist() for line in axis.lines] == list(CONSTRUCTED.values())
    assert axis.lines[0].get_xdata().tolist() == [1, 2]


CONSTRUCTED = {"easy": [0.1, 0.2], "hard": [0.9, 0.6]}


def test_numbers_stand_where_they_are():
    table = pd.DataFrame({"models": [1, 2, 5, 10], "by": "a", "h": [1.0, 2.0, 3.0, 4.0]})
    (axis,) = figures.responses(table, "models", "by", {"h": "h"}, {}).axes
    assert axis.containers[0].lines[0].get_xdata().tolist() == list(axis.get_xticks()) == [1, 2, 5, 10]


def test_differences_are_shown_beside_nothing_with_their_intervals():
    table = pd.DataFrame({"what": ["a", "b"], "difference": [1.0, -2.0], "low": [0.5, -3.0], "high": [1.5, 1.0]})
    (axis,) = figures.forest(table, "what", "points").axes
    (bars,) = axis.collections
    assert [segment[:, 0].tolist() for segment in bars.get_segments()] == [[0.5, 1.5], [-3.0, 1.0]]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"] and axis.get_xlabel() == "points"
    assert axis.lines[0].get_xdata().tolist() == [1.0, -2.0] and axis.lines[1].get_xdata()[0] == 0


def test_curves_mark_where_a_stage_begins(panels):
    run = panels["soundscapes, frozen"]["NT-Xent"][0]
    history = run.history.assign(stage=[1, 2, 2])
    history.to_csv(run.path / "history.csv", index=False)
    staged = {"x": {"plain": panels["soundscapes, frozen"]["Triplet-sum"], "staged": [type(run)(run.path)]}}
    (axis,) = figures.curves(staged, {"t2a_r10": "R@10"}).axes
    assert [line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == "--"] == [1.5]


@pytest.mark.parametrize("said", ["$\\frac{$ 狗叫 😀", "$a_1^2$, $5 \\b {c} _^%&#~"])
def test_text_is_drawn_as_it_stands(said, panels, tmp_path):
    """Mathematics would be narrower than its source, or an error; what the font lacks is a warning of `save` alone."""
    renamed = {said: {said: panels["soundscapes, frozen"]["NT-Xent"]}}
    table = pd.DataFrame({said: [said], "by": said, "h": [1.0], "difference": 0.0, "low": -1.0, "high": 1.0})
    for figure in (
        figures.curves(renamed, {"t2a_r10": said}),
        figures.dots(renamed, marks={said: {"t2a_map10": 2.0, "a2t_map10": 3.0}}),
        figures.responses(table, said, "by", {"h": said}, {"h": {said: 1.0}}),
        figures.forest(table, said, said),
    ):
        assert said in texts(figure)
        assert not [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_parse_math()]
    label = figure.axes[0].xaxis.label
    width = label.get_window_extent().width
    label.set_text(said.replace("$", "S"))  # letters about as wide
    assert width == pytest.approx(label.get_window_extent().width, rel=0.1)
    with pytest.warns(UserWarning, match="U\\+72D7, U\\+53EB") if "狗" in said else nullcontext():
        figures.save(figure, tmp_path, "one")


@pytest.mark.parametrize(
    "reach, expected",
    [((0.02, 300), {"10⁻²", "10⁻¹", "10⁰", "10²"}), ((0.15, 0.9), {"2 × 10⁻¹", "6 × 10⁻¹"}), ((1, 1e12), {"10¹²"})],
)
def test_logarithmic_axes_have_powers_and_no_source_of_mathematics(reach, expected):
    figures.style()
    figure, axis = figures.plt.subplots()
    axis.plot(reach, reach)
    axis.set(xscale="log", yscale="log")
    assert expected <= texts(figure) and not [text for text in texts(figure) if "$" in text or "\\" in text]


def test_a_name_that_is_no_file_name_still_makes_one_in_its_folder(tmp_path):
    for name in ("../x", "a/b", "a_b"):
        figures.save(figures.plt.figure(), tmp_path, name)
    stems = {path.name.removesuffix(".png") for path in (tmp_path / "figures").glob("*.png")}
    assert stems == {"%2E.%2Fx", "a%2Fb", "a_b"} and [path.name for path in tmp_path.iterdir()] == ["figures"]


def test_a_label_that_begins_with_an_underscore_is_shown(panels, points):
    named = {title: {f"_{label}": runs for label, runs in lines.items()} for title, lines in panels.items()}
    reports = {"_hard": pd.DataFrame({"mean_cosine": [0.2, 0.1]})}
    for figure, label in (
        (figures.curves(named, {"loss": "loss"}), "_NT-Xent"),
        (figures.lines(points.assign(loss="_" + points["loss"]), "batch", "loss", "t2a_r10"), "_NT-Xent"),
        (figures.batches(reports), "_hard"),
    ):
        assert label in {text.removeprefix("\u200b") for text in texts(figure)}


def test_a_series_has_one_colour_in_all_figures_and_no_two_look_alike():
    one, two = figures.looks(["NT-Xent", "Sigmoid"]), figures.looks(["Triplet-sum", "mine", "NT-Xent"])
    assert one["NT-Xent"] == two["NT-Xent"] and two["Triplet-sum"]["color"] == "C0"
    many = figures.looks([*(f"own {number}" for number in range(12)), "NT-Xent", "human"])
    assert len({(look["color"], look["ls"]) for look in many.values()}) == 14
    assert many["NT-Xent"] == one["NT-Xent"]
    both = figures.looks(["text", "Triplet-sum"])  # of two families, whose colours would meet
    assert both["text"]["color"] != both["Triplet-sum"]["color"]


def test_names_stand_in_the_order_of_the_lines_ends_and_apart():
    figure, ((axis,),) = figures.subplots()
    ends = {"low": 0.0, "high": 1.0, "nearly": 0.99, "as high": 1.0}
    for name, end in ends.items():
        axis.plot([0, 1, 2], [0.5, end, np.nan], label=name)  # the last point that is there counts
    figures.name_lines(axis)
    figure.canvas.draw()
    heights = {text.get_text(): text.get_window_extent() for text in axis.texts}
    order = sorted(heights, key=lambda name: heights[name].y0)
    assert order == ["low", "nearly", "high", "as high"]
    assert all(heights[below].y1 <= heights[above].y0 for below, above in zip(order, order[1:], strict=False))
    assert [text.get_color() for text in axis.texts] == [
        next(line for line in axis.lines if line.get_label() == text.get_text()).get_color() for text in axis.texts
    ]


def test_losses_of_several_kinds_are_drawn_as_shares_of_their_first_value(tmp_path):
    runs = {
        name: [made_run(tmp_path, name, RunConfig(loss={"name": name}), [1, 2], [1, 2])]
        for name in ("nt_xent", "triplet_sum")
    }
    axis, other = figures.curves({"": runs}, {"loss": "training loss", "t2a_r10": "R@10"}).axes
    assert axis.get_ylabel() == "training loss\n(epoch 1 = 1)" and other.get_ylabel() == "R@10"
    assert [line.get_ydata()[0] for line in axis.lines] == [1, 1]
    history = runs["nt_xent"][0].history["loss"]
    np.testing.assert_allclose(axis.lines[0].get_ydata(), history / history.iloc[0])
    alone = figures.curves({"": {"one": runs["nt_xent"]}}, {"loss": "training loss"}).axes[0]
    np.testing.assert_allclose(alone.lines[0].get_ydata(), history)


def test_panels_of_one_line_each_have_their_own_scale(points):
    shared, own = (figures.lines(points, "batch", hue, "t2a_r10", panels="how") for hue in ("loss", "how"))
    assert len(shared.legends) == 1 and not own.legends
    assert shared.axes[0].get_shared_y_axes().joined(*shared.axes)
    assert not own.axes[0].get_shared_y_axes().joined(*own.axes)


def test_letters_that_the_font_lacks_are_named_once(tmp_path):
    figures.style()
    figure, axis = figures.plt.subplots()
    axis.set_title("日本 rain")
    with pytest.warns(UserWarning) as told:
        figures.save(figure, tmp_path, "one")
    (said,) = [str(one.message) for one in told]
    assert "one.*: empty boxes for what the font lacks: U+65E5, U+672C; name one that has them in font.family" in said


def test_a_search_by_batch_size_says_so_over_each_panel():
    rows = {"batch": [16, 16, 32, 32], "rate": [1e-3, 7.41e-5] * 2, "best": ["", "yes"] * 2}
    table = pd.DataFrame({**rows, "validation mAP@10": [1.0, 2, 3, 4]})
    table = pd.concat([table.assign(loss=loss) for loss in ("NT-Xent", "Sigmoid")]).set_index(["batch", "loss"])
    figure = figures.tries(table)
    assert [axis.get_title() for axis in figure.axes] == ["batch size 16", "batch size 32"]
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["0.0000741", "0.001"]
