import re
import warnings

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from made_runs import made_run
from matplotlib.colors import to_hex
from safetensors.torch import load_file, save_file

from atr import RunConfig
from atr.analysis import maps
from atr.corpora.corpus import Corpus, event_table
from atr.reports import figures
from atr.system import devices

matplotlib.use("agg")
LONG = "a dog barks while somebody chops wood, and after some time a car passes by on a wet road far away"


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    figures.plt.close("all")


@pytest.fixture(autouse=True)
def nobody_looks_on(monkeypatch):
    for name in ("ATR_COMMAND", "JPY_SESSION_NAME", "VSCODE_PID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def points():
    return torch.randn(40, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def corpus():
    """Two test clips of two captions each, and one clip to train on."""
    clips = pd.DataFrame(
        {"clip": ["seen", "dog.wav", "a<b>.wav"], "split": ["train", "test", "test"], "duration": 1.0}
    ).assign(digest="0", description="")
    captions = pd.DataFrame(
        {
            "clip": ["seen", "dog.wav", "dog.wav", "a<b>.wav", "a<b>.wav"],
            "caption": ["unused", LONG, 'he says "5 > 4 & 3"', "rain", "it rains"],
        }
    )
    return Corpus("made", clips, captions, event_table(), lambda clip: (np.zeros(1, np.float32), 1))


@pytest.fixture
def run_of(tmp_path, corpus):
    """Makes a finished run whose embeddings lie `shift` from the origin."""

    def make(name, shift=0.0):
        run = made_run(tmp_path / "runs", name, RunConfig(), [1, 2, 1, 2], [1, 1])
        audio = torch.tensor([[0.0, 1.0], [2.0, 3.0]]) + shift
        embeddings = load_file(run.path / "embeddings.safetensors") | {"audio": audio}
        embeddings["text"] = audio.repeat_interleave(2, 0) + 0.5
        save_file(embeddings, run.path / "embeddings.safetensors")
        corpus.clips[["clip", "split"]].to_csv(run.path / "clips.csv", index=False)
        return run

    return make


@pytest.fixture
def unprojected(monkeypatch):
    """Maps that are the first two dimensions; gives the list of seeds that were asked for."""
    seeds = []

    def project(audio, text, seed, neighbours):
        seeds.append(seed)
        return audio[:, :2], text[:, :2]

    monkeypatch.setattr(maps, "project", project)
    return seeds


def parts(box):
    """Menu, message and figure of an explorer."""
    return *box.children[0].children, box.children[1]


def explorer(runs, corpus, seed=0):
    return maps.explorer(list(runs), maps.maps_of(runs, lambda config: corpus, seed))


def test_components_of_points_on_two_lines_are_their_distances_along_them():
    # Along (3, 4) / 5 lie -5 and 5, across it -1 and 1; the centre is (10, 20).
    x = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [-0.8, 0.6], [0.8, -0.6]]) + torch.tensor([10.0, 20.0])
    expected = torch.tensor([[5.0, 0.0], [-5.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
    torch.testing.assert_close(maps.components(x), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(maps.components(x, 1), expected[:, :1], atol=1e-5, rtol=0)


def test_components_do_not_depend_on_the_place_nor_the_order_of_points(points):
    expected = maps.components(points, 3)
    torch.testing.assert_close(maps.components(points + 7, 3), expected)
    torch.testing.assert_close(maps.components(points.flip(0), 3), expected.flip(0))
    variances = expected.var(0)
    assert (variances.diff() < 0).all() and expected.mean(0).abs().max() < 1e-12


def test_all_components_hold_all_variance_and_all_distances(points):
    whole = maps.components(points, 8)
    torch.testing.assert_close(whole.var(0).sum(), points.var(0).sum())
    torch.testing.assert_close(torch.cdist(whole, whole), torch.cdist(points, points))


@pytest.mark.parametrize(
    "x, number, said",
    [
        (torch.ones(3), 2, "a point per row"),
        (torch.ones(5, 3), 4, "ask for 1 to 3"),
        (torch.ones(1, 3), 2, "ask for 1 to 1"),
        (torch.full((3, 3), torch.nan), 2, "NaN"),
    ],
)
def test_components_that_do_not_exist_are_an_error(x, number, said):
    with pytest.raises(ValueError, match=said):
        maps.components(x, number)


def test_four_sets_say_what_share_of_the_variance_is_seen():
    x = torch.diag(torch.tensor([4.0, 2.0, 2.0, 1.0]))
    x = torch.cat([x, -x])  # variances in the ratio 16 : 4 : 4 : 1, so two of them hold 20 of 25
    figure = maps.four_sets({"text": x, "audio": 3 * x, "uniform": x[:, :2].clone(), "mixture": x + 1})
    figure.canvas.draw()
    assert [axis.get_title() for axis in figure.axes] == ["text", "audio", "uniform", "mixture"]
    said = [axis.texts[0].get_text() for axis in figure.axes]
    assert said == ["80.0 % of variance", "80.0 % of variance", "100.0 % of variance", "80.0 % of variance"]
    for axis in figure.axes:
        assert axis.get_aspect() == 1 and axis.get_xlim() == axis.get_ylim()
        low, high = axis.get_xlim()
        assert low < axis.collections[0].get_offsets().min() and axis.collections[0].get_offsets().max() < high


def test_a_set_that_coincides_cannot_be_drawn():
    with pytest.raises(ValueError, match="audio: its 5 points coincide"):
        maps.four_sets({"audio": torch.full((5, 3), 0.1)})


def test_a_map_is_its_seeds_keeps_near_points_near_and_leaves_no_trace():
    generator = torch.Generator().manual_seed(0)
    audio = torch.randn(20, 16, generator=generator)
    text = 3 * audio.repeat_interleave(2, 0) + 0.01 * torch.randn(40, 16, generator=generator)  # lengths do not count
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    with warnings.catch_warnings(), devices.threads(3):
        warnings.simplefilter("error")
        first, again, other = (maps.project(audio, text, seed, neighbours=5) for seed in (0, 0, 1))
        assert torch.get_num_threads() == 3
    assert [part.shape for part in first] == [(20, 2), (40, 2)]
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True)) and not torch.equal(first[0], other[0])
    distances = torch.cdist(first[1], first[0])
    own = distances.argmin(1) == torch.arange(20).repeat_interleave(2)
    assert own.float().mean() > 0.8  # processors round differently, and so a few may come to lie beside another
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()


def test_four_points_make_a_map_even_where_they_coincide_or_oppose_each_other():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    for audio, text in ((x, x), (x[:1], x[:1].repeat(3, 1))):
        assert all(part.isfinite().all() for part in maps.project(audio, text))


def test_neighbours_are_the_nearest_by_cosine_and_each_point_is_its_own_first(points, monkeypatch):
    monkeypatch.setattr(maps, "ROWS", 7)
    x = torch.nn.functional.normalize(torch.cat([points, points[:3]]), dim=1)
    indices, distances = maps.nearest(x, 6)
    assert torch.equal(indices[:, 0], torch.arange(43)) and (distances[:, 0] == 0).all()
    expected = (1 - x @ x.t()).sort(1).values[:, :6]
    torch.testing.assert_close(distances, expected.clamp(min=0))
    assert indices[40:, 1].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"text": torch.ones(3, 5)}, "one space"),
        ({"audio": torch.ones(1, 4), "text": torch.ones(2, 4)}, "4 points or more"),
        ({"text": torch.ones(0, 4)}, "2 clips and 0 captions"),
        ({"neighbours": 1}, "2 or more"),
        ({"audio": torch.zeros(2, 4)}, "all zeros"),
        ({"audio": torch.full((2, 4), torch.inf)}, "audio .* infinity"),
    ],
)
def test_what_cannot_be_mapped_is_an_error(change, said):
    with pytest.raises(ValueError, match=said):
        maps.project(**({"audio": torch.ones(2, 4), "text": torch.ones(4, 4)} | change))


def test_a_picture_shows_both_layers_at_their_places():
    audio, text = torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 3.0], [4.0, 5.0]])
    figure = maps.picture(audio, text, "one run")
    (axis,) = figure.axes
    assert [layer.get_offsets().tolist() for layer in axis.collections] == [text.tolist(), audio.tolist()]
    assert [entry.get_text() for entry in figure.legends[0].get_texts()] == ["2 captions", "1 clips"]
    assert axis.get_title() == "one run" and axis.get_aspect() == 1


def test_a_map_is_coloured_by_the_sound_that_a_clip_begins_with(run_of, corpus, unprojected):
    events = [("a<b>.wav", "rain", 0.4, 1.0), ("a<b>.wav", "dog", 0.0, 0.5), ("seen", "bell", 0.0, 1.0)]
    corpus = Corpus("made", corpus.clips, corpus.captions, event_table(events), corpus.read)
    run = run_of("a")
    assert maps.kinds_of(corpus.split("test")) == (["", "dog"], ["", "", "dog", "dog"])
    blue, grey = "#0072b2", "#999999"
    one = maps.map_of(run, corpus)
    figure = maps.picture(one.audio, one.text, "", one.audio_kinds, one.text_kinds)
    below, above = figure.axes[0].collections
    assert [to_hex(color) for color in below.get_facecolors()] == [grey, grey, blue, blue]
    assert [to_hex(color) for color in above.get_edgecolors()] == [grey, blue]
    assert [text.get_text() for text in figure.legends[0].get_texts()][2:] == ["dog", "other kinds"]
    assert figure.get_figwidth() == figures.PAGE
    canvas = parts(explorer({"one": run}, corpus))[2]
    assert list(canvas.data[1].marker.color) == [grey, blue] and canvas._config["responsive"] and canvas.layout.autosize
    assert (
        f'<span style="color:{blue}">■ dog</span>' in canvas.layout.title.text
        and "bell" not in canvas.layout.title.text
    )


def test_only_so_many_kinds_have_a_colour_and_the_most_frequent_come_first():
    kinds = [kind for number, kind in enumerate("hgfedcba") for _ in range(8 - number)] + [""]
    colors = maps.palette(kinds)
    assert list(maps.legend(colors)) == ["h", "g", "f", "e", "d", "c", maps.OTHERS]
    assert colors["b"] == colors["a"] == colors[""] != colors["c"] and len(set(colors.values())) == 7
    assert maps.palette(["", ""]) == {} and list(maps.legend(maps.palette(["x"]))) == ["x"]


def test_labels_are_escaped_and_wrapped(run_of, corpus):
    audio, text = maps.labels(run_of("a"), corpus)
    first = "a dog barks while somebody chops wood, and after some time a<br>car passes by on a wet road far away"
    assert text == [
        f"{first}<br><i>right clip at rank 1 of 2</i>",
        'he says "5 &gt; 4 &amp; 3"<br><i>right clip at rank 2 of 2</i>',
        "rain<br><i>right clip at rank 1 of 2</i>",
        "it rains<br><i>right clip at rank 2 of 2</i>",
    ]
    assert audio == [
        f'<b>dog.wav</b><br>– {first}<br>– he says "5 &gt; 4 &amp; 3"',
        "<b>a&lt;b&gt;.wav</b><br>– rain<br>– it rains",
    ]


def test_labels_of_another_corpus_are_an_error(run_of, corpus):
    run = run_of("a")
    fewer = Corpus("made", corpus.clips, corpus.captions[:4], corpus.events, corpus.read)
    others = Corpus("made", corpus.clips[::-1], corpus.captions, corpus.events, corpus.read)
    for other in (fewer, others):
        with pytest.raises(ValueError, match="2 clips and 4 captions; the corpus has 2"):
            maps.labels(run, other)


def test_the_menu_changes_the_map_and_a_run_is_mapped_once(run_of, corpus, unprojected):
    box = explorer({"one": run_of("a"), "two <2>": run_of("b", 10.0)}, corpus, seed=3)
    menu, said, figure = parts(box)
    text, audio = figure.data
    assert (text.name, audio.name) == ("captions", "clips") and menu.options == ("one", "two <2>")
    assert list(audio.x) == [0, 2] and list(text.y) == [1.5, 1.5, 3.5, 3.5] and figure.layout.title.text == "one"
    assert [list(trace.hovertext) for trace in (audio, text)] == list(maps.labels(run_of("c"), corpus))
    menu.value = "two <2>"
    assert list(audio.x) == [10, 12] and figure.layout.title.text == "two &lt;2&gt;" and unprojected == [3, 3]
    menu.value = "one"
    assert list(audio.x) == [0, 2] and unprojected == [3, 3] and said.value == ""


def test_a_run_that_cannot_be_mapped_says_why_and_the_map_stays(run_of, corpus, unprojected):
    broken = run_of("b")
    (broken.path / "clips.csv").unlink()
    menu, said, figure = parts(explorer({"one": run_of("a"), "two": broken}, corpus))
    menu.value = "two"
    assert "clips.csv" in said.value and figure.layout.title.text == "one" and list(figure.data[1].x) == [0, 2]
    menu.value = "one"
    assert said.value == ""
    with pytest.raises(ValueError, match="no runs"):
        maps.show({})


def test_the_explorers_script_comes_with_the_package_and_loads_no_other(run_of, corpus, unprojected):
    script = parts(explorer({"one": run_of("a")}, corpus))[2]._esm
    assert len(script) > 1e6 and not re.search(r"""\b(import|from)\s*\(?\s*["'](https?:)?//""", script)


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({}, False),
        ({"JPY_SESSION_NAME": "notebooks/03.ipynb"}, True),
        ({"VSCODE_PID": "17"}, True),
        ({"JPY_SESSION_NAME": "notebooks/03.ipynb", "ATR_COMMAND": "atr study 03"}, False),
        ({"JPY_PARENT_PID": "17"}, False),
    ],
)
def test_somebody_looks_on_where_jupyter_server_or_vs_code_started_the_kernel(variables, expected, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert maps.live() is expected


def test_show_gives_the_picture_of_the_first_run_and_to_a_looker_on_the_explorer(
    run_of, corpus, unprojected, monkeypatch, tmp_path
):
    runs = {"one": run_of("a"), "two": run_of("b")}
    figure = maps.show(runs, lambda config: corpus, tmp_path, "03_map")
    assert figure.axes[0].get_title() == "one" and unprojected == [0] and figures.plt.get_fignums() == []
    assert (tmp_path / "figures" / "03_map.pdf").is_file() and "1 run" in (
        tmp_path / "figures" / "03_map.json"
    ).read_text()
    monkeypatch.setenv("JPY_SESSION_NAME", "03.ipynb")
    menu, _, _ = parts(maps.show(runs, lambda config: corpus))
    assert menu.options == ("one", "two") and unprojected == [0, 0]


def test_a_title_and_texts_with_signs_of_tex_are_shown_as_they_are(run_of, corpus, unprojected):
    title = r"$\frac{$ 狗"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = maps.picture(torch.eye(2), torch.eye(2), title)
        figure.canvas.draw()
    assert figure.axes[0].get_title() == title
    box = explorer({title: run_of("a")}, corpus)
    assert parts(box)[2].layout.title.text == r"&#36;\frac{&#36; 狗"
    assert maps.wrap("$5 & $6 <or> more") == "&#36;5 &amp; &#36;6 &lt;or&gt; more"


def test_so_many_similarities_are_held_at_a_time_and_no_more(points, monkeypatch):
    x = torch.nn.functional.normalize(points, dim=1)
    whole, held, topk = maps.nearest(x, 6), [], torch.Tensor.topk
    monkeypatch.setattr(maps, "BLOCK", 3 * len(x))
    monkeypatch.setattr(torch.Tensor, "topk", lambda part, number: held.append(tuple(part.shape)) or topk(part, number))
    for part, expected in zip(maps.nearest(x, 6), whole, strict=True):
        torch.testing.assert_close(part, expected)
    assert set(held) == {(3, 40), (1, 40)}
